package ctl

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/app/local"
)

func (s *session) down() *cobra.Command {
	timeout := time.Minute
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop the running mesh",
		Long: `Stop the running mesh: first the gateways, then the sidecars finish the requests they have, then the programs
stop. Objects that were applied are forgotten. Succeeds also when no mesh is running.`,
		Example:           `  malha down`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout <= 0 {
				return fmt.Errorf("--timeout %s is not a time to wait; use for example 60s", timeout)
			}
			m, err := s.mesh()
			if err != nil {
				return err
			}
			running, _ := local.FindRunning(m.dir)
			if err := m.down(cmd.Context()); err != nil {
				var none *noMeshError
				if !errors.As(err, &none) {
					return err
				}
				// One that has no control socket yet reads its folder, or builds programs.
				early, ok := local.EndStarting(m.dir)
				if !ok {
					s.nothingToStop(m.dir)
					return nil
				}
				running = early
			}
			return s.awaitEnd(cmd.Context(), m, running, timeout)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait for requests in flight")
	return cmd
}

// nothingToStop says so, after what a mesh that was killed left running has been ended.
func (s *session) nothingToStop(dir string) {
	switch n := local.EndOrphans(dir); n {
	case 0:
		s.ui.say("no mesh is running in %s; nothing to stop", shortPath(dir))
	case 1:
		s.ui.say("no mesh is running in %s; one program that it had left behind is ended", shortPath(dir))
	default:
		s.ui.say("no mesh is running in %s; %d programs that it had left behind are ended", shortPath(dir), n)
	}
}

// awaitEnd waits until a mesh that was told to stop has gone. When that takes long, it says what the mesh waits for.
func (s *session) awaitEnd(ctx context.Context, m *client, running local.Running, timeout time.Duration) error {
	const patience = 5 * time.Second // without a word
	began, told := time.Now(), ""
	for n := 0; !local.Released(m.dir); n++ {
		switch past := time.Since(began); {
		case past > timeout:
			return fmt.Errorf("the mesh (pid %d) still drains after %s; wait, or end it with `kill -9 %d`", running.PID, timeout, running.PID)
		case past > patience && n%20 == 0:
			if st, err := m.status(ctx); err == nil && st.Phase == local.Stopping && stopping(st) != told {
				told = stopping(st)
				s.ui.say("%s", told)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	// The lock goes a moment before the process does.
	for n := 0; n < 100 && local.Alive(running.PID); n++ {
		time.Sleep(5 * time.Millisecond)
	}
	s.ui.say("the mesh is stopped")
	return nil
}

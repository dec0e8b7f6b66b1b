package ctl

import (
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
			m, err := s.mesh()
			if err != nil {
				return err
			}
			running, _ := local.FindRunning(m.dir)
			if err := m.down(cmd.Context()); err != nil {
				var none *noMeshError
				if errors.As(err, &none) {
					s.ui.say("no mesh is running in %s; nothing to stop", m.dir)
					return nil
				}
				return err
			}
			deadline := time.Now().Add(timeout)
			for !local.Released(m.dir) {
				if time.Now().After(deadline) {
					return fmt.Errorf("the mesh (pid %d) still drains after %s; wait, or end it with `kill -9 %d`", running.PID, timeout, running.PID)
				}
				select {
				case <-cmd.Context().Done():
					return cmd.Context().Err()
				case <-time.After(20 * time.Millisecond):
				}
			}
			// The lock goes a moment before the process does.
			for n := 0; n < 100 && local.Alive(running.PID); n++ {
				time.Sleep(5 * time.Millisecond)
			}
			s.ui.say("the mesh is stopped")
			return nil
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait for requests in flight")
	return cmd
}

package proxy

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/handover"
)

// handoverFile is in the state folder.
const handoverFile = "handover.sock"

// handoverPath returns where proxies of this workload meet; "" nowhere.
func (c *Config) handoverPath() string {
	switch {
	case c.Handover == "off" || !handover.Supported:
		return ""
	case c.Handover != "":
		return c.Handover
	case c.State != "":
		return filepath.Join(c.State, handoverFile)
	}
	return ""
}

// meet finds out whether another process serves already, which this one then replaces. Nothing that fails here keeps the
// proxy from serving, only its upgrade from being hitless.
func (a *App) meet(ctx context.Context) {
	path := a.c.handoverPath()
	if path == "" {
		return
	}
	door, predecessor, err := handover.Claim(ctx, path, a.o.Version, a.log)
	var r *handover.Refused
	switch {
	case errors.As(err, &r):
		a.log.Error("another proxy runs and does not hand its listeners over; going on without them, which fails where ports are the same (stop it first)", "socket", path, "pid", r.PID, "reason", r.Reason)
	case err != nil:
		a.log.Warn("the next upgrade of this proxy will not be hitless", "error", err)
	case predecessor != nil:
		a.log.Info("taking over from a running proxy", "pid", predecessor.PID, "version", predecessor.Program)
		a.predecessor, a.hold = predecessor, make(chan struct{})
	}
	a.door = door
}

// succeed takes over once this proxy can do all that the one before does, and then waits to be replaced itself.
func (a *App) succeed(ctx context.Context) error {
	if a.predecessor != nil {
		if err := a.takeOver(ctx); err != nil {
			return err
		}
	}
	if a.door != nil && a.door.Serve(ctx, a) {
		a.log.Info("a new proxy has taken over")
		a.quit()
	}
	return nil
}

func (a *App) takeOver(ctx context.Context) error {
	defer a.predecessor.Close()
	// Readiness depends on rooms that say nothing when it changes, and this is asked for a moment only.
	for err := a.ready(); err != nil; err = a.ready() {
		if a.stream == nil {
			return fmt.Errorf("this proxy can't take over: %w; the one that runs goes on", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(20 * time.Millisecond):
		}
	}
	// From here both accept, so nobody waits.
	close(a.hold)
	door, err := a.predecessor.TakeOver(ctx)
	var r *handover.Refused
	switch {
	case errors.As(err, &r):
		return err
	case err != nil:
		if ctx.Err() == nil {
			a.log.Warn("the next upgrade of this proxy will not be hitless", "error", err)
		}
		return nil
	}
	a.door = door
	a.log.Info("took over", "pid", a.predecessor.PID)
	return nil
}

// Socket implements handover.Runner.
func (a *App) Socket(key string) syscall.Conn {
	for _, w := range a.windows {
		if w.key() == key {
			return w.socket
		}
	}
	return a.proxy.Socket(key)
}

// Yield implements handover.Runner. The ports of windows go first, as long as this proxy is ready: a probe must not see it
// drain while another one serves. Then no plan may open a port any more, then nothing is accepted any more.
func (a *App) Yield() {
	_ = a.front.stop()
	a.ending.Store(true)
	_ = a.feed.stop()
	a.proxy.Yield()
}

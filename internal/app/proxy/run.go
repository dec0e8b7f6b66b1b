// Package proxy is malha-proxy put together: configuration in, a running data plane out.
//
// In: Config, from flags and environment. It starts the data path (internal/proxy/live), what feeds it with plans (a file,
// or internal/wire/watch), telemetry and the admin server, and owns all their goroutines: Run returns after every one
// of them. What each of them does is theirs; here is only who is wired to whom, and in which order they start and end.
//
// Where a process of the same workload runs already (handover.go), this one takes its sockets, gets ready, and only then
// accepts; the other one drains and ends.
//
// The end: readiness turns off, listeners drain for a bounded time, then everything is stopped, and the access log is
// written out last.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/handover"
	"github.com/malha-mesh/malha/internal/proxy/live"
	"github.com/malha-mesh/malha/internal/proxy/owner"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/wire/packed"
	"github.com/malha-mesh/malha/internal/wire/watch"
)

// Options are Config and the process around it.
type Options struct {
	Config         *Config
	Version        string
	Getenv         func(string) string
	Stdout, Stderr io.Writer
	Reload         <-chan os.Signal // reads Config.Plan again; nil never
}

// App is the parts of a running proxy.
type App struct {
	o      Options
	c      *Config
	log    *slog.Logger
	level  slog.LevelVar
	creds  trust.Holder
	rec    *telemetry.Recorder
	lines  *telemetry.AccessLog // nil: off
	proxy  *live.Proxy
	memory int64                  // bytes that the process may have; 0: any number
	conns  *conn.Memory           // what connections have of it; nil: no limit
	guard  *owner.Guard           // nil: everybody may send through us and command
	file   *packed.Plan           // from a file: in force, or about to be; nil: from the stream
	stream *watch.Watcher         // nil: from a file
	needs  atomic.Pointer[string] // what in the plan in force needs an identity, in words; nil: there is no plan yet
	ending atomic.Bool
	quit   context.CancelFunc

	drained  sync.Once
	draining *group // drains that the admin port asked for

	feed, front *group                // what brings plans, and the admin port: both end when a new process takes over
	windows     []*window             // the ports through which people and the kubelet look in
	door        *handover.Door        // nil: no new process can take over
	predecessor *handover.Predecessor // nil: this process is the first
	hold        chan struct{}         // closed when connections may be accepted; nil: from the start
}

// Run runs the proxy until ctx is over, then drains for at most Config.DrainTimeout and returns. An error means that it
// could not start, or that a part of it failed.
func Run(ctx context.Context, o Options) error {
	a := &App{o: o, c: o.Config}
	a.level.Set(a.c.LogLevel)
	ho := &slog.HandlerOptions{Level: &a.level}
	if a.c.LogFormat == "json" {
		a.log = slog.New(slog.NewJSONHandler(o.Stderr, ho))
	} else {
		a.log = slog.New(slog.NewTextHandler(o.Stderr, ho))
	}
	if err := a.load(ctx); err != nil {
		return err
	}
	a.memory = tune(o.Getenv, a.c.Concurrency, a.role())

	lines, err := openAccessLog(a.c.AccessLog, o.Stdout)
	if err != nil {
		return err
	}
	defer func() { _ = lines.Close() }()
	if a.c.AccessLog != "off" {
		a.lines = telemetry.NewAccessLog(lines)
		a.lines.Failed = func(err error) {
			a.log.Error("the access log can't be written: its lines are lost, and counted, until it can", "error", err)
		}
	}
	a.rec = telemetry.New(telemetry.Options{Log: a.lines, Version: o.Version, Off: a.c.Telemetry == "off"})
	a.rec.Collect(a.collect)
	a.meet(ctx)
	lo := live.Options{Credentials: &a.creds, Recorder: a.rec, Log: a.log, DrainTime: a.c.DrainTimeout, Hold: a.hold,
		MaxConnections: a.c.MaxConnections, MaxHandshakes: a.c.MaxHandshakes}
	if lo.DrainTime == 0 {
		lo.DrainTime = -1 // none, not the default
	}
	a.c.Limits.apply(&lo, a.role())
	if a.memory > 0 {
		lo.Conn.Memory = conn.NewMemory(a.memory)
	}
	a.conns = lo.Conn.Memory
	if a.predecessor != nil {
		lo.Inherit, lo.InheritPacket = a.predecessor.Listener, a.predecessor.Packets
	}
	if a.c.SameUser {
		if a.guard, err = owner.Open(); err != nil {
			return fmt.Errorf("--same-user: %w", err)
		}
		defer func() { _ = a.guard.Close() }()
		lo.Server.Sender = a.guard.Check
	}
	a.proxy = live.New(lo)

	if a.file == nil {
		a.stream = watch.New(watch.Options{
			Addr: a.c.Control, Node: a.c.Node, Role: a.c.Role, Version: o.Version, Credentials: &a.creds,
			TrustDomain: a.c.Trust, RootsFile: a.c.Roots, TokenFile: a.c.Token, CacheDir: a.c.State, ApplyPacked: a.apply, Log: a.log,
		})
	}

	if err := a.openWindows(ctx); err != nil {
		return err
	}
	return a.run(ctx)
}

// listen opens a TCP port without MPTCP, which costs speed and socket options.
func listen(ctx context.Context, addr string) (*net.TCPListener, error) {
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

// run starts the parts and ends them in order.
func (a *App) run(ctx context.Context) error {
	ctx, a.quit = context.WithCancel(ctx)
	defer a.quit()
	// Parts that feed the proxy end first; it drains; then the parts that watch it end; the access log is last.
	still := context.WithoutCancel(ctx)
	door, data, watchers, log := newGroup(ctx), newGroup(still), newGroup(still), newGroup(still)
	a.feed, a.front, a.draining = newGroup(ctx), newGroup(still), newGroup(still)
	fail := func(what string, f func(context.Context) error) func(context.Context) {
		return func(ctx context.Context) {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				a.log.Error("a part of the proxy failed", "part", what, "error", err)
				data.fail(fmt.Errorf("%s: %w", what, err))
				a.quit()
			}
		}
	}
	if a.lines != nil {
		log.run(func(ctx context.Context) {
			if err := a.lines.Run(ctx); err != nil {
				a.log.Error("the last lines of the access log were lost", "error", err)
			}
		})
	}
	watchers.run(a.rec.Run)
	watchers.run(func(ctx context.Context) { tidy(ctx, &a.rec.Proxy) })
	if a.memory > 0 {
		watchers.run(func(ctx context.Context) { a.watchMemory(ctx, a.conns, a.memory) })
	}
	for _, w := range a.windows {
		a.front.run(fail(w.name, func(ctx context.Context) error { return a.serveWindow(ctx, w) }))
	}
	data.run(fail("proxy", a.proxy.Run))
	if a.file != nil {
		if err := a.apply(a.file); err != nil {
			data.fail(err)
			a.quit()
		}
		a.feed.run(a.reload)
	} else {
		a.feed.run(fail("control", a.stream.Run))
	}
	door.run(fail("handover", a.succeed))

	<-ctx.Done()
	a.ending.Store(true)
	_ = door.stop()
	_ = a.feed.stop()
	if data.err() == nil {
		a.drain()
	}
	err := data.stop()
	_ = a.front.stop()
	_ = watchers.stop()
	_ = a.draining.stop()
	_ = log.stop()
	a.log.Info("proxy has ended")
	return err
}

// load reads what comes from files, so that a mistake in them is told before anything starts.
func (a *App) load(ctx context.Context) error {
	if a.c.Plan == "" {
		return regular(a.c.Roots, a.c.Token)
	}
	var err error
	if a.file, err = readPlan(ctx, a.c.Plan); err != nil {
		return err
	}
	if a.c.Identity == "" {
		return nil
	}
	c, err := readIdentity(a.c.Identity, time.Now())
	if err != nil {
		return err
	}
	if id := a.file.Node.Identity; !id.IsZero() && id != c.Identity {
		return fmt.Errorf("the identity in %s is %s, the plan is for %s", a.c.Identity, c.Identity.URI(), id.URI())
	}
	a.creds.Set(c)
	return nil
}

func (a *App) role() plan.Role {
	if a.file != nil {
		return a.file.Node.Role
	}
	return a.c.Role
}

// apply puts a plan in force. On an error the one before stays.
func (a *App) apply(p *packed.Plan) error {
	if err := a.proxy.ApplyPacked(p); err != nil {
		return fmt.Errorf("the plan can't be put in force: %w", err)
	}
	first, alone := a.needs.Load() == nil, a.creds.Current() == nil
	if !first && !alone {
		return nil
	}
	why := needsIdentity(p)
	a.needs.Store(&why) // from here on it is ready
	if first {
		a.log.Info("plan is in force", "node", p.Node.Name, "role", p.Node.Role, "listeners", len(p.Listeners), "routes", len(p.Routes), "clusters", len(p.Clusters))
	}
	if why != "" && alone {
		a.log.Warn("the plan needs mutual TLS and there is no identity: such connections will be refused", "because", why)
	}
	return nil
}

// reload reads the plan file again at each signal.
func (a *App) reload(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.o.Reload:
		}
		p, err := readPlan(ctx, a.c.Plan)
		if err == nil {
			p = p.Keeping(a.file)
			err = a.apply(p)
		}
		if err != nil {
			a.log.Error("the plan was not reloaded, the one before stays in force", "error", err)
			continue
		}
		a.file = p
		a.log.Info("plan was reloaded", "file", a.c.Plan)
	}
}

// ready returns nil when the proxy can take traffic, else why not.
func (a *App) ready() error {
	why := a.needs.Load()
	switch {
	case a.ending.Load():
		return errors.New("draining")
	case why == nil:
		return errors.New("no plan is in force yet")
	case *why != "" && a.creds.Current() == nil:
		return errors.New("there is no identity yet, and " + *why)
	}
	return nil
}

// beginDrain drains without ending the process: the admin port's /drain.
func (a *App) beginDrain() { a.draining.run(func(context.Context) { a.drain() }) }

// drain finishes what is open, for at most the drain timeout. The first call does it, others wait for it.
func (a *App) drain() {
	a.drained.Do(func() {
		a.ending.Store(true)
		a.log.Info("draining", "timeout", a.c.DrainTimeout)
		ctx, cancel := context.WithTimeout(context.Background(), a.c.DrainTimeout)
		defer cancel()
		a.proxy.Drain(ctx)
	})
}

// openAccessLog opens the sink of the access log. Closing standard output does nothing.
func openAccessLog(where string, stdout io.Writer) (io.WriteCloser, error) {
	switch where {
	case "off", "stdout":
		return keepOpen{stdout}, nil
	}
	return telemetry.OpenLogFile(where)
}

type keepOpen struct{ io.Writer }

func (keepOpen) Close() error { return nil }

// group is goroutines that end together.
type group struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	failed error
}

func newGroup(ctx context.Context) *group {
	g := &group{}
	g.ctx, g.cancel = context.WithCancel(ctx)
	return g
}

func (g *group) run(f func(context.Context)) { g.wg.Go(func() { f(g.ctx) }) }

// fail keeps the first error, which stop returns.
func (g *group) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failed == nil {
		g.failed = err
	}
}

func (g *group) err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.failed
}

// stop tells the goroutines to end, waits for them and returns the first failure.
func (g *group) stop() error {
	g.cancel()
	g.wg.Wait()
	return g.err()
}

// Package local is the mesh on one machine, behind `malha up`: a folder of manifests in, a running mesh out.
//
// A Mesh reads the folder (config/file), decides where everything listens (placement), runs the control plane in this
// process (app/control), and for each workload a malha-proxy and the workload's program as child processes, which it
// starts again when they end. It answers on a control socket (api.go), and on one page with everybody's metrics.
//
// Who owns what: one loop goroutine (Mesh.loop) owns every mutable field of Mesh and its units; the others (a goroutine
// for each process and probe, the file watcher, the servers) send it functions to run. Mesh.Run starts all of them and
// returns after the last has ended. What manifests mean is config's part, what a proxy must do compile's; this package
// only supplies the facts: what runs, where, and whether it is ready.
package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/file"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/proxy/owner"
	"github.com/malha-mesh/malha/internal/world"
	"github.com/malha-mesh/malha/samples/bookinfo"
)

// Options are those of New.
type Options struct {
	State       string        // state directory
	Folder      string        // absolute; "" for the bundled Bookinfo
	GatewayPort int           // of the first gateway port; -1 as the Gateway says, 0 any that is free
	CertTTL     time.Duration // 0: the authority's default
	AccessLog   bool
	Shared      bool          // programs of other users of the machine may send through the sidecars and command the proxies
	Timeout     time.Duration // until the mesh must be ready
	FailFast    bool          // end when it does not become ready in time, or a program keeps crashing before that
	Version     string
	Programs    *Programs
	Kill        context.Context // when it ends, nothing is waited for any more; nil for never
	Console     func(Line)      // told every line that programs write; nil for none. The mesh stands still until it returns
	Events      func(Event)     // told what goes on, from any goroutine, in the same way
	Log         *slog.Logger
}

// Mesh is a mesh on one machine.
type Mesh struct {
	o       Options
	log     *slog.Logger
	bundled bool
	folder  string

	out     *output
	spawner *spawner
	orphans *orphans
	state   *state
	plane   *plane
	source  *file.Source
	proxy   string // path of malha-proxy
	since   time.Time
	metrics string          // URL of the metrics page
	inner   context.Context // of everything that Run waits for; ends after the programs and proxies have gone
	pressed context.Context // when it ends, no proxy is waited for any more; with Options.Kill, and when the time of a drain is over
	cut     context.CancelFunc
	ports   *ports

	calls   chan func()   // to the loop
	ended   chan struct{} // closed when the loop is over
	down    chan struct{} // closed by the first `malha down`
	downNow sync.Once
	failed  chan error // told once when FailFast ends the mesh
	wg      sync.WaitGroup

	turn sync.Mutex // one change of the configuration at a time

	// The loop owns everything below.
	changing    bool            // somebody has the turn
	gone        []ident.Name    // units whose ports wait for the end of that
	offered     *file.Result    // the folder as it was read last
	objects     []config.Object // of the folder, those in force, and those that applied ones shadow
	applied     []config.Object
	config      *model.Config // in force, or, before anything was started, what it starts with
	placed      placement.Placement
	units       map[ident.Name]*unit
	phase       Phase
	diagnostics []model.Diagnostic
	dirty       bool     // the control plane has to be told where things are
	leavers     []leaver // while it stops
}

// New returns a Mesh. It starts nothing and touches nothing yet.
func New(o Options) (*Mesh, error) {
	if o.State == "" || o.Programs == nil {
		return nil, errors.New("local: Options.State and Options.Programs must be set")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Kill == nil {
		o.Kill = context.Background()
	}
	if o.Events == nil {
		o.Events = func(Event) {}
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	m := &Mesh{
		o: o, log: o.Log, folder: o.Folder, bundled: o.Folder == "",
		spawner: newSpawner(), orphans: newOrphans(o.State),
		calls: make(chan func()), ended: make(chan struct{}), down: make(chan struct{}), failed: make(chan error, 1),
		ports: newPorts(), units: make(map[ident.Name]*unit), phase: Starting,
	}
	m.pressed, m.cut = context.WithCancel(o.Kill)
	m.out = newOutput(func(l Line) {
		if o.Console != nil && !strings.HasSuffix(l.Source, proxySuffix) {
			o.Console(l)
		}
	})
	if m.bundled {
		m.folder = filepath.Join(o.State, "bookinfo", "mesh")
	}
	return m, nil
}

// Run runs the mesh until ctx ends or somebody asks for its end; then it drains, and returns when every program, proxy
// and goroutine has gone. The error is nil after an end in order, *RunningError, *InvalidError, or why it could not go on.
func (m *Mesh) Run(ctx context.Context) error {
	st, err := openState(m.o.State, m.folder)
	if err != nil {
		return err
	}
	m.state, m.since = st, time.Now()
	defer st.close()
	defer m.cut()
	defer m.ports.close()
	if n := m.orphans.reap(); n > 0 {
		m.note(EventNote, "ended %s that an earlier mesh had left behind", plural(n, "program"))
	}
	if guard, err := owner.Open(); err == nil {
		_ = guard.Close()
	} else if !m.o.Shared {
		m.o.Shared = true // or nothing would be served
		m.note(EventProblem, "programs of other users of this machine, if it has any, can send through the sidecars and command the proxies: %v", err)
	}
	// What proxies keep is for their restart while the control plane is away. It is here, and says how long certificates live now.
	if err := os.RemoveAll(m.state.path("proxies")); err != nil {
		return fmt.Errorf("cannot clear the state directory: %w; choose another with --state DIR", err)
	}
	m.o.Programs.Building = func(name string) { m.note(EventStep, "building %s (first time only)", name) }
	if err := m.load(ctx); err != nil {
		return err
	}
	// What runs below ends with this context, after the programs and proxies have gone.
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	m.inner = inner
	if m.plane, err = newPlane(m); err != nil {
		cancel()
		return err
	}
	servers, err := m.listen()
	if err != nil {
		cancel()
		_ = m.plane.Close()
		return err
	}
	workloads, gateways := len(m.config.Workloads), len(m.placed.Gateways) // from here on they are the loop's
	go m.spawner.run()
	infra := make(chan error, 8) // a part that ends by itself ends the mesh
	m.spawn(func() { infra <- m.plane.run(inner) })
	servers.run(m)
	loopCtx, endLoop := context.WithCancel(context.Background())
	go m.loop(loopCtx)
	watching, stopWatching := context.WithCancel(inner)
	m.spawn(func() {
		// Only watching's end ends it.
		_ = m.source.Run(watching, m.edited)
	})
	m.spawn(func() { m.reconsider(watching) })

	m.note(EventStep, "starting %s, a proxy beside each%s", plural(workloads, "workload"), gatewaysText(gateways))
	m.do(func() { m.enforce(m.config, m.placed) }) // somebody may have changed it by now
	m.spawn(func() { m.awaitReady(inner) })

	select {
	case <-ctx.Done():
	case <-m.down:
	case err = <-m.failed:
	case err = <-infra:
		err = fmt.Errorf("the control plane ended: %w", err)
	}
	stopWatching()
	m.drain()
	servers.stop()
	cancel()
	m.wg.Wait()
	endLoop()
	<-m.ended
	m.spawner.stop()
	if err == nil {
		// The end in order takes what was applied with it; a crash leaves it for the next mesh.
		if saveErr := saveOverlay(m.overlayPath(), m.folder, nil); saveErr != nil {
			m.log.Warn("cannot forget what was applied", "error", saveErr)
		}
	}
	return err
}

func (m *Mesh) overlayPath() string { return m.state.path("applied.json") }

// spawn runs f in a goroutine that Run waits for.
func (m *Mesh) spawn(f func()) {
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		f()
	}()
}

// loop runs what others send, one at a time, and tells the control plane once after each what changed.
func (m *Mesh) loop(ctx context.Context) {
	defer close(m.ended)
	for {
		select {
		case f := <-m.calls:
			f()
		case <-ctx.Done():
			return
		}
		m.push()
	}
}

// push tells the control plane where things are, when that changed. It runs in the loop.
func (m *Mesh) push() {
	if m.dirty {
		m.dirty = false
		m.plane.SetInstances(m.instances())
	}
}

// post has f run by the loop, soon. It does nothing once the loop is over.
func (m *Mesh) post(f func()) {
	select {
	case m.calls <- f:
	case <-m.ended:
	}
}

// do has f run by the loop and waits for it. The loop itself must not call it.
func (m *Mesh) do(f func()) {
	done := make(chan struct{})
	m.post(func() { defer close(done); f() })
	select {
	case <-done:
	case <-m.ended:
	}
}

func (m *Mesh) note(kind EventKind, format string, args ...any) {
	m.o.Events(Event{Kind: kind, Text: fmt.Sprintf(format, args...)})
}

// load reads the folder for the first time, and what a crashed mesh had applied to it.
func (m *Mesh) load(ctx context.Context) error {
	if m.bundled {
		if err := writeBundled(m.state.path("bookinfo")); err != nil {
			return fmt.Errorf("cannot write the bundled Bookinfo to the state directory: %w", err)
		}
	}
	m.source = file.New(file.Options{Dir: m.folder, Log: m.log})
	r := m.source.Load()
	names := []string{"malha-proxy"}
	for _, w := range r.Config.Workloads {
		if w.Run != nil {
			names = append(names, w.Run.Command[0])
		}
	}
	var err error
	if err = m.o.Programs.Prepare(ctx, names); err != nil {
		return err
	}
	if m.proxy, err = m.o.Programs.Find(ctx, "malha-proxy", ""); err != nil {
		return err
	}
	if model.HasErrors(r.Diagnostics) { // at the start nothing stands in for what is wrong: say all of it, and start nothing
		a, err := Analyze(r)
		if err != nil {
			return err
		}
		return &InvalidError{m.folder, a.Diagnostics}
	}
	first, ds, _ := m.fit(ctx, basis{}, r.Objects, nil, r.Diagnostics)
	if applied, more := loadOverlay(m.overlayPath(), m.folder); len(applied) > 0 && !model.HasErrors(ds) {
		over, overDS, _ := m.fit(ctx, basis{}, merge(r.Objects, applied), nil, append(slices.Clone(r.Diagnostics), more...))
		if !model.HasErrors(overDS) {
			first, ds, m.applied = over, overDS, applied
			m.note(EventNote, "%s applied before the mesh was killed: in force again", plural(len(applied), "object"))
		} else {
			m.note(EventProblem, "what was applied before the mesh was killed no longer fits the folder and was left out")
		}
	}
	if model.HasErrors(ds) {
		// What was taken out of force for its error is missed elsewhere: that is no news.
		ds = slices.DeleteFunc(ds, func(d model.Diagnostic) bool { return d.Severity != model.Error && !slices.Contains(r.Diagnostics, d) })
		return &InvalidError{m.folder, ds}
	}
	if len(first.Config.Workloads) == 0 {
		return programless(m.folder, r.Objects)
	}
	m.config, m.placed, m.offered, m.objects, m.diagnostics = first.Config, first.placed, r, r.Objects, ds
	if len(ds) > 0 {
		m.o.Events(Event{Kind: EventDiagnostics, Diagnostics: ds})
	}
	return nil
}

// writeBundled puts the bundled sample where it can be read and edited. Each start begins with it as it was.
func writeBundled(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return fs.WalkDir(bookinfo.Manifests, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dir, filepath.FromSlash(path))
		if d.IsDir() {
			return os.MkdirAll(to, 0o700)
		}
		b, err := bookinfo.Manifests.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, b, 0o600)
	})
}

// candidate is a configuration that can be in force on this machine.
type candidate struct {
	file.Candidate
	placed placement.Placement
}

// fit finds what of objects can be in force after before (file.Settle), with everything that can be known without starting
// anything: also the programs and ports of this machine. found is what is known to be wrong already. The candidate is nil when
// an error is nobody's: then nothing can change. fresh is what got ports by it, to be forgotten if it is not put in force.
func (m *Mesh) fit(ctx context.Context, from basis, objects, before []config.Object, found []model.Diagnostic) (c *candidate, all []model.Diagnostic, fresh []string) {
	past := file.Good{Objects: before, Secrets: from.secrets}
	c = &candidate{}
	var ports []model.Diagnostic
	var settled bool
	c.Candidate, found, settled = file.Settle(objects, past, found, func(cfg *model.Config) []model.Diagnostic {
		// Nothing is placed yet, but the gateways' names and labels are known: a Gateway that selects another is a mistake.
		loose := append(world.Check(world.Build(cfg, nil, placement.Gateways(cfg))), m.checkPrograms(ctx, cfg)...)
		var keys []string
		c.placed, keys, ports = m.place(cfg, from.placed)
		fresh = append(fresh, keys...)
		return append(loose, ports...)
	})
	if !settled || model.HasErrors(ports) {
		return nil, found, fresh
	}
	return c, found, fresh
}

// The codes of what only this package can see.
const (
	codeCommand = "MALHA0901" // a Workload's command cannot be run
	codePort    = "MALHA0902" // a port is in use
	codeDir     = "MALHA0903" // a Workload's folder does not exist
	codeRoom    = "MALHA0904" // the machine has not enough ports
	codeUnkept  = "MALHA0905" // what was applied cannot be written down
)

// checkPrograms looks for every program that workloads name, so that a missing one is told before anything starts.
func (m *Mesh) checkPrograms(ctx context.Context, cfg *model.Config) []model.Diagnostic {
	var ds []model.Diagnostic
	for i := range cfg.Workloads {
		w := &cfg.Workloads[i]
		if w.Run == nil {
			continue
		}
		origin := w.Run.Origin
		if origin.IsZero() {
			origin = w.Origin
		}
		if st, err := os.Stat(w.Run.Dir); err != nil || !st.IsDir() {
			ds = append(ds, model.Diagnostic{Code: codeDir, Severity: model.Error, Origin: origin, Path: "spec.run.dir",
				Message: w.Run.Dir + " is not a folder", Hint: "make it, or correct the path (it is relative to the file)"})
			continue
		}
		if _, err := m.o.Programs.Find(ctx, w.Run.Command[0], w.Run.Dir); err != nil {
			cause, hint, _ := strings.Cut(err.Error(), "; ")
			ds = append(ds, model.Diagnostic{Code: codeCommand, Severity: model.Error, Origin: origin, Path: "spec.run.command[0]",
				Message: "cannot start it: " + cause, Hint: hint})
		}
	}
	return ds
}

func gatewaysText(n int) string {
	switch n {
	case 0:
		return ""
	case 1:
		return ", and the gateway"
	}
	return ", and " + plural(n, "gateway")
}

// listenLoopback listens on a port of 127.0.0.1 that the kernel chooses.
func listenLoopback() (net.Listener, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("cannot listen on 127.0.0.1: %w", err)
	}
	return l, nil
}

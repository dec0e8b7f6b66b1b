package local

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/config/file"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/plan"
)

const (
	programGrace = 10 * time.Second // from SIGTERM to SIGKILL for a program
	proxyGrace   = 35 * time.Second // for a proxy: longer than its own drain
	// spread is how long a proxy may still send to an endpoint after it took the plan without it: requests that had picked it.
	spread = 100 * time.Millisecond
	// crashes in a row, each soon after the start, make a program one that keeps crashing.
	crashLoop = 3
)

// proxySuffix ends the output source of a proxy.
const proxySuffix = " proxy"

// ProxySource returns the name under which a proxy's output is kept.
func ProxySource(name ident.Name) string { return name.String() + proxySuffix }

// unit is a proxy and the workload beside it. The loop owns it.
type unit struct {
	name     ident.Name
	role     plan.Role
	identity ident.Identity
	labels   map[string]string
	workload *model.Workload // nil for a gateway
	app      map[int]string
	admin    string
	settings proxySettings

	proxy    *child
	program  *child             // nil for a gateway, and for a workload that is an address
	probing  context.CancelFunc // ends the probe that runs; nil when none does
	awaiting context.CancelFunc // ends the wait for its proxy; nil when it has not been started
	serving  bool               // its proxy has had its configuration: nobody could reach the program before
	ready    bool               // its program is
	reason   string             // why it is not ready
	stopping bool               // on its way out: gets no new requests
	gone     bool               // it has ended: nothing of it runs
	replaced bool               // it is restarted for an edit, and is not ready again yet
	absent   bool               // its program is not there, and is looked for again
	held     bool               // its program starts when its proxy has its configuration
}

// up reports whether others can ask the program.
func (u *unit) up() bool { return u.ready && u.serving }

// child is a supervised process as the loop sees it.
type child struct {
	stop     context.CancelFunc
	done     chan struct{} // closed when it has gone for good
	pid      int           // 0 while it does not run
	restarts int
	crashes  int // in a row
	why      string
}

// enforce brings a configuration into force: the control plane gets it, and only the units that it changes are
// started, stopped or restarted. It runs in the loop.
func (m *Mesh) enforce(cfg *model.Config, placed placement.Placement) {
	m.config, m.placed = cfg, placed
	m.source.Follow(file.SecretFiles(cfg))
	// Before anything starts: a certificate is only given to what is configured.
	m.plane.SetConfig(cfg)
	m.plane.SetInstances(m.instances())
	if m.phase == Stopping {
		return
	}
	wanted := make(map[ident.Name]*unit)
	for i := range cfg.Workloads {
		w := &cfg.Workloads[i]
		wanted[w.Name] = &unit{name: w.Name, role: plan.Sidecar, identity: w.Identity, labels: w.Labels, workload: w, app: m.instance(w.Name).App}
		wanted[w.Name].settings = settingsOf(cfg.Proxies, w.Name.Namespace, w.Labels)
	}
	for i := range placed.Gateways {
		g := &placed.Gateways[i]
		wanted[g.Name] = &unit{name: g.Name, role: plan.Gateway, identity: g.Identity, labels: g.Labels}
		wanted[g.Name].settings = settingsOf(cfg.Proxies, g.Name.Namespace, g.Labels)
	}
	for _, name := range slices.SortedFunc(maps.Keys(m.units), ident.Name.Compare) {
		u, w := m.units[name], wanted[name]
		switch {
		case u.gone && w == nil:
			delete(m.units, name)
			m.freePorts(name)
			m.out.forget(name.String(), ProxySource(name))
		case u.gone:
			w.replaced = u.replaced
			m.launch(w)
		case u.stopping: // enforce is called again when it has gone
		case w == nil, w.role != u.role, w.identity != u.identity:
			m.retire(u) // another certificate, which its peers expect at once
		case !maps.Equal(w.labels, u.labels) || !w.settings.same(u.settings): // which a running proxy does not take: it starts anew
			if !m.waitsForReplica(u, wanted) {
				u.replaced = u.workload != nil
				m.retire(u)
			}
		case w.workload == nil:
		case !sameProgram(w, u):
			if !m.waitsForReplica(u, wanted) {
				m.replaceProgram(u, w)
			}
		default:
			asked := u.workload
			u.workload = w.workload
			if u.probing != nil && !sameQuestion(asked, u.workload) {
				m.startProbe(u)
			}
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(wanted), ident.Name.Compare) {
		if m.units[name] == nil {
			m.launch(wanted[name])
		}
	}
}

// sameProgram reports whether two workloads of one name run the same program in the same place.
func sameProgram(a, b *unit) bool {
	if !maps.Equal(a.app, b.app) || a.workload.Address != b.workload.Address || (a.workload.Run == nil) != (b.workload.Run == nil) {
		return false
	}
	if a.workload.Run == nil {
		return true
	}
	x, y := *a.workload.Run, *b.workload.Run
	x.Origin, y.Origin = ident.Origin{}, ident.Origin{}
	return reflect.DeepEqual(x, y) && reflect.DeepEqual(portNames(a.workload), portNames(b.workload))
}

// sameQuestion reports whether two workloads are asked in one way whether they are ready.
func sameQuestion(a, b *model.Workload) bool {
	return a.CheckPort == b.CheckPort && reflect.DeepEqual(a.Check, b.Check)
}

// portNames are what the variables of a program depend on beside its placement.
func portNames(w *model.Workload) (names []string) {
	for _, p := range w.Ports {
		names = append(names, fmt.Sprint(p.Name, " ", p.Port))
	}
	return names
}

func (m *Mesh) instance(name ident.Name) *model.Instance {
	for i := range m.placed.Instances {
		if m.placed.Instances[i].Workload == name {
			return &m.placed.Instances[i]
		}
	}
	return &model.Instance{Workload: name}
}

// instances returns the facts for the control plane. It runs in the loop.
func (m *Mesh) instances() ([]model.Instance, []model.GatewayInstance) {
	all := slices.Clone(m.placed.Instances)
	for i := range all {
		u := m.units[all[i].Workload]
		all[i].Ready = u != nil && u.up() && !u.stopping
	}
	return all, m.placed.Gateways
}

// launch starts a unit. It runs in the loop.
func (m *Mesh) launch(u *unit) {
	m.units[u.name] = u
	m.dirty = true
	m.startUnit(u)
}

// startUnit starts the proxy and the program of a unit, or tries again later: there may be room on the disk by then. It runs in the loop.
func (m *Mesh) startUnit(u *unit) {
	if err := m.startProxy(u); err != nil {
		if why := err.Error(); u.reason != why {
			u.reason = why
			m.note(EventProblem, "%s: %s", u.name, why)
		}
		if m.o.FailFast && m.phase == Starting {
			m.fail(fmt.Errorf("%s: %w", u.name, err))
		}
		m.later(u, restartMax, func() {
			if !u.stopping {
				m.startUnit(u)
			}
		})
		return
	}
	if u.workload != nil {
		m.startProgram(u)
	}
}

// later has the loop run f after a pause, unless the unit or the mesh has ended by then.
func (m *Mesh) later(u *unit, pause time.Duration, f func()) {
	m.spawn(func() {
		if !slept(m.inner, pause) {
			return
		}
		m.post(func() {
			if m.units[u.name] == u && m.phase != Stopping {
				f()
			}
		})
	})
}

// startProxy starts the malha-proxy of a unit.
func (m *Mesh) startProxy(u *unit) error {
	port, err := m.ports.port("admin/" + u.name.String())
	if err != nil {
		return err
	}
	u.admin = loopback(port)
	dir := m.state.path("proxies", u.name.Namespace+"."+u.name.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("no place for the state of its proxy: %w; make room, or choose another with --state DIR", err)
	}
	token, err := m.plane.token(u)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte(token), 0o600); err != nil {
		return fmt.Errorf("no place for the token of its proxy: %w; make room, or choose another state directory with --state DIR", err)
	}
	u.proxy = m.supervise(u, processSpec{
		Path: m.proxy, Args: m.proxyArgs(u, dir), Env: proxyEnvironment(u.settings), Dir: dir, Grace: proxyGrace,
	}, ProxySource(u.name), func() *child { return u.proxy }, nil, nil)
	m.awaitProxy(u)
	return nil
}

// awaitProxy lets others ask a workload once its proxy has its configuration, or what it takes of that, and starts a program that was
// held for it.
func (m *Mesh) awaitProxy(u *unit) {
	ctx, cancel := context.WithCancel(m.inner)
	u.awaiting = cancel
	m.spawn(func() {
		defer cancel()
		if m.plane.WaitRunning(ctx, u.name) != nil {
			return // it is on its way out
		}
		m.post(func() { m.proxyServes(u) })
	})
}

// proxyServes lets a unit begin: its proxy has its configuration. It runs in the loop.
func (m *Mesh) proxyServes(u *unit) {
	u.serving, m.dirty = true, true
	if u.held && !u.stopping && m.phase != Stopping { // else whoever stops it starts it, if it is to come again
		m.startProgram(u)
	}
	m.risen(u)
}

// startProgram starts the program of a workload, or begins to watch its address. A program that is not there may be built by and by.
// One whose proxy is not there yet is held, as on a cluster: what a program asks as its first act, often without a second try, would
// be refused.
func (m *Mesh) startProgram(u *unit) {
	u.ready, u.held = false, false
	const pending = "it has not started yet"
	if u.workload.Run == nil {
		u.reason = pending
		m.startProbe(u)
		return
	}
	r := u.workload.Run
	path, err := m.o.Programs.Find(context.Background(), r.Command[0], r.Dir)
	if err != nil {
		if why := err.Error(); u.reason != why {
			u.reason = why
			m.note(EventProblem, "%s: cannot start it: %s (%s)", u.name, why, r.Origin.Place())
		}
		if !u.absent {
			u.absent = true
			m.later(u, lookAgain, func() {
				again := u.absent
				u.absent = false
				if again && !u.stopping { // else whoever stops it starts it, if it is to come again
					m.startProgram(u)
				}
			})
		}
		return
	}
	u.absent, u.reason = false, pending
	if !u.serving {
		u.held = true
		return
	}
	vars := variables(u.workload, m.instance(u.name), m.config.Services)
	if unknown := unknownVariables(r, vars); len(unknown) > 0 {
		m.note(EventProblem, "%s: $(%s) in its command is set by nothing; there are %s (%s)", u.name, strings.Join(unknown, "), $("), describe(vars), r.Origin.Place())
	}
	args, env := command(r, vars)
	u.program = m.supervise(u, processSpec{Path: path, Args: args, Env: env, Dir: r.Dir, Grace: programGrace},
		u.name.String(), func() *child { return u.program },
		func() { m.startProbe(u) },
		func(e exit) {
			m.stopProbe(u)
			m.setReady(u, false, e.String()+"; it is started again")
			m.crashed(u, e)
		})
}

// supervise starts a process and keeps the child up to date. current returns the child that the unit has now: what an
// older one still tells is dropped. started and exited run in the loop.
func (m *Mesh) supervise(u *unit, spec processSpec, source string, current func() *child, started func(), exited func(exit)) *child {
	ctx, stop := context.WithCancel(context.Background())
	c := &child{stop: stop, done: make(chan struct{})}
	post := func(f func()) {
		m.post(func() {
			if current() == c && m.units[u.name] == u {
				f()
			}
		})
	}
	p := &process{
		name: source, spec: spec, spawner: m.spawner, orphans: m.orphans,
		stdout: m.out.writer(source, "stdout"), stderr: m.out.writer(source, "stderr"),
		started: func(pid int) {
			post(func() {
				c.pid, c.why = pid, ""
				if started != nil {
					started()
				}
			})
		},
		exited: func(e exit) {
			post(func() {
				c.pid, c.why = 0, e.String()
				c.restarts++
				c.crashes++
				if e.Ran >= restartReset {
					c.crashes = 1
				}
				if exited != nil {
					exited(e)
				} else if m.phase != Stopping {
					m.note(EventProblem, "the proxy of %s ended (%s) and is started again%s", u.name, e, lastWords(m.out.tail(source, 3)))
				}
			})
		},
	}
	kill := m.o.Kill
	if exited == nil {
		kill = m.pressed // a proxy
	}
	m.spawn(func() {
		defer close(c.done)
		p.run(ctx, kill)
	})
	return c
}

// crashed tells about a program that ended by itself: at once the first time, then whenever the pause has grown a lot.
func (m *Mesh) crashed(u *unit, e exit) {
	c := u.program
	words := lastWords(m.out.tail(u.name.String(), 3))
	switch {
	case m.phase == Stopping:
	case c.crashes == 1:
		m.note(EventProblem, "%s ended (%s) after %s and is started again%s%s", u.name, e, age(e.Ran), e.advice(), words)
	case c.crashes == crashLoop, c.crashes > crashLoop && c.crashes%10 == 0:
		m.note(EventProblem, "%s keeps %s (%s, %s); correct the program or its command in %s, or see `malha logs %s`%s%s",
			u.name, e.verb(), e, plural(c.crashes, "time"), u.workload.Run.Origin.Place(), u.name, e.advice(), words)
	}
	if c.crashes >= crashLoop && m.o.FailFast && m.phase == Starting {
		m.fail(fmt.Errorf("%s keeps %s (%s); correct the program or its command in %s%s%s", u.name, e.verb(), e, u.workload.Run.Origin.Place(), e.advice(), words))
	}
}

// fail ends the mesh before it was ready.
func (m *Mesh) fail(err error) {
	select {
	case m.failed <- err:
	default:
	}
}

// lastWords quotes what a program wrote last.
func lastWords(lines []Line) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString("\n    " + l.Text)
	}
	return b.String()
}

// startProbe begins to ask the workload's ports whether it is ready.
func (m *Mesh) startProbe(u *unit) {
	m.stopProbe(u)
	ctx, cancel := context.WithCancel(m.inner)
	u.probing = cancel
	workload, app := u.workload, u.app
	ask := asker(workload, app)
	m.spawn(func() {
		was := false
		probe(ctx, paceOf(workload), ask, func(ready bool, bad string) {
			why := ""
			switch {
			case ready:
				was = true
			case strings.Contains(bad, " "):
				why = bad
			case was:
				why = "does not accept connections on " + bad
			default:
				why = waiting(workload, app, bad)
			}
			m.post(func() {
				if ctx.Err() == nil && m.units[u.name] == u {
					m.setReady(u, ready, why)
				}
			})
		})
	})
}

// waiting says that a workload does not accept connections on addr yet, and where its program learns that it should.
func waiting(w *model.Workload, app map[int]string, addr string) string {
	if w.Run == nil {
		return "nothing listens on " + addr + " yet; start it"
	}
	variable := "PORT"
	for _, p := range w.Ports {
		if app[p.Port] == addr && len(w.Ports) > 1 {
			variable = "PORT_" + strconv.Itoa(p.Port)
			if p.Name != "" {
				variable = "PORT_" + variableName(p.Name)
			}
		}
	}
	return "it does not listen on " + addr + " yet; its command says where with $(" + variable + ")"
}

func (m *Mesh) stopProbe(u *unit) {
	if u.probing != nil {
		u.probing()
		u.probing = nil
	}
}

func (m *Mesh) setReady(u *unit, ready bool, why string) {
	if u.ready != ready {
		m.dirty = true
		if !ready && m.phase == Ready && u.program == nil && !u.stopping {
			m.note(EventProblem, "%s %s", u.name, why)
		}
	}
	u.ready, u.reason = ready, why
	m.risen(u)
}

// risen gives the turn to the next replica, if it is this one's and it is up again.
func (m *Mesh) risen(u *unit) {
	if u.replaced && u.up() && m.units[u.name] == u {
		u.replaced = false
		m.enforce(m.config, m.placed)
	}
}

// waitsForReplica reports whether the restart of a workload has to wait because another replica of one of its services is
// being restarted: an edit of all of them goes from one to the next, and stays at the first that does not come up.
func (m *Mesh) waitsForReplica(u *unit, wanted map[ident.Name]*unit) bool {
	w := wanted[u.name]
	if !u.ready || !maps.Equal(u.app, w.app) { // the proxies already know where it will listen
		return false
	}
	for _, s := range m.config.Services {
		if s.Name.Namespace != u.name.Namespace || len(s.Selector) == 0 || !model.HasLabels(w.labels, s.Selector) {
			continue
		}
		for name, v := range m.units {
			if to := wanted[name]; v != u && v.replaced && to != nil && name.Namespace == u.name.Namespace && model.HasLabels(to.labels, s.Selector) {
				return true
			}
		}
	}
	return false
}

// replaceProgram restarts a workload's program as w has it, after its requests went elsewhere.
func (m *Mesh) replaceProgram(u *unit, w *unit) {
	m.stopProbe(u)
	u.stopping, u.replaced = true, true
	m.setReady(u, false, "restarting")
	old := u.program
	m.spawn(func() {
		m.settle()
		m.stopChild(old)
		m.post(func() {
			u.stopping, u.program = false, nil
			if m.phase == Stopping {
				return
			}
			u.workload, u.app = w.workload, w.app
			m.startProgram(u)
			m.enforce(m.config, m.placed) // it may have changed again meanwhile
		})
	})
}

// retire stops a unit for good: no new requests, then the proxy finishes those it has, then the program stops.
func (m *Mesh) retire(u *unit) {
	u.stopping = true
	m.dirty = true
	m.stopProbe(u)
	if u.awaiting != nil {
		u.awaiting()
	}
	m.spawn(func() {
		m.settle()
		m.stopChild(u.proxy)
		m.stopChild(u.program)
		m.post(func() {
			u.gone = true
			if m.phase != Stopping {
				m.enforce(m.config, m.placed)
			}
		})
	})
}

// settle waits until the proxies know what was just changed, and what they began before is likely over.
func (m *Mesh) settle() {
	m.do(func() {}) // the loop tells the control plane after what it runs now
	m.awaitSync(m.o.Kill, 2*time.Second)
	slept(m.o.Kill, spread)
}

// stopChild stops a process and waits for its end.
func (m *Mesh) stopChild(c *child) {
	if c != nil {
		c.stop()
		<-c.done
	}
}

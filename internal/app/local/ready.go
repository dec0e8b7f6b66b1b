package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/world"
)

const (
	// settleGateway is how long a gateway that answers with 5xx may go on before that counts as its answer: right after the
	// start an endpoint may not be known yet, but a rule may also be made to answer so.
	settleGateway = 3 * time.Second
	// startQuiet is how long nothing is said about what a starting mesh waits for: most often it is there by then.
	startQuiet = 10 * time.Second
)

// awaitSync waits until every proxy runs what was set so far, at most for timeout.
func (m *Mesh) awaitSync(ctx context.Context, timeout time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// By then the loop has told the control plane what changed before.
	var names []ident.Name
	m.do(func() {
		m.push()
		names = m.names()
	})
	return m.plane.WaitSynced(ctx, names...) == nil
}

// awaitReady says when the mesh is up: all programs accept connections, all proxies are in sync, and the first request
// through the gateway was answered; or that this did not come in time.
func (m *Mesh) awaitReady(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, m.o.Timeout)
	defer cancel()
	ok := m.awaitUnits(ctx) && m.awaitSync(ctx, m.o.Timeout) && m.awaitGateway(ctx)
	if !ok && errors.Is(ctx.Err(), context.Canceled) {
		return // it is being stopped
	}
	text := fmt.Sprintf("the mesh is ready (%s)", time.Since(m.since).Round(10*time.Millisecond))
	m.do(func() {
		switch {
		case m.phase == Stopping:
		case ok:
			m.phase = Ready
		default:
			m.phase = Failed
		}
	})
	st := m.Status()
	switch st.Phase {
	case Ready:
		m.o.Events(Event{Kind: EventReady, Text: text, Status: st})
	case Failed:
		err := fmt.Errorf("the mesh is not ready after %s: %s", m.o.Timeout, strings.Join(st.Problems, "; "))
		if m.o.FailFast {
			m.fail(err)
			return
		}
		m.note(EventProblem, "%v; it keeps trying", err)
		if m.awaitLater() {
			m.do(func() {
				if m.phase == Failed {
					m.phase = Ready
				}
			})
			m.o.Events(Event{Kind: EventReady, Text: "the mesh is ready now", Status: m.Status()})
		}
	}
}

// awaitLater waits, without a limit, for a mesh that was late.
func (m *Mesh) awaitLater() bool {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		stopping, ready := true, false
		m.do(func() { stopping, ready = m.phase == Stopping, m.unready() == "" })
		switch {
		case stopping:
			return false
		case ready && m.awaitSync(ctx, time.Second):
			return true
		}
		select {
		case <-tick.C:
		case <-m.ended:
			return false
		}
	}
}

// unready names the units that others cannot ask yet, or whose proxy has not been started, and says why. It runs in the loop, which
// may hear of a start after the control plane has heard of the proxy.
func (m *Mesh) unready() string {
	var all []string
	for name, u := range m.units {
		switch {
		case u.workload != nil && !u.up():
			all = append(all, fmt.Sprintf("%s (%s)", name, cmp.Or(u.whyNot(), "it is not ready")))
		case u.proxy != nil && u.proxy.pid == 0:
			all = append(all, fmt.Sprintf("%s (its proxy %s)", name, cmp.Or(u.proxyEnded(), "has not started yet")))
		}
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// whyNot says why others cannot ask the program.
func (u *unit) whyNot() string {
	if (u.ready || u.held) && !u.serving {
		if why := u.proxyEnded(); why != "" {
			return "its proxy " + why
		}
		return "its proxy has had no configuration yet"
	}
	return u.reason
}

// proxyEnded says how the proxy ended, while it is not running again yet.
func (u *unit) proxyEnded() string {
	if u.proxy == nil || u.proxy.why == "" {
		return ""
	}
	return "ended: " + u.proxy.why + "; it is started again"
}

// awaitUnits waits for the units, and says what for when that takes long, each time that is something else.
func (m *Mesh) awaitUnits(ctx context.Context) bool {
	next, said := time.Now().Add(startQuiet), ""
	return m.poll(ctx, func() bool {
		var missing string
		m.do(func() { missing = m.unready() })
		if now := time.Now(); missing != "" && now.After(next) {
			if next = now.Add(startQuiet); missing != said {
				said = missing
				m.note(EventStep, "still waiting for %s", missing)
			}
		}
		return missing == ""
	})
}

func (m *Mesh) poll(ctx context.Context, ok func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok() {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
}

// awaitGateway sends requests through the first door of the gateway until one is answered. Without a gateway, and for a
// door that is not HTTP, there is nothing to ask.
func (m *Mesh) awaitGateway(ctx context.Context) bool {
	var addr, host string
	m.do(func() {
		for i := range m.placed.Gateways {
			g := &m.placed.Gateways[i]
			for j := range m.config.Gateways {
				door := &m.config.Gateways[j]
				if !world.Serves(g, door) {
					continue
				}
				for _, s := range door.Servers {
					if bind := g.Binds[s.Port]; addr == "" && bind != "" && s.Protocol == ident.HTTP && s.TLS == nil && s.Broken == "" {
						addr, host = bind, askable(s.Hosts)
					}
				}
			}
		}
	})
	if addr == "" {
		return true
	}
	// A rule for "/" may not exist: any answer but a 5xx says that the gateway routes.
	client := &http.Client{
		Timeout:       2 * time.Second,
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var since time.Time
	return m.poll(ctx, func() bool {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
		if err != nil {
			return false
		}
		req.Host = host
		res, err := client.Do(req)
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		if since.IsZero() {
			since = time.Now()
		}
		return res.StatusCode < 500 || time.Since(since) > settleGateway
	})
}

// askable returns a host that the first of a server's "namespace/host" patterns accepts; "" for the address itself.
func askable(hosts []string) string {
	if len(hosts) == 0 {
		return ""
	}
	_, host, ok := strings.Cut(hosts[0], "/")
	if !ok {
		host = hosts[0]
	}
	if host == "*" {
		return ""
	}
	return strings.Replace(host, "*", "malha", 1)
}

// Status returns everything about the mesh at this moment.
func (m *Mesh) Status() *Status {
	st := &Status{Version: m.o.Version, Bundled: m.bundled, Metrics: m.metrics, Workloads: []WorkloadStatus{}, Proxies: []ProxyStatus{}, Phase: Stopping}
	st.Running = Running{PID: os.Getpid(), Folder: m.folder, Since: m.since, State: m.o.State}
	m.do(func() {
		st.Phase, st.Diagnostics, st.Waiting = m.phase, slices.Clone(m.diagnostics), m.waitingFor()
		leaving := m.phase == Stopping
		for i := range m.placed.Gateways {
			g := &m.placed.Gateways[i]
			for _, port := range sortedPorts(g.Binds) {
				st.Doors = append(st.Doors, Door{Gateway: g.Name, Port: port, URL: m.doorURL(g, port)})
			}
		}
		sync := m.plane.status()
		for _, u := range m.units {
			p := ProxyStatus{Name: u.name, Role: u.role, Admin: u.admin, Health: HealthStarting, Sync: Stale}
			if s, ok := sync[u.name]; ok {
				p.Sync, p.Reason, p.Applied, p.CertExpires = s.sync, s.reason, s.applied, s.expires
			}
			if u.proxy != nil {
				p.PID, p.Restarts = u.proxy.pid, u.proxy.restarts
				p.Health = health(u.proxy, p.Sync != Stale, u.stopping || leaving)
				if leaving && p.Sync == Stale {
					p.Reason = "" // that it hung up is no news
				} else if why := u.proxyEnded(); why != "" && p.Sync != Synced { // the control plane only knows that it hung up
					p.Reason = why
				}
			} else if u.reason != "" {
				p.Health, p.Reason = HealthDown, u.reason
			}
			if u.workload != nil {
				p.Forward = m.instance(u.name).Forward
				w := WorkloadStatus{Name: u.name, Version: u.labels["version"], Identity: u.identity.Principal(), Sync: p.Sync, App: u.app, Origin: u.workload.Origin, Reason: u.whyNot()}
				switch {
				case u.program != nil:
					w.PID, w.Restarts = u.program.pid, u.program.restarts
					w.Health = health(u.program, u.up(), u.stopping || leaving)
				case u.up():
					w.Health = HealthReady
				case u.ready, u.held:
					w.Health = HealthStarting
				default:
					w.Health = HealthDown
				}
				st.Workloads = append(st.Workloads, w)
			}
			st.Proxies = append(st.Proxies, p)
			if !leaving && !u.stopping { // what is on its way out is meant to be
				st.Problems = append(st.Problems, st.problems()...)
			}
		}
		st.Objects = objectStatuses(m.config.Statuses, m.placed.Gateways, st.Proxies)
	})
	slices.SortFunc(st.Proxies, func(a, b ProxyStatus) int { return a.Name.Compare(b.Name) })
	slices.SortFunc(st.Workloads, func(a, b WorkloadStatus) int { return a.Name.Compare(b.Name) })
	slices.Sort(st.Problems)
	return st
}

// problems says what keeps the proxy that was added last, and the workload of its name, from being ready.
func (st *Status) problems() (all []string) {
	because := func(why string) string {
		if why == "" {
			return ""
		}
		return " (" + why + ")"
	}
	p := &st.Proxies[len(st.Proxies)-1]
	if n := len(st.Workloads) - 1; n >= 0 && st.Workloads[n].Name == p.Name {
		if w := &st.Workloads[n]; w.Health != HealthReady {
			all = append(all, fmt.Sprintf("workload %s is %s%s", w.Name, w.Health, because(w.Reason)))
		}
	}
	if p.Sync != Synced {
		all = append(all, fmt.Sprintf("the proxy of %s is %s%s; see `malha logs --proxy %s`", p.Name, p.Sync, because(p.Reason), p.Name))
	}
	return all
}

// health tells how a child is doing.
func health(c *child, serving, stopping bool) Health {
	switch {
	case stopping:
		return HealthStopping
	case serving && c.pid != 0:
		return HealthReady
	case c.crashes >= crashLoop:
		return HealthCrashing
	}
	return HealthStarting
}

// doorURL returns how a person reaches a port of a gateway. It runs in the loop.
func (m *Mesh) doorURL(g *model.GatewayInstance, port int) string {
	scheme := "tcp"
	for i := range m.config.Gateways {
		door := &m.config.Gateways[i]
		if !world.Serves(g, door) {
			continue
		}
		for _, s := range door.Servers {
			switch {
			case s.Port != port || s.Broken != "":
			case s.Protocol.IsHTTP() && s.TLS != nil:
				scheme = "https"
			case s.Protocol.IsHTTP() && scheme != "https":
				scheme = "http"
			case scheme == "tcp" && (s.TLS != nil || s.Protocol == ident.TLS):
				scheme = "tls"
			}
		}
	}
	return scheme + "://" + g.Binds[port]
}

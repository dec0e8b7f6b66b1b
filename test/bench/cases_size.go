package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/codec"
)

// settle is how long a proxy is left alone before its memory is read.
const settle = 4 * time.Second

func caseMemory(b *bench, a *arena) (*result, error) {
	const services, endpoints, clients = 100, 10, 1000
	r := &result{id: "memory", title: "Memory", columns: []metric{rss, private},
		method: fmt.Sprintf("A proxy that knows %d services × %d endpoints: VmRSS, and the part that it shares with no other proxy on the machine (Private_Dirty of smaps_rollup: all but pages of the program file), %s after it is ready; with %d client connections that have each sent a request and are idle; %s after all of these have sent requests at once for %s s, still open; and %s after they were closed. A new process in each round.",
			services, endpoints, settle, clients, settle, seconds(b.seconds), settle)}
	backend, err := a.backend("backend", bodySize)
	if err != nil {
		return nil, err
	}
	var states [4]*subject
	for i, name := range []string{"idle", "1,000 idle clients", "after a burst", "clients gone"} {
		states[i] = r.add(name, 0)
	}
	for n := range min(b.rounds, 5) {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		p, err := a.malha("malha-proxy", worldPlan(port, backend, services, endpoints), "")
		if err != nil {
			return nil, err
		}
		if err := p.ready(port); err != nil {
			return nil, err
		}
		var conns []*client
		steps := []func() error{
			func() error { return nil },
			func() (err error) { conns, err = connect(port, clients); return err },
			func() error { return burst(conns, time.Duration(b.seconds*float64(time.Second))) },
			func() error {
				for _, c := range conns {
					_ = c.nc.Close()
				}
				return nil
			},
		}
		for i, step := range steps {
			if err := step(); err != nil {
				return nil, fmt.Errorf("%s: %w%s", states[i].name, err, tails([]*process{p}))
			}
			time.Sleep(settle)
			mem, err := memoryOf(p.pid())
			if err != nil {
				return nil, err
			}
			m := sample{rss: mem.rss, private: mem.private}
			states[i].rounds = append(states[i].rounds, m)
			fmt.Printf("%-12s round %d  %-20s %s\n", r.id, n+1, states[i].name, m.String(r.columns))
		}
		a.stop(p)
		a.procs = slices.DeleteFunc(a.procs, func(q *process) bool { return q == p })
	}
	for _, g := range []struct {
		what  string
		state *subject
		m     metric
		limit float64
	}{
		{"memory, idle, 100 services × 10 endpoints, resident", states[0], rss, 10},
		{"memory, idle, 100 services × 10 endpoints, private", states[0], private, 6},
		{"memory, 1,000 idle client connections, resident", states[1], rss, 16},
		{"memory, the same after a burst, resident", states[2], rss, 16},
	} {
		r.goals = append(r.goals, goal{what: g.what, got: median(g.state.series(g.m)), limit: g.limit, unit: "MB"})
	}
	return r, nil
}

// client is one keep-alive HTTP/1.1 connection.
type client struct {
	nc net.Conn
	r  *bufio.Reader
}

var clientRequest = []byte("GET " + path + " HTTP/1.1\r\n" + strings.Join(fields, "\r\n") + "\r\n\r\n")

func (c *client) do() error {
	if err := c.nc.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.nc.Write(clientRequest); err != nil {
		return err
	}
	return readAnswer(c.r)
}

// connect opens connections, one after the other, with a request on each.
func connect(port, n int) ([]*client, error) {
	var out []*client
	for range n {
		nc, err := net.Dial("tcp", address(port))
		if err != nil {
			return nil, err
		}
		c := &client{nc: nc, r: bufio.NewReader(nc)}
		if err := c.do(); err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// burst has every connection send requests at once.
func burst(conns []*client, d time.Duration) error {
	_, err := each(len(conns), d, func(i int, until time.Time) error {
		for time.Now().Before(until) {
			if err := conns[i].do(); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

func caseGrowth(b *bench, a *arena) (*result, error) {
	r := &result{id: "growth", title: "Growth with configuration", columns: []metric{cpu, rate, private, rss, foreign},
		method: "Proxies that know 10 and 1,000 services, one endpoint each, and 1,000 with eleven each. Memory is the private part before any load; then the load of the first case, for the first service."}
	backend, err := a.backend("backend", bodySize)
	if err != nil {
		return nil, err
	}
	shapes := []struct {
		name                string
		services, endpoints int
	}{{"1,000 services", 1000, 1}, {"10 services", 10, 1}, {"1,000 services × 11", 1000, 11}}
	before := make([][]float64, len(shapes))
	for n := range min(b.rounds, 5) {
		if n > 0 { // the processes of the last round stay for the load
			for _, s := range r.subjects {
				a.stop(s.procs[0])
			}
			a.procs = a.procs[:1]
			r.subjects = nil
		}
		for i, s := range shapes {
			port, err := freePort()
			if err != nil {
				return nil, err
			}
			p, err := a.malha(fmt.Sprint("malha-", i), worldPlan(port, backend, s.services, s.endpoints), "")
			if err != nil {
				return nil, err
			}
			r.add(s.name, port, p)
			if err := p.ready(port); err != nil {
				return nil, err
			}
		}
		time.Sleep(settle)
		for i, s := range r.subjects {
			mem, err := memoryOf(s.procs[0].pid())
			if err != nil {
				return nil, err
			}
			before[i] = append(before[i], mem.private)
		}
	}
	r.configs = nil
	if err := r.answering(); err != nil {
		return nil, err
	}
	err = b.interleave(r, func(s *subject) (sample, error) {
		m, err := saturate(s, func() (loadResult, error) { return wrk(s.port, h1Connections, b.seconds) })
		if err == nil {
			m[private] = median(before[slices.Index(r.subjects, s)])
		}
		return m, err
	})
	perService := (median(before[0]) - median(before[1])) * 1024 / 990
	perEndpoint := (median(before[2]) - median(before[0])) * 1024 * 1024 / 9990
	r.goals = append(r.goals, goal{what: "growth with configuration, for each service (with an endpoint)", got: perService, limit: 2, unit: "KB"})
	r.below("CPU per request with 1,000 services, against 10", cpu, 1.05, "10 services")
	r.notes = append(r.notes, fmt.Sprintf("Each further endpoint takes %.0f bytes.", perEndpoint))
	return r, err
}

func caseStart(b *bench, a *arena) (*result, error) {
	const services, endpoints = 100, 10
	r := &result{id: "start", title: "Cold start", columns: []metric{startup},
		method: fmt.Sprintf("A new process whose control plane is away, with the plan of %d services × %d endpoints in its state folder: from exec to the end of the first proxied request. The program itself is in the page cache.", services, endpoints)}
	backend, err := a.backend("backend", bodySize)
	if err != nil {
		return nil, err
	}
	_, server, err := a.identities() // only for roots to trust
	if err != nil {
		return nil, err
	}
	p, err := ports(2)
	if err != nil {
		return nil, err
	}
	known := worldPlan(p[0], backend, services, endpoints)
	if err := cachePlan(filepath.Join(a.dir, "state"), known); err != nil {
		return nil, err
	}
	s := r.add("malha-proxy", p[0])
	for n := range max(b.rounds, 5) {
		began := time.Now()
		proc, err := a.start("malha-proxy", proxyCPU, "", a.tools.malha, "--control", address(p[1]), "--roots", filepath.Join(server.dir, "roots.pem"), "--node", known.Node.Name.String(),
			"--state", filepath.Join(a.dir, "state"), "--admin", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		for {
			if conns, err := connect(p[0], 1); err == nil {
				_ = conns[0].nc.Close()
				break
			}
			if time.Since(began) > 10*time.Second {
				return nil, fmt.Errorf("no request was answered within 10 s: %s", proc.tail())
			}
			time.Sleep(200 * time.Microsecond)
		}
		m := sample{startup: float64(time.Since(began).Microseconds()) / 1000}
		s.rounds = append(s.rounds, m)
		fmt.Printf("%-12s round %d  %s\n", r.id, n+1, m.String(r.columns))
		a.stop(proc)
		a.procs = slices.DeleteFunc(a.procs, func(q *process) bool { return q == proc })
	}
	r.goals = append(r.goals, goal{what: "cold start with a cached plan, to the first proxied request", got: median(s.series(startup)), limit: 100, unit: "ms"})
	return r, nil
}

// cachePlan writes a plan as internal/wire/watch keeps it.
func cachePlan(dir string, p *plan.Plan) error {
	body, err := codec.Append(nil, p)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "plan.cache"), slices.Concat([]byte("malha plan 1\n"), sum[:], body), 0o600)
}

// caseAllocations runs the test that asserts it: what is counted there is the whole process, with the test's own ends.
func caseAllocations(*bench, *arena) (*result, error) {
	const test, pkg = "TestPlainRequestDoesNotAllocate", "./internal/proxy/live"
	r := &result{id: "allocations", title: "Allocations", method: fmt.Sprintf("`go test -run %s %s`, which fails on one allocation for a plain request on warm connections.", test, pkg)}
	g := goal{what: "heap allocations for a plain HTTP/1.1 request (asserted by " + test + ")", limit: 0, unit: ""}
	if out, err := exec.Command("go", "test", "-count=1", "-v", "-run", "^"+test+"$", pkg).CombinedOutput(); err != nil {
		g.got = 1
		r.notes = append(r.notes, "The test failed: "+string(out[max(0, len(out)-400):]))
	} else if !strings.Contains(string(out), "--- PASS: "+test) {
		return nil, fmt.Errorf("the test %s of %s is gone", test, pkg)
	}
	r.goals = append(r.goals, g)
	return r, nil
}

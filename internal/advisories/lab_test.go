package advisories

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/live"
)

// patience is how long anything may take before a test gives up. Nothing waits for it when all is well.
const patience = time.Minute

// lab is a proxy between raw clients and an origin.
type lab struct {
	t  testing.TB
	px *live.Proxy
	at string // the address of its first listener
	// pace is called after every write of a flood with its length, and may wait; false ends the flood. nil: as fast as it goes.
	pace func(n int) bool
}

// apart makes a test one that runs after all that measure the process (siege, settle, cpuTime), beside others of its kind: it must not
// measure it.
func apart(t *testing.T) { t.Parallel() }

// change adjusts a lab before it starts.
type change func(p *plan.Plan, o *live.Options)

// newLab starts a proxy in front of the HTTP/1 server at addr. Its timeouts are those of Defaults, but for idle
// connections to endpoints, which go soon so that tests can see that nothing is left.
func newLab(t testing.TB, addr string, changes ...change) *lab {
	t.Helper()
	p := &plan.Plan{
		Listeners: []plan.Listener{{Name: "out", Bind: "127.0.0.1:0", Direction: plan.Outbound, Protocol: ident.HTTP, Routes: "t"}},
		Routes:    []plan.RouteTable{{Name: "t", Hosts: []plan.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []plan.Route{{Name: "default", Forward: to("a")}}}}}},
		Clusters:  []plan.Cluster{{Name: "a", Host: "a", Port: 80, Protocol: ident.HTTP}},
		Endpoints: []plan.Endpoints{{Cluster: "a", Endpoints: []plan.Endpoint{{Address: addr}}}},
	}
	o := &live.Options{Conn: conn.Defaults(), DrainTime: 2 * time.Second}
	o.Conn.DrainIdle = 5 * time.Millisecond // hundreds of labs end, one after the other
	o.Conn.UpstreamIdle = 200 * time.Millisecond
	for _, f := range changes {
		f(p, o)
	}
	l := &lab{t: t, px: live.New(*o)}
	if err := l.px.Apply(p); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = l.px.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-over })
	l.at = l.px.Status().Listeners[0].Address.String()
	return l
}

func to(cluster string) []plan.Destination { return []plan.Destination{{Cluster: cluster, Weight: 1}} }

// config changes the limits and timeouts of connections.
func config(f func(c *conn.Config)) change {
	return func(_ *plan.Plan, o *live.Options) { f(o.Conn) }
}

// route changes the only route.
func route(f func(r *plan.Route)) change {
	return func(p *plan.Plan, _ *live.Options) { f(&p.Routes[0].Hosts[0].Routes[0]) }
}

func planned(f func(p *plan.Plan)) change { return func(p *plan.Plan, _ *live.Options) { f(p) } }

// peer is a raw client connection.
type peer struct {
	t  testing.TB
	nc *net.TCPConn
	br *bufio.Reader
}

func (l *lab) dial() *peer { return dial(l.t, l.at) }

func dial(t testing.TB, addr string) *peer {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(patience))
	return &peer{t: t, nc: nc.(*net.TCPConn), br: bufio.NewReader(nc)}
}

// send writes, and does not mind a connection that is gone: what the other side said is looked at afterwards.
func (c *peer) send(parts ...string) { _, _ = io.WriteString(c.nc, strings.Join(parts, "")) }

// read reads the final response to a request with a method, and how many informational ones came before.
func (c *peer) read(method string) (*message, int, error) {
	for interim := 0; ; interim++ {
		m, err := readHead(c.br, false)
		if err != nil {
			return nil, interim, err
		}
		if m.status < 200 && m.status != 101 {
			continue
		}
		if method != "HEAD" && m.status != 101 && m.status != 204 && m.status != 304 && (method != "CONNECT" || m.status >= 300) {
			err = readBody(c.br, m, m.count("content-length")+m.count("transfer-encoding") == 0)
		}
		return m, interim, err
	}
}

// must is read for a response that has to come.
func (c *peer) must(method string) *message {
	c.t.Helper()
	m, _, err := c.read(method)
	if err != nil {
		c.t.Fatalf("waiting for the answer to %s: %v", method, err)
	}
	return m
}

// all reads responses up to the end of the connection.
func (c *peer) all() []*message {
	c.t.Helper()
	var all []*message
	for {
		m, _, err := c.read("GET")
		if m != nil {
			all = append(all, m)
		}
		if err != nil {
			if _, strange := err.(badMessage); strange || os.IsTimeout(err) {
				c.t.Errorf("after %d answers: %v", len(all), err)
			}
			return all
		}
	}
}

// ended waits for the end of the connection.
func (c *peer) ended() bool {
	_, err := io.Copy(io.Discard, c.br)
	return err == nil || !os.IsTimeout(err)
}

// statuses are the status codes of responses.
func statuses(ms []*message) string {
	var s []string
	for _, m := range ms {
		s = append(s, fmt.Sprint(m.status))
	}
	return strings.Join(s, " ")
}

func descriptors() int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(d)
}

func memory() int64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64() + s[1].Value.Uint64())
}

// Bounds of what an attack may cost: memory up to memoryFactor times the attacker's bytes, and a constant for what any
// load would use, garbage included.
const (
	memoryFactor   = 10
	memoryConstant = 24 << 20
)

// siege runs an attack, which returns how many bytes it sent, while another client goes on with its business. It fails
// when that client fails, when memory grows beyond the bound, and when goroutines or descriptors are left afterwards.
func (l *lab) siege(attack func() int64) {
	l.t.Helper()
	warm := l.dial()
	warm.send("GET /warm HTTP/1.1\r\nhost: a\r\n\r\n")
	warm.must("GET")
	good := l.dial()
	good.send("GET /good HTTP/1.1\r\nhost: a\r\n\r\n") // at once: where heads have little time, it begins now
	good.must("GET")
	l.settle(runtime.NumGoroutine(), descriptors()) // what an earlier test left in the pool goes
	runtime.GC()
	goroutines, fds, before := runtime.NumGoroutine(), descriptors(), memory()

	var peak atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			if m := memory(); m > peak.Load() {
				peak.Store(m)
			}
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	})
	served := 0
	wg.Go(func() {
		for {
			_ = good.nc.SetDeadline(time.Now().Add(patience))
			good.send("GET /good HTTP/1.1\r\nhost: a\r\n\r\n")
			m, _, err := good.read("GET")
			if err != nil || m.status != 200 {
				l.t.Errorf("the client that behaves got %v, %v", m, err)
				return
			}
			served++
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond): // it is there to be served, not to be a load itself
			}
		}
	})
	sent := attack()
	close(stop)
	wg.Wait()
	grown := peak.Load() - before
	if limit := memoryFactor*sent + memoryConstant; grown > limit {
		l.t.Errorf("memory grew by %d KB for %d KB sent", grown>>10, sent>>10)
	}
	if served == 0 {
		l.t.Error("the client that behaves was not served")
	}
	l.settle(goroutines, fds)
}

// settle waits until no more goroutines and descriptors than these are in use, give or take an idle connection.
func (l *lab) settle(goroutines, fds int) {
	l.t.Helper()
	const slack = 4
	for by := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		g, f := runtime.NumGoroutine(), descriptors()
		if g <= goroutines+slack && f <= fds+slack {
			return
		}
		if time.Now().After(by) {
			b := make([]byte, 1<<20)
			l.t.Errorf("%d goroutines and %d descriptors are left of %d and %d:\n%.8000s", g, f, goroutines, fds, b[:runtime.Stack(b, true)])
			return
		}
	}
}

func timeoutOf(d time.Duration) func(*plan.Route) {
	return func(r *plan.Route) { r.Timeout = plan.Duration(d) }
}

package advisories

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/live"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

// What an act costs when it is repeated many times, or is many times as large: no more than so many of it.

// cpuTime is the processor time of this process, which machines with other work take as long for.
func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// Resetting ten times as many open streams costs ten times as much: the same number of resets, all at once and in tenths, takes
// about the same processor time, where a cost of the square would be ten times. They are reset at the endpoint, too, which answers nothing.
func TestResetsCostTheirNumber(t *testing.T) {
	const many, tenth = 2000, 200
	at := serve(t, func(nc net.Conn) {
		_, _ = nc.Write(frame(http2.FrameSettings, 0, 0, nil)) // as many streams as one likes
		_, _ = io.Copy(io.Discard, nc)
	})
	l := newLab(t, at, planned(func(p *plan.Plan) { p.Clusters[0].Protocol = ident.HTTP2 }),
		config(func(c *conn.Config) { c.MaxStreams, c.H2MaxUpstreamStreams, c.H2Resets = many, many, 1<<30 }))
	reach := func(want int64) {
		for by := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			n := l.px.Upstreams().Snapshot().Clusters[0].Requests
			if n == want {
				return
			}
			if time.Now().After(by) {
				t.Fatalf("%d requests are at the endpoint, want %d", n, want)
			}
		}
	}
	cost := func(per uint32) (all time.Duration) {
		c := l.dialH2()
		for from := uint32(0); from < many; from += per {
			var opens, ends []byte
			for i := range per {
				opens = append(opens, open(id(from+i), true, raw(get...))...)
				ends = append(ends, reset(id(from+i))...)
			}
			_ = c.nc.SetDeadline(time.Now().Add(patience))
			_ = c.send(opens)
			reach(int64(per))
			before := cpuTime(t)
			_ = c.send(ends)
			reach(0)
			all += cpuTime(t) - before
		}
		_ = c.nc.Close()
		return all
	}
	// Other work on the machine makes both dearer, never cheaper: the least of several, in turns, is what it costs. A square stays one.
	apart, together := cost(tenth), cost(many)
	for round := 1; round < 2 || together > 3*apart/2 && round < 12; round++ {
		apart, together = min(apart, cost(tenth)), min(together, cost(many))
	}
	t.Logf("%d resets: %v in tenths, %v at once", many, apart, together)
	if together > 3*apart/2 {
		t.Errorf("%d resets took %v of processor time at once, and %v in tenths", many, together, apart)
	}
}

// serve accepts connections for the time of a test.
func serve(t testing.TB, each func(net.Conn)) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = nc.Close() }()
				_ = nc.SetDeadline(time.Now().Add(10 * patience))
				each(nc)
			})
		}
	})
	t.Cleanup(func() { // after the proxy, which ends its connections
		_ = ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

// An endpoint that answers every request with RST_STREAM and GOAWAY in one packet, in either order, over and over: what the
// client gets is an answer each time, and nothing of it stays in memory.
func TestResetAndGoAwayOverAndOver(t *testing.T) {
	var conns, served atomic.Int64
	at := serve(t, func(nc net.Conn) {
		n := int(conns.Add(1))
		if _, err := io.ReadFull(nc, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		_, _ = nc.Write(frame(http2.FrameSettings, 0, 0, nil))
		for in := http2.NewFramer(io.Discard, nc); ; {
			f, err := in.ReadFrame()
			if err != nil {
				return
			}
			if _, ok := f.(*http2.HeadersFrame); !ok {
				continue
			}
			served.Add(1)
			stream := f.Header().StreamID
			rst := frame(http2.FrameRSTStream, 0, stream, u32(uint32(n%14)))
			away := frame(http2.FrameGoAway, 0, 0, append(u32(stream*uint32(n/2%2)), u32(uint32(n/4%14))...))
			if n%2 == 0 {
				_, _ = nc.Write(append(rst, away...))
			} else {
				_, _ = nc.Write(append(away, rst...))
			}
		}
	})
	l := newLab(t, at, planned(func(p *plan.Plan) { p.Clusters[0].Protocol = ident.HTTP2 }))
	h1, h2 := l.dial(), l.dialH2()
	_ = h2.send(frame(http2.FrameWindowUpdate, 0, 0, u32(1<<30))) // for the bodies of all answers
	next := uint32(0)
	requests := func(n int) {
		for range n {
			_ = h1.nc.SetDeadline(time.Now().Add(patience))
			_ = h2.nc.SetDeadline(time.Now().Add(patience))
			h1.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
			if m := h1.must("GET"); m.status != 503 && m.status != 502 {
				t.Fatalf("the answer is %d", m.status)
			}
			_ = h2.send(open(id(next), true, raw(get...)))
			if a := h2.until(id(next)); a == nil || a.status != 503 && a.status != 502 {
				t.Fatalf("request %d: the answer is %v, %v, %v", next, a, h2.err, h2.away)
			}
			delete(h2.got, id(next))
			next++
		}
	}
	heap := func() int64 {
		runtime.GC()
		runtime.GC() // what pools hold outlives one
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const some, many = 200, 1000
	requests(some)
	before, goroutines, fds := heap(), runtime.NumGoroutine(), descriptors()
	requests(many)
	l.settle(goroutines, fds)
	// What the last ones used goes in its own time; what is left of each one stays.
	grown := heap() - before
	for by := time.Now().Add(patience); grown > 200*many && time.Now().Before(by); time.Sleep(10 * time.Millisecond) {
		grown = heap() - before
	}
	if grown > 200*many {
		t.Errorf("%d resets left %d bytes each", 2*many, grown/(2*many))
	}
	if n := served.Load(); n < 2*many {
		t.Errorf("the endpoint saw %d requests", n)
	}
}

// Names of 64 KB of everything that metrics and log lines name: requests are served, each page and each line is whole, and what is kept of the
// names does not grow with the requests.
func TestLongNames(t *testing.T) {
	const requests = 20 // a line of the log is a megabyte
	long := func(s string) string { return s + strings.Repeat("n", 64<<10) }
	defer debug.SetGCPercent(debug.SetGCPercent(20)) // a line of the log is a megabyte here: not many of them are to wait for the collector
	o := newOrigin(t, nil)
	var lines syncBuffer
	log := telemetry.NewAccessLog(&lines)
	rec := telemetry.New(telemetry.Options{Log: log, Node: plan.Node{Workload: plan.WorkloadLabels{Workload: long("workload"), Namespace: long("namespace"), App: long("app")}}})
	l := newLab(t, o.addr, func(p *plan.Plan, o *live.Options) {
		o.Recorder = rec
		p.Listeners[0].Name, p.Listeners[0].Routes = long("listener"), long("table")
		p.Routes[0].Name = long("table")
		h := &p.Routes[0].Hosts[0]
		h.Name, h.Service = long("host"), plan.ServiceLabels{Host: long("service"), Name: long("name"), Namespace: long("namespace")}
		h.Routes[0].Name, h.Routes[0].Forward = long("route"), to(long("cluster"))
		h.Routes[0].Origin = ident.Origin{Kind: "VirtualService", Namespace: "default", Name: long("origin"), Rule: long("rule"), File: long("file")}
		h.Routes = append(h.Routes, plan.Route{Name: long("other"), Match: plan.Match{Path: &match.String{Kind: match.Exact, Value: long("/")}}})
		p.Clusters[0].Name, p.Clusters[0].Service = long("cluster"), h.Service
		p.Endpoints[0].Cluster = long("cluster")
		p.Endpoints[0].Endpoints[0].Workload = plan.WorkloadLabels{Workload: long("workload"), Namespace: long("namespace"), App: long("app"), Version: long("version"), CanonicalService: long("canonical")}
	})
	scrape := func() []byte {
		var page bytes.Buffer
		if _, err := rec.WriteTo(&page); err != nil {
			t.Fatal(err)
		}
		return page.Bytes()
	}
	l.siege(func() int64 {
		c := l.dial()
		for range requests {
			c.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
			if m := c.must("GET"); m.status != 200 {
				t.Fatalf("the answer is %d", m.status)
			}
		}
		_ = c.nc.Close()
		return requests * 40
	})
	first := scrape()
	c := l.dial()
	for range requests {
		c.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
		c.must("GET")
	}
	if second := scrape(); len(second) > len(first)+1000 {
		t.Errorf("the page of metrics grew from %d to %d KB", len(first)>>10, len(second)>>10)
	}
	found := false
	for line := range bytes.Lines(first) {
		if !bytes.HasSuffix(line, []byte("\n")) || line[0] != '#' && bytes.Count(line, []byte(`"`))%2 != 0 {
			t.Fatalf("half a line of %d bytes: %.100q", len(line), line)
		}
		found = found || bytes.HasPrefix(line, []byte("istio_requests_total{")) && bytes.Contains(line, []byte(fmt.Sprintf(`destination_service="%s"`, long("service"))))
	}
	if !found {
		t.Error("the requests are not in the metrics by the name of their service")
	}
}

// Whatever strangers put into their requests, none of it becomes a label: after thousands of hosts, paths, methods and other values that nobody
// knows, by both versions of HTTP, there are as many series as before.
func TestStrangersMakeNoSeries(t *testing.T) {
	o := newOrigin(t, nil)
	rec := telemetry.New(telemetry.Options{})
	l := newLab(t, o.addr, func(_ *plan.Plan, o *live.Options) { o.Recorder = rec })
	// series waits until some requests are counted, which is a moment after their answers.
	series := func(requests int) map[string]bool {
		for by := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			var page bytes.Buffer
			if _, err := rec.WriteTo(&page); err != nil {
				t.Fatal(err)
			}
			all, counted := map[string]bool{}, 0
			for line := range strings.Lines(page.String()) {
				if name, value, ok := strings.Cut(line, "} "); ok && line[0] != '#' {
					all[name] = true
					if strings.HasPrefix(name, "istio_requests_total{") {
						n, err := strconv.Atoi(strings.TrimSpace(value))
						if err != nil {
							t.Fatal(err)
						}
						counted += n
					}
				}
			}
			if counted == requests {
				return all
			}
			if time.Now().After(by) {
				t.Fatalf("%d requests were counted, want %d", counted, requests)
			}
		}
	}
	ask := func(c *peer, h *h2peer, i uint32) {
		_ = c.nc.SetDeadline(time.Now().Add(patience))
		_ = h.nc.SetDeadline(time.Now().Add(patience))
		c.send(fmt.Sprintf("M%[1]d /p%[1]d?q%[1]d HTTP/1.1\r\nhost: h%[1]d.example:%[1]d\r\nuser-agent: u%[1]d\r\nx-request-id: r%[1]d\r\nx-forwarded-client-cert: c%[1]d\r\n"+
			"x-envoy-peer-metadata: m%[1]d\r\nx-envoy-original-path: /o%[1]d\r\ncontent-length: 0\r\n\r\n", i+1))
		if m := c.must("GET"); m.status != 200 {
			t.Fatalf("request %d: the answer is %d", i, m.status)
		}
		n := fmt.Sprint(i + 1)
		_ = h.send(open(id(i), true, raw(":method", "M"+n, ":scheme", "http", ":path", "/p"+n, ":authority", "h"+n, "user-agent", "u"+n, "content-type", "application/grpc+"+n)))
		if a := h.until(id(i)); a == nil || a.status != 200 {
			t.Fatalf("request %d of HTTP/2: %v, %v", i, a, h.err)
		}
		delete(h.got, id(i))
		o.take()
	}
	c, h := l.dial(), l.dialH2()
	_ = h.send(frame(http2.FrameWindowUpdate, 0, 0, u32(1<<30)))
	ask(c, h, 0)
	before := series(2)
	if len(before) < 10 {
		t.Fatalf("there are %d series", len(before))
	}
	const many = 2000
	for i := range uint32(many) {
		ask(c, h, i+1)
	}
	for name := range series(2 + 2*many) {
		if !before[name] {
			t.Errorf("a new series: %.300s", name)
		}
	}
}

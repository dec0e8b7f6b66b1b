package advisories

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/live"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

// Each of the proxy's own answers is the only answer, whatever the method and the body, and the connection goes on with
// the next request or ends.
func TestLocalAnswers(t *testing.T) {
	for name, f := range map[string]change{
		"direct":      route(func(r *plan.Route) { r.Direct = &plan.DirectResponse{Status: 299, Body: []byte("hi")} }),
		"direct 204":  route(func(r *plan.Route) { r.Direct = &plan.DirectResponse{Status: 204, Body: []byte("hi")} }),
		"redirect":    route(func(r *plan.Route) { r.Redirect = &plan.Redirect{Status: 303, Path: "/there"} }),
		"abort":       route(func(r *plan.Route) { r.Fault = &plan.Fault{AbortStatus: 418, AbortPercent: 100} }),
		"no cluster":  route(func(r *plan.Route) { r.Forward = to("nowhere") }),
		"no endpoint": planned(func(p *plan.Plan) { p.Endpoints = nil }),
		"refused":     planned(func(p *plan.Plan) { p.Endpoints[0].Endpoints[0].Address = "127.0.0.1:1" }),
		"no host":     planned(func(p *plan.Plan) { p.Routes[0].Hosts[0].Domains = []string{"x"} }),
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, "127.0.0.1:1", f)
			for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"} {
				for _, body := range []string{"\r\n", "content-length: 5\r\n\r\nhello", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"} {
					c := l.dial()
					c.send(method+" / HTTP/1.1\r\nhost: a\r\n"+body, method+" / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
					first := c.must(method)
					if second, _, err := c.read(method); err != nil || second.status != first.status {
						t.Errorf("%s %.20q: %d, then %v, %v", method, body, first.status, second, err)
					}
					if rest, _ := io.ReadAll(c.br); len(rest) > 0 {
						t.Errorf("%s %.20q: %.100q follows", method, body, rest)
					}
					_ = c.nc.Close()
				}
			}
		})
	}
}

// A redirect, ours or an endpoint's, to wherever, is the one answer to its request, whatever the method and the body: nobody follows it here, the
// body is accounted for, and the connection goes on.
func TestRedirects(t *testing.T) {
	o := newOrigin(t, func(m *message, nc net.Conn, br *bufio.Reader) verdict {
		status, ok := strings.CutPrefix(m.target, "/to/")
		if !ok {
			return proceed
		}
		if err := readBody(br, m, false); err != nil {
			return done
		}
		_, _ = fmt.Fprintf(nc, "HTTP/1.1 %s x\r\nlocation: http://a/direct\r\ncontent-length: 0\r\n\r\n", status)
		m.fields = nil // the body has been read
		return answered
	})
	targets := map[string]plan.Redirect{
		"/path":      {Path: "/direct"},
		"/whole":     {Path: "/direct", WholePath: true},
		"/itself":    {},
		"/authority": {Authority: "b"},
		"/tls":       {Scheme: "https", Port: 8443},
		"/port":      {KeepPort: true, Authority: "b"},
	}
	statuses := []int{301, 302, 303, 307, 308}
	l := newLab(t, o.addr, planned(func(p *plan.Plan) {
		vh := &p.Routes[0].Hosts[0]
		routes := []plan.Route{{Name: "direct", Match: plan.Match{Path: &match.String{Kind: match.Exact, Value: "/direct"}}, Direct: &plan.DirectResponse{Status: 299, Body: []byte("direct")}}}
		for path, rd := range targets {
			for _, status := range statuses {
				rd := rd
				rd.Status = status
				routes = append(routes, plan.Route{Match: plan.Match{Path: &match.String{Kind: match.Exact, Value: fmt.Sprint(path, status)}}, Redirect: &rd})
			}
		}
		vh.Routes = append(routes, vh.Routes...)
	}))
	paths := map[string]int{}
	for _, status := range statuses {
		for path := range targets {
			paths[fmt.Sprint(path, status)] = status
		}
		paths[fmt.Sprint("/to/", status)] = status
	}
	bodies := []string{"\r\n", "content-length: 5\r\n\r\nhello", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"}
	h2 := l.dialH2()
	next := uint32(0)
	for path, status := range paths {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
			for _, body := range bodies {
				c := l.dial()
				c.send(method+" "+path+" HTTP/1.1\r\nhost: a\r\n"+body, "GET /direct HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
				first := c.must(method)
				if first.status != status || first.count("location") != 1 || first.body != "" {
					t.Errorf("%s %s %.20q: %d to %q", method, path, body, first.status, first.get("location"))
				}
				if second, _, err := c.read("GET"); err != nil || second.status != 299 || second.body != "direct" {
					t.Errorf("%s %s %.20q: the next answer is %v, %v", method, path, body, second, err)
				}
				if rest, _ := io.ReadAll(c.br); len(rest) > 0 {
					t.Errorf("%s %s %.20q: %.100q follows", method, path, body, rest)
				}
				_ = c.nc.Close()
			}
			for _, body := range []bool{false, true} {
				b := open(id(next), !body, raw(":method", method, ":scheme", "http", ":path", path, ":authority", "a"))
				if body {
					b = append(b, data(id(next), true, "hello")...)
				}
				_ = h2.send(b)
				if a := h2.until(id(next)); a.String() != fmt.Sprint(status) || len(a.body) > 0 {
					t.Errorf("HTTP/2 %s %s, body %t: %v", method, path, body, a)
				}
				next++
			}
		}
	}
	for _, m := range o.take() {
		if !strings.HasPrefix(m.target, "/to/") {
			t.Errorf("the origin saw %s %s", m.method, m.target)
		}
	}
}

// Exchanges that are reset at any moment, by either side, leave nothing behind.
func TestResetsAnywhere(t *testing.T) {
	o := newOrigin(t, func(m *message, nc net.Conn, br *bufio.Reader) verdict {
		if m.target != "/random" {
			return proceed
		}
		switch rand.IntN(4) {
		case 0:
			return done
		case 1:
			_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nabc")
			return done
		case 2:
			_, _ = io.WriteString(nc, "HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
			time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
			return done
		}
		return proceed
	})
	l := newLab(t, o.addr, planned(func(p *plan.Plan) {
		vh := &p.Routes[0].Hosts[0]
		vh.Routes = append([]plan.Route{{Name: "random", Match: plan.Match{Path: &match.String{Kind: match.Exact, Value: "/random"}}, Forward: to("a"),
			Retry:   &plan.Retry{Attempts: 1, On: plan.RetryReset, BackoffBase: plan.Duration(time.Millisecond)},
			Timeout: plan.Duration(50 * time.Millisecond)}}, vh.Routes...)
	}))
	path := []string{":method", "POST", ":scheme", "http", ":path", "/random", ":authority", "a"}
	l.siege(func() int64 {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 10 {
					c := l.dialH2()
					for i := range uint32(10) {
						b := open(id(i), false, raw(path...))
						if rand.IntN(2) == 0 {
							b = append(b, data(id(i), rand.IntN(2) == 0, "hello")...)
						}
						_ = c.send(b)
						if rand.IntN(3) > 0 {
							time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond)
							_ = c.send(reset(id(i)))
						}
					}
					_ = c.nc.Close()
					h := l.dial()
					h.send("POST /random HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\nabc")
					if rand.IntN(2) == 0 {
						_, _, _ = h.read("POST")
					}
					_ = h.nc.Close()
				}
			})
		}
		wg.Wait()
		return 100_000
	})
}

// Clusters with many idle connections go at once, and the connections with them.
func TestClusterRemoval(t *testing.T) {
	gate := make(chan struct{})
	var waiting atomic.Int32 // each on a connection of its own
	o := newOrigin(t, func(m *message, _ net.Conn, _ *bufio.Reader) verdict {
		if m.target == "/wait" {
			waiting.Add(1)
			<-gate
		}
		return proceed
	})
	l := newLab(t, o.addr, func(_ *plan.Plan, o *live.Options) { o.Conn.UpstreamIdle = time.Hour })
	fds := descriptors()
	var all []*peer
	for range 200 {
		c := l.dial()
		c.send("GET /wait HTTP/1.1\r\nhost: a\r\n\r\n")
		all = append(all, c)
	}
	for by := time.Now().Add(patience); waiting.Load() < 200; time.Sleep(time.Millisecond) {
		if time.Now().After(by) {
			t.Fatalf("%d of 200 requests came to the endpoint", waiting.Load())
		}
	}
	close(gate)
	for _, c := range all {
		c.must("GET")
		_ = c.nc.Close()
	}
	upstreams := l.px.Upstreams()
	for by := time.Now().Add(patience); upstreams.Snapshot().Clusters[0].Requests > 0 && time.Now().Before(by); { // a client has its answer a moment earlier
		time.Sleep(time.Millisecond)
	}
	if n := upstreams.Snapshot().Clusters[0].Connections; n < 150 {
		t.Errorf("only %d connections are kept", n)
	}
	next := *l.px.Plan()
	next.Clusters, next.Endpoints, next.Routes = nil, nil, []plan.RouteTable{{Name: "t"}}
	if err := l.px.Apply(&next); err != nil {
		t.Fatal(err)
	}
	l.settle(1<<20, fds)
}

// Listeners that come and go under load, with a log that is written all the time, lose no line and no request.
func TestListenerChurn(t *testing.T) {
	var log syncBuffer
	file := telemetry.NewAccessLog(&log)
	ctx, cancel := context.WithCancel(t.Context())
	written := make(chan error, 1)
	go func() { written <- file.Run(ctx) }()
	o := newOrigin(t, nil)
	l := newLab(t, o.addr, func(_ *plan.Plan, o *live.Options) { o.Recorder = telemetry.New(telemetry.Options{Log: file}) })
	stop, some := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		c := l.dial()
		for i := 0; ; i++ {
			if i == 20 {
				close(some)
			}
			select {
			case <-stop:
				return
			default:
			}
			_ = c.nc.SetDeadline(time.Now().Add(patience))
			c.send("GET /churn HTTP/1.1\r\nhost: a\r\nuser-agent: \x80\xff\"\\\r\n\r\n")
			if m, _, err := c.read("GET"); err != nil || m.status != 200 {
				t.Errorf("request %d: %v, %v", i, m, err)
				if i < 20 {
					close(some)
				}
				return
			}
		}
	})
	base := *l.px.Plan()
	for i := range 100 {
		next := base
		extra := base.Listeners[0]
		extra.Name = fmt.Sprint("extra", i%2)
		next.Listeners = append([]plan.Listener{base.Listeners[0]}, extra)
		if err := l.px.Apply(&next); err != nil {
			t.Fatal(err)
		}
	}
	<-some
	close(stop)
	wg.Wait()
	l.px.Drain(t.Context())
	cancel()
	<-written
	for _, line := range bytes.Split(bytes.TrimSpace(log.take()), []byte("\n")) {
		if !json.Valid(line) {
			t.Fatalf("not JSON: %q", line)
		}
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) take() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.b.Bytes())
}

// Timers that end at the same moment give one answer, and a timeout that a client asks for cannot overflow.
func TestTimersTogether(t *testing.T) {
	o := newOrigin(t, func(_ *message, nc net.Conn, _ *bufio.Reader) verdict { _, _ = io.Copy(io.Discard, nc); return done })
	l := newLab(t, o.addr, route(func(r *plan.Route) {
		r.Timeout = plan.Duration(30 * time.Millisecond)
		r.Retry = &plan.Retry{Attempts: 3, On: plan.Retry5xx, PerTry: plan.Duration(30 * time.Millisecond), BackoffBase: plan.Duration(30 * time.Millisecond)}
	}))
	for _, timeout := range []string{"30m", "99999999H", "999999999H", "-1S", "0n", "", "18446744073709551616n", "1", "H"} {
		c := l.dialH2()
		_ = c.send(open(1, true, raw(with(post, "content-type", "application/grpc", "te", "trailers", "grpc-timeout", timeout)...)))
		if a := c.until(1); a == nil || a.status != 200 && a.reset == nil {
			t.Errorf("grpc-timeout %q got %v", timeout, a)
		}
		h := l.dial()
		h.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
		if all := h.all(); statuses(all) != "504" {
			t.Errorf("the answers are %s", statuses(all))
		}
	}
}

// Opaque connections that end in any order, on either side, end on both, and what was sent before a regular end arrives.
func TestHalfClose(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = nc.Close() }()
				switch rand.IntN(5) {
				case 0:
					return
				case 1:
					_ = nc.(*net.TCPConn).SetLinger(0)
					return
				case 2:
					_, _ = io.CopyN(nc, nc, 10)
					return
				}
				_, _ = io.Copy(nc, nc)
				_ = nc.(*net.TCPConn).CloseWrite()
			}()
		}
	}()
	o := newOrigin(t, nil)
	l := newLab(t, o.addr, planned(func(p *plan.Plan) {
		p.Listeners = append(p.Listeners, plan.Listener{Name: "tcp", Bind: "127.0.0.1:0", Direction: plan.Outbound, Protocol: ident.TCP, TCP: to("tcp")})
		p.Clusters = append(p.Clusters, plan.Cluster{Name: "tcp", Protocol: ident.TCP})
		p.Endpoints = append(p.Endpoints, plan.Endpoints{Cluster: "tcp", Endpoints: []plan.Endpoint{{Address: ln.Addr().String()}}})
	}))
	opaque := ""
	for _, s := range l.px.Status().Listeners {
		if s.Name == "tcp" {
			opaque = s.Address.String()
		}
	}
	l.siege(func() (sent int64) {
		for range 200 {
			c := dial(t, opaque)
			text := strings.Repeat("x", rand.IntN(5000))
			c.send(text)
			sent += int64(len(text))
			switch rand.IntN(3) {
			case 0:
				_ = c.nc.CloseWrite()
				if !c.ended() {
					t.Error("the connection is still open")
				}
			case 1:
				_ = c.nc.SetLinger(0)
			}
			_ = c.nc.Close()
		}
		return sent
	})
}

// A panic ends the request that it happened in, is counted, and nothing else is changed by it.
func TestPanicIsContained(t *testing.T) {
	o := newOrigin(t, nil)
	rec := telemetry.New(telemetry.Options{})
	l := newLab(t, o.addr, planned(func(p *plan.Plan) {
		p.Clusters = append(p.Clusters, plan.Cluster{Name: "panic", Protocol: ident.HTTP})
		p.Endpoints = append(p.Endpoints, plan.Endpoints{Cluster: "panic", Endpoints: []plan.Endpoint{{Address: "127.0.0.1:9"}}})
		p.Routes[0].Hosts = append(p.Routes[0].Hosts, plan.VirtualHost{Name: "panic", Domains: []string{"panic"}, Routes: []plan.Route{{Name: "panic", Forward: to("panic")}}})
	}), func(_ *plan.Plan, o *live.Options) {
		o.Recorder = rec
		o.Upstream.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			if addr == "127.0.0.1:9" {
				panic("planted")
			}
			return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		}
	})
	l.siege(func() int64 {
		for range 20 {
			c := l.dial()
			c.send("GET / HTTP/1.1\r\nhost: panic\r\n\r\n")
			if m, _, err := c.read("GET"); err == nil && m.status < 500 {
				t.Errorf("a panic was answered with %d", m.status)
			}
			_ = c.nc.Close()
		}
		return 1000
	})
	for range 6000 { // the client may see its connection end before the panic is counted
		if rec.Proxy.Panics.Value() >= 20 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := rec.Proxy.Panics.Value(); n < 20 {
		t.Errorf("%d panics were counted", n)
	}
}

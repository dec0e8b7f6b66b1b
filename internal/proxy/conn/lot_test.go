//go:build linux && !portable

package conn

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// parking is a server that parks its connections, as internal/proxy/server does.
type parking struct {
	t      *testing.T
	ln     net.Listener
	cfg    *Config
	tls    *tls.Config
	lot    Lot
	drain  Drain
	wg     sync.WaitGroup
	parked atomic.Int64 // how often a connection was taken in
	over   chan struct{}
}

func newParking(t *testing.T, cfg *Config, over *tls.Config) *parking {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &parking{t: t, ln: ln, cfg: cfg, tls: over, over: make(chan struct{}, 100)}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = ln.Close()
		p.drain.Begin()
		p.wg.Wait()
		p.lot.Close()
	})
	return p
}

func (p *parking) accept() {
	for {
		nc, err := p.ln.Accept()
		if err != nil {
			return
		}
		s, err := NewSocket(nc.(*net.TCPConn))
		if err != nil {
			p.t.Error(err)
			return
		}
		p.wg.Add(1)
		go p.serve(func() *Parked {
			var over net.Conn = s
			if p.tls != nil {
				tc := tls.Server(s, p.tls)
				if err := tc.Handshake(); err != nil {
					p.t.Error(err)
				}
				over = tc
			}
			return ServeH1Parking(over, nil, &Peer{}, handlerFunc(echo), p.cfg, &p.drain)
		})
	}
}

func (p *parking) serve(run func() *Parked) {
	for c := run(); c != nil; c = c.Serve() {
		if p.lot.Park(c, func() { p.serve(c.Serve) }) {
			p.parked.Add(1)
			return
		}
		c.Stay()
	}
	p.over <- struct{}{}
	p.wg.Done()
}

func (p *parking) waitParked(n int64) {
	p.t.Helper()
	for end := time.Now().Add(time.Minute); p.parked.Load() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatalf("%d times was a connection parked, want %d", p.parked.Load(), n)
		}
	}
}

func quick() *Config {
	cfg := Defaults()
	cfg.ParkAfter = 10 * time.Millisecond
	cfg.DrainIdle = 20 * time.Millisecond
	return cfg
}

type asker struct {
	t  *testing.T
	nc net.Conn
	r  *bufio.Reader
}

func (p *parking) dial() *asker {
	p.t.Helper()
	nc, err := net.Dial("tcp", p.ln.Addr().String())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = nc.Close() })
	if p.tls != nil {
		nc = tls.Client(nc, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the certificate is not what is tested
	}
	_ = nc.SetDeadline(time.Now().Add(time.Minute))
	return &asker{p.t, nc, bufio.NewReader(nc)}
}

func (a *asker) ask(body string) {
	a.t.Helper()
	req, err := http.NewRequest(http.MethodPost, "http://a/", strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	if err := req.Write(a.nc); err != nil {
		a.t.Fatal(err)
	}
	a.answer(body)
}

func (a *asker) answer(body string) {
	a.t.Helper()
	resp, err := http.ReadResponse(a.r, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil || string(b) != body {
		a.t.Fatalf("the answer was %q, %v, want %q", b, err, body)
	}
}

// A connection that is parked serves the next request as if it had not been, in plaintext and inside of TLS, as often as it likes,
// and also when a request comes in two pieces with a pause between.
func TestParkedConnectionsGoOn(t *testing.T) {
	sample := httptest.NewTLSServer(nil) // for its certificate
	defer sample.Close()
	for _, over := range []*tls.Config{nil, {Certificates: sample.TLS.Certificates}} {
		p := newParking(t, quick(), over)
		const clients = 20
		var asked []*asker
		for range clients {
			asked = append(asked, p.dial())
		}
		for round := range int64(3) {
			for _, a := range asked {
				a.ask("hello")
			}
			p.waitParked((round + 1) * clients)
		}
		a := asked[0]
		if _, err := io.WriteString(a.nc, "POST / HT"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * p.cfg.ParkAfter) // a head that has begun is nothing to park
		if _, err := io.WriteString(a.nc, "TP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab"); err != nil {
			t.Fatal(err)
		}
		a.answer("ab")
	}
}

// Who goes away while he is parked is noticed.
func TestParkedConnectionEnds(t *testing.T) {
	p := newParking(t, quick(), nil)
	a, b := p.dial(), p.dial()
	a.ask("x")
	b.ask("x")
	p.waitParked(2)
	_ = a.nc.Close()
	_ = b.nc.(*net.TCPConn).SetLinger(0)
	_ = b.nc.Close()
	for range 2 {
		select {
		case <-p.over:
		case <-time.After(time.Minute):
			t.Fatal("nobody noticed the end of a parked connection")
		}
	}
}

// The idle timeout holds for parked connections.
func TestParkedConnectionExpires(t *testing.T) {
	cfg := quick()
	cfg.Idle = 3 * time.Second // in which they are asked and parked
	p := newParking(t, cfg, nil)
	a, b := p.dial(), p.dial()
	a.ask("x")
	b.ask("x")
	p.waitParked(2)
	for _, c := range []*asker{a, b} {
		if _, err := c.r.ReadByte(); err != io.EOF {
			t.Errorf("the connection ended with %v, want EOF", err)
		}
	}
	if n := p.parked.Load(); n != 2 {
		t.Errorf("connections were parked %d times, want once each", n)
	}
}

// A drain wakes parked connections: each may bring one more request, and is told that it is the last.
func TestParkedConnectionsDrain(t *testing.T) {
	cfg := quick()
	cfg.DrainIdle = time.Minute
	p := newParking(t, cfg, nil)
	last, silent := p.dial(), p.dial()
	last.ask("x")
	silent.ask("x")
	p.waitParked(2)
	p.drain.SetIdle(30 * time.Second)
	p.drain.Begin()
	last.ask("bye")
	if _, err := last.r.ReadByte(); err != io.EOF {
		t.Errorf("the connection ended with %v, want EOF", err)
	}
	_ = silent.nc.Close()
	for range 2 {
		<-p.over
	}
}

// A parked connection has no goroutine.
func TestParkedConnectionsHaveNoGoroutine(t *testing.T) {
	p := newParking(t, quick(), nil)
	const n = 100
	before := runtime.NumGoroutine()
	var asked []*asker
	for range n {
		a := p.dial()
		a.ask("x")
		asked = append(asked, a)
	}
	p.waitParked(n)
	for end := time.Now().Add(time.Minute); runtime.NumGoroutine() > before+n/2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
	runtime.KeepAlive(asked)
}

// A Lot that is closed, or was never given, takes nobody in; the connection goes on.
func TestNoPlaceToPark(t *testing.T) {
	p := newParking(t, quick(), nil)
	p.lot.Close()
	a := p.dial()
	a.ask("one")
	time.Sleep(5 * p.cfg.ParkAfter)
	a.ask("two")
	if n := p.parked.Load(); n != 0 {
		t.Errorf("a closed lot took %d connections", n)
	}
}

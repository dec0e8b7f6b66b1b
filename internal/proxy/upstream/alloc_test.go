package upstream

import (
	"errors"
	"io"
	"net"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/balance"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// plainServer answers every read with a small response, allocating nothing.
func plainServer(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = nc.Close() }()
				buf, answer := make([]byte, 4096), []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				for {
					if _, err := nc.Read(buf); err != nil {
						return
					}
					if _, err := nc.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// plainPath is the whole use of a lease on an idle connection.
type plainPath struct {
	c    *Cluster
	req  message.Request
	head message.Response
}

func newPlainPath(t testing.TB) *plainPath {
	s := newSet(t, Options{})
	c := only(s, plan.Cluster{Protocol: ident.HTTP, Outlier: &plan.Outlier{Consecutive5xx: 5},
		Limits: plan.Limits{MaxRequests: 100, MaxConnections: 10, MaxPendingRequests: 10}}, plainServer(t))
	return &plainPath{c: c, req: message.Request{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("test"),
		Host: []byte("test"), Path: []byte("/"), Major: 1, Minor: 1}}
}

func (p *plainPath) once(t testing.TB, a *Attempt) {
	l, err := p.c.Acquire(a)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.WriteHead(&p.req, true); err != nil {
		t.Fatal(err)
	}
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := l.ReadHead(&p.head); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = l.ReadBody()
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	l.Done(Outcome{Status: p.head.Status})
}

func TestPlainPathAllocatesNothing(t *testing.T) {
	p := newPlainPath(t)
	a := &Attempt{}
	for range 10 {
		p.once(t, a)
	}
	if raceEnabled {
		t.Skip("sync.Pool drops items at random under the race detector")
	}
	if n := testing.AllocsPerRun(200, func() { p.once(t, a) }); n != 0 {
		t.Errorf("%v allocations for a request on an idle connection", n)
	}
}

// BenchmarkAcquireDone is a whole exchange, most of it system calls on loopback; the pool itself is BenchmarkPool.
func BenchmarkAcquireDone(b *testing.B) {
	p := newPlainPath(b)
	a := &Attempt{}
	p.once(b, a)
	b.ReportAllocs()
	for b.Loop() {
		p.once(b, a)
	}
}

// BenchmarkPool is what a lease costs besides its exchange: pick, pool, and the look at the socket.
func BenchmarkPool(b *testing.B) {
	p := newPlainPath(b)
	p.once(b, &Attempt{})
	b.ReportAllocs()
	for b.Loop() {
		e, ok := p.c.core().state.Load().picker.Pick(&balance.Draw[*Endpoint]{Random: random()})
		if !ok {
			b.Fatal("nobody to pick")
		}
		hc := e.h1.takeIdle()
		hc.release(nil, true)
	}
}

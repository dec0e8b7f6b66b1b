package upstream

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

func TestH1ConnectionsAreReusedLastFirst(t *testing.T) {
	a := newApp(t, nil)
	c := only(newSet(t, Options{}), plan.Cluster{Protocol: ident.HTTP}, a.addr())
	if body, reused := mustGet(t, c, Attempt{}, "/"); body != "hello" || reused {
		t.Errorf("first request: %q, reused %v", body, reused)
	}
	if _, reused := mustGet(t, c, Attempt{}, "/"); !reused {
		t.Error("the second request opened its own connection")
	}
	one, two := acquire(t, c, Attempt{}), acquire(t, c, Attempt{})
	first, second := one.Local.String(), two.Local.String()
	finish(t, one)
	finish(t, two)
	l := acquire(t, c, Attempt{})
	if l.Local.String() != second || first == second {
		t.Errorf("used %v, then %v; reused %v", first, second, l.Local)
	}
	finish(t, l)
	if n := a.opened(); n != 2 {
		t.Errorf("%d connections for two requests at a time", n)
	}
}

func TestH1DeadIdleConnectionsAreNotUsed(t *testing.T) {
	a := newApp(t, nil)
	c := only(newSet(t, Options{}), plan.Cluster{Protocol: ident.HTTP}, a.addr())
	one, two := acquire(t, c, Attempt{}), acquire(t, c, Attempt{})
	finish(t, one)
	finish(t, two)
	eventually(t, "the server closes both", func() bool {
		a.closeIdle()
		return len(a.all()) == 0
	})
	if _, reused := mustGet(t, c, Attempt{}, "/"); reused {
		t.Error("a connection that the server had closed was used")
	}
}

// A server that restarts takes all idle connections with it. The one request that finds out is ErrStale, and its retry
// goes out on a fresh connection although other idle ones still look alive.
func TestH1RetryAfterDeadConnectionIsFresh(t *testing.T) {
	p := newPipeNet()
	p.serve["a:1"] = func(nc net.Conn, r *bufio.Reader, n int) bool { return n == 0 && status(ok200)(nc, r, n) }
	c := only(newSet(t, Options{Dial: p.dial}), plan.Cluster{Protocol: ident.HTTP}, "a:1")
	leases := []*Lease{acquire(t, c, Attempt{}), acquire(t, c, Attempt{}), acquire(t, c, Attempt{})}
	for _, l := range leases {
		finish(t, l)
	}
	_, _, reused, err := get(c, Attempt{}, "/")
	if !reused || !errors.Is(err, stream.ErrStale) {
		t.Fatalf("request on a dead connection: reused %v, %v", reused, err)
	}
	if _, reused := mustGet(t, c, Attempt{Retry: true}, "/"); reused {
		t.Error("the retry went out on an old connection")
	}
}

func TestH1IncompleteExchangeEndsTheConnection(t *testing.T) {
	a := newApp(t, nil)
	c := only(newSet(t, Options{}), plan.Cluster{Protocol: ident.HTTP}, a.addr())
	acquire(t, c, Attempt{}).Done(Outcome{Err: stream.ErrCancelled})
	if _, reused := mustGet(t, c, Attempt{}, "/"); reused {
		t.Error("a connection without a complete exchange was used again")
	}
}

func TestH1MaxConnectionsWaitsInLine(t *testing.T) {
	a := newApp(t, nil)
	c := only(newSet(t, Options{}), plan.Cluster{Protocol: ident.HTTP, Limits: plan.Limits{MaxConnections: 1, MaxPendingRequests: 3}}, a.addr())
	held := acquire(t, c, Attempt{})
	order := make(chan int, 3)
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			l, err := c.Acquire(&Attempt{})
			if err != nil {
				t.Errorf("waiter %d: %v", i, err)
				return
			}
			order <- i
			finish(t, l)
		})
		eventually(t, "waiter is in line", func() bool { return c.core().counted.pending.Load() == int64(i+1) })
	}
	if _, err := c.Acquire(&Attempt{}); !errors.Is(err, ErrOverflow) {
		t.Errorf("beyond maxPendingRequests: %v", err)
	}
	finish(t, held)
	wg.Wait()
	for want := range 3 {
		if i := <-order; i != want {
			t.Errorf("waiter %d came when it was %d's turn", i, want)
		}
	}
	if n := a.opened(); n != 1 {
		t.Errorf("%d connections, maxConnections is 1", n)
	}
	if n := c.core().counted.overflow.Load(); n != 1 {
		t.Errorf("overflow counted %d times", n)
	}
}

func TestH1WaiterOpensWhenAPlaceIsFree(t *testing.T) {
	a := newApp(t, nil)
	c := only(newSet(t, Options{}), plan.Cluster{Protocol: ident.HTTP, Limits: plan.Limits{MaxConnections: 1}}, a.addr())
	held := acquire(t, c, Attempt{})
	done := make(chan error)
	go func() {
		_, _, _, err := get(c, Attempt{}, "/")
		done <- err
	}()
	eventually(t, "waiter is in line", func() bool { return c.core().counted.pending.Load() == 1 })
	held.Done(Outcome{Err: stream.ErrCancelled}) // the connection is lost, its place is free
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestH1WaitIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipeNet()
		p.serve["a:1"] = status(ok200)
		c := only(newSet(t, Options{Dial: p.dial}), plan.Cluster{Protocol: ident.HTTP, Limits: plan.Limits{MaxConnections: 1}}, "a:1")
		held := acquire(t, c, Attempt{})
		start := time.Now()
		if _, err := c.Acquire(&Attempt{Deadline: start.Add(3 * time.Second)}); !errors.Is(err, stream.ErrDeadline) {
			t.Errorf("deadline: %v", err)
		}
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("waited %v, want 3 s", d)
		}
		start = time.Now()
		if _, err := c.Acquire(&Attempt{}); !errors.Is(err, ErrOverflow) {
			t.Errorf("no deadline: %v", err)
		}
		if d := time.Since(start); d != defaultConnectTimeout {
			t.Errorf("waited %v, want the connect timeout", d)
		}
		finish(t, held)
		if n := p.dialled(); n != 1 {
			t.Errorf("%d dials", n)
		}
	})
}

func TestWaitersOfARemovedEndpointGoElsewhere(t *testing.T) {
	a, b := newApp(t, nil), newApp(t, nil)
	s := newSet(t, Options{})
	limits := plan.Cluster{Protocol: ident.HTTP, Limits: plan.Limits{MaxConnections: 1}}
	c := only(s, limits, a.addr())
	held := acquire(t, c, Attempt{})
	got := make(chan *Lease)
	go func() {
		l, err := c.Acquire(&Attempt{})
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	eventually(t, "waiter is in line", func() bool { return c.core().counted.pending.Load() == 1 })
	only(s, limits, b.addr())
	l := <-got
	if l.Endpoint.Address() != b.addr() {
		t.Errorf("went to %s, want %s", l.Endpoint.Address(), b.addr())
	}
	finish(t, l)
	finish(t, held) // what is in flight to the removed endpoint finishes
	if a.opened() != 1 || b.opened() != 1 {
		t.Errorf("connections: %d, %d", a.opened(), b.opened())
	}
	eventually(t, "connection to the removed endpoint is closed", func() bool { return c.core().counted.connections.Load() == 1 })
}

func TestLiftedLimitLetsWaitersGo(t *testing.T) {
	a := newApp(t, nil)
	for _, http2 := range []bool{false, true} {
		s := newSet(t, Options{})
		if http2 {
			a.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 1}
		}
		c := only(s, plan.Cluster{Limits: plan.Limits{MaxConnections: 1}}, a.addr())
		mustGet(t, c, Attempt{HTTP2: http2}, "/")
		held := acquire(t, c, Attempt{HTTP2: http2})
		done := make(chan error)
		go func() {
			_, _, _, err := get(c, Attempt{HTTP2: http2}, "/")
			done <- err
		}()
		eventually(t, "waiter is in line", func() bool { return c.core().counted.pending.Load() == 1 })
		only(s, plan.Cluster{}, a.addr())
		if err := <-done; err != nil {
			t.Errorf("http2 %v: %v", http2, err)
		}
		finish(t, held)
	}
}

func TestLimitsOfRequestsAndRetries(t *testing.T) {
	a := newApp(t, nil)
	c := only(newSet(t, Options{}), plan.Cluster{Protocol: ident.HTTP, Limits: plan.Limits{MaxRequests: 2, MaxRetries: 1}}, a.addr())
	one := acquire(t, c, Attempt{Retry: true})
	if _, err := c.Acquire(&Attempt{Retry: true}); !errors.Is(err, ErrOverflow) {
		t.Errorf("second retry: %v", err)
	}
	two := acquire(t, c, Attempt{})
	if _, err := c.Acquire(&Attempt{}); !errors.Is(err, ErrOverflow) {
		t.Errorf("third request: %v", err)
	}
	finish(t, one)
	finish(t, two)
	finish(t, acquire(t, c, Attempt{Retry: true}))
}

func TestH1MaxRequestsPerConnection(t *testing.T) {
	a := newApp(t, nil)
	c := only(newSet(t, Options{}), plan.Cluster{Protocol: ident.HTTP, Limits: plan.Limits{MaxRequestsPerConnection: 3}}, a.addr())
	for i := range 7 {
		if _, reused := mustGet(t, c, Attempt{}, "/"); reused != (i%3 > 0) {
			t.Errorf("request %d: reused %v", i, reused)
		}
	}
	if n := a.opened(); n != 3 {
		t.Errorf("%d connections for 7 requests, 3 on each", n)
	}
}

func TestH1IdleAndOldConnectionsAreClosed(t *testing.T) {
	for _, tt := range []struct {
		limits plan.Limits
		pause  time.Duration // between requests
		want   int           // connections for five requests
	}{
		{plan.Limits{}, 3 * time.Second, 1},
		{plan.Limits{}, plaintextIdle + time.Second, 5},
		{plan.Limits{IdleTimeout: plan.Duration(time.Minute)}, 50 * time.Second, 1},
		{plan.Limits{IdleTimeout: plan.Duration(time.Minute)}, 61 * time.Second, 5},
		{plan.Limits{MaxConnectionDuration: plan.Duration(5 * time.Second)}, 2 * time.Second, 2},
	} {
		t.Run(fmt.Sprint(tt.limits, tt.pause), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPipeNet()
				p.serve["a:1"] = status(ok200)
				s := newSet(t, Options{Dial: p.dial})
				c := only(s, plan.Cluster{Protocol: ident.HTTP, Limits: tt.limits}, "a:1")
				for range 5 {
					mustGet(t, c, Attempt{}, "/")
					time.Sleep(tt.pause)
				}
				if n := p.dialled(); n != tt.want {
					t.Errorf("%d connections, want %d", n, tt.want)
				}
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				if n := c.core().counted.connections.Load(); n != 0 {
					t.Errorf("%d connections are left after a pause", n)
				}
				if !s.asleep.Load() {
					t.Error("the keeper is awake with nothing to keep")
				}
			})
		})
	}
}

// Most connections of a burst are closed soon after it, unless the plan says how long they are kept.
func TestH1SpareConnectionsAreClosed(t *testing.T) {
	const burst = 3 * spareKept
	for _, tt := range []struct {
		limits plan.Limits
		want   int64 // that are left a while after the burst, before plaintextIdle is over
	}{
		{plan.Limits{}, spareKept},
		{plan.Limits{IdleTimeout: plan.Duration(time.Minute)}, burst},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPipeNet()
			p.serve["a:1"] = status(ok200)
			c := only(newSet(t, Options{Dial: p.dial}), plan.Cluster{Protocol: ident.HTTP, Limits: tt.limits}, "a:1")
			var leases []*Lease
			for range burst {
				leases = append(leases, acquire(t, c, Attempt{}))
			}
			for _, l := range leases {
				finish(t, l)
			}
			time.Sleep(plaintextIdle - time.Second)
			synctest.Wait()
			if n := c.core().counted.connections.Load(); n != tt.want {
				t.Errorf("%d connections are left, want %d", n, tt.want)
			}
		})
	}
}

func TestConnectErrors(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		_ = l.Close()
		c := only(newSet(t, Options{}), plan.Cluster{Protocol: ident.HTTP}, addr)
		for _, http2 := range []bool{false, true} {
			_, err = c.Acquire(&Attempt{HTTP2: http2})
			var ce *ConnectError
			if !errors.As(err, &ce) || ce.Endpoint.Address() != addr {
				t.Errorf("http2 %v: %v", http2, err)
			}
		}
		if _, _, err := c.Dial(time.Time{}); err == nil {
			t.Error("Dial connected")
		}
		if n := c.core().counted.connectFailed.Load(); n != 3 {
			t.Errorf("counted %d failed connects, want 3", n)
		}
	})
	t.Run("no answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := newPipeNet()
			c := only(newSet(t, Options{Dial: p.dial}), plan.Cluster{ConnectTimeout: plan.Duration(2 * time.Second)}, "nobody:1")
			for _, http2 := range []bool{false, true} {
				start := time.Now()
				_, err := c.Acquire(&Attempt{HTTP2: http2})
				if ce := (*ConnectError)(nil); !errors.As(err, &ce) || time.Since(start) != 2*time.Second {
					t.Errorf("http2 %v: after %v: %v", http2, time.Since(start), err)
				}
				start = time.Now()
				_, err = c.Acquire(&Attempt{HTTP2: http2, Deadline: start.Add(time.Second)})
				if !errors.Is(err, stream.ErrDeadline) || time.Since(start) != time.Second {
					t.Errorf("http2 %v with a deadline: after %v: %v", http2, time.Since(start), err)
				}
			}
		})
	})
	t.Run("nobody", func(t *testing.T) {
		s := newSet(t, Options{})
		if _, err := only(s, plan.Cluster{}).Acquire(&Attempt{}); !errors.Is(err, ErrNoHealthy) {
			t.Errorf("no endpoints: %v", err)
		}
		if _, err := only(s, plan.Cluster{TLS: plan.TLSMutual}, "127.0.0.1:1").Acquire(&Attempt{}); !errors.Is(err, ErrNoHealthy) {
			t.Errorf("mutual TLS without an identity: %v", err)
		}
		if s.Cluster("unknown") != nil {
			t.Error("an unknown cluster")
		}
	})
}

// TestUpdateWhileLeasing changes everything under load; no request may fail.
func TestUpdateWhileLeasing(t *testing.T) {
	checkAfter(t)
	var apps []string
	for range 3 {
		apps = append(apps, newApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "x") })).addr())
	}
	s := newSet(t, Options{})
	set := func(i int) {
		p := plan.Cluster{Name: "c", Protocol: ident.Detect, Outlier: &plan.Outlier{Consecutive5xx: 5}}
		if i%2 == 0 {
			p.Limits.MaxConnections = 2
			p.Balancer = plan.RoundRobin
		}
		eps := []plan.Endpoint{{Address: apps[i%3]}, {Address: apps[(i+1)%3], Weight: uint32(i % 4)}}
		s.put([]plan.Cluster{p, {Name: fmt.Sprint(i % 5)}}, []plan.Endpoints{{Cluster: "c", Endpoints: eps}})
	}
	set(0)
	c := s.Cluster("c")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if status, _, _, err := get(c, Attempt{HTTP2: i%2 == 0}, "/"); (err != nil || status != 200) && !errors.Is(err, stream.ErrRefused) && !errors.Is(err, stream.ErrStale) {
					t.Errorf("request %d of %d: %d %v", n, i, status, err)
					return
				}
			}
		})
	}
	for i := range 60 {
		set(i)
		s.Snapshot()
		time.Sleep(5 * time.Millisecond)
	}
	close(stop)
	wg.Wait()
	if s.Cluster("c") != c {
		t.Error("the cluster was replaced")
	}
}

// checkAfter checks for goroutines once everything else is cleaned up.
func checkAfter(t testing.TB) { t.Cleanup(func() { checkGoroutines(t) }) }

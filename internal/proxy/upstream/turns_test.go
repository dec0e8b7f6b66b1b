package upstream

import (
	"context"
	"errors"
	"net"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

const burst = 100 // conn.Config.MaxStreams: what one client can ask for in one breath

// Requests that come at once don't each open a connection when the endpoint answers sooner than that.
func TestBurstSharesConnections(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // so that looking means that all who can run have run
	cfg := conn.Defaults()
	cfg.Poll = new(conn.Poll)
	defer cfg.Poll.Close()
	p := newPipeNet()
	p.serve["a:1"] = status(ok200)
	c := only(newSet(t, Options{Dial: p.dial, Conn: cfg}), plan.Cluster{Protocol: ident.HTTP}, "a:1")
	var wg sync.WaitGroup
	for range burst {
		wg.Go(func() {
			if status, _, _, err := get(c, Attempt{}, "/"); err != nil || status != 200 {
				t.Errorf("status %d, %v", status, err)
			}
		})
	}
	wg.Wait()
	// Two or four nearly always. The kernel may stop who is about to answer, and then a look sees nothing of it.
	if n := p.dialled(); n > burst/4 {
		t.Errorf("%d connections for %d requests at once", n, burst)
	}
}

// Where connecting takes a while, all of a burst connect in that while.
func TestBurstWaitsForNoRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const trip = time.Second
		p := newPipeNet()
		p.serve["a:1"] = status(ok200)
		dial := func(ctx context.Context, addr string) (net.Conn, error) {
			time.Sleep(trip)
			return p.dial(ctx, addr)
		}
		c := only(newSet(t, Options{Dial: dial}), plan.Cluster{Protocol: ident.HTTP}, "a:1")
		start := time.Now()
		leases := make([]*Lease, burst)
		var wg sync.WaitGroup
		for i := range leases {
			wg.Go(func() { leases[i] = acquire(t, c, Attempt{}) })
		}
		wg.Wait()
		if d := time.Since(start); d != trip {
			t.Errorf("%d connects took %v, one takes %v", burst, d, trip)
		}
		for _, l := range leases {
			finish(t, l)
		}
	})
}

// hold takes the turn, so that whoever wants to connect waits in line until it is given back.
func (t *turns) hold() (release func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.giving = true
	return t.give
}

// inLine starts a request and returns when it waits.
func inLine(t *testing.T, c *Cluster, a Attempt) <-chan *Lease {
	t.Helper()
	before := c.core().counted.pending.Load()
	got := make(chan *Lease, 1)
	go func() {
		l, err := c.Acquire(&a)
		if err != nil && !errors.Is(err, stream.ErrDeadline) {
			t.Errorf("Acquire: %v", err)
		}
		got <- l
	}()
	p := &c.core().state.Load().endpoints[0].h1
	eventually(t, "the request is in line", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.line.waiters) > int(before)
	})
	return got
}

// Who waits for the turn to connect takes a connection that comes back, and nothing is left of the turn.
func TestConnectionThatComesBackIsTaken(t *testing.T) {
	a := newApp(t, nil)
	s := newSet(t, Options{})
	c := only(s, plan.Cluster{Protocol: ident.HTTP}, a.addr())
	held := acquire(t, c, Attempt{})
	release := s.turns.hold()
	first, second := inLine(t, c, Attempt{}), inLine(t, c, Attempt{})
	finish(t, held)
	l := <-first
	if !l.Reused || l.Local != held.Local {
		t.Errorf("reused %v, from %v to %v", l.Reused, held.Local, l.Local)
	}
	finish(t, l)
	finish(t, <-second)
	if n := c.core().counted.connections.Load(); n != 3 {
		t.Errorf("room for %d connections, want that of one connection and two turns", n)
	}
	release()
	if n := c.core().counted.connections.Load(); n != 1 || a.opened() != 1 {
		t.Errorf("room for %d connections, %d were opened, want 1", n, a.opened())
	}
}

// A connection that the endpoint closed meanwhile is none.
func TestDeadConnectionIsNotHandedOn(t *testing.T) {
	a := newApp(t, nil)
	s := newSet(t, Options{})
	c := only(s, plan.Cluster{Protocol: ident.HTTP}, a.addr())
	p := &c.core().state.Load().endpoints[0].h1
	finish(t, acquire(t, c, Attempt{}))
	p.mu.Lock()
	dead := p.pop()
	p.mu.Unlock()
	eventually(t, "the server closes it", func() bool {
		a.closeIdle()
		return len(a.all()) == 0 && !dead.client.Alive()
	})
	release := s.turns.hold()
	got := inLine(t, c, Attempt{})
	p.mu.Lock()
	p.line.next().grant <- grant{h1: dead}
	p.mu.Unlock()
	eventually(t, "the request is in line again", func() bool { return s.turns.due(p) == 2 })
	release()
	if l := <-got; l.Reused {
		t.Error("a dead connection was used")
	} else {
		finish(t, l)
	}
}

func TestWhoStopsWaitingLeavesNoRoomTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipeNet()
		p.serve["a:1"] = status(ok200)
		s := newSet(t, Options{Dial: p.dial})
		c := only(s, plan.Cluster{Protocol: ident.HTTP, Limits: plan.Limits{MaxConnections: 1}}, "a:1")
		release := s.turns.hold()
		if _, err := c.Acquire(&Attempt{Deadline: time.Now().Add(time.Second)}); !errors.Is(err, stream.ErrDeadline) {
			t.Fatalf("a turn that never comes: %v", err)
		}
		release()
		if n := c.core().counted.connections.Load(); n != 0 || p.dialled() != 0 {
			t.Errorf("room for %d connections, %d were opened", n, p.dialled())
		}
		mustGet(t, c, Attempt{}, "/")
	})
}

// Pools take turns, however many connections one of them wants.
func TestTurnsGoRound(t *testing.T) {
	s := newSet(t, Options{})
	s.turns.hold()
	a, b := new(h1Pool), new(h1Pool)
	for _, p := range []*h1Pool{a, a, a, b, b} {
		if s.turns.take(p) {
			t.Fatal("took a turn that was held")
		}
	}
	if s.turns.due(a) != 3 || s.turns.due(b) != 2 {
		t.Errorf("%d and %d turns are due", s.turns.due(a), s.turns.due(b))
	}
	for i, want := range []*h1Pool{a, b, a, b, a, nil} {
		if got := s.turns.next(); got != want {
			t.Errorf("turn %d is not whose it should be", i)
		}
	}
	for range dialsAtOnce - 1 {
		if !s.turns.take(a) {
			t.Error("nobody waits, and there is no turn")
		}
	}
}

// Room that becomes free under maxConnections is used by who waits, in turn.
func TestRoomIsOfferedInTurn(t *testing.T) {
	a := newApp(t, nil)
	s := newSet(t, Options{})
	c := only(s, plan.Cluster{Protocol: ident.HTTP, Limits: plan.Limits{MaxConnections: 1}}, a.addr())
	held := acquire(t, c, Attempt{})
	got := inLine(t, c, Attempt{})
	release := s.turns.hold()
	held.Done(Outcome{Err: stream.ErrCancelled})
	p := &c.core().state.Load().endpoints[0].h1
	if n := s.turns.due(p); n != 1 {
		t.Errorf("%d turns are due", n)
	}
	p.offer(1)
	if n := s.turns.due(p); n != 1 {
		t.Errorf("%d turns are due for one request", n)
	}
	release()
	finish(t, <-got)
	if n := a.opened(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

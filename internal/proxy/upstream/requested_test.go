package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

func TestClustersThatGoWhereRequestsSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipeNet()
		p.serve["a.example:80"], p.serve["b.example:8080"] = status(ok200), status(ok200)
		sick := 0
		p.serve["sick.example:80"] = status(func() int { sick++; return 500 })
		s := newSet(t, Options{Dial: p.dial})
		c := only(s, plan.Cluster{Protocol: ident.HTTP, Port: 80, Discovery: plan.AsRequested, Limits: plan.Limits{MaxRequests: 2},
			Outlier: &plan.Outlier{Consecutive5xx: 3, MaxEjectionPercent: 100}})
		at := func(host string, port int) Attempt { return Attempt{Host: []byte(host), Port: port} }
		mustGet(t, c, at("a.example", 80), "/")
		if _, reused := mustGet(t, c, at("a.example", 0), "/"); !reused {
			t.Error("the connection was not used again, or the cluster's port is not the default")
		}
		l := acquire(t, c, at("b.example", 8080))
		if l.Endpoint.Address() != "b.example:8080" || l.Endpoint.Host() != "b.example" {
			t.Errorf("went to %s", l.Endpoint.Address())
		}
		m := acquire(t, c, at("a.example", 80))
		if _, err := c.Acquire(&Attempt{Host: []byte("a.example")}); !errors.Is(err, ErrOverflow) {
			t.Errorf("the limits of the cluster are of each host alone: %v", err)
		}
		finish(t, l)
		finish(t, m)
		for range 5 {
			_, _, _, _ = get(c, at("sick.example", 80), "/")
		}
		if sick != 3 {
			t.Errorf("%d requests went to a host that fails, want 3", sick)
		}
		for _, bad := range []Attempt{{}, at("", 80), at("a b", 80), at("a.example", 65536), at("a.example", -1)} {
			if _, err := c.Acquire(&bad); !errors.Is(err, errNoHost) {
				t.Errorf("%q:%d: %v", bad.Host, bad.Port, err)
			}
		}
		// An equal plan keeps what there is, a plan that connects in another way does not.
		before := c.core().state.Load().byHost[hostPort{"a.example", 80}]
		only(s, plan.Cluster{Protocol: ident.HTTP, Port: 80, Discovery: plan.AsRequested})
		if c.core().state.Load().byHost[hostPort{"a.example", 80}] != before {
			t.Error("an update took the endpoint away")
		}
		only(s, plan.Cluster{Protocol: ident.HTTP, Port: 80, Discovery: plan.AsRequested, ProxyProtocol: 1})
		if c.core().state.Load().byHost[hostPort{"a.example", 80}] == before {
			t.Error("an endpoint without PROXY protocol is kept")
		}
	})
}

func TestHostsAsRequestedAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(t, Options{Dial: newPipeNet().dial})
		c := only(s, plan.Cluster{Protocol: ident.HTTP, Discovery: plan.AsRequested, ConnectTimeout: plan.Duration(time.Millisecond)})
		for i := range 3 * passthroughMost {
			_, _ = c.Acquire(&Attempt{Host: []byte(fmt.Sprint("h", i)), Port: 80})
		}
		if n := len(s.Snapshot().Clusters[0].Endpoints); n != passthroughMost {
			t.Errorf("%d hosts are remembered", n)
		}
		c.core().mu.Lock()
		known := len(c.core().endpoints)
		c.core().mu.Unlock()
		if n := known; n != passthroughMost {
			t.Errorf("%d endpoints are known", n)
		}
		time.Sleep(passthroughIdle + 2*keepSeldom)
		synctest.Wait()
		if n := len(s.Snapshot().Clusters[0].Endpoints); n != 0 {
			t.Errorf("%d hosts are remembered after a while", n)
		}
	})
}

// Nobody gets this proxy to go to itself, whatever name it has, and nobody else is kept from where he wants to.
func TestOwnListenersAreNotDialled(t *testing.T) {
	ours, theirs := newApp(t, nil), newApp(t, nil)
	own := netip.MustParseAddrPort(ours.addr())
	s := newSet(t, Options{Own: func(a netip.AddrPort) bool { return a == own }})
	c := only(s, plan.Cluster{Protocol: ident.HTTP, Discovery: plan.AsRequested})
	for _, host := range []string{"127.0.0.1", "::ffff:127.0.0.1", "localhost"} {
		if _, err := c.Acquire(&Attempt{Host: []byte(host), Port: int(own.Port())}); !errors.Is(err, errOwn) && host != "localhost" || err == nil {
			t.Errorf("%s: %v", host, err)
		}
		if _, err := s.Passthrough(host, int(own.Port()), nil).Acquire(&Attempt{}); err == nil {
			t.Errorf("passthrough to %s reached ourselves", host)
		}
	}
	other := netip.MustParseAddrPort(theirs.addr())
	mustGet(t, c, Attempt{Host: []byte("127.0.0.1"), Port: int(other.Port())}, "/")
	// An endpoint that the control plane names may be this proxy: a workload that asks for its own service.
	mustGet(t, only(s, plan.Cluster{Protocol: ident.HTTP}, ours.addr()), Attempt{}, "/")
	if ours.opened() != 1 {
		t.Errorf("%d connections reached ourselves, want that of the endpoint", ours.opened())
	}
}

func TestAsRequestedAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	addr := plainServer(t)
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	p := newPlainPath(t)
	p.c = only(newSet(t, Options{Dial: func(ctx context.Context, addr string) (net.Conn, error) { return new(Set).dialTCP(ctx, addr) }}),
		plan.Cluster{Protocol: ident.HTTP, Discovery: plan.AsRequested})
	a := &Attempt{Host: []byte(host), Port: n}
	for range 10 {
		p.once(t, a)
	}
	if n := testing.AllocsPerRun(200, func() { p.once(t, a) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

package upstream

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/balance"
)

// placed makes a cluster of endpoints "locality@address".
func placed(s *Set, p plan.Cluster, here string, at ...string) *Cluster {
	p.Name = "c"
	var eps []plan.Endpoint
	for i, l := range at {
		eps = append(eps, plan.Endpoint{Address: fmt.Sprintf("e%d:1", i), Locality: l})
	}
	s.Locate(&plan.Node{Locality: here})
	s.put([]plan.Cluster{p}, []plan.Endpoints{{Cluster: "c", Endpoints: eps}})
	return s.Cluster("c")
}

// picks counts which endpoints are picked.
func picks(t testing.TB, c *Cluster, a Attempt, n int) map[string]int {
	t.Helper()
	counts := make(map[string]int)
	for range n {
		e, _, err := c.core().pick(c.core().state.Load(), &a)
		if err != nil {
			t.Fatal(err)
		}
		counts[e.Address()]++
	}
	return counts
}

func TestLocalityFailover(t *testing.T) {
	s := newSet(t, Options{})
	p := plan.Cluster{Locality: &plan.Locality{Failover: []plan.Failover{{From: "eu", To: "us"}}},
		Outlier: &plan.Outlier{Consecutive5xx: 1, MaxEjectionPercent: 100}}
	c := placed(s, p, "eu/a", "eu/a", "us/x", "asia/y")
	if got := picks(t, c, Attempt{}, 100); got["e0:1"] != 100 {
		t.Errorf("picked %v, want the near one", got)
	}
	reportN(c.core().state.Load().endpoints[0], 1, Outcome{Status: 500})
	if got := picks(t, c, Attempt{}, 100); got["e1:1"] != 100 {
		t.Errorf("picked %v, want the failover region", got)
	}
	st := s.Snapshot().Clusters[0]
	if len(st.Localities) != 3 || st.Localities[1].Near != "failover region" || st.Localities[1].Percent != 100 || st.Endpoints[0].Why != "consecutive 5xx" {
		t.Errorf("the snapshot does not show it: %+v", st)
	}
	// The proxy moves: it is the same plan for another place.
	c = placed(s, p, "asia/y", "eu/a", "us/x", "asia/y")
	if got := picks(t, c, Attempt{}, 100); got["e2:1"] != 100 {
		t.Errorf("picked %v from asia", got)
	}
}

// TestLocalityByZones: what is in the client's zone is used as far as it goes, which changes with where clients and healthy endpoints are.
func TestLocalityByZones(t *testing.T) {
	s := newSet(t, Options{})
	p := plan.Cluster{Name: "c", Balancer: plan.Random, Locality: &plan.Locality{ZoneAware: &plan.ZoneAware{}}, Outlier: &plan.Outlier{Consecutive5xx: 1, MaxEjectionPercent: 100}}
	var eps []plan.Endpoint
	for i, l := range strings.Fields("eu/a eu/a eu/a eu/a eu/b eu/b eu/b eu/b us/a us/a") {
		eps = append(eps, plan.Endpoint{Address: fmt.Sprintf("e%d:1", i), Locality: l})
	}
	share := func(peers plan.LabelSet) (here, there float64) {
		s.Locate(&plan.Node{Locality: "eu/a", Peers: peers})
		s.put([]plan.Cluster{p}, []plan.Endpoints{{Cluster: "c", Endpoints: eps}})
		for at, n := range picks(t, s.Cluster("c"), Attempt{}, 10000) {
			switch {
			case at < "e4":
				here += float64(n) / 10000
			case at < "e8":
				there += float64(n) / 10000
			}
		}
		return here, there
	}
	check := func(peers plan.LabelSet, want float64) {
		t.Helper()
		if here, there := share(peers); math.Abs(here-want) > .03 || math.Abs(here+there-1) > 1e-9 {
			t.Errorf("clients %s: %.3f stay in the zone and %.3f in the region, want %.3f and all", peers, here, there, want)
		}
	}
	check("eu/a=3,eu/b=3", 1)
	check("eu/a=3,eu/b=1", 2./3)
	check("", .5)
	reportN(s.Cluster("c").core().state.Load().endpoints[0], 1, Outcome{Status: 500})
	check("eu/a=3,eu/b=3", 6./7) // 3 of 7 endpoints for half of the clients
	p.Balancer, p.Hash = plan.RingHash, &plan.Hash{Header: "x"}
	check("eu/a=1,eu/b=9", 3./7) // a hash leads to one endpoint, wherever clients are
}

func TestLocalityDistribute(t *testing.T) {
	s := newSet(t, Options{})
	p := plan.Cluster{Locality: &plan.Locality{Distribute: []plan.Distribution{
		{From: "eu/*", To: []plan.LocalityShare{{Locality: "eu/*", Percent: 80}, {Locality: "us/*", Percent: 20}}},
		{From: "us/*", To: []plan.LocalityShare{{Locality: "mars/*", Percent: 100}}},
	}}}
	got := picks(t, placed(s, p, "eu/a", "eu/a", "us/x", "asia/y"), Attempt{}, 10000)
	if got["e2:1"] != 0 || got["e1:1"] < 1800 || got["e1:1"] > 2200 {
		t.Errorf("picked %v, want 80:20:0", got)
	}
	c := placed(s, p, "us/a", "eu/a", "us/x", "asia/y")
	if _, err := c.Acquire(&Attempt{}); !errors.Is(err, ErrNoHealthy) || !errors.Is(err, errNoShare) {
		t.Errorf("with no endpoint in any share: %v", err)
	}
}

func TestLocalityByLabels(t *testing.T) {
	s := newSet(t, Options{})
	s.Locate(&plan.Node{Labels: "rack=r1"})
	s.put([]plan.Cluster{{Name: "c", Locality: &plan.Locality{Priority: []string{"rack"}}}}, []plan.Endpoints{{Cluster: "c",
		Endpoints: []plan.Endpoint{{Address: "a:1", Labels: "rack=r2"}, {Address: "b:1", Labels: "rack=r1"}}}})
	if got := picks(t, s.Cluster("c"), Attempt{}, 50); got["b:1"] != 50 {
		t.Errorf("picked %v", got)
	}
}

func TestStrictLocality(t *testing.T) {
	for _, strict := range []bool{true, false} {
		s := newSet(t, Options{})
		c := placed(s, plan.Cluster{Locality: &plan.Locality{Strict: strict}, Outlier: &plan.Outlier{Consecutive5xx: 1, MaxEjectionPercent: 100}},
			"eu/a", "eu/a", "eu/a", "us/a")
		reportN(c.core().state.Load().endpoints[0], 1, Outcome{Status: 500}) // 50 % healthy carries 70 %
		if far := picks(t, c, Attempt{}, 1000)["e2:1"]; strict && far != 0 || !strict && (far < 200 || far > 400) {
			t.Errorf("strict %v: the far one is picked %d times of 1000", strict, far)
		}
	}
}

func TestRetriesGoFartherOnlyWhenTheyMay(t *testing.T) {
	s := newSet(t, Options{})
	c := placed(s, plan.Cluster{Locality: &plan.Locality{}}, "eu/a", "eu/a", "eu/a", "us/a")
	eps := c.core().state.Load().endpoints
	if got := picks(t, c, Attempt{Avoid: eps[:1]}, 50); got["e1:1"] != 50 {
		t.Errorf("a retry: %v", got)
	}
	if got := picks(t, c, Attempt{Avoid: eps[:1], Farther: true}, 50); got["e2:1"] != 50 {
		t.Errorf("a retry that may go farther: %v", got)
	}
}

func TestPanicPercent(t *testing.T) {
	s := newSet(t, Options{})
	p := plan.Cluster{PanicPercent: 60, Outlier: &plan.Outlier{Consecutive5xx: 1, MaxEjectionPercent: 100, MinHealthPercent: 10}}
	c := placed(s, p, "", "", "")
	reportN(c.core().state.Load().endpoints[0], 1, Outcome{Status: 500})
	if got := picks(t, c, Attempt{}, 100); len(got) != 2 {
		t.Errorf("half is healthy, panic is at 60 %%: %v", got)
	}
	p.PanicPercent = 0
	if got := picks(t, placed(s, p, "", "", ""), Attempt{}, 100); len(got) != 1 {
		t.Errorf("half is healthy, panic is at 10 %%: %v", got)
	}
}

func TestHashesMeet(t *testing.T) {
	for _, b := range []plan.Balancer{plan.RingHash, plan.Maglev} {
		s, other := newSet(t, Options{}), newSet(t, Options{})
		p := plan.Cluster{Balancer: b}
		c, d := placed(s, p, "", "", "", "", ""), placed(other, p, "", "", "", "", "")
		used := make(map[string]bool)
		for k := range uint64(50) {
			a := Attempt{Hash: balance.HashString(fmt.Sprint(k)), HasHash: true}
			one, two := picks(t, c, a, 5), picks(t, d, a, 5)
			if len(one) != 1 || fmt.Sprint(one) != fmt.Sprint(two) {
				t.Fatalf("%s: one key went to %v and %v", b, one, two)
			}
			for e := range one {
				used[e] = true
			}
		}
		if len(used) != 4 {
			t.Errorf("%s: all keys went to %v", b, used)
		}
		if got := picks(t, c, Attempt{}, 200); len(got) != 4 {
			t.Errorf("%s: requests without a key went to %v", b, got)
		}
	}
}

func TestSizesOfHashTablesAreThePlans(t *testing.T) {
	for _, p := range []plan.Cluster{
		{Balancer: plan.RingHash, Hash: &plan.Hash{RingSize: 1 << 15}}, {Balancer: plan.Maglev, Hash: &plan.Hash{MaglevSize: 3}},
	} {
		s := newSet(t, Options{})
		c, d := placed(s, p, "", "", "", "", ""), placed(newSet(t, Options{}), plan.Cluster{Balancer: p.Balancer}, "", "", "", "", "")
		differ := 0
		for k := range uint64(200) {
			a := Attempt{Hash: balance.HashString(fmt.Sprint(k)), HasHash: true}
			if fmt.Sprint(picks(t, c, a, 1)) != fmt.Sprint(picks(t, d, a, 1)) {
				differ++
			}
		}
		if differ == 0 {
			t.Errorf("%s: the size of the table is ignored", p.Balancer)
		}
	}
}

func TestPeakEWMAFollowsLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipeNet()
		p.serve["fast:1"] = status(ok200)
		slow := status(func() int { time.Sleep(200 * time.Millisecond); return 200 })
		p.serve["slow:1"] = slow
		c := only(newSet(t, Options{Dial: p.dial}), plan.Cluster{Protocol: ident.HTTP, Balancer: plan.PeakEWMA}, "fast:1", "slow:1")
		counts := make(map[string]int)
		for range 100 {
			l := acquire(t, c, Attempt{})
			counts[l.Endpoint.Address()]++
			finish(t, l)
		}
		if counts["slow:1"] == 0 || counts["slow:1"] > 5 {
			t.Errorf("picked %v", counts)
		}
		// What the caller measured counts, and a quick failure is no good news.
		for range 20 {
			l := acquire(t, c, Attempt{})
			if _, _, err := roundTrip(l, "/"); err != nil {
				t.Fatal(err)
			}
			l.Done(Outcome{Status: 503})
		}
		eps := c.core().state.Load().endpoints
		fast := eps[0].latencyOf(0)
		before := fast.At(c.set.precise())
		eps[0].observe(c.set.precise(), c.set.precise(), &Outcome{Status: 503})
		if after := fast.At(c.set.precise()); after < before {
			t.Errorf("a failure made the endpoint faster: %v, %v", before, after)
		}
		eps[0].observe(0, c.set.precise(), &Outcome{Status: 200, Latency: 7 * time.Hour})
		if got := time.Duration(fast.At(c.set.precise())); got < 6*time.Hour {
			t.Errorf("the latency that was told is ignored: %v", got)
		}
	})
}

func TestWarmup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, b := range []plan.Balancer{plan.RoundRobin, plan.LeastRequest} {
			s := newSet(t, Options{})
			p := plan.Cluster{Name: "c", Balancer: b, Warmup: &plan.Warmup{Duration: plan.Duration(100 * time.Second), MinimumPercent: 20}}
			c := only(s, p, "old:1")
			c.core()
			time.Sleep(200 * time.Second)
			only(s, p, "new:1", "old:1")
			share := func() int { return picks(t, c, Attempt{}, 6000)["new:1"] }
			if n := share(); n < 850 || n > 1150 { // 20 : 100
				t.Errorf("%s: the new one got %d of 6000 at first, want about 1000", b, n)
			}
			if w := s.Snapshot().Clusters[0].Endpoints[0].Warm; w < 0.19 || w > 0.21 {
				t.Errorf("%s: the snapshot shows %v of the weight", b, w)
			}
			time.Sleep(50*time.Second + 1500*time.Millisecond)
			synctest.Wait()
			if n := share(); n < 1850 || n > 2200 { // 50 : 100
				t.Errorf("%s: the new one got %d of 6000 after half of the time, want about 2000", b, n)
			}
			time.Sleep(60 * time.Second)
			synctest.Wait()
			if n := share(); n < 2800 || n > 3200 {
				t.Errorf("%s: the new one got %d of 6000 after all of the time", b, n)
			}
			if c.core().state.Load().warming {
				t.Error("it is still warming")
			}
		}
	})
}

func TestSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipeNet()
		for i := range 4 {
			p.serve[fmt.Sprintf("e%d:1", i)] = status(ok200)
		}
		addrs := []string{"e0:1", "e1:1", "e2:1", "e3:1"}
		for _, idle := range []time.Duration{0, time.Minute} {
			s := newSet(t, Options{Dial: p.dial})
			sp := plan.Cluster{Protocol: ident.HTTP, Session: &plan.Session{Idle: plan.Duration(idle), Key: []byte("shared")},
				Outlier: &plan.Outlier{Consecutive5xx: 1, MaxEjectionPercent: 100}}
			c := only(s, sp, addrs...)
			l := acquire(t, c, Attempt{})
			token, tell := l.AppendSession(nil)
			home := l.Endpoint
			finish(t, l)
			if !tell || len(token) == 0 {
				t.Fatal("the client is not told its session")
			}
			follow := func(c *Cluster, token []byte) (at string, tell bool) {
				l := acquire(t, c, Attempt{Sticky: token})
				_, tell = l.AppendSession(nil)
				at = l.Endpoint.Address()
				finish(t, l)
				return at, tell
			}
			for range 20 {
				if at, tell := follow(c, token); at != home.Address() || tell != (idle > 0) {
					t.Fatalf("idle %v: a session of %s went to %s, told %v", idle, home.Address(), at, tell)
				}
			}
			// Another proxy with the same key follows it too, one with another key does not.
			same := only(newSet(t, Options{Dial: p.dial}), sp, addrs...)
			own := sp
			own.Session = &plan.Session{Idle: plan.Duration(idle)}
			strange := only(newSet(t, Options{Dial: p.dial}), own, addrs...)
			there := make(map[string]bool)
			for range 30 {
				if at, _ := follow(same, token); at != home.Address() {
					t.Fatalf("another proxy with the key sent the session to %s", at)
				}
				at, _ := follow(strange, token)
				there[at] = true
			}
			if len(there) < 2 {
				t.Error("a proxy without the key follows the session")
			}
			// What clients make up leads nowhere.
			for _, bad := range []string{"x", "zz", string(token[:15]), string(token) + "00", "0000000000000000", "0000000000000000000000000000000000000000"} {
				there := make(map[string]bool)
				for range 30 {
					at, _ := follow(c, []byte(bad))
					there[at] = true
				}
				if len(there) < 2 {
					t.Errorf("token %q leads to %v", bad, there)
				}
			}
			if idle > 0 {
				time.Sleep(idle + 2*time.Second)
				there := make(map[string]bool)
				for range 30 {
					at, _ := follow(c, token)
					there[at] = true
				}
				if len(there) < 2 {
					t.Error("a session that was idle for too long is followed")
				}
				continue
			}
			// Neither to one that is put aside nor to one that was tried.
			if got := picks(t, c, Attempt{Sticky: token, Avoid: []*Endpoint{home}}, 30); got[home.Address()] != 0 {
				t.Error("a retry went to the endpoint that failed")
			}
			reportN(home, 1, Outcome{Status: 500})
			if at, tell := follow(c, token); at == home.Address() || !tell {
				t.Error("a session was followed to an endpoint that is put aside, or the client not told of its new one")
			}
		}
	})
}

func TestRetryBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipeNet()
		p.serve["a:1"] = status(ok200)
		s := newSet(t, Options{Dial: p.dial})
		c := only(s, plan.Cluster{Protocol: ident.HTTP, Budget: &plan.ActiveRetries{Percent: 20, MinConcurrent: 1}}, "a:1")
		var held []*Lease
		for range 10 {
			held = append(held, acquire(t, c, Attempt{}))
		}
		for i := range 2 { // 20 % of 10 and more
			if !c.CanRetry() {
				t.Fatalf("retry %d is refused", i)
			}
			held = append(held, acquire(t, c, Attempt{Retry: true}))
		}
		if c.CanRetry() {
			t.Error("a third of ten may be retried")
		}
		if _, err := c.Acquire(&Attempt{Retry: true}); !errors.Is(err, errRetryBudget) || !errors.Is(err, ErrOverflow) {
			t.Errorf("a third retry: %v", err)
		}
		for _, l := range held {
			finish(t, l)
		}
		if l := acquire(t, c, Attempt{Retry: true}); true { // MinConcurrent
			if c.CanRetry() {
				t.Error("a second retry without requests")
			}
			finish(t, l)
		}

		// None at all.
		c = only(s, plan.Cluster{Protocol: ident.HTTP, Budget: &plan.ActiveRetries{}}, "a:1")
		if _, err := c.Acquire(&Attempt{Retry: true}); !errors.Is(err, errRetryBudget) || c.CanRetry() {
			t.Errorf("an empty budget: %v", err)
		}

		// Over an interval the requests count that there were, not those in flight.
		c = only(s, plan.Cluster{Protocol: ident.HTTP, Budget: &plan.ActiveRetries{Percent: 20, Interval: plan.Duration(10 * time.Second)}}, "a:1")
		for range 10 {
			mustGet(t, c, Attempt{}, "/")
		}
		if !c.CanRetry() {
			t.Error("ten requests of the last seconds allow no retry")
		}
		time.Sleep(11 * time.Second)
		if c.CanRetry() {
			t.Error("requests of long ago allow a retry")
		}
	})
}

func TestClientProtocol(t *testing.T) {
	a := newApp(t, nil)
	c := only(newSet(t, Options{}), plan.Cluster{Protocol: ident.HTTP, ClientProtocol: true}, a.addr())
	for _, h2 := range []bool{false, true} {
		l := acquire(t, c, Attempt{HTTP2: h2})
		if (l.h2 != nil) != h2 {
			t.Errorf("client HTTP/2 %v: endpoint HTTP/2 %v", h2, l.h2 != nil)
		}
		finish(t, l)
	}
	d := only(newSet(t, Options{}), plan.Cluster{Protocol: ident.HTTP2, ClientProtocol: true}, a.addr())
	l := acquire(t, d, Attempt{})
	if l.h2 != nil {
		t.Error("an HTTP/1.1 client was given HTTP/2")
	}
	finish(t, l)
}

func TestMaxStreamsAndPing(t *testing.T) {
	p := plan.Cluster{Protocol: ident.HTTP2, MaxStreams: 1, Ping: &plan.Ping{Interval: plan.Duration(7 * time.Second), Timeout: plan.Duration(3 * time.Second)}}
	a := newApp(t, nil)
	s := newSet(t, Options{})
	c := only(s, p, a.addr())
	one, two := acquire(t, c, Attempt{}), acquire(t, c, Attempt{})
	if one.h2 == two.h2 {
		t.Error("two streams share a connection")
	}
	finish(t, one)
	finish(t, two)
	cfg := c.core().state.Load().conn
	if cfg.H2Keepalive != 7*time.Second || cfg.H2KeepaliveTimeout != 3*time.Second || s.conn.H2Keepalive == 7*time.Second {
		t.Errorf("PING every %v, answer within %v", cfg.H2Keepalive, cfg.H2KeepaliveTimeout)
	}
}

func TestHosts(t *testing.T) {
	// An address that is none is never dialled as something else.
	for _, h := range []string{"", "a b", "a/b", "[::1]", "::1%eth0", "x\x00", "a:b", string(make([]byte, 300))} {
		if isHost([]byte(h)) {
			t.Errorf("%q is a host", h)
		}
	}
	for _, h := range []string{"::1", "10.0.0.1", "example.com", "a_b.c-d", "EXAMPLE."} {
		if !isHost([]byte(h)) {
			t.Errorf("%q is no host", h)
		}
	}
	if (hostOf("x") != hostPort{} || hostOf("[::1]:80") != hostPort{"::1", 80}) {
		t.Error("hostOf")
	}
}

package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// Everything at once, with plans that change all the time: nothing races, hangs, leaks or is counted wrongly, and a request
// that finds an endpoint is answered by it.
func TestStorm(t *testing.T) {
	good, sick := newApp(t, nil), newApp(t, nil)
	addr := func(a *app) string { return a.addr() }
	_, port, err := net.SplitHostPort(good.addr())
	if err != nil {
		t.Fatal(err)
	}
	s := newSet(t, Options{Resolve: func(_ context.Context, host string) ([]netip.Addr, error) {
		if rand.IntN(3) == 0 {
			return nil, errors.New("no answer today")
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}})
	random := func() (plan.Cluster, []plan.Endpoint) {
		p := plan.Cluster{Name: "c", Host: "x", Protocol: []ident.Protocol{ident.HTTP, ident.HTTP2}[rand.IntN(2)],
			Balancer: []plan.Balancer{"", plan.RoundRobin, plan.Random, plan.PeakEWMA, plan.RingHash, plan.Maglev}[rand.IntN(6)],
			Hash:     &plan.Hash{MaglevSize: 101}, ClientProtocol: rand.IntN(4) == 0, MaxStreams: uint32(rand.IntN(3)),
			Limits: plan.Limits{MaxConnections: uint32(rand.IntN(3) * 20), MaxRequestsPerConnection: uint32(rand.IntN(3))}}
		maybe := func(f func()) {
			if rand.IntN(3) == 0 {
				f()
			}
		}
		maybe(func() {
			p.Outlier = &plan.Outlier{Consecutive5xx: 1, SuccessRate: 0.5, Probe: rand.IntN(2) == 0, BaseEjection: plan.Duration(20 * time.Millisecond),
				Interval: plan.Duration(20 * time.Millisecond), MaxEjectionPercent: 100, Jitter: 0.5}
		})
		maybe(func() { p.Locality = &plan.Locality{Strict: rand.IntN(2) == 0} })
		maybe(func() { p.Warmup = &plan.Warmup{Duration: plan.Duration(time.Second)} })
		maybe(func() { p.Session = &plan.Session{Idle: plan.Duration(rand.IntN(2)) * plan.Duration(time.Minute)} })
		maybe(func() {
			p.Budget = &plan.ActiveRetries{Percent: 50, Interval: plan.Duration(rand.IntN(2)) * plan.Duration(time.Second)}
		})
		maybe(func() {
			p.Check = &plan.HealthCheck{Path: "/", Interval: plan.Duration(10 * time.Millisecond), Unhealthy: 1, Healthy: 1}
		})
		eps := []plan.Endpoint{{Address: addr(good), Locality: "eu/a"}, {Address: addr(sick), Locality: "us/a", Weight: 3}}
		switch rand.IntN(4) {
		case 0:
			p.Discovery, eps = plan.AsRequested, nil
		case 1:
			p.Discovery = []plan.Discovery{plan.DNS, plan.DNSFirst}[rand.IntN(2)]
			eps = append(eps, plan.Endpoint{Address: "name.example:" + port})
		}
		return p, eps
	}
	update := func() {
		p, eps := random()
		s.Locate(&plan.Node{Locality: []string{"eu/a", "us/a", ""}[rand.IntN(3)]})
		s.put([]plan.Cluster{p}, []plan.Endpoints{{Cluster: "c", Endpoints: eps}})
	}
	update()
	stop := make(chan struct{})
	var updates, load sync.WaitGroup
	updates.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				update()
				s.Snapshot()
				time.Sleep(time.Millisecond)
			}
		}
	})
	var answered atomic.Int64
	for w := range 8 {
		load.Go(func() {
			var token []byte
			for i := range 150 {
				a := Attempt{HTTP2: i%2 == 0, Deadline: time.Now().Add(2 * time.Second), Hash: uint64(i), HasHash: i%3 == 0, Retry: i%5 == 0,
					Farther: i%7 == 0, Sticky: token, Host: []byte("127.0.0.1")}
				_, _ = fmt.Sscan(port, &a.Port)
				c := s.Cluster("c")
				if w == 0 {
					c.CanRetry()
					if nc, _, err := c.DialFor(&a); err == nil {
						_ = nc.Close()
					}
				}
				l, err := c.Acquire(&a)
				if err != nil {
					if !errors.Is(err, ErrNoHealthy) && !errors.Is(err, ErrOverflow) && !errors.Is(err, stream.ErrDeadline) {
						var connect *ConnectError
						if !errors.As(err, &connect) {
							t.Errorf("%v", err)
						}
					}
					continue
				}
				status, body, err := roundTrip(l, "/")
				token, _ = l.AppendSession(nil)
				o := Outcome{Status: status, Err: err}
				if rand.IntN(4) == 0 {
					o = Outcome{Status: 500}
				}
				if l.Done(o); err == nil && body == "hello" {
					answered.Add(1)
				}
			}
		})
	}
	load.Wait()
	close(stop)
	updates.Wait()
	if answered.Load() == 0 {
		t.Error("no request was answered")
	}
	// And when it is over, everything works.
	c := only(s, plan.Cluster{Name: "c", Protocol: ident.HTTP}, addr(good), addr(sick))
	for range 20 {
		mustGet(t, c, Attempt{}, "/")
	}
	s.put(nil, nil)
	checkAfter(t)
}

func TestPoliciesAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops items at random under the race detector")
	}
	for _, b := range []plan.Balancer{plan.LeastRequest, plan.RoundRobin, plan.Random, plan.PeakEWMA, plan.RingHash, plan.Maglev} {
		p := newPlainPath(t)
		addr := plainServer(t)
		p.c = only(p.c.set, plan.Cluster{Protocol: ident.HTTP, Balancer: b, Locality: &plan.Locality{}, Outlier: &plan.Outlier{Consecutive5xx: 5, SuccessRate: 0.5},
			Budget: &plan.ActiveRetries{Percent: 20, Interval: plan.Duration(time.Second)}}, addr)
		a := &Attempt{Hash: 7, HasHash: true}
		for range 10 {
			p.once(t, a)
		}
		if n := testing.AllocsPerRun(200, func() { p.once(t, a) }); n != 0 {
			t.Errorf("%s: %v allocations for a request on an idle connection", b, n)
		}
	}
}

package upstream

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		o       Outcome
		want    verdict
		gateway bool
	}{
		{Outcome{Status: 200}, success, false},
		{Outcome{Status: 404}, success, false},
		{Outcome{Status: 500}, failed, false},
		{Outcome{Status: 501}, failed, false},
		{Outcome{Status: 502}, failed, true},
		{Outcome{Status: 503}, failed, true},
		{Outcome{Status: 504}, failed, true},
		{Outcome{Status: 505}, failed, false},
		{Outcome{Err: stream.ErrReset}, failed, true},
		{Outcome{Err: stream.ErrDeadline}, failed, true},
		{Outcome{Err: stream.ErrProtocol}, failed, true},
		{Outcome{Status: 200, Err: stream.ErrReset}, failed, true},
		{Outcome{Err: stream.ErrRefused}, unknown, false},
		{Outcome{Err: stream.ErrStale}, unknown, false},
		{Outcome{Err: stream.ErrNoForm}, unknown, false},
		{Outcome{Err: stream.ErrCancelled}, unknown, false},
		{Outcome{Status: 200, Err: stream.ErrCancelled}, success, false},
		{Outcome{Status: 503, Err: stream.ErrCancelled}, failed, true},
		{Outcome{}, unknown, false},
	} {
		if v, g, _ := judge(nil, tt.o); v != tt.want || g != tt.gateway {
			t.Errorf("%+v: %v %v, want %v %v", tt.o, v, g, tt.want, tt.gateway)
		}
	}
}

// outliers is a cluster whose endpoints are only reported on.
func outliers(s *Set, o *plan.Outlier, n int) (*Cluster, []*Endpoint) {
	var addrs []string
	for i := range n {
		addrs = append(addrs, fmt.Sprintf("e%d:1", i))
	}
	c := only(s, plan.Cluster{Protocol: ident.HTTP, Outlier: o}, addrs...)
	return c, c.core().state.Load().endpoints
}

func reportN(e *Endpoint, n int, o Outcome) {
	for range n {
		e.report(e.cluster.state.Load(), o)
	}
}

func TestConsecutiveErrors(t *testing.T) {
	o := &plan.Outlier{Consecutive5xx: 5, ConsecutiveGatewayError: 3, MaxEjectionPercent: 100}
	_, e := outliers(newSet(t, Options{}), o, 5)
	reportN(e[0], 4, Outcome{Status: 500})
	reportN(e[0], 1, Outcome{Status: 200})
	reportN(e[0], 4, Outcome{Status: 500})
	if e[0].ejected.Load() {
		t.Error("a success between did not reset the count")
	}
	reportN(e[0], 1, Outcome{Status: 500})
	if !e[0].ejected.Load() {
		t.Error("five 5xx in a row did not eject")
	}
	reportN(e[1], 3, Outcome{Status: 503})
	if !e[1].ejected.Load() {
		t.Error("three gateway errors in a row did not eject")
	}
	reportN(e[2], 2, Outcome{Status: 503})
	reportN(e[2], 1, Outcome{Status: 500}) // a failure, and not the gateway's
	reportN(e[2], 1, Outcome{Status: 503})
	if e[2].ejected.Load() {
		t.Error("gateway errors were not in a row")
	}
	reportN(e[3], 3, Outcome{Err: stream.ErrReset})
	if !e[3].ejected.Load() {
		t.Error("resets are no gateway errors")
	}
	reportN(e[4], 100, Outcome{Err: stream.ErrCancelled})
	if e[4].ejected.Load() {
		t.Error("clients that leave ejected an endpoint")
	}
}

func TestEjectedEndpointsGetNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipeNet()
		p.serve["good:1"] = status(ok200)
		p.serve["sick:1"] = status(func() int { return 500 })
		c := only(newSet(t, Options{Dial: p.dial}), plan.Cluster{Protocol: ident.HTTP, Balancer: plan.RoundRobin,
			Outlier: &plan.Outlier{Consecutive5xx: 3}}, "good:1", "sick:1")
		sick := 0
		for range 20 {
			code, _, _, err := get(c, Attempt{}, "/")
			if err != nil {
				t.Fatal(err)
			}
			if code == 500 {
				sick++
			}
		}
		if sick != 3 {
			t.Errorf("%d requests reached the sick endpoint, want 3", sick)
		}
	})
}

func TestConnectFailuresEject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipeNet()
		p.serve["good:1"] = status(ok200)
		c := only(newSet(t, Options{Dial: p.dial}), plan.Cluster{Protocol: ident.HTTP, Balancer: plan.RoundRobin,
			ConnectTimeout: plan.Duration(time.Second), Outlier: &plan.Outlier{ConsecutiveGatewayError: 2}}, "good:1", "silent:1")
		failed := 0
		for range 10 {
			if _, _, _, err := get(c, Attempt{}, "/"); err != nil {
				failed++
			}
		}
		if failed != 2 {
			t.Errorf("%d requests failed, want 2", failed)
		}
	})
}

func TestEjectionTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &plan.Outlier{Consecutive5xx: 1, Interval: plan.Duration(time.Second), BaseEjection: plan.Duration(10 * time.Second)}
		_, eps := outliers(newSet(t, Options{}), o, 3)
		e := eps[0]
		for n := 1; n <= 3; n++ {
			reportN(e, 1, Outcome{Status: 500})
			if !e.ejected.Load() {
				t.Fatalf("ejection %d did not happen", n)
			}
			want := time.Duration(n) * 10 * time.Second
			time.Sleep(want - 100*time.Millisecond)
			synctest.Wait()
			if !e.ejected.Load() {
				t.Errorf("ejection %d ended before %v", n, want)
			}
			// The sweep comes once a second, on the keeper's tick.
			time.Sleep(1700 * time.Millisecond)
			synctest.Wait()
			if e.ejected.Load() {
				t.Errorf("ejection %d did not end after %v", n, want)
			}
			if got := e.cluster.state.Load().picker.Len(); got != 3 {
				t.Errorf("%d endpoints are picked from after ejection %d", got, n)
			}
			// Right after being let back: an interval of good health would take one ejection back.
			e.cluster.mu.Lock()
			e.ejections = uint32(n)
			e.cluster.mu.Unlock()
		}
		// Good health is remembered too.
		time.Sleep(20 * time.Second)
		synctest.Wait()
		e.cluster.mu.Lock()
		if e.ejections != 0 {
			t.Errorf("after 20 intervals of good health ejections are %d", e.ejections)
		}
		e.cluster.mu.Unlock()
		if !e.cluster.set.asleep.Load() {
			t.Error("the keeper is awake with nothing to keep")
		}
	})
}

func TestEjectionLength(t *testing.T) {
	for _, tt := range []struct {
		base time.Duration
		n    uint32
		want time.Duration
	}{
		{0, 1, 30 * time.Second}, {0, 3, 90 * time.Second}, {0, 10, 300 * time.Second}, {0, 1 << 31, 300 * time.Second},
		{time.Hour, 1, time.Hour}, {time.Hour, 5, time.Hour}, {time.Millisecond, 7, 7 * time.Millisecond},
	} {
		if got := ejection(&plan.Outlier{BaseEjection: plan.Duration(tt.base)}, tt.n); got != tt.want {
			t.Errorf("base %v, ejection %d: %v, want %v", tt.base, tt.n, got, tt.want)
		}
	}
}

func TestMaxEjectionPercent(t *testing.T) {
	for _, tt := range []struct {
		percent  uint32
		of, want int
	}{
		{0, 1, 1}, {0, 5, 1}, {0, 20, 2}, {50, 4, 2}, {100, 4, 4}, {1, 10, 1}, {34, 3, 1}, {67, 3, 2},
	} {
		c, eps := outliers(newSet(t, Options{}), &plan.Outlier{Consecutive5xx: 1, MaxEjectionPercent: tt.percent}, tt.of)
		for _, e := range eps {
			reportN(e, 1, Outcome{Status: 500})
		}
		if got := int(c.core().counted.ejections.Load()); got != tt.want {
			t.Errorf("%d %% of %d: %d ejected, want %d", tt.percent, tt.of, got, tt.want)
		}
		_, err := c.Acquire(&Attempt{Deadline: time.Now()})
		if errors.Is(err, ErrNoHealthy) != (tt.of == tt.want) {
			t.Errorf("%d %% of %d: %v", tt.percent, tt.of, err)
		}
	}
}

func TestMinHealthPercentIsPanic(t *testing.T) {
	s := newSet(t, Options{})
	c, eps := outliers(s, &plan.Outlier{Consecutive5xx: 1, MaxEjectionPercent: 100, MinHealthPercent: 50}, 4)
	for i, want := range []int{3, 2, 4, 4} { // endpoints picked from after each ejection
		reportN(eps[i], 1, Outcome{Status: 500})
		if got := c.core().state.Load().picker.Len(); got != want {
			t.Errorf("%d ejected: %d are picked from, want %d", i+1, got, want)
		}
	}
	if !s.Snapshot().Clusters[0].Panic {
		t.Error("the snapshot does not say so")
	}
}

func TestEjectionSurvivesUpdates(t *testing.T) {
	s := newSet(t, Options{})
	o := &plan.Outlier{Consecutive5xx: 1, MaxEjectionPercent: 100}
	c, eps := outliers(s, o, 3)
	reportN(eps[1], 1, Outcome{Status: 500})
	_, again := outliers(s, &plan.Outlier{Consecutive5xx: 2, MaxEjectionPercent: 100}, 4)
	if again[1] != eps[1] || !again[1].ejected.Load() || c.core().state.Load().picker.Len() != 3 {
		t.Error("the update let the endpoint back")
	}
	outliers(s, nil, 4)
	if again[1].ejected.Load() || c.core().state.Load().picker.Len() != 4 {
		t.Error("without outlier detection the endpoint stays ejected")
	}
}

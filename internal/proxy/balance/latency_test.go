package balance

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
)

func TestLatency(t *testing.T) {
	const ms, s = float64(time.Millisecond), int64(time.Second)
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > want/1000 {
			t.Errorf("%s: %.3f ms, want %.3f", what, got/ms, want/ms)
		}
	}
	var l Latency
	l.Begin(0)
	near("at first", l.At(0), 30*ms)
	near("a decay later", l.At(10*s), 30*ms/math.E)
	l.Observe(100*time.Millisecond, 10*s)
	near("a peak is believed at once", l.At(10*s), 100*ms)
	l.Observe(10*time.Millisecond, 10*s)
	near("good news at the same moment is not", l.At(10*s), 100*ms)
	l.Observe(10*time.Millisecond, 20*s)
	near("good news a decay later", l.At(20*s), 100*ms/math.E+10*ms*(1-1/math.E))
	l.Observe(-time.Second, 15*s) // clocks that step back
	if v := l.At(15 * s); v < 0 || v > 100*ms {
		t.Errorf("a step back of the clock: %v", v)
	}
	near("left alone", l.At(1000*s)+1, 1)
}

func TestPeakEWMAPrefersTheFaster(t *testing.T) {
	m := members(1, 1)
	for i := range m {
		m[i].Latency = new(Latency)
		m[i].Latency.Begin(0)
	}
	m[0].Latency.Observe(40*time.Millisecond, 1)
	p := New(Options{Policy: plan.PeakEWMA}, m)
	pick := func() int {
		i, _ := p.Pick(&Draw[int]{Random: rand.Uint64(), Now: 2})
		return i
	}
	for range 100 {
		if pick() != 1 {
			t.Fatal("of two idle members the slower one was picked")
		}
	}
	m[1].InFlight.Store(1) // 30 ms × 2 against 40 ms × 1
	for range 100 {
		if pick() != 0 {
			t.Fatal("the product of latency and requests does not decide")
		}
	}
}

package balance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/malha-mesh/malha/internal/plan"
)

var policies = []plan.Balancer{"", plan.LeastRequest, plan.RoundRobin, plan.Random, plan.PeakEWMA, plan.RingHash, plan.Maglev}

func build(policy plan.Balancer, m []Member[int], minHealthy uint32, seed uint64) *Picker[int] {
	return New(Options{Policy: policy, Hash: &plan.Hash{MaglevSize: 1009}, MinHealthy: minHealthy, Seed: seed}, m)
}

func pick(p *Picker[int], rnd uint64, avoid []int) (int, bool) {
	return p.Pick(&Draw[int]{Random: rnd, Avoid: avoid})
}

func members(weights ...uint32) []Member[int] {
	m := make([]Member[int], len(weights))
	for i, w := range weights {
		m[i] = Member[int]{Value: i, Weight: w, InFlight: new(atomic.Int64), Key: HashString(fmt.Sprint("10.0.0.", i, ":80"))}
	}
	return m
}

// chiSquared compares counts with shares. Its expectation is the number of counts less one, its variance twice that.
func chiSquared(counts []int, weights []uint32) float64 {
	var total, weight, x float64
	for i := range counts {
		total += float64(counts[i])
		weight += float64(max(weights[i], 1))
	}
	for i := range counts {
		want := total * float64(max(weights[i], 1)) / weight
		d := float64(counts[i]) - want
		x += d * d / want
	}
	return x
}

func TestIdleMembersArePickedByWeight(t *testing.T) {
	for _, weights := range [][]uint32{
		{1, 1}, {0, 0, 0}, {5, 5, 5, 5}, {1, 9}, {1, 2, 3, 4}, {100, 1}, {0, 3}, {7, 7, 7, 8}, {1 << 31, 1 << 30, 1 << 30},
	} {
		for _, policy := range policies {
			t.Run(fmt.Sprint(policy, weights), func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(1, 2))
				p := build(policy, members(weights...), 0, rnd.Uint64())
				counts := make([]int, len(weights))
				for range 100000 {
					i, ok := pick(p, rnd.Uint64(), nil)
					if !ok {
						t.Fatal("nothing picked")
					}
					counts[i]++
				}
				// Six standard deviations above the expectation, and the seed is fixed.
				df := float64(len(weights) - 1)
				if x := chiSquared(counts, weights); x > df+6*2*df {
					t.Errorf("counts %v for weights %v: chi-squared %.1f", counts, weights, x)
				}
			})
		}
	}
}

func TestChiSquaredNoticesSkew(t *testing.T) {
	if x := chiSquared([]int{10400, 9600}, []uint32{1, 1}); x < 13 {
		t.Errorf("chi-squared of a skew of 4 %% is %.1f: the other test could not fail", x)
	}
}

func TestLeastRequestPrefersTheLessLoaded(t *testing.T) {
	m := members(1, 1)
	m[0].InFlight.Store(3)
	m[1].InFlight.Store(2)
	p := build(plan.LeastRequest, m, 0, 0)
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		if i, _ := pick(p, rnd.Uint64(), nil); i != 1 {
			t.Fatal("of two members the more loaded one was picked")
		}
	}

	// Of ten, the most loaded is never the better one of two; the idlest is picked whenever it is one of the two.
	m = members(make([]uint32, 10)...)
	for i := range m {
		m[i].InFlight.Store(int64(i))
	}
	p = build(plan.LeastRequest, m, 0, 0)
	counts := make([]int, len(m))
	for range 20000 {
		i, _ := pick(p, rnd.Uint64(), nil)
		counts[i]++
	}
	if counts[9] != 0 || counts[0] < 3600 || counts[0] > 4400 || !slices.IsSortedFunc(counts, func(a, b int) int { return b - a }) {
		t.Errorf("counts by load: %v", counts)
	}
}

func TestLeastRequestWeighsLoad(t *testing.T) {
	// The load settles in proportion to the weights when every request stays.
	weights := []uint32{1, 3, 6}
	m := members(weights...)
	p := build(plan.LeastRequest, m, 0, 0)
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 10000 {
		i, _ := pick(p, rnd.Uint64(), nil)
		m[i].InFlight.Add(1)
	}
	for i, w := range weights {
		want := int64(w) * 1000
		if got := m[i].InFlight.Load(); got < want*95/100 || got > want*105/100 {
			t.Errorf("weight %d: %d in flight, want about %d", w, got, want)
		}
	}
}

func TestRoundRobinIsSmooth(t *testing.T) {
	for _, seed := range []uint64{0, 1, 7, 1 << 40} {
		p := build(plan.RoundRobin, members(1, 1, 1), 0, seed)
		var last int
		for k := range 9 {
			i, _ := pick(p, 0, nil)
			if k > 0 && i != (last+1)%3 {
				t.Fatalf("seed %d: %d after %d", seed, i, last)
			}
			last = i
		}

		// Weights 4:1: between two picks of the light one there are always three to five of the heavy one.
		p = build(plan.RoundRobin, members(4, 1), 0, seed)
		run, seen := 0, false
		for range 1000 {
			if i, _ := pick(p, 0, nil); i == 0 {
				run++
				continue
			}
			if seen && (run < 3 || run > 5) {
				t.Fatalf("seed %d: %d picks of weight 4 between two of weight 1", seed, run)
			}
			run, seen = 0, true
		}
		if !seen {
			t.Fatal("the light member was never picked")
		}
	}
}

func TestAsideAndPanic(t *testing.T) {
	tests := []struct {
		aside, of  int
		minHealthy uint32
		wantLen    int
		wantPanic  bool
	}{
		{0, 4, 0, 4, false},
		{1, 4, 0, 3, false},
		{4, 4, 0, 0, false}, // panic is off: nothing is better than something broken
		{1, 4, 75, 3, false},
		{2, 4, 75, 4, true},
		{4, 4, 1, 4, true},
		{3, 4, 25, 1, false},
		{0, 0, 50, 0, false},
	}
	for _, tt := range tests {
		m := members(make([]uint32, tt.of)...)
		for i := range tt.aside {
			m[i].Aside = true
		}
		p := build(plan.Random, m, tt.minHealthy, 0)
		if p.Len() != tt.wantLen || p.Panic() != tt.wantPanic {
			t.Errorf("%d of %d aside, %d %%: len %d panic %v, want %d %v", tt.aside, tt.of, tt.minHealthy, p.Len(), p.Panic(), tt.wantLen, tt.wantPanic)
		}
		if _, ok := pick(p, 1, nil); ok != (tt.wantLen > 0) {
			t.Errorf("%d of %d aside: picked %v", tt.aside, tt.of, ok)
		}
	}
	if _, ok := pick(new(Picker[int]), 1, nil); ok {
		t.Error("the zero Picker picked something")
	}
}

// TestNeverTheWrongOne is the property that matters: a member that is put aside is never picked, and one to avoid only
// when nothing else is left.
func TestNeverTheWrongOne(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 3000 {
		n := 1 + rnd.IntN(8)
		m := members(make([]uint32, n)...)
		var avoid []int
		left := 0
		for i := range m {
			if rnd.IntN(2) == 0 {
				m[i].Weight = uint32(rnd.IntN(5))
			}
			m[i].InFlight.Store(int64(rnd.IntN(4) - 1)) // also a counter that ran below zero must not break it
			m[i].Aside = rnd.IntN(3) == 0
			if rnd.IntN(2) == 0 {
				avoid = append(avoid, i)
			} else if !m[i].Aside {
				left++
			}
		}
		policy := policies[rnd.IntN(len(policies))]
		p := build(policy, m, 0, rnd.Uint64())
		for range 20 {
			i, ok := pick(p, rnd.Uint64(), avoid)
			if ok != (p.Len() > 0) {
				t.Fatalf("%s %v: picked %v of %d", policy, m, ok, p.Len())
			}
			if !ok {
				continue
			}
			if m[i].Aside {
				t.Fatalf("%s: picked %d, which is put aside", policy, i)
			}
			if left > 0 && slices.Contains(avoid, i) {
				t.Fatalf("%s: picked %d, which is to be avoided, with %d others left", policy, i, left)
			}
		}
	}
}

func TestRetriesSpreadOverTheOthers(t *testing.T) {
	for _, policy := range policies {
		p := build(policy, members(1, 1, 1, 1), 0, 5)
		rnd := rand.New(rand.NewPCG(1, 2))
		counts := make([]int, 4)
		for range 9000 {
			i, _ := pick(p, rnd.Uint64(), []int{2})
			counts[i]++
		}
		for i, c := range counts {
			if i != 2 && (c < 2000 || c > 5000) {
				t.Errorf("%s: counts %v with 2 to be avoided", policy, counts)
			}
		}
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	for _, policy := range policies {
		for _, weights := range [][]uint32{{1, 1, 1}, {1, 2, 3}} {
			p := build(policy, members(weights...), 0, 0)
			avoid := []int{0, 1}
			var rnd uint64
			if n := testing.AllocsPerRun(100, func() {
				rnd = step(rnd)
				pick(p, rnd, nil)
				pick(p, rnd, avoid)
			}); n != 0 {
				t.Errorf("%s %v: %v allocations", policy, weights, n)
			}
		}
	}
}

func TestConcurrentPicks(t *testing.T) {
	p := build(plan.RoundRobin, members(1, 1, 1, 1), 0, 0)
	counts := make([]atomic.Int64, 4)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				i, _ := pick(p, 0, nil)
				counts[i].Add(1)
			}
		})
	}
	wg.Wait()
	for i := range counts {
		if c := counts[i].Load(); c != 1000 {
			t.Errorf("member %d was picked %d times of 4000", i, c)
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, policy := range policies[1:] {
		for name, weights := range map[string][]uint32{"same": make([]uint32, 20), "weighted": {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}} {
			b.Run(fmt.Sprint(policy, "/", name), func(b *testing.B) {
				b.ReportAllocs()
				p := build(policy, members(weights...), 0, 0)
				var rnd uint64
				for b.Loop() {
					rnd = step(rnd)
					pick(p, rnd, nil)
				}
			})
		}
	}
}

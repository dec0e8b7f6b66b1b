package balance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/malha-mesh/malha/internal/plan"
)

// grouped makes members: healthy of all in each group.
func grouped(counts ...[2]int) []Member[int] {
	var m []Member[int]
	for g, c := range counts {
		for i := range c[1] {
			m = append(m, Member[int]{Value: len(m), Group: g, Aside: i >= c[0]})
		}
	}
	return m
}

func TestGroupShares(t *testing.T) {
	for _, tt := range []struct {
		name   string
		o      Options
		groups [][2]int // healthy of all
		want   []uint32
		panic  []bool
	}{
		{"one group", Options{}, [][2]int{{3, 4}}, []uint32{100}, nil},
		{"the nearest carries all", Options{}, [][2]int{{4, 4}, {4, 4}}, []uint32{100, 0}, nil},
		{"above 1/1.4 it still does", Options{}, [][2]int{{72, 100}, {4, 4}}, []uint32{100, 0}, nil},
		{"below, it passes the rest on", Options{}, [][2]int{{5, 10}, {4, 4}}, []uint32{70, 30}, nil},
		{"strict does not", Options{Strict: true}, [][2]int{{1, 10}, {4, 4}}, []uint32{100, 0}, nil},
		{"strict, none healthy", Options{Strict: true}, [][2]int{{0, 10}, {0, 1}, {1, 4}}, []uint32{0, 0, 100}, nil},
		{"none healthy", Options{}, [][2]int{{0, 4}, {4, 4}}, []uint32{0, 100}, nil},
		{"a chain", Options{}, [][2]int{{25, 100}, {25, 100}, {100, 100}}, []uint32{35, 35, 30}, nil},
		{"together too few", Options{}, [][2]int{{25, 100}, {25, 100}}, []uint32{50, 50}, nil},
		{"others help: no panic", Options{MinHealthy: 50}, [][2]int{{0, 4}, {4, 4}}, []uint32{0, 100}, nil},
		{"one of them panics", Options{MinHealthy: 50}, [][2]int{{1, 10}, {5, 10}}, []uint32{17, 83}, []bool{true, false}},
		{"all panic", Options{MinHealthy: 50}, [][2]int{{0, 30}, {0, 10}}, []uint32{75, 25}, []bool{true, true}},
		{"strict panic", Options{Strict: true, MinHealthy: 50}, [][2]int{{0, 30}, {1, 10}, {5, 5}}, []uint32{0, 100, 0}, []bool{false, true, false}},
		{"nobody at all", Options{}, [][2]int{{0, 4}, {0, 4}}, []uint32{0, 0}, nil},
		{"shares", Options{Shares: []uint32{80, 20}}, [][2]int{{4, 4}, {4, 4}}, []uint32{80, 20}, nil},
		{"shares by health", Options{Shares: []uint32{50, 50}}, [][2]int{{5, 10}, {4, 4}}, []uint32{41, 59}, nil},
		{"shares without the dead", Options{Shares: []uint32{80, 20}}, [][2]int{{0, 4}, {4, 4}}, []uint32{0, 100}, nil},
		{"a share of nothing", Options{Shares: []uint32{0, 20}}, [][2]int{{4, 4}, {4, 4}}, []uint32{0, 100}, nil},
		{"all of the shares are dead", Options{Shares: []uint32{80, 0}}, [][2]int{{0, 4}, {4, 4}}, []uint32{100, 0}, nil},
		{"shares in panic", Options{Shares: []uint32{50, 50}, MinHealthy: 30}, [][2]int{{0, 4}, {4, 4}}, []uint32{50, 50}, []bool{true, false}},
	} {
		p := New(tt.o, grouped(tt.groups...))
		for i, s := range p.Groups() {
			panics := tt.panic != nil && tt.panic[i]
			if s.Percent != tt.want[i] || s.Panic != panics || s.Healthy != tt.groups[i][0] || s.Members != tt.groups[i][1] {
				t.Errorf("%s: group %d: %+v, want %d %% panic %v", tt.name, i, s, tt.want[i], panics)
			}
		}
		// The picks are what the percentages say, with any policy.
		groupOf := func(v int) int {
			for g, c := range tt.groups {
				if v -= c[1]; v < 0 {
					return g
				}
			}
			return -1
		}
		alive := false
		for i, c := range tt.groups {
			alive = alive || tt.want[i] > 0 && (c[0] > 0 || tt.panic != nil && tt.panic[i])
		}
		for _, policy := range policies {
			o := tt.o
			o.Policy, o.Hash = policy, &plan.Hash{MaglevSize: 1009}
			m := grouped(tt.groups...)
			for i := range m {
				m[i].Key = HashString(fmt.Sprint(i))
			}
			p := New(o, m)
			counts := make([]int, len(tt.groups))
			rnd := rand.New(rand.NewPCG(1, 2))
			for range 10000 {
				v, ok := p.Pick(&Draw[int]{Random: rnd.Uint64(), Hash: rnd.Uint64(), Hashed: true})
				if ok != alive {
					t.Fatalf("%s %s: picked %v", tt.name, policy, ok)
				}
				if ok {
					counts[groupOf(v)]++
				}
			}
			for i, n := range counts {
				if want := int(tt.want[i]) * 100; alive && (n < want-250 || n > want+250) {
					t.Errorf("%s %s: group %d was picked %d times of 10000, want about %d", tt.name, policy, i, n, want)
				}
			}
		}
	}
}

// A retry stays in the group unless it may go farther.
func TestRetriesAndGroups(t *testing.T) {
	for _, policy := range policies {
		p := New(Options{Policy: policy}, grouped([2]int{2, 2}, [2]int{2, 2}))
		for range 200 {
			d := Draw[int]{Random: rand.Uint64(), Avoid: []int{0}}
			if v, _ := p.Pick(&d); v != 1 {
				t.Fatalf("%s: a retry went to %d, want the other one of the group", policy, v)
			}
			d.Avoid = []int{0, 1}
			if v, _ := p.Pick(&d); v > 1 {
				t.Fatalf("%s: a retry left its group", policy)
			}
			d.Avoid, d.Farther = []int{0}, true
			if v, _ := p.Pick(&d); v < 2 {
				t.Fatalf("%s: a retry that may go farther went to %d", policy, v)
			}
			d.Avoid = []int{0, 2}
			if v, _ := p.Pick(&d); v != 1 {
				t.Fatalf("%s: with all groups tried, %d was picked", policy, v)
			}
		}
	}
}

func TestMembersOutsideTheShares(t *testing.T) {
	m := grouped([2]int{2, 2}, [2]int{2, 2})
	m[0].Group = -1
	p := New(Options{Policy: plan.Random, Shares: []uint32{50, 50}}, m)
	for range 1000 {
		if v, _ := p.Pick(&Draw[int]{Random: rand.Uint64()}); v == 0 {
			t.Fatal("picked a member that has no share")
		}
	}
}

func TestGroupsAllocateNothing(t *testing.T) {
	for _, policy := range policies {
		p := New(Options{Policy: policy}, grouped([2]int{1, 3}, [2]int{3, 3}))
		avoid := []int{3}
		var rnd uint64
		if n := testing.AllocsPerRun(100, func() {
			rnd = step(rnd)
			p.Pick(&Draw[int]{Random: rnd, Hash: rnd, Hashed: true, Avoid: avoid, Farther: rnd%2 == 0})
		}); n != 0 {
			t.Errorf("%s: %v allocations", policy, n)
		}
	}
}

// Nothing that is put aside is ever picked, whatever the groups.
func TestNeverAsideInGroups(t *testing.T) {
	rnd := rand.New(rand.NewPCG(9, 9))
	for range 2000 {
		var m []Member[int]
		groups := 1 + rnd.IntN(4)
		for i := range 1 + rnd.IntN(12) {
			m = append(m, Member[int]{Value: i, Group: rnd.IntN(groups+1) - 1, Aside: rnd.IntN(2) == 0, Weight: uint32(rnd.IntN(4)), Key: rnd.Uint64()})
		}
		var shares []uint32
		if rnd.IntN(2) == 0 {
			for range groups {
				shares = append(shares, uint32(rnd.IntN(3)*20))
			}
		}
		given := slices.Clone(m)
		p := New(Options{Policy: policies[rnd.IntN(len(policies))], Hash: &plan.Hash{RingSize: 1, MaglevSize: 101}, Shares: shares, Strict: rnd.IntN(2) == 0}, m)
		for range 20 {
			v, ok := p.Pick(&Draw[int]{Random: rnd.Uint64(), Hash: rnd.Uint64(), Hashed: rnd.IntN(2) == 0})
			if !ok {
				continue
			}
			if g := given[v]; g.Aside || g.Group < 0 || shares != nil && shares[g.Group] == 0 {
				t.Fatalf("picked %+v, shares %v", g, shares)
			}
		}
	}
}

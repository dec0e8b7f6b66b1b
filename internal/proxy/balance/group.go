package balance

import (
	"slices"
	"sync/atomic"

	"github.com/malha-mesh/malha/internal/plan"
)

// group is members among which a policy decides.
type group[T comparable] struct {
	index   int         // in Picker.groups
	members []Member[T] // that may be picked
	policy  func(g *group[T], q question) int
	byShare alias         // by weight; empty when all weights are the same
	mean    float64       // weight, when they differ
	turns   stride        // of round robin
	next    atomic.Uint64 // turn of round robin

	// Of a hash policy: a table over all members, also those that are put aside, so that nothing else moves when one is.
	table table
	named []named // what table is over
	at    []int32 // index in members of each of named; below 0: put aside
}

// newGroup makes the group that s counts. alone: every member is in it.
func newGroup[T comparable](o *Options, s *GroupStatus, members []Member[T], alone bool) *group[T] {
	g := &group[T]{}
	if alone && s.Healthy == len(members) && s.spare == 0 {
		g.members = members
	} else {
		n := s.Healthy - s.spare
		if s.Panic {
			n = s.Members
		}
		g.members = make([]Member[T], 0, n)
		for i := range members {
			if m := &members[i]; m.Group == s.Group && (s.Panic || !m.Aside && !m.Spare) {
				g.members = append(g.members, *m)
			}
		}
	}
	if hashes(o.Policy) {
		g.at = make([]int32, 0, s.Members)
		up := int32(0)
		for i := range members {
			m := &members[i]
			if m.Group != s.Group {
				continue
			}
			g.named = append(g.named, named{key: m.Key, weight: m.Weight})
			if s.Panic || !m.Aside {
				g.at = append(g.at, up)
				up++
			} else {
				g.at = append(g.at, -1)
			}
		}
	}
	same := true
	for i := range g.members {
		same = same && g.members[i].Weight == g.members[0].Weight
	}
	if !same {
		weights := make([]uint32, len(g.members))
		for i := range g.members {
			weights[i] = g.members[i].Weight
		}
		total := 0.0
		for _, w := range weights {
			total += float64(w)
		}
		g.mean = total / float64(len(weights))
		if o.Policy == plan.RoundRobin {
			g.turns = newStride(weights)
		} else {
			g.byShare = newAlias(weights)
		}
	}
	g.next.Store(o.Seed)
	switch {
	case hashes(o.Policy):
		g.policy = (*group[T]).byHash
	case o.Policy == plan.RoundRobin && same:
		g.policy = (*group[T]).inTurn
	case o.Policy == plan.RoundRobin:
		g.policy = (*group[T]).inWeightedTurn
	case o.Policy == plan.Random:
		g.policy = (*group[T]).any
	case o.Policy == plan.PeakEWMA:
		g.policy = (*group[T]).cheaperOfTwo
	case same:
		g.policy = (*group[T]).leastOfTwo
	default:
		g.policy = (*group[T]).leastOfTwoByWeight
	}
	return g
}

// hashed gives a group of a hash policy its table: an earlier one over the same members, or a new one.
func (g *group[T]) hashed(o *Options, before *Picker[T]) {
	if g.named == nil {
		return
	}
	if before != nil {
		for _, old := range before.groups {
			if old.table != nil && old.table.made(o) && slices.Equal(old.named, g.named) {
				g.table, g.named = old.table, old.named
				return
			}
		}
	}
	g.table = newTable(o, g.named)
}

func (g *group[T]) hasAny(of []T) bool {
	for i := range g.members {
		if slices.Contains(of, g.members[i].Value) {
			return true
		}
	}
	return false
}

// two draws two different members.
func (g *group[T]) two(rnd uint64) (i, j int) {
	n := len(g.members)
	i = below(rnd, n)
	j = below(step(rnd), n-1)
	if j >= i {
		j++
	}
	return i, j
}

// leastOfTwo picks two different members at random and takes the one with fewer requests in flight; the first when
// they have the same.
func (g *group[T]) leastOfTwo(q question) int {
	i, j := g.two(q.random)
	if g.load(j) < g.load(i) {
		return j
	}
	return i
}

// leastOfTwoByWeight picks two members at random by weight and takes the one with fewer requests in flight for its
// weight. The two may be the same, and the first wins a draw: idle members are picked in proportion to their weights.
func (g *group[T]) leastOfTwoByWeight(q question) int {
	i := g.byShare.pick(q.random)
	j := g.byShare.pick(step(q.random))
	if g.load(j)*int64(g.members[i].Weight) < g.load(i)*int64(g.members[j].Weight) {
		return j
	}
	return i
}

// cheaperOfTwo picks two members at random and takes the one with the lower product of latency and requests in flight, that of
// the pick counted among them (Finagle and Linkerd, "Peak EWMA"). Where weights differ, the two are drawn by weight and the
// requests count for less on a heavy one; idle members of one latency are picked in proportion to their weights.
func (g *group[T]) cheaperOfTwo(q question) int {
	var i, j int
	if len(g.byShare) > 0 {
		i, j = g.byShare.pick(q.random), g.byShare.pick(step(q.random))
	} else {
		i, j = g.two(q.random)
	}
	if g.cost(j, q.now) < g.cost(i, q.now) {
		return j
	}
	return i
}

// any picks at random, by weight.
func (g *group[T]) any(q question) int {
	if len(g.byShare) > 0 {
		return g.byShare.pick(q.random)
	}
	return below(q.random, len(g.members))
}

func (g *group[T]) inTurn(question) int {
	return int((g.next.Add(1) - 1) % uint64(len(g.members)))
}

func (g *group[T]) inWeightedTurn(question) int {
	for {
		if i, ok := g.turns.at(g.next.Add(1) - 1); ok {
			return i
		}
	}
}

// byHash asks the table. Where a member is put aside, its hashes are stepped until they meet another, so that what that member
// had is spread over all others and nothing else moves.
func (g *group[T]) byHash(q question) int {
	if !q.hashed {
		return g.any(q)
	}
	h := q.hash
	for range 4 * reselect {
		if i := g.at[g.table.at(h)]; i >= 0 {
			return int(i)
		}
		h = step(h)
	}
	return below(h, len(g.members))
}

func (g *group[T]) load(i int) int64 {
	if c := g.members[i].InFlight; c != nil {
		return max(c.Load(), 0)
	}
	return 0
}

func (g *group[T]) cost(i int, now int64) float64 {
	latency := float64(DefaultLatency)
	if l := g.members[i].Latency; l != nil {
		latency = l.At(now)
	}
	load := float64(g.load(i))
	if g.mean > 0 {
		load *= g.mean / float64(g.members[i].Weight)
	}
	return latency * (load + 1)
}

// Package balance picks one endpoint of many: least request of two choices, weighted round robin, random.
//
// In come the members of a cluster, each with its weight, the counter of its requests in flight, and whether it is
// put aside; out comes a Picker. A Picker is immutable, never blocks, allocates nothing and is used by any number of
// goroutines; when members or their health change, the owner builds another (internal/proxy/upstream does, behind an
// atomic pointer). The random numbers come from the caller, so that a pick can be repeated.
//
// The policies are Envoy's (load_balancing/overview): with weights that differ, shares follow the weights; a least
// request pick weighs the requests in flight by them.
package balance

import (
	"math/bits"
	"slices"
	"sync/atomic"

	"github.com/malha-mesh/malha/internal/plan"
)

// Member is an endpoint that may be picked. T is how the owner knows it, usually a pointer.
type Member[T comparable] struct {
	Value    T
	Weight   uint32        // 0 means 1
	InFlight *atomic.Int64 // requests that it is working on; nil counts as none
	Aside    bool          // put aside by health: not picked, but in panic
}

// Picker picks members. The zero Picker has none.
type Picker[T comparable] struct {
	members []Member[T] // that may be picked
	policy  func(p *Picker[T], rnd uint64) int
	table   alias         // by weight; empty when all weights are the same
	turns   stride        // of round robin
	next    atomic.Uint64 // turn of round robin
	panic   bool
}

// New returns a Picker. When fewer than minHealthy percent of the members are not put aside, that is ignored and all
// are picked from ("panic": few endpoints that have to carry everything would fail too); 0 never panics. seed is a random
// number: it is where round robin starts, so that proxies that learn of an endpoint together don't march in step.
func New[T comparable](policy plan.Balancer, members []Member[T], minHealthy uint32, seed uint64) *Picker[T] {
	p := &Picker[T]{members: make([]Member[T], 0, len(members))}
	for _, m := range members {
		if !m.Aside {
			p.members = append(p.members, m)
		}
	}
	if uint64(len(p.members))*100 < uint64(minHealthy)*uint64(len(members)) {
		p.panic = true
		p.members = append(p.members[:0], members...)
	}
	same := true
	for i := range p.members {
		p.members[i].Weight = max(p.members[i].Weight, 1)
		same = same && p.members[i].Weight == p.members[0].Weight
	}
	if !same {
		weights := make([]uint32, len(p.members))
		for i := range p.members {
			weights[i] = p.members[i].Weight
		}
		p.table = newAlias(weights)
		p.turns = newStride(weights)
	}
	p.next.Store(seed)
	switch {
	case policy == plan.RoundRobin && same:
		p.policy = (*Picker[T]).inTurn
	case policy == plan.RoundRobin:
		p.policy = (*Picker[T]).inWeightedTurn
	case policy == plan.Random && same:
		p.policy = (*Picker[T]).anyOf
	case policy == plan.Random:
		p.policy = (*Picker[T]).anyByWeight
	case same:
		p.policy = (*Picker[T]).leastOfTwo
	default:
		p.policy = (*Picker[T]).leastOfTwoByWeight
	}
	return p
}

// Len returns how many members may be picked.
func (p *Picker[T]) Len() int { return len(p.members) }

// Panic reports whether health is ignored because too few members are healthy.
func (p *Picker[T]) Panic() bool { return p.panic }

// Pick returns a member, or false when there is none. One that is in avoid is picked only when all are. rnd is a random
// number, uniform over all 64 bits.
func (p *Picker[T]) Pick(rnd uint64, avoid []T) (T, bool) {
	n := len(p.members)
	if n == 0 {
		var none T
		return none, false
	}
	if n == 1 {
		return p.members[0].Value, true
	}
	i := p.policy(p, rnd)
	if len(avoid) == 0 || !slices.Contains(avoid, p.members[i].Value) {
		return p.members[i].Value, true
	}
	// Envoy's previous_hosts predicate asks the policy again, a few times, and may still end on a host that failed.
	// Here the last word is a walk over all members.
	for range reselect {
		rnd = step(rnd)
		if j := p.policy(p, rnd); !slices.Contains(avoid, p.members[j].Value) {
			return p.members[j].Value, true
		}
	}
	start := below(step(rnd), n)
	for k := range n {
		if j := (start + k) % n; !slices.Contains(avoid, p.members[j].Value) {
			return p.members[j].Value, true
		}
	}
	return p.members[i].Value, true
}

// reselect is how often the policy is asked for a member that is not to be avoided (host_selection_retry_max_attempts
// as Istio sets it).
const reselect = 5

// leastOfTwo picks two different members at random and takes the one with fewer requests in flight; the first when
// they have the same.
func (p *Picker[T]) leastOfTwo(rnd uint64) int {
	n := len(p.members)
	i := below(rnd, n)
	j := below(step(rnd), n-1)
	if j >= i {
		j++
	}
	if p.load(j) < p.load(i) {
		return j
	}
	return i
}

// leastOfTwoByWeight picks two members at random by weight and takes the one with fewer requests in flight for its
// weight. The two may be the same, and the first wins a draw: idle members are picked in proportion to their weights.
func (p *Picker[T]) leastOfTwoByWeight(rnd uint64) int {
	i := p.table.pick(rnd)
	j := p.table.pick(step(rnd))
	if p.load(j)*int64(p.members[i].Weight) < p.load(i)*int64(p.members[j].Weight) {
		return j
	}
	return i
}

func (p *Picker[T]) anyOf(rnd uint64) int       { return below(rnd, len(p.members)) }
func (p *Picker[T]) anyByWeight(rnd uint64) int { return p.table.pick(rnd) }

func (p *Picker[T]) inTurn(uint64) int {
	return int((p.next.Add(1) - 1) % uint64(len(p.members)))
}

func (p *Picker[T]) inWeightedTurn(uint64) int {
	for {
		if i, ok := p.turns.at(p.next.Add(1) - 1); ok {
			return i
		}
	}
}

func (p *Picker[T]) load(i int) int64 {
	if c := p.members[i].InFlight; c != nil {
		return max(c.Load(), 0)
	}
	return 0
}

// below maps a random number to 0..n-1 (Lemire, "Fast Random Integer Generation in an Interval", without the
// rejection: the bias is below n/2^64).
func below(rnd uint64, n int) int {
	hi, _ := bits.Mul64(rnd, uint64(n))
	return int(hi)
}

// step makes the next random number of one (SplitMix64).
func step(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

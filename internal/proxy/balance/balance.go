// Package balance picks one endpoint of many: by requests in flight, by latency, in turn, at random, or by what a request has
// in common with others (consistent hashing); and, before that, one group of them by how near it is.
//
// In come the members of a cluster, each with its weight, its group, the counter of its requests in flight, and whether it is
// put aside; out comes a Picker. A Picker is immutable, never blocks, allocates nothing and is used by any number of
// goroutines; when members or their health change, the owner builds another (internal/proxy/upstream does, behind an
// atomic pointer). The random numbers and the time come from the caller, so that a pick can be repeated.
//
// The policies are Envoy's (load_balancing/overview), peak-EWMA is Linkerd's: with weights that differ, shares follow the
// weights; a pick by load or latency weighs them by the weights. Locality tells which group an endpoint belongs to
// (plan.Locality); Picker divides the traffic among groups by their health (load_balancing/priority and locality_weight).
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
	Latency  *Latency      // for PeakEWMA; nil counts as that of nobody
	Key      uint64        // of its name (HashString), the same in every proxy; for RingHash and Maglev
	Group    int           // see Options.Shares; below 0: it gets nothing
	Aside    bool          // put aside by health: not picked, but in panic
	Spare    bool          // it counts for how healthy its group is, and is not picked but in panic (Divide)
}

// Options are what else a Picker is made of.
type Options struct {
	Policy plan.Balancer
	Hash   *plan.Hash // sizes of tables; nil: the defaults
	// MinHealthy is panic: where fewer than so many percent of a group's members are not put aside and no other group can
	// help out, that is ignored and all are picked from (few endpoints that had to carry everything would fail too). 0: never.
	MinHealthy uint32
	// Shares are those of the groups, in percent (Locality.Distribute). Without them groups are levels, the lowest one first.
	Shares []uint32
	Strict bool // of levels, see plan.Locality
	// Seed is a random number: it is where round robin starts, so that proxies that learn of an endpoint together don't march
	// in step.
	Seed uint64
}

// Picker picks members. The zero Picker has none.
type Picker[T comparable] struct {
	groups []*group[T] // with members that may be picked
	choose alias       // among groups; empty: always the first
	all    []GroupStatus
	first  int // of groups: the one that gets everything when choose is empty
}

// GroupStatus is what a Picker makes of one group.
type GroupStatus struct {
	Group   int
	Members int
	Healthy int    // of Members, those that are not put aside
	Percent uint32 // of the traffic that it gets
	Panic   bool   // health is ignored
	spare   int    // of Healthy: those that are Spare
}

// New returns a Picker. It keeps members and changes them.
func New[T comparable](o Options, members []Member[T]) *Picker[T] {
	return Again(o, members, nil)
}

// Again is New, and takes over the hash tables of an earlier Picker where the members of a group are the same but for health.
func Again[T comparable](o Options, members []Member[T], before *Picker[T]) *Picker[T] {
	p := &Picker[T]{}
	for i := range members {
		members[i].Weight = max(members[i].Weight, 1)
	}
	p.all = census(members)
	divide(p.all, &o)
	var shares []uint32
	for i := range p.all {
		s := &p.all[i]
		if s.Healthy == 0 && !s.Panic || o.Shares != nil && s.Percent == 0 {
			continue
		}
		g := newGroup(&o, s, members, len(p.all) == 1)
		g.index = len(p.groups)
		if s.Percent == 100 {
			p.first = len(p.groups)
		}
		g.hashed(&o, before)
		p.groups = append(p.groups, g)
		shares = append(shares, s.Percent)
	}
	if len(p.groups) > 1 && shares[p.first] != 100 {
		p.choose = newAlias(shares)
	}
	return p
}

// census counts the members of each group, lowest first.
func census[T comparable](members []Member[T]) []GroupStatus {
	var all []GroupStatus
	for i := range members {
		m := &members[i]
		if m.Group < 0 {
			continue
		}
		at, found := slices.BinarySearchFunc(all, m.Group, func(s GroupStatus, g int) int { return s.Group - g })
		if !found {
			all = slices.Insert(all, at, GroupStatus{Group: m.Group})
		}
		all[at].Members++
		if !m.Aside {
			all[at].Healthy++
			if m.Spare {
				all[at].spare++
			}
		}
	}
	return all
}

// Len returns how many members may be picked, in all groups.
func (p *Picker[T]) Len() int {
	n := 0
	for _, g := range p.groups {
		n += len(g.members)
	}
	return n
}

// Panic reports whether health is ignored, in any group, because too few members are healthy.
func (p *Picker[T]) Panic() bool {
	return slices.ContainsFunc(p.all, func(s GroupStatus) bool { return s.Panic })
}

// Groups says what was made of each group, lowest first. It must not be changed.
func (p *Picker[T]) Groups() []GroupStatus { return p.all }

// Draw is what one pick depends on.
type Draw[T comparable] struct {
	Random uint64 // uniform over all 64 bits
	Hash   uint64 // with Hashed: what requests have in common that shall meet, for RingHash and Maglev
	Hashed bool
	Now    int64 // nanoseconds of the clock that Latency is told, for PeakEWMA
	// Avoid is members that were tried: one of them is picked only when its group has no other.
	Avoid []T
	// Farther excludes the groups of Avoid too, when there are others.
	Farther bool
}

// Pick returns a member, or false when there is none.
func (p *Picker[T]) Pick(d *Draw[T]) (T, bool) {
	if len(p.groups) == 0 {
		var none T
		return none, false
	}
	g := p.groups[p.first]
	if len(p.groups) > 1 {
		g = p.group(d)
	}
	n := len(g.members)
	if n == 1 {
		return g.members[0].Value, true
	}
	q := question{random: d.Random, hash: d.Hash, hashed: d.Hashed, now: d.Now}
	i := g.policy(g, q)
	if len(d.Avoid) == 0 || !slices.Contains(d.Avoid, g.members[i].Value) {
		return g.members[i].Value, true
	}
	// Envoy's previous_hosts predicate asks the policy again, a few times, and may still end on a host that failed.
	// Here the last word is a walk over all members.
	for range reselect {
		q.random = step(q.random)
		q.hash = step(q.hash) // the same for every request with that hash: its second choice is steady too
		if j := g.policy(g, q); !slices.Contains(d.Avoid, g.members[j].Value) {
			return g.members[j].Value, true
		}
	}
	start := below(step(q.random), n)
	for k := range n {
		if j := (start + k) % n; !slices.Contains(d.Avoid, g.members[j].Value) {
			return g.members[j].Value, true
		}
	}
	return g.members[i].Value, true
}

// question is what a policy looks at of a Draw. It goes by value: what is passed to a function that is a value would be
// allocated.
type question struct {
	random, hash uint64
	now          int64
	hashed       bool
}

// group chooses among several groups. Requests that shall meet choose the same one.
func (p *Picker[T]) group(d *Draw[T]) *group[T] {
	g := p.groups[p.first]
	if len(p.choose) > 0 {
		rnd := step(^d.Random)
		if d.Hashed && g.table != nil {
			rnd = step(^d.Hash)
		}
		g = p.groups[p.choose.pick(rnd)]
	}
	if !d.Farther || len(d.Avoid) == 0 {
		return g
	}
	for k := range p.groups {
		if o := p.groups[(g.index+k)%len(p.groups)]; !o.hasAny(d.Avoid) {
			return o
		}
	}
	return g
}

// reselect is how often the policy is asked for a member that is not to be avoided (host_selection_retry_max_attempts
// as Istio sets it).
const reselect = 5

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

// HashString returns a hash that is the same in every proxy: what Member.Key and Draw.Hash are made of. It is no secret: who
// chooses the string can choose the endpoint (FNV-1a, mixed by SplitMix64).
func HashString[S ~string | ~[]byte](s S) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return step(h)
}

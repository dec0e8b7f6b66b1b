package balance

import (
	"cmp"
	"slices"

	"github.com/malha-mesh/malha/internal/plan"
)

// Bounds of the tables of consistent hashing.
const (
	defaultRing   = 1024    // Istio ringHash.minimumRingSize
	mostRing      = 8 << 20 // Envoy maximum_ring_size
	leastPoints   = 128     // of a member of average weight
	defaultMaglev = 65537   // Istio maglev.tableSize
	largeMaglev   = 655373  // where the default is too small for the members, see newMaglev
	mostMaglev    = 5000011
)

func hashes(b plan.Balancer) bool { return b == plan.RingHash || b == plan.Maglev }

// named is a member of a table.
type named struct {
	key    uint64
	weight uint32
}

// table says which member a hash belongs to. It is immutable.
type table interface {
	at(hash uint64) int
	made(o *Options) bool // of such options
}

func newTable(o *Options, of []named) table {
	var h plan.Hash
	if o.Hash != nil {
		h = *o.Hash
	}
	if o.Policy == plan.Maglev {
		return newMaglev(of, h.MaglevSize)
	}
	return newRing(of, h.RingSize)
}

// ring is points on a circle of hashes, many for each member; a hash belongs to the next point (Karger et al. 1997; ketama).
type ring struct {
	points []uint64 // ascending
	owners []int32
	asked  uint32
}

// newRing puts a quarter of size, at least 128 points for each member of average weight: so the ring has at least size from
// four members on, and what a member has does not depend on how many others there are. If it did (Envoy divides the size
// among them), one that leaves would give points to all others, and keys would move between these.
func newRing(of []named, size uint32) *ring {
	r := &ring{asked: size}
	points := pointsOf(len(of), size)
	var total uint64
	for _, m := range of {
		total += uint64(m.weight)
	}
	// The average weight, as a power of two: it does not change with every member that comes or goes.
	unit := uint64(1)
	for len(of) > 0 && unit*2*uint64(len(of)) <= total {
		unit *= 2
	}
	type point struct {
		hash  uint64
		owner int32
	}
	all := make([]point, 0, min(points*uint64(len(of)), mostRing))
	for i, m := range of {
		n := max(uint64(m.weight)*points/unit, 1)
		for k := range n { // less than 2 × mostRing in all
			all = append(all, point{step(m.key + k*0xa0761d6478bd642f), int32(i)})
		}
	}
	slices.SortFunc(all, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(of[a.owner].key, of[b.owner].key))
	})
	r.points, r.owners = make([]uint64, len(all)), make([]int32, len(all))
	for i, p := range all {
		r.points[i], r.owners[i] = p.hash, p.owner
	}
	return r
}

// at needs a ring with points.
func (r *ring) at(hash uint64) int {
	i, _ := slices.BinarySearch(r.points, step(hash))
	if i == len(r.points) {
		i = 0
	}
	return int(r.owners[i])
}

// pointsOf returns how many points each of n members of average weight has.
func pointsOf(n int, size uint32) uint64 {
	if size == 0 {
		size = defaultRing
	}
	return max(min(max(uint64(size)/4, leastPoints), uint64(mostRing)/uint64(max(n, 1))), 1)
}

func (r *ring) made(o *Options) bool {
	return o.Policy == plan.RingHash && (o.Hash == nil && r.asked == 0 || o.Hash != nil && o.Hash.RingSize == r.asked)
}

// maglev is a table in which each member has a share of the entries, all but exactly (Eisenbud et al., "Maglev: A Fast and
// Reliable Software Network Load Balancer", NSDI 2016, section 3.4).
type maglev struct {
	entries []int32
	asked   uint32
}

// newMaglev fills a table of a prime size. When one of n members leaves, about 1 + 3.6 n²/size times as many keys move as need
// be: of the default size 1.5 times as many from 95 members on, so it is larger then, which is good for 270. One that was
// asked for is as asked.
func newMaglev(of []named, size uint32) *maglev {
	t := &maglev{asked: size}
	m := entriesOf(len(of), size)
	t.entries = make([]int32, m)
	if len(of) == 0 {
		return t
	}
	for i := range t.entries {
		t.entries[i] = -1
	}
	// A row is a member's permutation of the entries: offset, offset + skip, ...
	type row struct{ next, skip uint64 }
	rows := make([]row, len(of))
	// In the order of their keys: the table must not depend on the order in which members came.
	order := make([]int, len(of))
	heaviest := uint64(0)
	for i := range of {
		a := step(of[i].key)
		rows[i] = row{next: a % m, skip: step(a)%(m-1) + 1}
		order[i] = i
		heaviest = max(heaviest, uint64(of[i].weight))
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(of[a].key, of[b].key) })
	// In each round the heaviest member takes one entry, and others when their weight adds up to it (Envoy does so).
	credit := make([]uint64, len(of))
	for left := m; ; {
		for _, i := range order {
			if credit[i] += uint64(of[i].weight); credit[i] < heaviest {
				continue
			}
			credit[i] -= heaviest
			r := &rows[i]
			for t.entries[r.next] >= 0 {
				r.next = (r.next + r.skip) % m
			}
			t.entries[r.next] = int32(i)
			if left--; left == 0 {
				return t
			}
		}
	}
}

// entriesOf returns how many entries a table for n members has.
func entriesOf(n int, size uint32) uint64 {
	switch {
	case size == 0 && n > 64:
		return largeMaglev
	case size == 0:
		return defaultMaglev
	}
	return uint64(min(max(size, 2), mostMaglev))
}

func (t *maglev) at(hash uint64) int { return int(t.entries[below(step(hash), len(t.entries))]) }

func (t *maglev) made(o *Options) bool {
	return o.Policy == plan.Maglev && (o.Hash == nil && t.asked == 0 || o.Hash != nil && o.Hash.MaglevSize == t.asked)
}

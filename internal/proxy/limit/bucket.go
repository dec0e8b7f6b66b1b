package limit

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// Buckets of one rule: shards × perShard at most. Strangers who make up header values or addresses push out the bucket that
// was used least recently, which has most likely refilled, and a full bucket is worth the same as none.
const (
	shards   = 16
	perShard = 512
)

// state is the buckets of one rule.
type state struct {
	one  bucket // of ByAll
	seed maphash.Seed
	many [shards]shard
}

// bucket is the time in nanoseconds at which it is full again.
type bucket struct{ full atomic.Int64 }

func newState() *state { return &state{seed: maphash.MakeSeed()} }

// take takes one request out of the subject's bucket, and returns 0, or how long to wait until there is one.
func (s *state) take(r *rule, rt rate, now int64, sub *Subject) int64 {
	if rt.each == 0 {
		return 1
	}
	if r.plan.By == plan.ByAll {
		for {
			full := s.one.full.Load()
			next, wait := rt.next(full, now)
			if next == full || s.one.full.CompareAndSwap(full, next) {
				return wait
			}
		}
	}
	key := s.key(r, sub)
	sh := &s.many[key%shards]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e := sh.use(key)
	next, wait := rt.next(e.full, now)
	e.full = next
	return wait
}

// skew is how far apart, at most, the times may be at which requests ask that come at one time, in nanoseconds.
const skew = int64(time.Second)

// next is GCRA: the state after one more request at a time, and how long that comes too early, if it does.
func (rt rate) next(full, now int64) (next, wait int64) {
	// Emptier than empty is a bucket that a slower rate of an earlier plan left behind, or a clock that was ahead.
	if empty := now + rt.tolerance + rt.each; full > empty+skew {
		full = empty
	}
	if early := full - now - rt.tolerance; early > 0 {
		return full, early
	}
	return max(full, now) + rt.each, 0
}

// giveBack undoes a take.
func (s *state) giveBack(r *rule, rt rate, sub *Subject) {
	if rt.each == 0 {
		return
	}
	if r.plan.By == plan.ByAll {
		s.one.full.Add(-rt.each)
		return
	}
	key := s.key(r, sub)
	sh := &s.many[key%shards]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.use(key).full -= rt.each
}

// key tells buckets apart. It is seeded, so that nobody can make values that share one; two of a few thousand meet by chance
// once in 10¹² times.
func (s *state) key(r *rule, sub *Subject) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	switch r.plan.By {
	case plan.ByIdentity:
		if sub.Peer != (ident.Identity{}) {
			_, _ = h.WriteString(sub.Peer.TrustDomain)
			_ = h.WriteByte('/')
			_, _ = h.WriteString(sub.Peer.Namespace)
			_ = h.WriteByte('/')
			_, _ = h.WriteString(sub.Peer.ServiceAccount)
		}
	case plan.ByHeader:
		if v, ok := sub.Request.Fields.Get(r.plan.Header); ok {
			_ = h.WriteByte('=')
			_, _ = h.Write(v)
		}
	case plan.ByAddress:
		a := sub.Client.As16()
		_, _ = h.Write(a[:])
	}
	return h.Sum64()
}

// shard is a bounded part of the buckets, in the order of their use.
type shard struct {
	mu      sync.Mutex
	places  map[uint64]int32
	entries []entry // entries[0] is the ring's head: next is the most recent, prev the least
}

type entry struct {
	key        uint64
	full       int64
	prev, next int32
}

// use returns the bucket of a key, the most recent from now on. mu is held; the pointer holds until the next use.
func (s *shard) use(key uint64) *entry {
	if s.places == nil {
		s.places = make(map[uint64]int32)
		s.entries = make([]entry, 1, 8)
	}
	i, ok := s.places[key]
	switch {
	case ok:
		s.unlink(i)
	case len(s.entries) <= perShard:
		i = int32(len(s.entries))
		s.entries = append(s.entries, entry{key: key})
		s.places[key] = i
	default:
		i = s.entries[0].prev
		s.unlink(i)
		delete(s.places, s.entries[i].key)
		s.entries[i] = entry{key: key}
		s.places[key] = i
	}
	e, head := &s.entries[i], &s.entries[0]
	e.prev, e.next = 0, head.next
	s.entries[head.next].prev = i
	head.next = i
	return e
}

func (s *shard) unlink(i int32) {
	e := &s.entries[i]
	s.entries[e.prev].next, s.entries[e.next].prev = e.next, e.prev
}

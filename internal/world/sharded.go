package world

import (
	"hash/maphash"
	"slices"
)

// A sharded map has fanOut × fanOut parts. A change copies a list of fanOut of them twice, and one part: at 10,000 entries
// two or three.
const fanOut = 64

// sharded is a map that is never changed: an edit of it gives another, which shares nearly everything with it. So a World
// of ten thousand services gives a next one for the price of what differs.
type sharded[K comparable, V any] struct {
	seed maphash.Seed
	top  *[fanOut]*shelf[K, V]
}

type shelf[K comparable, V any] [fanOut][]pair[K, V]

type pair[K comparable, V any] struct {
	key   K
	value V
}

func newSharded[K comparable, V any]() sharded[K, V] {
	return sharded[K, V]{seed: maphash.MakeSeed(), top: new([fanOut]*shelf[K, V])}
}

func (s *sharded[K, V]) place(k K) (i, j int) {
	h := maphash.Comparable(s.seed, k)
	return int(h % fanOut), int(h / fanOut % fanOut)
}

func (s *sharded[K, V]) get(k K) V {
	i, j := s.place(k)
	if s.top[i] != nil {
		for n := range s.top[i][j] {
			if p := &s.top[i][j][n]; p.key == k {
				return p.value
			}
		}
	}
	var zero V
	return zero
}

// put sets k while nobody else sees the map yet.
func (s *sharded[K, V]) put(k K, v V) {
	i, j := s.place(k)
	if s.top[i] == nil {
		s.top[i] = new(shelf[K, V])
	}
	s.top[i][j] = set(s.top[i][j], k, v)
}

func set[K comparable, V any](part []pair[K, V], k K, v V) []pair[K, V] {
	if n := index(part, k); n >= 0 {
		part[n].value = v
		return part
	}
	return append(part, pair[K, V]{k, v})
}

func index[K comparable, V any](part []pair[K, V], k K) int {
	return slices.IndexFunc(part, func(p pair[K, V]) bool { return p.key == k })
}

// edit is a change of a sharded map: what is copied already is changed in place.
type edit[K comparable, V any] struct {
	next   sharded[K, V]
	copied map[[2]int]bool // shelves have a negative second number
}

func (s *sharded[K, V]) edit() *edit[K, V] { return &edit[K, V]{next: *s} }

// own makes the part of k one that may be changed.
func (e *edit[K, V]) own(k K) *[]pair[K, V] {
	i, j := e.next.place(k)
	if e.copied == nil {
		e.copied = map[[2]int]bool{}
		top := *e.next.top
		e.next.top = &top
	}
	if !e.copied[[2]int{i, -1}] {
		e.copied[[2]int{i, -1}] = true
		own := new(shelf[K, V])
		if have := e.next.top[i]; have != nil {
			*own = *have
		}
		e.next.top[i] = own
	}
	part := &e.next.top[i][j]
	if !e.copied[[2]int{i, j}] {
		e.copied[[2]int{i, j}] = true
		*part = slices.Clone(*part)
	}
	return part
}

func (e *edit[K, V]) set(k K, v V) {
	part := e.own(k)
	*part = set(*part, k, v)
}

func (e *edit[K, V]) remove(k K) {
	part := e.own(k)
	if n := index(*part, k); n >= 0 {
		*part = slices.Delete(*part, n, n+1)
	}
}

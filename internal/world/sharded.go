package world

import "hash/maphash"

// shards is how many parts a sharded map has. A change copies the list of parts and one of them: at 10,000 entries about 40.
const shards = 256

// sharded is a map that is never changed: with returns another, which shares all but one part with it. So a World of
// ten thousand services gives a next one for the price of what differs.
type sharded[K comparable, V any] struct {
	seed  maphash.Seed
	parts *[shards]map[K]V
}

func newSharded[K comparable, V any]() sharded[K, V] {
	return sharded[K, V]{seed: maphash.MakeSeed(), parts: new([shards]map[K]V)}
}

func (s *sharded[K, V]) part(k K) int { return int(maphash.Comparable(s.seed, k) % shards) }

func (s *sharded[K, V]) get(k K) V { return s.parts[s.part(k)][k] }

// put sets k while nobody else sees the map yet.
func (s *sharded[K, V]) put(k K, v V) {
	i := s.part(k)
	if s.parts[i] == nil {
		s.parts[i] = map[K]V{}
	}
	s.parts[i][k] = v
}

// edit is a change of a sharded map: the parts that are copied already are changed in place.
type edit[K comparable, V any] struct {
	next   sharded[K, V]
	copied [shards]bool
}

func (s *sharded[K, V]) edit() *edit[K, V] {
	parts := *s.parts
	return &edit[K, V]{next: sharded[K, V]{seed: s.seed, parts: &parts}}
}

func (e *edit[K, V]) own(k K) map[K]V {
	i := e.next.part(k)
	if !e.copied[i] {
		e.copied[i] = true
		m := make(map[K]V, len(e.next.parts[i])+1)
		for k, v := range e.next.parts[i] {
			m[k] = v
		}
		e.next.parts[i] = m
	}
	return e.next.parts[i]
}

func (e *edit[K, V]) set(k K, v V) { e.own(k)[k] = v }
func (e *edit[K, V]) remove(k K)   { delete(e.own(k), k) }

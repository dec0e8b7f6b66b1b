package telemetry

import (
	"maps"
	"sync"
	"sync/atomic"
)

// cache maps keys to values for many readers and few writers. A reader that finds its key takes no lock and allocates
// nothing (sync.Map would box each key of a struct type). A miss takes the lock; after as many misses as there are
// entries, what was added meanwhile becomes visible to all, so adding n entries copies O(n) in all.
type cache[K comparable, V any] struct {
	read atomic.Pointer[map[K]V]

	mu     sync.Mutex
	dirty  map[K]V // everything in read, and more; nil when it has nothing more
	misses int
}

// lookup returns the value of key if readers see it already. When it does not, ask get.
func (c *cache[K, V]) lookup(key K) (v V, ok bool) {
	if m := c.read.Load(); m != nil {
		v, ok = (*m)[key]
	}
	return v, ok
}

// get returns the value of key, made by create if there is none. create runs with the lock held and may say that its
// value must not be kept.
func (c *cache[K, V]) get(key K, create func(entries int) (v V, keep bool)) V {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dirty == nil {
		if v, ok := c.lookup(key); ok {
			return v
		}
		if m := c.read.Load(); m != nil {
			c.dirty = maps.Clone(*m)
		} else {
			c.dirty = make(map[K]V)
		}
	}
	v, ok := c.dirty[key]
	if !ok {
		var keep bool
		if v, keep = create(len(c.dirty)); !keep {
			return v
		}
		c.dirty[key] = v
	}
	if c.misses++; c.misses >= len(c.dirty) {
		c.publish()
	}
	return v
}

// publish makes everything visible without the lock. mu is held.
func (c *cache[K, V]) publish() {
	if c.dirty != nil {
		m := c.dirty
		c.read.Store(&m)
		c.dirty, c.misses = nil, 0
	}
}

// size returns the number of entries.
func (c *cache[K, V]) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dirty != nil {
		return len(c.dirty)
	}
	if m := c.read.Load(); m != nil {
		return len(*m)
	}
	return 0
}

// all returns a map of everything, which must not be changed.
func (c *cache[K, V]) all() map[K]V {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.publish()
	if m := c.read.Load(); m != nil {
		return *m
	}
	return nil
}

// retain forgets the entries that keep says false of. Values that are being used stay valid for who has them.
func (c *cache[K, V]) retain(keep func(K, V) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.publish()
	m := c.read.Load()
	if m == nil {
		return
	}
	next := make(map[K]V, len(*m))
	for k, v := range *m {
		if keep(k, v) {
			next[k] = v
		}
	}
	if len(next) < len(*m) {
		c.read.Store(&next)
	}
}

// clear forgets everything.
func (c *cache[K, V]) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read.Store(nil)
	c.dirty, c.misses = nil, 0
}

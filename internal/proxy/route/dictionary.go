package route

import (
	"hash/maphash"
	"math/bits"
)

// dictionary finds a value by a string with one probe whatever its size: a map has one form up to eight keys, another up to a
// thousand and a third above, each slower than the one before. It is filled once and then read by many. Its keys come from
// rules and never from requests, so nobody outside can make one of its chains long.
type dictionary[V any] struct {
	seed maphash.Seed
	// slots is open addressing, a power of two of them, at most half full. The low bits of a slot are one more than the place
	// of an entry, 0 for none; the others are as many high bits of its hash, which spare looking at the entries of other keys.
	slots   []uint32
	low     uint32 // mask of the low bits
	entries []entry[V]
}

type entry[V any] struct {
	key   string
	value V
}

// newDictionary returns a dictionary with room for some keys. It grows when there are more.
func newDictionary[V any](keys int) dictionary[V] {
	d := dictionary[V]{seed: maphash.MakeSeed(), entries: make([]entry[V], 0, keys)}
	d.spread(keys)
	return d
}

// spread makes slots for a number of keys, and enters those that there are.
func (d *dictionary[V]) spread(keys int) {
	size := 1 << bits.Len(uint(max(2*keys-1, 1)))
	d.slots, d.low = make([]uint32, size), uint32(size-1)
	for i := range d.entries {
		d.enter(maphash.String(d.seed, d.entries[i].key), i)
	}
}

func (d *dictionary[V]) enter(hash uint64, n int) {
	i := uint32(hash) & d.low
	for d.slots[i] != 0 {
		i = (i + 1) & d.low
	}
	d.slots[i] = uint32(hash>>32)&^d.low | uint32(n+1)
}

// put sets the value of a key, and returns the one before: the zero V when there was none.
func (d *dictionary[V]) put(key string, v V) (old V) {
	if i := d.find([]byte(key)); i >= 0 {
		old, d.entries[i].value = d.entries[i].value, v
		return old
	}
	d.entries = append(d.entries, entry[V]{key, v})
	if 2*len(d.entries) > len(d.slots) {
		d.spread(len(d.entries))
	} else {
		d.enter(maphash.String(d.seed, key), len(d.entries)-1)
	}
	return old
}

// find returns the place of a key in entries; -1 for none.
func (d *dictionary[V]) find(key []byte) int {
	if len(d.entries) == 0 {
		return -1
	}
	hash := maphash.Bytes(d.seed, key)
	slots, low := d.slots, d.low
	for i := uint32(hash); ; i++ {
		s := slots[i&low]
		if s == 0 {
			return -1
		}
		if (s^uint32(hash>>32))&^low == 0 {
			if n := int(s&low) - 1; d.entries[n].key == string(key) {
				return n
			}
		}
	}
}

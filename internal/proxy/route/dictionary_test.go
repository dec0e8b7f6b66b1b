package route

import (
	"fmt"
	"testing"
)

// A dictionary is a map, whatever its size was thought to be.
func TestDictionary(t *testing.T) {
	for _, expected := range []int{0, 1, 2, 3, 1000} {
		d := newDictionary[int](expected)
		if d.find([]byte("k0")) >= 0 {
			t.Errorf("room for %d: a key is found that is not there", expected)
		}
		want := map[string]int{}
		for i := range 1000 {
			key := fmt.Sprintf("k%d", i*7%500)
			if old := d.put(key, i+1); old != want[key] {
				t.Fatalf("room for %d: %s was %d, want %d", expected, key, old, want[key])
			}
			want[key] = i + 1
		}
		if len(d.entries) != len(want) {
			t.Errorf("room for %d: %d entries, want %d", expected, len(d.entries), len(want))
		}
		for key, v := range want {
			if at := d.find([]byte(key)); at < 0 || d.entries[at].key != key || d.entries[at].value != v {
				t.Errorf("room for %d: %s is not found, or with another value", expected, key)
			}
		}
		for _, key := range []string{"", "k", "k500", "k0 "} {
			if d.find([]byte(key)) >= 0 {
				t.Errorf("room for %d: %q is found and is not there", expected, key)
			}
		}
		if 2*len(d.entries) > len(d.slots) {
			t.Errorf("room for %d: %d entries in %d slots", expected, len(d.entries), len(d.slots))
		}
	}
	var zero dictionary[int]
	if zero.find([]byte("a")) >= 0 {
		t.Error("something is in nothing")
	}
}

package main

import "testing"

// What is posted is what is read next, however many products there were.
func TestRatingsArePut(t *testing.T) {
	st := &store{ratings: map[int]map[string]int{}}
	for id := range most + 10 {
		for stars := range 2 {
			st.put(id, map[string]int{"reader": stars})
			if got := st.get(id)["reader"]; got != stars {
				t.Fatalf("product %d has %d stars, want %d", id, got, stars)
			}
		}
	}
	if len(st.ratings) > most {
		t.Errorf("%d products are kept", len(st.ratings))
	}
}

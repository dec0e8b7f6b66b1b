package balance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/malha-mesh/malha/internal/plan"
)

var hashers = []plan.Balancer{plan.RingHash, plan.Maglev}

func named1(ids []int) []Member[int] {
	m := make([]Member[int], len(ids))
	for i, id := range ids {
		m[i] = Member[int]{Value: id, Key: HashString(fmt.Sprintf("10.0.%d.%d:8080", id/256, id%256))}
	}
	return m
}

func upTo(n int) []int {
	ids := make([]int, n)
	for i := range ids {
		ids[i] = i
	}
	return ids
}

func meet(p *Picker[int], key string) int {
	i, _ := p.Pick(&Draw[int]{Random: rand.Uint64(), Hash: HashString(key), Hashed: true})
	return i
}

// When one of n leaves, at most 1.5 × 1/n of the keys move, and its own all do.
func TestFewKeysMove(t *testing.T) {
	const keys = 10000
	for _, policy := range hashers {
		for _, n := range []int{2, 3, 4, 5, 8, 10, 33, 60, 200, 1000} {
			if policy == plan.Maglev && n > 200 {
				continue // its largest table of its own choice is not large enough
			}
			before := New(Options{Policy: policy}, named1(upTo(n)))
			where := make([]int, keys)
			for k := range where {
				where[k] = meet(before, fmt.Sprint("user-", k))
			}
			tries := []int{0, n / 2, n - 1}
			if n > 64 {
				tries = tries[1:2]
			}
			for _, gone := range tries {
				rest := slices.DeleteFunc(upTo(n), func(i int) bool { return i == gone })
				after := New(Options{Policy: policy}, named1(rest))
				moved := 0
				for k, was := range where {
					is := meet(after, fmt.Sprint("user-", k))
					if is == gone {
						t.Fatalf("%s: a key is still at the one that left", policy)
					}
					if is != was {
						moved++
					}
				}
				if most := 1.5 * keys / float64(n); float64(moved) > most {
					t.Errorf("%s, 1 of %d leaves: %d of %d keys move, at most %.0f may", policy, n, moved, keys, most)
				}
			}
		}
	}
}

// When one is put aside, only its keys move, and they are spread over all others; when it is back, so are they.
func TestKeysOfOneThatIsAside(t *testing.T) {
	for _, policy := range hashers {
		all := New(Options{Policy: policy}, named1(upTo(10)))
		sick := named1(upTo(10))
		sick[3].Aside = true
		less := Again(Options{Policy: policy}, sick, all)
		if &less.groups[0].named[0] != &all.groups[0].named[0] {
			t.Errorf("%s: the table was built again", policy)
		}
		took := make(map[int]int)
		for k := range 10000 {
			key := fmt.Sprint("user-", k)
			was, is := meet(all, key), meet(less, key)
			switch {
			case is == 3:
				t.Fatalf("%s: picked the one that is aside", policy)
			case was != 3 && is != was:
				t.Fatalf("%s: a key of %d moved to %d", policy, was, is)
			case was == 3:
				took[is]++
			}
			if is != meet(less, key) {
				t.Fatalf("%s: a key has two places", policy)
			}
		}
		if len(took) != 9 {
			t.Errorf("%s: the keys of one went to %d others, want 9", policy, len(took))
		}
		back := Again(Options{Policy: policy}, named1(upTo(10)), less)
		for k := range 1000 {
			if key := fmt.Sprint("user-", k); meet(back, key) != meet(all, key) {
				t.Fatalf("%s: a key did not come back", policy)
			}
		}
	}
}

// Weights and sizes are what the shares of the tables follow.
func TestTablesFollowWeights(t *testing.T) {
	weights := []uint32{1, 2, 3, 4, 5, 5}
	for _, tt := range []struct {
		policy plan.Balancer
		hash   *plan.Hash
		within float64
	}{
		{plan.RingHash, nil, 0.2}, {plan.RingHash, &plan.Hash{RingSize: 65536}, 0.05},
		{plan.Maglev, nil, 0.04}, {plan.Maglev, &plan.Hash{MaglevSize: 1009}, 0.05},
	} {
		m := named1(upTo(len(weights)))
		for i := range m {
			m[i].Weight = weights[i]
		}
		p := New(Options{Policy: tt.policy, Hash: tt.hash}, m)
		counts := make([]int, len(weights))
		const draws = 100000
		// The hashes are spread evenly, so that only the table is tested.
		for k := range uint64(draws) {
			i, _ := p.Pick(&Draw[int]{Hash: k, Hashed: true})
			counts[i]++
		}
		for i, w := range weights {
			want := float64(draws) * float64(w) / 20
			if d := float64(counts[i])/want - 1; d > tt.within || d < -tt.within {
				t.Errorf("%s %+v: weight %d has %d of %d, %+.1f %%", tt.policy, tt.hash, w, counts[i], draws, 100*d)
			}
		}
	}
}

func TestSizesOfTables(t *testing.T) {
	for _, tt := range []struct {
		n    int
		size uint32
		want uint64
	}{
		{1, 0, 256}, {4, 0, 256}, {10, 0, 256}, {10, 100, 128}, {4, 1 << 20, 1 << 18}, {8, 1 << 31, 1 << 20}, {1 << 24, 0, 1}, {0, 0, 256},
	} {
		if got := pointsOf(tt.n, tt.size); got != tt.want {
			t.Errorf("a ring of %d members, at least %d: %d points each, want %d", tt.n, tt.size, got, tt.want)
		}
	}
	for _, tt := range []struct {
		n    int
		size uint32
		want uint64
	}{{10, 0, 65537}, {64, 0, 65537}, {65, 0, 655373}, {100, 65537, 65537}, {3, 7, 7}, {3, 1 << 31, mostMaglev}, {3, 1, 2}} {
		if got := entriesOf(tt.n, tt.size); got != tt.want {
			t.Errorf("a Maglev table of %d members, size %d: %d entries, want %d", tt.n, tt.size, got, tt.want)
		}
	}
	all := []named{{1, 1}, {2, 1}, {3, 2}}
	if n := len(newRing(all, 0).points); n != 4*256 {
		t.Errorf("a ring of weight 4 has %d points", n)
	}
	if n := len(newMaglev(all, 7).entries); n != 7 {
		t.Errorf("a Maglev table of 7 has %d entries", n)
	}
	newRing(nil, 0) // nobody to ask it about
	newMaglev(nil, 0)
}

// Every proxy has the same table, whatever the order in which it learned of the members.
func TestTablesDontDependOnOrder(t *testing.T) {
	for _, policy := range hashers {
		a := New(Options{Policy: policy, Seed: 1}, named1([]int{0, 1, 2, 3, 4}))
		b := New(Options{Policy: policy, Seed: 2}, named1([]int{3, 1, 4, 2, 0}))
		for k := range 5000 {
			if key := fmt.Sprint(k); meet(a, key) != meet(b, key) {
				t.Fatalf("%s: two proxies send one key to two endpoints", policy)
			}
		}
	}
}

// A table is built again when its size changes.
func TestTableOfAnotherSize(t *testing.T) {
	for _, policy := range hashers {
		a := New(Options{Policy: policy}, named1(upTo(3)))
		b := Again(Options{Policy: policy, Hash: &plan.Hash{RingSize: 1 << 14, MaglevSize: 1009}}, named1(upTo(3)), a)
		if a.groups[0].table == b.groups[0].table {
			t.Errorf("%s: the table of another size was kept", policy)
		}
	}
}

func TestRetriesOfAKeyAreSteady(t *testing.T) {
	for _, policy := range hashers {
		p := New(Options{Policy: policy}, named1(upTo(8)))
		for k := range 100 {
			d := Draw[int]{Random: rand.Uint64(), Hash: HashString(fmt.Sprint(k)), Hashed: true}
			first, _ := p.Pick(&d)
			d.Avoid = []int{first}
			d.Random = rand.Uint64()
			second, _ := p.Pick(&d)
			d.Random = rand.Uint64()
			if again, _ := p.Pick(&d); again != second || second == first {
				t.Fatalf("%s: the retries of one key went to %d and %d, after %d", policy, second, again, first)
			}
		}
	}
}

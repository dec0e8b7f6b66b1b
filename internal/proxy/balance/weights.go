package balance

import "math/bits"

// alias draws from a weighted set in constant time (Walker's alias method; Vose, "A Linear Algorithm for Generating
// Random Numbers with a Given Distribution", 1991).
type alias []column

// column holds index i itself, up to a share of 2^64, and another index above it.
type column struct {
	keep  uint64 // all ones: always i
	other int32
}

func newAlias(weights []uint32) alias {
	n := len(weights)
	var total uint64
	for _, w := range weights {
		total += uint64(w)
	}
	t := make(alias, n)
	// Shares are weight × n, against total as the height of a column: integers, so that nothing is lost to rounding.
	share := make([]uint64, n)
	var small, large []int32
	for i, w := range weights {
		share[i] = uint64(w) * uint64(n)
		if share[i] < total {
			small = append(small, int32(i))
		} else {
			large = append(large, int32(i))
		}
	}
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		keep, _ := bits.Div64(share[s], 0, total) // share < total: the quotient fits
		t[s] = column{keep: keep, other: l}
		share[l] -= total - share[s]
		if share[l] < total {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	for _, i := range small {
		t[i] = column{keep: ^uint64(0), other: i}
	}
	for _, i := range large {
		t[i] = column{keep: ^uint64(0), other: i}
	}
	return t
}

// pick splits one random number: the high half of the product chooses the column, the low half the level in it.
func (t alias) pick(rnd uint64) int {
	i, level := bits.Mul64(rnd, uint64(len(t)))
	if level < t[i].keep {
		return int(i)
	}
	return int(t[i].other)
}

// stride is weighted round robin without state but a turn number: each generation visits every index once, and one
// with weight w of maxStride is taken in w of maxStride generations, evenly spread
// (grpc-go balancer/weightedroundrobin/scheduler.go, staticStrideScheduler; gRFC A58).
type stride []uint64

// maxStride is the scaled weight of the heaviest index: it is taken in every generation.
const maxStride = 1<<16 - 1

func newStride(weights []uint32) stride {
	var heaviest uint64
	for _, w := range weights {
		heaviest = max(heaviest, uint64(w))
	}
	s := make(stride, len(weights))
	for i, w := range weights {
		s[i] = max((uint64(w)*maxStride+heaviest/2)/heaviest, 1)
	}
	return s
}

// at returns the index that a turn visits, and whether it is taken.
func (s stride) at(turn uint64) (int, bool) {
	n := uint64(len(s))
	i, generation := turn%n, turn/n
	w := s[i]
	// The offset keeps indexes of the same weight from being passed over in the same generations.
	const offset = maxStride / 2
	if (w*generation+i*offset)%maxStride < maxStride-w {
		return 0, false
	}
	return int(i), true
}

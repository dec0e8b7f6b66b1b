package upstream

import (
	"sync"
	"time"
)

// windowParts is how many parts a window has: it slides by one at a time.
const windowParts = 10

// window counts two kinds of things over the last while.
type window struct {
	length time.Duration

	mu    sync.Mutex
	parts [windowParts][2]uint32
	at    int64 // number of the part that counts now
}

func newWindow(length time.Duration) *window { return &window{length: length} }

// add counts, and returns the sums over the window. now is of any clock.
func (w *window) add(now time.Time, first, second uint32) (a, b uint32) {
	at := now.UnixNano() / max(int64(w.length)/windowParts, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if at-w.at >= windowParts || at < w.at {
		clear(w.parts[:])
		w.at = at
	}
	for w.at < at {
		w.at++
		w.parts[w.at%windowParts] = [2]uint32{}
	}
	p := &w.parts[at%windowParts]
	p[0] += first
	p[1] += second
	for i := range w.parts {
		a += w.parts[i][0]
		b += w.parts[i][1]
	}
	return a, b
}

// clear forgets.
func (w *window) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.parts[:])
}

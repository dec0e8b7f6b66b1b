package upstream

import "sync"

// turns divides bursts of connecting. A client whose hundred streams all need a connection would otherwise hold the processor
// from the first connect to the last before the bytes of any other client are noticed (conn.Poll).
//
// After every dialsAtOnce dials, whoever wants to dial waits in line until others had their turn. What is counted is dials that
// begin, not those that wait for an answer: nobody waits for a round trip. And who waits in line may be given a connection
// that comes back in the meantime, so that where answers are quick a burst needs only a few.
type turns struct {
	set *Set

	mu     sync.Mutex
	begun  int       // dials since the last look
	giving bool      // give runs
	pools  []*h1Pool // that wait, each once, the one whose turn it is first
}

// dialsAtOnce is how many dials begin at once. One costs 60 to 100 µs, without TLS, and a look 3.
const dialsAtOnce = 2

// take reports whether a pool may dial now. If not, the pool will be called (h1Pool.turn): once for each time that it asked.
func (t *turns) take(p *h1Pool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.giving {
		if p.turns++; p.turns == 1 {
			t.pools = append(t.pools, p)
		}
		return false
	}
	if t.begun++; t.begun >= dialsAtOnce {
		t.begun = 0
		t.giving = t.set.spawn(t.give) // not when the Set is closed: nobody dials then
	}
	return true
}

// due returns how often a pool will still be called.
func (t *turns) due(p *h1Pool) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return p.turns
}

// give calls the pools that wait until none does.
func (t *turns) give() {
	for {
		t.set.conn.Poll.Look()
		for n := 0; n < dialsAtOnce; {
			p := t.next()
			if p == nil {
				return
			}
			if p.turn() {
				n++
			}
		}
	}
}

// next returns the pool whose turn it is. When it returns nil, giving has ended.
func (t *turns) next() *h1Pool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.pools) == 0 {
		t.giving, t.pools = false, nil
		return nil
	}
	p := t.pools[0]
	t.pools[0] = nil
	t.pools = t.pools[1:]
	if p.turns--; p.turns > 0 {
		t.pools = append(t.pools, p) // after the others
	}
	return p
}

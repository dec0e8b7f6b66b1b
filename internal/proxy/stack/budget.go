package stack

import (
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
)

// budget bounds retries to a share of the requests of the last while (Linkerd's retry budget): retries may be at most
// ratio × requests + minPerSecond × ttl over the last ttl. It keeps the while in slots, and takes no lock: a count that
// is lost when a slot is turned over does no harm.
//
// A budget that nobody asked for is also held to whether retries help: once many have failed as the first tries did, and next
// to none was better, there are no more until these are forgotten. Where several hops retry, each multiplies what the ones
// before it send, and a share of the requests alone would still let the last hop have (1 + ratio)^hops of them.
type budget struct {
	stops   bool // when retries don't help
	ratio   float64
	floor   float64 // retries that are always allowed within ttl
	slotLen int64   // nanoseconds
	slots   [budgetSlots]budgetSlot
}

const budgetSlots = 10

type budgetSlot struct {
	turn              atomic.Int64
	requests, retries atomic.Uint32
	helped, vain      atomic.Uint32 // retries, by how they ended
}

// Bounds of retries that don't help.
const (
	vainMost  = 20 // in the last while, before anything is concluded from them
	vainShare = 10 // of so many, one must help
)

func (b *budget) init(p plan.RetryBudget) {
	if p == (plan.RetryBudget{}) {
		p = plan.RetryBudget{Ratio: 0.2, MinPerSecond: 10}
		b.stops = true
	}
	ttl := p.TTL.D()
	if ttl <= 0 {
		ttl = 10 * time.Second
	}
	b.ratio = p.Ratio
	b.floor = float64(p.MinPerSecond) * ttl.Seconds()
	b.slotLen = max(int64(ttl)/budgetSlots, 1)
}

func (b *budget) slot(now time.Time) (*budgetSlot, int64) {
	turn := now.UnixNano() / b.slotLen
	s := &b.slots[turn%budgetSlots]
	if was := s.turn.Load(); was != turn && s.turn.CompareAndSwap(was, turn) {
		s.requests.Store(0)
		s.retries.Store(0)
		s.helped.Store(0)
		s.vain.Store(0)
	}
	return s, turn
}

// request notes a request that might be retried.
func (b *budget) request(now time.Time) {
	s, _ := b.slot(now)
	s.requests.Add(1)
}

// ended notes how a retry ended.
func (b *budget) ended(now time.Time, helped bool) {
	s, _ := b.slot(now)
	if helped {
		s.helped.Add(1)
	} else {
		s.vain.Add(1)
	}
}

// retry reports whether one more retry is within the budget, and notes it.
func (b *budget) retry(now time.Time) bool {
	s, turn := b.slot(now)
	var requests, retries, helped, vain uint64
	for i := range b.slots {
		o := &b.slots[i]
		if turn-o.turn.Load() < budgetSlots {
			requests += uint64(o.requests.Load())
			retries += uint64(o.retries.Load())
			helped += uint64(o.helped.Load())
			vain += uint64(o.vain.Load())
		}
	}
	if b.stops && vain >= vainMost && helped*vainShare < helped+vain {
		return false
	}
	if float64(retries+1) > b.ratio*float64(requests)+b.floor {
		return false
	}
	s.retries.Add(1)
	return true
}

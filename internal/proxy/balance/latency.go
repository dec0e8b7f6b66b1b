package balance

import (
	"math"
	"sync/atomic"
	"time"
)

// Of peak-EWMA, as Linkerd has them (default-rtt and decay of its balancer).
const (
	DefaultLatency = 30 * time.Millisecond
	latencyDecay   = 10 * time.Second
)

// Latency is a moving average of how long an endpoint takes that follows peaks at once and forgets them slowly: it believes
// bad news, and wants to see good news for a while. Left alone it goes towards nothing, so that an endpoint that was slow is
// tried again. It is safe for concurrent use; two that observe at once may lose one of the two.
type Latency struct {
	average atomic.Uint64 // float64 bits, nanoseconds
	at      atomic.Int64  // when that was
}

// Begin makes an endpoint look as one that takes DefaultLatency.
func (l *Latency) Begin(now int64) {
	l.average.Store(math.Float64bits(float64(DefaultLatency)))
	l.at.Store(now)
}

// Observe notes one more exchange. now is in nanoseconds of any clock, the same for all calls.
func (l *Latency) Observe(took time.Duration, now int64) {
	old, since := math.Float64frombits(l.average.Load()), l.at.Load()
	d := float64(max(took, 0))
	if d <= old && now > since {
		w := math.Exp(-float64(now-since) / float64(latencyDecay))
		d = old*w + d*(1-w)
	} else if d <= old {
		d = old
	}
	l.average.Store(math.Float64bits(d))
	l.at.Store(max(now, since))
}

// At returns the average as of now.
func (l *Latency) At(now int64) float64 {
	old, since := math.Float64frombits(l.average.Load()), l.at.Load()
	if now <= since {
		return old
	}
	return old * math.Exp(-float64(now-since)/float64(latencyDecay))
}

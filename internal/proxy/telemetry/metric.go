package telemetry

import (
	"sync/atomic"
	"time"
)

// Counter only grows. The zero Counter is ready.
type Counter struct{ v atomic.Uint64 }

// Inc adds one.
func (c *Counter) Inc() { c.v.Add(1) }

// Add adds n.
func (c *Counter) Add(n uint64) { c.v.Add(n) }

// Value returns the sum.
func (c *Counter) Value() uint64 { return c.v.Load() }

// Gauge goes up and down. The zero Gauge is ready.
type Gauge struct{ v atomic.Int64 }

// Set replaces the value.
func (g *Gauge) Set(v int64) { g.v.Store(v) }

// Add adds n, which may be negative.
func (g *Gauge) Add(n int64) { g.v.Add(n) }

// Value returns the value.
func (g *Gauge) Value() int64 { return g.v.Load() }

// bounds are the upper bounds of Envoy's histograms, which Istio's duration and size histograms use, for durations in
// milliseconds and sizes in bytes.
// Source: Envoy, HistogramSettingsImpl::defaultBuckets.
var bounds = [...]float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000, 3_600_000}

// histogram counts by bounds. Its sum is in the unit that was observed, its count is the sum of the buckets.
type histogram struct {
	buckets [len(bounds) + 1]atomic.Uint64
	sum     atomic.Uint64 // microseconds, or bytes
}

// duration observes a duration, in milliseconds.
func (h *histogram) duration(d time.Duration) {
	us := max(d.Microseconds(), 0)
	h.buckets[bucket(float64(us)/1000)].Add(1)
	h.sum.Add(uint64(us))
}

// size observes a number of bytes.
func (h *histogram) size(n uint64) {
	h.buckets[bucket(float64(n))].Add(1)
	h.sum.Add(n)
}

func bucket(v float64) int {
	for i, b := range bounds {
		if v <= b {
			return i
		}
	}
	return len(bounds)
}

// linkerdBounds are the upper bounds of Linkerd's latency histograms, in milliseconds.
// Source: linkerd2-proxy, metrics/src/histogram/latency.
var linkerdBounds = [...]float64{1, 2, 3, 4, 5, 10, 20, 30, 40, 50, 100, 200, 300, 400, 500, 1000, 2000, 3000, 4000, 5000, 10_000, 20_000, 30_000, 40_000, 50_000}

// latency is a histogram with Linkerd's bounds.
type latency struct {
	buckets [len(linkerdBounds) + 1]atomic.Uint64
	sum     atomic.Uint64 // microseconds
}

func (h *latency) duration(d time.Duration) {
	us := max(d.Microseconds(), 0)
	i, ms := 0, float64(us)/1000
	for i < len(linkerdBounds) && ms > linkerdBounds[i] {
		i++
	}
	h.buckets[i].Add(1)
	h.sum.Add(uint64(us))
}

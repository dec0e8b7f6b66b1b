package proxy

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

const (
	// tidyEvery is how often the janitor looks. A look is one getrusage and one read of the runtime's counters.
	// A burst is over after at most two looks.
	tidyEvery = time.Second

	// tidyCost bounds what collections may cost where bursts and pauses take turns: 1/100 of one processor.
	tidyCost = 100

	// tidyBusy is the share of one processor from which on the proxy has better things to do than to collect: 1/50.
	tidyBusy = 50

	// tidyWorth is the least memory that a collection is made for; the larger the heap, the dearer a collection, so that
	// it is an eighth of what is held when that is more.
	tidyWorth = 1 << 20

	// tidyAgain is how long after a collection there is one more: idle connections to applications, and what else a burst
	// left that is closed when its time is over, are garbage by then, which none of the counters shows.
	tidyAgain = 8 * time.Second

	// tidyGone is how many goroutines or connections less are worth a collection: each had a stack or buffers.
	tidyGone = 64
)

// memUse is what the janitor decides by.
type memUse struct {
	cpu     time.Duration // of the process since its start
	held    uint64        // bytes that the runtime has from the system
	holders uint64        // goroutines and open connections
	plans   uint64        // that were put in force
}

// janitor gives memory back once a burst is over.
//
// The hot path allocates nothing, so a proxy that is idle makes no garbage, and without garbage there is no collection
// for two minutes: the buffers and stacks of the burst would stay resident until long after it. So would what reading a plan
// needed, which is several times the plan.
type janitor struct {
	last  memUse        // at the look before
	floor memUse        // after the last collection; holders: the most since then
	rest  time.Duration // until the last collection is paid off
	again time.Duration // until the one after it; 0: none
}

// look says whether now is the time to collect: the proxy did next to nothing since the last look, and something has
// piled up, or ended, since the last collection.
func (j *janitor) look(u memUse, since time.Duration) bool {
	quiet := u.cpu-j.last.cpu < since/tidyBusy
	j.last = u
	j.rest = max(0, j.rest-since)
	j.floor.holders = max(j.floor.holders, u.holders)
	due := j.again > 0 && j.again <= since
	if j.again > 0 && !due {
		j.again -= since
	}
	if !quiet || j.rest > 0 {
		return false // what is due stays due
	}
	due = due || u.plans != j.floor.plans
	worth := max(tidyWorth, j.floor.held/8)
	if u.held >= j.floor.held+worth || u.holders+tidyGone <= j.floor.holders {
		j.again = tidyAgain
		return true
	}
	if due {
		j.again = 0
	}
	return due
}

// collected takes note of what a collection left, and of what it took.
func (j *janitor) collected(u memUse) {
	j.rest = (u.cpu - j.last.cpu) * tidyCost
	j.last, j.floor = u, u
}

// tidy runs the janitor until ctx is over.
func tidy(ctx context.Context, rec *telemetry.Internals) {
	samples := tidySamples()
	var j janitor
	t := time.NewTicker(tidyEvery)
	defer t.Stop()
	before := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := time.Now()
		if j.look(measure(samples, rec), now.Sub(before)) {
			runtime.GC() // what sync.Pools hold outlives one collection: FreeOSMemory makes the second
			debug.FreeOSMemory()
			j.collected(measure(samples, rec))
			now = time.Now()
		}
		before = now
	}
}

// tidySamples are the counters that measure reads, in its order.
func tidySamples() []metrics.Sample {
	return []metrics.Sample{
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
		{Name: "/sched/goroutines:goroutines"},
	}
}

func measure(samples []metrics.Sample, rec *telemetry.Internals) memUse {
	metrics.Read(samples)
	u := memUse{
		held:    samples[0].Value.Uint64() - samples[1].Value.Uint64(),
		holders: samples[2].Value.Uint64() + rec.ConnectionsOpened.Value() - rec.ConnectionsClosed.Value(),
		plans:   rec.ConfigApplied.Value(),
	}
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err == nil {
		u.cpu = time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	return u
}

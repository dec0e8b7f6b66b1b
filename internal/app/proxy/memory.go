package proxy

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
)

// tune sets how much of the machine the Go runtime takes, and returns how many bytes of memory it may have; 0: any number.
//
// The hot path allocates nothing, so a small heap costs no CPU time: the collector is made to run from 2 MB on instead of
// 4 (GOGC 50), and where the cgroup has a memory limit the runtime returns memory before it is reached. GOGC, GOMEMLIMIT
// and GOMAXPROCS from the environment stay in force.
func tune(getenv func(string) string, concurrency int, role plan.Role) (memory int64) {
	if getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	if limit := cgroupLimit("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"); limit > 0 && getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit / 10 * 9)
	}
	switch {
	case concurrency > 0:
		runtime.GOMAXPROCS(concurrency)
	case role != plan.Gateway && getenv("GOMAXPROCS") == "":
		runtime.GOMAXPROCS(1)
	}
	if memory = debug.SetMemoryLimit(-1); memory == math.MaxInt64 {
		return 0
	}
	return memory
}

// cgroupLimit reads the first of files that is there, memory.max of cgroup v2 or memory.limit_in_bytes of v1; 0 means no limit.
func cgroupLimit(files ...string) int64 {
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		if err != nil || n > 1<<60 { // "max", and what v1 says for it
			return 0
		}
		return n
	}
	return 0
}

// Shares of the memory limit, in percent. The heap grows by at most half between two collections (GOGC 50), so that the first
// look that finds more than shortAbove comes before the limit.
const (
	shortAbove = 60 // nothing new is begun
	shortBelow = 50 // until there is so little again
	shedAbove  = 75 // and one of shedPart connections is ended
	endAbove   = 90 // all of them are: their clients connect again, to a proxy that lives

	shedPart = 4

	shortLook = time.Second            // how often the watch looks while memory is short, and the collector does not run by itself
	shedLook  = 100 * time.Millisecond // and while connections are being ended, which takes a moment
)

// memoryWatch decides what has to be given up for a process to stay within its limit.
type memoryWatch struct {
	limit uint64
	short bool
	ended time.Time // when connections were last ended
}

// look is told how much is in use, and says whether one of every so many connections has to be ended; 0: none. A moment passes
// before there are more, in which what the last ones had comes free.
func (w *memoryWatch) look(used uint64, now time.Time) (every int) {
	percent := used * 100 / w.limit
	switch {
	case percent > shortAbove:
		w.short = true
	case percent < shortBelow:
		w.short = false
	}
	switch {
	case percent > endAbove:
		every = 1
	case percent > shedAbove && now.Sub(w.ended) > shedLook/2:
		every = shedPart
	default:
		return 0
	}
	w.ended = now
	return every
}

// watchMemory keeps the process within limit until ctx is over. It looks after each collection, when the runtime knows what is
// really in use: a process that does not allocate is not looked at, and one that is close to its end is looked at often.
func (a *App) watchMemory(ctx context.Context, m *conn.Memory, limit int64) {
	collected := make(chan struct{}, 1)
	afterCollections(ctx, collected)
	samples := inUseSamples()
	w := memoryWatch{limit: uint64(limit)}
	again := time.NewTimer(shortLook)
	defer again.Stop()
	again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-collected:
		case <-again.C:
			runtime.GC() // who refuses everything makes no garbage, and would never find out that there is room again
		}
		before := w.short
		every := w.look(inUse(samples), time.Now())
		m.SetShort(w.short)
		switch {
		case w.short && !before:
			a.log.Warn("memory is short: new connections and requests are refused", "limit", limit)
		case before && !w.short:
			a.log.Info("memory is no longer short", "limit", limit)
		}
		if every > 0 {
			if n := a.proxy.Shed(every); n > 0 {
				a.log.Warn("connections were ended: there is no memory for them", "ended", n)
			}
		}
		switch {
		case time.Since(w.ended) < shortLook:
			again.Reset(shedLook)
		case w.short:
			again.Reset(shortLook)
		default:
			again.Stop()
		}
	}
}

// afterCollections sends after each collection, unless the one before has not been noticed yet, until ctx is over.
func afterCollections(ctx context.Context, c chan<- struct{}) {
	type mark struct{ _ *byte } // with a pointer, so that it does not share its block, and its end, with other small things
	runtime.AddCleanup(&mark{}, func(ctx context.Context) {
		if ctx.Err() != nil {
			return
		}
		afterCollections(ctx, c) // before it is told, or whoever makes the next collection at once is ahead of the mark
		select {
		case c <- struct{}{}:
		default:
		}
	}, ctx)
}

// inUseSamples are the counters that inUse reads, in its order.
func inUseSamples() []metrics.Sample {
	return []metrics.Sample{
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/gc/heap/live:bytes"},
	}
}

// inUse is what of the process's memory a collection can't get back: all that it has from the system, less what is free, and
// with the objects that the last collection found alive instead of all those that there are.
func inUse(samples []metrics.Sample) uint64 {
	metrics.Read(samples)
	v := func(i int) uint64 { return samples[i].Value.Uint64() }
	return v(0) - v(1) - v(2) - v(3) + v(4)
}

package telemetry

import (
	"bytes"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"syscall"
	"time"
)

// started is when this program began, near enough.
var started = time.Now()

// writeProcess writes what every Prometheus client library says about its process, for the dashboards that read it.
func writeProcess(w *Writer) {
	w.Family("process_start_time_seconds", "gauge", "When the process started, Unix seconds.")
	w.Float("process_start_time_seconds", float64(started.UnixMilli())/1000)
	var ru syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &ru) == nil {
		w.Family("process_cpu_seconds_total", "counter", "User and system CPU time.")
		w.Float("process_cpu_seconds_total", float64(ru.Utime.Nano()+ru.Stime.Nano())/1e9)
	}
	if st, ok := readStat(); ok {
		w.Family("process_resident_memory_bytes", "gauge", "Resident memory.")
		w.Int("process_resident_memory_bytes", st.resident)
		w.Family("process_virtual_memory_bytes", "gauge", "Virtual memory.")
		w.Int("process_virtual_memory_bytes", st.virtual)
		w.Family("go_threads", "gauge", "Threads of the operating system.")
		w.Int("go_threads", st.threads)
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		w.Family("process_open_fds", "gauge", "Open file descriptors.")
		w.Int("process_open_fds", int64(len(fds)-1)) // one is of the listing itself
	}
	var most syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &most) == nil {
		w.Family("process_max_fds", "gauge", "File descriptors that may be open.")
		w.Uint("process_max_fds", most.Cur)
	}
	w.Family("go_info", "gauge", "Version of Go, always 1.")
	w.Uint("go_info", 1, Label{"version", runtime.Version()})
	w.Family("go_goroutines", "gauge", "Goroutines that exist.")
	w.Int("go_goroutines", int64(runtime.NumGoroutine()))
	writeRuntime(w)
}

// writeRuntime writes what Go client libraries say about memory, under their names, from runtime/metrics: runtime.ReadMemStats
// would stop everything that runs.
func writeRuntime(w *Writer) {
	from := [...]metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"},
		{Name: "/memory/classes/total:bytes"}, {Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/goal:bytes"},
	}
	metrics.Read(from[:])
	var v [len(from)]uint64
	for i := range from {
		if from[i].Value.Kind() == metrics.KindUint64 {
			v[i] = from[i].Value.Uint64()
		}
	}
	for _, m := range [...]struct {
		name, kind, help string
		value            uint64
	}{
		{"go_memstats_alloc_bytes", "gauge", "Heap in objects, which may be garbage already.", v[0]},
		{"go_memstats_alloc_bytes_total", "counter", "Heap that was ever allocated.", v[4]},
		{"go_memstats_heap_alloc_bytes", "gauge", "As go_memstats_alloc_bytes.", v[0]},
		{"go_memstats_heap_inuse_bytes", "gauge", "Heap in spans that have objects.", v[0] + v[1]},
		{"go_memstats_stack_inuse_bytes", "gauge", "Stacks of goroutines.", v[2]},
		{"go_memstats_next_gc_bytes", "gauge", "Heap at which the next collection ends.", v[5]},
		{"go_memstats_sys_bytes", "gauge", "Memory that Go has from the operating system.", v[3]},
	} {
		w.Family(m.name, m.kind, m.help)
		w.Uint(m.name, m.value)
	}
}

// stat is of /proc/self/stat (proc(5)).
type stat struct{ threads, virtual, resident int64 }

func readStat() (st stat, ok bool) {
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return st, false
	}
	// The second field is the program's name in parentheses, with anything in it; the third comes after the last of these.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 22 {
		return st, false
	}
	for _, f := range [...]struct {
		n  int // as proc(5) counts, from 1
		to *int64
	}{{20, &st.threads}, {23, &st.virtual}, {24, &st.resident}} {
		if *f.to, err = strconv.ParseInt(string(fields[f.n-3]), 10, 64); err != nil {
			return st, false
		}
	}
	st.resident *= int64(os.Getpagesize())
	return st, true
}

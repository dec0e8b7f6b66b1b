package telemetry

import (
	"bytes"
	"os"
	"runtime"
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
	if rss, ok := residentBytes(); ok {
		w.Family("process_resident_memory_bytes", "gauge", "Resident memory.")
		w.Int("process_resident_memory_bytes", rss)
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		w.Family("process_open_fds", "gauge", "Open file descriptors.")
		w.Int("process_open_fds", int64(len(fds)-1)) // one is of the listing itself
	}
	w.Family("go_goroutines", "gauge", "Goroutines that exist.")
	w.Int("go_goroutines", int64(runtime.NumGoroutine()))
}

// residentBytes reads the second field of /proc/self/statm (proc(5)), in pages.
func residentBytes() (int64, bool) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, false
	}
	fields := bytes.Fields(b)
	if len(fields) < 2 {
		return 0, false
	}
	pages, err := strconv.ParseInt(string(fields[1]), 10, 64)
	return pages * int64(os.Getpagesize()), err == nil
}

package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A sample is what one round measured of one subject, by metric.
type sample map[metric]float64

// metric names a figure of a sample.
type metric string

// The metrics, with their units.
const (
	cpu        metric = "CPU µs/request"
	cpuPerGB   metric = "CPU ms/GB"
	rate       metric = "requests/s"
	handshakes metric = "handshakes/s"
	perCore    metric = "handshakes/CPU-s"
	throughput metric = "GB/s"
	p50        metric = "p50 µs"
	p99        metric = "p99 µs"
	p999       metric = "p99.9 µs"
	rss        metric = "RSS MB"
	private    metric = "private MB"
	foreign    metric = "others %"
	startup    metric = "ms"
)

// cpuTime returns the CPU time of a process since its start, of all its threads, those that ended included: the kernel's
// CLOCK_PROCESS_CPUTIME_ID of that process, which is the scheduler's sum of run times in nanoseconds. The clock of another
// process is (~pid << 3) | 2 (clock_getcpuclockid(3), CPUCLOCK_SCHED in the kernel's posix-timers.h).
func cpuTime(pid int) (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		return 0, fmt.Errorf("the CPU time of process %d can't be read: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// threadTime is the same sum from /proc, without the threads that ended: a cross-check.
func threadTime(pid int) (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(tasks) == 0 {
		return 0, fmt.Errorf("process %d is gone", pid)
	}
	var sum time.Duration
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// cpuOf sums cpuTime over processes.
func cpuOf(ps []*process) (time.Duration, error) {
	var sum time.Duration
	for _, p := range ps {
		t, err := cpuTime(p.pid())
		if err != nil {
			return 0, fmt.Errorf("%s: %w", p.name, err)
		}
		sum += t
	}
	return sum, nil
}

// busy returns how long one processor was not idle since boot (/proc/stat, in ticks of 10 ms).
func busy(processor int) time.Duration {
	b, _ := os.ReadFile("/proc/stat")
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 9 || f[0] != "cpu"+strconv.Itoa(processor) {
			continue
		}
		var sum int64
		for i, v := range f[1:9] { // user nice system idle iowait irq softirq steal
			if i != 3 && i != 4 {
				n, _ := strconv.ParseInt(v, 10, 64)
				sum += n
			}
		}
		return time.Duration(sum) * 10 * time.Millisecond
	}
	return 0
}

// around measures what the processes of a subject and everybody else took of the proxy's processor while f ran.
func around(ps []*process, f func() error) (spent time.Duration, others float64, err error) {
	before, err := cpuOf(ps)
	if err != nil {
		return 0, 0, err
	}
	was, at := busy(proxyCPU), time.Now()
	if err := f(); err != nil {
		return 0, 0, err
	}
	wall := time.Since(at)
	all := busy(proxyCPU) - was
	after, err := cpuOf(ps)
	if err != nil {
		return 0, 0, err
	}
	return after - before, max(0, 100*float64(all-(after-before))/float64(wall)), nil
}

// memory is what a process holds.
type memory struct{ rss, private float64 } // in MB of 2^20 bytes

var (
	rePrivate = regexp.MustCompile(`(?m)^Private_Dirty:\s+(\d+) kB`)
	reRSS     = regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB`)
)

// memoryOf reads VmRSS from status, and Private_Dirty from smaps_rollup: what each further proxy on a machine costs. Clean pages
// of the program file, which VmRSS counts too, are page cache that all of its processes share; Private_Clean would count
// them or not, depending on whether another one runs.
func memoryOf(pid int) (memory, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memory{}, err
	}
	smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return memory{}, err
	}
	return memory{rss: sumKiB(reRSS, status), private: sumKiB(rePrivate, smaps)}, nil
}

func sumKiB(re *regexp.Regexp, b []byte) float64 {
	var sum float64
	for _, m := range re.FindAllSubmatch(b, -1) {
		n, _ := strconv.ParseFloat(string(m[1]), 64)
		sum += n
	}
	return sum / 1024
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	v = slices.Sorted(slices.Values(v))
	if len(v)%2 == 1 {
		return v[len(v)/2]
	}
	return (v[len(v)/2-1] + v[len(v)/2]) / 2
}

// quantile returns the q-th quantile (nearest rank) of sorted values.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

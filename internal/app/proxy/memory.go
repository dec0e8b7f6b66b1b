package proxy

import (
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/plan"
)

// tune sets how much of the machine the Go runtime takes.
//
// The hot path allocates nothing, so a small heap costs no CPU time: the collector is made to run from 2 MB on instead of
// 4 (GOGC 50), and where the cgroup has a memory limit the runtime returns memory before it is reached. GOGC, GOMEMLIMIT
// and GOMAXPROCS from the environment stay in force.
func tune(getenv func(string) string, concurrency int, role plan.Role) {
	if getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	if limit := cgroupLimit("/sys/fs/cgroup/memory.max"); limit > 0 && getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit / 10 * 9)
	}
	switch {
	case concurrency > 0:
		runtime.GOMAXPROCS(concurrency)
	case role != plan.Gateway && getenv("GOMAXPROCS") == "":
		runtime.GOMAXPROCS(1)
	}
}

// cgroupLimit reads a cgroup v2 memory.max; 0 means no limit.
func cgroupLimit(path string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil { // "max"
		return 0
	}
	return n
}

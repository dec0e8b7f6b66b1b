package local

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// orphans remembers in a file which process groups the mesh started, for the next mesh to end if this one is killed:
// the kernel ends our children with us, but not theirs.
type orphans struct {
	path string

	mu     sync.Mutex
	groups map[int]string // pid of the leader → its start time
}

func newOrphans(dir string) *orphans {
	return &orphans{path: filepath.Join(dir, "children"), groups: make(map[int]string)}
}

func (o *orphans) add(pid int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.groups[pid] = strconv.Itoa(sessionOf(pid)) + " " + bootAndStart(pid)
	o.write()
}

func (o *orphans) remove(pid int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.groups, pid)
	o.write()
}

// write is best effort: a mesh on a full disk keeps running.
func (o *orphans) write() {
	var b strings.Builder
	for pid, start := range o.groups {
		fmt.Fprintln(&b, pid, start)
	}
	_ = os.WriteFile(o.path, []byte(b.String()), 0o600)
}

// reap ends the groups that an earlier mesh of this state directory left behind, and returns how many. A group is
// only ended when one of its members still carries the leader's pid as group in the session it was started in, so a
// pid that was given to a stranger in the meantime is safe.
func (o *orphans) reap() int {
	f, err := os.Open(o.path)
	if err != nil {
		return 0
	}
	defer f.Close()
	n := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 3 {
			continue
		}
		pid, err := strconv.Atoi(fields[0])
		if err != nil || pid <= 1 {
			continue
		}
		if groupIs(pid, fields[1], fields[2]) && groupLives(pid) && syscall.Kill(-pid, syscall.SIGKILL) == nil {
			n++
		}
	}
	_ = os.Remove(o.path)
	return n
}

// EndOrphans ends what a mesh of a state directory left running when it was killed, and returns how many programs that were. It
// does nothing while a mesh holds the directory.
func EndOrphans(dir string) int {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return 0
	}
	defer lock.Close()
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return 0
	}
	return newOrphans(dir).reap()
}

// EndStarting asks a mesh that holds a state directory and does not answer there yet to end, and returns it; false when there is none.
func EndStarting(dir string) (Running, bool) {
	r, err := readRunning(dir)
	if err != nil || Released(dir) || !r.runs() || syscall.Kill(r.PID, syscall.SIGTERM) != nil {
		return Running{}, false
	}
	r.State = dir
	return r.Running, true
}

// groupIs reports whether process group pgid is still the one that was started in session at start: its leader is
// the same process, or the leader has gone and a member of the same session, started later, remains.
func groupIs(pgid int, session, start string) bool {
	if got := bootAndStart(pgid); got != "" {
		return got == start
	}
	dirs, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return false
	}
	want := startTicks(start)
	for _, d := range dirs {
		st, ok := readStat(d)
		if ok && st.group == pgid && strconv.Itoa(st.session) == session && st.start >= want && sameBoot(start) {
			return true
		}
	}
	return false
}

// groupLives reports whether a group has a member that is more than a zombie: where nobody waits for orphans, as in a
// container without an init, those that the kernel ended stay in the list of processes.
func groupLives(pgid int) bool {
	dirs, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return true
	}
	return slices.ContainsFunc(dirs, func(d string) bool {
		st, ok := readStat(d)
		return ok && st.group == pgid && st.state != "Z"
	})
}

type procStat struct {
	group, session int
	start          uint64 // clock ticks since boot
	state          string // "R", "S", …; "Z" for a zombie
}

// readStat reads /proc/PID/stat (proc_pid_stat(5)): field 3 is the state, 5 is the process group, 6 the session, 22 the start time. The
// command name may hold anything, so fields are counted after its closing parenthesis.
func readStat(path string) (procStat, bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return procStat{}, false
	}
	i := strings.LastIndexByte(string(b), ')')
	if i < 0 {
		return procStat{}, false
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 20 {
		return procStat{}, false
	}
	group, err1 := strconv.Atoi(f[2])
	session, err2 := strconv.Atoi(f[3])
	start, err3 := strconv.ParseUint(f[19], 10, 64)
	return procStat{group, session, start, f[0]}, err1 == nil && err2 == nil && err3 == nil
}

// Alive reports whether a process runs; one that has ended and was not waited for does not.
func Alive(pid int) bool {
	if pid <= 0 || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return false
	}
	st, ok := readStat(fmt.Sprintf("/proc/%d/stat", pid))
	return !ok || st.state != "Z"
}

func sessionOf(pid int) int {
	st, _ := readStat(fmt.Sprintf("/proc/%d/stat", pid))
	return st.session
}

// bootAndStart names a process for good: the boot it lives in and when it started; "" when it has gone or /proc is not there.
func bootAndStart(pid int) string {
	st, ok := readStat(fmt.Sprintf("/proc/%d/stat", pid))
	if !ok {
		return ""
	}
	return bootID() + ":" + strconv.FormatUint(st.start, 10)
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

func sameBoot(start string) bool { return strings.HasPrefix(start, bootID()+":") }

func startTicks(start string) uint64 {
	_, ticks, _ := strings.Cut(start, ":")
	n, _ := strconv.ParseUint(ticks, 10, 64)
	return n
}

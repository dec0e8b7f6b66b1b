package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/owner"
)

// DefaultState returns the state directory of the mesh that commands talk to when nobody names one:
// $MALHA_STATE, else $XDG_RUNTIME_DIR/malha, else $XDG_STATE_HOME/malha, which is ~/.local/state/malha when it is not set.
func DefaultState() (string, error) {
	if d := os.Getenv("MALHA_STATE"); d != "" {
		return filepath.Abs(d)
	}
	if d := os.Getenv("XDG_RUNTIME_DIR"); d != "" {
		// It has to be the user's (XDG Base Directory Specification); after su(1) it may still be somebody else's.
		if st, err := os.Stat(d); err == nil && st.IsDir() && ownerOf(st) == os.Geteuid() {
			return filepath.Join(d, "malha"), nil
		}
	}
	if d := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(d) { // all others are to be ignored (XDG Base Directory Specification)
		return filepath.Join(d, "malha"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no place for the state of the mesh: %w; set MALHA_STATE or use --state DIR", err)
	}
	return filepath.Join(home, ".local", "state", "malha"), nil
}

// Running describes the mesh that holds a state directory.
type Running struct {
	PID    int       `json:"pid"`
	Folder string    `json:"folder"`
	Since  time.Time `json:"since"`
	State  string    `json:"state"`
}

// RunningError says that a state directory is already held by a mesh.
type RunningError struct{ Running Running }

func (e *RunningError) Error() string {
	r := e.Running
	if r.PID == 0 {
		return fmt.Sprintf("a mesh is already starting in %s; use it, stop it with `malha down`, or start another with `--state DIR`", r.State)
	}
	return fmt.Sprintf("a mesh is already running (pid %d, %s, since %s); use it, stop it with `malha down`, or start another with `--state DIR`",
		r.PID, r.Folder, r.Since.Local().Format(time.DateTime))
}

// state is a state directory that this process holds: at most one mesh runs in it.
type state struct {
	dir  string
	lock *os.File
}

// openState makes the directory, takes its lock and clears what a mesh that was killed left there.
// The error is a *RunningError when another mesh holds it.
func openState(dir, folder string) (*state, error) {
	if err := MakeState(dir); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot use the state directory: %w; choose another with --state DIR", err)
	}
	// The lock goes with the process, however it ends. O_CLOEXEC (Go's default) keeps it from the children.
	if err := takeLock(lock, dir); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			r, _ := readRunning(dir)
			r.State = dir
			return nil, &RunningError{r.Running}
		}
		return nil, fmt.Errorf("cannot lock the state directory %s: %w; choose another with --state DIR", dir, err)
	}
	s := &state{dir: dir, lock: lock}
	for _, name := range []string{"control.sock", "mesh.json", "mesh.pid"} {
		if err := os.Remove(s.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.close()
			return nil, fmt.Errorf("cannot clear the state directory: %w", err)
		}
	}
	r := Running{PID: os.Getpid(), Folder: folder, Since: time.Now().Truncate(time.Second), State: dir}
	b, err := json.Marshal(holding{r, bootAndStart(r.PID)})
	if err == nil {
		err = os.WriteFile(s.path("mesh.json"), b, 0o600)
	}
	if err == nil {
		err = os.WriteFile(s.path("mesh.pid"), []byte(strconv.Itoa(r.PID)+"\n"), 0o600)
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("cannot write to the state directory: %w; make room or correct its mode, or choose another with --state DIR", err)
	}
	return s, nil
}

// lockPatience is how long a lock is waited for that nobody says to hold.
const lockPatience = 2 * time.Second

// takeLock takes the lock of a state directory. A mesh that has it says so in mesh.json; one who asks whether a mesh has it, or ends
// what one left behind, has it for a moment, and is waited for.
func takeLock(lock *os.File, dir string) error {
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Since(began) > lockPatience {
			return err
		}
		if r, rerr := readRunning(dir); rerr == nil && r.runs() {
			return err
		}
	}
}

func (s *state) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// close gives the directory back.
func (s *state) close() {
	for _, name := range []string{"control.sock", "mesh.json", "mesh.pid"} {
		_ = os.Remove(s.path(name))
	}
	_ = s.lock.Close()
}

// FindRunning returns the mesh that answers in the state directory; false when none does. It takes no lock: a
// question must never get in the way of a mesh that starts.
func FindRunning(dir string) (Running, bool) {
	r, err := readRunning(dir)
	if err != nil {
		return Running{}, false
	}
	c, err := DialControl(dir)
	if err != nil {
		return Running{}, false
	}
	_ = c.Close()
	r.State = dir
	return r.Running, true
}

// Released reports whether no process holds the state directory.
func Released(dir string) bool {
	lock, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer lock.Close()
	return syscall.Flock(int(lock.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil
}

// holding is mesh.json: who holds a state directory, or did when it was killed.
type holding struct {
	Running
	Process string `json:"process,omitempty"` // bootAndStart of the PID
}

// runs reports whether the process that wrote it down is there still, rather than another one with its number.
func (h *holding) runs() bool {
	return h.PID > 1 && Alive(h.PID) && (h.Process == "" || h.Process == bootAndStart(h.PID))
}

func readRunning(dir string) (holding, error) {
	var h holding
	b, err := os.ReadFile(filepath.Join(dir, "mesh.json"))
	if err != nil {
		return h, err
	}
	return h, json.Unmarshal(b, &h)
}

// maxSocketPath is what sockaddr_un holds (unix(7)), less the end byte.
const maxSocketPath = 107

// listenSocket listens on the control socket of dir, for this user only.
func listenSocket(dir string) (net.Listener, error) {
	path, release, err := socketPath(dir)
	if err != nil {
		return nil, err
	}
	defer release()
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on the control socket: %w", err)
	}
	// The path may go through a descriptor that is closed by now; state.close removes the file.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(filepath.Join(dir, "control.sock"), 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("cannot protect the control socket: %w", err)
	}
	return guarded{l}, nil
}

// DialControl connects to the mesh of a state directory, which has to be our user's: whoever answers is told manifests, and says
// where requests go. The error is an os.ErrPermission when it is not.
func DialControl(dir string) (net.Conn, error) {
	path, release, err := socketPath(dir)
	if err != nil {
		return nil, err
	}
	defer release()
	c, err := net.DialTimeout("unix", path, 5*time.Second)
	if err != nil {
		return nil, err
	}
	if _, err := owner.OfSocket(c.(*net.UnixConn)); err != nil && os.Geteuid() != 0 { // root may look at anybody's mesh
		_ = c.Close()
		return nil, fmt.Errorf("%w: %w", os.ErrPermission, err)
	}
	return c, nil
}

// socketPath returns a path of the control socket that is short enough for the kernel. A long directory is reached
// through a descriptor of it; release closes that.
func socketPath(dir string) (path string, release func(), err error) {
	path = filepath.Join(dir, "control.sock")
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/control.sock", d.Fd()), func() { d.Close() }, nil
}

package local

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/malha-mesh/malha/internal/proxy/owner"
)

const otherUser = 61234

// private returns a directory that only our user writes to.
func private(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "private")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// must fails the test when preparing it failed.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStateThatOthersCanReach(t *testing.T) {
	root := os.Geteuid() == 0
	for _, tc := range []struct {
		name string
		root bool // needs to be root
		make func(t *testing.T, base string) (dir string)
		want string // part of the error; "" it is fine
	}{
		{"it is made", false, func(_ *testing.T, base string) string { return filepath.Join(base, "a", "b") }, ""},
		{"it may be read", false, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "s"), 0o755))
			return filepath.Join(base, "s")
		}, ""},
		{"below a directory like /tmp", false, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "tmp"), 0o700))
			must(t, os.Chmod(filepath.Join(base, "tmp"), 0o777|os.ModeSticky))
			return filepath.Join(base, "tmp", "s")
		}, ""},
		{"by a link of ours", false, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "s"), 0o700))
			must(t, os.Symlink("s", filepath.Join(base, "link")))
			return filepath.Join(base, "link")
		}, ""},
		{"it may be written by everybody", false, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "s"), 0o700))
			must(t, os.Chmod(filepath.Join(base, "s"), 0o777|os.ModeSticky))
			return filepath.Join(base, "s")
		}, "can be written by others"},
		{"it may be written by a group", false, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "s"), 0o700))
			must(t, os.Chmod(filepath.Join(base, "s"), 0o770))
			return filepath.Join(base, "s")
		}, "can be written by others"},
		{"what it is in may be written by everybody", false, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "open"), 0o700))
			must(t, os.Chmod(filepath.Join(base, "open"), 0o777))
			return filepath.Join(base, "open", "s")
		}, "can be written by everybody"},
		{"a file", false, func(t *testing.T, base string) string {
			must(t, os.WriteFile(filepath.Join(base, "s"), nil, 0o600))
			return filepath.Join(base, "s")
		}, "not a directory"},
		{"it is another's", true, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "s"), 0o700))
			must(t, os.Chown(filepath.Join(base, "s"), otherUser, otherUser))
			return filepath.Join(base, "s")
		}, "belongs to user 61234"},
		{"what it is in is another's", true, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "theirs"), 0o755))
			must(t, os.Mkdir(filepath.Join(base, "theirs", "s"), 0o700))
			must(t, os.Chown(filepath.Join(base, "theirs"), otherUser, otherUser))
			return filepath.Join(base, "theirs", "s")
		}, "belongs to user 61234"},
		{"by a link of another's", true, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "s"), 0o700))
			must(t, os.Symlink("s", filepath.Join(base, "link")))
			must(t, os.Lchown(filepath.Join(base, "link"), otherUser, otherUser))
			return filepath.Join(base, "link")
		}, "link of user 61234"},
		{"over a link of another's", true, func(t *testing.T, base string) string {
			must(t, os.MkdirAll(filepath.Join(base, "a", "s"), 0o700))
			must(t, os.Symlink("a", filepath.Join(base, "link")))
			must(t, os.Lchown(filepath.Join(base, "link"), otherUser, otherUser))
			return filepath.Join(base, "link", "s")
		}, "belongs to user 61234"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.root && !root {
				t.Skip("only root can give a file away")
			}
			dir := tc.make(t, private(t))
			s, err := openState(dir, "f")
			if err == nil {
				s.close()
			}
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "--state")):
				t.Errorf("%v, want %q and what to do", err, tc.want)
			}
			if tc.want == "" || strings.Contains(tc.want, "not a directory") {
				return
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("something was written before it was looked at: %v, %v", left, err)
			}
		})
	}
}

func TestRuntimeDirOfAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	dir := t.TempDir()
	t.Setenv("MALHA_STATE", "")
	t.Setenv("XDG_RUNTIME_DIR", dir)
	t.Setenv("HOME", "/home/me")
	if got, err := DefaultState(); err != nil || got != filepath.Join(dir, "malha") {
		t.Errorf("ours: %s, %v", got, err)
	}
	must(t, os.Chown(dir, otherUser, otherUser))
	if got, err := DefaultState(); err != nil || got != "/home/me/.local/state/malha" {
		t.Errorf("another's: %s, %v", got, err)
	}
}

// A control socket that is open to everybody, as it would be where a mode is forgotten or comes late, still hears its user only; and
// a command does not talk to a mesh that another user put where it looks.
func TestControlSocketAndOtherUsers(t *testing.T) {
	if at := os.Getenv("LOCAL_TEST_CONNECT"); at != "" {
		c, err := net.Dial("unix", at)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(c); len(b) > 0 {
			t.Errorf("it was answered: %q", b)
		}
		return
	}
	dir := private(t)
	l, err := listenSocket(dir)
	must(t, err)
	must(t, os.Chmod(filepath.Join(dir, "control.sock"), 0o666))
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello")
			_ = c.Close()
		}
	}()
	defer func() { _ = l.Close(); <-heard }()
	c, err := DialControl(dir)
	must(t, err)
	if b, err := io.ReadAll(c); string(b) != "hello" || err != nil {
		t.Errorf("our user is told %q, %v", b, err)
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can start a program of another user")
	}
	// The mesh is root's here, who may talk to anybody; so the other user's view is what is tried.
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755))
	}
	self, err := os.Open("/proc/self/exe")
	must(t, err)
	defer self.Close()
	cmd := exec.Command("/proc/self/fd/3", "-test.run=^TestControlSocketAndOtherUsers$")
	cmd.ExtraFiles, cmd.Dir = []*os.File{self}, "/"
	cmd.Env = append(os.Environ(), "LOCAL_TEST_CONNECT="+filepath.Join(dir, "control.sock"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: otherUser, Gid: otherUser}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// A command talks to no mesh that another user put where it looks.
func TestMeshOfAnotherUser(t *testing.T) {
	if dir := os.Getenv("LOCAL_TEST_LISTEN"); dir != "" {
		l, err := net.Listen("unix", filepath.Join(dir, "control.sock"))
		must(t, err)
		must(t, os.Chmod(filepath.Join(dir, "control.sock"), 0o666))
		for {
			if _, err := l.Accept(); err != nil {
				return
			}
		}
	}
	if at := os.Getenv("LOCAL_TEST_DIAL"); at != "" {
		var stranger *owner.Stranger
		if _, err := DialControl(at); !errors.Is(err, os.ErrPermission) || !errors.As(err, &stranger) {
			t.Errorf("DialControl = %v, want ErrPermission", err)
		}
		if _, ok := FindRunning(at); ok {
			t.Error("it counts as our mesh")
		}
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can start programs of other users")
	}
	dir := private(t)
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755))
	}
	must(t, os.Chown(dir, otherUser, otherUser))
	must(t, os.WriteFile(filepath.Join(dir, "mesh.json"), []byte(`{"pid": 1}`), 0o644))
	self, err := os.Open("/proc/self/exe")
	must(t, err)
	defer self.Close()
	as := func(user uint32, env string) *exec.Cmd {
		cmd := exec.Command("/proc/self/fd/3", "-test.run=^TestMeshOfAnotherUser$")
		cmd.ExtraFiles, cmd.Dir = []*os.File{self}, "/"
		cmd.Env = append(os.Environ(), env)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
		return cmd
	}
	mesh := as(otherUser, "LOCAL_TEST_LISTEN="+dir)
	must(t, mesh.Start())
	defer func() { _ = mesh.Process.Kill(); _ = mesh.Wait() }()
	for { // until it listens; root may talk to anybody's mesh
		if c, err := DialControl(dir); err == nil {
			_ = c.Close()
			break
		}
		runtime.Gosched()
	}
	if out, err := as(otherUser+1, "LOCAL_TEST_DIAL="+dir).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestMetricsAreForThisMachine(t *testing.T) {
	h := named(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for host, want := range map[string]int{
		"127.0.0.1:1": 200, "127.0.0.1": 200, "localhost:9": 200, "[::1]:8": 200, "[::1]": 200, "": 200,
		"evil.example": 403, "evil.example:80": 403, "localhost.evil.example:80": 403, "127.0.0.1.evil.example": 403,
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		r.Host = host
		if h.ServeHTTP(w, r); w.Code != want {
			t.Errorf("%q: %d, want %d", host, w.Code, want)
		}
	}
}

package local

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/malha-mesh/malha/internal/proxy/owner"
)

// A control socket that is open to everybody, as it would be where a mode is forgotten or comes late, still hears its user only; and
// a command does not talk to a mesh that another user put where it looks. Elsewhere than on Linux the kernel does not say who asks.
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

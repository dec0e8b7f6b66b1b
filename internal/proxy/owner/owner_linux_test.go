package owner

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

func open(t *testing.T) *Guard {
	t.Helper()
	g, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	return g
}

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("no %s here: %v", addr, err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

func accept(t *testing.T, ln net.Listener) (nc net.Conn, remote, local netip.AddrPort) {
	t.Helper()
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	return nc, nc.RemoteAddr().(*net.TCPAddr).AddrPort(), nc.LocalAddr().(*net.TCPAddr).AddrPort()
}

func dial(t *testing.T, ln net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestOwnPrograms(t *testing.T) {
	g := open(t)
	for _, at := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		ln := listen(t, at)
		for range 3 { // the socket to the kernel is used again
			dial(t, ln)
			_, remote, local := accept(t, ln)
			if err := g.Check(remote, local); err != nil {
				t.Errorf("%s: %v", at, err)
			}
		}
	}
}

// Anybody but the user: here with a Guard of another one, as only root could have a program of another user.
func TestStranger(t *testing.T) {
	g := open(t)
	ln := listen(t, "127.0.0.1:0")
	dial(t, ln)
	_, remote, local := accept(t, ln)
	if os.Geteuid() == 0 {
		t.Skip("root may use everything; TestOtherUser has another one")
	}
	g.own++
	var s *Stranger
	if err := g.Check(remote, local); !errors.As(err, &s) || s.User != uint32(os.Geteuid()) || s.Own != g.own {
		t.Errorf("Check = %v, want a stranger", err)
	}
}

// TestOtherUser has a program of another user connect.
func TestOtherUser(t *testing.T) {
	if to := os.Getenv("OWNER_TEST_CONNECT"); to != "" {
		c, err := net.Dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, c)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can start a program of another user")
	}
	self, err := os.Open("/proc/self/exe") // which the other user could not reach by its path
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	ln := listen(t, "127.0.0.1:0")
	cmd := exec.Command("/proc/self/fd/3", "-test.run=^TestOtherUser$")
	cmd.ExtraFiles, cmd.Dir = []*os.File{self}, "/"
	cmd.Env = append(os.Environ(), "OWNER_TEST_CONNECT="+ln.Addr().String())
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 61234, Gid: 61234}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	nc, remote, local := accept(t, ln)
	err = open(t).Check(remote, local)
	_ = nc.Close()
	if werr := cmd.Wait(); werr != nil {
		t.Error(werr)
	}
	var s *Stranger
	if !errors.As(err, &s) || s.User != 61234 {
		t.Errorf("Check = %v, want a stranger of 61234", err)
	}
}

// Who sends and closes at once leaves a socket without a program, whose user 0 is nobody, and must not count as root.
func TestGoneIsNotRoot(t *testing.T) {
	g := open(t)
	g.own = 61234
	ln := listen(t, "127.0.0.1:0")
	c := dial(t, ln)
	nc, remote, local := accept(t, ln)
	if _, err := c.Write([]byte("POST / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	_ = nc.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.Copy(io.Discard, nc); err != nil { // its end has come
		t.Fatal(err)
	}
	if err := g.Check(remote, local); err == nil {
		t.Error("a connection whose program is gone counts as root's")
	}
}

// A connection that is not there at all is nobody's, also when somebody trusted listens where it would come from.
func TestListenerIsNotTheClient(t *testing.T) {
	g := open(t)
	ln := listen(t, "127.0.0.1:0")
	at := ln.Addr().(*net.TCPAddr).AddrPort()
	if err := g.Check(at, netip.MustParseAddrPort("127.0.0.1:1")); !errors.Is(err, ErrUnknown) {
		t.Errorf("Check = %v, want ErrUnknown", err)
	}
	if err := g.Check(netip.MustParseAddrPort("192.0.2.1:4711"), at); !errors.Is(err, ErrUnknown) {
		t.Errorf("from elsewhere: Check = %v, want ErrUnknown", err)
	}
}

func TestClosed(t *testing.T) {
	g := open(t)
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if err := g.Check(netip.MustParseAddrPort("127.0.0.1:2"), netip.MustParseAddrPort("127.0.0.1:1")); err == nil {
		t.Error("a closed Guard lets somebody in")
	}
	if err := g.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
}

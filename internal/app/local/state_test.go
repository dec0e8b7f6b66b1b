package local

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
)

func TestStateIsHeldByOne(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s, err := openState(dir, "/srv/mesh")
	if err != nil {
		t.Fatal(err)
	}
	_, err = openState(dir, "/srv/other")
	var running *RunningError
	if !errors.As(err, &running) {
		t.Fatalf("second open: %v, want a RunningError", err)
	}
	if running.Running.PID != os.Getpid() || !strings.Contains(err.Error(), "/srv/mesh") {
		t.Errorf("the error does not say who holds it: %v", err)
	}
	if Released(dir) {
		t.Error("a held directory counts as released")
	}
	s.close()
	if !Released(dir) {
		t.Error("a closed directory counts as held")
	}
	s, err = openState(dir, "/srv/mesh")
	if err != nil {
		t.Fatalf("open after close: %v", err)
	}
	s.close()
}

func TestControlSocketInALongDirectory(t *testing.T) {
	for _, dir := range []string{filepath.Join(t.TempDir(), "short"), filepath.Join(t.TempDir(), strings.Repeat("long", 40))} {
		s, err := openState(dir, "f")
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := FindRunning(dir); ok {
			t.Error("a mesh is found before its socket is open")
		}
		l, err := listenSocket(dir)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(filepath.Join(dir, "control.sock")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("socket mode %v, %v; want 0600", info.Mode(), err)
		}
		if r, ok := FindRunning(dir); !ok || r.PID != os.Getpid() {
			t.Errorf("FindRunning = %+v, %v", r, ok)
		}
		l.Close()
		if _, ok := FindRunning(dir); ok {
			t.Error("a mesh is found after its socket closed")
		}
		s.close()
	}
}

func TestPortsStayAndAreDistinct(t *testing.T) {
	p := newPorts()
	seen := map[int]bool{}
	for _, k := range []string{"a", "b", "c"} {
		n, err := p.port(k)
		if err != nil {
			t.Fatal(err)
		}
		if seen[n] {
			t.Errorf("port %d was given out twice", n)
		}
		seen[n] = true
		if again, _ := p.port(k); again != n {
			t.Errorf("%s moved from %d to %d", k, n, again)
		}
	}
}

func TestPortsAreReleasedByWorkload(t *testing.T) {
	p := newPorts()
	for _, k := range []string{"app/default/a/80", "forward/default/a", "local/default/a/h:80", "forward/default/ab", "app/other/a/80"} {
		if _, err := p.port(k); err != nil {
			t.Fatal(err)
		}
	}
	p.release(ident.Name{Namespace: "default", Name: "a"})
	if len(p.byKey) != 2 || len(p.taken) != 2 || p.byKey["forward/default/ab"] == 0 || p.byKey["app/other/a/80"] == 0 {
		t.Errorf("left: %v", p.byKey)
	}
}

func TestHolder(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	if free(port) == nil {
		t.Error("a port with a listener counts as free")
	}
	if _, err := os.Stat("/proc/net/tcp"); err != nil {
		t.Skip("no /proc")
	}
	if h := holder(port); !strings.Contains(h, "pid ") {
		t.Errorf("holder = %q, want this process", h)
	}
}

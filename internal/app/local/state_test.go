package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
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

// somePorts are given back with the test. What they claim is in the way of those of the same test only: it would take all there are.
func somePorts(t *testing.T) *ports {
	t.Helper()
	p := newPorts()
	p.claim = func(what string, n int) (io.Closer, error) {
		return claim(fmt.Sprintf("%s/%d/%s", t.Name(), os.Getpid(), what), n)
	}
	t.Cleanup(p.close)
	return p
}

func TestPortsStayAndAreDistinct(t *testing.T) {
	p := somePorts(t)
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

// The ports of a program that somebody else starts stay free for it, also before it is there.
func TestPortsOfOtherProgramsAreLeftToThem(t *testing.T) {
	m := &Mesh{ports: somePorts(t)}
	next, err := m.ports.port("any")
	if err != nil {
		t.Fatal(err)
	}
	w := model.Workload{Meta: model.Meta{Name: ident.Name{Namespace: "default", Name: "w"}}, Address: "127.0.0.1"}
	theirs := map[string]bool{}
	for i := range 20 {
		w.Ports = append(w.Ports, model.WorkloadPort{Port: next + i + 1})
		theirs[loopback(next+i+1)] = true
	}
	p, _, ds := m.place(&model.Config{Workloads: []model.Workload{w}}, placement.Placement{})
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	for port, addr := range p.Instances[0].Inbound {
		if theirs[addr] {
			t.Errorf("the sidecar takes %s for port %d: the program could not listen there", addr, port)
		}
	}
}

// A port is nobody's else, also while nobody listens on it.
func TestPortsOfOneMeshAreNotAnothers(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("nothing can be claimed here")
	}
	p, q := somePorts(t), somePorts(t)
	mine := map[int]bool{}
	for i := range portBlock + 10 { // more than one block
		n, err := p.port(strconv.Itoa(i))
		if err != nil {
			t.Fatal(err)
		}
		mine[n] = true
	}
	if len(p.blocks) < 2 {
		t.Errorf("%d ports in %d blocks", len(mine), len(p.blocks))
	}
	// Another mesh that looks at every place there is finds none of ours.
	for q.more() {
	}
	for _, theirs := range q.blocks {
		for _, ours := range p.blocks {
			if theirs.first == ours.first {
				t.Errorf("two meshes have the ports from %d", ours.first)
			}
		}
	}
	if len(q.blocks) == 0 {
		t.Fatal("the other mesh has found no place")
	}
	p.close() // and when ours has gone, they are anybody's
	p.blocks = nil
	if !q.more() {
		t.Error("ports of a mesh that has gone stay claimed")
	}
}

func TestAChosenPortIsOneMeshs(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("nothing can be claimed here")
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := l.Addr().(*net.TCPAddr).Port
	p, q := somePorts(t), somePorts(t)
	if err := p.take("gateway/a", n); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a port in use: %v", err)
	}
	_ = l.Close()
	for range 2 { // whoever has it may say so again
		if err := p.take("gateway/a", n); err != nil {
			t.Errorf("a free port: %v", err)
		}
	}
	if err := q.take("gateway/a", n); !errors.Is(err, errClaimed) {
		t.Errorf("a port of another mesh: %v", err)
	}
	p.release(ident.Name{Name: "x", Namespace: "y"})
	p.drop("gateway/a")
	if err := q.take("gateway/a", n); err != nil {
		t.Errorf("a port that was given back: %v", err)
	}
}

func TestPortsAreReleasedByWorkload(t *testing.T) {
	p := somePorts(t)
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

// A mesh that has no control socket yet is asked to end by a signal; nobody else is.
func TestEndOfAMeshThatDoesNotAnswerYet(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	defer signal.Stop(signals)
	s, err := openState(dir, "folder")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "mesh.json"))
	if err != nil {
		t.Fatal(err)
	}
	r, ok := EndStarting(dir)
	if !ok || r.PID != os.Getpid() || r.State != dir {
		t.Fatalf("%+v, %v", r, ok)
	}
	<-signals
	s.close()
	// Killed meanwhile: the file is there, and its process may be another one by now.
	path := filepath.Join(dir, "mesh.json")
	write(t, path, string(text))
	if r, ok := EndStarting(dir); ok {
		t.Errorf("a signal was sent to %d, which holds nothing", r.PID)
	}
	var h holding
	if err := json.Unmarshal(text, &h); err != nil {
		t.Fatal(err)
	}
	if h.Process == "" {
		t.Skip("no /proc tells processes of one number apart")
	}
	h.Process = "another"
	if text, err = json.Marshal(h); err != nil {
		t.Fatal(err)
	}
	write(t, path, string(text))
	free := question(t, dir, syscall.LOCK_EX) // as another `malha down` that ends what was left behind
	defer free()
	if r, ok := EndStarting(dir); ok {
		t.Errorf("a signal was sent to another process with the number %d", r.PID)
	}
}

// question takes the lock of a state directory as one who asks whether a mesh has it does, until free is called.
func question(t *testing.T, dir string, how int) (free func()) {
	t.Helper()
	lock, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(lock.Fd()), how|syscall.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	return func() { _ = lock.Close() }
}

// A mesh starts also at the moment in which somebody asks whether one runs, as `malha down` does until the one before has gone.
func TestAQuestionIsInNobodysWay(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s, err := openState(dir, "folder")
	if err != nil {
		t.Fatal(err)
	}
	s.close()
	timer := time.AfterFunc(20*time.Millisecond, question(t, dir, syscall.LOCK_SH))
	defer timer.Stop()
	if s, err = openState(dir, "folder"); err != nil {
		t.Fatal(err)
	}
	s.close()
}

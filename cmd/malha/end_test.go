package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/malha-mesh/malha/internal/app/local"
)

// foreground is a `malha up` that was not detached.
type foreground struct {
	cmd *exec.Cmd
	out *os.File // where its output can be read

	mu   sync.Mutex
	text strings.Builder // what was read of it
	read chan struct{}   // closed when no more is
}

// front runs `malha up` with its output in a pipe, as before tee(1), and returns when the mesh is ready.
func (m *mesh) front() *foreground {
	m.t.Helper()
	f := m.unread()
	f.follow()
	m.eventually("the mesh is ready", func() bool { return strings.Contains(f.said(), "the mesh is ready") })
	return f
}

// unread runs `malha up` with its output in a pipe that nobody reads before follow.
func (m *mesh) unread() *foreground {
	m.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		m.t.Fatal(err)
	}
	f := &foreground{cmd: exec.Command(m.bin, "--state", m.state, "up", "-f", m.folder, "--gateway-port", "0"), out: r, read: make(chan struct{})}
	f.cmd.Stdout, f.cmd.Stderr = w, w
	if err := f.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	_ = w.Close()
	return f
}

// follow reads all that is said.
func (f *foreground) follow() {
	go func() {
		defer close(f.read)
		buf := make([]byte, 4096)
		for {
			n, err := f.out.Read(buf)
			f.mu.Lock()
			f.text.Write(buf[:n])
			f.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
}

func (f *foreground) said() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.text.String()
}

// ask begins a request with curl as a workload; what it printed comes when it is over.
func (m *mesh) ask(from, url string) <-chan string {
	got := make(chan string, 1)
	go func() {
		out, errs, _ := m.run("", "curl", "--from", from, url)
		got <- out + errs
	}()
	return got
}

// underway waits until a program has printed that it works on a request.
func (m *mesh) underway(name string) {
	m.t.Helper()
	m.eventually("a request is under way", func() bool {
		out, _, _ := m.run("", "logs", name)
		return strings.Contains(out, "slow request begins")
	})
}

func TestEndFinishesWhatWorkloadsAskEachOther(t *testing.T) {
	t.Parallel()
	m := newMesh(t, nil)
	m.standard()
	m.up()
	// web works on it for a while, and then needs back, to which nobody had a connection before.
	got := m.ask("back-v1", "http://web/later?url=http://back/")
	m.underway("web-1")
	m.must("down")
	if text := <-got; !strings.HasPrefix(text, "back-v") {
		t.Errorf("a request in flight that needed another workload came to %q", text)
	}
}

// What reads our output may end before us, or with us: tee(1) gets the Ctrl-C as well.
func TestEndWhenNobodyReadsTheOutput(t *testing.T) {
	t.Parallel()
	for name, interrupt := range map[string]bool{"with a Ctrl-C": true, "when that is found out": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, nil)
			m.standard()
			f := m.front()
			got := m.ask("back-v1", "http://web/slow")
			m.underway("web-1")
			_ = f.out.Close()
			if interrupt {
				_ = f.cmd.Process.Signal(os.Interrupt)
			}
			if text := <-got; text != "web-1 slow\n" {
				t.Errorf("the request in flight came to %q", text)
			}
			if !interrupt {
				m.ask("back-v1", "http://web/slow") // it prints something
			}
			if err := f.cmd.Wait(); err != nil {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}

// What shows our output may pause, as a terminal does at Ctrl-S. Nothing stands still for that: neither a program that prints a lot,
// nor the mesh, nor its end.
func TestNobodyWaitsForWhoReadsTheOutput(t *testing.T) {
	t.Parallel()
	for name, later := range map[string]bool{"who goes on": true, "who does not": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, nil)
			m.standard()
			m.write("web.yaml", service("web")+strings.ReplaceAll(workload("web-1", "web", "v1", m.folder),
				"[@PROGRAM@,", "[/bin/sh, -c, \"yes 'a line of a program' | head -c 9000000; exec '@PROGRAM@'\"] # ["))
			f := m.unread()
			defer f.out.Close()
			m.eventually("the mesh is ready", func() bool {
				out, _, _ := m.run("", "status", "-o", "json")
				return strings.Contains(out, `"phase": "ready"`)
			})
			m.write("rule.yaml", rule("v2"))
			m.eventually("an edit is in force", func() bool { return strings.Contains(m.must("get", "vs"), "rule.yaml") })
			if later {
				f.follow()
				m.eventually("it says that something is missing", func() bool { return strings.Contains(f.said(), "lines of programs were not shown") })
			}
			m.must("down")
			if err := f.cmd.Wait(); err != nil {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}

func TestASecondInterruptEndsAtOnce(t *testing.T) {
	t.Parallel()
	m := newMesh(t, nil)
	m.standard()
	f := m.front()
	got := m.ask("back-v1", "http://web/slow?ms=60000")
	m.underway("web-1")
	_ = f.cmd.Process.Signal(os.Interrupt)
	var st *local.Status
	m.eventually("it waits for the sidecars", func() bool {
		st = m.status()
		return strings.Contains(strings.Join(st.Waiting, " "), "default/web-1")
	})
	if st.Phase != local.Stopping || len(st.Problems) > 0 {
		t.Errorf("the status while it stops: %s, problems %q", st.Phase, st.Problems)
	}
	if out, errs, _ := m.run("", "status"); !strings.Contains(errs, "the mesh is stopping: it waits for requests") || !strings.Contains(out, "stopping") {
		t.Errorf("malha status printed\n%s%s", out, errs)
	}
	m.fails("", []string{"still stopping"}, "up", "-f", m.folder)
	m.eventually("it says how to end at once", func() bool { return strings.Contains(f.said(), "Ctrl-C again") })
	_ = f.cmd.Process.Signal(os.Interrupt)
	<-f.read
	if err := f.cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	if !strings.Contains(f.said(), "requests in flight were cut off") {
		t.Errorf("at the end it said\n%s", f.said())
	}
	<-got
}

func TestDownBeforeItIsReady(t *testing.T) {
	t.Parallel()
	m := newMesh(t, nil)
	m.write("web.yaml", strings.ReplaceAll(workload("web-1", "web", "v1", m.folder), "[@PROGRAM@,", `[/bin/sleep, "1000"] # [`))
	up := exec.Command(m.bin, "--state", m.state, "up", "-d", "-f", m.folder)
	errs, err := up.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	m.eventually("the mesh starts", func() bool {
		_, errs, _ := m.run("", "status")
		return strings.Contains(errs, "the mesh is starting")
	})
	m.must("down")
	said, _ := io.ReadAll(errs)
	if err := up.Wait(); err == nil || !strings.Contains(string(said), "stopped before it was ready") {
		t.Errorf("malha up -d ended with %v and said\n%s", err, said)
	}
}

// A mesh that is started beside one that does not answer yet leaves it its log.
func TestASecondStartLeavesTheLogOfTheFirst(t *testing.T) {
	t.Parallel()
	m := newMesh(t, nil)
	m.standard()
	if err := os.Mkdir(m.state, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(filepath.Join(m.state, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close() // a mesh that starts
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(m.state, "mesh.log")
	if err := os.WriteFile(log, []byte("said by the first\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.fails("", []string{"already starting"}, "up", "-d", "-f", m.folder)
	if b, err := os.ReadFile(log); err != nil || !strings.HasPrefix(string(b), "said by the first\n") {
		t.Errorf("%v; the log is\n%s", err, b)
	}
}

// The kernel ends the children of a mesh that is killed, but not theirs.
func TestDownEndsWhatAKilledMeshLeft(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("no /proc")
	}
	m := newMesh(t, nil)
	m.write("web.yaml", strings.ReplaceAll(workload("web-1", "web", "v1", m.folder), "[@PROGRAM@,", "[/bin/sh, -c, \"sleep 1000 & exec '@PROGRAM@'\"] # ["))
	m.up()
	if err := syscall.Kill(m.status().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.eventually("the mesh is gone", func() bool { return len(m.left()) == 1 })
	if _, errs, code := m.run("", "down"); code != 0 || !strings.Contains(errs, "one program that it had left behind is ended") {
		t.Errorf("down exits with %d: %s", code, errs)
	}
	m.noneLeft()
}

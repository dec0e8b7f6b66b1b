package local

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// shell returns a supervised sh and channels with what happens to it.
func shell(t *testing.T, script string, grace time.Duration) (*process, *output, <-chan int, <-chan exit) {
	t.Helper()
	s := newSpawner()
	go s.run()
	t.Cleanup(s.stop)
	out := newOutput(nil)
	started, exited := make(chan int, 16), make(chan exit, 16)
	return &process{
		name: "sh", spec: processSpec{Path: "/bin/sh", Args: []string{"-c", script}, Env: os.Environ(), Grace: grace},
		spawner: s, orphans: newOrphans(t.TempDir()), stdout: out.writer("sh", "stdout"), stderr: out.writer("sh", "stderr"),
		started: func(pid int) { started <- pid }, exited: func(e exit) { exited <- e },
	}, out, started, exited
}

func TestProcessIsRestartedWithBackoff(t *testing.T) {
	p, out, started, exited := shell(t, "echo last words >&2; exit 3", time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.run(ctx, t.Context()) }()
	for i, want := range []time.Duration{restartMin, 2 * restartMin} {
		<-started
		if e := <-exited; e.String() != "exit status 3" || e.Next != want {
			t.Errorf("end %d: %s, next in %s; want exit status 3, next in %s", i, e, e.Next, want)
		}
	}
	cancel()
	<-done
	lines := out.tail("sh", 1)
	if len(lines) != 1 || lines[0].Text != "last words" || lines[0].Stream != "stderr" {
		t.Errorf("output %v, want its last words on stderr", lines)
	}
}

func TestProcessStopsWithItsGroup(t *testing.T) {
	file := filepath.Join(t.TempDir(), "grandchild")
	// It ignores SIGTERM, and so does the child it leaves in its group: only SIGKILL ends them.
	p, _, started, _ := shell(t, `trap "" TERM; sleep 600 & echo $! > `+file+`; wait`, 50*time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.run(ctx, t.Context()) }()
	pid := <-started
	var grandchild string
	for grandchild == "" {
		b, _ := os.ReadFile(file)
		grandchild = strings.TrimSpace(string(b))
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
	if err := syscall.Kill(pid, 0); err == nil {
		t.Errorf("process %d is still there", pid)
	}
	for range 60_000 { // the orphan is reaped by init, a moment after its end
		if b, err := os.ReadFile("/proc/" + grandchild + "/stat"); err != nil || strings.Contains(string(b), ") Z ") {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("grandchild %s is still there", grandchild)
}

func TestProcessThatCannotStart(t *testing.T) {
	p, _, _, exited := shell(t, "", time.Second)
	p.spec.Path = "/does/not/exist"
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.run(ctx, t.Context()) }()
	if e := <-exited; !strings.Contains(e.String(), "could not start /does/not/exist") {
		t.Errorf("it ended with %q", e)
	}
	cancel()
	<-done
}

func TestWhyAProgramIsNotStarted(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("not a program\n"), 0o700); err != nil { //nolint:gosec // it is to be run
		t.Fatal(err)
	}
	for want, err := range map[string]error{"no program for this machine": exec.Command(text).Run(), "ulimit -n": syscall.EMFILE, "ulimit -u": syscall.EAGAIN} {
		if got := notStarted(err); !strings.Contains(got.Error(), want) {
			t.Errorf("%v: %v, want a word of %s", err, got, want)
		}
	}
}

func TestOrphansAreReaped(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("no /proc")
	}
	p, _, started, _ := shell(t, "exec sleep 600", time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.run(ctx, t.Context()) }()
	pid := <-started
	// Another mesh that starts in the same state directory finds what this one wrote down.
	next := &orphans{path: p.orphans.path, groups: map[int]string{}}
	if n := next.reap(); n != 1 {
		t.Errorf("reaped %d groups, want 1", n)
	}
	cancel()
	<-done
	if err := syscall.Kill(pid, 0); err == nil {
		t.Errorf("process %d is still there", pid)
	}
	// A pid that belongs to somebody else now is left alone.
	if err := os.WriteFile(next.path, []byte("1 0 otherboot:1\n2 0 otherboot:99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := next.reap(); n != 0 {
		t.Errorf("reaped %d groups of strangers", n)
	}
}

func TestLines(t *testing.T) {
	var got []string
	o := newOutput(func(l Line) { got = append(got, l.Text) })
	w := o.writer("a", "stdout")
	for _, s := range []string{"one\ntw", "o\r\n", "\n", "bad \xff", " end"} {
		if _, err := w.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	w.flush()
	if diff := cmp.Diff([]string{"one", "two", "", "bad \uFFFD end"}, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	got = nil
	if _, err := w.Write([]byte(strings.Repeat("x", 2*maxLine+1))); err != nil {
		t.Fatal(err)
	}
	w.flush()
	if len(got) != 3 || len(got[0]) != maxLine || len(got[2]) != 1 {
		t.Errorf("a long line came in %d parts", len(got))
	}
}

func TestOutputKeepsTheLastLines(t *testing.T) {
	o := newOutput(nil)
	w := o.writer("a", "stdout")
	_, lines, stop := o.follow("a", 0)
	for i := range keepLines + 3 {
		_, _ = w.Write([]byte{byte('a' + i%26), '\n'})
	}
	stop()
	if n := len(o.tail("a", 1<<20)); n != keepLines {
		t.Errorf("%d lines are kept, want %d", n, keepLines)
	}
	last := string(rune('a' + (keepLines+2)%26))
	if l := o.tail("a", 1); l[0].Text != last {
		t.Errorf("last line %q, want %q", l[0].Text, last)
	}
	if len(lines) != keepLines+3 {
		t.Errorf("a follower got %d lines", len(lines))
	}
	if o.tail("b", 3) != nil {
		t.Error("an unknown source has lines")
	}
}

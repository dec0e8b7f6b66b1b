package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// An exchange that no rule decided about names its listener's object, or the listener.
func TestAccessLogOrigin(t *testing.T) {
	gateway := ident.Origin{Kind: "Gateway", Namespace: "default", Name: "shop", Rule: "servers[0]", File: "gw.yaml", Line: 7}
	for _, tt := range []struct {
		name     string
		origin   *ident.Origin
		listener *plan.Listener
		want     any
	}{
		{"a rule", &rule.Origin, &plan.Listener{Name: "edge", Origin: gateway}, rule.Origin.String()},
		{"none, and a listener of an object", nil, &plan.Listener{Name: "edge", Origin: gateway}, gateway.String()},
		{"an empty one", &ident.Origin{}, &plan.Listener{Name: "edge", Origin: gateway}, gateway.String()},
		{"none, and a listener that nobody asked for", nil, &plan.Listener{Name: "forward"}, "listener forward"},
		{"nothing", nil, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := outbound()
			r.Origin, r.Listener = tt.origin, tt.listener
			var got map[string]any
			if err := json.Unmarshal(appendLine(nil, r), &got); err != nil {
				t.Fatal(err)
			}
			if got["route_origin"] != tt.want {
				t.Errorf("%v, want %v", got["route_origin"], tt.want)
			}
		})
	}
}

// A line is bounded however long and unreadable what a client sends is, so it finds room; what was cut says so.
func TestAccessLogLineIsBounded(t *testing.T) {
	bad := bytes.Repeat([]byte{0xff}, 60<<10)
	r := outbound()
	r.Method, r.Path, r.Query, r.HasQuery = bad, bad, bad, true
	r.Authority, r.UserAgent, r.RequestID, r.ForwardedFor = bad, bad, bad, bad
	if b := appendLine(nil, r); len(b) > logRoom/2 {
		t.Errorf("a line of %d bytes", len(b))
	}
	r.SNI = strings.Repeat("\x01", 60<<10) // TLS lets a server name be any bytes
	r.Failure = r.SNI                      // as what an endpoint has said may be
	if b := appendLine(nil, r); len(b) > logRoom*2/3 {
		t.Errorf("with a server name, a line of %d bytes", len(b))
	}
	for _, tt := range []struct{ in, want string }{
		{strings.Repeat("a", logValue), strings.Repeat("a", logValue)},
		{strings.Repeat("a", logValue+1), strings.Repeat("a", logValue) + "…"},
		{"a" + strings.Repeat("é", logValue/2), "a" + strings.Repeat("é", logValue/2-1) + "…"}, // a character stays whole
	} {
		if got := string(appendBounded(nil, []byte(tt.in))); got != tt.want {
			t.Errorf("%d bytes became %d, want %d", len(tt.in), len(got), len(tt.want))
		}
	}
}

// faulty takes room bytes of each write, then fails.
type faulty struct {
	room int // below 0: all
	b    bytes.Buffer
}

func (f *faulty) Write(p []byte) (int, error) {
	if f.room < 0 || len(p) <= f.room {
		return f.b.Write(p)
	}
	n, _ := f.b.Write(p[:f.room])
	return n, errors.New("disk full")
}

// Lines that the sink does not take are counted as lost, and a piece of one is never the beginning of the next.
func TestAccessLogCountsWhatTheSinkDoesNotTake(t *testing.T) {
	one := len(appendLine(nil, outbound()))
	sink := &faulty{room: 2*one + one/2}
	log := NewAccessLog(sink)
	var told []error
	log.Failed = func(err error) { told = append(told, err) }
	write := func(n int) {
		for range n {
			log.Write(outbound())
		}
		_, _ = log.flush(nil)
	}
	write(5) // two and a half go out
	write(5) // after the newline, again
	sink.room = 0
	write(3)
	sink.room = -1
	write(4)
	whole := 0
	for l := range bytes.Lines(sink.b.Bytes()) {
		if json.Valid(l) {
			whole++
		}
	}
	if lost := log.Dropped(); whole != 2+2+4 || lost != 3+3+3 {
		t.Errorf("%d lines are whole and %d are lost of 17", whole, lost)
	}
	if len(told) != 1 {
		t.Errorf("told %v, want once when it began to fail", told)
	}
}

// Who ends a log is told that its last lines were lost, also when the sink has failed for long.
func TestAccessLogTellsOfItsLastLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := NewAccessLog(broken{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- log.Run(ctx) }()
		log.Write(outbound())
		time.Sleep(time.Second)
		log.Write(outbound())
		synctest.Wait() // the writer waits for more lines
		cancel()
		if err := <-done; err == nil || log.Dropped() != 2 {
			t.Errorf("%v, %d lines lost", err, log.Dropped())
		}
	})
}

// A sink that takes nothing does not keep the process from ending.
func TestAccessLogEndsWithoutItsReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &slow{let: make(chan struct{})}
		log := NewAccessLog(sink)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- log.Run(ctx) }()
		log.Write(outbound())
		time.Sleep(time.Second)
		cancel()
		began := time.Now()
		if err := <-done; !errors.Is(err, errStuck) || time.Since(began) != logFinish {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		close(sink.let)
	})
}

// A log that is rotated by its name goes on under that name.
func TestLogFileFollowsItsName(t *testing.T) {
	name := filepath.Join(t.TempDir(), "access.log")
	f, err := OpenLogFile(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	write := func(s string) {
		f.looked = time.Time{} // as if lookEvery had passed
		if _, err := f.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	write("a\n")
	if err := os.Rename(name, name+".1"); err != nil {
		t.Fatal(err)
	}
	write("b\n")
	if err := os.Truncate(name, 0); err != nil { // copytruncate
		t.Fatal(err)
	}
	write("c\n")
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	write("d\n")
	for n, want := range map[string]string{name: "d\n", name + ".1": "a\n"} {
		if got, err := os.ReadFile(n); err != nil || string(got) != want {
			t.Errorf("%s has %q (%v), want %q", n, got, err, want)
		}
	}
	if err := os.RemoveAll(filepath.Dir(name)); err != nil {
		t.Fatal(err)
	}
	write("e\n") // nowhere to go but where it was
	if _, err := OpenLogFile(filepath.Join(name, "x")); err == nil {
		t.Error("a file in no folder was opened")
	}
}

// The tables of the documentation have every key and every flag, in this order.
func TestDocsOfTheLog(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "proxy.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(b), "\n## The access log\n")
	log, flags, found := strings.Cut(text, "\n### Response flags\n")
	if !found {
		t.Fatal("docs/proxy.md has no sections about the access log and its flags")
	}
	flags, _, _ = strings.Cut(flags, "\n## ")
	words := func(section string) (out []string) {
		for row := range strings.Lines(section) {
			cell, _, ok := strings.Cut(strings.TrimPrefix(row, "| "), " |")
			if !ok || !strings.HasPrefix(row, "| `") {
				continue
			}
			for _, w := range strings.Split(cell, ", ") {
				out = append(out, strings.Trim(w, "`"))
			}
		}
		return out
	}
	if got := words(flags); !slices.Equal(got, flagNames[:]) {
		t.Errorf("the documented flags are %v, want %v", got, flagNames)
	}
	want, got := slices.Sorted(slices.Values(logKeys)), slices.Sorted(slices.Values(words(log)))
	if !slices.Equal(got, want) {
		t.Errorf("the documented keys are %v, want %v", got, want)
	}
}

// What can't be opened says why: not every file that is refused so is a pipe.
func TestOpenLogFileRefuses(t *testing.T) {
	dir := t.TempDir()
	pipe, socket := filepath.Join(dir, "pipe"), filepath.Join(dir, "socket")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	for path, want := range map[string]string{pipe: "is a pipe that nobody reads", socket: "is a socket; name a file, or stdout", filepath.Join(dir, "no", "file"): "no such file"} {
		f, err := OpenLogFile(path)
		if err == nil {
			_ = f.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

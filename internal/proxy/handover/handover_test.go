package handover

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// runner has one socket, or two.
type runner struct {
	ln      *net.TCPListener
	packets *net.UDPConn // nil: none
	yielded atomic.Bool
}

func (r *runner) Socket(key string) syscall.Conn {
	switch {
	case key == "names" && r.packets != nil:
		return r.packets
	case key != "web":
		return nil
	}
	return r.ln
}

func (r *runner) Yield() {
	r.yielded.Store(true)
	_ = r.ln.Close()
}

func newRunner(t *testing.T) *runner {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return &runner{ln: ln.(*net.TCPListener)}
}

// serving is a door that is served; over tells how that ended.
type serving struct {
	*runner
	over chan bool
	stop context.CancelFunc
}

func serve(t *testing.T, d *Door, r *runner) *serving {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &serving{runner: r, over: make(chan bool, 1), stop: cancel}
	var wg sync.WaitGroup
	wg.Go(func() { s.over <- d.Serve(ctx, r) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s
}

func first(t *testing.T, path string) *Door {
	t.Helper()
	d, p, err := Claim(t.Context(), path, "v1", nil)
	if err != nil || p != nil || d == nil {
		t.Fatalf("the first one: door %v, predecessor %v, error %v", d, p, err)
	}
	return d
}

func second(t *testing.T, path string) *Predecessor {
	t.Helper()
	d, p, err := Claim(t.Context(), path, "v2", nil)
	if err != nil || d != nil || p == nil {
		t.Fatalf("the second one: door %v, predecessor %v, error %v", d, p, err)
	}
	t.Cleanup(p.Close)
	return p
}

// reaches reports whether a connection to addr is accepted by ln.
func reaches(t *testing.T, addr net.Addr, ln *net.TCPListener) {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = ln.SetDeadline(time.Now().Add(time.Minute))
	a, err := ln.Accept()
	if err != nil {
		t.Fatalf("the inherited socket accepts nothing: %v", err)
	}
	_ = a.Close()
}

func TestTakeOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "h.sock")
	old := serve(t, first(t, path), newRunner(t))
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the socket has mode %v (%v), want 0600", info.Mode(), err)
	}
	// A connection that waits in the queue is not lost.
	addr := old.ln.Addr()
	waits, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = waits.Close() }()

	p := second(t, path)
	if p.PID != os.Getpid() || p.Program != "v1" {
		t.Errorf("the predecessor is %d %q", p.PID, p.Program)
	}
	if p.Listener("other") != nil {
		t.Error("a socket for a key that the runner does not have")
	}
	ln := p.Listener("web")
	if ln == nil {
		t.Fatal("no socket")
	}
	if old.yielded.Load() {
		t.Fatal("it yielded before the new one was ready")
	}
	d, err := p.TakeOver(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !old.yielded.Load() || !<-old.over {
		t.Error("the old one did not yield")
	}
	_ = ln.SetDeadline(time.Now().Add(time.Minute))
	c, err := ln.Accept()
	if err != nil {
		t.Fatalf("the connection that waited is lost: %v", err)
	}
	_ = c.Close()
	reaches(t, addr, ln)
	if p.Listener("web") != nil {
		t.Error("a conversation that is over still gives sockets")
	}

	// The heir can be succeeded as well, on the same path.
	heir := serve(t, d, &runner{ln: ln})
	q := second(t, path)
	again := q.Listener("web")
	if again == nil {
		t.Fatal("the heir gives no socket")
	}
	d, err = q.TakeOver(t.Context())
	if err != nil || !<-heir.over {
		t.Fatalf("the second takeover: %v", err)
	}
	reaches(t, addr, again)

	// Who ends without a successor leaves nothing behind.
	end := serve(t, d, &runner{ln: again})
	end.stop()
	if <-end.over {
		t.Error("an end is no takeover")
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	first(t, path).Close()
}

// TestPackets: a socket for packets is the same one for both processes: what was sent before is read by the new one.
func TestPackets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	r := newRunner(t)
	var err error
	if r.packets, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.packets.Close() })
	serve(t, first(t, path), r)
	p := second(t, path)
	if c := p.Packets("web"); c != nil {
		t.Error("a listener was taken for packets")
	}
	if ln := p.Listener("names"); ln != nil {
		t.Error("packets were taken for a listener")
	}
	if c := p.Packets("else"); c != nil {
		t.Error("a socket that is not there")
	}
	c := p.Packets("names")
	if c == nil {
		t.Fatal("no socket came")
	}
	defer func() { _ = c.Close() }()
	out, err := net.Dial("udp", r.packets.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	_, _ = out.Write([]byte("before"))
	_ = r.packets.Close()
	buf := make([]byte, 16)
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "before" {
		t.Errorf("%q %v", buf[:n], err)
	}
}

// TestNewcomerDies: the one that runs goes on, and can be succeeded later.
func TestNewcomerDies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h.sock")
	old := serve(t, first(t, path), newRunner(t))
	for range 3 {
		p := second(t, path)
		if ln := p.Listener("web"); ln != nil {
			_ = ln.Close()
		}
		p.Close()
	}
	reaches(t, old.ln.Addr(), old.ln)
	if old.yielded.Load() {
		t.Fatal("it yielded to one that died")
	}
	p := second(t, path)
	ln := p.Listener("web")
	if ln == nil {
		t.Fatal("no socket")
	}
	if _, err := p.TakeOver(t.Context()); err != nil {
		t.Fatal(err)
	}
	reaches(t, ln.Addr(), ln)
}

// TestThird: a third that starts meanwhile waits, and is served by whoever runs then.
func TestThird(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h.sock")
	old := serve(t, first(t, path), newRunner(t))
	addr := old.ln.Addr()
	p := second(t, path)
	type claim struct {
		p   *Predecessor
		err error
	}
	third := make(chan claim, 1)
	go func() {
		d, p, err := Claim(context.WithoutCancel(t.Context()), path, "v3", nil)
		if d != nil {
			err = errors.New("a door of its own")
		}
		third <- claim{p, err}
	}()
	ln := p.Listener("web")
	d, err := p.TakeOver(t.Context())
	if err != nil || ln == nil {
		t.Fatalf("%v, socket %v", err, ln)
	}
	heir := serve(t, d, &runner{ln: ln})
	c := <-third
	if c.err != nil || c.p == nil {
		t.Fatal(c.err)
	}
	if c.p.Program != "v2" {
		t.Errorf("the third follows %q, want the heir", c.p.Program)
	}
	last := c.p.Listener("web")
	if _, err := c.p.TakeOver(t.Context()); err != nil || last == nil || !<-heir.over {
		t.Fatalf("%v, socket %v", err, last)
	}
	reaches(t, addr, last)
}

// welcomed lets a newcomer in at a door, as the process pid, and returns when he has asked something; nil when nobody came.
func welcomed(d *Door, pid int) *net.UnixConn {
	c, err := d.ln.AcceptUnix()
	if err != nil {
		return nil
	}
	_, _, _ = receive(c)
	_ = send(c, packet{Kind: welcome, Version: Version, PID: pid})
	_, _, _ = receive(c)
	return c
}

// TestRunnerDies: a newcomer whose predecessor dies on the way gets the door all the same.
func TestRunnerDies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h.sock")
	d := first(t, path)
	go func() {
		c := welcomed(d, 1)
		if c == nil {
			return
		}
		// A death closes everything and removes nothing.
		_ = d.ln.Close()
		_ = d.lock.Close()
		_ = c.Close()
	}()
	p := second(t, path)
	if p.Listener("web") != nil {
		t.Error("the dead give nothing")
	}
	heir, err := p.TakeOver(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	heir.Close()
}

// stuck lets a newcomer in at a door and answers nothing to what he asks then. asked is closed when he did; over ends it.
func stuck(d *Door, hangsUp bool) (asked <-chan struct{}, over func()) {
	came, end, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		c := welcomed(d, 7)
		if c == nil {
			return
		}
		close(came)
		if hangsUp {
			_ = c.Close()
		}
		<-end
		_ = c.Close()
	}()
	return came, func() { close(end); <-ended; d.Close() }
}

// TestRunnerIsStuck: a newcomer that gets no answer, and no door, goes on without, and says which process is in the way.
func TestRunnerIsStuck(t *testing.T) {
	for _, hangsUp := range []bool{true, false} {
		path := filepath.Join(t.TempDir(), "h.sock")
		_, over := stuck(first(t, path), hangsUp)
		p := second(t, path)
		p.patience, p.grace = 10*time.Millisecond, 10*time.Millisecond
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		heir, err := p.TakeOver(ctx)
		var r *Refused
		if heir != nil || err == nil || errors.As(err, &r) || !strings.Contains(err.Error(), "pid 7") {
			t.Errorf("hangs up %v: door %v, error %v", hangsUp, heir, err)
		}
		cancel()
		over()
	}
}

// TestNoSocketOfTheStuck: who needs a socket while a takeover gets no answer is told that there is none, long before that ends.
func TestNoSocketOfTheStuck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h.sock")
	asked, over := stuck(first(t, path), false)
	p := second(t, path)
	p.grace = 10 * time.Millisecond // and two minutes for an answer
	took := make(chan struct{})
	go func() {
		defer close(took)
		if heir, _ := p.TakeOver(context.Background()); heir != nil {
			heir.Close()
		}
	}()
	<-asked
	if p.Listener("web") != nil || p.Packets("dns") != nil {
		t.Error("a socket of one that is stuck")
	}
	select {
	case <-took:
		t.Error("the takeover ended first")
	default:
	}
	over()
	<-took
}

// TestStaleSocket: the socket of a process that was killed is in nobody's way.
func TestStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h.sock")
	dead := first(t, path)
	_ = dead.ln.Close()
	_ = dead.lock.Close()
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	first(t, path).Close()
}

// TestLongPath: state folders may be deep, and addresses of unix sockets are short.
func TestLongPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("long/", 40), "h.sock")
	d := first(t, path)
	serve(t, d, newRunner(t))
	if second(t, path).Listener("web") == nil {
		t.Error("no socket")
	}
}

// TestStrangeMessages: what this version does not know is refused with a reason, and the one that runs goes on.
func TestStrangeMessages(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h.sock")
	old := serve(t, first(t, path), newRunner(t))
	greeting := `{"kind":"hello","version":1,"pid":7}`
	for _, tc := range []struct {
		name, want string
		say        []string
	}{
		{"another version", "it speaks version 1 of the handover, not 2", []string{`{"kind":"hello","version":2}`}},
		{"no hello", "is not how a conversation begins", []string{`{"kind":"want","key":"web"}`}},
		{"an unknown field", "does not know", []string{`{"kind":"hello","version":1,"fast":true}`}},
		{"no JSON", "does not know", []string{"\x00\x01"}},
		{"an unknown kind", "does not know", []string{greeting, `{"kind":"sing"}`}},
		{"too long", "does not know", []string{greeting, `{"kind":"want","key":"` + strings.Repeat("k", maxMessage) + `"}`}},
	} {
		c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		var last packet
		for _, m := range tc.say {
			if _, err := c.Write([]byte(m)); err != nil {
				t.Fatalf("%s: %v", tc.name, err)
			}
			if last, _, err = receive(c); err != nil {
				t.Fatalf("%s: %v", tc.name, err)
			}
		}
		if last.Kind != refused || !strings.Contains(last.Reason, tc.want) {
			t.Errorf("%s: %+v, want refused with %q", tc.name, last, tc.want)
		}
		if _, _, err := receive(c); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the conversation goes on: %v", tc.name, err)
		}
		_ = c.Close()
	}
	if old.yielded.Load() {
		t.Error("it yielded")
	}
	if second(t, path).Listener("web") == nil {
		t.Error("a good newcomer gets no socket any more")
	}
}

// TestStrangeRunner: a newcomer tells clearly why it does not get what it asks for.
func TestStrangeRunner(t *testing.T) {
	for _, answer := range []string{`{"kind":"refused","reason":"it speaks version 2 of the handover, not 1"}`, `{"kind":"welcome","version":3}`, `{"kind":"welcome","version":1,"hint":1}`} {
		path := filepath.Join(t.TempDir(), "h.sock")
		d := first(t, path)
		go func() {
			c, err := d.ln.AcceptUnix()
			if err != nil {
				return
			}
			_, _, _ = receive(c)
			_, _ = c.Write([]byte(answer))
			_ = c.Close()
		}()
		_, _, err := Claim(t.Context(), path, "v1", nil)
		var r *Refused
		if !errors.As(err, &r) || r.PID != os.Getpid() {
			t.Errorf("%s: %v, want a refusal", answer, err)
		}
		d.Close()
	}
}

// TestTooLate: a runner that lost its patience goes on, so the newcomer must not.
func TestTooLate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h.sock")
	d := first(t, path)
	d.patience = 10 * time.Millisecond
	old := serve(t, d, newRunner(t))
	p := second(t, path)
	q := second(t, path) // is served once the runner has given p up
	q.Close()
	var r *Refused
	if _, err := p.TakeOver(t.Context()); !errors.As(err, &r) || !strings.Contains(r.Reason, "not ready within") {
		t.Errorf("took over with %v, want a refusal", err)
	}
	if old.yielded.Load() {
		t.Error("it yielded")
	}
}

// TestRunnerEnds: a runner that is told to end while a newcomer prepares leaves the field to it.
func TestRunnerEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h.sock")
	old := serve(t, first(t, path), newRunner(t))
	p := second(t, path)
	ln := p.Listener("web")
	old.stop()
	if <-old.over {
		t.Fatal("an end is no takeover")
	}
	_ = old.ln.Close()
	d, err := p.TakeOver(t.Context())
	if err != nil || ln == nil {
		t.Fatalf("%v, socket %v", err, ln)
	}
	reaches(t, ln.Addr(), ln)
	d.Close()
}

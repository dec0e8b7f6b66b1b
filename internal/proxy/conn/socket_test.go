package conn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

// socketPair returns the two ends of a TCP connection.
func socketPair(t *testing.T) (a, b *Socket) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	dialled, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for i, nc := range []net.Conn{dialled, accepted} {
		s, err := NewSocket(nc.(*net.TCPConn))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		if i == 0 {
			a = s
		} else {
			b = s
		}
	}
	return a, b
}

func TestSocketHold(t *testing.T) {
	a, b := socketPair(t)
	for i := range 200 {
		a.hold([]byte("ask"))
		go func() {
			q := make([]byte, 8)
			if n, err := b.Read(q); err != nil || string(q[:n]) != "ask" {
				t.Errorf("round %d: %q, %v", i, q[:n], err)
			}
			if _, err := b.Write([]byte("answer")); err != nil {
				t.Error(err)
			}
		}()
		p := make([]byte, 8)
		if n, err := a.Read(p); err != nil || string(p[:n]) != "answer" {
			t.Fatalf("round %d: %q, %v", i, p[:n], err)
		}
	}
	if !a.forget() {
		t.Error("something is held still")
	}
	a.hold([]byte("never"))
	if a.forget() {
		t.Error("what is held counts as sent")
	}
}

// What the kernel has no room for goes out all the same, with everything in its order.
func TestSocketHoldMoreThanFits(t *testing.T) {
	a, b := socketPair(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	got := make(chan []byte, 1)
	go func() {
		p := make([]byte, len(want))
		_, _ = io.ReadFull(b, p)
		got <- p
		_, _ = b.Write([]byte("x"))
	}()
	a.holdWrites()
	for p := want; len(p) > 0; p = p[4<<20:] {
		if n, err := a.Write(p[:4<<20]); n != 4<<20 || err != nil {
			t.Fatal(n, err)
		}
	}
	var p [1]byte
	if n, err := a.Read(p[:]); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if !bytes.Equal(<-got, want) {
		t.Error("other bytes arrived than were written")
	}
}

func TestSocketPieces(t *testing.T) {
	a, b := socketPair(t)
	var want []byte
	go func() {
		for i := range 300 {
			x, y, z := bytes.Repeat([]byte{'a'}, i%7), bytes.Repeat([]byte{'b'}, i*31), bytes.Repeat([]byte{'c'}, i%3)
			if n, err := a.write(x, y, z); err != nil || n != len(x)+len(y)+len(z) {
				t.Errorf("%d: %d, %v", i, n, err)
			}
		}
		_ = a.CloseWrite()
	}()
	for i := range 300 {
		want = append(want, bytes.Repeat([]byte{'a'}, i%7)...)
		want = append(want, bytes.Repeat([]byte{'b'}, i*31)...)
		want = append(want, bytes.Repeat([]byte{'c'}, i%3)...)
	}
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes and %v, want %d", len(got), err, len(want))
	}
}

// A peer that does not read costs the time that limit gives and no more, and a later write is not bound by that.
func TestSocketWriteLimit(t *testing.T) {
	a, b := socketPair(t)
	a.limit(20 * time.Millisecond)
	var err error
	for total := 0; err == nil && total < 64<<20; total += 1 << 20 {
		_, err = a.Write(make([]byte, 1<<20))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("error %v", err)
	}
	go func() { _, _ = io.Copy(io.Discard, b) }()
	a.limit(time.Minute)
	if _, err := a.Write(make([]byte, 1<<20)); err != nil {
		t.Error("a write after one that timed out:", err)
	}
}

func TestSocketEnds(t *testing.T) {
	var p [8]byte
	t.Run("the peer closes", func(t *testing.T) {
		a, b := socketPair(t)
		_ = b.Close()
		if n, err := a.Read(p[:]); n != 0 || err != io.EOF {
			t.Error(n, err)
		}
	})
	t.Run("the peer closes what is held for it", func(t *testing.T) {
		a, b := socketPair(t)
		_ = b.SetLinger(0)
		_ = b.Close()
		a.hold([]byte("x"))
		if n, err := a.Read(p[:]); n != 0 || err == nil {
			t.Error(n, err)
		}
	})
	t.Run("closed while waiting", func(t *testing.T) {
		a, _ := socketPair(t)
		go func() { _ = a.Close() }()
		if n, err := a.Read(p[:]); n != 0 || !errors.Is(err, net.ErrClosed) {
			t.Error(n, err)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		a, b := socketPair(t)
		_ = a.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if n, err := a.Read(p[:]); n != 0 || !isTimeout(err) {
			t.Error(n, err)
		}
		_ = a.SetReadDeadline(time.Time{})
		_, _ = b.Write([]byte("x"))
		if n, err := a.Read(p[:]); n != 1 || err != nil {
			t.Error(n, err)
		}
	})
}

func TestSocketOf(t *testing.T) {
	a, b := socketPair(t)
	if s, plain := socketOf(a); s != a || !plain {
		t.Error("a socket is not found")
	}
	if s, plain := socketOf(tls.Client(a, &tls.Config{ServerName: "x"})); s != a || plain {
		t.Error("a socket under TLS is not found")
	}
	if s, _ := socketOf(b.TCPConn); s != nil {
		t.Error("a socket is found where there is none")
	}
}

// Whoever waits has no buffer; whoever has something to read at once keeps the one that it has.
func TestSocketReadIdle(t *testing.T) {
	a, b := socketPair(t)
	var given int
	own := make([]byte, 16)
	room := own
	waits := make(chan struct{}, 1)
	idle := &idleBuffers{
		take: func() []byte {
			if room == nil {
				room = make([]byte, 16)
			}
			return room
		},
		give: func() { given++; room = nil; waits <- struct{}{} },
	}
	go func() {
		<-waits
		_, _ = b.Write([]byte("late"))
	}()
	if n, err := a.readIdle(idle); err != nil || string(room[:n]) != "late" || &room[0] == &own[0] || given != 1 {
		t.Errorf("%q, %v, given %d", room[:n], err, given)
	}
	_, _ = b.Write([]byte("early"))
	for { // until it is there
		_ = a.SetReadDeadline(time.Now().Add(time.Second))
		if a.raw.Read(func(fd uintptr) bool { n, _ := peekOne(fd); return n > 0 }) == nil {
			break
		}
	}
	own = room
	if n, err := a.readIdle(idle); err != nil || string(own[:n]) != "early" || &room[0] != &own[0] || given != 1 {
		t.Errorf("%q, %v, given %d", own[:n], err, given)
	}
}

// What is given up is garbage: neither the socket nor the stack of the goroutine that waits refers to it.
func TestSocketReadIdleLetsGo(t *testing.T) {
	a, b := socketPair(t)
	gone := make(chan struct{})
	given := make(chan struct{})
	var room []byte
	first := true
	idle := &idleBuffers{
		take: func() []byte {
			switch {
			case first:
				first = false
				kept := new([4096]byte)
				runtime.AddCleanup(kept, func(c chan struct{}) { close(c) }, gone)
				room = kept[:]
			case room == nil:
				room = make([]byte, 1)
			}
			return room
		},
		give: func() { room = nil; close(given) },
	}
	read := make(chan error)
	go func() {
		_, err := a.readIdle(idle)
		read <- err
	}()
	<-given
	for i := 0; ; i++ {
		runtime.GC()
		select {
		case <-gone:
		case <-time.After(10 * time.Millisecond):
			if i < 500 {
				continue
			}
			t.Error("a connection that waits keeps the buffer that it gave up")
		}
		break
	}
	_ = b.Close()
	if err := <-read; !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// The last request, which is made of slices of the buffers, does not keep them either.
func TestIdleConnectionKeepsNoRequest(t *testing.T) {
	c := &h1Server{}
	in := c.takeBuffers()
	c.req.Path, c.req.Fields = in[:1], append(c.req.Fields, message.Field{Name: in[:1], Value: in[1:2]})
	lines := c.req.Fields
	c.giveBuffers()
	if c.req.Path != nil || c.req.Fields != nil || lines[0].Name != nil || lines[0].Value != nil {
		t.Errorf("%+v, %+v", c.req, lines)
	}
}

func peekOne(fd uintptr) (int, error) {
	n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return n, err
}

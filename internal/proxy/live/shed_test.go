package live_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/live"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestNoRoom: who is one connection too many is told so in the protocol that he speaks, and is let in once there is room.
func TestNoRoom(t *testing.T) {
	rec := telemetry.New(telemetry.Options{})
	_, addrs := start(t, live.Options{MaxConnections: 1, Recorder: rec}, simple(named(t, "a")))
	addr := addrs["out"]
	ask := func(c net.Conn) (*http.Response, string, error) {
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return nil, "", err
		}
		b, err := io.ReadAll(resp.Body)
		return resp, string(b), err
	}
	inside := dial(t, addr)
	if resp, _, err := ask(inside); err != nil || resp.StatusCode != 200 {
		t.Fatalf("the first one: %v", err)
	}

	resp, body, err := ask(dial(t, addr))
	if err != nil || resp.StatusCode != 503 || !resp.Close || !strings.Contains(body, "no room") {
		t.Errorf("HTTP/1: %+v %q %v, want 503 and the reason", resp, body, err)
	}
	c := dial(t, addr)
	_, _ = io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	frames, _ := io.ReadAll(c)
	if len(frames) < 9+17 || frames[3] != 4 || frames[9+3] != 7 || binary.BigEndian.Uint32(frames[18:]) != 0 || binary.BigEndian.Uint32(frames[22:]) != 0xb {
		t.Errorf("HTTP/2: % x, want SETTINGS and GOAWAY(0, ENHANCE_YOUR_CALM)", frames)
	}
	c = dial(t, addr)
	_, _ = io.WriteString(c, "\x00what?")
	if b, _ := io.ReadAll(c); len(b) > 0 {
		t.Errorf("an unknown protocol was answered with %q", b)
	}
	if n := rec.Proxy.ConnectionsRefused.Value(); n != 3 {
		t.Errorf("%d refused connections were counted, want 3", n)
	}

	_ = inside.Close()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		resp, _, err := ask(dial(t, addr))
		if err == nil && resp.StatusCode == 200 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("nobody is let in again: %v", err)
		}
	}
}

// TestHandshakeLimit: handshakes that do not end take places, not the proxy.
func TestHandshakeLimit(t *testing.T) {
	rec := telemetry.New(telemetry.Options{})
	p := simple(named(t, "a"))
	p.Listeners[0].Direction, p.Listeners[0].TLS = plan.Inbound, plan.TLSStrict
	_, addrs := start(t, live.Options{MaxHandshakes: 1, Recorder: rec}, p)
	slow := dial(t, addrs["out"])
	_, _ = slow.Write([]byte{0x16, 3, 1, 2, 0}) // the head of a record that does not come
	// Which of the two is first is not known, but one is refused at once, and the other one waits.
	other := dial(t, addrs["out"])
	_, _ = other.Write([]byte{0x16, 3, 1, 2, 0})
	ended := make(chan bool, 2)
	for _, c := range []net.Conn{slow, other} {
		go func() {
			var b [1]byte
			_, err := c.Read(b[:])
			ended <- err != nil
		}()
	}
	if !<-ended {
		t.Error("it said something")
	}
	if n := rec.Proxy.ConnectionsRefused.Value(); n != 1 {
		t.Errorf("%d refused connections were counted, want 1", n)
	}
	_, _ = slow.Write(bytes.Repeat([]byte{0}, 512)) // whoever is left fails, and gives the place back
	_, _ = other.Write(bytes.Repeat([]byte{0}, 512))
	<-ended
}

// TestShedParked: a connection that is parked is ended as any other is, and gives back what it has taken.
func TestShedParked(t *testing.T) {
	c := conn.Defaults()
	c.ParkAfter = time.Millisecond
	p, addrs := start(t, live.Options{Conn: c}, simple(named(t, "a")))
	for range 8 {
		c := dial(t, addrs["out"])
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v %v", resp, err)
		}
	}
	time.Sleep(50 * time.Millisecond) // most of them are parked by then
	if n := p.Shed(1); n != 8 {
		t.Errorf("%d connections were ended, want 8", n)
	}
	for end := time.Now().Add(10 * time.Second); p.Status().Listeners[0].Connections > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections that were ended are counted still", p.Status().Listeners[0].Connections)
		}
	}
}

// TestShedRetiring: who is connected to a listener that a plan took away has no more right to memory than others.
func TestShedRetiring(t *testing.T) {
	asked := make(chan struct{})
	p := simple(app(t, func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	}))
	px, addrs := start(t, live.Options{}, p)
	c := dial(t, addrs["out"])
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	<-asked
	next := simple(named(t, "a"))
	next.Listeners[0].Name = "another"
	if err := px.Apply(next); err != nil {
		t.Fatal(err)
	}
	if n := px.Shed(1); n != 1 {
		t.Errorf("%d connections were ended, want 1", n)
	}
}

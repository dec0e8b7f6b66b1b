package live_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/live"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// settle waits until a counter stands still, and returns it.
func settle(t *testing.T, n *atomic.Int64, most int64) int64 {
	t.Helper()
	last, since := n.Load(), time.Now()
	for time.Since(since) < 300*time.Millisecond {
		time.Sleep(10 * time.Millisecond)
		if now := n.Load(); now != last {
			last, since = now, time.Now()
		}
		if last > most {
			t.Fatalf("%d bytes went on their way to somebody who does not read", last)
		}
	}
	return last
}

// Who does not read makes the other end wait, whatever they speak and however many proxies are between: what is under way is
// bounded, and little of it is in the proxies. When they read, nothing is missing.
func TestBackPressure(t *testing.T) {
	if raceEnabled {
		t.Skip("it is about bytes, of which it moves many")
	}
	// Each hop has two socket buffers, which the kernel lets grow to 4 and 6 MB; HTTP/2 stops at its windows. The proxies' own
	// share is the second figure.
	const whole, most, ours = 64 << 20, 40 << 20, 6 << 20
	piece := bytes.Repeat([]byte("x"), 64<<10)
	var sent atomic.Int64
	release := make(chan struct{}, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("/down", func(w http.ResponseWriter, _ *http.Request) {
		for range whole / len(piece) {
			n, err := w.Write(piece)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/up", func(w http.ResponseWriter, r *http.Request) {
		<-release
		n, err := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprint(w, n, err)
	})
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse)
	}
	eachPair(t, mux, func(t *testing.T, c *http.Client, url string, down, up int) {
		if mesh := strings.HasSuffix(t.Name(), "mesh"); down != up || mesh != (down == 2) {
			return // TestMessagesOfEveryShape has the other pairs; this one takes its time
		}
		sent.Store(0)
		before := heap()
		resp, err := c.Get(url + "/down")
		if err != nil {
			t.Fatal(err)
		}
		if n := settle(t, &sent, most); n == 0 {
			t.Error("nothing was sent")
		}
		if grown := heap() - before; grown > ours {
			t.Errorf("the heap grew by %d bytes for one slow reader", grown)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		if err != nil || n != whole {
			t.Errorf("%d bytes arrived, %v", n, err)
		}
		_ = resp.Body.Close()

		sent.Store(0)
		before = heap()
		answer := make(chan string, 1)
		go func() {
			resp, err := c.Post(url+"/up", "", &counted{Reader: io.LimitReader(zeros{}, whole), n: &sent})
			if err != nil {
				answer <- err.Error()
				return
			}
			b, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			answer <- string(b)
		}()
		if n := settle(t, &sent, most); n == 0 {
			t.Error("nothing was sent")
		}
		if grown := heap() - before; grown > ours {
			t.Errorf("the heap grew by %d bytes for one slow endpoint", grown)
		}
		release <- struct{}{}
		if got, want := <-answer, fmt.Sprint(whole, error(nil)); got != want {
			t.Errorf("the endpoint read %s, want %s", got, want)
		}
	})
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

type counted struct {
	io.Reader
	n *atomic.Int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// A WebSocket over HTTP/2 (RFC 8441) becomes one over HTTP/1.1 at the application, also where HTTP/2 is between.
func TestWebSocketOverHTTP2(t *testing.T) {
	echo := app(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Sec-Websocket-Protocol") != "chat" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		nc, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = nc.Close() }()
		_, _ = io.WriteString(nc, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: chat\r\n\r\n")
		_, _ = io.Copy(nc, rw)
	})
	for what, at := range map[string]string{
		"one proxy":     startAt(t, simple(echo), "out"),
		"in the mesh":   meshPair(t, inbound(echo, plan.TLSStrict, ident.HTTP), ident.HTTP),
		"h2 in between": meshPair(t, inbound(echo, plan.TLSStrict, ident.HTTP), ident.HTTP2),
	} {
		nc, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		c := conn.NewH2Client(nc, conn.Defaults())
		go func() { _ = c.Run() }()
		t.Cleanup(func() {
			c.CloseConn()
			<-c.Done()
		})
		for range 2 { // the connection stays good for more
			webSocket(t, what, c)
		}
	}
}

func startAt(t *testing.T, p *plan.Plan, name string) string {
	_, at := start(t, live.Options{}, p)
	return at[name]
}

func webSocket(t *testing.T, what string, c *conn.H2Client) {
	t.Helper()
	u, err := c.Open()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer u.Close()
	u.SetReadDeadline(time.Now().Add(time.Minute))
	r := &message.Request{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("a"), Path: []byte("/chat"), Major: 2,
		Upgrade: []byte("websocket"), Length: message.Unknown}
	r.Fields.Add("sec-websocket-version", []byte("13"))
	r.Fields.Add("sec-websocket-protocol", []byte("chat"))
	if err := errors.Join(u.WriteHead(r, false), u.Flush()); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	var res message.Response
	if err := u.ReadHead(&res); err != nil || res.Status != 101 {
		t.Fatalf("%s: %d, %v", what, res.Status, err)
	}
	if p, _ := res.Fields.Get("sec-websocket-protocol"); string(p) != "chat" {
		t.Errorf("%s: the application's choice of a protocol came as %q", what, p)
	}
	if err := u.Hijack(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	for _, word := range []string{"one", "two", strings.Repeat("three", 5000)} {
		if err := errors.Join(u.WriteBody([]byte(word), false), u.Flush()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		var got []byte
		for len(got) < len(word) {
			p, err := u.ReadBody()
			if err != nil {
				t.Fatalf("%s: after %d bytes of %d: %v", what, len(got), len(word), err)
			}
			got = append(got, p...)
		}
		if string(got) != word {
			t.Errorf("%s: %.20q came back as %.20q", what, word, got)
		}
	}
	_ = u.WriteBody(nil, true)
	_ = u.Flush()
	if p, err := u.ReadBody(); len(p) > 0 || !errors.Is(err, io.EOF) {
		t.Errorf("%s: after the end: %q, %v", what, p, err)
	}
}

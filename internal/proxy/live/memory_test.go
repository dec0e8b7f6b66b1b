package live_test

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/live"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

// While memory is short nothing new is begun: requests, of gRPC too, and connections are told so in the words of their protocol, and
// what was open before is served again as soon as there is memory.
func TestShortOfMemory(t *testing.T) {
	rec := telemetry.New(telemetry.Options{})
	cfg := conn.Defaults()
	cfg.Memory = conn.NewMemory(1 << 30)
	p := simple(named(t, "a"))
	p.Listeners[0].Protocol = ident.HTTP
	px, addrs := start(t, live.Options{Conn: cfg, Recorder: rec}, p)
	addr := addrs["out"]
	type answer struct {
		status int
		body   string
		header http.Header
	}
	h1, h2 := speaking(t, 1), speaking(t, 2)
	ask := func(c *http.Client, contentType string) answer {
		t.Helper()
		req, _ := http.NewRequest("POST", "http://"+addr+"/", strings.NewReader("hello"))
		req.Header.Set("Content-Type", contentType)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, _ := io.ReadAll(resp.Body)
		return answer{resp.StatusCode, string(b), resp.Header}
	}
	for _, c := range []*http.Client{h1, h2} { // their connections are open from here on
		if a := ask(c, "text/plain"); a.status != 200 || a.body != "a" {
			t.Fatalf("before: %+v", a)
		}
	}

	cfg.Memory.SetShort(true)
	for i, c := range []*http.Client{h1, h2} {
		if a := ask(c, "text/plain"); a.status != 503 || !strings.Contains(a.body, "short of memory") {
			t.Errorf("HTTP/%d on an open connection: %+v", i+1, a)
		}
	}
	if a := ask(h2, "application/grpc"); a.status != 200 || a.header.Get("Grpc-Status") != "14" {
		t.Errorf("gRPC on an open connection: %+v", a)
	}
	c := dial(t, addr)
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 503 || !resp.Close {
		t.Errorf("a new connection: %+v, %v", resp, err)
	}
	if n := rec.Proxy.ConnectionsRefused.Value(); n != 1 {
		t.Errorf("%d refused connections were counted", n)
	}

	cfg.Memory.SetShort(false)
	for i, c := range []*http.Client{h1, h2} {
		if a := ask(c, "text/plain"); a.status != 200 || a.body != "a" {
			t.Errorf("HTTP/%d afterwards: %+v", i+1, a)
		}
	}

	// The last resort: connections are ended, and whoever comes back is served.
	idle := dial(t, addr)
	_, _ = io.WriteString(idle, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	br := bufio.NewReader(idle)
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 200 {
		t.Fatal(err)
	}
	open := int(rec.Proxy.ConnectionsOpened.Value() - rec.Proxy.ConnectionsClosed.Value())
	if n := px.Shed(1); n == 0 || n > open || rec.Proxy.ConnectionsShed.Value() != uint64(n) {
		t.Errorf("%d of %d connections were ended, %d counted", n, open, rec.Proxy.ConnectionsShed.Value())
	}
	if rest, err := io.ReadAll(br); !strings.HasSuffix(string(rest), "a") && len(rest) > 0 || err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the connection goes on: %q, %v", rest, err)
	}
	fresh := dial(t, addr)
	_, _ = io.WriteString(fresh, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(fresh), nil); err != nil || resp.StatusCode != 200 {
		t.Errorf("who comes back: %v", err)
	}
}

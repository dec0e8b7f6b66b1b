package live_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/live"
	"github.com/malha-mesh/malha/internal/proxy/server"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

// TestOnlyTheWorkloadSends: what is sent through an outbound listener is sent as the workload, so who may not be it is turned away,
// in whatever protocol and whatever the listener is for; where requests come in, everybody may knock.
func TestOnlyTheWorkloadSends(t *testing.T) {
	var asked atomic.Int64
	var allowed atomic.Bool
	rec := telemetry.New(telemetry.Options{})
	o := live.Options{Recorder: rec, Server: server.Options{Sender: func(remote, local netip.AddrPort) error {
		asked.Add(1)
		if !remote.IsValid() || !local.IsValid() || remote == local {
			t.Errorf("asked about %v at %v", remote, local)
		}
		if allowed.Load() {
			return nil
		}
		return errors.New("a stranger")
	}}}
	p := simple(named(t, "a"))
	forward := plan.Listener{Name: "forward", Bind: "127.0.0.1:0", Direction: plan.Outbound, Forward: true, Ports: []plan.ForwardPort{{Routes: "t"}}}
	in := plan.Listener{Name: "in", Bind: "127.0.0.1:0", Direction: plan.Inbound, TLS: plan.TLSPermissive, Protocol: ident.HTTP, Routes: "t"}
	tcp := plan.Listener{Name: "tcp", Bind: "127.0.0.1:0", Direction: plan.Outbound, Protocol: ident.TCP, TCP: to("a")}
	p.Listeners = append(p.Listeners, forward, in, tcp)
	_, addrs := start(t, o, p)

	const get, absolute = "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n"
	ask := func(listener, request string) (int, string) {
		t.Helper()
		c := dial(t, addrs[listener])
		_, _ = io.WriteString(c, request)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("%s: %v", listener, err)
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Errorf("%s: %v", listener, err)
		}
		return resp.StatusCode, string(b)
	}
	for listener, request := range map[string]string{"out": get, "forward": absolute} {
		if status, body := ask(listener, request); status != 403 || !strings.Contains(body, "only for programs") {
			t.Errorf("%s: %d %q, want 403 and the reason", listener, status, body)
		}
	}
	if status, _ := ask("forward", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"); status != 403 {
		t.Errorf("CONNECT: %d", status)
	}
	c := dial(t, addrs["out"])
	_, _ = io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	if frames, _ := io.ReadAll(c); len(frames) < 9+17 || frames[9+3] != 7 || binary.BigEndian.Uint32(frames[18:]) != 0 || binary.BigEndian.Uint32(frames[22:]) != 0xc {
		t.Errorf("HTTP/2: % x, want SETTINGS and GOAWAY(0, INADEQUATE_SECURITY)", frames)
	}
	c = dial(t, addrs["tcp"])
	_, _ = io.WriteString(c, get)
	if b, _ := io.ReadAll(c); len(b) > 0 {
		t.Errorf("an opaque listener answered %q", b)
	}
	if n := rec.Proxy.ConnectionsRefused.Value(); n != 5 || asked.Load() != 5 {
		t.Errorf("%d refused, %d asked about, want 5", n, asked.Load())
	}
	if status, _ := ask("in", get); status != 200 || asked.Load() != 5 {
		t.Errorf("inbound: %d, %d asked about", status, asked.Load())
	}

	allowed.Store(true)
	for listener, request := range map[string]string{"out": get, "forward": absolute, "tcp": get} {
		if status, _ := ask(listener, request); status != 200 {
			t.Errorf("%s: %d for the workload", listener, status)
		}
	}
}

package advisories

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
)

// A pattern that costs more than a bound to hold or to run keeps its plan out, and the last one serves on.
func TestPatternsAreBounded(t *testing.T) {
	o := newOrigin(t, nil)
	l := newLab(t, o.addr)
	for name, pattern := range map[string]string{
		"150 a megabyte":           strings.Repeat("a", 1<<20),
		"150 counted repetitions":  "(x{1000}){1000}",
		"150 nested repetitions":   strings.Repeat("(", 500) + "a" + strings.Repeat("{2})", 500),
		"150 nested groups":        strings.Repeat("(", 5000) + strings.Repeat(")", 5000),
		"150 many classes":         strings.Repeat(`\pL`, 2000),
		"150 no RE2: backtracking": `(a)\1`,
	} {
		t.Run(name, func(t *testing.T) {
			for where, m := range map[string]plan.Match{
				"path":   {Path: &match.String{Kind: match.Regex, Value: pattern}},
				"header": {Headers: []plan.FieldMatch{{Name: "x", Value: match.String{Kind: match.Regex, Value: pattern}}}},
			} {
				p := &plan.Plan{
					Listeners: []plan.Listener{{Name: "out", Bind: "127.0.0.1:0", Direction: plan.Outbound, Protocol: ident.HTTP, Routes: "t"}},
					Routes:    []plan.RouteTable{{Name: "t", Hosts: []plan.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []plan.Route{{Match: m, Forward: to("a")}}}}}},
				}
				if err := l.px.Apply(p); err == nil {
					t.Errorf("%s: the plan was taken", where)
				} else if len(err.Error()) > 4096 {
					t.Errorf("%s: the error has %d bytes", where, len(err.Error()))
				}
			}
			c := l.dial()
			c.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
			if m := c.must("GET"); m.status != 200 {
				t.Errorf("afterwards a request got %d", m.status)
			}
		})
	}
}

// A query may have as many parameters as the request line has room for: conditions on them cost no more than reading it.
func TestQueriesAreBounded(t *testing.T) {
	o := newOrigin(t, nil)
	l := newLab(t, o.addr, route(func(r *plan.Route) {
		for i := range 20 {
			r.Match.Query = append(r.Match.Query, plan.FieldMatch{Name: fmt.Sprintf("never%d", i), Value: match.String{Kind: match.Present}, Invert: true})
		}
	}))
	l.siege(func() int64 {
		var sent int64
		for _, tt := range []struct {
			query  string
			status int
		}{
			{strings.Repeat("&", 7000), 200},
			{strings.Repeat("a=b&", 1800), 200},
			{strings.Repeat("%61&", 1800), 200},
			{strings.Repeat("a&", 1_000_000), 414},
		} {
			for range 20 {
				c := l.dial()
				c.send("GET /?", tt.query, " HTTP/1.1\r\nhost: a\r\n\r\n")
				sent += int64(len(tt.query))
				if m, _, err := c.read("GET"); err == nil && m.status != tt.status {
					t.Errorf("a query of %d bytes got %d, want %d", len(tt.query), m.status, tt.status)
				} else if err != nil && tt.status == 200 {
					t.Errorf("a query of %d bytes: %v", len(tt.query), err)
				}
				_ = c.nc.Close()
			}
		}
		return sent
	})
}

// Nothing that the proxy says offers another way to the same host.
func TestNoOtherProtocolIsOffered(t *testing.T) {
	o := newOrigin(t, nil)
	l := newLab(t, o.addr)
	for _, target := range []string{"/", "/missing"} {
		c := l.dial()
		c.send("GET ", target, " HTTP/1.1\r\nhost: a\r\n\r\n")
		if m := c.must("GET"); m.count("alt-svc") != 0 {
			t.Errorf("%s: an answer has Alt-Svc", target)
		}
	}
	// Nor is it there: UDP is free at the port of a listener, unless somebody else on this machine has it just now.
	for i := range 10 {
		uc, err := net.ListenPacket("udp", l.at)
		if err == nil {
			_ = uc.Close()
			break
		}
		if i == 9 {
			t.Errorf("UDP is taken at the ports of %d proxies: %v", i+1, err)
		}
		l = newLab(t, o.addr)
	}
}

// Whatever an endpoint answers to a health check, the proxy goes on, and the endpoint is not healthy for it.
func TestHealthChecksOfHostileEndpoints(t *testing.T) {
	apart(t)
	settings := string(frame(http2.FrameSettings, 0, 0, nil))
	headers := func(end bool, kv ...string) string { return string(open(1, end, raw(kv...))) }
	ok := headers(false, ":status", "200", "content-type", "application/grpc")
	message := func(flag byte, size uint32, body string) string {
		return string(data(1, false, string(binary.BigEndian.AppendUint32([]byte{flag}, size))+body))
	}
	for name, answer := range map[string]string{
		"143 nothing but settings":         settings,
		"143 GOAWAY":                       settings + string(frame(http2.FrameGoAway, 0, 0, make([]byte, 8))),
		"143 GOAWAY in the middle":         settings + ok + string(frame(http2.FrameGoAway, 0, 0, make([]byte, 8))) + message(0, 2, "\x08\x01"),
		"143 reset":                        settings + string(reset(1)),
		"143 trailers only":                settings + headers(true, ":status", "200", "content-type", "application/grpc", "grpc-status", "12"),
		"143 no status":                    settings + headers(true, "content-type", "application/grpc"),
		"143 a message that is too long":   settings + ok + message(0, 1<<31, "\x08\x01"),
		"143 a compressed message":         settings + ok + message(1, 2, "\x08\x01"),
		"143 half a message":               settings + ok + message(0, 200, "\x08\x01"),
		"143 a varint without an end":      settings + ok + message(0, 8, strings.Repeat("\xff", 8)) + headers(true, "grpc-status", "0"),
		"143 many messages":                settings + ok + strings.Repeat(message(0, 2, "\x08\x02"), 2000),
		"143 HTTP/1":                       "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\x08\x01",
		"143 noise":                        strings.Repeat("\x00\xff", 20_000),
		"143 a head of a megabyte":         settings + ok + strings.Repeat(string(frame(http2.FrameContinuation, 0, 1, make([]byte, 16000))), 64),
		"143 settings that are no good":    string(frame(http2.FrameSettings, 0, 0, setting(http2.SettingMaxFrameSize, 0))),
		"143 an answer before it is asked": settings + string(frame(http2.FramePushPromise, 4, 1, raw(get...))),
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var checks atomic.Int32
			over := make(chan struct{})
			go func() {
				defer close(over)
				for {
					nc, err := ln.Accept()
					if err != nil {
						return
					}
					checks.Add(1)
					go func() {
						defer func() { _ = nc.Close() }()
						_ = nc.SetDeadline(time.Now().Add(patience))
						br := bufio.NewReader(nc)
						if _, err := br.Peek(24); err != nil {
							return
						}
						_, _ = nc.Write([]byte(answer))
						_, _ = br.WriteTo(discard{})
					}()
				}
			}()
			t.Cleanup(func() { _ = ln.Close(); <-over })
			l := newLab(t, ln.Addr().String(), planned(func(p *plan.Plan) {
				p.Clusters[0].Protocol = ident.GRPC
				p.Clusters[0].Check = &plan.HealthCheck{GRPC: true, Interval: plan.Duration(30 * time.Millisecond), Timeout: plan.Duration(100 * time.Millisecond), Unhealthy: 1}
			}))
			sick := func() string { return l.px.Upstreams().Snapshot().Clusters[0].Endpoints[0].Why }
			for by := time.Now().Add(patience); sick() == "" || checks.Load() < 3; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(by) {
					t.Fatalf("after %d checks the endpoint counts as healthy", checks.Load())
				}
			}
			c := l.dial()
			c.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
			if m := c.must("GET"); m.status != 503 {
				t.Errorf("a request got %d", m.status)
			}
		})
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

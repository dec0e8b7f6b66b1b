package stack

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// accepts runs serve for each connection, with its number.
func accepts(t *testing.T, serve func(n int, nc net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for n := 0; ; n++ {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = nc.Close() })
			all.Go(func() {
				serve(n, nc)
				_ = nc.Close()
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
	return l.Addr().String()
}

// drops answers a request on its first connection, reads the next one and ends that connection; on others it answers all. It counts
// what it read.
func drops(read *atomic.Int32) func(int, net.Conn) {
	return func(n int, nc net.Conn) {
		in := bufio.NewReader(nc)
		for i := 0; ; i++ {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			read.Add(1)
			if n == 0 && i == 1 {
				return
			}
			_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	}
}

// A kept connection that ends under a request is no failure of the endpoint, so it uses up nothing that bounds retries, where the
// request may be repeated. What may not (RFC 9110 section 9.2.2) is sent again only where a rule says so of requests that may have
// been read: not where it speaks of those that were not.
func TestLostConnection(t *testing.T) {
	unprocessed := plan.RetryConnectFailure | plan.RetryRefusedStream
	none := plan.RetryBudget{TTL: plan.Duration(time.Second)}
	for _, tc := range []struct {
		name    string
		method  string
		retry   *plan.Retry
		budget  plan.RetryBudget
		cluster *plan.ActiveRetries
		status  int
		read    int32
	}{
		{"no rule", "GET", nil, none, nil, 200, 3},
		{"no retries at a time", "GET", nil, none, &plan.ActiveRetries{}, 200, 3},
		{"no retries in the budget", "GET", &plan.Retry{Attempts: 2, On: unprocessed}, none, nil, 200, 3},
		{"an order", "POST", nil, none, nil, 503, 2},
		{"an order, and what was not processed is retried", "POST", &plan.Retry{Attempts: 2, On: unprocessed}, plan.RetryBudget{}, nil, 503, 2},
		{"an order, and what was reset is retried", "POST", &plan.Retry{Attempts: 2, On: plan.RetryReset}, plan.RetryBudget{}, nil, 200, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var read atomic.Int32
			r := newRig(t, setup{
				routes: []plan.Route{{Forward: to("app"), Retry: tc.retry}}, budget: tc.budget,
				clusters: []plan.Cluster{{Name: "app", Protocol: ident.HTTP, Budget: tc.cluster}},
				at:       map[string][]plan.Endpoint{"app": {{Address: accepts(t, drops(&read))}}},
			})
			if resp, body := r.do("GET", "/", ""); resp.StatusCode != 200 {
				t.Fatalf("the program answered %d %s", resp.StatusCode, body)
			}
			resp, body := r.do(tc.method, "/", "")
			if resp.StatusCode != tc.status || read.Load() != tc.read {
				t.Errorf("%d %s, and the program read %d requests, want %d and %d", resp.StatusCode, body, read.Load(), tc.status, tc.read)
			}
		})
	}
}

// What an endpoint refuses unprocessed over HTTP/2 may be sent again whatever it is (RFC 9113 section 8.7).
func TestRefusedStream(t *testing.T) {
	for _, tc := range []struct {
		refused int32
		status  int
		unsent  string
		flags   string
	}{{1, 200, "", "-"}, {2, 503, "1", "UR"}} {
		var asked atomic.Int32
		app := accepts(t, func(_ int, nc net.Conn) {
			conn.ServeH2(nc, nil, &conn.Peer{}, refuses{&asked, tc.refused}, conn.Defaults(), nil)
		})
		r := newRig(t, setup{
			listener: plan.Listener{Direction: plan.Inbound}, peer: mesh,
			routes: []plan.Route{{Forward: to("app")}}, clusters: []plan.Cluster{{Name: "app", Protocol: ident.HTTP2}},
			at: map[string][]plan.Endpoint{"app": {{Address: app}}},
		})
		resp, body := r.do("POST", "/", "an order")
		if resp.StatusCode != tc.status || asked.Load() != 2 || resp.Header.Get(unsentHeader) != tc.unsent {
			t.Errorf("%d %s, %v, and the program was asked %d times", resp.StatusCode, body, resp.Header, asked.Load())
		}
		if l := r.records()[0]; l["response_flags"] != tc.flags {
			t.Errorf("logged %v", l)
		}
	}
}

// refuses refuses the first exchanges, and answers the others.
type refuses struct {
	asked *atomic.Int32
	first int32
}

func (r refuses) Serve(d stream.Downstream, _ *conn.Peer) {
	if r.asked.Add(1) <= r.first {
		d.Reset(stream.Refused)
	} else {
		_ = d.WriteHead(&message.Response{Status: 200}, true)
	}
}

// That a retry was not read does not mean that the try before it was not.
func TestUnreadRetry(t *testing.T) {
	app := accepts(t, func(n int, nc net.Conn) {
		if n == 0 {
			if req, err := http.ReadRequest(bufio.NewReader(nc)); err == nil {
				_, _ = io.Copy(io.Discard, req.Body)
			}
			return
		}
		if raw, err := nc.(*net.TCPConn).SyscallConn(); err == nil {
			_ = raw.Read(arrived)
		}
	})
	r := newRig(t, setup{
		listener: plan.Listener{Direction: plan.Inbound}, peer: mesh,
		routes:   []plan.Route{{Forward: to("app"), Retry: &plan.Retry{Attempts: 1, On: plan.RetryReset}}},
		clusters: []plan.Cluster{{Name: "app", Protocol: ident.HTTP}},
		at:       map[string][]plan.Endpoint{"app": {{Address: app}}},
	})
	resp, body := r.do("POST", "/", "an order")
	if got := resp.Header.Get(unsentHeader); resp.StatusCode != 503 || got != "" {
		t.Errorf("%d %s, %s is %q", resp.StatusCode, body, unsentHeader, got)
	}
}

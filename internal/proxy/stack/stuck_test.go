package stack

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// deaf is a program that reads the head of a request and no more, says something, and keeps its connection.
func deaf(over <-chan struct{}, answer string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		nc, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		if answer != "" {
			_, _ = io.WriteString(nc, answer)
		}
		<-over
		_ = nc.Close()
	}
}

// A program that does not read a request holds up nobody but that: its answer is passed on at once, and a time that is over is over.
func TestWhoDoesNotRead(t *testing.T) {
	const chunked, sized = "transfer-encoding: chunked\r\n\r\n8000\r\n", "content-length: 32768\r\n\r\n"
	body := strings.Repeat("x", 0x8000)
	for _, tc := range []struct {
		name   string
		route  plan.Route
		answer string
		framed string // and the beginning of the body
		last   string // its end
		status int
	}{
		{"an answer to a body that has not come", plan.Route{}, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno", chunked, "\r\n", 413},
		{"an answer to one that has", plan.Route{}, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno", chunked, "\r\n0\r\n\r\n", 413},
		{"an answer without a body", plan.Route{}, "HTTP/1.1 204 No Content\r\n\r\n", chunked, "\r\n", 204},
		{"idle", plan.Route{Idle: millis(300)}, "", chunked, "\r\n", 408},
		{"time is over", plan.Route{Idle: millis(60_000), Timeout: millis(300)}, "", chunked, "\r\n", 504},
		{"time is over for a small body", plan.Route{Timeout: millis(300)}, "", sized, "", 504},
		{"time is over for a small body's try", plan.Route{Retry: &plan.Retry{Attempts: 1, On: plan.Retry5xx, PerTry: millis(300)}}, "", sized, "", 504},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				over := make(chan struct{})
				tc.route.Forward = to("c")
				r := newRig(t, setup{pipes: new(pipes), routes: []plan.Route{tc.route}, apps: map[string][]http.HandlerFunc{"c": {deaf(over, tc.answer)}}})
				defer close(over)
				nc, err := r.dial(t.Context(), strings.TrimPrefix(r.url, "http://"))
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = nc.Close() }()
				go func() {
					_, _ = io.WriteString(nc, "POST / HTTP/1.1\r\nhost: a\r\n"+tc.framed+body+tc.last)
				}()
				began := time.Now()
				if status := statusOf(t, nc); status != tc.status {
					t.Errorf("status %d, want %d", status, tc.status)
				}
				if took := time.Since(began); took > time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func statusOf(t *testing.T, nc net.Conn) int {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

// Nor does one that gives no window over HTTP/2.
func TestWhoGivesNoWindow(t *testing.T) {
	cfg := conn.Defaults()
	cfg.StreamWindow = 10
	app := accepts(t, func(_ int, nc net.Conn) { conn.ServeH2(nc, nil, &conn.Peer{}, deafTo("POST"), cfg, nil) })
	r := newRig(t, setup{
		routes: []plan.Route{{Forward: to("app"), Timeout: millis(300)}}, clusters: []plan.Cluster{{Name: "app", Protocol: ident.HTTP2}},
		at: map[string][]plan.Endpoint{"app": {{Address: app}}},
	})
	if resp, body := r.do("GET", "/", ""); resp.StatusCode != 200 { // from here on its window is known
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	if resp, body := r.do("POST", "/", strings.Repeat("x", 100)); resp.StatusCode != 504 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// deafTo does not read, nor answer, requests with a method.
type deafTo string

func (m deafTo) Serve(d stream.Downstream, _ *conn.Peer) {
	if string(d.Request().Method) != string(m) {
		_ = d.WriteHead(&message.Response{Status: 200}, true)
		return
	}
	for w := d.(stream.Watched); !w.Gone(); {
		time.Sleep(time.Millisecond)
	}
}

// A client that leaves in the pause before a retry is not worked for any more.
func TestClientLeavesInAPause(t *testing.T) {
	asked := make(chan struct{}, 2)
	r := newRig(t, setup{
		routes: []plan.Route{{Forward: to("c"), Retry: &plan.Retry{Attempts: 1, On: plan.Retry5xx, BackoffBase: millis(3_600_000)}}},
		apps: map[string][]http.HandlerFunc{"c": {func(w http.ResponseWriter, _ *http.Request) {
			asked <- struct{}{}
			w.WriteHeader(503)
		}}},
	})
	nc, err := r.dial(t.Context(), strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(nc, "GET / HTTP/1.1\r\nhost: a\r\n\r\n")
	<-asked
	_ = nc.Close()
	over := make(chan struct{})
	go func() { r.stop(); close(over) }()
	select {
	case <-over:
	case <-time.After(10 * time.Second):
		t.Fatal("the exchange goes on")
	}
	if l := r.records()[0]; l["response_flags"] != "DC" || len(asked) > 0 {
		t.Errorf("logged %v", l)
	}
}

// A body that has not come to its end when it is sent again has two writers, one after the other: the exchange, with what came before
// and as long as the try may last, and the pump. It is the race detector that tells them apart.
func TestRetryWhileTheBodyComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := make(chan struct{})
		tries := 0
		r := newRig(t, setup{
			pipes:  new(pipes),
			routes: []plan.Route{{Forward: to("c"), Retry: &plan.Retry{Attempts: 1, On: plan.Retry5xx, PerTry: millis(10_000), BackoffBase: millis(1)}}},
			apps: map[string][]http.HandlerFunc{"c": {func(w http.ResponseWriter, r *http.Request) {
				if tries++; tries == 1 {
					over := make(chan struct{})
					close(over)
					deaf(over, "HTTP/1.1 503 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")(w, r)
					return
				}
				close(began)
				b, err := io.ReadAll(r.Body)
				if err != nil {
					t.Error(err)
				}
				_, _ = w.Write(b)
			}}},
		})
		nc, err := r.dial(t.Context(), strings.TrimPrefix(r.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = nc.Close() }()
		_, _ = io.WriteString(nc, "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
		<-began
		_, _ = io.WriteString(nc, "4\r\nlast\r\n0\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || string(body) != "firstlast" {
			t.Errorf("%d %q %v", resp.StatusCode, body, err)
		}
	})
}

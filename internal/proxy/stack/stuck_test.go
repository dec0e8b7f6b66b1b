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

	"github.com/malha-mesh/malha/internal/plan"
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
	const chunk = "8000\r\n"
	body := chunk + strings.Repeat("x", 0x8000) + "\r\n"
	for _, tc := range []struct {
		name   string
		route  plan.Route
		answer string
		last   string // the end of the body
		status int
	}{
		{"an answer to a body that has not come", plan.Route{}, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno", "", 413},
		{"an answer to one that has", plan.Route{}, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno", "0\r\n\r\n", 413},
		{"an answer without a body", plan.Route{}, "HTTP/1.1 204 No Content\r\n\r\n", "", 204},
		{"idle", plan.Route{Idle: millis(300)}, "", "", 408},
		{"time is over", plan.Route{Idle: millis(60_000), Timeout: millis(300)}, "", "", 504},
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
					_, _ = io.WriteString(nc, "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"+body+tc.last)
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

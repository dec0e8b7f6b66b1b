package upstream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// TestUnixSockets: programs that listen on a unix socket, by its path and by an abstract name, are spoken to in HTTP/1.1, HTTP/2 and
// opaque bytes, and connections are used again.
func TestUnixSockets(t *testing.T) {
	for _, at := range []string{filepath.Join(t.TempDir(), "app.sock"), fmt.Sprintf("@malha-%s-%d", t.Name(), time.Now().UnixNano())} {
		ln, err := net.Listen("unix", at)
		if err != nil {
			t.Fatal(err)
		}
		connections := make(chan struct{}, 100)
		program := &http.Server{
			Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprint(w, r.Proto) }),
			Protocols: new(http.Protocols),
			ConnState: func(_ net.Conn, s http.ConnState) {
				if s == http.StateNew {
					connections <- struct{}{}
				}
			},
		}
		program.Protocols.SetHTTP1(true)
		program.Protocols.SetUnencryptedHTTP2(true)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = program.Serve(ln)
		}()
		defer func() { _ = program.Close(); <-done }()

		for protocol, want := range map[ident.Protocol]string{ident.HTTP: "HTTP/1.1", ident.HTTP2: "HTTP/2.0"} {
			c := only(newSet(t, Options{}), plan.Cluster{Protocol: protocol, TLS: plan.TLSOff}, plan.UnixPrefix+at)
			for range 3 {
				if body, _ := mustGet(t, c, Attempt{}, "/"); body != want {
					t.Errorf("%s over %s: %q", protocol, at, body)
				}
			}
			if n := len(connections); n != 1 {
				t.Errorf("%s over %s: %d connections for 3 requests in turn", protocol, at, n)
			}
			for len(connections) > 0 {
				<-connections
			}
		}

		c := only(newSet(t, Options{}), plan.Cluster{Protocol: ident.TCP, TLS: plan.TLSOff, Keepalive: &plan.Keepalive{Probes: 3}}, plan.UnixPrefix+at)
		nc, e, err := c.Dial(time.Now().Add(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if e.Address() != plan.UnixPrefix+at || e.Host() != "localhost" {
			t.Errorf("endpoint %s, host %s", e.Address(), e.Host())
		}
		_, _ = io.WriteString(nc, "GET / HTTP/1.0\r\n\r\n")
		if w, ok := nc.(interface{ CloseWrite() error }); !ok || w.CloseWrite() != nil {
			t.Error("the end of what is sent can't be said")
		}
		if b, err := io.ReadAll(nc); err != nil || len(b) == 0 {
			t.Errorf("read %q, %v", b, err)
		}
		_ = nc.Close()
	}
}

// A socket that nobody listens on is an endpoint that can't be connected to.
func TestUnixSocketThatIsNotThere(t *testing.T) {
	c := only(newSet(t, Options{}), plan.Cluster{Protocol: ident.HTTP, TLS: plan.TLSOff}, plan.UnixPrefix+filepath.Join(t.TempDir(), "none.sock"))
	var failed *ConnectError
	if _, err := c.Acquire(&Attempt{}); !errors.As(err, &failed) {
		t.Errorf("%v, want a ConnectError", err)
	}
}

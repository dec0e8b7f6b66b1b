package upstream

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// TestCheckAsksAnotherPort: a program that says on one port how it is gets no requests on another while it is ill.
func TestCheckAsksAnotherPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := "HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n" // well, for Kubernetes
		var mu sync.Mutex
		asked := map[string]int{}
		s := newSet(t, Options{Dial: func(_ context.Context, addr string) (net.Conn, error) {
			near, far := net.Pipe()
			mu.Lock()
			defer mu.Unlock()
			asked[addr]++
			say := answer
			go func() {
				defer func() { _ = far.Close() }()
				buf := make([]byte, 4096)
				if n, err := far.Read(buf); err == nil && n > 0 {
					_, _ = io.WriteString(far, say)
				}
			}()
			return near, nil
		}})
		s.put([]plan.Cluster{{
			Name: "c", Protocol: ident.HTTP, TLS: plan.TLSOff,
			Check: &plan.HealthCheck{Path: "/ready", Port: 9, Interval: plan.Duration(time.Second), Unhealthy: 1},
		}}, []plan.Endpoints{{Cluster: "c", Endpoints: []plan.Endpoint{{Address: "10.0.0.1:80"}}}})
		c := s.Cluster("c")
		c.core() // it is in use
		time.Sleep(5 * time.Second)
		synctest.Wait()
		mu.Lock()
		if asked["10.0.0.1:9"] == 0 || len(asked) != 1 {
			t.Fatalf("asked %v, want port 9 alone", asked)
		}
		mu.Unlock()
		if e := s.Snapshot().Clusters[0].Endpoints[0]; e.Why != "" {
			t.Errorf("a redirect makes it ill: %+v", e)
		}
		mu.Lock()
		answer = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
		mu.Unlock()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if e := s.Snapshot().Clusters[0].Endpoints[0]; e.Why != "health check: status 503" {
			t.Errorf("%+v, want it ill", e)
		}
		s.put(nil, nil)
		synctest.Wait()
	})
}

// TestCheckOverTLS: a program that is asked over TLS needs no certificate that anybody knows; the headers of the probe reach it.
func TestCheckOverTLS(t *testing.T) {
	asked := make(chan *http.Request, 1)
	server := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case asked <- r:
		default:
		}
	}))
	defer server.Close()
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	number, _ := strconv.Atoi(port)
	s := newSet(t, Options{})
	s.put([]plan.Cluster{{
		Name: "c", Protocol: ident.HTTP, TLS: plan.TLSOff,
		Check: &plan.HealthCheck{
			Path: "/ready", Port: number, TLS: true, Host: "shop.example", Interval: plan.Duration(20 * time.Millisecond), Timeout: plan.Duration(time.Minute), Unhealthy: 1,
			Headers: []plan.Field{{Name: "x-probe", Value: "a"}, {Name: "x-probe", Value: "b"}, {Name: "user-agent", Value: "kube-probe"}},
		},
	}}, []plan.Endpoints{{Cluster: "c", Endpoints: []plan.Endpoint{{Address: "127.0.0.1:80"}}}})
	s.Cluster("c").core() // it is in use
	<-asked
	r := <-asked // whoever asks again has read the first answer
	if r.TLS == nil || r.TLS.ServerName != "shop.example" || r.Host != "shop.example" || r.UserAgent() != "kube-probe" || !slices.Equal(r.Header["X-Probe"], []string{"a", "b"}) {
		t.Errorf("asked %s %s %v over %+v", r.Host, r.URL, r.Header, r.TLS)
	}
	if e := s.Snapshot().Clusters[0].Endpoints[0]; e.Why != "" {
		t.Errorf("%+v, want it well", e)
	}
}

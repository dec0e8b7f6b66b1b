package testmesh

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
)

// chain is client → front → middle → back, where every hop retries what fails.
func chain() string {
	var b strings.Builder
	for _, name := range []string{"client", "front", "middle", "back"} {
		b.WriteString(strings.ReplaceAll(`
---
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec: {selector: {app: NAME}, ports: [{name: http, port: 80, targetPort: 8000}]}
---
apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: NAME, labels: {app: NAME}}
spec: {serviceAccount: NAME, ports: [{name: http, port: 8000}], run: {command: [NAME]}}
---
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: NAME}
spec: {hosts: [NAME], http: [{route: [{destination: {host: NAME}}], retries: {attempts: 3, retryOn: "5xx"}}]}
`, "NAME", name))
	}
	return b.String()
}

// When the last of three hops is down, it is asked little more often than the first one: each hop alone would ask four times,
// and all three together 64 times.
func TestRetryAmplification(t *testing.T) {
	t.Parallel()
	const requests, workers = 2000, 16
	var m *Mesh
	var asked atomic.Int64
	down := make(chan struct{})
	next := map[string]string{"front": "middle", "middle": "back"}
	m = Start(t, chain(), Options{Handler: func(w ident.Name) http.Handler {
		to, ok := next[w.Name]
		switch {
		case w.Name == "back":
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				asked.Add(1)
				select {
				case <-down:
					w.WriteHeader(http.StatusServiceUnavailable)
				default:
				}
			})
		case !ok:
			return nil
		}
		var once sync.Once
		var c *http.Client
		return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			once.Do(func() { c = m.Client(w.Name) })
			resp, err := c.Get("http://" + to + "/")
			if err != nil {
				rw.WriteHeader(http.StatusBadGateway)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			rw.WriteHeader(resp.StatusCode)
		})
	}})
	c := m.Client("client")
	run := func(want int) int64 {
		asked.Store(0)
		var wg sync.WaitGroup
		var other atomic.Int64
		for range workers {
			wg.Go(func() {
				for range requests / workers {
					if a, err := Try(c, http.MethodGet, "http://front/", ""); err != nil || a.Status != want {
						other.Add(1)
					}
				}
			})
		}
		wg.Wait()
		if n := other.Load(); n != 0 {
			t.Errorf("%d of %d requests did not end with %d", n, requests, want)
		}
		return asked.Load()
	}
	if n := run(200); n != requests {
		t.Errorf("with all of them up, the last hop was asked %d times for %d requests", n, requests)
	}
	close(down)
	n := run(503)
	t.Logf("with the last hop down it was asked %d times for %d requests: %.2f ×", n, requests, float64(n)/requests)
	if float64(n) > 1.2*requests {
		t.Errorf("with the last hop down it was asked %d times for %d requests: %.2f ×, at most 1.2 × is allowed", n, requests, float64(n)/requests)
	}
}

package testmesh

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
	begin := time.Now()
	n := run(503)
	// In each while of 10 s each hop may find out anew, by 20 retries and those that are on their way then, that they don't help. On a quiet
	// machine all of it is less than one while, which may lie across the ends of two.
	whiles := int64(time.Since(begin)/(10*time.Second)) + 2
	most := requests + whiles*3*(20+workers)
	t.Logf("with the last hop down it was asked %d times for %d requests: %.2f ×", n, requests, float64(n)/requests)
	if n > most {
		t.Errorf("with the last hop down it was asked %d times for %d requests: %.2f ×, at most %d times is allowed", n, requests, float64(n)/requests, most)
	}
}

package testmesh

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/malha-mesh/malha/internal/plan"
)

// onSocket is a program that listens on a unix socket.
func onSocket(t *testing.T, name string) (address string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-App", name) }))
	_ = s.Listener.Close()
	s.Listener = ln
	s.Start()
	t.Cleanup(s.Close)
	return plan.UnixPrefix + path
}

// A ServiceEntry leads to a socket beside the client, and a Sidecar to one beside it, on which its program listens: others come there
// over mesh TLS.
func TestUnixSockets(t *testing.T) {
	t.Parallel()
	m := Start(t, shop+strict+fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: socket}
spec:
  hosts: [example.unix.local]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: "%s"}]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: web}
spec:
  workloadSelector: {labels: {app: web, version: v2}}
  ingress: [{port: {number: 8000, protocol: HTTP, name: http}, defaultEndpoint: "%s"}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec: {hosts: [web], http: [{route: [{destination: {host: web, subset: v2}}]}]}
`, onSocket(t, "entry.sock"), onSocket(t, "program.sock")))
	for range 3 {
		if a := m.Get("client", "http://example.unix.local/"); a.Status != 200 || a.By != "entry.sock" {
			t.Errorf("the ServiceEntry: %d by %q", a.Status, a.By)
		}
		if a := m.Get("client", "http://web/"); a.Status != 200 || a.By != "program.sock" {
			t.Errorf("the Sidecar: %d by %q", a.Status, a.By)
		}
	}
}

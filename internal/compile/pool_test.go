package compile_test

import (
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/golden"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/world"
)

// oneWorkload is whose plan is looked at; more documents follow it.
const oneWorkload = `
apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: web, labels: {app: web}}
spec: {ports: [{name: http, port: 8080}], address: 127.0.0.1}
---
`

// byPort returns what is of interest in each cluster of a host, in the plan of the workload web.
func byPort[T any](t *testing.T, mesh, host string, of func(*plan.Cluster) T) map[int]T {
	t.Helper()
	cfg, placed := parse(t, golden.File{Name: "mesh.yaml", Data: []byte(mesh)})
	p, _ := planOf(t, world.Build(cfg, placed.Instances, placed.Gateways), "web")
	out := map[int]T{}
	for i := range p.Clusters {
		if c := &p.Clusters[i]; c.Host == host {
			out[c.Port] = of(c)
		}
	}
	return out
}

// TestIdleTimeouts is of the two that a DestinationRule may write, on ports of each kind: that of tcp is also that of HTTP
// connections which http says nothing of (Istio: applyConnectionPool).
func TestIdleTimeouts(t *testing.T) {
	const mesh = oneWorkload + `apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: any, port: 81, targetPort: 8080}, {name: tcp, port: 82, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec: {host: web, trafficPolicy: {connectionPool: `
	type idle struct{ HTTP, TCP time.Duration }
	for pool, want := range map[string]map[int]idle{
		"{tcp: {idleTimeout: 60s}}":                            {80: {HTTP: time.Minute}, 81: {time.Minute, time.Minute}, 82: {TCP: time.Minute}},
		"{http: {idleTimeout: 5s}}":                            {80: {HTTP: 5 * time.Second}, 81: {HTTP: 5 * time.Second}, 82: {HTTP: 5 * time.Second}},
		"{tcp: {idleTimeout: 60s}, http: {idleTimeout: 5s}}":   {80: {HTTP: 5 * time.Second}, 81: {5 * time.Second, time.Minute}, 82: {5 * time.Second, time.Minute}},
		"{tcp: {connectTimeout: 1s}, http: {maxRetries: 100}}": {80: {}, 81: {}, 82: {}},
	} {
		got := byPort(t, mesh+pool+"}}\n", "web.default.svc.cluster.local", func(c *plan.Cluster) idle { return idle{c.Limits.IdleTimeout.D(), c.TCPIdle.D()} })
		if d := gocmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", pool, d)
		}
	}
}

// TestUpgrade is of h2UpgradePolicy for servers outside of the mesh, where no sidecar is that could be asked to share connections.
func TestUpgrade(t *testing.T) {
	const mesh = oneWorkload + `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: far}
spec: {hosts: [far.example], location: MESH_EXTERNAL, resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}, {number: 81, name: any}, {number: 82, name: tcp, protocol: TCP}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: far}
spec: {host: far.example, trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: `
	for policy, want := range map[string]map[int]ident.Protocol{
		"UPGRADE":        {80: ident.HTTP2, 81: ident.Detect, 82: ident.TCP},
		"DO_NOT_UPGRADE": {80: ident.HTTP, 81: ident.Detect, 82: ident.TCP},
		"DEFAULT":        {80: ident.HTTP, 81: ident.Detect, 82: ident.TCP},
	} {
		got := byPort(t, mesh+policy+"}}}}\n", "far.example", func(c *plan.Cluster) ident.Protocol { return c.Protocol })
		if d := gocmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", policy, d)
		}
	}
}

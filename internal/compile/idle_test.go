package compile_test

import (
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/golden"
	"github.com/malha-mesh/malha/internal/world"
)

// TestIdleTimeouts is of the two that a DestinationRule may write, on ports of each kind: that of tcp is also that of HTTP
// connections which http says nothing of (Istio: applyConnectionPool).
func TestIdleTimeouts(t *testing.T) {
	const mesh = `
apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: web, labels: {app: web}}
spec: {ports: [{name: http, port: 8080}], address: 127.0.0.1}
---
apiVersion: v1
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
		cfg, placed := parse(t, golden.File{Name: "mesh.yaml", Data: []byte(mesh + pool + "}}\n")})
		p, _ := planOf(t, world.Build(cfg, placed.Instances, placed.Gateways), "web")
		got := map[int]idle{}
		for _, c := range p.Clusters {
			if c.Host == "web.default.svc.cluster.local" {
				got[c.Port] = idle{c.Limits.IdleTimeout.D(), c.TCPIdle.D()}
			}
		}
		if d := gocmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", pool, d)
		}
	}
}

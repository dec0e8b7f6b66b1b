package gateway_test

import (
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/model"
)

// TestBackoff: the longest pause is ten times the first, no more than an hour unless that is longer itself, and never negative, as ten
// times the longest that the CRD lets pass would be.
func TestBackoff(t *testing.T) {
	for backoff, want := range map[string]time.Duration{"25ms": 250 * time.Millisecond, "30m": time.Hour, "2h": 2 * time.Hour, "99999h99999h99999h": 299_997 * time.Hour} {
		objects, ds := config.Parse("f.yaml", []byte(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{name: http, port: 80}], selector: {app: web}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec: {parentRefs: [{group: "", kind: Service, name: web}], rules: [{retry: {attempts: 1, backoff: `+backoff+`}, backendRefs: [{name: web, port: 80}]}]}
`))
		cfg, more := config.Translate(objects)
		if ds = append(ds, more...); model.HasErrors(ds) {
			t.Fatal(ds)
		}
		if got := cfg.Routings[0].HTTP[0].Retry.BackoffMax.D(); got != want {
			t.Errorf("%s: at most %s, want %s", backoff, got, want)
		}
	}
}

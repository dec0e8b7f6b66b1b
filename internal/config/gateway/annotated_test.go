package gateway_test

import (
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/model"
)

// TestAnnotated: that an object carries annotations changes nothing of what its status says, and a mistake in one is a mistake in the object.
func TestAnnotated(t *testing.T) {
	for _, c := range []struct{ name, group, annotations, path string }{
		{"none", "gateway.networking.k8s.io/v1", "", "RegularExpression, value: '('"},
		{"of others", "gateway.networking.k8s.io/v1", ", annotations: {deployed-by: ci}", "RegularExpression, value: '('"},
		{"with a mistake", "policy.linkerd.io/v1beta3", ", annotations: {retry.linkerd.io/limit: many}", "PathPrefix, value: /"},
	} {
		objects, ds := config.Parse("f.yaml", []byte(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{name: http, port: 80}], selector: {app: web}}
---
apiVersion: `+c.group+`
kind: HTTPRoute
metadata: {name: web`+c.annotations+`}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules: [{matches: [{path: {type: `+c.path+`}}], backendRefs: [{name: web, port: 80}]}]
`))
		cfg, more := config.Translate(objects)
		errors := 0
		for _, d := range append(ds, more...) {
			if d.Severity == model.Error {
				errors++
			}
		}
		if errors != 1 {
			t.Errorf("%s: %d errors, want 1: %v", c.name, errors, more)
		}
		if len(cfg.Routings) > 0 {
			t.Errorf("%s: what is wrong is in force", c.name)
		}
		if got := statuses(cfg.Statuses); !strings.Contains(got, "Accepted") || !strings.Contains(got, "UnsupportedValue") {
			t.Errorf("%s: the status says %q", c.name, got)
		}
	}
}

// TestAnnotatedGrant: a grant with a mistake permits nothing, wherever the mistake is.
func TestAnnotatedGrant(t *testing.T) {
	for annotations, want := range map[string]bool{"": true, ", annotations: {config.linkerd.io/default-inbound-policy: deny}": false} {
		objects, ds := config.Parse("f.yaml", []byte(`
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, port: 80}], selector: {app: web}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: in, namespace: shop`+annotations+`}
spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: edge}], to: [{group: "", kind: Service}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: edge}
spec: {gatewayClassName: malha, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: edge}
spec: {parentRefs: [{name: gw}], rules: [{backendRefs: [{name: web, namespace: shop, port: 80}]}]}
`))
		cfg, more := config.Translate(objects)
		if got := !strings.Contains(statuses(cfg.Statuses), "RefNotPermitted"); got != want || model.HasErrors(append(ds, more...)) == want {
			t.Errorf("%q: permitted %v, want %v: %v", annotations, got, want, more)
		}
	}
}

package kube

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// TestForeign: what is another controller's is no mistake of this mesh, and only that is not told.
func TestForeign(t *testing.T) {
	objects, ds := config.Parse("kubernetes", []byte(`
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: theirs}
spec: {controllerName: example.com/gateways, parametersRef: {group: "", kind: ConfigMap, name: x}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: ours}
spec: {controllerName: malha.dev/gateway-controller, parametersRef: {group: "", kind: ConfigMap, name: x}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: theirs, namespace: a}
spec: {gatewayClassName: theirs, listeners: [{name: https, port: 443, protocol: HTTPS, tls: {options: {x: y}, certificateRefs: [{name: theirs}]}}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: ours, namespace: a}
spec: {gatewayClassName: malha, listeners: [{name: https, port: 443, protocol: HTTPS, tls: {options: {x: y}, certificateRefs: [{name: x}]}}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: theirs, namespace: b}
spec: {parentRefs: [{name: theirs, namespace: a}], rules: [{filters: [{type: ExternalAuth, externalAuth: {}}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: both, namespace: b}
spec: {parentRefs: [{name: theirs, namespace: a}, {name: ours, namespace: a}], rules: [{filters: [{type: ExternalAuth, externalAuth: {}}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: elsewhere, namespace: b}
spec: {parentRefs: [{name: theirs}], rules: [{filters: [{type: ExternalAuth, externalAuth: {}}]}]}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: edge}
spec: {controller: malha.dev/ingress-controller}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: theirs, namespace: a}
spec: {ingressClassName: nginx, defaultBackend: {resource: {kind: Bucket, name: x}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: theirs-of-old, namespace: a, annotations: {kubernetes.io/ingress.class: nginx}}
spec: {defaultBackend: {resource: {kind: Bucket, name: x}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: ours, namespace: a}
spec: {ingressClassName: edge, defaultBackend: {resource: {kind: Bucket, name: x}}}
`))
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	_, found := config.Translate(objects)
	wrong := func(ds []model.Diagnostic) []string {
		var out []string
		for _, d := range ds {
			if d.Severity == model.Error {
				out = append(out, d.Origin.Kind+" "+d.Origin.Name)
			}
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	if n := len(wrong(found)); n != 10 {
		t.Fatalf("%d objects with errors, want 10: %v", n, wrong(found))
	}
	st := newState("cluster.local")
	for i := range objects {
		o := &objects[i]
		var content map[string]any
		if err := o.Root().Decode(&content); err != nil {
			t.Fatal(err)
		}
		st.objects[config.KeyOf(o)] = &kept{object: *o, names: mentions(o.Kind, content)}
	}
	st.foreign = findForeign(st.read())
	if got := st.references(); len(got) != 1 || !got[mention{kind: "Secret", name: ident.Name{Namespace: "a", Name: "x"}}] {
		t.Errorf("Secrets that are read: %v", got)
	}
	want := []string{"Gateway ours", "GatewayClass ours", "HTTPRoute both", "HTTPRoute elsewhere", "Ingress ours"}
	if diff := cmp.Diff(want, wrong(st.foreign.forget(objects, found))); diff != "" {
		t.Error(diff)
	}
}

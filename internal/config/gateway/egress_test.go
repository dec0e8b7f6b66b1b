package gateway_test

import (
	"testing"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/model"
)

// TestEgressLeavesServicesAlone: a route for what is outside the mesh gives a Service neither ports nor clients.
func TestEgressLeavesServicesAlone(t *testing.T) {
	objects, ds := config.Parse("f.yaml", []byte(`
apiVersion: v1
kind: Service
metadata: {name: web, annotations: {networking.istio.io/exportTo: "."}}
spec: {ports: [{name: http, port: 80}], selector: {app: web}}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: EgressNetwork
metadata: {name: all, namespace: linkerd-egress}
spec: {trafficPolicy: Allow}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: out, namespace: team}
spec:
  parentRefs: [{group: policy.linkerd.io, kind: EgressNetwork, namespace: linkerd-egress, name: all, port: 8080}]
  hostnames: [web.default.svc.cluster.local, api.example.com]
  rules: [{timeouts: {request: 1s}}]
`))
	cfg, more := config.Translate(objects)
	if ds = append(ds, more...); model.HasErrors(ds) {
		t.Fatal(ds)
	}
	got := map[string]model.Service{}
	for _, s := range cfg.Services {
		got[s.Host] = s
	}
	if s := got["web.default.svc.cluster.local"]; len(s.Ports) != 1 || s.Ports[0].Port != 80 || len(s.ExportTo) != 1 {
		t.Errorf("the Service is for %v at %+v", s.ExportTo, s.Ports)
	}
	if s := got["api.example.com"]; len(s.Ports) != 1 || s.Ports[0].Port != 8080 {
		t.Errorf("the host outside is for %v at %+v", s.ExportTo, s.Ports)
	}
}

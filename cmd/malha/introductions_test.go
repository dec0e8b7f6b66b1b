package main

import (
	"strings"
	"testing"
)

// The manifests of the well-known introductions to service meshes, as they are written there.
const (
	introCanary = `apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: backend
  namespace: production
spec:
  hosts:
  - backend
  http:
  - match:
    - headers:
        x-canary:
          exact: "true"
    route:
    - destination:
        host: backend
        subset: v2
  - route:
    - destination:
        host: backend
        subset: v1
      weight: 90
    - destination:
        host: backend
        subset: v2
      weight: 10
---
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata:
  name: backend
  namespace: production
spec:
  host: backend
  trafficPolicy:
    connectionPool:
      http:
        http1MaxPendingRequests: 100
        http2MaxRequests: 1000
    outlierDetection:
      consecutive5xxErrors: 5
      interval: 30s
      baseEjectionTime: 30s
  subsets:
  - name: v1
    labels:
      version: v1
  - name: v2
    labels:
      version: v2
`
	introSecurity = `apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata:
  name: default
  namespace: istio-system
spec:
  mtls:
    mode: STRICT
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata:
  name: backend-policy
  namespace: production
spec:
  selector:
    matchLabels:
      app: backend
  action: ALLOW
  rules:
  - from:
    - source:
        principals: ["cluster.local/ns/production/sa/frontend"]
    to:
    - operation:
        methods: ["GET", "POST"]
        paths: ["/api/*"]
`
	introSplit = `apiVersion: split.smi-spec.io/v1alpha1
kind: TrafficSplit
metadata:
  name: shop
  namespace: production
spec:
  service: shop
  backends:
  - service: shop-v1
    weight: 90
  - service: shop-v2
    weight: 10
`
	introProfile = `apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata:
  name: other.production.svc.cluster.local
  namespace: production
spec:
  routes:
  - name: GET /slow
    condition:
      method: GET
      pathRegex: /slow
    responseClasses:
    - condition:
        status:
          min: 500
          max: 599
      isFailure: true
    timeout: 200ms
  retryBudget:
    retryRatio: 0.2
    minRetriesPerSecond: 10
    ttl: 10s
`
	introFault = `apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata:
  name: other
  namespace: production
spec:
  hosts: [other]
  http:
  - match: [{uri: {prefix: /abort}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: other}}]
  - route: [{destination: {host: other}}]
`
)

// TestIntroductions runs the manifests of the introductions as written, in a real mesh.
func TestIntroductions(t *testing.T) {
	t.Parallel()
	m := newMesh(t, nil)
	production := func(s string) string {
		return strings.ReplaceAll(s, "metadata: {name: ", "metadata: {namespace: production, name: ")
	}
	m.write("apps.yaml", production(
		service("frontend")+workload("frontend-1", "frontend", "v1", m.folder)+
			service("backend")+workload("backend-v1", "backend", "v1", m.folder)+workload("backend-v2", "backend", "v2", m.folder)+
			service("shop")+service("shop-v1")+workload("shop-v1-1", "shop-v1", "v1", m.folder)+
			service("shop-v2")+workload("shop-v2-1", "shop-v2", "v2", m.folder)+
			service("other")+workload("other-1", "other", "v1", m.folder)))
	m.write("canary.yaml", introCanary)
	m.write("security.yaml", introSecurity)
	m.write("split.yaml", introSplit)
	m.up("--access-log")

	// ask sends requests as a workload and counts the first word of each answer, or its status when it is not 200.
	ask := func(n int, from string, args ...string) map[string]int {
		t.Helper()
		got := map[string]int{}
		for range n {
			out := m.must(append([]string{"curl", "-i", "--from", "production/" + from}, args...)...)
			head, body, _ := strings.Cut(out, "\n\n")
			status, _, _ := strings.Cut(head, "\n")
			if !strings.Contains(status, " 200 ") {
				got[strings.Fields(status)[1]]++
				continue
			}
			got[strings.Fields(body)[0]]++
		}
		return got
	}
	if got := ask(10, "frontend-1", "-H", "x-canary: true", "http://backend/api/x"); got["backend-v2"] != 10 {
		t.Errorf("with x-canary: %v, want only v2", got)
	}
	if got := ask(60, "frontend-1", "http://backend/api/x"); got["backend-v1"]+got["backend-v2"] != 60 || got["backend-v1"] < 40 {
		t.Errorf("without x-canary: %v, want 90/10", got)
	}
	for _, c := range []struct {
		what, from, want string
		args             []string
	}{
		{"another path", "frontend-1", "403", []string{"http://backend/other"}},
		{"another method", "frontend-1", "403", []string{"-X", "DELETE", "http://backend/api/x"}},
		{"another caller", "other-1", "403", []string{"http://backend/api/x"}},
	} {
		if got := ask(2, c.from, c.args...); got[c.want] != 2 {
			t.Errorf("%s: %v, want %s", c.what, got, c.want)
		}
	}
	if got := ask(60, "frontend-1", "http://shop/"); got["shop-v1-1"]+got["shop-v2-1"] != 60 || got["shop-v1-1"] < 40 {
		t.Errorf("TrafficSplit: %v, want 90/10", got)
	}
	if _, errs, code := m.run(introProfile, "apply", "-f", "-"); code != 0 {
		t.Fatalf("the ServiceProfile is refused: %s", errs)
	}
	if got := ask(2, "frontend-1", "http://other/slow"); got["504"] != 2 {
		t.Errorf("ServiceProfile timeout: %v, want 504", got)
	}
	if got := ask(2, "frontend-1", "http://other/"); got["other-1"] != 2 {
		t.Errorf("ServiceProfile, another route: %v", got)
	}
	if _, errs, code := m.run(introFault, "apply", "-f", "-"); code != 0 {
		t.Fatalf("the fault is refused: %s", errs)
	}
	if got := ask(2, "frontend-1", "http://other/abort"); got["418"] != 2 {
		t.Errorf("fault: %v, want 418", got)
	}
}

package compile_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/golden"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/world"
)

// TestTrustDomain compiles the same manifests for meshes of two trust domains: cluster.local in them stands for either.
func TestTrustDomain(t *testing.T) {
	const mesh = oneWorkload + `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vm}
spec:
  hosts: [vm.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 192.0.2.1, serviceAccount: vm}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p}
spec:
  action: DENY
  rules:
  - from: [{source: {principals: [cluster.local/ns/a/sa/b, "cluster.local/ns/a/*", "*/sa/c", other.example/ns/a/sa/b], notPrincipals: [cluster.local/ns/d/sa/e]}}]
    when: [{key: source.principal, values: [cluster.local/ns/f/sa/g], notValues: [cluster.local/ns/h/sa/i]}, {key: "request.headers[x]", values: [cluster.local/x]}]
---
apiVersion: malha.dev/v1alpha1
kind: RateLimit
metadata: {name: l}
spec:
  selector: {app: web}
  rules: [{by: identity, requests: 1, per: 1s, overrides: [{serviceAccounts: [a/b], requests: 2}]}]
`
	for _, domain := range []string{"cluster.local", "corp.example"} {
		cfg, placed := parse(t, golden.File{Name: "mesh.yaml", Data: []byte(mesh)})
		for i := range cfg.Workloads {
			cfg.Workloads[i].Identity.TrustDomain = domain
		}
		p, _ := planOf(t, world.Build(cfg, placed.Instances, placed.Gateways), "web")
		if len(p.Policies) != 1 || len(p.Limits) != 1 {
			t.Fatalf("%d policies, %d limits", len(p.Policies), len(p.Limits))
		}
		r := p.Policies[0].Rules[0]
		got := []string{fmt.Sprint(r.From[0].Principals), fmt.Sprint(r.From[0].NotPrincipals), fmt.Sprint(r.When[0].Values), fmt.Sprint(r.When[0].NotValues), fmt.Sprint(r.When[1].Values)}
		want := []string{
			`[exact "DOMAIN/ns/a/sa/b" prefix "DOMAIN/ns/a/" suffix "/sa/c" exact "other.example/ns/a/sa/b"]`,
			`[exact "DOMAIN/ns/d/sa/e"]`, `[exact "DOMAIN/ns/f/sa/g"]`, `[exact "DOMAIN/ns/h/sa/i"]`, `[exact "cluster.local/x"]`,
		}
		for i := range want {
			want[i] = strings.ReplaceAll(want[i], "DOMAIN", domain)
		}
		if d := gocmp.Diff(want, got); d != "" {
			t.Errorf("%s: principals (-want +got):\n%s", domain, d)
		}
		if got, want := p.Limits[0].Rules[0].Overrides[0].Identities, (ident.Identity{TrustDomain: domain, Namespace: "a", ServiceAccount: "b"}); !slices.Equal(got, []ident.Identity{want}) {
			t.Errorf("%s: the limit is overridden for %v", domain, got)
		}
		i := slices.IndexFunc(p.Endpoints, func(e plan.Endpoints) bool { return strings.HasSuffix(e.Cluster, "|vm.example") })
		if i < 0 || len(p.Endpoints[i].Endpoints) != 1 || p.Endpoints[i].Endpoints[0].Identity.TrustDomain != domain {
			t.Errorf("%s: the endpoint outside of the cluster is not of the mesh's domain: %+v", domain, p.Endpoints)
		}
		if a := cfg.Policies[0].Policy.Rules[0].From[0].Principals[0].Value; a != "cluster.local/ns/a/sa/b" {
			t.Errorf("%s: the policy itself was changed: %s", domain, a)
		}
	}
}

package config_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/model"
)

// TestMistakesOfEveryDialectAtOnce: a field that is none, and beside it something that the schema lets through and the dialect does
// not, are both told.
func TestMistakesOfEveryDialectAtOnce(t *testing.T) {
	for _, c := range []struct{ what, text, code string }{
		{"core", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selector: {a: b}, wrong: 1, ports: [{port: 80}, {port: 81}]}\n", manifest.CodePorts},
		{"core, bare", "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ntype: kubernetes.io/tls\nwrong: 1\nstringData: {tls.crt: x, tls.key: y}\n", manifest.CodeSecret},
		{"local", "apiVersion: malha.dev/v1alpha1\nkind: Workload\nmetadata: {name: a}\nspec: {wrong: 1, run: {command: [a]}, address: 127.0.0.1}\n", manifest.CodeWorkloadRun},
		{"istio", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec: {wrong: 1, hosts: [a], http: [{name: x}]}\n", manifest.CodeRuleAction},
		{"gateway, a rule of its CRD", "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: a}\nspec: {wrong: 1, rules: [{filters: [{type: RequestRedirect}]}]}\n", manifest.CodeBadValue},
		{"gateway", "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: a}\nspec: {hostnames: [A], rules: [{matches: [{path: {type: RegularExpression, value: '/('}}]}]}\n", manifest.CodeBadRegex},
		{"linkerd", "apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {name: a.b.svc.cluster.local}\nspec: {wrong: 1, routes: [{name: x, condition: {}}]}\n", manifest.CodeProfile},
		{"smi", "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {name: a}\nspec: {wrong: 1, service: a, backends: [{service: b, weight: 1}, {service: b, weight: 1}]}\n", manifest.CodeSplit},
	} {
		objs, ds := config.Parse("a.yaml", []byte(c.text))
		if len(ds) > 0 {
			t.Fatal(ds)
		}
		cfg, ds := config.Translate(objs)
		var errors []string
		for _, d := range ds {
			if d.Severity == model.Error {
				errors = append(errors, d.Code)
			}
		}
		if len(errors) < 2 || !slices.Contains(errors, c.code) {
			t.Errorf("%s: %s, want %s among them\n%v", c.what, strings.Join(errors, " "), c.code, ds)
		}
		if len(cfg.Services)+len(cfg.Secrets)+len(cfg.Workloads)+len(cfg.Routings)+len(cfg.Profiles)+len(cfg.Splits) > 0 {
			t.Errorf("%s: an object with mistakes is in the configuration", c.what)
		}
	}
}

// TestIngressOfResources: a backend that is no Service is refused by the table of fields, and what is left of the Ingress leads nowhere.
func TestIngressOfResources(t *testing.T) {
	for _, spec := range []string{
		"{defaultBackend: {resource: {kind: Bucket, name: x}}}",
		"{rules: [{http: {paths: [{path: /, pathType: Prefix, backend: {resource: {apiGroup: example.com, kind: Bucket, name: x}}}]}}]}",
	} {
		objs, ds := config.Parse("a.yaml", []byte("apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: a}\nspec: "+spec+"\n"))
		if len(ds) > 0 {
			t.Fatal(ds)
		}
		cfg, ds := config.Translate(objs)
		if len(cfg.Gateways)+len(cfg.Routings)+len(cfg.Statuses) > 0 || len(ds) != 1 || ds[0].Code != manifest.CodeUnsupported {
			t.Errorf("%s: %+v %v", spec, cfg, ds)
		}
		if out := config.Outline(objs); len(out.Routings) > 0 {
			t.Errorf("%s: outline %+v", spec, out.Routings)
		}
	}
}

// TestServerWithHalfASelector: without the refused half it would be for every pod of its namespace.
func TestServerWithHalfASelector(t *testing.T) {
	objs, ds := config.Parse("a.yaml", []byte(`
apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: web, labels: {app: web}}
spec: {ports: [{name: x, port: 8080}], address: 127.0.0.1}
---
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: all}
spec: {podSelector: {matchExpressions: [{key: app, operator: In, values: [db]}]}, port: 8080, proxyProtocol: opaque, accessPolicy: all-unauthenticated}
`))
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	cfg, ds := config.Translate(objs)
	if len(ds) != 1 || ds[0].Code != manifest.CodeUnsupported || len(cfg.Workloads) != 1 {
		t.Fatalf("%v", ds)
	}
	want, _ := config.Translate(objs[:1])
	if d := cmp.Diff(want, cfg); d != "" {
		t.Error(d)
	}
}

package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/golden"
	"github.com/malha-mesh/malha/internal/model"
)

// TestFieldTables holds the support table of each kind to its schema: every entry names a field that exists, once, and
// a refused or ignored one says why.
func TestFieldTables(t *testing.T) {
	for _, k := range config.Kinds() {
		paths := k.Type().Paths()
		seen := map[string]bool{}
		for _, f := range k.Fields {
			id := f.Path + "=" + f.Value
			if !slices.Contains(paths, f.Path) {
				t.Errorf("%s: the table names %s, which is no field", k.Kind, f.Path)
			}
			if seen[id] {
				t.Errorf("%s: the table names %s twice", k.Kind, id)
			}
			seen[id] = true
			if f.Support != manifest.Works && f.Note == "" {
				t.Errorf("%s: the entry for %s does not say why it does not work", k.Kind, f.Path)
			}
		}
	}
}

// TestTranslateOrder shuffles the objects: neither the model nor what is reported depends on the order of files.
func TestTranslateOrder(t *testing.T) {
	data, err := os.ReadFile("testdata/core.txtar")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(data), "-- mesh/app.yaml --\n")
	text, _, _ = strings.Cut(text, "-- list.json --")
	objs, ds := config.Parse("a.yaml", []byte(text))
	if len(ds) > 0 || len(objs) < 5 {
		t.Fatalf("%d objects, %v", len(objs), ds)
	}
	want, _ := config.Translate(objs)
	slices.Reverse(objs)
	got, _ := config.Translate(objs)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the model depends on the order of objects (-want +got):\n%s", d)
	}
}

// TestSamples translates the samples of this repository: they show what works.
func TestSamples(t *testing.T) {
	files, err := filepath.Glob("../../samples/*/*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	folders := map[string][]config.Object{} // what stands in one folder refers to each other
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		objs, ds := config.Parse(name, data)
		for _, d := range ds {
			t.Errorf("%s", d)
		}
		folders[filepath.Dir(name)] = append(folders[filepath.Dir(name)], objs...)
	}
	for dir, objs := range folders {
		_, ds := config.Translate(objs)
		for _, d := range ds {
			if d.Severity == model.Info || filepath.Base(dir) == "kubernetes" && d.Code == manifest.CodeIgnoredKind {
				continue // what is for a cluster has Deployments, which the cluster acts on
			}
			if d.Code == manifest.CodeListener && strings.Contains(d.Message, "no Secret default/shop ") {
				continue // its key is made (samples/shop/certificate), not kept
			}
			t.Errorf("%s", d)
		}
	}
}

// TestLimits feeds what must not take memory or time.
func TestLimits(t *testing.T) {
	laughs := "a0: &a0 [x]\n"
	for i := 1; i < 30; i++ {
		laughs += fmt.Sprintf("a%d: &a%d [*a%d, *a%d, *a%d]\n", i, i, i-1, i-1, i-1)
	}
	for name, text := range map[string]string{
		"billion laughs": laughs,
		"deep":           "a: " + strings.Repeat("[", 1000) + strings.Repeat("]", 1000),
		"documents":      strings.Repeat("---\na: b\n", manifest.MaxDocuments+2),
		"bytes":          strings.Repeat(" ", manifest.MaxBytes+1),
	} {
		_, ds := config.Parse("a.yaml", []byte(text))
		if !slices.ContainsFunc(ds, func(d model.Diagnostic) bool { return d.Code == manifest.CodeTooLarge }) {
			t.Errorf("%s: want %s, got %d others", name, manifest.CodeTooLarge, len(ds))
		}
	}
}

// BenchmarkTranslate is a large folder: 1000 VirtualServices in one file.
func BenchmarkTranslate(b *testing.B) {
	var text strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&text, `---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web-%d}
spec:
  hosts: [web-%d]
  http:
  - match: [{headers: {x-canary: {exact: "true"}}}]
    route: [{destination: {host: web, subset: v2}}]
  - timeout: 5s
    route:
    - {destination: {host: web, subset: v1}, weight: 90}
    - {destination: {host: web, subset: v2}, weight: 10}
`, i, i)
	}
	b.ReportAllocs()
	for b.Loop() {
		objs, ds := config.Parse("a.yaml", []byte(text.String()))
		cfg, more := config.Translate(objs)
		if len(ds)+len(more) > 0 || len(cfg.Routings) != 1000 {
			b.Fatal(ds, more)
		}
	}
}

// FuzzTranslate feeds arbitrary bytes: they may be wrong, they may not panic, and each diagnostic says where.
func FuzzTranslate(f *testing.F) {
	archives := golden.Read(f, "testdata")
	for _, dialect := range []string{"gateway", "istio"} {
		archives = append(archives, golden.Read(f, filepath.Join(dialect, "testdata"))...)
	}
	for _, a := range archives {
		for _, file := range a.Inputs() {
			for doc := range strings.SplitSeq(string(file.Data), "\n---\n") {
				f.Add([]byte(doc))
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		objs, ds := config.Parse("fuzz.yaml", data)
		if found, said, foreign := config.ParseFound("fuzz.yaml", data); foreign && (len(objs)+len(found) > 0 || len(said) != 1) || !foreign && len(found) < len(objs) {
			t.Errorf("found in a folder: %d of %d objects, %v", len(found), len(objs), said)
		}
		cfg, more := config.Translate(objs)
		if cfg == nil {
			t.Fatal("no configuration")
		}
		lines := 1 + strings.Count(string(data), "\n") + strings.Count(string(data), "\r") + strings.Count(string(data), "\u2028") +
			strings.Count(string(data), "\u2029") + strings.Count(string(data), "\u0085")
		for _, d := range append(ds, more...) {
			if d.Code == manifest.CodeInternal {
				t.Errorf("a defect: %s", d)
			}
			if d.Message == "" || d.Origin.File != "fuzz.yaml" || d.Origin.Line > lines {
				t.Errorf("an odd diagnostic: %+v in %d lines", d, lines)
			}
		}
	})
}

// TestMistakesLeaveNothingInForce has objects that their dialects keep until they finish, each with one mistake in a field or
// an annotation: they are out of force as a whole, and their neighbours are not.
func TestMistakesLeaveNothingInForce(t *testing.T) {
	const neighbours = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: web}
spec: {podSelector: {}, port: 80, accessPolicy: all-unauthenticated}
---
`
	for name, object := range map[string]string{
		"annotation of a route": `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: a, annotations: {timeout.linkerd.io/request: soon}}
spec: {parentRefs: [{group: "", kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}`,
		"annotation of an Ingress": `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: a, annotations: {malha.dev/no-such: x}}
spec: {defaultBackend: {service: {name: web, port: {number: 80}}}}`,
		"unknown field of an Ingress": `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: a}
spec: {backend: x, defaultBackend: {service: {name: web, port: {number: 80}}}}`,
		"unknown field of a rate limit": `
apiVersion: policy.linkerd.io/v1alpha1
kind: HTTPLocalRateLimitPolicy
metadata: {name: a}
spec: {limit: 1, targetRef: {group: policy.linkerd.io, kind: Server, name: web}, total: {requestsPerSecond: 1}}`,
		"annotation of a Service": `
apiVersion: v1
kind: Service
metadata: {name: a, annotations: {retry.linkerd.io/limit: x}}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}`,
	} {
		objs, ds := config.Parse("a.yaml", []byte(neighbours+object))
		cfg, more := config.Translate(objs)
		if errors := slices.DeleteFunc(append(ds, more...), func(d model.Diagnostic) bool { return d.Severity != model.Error }); len(errors) != 1 {
			t.Errorf("%s: want one error, got %v", name, errors)
		}
		if len(cfg.Services) != 1 || len(cfg.Routings)+len(cfg.Gateways)+len(cfg.RateLimits) > 0 {
			t.Errorf("%s: in force are %d services, %d routings, %d gateways, %d rate limits", name, len(cfg.Services), len(cfg.Routings), len(cfg.Gateways), len(cfg.RateLimits))
		}
	}
}

// TestPassesOver: what is applied and acts on nothing is told from what is in force.
func TestPassesOver(t *testing.T) {
	for apiVersion, kinds := range map[string]map[string]bool{
		"v1":                          {"Service": false, "ServiceAccount": false, "Pod": true, "Servise": false},
		"apps/v1":                     {"Deployment": true},
		"malha.dev/v1alpha1":          {"Test": true, "Workload": false},
		"networking.istio.io/v1":      {"VirtualService": false},
		"telemetry.istio.io/v1alpha1": {"Telemetry": false}, // refused, not passed over
	} {
		for kind, want := range kinds {
			objects, ds := config.Parse("x.yaml", []byte("apiVersion: "+apiVersion+"\nkind: "+kind+"\nmetadata: {name: a}\n"))
			if len(ds) > 0 || len(objects) != 1 {
				t.Fatalf("%s %s: %v", apiVersion, kind, ds)
			}
			if got := config.PassesOver(&objects[0]); got != want {
				t.Errorf("%s %s is passed over: %t, want %t", apiVersion, kind, got, want)
			}
		}
	}
}

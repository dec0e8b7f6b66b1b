package world_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/golden"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/world"
)

// TestAdvise writes what Advise says about the manifests of each archive.
func TestAdvise(t *testing.T) {
	golden.Run(t, filepath.Join("testdata", "advise"), func(t *testing.T, in *golden.Archive) map[string][]byte {
		var objs []config.Object
		var ds []model.Diagnostic
		for _, f := range in.Files {
			if strings.HasSuffix(f.Name, ".yaml") {
				o, d := config.Parse(f.Name, f.Data)
				objs, ds = append(objs, o...), append(ds, d...)
			}
		}
		cfg, more := config.Translate(objs)
		if ds = append(ds, more...); model.HasErrors(ds) {
			t.Fatalf("the manifests are wrong: %v", ds)
		}
		p, err := placement.Offline(cfg)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		for _, d := range world.Advise(world.Build(cfg, p.Instances, p.Gateways)) {
			fmt.Fprintln(&b, d)
		}
		return map[string][]byte{"diagnostics": b.Bytes()}
	})
}

// TestAdviseTrustDomain is of a mesh with a trust domain of its own, which policies call cluster.local.
func TestAdviseTrustDomain(t *testing.T) {
	objs, ds := config.Parse("mesh.yaml", []byte(`
apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: web, labels: {app: web}}
spec: {serviceAccount: web, ports: [{name: http, port: 8080}], address: 127.0.0.1}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p}
spec: {rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/web, cluster.local/ns/default/sa/nobody]}}]}]}
`))
	cfg, more := config.Translate(objs)
	if ds = append(ds, more...); model.HasErrors(ds) {
		t.Fatalf("the manifests are wrong: %v", ds)
	}
	cfg.Workloads[0].Identity.TrustDomain = "corp.example"
	p, err := placement.Offline(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, d := range world.Advise(world.Build(cfg, p.Instances, p.Gateways)) {
		if strings.Contains(d.Message, "has the identity") {
			said = append(said, d.Message)
		}
	}
	if len(said) != 1 || !strings.Contains(said[0], "cluster.local/ns/default/sa/nobody") {
		t.Errorf("said %q, want only that nobody has the second identity", said)
	}
}

// Package plans makes the plans of manifests for tests of the tools that are asked about a mesh which does not run.
//
// In: files and folders. Out: the plan of each proxy that they would have, as `malha up` would place them. It is used by tests only and
// starts no goroutine.
package plans

import (
	"testing"

	"github.com/malha-mesh/malha/internal/compile"
	"github.com/malha-mesh/malha/internal/config/file"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/scope"
	"github.com/malha-mesh/malha/internal/world"
)

// Of returns the plans of manifests, in the order of the proxies' names. Mistakes in them end the test.
func Of(t testing.TB, paths ...string) []*plan.Plan {
	t.Helper()
	r := file.ReadAll(paths...)
	if model.HasErrors(r.Diagnostics) {
		t.Fatalf("the manifests are wrong: %v", r.Diagnostics)
	}
	placed, err := placement.Offline(r.Config)
	if err != nil {
		t.Fatal(err)
	}
	w := world.Build(r.Config, placed.Instances, placed.Gateways)
	var plans []*plan.Plan
	for _, n := range w.Nodes() {
		s, ok := scope.For(w, n)
		if !ok {
			t.Fatalf("%s has no scope", n)
		}
		p, _ := compile.Compile(s)
		plans = append(plans, p)
	}
	return plans
}

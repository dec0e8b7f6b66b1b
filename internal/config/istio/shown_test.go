package istio_test

import (
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/istio"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/golden"
)

// TestEveryFieldIsShown asks of the archives that each field of each schema, down to the last, stands in one of them, in an
// object that is accepted: what it becomes is then compared by TestGolden. Fields that are refused or ignored are in the tables.
func TestEveryFieldIsShown(t *testing.T) {
	shown := map[string]bool{}
	kinds := map[string]manifest.Kind{}
	for _, k := range istio.Kinds() {
		kinds[k.Kind] = k
	}
	for _, a := range golden.Read(t, "testdata") {
		for _, f := range a.Inputs() {
			objs, _ := config.Parse(f.Name, f.Data)
			for i := range objs {
				k, ok := kinds[objs[i].Kind]
				if !ok || !accepted(objs[i:i+1]) {
					continue
				}
				var r manifest.Report
				spec, _ := k.Check(&objs[i], &r)
				var n yaml.Node
				if err := yaml.Unmarshal(spec, &n); err != nil {
					t.Fatal(err)
				}
				walk(k.Type().Paths(), "", n.Content[0], func(path string) { shown[k.Kind+" "+same.Replace(path)] = true })
			}
		}
	}
	for _, k := range istio.Kinds() {
		paths := k.Type().Paths()
		for _, p := range paths {
			leaf := !slices.ContainsFunc(paths, func(q string) bool { return strings.HasPrefix(q, p+".") || strings.HasPrefix(q, p+"[]") })
			entry, partly := k.Fields.Of(p)
			if leaf && !partly && entry.Support == manifest.Works && !shown[k.Kind+" "+same.Replace(p)] {
				t.Errorf("%s: no archive sets %s", k.Kind, p)
			}
		}
	}
}

// same makes one path of those where the same block stands, which the same code reads.
var same = strings.NewReplacer("subsets[].trafficPolicy", "trafficPolicy", "portLevelSettings[].", "", "ingress[].connectionPool", "inboundConnectionPool")

// accepted reports whether the objects have no mistake.
func accepted(objs []config.Object) bool {
	_, ds := config.Translate(objs)
	for _, d := range ds {
		if d.Severity == "error" && d.Code != manifest.CodeEntry { // a group may stand in another document
			return false
		}
	}
	return true
}

// walk calls found with the path of every value, entries of maps as "[]".
func walk(paths []string, path string, n *yaml.Node, found func(string)) {
	if path != "" {
		found(path)
	}
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			below := strings.TrimPrefix(path+"."+n.Content[i].Value, ".")
			if !slices.Contains(paths, below) {
				below = path + "[]"
			}
			walk(paths, below, n.Content[i+1], found)
		}
	case yaml.SequenceNode:
		for _, e := range n.Content {
			walk(paths, path+"[]", e, found)
		}
	}
}

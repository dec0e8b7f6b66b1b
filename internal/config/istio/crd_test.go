package istio_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/crd"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/golden"
	"github.com/malha-mesh/malha/internal/model"
)

// TestAsTheAPIServer holds our checks to those of Istio's own CustomResourceDefinitions, which its module ships: each object
// of the archives that is right, with one value changed, gone, or there many times, and that the API server then refuses for its
// lengths, ranges, counts, patterns, required fields or CEL rules, has an error here too. What it accepts may be refused here: Istio's webhook
// and ours ask for more. With MALHA_LONG=1 every variant is tried.
func TestAsTheAPIServer(t *testing.T) {
	schemas := readCRDs(t)
	tried, refused := 0, 0
	wrong := func() { refused++ }
	step, least := 11, 100 // one of so many variants of each object is tried, which takes seconds with the race detector
	if os.Getenv("MALHA_LONG") != "" {
		step, least = 1, 1100
	}
	for _, o := range samples(t) {
		schema := schemas[o["kind"].(string)]
		if schema == nil {
			continue
		}
		n := 0
		if !hold(t, schema, o, func() {}) {
			continue
		}
		mutate(o, func() {
			if n++; n%step != 0 {
				return
			}
			tried++
			hold(t, schema, o, wrong)
		})
	}
	t.Logf("%d objects, of which the API server refuses %d", tried, refused)
	if refused < least {
		t.Errorf("only %d of %d objects were wrong: the test asks for nothing", refused, tried)
	}
}

// lenient are values that the API server refuses and Malha takes on purpose.
func lenient(d model.Diagnostic) bool {
	last := d.Path[strings.LastIndexByte(d.Path, '.')+1:]
	return (last == "timeout" || last == "perTryTimeout") && strings.HasPrefix(d.Path, "spec.http[") // 0s: none
}

// hold reports whether the API server takes the object, and so do we; when it does not, nor may we. wrong is called when
// it does not.
func hold(t *testing.T, schema *crd.Schema, o map[string]any, wrong func()) bool {
	t.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	objs, ds := config.Parse("a.json", data)
	if len(objs) != 1 {
		t.Fatalf("%s: %v", data, ds)
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	_, ours := config.Translate(objs)
	var theirs manifest.Report
	if schema.Check(objs[0].Root(), v, &theirs) {
		return !model.HasErrors(ours)
	}
	if wrong(); model.HasErrors(ours) {
		return false
	}
	for _, d := range theirs.Diagnostics() {
		if !lenient(d) {
			t.Errorf("the API server refuses what is accepted here: %s %s\n%s", d.Path, d.Message, data)
		}
	}
	return false
}

// values take the place of others.
var values = map[bool][]any{
	true:  {0.0, -1.0, 65536.0, 101.0, 99.0, 1e15},
	false: {"", "*", strings.Repeat("a", 300), "unix://a/", "0s", "-1s", "1us", "~", "a b"},
}

// mutate calls do with o as it is, then with each of its values changed, gone, or many times there.
func mutate(o map[string]any, do func()) {
	do()
	spec, ok := o["spec"].(map[string]any)
	if !ok {
		return
	}
	var walk func(v any, set func(any))
	walk = func(v any, set func(any)) {
		switch v := v.(type) {
		case map[string]any:
			for _, k := range slices.Sorted(maps.Keys(v)) {
				old := v[k]
				delete(v, k)
				do()
				v[k] = old
				walk(old, func(x any) { v[k] = x })
			}
			set(map[string]any{})
			do()
			set(v)
		case []any:
			for i := range v {
				walk(v[i], func(x any) { v[i] = x })
			}
			set([]any{})
			do()
			if len(v) > 0 {
				set(slices.Repeat(v[:1], 300))
				do()
			}
			set(v)
		case float64, string:
			_, number := v.(float64)
			for _, x := range values[number] {
				set(x)
				do()
			}
			set(v)
		}
	}
	walk(spec, func(x any) { o["spec"] = x })
	o["spec"] = spec
}

// samples reads every object of the archives, wrong ones too.
func samples(t *testing.T) []map[string]any {
	t.Helper()
	var out []map[string]any
	for _, a := range golden.Read(t, "testdata") {
		for _, f := range a.Inputs() {
			for d := yaml.NewDecoder(bytes.NewReader(f.Data)); ; {
				var v any
				if err := d.Decode(&v); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				out = append(out, plain(v).(map[string]any))
			}
		}
	}
	return out
}

// plain makes of YAML what JSON would have.
func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = plain(e)
		}
		return v
	case map[any]any:
		out := map[string]any{}
		for k, e := range v {
			out[fmt.Sprint(k)] = plain(e)
		}
		return out
	case []any:
		for i, e := range v {
			v[i] = plain(e)
		}
		return v
	case int:
		return float64(v)
	}
	return v
}

// readCRDs reads the schemas of the networking kinds from the module that has their types.
func readCRDs(t *testing.T) map[string]*crd.Schema {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "istio.io/api").Output()
	if err != nil {
		t.Fatalf("finding the module istio.io/api: %v", err)
	}
	f, err := os.Open(filepath.Join(strings.TrimSpace(string(dir)), "kubernetes", "customresourcedefinitions.gen.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string]*crd.Schema{}
	for d := yaml.NewDecoder(f); ; {
		var v struct {
			Spec struct {
				Group    string
				Names    struct{ Kind string }
				Versions []struct {
					Schema struct {
						Open any `yaml:"openAPIV3Schema"`
					}
				}
			}
		}
		if err := d.Decode(&v); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if v.Spec.Group != "networking.istio.io" {
			continue
		}
		data, err := json.Marshal(plain(v.Spec.Versions[0].Schema.Open))
		if err != nil {
			t.Fatal(err)
		}
		if out[v.Spec.Names.Kind], err = crd.Parse(data); err != nil {
			t.Fatalf("%s: %v", v.Spec.Names.Kind, err)
		}
	}
	if len(out) != 9 {
		t.Fatalf("found %d networking kinds", len(out))
	}
	return out
}

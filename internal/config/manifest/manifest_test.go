package manifest_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/model"
)

func parseOne(t *testing.T, text string) *manifest.Object {
	t.Helper()
	objs, ds := manifest.Parse("a.yaml", []byte(text))
	if len(objs) != 1 || len(ds) > 0 {
		t.Fatalf("%d objects, %v in:\n%s", len(objs), ds, text)
	}
	return &objs[0]
}

// TestNothingIsIgnoredInSilence sets each field of each kind alone: it works, or a diagnostic at its very place says
// that it does not. A field that a new version of an API brings is caught here too, by being refused.
func TestNothingIsIgnoredInSilence(t *testing.T) {
	for _, k := range config.Kinds() {
		group := k.Group + "/"
		if k.Group == "" {
			group = ""
		}
		for _, path := range k.Type().Paths() {
			spec := k.Type().Sample(path)
			fields := "spec: " + spec
			if k.Bare {
				fields = strings.TrimSuffix(strings.TrimPrefix(spec, "{"), "}")
			}
			o := parseOne(t, "apiVersion: "+group+k.Versions[0]+"\nkind: "+k.Kind+"\nmetadata: {name: a}\n"+fields+"\n")
			var report manifest.Report
			k.Complete = nil // a CRD wants more than one field
			_, ok := k.Check(o, &report)
			if !ok {
				t.Errorf("%s: the schema refuses its own sample for %s: %v", k.Kind, path, report.Diagnostics())
				continue
			}
			said := false
			for _, d := range report.Diagnostics() {
				if d.Code == manifest.CodeDeprecated {
					continue // it works
				}
				at := strings.NewReplacer("[0]", "[]", "[1]", "[]", "spec.", "").Replace(d.Path)
				if d.Code != manifest.CodeUnsupported && d.Code != manifest.CodeIgnoredField || !strings.HasPrefix(path, at) {
					t.Errorf("%s: setting %s says %s", k.Kind, path, d)
				}
				said = true
			}
			if leaf := strings.Contains(spec, "{}") || !isLeaf(k.Type().Paths(), path); leaf {
				continue // an object with nothing in it, or one whose fields come by themselves
			}
			if !said && !works(k.Fields, path) {
				t.Errorf("%s: %s is neither supported nor refused nor ignored with a reason", k.Kind, path)
			}
		}
	}
}

func isLeaf(paths []string, path string) bool {
	for _, p := range paths {
		if strings.HasPrefix(p, path+".") || strings.HasPrefix(p, path+"[]") {
			return false
		}
	}
	return true
}

func works(fs manifest.Fields, path string) bool {
	for _, f := range fs {
		if f.Support == manifest.Works && (path == f.Path || strings.HasPrefix(path, f.Path+".") || strings.HasPrefix(path, f.Path+"[]")) {
			return true
		}
	}
	return false
}

type inner struct {
	Names []string          `json:"names"`
	Self  *inner            `json:"self"`
	Wait  manifest.Duration `json:"wait"`
}

type embedded struct {
	Shared string `json:"shared"`
}

type outer struct {
	embedded
	One     manifest.OneOrMany[inner] `json:"one"`
	Share   manifest.Milli            `json:"share"`
	Small   int8                      `json:"small"`
	Ratio   float64                   `json:"ratio"`
	Labels  map[string]string         `json:"labels"`
	Raw     []byte                    `json:"raw"`
	Free    any                       `json:"free"`
	Skipped string                    `json:"-"`
}

// TestCheck decodes what the schema accepts and compares what it refuses.
func TestCheck(t *testing.T) {
	typ := manifest.FromGo(reflect.TypeFor[outer](), nil)
	kind := manifest.Kind{Type: func() *manifest.Type { return typ }, Fields: manifest.Work("", typ.Paths()...)}
	for _, c := range []struct {
		spec string
		want outer
		says string
	}{
		{spec: "{}"},
		{spec: "{shared: 2020-01-01, ratio: 1e3, small: -128, raw: aGk=}", want: outer{embedded: embedded{"2020-01-01"}, Ratio: 1000, Small: -128, Raw: []byte("hi")}},
		{spec: "{one: {names: [a]}, share: 0.5}", want: outer{One: manifest.OneOrMany[inner]{{Names: []string{"a"}}}, Share: 500}},
		{spec: "{one: [{self: {wait: -1.5s}}, {wait: 1h}], share: 2k}", want: outer{One: manifest.OneOrMany[inner]{{Self: &inner{Wait: -1500e6}}, {Wait: 3600e9}}, Share: 2e6}},
		{spec: "{labels: {a: b}, shared: null}", want: outer{Labels: map[string]string{"a": "b"}}},
		{spec: "{small: 128}", says: "spec.small 128 is out of range: from -128 to 127"},
		{spec: "{ratio: .nan}", says: "spec.ratio want a finite number, got .nan"},
		{spec: "{labels: {a: null}}", says: "spec.labels[a] want a string, got nothing"},
		{spec: "{labels: [a]}", says: "spec.labels want an object, got a list"},
		{spec: "{share: 1e9}", says: `spec.share "1e9" is not a quantity of at least 0`},
		{spec: "{share: 5000000}", says: "spec.share 5000000 is too large: at most 4294967"},
		{spec: "{one: {names: a}}", says: `spec.one.names want a list, got the string "a"`},
		{spec: "{one: {wait: 1}}", says: "spec.one.wait a duration needs a unit, got the number 1"},
		{spec: "{skipped: a, Skipped: c}", says: "spec.Skipped unknown field `Skipped`; spec.skipped unknown field `skipped`"},
		{spec: "[]", says: "spec want an object, got a list"},
	} {
		var report manifest.Report
		spec, ok := kind.Check(parseOne(t, "apiVersion: v1\nkind: K\nmetadata: {name: a}\nspec: "+c.spec), &report)
		var says []string
		for _, d := range report.Diagnostics() {
			says = append(says, d.Path+" "+d.Message)
		}
		if got := strings.Join(says, "; "); got != c.says || ok != (c.says == "") {
			t.Errorf("%s: says %q, want %q", c.spec, got, c.says)
		}
		var got outer
		if ok {
			if err := json.Unmarshal(spec, &got); err != nil {
				t.Errorf("%s: %v in %s", c.spec, err, spec)
			}
		}
		if d := cmp.Diff(c.want, got, cmp.AllowUnexported(outer{})); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.spec, d)
		}
	}
}

// TestReportOrder holds diagnostics to the order of files, lines and fields.
func TestReportOrder(t *testing.T) {
	o := parseOne(t, "apiVersion: v1\nkind: K\nmetadata: {name: a}\nspec:\n  b: 1\n  a: 2\n")
	var r manifest.Report
	r.Error("MALHA0002", o.Spec().Field("a"), "", "second")
	r.Warning("MALHA0001", o.Spec().Field("b"), "", "first")
	r.Add(model.Diagnostic{Code: "MALHA0003"})
	var got []string
	for _, d := range r.Diagnostics() {
		got = append(got, d.Code)
	}
	if d := cmp.Diff([]string{"MALHA0003", "MALHA0001", "MALHA0002"}, got); d != "" {
		t.Error(d)
	}
	if all, errs := r.Len(); all != 3 || errs != 1 {
		t.Errorf("%d diagnostics, %d errors", all, errs)
	}
}

// TestJSONEscapes reads what encoders of JSON write and YAML does not have.
func TestJSONEscapes(t *testing.T) {
	o := parseOne(t, `{"apiVersion": "v1", "kind": "K", "metadata": {"name": "a", "annotations": {"a": "\ud83d\uDE00 \\ud83d\\ude00 \/ \u00e9"}}}`)
	if got, want := o.Annotations["a"], `😀 \ud83d\ude00 / é`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestReportCounts holds the counts of a Report to what is in it, also after mistakes that follow from others were left out.
func TestReportCounts(t *testing.T) {
	var r manifest.Report
	want := func(all, errors int) {
		t.Helper()
		if a, e := r.Len(); a != all || e != errors {
			t.Errorf("%d diagnostics, %d errors; want %d and %d", a, e, all, errors)
		}
	}
	want(0, 0)
	r.Add(model.Diagnostic{Severity: model.Error, Path: "spec.a"}, model.Diagnostic{Severity: model.Info})
	want(2, 1)
	r.Add(model.Diagnostic{Severity: model.Error, Path: "spec.a.b"}, model.Diagnostic{Severity: model.Error, Path: "spec.c"})
	want(4, 3)
	r.Besides(0, 2) // spec.a.b is below a mistake
	want(3, 2)
}

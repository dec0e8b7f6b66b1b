package config

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/golden"
	"github.com/malha-mesh/malha/internal/model"
)

// root is where the paths of proofs begin.
const root = "../.."

// proofs finds the tests that the tables of fields name.
type proofs struct {
	t     *testing.T
	tests map[string]map[string]bool // folder → names of its tests
	cases map[string][]goldenCase    // folder → its archives, by name
}

// goldenCase is one archive, and what its objects set.
type goldenCase struct {
	name string
	sets map[string]bool // "Kind path", and "Kind path=value" of words
}

func readProofs(t *testing.T) *proofs {
	return &proofs{t: t, tests: map[string]map[string]bool{}, cases: map[string][]goldenCase{}}
}

// of returns the proof of one field as the documentation shows it: "TestName (folder)", or the case of a golden test.
// A field that works and whose test is not there, or does not set it, fails the test.
func (p *proofs) of(k *manifest.Kind, f manifest.Field) string {
	if f.Support != manifest.Works {
		return ""
	}
	proof := f.Proof
	if proof == "" {
		proof = k.Proof
	}
	if proof == "" {
		proof = "internal/config TestGolden"
	}
	dir, test, ok := strings.Cut(proof, " ")
	if !ok || !p.testsOf(dir)[test] {
		p.t.Errorf("%s: the test for %s, %q, does not exist: want FOLDER TESTNAME", k.Kind, f.Path, proof)
		return ""
	}
	if test != "TestGolden" {
		return test + " (" + dir + ")"
	}
	want := k.Kind + " " + f.Path
	if f.Value != "" {
		want += "=" + f.Value
	}
	for _, c := range p.casesOf(dir) {
		if c.sets[want] {
			return "[" + c.name + "](../" + dir + "/testdata/" + c.name + ".txtar)"
		}
	}
	p.t.Errorf("%s: no case below %s/testdata sets %s", k.Kind, dir, want)
	return ""
}

func (p *proofs) testsOf(dir string) map[string]bool {
	if names, ok := p.tests[dir]; ok {
		return names
	}
	names := map[string]bool{}
	files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			p.t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				names[fn.Name.Name] = true
			}
		}
	}
	p.tests[dir] = names
	return names
}

// casesOf reads the archives of a golden test. Only cases with a model in their want/ prove that something works, and only
// the objects in it that have no error.
func (p *proofs) casesOf(dir string) []goldenCase {
	if cases, ok := p.cases[dir]; ok {
		return cases
	}
	var cases []goldenCase
	for _, a := range golden.Read(p.t, filepath.Join(root, dir, "testdata")) {
		if _, ok := a.Get(golden.Want + "model"); !ok {
			continue
		}
		c := goldenCase{name: a.Name(), sets: map[string]bool{}}
		var objs []Object
		for _, f := range a.Inputs() {
			found, _ := Parse(f.Name, f.Data)
			objs = append(objs, found...)
		}
		_, ds := Translate(objs)
		for i := range objs {
			o := &objs[i]
			if !slices.ContainsFunc(ds, func(d model.Diagnostic) bool {
				return d.Severity == model.Error && d.Origin.Kind == o.Kind && d.Origin.Namespace == o.Name.Namespace && d.Origin.Name == o.Name.Name
			}) {
				c.add(o)
			}
		}
		cases = append(cases, c)
	}
	bad := func(c goldenCase) bool { return strings.HasPrefix(c.name, "bad-") } // they show what works last
	slices.SortFunc(cases, func(a, b goldenCase) int {
		if bad(a) != bad(b) {
			if bad(a) {
				return 1
			}
			return -1
		}
		return strings.Compare(a.name, b.name)
	})
	p.cases[dir] = cases
	return cases
}

// add notes what an object sets that its kind accepts.
func (c *goldenCase) add(o *Object) {
	for _, k := range Kinds() {
		if k.Kind != o.Kind || k.Group != o.Group() {
			continue
		}
		var r manifest.Report
		k.Complete = nil // what is there by default nobody has set
		spec, ok := k.Check(o, &r)
		if _, errors := r.Len(); !ok || errors > 0 {
			return
		}
		var n yaml.Node
		if err := yaml.Unmarshal(spec, &n); err != nil || len(n.Content) == 0 {
			return
		}
		paths := k.Type().Paths()
		c.walk(k.Kind, "", n.Content[0], paths)
	}
}

func (c *goldenCase) walk(kind, path string, n *yaml.Node, paths []string) {
	if path != "" {
		c.sets[kind+" "+path] = true
	}
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			below := path + "." + n.Content[i].Value
			if path == "" {
				below = n.Content[i].Value
			}
			if !slices.Contains(paths, below) { // an entry of a map
				below = path + "[]"
			}
			c.walk(kind, below, n.Content[i+1], paths)
		}
	case yaml.SequenceNode:
		for _, e := range n.Content {
			c.walk(kind, path+"[]", e, paths)
		}
	case yaml.ScalarNode:
		c.sets[kind+" "+path+"="+n.Value] = true
	}
}

package local

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

const (
	deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n"
	testCases  = "apiVersion: malha.dev/v1alpha1\nkind: Test\nmetadata: {name: t}\n"
)

// What nothing acts on is not said to be in force, and not kept.
func TestIgnoredObjectsAreSaidToBe(t *testing.T) {
	files := parse(t, "x.yaml", serviceA+"---\n"+deployment+"---\n"+testCases)
	applied, changes := applyTo(nil, nil, files)
	name := func(n string) ident.Name { return ident.Name{Namespace: "default", Name: n} }
	want := []Change{{Kind: "Service", Name: name("a"), Action: "created"}, {Kind: "Deployment", Name: name("d"), Action: "ignored"},
		{Kind: "Test", Name: name("t"), Action: "ignored", Note: "it is for `malha test`"}}
	if diff := cmp.Diff(want, changes); diff != "" {
		t.Errorf("apply (-want +got):\n%s", diff)
	}
	if len(applied) != 1 {
		t.Errorf("%d objects are kept, want the Service alone", len(applied))
	}
	_, changes, refused := deleteFrom(nil, applied, files, false)
	want[0].Action = "deleted"
	if diff := cmp.Diff(want, changes); diff != "" || len(refused) > 0 {
		t.Errorf("delete (-want +got):\n%s%v", diff, refused)
	}
	if got := describeChanges(want[1:]); got != "" {
		t.Errorf("nothing changed, and it says %q", got)
	}
}

func TestDeleteOfWhatIsNotThere(t *testing.T) {
	if _, _, refused := deleteFrom(nil, nil, parse(t, "x.yaml", serviceA), false); len(refused) != 1 || !strings.Contains(refused[0], "is not in the mesh") {
		t.Errorf("refused: %v", refused)
	}
	if _, changes, refused := deleteFrom(nil, nil, parse(t, "x.yaml", serviceA), true); len(refused) > 0 || len(changes) > 0 {
		t.Errorf("where it is no mistake: %v %v", changes, refused)
	}
}

func TestOrderForANamespace(t *testing.T) {
	const (
		named   = "kind: Service\napiVersion: v1\nmetadata: {name: b, namespace: prod}\nspec: {ports: [{port: 80}]}\n"
		empty   = "kind: Service\napiVersion: v1\nmetadata: {namespace: \"\", name: c}\nspec: {ports: [{port: 80}]}\n"
		cluster = "kind: Namespace\napiVersion: v1\nmetadata: {name: prod}\n"
	)
	read := func(text string) ([]config.Object, *Applied) {
		a := &Applied{}
		w := order{verb: "apply", namespace: "prod", files: []ManifestFile{{Name: "x.yaml", Data: []byte(text)}}}
		return w.objects(a), a
	}
	objects, a := read(serviceA + "---\n" + named + "---\n" + empty)
	if !a.OK() || len(objects) != 3 {
		t.Fatalf("%d objects, %v %v", len(objects), a.Refused, a.Diagnostics)
	}
	for i := range objects {
		o := &objects[i]
		again := parse(t, "again.yaml", yamlOf(o)) // as it is kept for after a crash
		if o.Name.Namespace != "prod" || o.Origin.Namespace != "prod" || again[0].Name != o.Name {
			t.Errorf("%s: read back it is %s", o.Name, again[0].Name)
		}
	}
	if objects, a = read(cluster); !a.OK() || saysNamespace(&objects[0]) {
		t.Errorf("a Namespace got a namespace: %v", a.Refused)
	}
	if _, a = read(strings.ReplaceAll(named, "prod", "test")); len(a.Refused) != 1 || !strings.Contains(a.Refused[0], "x.yaml:1: Service test/b names its namespace") {
		t.Errorf("an object of another namespace: %v", a.Refused)
	}
}

// What does not get into force must not keep the ports that it was given, and what asks for too many is told with numbers.
func TestPortsOfWhatIsRefused(t *testing.T) {
	const workload = "apiVersion: malha.dev/v1alpha1\nkind: Workload\nmetadata: {name: w, labels: {app: w}}\nspec: {ports: [{port: 80}], run: {command: [sh]}}\n---\n"
	services := func(n int) (text string) {
		for i := range n {
			text += fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: s%d}\nspec: {selector: {app: w}, ports: [{port: 80}]}\n---\n", i)
		}
		return text
	}
	m := &Mesh{ports: somePorts(t), o: Options{Programs: &Programs{}}, config: &model.Config{}, calls: make(chan func()), ended: make(chan struct{})}
	go m.loop(t.Context())
	_, all := m.ports.room()
	for _, c := range []struct {
		what, text string
		dryRun     bool
		code       string
	}{
		{"a dry run", workload + services(3), true, ""},
		{"an error", workload + services(3) + strings.NewReplacer("name: w,", "name: v,", "[sh]", "[no-such-program]").Replace(workload), false, codeCommand},
		{"too many", workload + strings.Replace(workload, "name: w,", "name: v,", 1) + services(all/2), false, codeRoom},
	} {
		a := &Applied{}
		w := order{verb: "apply", files: []ManifestFile{{Name: "x.yaml", Data: []byte(c.text)}}, dryRun: c.dryRun}
		if m.carryOut(t.Context(), w, w.objects(a), a) {
			t.Errorf("%s is in force", c.what)
		}
		var codes []string
		for _, d := range a.Diagnostics {
			if d.Severity == model.Error {
				codes = append(codes, d.Code)
			}
		}
		if got := strings.Join(codes, " "); got != c.code {
			t.Errorf("%s: %q, want %q: %v", c.what, got, c.code, a.Diagnostics)
		}
		if free, _ := m.ports.room(); free != all {
			t.Errorf("%s keeps %d ports", c.what, all-free)
		}
	}
	if len(m.gone) > 0 || m.changing {
		t.Error("the turn is not over")
	}
}

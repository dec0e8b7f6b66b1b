package local

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/ident"
)

func parse(t *testing.T, file, text string) []config.Object {
	t.Helper()
	objects, ds := config.Parse(file, []byte(text))
	if len(ds) > 0 {
		t.Fatalf("%s: %v", file, ds)
	}
	return objects
}

const (
	serviceA   = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n"
	serviceA2  = "# other layout\nkind: Service\napiVersion: v1\nmetadata:\n  name: a\nspec:\n  ports:\n  - port: 80\n"
	serviceA81 = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 81}]}\n"
	serviceB   = "apiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {ports: [{port: 80}]}\n"
)

func TestApplyAndDelete(t *testing.T) {
	folder := parse(t, "mesh/a.yaml", serviceA)
	a := ident.Name{Namespace: "default", Name: "a"}
	b := ident.Name{Namespace: "default", Name: "b"}

	applied, changes := applyTo(folder, nil, parse(t, "x.yaml", serviceA2+"---\n"+serviceB))
	want := []Change{{Kind: "Service", Name: a, Action: "unchanged"}, {Kind: "Service", Name: b, Action: "created"}}
	if diff := cmp.Diff(want, changes); diff != "" {
		t.Errorf("first apply (-want +got):\n%s", diff)
	}
	applied, changes = applyTo(folder, applied, parse(t, "x.yaml", serviceA81+"---\n"+serviceB))
	want = []Change{
		{Kind: "Service", Name: a, Action: "configured", Note: "shadows the one in mesh/a.yaml:1"},
		{Kind: "Service", Name: b, Action: "unchanged"},
	}
	if diff := cmp.Diff(want, changes); diff != "" {
		t.Errorf("second apply (-want +got):\n%s", diff)
	}
	all := merge(folder, applied)
	if len(all) != 2 {
		t.Fatalf("%d objects are in force, want 2", len(all))
	}
	if o := byKey(all)[config.Key{Kind: "Service", Name: a}]; o.Origin.File != "x.yaml" {
		t.Errorf("service a in force is that of %s, want the applied one", o.Origin.File)
	}

	path := filepath.Join(t.TempDir(), "applied.json")
	if err := saveOverlay(path, "mesh", applied); err != nil {
		t.Fatal(err)
	}
	if again, _ := loadOverlay(path, "elsewhere"); again != nil {
		t.Errorf("another folder's mesh took over %d applied objects", len(again))
	}
	again, ds := loadOverlay(path, "mesh")
	if len(ds) > 0 || len(again) != 2 {
		t.Fatalf("read back %d objects, %v", len(again), ds)
	}
	for i := range again {
		if !sameContent(&again[i], &applied[i]) || again[i].Origin != applied[i].Origin {
			t.Errorf("object %d changed on the way through the disk: %v, want %v", i, again[i].Origin, applied[i].Origin)
		}
	}

	after, changes, refused := deleteFrom(folder, applied, parse(t, "y.yaml", serviceA), false)
	want = []Change{{Kind: "Service", Name: a, Action: "deleted", Note: "the one in mesh/a.yaml:1 is in force again"}}
	if diff := cmp.Diff(want, changes); diff != "" || len(refused) > 0 {
		t.Errorf("delete (-want +got):\n%s%v", diff, refused)
	}
	_, _, refused = deleteFrom(folder, after, parse(t, "y.yaml", serviceA), false)
	if diff := cmp.Diff([]string{"Service default/a comes from mesh/a.yaml:1; delete it there"}, refused); diff != "" {
		t.Errorf("delete of the folder's (-want +got):\n%s", diff)
	}
}

// What is shown can be applied again from anywhere, and is the same.
func TestShownWorkloadsSayTheirFolder(t *testing.T) {
	const workload = "apiVersion: malha.dev/v1alpha1\nkind: Workload\nmetadata: {name: w}\nspec:\n  ports: [{port: 80}]\n  run: {command: [./w]%s}\n"
	for dir, want := range map[string]string{"": "/mesh/a", ", dir: ./bin": "/mesh/a/bin", ", dir: ..": "/mesh", ", dir: /opt": "/opt"} {
		o := &parse(t, "/mesh/a/w.yaml", fmt.Sprintf(workload, dir))[0]
		before := yamlOf(o)
		again := &parse(t, "/elsewhere/stdin", yamlOf(whole(o)))[0]
		if got := fieldOf(fieldOf(fieldOf(again.Node, "spec"), "run"), "dir"); got == nil || got.Value != want {
			t.Errorf("dir%s is shown as %v, want %s", dir, got, want)
		}
		if !sameContent(o, again) || yamlOf(o) != before {
			t.Errorf("dir%s: what is shown is another object, or the object changed", dir)
		}
	}
	if a, b := parse(t, "/a/w.yaml", fmt.Sprintf(workload, "")), parse(t, "/b/w.yaml", fmt.Sprintf(workload, "")); sameContent(&a[0], &b[0]) {
		t.Error("a program in another folder is the same")
	}
}

func TestShownObjectsSayTheirNamespace(t *testing.T) {
	o := &parse(t, "a.yaml", serviceA)[0]
	before := yamlOf(o)
	shown := parse(t, "shown.yaml", yamlOf(withNamespace(o)))
	var v struct {
		Metadata struct{ Name, Namespace string }
	}
	if err := shown[0].Node.Decode(&v); err != nil || v.Metadata.Namespace != "default" || v.Metadata.Name != "a" {
		t.Errorf("%+v, %v; want a in namespace default", v, err)
	}
	if yamlOf(o) != before {
		t.Error("the object in force was changed")
	}
	if again := &shown[0]; withNamespace(again) != again {
		t.Error("an object that says its namespace was copied")
	}
}

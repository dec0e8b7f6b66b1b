package file

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/model"
)

const aService = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selector: {app: a}, ports: [{port: 80}]}\n"

// TestOtherFilesArePassedOver has folders with a file that is something else, or a manifest with a mistake.
func TestOtherFilesArePassedOver(t *testing.T) {
	for name, c := range map[string]struct {
		text, want string
	}{
		"package.json":     {`{"name": "web", "version": "1.0.0", "kinds": 1, "dependencies": {"kind": "1"}}`, "error MALHA0103, error MALHA0103"}, // kinds: nearly a word of ours
		"compose.yaml":     {"version: '3'\nservices: {web: {image: web}}\n", "warning MALHA0114"},
		"lock.json":        {`{"name": "web", "version": "1", "lockfileVersion": 3, "name": "again"}`, "warning MALHA0114"},
		"tags.yaml":        {"Resources: !Sub x\n", "warning MALHA0114"},
		"empty.json":       {"{}", "warning MALHA0114"},
		"list.json":        {"[1, {a: b}]", "warning MALHA0114"},
		"text.yaml":        {"hello\n", "warning MALHA0114"},
		"several.yaml":     {"a: b\n---\n- c\n---\n# nothing\n", "warning MALHA0114"},
		"cut.yaml":         {"spec: {}\n---\n" + strings.ReplaceAll(aService, "name: a", "name: b"), "error MALHA0103, error MALHA0103"},
		"apiversion.yaml":  {"apiversion: v1\n", "error MALHA0103, error MALHA0103"},
		"KIND.yaml":        {"KIND: Service\n", "error MALHA0103, error MALHA0103"},
		"metdata.yaml":     {"metdata: {name: a}\n", "error MALHA0103, error MALHA0103"},
		"objects.yaml":     {"- apiVersion: v1\n  kind: Service\n", "error MALHA0103"},
		"no-colon.yaml":    {"apiVersion v1\n", "error MALHA0103"},
		"merged.yaml":      {"x: &x {kind: Service}\n<<: *x\n", "error MALHA0103"},
		"broken.json":      {`{"name": `, "error MALHA0101"},
		"nothing.yaml":     {"# nothing\n---\n", ""},
		"with-schema.json": {`{"$schema": "https://json-schema.org/draft", "title": "x"}`, "warning MALHA0114"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range map[string]string{"a.yaml": aService, name: c.text} {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			r := Read(dir)
			for _, d := range r.Diagnostics {
				if d.Origin.File != filepath.Join(dir, name) {
					t.Errorf("of another file: %s", d)
				}
				got = append(got, string(d.Severity)+" "+d.Code)
			}
			if text := strings.Join(got, ", "); text != c.want {
				t.Errorf("%s, want %s", text, c.want)
			}
			if !slices.ContainsFunc(r.Objects, func(o manifest.Object) bool { return o.Name.Name == "a" }) {
				t.Error("the neighbour is not read")
			}
			files, ds := Manifests(dir)
			passed := strings.HasPrefix(c.want, "warning")
			if len(files) == 1 != passed || len(ds) == 1 != passed {
				t.Errorf("of it as a part of an order: %d files, %v", len(files), ds)
			}
			if named := Read(filepath.Join(dir, name)); passed && !model.HasErrors(named.Diagnostics) {
				t.Errorf("named itself: %v", named.Diagnostics)
			}
		})
	}
}

func TestFolderOfOtherFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "package.json"), []byte(`{"name": "web"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range Read(dir).Diagnostics {
		got = append(got, d.String())
	}
	want := []string{
		dir + ": warning MALHA0110: no manifest in this folder (put *.yaml or *.json files into it)",
		dir + "/package.json:1: warning MALHA0114: this file is no manifest and is passed over: it has neither apiVersion nor kind nor metadata (nothing, when it is something else; a manifest starts with apiVersion, kind and metadata)",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A file that had objects is a manifest: when its head is cut off, they keep serving.
func TestManifestThatLosesItsHead(t *testing.T) {
	at := func(text string) *snapshot {
		return &snapshot{files: []content{{name: "a.yaml", found: true, data: []byte(text)}}}
	}
	first := at(aService).result(nil, Good{})
	if len(first.Objects) != 1 {
		t.Fatal(first.Diagnostics)
	}
	then := at("spec: {}\n").result(nil, Good{Objects: first.Objects})
	if len(then.Objects) != 1 || !model.HasErrors(then.Diagnostics) {
		t.Errorf("%d objects, %v", len(then.Objects), then.Diagnostics)
	}
}

// An order has the files of a folder that a mesh would follow: behind links, in sub-folders, and no hidden ones.
func TestManifestsAreThoseOfTheFolder(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	for _, name := range []string{
		filepath.Join(dir, "a.yaml"), filepath.Join(dir, "sub", "b.yml"), filepath.Join(dir, ".hidden.yaml"), filepath.Join(dir, "README.md"),
		filepath.Join(outside, "c.json"), filepath.Join(outside, "more", "d.yaml"),
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(aService), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"c.json": filepath.Join(outside, "c.json"), "more": filepath.Join(outside, "more"), "sub/up": dir} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	found, ds := Manifests(dir)
	var got []string
	for _, f := range found {
		rel, err := filepath.Rel(dir, f.Name)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, rel)
	}
	if diff := cmp.Diff([]string{"a.yaml", "c.json", "more/d.yaml", "sub/b.yml"}, got); diff != "" || len(ds) > 0 {
		t.Errorf("%v (-want +got):\n%s", ds, diff)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "gone.yaml")); err != nil {
		t.Fatal(err)
	}
	if _, ds := Manifests(dir); !model.HasErrors(ds) {
		t.Errorf("a link to nothing: %v", ds)
	}
}

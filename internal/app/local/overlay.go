package local

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/model"
)

// merge returns the folder's objects with the applied ones over them: an applied object shadows the folder's.
func merge(folder, applied []config.Object) []config.Object {
	over := make(map[config.Key]bool, len(applied))
	for i := range applied {
		over[config.KeyOf(&applied[i])] = true
	}
	all := make([]config.Object, 0, len(folder)+len(applied))
	for i := range folder {
		if !over[config.KeyOf(&folder[i])] {
			all = append(all, folder[i])
		}
	}
	return append(all, applied...)
}

// byKey finds objects; of several with one key it is the first.
func byKey(objects []config.Object) map[config.Key]*config.Object {
	m := make(map[config.Key]*config.Object, len(objects))
	for i := range objects {
		if k := config.KeyOf(&objects[i]); m[k] == nil {
			m[k] = &objects[i]
		}
	}
	return m
}

// applyTo returns the applied objects after files were applied, and what that does to each.
func applyTo(folder, applied, files []config.Object) ([]config.Object, []Change) {
	inFolder, now := byKey(folder), byKey(applied)
	var changes []Change
	for i := range files {
		o := &files[i]
		if config.PassesOver(o) {
			changes = append(changes, ignored(o))
			continue
		}
		c := Change{Kind: o.Kind, Name: o.Name, Action: "created"}
		k := config.KeyOf(o)
		shadowed, before := inFolder[k], now[k]
		if before == nil {
			before = shadowed
		}
		if before != nil {
			c.Action = "configured"
			if sameContent(before, o) {
				c.Action = "unchanged"
			}
		}
		if c.Action != "unchanged" {
			if shadowed != nil {
				c.Note = "shadows the one in " + shadowed.Origin.Place()
			}
			now[k] = o
		}
		changes = append(changes, c)
	}
	var after []config.Object
	for _, list := range [][]config.Object{applied, files} {
		for i := range list {
			if now[config.KeyOf(&list[i])] == &list[i] {
				after = append(after, list[i])
			}
		}
	}
	return after, changes
}

// ignored is what happens to an object that nothing acts on; why is a diagnostic's part, but for a Test, of which none speaks.
func ignored(o *config.Object) Change {
	c := Change{Kind: o.Kind, Name: o.Name, Action: "ignored"}
	if o.Kind == "Test" {
		c.Note = "it is for `malha test`"
	}
	return c
}

// deleteFrom returns the applied objects without those named by files, what that does to each, and why it cannot be.
func deleteFrom(folder, applied, files []config.Object, missingOK bool) (after []config.Object, changes []Change, refused []string) {
	below, now := byKey(folder), byKey(applied)
	for i := range files {
		o := &files[i]
		k := config.KeyOf(o)
		inFolder := below[k]
		switch {
		case now[k] != nil:
			delete(now, k)
			c := Change{Kind: o.Kind, Name: o.Name, Action: "deleted"}
			if inFolder != nil {
				c.Note = "the one in " + inFolder.Origin.Place() + " is in force again"
			}
			changes = append(changes, c)
		case inFolder != nil:
			refused = append(refused, fmt.Sprintf("%s %s comes from %s; delete it there", o.Kind, o.Name, inFolder.Origin.Place()))
		case config.PassesOver(o):
			changes = append(changes, ignored(o))
		case !missingOK:
			refused = append(refused, fmt.Sprintf("%s %s is not in the mesh; `malha get %s -A` lists those that are", o.Kind, o.Name, strings.ToLower(o.Kind)))
		}
	}
	after = slices.DeleteFunc(slices.Clone(applied), func(a config.Object) bool { return now[config.KeyOf(&a)] == nil })
	return after, changes, refused
}

// sameContent reports whether two objects say the same, whatever their layout, comments and lines.
func sameContent(a, b *config.Object) bool {
	var x, y any
	a, b = whole(a), whole(b)
	if a.APIVersion != b.APIVersion || a.Node.Decode(&x) != nil || b.Node.Decode(&y) != nil {
		return false
	}
	p, err1 := yaml.Marshal(x)
	q, err2 := yaml.Marshal(y)
	return err1 == nil && err2 == nil && bytes.Equal(p, q)
}

// saysNamespace reports whether an object was written with its namespace.
func saysNamespace(o *config.Object) bool {
	ns := fieldOf(fieldOf(o.Node, "metadata"), "namespace")
	return ns != nil && ns.Value != "" && ns.ShortTag() != "!!null"
}

// fieldOf returns the value of a field of an object, or nil.
func fieldOf(n *yaml.Node, name string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i+1]
		}
	}
	return nil
}

// whole returns an object that means the same wherever it is read: it says its namespace, and a Workload the folder in which its
// program runs, also when it was written without them.
func whole(o *config.Object) *config.Object {
	o = withNamespace(o)
	run := fieldOf(fieldOf(o.Node, "spec"), "run")
	if o.Kind != "Workload" || run == nil || run.Kind != yaml.MappingNode {
		return o
	}
	dir := ""
	if n := fieldOf(run, "dir"); n != nil {
		dir = n.Value
	}
	beside := path.Join(path.Dir(o.Origin.File), dir)
	if path.IsAbs(dir) || !path.IsAbs(beside) {
		return o
	}
	out := *o
	out.Node = withField(o.Node, beside, "spec", "run", "dir")
	return &out
}

// withNamespace returns an object that says its namespace.
func withNamespace(o *config.Object) *config.Object {
	meta := fieldOf(o.Node, "metadata")
	if meta == nil || meta.Kind != yaml.MappingNode || saysNamespace(o) || model.ClusterScoped(o.Kind) {
		return o
	}
	out := *o
	out.Node = withField(o.Node, o.Name.Namespace, "metadata", "namespace")
	return &out
}

// withField returns an object with a field set, and leaves the one it was given as it is. What the fields lead through are objects.
func withField(n *yaml.Node, value string, fields ...string) *yaml.Node {
	if len(fields) == 0 {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: value}
	}
	out := *n
	out.Content = slices.Clone(n.Content)
	for i := 0; i+1 < len(out.Content); i += 2 {
		if out.Content[i].Value == fields[0] {
			out.Content[i+1] = withField(out.Content[i+1], value, fields[1:]...)
			return &out
		}
	}
	out.Content = append(out.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: fields[0]},
		withField(&yaml.Node{Kind: yaml.MappingNode}, value, fields[1:]...))
	return &out
}

func yamlOf(o *config.Object) string {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(o.Node); err != nil {
		return "# cannot be shown: " + err.Error() + "\n"
	}
	return b.String()
}

// savedObject is an applied object on disk, for the mesh after a crash of this one.
type savedObject struct {
	File string `json:"file"`
	Line int    `json:"line"`
	YAML string `json:"yaml"`
}

type savedOverlay struct {
	Folder  string        `json:"folder"` // they belong to this folder's mesh
	Objects []savedObject `json:"objects"`
}

// saveOverlay writes the applied objects, or removes the file when there are none.
func saveOverlay(name, folder string, applied []config.Object) error {
	if len(applied) == 0 {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	s := savedOverlay{Folder: folder}
	for i := range applied {
		o := &applied[i]
		s.Objects = append(s.Objects, savedObject{File: o.Origin.File, Line: o.Origin.Line, YAML: yamlOf(o)})
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	tmp := name + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

// loadOverlay reads what a mesh of the same folder that did not end in order had applied.
func loadOverlay(name, folder string) ([]config.Object, []model.Diagnostic) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, nil
	}
	var s savedOverlay
	if json.Unmarshal(b, &s) != nil || s.Folder != folder {
		return nil, nil
	}
	var objects []config.Object
	var ds []model.Diagnostic
	for _, o := range s.Objects {
		// Blank lines in front keep the line numbers of the file it came from.
		text := strings.Repeat("\n", max(0, min(o.Line, 10_000)-1)) + o.YAML
		found, more := config.Parse(o.File, []byte(text))
		objects, ds = append(objects, found...), append(ds, more...)
	}
	return objects, ds
}

// without returns the objects that are in the folder, as they are in sound, which holds those of applied too.
func without(sound, folder, applied []config.Object) []config.Object {
	shadowed := make(map[config.Key]bool, len(applied))
	for i := range applied {
		shadowed[config.KeyOf(&applied[i])] = true
	}
	out := slices.DeleteFunc(slices.Clone(sound), func(o config.Object) bool { return shadowed[config.KeyOf(&o)] })
	for i := range folder {
		if shadowed[config.KeyOf(&folder[i])] {
			out = append(out, folder[i])
		}
	}
	return out
}

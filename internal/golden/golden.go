// Package golden runs tests that are written down as files: each testdata/*.txtar archive holds the inputs of a case
// and, under "want/", what must come out of it.
//
// A case fails when an output differs from its want file, when an output has no want file, and when a want file is no
// longer produced (it is stale: a reader would believe it). `go test ./internal/x -update` rewrites the want files and
// removes the stale ones; the difference is then for a person to read in the change.
//
// It is used by tests only and starts no goroutine.
package golden

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the want/ files of golden tests")

// Want is the prefix of the files that a case must produce.
const Want = "want/"

// Read returns the archives DIR/*.txtar by name. A folder without archives fails: the pattern would be wrong.
func Read(t testing.TB, dir string) []*Archive {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatalf("no archive matches %s/*.txtar", dir)
	}
	out := make([]*Archive, len(files))
	for i, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if out[i], err = Parse(data); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		out[i].Path = file
	}
	return out
}

// Run runs do once for each archive DIR/*.txtar, as a subtest with the archive's name. do returns the outputs of the
// case by name, without the prefix "want/".
func Run(t *testing.T, dir string, do func(t *testing.T, in *Archive) map[string][]byte) {
	t.Helper()
	for _, a := range Read(t, dir) {
		t.Run(a.Name(), func(t *testing.T) {
			got := do(t, a)
			if t.Failed() {
				return
			}
			if *update {
				rewrite(t, a, got)
				return
			}
			for _, problem := range compare(a, got) {
				t.Errorf("%s: %s\n(go test -update rewrites the archive)", a.Path, problem)
			}
		})
	}
}

// compare returns what is wrong with the outputs of a case, in a stable order.
func compare(a *Archive, got map[string][]byte) []string {
	var problems []string
	for _, f := range a.Under(Want) {
		out, ok := got[strings.TrimPrefix(f.Name, Want)]
		if !ok {
			problems = append(problems, f.Name+" is stale: nothing produces it")
			continue
		}
		if d := cmp.Diff(string(closed(f.Data)), string(closed(out))); d != "" {
			problems = append(problems, f.Name+" differs (-want +got):\n"+d)
		}
	}
	for _, name := range sortedKeys(got) {
		if _, ok := a.Get(Want + name); !ok {
			problems = append(problems, "no file "+Want+name+" for the output:\n"+string(got[name]))
		}
	}
	return problems
}

// apply makes the want files of a be got.
func apply(a *Archive, got map[string][]byte) {
	for _, f := range a.Under(Want) {
		if _, ok := got[strings.TrimPrefix(f.Name, Want)]; !ok {
			a.Remove(f.Name)
		}
	}
	for _, name := range sortedKeys(got) {
		a.Set(Want+name, got[name])
	}
}

func rewrite(t *testing.T, a *Archive, got map[string][]byte) {
	t.Helper()
	old, err := os.ReadFile(a.Path)
	if err != nil {
		t.Fatal(err)
	}
	apply(a, got)
	if data := a.Format(); !bytes.Equal(data, old) {
		if err := os.WriteFile(a.Path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		t.Logf("rewrote %s", a.Path)
	}
}

// JSON returns v as indented JSON, as outputs are best compared and read.
func JSON(t *testing.T, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func sortedKeys(m map[string][]byte) []string { return slices.Sorted(maps.Keys(m)) }

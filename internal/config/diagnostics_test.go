package config_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDiagnosticsAreDocumented compares the codes in the program with those in docs/diagnostics.md, both ways.
func TestDiagnosticsAreDocumented(t *testing.T) {
	const root = "../.."
	literal := regexp.MustCompile(`= "(MALHA\d{4})"`)
	used := map[string]string{} // code → file
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root:
			return filepath.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range literal.FindAllSubmatch(text, -1) {
			if other, twice := used[string(m[1])]; twice {
				t.Errorf("%s stands in %s and in %s: a code has one meaning and one constant", m[1], other, path)
			}
			used[string(m[1])] = path
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "diagnostics.md"))
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^### (MALHA\d{4})$`).FindAllSubmatch(page, -1) {
		documented[string(m[1])] = true
	}
	for _, code := range slices.Sorted(maps.Keys(used)) {
		if !documented[code] {
			t.Errorf("%s (%s) has no entry in docs/diagnostics.md", code, used[code])
		}
	}
	for _, code := range slices.Sorted(maps.Keys(documented)) {
		if used[code] == "" {
			t.Errorf("docs/diagnostics.md explains %s, which nothing reports", code)
		}
	}
}

// TestCodesAreUsed finds constants of manifest/codes.go that nothing reports.
func TestCodesAreUsed(t *testing.T) {
	declared, used := map[string]bool{}, map[string]bool{}
	files, err := filepath.Glob("*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	own, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(files, own...) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		into := used
		if filepath.Base(name) == "codes.go" {
			into = declared
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok && strings.HasPrefix(id.Name, "Code") {
				into[id.Name] = true
			}
			return true
		})
	}
	if len(declared) == 0 {
		t.Fatal("found no code")
	}
	for name := range declared {
		if !used[name] {
			t.Errorf("nothing reports %s", name)
		}
	}
}

package arch

import (
	_ "embed"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

//go:embed layers.txt
var layers string

const module = "github.com/malha-mesh/malha"

// maxLines is the longest a file may be; a longer one wants to be two.
const maxLines = 800

// row is one line of layers.txt.
type row struct {
	pkg        string
	pure       bool
	imports    []string
	thirdParty []string
	line       int
	used       bool
}

// source is one package of the tree.
type source struct {
	dir   string
	files map[string]*ast.File
}

// bannedInPure are the imports that would let a pure room reach the world outside.
var bannedInPure = []string{"net", "os", "os/exec", "log", "log/slog", "context", "syscall", "net/http"}

// clock are the functions of package time that read the clock or start a timer.
var clock = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"}

func TestLayers(t *testing.T) {
	rows := parseRows(t)
	fset := token.NewFileSet()
	for _, src := range parseTree(t, fset) {
		r := find(rows, src.dir)
		if r == nil {
			t.Errorf("%s: no row in layers.txt: every package has one", src.dir)
			continue
		}
		r.used = true
		docs := 0
		for name, file := range src.files {
			if file.Doc != nil {
				docs++
			}
			for _, imp := range file.Imports {
				path, _ := strconv.Unquote(imp.Path.Value)
				if msg := r.forbids(rows, src.dir, path); msg != "" {
					t.Errorf("%s: %s", fset.Position(imp.Pos()), msg)
				}
			}
			if r.pure {
				for _, msg := range impurities(fset, file) {
					t.Error(msg)
				}
			}
			if n := fset.File(file.Pos()).LineCount(); n > maxLines {
				t.Errorf("%s: %d lines; at most %d: split it by concept", name, n, maxLines)
			}
			for _, msg := range globals(fset, file) {
				t.Error(msg)
			}
		}
		if docs != 1 {
			t.Errorf("%s: %d package docs; want exactly one", src.dir, docs)
		}
	}
	for _, r := range rows {
		if !r.used {
			t.Errorf("layers.txt:%d: %s: no such package: remove the row", r.line, r.pkg)
		}
	}
}

// forbids returns why a package of this row may not import path, or "".
func (r *row) forbids(rows []*row, dir, path string) string {
	rest, ours := strings.CutPrefix(path, module+"/")
	switch {
	case !ours && !strings.Contains(strings.Split(path, "/")[0], "."): // the standard library
		if r.pure && slices.Contains(bannedInPure, path) {
			return fmt.Sprintf("%s is pure and may not import %s", r.pkg, path)
		}
		return ""
	case !ours:
		for _, p := range r.thirdParty {
			if strings.HasPrefix(path, p) {
				return ""
			}
		}
		return fmt.Sprintf("%s may not import %s (layers.txt:%d)", r.pkg, path, r.line)
	}
	target := find(rows, rest)
	if target == nil {
		return "" // reported where the package is parsed
	}
	if !slices.Contains(r.imports, target.pkg) && target != r {
		return fmt.Sprintf("%s may not import %s (layers.txt:%d)", dir, rest, r.line)
	}
	return ""
}

// impurities returns the go statements and clock readings of a file.
func impurities(fset *token.FileSet, file *ast.File) []string {
	var out []string
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			out = append(out, fmt.Sprintf("%s: a go statement in a pure package", fset.Position(n.Pos())))
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clock, n.Sel.Name) {
				out = append(out, fmt.Sprintf("%s: time.%s in a pure package: take now as an argument", fset.Position(n.Pos()), n.Sel.Name))
			}
		}
		return true
	})
	return out
}

// globals returns the init functions of a file.
func globals(fset *token.FileSet, file *ast.File) []string {
	var out []string
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			out = append(out, fmt.Sprintf("%s: an init function: wire it where it is used", fset.Position(f.Pos())))
		}
	}
	return out
}

// find returns the row of a package: its own, or the longest "name/..." above it.
func find(rows []*row, dir string) *row {
	var best *row
	for _, r := range rows {
		if r.pkg == dir {
			return r
		}
		if p, ok := strings.CutSuffix(r.pkg, "..."); ok && strings.HasPrefix(dir, p) && (best == nil || len(r.pkg) > len(best.pkg)) {
			best = r
		}
	}
	return best
}

func parseRows(t *testing.T) []*row {
	t.Helper()
	var rows []*row
	for i, line := range strings.Split(layers, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		cols := strings.Split(line, "|")
		if len(cols) != 4 {
			t.Fatalf("layers.txt:%d: want 4 columns, got %d", i+1, len(cols))
		}
		r := &row{pkg: strings.TrimSpace(cols[0]), pure: strings.TrimSpace(cols[1]) == "pure", imports: list(cols[2]), thirdParty: list(cols[3]), line: i + 1}
		for _, imp := range r.imports {
			if find(rows, imp) == nil {
				t.Errorf("layers.txt:%d: %s may import %s, which has no row above", r.line, r.pkg, imp)
			}
		}
		rows = append(rows, r)
	}
	return rows
}

func list(col string) []string {
	if col = strings.TrimSpace(col); col == "-" {
		return nil
	}
	return strings.Fields(col)
}

// parseTree reads the non-test Go files of the module, one source for each folder that has any.
func parseTree(t *testing.T, fset *token.FileSet) []*source {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	byDir := map[string]*source{}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() {
			if _, err := os.Stat(filepath.Join(path, "go.mod")); rel != "." && err == nil {
				return fs.SkipDir // a module of its own
			}
			if name := d.Name(); rel != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "test") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(rel))
		if byDir[dir] == nil {
			byDir[dir] = &source{dir: dir, files: map[string]*ast.File{}}
		}
		byDir[dir].files[filepath.ToSlash(rel)] = file
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var out []*source
	for _, s := range byDir {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *source) int { return strings.Compare(a.dir, b.dir) })
	if len(out) < 10 {
		t.Fatalf("only %d packages found below %s", len(out), root)
	}
	return out
}

// TestCatches proves that the check can fail: each rule is broken once in a file made for it.
func TestCatches(t *testing.T) {
	rows := []*row{{pkg: "internal/a", pure: true}, {pkg: "internal/b", imports: []string{"internal/a"}}}
	for _, c := range []struct{ from, imp, want string }{
		{"internal/a", module + "/internal/b", "may not import internal/b"},
		{"internal/a", "net", "is pure"},
		{"internal/b", "k8s.io/api/core/v1", "may not import k8s.io"},
	} {
		if got := find(rows, c.from).forbids(rows, c.from, c.imp); !strings.Contains(got, c.want) {
			t.Errorf("%s importing %s: %q, want %q", c.from, c.imp, got, c.want)
		}
	}
	if got := find(rows, "internal/b").forbids(rows, "internal/b", module+"/internal/a"); got != "" {
		t.Errorf("an allowed import is refused: %s", got)
	}
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "x.go", "package x\nimport \"time\"\nfunc init() { go f(); _ = time.Now() }", 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(impurities(fset, file)); got != 2 {
		t.Errorf("%d impurities found, want 2", got)
	}
	if got := len(globals(fset, file)); got != 1 {
		t.Errorf("%d init functions found, want 1", got)
	}
}

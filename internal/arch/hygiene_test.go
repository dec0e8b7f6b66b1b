package arch

import (
	"go/ast"
	"go/token"
	"strings"
	"testing"
)

// What audits of other meshes found is not written here: defers that pile up in loops, and TLS without a lowest version (Trail
// of Bits, Linkerd, 2022). Their timers that nobody stops are the garbage collector's since Go 1.23.
func TestHygiene(t *testing.T) {
	fset := token.NewFileSet()
	seen := 0
	for _, src := range parseTree(t, fset) {
		for _, file := range src.files {
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.ForStmt, *ast.RangeStmt:
					for _, d := range defersIn(n) {
						t.Errorf("%s: a defer in a loop runs at the end of the function, not of the turn: give the turn a function", fset.Position(d.Pos()))
					}
				case *ast.CompositeLit:
					if sel, ok := n.Type.(*ast.SelectorExpr); ok && named(sel, "tls", "Config") {
						seen++
						if !hasKey(n, "MinVersion") {
							t.Errorf("%s: a tls.Config without MinVersion", fset.Position(n.Pos()))
						}
					}
				}
				return true
			})
		}
	}
	if seen == 0 {
		t.Error("no tls.Config was found: the check looks at the wrong thing")
	}
}

// defersIn returns the defers of a loop that belong to the function around it.
func defersIn(loop ast.Node) []*ast.DeferStmt {
	var out []*ast.DeferStmt
	ast.Inspect(loop, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false
		case *ast.DeferStmt:
			out = append(out, n)
		}
		return true
	})
	return out
}

func named(sel *ast.SelectorExpr, pkg, name string) bool {
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == pkg && sel.Sel.Name == name
}

func hasKey(lit *ast.CompositeLit, key string) bool {
	for _, e := range lit.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			if k, ok := kv.Key.(*ast.Ident); ok && strings.EqualFold(k.Name, key) {
				return true
			}
		}
	}
	return false
}

package advisories

import (
	_ "embed"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

//go:embed rows.txt
var rowsText string

var update = flag.Bool("update", false, "write docs/advisories.md")

const page = "../../docs/advisories.md"

// sections are the ranges of numbers that rows.txt has to have, each number once.
var sections = []struct {
	title       string
	first, last int
}{
	{"HTTP/2: floods and exhaustion", 1, 31},
	{"HTTP/1: framing and smuggling", 32, 59},
	{"From HTTP/2 to HTTP/1", 60, 69},
	{"Headers that proxies write", 96, 99},
	{"TLS and identities", 107, 117},
	{"Own answers, teardown, changes of configuration", 135, 144},
	{"Memory, processor time, parsers", 145, 157},
	{"The control plane, admin ports, other users of the machine", 158, 166},
	{"PROXY protocol, names, addresses", 180, 185},
}

// row is one line of rows.txt: number | advisories | class | claim | test: ... or reason: ...
type row struct {
	number                   int
	ids, class, claim, proof string
}

func readRows(t *testing.T) []row {
	var rows []row
	for i, line := range strings.Split(rowsText, "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		f := strings.Split(line, " | ")
		if len(f) != 5 {
			t.Fatalf("rows.txt:%d has %d columns, want 5", i+1, len(f))
		}
		n, err := strconv.Atoi(f[0])
		if err != nil {
			t.Fatalf("rows.txt:%d: %v", i+1, err)
		}
		for _, s := range f {
			if strings.TrimSpace(s) == "" {
				t.Errorf("rows.txt:%d has an empty column", i+1)
			}
		}
		rows = append(rows, row{n, f[1], f[2], f[3], f[4]})
	}
	return rows
}

// Every row of every section is there once, in order, with tests that exist or a reason.
func TestRows(t *testing.T) {
	rows := readRows(t)
	i := 0
	for _, s := range sections {
		for n := s.first; n <= s.last; n++ {
			if i >= len(rows) || rows[i].number != n {
				t.Fatalf("row %d is missing, or out of order", n)
			}
			i++
		}
	}
	if i != len(rows) {
		t.Errorf("%d rows are in no section", len(rows)-i)
	}
	found := map[string]*tests{}
	for _, r := range rows {
		reason, isReason := strings.CutPrefix(r.proof, "reason: ")
		list, isTest := strings.CutPrefix(r.proof, "test: ")
		switch {
		case isReason && len(strings.Fields(reason)) < 4:
			t.Errorf("row %d: the reason says too little", r.number)
		case isTest:
			for _, ref := range strings.Split(list, "; ") {
				if err := exists(found, ref); err != nil {
					t.Errorf("row %d: %v", r.number, err)
				}
			}
		case !isReason:
			t.Errorf("row %d has neither a test nor a reason", r.number)
		}
	}
	want := render(rows)
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(page); err != nil || string(got) != want {
		t.Errorf("docs/advisories.md is not what rows.txt says (%v): go test ./internal/advisories -run TestRows -update", err)
	}
}

// tests are what the test files of a package have.
type tests struct {
	funcs   map[string]bool
	strings []string
}

// exists looks for "package TestName" or "package TestName/subtest": the function in the package's test files, and the
// subtest's name, or what it begins with, as a string there.
func exists(found map[string]*tests, ref string) error {
	pkg, name, ok := strings.Cut(ref, " ")
	if !ok {
		return fmt.Errorf("%q is not a package and a test", ref)
	}
	if found[pkg] == nil {
		files, err := filepath.Glob(filepath.Join("../..", pkg, "*_test.go"))
		if err != nil || len(files) == 0 {
			return fmt.Errorf("%s has no tests", pkg)
		}
		ts := &tests{funcs: map[string]bool{}}
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					if n.Recv == nil {
						ts.funcs[n.Name.Name] = true
					}
				case *ast.BasicLit:
					if s, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
						ts.strings = append(ts.strings, s)
					}
				}
				return true
			})
		}
		found[pkg] = ts
	}
	ts := found[pkg]
	f, sub, hasSub := strings.Cut(name, "/")
	if !ts.funcs[f] || !regexp.MustCompile(`^(Test|Fuzz)[A-Z]`).MatchString(f) {
		return fmt.Errorf("%s has no %s", pkg, f)
	}
	if !hasSub {
		return nil
	}
	for _, s := range ts.strings {
		if strings.HasPrefix(s, sub) {
			return nil
		}
	}
	return fmt.Errorf("%s %s has no subtest %q", pkg, f, sub)
}

func render(rows []row) string {
	var b strings.Builder
	b.WriteString("# What others did not survive\n\nMade from `internal/advisories/rows.txt` by `go test ./internal/advisories -run TestRows -update`. Each row is a class of published advisories, what we claim,\n" +
		"and the test that attacks a real proxy, or why the row does not apply. Numbers that are missing are kept for policies, more of TLS, tokens and the control plane.\n")
	i := 0
	for _, s := range sections {
		fmt.Fprintf(&b, "\n## %s\n\n| # | advisories | class | claim | proof |\n|---|---|---|---|---|\n", s.title)
		for ; i < len(rows) && rows[i].number <= s.last; i++ {
			r := rows[i]
			proof := r.proof
			if list, ok := strings.CutPrefix(proof, "test: "); ok {
				proof = "`" + strings.ReplaceAll(list, "; ", "`<br>`") + "`"
			} else {
				proof = "does not apply: " + strings.TrimPrefix(proof, "reason: ")
			}
			fmt.Fprintf(&b, "| %d | %s | %s | %s | %s |\n", r.number, r.ids, r.class, r.claim, proof)
		}
	}
	return b.String()
}

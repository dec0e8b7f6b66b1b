package inject_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/inject"
)

// TestDocs is that docs/injection.md has every annotation.
func TestDocs(t *testing.T) {
	const page, begin, end = "../../docs/injection.md", "<!-- annotations: written by go test ./internal/inject -update -->\n", "<!-- end -->"
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), begin)
	if !ok {
		t.Fatal("the page has lost its marks")
	}
	_, after, ok := strings.Cut(rest, end)
	if !ok {
		t.Fatal("the page has lost its marks")
	}
	want := before + begin + table() + end + after
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(want, string(b)); d != "" {
		t.Error(d)
	}
}

func table() string {
	var b, ignored strings.Builder
	b.WriteString("| annotation | value | what it does | namespace |\n|---|---|---|---|\n")
	for _, a := range inject.Annotations() {
		if a.Ignored {
			fmt.Fprintf(&ignored, "`%s`, ", a.Key)
			continue
		}
		inherited := ""
		if a.Inherited {
			inherited = "yes"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", a.Key, a.Value, a.Meaning, inherited)
	}
	return b.String() + "\nWithout effect, because they are about other programs: " + strings.TrimSuffix(ignored.String(), ", ") + ".\n"
}

// TestAnnotations is that no key is there twice.
func TestAnnotations(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range inject.Annotations() {
		if seen[a.Key] {
			t.Errorf("%s stands twice", a.Key)
		}
		seen[a.Key] = true
	}
}

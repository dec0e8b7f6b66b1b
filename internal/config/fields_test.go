package config

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/config/manifest"
)

var updateFields = flag.Bool("update-fields", false, "rewrite docs/fields.md")

// TestFieldsAreDocumented holds docs/fields.md to the tables that the translators refuse fields by.
func TestFieldsAreDocumented(t *testing.T) {
	const file = "../../docs/fields.md"
	want := fieldsPage(readProofs(t))
	if *updateFields {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/fields.md is not what the tables say; run: go test ./internal/config -run Fields -update-fields")
	}
}

// fieldsPage renders the table of every kind and field.
func fieldsPage(proofs *proofs) string {
	var b strings.Builder
	b.WriteString(`# Kinds and fields

Made from the code (` + "`go test ./internal/config -run Fields -update-fields`" + `): the same tables decide what is accepted. A field that is *refused* is an error with
its file and line, because acting on half an object is worse than on none; a field that is *ignored* has no effect here, for the reason given. A field that is not in a
table does not exist, and is an error too. Paths begin at ` + "`spec`" + `; ` + "`[]`" + ` is each element of a list or entry of a map; a path
stands for everything below it, unless a longer one says otherwise. Each line of fields that work names the test that shows it: a Go test, or a case of a golden test.
`)
	for _, k := range Kinds() {
		group := k.Group
		if group == "" {
			group = "core"
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s %s\n", k.Kind, group, strings.Join(k.Versions, ", "))
		byStatus := map[manifest.Support][]manifest.Field{}
		for _, f := range k.Fields {
			f.Proof = proofs.of(&k, f)
			if f.Value != "" {
				f.Path += ": " + f.Value
			}
			byStatus[f.Support] = append(byStatus[f.Support], f)
		}
		works(&b, byStatus[manifest.Works])
		for _, s := range []struct {
			support manifest.Support
			title   string
		}{{manifest.Refused, "Refused"}, {manifest.Ignored, "Ignored"}} {
			if len(byStatus[s.support]) == 0 {
				continue
			}
			fmt.Fprintf(&b, "\n| %s | why |\n|---|---|\n", s.title)
			for _, f := range byStatus[s.support] {
				fmt.Fprintf(&b, "| `%s` | %s |\n", f.Path, cell(f.Note))
			}
		}
	}
	return b.String()
}

// works writes the fields that work, those with one test on a line, then those that work differently.
func works(b *strings.Builder, fields []manifest.Field) {
	byProof := map[string][]string{}
	for _, f := range fields {
		if f.Note == "" {
			byProof[f.Proof] = append(byProof[f.Proof], "`"+f.Path+"`")
		}
	}
	if len(byProof) > 0 {
		b.WriteString("\n| Works | test |\n|---|---|\n")
	}
	for _, proof := range slices.Sorted(maps.Keys(byProof)) {
		paths := byProof[proof]
		slices.Sort(paths)
		fmt.Fprintf(b, "| %s | %s |\n", strings.Join(slices.Compact(paths), ", "), proof)
	}
	first := true
	for _, f := range fields {
		if f.Note == "" {
			continue
		}
		if first {
			b.WriteString("\n| Works differently | how | test |\n|---|---|---|\n")
			first = false
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", f.Path, cell(f.Note), f.Proof)
	}
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

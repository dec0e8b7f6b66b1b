package config

import (
	"flag"
	"fmt"
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
	want := fieldsPage()
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
func fieldsPage() string {
	var b strings.Builder
	b.WriteString(`# Kinds and fields

Made from the code (` + "`go test ./internal/config -run Fields -update-fields`" + `): the same tables decide what is accepted. A field that is *refused* is an error with
its file and line, because acting on half an object is worse than on none; a field that is *ignored* has no effect here, for the reason given. A field that is not in a
table does not exist, and is an error too. Paths begin at ` + "`spec`" + `; ` + "`[]`" + ` is each element of a list or entry of a map; a path
stands for everything below it, unless a longer one says otherwise.
`)
	for _, k := range Kinds() {
		group := k.Group
		if group == "" {
			group = "core"
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s %s\n\n", k.Kind, group, strings.Join(k.Versions, ", "))
		byStatus := map[manifest.Support][]manifest.Field{}
		for _, f := range k.Fields {
			if f.Value != "" {
				f.Path += ": " + f.Value
			}
			byStatus[f.Support] = append(byStatus[f.Support], f)
		}
		if works := byStatus[manifest.Works]; len(works) > 0 {
			var paths []string
			for _, f := range works {
				paths = append(paths, "`"+f.Path+"`")
			}
			slices.Sort(paths)
			fmt.Fprintf(&b, "**Works:** %s\n", strings.Join(slices.Compact(paths), ", "))
		}
		for _, s := range []struct {
			support manifest.Support
			title   string
		}{{manifest.Refused, "Refused"}, {manifest.Ignored, "Ignored"}} {
			if len(byStatus[s.support]) == 0 {
				continue
			}
			fmt.Fprintf(&b, "\n| %s | why |\n|---|---|\n", s.title)
			for _, f := range byStatus[s.support] {
				fmt.Fprintf(&b, "| `%s` | %s |\n", f.Path, strings.ReplaceAll(f.Note, "|", `\|`))
			}
		}
	}
	return b.String()
}

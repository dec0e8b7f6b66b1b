package local

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/malha-mesh/malha/internal/config/file"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/model"
)

// samples returns the manifests of the samples and of the golden tests of config, which set every field, by document.
func samples(t testing.TB) (docs []string) {
	t.Helper()
	for _, pattern := range []string{"../../../samples/*/mesh/*.yaml", "../../config/testdata/*.txtar", "../../config/*/testdata/*.txtar"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatal("no samples", pattern, err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			text, _, _ = bytes.Cut(text, []byte("-- want/"))
			for _, doc := range regexp.MustCompile(`(?m)^(---|-- .* --)$`).Split(string(text), -1) {
				if strings.Contains(doc, "apiVersion:") && len(doc) < 1<<14 {
					docs = append(docs, doc)
				}
			}
		}
	}
	return docs
}

// oddities are values that are wrong in most places.
var oddities = []string{
	"", "~", "[]", "{}", "[~]", "{a: ~}", "[[]]", "[{}]", `""`, `" "`, "*", "'*'", "-1", "0", "1", "99", "65536", "2147483648", "99999999999999999999", "1.5", ".inf", ".nan", "-0.0",
	"0777", "0x1F", "1e400", "yes", "true", `"true"`, "2001-01-01", "5", "5s", "-5s", "0s", "1us", "999999h", "10%", `"("`, `"(a+)+$"`, `"a b"`, "WEB", "web.", "'*.*'", "'*.'", "a..b",
	"bücher.example", "'http://a'", "'a:80'", "1.2.3.4", "'::1'", "'[::1]:80'", "10.0.0.0/33", "/", "//", "../..", "mesh", "a/b/c", "/b", "a/", `"\0"`, `"\n"`, `"\e[31m"`, `"\ufeff"`, strings.Repeat("a", 70), strings.Repeat("a.", 140),
}

// mutate makes one mistake in a document: in a value, a key, a list, or the text.
func mutate(r *rand.Rand, doc string) string {
	var root yaml.Node
	if yaml.Unmarshal([]byte(doc), &root) != nil || len(root.Content) == 0 || r.IntN(20) == 0 {
		at := r.IntN(len(doc) + 1)
		end := min(len(doc), at+r.IntN(8))
		return doc[:at] + []string{"", "{", "]", "\t", ": ", "\n", "- ", "'", "{{", "&a ", "*a", "!x ", "<<: ", "\x00", "\xff", "\ufeff", "\r"}[r.IntN(17)] + doc[end:]
	}
	var places []*yaml.Node
	var walk func(*yaml.Node)
	walk = func(n *yaml.Node) {
		places = append(places, n)
		for _, c := range n.Content {
			walk(c)
		}
	}
	walk(root.Content[0])
	n := places[r.IntN(len(places))]
	var odd yaml.Node
	if yaml.Unmarshal([]byte(oddities[r.IntN(len(oddities))]), &odd) != nil || len(odd.Content) == 0 {
		odd.Content = []*yaml.Node{{Kind: yaml.ScalarNode, Tag: "!!null"}}
	}
	switch k := r.IntN(6); {
	case k == 0 && n.Kind == yaml.ScalarNode && len(n.Value) > 1: // a letter less
		at := r.IntN(len(n.Value))
		n.Value = n.Value[:at] + n.Value[at+1:]
	case k == 1 && n.Kind == yaml.SequenceNode && len(n.Content) > 0: // twice
		n.Content = append(n.Content, n.Content[r.IntN(len(n.Content))])
	case k == 2 && n.Kind != yaml.ScalarNode: // nothing
		n.Content = nil
	case k == 3 && n.Kind == yaml.MappingNode && len(n.Content) > 1: // a field less
		at := r.IntN(len(n.Content)/2) * 2
		n.Content = slices.Delete(n.Content, at, at+2)
	case k == 4: // something from another place
		var other yaml.Node
		if text, err := yaml.Marshal(places[r.IntN(len(places))]); err == nil && yaml.Unmarshal(text, &other) == nil && len(other.Content) > 0 {
			*n = *other.Content[0]
		}
	default:
		*n = *odd.Content[0]
	}
	var b bytes.Buffer
	if yaml.NewEncoder(&b).Encode(&root) != nil || b.Len() > 1<<20 {
		return doc
	}
	return b.String()
}

// leaks is what no message may have: words of Go, and of the libraries that read.
var leaks = regexp.MustCompile(`unmarshal|into Go|into !!|interface|struct \{|\*?[a-z0-9]+\.[A-Z]\w+\{|%![a-z]\(|runtime error|goroutine|<nil>|map\[|0x[0-9a-f]{6}|ParseAddr|strconv\.|invalid character`)

// TestMutations makes mistakes in what is right: nothing panics, all is said once, at a line that there is, in words for people,
// and in the same order again.
func TestMutations(t *testing.T) {
	docs := samples(t)
	count := 200
	if n, err := strconv.Atoi(os.Getenv("MALHA_MUTATIONS")); err == nil {
		count = n
	}
	seed := uint64(1)
	if n, err := strconv.ParseUint(os.Getenv("MALHA_SEED"), 10, 64); err == nil {
		seed = n
	}
	r := rand.New(rand.NewPCG(seed, 0))
	said := map[string]bool{}
	for range count {
		var text string
		for range 1 + r.IntN(4) {
			doc := docs[r.IntN(len(docs))]
			for range r.IntN(4) {
				doc = mutate(r, doc)
			}
			text += strings.TrimRight(doc, "\n") + "\n---\n"
		}
		found := analysis(t, text)
		if again := analysis(t, text); !slices.Equal(found, again) {
			t.Errorf("another time, something else is said:\n%v\n%v\nof\n%s", found, again, text)
		}
		lines := strings.Count(text, "\n") + strings.Count(text, "\r") + 1
		once := map[model.Diagnostic]bool{}
		for _, d := range found {
			line := d.String()
			if once[d] {
				t.Errorf("said twice: %s", line)
			}
			once[d] = true
			if word := leaks.FindString(d.Message + " " + d.Hint); word != "" && !said[d.Code+word] {
				said[d.Code+word] = true
				t.Errorf("%q is no word for people: %s\nof\n%.3000s", word, line, text)
			}
			switch {
			case d.Code == manifest.CodeInternal:
				t.Errorf("a defect: %s\nof\n%s", line, text)
			case d.Origin.File != "a.yaml", d.Origin.Line < 0, d.Origin.Line > lines, d.Origin.Line == 0 && d.Code != manifest.CodeTooLarge && d.Code != manifest.CodeNothing:
				t.Errorf("no such place in %d lines: %+v\nof\n%.2000s", lines, d, text)
			case d.Message == "", strings.ContainsAny(line, "\n\x1b\x00"), len(line) > 5000:
				t.Errorf("not for people: %.5000q", line)
			}
		}
		if t.Failed() && len(said) > 20 {
			return
		}
	}
}

func analysis(t *testing.T, text string) []model.Diagnostic {
	t.Helper()
	defer func() {
		if p := recover(); p != nil {
			t.Logf("of\n%s", text)
			panic(p)
		}
	}()
	a, err := Analyze(file.Parse("a.yaml", strings.NewReader(text)))
	if err != nil {
		t.Errorf("%v\nof\n%s", err, text)
		return nil
	}
	return a.Diagnostics
}

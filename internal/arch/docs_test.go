package arch

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// pages reads every page of the tree, by its path below the root with slashes.
func pages(t *testing.T) map[string]string {
	t.Helper()
	root := filepath.Join("..", "..")
	out := map[string]string{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, file)
		if d.IsDir() {
			if name := d.Name(); rel == "bin" || name == "testdata" || rel != "." && strings.HasPrefix(name, ".") {
				return fs.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(rel, ".md") {
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			out[filepath.ToSlash(rel)] = string(data)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 10 {
		t.Fatalf("only %d pages found below %s", len(out), root)
	}
	return out
}

// TestLinks follows every link from a page to the tree: to a file, a folder, or a heading of a page.
func TestLinks(t *testing.T) {
	all := pages(t)
	followed := 0
	for page, text := range all {
		for _, l := range links(text) {
			followed++
			if why := dead(all, page, l.target, exists); why != "" {
				t.Errorf("%s:%d: %s", page, l.line, why)
			}
		}
	}
	if followed < 50 {
		t.Errorf("only %d links were followed: the check looks at the wrong thing", followed)
	}
}

// TestIndex holds the two indexes to what is there: a page that no index names is found by nobody.
func TestIndex(t *testing.T) {
	all := pages(t)
	for _, dir := range []string{"docs", "docs/design"} {
		index := dir + "/README.md"
		named := map[string]bool{}
		for _, l := range links(all[index]) {
			named[path.Join(dir, l.target)] = true
		}
		for page := range all {
			if path.Dir(page) == dir && page != index && !named[page] {
				t.Errorf("%s does not name %s", index, path.Base(page))
			}
		}
	}
}

// TestRoomsAreNamed holds ARCHITECTURE.md to the rows: each room is named there, or stands below one that is.
func TestRoomsAreNamed(t *testing.T) {
	text := pages(t)["ARCHITECTURE.md"]
	named := map[string]bool{}
	for _, span := range codeForm.FindAllString(text, -1) {
		named[strings.TrimPrefix(strings.Trim(span, "`"), "internal/")] = true
	}
	for _, r := range parseRows(t) {
		room := strings.TrimPrefix(strings.TrimSuffix(r.pkg, "/..."), "internal/")
		found := false
		for dir := room; dir != "." && !found; dir = path.Dir(dir) {
			found = named[dir]
		}
		if !found {
			t.Errorf("ARCHITECTURE.md does not name `%s`", room)
		}
	}
}

// TestNotes holds the notes of changes to the form that changes/README.md gives them.
func TestNotes(t *testing.T) {
	form := regexp.MustCompile(`^\*\*(New|Changed|Fixed|Removed)\*\* [^ ]`)
	for page, text := range pages(t) {
		if path.Dir(page) != "changes/unreleased" {
			continue
		}
		for _, note := range strings.Split(strings.TrimSpace(text), "\n\n") {
			if !form.MatchString(note) {
				first, _, _ := strings.Cut(note, "\n")
				t.Errorf("%s: a paragraph that does not start with **New**, **Changed**, **Fixed** or **Removed**: %q", page, first)
			}
		}
	}
}

type link struct {
	target string
	line   int
}

var (
	linkForm    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headingForm = regexp.MustCompile(`(?m)^#{1,6} +(.+?) *$`)
	codeForm    = regexp.MustCompile("`[^`]*`")
)

// links returns the links of a page that stay in the tree. Code is none: neither blocks nor spans.
func links(text string) []link {
	var out []link
	fenced := false
	for i, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
		}
		if fenced {
			continue
		}
		// A span may be the words of a link; its brackets stay.
		for _, m := range linkForm.FindAllStringSubmatch(codeForm.ReplaceAllString(line, ""), -1) {
			if !strings.Contains(m[1], "://") && !strings.HasPrefix(m[1], "mailto:") {
				out = append(out, link{m[1], i + 1})
			}
		}
	}
	return out
}

// dead returns why a link of a page leads nowhere, or "".
func dead(all map[string]string, page, target string, exists func(string) bool) string {
	file, anchor, _ := strings.Cut(target, "#")
	to := page
	if file != "" {
		to = path.Join(path.Dir(page), file)
	}
	if !exists(to) {
		return fmt.Sprintf("the link %s leads nowhere: there is no %s", target, to)
	}
	if anchor != "" && strings.HasSuffix(to, ".md") && !headings(all[to])[anchor] {
		return fmt.Sprintf("the link %s leads nowhere: %s has no heading #%s", target, to, anchor)
	}
	return ""
}

func exists(rel string) bool {
	_, err := os.Stat(filepath.Join("..", "..", filepath.FromSlash(rel)))
	return err == nil
}

// headings returns the anchors of a page, made from its headings as GitHub makes them: lower case, spaces to hyphens, and of the rest
// only letters, digits, hyphens and underscores; the second of a kind gets -1.
func headings(text string) map[string]bool {
	out := map[string]bool{}
	for _, m := range headingForm.FindAllStringSubmatch(text, -1) {
		var b bytes.Buffer
		for _, r := range strings.ToLower(m[1]) {
			switch {
			case r == ' ':
				b.WriteByte('-')
			case r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r > 127:
				b.WriteRune(r)
			}
		}
		anchor := b.String()
		for i := 1; out[anchor]; i++ {
			anchor = fmt.Sprintf("%s-%d", b.String(), i)
		}
		out[anchor] = true
	}
	return out
}

// TestDeadLinks proves that the check can fail.
func TestDeadLinks(t *testing.T) {
	text := "# One\n## Two words, `code`\n## One\n[a](b.md#x) [`c`](#one-1) `[d](e)` https://f [g](https://h)\n```\n[i](j)\n```\n[k](l.md)\n"
	var got []string
	for _, l := range links(text) {
		got = append(got, fmt.Sprintf("%s:%d", l.target, l.line))
	}
	if want := "b.md#x:4 #one-1:4 l.md:8"; strings.Join(got, " ") != want {
		t.Errorf("links: %v, want %s", got, want)
	}
	all := map[string]string{"docs/a.md": text, "docs/b.md": "## Y\n"}
	there := func(p string) bool { return all[p] != "" || p == "Makefile" }
	for _, c := range []struct {
		target string
		dead   bool
	}{
		{"#one", false}, {"#one-1", false}, {"#one-2", true}, {"#two-words-code", false}, {"b.md", false}, {"b.md#y", false}, {"b.md#x", true},
		{"../Makefile", false}, {"../makefile", true}, {"l.md", true},
	} {
		if why := dead(all, "docs/a.md", c.target, there); (why != "") != c.dead {
			t.Errorf("%s: dead %v (%s), want %v", c.target, why != "", why, c.dead)
		}
	}
}

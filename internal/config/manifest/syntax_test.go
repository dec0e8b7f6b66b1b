package manifest_test

import (
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/config/manifest"
)

// TestNotText has files that are not text: what they are, and from which line on.
func TestNotText(t *testing.T) {
	const object = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n"
	for name, c := range map[string]struct{ data, want string }{
		"UTF-16":          {"\xff\xfea\x00", "a.yaml:1: error MALHA0101: the file is UTF-16, not UTF-8 text (save it as UTF-8 text)"},
		"UTF-16, big":     {"\xfe\xff\x00a", "a.yaml:1: error MALHA0101: the file is UTF-16, not UTF-8 text (save it as UTF-8 text)"},
		"Latin-1":         {object + "# \xe9\n", "a.yaml:4: error MALHA0101: the file is not UTF-8 text: it has the byte 0xE9 on this line (save it as UTF-8 text)"},
		"NUL":             {object + "\x00", "a.yaml:4: error MALHA0101: the file is not text: it has the control character U+0000 on this line (save it as UTF-8 text)"},
		"escape":          {"# \x1b[31m\n" + object, "a.yaml:1: error MALHA0101: the file is not text: it has the control character U+001B on this line (save it as UTF-8 text)"},
		"deep":            {strings.Repeat("[", 20_000), "a.yaml: error MALHA0102: nested deeper than 64 levels"},
		"one brace":       {"{", "a.yaml:1: error MALHA0101: not valid YAML: did not find expected node content (check the indentation and the quotes around this line)"},
		"brace at last":   {"\n\n{\n\n", "a.yaml:3: error MALHA0101: not valid YAML: did not find expected node content (check the indentation and the quotes around this line)"},
		"a mark":          {"\ufeff" + object, ""},
		"marks":           {"\ufeff" + object + "---\n\ufeff" + strings.Replace(object, "name: a", "name: b", 1), ""},
		"carriage return": {strings.ReplaceAll(object, "\n", "\r\n"), ""},
	} {
		objs, ds := manifest.Parse("a.yaml", []byte(c.data))
		var got []string
		for _, d := range ds {
			got = append(got, d.String())
		}
		if strings.Join(got, "\n") != c.want {
			t.Errorf("%s: got %q\nwant %q", name, got, c.want)
		}
		if want := strings.Count(c.data, "kind:"); c.want == "" && len(objs) != want {
			t.Errorf("%s: %d objects, want %d", name, len(objs), want)
		}
	}
}

// TestLongWords has a value that nobody wants to read whole.
func TestLongWords(t *testing.T) {
	long := strings.Repeat("x\x1b", 1<<16)
	objs, ds := manifest.Parse("a.yaml", []byte("{apiVersion: v1, kind: \"Service\", metadata: {name: "+strings.Repeat("x", 1<<17)+"}}"))
	if len(objs) > 0 || len(ds) != 1 || len(ds[0].String()) > 1000 {
		t.Errorf("%d objects, %d diagnostics: %.2000s", len(objs), len(ds), ds)
	}
	var r manifest.Report
	r.Error("MALHA0199", manifest.Cursor{}, long, "%s", long)
	if d := r.Diagnostics()[0].String(); len(d) > 20_000 || strings.ContainsRune(d, '\x1b') {
		t.Errorf("%d bytes: %.100q", len(d), d)
	}
}

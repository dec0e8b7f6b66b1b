package document

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/inject"
)

func edit(p ...inject.Op) Edit {
	return func([]byte) (inject.Patch, error) { return p, nil }
}

func TestStream(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		patch    inject.Patch
		want     string
	}{
		{"untouched", "# c\na:   1\n\n---\n\nb: [ 1 ]\n---\n# nothing\n", nil, "# c\na:   1\n\n---\n\nb: [ 1 ]\n---\n# nothing\n"},
		{"add", "a: 1 # one\n", inject.Patch{{Op: "add", Path: "/b", Value: map[string]any{"z": "yes", "name": "x"}}}, "a: 1 # one\nb:\n  name: x\n  z: \"yes\"\n"},
		{"replace keeps the comment", "a: 1 # one\n", inject.Patch{{Op: "add", Path: "/a", Value: 2}}, "a: 2 # one\n"},
		{"remove", "a: 1\nb: 2\n", inject.Patch{{Op: "remove", Path: "/a"}}, "b: 2\n"},
		{"escapes", "m: {}\n", inject.Patch{{Op: "add", Path: "/m/a~1b~0c", Value: "v"}}, "m:\n  a/b~c: v\n"},
		{"insert", "l:\n- a\n- b\n", inject.Patch{{Op: "add", Path: "/l/0", Value: "z"}, {Op: "add", Path: "/l/-", Value: "y"}, {Op: "remove", Path: "/l/1"}}, "l:\n- z\n- b\n- \"y\"\n"},
		{"indented", "l:\n  - a\n", inject.Patch{{Op: "add", Path: "/l/-", Value: "b"}}, "l:\n  - a\n  - b\n"},
		{"alias", "a: &x {k: 1}\nb: *x\n", inject.Patch{{Op: "add", Path: "/b/m", Value: 2}}, "a: {k: 1}\nb: {k: 1, m: 2}\n"},
		{"merge", "a: &x {k: 1, l: 2}\nb:\n  <<: *x\n  k: 3\n", inject.Patch{{Op: "add", Path: "/b/l", Value: 4}}, "a: {k: 1, l: 2}\nb:\n  k: 3\n  l: 4\n"},
		{"json", `{"b":1.50,"a":"x<y"}`, inject.Patch{{Op: "add", Path: "/c", Value: true}}, `{"b":1.50,"a":"x<y","c":true}`},
		{"json in lines", "{\n\t\"b\": [1]\n}\n", inject.Patch{{Op: "add", Path: "/b/-", Value: 2}}, "{\n\t\"b\": [\n\t\t1,\n\t\t2\n\t]\n}\n"},
		{"separators with comments", "a: 1\n--- # next\nb: 2\n", inject.Patch{{Op: "add", Path: "/c", Value: 3}}, "a: 1\nc: 3\n--- # next\nb: 2\nc: 3\n"},
		{"null list", "l: null\n", inject.Patch{{Op: "add", Path: "/l", Value: []any{}}, {Op: "add", Path: "/l/-", Value: 1}}, "l:\n- 1\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := Stream([]byte(tc.in), edit(tc.patch...))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, string(out)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	for _, tc := range []struct {
		in    string
		patch inject.Patch
		want  string
	}{
		{"a: [", nil, "the document at line 1: it is not valid YAML"},
		{"a: 1\n---\n- 1\n", nil, "the document at line 3: it is not an object"},
		{"a: 1", inject.Patch{{Op: "remove", Path: "/b"}}, "there is no such field"},
		{"a: 1", inject.Patch{{Op: "add", Path: "/b/c"}}, "there is no b"},
		{"a: 1", inject.Patch{{Op: "add", Path: "/a/c"}}, "neither an object nor a list"},
		{"a: [1]", inject.Patch{{Op: "add", Path: "/a/2"}}, "no such element"},
		{"a: [1]", inject.Patch{{Op: "remove", Path: "/a/1"}}, "no such element"},
		{"a: 1\na: 2", nil, "stands twice"},
		{"a: &x\n  b: *x\n", nil, "contains itself"},
		{"a: &a [1,1,1,1,1,1,1,1,1,1]\n" + bombs(), nil, "too many values"},
	} {
		if _, err := Stream([]byte(tc.in), edit(tc.patch...)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%.40q: %v, want %q", tc.in, err, tc.want)
		}
	}
	fail := errors.New("no")
	if _, err := Stream([]byte("a: 1"), func([]byte) (inject.Patch, error) { return nil, fail }); !errors.Is(err, fail) {
		t.Errorf("got %v", err)
	}
}

// bombs are a billion laughs.
func bombs() string {
	var b strings.Builder
	for c := 'b'; c < 'k'; c++ {
		b.WriteString(string(c) + ": &" + string(c) + " [")
		for i := range 10 {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString("*" + string(c-1))
		}
		b.WriteString("]\n")
	}
	return b.String()
}

// FuzzStream is that no stream of bytes panics, and that what is not changed stays as it is.
func FuzzStream(f *testing.F) {
	for _, s := range []string{"a: 1\n---\nb: *x", "{\"a\":[1,{\"b\":null}]}", "kind: List\nitems: [{a: 1}]", "a: &x {b: *x}", "<<: {a: 1}", "--- #\n? [a]\n: b", "a: 2001-01-01\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := Stream(in, edit())
		if err == nil && string(out) != string(in) {
			t.Errorf("%q became %q", in, out)
		}
		out, err = Stream(in, edit(inject.Op{Op: "add", Path: "/zzz", Value: map[string]any{"a": "b"}}))
		if err != nil {
			return
		}
		if _, err := Stream(out, func(o []byte) (inject.Patch, error) {
			var v map[string]any
			if err := json.Unmarshal(o, &v); err != nil || v["zzz"] == nil {
				t.Errorf("%q lost what was added: %q", in, out)
			}
			return nil, nil
		}); err != nil {
			t.Errorf("%q became %q, which can't be read: %v", in, out, err)
		}
	})
}

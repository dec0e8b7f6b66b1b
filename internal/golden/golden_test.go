package golden

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const sample = "a case\n-- in.yaml --\nkind: X\n-- want/out --\nyes\n-- want/empty --\n"

func TestArchiveRoundTrip(t *testing.T) {
	a, err := Parse([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sample, string(a.Format())); d != "" {
		t.Error(d)
	}
	if data, ok := a.Get("in.yaml"); !ok || string(data) != "kind: X\n" {
		t.Errorf("in.yaml = %q, %v", data, ok)
	}
	if n := len(a.Under(Want)); n != 2 {
		t.Errorf("%d want files, want 2", n)
	}
}

func TestParseRefusesTwice(t *testing.T) {
	if _, err := Parse([]byte("-- a --\n-- a --\n")); err == nil {
		t.Error("a name that stands twice was accepted")
	}
}

func TestCompare(t *testing.T) {
	for _, c := range []struct {
		name string
		got  map[string][]byte
		want []string // words of each problem
	}{
		{"equal", map[string][]byte{"out": []byte("yes\n"), "empty": nil}, nil},
		{"final newline does not count", map[string][]byte{"out": []byte("yes"), "empty": nil}, nil},
		{"differs", map[string][]byte{"out": []byte("no\n"), "empty": nil}, []string{"want/out differs"}},
		{"stale", map[string][]byte{"out": []byte("yes\n")}, []string{"want/empty is stale"}},
		{"new", map[string][]byte{"out": []byte("yes\n"), "empty": nil, "more": []byte("x")}, []string{"no file want/more"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, err := Parse([]byte(sample))
			if err != nil {
				t.Fatal(err)
			}
			got := compare(a, c.got)
			if len(got) != len(c.want) {
				t.Fatalf("problems %q, want %q", got, c.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], c.want[i]) {
					t.Errorf("problem %q, want %q", got[i], c.want[i])
				}
			}
			apply(a, c.got)
			if p := compare(a, c.got); p != nil {
				t.Errorf("after an update: %q", p)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sample))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := Parse(data)
		if err != nil {
			return
		}
		once := a.Format()
		b, err := Parse(once)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(once, b.Format()) {
			t.Errorf("format is not stable: %q then %q", once, b.Format())
		}
	})
}

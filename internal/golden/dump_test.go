package golden

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDump(t *testing.T) {
	type inner struct{ Name string }
	n := 0
	got := Dump(struct {
		inner
		List  []inner
		Words []string
		Bytes []byte
		Zero  *int
		None  *int
		Map   map[int]*int
		When  time.Time
		For   time.Duration
	}{inner{"x"}, []inner{{"a"}, {"b"}}, []string{"c", "d"}, []byte("e\n"), &n, nil, map[int]*int{2: nil, 1: &n}, time.Unix(0, 0).UTC(), time.Second})
	want := `Name: x
List:
  -
    Name: a
  -
    Name: b
Words: "c" "d"
Bytes: "e\n"
Zero: (zero) 0
Map:
  1: (zero) 0
  2: (nil)
When: 1970-01-01T00:00:00Z
For: 1s`
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

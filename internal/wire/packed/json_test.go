package packed_test

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

func TestReadJSON(t *testing.T) {
	for what, p := range map[string]*plan.Plan{"sample": sample(), "nothing": {}} {
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		got, err := packed.ReadJSON(strings.NewReader(string(text) + "\n"))
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if diff := cmp.Diff(pack(t, p), got); diff != "" {
			t.Errorf("%s: -packed +read:\n%s", what, diff)
		}
		for n := range text { // no part of a plan is one
			if _, err := packed.ReadJSON(strings.NewReader(string(text[:n]))); err == nil {
				t.Errorf("%s: the first %d of %d bytes were taken", what, n, len(text))
			}
		}
	}
}

// A file has its pieces in any order; they are found by name, which takes that they are sorted.
func TestReadJSONSorts(t *testing.T) {
	p, err := packed.ReadJSON(strings.NewReader(`{"node":{},
		"routes":[{"name":"c"},{"name":"a"},{"name":"b"}],
		"clusters":[{"name":"b"},{"name":"c"},{"name":"a"}],
		"endpoints":[{"cluster":"c"},{"cluster":"b"},{"cluster":"a"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"a", "b", "c"} {
		if got := []string{p.Routes[i].Name(), p.Clusters[i].Name(), p.Endpoints[i].Name()}; got[0] != want || got[1] != want || got[2] != want {
			t.Errorf("at %d stand %q, want %s", i, got, want)
		}
	}
}

// Every field of a plan and of a route table is read here by name, so none may be forgotten.
func TestReadJSONKnowsEveryField(t *testing.T) {
	for frame, of := range map[string]reflect.Type{`{%q:null}`: reflect.TypeFor[plan.Plan](), `{"routes":[{%q:null}]}`: reflect.TypeFor[plan.RouteTable]()} {
		for i := range of.NumField() {
			name, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
			if _, err := packed.ReadJSON(strings.NewReader(fmt.Sprintf(frame, name))); err != nil {
				t.Errorf("%s.%s: %v", of.Name(), of.Field(i).Name, err)
			}
		}
	}
}

func TestReadJSONRefuses(t *testing.T) {
	for text, want := range map[string]string{
		``:                                       "unexpected EOF",
		`[]`:                                     "instead of {",
		`{"node":{}} {}`:                         "something follows",
		`{"node":{}}}`:                           "something follows",
		`{"policys":[]}`:                         `"policys"`,
		`{"Routes":[]}`:                          `"Routes"`,
		`{"clusters":[],"clusters":[]}`:          `"clusters"`,
		`{"clusters":{}}`:                        "instead of [",
		`{"clusters":[{"nome":"a"}]}`:            "unknown field",
		`{"routes":[{"hosts":[],"hosts":[]}]}`:   `"hosts"`,
		`{"routes":[{"hosts":[{"domain":[]}]}]}`: "unknown field",
		`{"routes":["a"]}`:                       "instead of {",
	} {
		if _, err := packed.ReadJSON(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// hosts writes a plan with a table of many hosts, piece by piece, and looks at the heap on the way.
type hosts struct {
	n, of int
	rest  string
	most  uint64
}

func (h *hosts) Read(b []byte) (int, error) {
	for h.rest == "" {
		switch h.n++; {
		case h.n == 1:
			h.rest = `{"node":{},"routes":[{"name":"t","hosts":[{"name":"first"}`
		case h.n < h.of:
			h.rest = fmt.Sprintf(`,{"name":"h%d","domains":["h%d"],"routes":[{"name":"default","forward":[{"cluster":"c%d"}]}]}`, h.n, h.n, h.n)
		case h.n == h.of:
			h.rest = `]}]}`
		default:
			return 0, io.EOF
		}
		if h.n%1000 == 0 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			h.most = max(h.most, m.HeapAlloc)
		}
	}
	n := copy(b, h.rest)
	h.rest = h.rest[n:]
	return n, nil
}

// While a plan is read, there is what is packed of it and one piece; decoded, these hosts alone would be 8 MB.
func TestReadJSONHoldsOnePiece(t *testing.T) {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	h := &hosts{of: 10_000}
	p, err := packed.ReadJSON(h)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(p.Routes[0]); n < 300_000 {
		t.Fatalf("the table has %d bytes", n)
	}
	if grown := int64(h.most) - int64(m.HeapAlloc); grown > 3<<20 {
		t.Errorf("the heap grew by %d KB", grown>>10)
	}
}

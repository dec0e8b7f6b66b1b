package packed_test

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/codec"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

func sample() *plan.Plan {
	return &plan.Plan{
		Node:      plan.Node{Role: plan.Sidecar},
		Listeners: []plan.Listener{{Name: "l", Routes: "t"}},
		Routes: []plan.RouteTable{
			{Name: "empty"},
			{Name: "t", Otherwise: plan.Block, Hosts: []plan.VirtualHost{
				{Name: "a:80", Domains: []string{"a", "a.default"}, Routes: []plan.Route{{Name: "default", Forward: []plan.Destination{{Cluster: "a"}}}}},
				{Name: "b:80", Domains: []string{"b"}},
			}},
		},
		Clusters:  []plan.Cluster{{Name: "a", Port: 80}, {Name: "b"}},
		Endpoints: []plan.Endpoints{{Cluster: "a", Endpoints: []plan.Endpoint{{Address: "10.0.0.1:80"}, {Address: "10.0.0.2:80"}}}},
		Policies:  []plan.Policy{{Name: "n/p", Action: plan.Deny}},
		Secrets:   []plan.Secret{{Name: "n/s", Key: []byte("key")}},
		Limits:    []plan.RateLimit{{Name: "l"}},
		Capture:   &plan.Capture{DNS: "127.0.0.1:53"},
	}
}

func pack(t testing.TB, p *plan.Plan) *packed.Plan {
	t.Helper()
	out, err := packed.Of(p)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPlanIsTheSame(t *testing.T) {
	for what, p := range map[string]*plan.Plan{"sample": sample(), "nothing": {}} {
		out := pack(t, p)
		if diff := cmp.Diff(p, out.Open()); diff != "" {
			t.Errorf("%s: -packed +opened:\n%s", what, diff)
		}
		want, err := codec.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		got, err := out.Append(nil)
		if err != nil || string(got) != string(want) {
			t.Errorf("%s: it is encoded as %q (%v), want %q", what, got, err, want)
		}
		again, err := packed.Parse(got)
		if err != nil {
			t.Fatal(what, err)
		}
		if diff := cmp.Diff(out, again); diff != "" {
			t.Errorf("%s: -encoded +parsed:\n%s", what, diff)
		}
	}
}

// accepts says whether Parse has to take b: it is the encoding of a plan, and its pieces are in order.
func accepts(t testing.TB, b []byte) bool {
	p := new(plan.Plan)
	if codec.Unmarshal(b, p) != nil {
		return false
	}
	sorted, err := pack(t, p).Append(nil)
	return err == nil && bytes.Equal(sorted, b)
}

// What is not the encoding of a plan is refused, as codec.Unmarshal does.
func TestParseRefuses(t *testing.T) {
	good, err := pack(t, sample()).Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		for _, b := range [][]byte{good[:i], append(slices.Clone(good[:i]), good[i]^0x15), slices.Concat(good[:i], []byte{good[i] ^ 3}, good[i+1:]), slices.Concat(good[:i], good[i+1:])} {
			p, err := packed.Parse(b)
			if want := accepts(t, b); (err == nil) != want {
				t.Fatalf("%q: %v, the codec takes it: %t", b, err, want)
			}
			if err == nil {
				p.Open()
			}
		}
	}
}

func TestParseWantsOrder(t *testing.T) {
	b, err := codec.Marshal(&plan.Plan{Clusters: []plan.Cluster{{Name: "b"}, {Name: "a"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := packed.Parse(b); !errors.Is(err, codec.ErrMalformed) {
		t.Errorf("clusters out of order: %v", err)
	}
}

// What was taken as a whole can be opened in parts, even where one part has used up what was allowed for all.
func TestPartsCanBeOpened(t *testing.T) {
	b, err := codec.Marshal(&plan.RouteTable{Name: strings.Repeat("n", 1<<20), Hosts: []plan.VirtualHost{{Name: "h", Routes: make([]plan.Route, 20_000)}}})
	if err != nil {
		t.Fatal(err)
	}
	table, err := packed.Read[plan.RouteTable](string(b))
	if err != nil {
		t.Fatal(err)
	}
	for h := range packed.Hosts(table) {
		if n := len(h.Open().Routes); n != 20_000 {
			t.Errorf("%d routes", n)
		}
	}
}

func TestPieces(t *testing.T) {
	p := pack(t, sample())
	table := packed.Get(p.Routes, "t")
	var names []string
	for h := range packed.Hosts(table) {
		names = append(names, h.Name())
		if h.Open().Name != h.Name() {
			t.Errorf("host %s calls itself %s when it is open", h.Name(), h.Open().Name)
		}
		if got := slices.Collect(packed.Domains(h)); !slices.Equal(got, h.Open().Domains) {
			t.Errorf("host %s has the domains %q", h.Name(), got)
		}
	}
	if !slices.Equal(names, []string{"a:80", "b:80"}) {
		t.Errorf("the hosts are %q", names)
	}
	if bare := packed.Bare(table); bare.Name != "t" || bare.Otherwise != plan.Block || bare.Hosts != nil {
		t.Errorf("the bare table is %+v", bare)
	}
	if packed.Get(p.Clusters, "c") != "" || packed.Get(p.Clusters, "b").Name() != "b" {
		t.Error("clusters are not found by their names")
	}
	if _, err := packed.Read[plan.Cluster]("\xff"); err == nil {
		t.Error("something malformed was taken in")
	}
	unsorted := pack(t, &plan.Plan{Clusters: []plan.Cluster{{Name: "b"}, {Name: "a"}}})
	if unsorted.Clusters[0].Name() != "a" {
		t.Error("pieces are not sorted")
	}
}

// Every kind of piece has its name in field 1. All else of a plan and of a table is length-delimited, as Parse and Bare take it.
func TestFieldNumbers(t *testing.T) {
	for _, of := range []reflect.Type{reflect.TypeFor[plan.Plan](), reflect.TypeFor[plan.RouteTable]()} {
		for i := range of.NumField() {
			f := of.Field(i)
			element := f.Type
			if k := element.Kind(); k == reflect.Slice || k == reflect.Pointer {
				element = element.Elem()
			}
			if k := element.Kind(); k != reflect.Struct && k != reflect.String {
				t.Errorf("%s.%s is a %s, which is not length-delimited", of.Name(), f.Name, f.Type)
			}
		}
	}
	for name, got := range map[string]string{
		"routes":    string(must(packed.Pack(&plan.RouteTable{Name: "x", Otherwise: "y"}))),
		"cluster":   string(must(packed.Pack(&plan.Cluster{Name: "x", SNI: "y"}))),
		"endpoints": string(must(packed.Pack(&plan.Endpoints{Cluster: "x"}))),
	} {
		if packed.Cluster(got).Name() != "x" {
			t.Errorf("the name of %s is %q, want x", name, packed.Cluster(got).Name())
		}
	}
}

func must[T any](p packed.Piece[T], err error) packed.Piece[T] {
	if err != nil {
		panic(err)
	}
	return p
}

func FuzzParse(f *testing.F) {
	good, err := pack(f, sample()).Append(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := packed.Parse(b)
		if want := accepts(t, b); (err == nil) != want {
			t.Fatalf("%v, the codec takes it: %t", err, want)
		}
		if err == nil {
			p.Open()
		}
	})
}

package codec

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/plan"
)

var update = flag.Bool("update", false, "rewrite testdata")

// fill sets v to a random value. Slices are nil or have elements: empty and nil are one value to the codec.
func fill(r *rand.Rand, v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 1)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(edge(r) >> (64 - v.Type().Bits()))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(edge(r)) >> (64 - v.Type().Bits()))
	case reflect.Float32, reflect.Float64:
		v.SetFloat([]float64{0, math.Copysign(0, -1), 0.5, -1, math.Inf(1), 100}[r.IntN(6)])
	case reflect.String:
		b := make([]byte, r.IntN(4)*r.IntN(60))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		v.SetString(string(b))
	case reflect.Pointer:
		if r.IntN(3) > 0 && depth > 0 {
			p := reflect.New(v.Type().Elem())
			fill(r, p.Elem(), depth-1)
			v.Set(p)
		}
	case reflect.Slice:
		n := r.IntN(4)
		if n == 0 || depth == 0 {
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			fill(r, v.Index(i), depth-1)
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(r, v.Index(i), depth-1)
		}
	case reflect.Map:
		n := r.IntN(4)
		if n == 0 {
			return
		}
		v.Set(reflect.MakeMap(v.Type()))
		for range n {
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fill(r, k, depth)
			fill(r, e, depth)
			v.SetMapIndex(k, e)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(r, v.Field(i), depth)
		}
	default:
		panic("fill: " + v.Type().String())
	}
}

func edge(r *rand.Rand) int64 {
	switch r.IntN(4) {
	case 0:
		return 0
	case 1:
		return int64(r.IntN(1<<16)) << 48
	case 2:
		return []int64{math.MinInt64, math.MaxInt64, -1, 1 << 62}[r.IntN(4)]
	default:
		return int64(r.Uint64())
	}
}

// kinds has one field of every shape that plan happens not to use.
type kinds struct {
	B      bool              `plan:"1"`
	I8     int8              `plan:"2"`
	I64    int64             `plan:"3"`
	U8     uint8             `plan:"4"`
	U64    uint64            `plan:"5"`
	F32    float32           `plan:"6"`
	F64    float64           `plan:"7"`
	S      string            `plan:"8"`
	Bytes  []byte            `plan:"9"`
	Array  [4]byte           `plan:"10"`
	PI     *int              `plan:"11"`
	PS     *string           `plan:"12"`
	PB     *bool             `plan:"13"`
	Is     []int             `plan:"14"`
	Ss     []string          `plan:"15"`
	Bs     [][]byte          `plan:"16"`
	Fs     []float64         `plan:"17"`
	M      map[string]string `plan:"18"`
	Nested *kinds            `plan:"19"`
	Many   []kinds           `plan:"2000"`
}

func TestRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		for _, v := range []any{new(plan.Plan), new(kinds)} {
			fill(r, reflect.ValueOf(v).Elem(), 4)
			b, err := Marshal(v)
			if err != nil {
				t.Fatalf("value %d of %T: %v", i, v, err)
			}
			got := reflect.New(reflect.TypeOf(v).Elem()).Interface()
			if err := Unmarshal(b, got); err != nil {
				t.Fatalf("value %d of %T: %v", i, v, err)
			}
			// Empty elements of [][]byte come back as nil: compare by encoding first, by value where it is exact.
			again, err := Marshal(got)
			if err != nil || !bytes.Equal(b, again) {
				t.Fatalf("value %d of %T: encoding it again gives other bytes (%v)", i, v, err)
			}
			if _, exact := v.(*plan.Plan); exact && !reflect.DeepEqual(got, v) {
				t.Fatalf("value %d differs (-want +got):\n%s", i, cmp.Diff(v, got))
			}
		}
	}
}

// TestFieldNumbers notices a number that is changed, reused or missing anywhere below Plan: they are the wire format.
func TestFieldNumbers(t *testing.T) {
	var out strings.Builder
	seen := make(map[reflect.Type]bool)
	var walk func(reflect.Type)
	walk = func(rt reflect.Type) {
		if seen[rt] {
			return
		}
		seen[rt] = true
		l, err := layoutOf(rt)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range l.fields {
			fmt.Fprintf(&out, "%s %d %s %s\n", l.name, f.number, f.name, rt.Field(f.index).Type)
		}
		for _, f := range l.fields {
			if f.nested != nil {
				walk(f.elem)
			}
		}
	}
	walk(reflect.TypeFor[plan.Plan]())
	path := filepath.Join("testdata", "fields.golden")
	if *update {
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), out.String()); diff != "" {
		t.Errorf("field numbers changed (-golden +now). Lines may be added; a number that was ever used must not get another meaning. "+
			"Then: go test ./internal/wire/codec -update\n%s", diff)
	}
}

func TestTypesThatWouldLoseSomething(t *testing.T) {
	for name, v := range map[string]any{
		"no tag":      struct{ A int }{},
		"not a field": struct{ a int }{1},
		"bad tag": struct {
			A int `plan:"x"`
		}{},
		"zero": struct {
			A int `plan:"0"`
		}{},
		"twice": struct {
			A int `plan:"1"`
			B int `plan:"1"`
		}{},
		"interface": struct {
			A any `plan:"1"`
		}{},
		"slice of slices": struct {
			A [][]int `plan:"1"`
		}{},
		"map of ints": struct {
			A map[string]int `plan:"1"`
		}{},
		"not a struct": 7,
	} {
		if _, err := Marshal(v); !errors.Is(err, ErrType) {
			t.Errorf("%s: got %v, want ErrType", name, err)
		}
	}
}

func TestRefused(t *testing.T) {
	type inner struct {
		N int `plan:"1"`
	}
	type outer struct {
		A uint8             `plan:"1"`
		S string            `plan:"2"`
		I inner             `plan:"3"`
		L []int             `plan:"4"`
		M map[string]string `plan:"5"`
		B bool              `plan:"6"`
		F float64           `plan:"7"`
		H [2]byte           `plan:"8"`
		P *inner            `plan:"9"`
	}
	nan := []byte{0x39, 1, 0, 0, 0, 0, 0, 0xf8, 0x7f}
	for _, tc := range []struct {
		name string
		in   []byte
		want error
	}{
		{"unknown field", []byte{10 << 3, 1}, ErrUnknownField},
		{"unknown field inside", []byte{0x1a, 2, 2 << 3, 1}, ErrUnknownField},
		{"field twice", []byte{0x08, 1, 0x08, 2}, ErrMalformed},
		{"fields out of order", []byte{0x12, 1, 'a', 0x08, 1}, ErrMalformed},
		{"repeated field in two runs", []byte{0x20, 2, 0x30, 1, 0x20, 2}, ErrMalformed},
		{"wrong wire type", []byte{0x0a, 1, 'a'}, ErrMalformed},
		{"unknown wire type", []byte{0x0b}, ErrMalformed},
		{"number too large", []byte{0x08, 0x80, 0x02}, ErrMalformed},
		{"number over 64 bits", []byte{0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02}, ErrMalformed},
		{"number not shortest", []byte{0x08, 0x81, 0x00}, ErrMalformed},
		{"zero spelled out", []byte{0x08, 0}, ErrMalformed},
		{"empty string spelled out", []byte{0x12, 0}, ErrMalformed},
		{"empty struct spelled out", []byte{0x1a, 0}, ErrMalformed},
		{"length beyond the end", []byte{0x12, 5, 'a'}, ErrMalformed},
		{"huge length", []byte{0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, ErrMalformed},
		{"cut in a tag", []byte{0x80}, ErrMalformed},
		{"bool of two", []byte{0x30, 2}, ErrMalformed},
		{"short float", []byte{0x39, 1, 2}, ErrMalformed},
		{"not a number", nan, ErrMalformed},
		{"array too short", []byte{0x42, 1, 1}, ErrMalformed},
		{"map keys out of order", []byte{0x2a, 3, 0x0a, 1, 'b', 0x2a, 3, 0x0a, 1, 'a'}, ErrMalformed},
		{"map key twice", []byte{0x2a, 3, 0x0a, 1, 'a', 0x2a, 3, 0x0a, 1, 'a'}, ErrMalformed},
		{"map entry with more", []byte{0x2a, 3, 0x1a, 1, 'a'}, ErrMalformed},
		{"field number zero", []byte{0x00, 1}, ErrMalformed},
	} {
		v := outer{A: 9}
		if err := Unmarshal(tc.in, &v); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
		if !reflect.ValueOf(v).IsZero() {
			t.Errorf("%s: half a value was handed out: %+v", tc.name, v)
		}
	}
	var v outer
	if err := Unmarshal([]byte{0x4a, 0}, &v); err != nil || v.P == nil {
		t.Errorf("a pointer to a zero value: got %v, %v; want it there", v.P, err)
	}
}

func TestLimits(t *testing.T) {
	deep := plan.Cond{}
	for range MaxDepth + 1 {
		c := deep
		deep = plan.Cond{Not: &c}
	}
	if _, err := Marshal(deep); !errors.Is(err, ErrLimit) {
		t.Errorf("encoding a tree that is too deep: got %v, want ErrLimit", err)
	}
	var b []byte
	for range MaxDepth + 1 { // Cond.Not, inside out
		n := appendVarint(nil, uint64(len(b)))
		b = append(append([]byte{5<<3 | wireBytes}, n...), b...)
	}
	if err := Unmarshal(b, new(plan.Cond)); !errors.Is(err, ErrLimit) {
		t.Errorf("decoding a tree that is too deep: got %v, want ErrLimit", err)
	}
	// Two bytes for each Route on the wire, hundreds in memory.
	bomb := bytes.Repeat([]byte{3<<3 | wireBytes, 0}, 1<<19)
	if err := Unmarshal(bomb, new(plan.VirtualHost)); !errors.Is(err, ErrLimit) {
		t.Errorf("a million empty elements: got %v, want ErrLimit", err)
	}
}

// FuzzUnmarshal: whatever is accepted has exactly this encoding, and nothing makes the decoder panic.
func FuzzUnmarshal(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		var p plan.Plan
		fill(r, reflect.ValueOf(&p).Elem(), 1)
		b, err := Marshal(&p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		var k kinds
		fill(r, reflect.ValueOf(&k).Elem(), 1)
		if b, err = Marshal(&k); err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, v := range []any{new(plan.Plan), new(kinds)} {
			if err := Unmarshal(b, v); err != nil {
				continue
			}
			again, err := Marshal(v)
			if err != nil {
				t.Fatalf("what was decoded cannot be encoded: %v", err)
			}
			if !bytes.Equal(b, again) {
				t.Fatalf("two encodings of one value:\n%x\n%x", b, again)
			}
		}
	})
}

func BenchmarkEndpoints(b *testing.B) {
	e := plan.Endpoints{Cluster: "outbound|9080||reviews.default.svc.cluster.local"}
	for i := range 100 {
		e.Endpoints = append(e.Endpoints, plan.Endpoint{Address: fmt.Sprintf("10.0.0.%d:15006", i), Workload: plan.WorkloadLabels{Workload: "reviews-v1", Namespace: "default", App: "reviews", Version: "v1"}})
	}
	enc, err := Marshal(&e)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("marshal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Marshal(&e); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("unmarshal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := Unmarshal(enc, new(plan.Endpoints)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

package codec

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
)

// readPlan puts what ReadJSON hands over together again.
func readPlan(in io.Reader) ([]byte, error) {
	var fields [16][]byte
	err := ReadJSON(in, reflect.TypeFor[plan.Plan](), func(number int, body []byte) error {
		fields[number] = AppendField(fields[number], number, string(body))
		return nil
	})
	return bytes.Join(fields[:], nil), err
}

// sayable changes what has no spelling in JSON.
func sayable(v reflect.Value) {
	switch v.Type() {
	case reflect.TypeFor[ident.Protocol](), reflect.TypeFor[match.Kind]():
		v.SetUint(v.Uint() % 5)
		return
	}
	switch v.Kind() {
	case reflect.Float64:
		switch {
		case math.IsInf(v.Float(), 0):
			v.SetFloat(1e21)
		case v.Float() == 0:
			v.SetFloat(0) // minus zero is one that omitempty leaves out
		}
	case reflect.String:
		v.SetString(strings.ToValidUTF8(v.String(), "<\u2028😀\"\\>"))
	case reflect.Pointer:
		if !v.IsNil() {
			sayable(v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			sayable(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			sayable(v.Field(i))
		}
	}
}

// shuffled is a JSON text with the members of its objects in another order.
func shuffled(t *testing.T, r *rand.Rand, text []byte) []byte {
	t.Helper()
	if text[0] != '{' && text[0] != '[' {
		return text
	}
	d := json.NewDecoder(bytes.NewReader(text))
	token, err := d.Token()
	if err != nil {
		t.Fatal(err)
	}
	var parts [][]byte
	for d.More() {
		var key, value json.RawMessage
		if token == json.Delim('{') {
			name, err := d.Token()
			if err != nil {
				t.Fatal(err)
			}
			key = strconv.AppendQuote(nil, name.(string))
			key = append(key, ": \n"...)
		}
		if err := d.Decode(&value); err != nil {
			t.Fatal(err)
		}
		parts = append(parts, append(key, shuffled(t, r, value)...))
	}
	if token == json.Delim('[') {
		return append(append([]byte("["), bytes.Join(parts, []byte(" ,"))...), ']')
	}
	r.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
	return append(append([]byte("{\t"), bytes.Join(parts, []byte(","))...), '}')
}

func TestReadJSON(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 6 {
		p := &plan.Plan{}
		fill(r, reflect.ValueOf(p).Elem(), 3)
		sayable(reflect.ValueOf(p).Elem())
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		want, err := Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		for how, text := range map[string][]byte{"as it is": text, "in another order": shuffled(t, r, text)} {
			got, err := readPlan(iotest.HalfReader(bytes.NewReader(text)))
			if err != nil {
				t.Fatalf("%s: %v", how, err)
			}
			if !bytes.Equal(got, want) {
				at := 0
				for at < min(len(got), len(want)) && got[at] == want[at] {
					at++
				}
				t.Fatalf("%s: %d bytes instead of %d, of which the first %d are as they should be, then %.40q instead of %.40q", how, len(got), len(want), at, got[at:], want[at:])
			}
		}
	}
}

func TestReadJSONRefuses(t *testing.T) {
	for text, want := range map[string]error{
		``:                                               io.ErrUnexpectedEOF,
		`{"node":`:                                       io.ErrUnexpectedEOF,
		`{"node":{"name":{"name":"\u00`:                  io.ErrUnexpectedEOF,
		`{"node":{}} {}`:                                 ErrMalformed,
		`{"node":{},}`:                                   ErrMalformed,
		`{,"node":{}}`:                                   ErrMalformed,
		`{"node" {}}`:                                    ErrMalformed,
		`{"node":{} "limits":[]}`:                        ErrMalformed,
		`{"Node":{}}`:                                    ErrMalformed,
		`{"":{}}`:                                        ErrMalformed,
		`{"node":[]}`:                                    ErrMalformed,
		`{"node":nil}`:                                   ErrMalformed,
		`{"limits":{}}`:                                  ErrMalformed,
		`{"limits":[{},]}`:                               ErrMalformed,
		`{"limits":[{"nome":"a"}]}`:                      ErrMalformed,
		`{"limits":[{"name":"a","name":""}]`:             ErrMalformed,
		`{"node":{"role":7}}`:                            ErrMalformed,
		`{"node":{"role":"\x"}}`:                         ErrMalformed,
		"{\"node\":{\"role\":\"\n\"}}":                   ErrMalformed,
		"{\"node\":{\"role\":\"\xff\"}}":                 ErrMalformed,
		`{"node":{"role":"\ud83d"}}`:                     ErrMalformed,
		`{"node":{"role":"\ud83d\u0041"}}`:               ErrMalformed,
		`{"node":{"role":"\udc00\udc00"}}`:               ErrMalformed,
		`{"node":{"role":"\u00g0"}}`:                     ErrMalformed,
		`{"clusters":[{"port":01}]}`:                     ErrMalformed,
		`{"clusters":[{"port":1.5}]}`:                    ErrMalformed,
		`{"clusters":[{"port":"1"}]}`:                    ErrMalformed,
		`{"clusters":[{"port":-}]}`:                      ErrMalformed,
		`{"clusters":[{"port":1e}]}`:                     ErrMalformed,
		`{"clusters":[{"maxStreams":-1}]}`:               ErrMalformed,
		`{"clusters":[{"maxStreams":4294967296}]}`:       ErrMalformed,
		`{"clusters":[{"warmup":{"aggression":1e999}}]}`: ErrMalformed,
		`{"clusters":[{"clientProtocol":1}]}`:            ErrMalformed,
		`{"secrets":[{"key":"a"}]}`:                      ErrMalformed,
		`{"routes":[{"hosts":[{"routes":[{"match":{"cond":` + strings.Repeat(`{"not":`, 80): ErrLimit,
	} {
		if _, err := readPlan(strings.NewReader(text)); !errors.Is(err, want) {
			t.Errorf("%.60s: %v, want %v", text, err, want)
		}
	}
	for text, want := range map[string]string{
		`{"clusters":[{"protocol":"morse"}]}`:   `Cluster.Protocol: unknown protocol "morse"`,
		`{"clusters":[{"connectTimeout":"1"}]}`: "missing unit",
		`{"clusters":[{"nome":"a"}]}`:           `unknown field "nome" of plan.Cluster at byte 20`,
	} {
		if _, err := readPlan(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	for _, of := range []reflect.Type{reflect.TypeFor[kinds](), reflect.TypeFor[plan.Node]()} {
		if err := ReadJSON(strings.NewReader("{}"), of, nil); !errors.Is(err, ErrType) {
			t.Errorf("%s: %v, want %v", of, err, ErrType)
		}
	}
	broken := errors.New("broken")
	if _, err := readPlan(io.MultiReader(strings.NewReader(`{"node":`), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("%v, want %v", err, broken)
	}
	err := ReadJSON(strings.NewReader(`{"node":{"role":"a"}}`), reflect.TypeFor[plan.Plan](), func(int, []byte) error { return broken })
	if !errors.Is(err, broken) {
		t.Errorf("%v, want %v", err, broken)
	}
}

// Reading makes no garbage to speak of: that is what it is for.
func TestReadJSONAllocatesLittle(t *testing.T) {
	p := plan.Plan{Endpoints: make([]plan.Endpoints, 200)}
	for i := range p.Endpoints {
		p.Endpoints[i] = plan.Endpoints{Cluster: "c" + strconv.Itoa(i), Endpoints: []plan.Endpoint{{Address: "10.0.0.1:80", HTTP2: true}, {Address: "10.0.0.2:80"}}}
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	ignore := func(int, []byte) error { return nil }
	if n := testing.AllocsPerRun(5, func() {
		if err := ReadJSON(bytes.NewReader(text), reflect.TypeFor[plan.Plan](), ignore); err != nil {
			t.Fatal(err)
		}
	}); n > 1000 {
		t.Errorf("%v allocations for 400 endpoints", n)
	}
}

// FuzzReadJSON holds it against encoding/json: what is taken is taken there as well, and means the same.
func FuzzReadJSON(f *testing.F) {
	f.Add([]byte(`{"node":{"name":{"name":"a\u00e9\ud83d\ude00\n"},"role":"sidecar"},"listeners":null,"capture":{}}`))
	f.Add([]byte(`{"clusters":[null,{"port":-0,"name":"c","connectTimeout":"1.5s","warmup":{"duration":"1s","aggression":1.5e+2}}],"secrets":[{"name":"s","key":"a2V5"}]}`))
	f.Add([]byte(`{"routes":[{"hosts":[{"routes":[{"fault":{"abortGRPC":0},"match":{"path":{"kind":"exact"}},"retry":{"statusCodes":[0,null,503]}}]}]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := readPlan(bytes.NewReader(text))
		if err != nil {
			return
		}
		p := &plan.Plan{}
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(p); err != nil {
			t.Fatalf("it was taken, but encoding/json says: %v", err)
		}
		want, err := Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("read as %q, want %q", got, want)
		}
		if err := Unmarshal(got, new(plan.Plan)); err != nil && !errors.Is(err, ErrLimit) {
			t.Fatalf("what was read can't be opened: %v", err)
		}
	})
}

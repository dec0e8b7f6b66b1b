package crd_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/config/crd"
	"github.com/malha-mesh/malha/internal/config/manifest"
)

// rule runs one rule over a JSON value: "true", "false" or "error" (which an API server treats as false).
func rule(t *testing.T, text, value string) bool {
	t.Helper()
	quoted, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	s, err := crd.Parse([]byte(`{"x-kubernetes-validations": [{"rule": ` + string(quoted) + `}]}`))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	var v any
	if err := json.Unmarshal([]byte(value), &v); err != nil {
		t.Fatal(err)
	}
	return s.Check(manifest.Cursor{}, v, &manifest.Report{})
}

func TestRules(t *testing.T) {
	for _, c := range []struct {
		rule, value string
		holds       bool
	}{
		{"self == 'a'", `"a"`, true},
		{"self == 'a'", `"b"`, false},
		{"self != \"a\"", `"b"`, true},
		{"size(self) <= 2 && self.size() > 0", `"äö"`, true},
		{"self.size() <= 2", `[1,2,3]`, false},
		{"self.a + self.b <= 3", `{"a":1,"b":2}`, true},
		{"self.a + self.b <= 3", `{"a":2,"b":2}`, false},
		{"self.a - 1 == 0 && self.a * 2 == 2 && 7 / 2 == 3 && 7 % 4 == 3 && -self.a < 0", `{"a":1}`, true},
		{"1 + 2 * 3 == 7 && (1 + 2) * 3 == 9", `{}`, true},
		{"has(self.a)", `{"a":null}`, true},
		{"has(self.a)", `{}`, false},
		{"has(self.a.b)", `{"a":{}}`, false},
		{"has(self.a.b)", `{}`, false}, // an error
		{"!has(self.a) || self.a.b == 1", `{}`, true},
		{"self.a.b == 1 || true", `{}`, true}, // the other side decides
		{"self.a.b == 1 && true", `{}`, false},
		{"!(self.a.b == 1 && false)", `{}`, true},
		{"has(self.a[0].b)", `{"a":[{"b":1}]}`, true},
		{"has(self.a[0].b)", `{"a":[{}]}`, false},
		{"self.a[1] == 2", `{"a":[1,2]}`, true},
		{"self.a[2] == 2", `{"a":[1,2]}`, false},
		{"self['a'] == 2", `{"a":2}`, true},
		{"self in ['x', 'y']", `"y"`, true},
		{"self in ['x', 'y']", `"z"`, false},
		{"'a' in self", `{"a":1}`, true},
		{"'*' in self && self.size() > 1", `["*","b"]`, true},
		{"self.all(x, x > 1)", `[2,3]`, true},
		{"self.all(x, x > 2)", `[2,3]`, false},
		{"self.all(x, x > 2)", `[]`, true},
		{"self.all(k, k.startsWith('a'))", `{"ab":1,"ac":2}`, true},
		{"self.exists(x, x == 3)", `[2,3]`, true},
		{"self.exists(x, x == 4)", `[2,3]`, false},
		{"self.exists(x, x.a == 1)", `[{},{"a":1}]`, true}, // errors count only when no element decides
		{"self.exists_one(x, x == 3)", `[3,3]`, false},
		{"self.all(x, self.exists_one(y, x == y))", `[3,4]`, true},
		{"self.filter(x, x > 2).size() == 1", `[2,3]`, true},
		{"self.map(x, x + 1) == [3, 4]", `[2,3]`, true},
		{"self.matches('^[a-z]+$')", `"abc"`, true},
		{`self.matches(r"""^\d+$""")`, `"12"`, true},
		{`self.matches(r'^\d+$')`, `"x"`, false},
		{`self == 'it\'s'`, `"it's"`, true},
		{`self.matches('^a\\.b$')`, `"a.b"`, true},
		{"self.startsWith('/') && !self.contains('//') && self.endsWith('b')", `"/a/b"`, true},
		{"self.split('/')[0] == 'a'", `"a/b"`, true},
		{"self.substring(2) == 'cd' && self.substring(1, 2) == 'b' && self.indexOf('c') == 2", `"abcd"`, true},
		{"self.substring(9) == ''", `"abcd"`, false},
		{"self.lowerAscii() == 'ab'", `"aB"`, true},
		{"duration(self) > duration('1s')", `"1500ms"`, true},
		{"duration(self) > duration('1s')", `"x"`, false},
		{"isIP(self)", `"10.0.0.1"`, true},
		{"isIP(self)", `"::1"`, true},
		{"isIP(self)", `"example.com"`, false},
		{"self.a ? self.b == 1 : self.b == 2", `{"a":true,"b":1}`, true},
		{"self.a ? self.b == 1 : self.b == 2", `{"a":false,"b":1}`, false},
		{"self.a ? true : true", `{"a":"x"}`, false},
		{"self.__namespace__ == 'a'", `{"namespace":"a"}`, true},
		{"self", `"a"`, false}, // not a boolean
		{"'a' < 'b' && 'a' <= 'a' && 'b' > 'a' && 'b' >= 'b' && 'a' + 'b' == 'ab'", `{}`, true},
		{"self < 'b'", `1`, false},
		{"int(self) == 1 && string(self) == '1'", `1`, true},
		{"unknown == 1", `{}`, false},
		{"self == oldSelf", `1`, true}, // about changes: a file has no past
	} {
		if got := rule(t, c.rule, c.value); got != c.holds {
			t.Errorf("%s with %s: got %v, want %v", c.rule, c.value, got, c.holds)
		}
	}
}

func TestRulesThatAreNoCEL(t *testing.T) {
	for _, text := range []string{
		"", "self ==", "self.", "(self", "self)", "foo(self)", "self.foo(1)", "'a", `r"""a`, "self.all(1, true)", "self.all(x true)", "a b", "#", "has(self)", "has(1)",
		"self.matches()", "self.substring(1,2,3)", "self.size(1)", "[1,", "self ? 1", "self[1", `'\q'`, "size(1, 2)", strings.Repeat("(", 5000), strings.Repeat("!", 5000) + "self",
	} {
		quoted, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := crd.Parse([]byte(`{"x-kubernetes-validations": [{"rule": ` + string(quoted) + `}]}`)); err == nil {
			t.Errorf("%.40q was accepted", text)
		}
	}
}

func FuzzRule(f *testing.F) {
	f.Add("self.all(x, has(x.a) ? x.a in ['b'] : size(self) < 3)", `[{"a":"b"}]`)
	f.Add(`self.matches(r"""^a$""") || !self[0].b.contains('x')`, `{"b":1}`)
	f.Fuzz(func(t *testing.T, text, value string) {
		quoted, err := json.Marshal(text)
		if err != nil {
			t.Skip()
		}
		s, err := crd.Parse([]byte(`{"x-kubernetes-validations": [{"rule": ` + string(quoted) + `}]}`))
		if err != nil {
			return
		}
		var v any
		if json.Unmarshal([]byte(value), &v) != nil {
			v = value
		}
		s.Check(manifest.Cursor{}, s.Fill(v), &manifest.Report{})
	})
}

func TestCheckReportsEverythingAtOnce(t *testing.T) {
	s, err := crd.Parse([]byte(`{
		"required": ["name", "port"],
		"properties": {
			"name": {"type": "string", "minLength": 1, "maxLength": 5, "pattern": "^[a-z]*$"},
			"port": {"minimum": 1, "maximum": 65535},
			"size": {"minimum": 1},
			"mode": {"enum": ["On", "Off"], "default": "On"},
			"address": {"format": "ipv4"},
			"list": {"minItems": 1, "maxItems": 2, "x-kubernetes-list-type": "set", "items": {"maxLength": 3}},
			"map": {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a", "b"], "items": {"properties": {"b": {"default": "x"}}}},
			"labels": {"maxProperties": 1, "additionalProperties": {"maxLength": 3}},
			"nested": {"default": {}, "properties": {"kind": {"default": "Service"}}}
		},
		"x-kubernetes-validations": [{"rule": "self.mode == 'On' || has(self.size)", "message": "size must be set when off"}]
	}`))
	if err != nil {
		t.Fatal(err)
	}
	check := func(yaml string) []string {
		objs, ds := manifest.Parse("a.yaml", []byte("apiVersion: v1\nkind: K\nmetadata: {name: n}\nspec:\n"+yaml))
		if len(ds) > 0 {
			t.Fatal(ds)
		}
		var v any
		if err := objs[0].Node.Content[7].Decode(&v); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &v); err != nil {
			t.Fatal(err)
		}
		var r manifest.Report
		s.Check(objs[0].Spec(), s.Fill(v), &r)
		var out []string
		for _, d := range r.Diagnostics() {
			out = append(out, strings.TrimPrefix(d.String(), "a.yaml:"))
		}
		return out
	}
	if got := check("  name: a\n  port: 1\n  list: [a]\n  labels: {a: b}\n"); got != nil {
		t.Errorf("a good object: %v", got)
	}
	want := []string{
		"4: error MALHA0208: K default/n spec.port: `port` is missing (add port: …)",
		`5: error MALHA0212: K default/n spec.name: "A1" is not valid here (it must match ^[a-z]*$)`,
		"6: error MALHA0204: K default/n spec.size: 0 is out of range: at least 1",
		"7: error MALHA0203: K default/n spec.mode: unknown value \"on\" (did you mean `On`?)",
		`8: error MALHA0212: K default/n spec.address: "x" is not of the form ipv4`,
		"9: error MALHA0204: K default/n spec.list: 3 elements are too many: at most 2 (split the object in several)",
		"9: error MALHA0104: K default/n spec.list[1]: a stands twice, first on line 9 (keep one of them)",
		"9: error MALHA0212: K default/n spec.list[2]: 4 characters are too many: at most 3",
		"10: error MALHA0104: K default/n spec.map[1]: a 1, b x stands twice, first on line 10 (keep one of them)",
		"11: error MALHA0204: K default/n spec.labels: 2 entries are too many: at most 1",
		"11: error MALHA0212: K default/n spec.labels[b]: 4 characters are too many: at most 3",
	}
	got := check("  name: A1\n  size: 0\n  mode: 'on'\n  address: x\n  list: [a, a, abcd]\n  map: [{a: 1}, {a: 1, b: x}]\n  labels: {a: b, b: abcd}\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"4: error MALHA0212: K default/n spec: size must be set when off"}, check("  name: a\n  port: 1\n  mode: 'Off'\n")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"5: error MALHA0208: K default/n spec.name: it is empty"}, check("  name: ''\n  port: 1\n")); diff != "" {
		t.Error(diff)
	}
}

func TestSchemasThatAreNone(t *testing.T) {
	for _, text := range []string{`[]`, `{"pattern": "("}`, `{"properties": {"a": {"items": {"pattern": "("}}}}`, `{"additionalProperties": {"x-kubernetes-validations": [{"rule": "("}]}}`} {
		if _, err := crd.Parse([]byte(text)); err == nil {
			t.Errorf("%s was accepted", text)
		}
	}
}

package manifest

import "strings"

// Support says what Malha does about a field.
type Support string

// The answers. A field that no entry names is Refused: what is forgotten fails loudly.
const (
	Works   Support = "works"
	Refused Support = "refused" // an error: acting on half an object is worse than on none of it
	Ignored Support = "ignored" // has no effect here, which is said
)

// Field says what Malha does about one field and all that are below it, unless a longer path says otherwise.
type Field struct {
	Path    string // below spec: "http[].match[].uri"; [] is any element of a list or entry of a map
	Value   string // when set, the entry holds for this value of the field only
	Support Support
	Note    string // Refused: what to do instead; Ignored: why; Works: what differs from its project's meaning
	Proof   string // the test that shows that it works; "": the Kind's
}

// By names the test that proves those of the fields that work and have none yet: "internal/proxy/route TestRewrite", or the
// archives of a golden test, "internal/config/istio TestGolden", of which one must set the field.
func (f Fields) By(proof string) Fields {
	for i := range f {
		if f[i].Support == Works && f[i].Proof == "" {
			f[i].Proof = proof
		}
	}
	return f
}

// Differ returns entries of fields that work, though not quite as their project has it.
func Differ(note string, paths ...string) Fields {
	out := make(Fields, len(paths))
	for i, p := range paths {
		out[i] = Field{Path: p, Support: Works, Note: note}
	}
	return out
}

// Fields is the support table of a kind: data, from which the documentation is made too.
type Fields []Field

// Work returns the entries of fields that work, below a common prefix ("" or "http[].").
func Work(prefix string, paths ...string) Fields {
	out := make(Fields, len(paths))
	for i, p := range paths {
		out[i] = Field{Path: prefix + p, Support: Works}
	}
	return out
}

// Refuse returns entries that are refused for one reason.
func Refuse(note string, paths ...string) Fields {
	out := make(Fields, len(paths))
	for i, p := range paths {
		out[i] = Field{Path: p, Support: Refused, Note: note}
	}
	return out
}

// Ignore returns entries that are ignored for one reason.
func Ignore(note string, paths ...string) Fields {
	out := make(Fields, len(paths))
	for i, p := range paths {
		out[i] = Field{Path: p, Support: Ignored, Note: note}
	}
	return out
}

// Join makes one table of several.
func Join(tables ...Fields) Fields {
	var out Fields
	for _, t := range tables {
		out = append(out, t...)
	}
	return out
}

// fieldIndex answers lookups in a table.
type fieldIndex struct {
	exact map[string]Field    // path, or path=value
	above map[string]struct{} // paths that have an entry below them
}

func (f Fields) index() fieldIndex {
	x := fieldIndex{exact: make(map[string]Field, len(f)), above: map[string]struct{}{}}
	for _, e := range f {
		key := e.Path
		if e.Value != "" {
			key += "=" + e.Value
		}
		x.exact[key] = e
		for p := e.Path; p != ""; {
			i := max(strings.LastIndexByte(p, '.'), strings.LastIndex(p, "[]"))
			if i < 0 {
				break
			}
			p = p[:i]
			x.above[p] = struct{}{}
		}
	}
	return x
}

// at returns the entry for the field at path, given the one that holds above it; partly is set when only fields below
// it are named.
func (x fieldIndex) at(path string, above Field) (entry Field, partly bool) {
	if e, ok := x.exact[path]; ok {
		return e, false
	}
	if above.Support != Works {
		if _, ok := x.above[path]; ok {
			return above, true
		}
	}
	return above, false
}

// Of returns the entry that holds for the field at path (no value of it considered), and whether there is one: partly is set
// when there is none, and only fields below it are named.
func (f Fields) Of(path string) (entry Field, partly bool) {
	x, above := f.index(), Field{Support: Refused}
	for i := 0; i <= len(path); i++ {
		if i < len(path) && path[i] != '.' && !strings.HasPrefix(path[i:], "[]") {
			continue
		}
		above, partly = x.at(path[:i], above)
	}
	return above, partly
}

// value returns the entry for one value of the field at path, if the table has one.
func (x fieldIndex) value(path, value string) (Field, bool) {
	e, ok := x.exact[path+"="+value]
	return e, ok
}

package manifest

import (
	"encoding/base64"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/malha-mesh/malha/internal/model"
)

// Kind is one kind of object that a dialect translates.
type Kind struct {
	Group    string   // API group, "" for core
	Versions []string // all that are served, newest first; they share one schema
	Kind     string
	Type     func() *Type // of spec; of all but apiVersion, kind, metadata and status when Bare
	Fields   Fields
	Proof    string // the test that proves the fields that work, as in Field.Proof; "": "internal/config TestGolden". A field may name its own.
	// Bare kinds have their fields beside metadata, with no spec around them (Secret, EndpointSlice). They translate from Root.
	Bare bool
	// Complete checks the spec of an object besides its fields and types, and returns it with its defaults: for kinds that have a
	// CRD with rules. nil: there are none.
	Complete func(o *Object, spec []byte, r *Report) []byte
	// KeepsBroken says that Translate remembers objects of which a field is refused too, and sees to it that nothing of them comes into
	// force (Report.Broken): for the statuses that say so, and for others that name them. Objects of other kinds with a mistake
	// before Translate never come to the dialect that finishes.
	KeepsBroken bool
	// Translate adds the object to the model. spec is canonical JSON of what the schema has accepted. What it adds is dropped when
	// it reports an error, and when the schema has found one: then spec is what is left without the mistakes, and Translate is
	// asked only to find all others in the same go. What it remembers for Finish is not dropped: that is for Translate to see to.
	Translate func(o *Object, spec []byte, out *model.Config, r *Report)
}

// Dialect is the kinds of one dialect for one configuration. Its functions may share what they learn from one object after the
// other: a Dialect is made anew for each configuration, and belongs to one goroutine.
type Dialect struct {
	Kinds []Kind
	// Annotate is told of every object that any dialect has translated, and of what it became, which it may change: for
	// annotations that mean something on objects of others. nil: none do.
	Annotate func(o *Object, own *model.Config, r *Report)
	// Finish is called once, after the last object, with everything that all dialects made, sorted by name: for what an
	// object cannot know alone. nil: nothing is left to do.
	Finish func(out *model.Config, r *Report)
}

// Check compares an object with its kind: every field that is unknown, of the wrong type or not supported is reported, and what
// its CRD forbids. It returns the object's spec as canonical JSON, and whether it may be translated; with mistakes the spec is
// what is left without them, nil when that is nothing.
func (k *Kind) Check(o *Object, r *Report) (spec []byte, ok bool) {
	c := checker{object: o, report: r, fields: k.Fields.index()}
	all, _ := r.Len()
	at := o.Spec()
	if k.Bare {
		at = bare(o)
	} else {
		c.around()
	}
	spec = []byte("{}") // a kind whose spec may be empty says what it lacks itself
	if at.Set() {
		value := c.value(at, "", k.Type(), Field{Support: Refused})
		if value == nil {
			return nil, false
		}
		var err error
		if spec, err = json.Marshal(value); err != nil { // only numbers that are not finite, which the checker refuses
			r.Error(CodeInternal, at, "please report this", "cannot encode the object: %v", err)
			return nil, false
		}
	}
	if k.Complete != nil {
		found, before := r.Len()
		spec = k.Complete(o, spec, r)
		_, after := r.Len()
		c.broken = c.broken || after > before
		r.Besides(all, found)
	}
	return spec, !c.broken
}

// around checks what stands beside the spec.
func (c *checker) around() {
	for i := 0; i+1 < len(c.object.Node.Content); i += 2 {
		switch key := c.object.Node.Content[i]; key.Value {
		case "apiVersion", "kind", "metadata", "spec":
		case "status": // written by controllers, never by people; exported objects carry it
		default:
			c.fail(CodeUnknownField, Cursor{object: c.object, path: key.Value, line: key.Line},
				DidYouMean(key.Value, []string{"apiVersion", "kind", "metadata", "spec"}), "unknown field `%s`", shown(key.Value))
		}
	}
}

// bare returns the fields of an object that has no spec around them.
func bare(o *Object) Cursor {
	at := o.Root()
	own := *at.node
	own.Content = nil
	for i := 0; i+1 < len(at.node.Content); i += 2 {
		switch at.node.Content[i].Value {
		case "apiVersion", "kind", "metadata", "status":
		default:
			own.Content = append(own.Content, at.node.Content[i], at.node.Content[i+1])
		}
	}
	at.node = &own
	return at
}

// checker walks one object beside its schema.
type checker struct {
	object *Object
	report *Report
	fields fieldIndex
	broken bool // the object does not fit its schema
}

func (c *checker) fail(code string, at Cursor, hint, format string, args ...any) any {
	c.broken = true
	c.report.Error(code, at, hint, format, args...)
	return nil
}

func (c *checker) wrong(at Cursor, t *Type) any {
	hint := ""
	if t.secret {
		return c.fail(CodeWrongType, at, "", "want %s, got something else (a Secret's values are not shown)", t.want())
	}
	switch {
	case t.shape == text:
		hint = quoteHint(at.node)
	case t.shape == list && at.node.Kind != yaml.SequenceNode:
		hint = "start each element with -"
	case (t.shape == integer || t.shape == number || t.shape == boolean) && isString(at.node):
		hint = unquotedHint(at.node, t.shape)
	case t.shape == integer && at.node.ShortTag() == "!!float":
		if octal := strings.TrimLeft(at.node.Value, "0"); octal != "" && strings.Trim(octal, "0123456789") == "" {
			hint = "write " + octal
		}
	}
	return c.fail(CodeWrongType, at, hint, "want %s, got %s", t.want(), describe(at.node))
}

// unquotedHint says how to write a text as a number or boolean.
func unquotedHint(n *yaml.Node, want shape) string {
	plain := yaml.Node{Kind: yaml.ScalarNode, Value: strings.TrimSuffix(n.Value, "%")}
	tag := plain.ShortTag()
	switch {
	case want == boolean && slices.Contains([]string{"yes", "on", "y"}, strings.ToLower(n.Value)): // YAML 1.1
		return "write true"
	case want == boolean && slices.Contains([]string{"no", "off", "n"}, strings.ToLower(n.Value)):
		return "write false"
	case (tag == "!!bool") != (want == boolean) || tag != "!!bool" && tag != "!!int" && (tag != "!!float" || want == integer):
		return ""
	case plain.Value != n.Value:
		return "write " + plain.Value
	}
	return "remove the quotes"
}

// want names a type for a message.
func (t *Type) want() string {
	switch t.shape {
	case object, mapping:
		return "an object"
	case list:
		return "a list"
	case boolean:
		return "true or false"
	case integer:
		return "a whole number"
	case number:
		return "a number"
	case enumeration:
		return "one of " + strings.Join(t.enum, ", ")
	case duration:
		return `a duration such as "5s"`
	case intOrText:
		return "a number or a name"
	case base64Bytes:
		return "base64"
	case quantity:
		return `a quantity such as 1 or "500m"`
	case oneOrMany:
		return t.elem.want()
	}
	return "a string"
}

// value checks one value and returns it as canonical JSON would have it. path is the place in the support table, above
// the entry that holds so far.
func (c *checker) value(at Cursor, path string, t *Type, above Field) any {
	n := at.node
	switch t.shape {
	case object:
		if n.Kind != yaml.MappingNode {
			return c.wrong(at, t)
		}
		return c.objectFields(at, path, t, above)
	case mapping:
		if n.Kind != yaml.MappingNode {
			return c.wrong(at, t)
		}
		out := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i].Value
			if t.keys.shape == integer {
				if v, err := strconv.ParseInt(key, 10, 64); err != nil || v < t.keys.min || v > 0 && uint64(v) > t.keys.max {
					c.fail(CodeWrongType, at.Key(key), "", "want a whole number as key, got %s", quoted(key))
					continue
				}
			}
			out[key] = t.elem.orZero(c.element(at.Key(key), path+"[]", t.elem, above))
		}
		return out
	case list:
		if n.Kind != yaml.SequenceNode {
			return c.wrong(at, t)
		}
		out := make([]any, len(n.Content))
		for i := range n.Content {
			out[i] = t.elem.orZero(c.element(at.Index(i), path+"[]", t.elem, above))
		}
		return out
	case oneOrMany:
		if n.Kind != yaml.SequenceNode {
			return []any{t.elem.orZero(c.value(at, path+"[]", t.elem, above))}
		}
		return c.value(at, path, &Type{shape: list, elem: t.elem}, above)
	case anything:
		var v any
		if err := n.Decode(&v); err != nil {
			return c.fail(CodeWrongType, at, "", "%s", strings.TrimPrefix(err.Error(), "yaml: "))
		}
		if _, err := json.Marshal(v); err != nil { // YAML has numbers and keys that JSON does not have
			return c.fail(CodeBadValue, at, "write text and finite numbers, and text as keys", "JSON cannot say what stands here")
		}
		return v
	}
	if n.Kind != yaml.ScalarNode {
		return c.wrong(at, t)
	}
	return c.scalar(at, path, t)
}

// element checks an element of a list or map, which may not be null.
func (c *checker) element(at Cursor, path string, t *Type, above Field) any {
	if !at.Set() {
		hint := ""
		if t.shape == object {
			hint = "write {} for an empty one"
		}
		return c.fail(CodeWrongType, at, hint, "want %s, got nothing", t.want())
	}
	entry, _ := c.fields.at(path, above)
	return c.value(at, path, t, entry)
}

func (c *checker) objectFields(at Cursor, path string, t *Type, above Field) any {
	out := make(map[string]any, len(at.node.Content)/2)
	oneofs, seen := map[string]string{}, map[string]bool{}
	for i := 0; i+1 < len(at.node.Content); i += 2 {
		key, value := at.node.Content[i], at.node.Content[i+1]
		here := Cursor{object: c.object, node: value, path: join(at.path, key.Value), line: key.Line}
		f, known := t.fields[key.Value]
		if !known {
			c.fail(CodeUnknownField, here, DidYouMean(key.Value, t.names), "unknown field `%s`", shown(key.Value))
			continue
		}
		if !here.Set() { // null is as good as not written
			continue
		}
		if seen[f.name] {
			c.fail(CodeDuplicateKey, here, "keep one of them", "`%s` is another spelling of `%s`, which is set too", key.Value, f.name)
			continue
		}
		seen[f.name] = true
		if f.oneof != "" {
			if other, set := oneofs[f.oneof]; set {
				c.fail(CodeExclusive, here, "keep one of them", "`%s` and `%s` exclude each other", other, f.name)
				continue
			}
			oneofs[f.oneof] = f.name
		}
		below := join(path, f.name)
		entry, partly := c.fields.at(below, above)
		switch {
		case !partly && !c.supported(here, below, entry):
			entry.Support = Works // said once; what is below is still checked, and read, so that nothing seems to be missing
		case f.old:
			c.report.Info(CodeDeprecated, here, replaced, "`%s` is deprecated", f.name)
		}
		if v := c.value(here, below, f.typ, entry); v != nil {
			out[f.name] = v
		}
	}
	return out
}

// replaced is what to do about what is deprecated.
const replaced = "it still works; see its project's documentation for what replaces it"

// orZero stands in for an element that is wrong, so that those behind it keep their place.
func (t *Type) orZero(v any) any {
	if v != nil {
		return v
	}
	switch t.shape {
	case object, mapping:
		return map[string]any{}
	case list, oneOrMany:
		return []any{}
	case boolean:
		return false
	case integer, number:
		return 0
	case enumeration:
		return t.enum[0]
	case duration:
		return "0s"
	case anything:
		return nil
	}
	return ""
}

// supported reports a field that does not work.
func (c *checker) supported(at Cursor, path string, entry Field) bool {
	if at.node.Kind == yaml.ScalarNode {
		if e, ok := c.fields.value(path, at.node.Value); ok {
			entry = e
		}
	}
	what := at.path[strings.LastIndexByte(at.path, '.')+1:]
	if entry.Value != "" {
		what += ": " + entry.Value
	}
	switch entry.Support {
	case Works:
		return true
	case Ignored:
		c.report.Info(CodeIgnoredField, at, "", "`%s` has no effect: %s", what, entry.Note)
		return false
	}
	hint := entry.Note
	if hint == "" {
		hint = "remove it: the rest of the object then works without it"
	}
	c.report.Error(CodeUnsupported, at, hint, "`%s` is not supported by Malha yet", what)
	return false
}

func (c *checker) scalar(at Cursor, path string, t *Type) any {
	n, tag := at.node, at.node.ShortTag()
	switch t.shape {
	case text:
		if isString(n) {
			return n.Value
		}
	case boolean:
		var v bool
		if tag == "!!bool" && n.Decode(&v) == nil {
			return v
		}
	case integer:
		if tag == "!!int" || tag == "!!float" && isDigits(n.Value) { // one that is too large for any integer
			return c.integer(at, t)
		}
	case number:
		var v float64
		if (tag == "!!int" || tag == "!!float") && n.Decode(&v) == nil {
			if math.IsInf(v, 0) || math.IsNaN(v) {
				return c.fail(CodeOutOfRange, at, "", "want a finite number, got %s", shown(n.Value))
			}
			return v
		}
	case enumeration:
		if isString(n) {
			if slices.Contains(t.old, n.Value) {
				c.report.Info(CodeDeprecated, at, replaced, "`%s` is deprecated", n.Value)
			}
			if slices.Contains(t.enum, n.Value) {
				return n.Value
			}
			return c.fail(CodeBadEnum, at, DidYouMean(n.Value, t.enum), "unknown value %s", quoted(n.Value))
		}
	case duration:
		if isString(n) {
			return c.duration(at)
		}
		if tag == "!!int" || tag == "!!float" {
			return c.fail(CodeBadDuration, at, "add the unit: "+n.Value+"s", "a duration needs a unit, got %s", describe(n))
		}
	case base64Bytes:
		if isString(n) {
			if _, err := base64.StdEncoding.DecodeString(n.Value); err == nil {
				return n.Value
			}
			if t.secret {
				break
			}
			return c.fail(CodeWrongType, at, "", "want base64, got %s", describe(n))
		}
	case intOrText:
		if tag == "!!int" {
			return c.integer(at, integerType(32, true))
		}
		if isString(n) {
			return n.Value
		}
	case quantity:
		if tag == "!!int" || tag == "!!float" || isString(n) {
			if _, err := parseMilli(n.Value); err != nil {
				return c.fail(CodeOutOfRange, at, `write a number such as 90, or "500m"`, "%v", err)
			}
			return n.Value
		}
	}
	return c.wrong(at, t)
}

func (c *checker) integer(at Cursor, t *Type) any {
	var signed int64
	if at.node.Decode(&signed) == nil && signed >= t.min && (signed < 0 || uint64(signed) <= t.max) {
		return signed
	}
	var unsigned uint64
	if at.node.Decode(&unsigned) == nil && unsigned <= t.max {
		return unsigned
	}
	return c.fail(CodeOutOfRange, at, "", "%s is out of range: from %d to %d", shown(at.node.Value), t.min, t.max)
}

// duration returns the duration as ProtoJSON writes it: seconds and an "s".
func (c *checker) duration(at Cursor) any {
	d, err := time.ParseDuration(at.node.Value)
	if err != nil {
		hint := "write a number with a unit: 100ms, 5s, 1m, 1h"
		switch n := strings.TrimLeft(at.node.Value, "0123456789"); {
		case at.node.Value != "" && n == "":
			hint = "add the unit: " + at.node.Value + "s"
		case slices.Contains([]string{"h", "m", "s", "ms"}, n):
			return c.fail(CodeBadDuration, at, "at most some 290 years", "%s is too long", describe(at.node))
		case n == "d" && len(at.node.Value) < 5:
			hint = "there is no day: write hours"
		}
		return c.fail(CodeBadDuration, at, hint, "%s is not a duration", describe(at.node))
	}
	whole, frac := d/time.Second, d%time.Second
	s := strconv.FormatInt(int64(whole), 10)
	if frac != 0 {
		sign := ""
		if d < 0 && whole == 0 {
			sign = "-"
		}
		digits := strconv.FormatInt(int64(max(frac, -frac)), 10)
		s = sign + s + "." + strings.Repeat("0", 9-len(digits)) + digits
	}
	return s + "s"
}

// isDigits reports whether s is a whole number in decimal digits, as people write it.
func isDigits(s string) bool {
	s = strings.TrimPrefix(s, "-")
	return s != "" && (s == "0" || s[0] != '0') && strings.Trim(s, "0123456789") == ""
}

// isString reports whether n is text. A bare date is text too, as it is for kubectl.
func isString(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && (n.ShortTag() == "!!str" || n.ShortTag() == "!!timestamp")
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

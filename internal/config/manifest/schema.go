package manifest

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// shape says how a value of a Type is written.
type shape uint8

const (
	anything shape = iota
	object
	list
	mapping // keys are data
	text
	boolean
	integer
	number
	enumeration
	duration
	base64Bytes
	intOrText // Kubernetes IntOrString
	quantity  // Kubernetes Quantity: a number, or a string like "500m"
	oneOrMany // an element, or a list of them
)

// Type is what may stand at a place of an object. It is made by FromProto or FromGo and immutable after that.
type Type struct {
	shape  shape
	fields map[string]*field // by every spelling that is accepted
	names  []string          // the preferred spellings, for hints
	elem   *Type             // of list, mapping and oneOrMany
	enum   []string
	old    []string // of enum, those that the project has replaced
	min    int64    // of integer; max too
	max    uint64
	keys   *Type // of mapping: integer keys are checked
	secret bool  // no diagnostic shows a value
}

type field struct {
	name  string // preferred spelling
	typ   *Type
	oneof string // fields of one oneof exclude each other; "" in none
	old   bool   // deprecated by its project
}

// Types with a spelling of their own, for FromGo.
var (
	// TypeIntOrString is Kubernetes' IntOrString.
	TypeIntOrString = &Type{shape: intOrText}
	// TypeQuantity is Kubernetes' resource.Quantity.
	TypeQuantity = &Type{shape: quantity}
	// TypeText is a string.
	TypeText = &Type{shape: text}
	// TypeSecretBytes is base64, TypeSecretText a string, that no diagnostic shows.
	TypeSecretBytes = &Type{shape: base64Bytes, secret: true}
	TypeSecretText  = &Type{shape: text, secret: true}
	// TypeDuration is a string that time.ParseDuration reads.
	TypeDuration = &Type{shape: duration}
)

// Duration is a time.Duration written as "5s" or "1.5m" in the Go types of a dialect.
type Duration time.Duration

// UnmarshalJSON reads what the schema has checked.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	v, err := time.ParseDuration(s)
	*d = Duration(v)
	return err
}

// OneOrMany is a value that may be written alone or as a list.
type OneOrMany[T any] []T

// FromProto makes the Type of a protobuf message, as its JSON mapping writes it (protobuf.dev "ProtoJSON format"):
// fields by JSON name or original name, durations as text, wrappers as plain values.
func FromProto(m protoreflect.MessageDescriptor) *Type {
	return (&protoTypes{made: map[protoreflect.FullName]*Type{}}).message(m)
}

type protoTypes struct {
	made map[protoreflect.FullName]*Type
}

func (p *protoTypes) message(m protoreflect.MessageDescriptor) *Type {
	switch m.FullName() {
	case "google.protobuf.Duration":
		return TypeDuration
	case "google.protobuf.Timestamp":
		return TypeText
	case "google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue", "google.protobuf.Any":
		return &Type{shape: anything}
	}
	if m.ParentFile().Path() == "google/protobuf/wrappers.proto" {
		return p.single(m.Fields().ByName("value"))
	}
	if t, ok := p.made[m.FullName()]; ok {
		return t
	}
	t := &Type{shape: object, fields: map[string]*field{}}
	p.made[m.FullName()] = t // before its fields: a message may contain itself
	for i := range m.Fields().Len() {
		fd := m.Fields().Get(i)
		f := &field{name: fd.JSONName(), typ: p.field(fd)}
		if o, ok := fd.Options().(*descriptorpb.FieldOptions); ok {
			f.old = o.GetDeprecated()
		}
		if o := fd.ContainingOneof(); o != nil && !o.IsSynthetic() {
			f.oneof = string(o.Name())
		}
		t.fields[fd.JSONName()], t.fields[string(fd.Name())] = f, f
		t.names = append(t.names, fd.JSONName())
	}
	return t
}

func (p *protoTypes) field(fd protoreflect.FieldDescriptor) *Type {
	switch {
	case fd.IsMap():
		return &Type{shape: mapping, keys: p.single(fd.MapKey()), elem: p.single(fd.MapValue())}
	case fd.IsList():
		return &Type{shape: list, elem: p.single(fd)}
	}
	return p.single(fd)
}

func (p *protoTypes) single(fd protoreflect.FieldDescriptor) *Type {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return p.message(fd.Message())
	case protoreflect.EnumKind:
		t := &Type{shape: enumeration}
		for i := range fd.Enum().Values().Len() {
			v := fd.Enum().Values().Get(i)
			t.enum = append(t.enum, string(v.Name()))
			if o, ok := v.Options().(*descriptorpb.EnumValueOptions); ok && o.GetDeprecated() {
				t.old = append(t.old, string(v.Name()))
			}
		}
		return t
	case protoreflect.BoolKind:
		return &Type{shape: boolean}
	case protoreflect.BytesKind:
		return &Type{shape: base64Bytes}
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return &Type{shape: number}
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return integerType(32, true)
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return integerType(64, true)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return integerType(32, false)
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return integerType(64, false)
	}
	return TypeText
}

func integerType(bits int, signed bool) *Type {
	t := &Type{shape: integer, max: 1<<bits - 1}
	if signed {
		t.min, t.max = -1<<(bits-1), 1<<(bits-1)-1
	}
	return t
}

// FromGo makes the Type of a Go type from its json tags. special gives the Type of those that encode themselves. A type
// that JSON cannot carry is a defect of the caller and panics; the tests of each dialect build every Type they have.
func FromGo(t reflect.Type, special map[reflect.Type]*Type) *Type {
	return (&goTypes{made: map[reflect.Type]*Type{}, special: special}).of(t)
}

type goTypes struct {
	made, special map[reflect.Type]*Type
}

func (g *goTypes) of(t reflect.Type) *Type {
	if s, ok := g.special[t]; ok {
		return s
	}
	switch t {
	case reflect.TypeFor[Duration]():
		return TypeDuration
	case reflect.TypeFor[Milli]():
		return TypeQuantity
	}
	if t.Kind() == reflect.Slice && t.PkgPath() == reflect.TypeFor[Duration]().PkgPath() && strings.HasPrefix(t.Name(), "OneOrMany[") {
		return &Type{shape: oneOrMany, elem: g.of(t.Elem())}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return g.of(t.Elem())
	case reflect.Struct:
		return g.structure(t)
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return &Type{shape: base64Bytes}
		}
		return &Type{shape: list, elem: g.of(t.Elem())}
	case reflect.Map:
		return &Type{shape: mapping, keys: g.of(t.Key()), elem: g.of(t.Elem())}
	case reflect.String:
		return TypeText
	case reflect.Bool:
		return &Type{shape: boolean}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return integerType(t.Bits(), true)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return integerType(t.Bits(), false)
	case reflect.Float32, reflect.Float64:
		return &Type{shape: number}
	case reflect.Interface:
		return &Type{shape: anything}
	}
	panic(fmt.Sprintf("manifest: no schema for %s", t))
}

func (g *goTypes) structure(t reflect.Type) *Type {
	if made, ok := g.made[t]; ok {
		return made
	}
	out := &Type{shape: object, fields: map[string]*field{}}
	g.made[t] = out
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported() && !f.Anonymous:
			continue
		case f.Anonymous && name == "" || strings.Contains(options, "inline"):
			inner := g.of(f.Type)
			for _, n := range inner.names {
				out.fields[n] = inner.fields[n]
				out.names = append(out.names, n)
			}
			continue
		case name == "":
			name = f.Name
		}
		out.fields[name] = &field{name: name, typ: g.of(f.Type)}
		out.names = append(out.names, name)
	}
	return out
}

// Paths returns the path of every field of t, "http[].match[].uri", each with those below it, sorted. A type that
// contains itself ends where it starts again. Dialects test their Fields against it.
func (t *Type) Paths() []string {
	var out []string
	t.paths("", nil, &out)
	slices.Sort(out)
	return slices.Compact(out)
}

func (t *Type) paths(prefix string, above []*Type, out *[]string) {
	if slices.Contains(above, t) {
		return
	}
	above = append(above[:len(above):len(above)], t)
	switch t.shape {
	case object:
		for _, n := range t.names {
			p := n
			if prefix != "" {
				p = prefix + "." + n
			}
			*out = append(*out, p)
			t.fields[n].typ.paths(p, above, out)
		}
	case list, mapping, oneOrMany:
		t.elem.paths(prefix+"[]", above, out)
	}
}

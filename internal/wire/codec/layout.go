package codec

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// shape is how often a field may stand.
type shape uint8

const (
	single   shape = iota // T: there unless zero
	optional              // *T: there unless nil
	repeated              // []T: one for each element
	mapped                // map[string]string: one for each entry
)

// field is what the codec knows of one struct field.
type field struct {
	number int
	index  int // in the Go struct
	name   string
	json   string // its name there; "" for a type that is not written in JSON
	text   bool   // JSON has T as the string that its MarshalText writes
	shape  shape
	wire   uint8
	kind   reflect.Kind // of T, folded: Int and Uint stand for all sizes, Slice is []byte, Array is [N]byte
	elem   reflect.Type // T
	nested *layout      // of T when it is a struct
}

// layout is what the codec knows of a struct type. Fields are in ascending order of their numbers.
type layout struct {
	name   string
	fields []field
}

// layouts remembers the layout of each type, as encoding/json does: reflection over a type always finds the same.
var layouts sync.Map // reflect.Type → *layout

func layoutOf(t reflect.Type) (*layout, error) {
	if l, ok := layouts.Load(t); ok {
		return l.(*layout), nil
	}
	// Types may refer to themselves (conditions are trees), so a layout is entered into the map of this walk before
	// its fields are looked at; the shared cache only sees layouts that are complete.
	walk := make(map[reflect.Type]*layout)
	l, err := walkType(t, walk)
	if err != nil {
		return nil, err
	}
	for t, l := range walk {
		layouts.LoadOrStore(t, l)
	}
	return l, nil
}

func walkType(t reflect.Type, walk map[reflect.Type]*layout) (*layout, error) {
	if l, ok := walk[t]; ok {
		return l, nil
	}
	l := &layout{name: t.String(), fields: make([]field, 0, t.NumField())}
	walk[t] = l
	for i := range t.NumField() {
		sf := t.Field(i)
		fail := func(why string) (*layout, error) {
			return nil, fmt.Errorf("%w: field %s of %s %s", ErrType, sf.Name, t, why)
		}
		if !sf.IsExported() {
			return fail("is not exported: it would be lost")
		}
		tag, ok := sf.Tag.Lookup("plan")
		if !ok {
			return fail(`has no plan tag: it would be lost (write plan:"N" with a number that was never used)`)
		}
		number, err := strconv.Atoi(tag)
		if err != nil || number < 1 || number > 1<<20 {
			return fail(fmt.Sprintf("has plan tag %q, which is not a number from 1 to %d", tag, 1<<20))
		}
		name, _, _ := strings.Cut(sf.Tag.Get("json"), ",")
		f := field{number: number, index: i, name: sf.Name, json: name, elem: sf.Type}
		switch {
		case sf.Type.Kind() == reflect.Pointer:
			f.shape, f.elem = optional, sf.Type.Elem()
		case sf.Type.Kind() == reflect.Slice && sf.Type.Elem().Kind() != reflect.Uint8:
			f.shape, f.elem = repeated, sf.Type.Elem()
		case sf.Type.Kind() == reflect.Map:
			if sf.Type.Key().Kind() != reflect.String || sf.Type.Elem().Kind() != reflect.String {
				return fail("is a map, but not from string to string")
			}
			f.shape, f.kind, f.wire = mapped, reflect.Struct, wireBytes
			if err := l.add(f); err != nil {
				return nil, err
			}
			continue
		}
		if f.kind, f.wire, ok = kindOf(f.elem); !ok {
			return fail("has type " + sf.Type.String())
		}
		if f.kind == reflect.Struct {
			if f.nested, err = walkType(f.elem, walk); err != nil {
				return nil, err
			}
		}
		f.text = f.elem.Implements(textMarshaler)
		if err := l.add(f); err != nil {
			return nil, err
		}
	}
	return l, nil
}

var textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()

// add puts a field in its place.
func (l *layout) add(f field) error {
	at, taken := slices.BinarySearchFunc(l.fields, f.number, func(f field, number int) int { return f.number - number })
	if taken {
		return fmt.Errorf("%w: fields %s and %s of %s have the same plan number %d", ErrType, l.fields[at].name, f.name, l.name, f.number)
	}
	l.fields = slices.Insert(l.fields, at, f)
	return nil
}

func kindOf(t reflect.Type) (kind reflect.Kind, wire uint8, ok bool) {
	switch t.Kind() {
	case reflect.Bool:
		return reflect.Bool, wireVarint, true
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return reflect.Int, wireVarint, true
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return reflect.Uint, wireVarint, true
	case reflect.Float32:
		return reflect.Float32, wireFixed32, true
	case reflect.Float64:
		return reflect.Float64, wireFixed64, true
	case reflect.String:
		return reflect.String, wireBytes, true
	case reflect.Slice:
		return reflect.Slice, wireBytes, t.Elem().Kind() == reflect.Uint8
	case reflect.Array:
		return reflect.Array, wireBytes, t.Elem().Kind() == reflect.Uint8
	case reflect.Struct:
		return reflect.Struct, wireBytes, true
	default:
		return 0, 0, false
	}
}

package codec

import (
	"encoding"
	"encoding/base64"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
)

// ReadJSON reads a JSON object that spells a value of the struct type t as encoding/json does, and hands over the encoding of its
// fields as Fields would: the number and the body of each, a repeated field once for each element. Bodies are good until take returns. Fields come in
// the order of the text. All of them have to be structs.
//
// Nothing is decoded on the way: the text is written over into the encoding, so that reading takes no more memory than the largest
// field. encoding/json would, besides the values, keep tables of all types for good.
//
// It is stricter than encoding/json: a field that is not known or there twice, a name in other letters, and a string that is not UTF-8 are errors,
// as the field may be a condition.
func ReadJSON(in io.Reader, t reflect.Type, take func(number int, body []byte) error) error {
	l, err := layoutOf(t)
	if err != nil {
		return err
	}
	for i := range l.fields {
		if l.fields[i].nested == nil {
			return fmt.Errorf("%w: field %s.%s is not a struct", ErrType, l.name, l.fields[i].name)
		}
	}
	j := transcript{text: text{in: in}}
	if err := j.object(l, func(f *field) error { return j.hand(f, take) }); err != nil {
		return err
	}
	return j.end()
}

// transcript writes JSON over into the encoding.
type transcript struct {
	text
	out   []byte
	parts []part // the fields of all structs that are open, outermost first
}

// part is the encoding of a field, in out.
type part struct{ number, from, to int }

// hand reads the value of a field and hands its body over, or those of its elements.
func (j *transcript) hand(f *field, take func(int, []byte) error) error {
	one := func() error {
		j.out = j.out[:0]
		if err := j.structure(f.nested, 2); err != nil {
			return err
		}
		if len(j.out) > MaxSize {
			return fmt.Errorf("%w: %d bytes, at most %d are possible", ErrLimit, len(j.out), MaxSize)
		}
		if len(j.out) == 0 && f.shape == single {
			return nil // zero
		}
		return take(f.number, j.out)
	}
	if f.shape == repeated {
		return j.array(one)
	}
	if null, err := j.null(); err != nil || null {
		return err
	}
	return one()
}

// array reads a JSON array, or null, with what reads an element.
func (j *transcript) array(read func() error) error {
	if null, err := j.null(); err != nil || null {
		return err
	}
	if err := j.want('['); err != nil {
		return err
	}
	for first := true; ; first = false {
		if more, err := j.more(']', first); err != nil || !more {
			return err
		}
		if err := read(); err != nil {
			return err
		}
	}
}

// object reads a JSON object, or null, with what reads the value of a field.
func (j *transcript) object(l *layout, read func(*field) error) error {
	if null, err := j.null(); err != nil || null {
		return err
	}
	if err := j.want('{'); err != nil {
		return err
	}
	if len(l.fields) > 64 {
		return fmt.Errorf("%w: %s has more than 64 fields", ErrType, l.name)
	}
	var seen uint64 // bits of l.fields
	for at := 0; ; at++ {
		if more, err := j.more('}', seen == 0); err != nil || !more {
			return err
		}
		if err := j.str(); err != nil {
			return err
		}
		if at == len(l.fields) || l.fields[at].json != string(j.token) { // most texts have them in the order of their numbers, and many left out
			at = slices.IndexFunc(l.fields, func(f field) bool { return f.json != "" && f.json == string(j.token) })
		}
		if at < 0 {
			return j.fail("unknown field %q of %s", j.token, l.name)
		}
		f := &l.fields[at]
		if seen&(1<<at) != 0 {
			return j.fail("field %q of %s is there twice", j.token, l.name)
		}
		seen |= 1 << at
		if err := j.want(':'); err != nil {
			return err
		}
		if err := read(f); err != nil {
			return fmt.Errorf("%s.%s: %w", l.name, f.name, err)
		}
	}
}

// structure appends the body of a struct.
func (j *transcript) structure(l *layout, depth int) error {
	if depth > MaxDepth {
		return fmt.Errorf("%w: %s is nested deeper than %d", ErrLimit, l.name, MaxDepth)
	}
	first := len(j.parts)
	err := j.object(l, func(f *field) error {
		i := len(j.parts)
		j.parts = append(j.parts, part{number: f.number, from: len(j.out)})
		err := j.field(f, depth)
		j.parts[i].to = len(j.out)
		return err
	})
	if err == nil {
		j.order(j.parts[first:])
	}
	j.parts = j.parts[:first]
	return err
}

// order puts the parts that out ends with in the order of their numbers.
func (j *transcript) order(parts []part) {
	if slices.IsSortedFunc(parts, func(a, b part) int { return a.number - b.number }) {
		return
	}
	start, end := parts[0].from, len(j.out)
	for last := 0; ; {
		least := -1
		for i, p := range parts { // there are few
			if p.number > last && (least < 0 || p.number < parts[least].number) {
				least = i
			}
		}
		if least < 0 {
			break
		}
		last = parts[least].number
		j.out = append(j.out, j.out[parts[least].from:parts[least].to]...)
	}
	copy(j.out[start:end], j.out[end:])
	j.out = j.out[:end]
}

// field appends a field: nothing for a value that is zero, unless it is behind a pointer.
func (j *transcript) field(f *field, depth int) error {
	switch f.shape {
	case repeated:
		return j.array(func() error {
			_, err := j.value(f, depth)
			return err
		})
	case mapped:
		return fmt.Errorf("%w: maps are not read from JSON", ErrType)
	}
	if null, err := j.null(); err != nil || null {
		return err
	}
	start := len(j.out)
	zero, err := j.value(f, depth)
	if zero && f.shape != optional {
		j.out = j.out[:start]
	}
	return err
}

// value appends a tag and a value, and says whether that is zero, as null is.
func (j *transcript) value(f *field, depth int) (zero bool, err error) {
	null, err := j.null()
	if err != nil {
		return false, err
	}
	switch {
	case null && f.kind != reflect.Struct:
		j.out, err = appendValue(j.out, f, reflect.Zero(f.elem), depth)
		return true, err
	case f.kind == reflect.Struct || f.kind == reflect.String && !f.text: // nearly all there is
		j.out = appendVarint(j.out, uint64(f.number)<<3|uint64(f.wire))
		start := len(j.out)
		switch {
		case null:
		case f.kind == reflect.Struct:
			err = j.structure(f.nested, depth+1)
		default:
			err = j.str()
			j.out = append(j.out, j.token...)
		}
		zero = len(j.out) == start
		j.out = insertLength(j.out, start)
		return zero, err
	}
	v := reflect.New(f.elem).Elem()
	if err := j.scalar(f, v); err != nil {
		return false, err
	}
	j.out, err = appendValue(j.out, f, v, depth)
	return isZero(v), err
}

// scalar reads what is neither a struct nor a mere string.
func (j *transcript) scalar(f *field, v reflect.Value) error {
	if f.text {
		if err := j.str(); err != nil {
			return err
		}
		t, ok := v.Addr().Interface().(encoding.TextUnmarshaler)
		if !ok {
			return fmt.Errorf("%w: %s has MarshalText and no UnmarshalText", ErrType, f.elem)
		}
		return t.UnmarshalText(j.token)
	}
	switch f.kind {
	case reflect.Bool:
		b, err := j.boolean()
		v.SetBool(b)
		return err
	case reflect.Slice:
		if err := j.str(); err != nil {
			return err
		}
		b, err := base64.StdEncoding.AppendDecode(nil, j.token)
		if err != nil {
			return j.fail("%s", err)
		}
		v.SetBytes(b)
		return nil
	case reflect.Array:
		return fmt.Errorf("%w: arrays are not read from JSON", ErrType)
	}
	if err := j.number(); err != nil {
		return err
	}
	var err error
	switch f.kind {
	case reflect.Int:
		var n int64
		n, err = strconv.ParseInt(string(j.token), 10, f.elem.Bits())
		v.SetInt(n)
	case reflect.Uint:
		var n uint64
		n, err = strconv.ParseUint(string(j.token), 10, f.elem.Bits())
		v.SetUint(n)
	default:
		var n float64
		n, err = strconv.ParseFloat(string(j.token), f.elem.Bits())
		v.SetFloat(n)
	}
	if err != nil {
		return j.fail("%s for %s", j.token, f.elem)
	}
	return nil
}

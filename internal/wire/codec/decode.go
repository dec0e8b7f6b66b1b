package codec

import (
	"fmt"
	"math"
	"reflect"
)

// Unmarshal reads b, which Marshal wrote, into the struct that v points to. What was in it is overwritten. On an error
// the struct is zero: half a value is never handed out. The strings of the value share one copy of b; nothing refers to b itself.
func Unmarshal(b []byte, v any) error {
	if len(b) > MaxSize { // before it is copied
		return unmarshal("", v, len(b), 0)
	}
	// One string for the whole input: its substrings become the strings of the value, so that a plan with ten
	// thousand names costs one allocation for all of them.
	return UnmarshalString(string(b), v)
}

// unmarshal reads in, of which there are size bytes, into what v points to. budget is the memory that the value may take.
func unmarshal(in string, v any, size, budget int) error {
	rv := reflect.ValueOf(v)
	if rv.Kind() != reflect.Pointer || rv.IsNil() || rv.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("%w: %T is not a pointer to a struct", ErrType, v)
	}
	rv = rv.Elem()
	rv.SetZero()
	if size > MaxSize {
		return fmt.Errorf("%w: %d bytes, at most %d are possible", ErrLimit, size, MaxSize)
	}
	l, err := layoutOf(rv.Type())
	if err != nil {
		return err
	}
	d := decoder{budget: budget}
	if err := d.readStruct(l, in, rv, 1); err != nil {
		rv.SetZero()
		return err
	}
	return nil
}

type decoder struct {
	budget int // bytes of memory that may still be taken for elements, pointers and byte slices
}

func (d *decoder) take(n int) error {
	if d.budget -= n; d.budget < 0 {
		return fmt.Errorf("%w: the value takes more memory than its %d-fold encoding", ErrLimit, memoryFactor)
	}
	return nil
}

func (d *decoder) readStruct(l *layout, in string, v reflect.Value, depth int) error {
	if depth > MaxDepth {
		return fmt.Errorf("%w: %s is nested deeper than %d", ErrLimit, l.name, MaxDepth)
	}
	next := 0 // index into l.fields of the first field that may still come
	for in != "" {
		number, wire, rest, err := readTag(in)
		if err != nil {
			return fmt.Errorf("%w in %s", err, l.name)
		}
		for next < len(l.fields) && l.fields[next].number < number {
			next++
		}
		if next == len(l.fields) || l.fields[next].number != number {
			return d.notExpected(l, number)
		}
		f := &l.fields[next]
		if wire != f.wire {
			return fmt.Errorf("%w: field %s.%s has wire type %d, want %d", ErrMalformed, l.name, f.name, wire, f.wire)
		}
		fv := v.Field(f.index)
		switch f.shape {
		case single:
			if in, err = d.readValue(f, rest, fv, depth); err == nil && isZero(fv) {
				err = fmt.Errorf("%w: zero value is spelled out", ErrMalformed)
			}
		case optional:
			if err = d.take(int(f.elem.Size())); err == nil {
				p := reflect.New(f.elem)
				in, err = d.readValue(f, rest, p.Elem(), depth)
				fv.Set(p)
			}
		case repeated:
			in, err = d.readElements(f, in, fv, depth)
		case mapped:
			in, err = d.readMap(f, in, fv)
		}
		if err != nil {
			return fmt.Errorf("%s.%s: %w", l.name, f.name, err)
		}
		next++ // what comes again, or out of order, is not expected any more
	}
	return nil
}

// notExpected tells a field that we know, but not here, from one that we do not know.
func (d *decoder) notExpected(l *layout, number int) error {
	for i := range l.fields {
		if l.fields[i].number == number {
			return fmt.Errorf("%w: field %s.%s stands twice or out of order", ErrMalformed, l.name, l.fields[i].name)
		}
	}
	return fmt.Errorf("%w: number %d in %s: the writer is newer than this reader", ErrUnknownField, number, l.name)
}

// readElements reads the run of fields with f's number that in starts with.
func (d *decoder) readElements(f *field, in string, v reflect.Value, depth int) (string, error) {
	n, err := countRun(f, in)
	if err != nil {
		return in, err
	}
	if size := int(f.elem.Size()); size > 0 && n > d.budget/size {
		return in, d.take(d.budget + 1)
	}
	if err := d.take(n * int(f.elem.Size())); err != nil {
		return in, err
	}
	s := reflect.MakeSlice(v.Type(), n, n) // exactly: a plan lives long, slack would too
	for i := range n {
		_, _, rest, err := readTag(in)
		if err != nil {
			return in, err
		}
		if in, err = d.readValue(f, rest, s.Index(i), depth); err != nil {
			return in, err
		}
	}
	v.Set(s)
	return in, nil
}

func (d *decoder) readMap(f *field, in string, v reflect.Value) (string, error) {
	n, err := countRun(f, in)
	if err != nil {
		return in, err
	}
	const entry = 96 // two string headers and their share of the map's tables
	if err := d.take(n * entry); err != nil {
		return in, err
	}
	m := reflect.MakeMapWithSize(v.Type(), n)
	key := reflect.New(v.Type().Key()).Elem()
	val := reflect.New(v.Type().Elem()).Elem()
	last := ""
	for i := range n {
		_, _, rest, err := readTag(in)
		if err != nil {
			return in, err
		}
		var body string
		if body, in, err = readBytes(rest); err != nil {
			return in, err
		}
		k, body, err := readStringField(body, 1)
		if err != nil {
			return in, err
		}
		s, body, err := readStringField(body, 2)
		if err != nil {
			return in, err
		}
		if body != "" {
			return in, fmt.Errorf("%w: a map entry has more than a key and a value", ErrMalformed)
		}
		if i > 0 && k <= last {
			return in, fmt.Errorf("%w: map keys are not in order", ErrMalformed)
		}
		last = k
		key.SetString(k)
		val.SetString(s)
		m.SetMapIndex(key, val)
	}
	v.Set(m)
	return in, nil
}

// readStringField reads the string field with this number if body starts with it; else the string is empty.
func readStringField(body string, number int) (s, rest string, err error) {
	if body == "" || body[0] != byte(number<<3|wireBytes) {
		return "", body, nil
	}
	s, rest, err = readBytes(body[1:])
	if err == nil && s == "" {
		err = fmt.Errorf("%w: zero value is spelled out", ErrMalformed)
	}
	return s, rest, err
}

// readValue reads one value of f's kind into v and returns what follows it.
func (d *decoder) readValue(f *field, in string, v reflect.Value, depth int) (string, error) {
	switch f.kind {
	case reflect.Bool:
		n, rest, err := readVarint(in)
		if err == nil && n > 1 {
			err = fmt.Errorf("%w: %d is not a bool", ErrMalformed, n)
		}
		v.SetBool(n == 1)
		return rest, err
	case reflect.Int:
		u, rest, err := readVarint(in)
		n := int64(u>>1) ^ -int64(u&1)
		if err == nil && v.OverflowInt(n) {
			err = fmt.Errorf("%w: %d does not fit %s", ErrMalformed, n, f.elem)
		}
		v.SetInt(n)
		return rest, err
	case reflect.Uint:
		n, rest, err := readVarint(in)
		if err == nil && v.OverflowUint(n) {
			err = fmt.Errorf("%w: %d does not fit %s", ErrMalformed, n, f.elem)
		}
		v.SetUint(n)
		return rest, err
	case reflect.Float32:
		if len(in) < 4 {
			return in, errShort()
		}
		b := uint32(in[0]) | uint32(in[1])<<8 | uint32(in[2])<<16 | uint32(in[3])<<24
		return in[4:], setFloat(f, v, float64(math.Float32frombits(b)))
	case reflect.Float64:
		if len(in) < 8 {
			return in, errShort()
		}
		lo := uint64(in[0]) | uint64(in[1])<<8 | uint64(in[2])<<16 | uint64(in[3])<<24
		hi := uint64(in[4]) | uint64(in[5])<<8 | uint64(in[6])<<16 | uint64(in[7])<<24
		return in[8:], setFloat(f, v, math.Float64frombits(lo|hi<<32))
	}
	body, rest, err := readBytes(in)
	if err != nil {
		return in, err
	}
	switch f.kind {
	case reflect.String:
		v.SetString(body)
	case reflect.Slice:
		if err := d.take(len(body)); err != nil {
			return in, err
		}
		if body != "" {
			v.SetBytes([]byte(body))
		}
	case reflect.Array:
		if len(body) != v.Len() {
			return in, fmt.Errorf("%w: %d bytes for %s", ErrMalformed, len(body), f.elem)
		}
		for i := range len(body) {
			v.Index(i).SetUint(uint64(body[i]))
		}
	default: // reflect.Struct
		return rest, d.readStruct(f.nested, body, v, depth+1)
	}
	return rest, nil
}

func setFloat(f *field, v reflect.Value, x float64) error {
	if math.IsNaN(x) {
		return errNaN(f)
	}
	v.SetFloat(x)
	return nil
}

// countRun returns how many fields with f's number stand at the start of in.
func countRun(f *field, in string) (int, error) {
	n := 0
	for in != "" {
		number, wire, rest, err := readTag(in)
		if err != nil {
			return 0, err
		}
		if number != f.number || wire != f.wire {
			break
		}
		if in, err = skip(wire, rest); err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}

func skip(wire uint8, in string) (string, error) {
	switch wire {
	case wireVarint:
		_, rest, err := readVarint(in)
		return rest, err
	case wireFixed64, wireFixed32:
		n := 8
		if wire == wireFixed32 {
			n = 4
		}
		if len(in) < n {
			return in, errShort()
		}
		return in[n:], nil
	default:
		_, rest, err := readBytes(in)
		return rest, err
	}
}

func readTag(in string) (number int, wire uint8, rest string, err error) {
	t, rest, err := readVarint(in)
	if err != nil {
		return 0, 0, in, err
	}
	wire = uint8(t & 7)
	switch wire {
	case wireVarint, wireFixed64, wireBytes, wireFixed32:
	default:
		return 0, 0, in, fmt.Errorf("%w: wire type %d", ErrMalformed, wire)
	}
	if t>>3 == 0 || t>>3 > 1<<20 {
		return 0, 0, in, fmt.Errorf("%w: field number %d", ErrMalformed, t>>3)
	}
	return int(t >> 3), wire, rest, nil
}

func readBytes(in string) (body, rest string, err error) {
	n, rest, err := readVarint(in)
	if err != nil {
		return "", in, err
	}
	if n > uint64(len(rest)) {
		return "", in, errShort()
	}
	return rest[:n], rest[n:], nil
}

// readVarint reads an unsigned LEB128 number of at most 64 bits, in its shortest form only.
func readVarint(in string) (uint64, string, error) {
	var v uint64
	for i := range len(in) {
		b := in[i]
		if i == 9 && b > 1 {
			return 0, in, fmt.Errorf("%w: number of more than 64 bits", ErrMalformed)
		}
		v |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			if b == 0 && i > 0 {
				return 0, in, fmt.Errorf("%w: number is not in its shortest form", ErrMalformed)
			}
			return v, in[i+1:], nil
		}
	}
	return 0, in, errShort()
}

func errShort() error { return fmt.Errorf("%w: it ends too early", ErrMalformed) }

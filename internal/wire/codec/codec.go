// Package codec is the compact spelling of plan values on the control stream, on disk and in certificates.
//
// In: a struct whose exported fields all carry `plan:"N"` tags. Out: bytes, and back. It is pure and reflective: it
// knows the tags and no particular type, so that a new field of the plan needs no new code here.
//
// The format is that of Protocol Buffers (varint tags "number<<3 | wire type", length-delimited structs), with what
// a content-addressed, fail-closed wire needs on top:
//
//   - One value has one encoding. Fields stand in ascending order, zero values are left out, map keys are sorted,
//     varints are minimal; the decoder refuses every other spelling. So equal hashes mean equal values, and
//     Marshal(Unmarshal(b)) == b for every b that is accepted.
//   - Whatever the decoder does not understand is an error: an unknown field number, a repeated field that may stand
//     once, a wrong wire type, a number that does not fit, bytes that are left over. A condition that is dropped silently
//     is how a policy opens up (CVE-2022-21679).
//   - Depth and memory are bounded by the length of the input, whoever wrote it.
//
// Kinds: bool (varint 1), int (zigzag varint), uint (varint), float (IEEE 754 bits, fixed), string, []byte and [N]byte
// (length-delimited), struct (length-delimited), *T (there when non-nil, even when it points to a zero value), []T (one
// field for each element, zero elements included), map[string]string (one {1: key, 2: value} struct for each entry).
// Nil and empty slices and maps are the same value: both come back as nil.
//
// The package keeps no state but a cache of what reflection found for each type.
package codec

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"reflect"
	"slices"
)

// Limits of both directions.
const (
	// MaxDepth is how deep structs may be nested.
	MaxDepth = 64
	// MaxSize is the greatest length of one encoded value, in bytes.
	MaxSize = 64 << 20
)

// A decoded value may take memoryFloor bytes plus memoryFactor times its encoded length: an empty element of a repeated
// field costs two bytes on the wire and a whole struct in memory, and the writer must not decide how much that is.
const (
	memoryFloor  = 1 << 20
	memoryFactor = 64
)

// The causes of errors, for errors.Is.
var (
	// ErrType says that a Go type cannot be encoded: our own mistake, found by the first test that uses the type.
	ErrType = errors.New("codec: type cannot be encoded")
	// ErrMalformed says that bytes are not the encoding of a value of the type.
	ErrMalformed = errors.New("codec: malformed")
	// ErrUnknownField says that the writer knows a field that we do not.
	ErrUnknownField = errors.New("codec: unknown field")
	// ErrLimit says that a value is too deep or too large.
	ErrLimit = errors.New("codec: limit exceeded")
)

// Wire types, with the numbers of Protocol Buffers.
const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
	wireFixed32 = 5
)

// Marshal returns the encoding of the struct v, or of the struct that v points to.
func Marshal(v any) ([]byte, error) { return Append(nil, v) }

// Append appends the encoding of v to dst. On an error dst is returned as it was.
func Append(dst []byte, v any) ([]byte, error) {
	rv := reflect.ValueOf(v)
	if rv.Kind() == reflect.Pointer {
		rv = rv.Elem()
	}
	if rv.Kind() != reflect.Struct {
		return dst, fmt.Errorf("%w: %T is not a struct", ErrType, v)
	}
	s, err := layoutOf(rv.Type())
	if err != nil {
		return dst, err
	}
	out, err := appendStruct(dst, s, rv, 1)
	if err != nil {
		return dst, err
	}
	if len(out)-len(dst) > MaxSize {
		return dst, fmt.Errorf("%w: %T takes %d bytes, at most %d are possible", ErrLimit, v, len(out)-len(dst), MaxSize)
	}
	return out, nil
}

func appendStruct(dst []byte, s *layout, v reflect.Value, depth int) ([]byte, error) {
	if depth > MaxDepth {
		return dst, fmt.Errorf("%w: %s is nested deeper than %d", ErrLimit, s.name, MaxDepth)
	}
	var err error
	for i := range s.fields {
		f := &s.fields[i]
		fv := v.Field(f.index)
		switch f.shape {
		case single:
			if !isZero(fv) {
				dst, err = appendValue(dst, f, fv, depth)
			}
		case optional:
			if !fv.IsNil() {
				dst, err = appendValue(dst, f, fv.Elem(), depth)
			}
		case repeated:
			for j := range fv.Len() {
				if dst, err = appendValue(dst, f, fv.Index(j), depth); err != nil {
					break
				}
			}
		case mapped:
			dst = appendMap(dst, f, fv)
		}
		if err != nil {
			return dst, err
		}
	}
	return dst, nil
}

// appendValue writes one tag and value.
func appendValue(dst []byte, f *field, v reflect.Value, depth int) ([]byte, error) {
	dst = appendVarint(dst, uint64(f.number)<<3|uint64(f.wire))
	switch f.kind {
	case reflect.Bool:
		if v.Bool() {
			return append(dst, 1), nil
		}
		return append(dst, 0), nil
	case reflect.Int:
		n := v.Int()
		return appendVarint(dst, uint64(n<<1)^uint64(n>>63)), nil
	case reflect.Uint:
		return appendVarint(dst, v.Uint()), nil
	case reflect.Float32:
		if math.IsNaN(v.Float()) {
			return dst, errNaN(f)
		}
		b := math.Float32bits(float32(v.Float()))
		return append(dst, byte(b), byte(b>>8), byte(b>>16), byte(b>>24)), nil
	case reflect.Float64:
		if math.IsNaN(v.Float()) {
			return dst, errNaN(f)
		}
		b := math.Float64bits(v.Float())
		return append(dst, byte(b), byte(b>>8), byte(b>>16), byte(b>>24), byte(b>>32), byte(b>>40), byte(b>>48), byte(b>>56)), nil
	case reflect.String:
		s := v.String()
		return append(appendVarint(dst, uint64(len(s))), s...), nil
	case reflect.Slice:
		b := v.Bytes()
		return append(appendVarint(dst, uint64(len(b))), b...), nil
	case reflect.Array:
		dst = appendVarint(dst, uint64(v.Len()))
		for i := range v.Len() {
			dst = append(dst, byte(v.Index(i).Uint()))
		}
		return dst, nil
	default: // reflect.Struct: layoutOf lets nothing else through
		start := len(dst)
		dst, err := appendStruct(dst, f.nested, v, depth+1)
		if err != nil {
			return dst, err
		}
		return insertLength(dst, start), nil
	}
}

// insertLength puts the length of what begins at start before it: it comes first but is known last.
func insertLength(dst []byte, start int) []byte {
	n := len(dst) - start
	var room [10]byte
	prefix := appendVarint(room[:0], uint64(n))
	dst = append(dst, prefix...)
	copy(dst[start+len(prefix):], dst[start:start+n])
	copy(dst[start:], prefix)
	return dst
}

// errNaN refuses what is not equal to itself: no number of a plan may be that.
func errNaN(f *field) error { return fmt.Errorf("%w: field %s is not a number", ErrMalformed, f.name) }

func appendMap(dst []byte, f *field, v reflect.Value) []byte {
	if v.Len() == 0 {
		return dst
	}
	keys := make([]string, 0, v.Len())
	for _, k := range v.MapKeys() {
		keys = append(keys, k.String())
	}
	slices.Sort(keys)
	key := reflect.New(v.Type().Key()).Elem()
	for _, k := range keys {
		key.SetString(k)
		val := v.MapIndex(key).String()
		n := stringFieldLen(k) + stringFieldLen(val)
		dst = appendVarint(dst, uint64(f.number)<<3|wireBytes)
		dst = appendVarint(dst, uint64(n))
		dst = appendStringField(dst, 1, k)
		dst = appendStringField(dst, 2, val)
	}
	return dst
}

func stringFieldLen(s string) int {
	if s == "" {
		return 0
	}
	return 1 + varintLen(uint64(len(s))) + len(s)
}

func appendStringField(dst []byte, number int, s string) []byte {
	if s == "" {
		return dst
	}
	dst = append(dst, byte(number<<3|wireBytes))
	dst = appendVarint(dst, uint64(len(s)))
	return append(dst, s...)
}

func appendVarint(dst []byte, v uint64) []byte {
	for v >= 0x80 {
		dst = append(dst, byte(v)|0x80)
		v >>= 7
	}
	return append(dst, byte(v))
}

func varintLen(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

// isZero is what the encoder leaves out. Unlike reflect.Value.IsZero it knows that an empty slice is a nil one, and
// that minus zero is not zero.
func isZero(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	case reflect.Float32, reflect.Float64:
		return math.Float64bits(v.Float()) == 0
	case reflect.Struct:
		for i := range v.NumField() {
			if !isZero(v.Field(i)) {
				return false
			}
		}
		return true
	default:
		return v.IsZero()
	}
}

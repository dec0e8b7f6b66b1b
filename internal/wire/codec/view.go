package codec

import (
	"iter"
	"math"
)

// UnmarshalString is Unmarshal of a string whose parts become the strings of the value: they are not copied, and the value keeps
// in alive.
func UnmarshalString(in string, v any) error {
	return unmarshal(in, v, len(in), memoryFloor+memoryFactor*len(in))
}

// Reopen is UnmarshalString of what was accepted once, alone or as a part of a greater value, or was written by Marshal here: its memory is
// not bounded again. A part may take more than its share of what was allowed for the whole.
func Reopen(in string, v any) error { return unmarshal(in, v, len(in), math.MaxInt) }

// Fields yields the fields of a struct's encoding that were accepted by Unmarshal: the number of each and, for what is
// length-delimited (structs, strings, bytes), the encoding of the value; "" for others. A repeated field comes once for each
// element. Nothing is decoded. What is malformed ends the sequence.
func Fields(in string) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		for in != "" {
			number, wire, rest, err := readTag(in)
			if err != nil {
				return
			}
			body := ""
			if wire == wireBytes {
				body, in, err = readBytes(rest)
			} else {
				in, err = skip(wire, rest)
			}
			if err != nil || !yield(number, body) {
				return
			}
		}
	}
}

// AppendField appends a length-delimited field whose value is encoded already. Whoever calls it keeps the order of the fields.
func AppendField(dst []byte, number int, body string) []byte {
	dst = appendVarint(dst, uint64(number)<<3|wireBytes)
	dst = appendVarint(dst, uint64(len(body)))
	return append(dst, body...)
}

package route

import (
	"bytes"
	"sync"
)

// scratch is the room for one decoded parameter. nil when nothing had to be decoded.
type scratch struct{ b []byte }

// decoded holds the scratches of requests with percent-encoded parameters; the others need none.
var decoded = sync.Pool{New: func() any { return new(scratch) }}

func (s *scratch) free() {
	if s != nil && cap(s.b) <= 4096 {
		decoded.Put(s)
	}
}

// parameter returns the first value of a query parameter, as people see it in their program: split at '&', with
// "%xx" decoded and '+' a space (URL Standard, application/x-www-form-urlencoded parsing). A '%' that two
// hexadecimal digits do not follow stands for itself. ';' does not separate. "a" without '=' is there, and empty.
//
// The value points into query or into the scratch, which the caller frees after use.
func parameter(query []byte, name string) (value []byte, s *scratch, found bool) {
	for len(query) > 0 {
		var pair []byte
		if i := bytes.IndexByte(query, '&'); i >= 0 {
			pair, query = query[:i], query[i+1:]
		} else {
			pair, query = query, nil
		}
		if len(pair) == 0 {
			continue
		}
		key, val := pair, []byte(nil)
		if i := bytes.IndexByte(pair, '='); i >= 0 {
			key, val = pair[:i], pair[i+1:]
		}
		if !decodesTo(key, name) {
			continue
		}
		if bytes.IndexByte(val, '%') < 0 && bytes.IndexByte(val, '+') < 0 {
			return val, nil, true
		}
		s := decoded.Get().(*scratch)
		s.b = s.b[:0]
		for len(val) > 0 {
			var c byte
			c, val = next(val)
			s.b = append(s.b, c)
		}
		return s.b, s, true
	}
	return nil, nil, false
}

// AppendQuery appends the first value of a query parameter, decoded, to dst, and says whether the parameter is there.
func AppendQuery(dst, query []byte, name string) (out []byte, found bool) {
	v, s, found := parameter(query, name)
	dst = append(dst, v...)
	s.free()
	return dst, found
}

// decodesTo reports whether the encoded key stands for name.
func decodesTo(key []byte, name string) bool {
	for i := range len(name) {
		if len(key) == 0 {
			return false
		}
		var c byte
		if c, key = next(key); c != name[i] {
			return false
		}
	}
	return len(key) == 0
}

// next takes one decoded byte off v, which is not empty.
func next(v []byte) (byte, []byte) {
	switch {
	case v[0] == '+':
		return ' ', v[1:]
	case v[0] == '%' && len(v) > 2:
		hi, ok1 := unhex(v[1])
		lo, ok2 := unhex(v[2])
		if ok1 && ok2 {
			return hi<<4 | lo, v[3:]
		}
	}
	return v[0], v[1:]
}

func unhex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

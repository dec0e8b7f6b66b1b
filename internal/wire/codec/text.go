package codec

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// text reads the tokens of one JSON text (RFC 8259). It holds a block of what it reads and the last string or number, however
// long the text is, and makes no garbage.
type text struct {
	in    io.Reader
	block [4096]byte
	rest  []byte // of block: what was not looked at yet
	read  int64  // bytes of in, rest included
	err   error  // of in
	token []byte // the last string, decoded, or the last number; good until the next one
}

// fail is an error with the place that was reached.
func (t *text) fail(format string, args ...any) error {
	return fmt.Errorf("%w: %s at byte %d", ErrMalformed, fmt.Sprintf(format, args...), t.read-int64(len(t.rest)))
}

// peek returns the next byte and leaves it there.
func (t *text) peek() (byte, error) {
	for len(t.rest) == 0 {
		if t.err != nil {
			if errors.Is(t.err, io.EOF) {
				return 0, io.ErrUnexpectedEOF
			}
			return 0, t.err
		}
		var n int
		n, t.err = t.in.Read(t.block[:])
		t.rest = t.block[:n]
		t.read += int64(n)
	}
	return t.rest[0], nil
}

// next takes a byte.
func (t *text) next() (byte, error) {
	c, err := t.peek()
	if err == nil {
		t.rest = t.rest[1:]
	}
	return c, err
}

// begin returns the first byte of the next token and leaves it there.
func (t *text) begin() (byte, error) {
	for {
		c, err := t.peek()
		if err != nil || c != ' ' && c != '\t' && c != '\n' && c != '\r' {
			return c, err
		}
		t.rest = t.rest[1:]
	}
}

// end reports an error unless nothing but white space follows.
func (t *text) end() error {
	_, err := t.begin()
	switch {
	case err == nil:
		return t.fail("something follows its end")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil
	}
	return err
}

// want takes a token of one byte.
func (t *text) want(c byte) error {
	got, err := t.begin()
	if err != nil {
		return err
	}
	if got != c {
		return t.fail("%q instead of %c", got, c)
	}
	t.rest = t.rest[1:]
	return nil
}

// more reports whether another element follows in what ends with end; the first one has no comma before it.
func (t *text) more(end byte, first bool) (bool, error) {
	c, err := t.begin()
	switch {
	case err != nil:
		return false, err
	case c == end:
		t.rest = t.rest[1:]
		return false, nil
	case first:
		return true, nil
	}
	return true, t.want(',')
}

// null takes the word null, if it is there.
func (t *text) null() (bool, error) {
	if c, err := t.begin(); err != nil || c != 'n' {
		return false, err
	}
	return true, t.word("null")
}

// boolean takes true or false.
func (t *text) boolean() (bool, error) {
	c, err := t.begin()
	if err != nil {
		return false, err
	}
	if c == 't' {
		return true, t.word("true")
	}
	return false, t.word("false")
}

func (t *text) word(w string) error {
	for i := range len(w) {
		if c, err := t.peek(); err != nil {
			return err
		} else if c != w[i] {
			return t.fail("%q instead of %s", c, w)
		}
		t.rest = t.rest[1:]
	}
	return nil
}

// number takes a number into token: its grammar is RFC 8259, section 6, which is narrower than that of strconv.
func (t *text) number() error {
	if _, err := t.begin(); err != nil {
		return err
	}
	t.token = t.token[:0]
	t.take('-', '-')
	if !t.take('0', '0') && !t.digits() {
		return t.noDigit()
	}
	if t.take('.', '.') && !t.digits() {
		return t.noDigit()
	}
	if t.take('e', 'e') || t.take('E', 'E') {
		if !t.take('-', '-') {
			t.take('+', '+')
		}
		if !t.digits() {
			return t.noDigit()
		}
	}
	return nil
}

func (t *text) noDigit() error {
	c, err := t.peek()
	if err != nil {
		return err
	}
	return t.fail("%q instead of a digit", c)
}

// take takes one byte of a number, if it lies between two.
func (t *text) take(from, to byte) bool {
	c, err := t.peek()
	if err != nil || c < from || c > to {
		return false
	}
	t.token, t.rest = append(t.token, c), t.rest[1:]
	return true
}

func (t *text) digits() bool {
	if !t.take('0', '9') {
		return false
	}
	for t.take('0', '9') {
	}
	return true
}

// str takes a string into token. What is not UTF-8 is refused, not mended: a name would become another one.
func (t *text) str() error {
	if err := t.want('"'); err != nil {
		return err
	}
	t.token = t.token[:0]
	for {
		c, err := t.next()
		switch {
		case err != nil:
			return err
		case c == '"':
			if !utf8.Valid(t.token) {
				return t.fail("a string that is not UTF-8")
			}
			return nil
		case c == '\\':
			if err := t.escape(); err != nil {
				return err
			}
		case c < ' ':
			return t.fail("control character %q in a string", c)
		default:
			t.token = append(t.token, c)
		}
	}
}

// escape takes what follows a backslash (RFC 8259, section 7).
func (t *text) escape() error {
	c, err := t.next()
	if err != nil {
		return err
	}
	switch c {
	case '"', '\\', '/':
	case 'b':
		c = '\b'
	case 'f':
		c = '\f'
	case 'n':
		c = '\n'
	case 'r':
		c = '\r'
	case 't':
		c = '\t'
	case 'u':
		r, err := t.unit()
		if err == nil && utf16.IsSurrogate(r) {
			var second rune
			if err = t.word(`\u`); err == nil {
				second, err = t.unit()
			}
			if r = utf16.DecodeRune(r, second); err == nil && r == utf8.RuneError {
				err = t.fail("half a surrogate pair")
			}
		}
		t.token = utf8.AppendRune(t.token, r)
		return err
	default:
		return t.fail(`\%c in a string`, c)
	}
	t.token = append(t.token, c)
	return nil
}

// unit takes four hexadecimal digits.
func (t *text) unit() (rune, error) {
	var hex [4]byte
	for i := range hex {
		var err error
		if hex[i], err = t.next(); err != nil {
			return 0, err
		}
	}
	n, err := strconv.ParseUint(string(hex[:]), 16, 16)
	if err != nil {
		return 0, t.fail(`\u%q in a string`, hex[:])
	}
	return rune(n), nil
}

package h1

import (
	"bytes"
	"encoding/binary"
	"math/bits"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

// nameByte maps a byte of a field name to its lower-case form, or to 0 when no name has it (RFC 9110 section 5.6.2).
var nameByte = func() (t [256]byte) {
	for c := range 256 {
		b := [1]byte{byte(c)}
		if message.IsToken(b[:]) {
			message.Lower(b[:])
			t[c] = b[0]
		}
	}
	return t
}()

func isTokenByte(c byte) bool { return nameByte[c] != 0 }

var (
	crlfcrlf = []byte("\r\n\r\n")
)

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// controls has the high bit of the lowest byte of x that is below 0x20 or 0x7f; bits above that one are not exact.
func controls(x uint64) uint64 {
	del := x ^ 0x7f*ones
	return ((x-0x20*ones)&^x | (del-ones)&^del) & highs
}

// valueEnd returns the index of the first byte of b[i:] that may not stand in a value (RFC 9110 section 5.5: VCHAR,
// obs-text, SP, HTAB), or len(b). It looks at sixteen bytes at a time.
func valueEnd(b []byte, i int) int {
	for i+16 <= len(b) {
		w := b[i : i+16 : i+16]
		lo, hi := controls(binary.LittleEndian.Uint64(w)), controls(binary.LittleEndian.Uint64(w[8:]))
		switch {
		case lo|hi == 0:
			i += 16
			continue
		case lo != 0:
			i += bits.TrailingZeros64(lo) / 8
		default:
			i += 8 + bits.TrailingZeros64(hi)/8
		}
		if b[i] != '\t' {
			return i
		}
		i++
	}
	for ; i < len(b); i++ {
		if c := b[i]; c < 0x20 && c != '\t' || c == 0x7f {
			break
		}
	}
	return i
}

// head is what the fields that belong to one hop said.
type head struct {
	fields     message.Fields
	maxFields  int
	request    bool
	host       []byte
	length     int64 // -1: none
	upgrade    []byte
	connection [4][]byte
	nConn      int
	hasHost    bool
	chunked    bool
	coded      bool
	close      bool
	keepAlive  bool
	upgrades   bool // Connection: upgrade
	nominated  bool // Connection has names that we do not know
	trailers   bool // TE: trailers
	expect     bool
}

var (
	teName       = []byte("te")
	trailersName = []byte("trailers")
)

// readFields reads the lines of a header section up to and with its empty line, and returns how many bytes they are.
func (h *head) readFields(b []byte) (int, error) {
	h.length = -1
	fields, left := h.fields, h.maxFields
	i := 0
	for {
		start := i
		for i < len(b) {
			c := nameByte[b[i]]
			if c == 0 {
				break
			}
			b[i] = c
			i++
		}
		if i == start || i == len(b) || b[i] != ':' {
			if err := noName(b[start:], i-start); err != nil {
				return 0, err
			}
			break
		}
		name := b[start:i]
		if i++; i < len(b) && b[i] == ' ' {
			i++
		}
		start = i
		i = valueEnd(b, i)
		if i+1 >= len(b) || b[i] != '\r' || b[i+1] != '\n' {
			return 0, noValue(b[i:])
		}
		value := b[start:i]
		if len(value) > 0 && (isSpace(value[0]) || isSpace(value[len(value)-1])) {
			value = trim(value)
		}
		i += 2
		if left--; left < 0 {
			return 0, ErrManyFields
		}
		if len(name) < len(hopFields) && hopFields[len(name)]&(1<<(name[0]&31)) != 0 {
			keep, err := h.field(name, value)
			if err != nil {
				return 0, err
			}
			if !keep {
				continue
			}
		}
		fields = append(fields, message.Field{Name: name, Value: value})
	}
	h.fields = fields
	if h.nominated {
		if err := h.removeNominated(); err != nil {
			return 0, err
		}
	}
	if h.trailers {
		h.fields = append(h.fields, message.Field{Name: teName, Value: trailersName})
	}
	return i + 2, nil
}

// noName says what it means that b does not start with a name and a colon, but with n bytes of a name. It is nil for the
// line that ends the section.
func noName(b []byte, n int) error {
	switch {
	case n == len(b):
		return errShort
	case n > 0:
		return ErrFieldName // also white space before the colon, RFC 9112 section 5.1
	case b[0] == ' ' || b[0] == '\t':
		return ErrFold // RFC 9112 section 5.2
	case b[0] == '\n':
		return ErrLineEnd
	case b[0] != '\r':
		return ErrFieldName
	case len(b) == 1:
		return errShort
	case b[1] != '\n':
		return ErrLineEnd
	}
	return nil
}

// noValue says what it means that b, after a value, does not start with CRLF.
func noValue(b []byte) error {
	switch {
	case len(b) == 0 || len(b) == 1 && b[0] == '\r':
		return errShort
	case b[0] == '\n':
		return ErrLineEnd
	}
	return ErrFieldValue
}

// hopFields has, for each length of a name, the first letters of the fields that head.field takes: most others need no
// comparison with any of them.
var hopFields = func() (t [20]uint32) {
	for _, name := range [...]string{"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "expect", "keep-alive",
		"proxy-connection", "http2-settings"} {
		t[len(name)] |= 1 << (name[0] & 31)
	}
	return t
}()

// field takes a field that belongs to one hop, or reports that it is to be kept.
func (h *head) field(name, value []byte) (keep bool, err error) {
	switch string(name) {
	case "host":
		if !h.request {
			return true, nil
		}
		if h.hasHost {
			return false, ErrHosts // RFC 9112 section 3.2
		}
		h.host, h.hasHost = value, true
	case "content-length":
		// RFC 9112 section 6.3 lets a recipient accept a list of equal values; nobody honest sends one.
		if h.length >= 0 {
			return false, ErrLength
		}
		n, ok := message.ParseLength(value)
		if !ok {
			return false, ErrLength
		}
		h.length = n
	case "transfer-encoding":
		if h.coded {
			return false, ErrCoding
		}
		h.coded = true
		if !equalFold(value, "chunked") {
			if message.IsToken(value) {
				return false, ErrCodingName // RFC 9112 section 6.1
			}
			return false, ErrCoding
		}
		h.chunked = true
	case "connection":
		return false, h.readConnection(value)
	case "upgrade":
		if h.upgrade != nil || !isProtocol(value) {
			h.upgrade = value[:0] // several: none is chosen, and Upgrade may always be ignored (RFC 9110 section 7.8)
			return false, nil
		}
		h.upgrade = value
	case "te":
		if h.request && hasElement(value, "trailers") {
			h.trailers = true
		}
	case "expect":
		if !h.request {
			return true, nil
		}
		if !equalFold(value, "100-continue") {
			return false, ErrExpect // RFC 9110 section 10.1.1
		}
		h.expect = true
	case "keep-alive", "proxy-connection", "http2-settings":
	default:
		return true, nil
	}
	return false, nil
}

func (h *head) readConnection(v []byte) error {
	for rest := v; ; {
		var e []byte
		var more bool
		e, rest, more = cutComma(rest)
		switch {
		case len(e) == 0:
		case equalFold(e, "close"):
			h.close = true
		case equalFold(e, "keep-alive"):
			h.keepAlive = true
		case equalFold(e, "upgrade"):
			h.upgrades = true
		default:
			h.nominated = true
		}
		if !more {
			break
		}
	}
	if h.nConn == len(h.connection) {
		return ErrConnection
	}
	h.connection[h.nConn] = v
	h.nConn++
	return nil
}

// removeNominated removes the fields that Connection names (RFC 9110 section 7.6.1), except those whose removal is an
// attack on what comes after us rather than a hop's business.
func (h *head) removeNominated() error {
	count := 0
	for _, v := range h.connection[:h.nConn] {
		for rest, more := v, true; more; {
			var e []byte
			e, rest, more = cutComma(rest)
			if len(e) == 0 {
				continue
			}
			if count++; count > 16 || !message.IsToken(e) {
				return ErrConnection
			}
			message.Lower(e)
			if endToEnd(e) {
				continue
			}
			s, n := h.fields, 0
			for i := range s {
				if !bytes.Equal(s[i].Name, e) {
					s[n] = s[i]
					n++
				}
			}
			clear(s[n:])
			h.fields = s[:n]
		}
	}
	return nil
}

// endToEnd names fields that a client may not have removed by nominating them: they carry identity, content or the
// trail that proxies leave (CVE-2021-33197, CVE-2024-45410). name is lower-case.
func endToEnd(name []byte) bool {
	switch string(name) {
	case "authorization", "cookie", "set-cookie", "content-type", "content-encoding", "content-range", "range", "cache-control",
		"date", "via", "forwarded", "accept", "user-agent", "origin", "traceparent", "tracestate", "b3", "x-request-id", "x-real-ip",
		"grpc-timeout", "grpc-status":
		return true
	}
	for _, p := range [...]string{"x-forwarded-", "x-envoy-", "x-malha-", "x-b3-", "l5d-"} {
		if len(name) > len(p) && string(name[:len(p)]) == p {
			return true
		}
	}
	return false
}

// isProtocol reports whether an Upgrade value is one protocol name or name/version.
func isProtocol(v []byte) bool {
	name, version, ok := bytes.Cut(v, []byte{'/'})
	return message.IsToken(name) && (!ok || message.IsToken(version))
}

// cutComma takes the first element of a comma-separated list, without white space around it.
func cutComma(v []byte) (e, rest []byte, more bool) {
	if i := bytes.IndexByte(v, ','); i >= 0 {
		return trim(v[:i]), v[i+1:], true
	}
	return trim(v), nil, false
}

// hasElement reports whether a list has an element, whatever its parameters.
func hasElement(v []byte, want string) bool {
	for more := true; more; {
		var e []byte
		e, v, more = cutComma(v)
		if i := bytes.IndexByte(e, ';'); i >= 0 {
			e = trim(e[:i])
		}
		if equalFold(e, want) {
			return true
		}
	}
	return false
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' }

// trim removes optional white space (SP and HTAB, RFC 9110 section 5.6.3) from both ends.
func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// equalFold compares with an ASCII lower-case string, ignoring the case of b.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i := range b {
		c := b[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

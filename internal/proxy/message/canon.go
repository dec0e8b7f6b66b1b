package message

import (
	"bytes"
	"errors"
	"net/netip"
)

// Errors of the canonicaliser. A codec answers 400 (HTTP/1) or resets the stream (HTTP/2).
var (
	// ErrPath is a request path that has no canonical form.
	ErrPath = errors.New("request path is not valid")
	// ErrAuthority is a Host or :authority that has no canonical form.
	ErrAuthority = errors.New("authority is not valid")
)

// Classes of bytes, one bit each.
const (
	classToken   = 1 << iota // tchar of RFC 9110 section 5.6.2
	classLower               // tchar without A-Z (RFC 9113 section 8.2.1)
	classValue               // may stand in a field value: VCHAR, obs-text, SP, HTAB (RFC 9110 section 5.5)
	classPath                // stands in a path as it is, and can begin no escape or dot segment
	classQuery               // may stand in a query
	classHost                // may stand in a registered name as we take it: no escapes, no sub-delims
	classUnres               // unreserved of RFC 3986 section 2.3
	classSpecial             // may stand in a path, but makes CanonicalPath look closer: % \ .
)

// classes is never written after it is made.
var classes = func() (t [256]uint8) {
	for c := range 256 {
		b := byte(c)
		alnum := b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
		if alnum {
			t[c] |= classToken | classLower | classHost | classUnres
		}
		if b >= 'A' && b <= 'Z' {
			t[c] &^= classLower
		}
		switch b {
		case '!', '#', '$', '%', '&', '\'', '*', '+', '-', '.', '^', '_', '`', '|', '~':
			t[c] |= classToken | classLower
		}
		switch b {
		case '-', '.', '_', '~':
			t[c] |= classHost | classUnres
		}
		if b == '\t' || b >= ' ' && b != 0x7f {
			t[c] |= classValue
		}
		if b > ' ' && b < 0x7f && b != '#' { // bytes above are to be escaped (RFC 3986 section 2)
			t[c] |= classQuery
			switch b {
			case '?':
			case '%', '\\', '.':
				t[c] |= classSpecial
			default:
				t[c] |= classPath
			}
		}
	}
	return t
}()

// What bytes mean to CanonicalPath: nothing, no path, a dot, or a reason to look closer.
const (
	pathBad = 1 << iota
	pathDot
	pathSpecial
)

var pathBytes = func() (t [256]uint8) {
	for c := range 256 {
		switch {
		case c == '.':
			t[c] = pathDot
		case classes[c]&classSpecial != 0:
			t[c] = pathSpecial
		case classes[c]&classPath == 0:
			t[c] = pathBad
		}
	}
	return t
}()

var slashDot = []byte("/.")

// IsToken says whether b is a token (RFC 9110 section 5.6.2): a method or a field name.
func IsToken(b []byte) bool { return len(b) > 0 && all(b, classToken) }

// IsLowerToken says whether b is a token without upper-case letters: a field name of HTTP/2 (RFC 9113 section 8.2.1).
func IsLowerToken(b []byte) bool { return len(b) > 0 && all(b, classLower) }

// IsValue says whether b is a field value: no control bytes but tabs inside, no white space around it
// (RFC 9110 section 5.5, RFC 9113 section 8.2.1). The empty value is one.
func IsValue(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	if first, last := b[0], b[len(b)-1]; first == ' ' || first == '\t' || last == ' ' || last == '\t' {
		return false
	}
	return all(b, classValue)
}

func all(b []byte, class uint8) bool {
	for _, c := range b {
		class &= classes[c]
	}
	return class != 0
}

// Lower makes ASCII letters lower-case, in place.
func Lower(b []byte) {
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + ('a' - 'A')
		}
	}
}

// SplitTarget takes a request target in origin-form apart (RFC 9112 section 3.2.1) and makes the path canonical, in
// place. A fragment is an error: no client sends one, and a proxy that drops it can be made to disagree with its
// neighbours (CVE-2023-45539).
func SplitTarget(target []byte) (path, query []byte, hasQuery bool, err error) {
	path = target
	if i := bytes.IndexByte(target, '?'); i >= 0 {
		path, query, hasQuery = target[:i], target[i+1:], true
		if !all(query, classQuery) {
			return nil, nil, false, ErrPath
		}
	}
	if path, err = CanonicalPath(path); err != nil {
		return nil, nil, false, err
	}
	return path, query, hasQuery, nil
}

// CanonicalPath brings an absolute path into its one form, in place, and returns it: RFC 3986 section 6.2.2 with the
// choices that proxies and their backends agree on.
//
//   - It starts with '/', has no control byte, no space, no '#', no '?'.
//   - An escape of an unreserved byte is the byte itself; other escapes have upper-case digits. A '%' that starts no escape,
//     and %00, are errors.
//   - A backslash is a slash, as every browser and some servers read it.
//   - Dot segments are resolved; ".." at the root stays at the root (RFC 3986 section 5.2.4).
//
// It leaves "//", "%2F" and "%5C" alone: they mean different resources to some applications, and whether they are folded
// is the policy of a mesh, not syntax.
func CanonicalPath(p []byte) ([]byte, error) {
	if len(p) == 0 || p[0] != '/' && p[0] != '\\' {
		return nil, ErrPath
	}
	var seen uint8 // without a branch for each byte: most paths are ordinary
	for _, c := range p {
		seen |= pathBytes[c]
	}
	switch {
	case seen == 0 || seen == pathDot && !bytes.Contains(p, slashDot):
		return p, nil
	case seen&pathBad != 0:
		return nil, ErrPath
	}
	// First escapes and backslashes, then dot segments, as an escape can hide one ("/%2e%2e/"). Both only shorten.
	n := 0
	for i := 0; i < len(p); i++ {
		c := p[i]
		switch c {
		case '\\':
			c = '/'
		case '%':
			if i+2 >= len(p) {
				return nil, ErrPath
			}
			hi, lo := unhex(p[i+1]), unhex(p[i+2])
			if hi > 15 || lo > 15 || hi|lo == 0 {
				return nil, ErrPath
			}
			i += 2
			b := hi<<4 | lo
			if classes[b]&classUnres == 0 {
				p[n], p[n+1], p[n+2] = '%', "0123456789ABCDEF"[hi], "0123456789ABCDEF"[lo]
				n += 3
				continue
			}
			c = b
		}
		p[n] = c
		n++
	}
	return removeDots(p[:n]), nil
}

// removeDots resolves "." and ".." segments in place; p starts with '/'.
func removeDots(p []byte) []byte {
	n := 0 // p[:n] is done and has no trailing slash
	for i := 0; i < len(p); {
		// p[i] is the '/' before a segment.
		end := i + 1
		for end < len(p) && p[end] != '/' {
			end++
		}
		switch seg := p[i+1 : end]; {
		case len(seg) == 1 && seg[0] == '.':
			if end == len(p) {
				p[n] = '/'
				n++
			}
		case len(seg) == 2 && seg[0] == '.' && seg[1] == '.':
			for n > 0 {
				n--
				if p[n] == '/' {
					break
				}
			}
			if end == len(p) {
				p[n] = '/'
				n++
			}
		default:
			n += copy(p[n:], p[i:end])
		}
		i = end
	}
	return p[:n]
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}

// ParseAuthority brings host[:port] into its one form, in place where it can: lower-case, no empty port, no trailing dot, IP
// literals as netip writes them. host is without port and brackets; port is 0 when there is none.
// User information, escapes, commas, spaces and empty or overlong labels are errors (RFC 9110 section 4.2.4,
// CVE-2021-39242).
func ParseAuthority(a []byte) (authority, host []byte, port int, err error) {
	if len(a) == 0 || len(a) > 254+6 {
		return nil, nil, 0, ErrAuthority
	}
	if a[0] == '[' {
		return parseLiteral(a)
	}
	end := bytes.IndexByte(a, ':')
	if end < 0 {
		end = len(a)
	}
	name := a[:end]
	if !validName(name) {
		return nil, nil, 0, ErrAuthority
	}
	rest := a[end:]
	if port, err = parsePort(rest); err != nil {
		return nil, nil, 0, err
	}
	if a[end-1] == '.' {
		end--
	}
	n := end
	if port != 0 {
		n += copy(a[end:], rest)
	}
	return a[:n], a[:end], port, nil
}

// What bytes mean in a host name.
const (
	nameDot   = 1 << iota
	nameEmpty // a dot after a dot
	nameUpper
	nameBad
)

var nameBytes = func() (t [256]uint8) {
	for c := range 256 {
		switch {
		case c == '.':
			t[c] = nameDot
		case c >= 'A' && c <= 'Z':
			t[c] = nameUpper
		case classes[c]&classHost == 0:
			t[c] = nameBad
		}
	}
	return t
}()

// validName makes a host name lower-case, in place, and says whether it is one: labels of 1 to 63 bytes, 253 bytes in all
// and perhaps a trailing dot (RFC 1035 section 2.3.4).
func validName(name []byte) bool {
	if len(name) == 0 {
		return false
	}
	seen, last := uint8(0), uint8(nameDot)
	for _, c := range name { // without a branch for each byte
		is := nameBytes[c]
		seen |= is | is&last<<1
		last = is & nameDot
	}
	if seen&(nameBad|nameEmpty) != 0 || len(name) > 253+int(last) {
		return false
	}
	if seen&nameUpper != 0 {
		Lower(name)
	}
	if len(name) <= 63 {
		return true
	}
	for label := range bytes.SplitSeq(name, []byte{'.'}) {
		if len(label) > 63 {
			return false
		}
	}
	return true
}

// parseLiteral is ParseAuthority for "[IPv6]:port". It may allocate.
func parseLiteral(a []byte) (authority, host []byte, port int, err error) {
	end := 1
	for end < len(a) && a[end] != ']' {
		end++
	}
	if end == len(a) {
		return nil, nil, 0, ErrAuthority
	}
	ip, err := netip.ParseAddr(string(a[1:end]))
	if err != nil || !ip.Is6() || ip.Zone() != "" {
		return nil, nil, 0, ErrAuthority
	}
	if port, err = parsePort(a[end+1:]); err != nil {
		return nil, nil, 0, err
	}
	authority = ip.AppendTo([]byte{'['})
	n := len(authority)
	authority = append(authority, ']')
	if port != 0 {
		authority = append(authority, a[end+1:]...)
	}
	return authority, authority[1:n], port, nil
}

// parsePort reads ":port"; nothing and ":" are 0. Leading zeros are an error, as they spell one port in many ways.
func parsePort(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if p[0] != ':' || len(p) > 6 {
		return 0, ErrAuthority
	}
	p = p[1:]
	if len(p) == 0 {
		return 0, nil
	}
	if p[0] == '0' {
		return 0, ErrAuthority
	}
	n := 0
	for _, c := range p {
		if c < '0' || c > '9' {
			return 0, ErrAuthority
		}
		n = n*10 + int(c-'0')
	}
	if n > 65535 {
		return 0, ErrAuthority
	}
	return n, nil
}

// ParseLength reads a Content-Length value (RFC 9110 section 8.6): digits only, below 2^63.
func ParseLength(v []byte) (int64, bool) {
	if len(v) == 0 || len(v) > 19 {
		return 0, false
	}
	var n uint64
	for _, c := range v {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return int64(n), n < 1<<63
}

// Means says whether a name that is not spelled like ours, with "_" for "-" in some place, may be read as ours, or as one that
// begins with it, by a program: those that get their request as variables cannot tell the two (RFC 3875 section 4.1.18). Both are
// lower-case.
func Means(name []byte, ours string) bool {
	if len(name) < len(ours) {
		return false
	}
	other := false
	for i := range len(ours) {
		if name[i] == '_' && ours[i] == '-' {
			other = true
		} else if name[i] != ours[i] {
			return false
		}
	}
	return other
}

// ForbiddenTrailer says whether a field has no business in a trailer section (RFC 9110 section 6.5.1): framing, routing,
// authentication, controls and conditions of a request, controls of a response, what decides how content is read, and
// what proxies say about where a request came from. name is lower-case.
func ForbiddenTrailer(name []byte) bool {
	switch string(name) {
	case "content-length", "transfer-encoding", "host", "connection", "keep-alive", "proxy-connection", "upgrade", "te", "trailer",
		"authorization", "proxy-authorization", "proxy-authenticate", "www-authenticate", "cookie", "set-cookie",
		"content-encoding", "content-type", "content-range", "cache-control", "expect", "max-forwards", "range", "pragma",
		"if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range",
		"age", "date", "expires", "location", "retry-after", "vary", "warning",
		"http2-settings", "forwarded", "via", "x-real-ip":
		return true
	}
	for _, p := range [...]string{"x-forwarded-", "x-envoy-", "x-malha-", "l5d-"} {
		if len(name) > len(p) && (string(name[:len(p)]) == p || Means(name, p)) {
			return true
		}
	}
	return false
}

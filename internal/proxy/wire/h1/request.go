package h1

import (
	"bytes"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

// Shared values; nobody writes to them.
var (
	schemeHTTP  = []byte("http")
	schemeHTTPS = []byte("https")
	rootPath    = []byte("/")
	starPath    = []byte("*")
)

// ParseRequest reads the request head at the start of b into r, which it resets, and returns its length; 0 means that b
// does not have all of it yet, and the same Scan goes with the longer b. The head is changed in place and r points into
// it. Scheme is "http" unless the target says otherwise; a connection with TLS sets it.
//
// When it returns an error, r has what was read before the fault, such as the method.
//
// It goes over the bytes once, and reports the first fault in the order of the bytes; what depends on several lines
// (target, Host, framing) is looked at when the head is complete.
func ParseRequest(b []byte, s *Scan, r *message.Request, lim *Limits) (int, error) {
	from := 0
	if len(b) > 0 && b[0] == '\r' { // RFC 9112 section 2.2: one empty line before a request is ignored
		if len(b) == 1 {
			return 0, nil
		}
		if b[1] != '\n' {
			r.Reset()
			return 0, ErrLineEnd
		}
		from = 2
	}
	if len(b) == from || !s.worth(b, from, lim) {
		return 0, nil
	}
	r.Reset()
	n, err := parseRequest(b[from:min(len(b), from+lim.Head)], r, lim)
	switch {
	case err == nil:
		return from + n, nil
	case err == error(errShort):
		return s.short(b, from, lim)
	}
	return 0, err
}

func parseRequest(b []byte, r *message.Request, lim *Limits) (int, error) {
	// request-line = method SP request-target SP HTTP-version (RFC 9112 section 3), single spaces only.
	line := b[:min(len(b), lim.RequestLine+2)]
	sp := 0
	for sp < len(line) && isTokenByte(line[sp]) {
		sp++
	}
	eol := -1
	if sp < len(line) {
		if sp == 0 || line[sp] != ' ' {
			return 0, ErrMethod
		}
		eol = bytes.IndexByte(line[sp:], '\n')
	}
	if eol < 0 {
		if len(line) == lim.RequestLine+2 {
			return 0, ErrLineTooLong
		}
		return 0, errShort
	}
	eol += sp
	if line[eol-1] != '\r' {
		return 0, ErrLineEnd
	}
	r.Method = line[:sp]
	const version = len(" HTTP/1.1")
	target := line[sp+1 : max(eol-1-version, sp+1)]
	if len(target) == 0 {
		return 0, ErrRequestLine
	}
	switch string(line[eol-1-version : eol-1]) {
	case " HTTP/1.1":
		r.Major, r.Minor = 1, 1
	case " HTTP/1.0":
		r.Major, r.Minor = 1, 0
	default:
		v := line[eol-version : eol-1]
		if line[eol-1-version] == ' ' && string(v[:5]) == "HTTP/" && isDigit(v[5]) && v[6] == '.' && isDigit(v[7]) {
			return 0, ErrVersion
		}
		return 0, ErrRequestLine
	}
	if bytes.IndexByte(target, ' ') >= 0 {
		return 0, ErrRequestLine
	}

	h := head{fields: r.Fields, maxFields: lim.Fields, request: true}
	n, err := h.readFields(b[eol+1:])
	r.Fields = h.fields
	if err != nil {
		return 0, err
	}
	r.Scheme = schemeHTTP
	if err := setTarget(r, target, &h); err != nil {
		return 0, err
	}
	return eol + 1 + n, frameRequest(r, &h)
}

// setTarget reads the four forms of RFC 9112 section 3.2.
func setTarget(r *message.Request, target []byte, h *head) error {
	if !h.hasHost && (r.Minor > 0 || target[0] == '/' || target[0] == '*') {
		return ErrNoHost // section 3.2; HTTP/1.0 clients have to name a host too, there is no default to send them to
	}
	var err error
	authority := h.host
	switch {
	case string(r.Method) == "CONNECT": // authority-form: the Host field says the same or is ignored
		if r.Authority, r.Host, r.Port, err = message.ParseAuthority(target); err != nil || r.Port == 0 {
			return ErrTarget
		}
		return h.checkHost()
	case target[0] == '/':
		if r.Path, r.Query, r.HasQuery, err = message.SplitTarget(target); err != nil {
			return ErrTarget
		}
	case len(target) == 1 && target[0] == '*':
		if string(r.Method) != "OPTIONS" {
			return ErrTarget
		}
		r.Path = starPath
	default: // absolute-form: its authority counts and the Host field is ignored, section 3.2.2
		if authority, err = absoluteForm(r, target); err != nil {
			return err
		}
		if err := h.checkHost(); err != nil {
			return err
		}
	}
	if r.Authority, r.Host, r.Port, err = message.ParseAuthority(authority); err != nil {
		if r.Absolute {
			return ErrTarget
		}
		return ErrHost
	}
	return nil
}

// checkHost refuses a Host field that is not a host, where its value is not used.
func (h *head) checkHost() error {
	if !h.hasHost {
		return nil
	}
	if _, _, _, err := message.ParseAuthority(h.host); err != nil {
		return ErrHost
	}
	return nil
}

func absoluteForm(r *message.Request, target []byte) (authority []byte, err error) {
	scheme, rest, ok := bytes.Cut(target, []byte("://"))
	switch {
	case !ok:
		return nil, ErrTarget
	case equalFold(scheme, "http"):
		r.Scheme = schemeHTTP
	case equalFold(scheme, "https"):
		r.Scheme = schemeHTTPS
	default:
		return nil, ErrTarget
	}
	r.Absolute = true
	end := bytes.IndexAny(rest, "/?")
	switch {
	case end < 0:
		r.Path = rootPath
		if string(r.Method) == "OPTIONS" {
			r.Path = starPath // section 3.2.4
		}
		return rest, nil
	case rest[end] == '?': // an empty path is "/" (RFC 9110 section 4.2.3)
		r.Path = rootPath
		// There is no slash in the buffer to begin a target with: a copy has one.
		if _, r.Query, r.HasQuery, err = message.SplitTarget(append([]byte{'/'}, rest[end:]...)); err != nil {
			return nil, ErrTarget
		}
	default:
		if r.Path, r.Query, r.HasQuery, err = message.SplitTarget(rest[end:]); err != nil {
			return nil, ErrTarget
		}
	}
	return rest[:end], nil
}

// frameRequest decides about body, connection and protocol switch (RFC 9112 section 6.3).
func frameRequest(r *message.Request, h *head) error {
	switch {
	case h.coded && h.length >= 0:
		return ErrBothLengths
	case h.coded && r.Minor == 0:
		return ErrCoding // section 6.1: a Transfer-Encoding in HTTP/1.0 is faulty framing
	case h.chunked:
		r.Length = message.Unknown
	case h.length > 0:
		r.Length = h.length
	}
	// RFC 9112 section 9.3: HTTP/1.0 clients can ask a gateway for persistence, but not a proxy that they chose.
	r.Close = h.close || r.Minor == 0 && (!h.keepAlive || r.Absolute)
	if r.Minor > 0 {
		r.ExpectContinue = h.expect && r.Length != 0
	}
	switch string(r.Method) {
	case "CONNECT":
		if r.Length != 0 {
			return ErrConnectBody
		}
		return nil
	case "TRACE": // RFC 9110 section 9.3.8: a client, which we are to the next server, must not send content
		if r.Length != 0 {
			return ErrTraceBody
		}
	}
	// An Upgrade with a body, or to another HTTP, is ignored as RFC 9110 section 7.8 allows.
	if h.upgrades && len(h.upgrade) > 0 && r.Minor > 0 && r.Length == 0 {
		message.Lower(h.upgrade)
		if !message.CarriesRequests(h.upgrade) {
			r.Upgrade = h.upgrade
		}
	}
	return nil
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

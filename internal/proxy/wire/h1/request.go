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
func ParseRequest(b []byte, s *Scan, r *message.Request, lim *Limits) (int, error) {
	skip := 0
	if len(b) >= 2 && b[0] == '\r' && b[1] == '\n' {
		skip = 2 // RFC 9112 section 2.2: one empty line before a request is ignored
	}
	if s.seen < skip {
		s.seen = 0
	}
	n, err := s.headEndAfter(b, skip, lim)
	if n == 0 || err != nil {
		return 0, err
	}
	r.Reset()
	if err := parseRequest(b[skip:n], r, lim); err != nil {
		return 0, err
	}
	return n, nil
}

// headEndAfter is HeadEnd for a head that begins at b[skip].
func (s *Scan) headEndAfter(b []byte, skip int, lim *Limits) (int, error) {
	if skip == 0 {
		return s.HeadEnd(b, lim)
	}
	if len(b) == skip {
		return 0, nil
	}
	s.seen = max(s.seen-skip, 0)
	n, err := s.HeadEnd(b[skip:], lim)
	s.seen += skip
	if n > 0 {
		n += skip
	}
	return n, err
}

func parseRequest(b []byte, r *message.Request, lim *Limits) error {
	// request-line = method SP request-target SP HTTP-version (RFC 9112 section 3), single spaces only.
	eol := bytes.IndexByte(b, '\r')
	if eol < 0 || b[eol+1] != '\n' {
		return ErrLineEnd
	}
	if eol > lim.RequestLine {
		return ErrLineTooLong
	}
	line := b[:eol]
	sp := 0
	for sp < len(line) && isTokenByte(line[sp]) {
		sp++
	}
	if sp == 0 || sp == len(line) || line[sp] != ' ' {
		return ErrMethod
	}
	r.Method = line[:sp]
	line = line[sp+1:]
	sp = bytes.IndexByte(line, ' ')
	if sp <= 0 {
		return ErrRequestLine
	}
	target := line[:sp]
	switch v := line[sp+1:]; string(v) {
	case "HTTP/1.1":
		r.Major, r.Minor = 1, 1
	case "HTTP/1.0":
		r.Major, r.Minor = 1, 0
	default:
		if len(v) == 8 && string(v[:5]) == "HTTP/" && isDigit(v[5]) && v[6] == '.' && isDigit(v[7]) {
			return ErrVersion
		}
		return ErrRequestLine
	}

	h := head{fields: r.Fields, maxFields: lim.Fields}
	if err := h.readFields(b[eol+2:]); err != nil {
		return err
	}
	r.Fields = h.fields
	r.Scheme = schemeHTTP
	if err := setTarget(r, target, &h); err != nil {
		return err
	}
	return frameRequest(r, &h)
}

// setTarget reads the four forms of RFC 9112 section 3.2.
func setTarget(r *message.Request, target []byte, h *head) error {
	if !h.hasHost {
		return ErrNoHost // section 3.2; we ask HTTP/1.0 clients for it too, there is no default host to send them to
	}
	var err error
	authority := h.host
	switch {
	case string(r.Method) == "CONNECT": // authority-form: the Host field says the same or is ignored
		if r.Authority, r.Host, r.Port, err = message.ParseAuthority(target); err != nil || r.Port == 0 {
			return ErrTarget
		}
		return checkHost(h.host)
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
		if err := checkHost(h.host); err != nil {
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
func checkHost(v []byte) error {
	if _, _, _, err := message.ParseAuthority(v); err != nil {
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
	r.Close = h.close || r.Minor == 0 && !h.keepAlive
	if r.Minor > 0 {
		r.ExpectContinue = h.expect && r.Length != 0
	}
	if string(r.Method) == "CONNECT" {
		if r.Length != 0 {
			return ErrConnectBody
		}
		return nil
	}
	// An Upgrade with a body, or to HTTP/2 (CVE-2022-41721), is ignored as RFC 9110 section 7.8 allows.
	if h.upgrades && len(h.upgrade) > 0 && r.Minor > 0 && r.Length == 0 && !equalFold(h.upgrade, "h2c") {
		message.Lower(h.upgrade)
		r.Upgrade = h.upgrade
	}
	return nil
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

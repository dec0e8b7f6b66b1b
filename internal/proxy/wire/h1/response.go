package h1

import (
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// Asked says what the client asked, as far as the framing of the answer depends on it (RFC 9112 section 6.3).
type Asked uint8

// The kinds of request.
const (
	AskedOther Asked = iota
	AskedHead
	AskedConnect
)

// AskedBy returns the kind of a method.
func AskedBy(method []byte) Asked {
	switch string(method) {
	case "HEAD":
		return AskedHead
	case "CONNECT":
		return AskedConnect
	}
	return AskedOther
}

// ParseResponse reads the response head at the start of b into r, as ParseRequest does.
func ParseResponse(b []byte, s *Scan, r *message.Response, asked Asked, lim *Limits) (int, error) {
	if len(b) == 0 || !s.worth(b, 0, lim) {
		return 0, nil
	}
	r.Reset()
	n, err := parseResponse(b[:min(len(b), lim.Head)], r, asked, lim)
	switch {
	case err == nil:
		return n, nil
	case err == error(errShort):
		return s.short(b, 0, lim)
	}
	return 0, err
}

func parseResponse(b []byte, r *message.Response, asked Asked, lim *Limits) (int, error) {
	// status-line = HTTP-version SP status-code SP [ reason-phrase ] (RFC 9112 section 4); the last SP is often left out.
	const version, code = "HTTP/1.", len("HTTP/1.1 200")
	if k := min(len(b), len(version)); string(b[:k]) != version[:k] {
		return 0, ErrStatusLine
	}
	if len(b) <= code {
		return 0, errShort
	}
	r.Major, r.Minor = 1, b[7]-'0'
	if r.Minor > 1 || b[8] != ' ' || !isDigit(b[9]) || !isDigit(b[10]) || !isDigit(b[11]) || b[12] != ' ' && b[12] != '\r' {
		return 0, ErrStatusLine
	}
	r.Status = int(b[9]-'0')*100 + int(b[10]-'0')*10 + int(b[11]-'0')
	if r.Status < 100 || r.Status > 599 {
		return 0, ErrStatusLine
	}
	line := b[:min(len(b), lim.RequestLine+2)]
	eol := valueEnd(line, code)
	switch {
	case eol+1 < len(line) && line[eol] == '\r' && line[eol+1] == '\n':
	case eol+1 >= len(line) && len(line) == lim.RequestLine+2:
		return 0, ErrStatusLine
	case eol == len(line) || eol+1 == len(line) && line[eol] == '\r':
		return 0, errShort
	default:
		return 0, ErrStatusLine
	}
	h := head{fields: r.Fields, maxFields: lim.Fields}
	n, err := h.readFields(b[eol+2:])
	r.Fields = h.fields
	if err != nil {
		return 0, err
	}
	return eol + 2 + n, frameResponse(r, &h, asked)
}

// frameResponse follows RFC 9112 section 6.3, in its order.
func frameResponse(r *message.Response, h *head, asked Asked) error {
	r.Close = h.close || r.Minor == 0 && !h.keepAlive
	switch {
	case h.coded && h.length >= 0:
		return ErrBothLengths
	case h.coded && r.Minor == 0:
		return ErrCoding // section 6.1, as in a request
	}
	switch {
	case r.Status < 200 || r.Status == 204:
		if r.Status == 101 {
			if !h.upgrades || len(h.upgrade) == 0 {
				return ErrUpgrade
			}
			message.Lower(h.upgrade)
			r.Upgrade = h.upgrade
		}
		// The head ends the message. A server that announced a body nevertheless may send it, and what follows the next
		// request would not be its answer.
		r.Close = r.Close || h.coded || h.length > 0
	case asked == AskedConnect && r.Status < 300:
	case asked == AskedHead || r.Status == 304:
		r.Length = h.length // -1, Unknown, when it was not said
		if h.chunked {
			r.Length = message.Unknown
		}
	case h.chunked:
		r.HasBody, r.Length = true, message.Unknown
	case h.length >= 0:
		r.HasBody, r.Length = h.length > 0, h.length
	default:
		r.HasBody, r.Length = true, message.Unknown
		r.UntilClose, r.Close = true, true
	}
	return nil
}

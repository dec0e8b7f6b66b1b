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
	n, err := s.HeadEnd(b, lim)
	if n == 0 || err != nil {
		return 0, err
	}
	r.Reset()
	if err := parseResponse(b[:n], r, asked, lim); err != nil {
		return 0, err
	}
	return n, nil
}

func parseResponse(b []byte, r *message.Response, asked Asked, lim *Limits) error {
	// status-line = HTTP-version SP status-code SP [ reason-phrase ] (RFC 9112 section 4); the last SP is often left out.
	const min = len("HTTP/1.1 200")
	if len(b) < min+4 || string(b[:7]) != "HTTP/1." || b[8] != ' ' {
		return ErrStatusLine
	}
	switch b[7] {
	case '1':
		r.Major, r.Minor = 1, 1
	case '0':
		r.Major, r.Minor = 1, 0
	default:
		return ErrStatusLine
	}
	if !isDigit(b[9]) || !isDigit(b[10]) || !isDigit(b[11]) {
		return ErrStatusLine
	}
	r.Status = int(b[9]-'0')*100 + int(b[10]-'0')*10 + int(b[11]-'0')
	if r.Status < 100 || r.Status > 599 {
		return ErrStatusLine
	}
	if b[12] != ' ' && b[12] != '\r' {
		return ErrStatusLine
	}
	eol := valueEnd(b[min:])
	if eol < 0 || min+eol > lim.RequestLine {
		return ErrStatusLine
	}
	h := head{fields: r.Fields, maxFields: lim.Fields}
	if err := h.readFields(b[min+eol+2:]); err != nil {
		return err
	}
	r.Fields = h.fields
	return frameResponse(r, &h, asked)
}

// frameResponse follows RFC 9112 section 6.3, in its order.
func frameResponse(r *message.Response, h *head, asked Asked) error {
	if h.hasHost { // not a hop's field in a response, so keep it as any other
		r.Fields.Add("host", h.host)
	}
	r.Close = h.close || r.Minor == 0 && !h.keepAlive
	if h.coded && (h.length >= 0 || r.Minor == 0) {
		return ErrBothLengths
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

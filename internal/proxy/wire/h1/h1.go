// Package h1 is the HTTP/1 codec (RFC 9112): bytes in, message heads and body pieces out, and back again.
//
// It is sans-I/O: no sockets, no clock, no goroutines, and it allocates nothing for an ordinary message. Heads are made
// canonical in the buffer that they were read into (internal/proxy/message) and point into it. internal/proxy/conn moves
// the bytes.
//
// It is strict. What two implementations could read in two ways is refused: both Content-Length and
// Transfer-Encoding, transfer codings other than "chunked", a Content-Length that is not one plain number, line ends that
// are not CRLF, folded lines, white space before a colon, control bytes, missing or repeated Host. The reasons are in
// security advisories rather than in taste; each rule names its RFC section.
package h1

import "bytes"

// Limits bound one message, in bytes and lines. They come from conn.Config.
type Limits struct {
	RequestLine int // request line or status line
	Head        int // start line and header section
	Fields      int // lines of a header or trailer section
	Trailers    int // trailer section
}

// Error is a message that cannot be accepted. Detail is stable and goes into logs; Status is what to answer to a
// request. A bad response has it too, though nobody is answered with it.
type Error struct {
	Status int
	Detail string
}

// Error returns the detail.
func (e *Error) Error() string { return e.Detail }

// The errors. They are compared by pointer and never written to.
var (
	ErrRequestLine  = &Error{400, "http1.bad_request_line"}
	ErrMethod       = &Error{400, "http1.bad_method"}
	ErrTarget       = &Error{400, "http1.bad_target"}
	ErrVersion      = &Error{505, "http1.bad_version"}
	ErrStatusLine   = &Error{502, "http1.bad_status_line"}
	ErrLineEnd      = &Error{400, "http1.bad_line_end"}
	ErrFieldName    = &Error{400, "http1.bad_field_name"}
	ErrFieldValue   = &Error{400, "http1.bad_field_value"}
	ErrFold         = &Error{400, "http1.folded_line"}
	ErrHost         = &Error{400, "http1.bad_host"}
	ErrNoHost       = &Error{400, "http1.missing_host"}
	ErrHosts        = &Error{400, "http1.repeated_host"}
	ErrLength       = &Error{400, "http1.bad_content_length"}
	ErrBothLengths  = &Error{400, "http1.content_length_and_transfer_encoding"}
	ErrCoding       = &Error{400, "http1.bad_transfer_encoding"}
	ErrCodingName   = &Error{501, "http1.unknown_transfer_encoding"}
	ErrConnection   = &Error{400, "http1.bad_connection_field"}
	ErrExpect       = &Error{417, "http1.unknown_expectation"}
	ErrUpgrade      = &Error{400, "http1.bad_upgrade"}
	ErrConnectBody  = &Error{400, "http1.connect_with_body"}
	ErrTraceBody    = &Error{400, "http1.trace_with_body"}
	ErrLineTooLong  = &Error{414, "http1.request_line_too_long"}
	ErrHeadTooLarge = &Error{431, "http1.head_too_large"}
	ErrManyFields   = &Error{431, "http1.too_many_fields"}
	ErrChunk        = &Error{400, "http1.bad_chunk"}
	ErrChunkSize    = &Error{400, "http1.bad_chunk_size"}
	ErrExtensions   = &Error{400, "http1.chunk_extensions_too_large"}
	ErrTrailers     = &Error{431, "http1.trailers_too_large"}
	ErrTrailerField = &Error{400, "http1.bad_trailer"}
)

// errShort says that the bytes end before the head does. It never leaves the package.
var errShort = &Error{0, "http1.incomplete"}

// Scan goes with a head that comes in pieces, so that its bytes are not parsed again for each of them. The zero Scan is
// ready, and is reset for each message.
type Scan struct {
	seen int  // b[:seen] was looked at: it is no whole head, and has no fault that shows yet
	line bool // and it has the start line
}

// worth reports whether parsing b, which is longer than what was looked at before, can have a result: a whole head, or
// a fault. How the bytes were cut into pieces must not show in the result, so parsing is what decides; this only saves
// it from being tried for nothing. from is where the head begins. A fault of the start line shows when that is complete, and one
// of a field when the head is, or at once if the bytes came with it.
func (s *Scan) worth(b []byte, from int, lim *Limits) bool {
	if s.seen == 0 || len(b)-from >= lim.Head {
		return true
	}
	line := from + lim.RequestLine + 2
	if s.seen < line && len(b) >= line || bytes.Contains(b[max(s.seen-3, 0):], crlfcrlf) {
		return true
	}
	for i := s.seen; ; i++ {
		lf := bytes.IndexByte(b[i:], '\n')
		if lf < 0 {
			break
		}
		if i += lf; !s.line || b[i-1] != '\r' {
			s.line = true
			return true
		}
	}
	s.seen = len(b)
	return false
}

// short is what an incomplete head at the start of b[from:] means: wait for more, or that there can be no more.
func (s *Scan) short(b []byte, from int, lim *Limits) (int, error) {
	if len(b)-from >= lim.Head {
		return 0, ErrHeadTooLarge
	}
	s.seen = len(b)
	return 0, nil
}

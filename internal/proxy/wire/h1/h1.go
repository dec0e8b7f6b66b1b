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
	ErrLineTooLong  = &Error{414, "http1.request_line_too_long"}
	ErrHeadTooLarge = &Error{431, "http1.head_too_large"}
	ErrManyFields   = &Error{431, "http1.too_many_fields"}
	ErrChunk        = &Error{400, "http1.bad_chunk"}
	ErrChunkSize    = &Error{400, "http1.bad_chunk_size"}
	ErrExtensions   = &Error{400, "http1.chunk_extensions_too_large"}
	ErrTrailers     = &Error{431, "http1.trailers_too_large"}
	ErrTrailerField = &Error{400, "http1.bad_trailer"}
)

// Scan finds the end of a head in a buffer that grows, looking at each byte once. The zero Scan is ready, and is
// reset for each message.
type Scan struct {
	seen int // b[:seen] has no end of head, and its line ends are CRLF
}

// HeadEnd returns the length of the head at the start of b, with its empty line, or 0 when b has only a part of it.
// An error comes as soon as the part cannot become an acceptable head.
func (s *Scan) HeadEnd(b []byte, lim *Limits) (int, error) {
	from := max(s.seen-3, 0)
	if n := indexHeadEnd(b[from:]); n >= 0 {
		if n += from + 4; n <= lim.Head {
			return n, nil
		}
		return 0, ErrHeadTooLarge
	}
	if len(b) == 0 {
		return 0, nil
	}
	// Not complete: refuse now what can only become worse, so that nobody waits for the time to run out.
	if !isTokenByte(b[0]) && b[0] != '\r' {
		return 0, ErrRequestLine
	}
	for i := s.seen; i < len(b); i++ {
		if b[i] == '\n' && (i == 0 || b[i-1] != '\r') {
			return 0, ErrLineEnd
		}
	}
	s.seen = len(b)
	if len(b) > lim.RequestLine && !hasLine(b[:lim.RequestLine]) {
		return 0, ErrLineTooLong
	}
	if len(b) >= lim.Head {
		return 0, ErrHeadTooLarge
	}
	return 0, nil
}

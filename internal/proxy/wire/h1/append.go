package h1

import (
	"strconv"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

// AppendRequest appends the head of a request in origin-form, for a connection that stays open. Its framing follows
// r.Length. What r holds must be as the codecs leave it: nothing is escaped here.
func AppendRequest(dst []byte, r *message.Request) []byte {
	dst = append(dst, r.Method...)
	dst = append(dst, ' ')
	if len(r.Path) == 0 { // CONNECT, RFC 9112 section 3.2.3
		dst = append(dst, r.Authority...)
	} else {
		dst = append(dst, r.Path...)
		if r.HasQuery {
			dst = append(dst, '?')
			dst = append(dst, r.Query...)
		}
	}
	dst = append(dst, " HTTP/1.1\r\nhost: "...)
	dst = append(dst, r.Authority...)
	dst = append(dst, '\r', '\n')
	te := false
	for i := range r.Fields {
		if string(r.Fields[i].Name) == "te" {
			te = true
		}
		dst = appendField(dst, &r.Fields[i])
	}
	switch {
	case len(r.Upgrade) > 0 && te:
		dst = append(dst, "connection: upgrade, te\r\nupgrade: "...)
		dst = append(dst, r.Upgrade...)
		dst = append(dst, '\r', '\n')
	case len(r.Upgrade) > 0:
		dst = append(dst, "connection: upgrade\r\nupgrade: "...)
		dst = append(dst, r.Upgrade...)
		dst = append(dst, '\r', '\n')
	case te:
		dst = append(dst, "connection: te\r\n"...) // RFC 9110 section 10.1.4
	}
	switch {
	case r.Length > 0:
		dst = appendLength(dst, r.Length)
	case r.Length == message.Unknown:
		dst = append(dst, "transfer-encoding: chunked\r\n"...)
	default:
		switch string(r.Method) { // RFC 9110 section 8.6: methods that anticipate content say that there is none
		case "POST", "PUT", "PATCH":
			dst = append(dst, "content-length: 0\r\n"...)
		}
	}
	return append(dst, '\r', '\n')
}

// Framing is how a response body is delimited for a client.
type Framing uint8

// The framings.
const (
	Delimited  Framing = iota // by Length, or by the head itself
	Chunked                   // RFC 9112 section 7.1
	UntilClose                // for HTTP/1.0 clients
)

// ResponseFraming decides how a response is framed for a client that asked with version 1.minor.
func ResponseFraming(r *message.Response, minor uint8) Framing {
	switch {
	case !r.HasBody || r.Length >= 0:
		return Delimited
	case minor == 0:
		return UntilClose
	default:
		return Chunked
	}
}

// Persistence is what a response says about the connection.
type Persistence uint8

// The kinds.
const (
	Stay  Persistence = iota // HTTP/1.1 default: nothing is said
	Keep                     // "keep-alive", to an HTTP/1.0 client that asked for it
	Close                    // "close"
)

// AppendResponse appends the head of a response, as an answer to what was asked.
func AppendResponse(dst []byte, r *message.Response, asked Asked, f Framing, p Persistence) []byte {
	dst = appendStatusLine(dst, r.Status)
	for i := range r.Fields {
		dst = appendField(dst, &r.Fields[i])
	}
	if r.Status == 101 {
		dst = append(dst, "connection: upgrade\r\nupgrade: "...)
		dst = append(dst, r.Upgrade...)
		return append(dst, "\r\n\r\n"...)
	}
	// RFC 9110 section 8.6: no Content-Length in 1xx, 204 and 2xx to CONNECT.
	if r.Status >= 200 && r.Status != 204 && !(asked == AskedConnect && r.Status < 300) {
		switch {
		case f == Chunked:
			dst = append(dst, "transfer-encoding: chunked\r\n"...)
		case f == Delimited && r.Length >= 0:
			dst = appendLength(dst, r.Length)
		}
	}
	if r.Status >= 200 {
		switch p {
		case Keep:
			dst = append(dst, "connection: keep-alive\r\n"...)
		case Close:
			dst = append(dst, "connection: close\r\n"...)
		}
	}
	return append(dst, '\r', '\n')
}

// AppendChunkHead appends the line before n bytes of chunk data, n > 0. The data is followed by CRLF.
func AppendChunkHead(dst []byte, n int) []byte {
	return append(strconv.AppendUint(dst, uint64(n), 16), '\r', '\n')
}

// AppendChunk appends a chunk; p must not be empty, as an empty chunk ends the body.
func AppendChunk(dst, p []byte) []byte {
	dst = AppendChunkHead(dst, len(p))
	dst = append(dst, p...)
	return append(dst, '\r', '\n')
}

// AppendLastChunk appends the end of a chunked body.
func AppendLastChunk(dst []byte, trailers message.Fields) []byte {
	dst = append(dst, '0', '\r', '\n')
	for i := range trailers {
		dst = appendField(dst, &trailers[i])
	}
	return append(dst, '\r', '\n')
}

// Continue is the interim response that lets a waiting client send its body (RFC 9110 section 15.2.1).
const Continue = "HTTP/1.1 100 Continue\r\n\r\n"

func appendField(dst []byte, f *message.Field) []byte {
	dst = append(dst, f.Name...)
	dst = append(dst, ':', ' ')
	dst = append(dst, f.Value...)
	return append(dst, '\r', '\n')
}

func appendLength(dst []byte, n int64) []byte {
	dst = append(dst, "content-length: "...)
	dst = strconv.AppendInt(dst, n, 10)
	return append(dst, '\r', '\n')
}

func appendStatusLine(dst []byte, status int) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = append(dst, byte('0'+status/100%10), byte('0'+status/10%10), byte('0'+status%10), ' ')
	dst = append(dst, Reason(status)...)
	return append(dst, '\r', '\n')
}

// Reason returns the phrase of a status code (RFC 9110 section 15), or "".
func Reason(status int) string {
	if i := status - 100; i >= 0 && i < len(reasons) {
		return reasons[i]
	}
	return ""
}

var reasons = [...]string{
	0: "Continue", 1: "Switching Protocols", 2: "Processing", 3: "Early Hints",
	100: "OK", 101: "Created", 102: "Accepted", 103: "Non-Authoritative Information", 104: "No Content", 105: "Reset Content",
	106: "Partial Content", 107: "Multi-Status", 108: "Already Reported", 126: "IM Used",
	200: "Multiple Choices", 201: "Moved Permanently", 202: "Found", 203: "See Other", 204: "Not Modified", 205: "Use Proxy",
	207: "Temporary Redirect", 208: "Permanent Redirect",
	300: "Bad Request", 301: "Unauthorized", 302: "Payment Required", 303: "Forbidden", 304: "Not Found", 305: "Method Not Allowed",
	306: "Not Acceptable", 307: "Proxy Authentication Required", 308: "Request Timeout", 309: "Conflict", 310: "Gone",
	311: "Length Required", 312: "Precondition Failed", 313: "Content Too Large", 314: "URI Too Long", 315: "Unsupported Media Type",
	316: "Range Not Satisfiable", 317: "Expectation Failed", 318: "I'm a teapot", 321: "Misdirected Request", 322: "Unprocessable Content",
	323: "Locked", 324: "Failed Dependency", 325: "Too Early", 326: "Upgrade Required", 328: "Precondition Required",
	329: "Too Many Requests", 331: "Request Header Fields Too Large", 351: "Unavailable For Legal Reasons",
	400: "Internal Server Error", 401: "Not Implemented", 402: "Bad Gateway", 403: "Service Unavailable", 404: "Gateway Timeout",
	405: "HTTP Version Not Supported", 406: "Variant Also Negotiates", 407: "Insufficient Storage", 408: "Loop Detected",
	411: "Network Authentication Required",
}

// Package message is the canonical form of one HTTP message head: what the codecs make of the bytes they read, and the
// only form that routing, authorization, logs and the upstream ever see.
//
// It is pure and allocates nothing per message: every slice points into a buffer of the connection that read the head
// (an h1 read buffer, an h2 header arena) and is valid until the exchange is over. Field names are lower-case and the
// fields that belong to one hop are gone; what they said is in the head's own fields.
package message

import "bytes"

// Field is one header line: a lower-case name and a value without surrounding white space.
type Field struct {
	Name, Value []byte
}

// Fields is a header section in the order of the wire.
type Fields []Field

// Get returns the first value of a field and whether it is there. name is lower-case.
func (f Fields) Get(name string) ([]byte, bool) {
	for i := range f {
		if string(f[i].Name) == name {
			return f[i].Value, true
		}
	}
	return nil, false
}

// Del removes every line of a field, keeping the order of the others.
func (f *Fields) Del(name string) {
	s := *f
	n := 0
	for i := range s {
		if string(s[i].Name) != name {
			s[n] = s[i]
			n++
		}
	}
	clear(s[n:])
	*f = s[:n]
}

// Add appends a field.
func (f *Fields) Add(name string, value []byte) {
	*f = append(*f, Field{Name: []byte(name), Value: value})
}

// Set replaces every line of a field by one.
func (f *Fields) Set(name string, value []byte) {
	s := *f
	for i := range s {
		if string(s[i].Name) == name {
			s[i].Value = value
			rest := s[i+1:]
			rest.Del(name)
			*f = s[:i+1+len(rest)]
			return
		}
	}
	f.Add(name, value)
}

// Length of a body that the head does not tell.
const (
	// Unknown length: chunked, until the end of the stream, or until close.
	Unknown int64 = -1
)

// Request is the head of a request.
//
// Invariants, kept by the codecs: Method is a token; Authority is host[:port], lower-case, without user information,
// with a valid host, and empty only for "OPTIONS *" of HTTP/1.0 clients; Path starts with '/' (or is "*" for OPTIONS,
// or empty for CONNECT), has no query, no fragment, no dot segments, no backslash, and no control bytes; Fields has no
// Host, Connection, Keep-Alive, Proxy-Connection, Transfer-Encoding, Upgrade, TE (but "te: trailers"), Content-Length,
// HTTP2-Settings, nor a field that Connection nominated.
type Request struct {
	Method    []byte
	Scheme    []byte // "http" or "https"
	Authority []byte // canonical host[:port]
	Host      []byte // Authority without its port, without brackets, without a trailing dot
	Port      int    // 0 when Authority has none
	Path      []byte
	Query     []byte // after '?', without it
	HasQuery  bool   // "/a?" is not "/a"
	Fields    Fields
	Length    int64 // of the body: 0 none, Unknown, or bytes
	// Absolute is set when the target was in absolute-form, as a client of a forward proxy writes it.
	Absolute bool
	// Upgrade is the protocol of an Upgrade request ("websocket"), lower-case; empty otherwise. An extended CONNECT
	// (RFC 8441) has its :protocol here.
	Upgrade []byte
	// ExpectContinue is set for "Expect: 100-continue".
	ExpectContinue bool
	// Major and Minor are the version on the wire: 1.0, 1.1 or 2.0.
	Major, Minor uint8
	// Close is set when the client asked for the connection to end after the response.
	Close bool
}

// CarriesRequests names the protocols of an Upgrade inside of which requests would pass by routes and policies unseen
// (CVE-2022-41721): HTTP of other versions, and TLS (RFC 2817). protocol is lower-case, with its version or without.
func CarriesRequests(protocol []byte) bool {
	name, _, _ := bytes.Cut(protocol, []byte{'/'})
	switch string(name) {
	case "h2c", "h2", "h3", "http", "https", "tls":
		return true
	}
	return false
}

// Reset empties r for the next message, keeping the room of Fields.
func (r *Request) Reset() {
	clear(r.Fields) // what is behind its end is cleared by who shortens it
	*r = Request{Fields: r.Fields[:0]}
}

// Response is the head of a response. Fields has no field that belongs to one hop.
type Response struct {
	Status int // 100 to 599
	Fields Fields
	Length int64 // of the body: 0 none, Unknown, or bytes. For HEAD and 304 what a GET would have: see HasBody
	// HasBody is false where the head ends the message whatever Length says: HEAD, 1xx, 204, 304 (RFC 9110 section 6.4.1).
	HasBody bool
	// UntilClose is set when only the end of the connection ends the body.
	UntilClose bool
	// Upgrade is the protocol that a 101 switches to.
	Upgrade      []byte
	Major, Minor uint8
	// Close is set when the server will end the connection after this message.
	Close bool
}

// Reset empties r for the next message, keeping the room of Fields.
func (r *Response) Reset() {
	clear(r.Fields) // what is behind its end is cleared by who shortens it
	*r = Response{Fields: r.Fields[:0]}
}

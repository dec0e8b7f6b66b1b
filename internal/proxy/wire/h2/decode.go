package h2

import (
	"bytes"
	"errors"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

// ErrTooLarge is a header section over the limits. The stream can still be answered (431); the connection is fine.
var ErrTooLarge = errors.New("header section is larger than the limit")

// Limits bound a header section. Everything that was decoded counts, also what is dropped or joined afterwards
// (CVE-2026-47774, CVE-2026-73550), each field as its bytes plus 32 (RFC 9113 section 6.5.2).
type Limits struct {
	Bytes        int
	Fields       int
	TrailerBytes int // of a trailer section
	// Trim takes white space off values instead of refusing it (RFC 9113 section 8.2.1): servers written in Go send what
	// their handlers set, and HTTP/1 trims it. For what endpoints answer; clients are held to the rule.
	Trim bool
}

// Arena holds the bytes of the header sections of one stream.
type Arena struct{ buf []byte }

// arenaKeep is the largest room that an idle Arena keeps.
const arenaKeep = 8 << 10

// Reset forgets the contents; the slices into it are no longer valid.
func (a *Arena) Reset() {
	if cap(a.buf) > arenaKeep {
		a.buf = nil
	}
	a.buf = a.buf[:0]
}

// room makes place for n more bytes. When it is used up a new one is begun: the slices handed out keep the old one.
func (a *Arena) room(n int) {
	if cap(a.buf)-len(a.buf) < n {
		a.buf = make([]byte, 0, max(2*cap(a.buf), n, 1024))
	}
}

// keep copies s.
func (a *Arena) keep(s []byte) []byte {
	a.room(len(s))
	n := len(a.buf)
	a.buf = append(a.buf, s...)
	return a.buf[n:len(a.buf):len(a.buf)]
}

// rewind forgets what was put since the arena had n bytes; if its room changed meanwhile, nothing of that is in this one.
func (a *Arena) rewind(n int) { a.buf = a.buf[:min(n, len(a.buf))] }

// Decoder turns header blocks into messages. It belongs to the reading side of one connection, as its HPACK table changes
// with every block, also with those of streams that are long gone.
type Decoder struct {
	table  decTable
	emit   func(*decoded) bool // take
	limits Limits
	waste  Arena // of sections that nobody wants

	// The section that is being decoded.
	arena   *Arena
	fields  message.Fields
	kind    sectionKind
	bytes   int // limit of size
	size    int
	count   int
	err     error // the first rule that was broken
	regular bool  // a regular field was seen: no pseudo field may follow
	seen    uint8 // pseudo fields, one bit each

	method, scheme, authority, path, protocol []byte
	status                                    int
	host                                      []byte
	hasHost                                   bool
	length                                    int64 // Content-Length, or -1
	cookie                                    []byte
	cookieAt                                  int // index in fields, or -1
	expect                                    bool
}

type sectionKind uint8

const (
	requestSection sectionKind = iota
	responseSection
	trailerSection
	skippedSection
)

// Bits of Decoder.seen.
const (
	seenMethod = 1 << iota
	seenScheme
	seenAuthority
	seenPath
	seenProtocol
	seenStatus
)

// NewDecoder returns a decoder with a dynamic table of tableSize bytes, as our SETTINGS_HEADER_TABLE_SIZE announced.
func NewDecoder(tableSize uint32, limits Limits) *Decoder {
	d := &Decoder{limits: limits, table: newDecTable(tableSize)}
	d.emit = d.take
	return d
}

// MaxBlock is how many bytes of one compressed header block are worth decoding, if only to keep the table in step; a
// longer one ends the connection (CONTINUATION flood, CVE-2024-27919).
func (d *Decoder) MaxBlock() int { return 2*d.limits.Bytes + 4096 }

func (d *Decoder) decode(block []byte, kind sectionKind, a *Arena, fields message.Fields) error {
	d.arena, d.fields, d.kind, d.bytes = a, fields, kind, d.limits.Bytes
	if kind == trailerSection {
		d.bytes = min(d.limits.TrailerBytes, d.limits.Bytes)
	}
	d.size, d.count, d.err, d.regular, d.seen = 0, 0, nil, false, 0
	d.method, d.scheme, d.authority, d.path, d.protocol, d.status = nil, nil, nil, nil, nil, 0
	d.host, d.hasHost, d.length, d.cookie, d.cookieAt, d.expect = nil, false, -1, d.cookie[:0], -1, false
	if kind == skippedSection {
		a = &d.waste
		defer a.Reset()
	}
	if err := d.table.walk(block, a, d.emit); err != nil {
		return ConnError{CompressionError, err.Error()}
	}
	if d.err == nil && d.cookieAt >= 0 {
		d.fields[d.cookieAt].Value = d.arena.keep(d.cookie)
		if cap(d.cookie) > arenaKeep {
			d.cookie = nil
		}
	}
	return d.err
}

// Skip decodes a block for the table's sake only. The error is a ConnError.
func (d *Decoder) Skip(block []byte) error { return d.decode(block, skippedSection, nil, nil) }

// Request decodes the head of a request into r, which was Reset. end says that the frame ended the stream. The error is
// a ConnError, a StreamError (malformed, RFC 9113 section 8.1.1), or ErrTooLarge.
func (d *Decoder) Request(block []byte, end bool, a *Arena, r *message.Request) error {
	err := d.decode(block, requestSection, a, r.Fields)
	r.Fields = d.fields
	if err != nil {
		return err
	}
	r.Major = 2
	r.Method, r.ExpectContinue = d.method, d.expect
	if d.seen&seenMethod == 0 {
		return malformed(":method is missing")
	}
	if err := d.target(r); err != nil {
		return err
	}
	r.Length, err = d.bodyLength(end)
	return err
}

// target fills in scheme, authority and path (section 8.3.1; CONNECT: section 8.5 and RFC 8441 section 4).
func (d *Decoder) target(r *message.Request) error {
	connect := string(d.method) == "CONNECT"
	switch {
	case d.seen&seenProtocol != 0 && !connect:
		return malformed(":protocol without CONNECT")
	case message.CarriesRequests(d.protocol):
		return malformed(":protocol would carry requests past the rules")
	case connect && d.seen&seenProtocol == 0:
		if d.seen&(seenScheme|seenPath) != 0 || d.seen&seenAuthority == 0 {
			return malformed("CONNECT has :authority and nothing else")
		}
	case d.seen&seenScheme == 0 || d.seen&seenPath == 0:
		return malformed(":scheme or :path is missing")
	case string(d.path) == "*":
		if string(d.method) != "OPTIONS" {
			return malformed(":path * without OPTIONS")
		}
		r.Path = d.path
	default:
		var err error
		if r.Path, r.Query, r.HasQuery, err = message.SplitTarget(d.path); err != nil {
			return malformed(err.Error())
		}
	}
	r.Scheme = d.scheme
	if connect && d.seen&seenProtocol != 0 {
		// The canonical form of an upgrade is the one of HTTP/1: a GET (RFC 6455 section 4.1) with the protocol in Upgrade.
		d.method = append(d.method[:0], "GET"...)
		r.Method, r.Upgrade = d.method, d.protocol
	}
	if d.seen&seenAuthority == 0 {
		if !d.hasHost {
			return malformed("neither :authority nor host")
		}
		d.authority, d.hasHost = d.host, false
	}
	var err error
	if r.Authority, r.Host, r.Port, err = message.ParseAuthority(d.authority); err != nil {
		return malformed(err.Error())
	}
	if connect && r.Port == 0 && len(r.Upgrade) == 0 {
		return malformed("CONNECT without a port") // RFC 9110 section 9.3.6
	}
	if d.hasHost {
		host, _, _, err := message.ParseAuthority(d.host)
		if err != nil || string(host) != string(r.Authority) {
			return malformed("host differs from :authority") // section 8.3.1
		}
	}
	return nil
}

// bodyLength is what the head says about the body.
func (d *Decoder) bodyLength(end bool) (int64, error) {
	switch {
	case end && d.length > 0:
		return 0, malformed("content-length of a message without DATA") // section 8.1.1
	case end:
		return 0, nil
	}
	return d.length, nil // -1 is message.Unknown
}

// Response decodes the head of a response into r, which was Reset. toHead says that it answers a HEAD request. The error is
// as of Request.
func (d *Decoder) Response(block []byte, end, toHead bool, a *Arena, r *message.Response) error {
	err := d.decode(block, responseSection, a, r.Fields)
	r.Fields = d.fields
	if err != nil {
		return err
	}
	r.Major, r.Status = 2, d.status
	if d.seen&seenStatus == 0 {
		return malformed(":status is missing")
	}
	switch {
	case d.status == 101:
		return malformed(":status 101") // section 8.6
	case d.status < 200 && end:
		return malformed("informational response ends the stream") // section 8.1
	case d.status < 200 || d.status == 204:
		r.Length = 0 // a Content-Length there has no meaning (RFC 9110 section 8.6)
	case toHead || d.status == 304:
		r.Length = d.length
	default:
		r.HasBody = true
		r.Length, err = d.bodyLength(end)
	}
	return err
}

// Trailers decodes a trailer section and returns it, appended to f. Fields that have no business there are dropped. The
// error is as of Request.
func (d *Decoder) Trailers(block []byte, a *Arena, f message.Fields) (message.Fields, error) {
	err := d.decode(block, trailerSection, a, f)
	return d.fields, err
}

func malformed(reason string) error { return StreamError{ProtocolError, reason} }

func (d *Decoder) fail(reason string) {
	if d.err == nil {
		d.err = malformed(reason)
	}
}

// take takes one decoded field, and reports whether more are wanted. Decoding goes on after an error, as the table must stay
// in step.
func (d *Decoder) take(f *decoded) bool {
	if d.kind == skippedSection {
		return false
	}
	d.size += len(f.name) + len(f.value) + 32
	d.count++
	if d.size > d.bytes || d.count > d.limits.Fields {
		d.err = ErrTooLarge
		return false
	}
	if d.err != nil {
		return true // only to count
	}
	if f.kind >= pseudoName && f.kind <= statusKind {
		d.pseudo(f)
		return true
	}
	d.regular = true
	value := f.value
	if f.kind == badName {
		d.fail("field name is not a lower-case token")
		return true
	}
	if !f.plain {
		if d.limits.Trim {
			value = bytes.Trim(value, " \t")
		}
		if !d.limits.Trim || !message.IsValue(value) {
			d.fail("field value has a control byte or white space around it")
			return true
		}
	}
	if f.kind != ordinaryName && d.special(f.kind, value) || d.kind == trailerSection && message.ForbiddenTrailer(f.name) {
		return true
	}
	d.fields = append(d.fields, message.Field{Name: f.name, Value: value})
	return true
}

// special handles the fields that mean something to the codec and reports whether it is done with one.
func (d *Decoder) special(kind nameKind, value []byte) bool {
	switch kind {
	case hopName:
		d.fail("field of a connection") // section 8.2.2
		return true
	case teName:
		if string(value) != "trailers" {
			d.fail("te is not trailers") // section 8.2.2
			return true
		}
	case settingsName: // RFC 9113 section 3.1; belongs to one hop of HTTP/1
		return true
	}
	if d.kind == trailerSection {
		return false
	}
	switch kind {
	case lengthName:
		n, ok := message.ParseLength(value)
		if !ok || d.length >= 0 && n != d.length {
			d.fail("content-length is not one number")
		}
		d.length = n
		return true
	case hostName:
		if d.kind != requestSection {
			return true
		}
		if d.hasHost {
			d.fail("more than one host")
		}
		d.host, d.hasHost = value, true
		return true
	case cookieName: // section 8.2.3; an empty one has nothing to join, and behind the last "; " it would leave white space
		if len(d.cookie) > 0 && len(value) > 0 {
			d.cookie = append(d.cookie, "; "...)
		}
		d.cookie = append(d.cookie, value...)
		if d.cookieAt >= 0 {
			return true
		}
		d.cookieAt = len(d.fields)
	case expectKind:
		d.expect = string(value) == "100-continue"
	}
	return false
}

// pseudo takes one pseudo field (section 8.3): known, once, before the regular ones.
func (d *Decoder) pseudo(f *decoded) {
	if d.regular {
		d.fail("pseudo field after a regular one")
		return
	}
	var bit uint8
	switch d.kind {
	case requestSection:
		switch f.kind {
		case methodName:
			bit = seenMethod
		case schemeName:
			bit = seenScheme
		case authorityKind:
			bit = seenAuthority
		case pathKind:
			bit = seenPath
		case protocolKind:
			bit = seenProtocol
		}
	case responseSection:
		if f.kind == statusKind {
			bit = seenStatus
		}
	}
	switch {
	case bit == 0:
		d.fail("pseudo field that does not belong here")
		return
	case d.seen&bit != 0:
		d.fail("pseudo field twice")
		return
	}
	d.seen |= bit
	if bit == seenStatus {
		d.setStatus(f.value)
		return
	}
	v := f.value
	switch bit {
	case seenMethod:
		d.method = v
		if !message.IsToken(v) {
			d.fail(":method is not a token")
		}
	case seenScheme:
		message.Lower(v)
		d.scheme = v
		if s := string(v); s != "http" && s != "https" {
			d.fail(":scheme is neither http nor https")
		}
	case seenAuthority:
		d.authority = v
	case seenPath:
		d.path = v
	case seenProtocol:
		message.Lower(v)
		d.protocol = v
		if !message.IsToken(v) {
			d.fail(":protocol is not a token")
		}
	}
}

func (d *Decoder) setStatus(v []byte) {
	if len(v) != 3 || v[0] < '1' || v[0] > '5' || v[1] < '0' || v[1] > '9' || v[2] < '0' || v[2] > '9' {
		d.fail(":status is not a number from 100 to 599")
		return
	}
	d.status = int(v[0]-'0')*100 + int(v[1]-'0')*10 + int(v[2]-'0')
}

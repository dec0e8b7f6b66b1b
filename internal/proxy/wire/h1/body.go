package h1

import (
	"math"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

// maxExtensions bounds the chunk extensions of one message, in bytes, and the digits of a chunk size: amplification
// by extensions has its own advisories (CVE-2023-39326).
const (
	maxExtensions = 4 << 10
	maxSizeDigits = 16
)

// Body decodes one message body (RFC 9112 sections 6 and 7). It is a state machine over bytes as they come.
type Body struct {
	state  bodyState
	left   uint64 // of the body, or of the chunk
	digits int
	ext    int // bytes of extensions so far

	limits   *Limits
	raw      []byte // the trailer section as received, kept for its whole length
	trailers message.Fields
}

type bodyState uint8

const (
	bodyDone bodyState = iota
	bodyLength
	bodyUntilClose
	chunkSize
	chunkSpace // white space before the ';' of an extension
	chunkExt
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerStart // at the beginning of a trailer line
	trailerLine
	trailerEndLF
)

// Reset readies d for a body: of length bytes, chunked when length is message.Unknown, or until the connection closes.
func (d *Body) Reset(length int64, untilClose bool, limits *Limits) {
	*d = Body{limits: limits, raw: d.raw[:0], trailers: d.trailers[:0]}
	switch {
	case untilClose:
		d.state = bodyUntilClose
	case length == message.Unknown:
		d.state = chunkSize
	case length > 0:
		d.state, d.left = bodyLength, uint64(length)
	}
}

// Done reports whether the body is complete.
func (d *Body) Done() bool { return d.state == bodyDone }

// Whole reports whether b, what follows the head, has all of the body. It is exact for a length and false for others.
func (d *Body) Whole(b []byte) bool {
	return d.state == bodyDone || d.state == bodyLength && uint64(len(b)) >= d.left
}

// UntilClose reports whether the body ends with the connection.
func (d *Body) UntilClose() bool { return d.state == bodyUntilClose }

// Remaining returns how many bytes a body of known length still has, or -1.
func (d *Body) Remaining() int64 {
	switch d.state {
	case bodyDone:
		return 0
	case bodyLength:
		return int64(min(d.left, math.MaxInt64))
	}
	return -1
}

// Trailers returns the trailer fields of a body that is done.
func (d *Body) Trailers() message.Fields { return d.trailers }

// Next decodes the start of b: data is a slice of it (perhaps empty), n how many bytes were used. It returns after each
// piece of data, so call it until n is 0 or the body is Done.
func (d *Body) Next(b []byte) (data []byte, n int, err error) {
	for n < len(b) {
		switch d.state {
		case bodyDone:
			return nil, n, nil
		case bodyUntilClose:
			return b[n:], len(b), nil
		case bodyLength, chunkData:
			data = b[n:]
			if uint64(len(data)) >= d.left {
				data = data[:d.left]
				if d.state == chunkData {
					d.state = chunkDataCR
				} else {
					d.state = bodyDone
				}
			}
			d.left -= uint64(len(data))
			n += len(data)
			// The end of a chunk, and of the body, are often here already: take them with the data.
			if d.state == chunkDataCR {
				return d.afterChunk(b, data, n)
			}
			return data, n, nil
		default:
			if err := d.step(b[n]); err != nil {
				return nil, n, err
			}
			n++
		}
	}
	return nil, n, nil
}

// afterChunk goes on after chunk data up to the next data, so that a body whose last bytes are in b is seen to be done.
func (d *Body) afterChunk(b, data []byte, n int) ([]byte, int, error) {
	for n < len(b) && d.state != chunkData && d.state != bodyDone {
		if err := d.step(b[n]); err != nil {
			return nil, n, err
		}
		n++
	}
	return data, n, nil
}

// step takes one byte of framing.
func (d *Body) step(c byte) error {
	switch d.state {
	case chunkSize:
		return d.sizeByte(c)
	case chunkSpace:
		switch c {
		case ' ', '\t':
			if d.ext++; d.ext > maxExtensions {
				return ErrExtensions
			}
		case ';':
			d.state = chunkExt
		default:
			return ErrChunkSize
		}
	case chunkExt:
		// RFC 9112 section 7.1.1: ignored, but a bare CR or LF in it hides the end of the line from one of two parsers
		// (CVE-2025-22871).
		switch {
		case c == '\r':
			d.state = chunkSizeLF
		case c == '\t' || c >= ' ' && c != 0x7f:
			if d.ext++; d.ext > maxExtensions {
				return ErrExtensions
			}
		default:
			return ErrChunk
		}
	case chunkSizeLF:
		if c != '\n' {
			return ErrChunk
		}
		d.state, d.digits = chunkData, 0
		if d.left == 0 {
			d.state = trailerStart
		}
	case chunkDataCR:
		if c != '\r' {
			return ErrChunk
		}
		d.state = chunkDataLF
	case chunkDataLF:
		if c != '\n' {
			return ErrChunk
		}
		d.state = chunkSize
	default:
		return d.trailerByte(c)
	}
	return nil
}

func (d *Body) sizeByte(c byte) error {
	var v byte
	switch {
	case c >= '0' && c <= '9':
		v = c - '0'
	case c >= 'a' && c <= 'f':
		v = c - 'a' + 10
	case c >= 'A' && c <= 'F':
		v = c - 'A' + 10
	case d.digits == 0:
		return ErrChunkSize
	case c == '\r':
		d.state = chunkSizeLF
		return nil
	case c == ';':
		d.state = chunkExt
		d.ext++
		return nil
	case c == ' ' || c == '\t': // RFC 9110 section 5.6.3: bad white space is to be understood, where the grammar has it
		d.state = chunkSpace
		d.ext++
		return nil
	default:
		return ErrChunkSize
	}
	d.digits++
	d.left = d.left<<4 | uint64(v)
	if d.digits > maxSizeDigits || d.left > math.MaxInt64 {
		return ErrChunkSize
	}
	return nil
}

func (d *Body) trailerByte(c byte) error {
	if d.state == trailerStart && c == '\r' {
		d.state = trailerEndLF
		return nil
	}
	if d.state == trailerEndLF {
		if c != '\n' {
			return ErrLineEnd
		}
		d.state = bodyDone
		return d.parseTrailers()
	}
	d.state = trailerLine
	if len(d.raw) >= d.limits.Trailers {
		return ErrTrailers
	}
	d.raw = append(d.raw, c)
	if c == '\n' {
		if len(d.raw) < 2 || d.raw[len(d.raw)-2] != '\r' {
			return ErrLineEnd
		}
		d.state = trailerStart
	}
	return nil
}

func (d *Body) parseTrailers() error {
	if len(d.raw) == 0 {
		return nil
	}
	d.raw = append(d.raw, '\r', '\n')
	t := trailerSection{fields: d.trailers, max: d.limits.Fields}
	if err := t.read(d.raw); err != nil {
		return err
	}
	d.trailers = t.fields
	return nil
}

type trailerSection struct {
	fields message.Fields
	max    int
}

func (t *trailerSection) read(b []byte) error {
	for lines := 1; b[0] != '\r'; lines++ {
		if b[0] == ' ' || b[0] == '\t' {
			return ErrFold
		}
		if lines > t.max {
			return ErrManyFields
		}
		colon := 0
		for {
			c := nameByte[b[colon]]
			if c == 0 {
				break
			}
			b[colon] = c
			colon++
		}
		if b[colon] != ':' || colon == 0 {
			return ErrTrailerField
		}
		end := valueEnd(b, colon+1)
		if b[end] != '\r' || b[end+1] != '\n' { // the caller saw to it that b ends with an empty line
			return ErrTrailerField
		}
		name, value := b[:colon], trim(b[colon+1:end])
		b = b[end+2:]
		if !message.ForbiddenTrailer(name) { // RFC 9110 section 6.5.1: such a field is dropped, not merged
			t.fields = append(t.fields, message.Field{Name: name, Value: value})
		}
	}
	return nil
}

package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/malha-mesh/malha/internal/wire/codec"
)

// Limits on the length of a frame's body, in bytes. A reader states the least that it must accept: before a peer proved who
// it is, nobody gets memory for more than a signing request.
const (
	MaxGreeting = 64 << 10 // first message of a connection that presented no certificate
	MaxUpstream = 8 << 20  // proxy to control plane: a Hello that lists some 80,000 pieces
	MaxDelta    = 16 << 20 // control plane to proxy
	// MaxPiece is the longest encoding of one piece; one always fits into a delta.
	MaxPiece = 8 << 20
	// DeltaTarget is how long a delta grows before it is continued in another frame.
	DeltaTarget = 256 << 10
)

// headerLen is the length of what stands before a body: its length as 4 bytes, big-endian, and its type.
const headerLen = 5

// AppendFrame appends the frame of a message to dst. body is a pointer to the message struct, nil for none.
func AppendFrame(dst []byte, t Type, body any) ([]byte, error) {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0, byte(t))
	if body != nil {
		var err error
		if dst, err = codec.Append(dst, body); err != nil {
			return dst[:start], err
		}
	}
	n := len(dst) - start - headerLen
	if n > MaxDelta {
		return dst[:start], fmt.Errorf("%w: %s of %d bytes, at most %d are possible", ErrFrame, t, n, MaxDelta)
	}
	binary.BigEndian.PutUint32(dst[start:], uint32(n))
	return dst, nil
}

// Reader reads frames. It is for one goroutine.
type Reader struct {
	r   io.Reader
	buf bytes.Buffer
}

// NewReader returns a reader of r. It reads ahead nothing.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// keep is how much buffer a reader holds on to between frames: a proxy is idle most of its life.
const keep = 8 << 10

// Next reads one frame with a body of at most limit bytes. The body is valid until the next call. io.EOF says that the
// peer hung up between frames.
func (r *Reader) Next(limit int) (Type, []byte, error) {
	if r.buf.Cap() > keep {
		r.buf = bytes.Buffer{}
	}
	r.buf.Reset()
	var header [headerLen]byte
	if _, err := io.ReadFull(r.r, header[:]); err != nil {
		return 0, nil, err
	}
	t, n := Type(header[4]), int64(binary.BigEndian.Uint32(header[:4]))
	if n > int64(limit) {
		return t, nil, fmt.Errorf("%w: %s of %d bytes, at most %d are accepted", ErrFrame, t, n, limit)
	}
	// CopyN grows the buffer as bytes arrive: a length alone costs us nothing.
	if _, err := io.CopyN(&r.buf, r.r, n); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return t, nil, err
	}
	return t, r.buf.Bytes(), nil
}

// Decode reads the body of a message of type t into the struct that v points to. want is the type that v is for.
func Decode(t, want Type, body []byte, v any) error {
	if t != want {
		return fmt.Errorf("%w: got %s, want %s", ErrFrame, t, want)
	}
	if err := codec.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrFrame, t, err)
	}
	return nil
}

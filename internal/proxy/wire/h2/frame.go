// Package h2 is HTTP/2 (RFC 9113) without the sockets: frames, SETTINGS, header blocks (HPACK, RFC 7541), flow-control
// windows, stream states and the budgets that keep a hostile peer cheap.
//
// In come slices of bytes that somebody read; out go messages in the canonical form of internal/proxy/message, and bytes
// appended to a buffer that somebody will write. It has no goroutine, no lock and no clock: every type belongs to one
// connection and is guarded by whoever owns that (internal/proxy/conn).
package h2

import (
	"encoding/binary"
	"fmt"
)

// Preface is what a client sends first (RFC 9113 section 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Sizes that the protocol fixes.
const (
	FrameHeaderLen  = 9
	MinMaxFrame     = 16384 // the largest frame that everybody takes (section 4.2)
	MaxMaxFrame     = 1<<24 - 1
	MaxWindow       = 1<<31 - 1
	InitialWindow   = 65535
	InitialTable    = 4096 // HPACK dynamic table
	maxStreamIDMask = 1<<31 - 1
)

// FrameType is the type of a frame (section 6).
type FrameType uint8

// The frame types.
const (
	Data         FrameType = 0x0
	Headers      FrameType = 0x1
	Priority     FrameType = 0x2
	RSTStream    FrameType = 0x3
	SettingsType FrameType = 0x4
	PushPromise  FrameType = 0x5
	Ping         FrameType = 0x6
	GoAway       FrameType = 0x7
	WindowUpdate FrameType = 0x8
	Continuation FrameType = 0x9
)

// Flags of a frame; their meaning depends on its type.
type Flags uint8

// The flags.
const (
	FlagAck        Flags = 0x1 // SETTINGS, PING
	FlagEndStream  Flags = 0x1 // DATA, HEADERS
	FlagEndHeaders Flags = 0x4 // HEADERS, CONTINUATION
	FlagPadded     Flags = 0x8 // DATA, HEADERS
	FlagPriority   Flags = 0x20
)

// ErrCode is an error code of RST_STREAM and GOAWAY (section 7).
type ErrCode uint32

// The error codes.
const (
	NoError            ErrCode = 0x0
	ProtocolError      ErrCode = 0x1
	InternalError      ErrCode = 0x2
	FlowControlError   ErrCode = 0x3
	SettingsTimeout    ErrCode = 0x4
	StreamClosed       ErrCode = 0x5
	FrameSizeError     ErrCode = 0x6
	RefusedStream      ErrCode = 0x7
	Cancel             ErrCode = 0x8
	CompressionError   ErrCode = 0x9
	ConnectError       ErrCode = 0xa
	EnhanceYourCalm    ErrCode = 0xb
	InadequateSecurity ErrCode = 0xc
	HTTP11Required     ErrCode = 0xd
)

var errNames = [...]string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
	"FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY",
	"HTTP_1_1_REQUIRED"}

// String returns the name that RFC 9113 gives the code.
func (c ErrCode) String() string {
	if int(c) < len(errNames) {
		return errNames[c]
	}
	return fmt.Sprintf("error code 0x%x", uint32(c))
}

// ConnError ends the connection: GOAWAY with Code, then close (section 5.4.1).
type ConnError struct {
	Code   ErrCode
	Reason string
}

// Error implements error.
func (e ConnError) Error() string {
	return "http2 connection error " + e.Code.String() + ": " + e.Reason
}

// StreamError ends one stream: RST_STREAM with Code (section 5.4.2).
type StreamError struct {
	Code   ErrCode
	Reason string
}

// Error implements error.
func (e StreamError) Error() string { return "http2 stream error " + e.Code.String() + ": " + e.Reason }

// FrameHeader is the first nine bytes of a frame (section 4.1).
type FrameHeader struct {
	Length   uint32
	Type     FrameType
	Flags    Flags
	StreamID uint32
}

// ParseFrameHeader reads a frame header; b has at least FrameHeaderLen bytes. The reserved bit is ignored.
func ParseFrameHeader(b []byte) FrameHeader {
	_ = b[8]
	return FrameHeader{
		Length:   uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2]),
		Type:     FrameType(b[3]),
		Flags:    Flags(b[4]),
		StreamID: binary.BigEndian.Uint32(b[5:]) & maxStreamIDMask,
	}
}

// Has reports whether flag f is set.
func (h FrameHeader) Has(f Flags) bool { return h.Flags&f != 0 }

// Check applies the rules that need nothing but the header: which streams a type may be on and how long it may be.
// maxFrame is the SETTINGS_MAX_FRAME_SIZE that we announced. The error is a ConnError, or a StreamError for PRIORITY.
func (h FrameHeader) Check(maxFrame uint32) error {
	if h.Length > maxFrame {
		return ConnError{FrameSizeError, "frame is longer than SETTINGS_MAX_FRAME_SIZE"} // section 4.2
	}
	switch h.Type {
	case Data, Headers, Priority, RSTStream, PushPromise, Continuation:
		if h.StreamID == 0 {
			return ConnError{ProtocolError, "stream frame on stream 0"} // sections 6.1 to 6.4, 6.6, 6.10
		}
	case SettingsType, Ping, GoAway:
		if h.StreamID != 0 {
			return ConnError{ProtocolError, "connection frame on a stream"} // sections 6.5, 6.7, 6.8
		}
	}
	switch h.Type {
	case Priority:
		if h.Length != 5 {
			return StreamError{FrameSizeError, "PRIORITY is not 5 bytes"} // section 6.3
		}
	case RSTStream, WindowUpdate:
		if h.Length != 4 {
			return ConnError{FrameSizeError, "RST_STREAM or WINDOW_UPDATE is not 4 bytes"} // sections 6.4, 6.9
		}
	case Ping:
		if h.Length != 8 {
			return ConnError{FrameSizeError, "PING is not 8 bytes"} // section 6.7
		}
	case GoAway:
		if h.Length < 8 {
			return ConnError{FrameSizeError, "GOAWAY is shorter than 8 bytes"} // section 6.8
		}
	case SettingsType:
		if h.Has(FlagAck) && h.Length != 0 || h.Length%6 != 0 {
			return ConnError{FrameSizeError, "SETTINGS is not a multiple of 6 bytes, or its acknowledgement not empty"} // section 6.5
		}
	}
	return nil
}

// Unpad returns a DATA payload without its padding (section 6.1).
func (h FrameHeader) Unpad(p []byte) ([]byte, error) {
	if !h.Has(FlagPadded) {
		return p, nil
	}
	if len(p) == 0 {
		return nil, ConnError{FrameSizeError, "padded frame without a pad length"}
	}
	pad := int(p[0])
	if pad >= len(p) {
		return nil, ConnError{ProtocolError, "padding is as long as the frame"}
	}
	return p[1 : len(p)-pad], nil
}

// Fragment returns the header block fragment of a HEADERS payload, without padding and priority (section 6.2).
// The error is a ConnError; a stream that depends on itself is a StreamError, with the fragment (section 5.3.1 of RFC
// 7540; ignoring it would be allowed by RFC 9113, but only an attacker sends it).
func (h FrameHeader) Fragment(p []byte) ([]byte, error) {
	p, err := h.Unpad(p)
	if err != nil || !h.Has(FlagPriority) {
		return p, err
	}
	if len(p) < 5 {
		return nil, ConnError{FrameSizeError, "HEADERS is too short for its priority"}
	}
	if binary.BigEndian.Uint32(p)&maxStreamIDMask == h.StreamID {
		err = StreamError{ProtocolError, "stream depends on itself"}
	}
	return p[5:], err
}

// AppendFrameHeader appends the nine bytes.
func AppendFrameHeader(b []byte, h FrameHeader) []byte {
	return append(b, byte(h.Length>>16), byte(h.Length>>8), byte(h.Length), byte(h.Type), byte(h.Flags),
		byte(h.StreamID>>24), byte(h.StreamID>>16), byte(h.StreamID>>8), byte(h.StreamID))
}

// AppendData appends a DATA frame. p is at most the peer's MaxFrame.
func AppendData(b []byte, id uint32, p []byte, end bool) []byte {
	h := FrameHeader{Length: uint32(len(p)), Type: Data, StreamID: id}
	if end {
		h.Flags = FlagEndStream
	}
	return append(AppendFrameHeader(b, h), p...)
}

// BeginHeaders makes room for the header of a HEADERS frame; the block is appended next, then EndHeaders is called.
func BeginHeaders(b []byte) []byte {
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0, 0)
}

// EndHeaders completes the HEADERS frame that BeginHeaders started at b[start:]. A block longer than maxFrame is spread
// over CONTINUATION frames (section 6.10).
func EndHeaders(b []byte, start int, id uint32, end bool, maxFrame int) []byte {
	h := FrameHeader{Type: Headers, StreamID: id}
	if end {
		h.Flags = FlagEndStream
	}
	block := b[start+FrameHeaderLen:]
	if len(block) <= maxFrame {
		h.Length = uint32(len(block))
		h.Flags |= FlagEndHeaders
		AppendFrameHeader(b[:start], h)
		return b
	}
	rest := append([]byte(nil), block[maxFrame:]...)
	h.Length = uint32(maxFrame)
	AppendFrameHeader(b[:start], h)
	b = b[:start+FrameHeaderLen+maxFrame]
	for len(rest) > 0 {
		n := min(len(rest), maxFrame)
		h = FrameHeader{Length: uint32(n), Type: Continuation, StreamID: id}
		if n == len(rest) {
			h.Flags = FlagEndHeaders
		}
		b = append(AppendFrameHeader(b, h), rest[:n]...)
		rest = rest[n:]
	}
	return b
}

// AppendReset appends a RST_STREAM frame.
func AppendReset(b []byte, id uint32, code ErrCode) []byte {
	b = AppendFrameHeader(b, FrameHeader{Length: 4, Type: RSTStream, StreamID: id})
	return binary.BigEndian.AppendUint32(b, uint32(code))
}

// AppendWindowUpdate appends a WINDOW_UPDATE frame; id 0 is the connection.
func AppendWindowUpdate(b []byte, id, n uint32) []byte {
	b = AppendFrameHeader(b, FrameHeader{Length: 4, Type: WindowUpdate, StreamID: id})
	return binary.BigEndian.AppendUint32(b, n)
}

// AppendPing appends a PING frame.
func AppendPing(b []byte, ack bool, data [8]byte) []byte {
	h := FrameHeader{Length: 8, Type: Ping}
	if ack {
		h.Flags = FlagAck
	}
	return append(AppendFrameHeader(b, h), data[:]...)
}

// AppendGoAway appends a GOAWAY frame. last is the highest stream that was or may be processed.
func AppendGoAway(b []byte, last uint32, code ErrCode, debug string) []byte {
	b = AppendFrameHeader(b, FrameHeader{Length: 8 + uint32(len(debug)), Type: GoAway})
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, debug...)
}

// ParseGoAway reads a GOAWAY payload of at least 8 bytes.
func ParseGoAway(p []byte) (last uint32, code ErrCode) {
	return binary.BigEndian.Uint32(p) & maxStreamIDMask, ErrCode(binary.BigEndian.Uint32(p[4:]))
}

// ParseReset reads the code of a RST_STREAM payload.
func ParseReset(p []byte) ErrCode { return ErrCode(binary.BigEndian.Uint32(p)) }

// ParseWindowUpdate reads the increment of a WINDOW_UPDATE payload.
func ParseWindowUpdate(p []byte) uint32 { return binary.BigEndian.Uint32(p) & maxStreamIDMask }

// ParsePriority returns the stream that a PRIORITY payload makes another depend on.
func ParsePriority(p []byte) uint32 { return binary.BigEndian.Uint32(p) & maxStreamIDMask }

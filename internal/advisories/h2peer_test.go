package advisories

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2peer is a raw HTTP/2 connection: what it writes may be anything, what it reads is checked by another implementation.
type h2peer struct {
	mute bool // PINGs are not answered
	t    testing.TB
	nc   net.Conn
	in   *http2.Framer
	dec  *hpack.Decoder
	got  map[uint32]*h2answer
	away *http2.ErrCode // of GOAWAY with an error
	err  error          // of reading
}

// h2answer is what came on a stream.
type h2answer struct {
	status   int
	interim  int
	fields   [][2]string
	body     []byte
	trailers [][2]string
	ended    bool
	reset    *http2.ErrCode
}

// String is the status, or how the stream ended without one.
func (a *h2answer) String() string {
	switch {
	case a == nil:
		return "nothing"
	case a.reset != nil && a.status == 0:
		return a.reset.String()
	}
	return strconv.Itoa(a.status)
}

func (l *lab) dialH2(settings ...byte) *h2peer {
	l.t.Helper()
	nc, err := net.Dial("tcp", l.at)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(patience))
	c := newH2peer(l.t, nc)
	c.send([]byte(http2.ClientPreface), frame(http2.FrameSettings, 0, 0, settings))
	return c
}

func newH2peer(t testing.TB, nc net.Conn) *h2peer {
	c := &h2peer{t: t, nc: nc, in: http2.NewFramer(io.Discard, nc), got: map[uint32]*h2answer{}}
	c.in.SetMaxReadFrameSize(1 << 14) // what we allow
	c.dec = hpack.NewDecoder(4096, nil)
	return c
}

func frame(typ http2.FrameType, flags http2.Flags, id uint32, p []byte) []byte {
	b := []byte{byte(len(p) >> 16), byte(len(p) >> 8), byte(len(p)), byte(typ), byte(flags)}
	return append(binary.BigEndian.AppendUint32(b, id), p...)
}

func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func setting(id http2.SettingID, v uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(nil, uint16(id)), v)
}

// send writes, and does not mind a connection that is gone.
func (c *h2peer) send(frames ...[]byte) error {
	_, err := c.nc.Write(bytes.Join(frames, nil))
	return err
}

// raw encodes fields without the dynamic table and without Huffman codes, so that blocks do not depend on each other.
func raw(kv ...string) []byte {
	var b []byte
	str := func(s string) {
		n := len(s)
		if n < 127 {
			b = append(b, byte(n))
		} else {
			b = append(b, 127)
			for n -= 127; n >= 128; n >>= 7 {
				b = append(b, byte(n)|128)
			}
			b = append(b, byte(n))
		}
		b = append(b, s...)
	}
	for i := 0; i+1 < len(kv); i += 2 {
		b = append(b, 0)
		str(kv[i])
		str(kv[i+1])
	}
	return b
}

var get = []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"}
var post = []string{":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a"}

// with is fields and more of them.
func with(fields []string, more ...string) []string {
	return append(append([]string(nil), fields...), more...)
}

// open is HEADERS, with CONTINUATION where the block is long.
func open(id uint32, end bool, block []byte) []byte {
	var flags http2.Flags
	if end {
		flags = http2.FlagHeadersEndStream
	}
	const most = 16 << 10
	if len(block) <= most {
		return frame(http2.FrameHeaders, flags|http2.FlagHeadersEndHeaders, id, block)
	}
	b := frame(http2.FrameHeaders, flags, id, block[:most])
	for block = block[most:]; len(block) > most; block = block[most:] {
		b = append(b, frame(http2.FrameContinuation, 0, id, block[:most])...)
	}
	return append(b, frame(http2.FrameContinuation, http2.FlagContinuationEndHeaders, id, block)...)
}

func data(id uint32, end bool, p string) []byte {
	var flags http2.Flags
	if end {
		flags = http2.FlagDataEndStream
	}
	return frame(http2.FrameData, flags, id, []byte(p))
}

func reset(id uint32) []byte {
	return frame(http2.FrameRSTStream, 0, id, u32(uint32(http2.ErrCodeCancel)))
}

// step reads one frame.
func (c *h2peer) step() error {
	if c.err != nil {
		return c.err
	}
	f, err := c.in.ReadFrame()
	if err != nil {
		c.err = err
		var ce http2.ConnectionError
		if errors.As(err, &ce) || errors.Is(err, http2.ErrFrameTooLarge) {
			c.t.Errorf("the proxy broke the protocol: %v", err)
		}
		return err
	}
	id := f.Header().StreamID
	a := c.got[id]
	if a == nil {
		a = &h2answer{}
		c.got[id] = a
	}
	switch f := f.(type) {
	case *http2.HeadersFrame:
		block := bytes.Clone(f.HeaderBlockFragment())
		for more := !f.HeadersEnded(); more; {
			next, err := c.in.ReadFrame()
			if err != nil {
				c.err = err
				return err
			}
			cont := next.(*http2.ContinuationFrame)
			block = append(block, cont.HeaderBlockFragment()...)
			more = !cont.HeadersEnded()
		}
		fields, err := c.dec.DecodeFull(block)
		if err != nil {
			c.t.Errorf("a header block that can't be decoded: %v", err)
			return err
		}
		a.take(fields)
		a.ended = f.StreamEnded()
	case *http2.DataFrame:
		a.body = append(a.body, f.Data()...)
		a.ended = f.StreamEnded()
	case *http2.RSTStreamFrame:
		code := f.ErrCode
		a.reset, a.ended = &code, true
	case *http2.GoAwayFrame:
		if code := f.ErrCode; code != http2.ErrCodeNo {
			c.away = &code
		}
	case *http2.PingFrame:
		if !f.IsAck() && !c.mute {
			_ = c.send(frame(http2.FramePing, http2.FlagPingAck, 0, f.Data[:]))
		}
	}
	return nil
}

func (a *h2answer) take(fields []hpack.HeaderField) {
	var list [][2]string
	status := 0
	for _, f := range fields {
		if f.Name == ":status" {
			status, _ = strconv.Atoi(f.Value)
			continue
		}
		list = append(list, [2]string{f.Name, f.Value})
	}
	switch {
	case status == 0:
		a.trailers = list
	case status < 200:
		a.interim++
	default:
		a.status, a.fields = status, list
	}
}

// until reads until a stream ended, and returns what came on it; also when the connection ended before.
func (c *h2peer) until(id uint32) *h2answer {
	c.t.Helper()
	for c.got[id] == nil || !c.got[id].ended {
		if c.step() != nil {
			break
		}
	}
	return c.got[id]
}

// farewell reads to the end of the connection and returns why the proxy ended it.
func (c *h2peer) farewell() string {
	for c.step() == nil {
	}
	if c.away != nil {
		return c.away.String()
	}
	return fmt.Sprint(c.err)
}

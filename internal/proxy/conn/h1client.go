package conn

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/wire/h1"
)

// H1Client is the client side of an HTTP/1 connection: a stream.Upstream that is used for one exchange after the other.
//
// The goroutine of the exchange owns it. While a request body is sent, one goroutine may write and another may read.
// Between exchanges it holds no buffers and nobody touches it but the pool (Alive, CloseConn).
type H1Client struct {
	nc      net.Conn
	cfg     *Config
	release func(c *H1Client, reusable bool)
	limits  h1.Limits
	sock    *Socket // under nc; nil when that is something else
	plain   bool    // nc is sock
	peek    *peeker
	reused  bool // it carried an exchange before

	cancelled atomic.Bool

	// Reading side.
	receiver
	inBuf    *[smallBuffer]byte
	deadline time.Time // the one that the stack wants
	armed    time.Time // the one that is set: never later, perhaps earlier
	gotByte  bool
	gotHead  bool
	mustEnd  bool // the connection ends with this exchange
	hijacked bool
	asked    h1.Asked

	// Writing side.
	outBuf    *[smallBuffer]byte
	out       []byte
	vec       vector
	writeBy   time.Time // the write deadline that is set
	sendBy    time.Time // the one that the stack wants; a Socket keeps it itself
	werr      error
	left      int64 // of a request body of known length; message.Unknown: chunked
	headSent  bool
	sent      bool // the request is complete
	flushed   bool // a part of it is on its way
	whole     int  // size of a request that goes out in one piece, in bytes, before TLS
	upgrading bool
}

// NewH1Client returns a client on a connection, TLS already done. Close calls release with whether the connection may
// carry another exchange; when it may not, it is closed already.
func NewH1Client(nc net.Conn, cfg *Config, release func(c *H1Client, reusable bool)) *H1Client {
	c := &H1Client{
		nc: nc, cfg: cfg, release: release, peek: newPeeker(nc),
		limits: h1.Limits{RequestLine: cfg.MaxRequestLine, Head: cfg.MaxHead, Fields: 2 * cfg.MaxFields, Trailers: cfg.MaxTrailers},
	}
	if c.sock, c.plain = socketOf(nc); c.sock != nil {
		c.sock.limit(cfg.WriteTimeout)
	}
	return c
}

var _ stream.Upstream = (*H1Client)(nil)

// Conn returns the connection, for its addresses.
func (c *H1Client) Conn() net.Conn { return c.nc }

// Begin readies the client for the next exchange. Call it before each one.
func (c *H1Client) Begin() {
	c.inBuf, c.outBuf = smallBuffers.Get().(*[smallBuffer]byte), smallBuffers.Get().(*[smallBuffer]byte)
	c.in, c.out = c.inBuf[:], c.outBuf[:0]
	c.r, c.w, c.br, c.bw = 0, 0, 0, 0
	c.scan = h1.Scan{}
	c.deadline = time.Time{}
	c.SetWriteDeadline(time.Time{})
	c.gotByte, c.gotHead, c.mustEnd, c.hijacked = false, false, false, false
	c.werr, c.left, c.headSent, c.sent, c.flushed, c.upgrading = nil, 0, false, false, false, false
	c.whole = 0
}

// Alive reports whether an idle connection can be expected to work: the peer has neither closed it nor sent anything.
// It does not block and costs one system call.
func (c *H1Client) Alive() bool { return c.peek.peek() == nothing }

// CloseConn closes the connection of an idle client.
func (c *H1Client) CloseConn() { _ = c.nc.Close() }

// WriteHead implements stream.Upstream.
func (c *H1Client) WriteHead(r *message.Request, end bool) error {
	c.asked = h1.AskedBy(r.Method)
	c.upgrading = len(r.Upgrade) > 0 || c.asked == h1.AskedConnect
	c.out = h1.AppendRequest(c.out, r)
	c.headSent = true
	c.left = r.Length
	c.sent = end || r.Length == 0
	if end && r.Length == message.Unknown { // announced as chunked, and there is nothing
		c.out = h1.AppendLastChunk(c.out, nil)
	} else if end && r.Length > 0 {
		c.werr = stream.ErrProtocol
	}
	return c.werr
}

// WriteBody implements stream.Upstream.
func (c *H1Client) WriteBody(p []byte, end bool) error {
	if c.werr != nil {
		return c.werr
	}
	if c.hijacked {
		err := c.write(p, nil)
		if end && err == nil {
			if err = c.Flush(); err == nil {
				_ = closeWrite(c.nc)
			}
		}
		return err
	}
	if c.left == message.Unknown {
		return c.writeChunk(p, end)
	}
	if int64(len(p)) > c.left || end && int64(len(p)) < c.left {
		c.werr = stream.ErrProtocol
		return c.werr
	}
	c.left -= int64(len(p))
	c.sent = c.left == 0
	return c.write(p, nil)
}

func (c *H1Client) writeChunk(p []byte, end bool) error {
	var err error
	switch {
	case len(p) == 0:
	case len(p) <= copyLimit:
		c.out = h1.AppendChunk(c.out, p)
		if len(c.out) >= 2*copyLimit {
			err = c.Flush()
		}
	default:
		c.out = h1.AppendChunkHead(c.out, len(p))
		err = c.write(p, crlf)
	}
	if end && err == nil {
		c.out = h1.AppendLastChunk(c.out, nil)
		c.sent = true
	}
	return err
}

// WriteTrailers implements stream.Upstream. A request of known length has nowhere to put them.
func (c *H1Client) WriteTrailers(t message.Fields) error {
	if c.werr != nil {
		return c.werr
	}
	if c.left == message.Unknown {
		c.out = h1.AppendLastChunk(c.out, t)
		c.sent = true
	}
	if !c.sent {
		c.werr = stream.ErrProtocol
	}
	return c.werr
}

// Flush implements stream.Upstream. A request that is complete at the first flush is held until ReadHead, which is due
// now: sending it and waiting for the answer is one step then.
func (c *H1Client) Flush() error {
	if len(c.out) == 0 || c.werr != nil {
		return c.werr
	}
	if c.sent && !c.flushed && c.sock != nil {
		c.flushed, c.whole = true, len(c.out)
		return c.hold()
	}
	c.flushed = true
	c.boundWrite()
	_, err := c.nc.Write(c.out)
	c.out = c.out[:0]
	return c.wrote(err)
}

func (c *H1Client) hold() error {
	if c.plain {
		c.sock.hold(c.out) // nothing is appended to out before it has gone
		c.out = c.out[:0]
		return nil
	}
	c.sock.holdWrites()
	_, err := c.nc.Write(c.out)
	c.out = c.out[:0]
	return c.wrote(err)
}

// write writes what waits, then p and after, together; small pieces only join what waits.
func (c *H1Client) write(p, after []byte) error {
	if len(p) <= copyLimit && len(c.out)+len(p) <= 2*copyLimit {
		c.out = append(append(c.out, p...), after...)
		return nil
	}
	c.flushed = true
	c.boundWrite()
	err := c.vec.write(c.nc, c.out, p, after)
	c.out = c.out[:0]
	return c.wrote(err)
}

func (c *H1Client) wrote(err error) error {
	if err != nil {
		c.werr = stream.ErrReset
		if c.cancelled.Load() {
			c.werr = stream.ErrCancelled
		} else if isTimeout(err) {
			c.werr = stream.ErrDeadline
		}
	}
	return c.werr
}

func (c *H1Client) boundWrite() {
	if c.sock != nil {
		return // it does that itself
	}
	want := time.Now().Add(c.cfg.WriteTimeout)
	switch {
	case !c.sendBy.IsZero() && c.sendBy.Before(want):
		c.writeBy = time.Time{} // for the next write to set another one
		_ = c.nc.SetWriteDeadline(c.sendBy)
	case want.Sub(c.writeBy) > granule:
		c.writeBy = want
		_ = c.nc.SetWriteDeadline(want)
	}
}

// ReadHead implements stream.Upstream. It flushes nothing. An error of writing is no reason not to call it: the response
// may be there already (RFC 9112 section 9.5).
func (c *H1Client) ReadHead(r *message.Response) error {
	for {
		if c.r < c.w {
			n, err := h1.ParseResponse(c.in[c.r:c.w], &c.scan, r, c.asked, &c.limits)
			if err != nil {
				c.mustEnd = true
				return errors.Join(stream.ErrProtocol, err)
			}
			if n > 0 {
				c.r += n
				c.scan = h1.Scan{}
				return c.tookHead(r)
			}
		}
		c.headRoom(c.cfg.MaxHead)
		n, err := c.read(c.in[c.w:])
		c.w += n
		if n > 0 {
			c.gotByte = true
			continue
		}
		return c.headError(err)
	}
}

func (c *H1Client) tookHead(r *message.Response) error {
	if r.Status < 200 && r.Status != 101 {
		c.mustEnd = c.mustEnd || r.Close // or what it says is its body would be taken for the answer to the next request
		return nil
	}
	if r.Status == 101 && !c.upgrading {
		c.mustEnd = true
		return stream.ErrProtocol // RFC 9110 section 7.8: nobody asked
	}
	c.gotHead = true
	length := r.Length
	if !r.HasBody {
		length = 0
	}
	c.body.Reset(length, r.UntilClose, &c.limits)
	// After a switch the connection is a tunnel, also when nobody uses it as one (CVE-2026-71324).
	c.mustEnd = c.mustEnd || r.Close || r.Status == 101 || c.asked == h1.AskedConnect && r.Status/100 == 2
	return nil
}

// headError decides what the end of a connection before a response means.
func (c *H1Client) headError(err error) error {
	switch {
	case c.cancelled.Load():
		return stream.ErrCancelled
	case errors.Is(err, stream.ErrDeadline):
		return err
	case errors.Is(err, errNotTaken):
		c.mustEnd = true
		return stream.ErrReset
	case c.reused && !c.gotByte:
		// The peer closed the idle connection while the request was on its way (RFC 9112 section 9.3.1).
		c.mustEnd = true
		if c.unread(err) {
			return errStaleUnread
		}
		return stream.ErrStale
	}
	c.mustEnd = true
	if !c.gotByte && c.unread(err) {
		return errResetUnread
	}
	return stream.ErrReset
}

var (
	errStaleUnread = fmt.Errorf("%w: %w", stream.ErrStale, stream.ErrUnread)
	errResetUnread = fmt.Errorf("%w: %w", stream.ErrReset, stream.ErrUnread)
)

// oneRead is what servers are taken to read at once at least, in bytes: of a request no longer than that, which came in one piece,
// they have read all or nothing.
const oneRead = 4 << 10

// atOnce is how long after a request a reset still means that it was not read. A program that resets what it has read (SO_LINGER 0) looks
// the same from outside; it does so when its own time is over, or to give up what it has long begun.
const atOnce = 100 * time.Millisecond

// unread reports whether the peer closed the connection before it had read anything of a request that went out in one piece: it could
// not be sent, the peer left it in its kernel's buffer, which makes a reset, or had closed before it came, so that it is not
// acknowledged.
func (c *H1Client) unread(err error) bool {
	switch {
	case c.whole == 0:
		return false
	case c.sock.herr != 0:
		return true
	case err == io.EOF:
		return c.sock.unacknowledged()
	}
	return c.plain && errors.Is(err, syscall.ECONNRESET) && c.whole <= oneRead && c.sock.sentWithin(atOnce)
}

// ReadBody implements stream.Upstream.
func (c *H1Client) ReadBody() ([]byte, error) {
	if c.hijacked {
		return c.readRaw()
	}
	for {
		p, err := c.piece()
		switch {
		case err == nil || err == io.EOF:
			return p, err
		case err != errHungry:
			c.mustEnd = true
			return nil, err
		}
		n, err := c.read(c.bodyRoom())
		c.bw = n
		if n > 0 {
			continue
		}
		if err == io.EOF && c.body.UntilClose() {
			return nil, io.EOF
		}
		return nil, c.bodyError(err)
	}
}

func (c *H1Client) readRaw() ([]byte, error) {
	if c.r < c.w {
		return c.leftover(), nil
	}
	room := c.bodyRoom()
	n, err := c.read(room)
	switch {
	case n > 0:
		return room[:n], nil
	case err == io.EOF:
		return nil, io.EOF
	}
	return nil, c.bodyError(err)
}

func (c *H1Client) bodyError(err error) error {
	switch {
	case c.cancelled.Load():
		return stream.ErrCancelled
	case errors.Is(err, stream.ErrDeadline):
		return err
	}
	c.mustEnd = true
	return stream.ErrReset
}

// read reads from the socket under the wanted deadline. The deadline that is set may be an older, earlier one: then it
// goes by in vain and is set anew, which costs less than setting it for each exchange.
func (c *H1Client) read(b []byte) (int, error) {
	for {
		if c.armed.IsZero() != c.deadline.IsZero() || c.armed.After(c.deadline) {
			c.armed = c.deadline
			_ = c.nc.SetReadDeadline(c.armed)
		}
		n, err := c.nc.Read(b)
		if n > 0 || err == nil {
			return n, nil
		}
		if !isTimeout(err) {
			return 0, err
		}
		c.armed = past
		if c.cancelled.Load() {
			return 0, err
		}
		if !c.deadline.IsZero() && !time.Now().Before(c.deadline) {
			return 0, stream.ErrDeadline
		}
		c.armed = c.deadline
		_ = c.nc.SetReadDeadline(c.armed)
	}
}

// Trailers implements stream.Upstream.
func (c *H1Client) Trailers() message.Fields { return c.body.Trailers() }

// SetReadDeadline implements stream.Upstream.
func (c *H1Client) SetReadDeadline(t time.Time) { c.deadline = t }

// SetWriteDeadline implements stream.Upstream.
func (c *H1Client) SetWriteDeadline(t time.Time) {
	if c.sock != nil {
		c.sock.by = t
	}
	c.sendBy = t
}

// Cancel implements stream.Upstream.
func (c *H1Client) Cancel(stream.Cause) {
	if !c.cancelled.Swap(true) {
		_ = c.nc.Close()
	}
}

// Close implements stream.Upstream.
func (c *H1Client) Close() {
	reusable := c.sent && c.gotHead && c.body.Done() && !c.mustEnd && !c.hijacked && c.werr == nil &&
		c.r == c.w && c.br == c.bw && len(c.out) == 0 && !c.cancelled.Load()
	if c.sock != nil && c.flushed && !c.sock.forget() {
		reusable = false
	}
	if !reusable {
		_ = c.nc.Close()
	}
	smallBuffers.Put(c.inBuf)
	smallBuffers.Put(c.outBuf)
	c.dropBodyBuf()
	c.inBuf, c.outBuf, c.in, c.out = nil, nil, nil, nil
	c.reused = true
	c.release(c, reusable)
}

// Hijack implements stream.Upstream.
func (c *H1Client) Hijack() error {
	if !c.gotHead || !c.upgrading {
		return stream.ErrProtocol
	}
	c.hijacked = true
	return nil
}

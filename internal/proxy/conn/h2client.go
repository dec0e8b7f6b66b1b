package conn

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/wire/h2"
)

// H2Client is the client side of an HTTP/2 connection: many exchanges at a time.
type H2Client struct {
	c    *h2conn
	done chan struct{}
}

// NewH2Client returns a client on a connection, TLS already done. Nothing happens until Run.
func NewH2Client(nc net.Conn, cfg *Config) *H2Client {
	c := newH2conn(nc, cfg, nil)
	c.out = append(c.out, h2.Preface...)
	c.hello()
	return &H2Client{c: c, done: make(chan struct{})}
}

// Run carries the connection until it is over, closes it, and says why; nil after a graceful end. The owner calls it once,
// on a goroutine of its own.
func (c *H2Client) Run() error {
	defer close(c.done)
	x := c.c
	buf := inPool.Get().(*[]byte)
	defer inPool.Put(buf)
	x.in = *buf
	err := x.read()
	x.finish(err)
	if bye, ok := err.(h2.ConnError); ok && bye.Code == h2.NoError {
		return nil
	}
	return err
}

// Open reserves a stream. It is stream.ErrRefused when the connection is full, going away or over; nothing was sent then.
func (c *H2Client) Open() (stream.Upstream, error) {
	x := c.c
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.freeLocked() <= 0 {
		return nil, stream.ErrRefused
	}
	return (*h2up)(x.takeLocked()), nil
}

// Free returns how many streams can be opened now.
func (c *H2Client) Free() int {
	c.c.mu.Lock()
	defer c.c.mu.Unlock()
	return c.c.freeLocked()
}

func (c *h2conn) freeLocked() int {
	if c.err != nil || c.leaving {
		return 0
	}
	return max(int(min(c.peer.MaxStreams, c.cfg.H2MaxUpstreamStreams))-c.active, 0)
}

// Shutdown ends the connection gracefully: no new streams, those that are open run to their end.
func (c *H2Client) Shutdown() {
	c.c.mu.Lock()
	defer c.c.mu.Unlock()
	c.c.leaving = true
	c.c.doneLocked()
}

// CloseConn ends the connection now; open streams end with stream.ErrReset.
func (c *H2Client) CloseConn() {
	c.c.mu.Lock()
	c.c.closeLocked(errClosed)
	c.c.mu.Unlock()
	_ = c.c.nc.Close()
}

// Leaving reports whether no stream can ever be opened again: a GOAWAY came, Shutdown was called, or it is over.
func (c *H2Client) Leaving() bool {
	c.c.mu.Lock()
	defer c.c.mu.Unlock()
	return c.c.err != nil || c.c.leaving
}

// Done is closed when Run returned.
func (c *H2Client) Done() <-chan struct{} { return c.done }

// onResponse handles a complete header block of a server.
func (c *h2conn) onResponse(id uint32, end bool, block []byte, early error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.streams[id]
	if st == nil {
		if err := c.onStrayLocked(id, "HEADERS"); err != nil {
			return c.skip(block, err)
		}
		return c.skip(block, errIgnored)
	}
	if early != nil {
		return c.skip(block, early)
	}
	if st.headed {
		return c.onTrailersLocked(st, end, block)
	}
	if st.state == h2.Closed && st.werr != nil {
		return c.skip(block, errIgnored)
	}
	if st.state.RemoteDone() {
		return c.skip(block, h2.StreamError{Code: h2.StreamClosed, Reason: "HEADERS after END_STREAM"})
	}
	n := len(st.heads)
	if n < cap(st.heads) {
		st.heads = st.heads[:n+1]
		st.heads[n].Reset()
	} else {
		st.heads = append(st.heads, message.Response{})
	}
	r := &st.heads[n]
	if err := c.dec.Response(block, end, st.toHead, &st.arena, r); err != nil {
		st.heads = st.heads[:n]
		if errors.Is(err, h2.ErrTooLarge) {
			return h2.StreamError{Code: h2.EnhanceYourCalm, Reason: "response head is larger than the limit"}
		}
		return err
	}
	if r.Status < 200 {
		if n >= maxInformational { // nobody reads them
			st.heads = st.heads[:n]
			return c.odd(1)
		}
		st.readable.Broadcast()
		return c.odd(1)
	}
	st.headed = true
	c.oddities.Earn(10)
	switch {
	case st.tunnel && r.Status < 300 && len(st.req.Upgrade) > 0: // RFC 8441 section 5
		r.Status, r.Upgrade, r.HasBody, r.Length = 101, st.req.Upgrade, false, 0
	case st.tunnel && r.Status < 300:
		r.HasBody, r.Length = false, 0 // RFC 9110 section 9.3.6
	case !r.HasBody:
		st.declared = 0
	default:
		st.declared = r.Length
	}
	next, _ := st.state.Receive(end)
	st.moveLocked(next)
	st.gotEnd = end
	st.readable.Broadcast()
	return nil
}

// maxInformational is how many 1xx heads wait for their reader.
const maxInformational = 8

// h2up is the client's face of a stream.
type h2up h2stream

var (
	_ stream.Upstream = (*h2up)(nil)
	_ stream.Ready    = (*h2up)(nil)
)

func (u *h2up) st() *h2stream { return (*h2stream)(u) }

// WriteHead implements stream.Upstream.
func (u *h2up) WriteHead(r *message.Request, end bool) error {
	st, c := u.st(), u.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := st.roomLocked(); err != nil {
		return err
	}
	if st.id != 0 {
		return fmt.Errorf("a second request head: %w", stream.ErrProtocol)
	}
	if len(r.Upgrade) > 0 {
		// An extended CONNECT has no place for a method, and for a protocol's version none that servers take (RFC 8441 section 4).
		if string(r.Method) != "GET" || !message.IsToken(r.Upgrade) {
			return fmt.Errorf("%.20q with an Upgrade to %.20q: %w", r.Method, r.Upgrade, stream.ErrNoForm)
		}
		if err := st.connectLocked(); err != nil {
			return err
		}
		end = false // the request has no body, but the stream is what the tunnel will run in (RFC 8441 section 5)
	}
	id := c.lastID + 2
	if c.lastID == 0 {
		id = 1
	}
	if c.err != nil || id > c.upTo { // a GOAWAY may have come since the stream was opened (section 6.8): it would be ignored
		st.endLocked(stream.ErrRefused)
		return stream.ErrRefused
	}
	c.lastID = id
	st.enterLocked(id)
	if id >= h2.MaxWindow-2 {
		c.leaving = true // stream numbers are used up (RFC 9113 section 5.1.1)
	}
	st.toHead = string(r.Method) == "HEAD"
	st.tunnel = len(r.Upgrade) > 0 || string(r.Method) == "CONNECT"
	if len(r.Upgrade) > 0 {
		st.req.Upgrade = append([]byte(nil), r.Upgrade...)
	}
	st.state, _ = h2.Idle.Send(end)
	start := len(c.out)
	c.out = c.enc.Request(h2.BeginHeaders(c.out), r)
	c.out = h2.EndHeaders(c.out, start, st.id, end, h2.MinMaxFrame)
	if end {
		c.flushLocked()
	}
	return nil
}

// connectLocked waits until the peer said whether it takes extended CONNECT.
func (st *h2stream) connectLocked() error {
	c := st.c
	until := st.until
	if until.IsZero() {
		until = time.Now().Add(c.cfg.HeadTimeout)
	}
	for !c.settled && st.werr == nil && c.err == nil {
		if !st.spaceLocked(until) {
			return stream.ErrDeadline
		}
	}
	switch {
	case st.werr != nil:
		return st.werr
	case c.err != nil:
		return stream.ErrRefused
	}
	if !c.peer.EnableConnect {
		return fmt.Errorf("the endpoint takes no extended CONNECT (SETTINGS_ENABLE_CONNECT_PROTOCOL): %w", stream.ErrNoForm)
	}
	return nil
}

// WriteBody implements stream.Upstream.
func (u *h2up) WriteBody(p []byte, end bool) error { return u.st().WriteBody(p, end) }

// WriteTrailers implements stream.Upstream.
func (u *h2up) WriteTrailers(f message.Fields) error { return u.st().WriteTrailers(f) }

// Flush implements stream.Upstream.
func (u *h2up) Flush() error { return u.st().Flush() }

// ReadHead implements stream.Upstream.
func (u *h2up) ReadHead(r *message.Response) error {
	st, c := u.st(), u.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if len(st.heads) > 0 {
			head := &st.heads[0]
			fields := append(r.Fields[:0], head.Fields...)
			*r = *head
			r.Fields = fields
			first := *head
			n := copy(st.heads, st.heads[1:])
			st.heads[n] = first // its room of Fields is used again
			st.heads = st.heads[:n]
			return nil
		}
		if st.rerr != nil {
			return st.rerr
		}
		if st.gotEnd {
			return fmt.Errorf("no response head: %w", stream.ErrProtocol)
		}
		if c.flushLocked(); len(st.heads) > 0 || st.rerr != nil {
			continue
		}
		if !st.waitLocked(&st.readable, st.until) {
			return stream.ErrDeadline
		}
	}
}

// ReadBody implements stream.Upstream.
func (u *h2up) ReadBody() ([]byte, error) { return u.st().readBody(u.until) }

// Trailers implements stream.Upstream.
func (u *h2up) Trailers() message.Fields { return u.st().Trailers() }

// BodyReady implements stream.Ready.
func (u *h2up) BodyReady() bool { return u.st().BodyReady() }

// SetReadDeadline implements stream.Upstream. It costs nothing until a read has to wait.
func (u *h2up) SetReadDeadline(t time.Time) {
	u.c.mu.Lock()
	defer u.c.mu.Unlock()
	u.until = t
	u.readable.Broadcast()
}

// SetWriteDeadline implements stream.Upstream.
func (u *h2up) SetWriteDeadline(t time.Time) {
	u.c.mu.Lock()
	defer u.c.mu.Unlock()
	u.sendBy = t
}

// Cancel implements stream.Upstream.
func (u *h2up) Cancel(cause stream.Cause) {
	u.c.mu.Lock()
	defer u.c.mu.Unlock()
	u.st().cancelLocked(codeOf(cause))
}

func (st *h2stream) cancelLocked(code h2.ErrCode) {
	if st.werr == nil && (st.id == 0 || !st.state.LocalDone() || !st.gotEnd) {
		st.failLocked(stream.ErrCancelled, code)
	}
}

// Close implements stream.Upstream.
func (u *h2up) Close() {
	u.c.mu.Lock()
	defer u.c.mu.Unlock()
	st := u.st()
	if st.over {
		u.c.resets.Earn(1)
	}
	st.cancelLocked(h2.Cancel)
	st.releaseLocked()
	st.c.kickLocked()
}

// Hijack implements stream.Upstream.
func (u *h2up) Hijack() error { return u.st().Hijack() }

package conn

import (
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/wire/h1"
)

// Refuser may be implemented by a Handler that wants to know about requests which the codec refused: they were answered
// with status and never became an exchange.
type Refuser interface {
	Refused(p *Peer, status int, detail string)
}

// Pieces of a response up to copyLimit are copied behind the head, larger ones are written from where they are.
const copyLimit = 8 << 10

// h1Server is one downstream HTTP/1 connection, and the stream.Downstream of the exchange that is on it.
//
// The goroutine of ServeH1 owns all of it, but for a moment that the stack chooses: while a request body is being
// received, another goroutine may call ReadBody and has the fields of the reading side.
type h1Server struct {
	nc     net.Conn
	peer   *Peer
	cfg    *Config
	drain  *Drain
	limits h1.Limits
	peek   *peeker
	sock   *Socket // under nc; nil when that is something else

	// Reading side.
	idles idleBuffers
	small *[smallBuffer]byte // in and out, unless they had to grow
	large *[smallBuffer]byte
	lines *fieldRoom // of req.Fields
	receiver
	req     message.Request
	pace    pace
	readBy  time.Time   // the read deadline that is set
	at      time.Time   // when the last exchange ended; zero when nobody said
	stopped atomic.Bool // StopReading was called
	served  bool        // a request
	parks   bool        // it may be parked
	stays   bool        // but not before the next request
	badBody bool        // the body is malformed: nobody can tell where it ends

	// Writing side.
	wmu      sync.Mutex // guards the socket and out against "100 Continue", which the reading side sends
	out      []byte     // waits for a flush
	vec      vector
	werr     error
	writeBy  time.Time
	framing  h1.Framing
	left     int64 // of a response body of known length
	headSent bool
	ended    bool // the response is complete
	noBody   bool
	closing  bool // the response said that the connection ends, or it has to
	hijacked bool
	owesGo   atomic.Bool // the client waits for "100 Continue"
	status   int
	asked    h1.Asked

	headIn, headOut int32 // bytes of the heads of the exchange

	idle atomic.Int32 // idleBusy, idleWaiting, idleDraining
}

const (
	idleBusy     = iota
	idleWaiting  // between requests, nothing received
	idleDraining // as idleWaiting, with the drain's deadline
)

// ServeH1 serves the HTTP/1 exchanges of one downstream connection until it is over, and closes it. first holds bytes
// that were read already while sniffing the protocol; they are copied.
func ServeH1(nc net.Conn, first []byte, p *Peer, h Handler, cfg *Config, drain *Drain) {
	(&Parked{nc: nc, peer: p, h: h, cfg: cfg, drain: drain}).serve(first)
}

// ServeH1Parking is ServeH1 for a connection that may be parked: it returns when the connection is over, with nil, or has been
// idle for Config.ParkAfter. That one is open, and the caller's to give to a Lot, or to go on with by Parked.Serve.
func ServeH1Parking(nc net.Conn, first []byte, p *Peer, h Handler, cfg *Config, drain *Drain) *Parked {
	return (&Parked{nc: nc, peer: p, h: h, cfg: cfg, drain: drain, parks: cfg.ParkAfter > 0 && cfg.ParkAfter < cfg.Idle}).serve(first)
}

func (p *Parked) serve(first []byte) (parked *Parked) {
	nc, cfg := p.nc, p.cfg
	c := &h1Server{nc: nc, peer: p.peer, cfg: cfg, drain: p.drain, peek: newPeeker(nc)}
	c.limits = h1.Limits{RequestLine: cfg.MaxRequestLine, Head: cfg.MaxHead, Fields: cfg.MaxFields, Trailers: cfg.MaxTrailers}
	if c.sock, _ = socketOf(nc); c.sock != nil {
		c.sock.limit(cfg.WriteTimeout)
	}
	c.parks, c.stays = p.parks && c.sock != nil, p.stays
	c.takeBuffers()
	c.idles = idleBuffers{take: c.takeBuffers, give: c.giveBuffers}
	if len(first) > len(c.in) {
		c.in = make([]byte, max(len(first), cfg.MaxHead))
	}
	c.w = copy(c.in, first)
	member := p.drain.Join(c.drainBegan)
	defer func() {
		member.Leave()
		if parked == nil {
			_ = nc.Close()
		}
		c.dropBodyBuf()
		c.giveBuffers()
	}()
	if !c.serve(p.h) {
		return nil
	}
	if c.nc == net.Conn(c.sock) {
		nc = c.sock.TCPConn // what is around it is made anew
	}
	return &Parked{nc: nc, peer: p.peer, h: p.h, cfg: cfg, drain: p.drain, parks: true}
}

// takeBuffers and giveBuffers bracket the time in which the connection has something to read or to write.
func (c *h1Server) takeBuffers() []byte {
	if c.small != nil {
		return c.in
	}
	c.small, c.large = smallBuffers.Get().(*[smallBuffer]byte), smallBuffers.Get().(*[smallBuffer]byte)
	c.in, c.out = c.small[:], c.large[:0]
	c.lines = fieldRooms.Get().(*fieldRoom)
	c.req.Fields = c.lines.fields
	return c.in
}

func (c *h1Server) giveBuffers() {
	if c.small != nil {
		smallBuffers.Put(c.small)
		smallBuffers.Put(c.large)
		// The last request is made of slices of what was given back, and would keep it.
		c.req.Reset()
		c.lines.fields, c.req.Fields = c.req.Fields, nil
		fieldRooms.Put(c.lines)
	}
	c.small, c.large, c.in, c.out, c.lines = nil, nil, nil, nil, nil
}

// drainBegan shortens the wait of an idle connection. It runs on the goroutine that drains.
func (c *h1Server) drainBegan() {
	if c.idle.CompareAndSwap(idleWaiting, idleDraining) {
		_ = c.nc.SetReadDeadline(time.Now().Add(c.drain.Idle(c.cfg)))
	}
}

// serve serves exchanges, and reports whether the connection may be parked now; else it is over.
func (c *h1Server) serve(h Handler) (park bool) {
	for {
		n, err := c.readHead()
		if err != nil {
			if err == errIdle {
				return true
			}
			c.refuse(h, err)
			return false
		}
		c.beginExchange(n)
		h.Serve(c, c.peer)
		c.served, c.stays = true, false
		if !c.endExchange() {
			return false
		}
	}
}

// errIdle says that a connection has been idle for long enough to be parked.
var errIdle = errors.New("idle")

// readHead waits for a whole request head and returns its length. io.EOF: the connection ended between requests.
func (c *h1Server) readHead() (int, error) {
	c.scan = h1.Scan{}
	late := false
	for {
		if c.r < c.w {
			n, err := h1.ParseRequest(c.in[c.r:c.w], &c.scan, &c.req, &c.limits)
			if n > 0 || err != nil {
				if late {
					c.readBy = time.Time{}
				}
				return n, err
			}
		}
		if err := c.flush(); err != nil {
			return 0, io.EOF
		}
		if c.r == c.w {
			c.r, c.w = 0, 0
			if err := c.waitIdle(); err == errIdle {
				return 0, err
			} else if err != nil {
				return 0, io.EOF
			}
			continue
		}
		// A part of a head is here: make room, and bound the time it may take.
		if !late {
			late = true
			c.readBy = time.Now().Add(c.cfg.HeadTimeout)
			_ = c.nc.SetReadDeadline(c.readBy)
		}
		c.headRoom(c.cfg.MaxHead)
		n, err := c.readSocket(c.in[c.w:])
		c.w += n
		if err != nil && n == 0 {
			if isTimeout(err) {
				return 0, errHeadTimeout
			}
			return 0, io.EOF
		}
	}
}

var errHeadTimeout = &h1.Error{Status: 408, Detail: "http1.head_timeout"}

// waitIdle waits for the first bytes of the next request.
func (c *h1Server) waitIdle() error {
	now := c.at
	if c.at = (time.Time{}); now.IsZero() {
		now = time.Now()
	}
	parks, wait, slack := c.parks && !c.stays && !c.drain.Begun(), c.cfg.Idle, granule
	if parks {
		wait, slack = c.cfg.ParkAfter, c.cfg.ParkAfter/4
	}
	if want := now.Add(wait); want.Sub(c.readBy) > slack || parks && want.Before(c.readBy) {
		c.readBy = want
		_ = c.nc.SetReadDeadline(want)
	}
	c.idle.Store(idleWaiting)
	if c.drain.Begun() {
		c.drainBegan()
	}
	if c.served {
		// Most clients that got an answer ask again at once. Whoever else has something to do goes first: by then the next
		// request is there and need not be waited for.
		runtime.Gosched()
	}
	var n int
	var err error
	if c.nc == net.Conn(c.sock) {
		n, err = c.sock.readIdle(&c.idles)
	} else {
		n, err = c.nc.Read(c.in)
	}
	shortened := c.idle.Swap(idleBusy) == idleDraining
	if shortened {
		c.readBy = past // the deadline in force is not ours
	}
	c.w = n
	switch {
	case n > 0:
		return nil
	case parks && !shortened && isTimeout(err):
		return errIdle
	}
	return err
}

// refuse answers a request that the codec refused, and ends the connection.
func (c *h1Server) refuse(h Handler, err error) {
	var bad *h1.Error
	if !errors.As(err, &bad) {
		return
	}
	if r, ok := h.(Refuser); ok {
		r.Refused(c.peer, bad.Status, bad.Detail)
	}
	text := bad.Detail + "\n"
	resp := message.Response{Status: bad.Status, Length: int64(len(text)), HasBody: true,
		Fields: message.Fields{{Name: []byte("content-type"), Value: []byte("text/plain")}, {Name: []byte("date"), Value: message.AppendDate(nil, time.Now())}}}
	asked := h1.AskedBy(c.req.Method) // as far as the codec came
	c.out = h1.AppendResponse(c.out, &resp, asked, h1.Delimited, h1.Close)
	if asked != h1.AskedHead { // RFC 9110 section 9.3.2
		c.out = append(c.out, text...)
	}
	if c.flush() == nil {
		lingerClose(c.nc)
	}
}

func (c *h1Server) beginExchange(n int) {
	c.r += n
	c.headIn, c.headOut = int32(n), 0
	c.body.Reset(c.req.Length, false, &c.limits)
	c.asked = h1.AskedBy(c.req.Method)
	c.headSent, c.ended, c.noBody, c.hijacked = false, false, false, false
	c.left = 0
	c.pace = pace{}
	c.werr = nil
	c.closing, c.badBody = c.req.Close, false
	if c.req.ExpectContinue {
		c.owesGo.Store(!c.body.Whole(c.in[c.r:c.w]))
	}
	if c.peer.TLS {
		c.req.Scheme = schemeHTTPS
	}
}

var schemeHTTPS = []byte("https")

// endExchange makes the connection ready for the next request and reports whether there can be one.
func (c *h1Server) endExchange() bool {
	if c.hijacked {
		_ = c.flush()
		return false
	}
	if c.stopped.Load() {
		c.stopped.Store(false)
		c.readBy = past // the deadline in force is that of StopReading
	}
	if !c.ended {
		// The response was not finished: only a broken connection tells the client so. What was written goes out, as the
		// client may have use for it.
		_ = c.flush()
		return false
	}
	c.closing = c.closing || c.badBody
	if !c.body.Done() && !c.closing {
		c.closing = !c.skipBody()
	}
	if c.closing {
		if c.flush() != nil {
			return false
		}
		if c.body.Done() {
			_ = closeWrite(c.nc)
		}
		lingerClose(c.nc)
		return false
	}
	if c.bodyBuf != nil {
		c.keepPipelined()
	}
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
	if cap(c.out) > 4*copyLimit {
		c.out = append(make([]byte, 0, smallBuffer), c.out...)
	}
	return true
}

// keepPipelined moves bytes that came after a body back to where heads are read.
func (c *h1Server) keepPipelined() {
	rest := c.bodyBuf[c.br:c.bw]
	if len(rest) > len(c.in) {
		c.in = make([]byte, len(rest))
	}
	c.r, c.w = 0, copy(c.in, rest)
	c.br, c.bw = 0, 0
	c.dropBodyBuf()
}

// skipBody reads and drops what is left of a request body when that is little, so that the connection survives an
// answer that came early. A client that still waits for "100 Continue" may or may not send the body: nobody can tell
// where its next request begins (CVE-2024-24791).
func (c *h1Server) skipBody() bool {
	if c.owesGo.Load() || c.body.Remaining() > int64(c.cfg.LingerBytes) {
		return false
	}
	if c.flush() != nil {
		return false
	}
	c.stopped.Store(false)
	c.readBy = time.Now().Add(granule)
	_ = c.nc.SetReadDeadline(c.readBy)
	defer func() { c.readBy = past }()
	for total := 0; total <= c.cfg.LingerBytes; {
		p, err := c.nextBody(false)
		total += len(p)
		if err == io.EOF {
			return true
		}
		if err != nil {
			return false
		}
	}
	return false
}

// Stamp implements Stamped.
func (c *h1Server) Stamp(now time.Time) (in, out int) {
	c.at = now
	return int(c.headIn), int(c.headOut)
}

// Request implements stream.Downstream.
func (c *h1Server) Request() *message.Request { return &c.req }

// ReadBody implements stream.Downstream.
func (c *h1Server) ReadBody() ([]byte, error) {
	if c.hijacked {
		return c.readRaw()
	}
	p, err := c.nextBody(true)
	if err != nil && err != io.EOF && c.stopped.Load() {
		err = stream.ErrCancelled
	}
	return p, err
}

// nextBody returns the next piece of the body. extend moves the read deadline along.
func (c *h1Server) nextBody(extend bool) ([]byte, error) {
	for {
		p, err := c.piece()
		switch {
		case err == nil || err == io.EOF:
			return p, err
		case err != errHungry:
			c.badBody = true
			return nil, err
		}
		if err := c.sendContinue(); err != nil {
			return nil, err
		}
		if err := c.fillBody(extend); err != nil {
			return nil, err
		}
	}
}

// fillBody reads more body bytes into bodyBuf.
func (c *h1Server) fillBody(extend bool) error {
	room := c.bodyRoom()
	paced := extend && c.cfg.MinBodyRate > 0 && c.req.Length > 0
	var began time.Time
	if extend {
		if c.stopped.Load() {
			return stream.ErrCancelled
		}
		began = time.Now()
		want := began.Add(c.cfg.bodyIdle())
		if paced {
			if until := c.pace.until(began, c.cfg); until.Before(want) {
				want = until
			}
		}
		if want.Sub(c.readBy) > granule || want.Before(c.readBy) {
			c.readBy = want
			_ = c.nc.SetReadDeadline(want)
			if c.stopped.Load() { // StopReading set its deadline before ours
				return stream.ErrCancelled
			}
		}
	}
	n, err := c.readSocket(room)
	c.bw = n
	if paced {
		c.pace.note(time.Since(began), n)
	}
	if n > 0 {
		return nil
	}
	return readError(err)
}

// readSocket reads; it goes on when the time was up for the idle wait that draining shortened, and not for us.
func (c *h1Server) readSocket(b []byte) (int, error) {
	for {
		n, err := c.nc.Read(b)
		if n > 0 || !isTimeout(err) || c.stopped.Load() || !time.Now().Before(c.readBy) {
			return n, err
		}
		_ = c.nc.SetReadDeadline(c.readBy)
		if c.stopped.Load() {
			return 0, err
		}
	}
}

// sendContinue lets a waiting client send its body, unless the final response is on its way already.
func (c *h1Server) sendContinue() error {
	if !c.owesGo.Load() {
		return nil
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if !c.owesGo.Swap(false) {
		return nil
	}
	if c.headSent {
		return stream.ErrCancelled
	}
	c.out = append(c.out, h1.Continue...)
	return c.flushLocked()
}

// Trailers implements stream.Downstream.
func (c *h1Server) Trailers() message.Fields { return c.body.Trailers() }

// Gone implements stream.Watched.
func (c *h1Server) Gone() bool { return c.peek.hungUp() }

// StopReading implements stream.Watched.
func (c *h1Server) StopReading() {
	c.stopped.Store(true)
	_ = c.nc.SetReadDeadline(past)
}

// WriteInformational implements stream.Downstream.
func (c *h1Server) WriteInformational(r *message.Response) error {
	if c.req.Minor == 0 || c.req.Major == 1 && r.Status == 100 && !c.req.ExpectContinue {
		return nil // RFC 9110 section 15.2: not to HTTP/1.0; and a 100 that nobody asked for confuses clients
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.headSent || c.werr != nil {
		return c.werr
	}
	if r.Status == 100 && !c.owesGo.Swap(false) {
		return nil
	}
	c.out = h1.AppendResponse(c.out, r, c.asked, h1.Delimited, h1.Stay)
	return c.flushLocked()
}

// WriteHead implements stream.Downstream.
func (c *h1Server) WriteHead(r *message.Response, end bool) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.headSent {
		return stream.ErrProtocol
	}
	if c.werr != nil {
		return c.werr
	}
	dated(r)
	c.framing = h1.ResponseFraming(r, c.req.Minor)
	switched := r.Status == 101 || c.asked == h1.AskedConnect && r.Status/100 == 2
	if c.framing == h1.UntilClose || c.drain.Begun() || c.owesGo.Load() || switched || c.asked == h1.AskedConnect {
		// A client whose CONNECT was refused may have sent bytes for the tunnel already: they are no requests (CVE-2025-64763).
		c.closing = true
	}
	persist := h1.Stay
	switch {
	case switched:
	case c.closing:
		persist = h1.Close
	case c.req.Minor == 0:
		persist = h1.Keep
	}
	c.noBody = !r.HasBody || c.asked == h1.AskedHead
	c.left = max(r.Length, 0)
	before := len(c.out)
	if end && !c.noBody && c.left == 0 && c.framing == h1.Chunked {
		// The stack knows that nothing follows: say so.
		c.framing = h1.Delimited
		known := *r
		known.Length = 0
		c.out = h1.AppendResponse(c.out, &known, c.asked, c.framing, persist)
	} else {
		c.out = h1.AppendResponse(c.out, r, c.asked, c.framing, persist)
	}
	c.headOut = int32(len(c.out) - before)
	c.headSent = true
	c.status = r.Status
	if end {
		c.ended = c.noBody || c.left == 0
	}
	return nil
}

// WriteBody implements stream.Downstream.
func (c *h1Server) WriteBody(p []byte, end bool) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.hijacked {
		err := c.writeLocked(p, nil)
		if end && err == nil {
			if err = c.flushLocked(); err == nil {
				_ = closeWrite(c.nc) // the other direction may go on
			}
		}
		return err
	}
	if c.werr != nil {
		return c.werr
	}
	if c.noBody {
		c.ended = c.ended || end
		return nil
	}
	switch c.framing {
	case h1.Chunked:
		if err := c.writeChunkLocked(p); err != nil {
			return err
		}
		if end {
			c.out = h1.AppendLastChunk(c.out, nil)
		}
		c.ended = end
		return nil
	case h1.Delimited:
		if int64(len(p)) > c.left {
			return stream.ErrProtocol
		}
		c.left -= int64(len(p))
		c.ended = end && c.left == 0
	default:
		c.ended = end
	}
	return c.writeLocked(p, nil)
}

func (c *h1Server) writeChunkLocked(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if len(p) <= copyLimit {
		c.out = h1.AppendChunk(c.out, p)
		if len(c.out) >= 2*copyLimit {
			return c.flushLocked()
		}
		return nil
	}
	c.out = h1.AppendChunkHead(c.out, len(p))
	return c.writeLocked(p, crlf)
}

var crlf = []byte("\r\n")

// WriteTrailers implements stream.Downstream. A response of known length, and one to an HTTP/1.0 client, has nowhere to
// put them and goes without.
func (c *h1Server) WriteTrailers(t message.Fields) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.werr != nil {
		return c.werr
	}
	if c.framing == h1.Chunked && !c.noBody {
		c.out = h1.AppendLastChunk(c.out, t)
	}
	c.ended = c.noBody || c.left == 0
	return nil
}

// Flush implements stream.Downstream.
func (c *h1Server) Flush() error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return c.flushLocked()
}

func (c *h1Server) flush() error { return c.Flush() }

func (c *h1Server) flushLocked() error {
	if len(c.out) == 0 || c.werr != nil {
		return c.werr
	}
	c.boundWrite()
	_, err := c.nc.Write(c.out)
	c.out = c.out[:0]
	if err != nil {
		c.werr = readError(err)
	}
	return c.werr
}

// writeLocked writes what waits, then p and after, together; small pieces only join what waits.
func (c *h1Server) writeLocked(p, after []byte) error {
	if len(p) <= copyLimit && len(c.out)+len(p) <= 2*copyLimit {
		c.out = append(append(c.out, p...), after...)
		return nil
	}
	if c.werr != nil {
		return c.werr
	}
	c.boundWrite()
	err := c.vec.write(c.nc, c.out, p, after)
	c.out = c.out[:0]
	if err != nil {
		c.werr = readError(err)
	}
	return c.werr
}

// boundWrite moves the write deadline along.
func (c *h1Server) boundWrite() {
	if c.sock != nil {
		return // it does that itself
	}
	if want := time.Now().Add(c.cfg.WriteTimeout); want.Sub(c.writeBy) > granule {
		c.writeBy = want
		_ = c.nc.SetWriteDeadline(want)
	}
}

// Reset implements stream.Downstream.
func (c *h1Server) Reset(stream.Cause) {
	c.closing = true
	c.StopReading()
}

// Hijack implements stream.Downstream.
func (c *h1Server) Hijack() error {
	if !c.headSent || !(c.status == 101 || c.asked == h1.AskedConnect && c.status/100 == 2) {
		return stream.ErrProtocol
	}
	c.hijacked = true
	return c.flush()
}

// readRaw is ReadBody inside a tunnel.
func (c *h1Server) readRaw() ([]byte, error) {
	if c.r < c.w {
		return c.leftover(), nil
	}
	room := c.bodyRoom()
	if c.stopped.Load() {
		return nil, stream.ErrCancelled
	}
	if want := time.Now().Add(c.cfg.bodyIdle()); want.Sub(c.readBy) > granule || want.Before(c.readBy) {
		c.readBy = want
		_ = c.nc.SetReadDeadline(want)
		if c.stopped.Load() {
			return nil, stream.ErrCancelled
		}
	}
	n, err := c.readSocket(room)
	switch {
	case n > 0:
		return room[:n], nil
	case err == io.EOF:
		return nil, io.EOF
	case c.stopped.Load():
		return nil, stream.ErrCancelled
	}
	return nil, readError(err)
}

// Detacher is implemented by a Downstream whose tunnel can be taken off it.
type Detacher interface {
	// Detach returns the connection of an exchange that was hijacked, and the bytes that were read from it already. The
	// caller uses it until Serve returns, and closes it.
	Detach() (net.Conn, []byte)
}

// Detach implements Detacher.
func (c *h1Server) Detach() (net.Conn, []byte) {
	first := append([]byte(nil), c.leftover()...)
	c.readBy = past
	if c.sock != nil {
		c.sock.limit(0)
	}
	_ = c.nc.SetDeadline(time.Time{})
	return c.nc, first
}

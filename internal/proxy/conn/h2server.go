package conn

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/wire/h2"
)

// h2server is what the server side of a connection has beyond h2conn.
type h2server struct {
	h    Handler
	peer *Peer
	work chan *h2stream // to an idle worker; nil tells it to go
	idle int            // workers that wait, under h2conn.mu
	// asked is streams that are open and not begun yet, of the reading goroutine. Where it reads the last of them no worker
	// ever sees them: they are released at the connection's end.
	asked []*h2stream
}

// maxIdleWorkers is how many workers wait for the next stream; they are let go when the connection has none for a while.
const maxIdleWorkers = 32

// ServeH2 serves the HTTP/2 exchanges of one downstream connection until it is over, and closes it. first holds bytes
// that were read already while sniffing the protocol. It returns after every Handler.Serve did.
func ServeH2(nc net.Conn, first []byte, p *Peer, h Handler, cfg *Config, drain *Drain) {
	c := newH2conn(nc, cfg, &h2server{h: h, peer: p, work: make(chan *h2stream)})
	buf := inPool.Get().(*[]byte)
	defer inPool.Put(buf)
	c.in = *buf
	if len(first) > inSize/2 {
		c.in = make([]byte, len(first)+inSize)
	}
	c.w = copy(c.in, first)
	c.hello()
	err := c.preface()
	if err == nil {
		member := drain.Join(c.leave)
		defer member.Leave()
		err = c.read()
	}
	c.finish(err)
}

// preface reads the first 24 bytes (RFC 9113 section 3.4).
func (c *h2conn) preface() error {
	if err := c.nc.SetReadDeadline(time.Now().Add(c.cfg.HeadTimeout)); err != nil {
		return err
	}
	for {
		n := min(c.w, len(h2.Preface))
		if !bytes.Equal(c.in[:n], []byte(h2.Preface)[:n]) {
			return h2.ConnError{Code: h2.ProtocolError, Reason: "not the HTTP/2 preface"}
		}
		if n == len(h2.Preface) {
			c.r = n
			return nil
		}
		n, err := c.nc.Read(c.in[c.w:])
		c.w += n
		if err != nil && n == 0 {
			return fmt.Errorf("reading the preface: %w", err)
		}
	}
}

// leave begins a graceful end (RFC 9113 section 6.8): first a GOAWAY that refuses nothing and a PING; when its answer is
// back, or DrainIdle is over, the client has seen it and a second one names the last stream.
func (c *h2conn) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaveLocked()
}

func (c *h2conn) leaveLocked() {
	if c.leaving || c.err != nil {
		return
	}
	c.leaving = true
	c.finalAt = time.Now().Add(c.cfg.DrainIdle)
	c.out = h2.AppendGoAway(c.out, h2.MaxWindow, h2.NoError, "")
	c.out = h2.AppendPing(c.out, false, pingDrain)
	c.kickLocked()
	c.wakeReader()
}

// finalLocked sends the second GOAWAY.
func (c *h2conn) finalLocked() {
	c.finalOut = true
	c.out = h2.AppendGoAway(c.out, c.lastID, h2.NoError, "")
	c.kickLocked()
}

// onBlock handles a complete header block, whose HEADERS frame had the error early or none.
func (c *h2conn) onBlock(id uint32, end bool, block []byte, early error) error {
	if c.server == nil {
		return c.onResponse(id, end, block, early)
	}
	c.mu.Lock()
	st := c.streams[id]
	if st != nil {
		defer c.mu.Unlock()
		if early != nil {
			return c.skip(block, early)
		}
		return c.onTrailersLocked(st, end, block)
	}
	var refusal error
	switch {
	case id%2 == 0:
		refusal = h2.ConnError{Code: h2.ProtocolError, Reason: "stream of a client has an even number"} // section 5.1.1
	case id <= c.lastID && c.wasResetLocked(id):
		refusal = errIgnored
	case id == c.lastID:
		refusal = h2.ConnError{Code: h2.StreamClosed, Reason: "HEADERS on a closed stream"} // section 5.1
	case id < c.lastID:
		refusal = h2.ConnError{Code: h2.ProtocolError, Reason: "stream numbers go down"} // section 5.1.1
	case c.finalOut:
		refusal = errIgnored // section 6.8
	default:
		c.lastID = id
		if early != nil {
			refusal = early
		} else if c.open >= int(c.cfg.MaxStreams) {
			refusal = h2.StreamError{Code: h2.RefusedStream, Reason: "more streams than SETTINGS_MAX_CONCURRENT_STREAMS"} // section 5.1.2
		}
	}
	if refusal != nil {
		c.mu.Unlock()
		return c.skip(block, refusal)
	}
	st = c.takeLocked()
	c.mu.Unlock()

	err := c.dec.Request(block, end, &st.arena, &st.req) // nobody else knows st yet
	c.mu.Lock()
	st.enterLocked(id)
	st.headIn, st.headOut = int32(len(block)+h2.FrameHeaderLen), 0
	st.state, _ = h2.Idle.Receive(end)
	if c.err != nil { // a writer found the connection dead meanwhile, and nobody would tell this stream
		defer c.mu.Unlock()
		st.releaseLocked()
		return c.err
	}
	if err != nil {
		defer c.mu.Unlock()
		if errors.Is(err, h2.ErrTooLarge) {
			err = c.tooLargeLocked(st, end)
		}
		st.releaseLocked()
		return err
	}
	c.oddities.Earn(10)
	st.gotEnd = end
	st.tunnel = string(st.req.Method) == "CONNECT" || len(st.req.Upgrade) > 0
	st.asked = st.req.ExpectContinue && !end
	if st.req.Length >= 0 && !end && !st.tunnel {
		st.declared = st.req.Length
	}
	c.server.asked = append(c.server.asked, st)
	c.mu.Unlock()
	return nil
}

// begin starts the exchanges that the bytes which are here asked for. One that the same bytes reset never becomes work: a
// client that opens and resets streams in one breath pays for it alone (CVE-2023-44487).
func (c *h2conn) begin() {
	s := c.server
	if s == nil || len(s.asked) == 0 {
		return
	}
	for i, st := range s.asked {
		s.asked[i] = nil
		c.mu.Lock()
		if st.werr != nil {
			st.releaseLocked()
			c.mu.Unlock()
			continue
		}
		reuse := s.idle > 0
		if reuse {
			s.idle--
		} else {
			c.wg.Add(1)
		}
		c.mu.Unlock()
		if reuse {
			s.work <- st // a worker is at the channel, or about to be
		} else {
			go c.worker(st)
		}
	}
	s.asked = s.asked[:0]
}

// errIgnored makes skip decode a block and nothing else.
var errIgnored = errors.New("ignored")

// skip decodes a block for the table's sake and returns why it was refused.
func (c *h2conn) skip(block []byte, why error) error {
	if err := c.dec.Skip(block); err != nil {
		return err
	}
	if errors.Is(why, errIgnored) {
		return c.odd(1)
	}
	return why
}

// tooLargeLocked answers 431 (RFC 6585 section 5).
func (c *h2conn) tooLargeLocked(st *h2stream, end bool) error {
	if !c.resets.Spend(1, nanos) {
		return h2.ConnError{Code: h2.EnhanceYourCalm, Reason: "too many header sections over the limit"}
	}
	start := len(c.out)
	c.out = c.enc.Response(h2.BeginHeaders(c.out), &message.Response{Status: 431})
	c.out = h2.EndHeaders(c.out, start, st.id, true, h2.MinMaxFrame)
	if !end {
		c.resetLocked(st.id, h2.NoError) // section 8.1: the rest of the request is not wanted
	}
	return c.controlLocked()
}

// onTrailersLocked handles the second block of a stream (section 8.1).
func (c *h2conn) onTrailersLocked(st *h2stream, end bool, block []byte) error {
	if st.state == h2.Closed && st.werr != nil {
		if err := c.onStrayLocked(st.id, "HEADERS"); err != nil {
			return c.skip(block, err)
		}
		return c.skip(block, errIgnored)
	}
	if st.state.RemoteDone() {
		if c.server == nil && st.over {
			return errAfterEnd
		}
		return c.skip(block, h2.StreamError{Code: h2.StreamClosed, Reason: "HEADERS after END_STREAM"})
	}
	if !end {
		return c.skip(block, h2.StreamError{Code: h2.ProtocolError, Reason: "trailers without END_STREAM"})
	}
	f, err := c.dec.Trailers(block, &st.arena, st.trailers)
	if err != nil {
		if errors.Is(err, h2.ErrTooLarge) {
			return h2.StreamError{Code: h2.EnhanceYourCalm, Reason: "trailers are larger than the limit"}
		}
		return err
	}
	if st.declared >= 0 && st.received != st.declared {
		return h2.StreamError{Code: h2.ProtocolError, Reason: "DATA and content-length differ"}
	}
	next, _ := st.state.Receive(true)
	st.moveLocked(next)
	st.trailers, st.gotEnd = f, true
	st.readable.Broadcast()
	return nil
}

// worker serves one stream and then, for as long as the connection wants it, others.
func (c *h2conn) worker(st *h2stream) {
	defer c.wg.Done()
	for st != nil {
		c.server.h.Serve((*h2down)(st), c.server.peer)
		if !c.served(st) {
			return
		}
		st = <-c.server.work
	}
}

// served ends an exchange and reports whether its worker may wait for another.
func (c *h2conn) served(st *h2stream) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	st.onGone = nil
	switch {
	case st.werr != nil:
	case !st.state.LocalDone():
		st.failLocked(stream.ErrCancelled, h2.InternalError) // the handler owed a response
	case !st.gotEnd:
		st.failLocked(stream.ErrCancelled, h2.NoError) // answered without reading all (section 8.1)
	default:
		c.resets.Earn(1)
	}
	c.flushLocked()
	st.releaseLocked()
	c.kickLocked() // the window of what was not read may be what the client waits for
	if c.err != nil || c.server.idle >= maxIdleWorkers {
		return false
	}
	c.server.idle++
	return true
}

// trimLocked lets the idle workers go. Who is counted as idle has left mu and is at the channel, or about to be.
func (s *h2server) trimLocked() {
	for ; s.idle > 0; s.idle-- {
		s.work <- nil
	}
}

// h2down is the server's face of a stream.
type h2down h2stream

var (
	_ stream.Downstream = (*h2down)(nil)
	_ stream.Ready      = (*h2down)(nil)
	_ stream.Watched    = (*h2down)(nil)
	_ stream.Notifier   = (*h2down)(nil)
)

func (d *h2down) st() *h2stream { return (*h2stream)(d) }

// Request implements stream.Downstream.
func (d *h2down) Request() *message.Request { return &d.req }

// ReadBody implements stream.Downstream.
func (d *h2down) ReadBody() ([]byte, error) {
	if d.asked { // of the goroutine that reads
		d.asked = false
		if !d.isReplied() {
			if err := d.WriteInformational(&message.Response{Status: 100}); err != nil {
				return nil, err
			}
			if err := d.Flush(); err != nil {
				return nil, err
			}
		}
	}
	cfg := d.c.cfg
	var began, until time.Time
	paced := false
	if idle := cfg.bodyIdle(); idle > 0 && !d.st().BodyReady() {
		began = time.Now()
		until = began.Add(idle)
		if paced = cfg.MinBodyRate > 0 && d.req.Length > 0; paced {
			if soon := d.pace.until(began, cfg); soon.Before(until) {
				until = soon
			}
		}
	}
	p, err := d.st().readBody(until)
	if cfg.MinBodyRate > 0 {
		waited := time.Duration(0)
		if paced {
			waited = time.Since(began)
		}
		d.pace.note(waited, len(p))
	}
	if errors.Is(err, stream.ErrDeadline) {
		d.Reset(stream.Cancelled)
	}
	return p, err
}

func (d *h2down) isReplied() bool {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	return d.replied
}

// Trailers implements stream.Downstream.
func (d *h2down) Trailers() message.Fields { return d.st().Trailers() }

// WriteInformational implements stream.Downstream.
func (d *h2down) WriteInformational(r *message.Response) error { return d.writeHead(r, false, false) }

// WriteHead implements stream.Downstream.
func (d *h2down) WriteHead(r *message.Response, end bool) error { return d.writeHead(r, end, true) }

func (d *h2down) writeHead(r *message.Response, end, final bool) error {
	st, c := d.st(), d.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := st.roomLocked(); err != nil {
		return err
	}
	if st.replied || final && r.Status == 101 && !st.tunnel {
		return fmt.Errorf("a head that does not belong here: %w", stream.ErrProtocol)
	}
	if err := st.sentLocked(end); err != nil {
		return err
	}
	st.replied = final
	if final {
		dated(r)
	}
	start := len(c.out)
	c.out = c.enc.Response(h2.BeginHeaders(c.out), r)
	c.out = h2.EndHeaders(c.out, start, st.id, end, h2.MinMaxFrame)
	st.headOut = int32(len(c.out) - start)
	if end {
		c.flushLocked()
	}
	return nil
}

// Stamp implements Stamped.
func (d *h2down) Stamp(time.Time) (in, out int) { return int(d.headIn), int(d.headOut) }

// WriteBody implements stream.Downstream.
func (d *h2down) WriteBody(p []byte, end bool) error { return d.st().WriteBody(p, end) }

// WriteTrailers implements stream.Downstream.
func (d *h2down) WriteTrailers(f message.Fields) error { return d.st().WriteTrailers(f) }

// Flush implements stream.Downstream.
func (d *h2down) Flush() error { return d.st().Flush() }

// Hijack implements stream.Downstream.
func (d *h2down) Hijack() error { return d.st().Hijack() }

// BodyReady implements stream.Ready.
func (d *h2down) BodyReady() bool { return d.st().BodyReady() }

// Reset implements stream.Downstream.
func (d *h2down) Reset(cause stream.Cause) {
	st := d.st()
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if st.werr == nil && (!st.state.LocalDone() || !st.gotEnd) {
		st.failLocked(stream.ErrCancelled, codeOf(cause))
	}
}

// Gone implements stream.Watched.
func (d *h2down) Gone() bool {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	return d.werr != nil
}

// StopReading implements stream.Watched.
func (d *h2down) StopReading() {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	d.stopped = true
	d.readable.Broadcast()
}

// OnGone implements stream.Notifier.
func (d *h2down) OnGone(f func(stream.Cause)) {
	st := d.st()
	st.c.mu.Lock()
	for f == nil && st.telling {
		st.writable.Wait()
	}
	st.onGone = f
	gone := st.werr != nil && f != nil
	if gone {
		st.onGone = nil
	}
	st.c.mu.Unlock()
	if gone {
		f(stream.Cancelled)
	}
}

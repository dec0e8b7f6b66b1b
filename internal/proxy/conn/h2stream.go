package conn

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/wire/h2"
)

// h2stream is one exchange of an HTTP/2 connection. Its connection's mu guards it, but for what the head points into: that
// belongs to the stack until the exchange is over. Streams are reused by their own connection only, so whoever comes late
// (a timer) meets a stream of the same lock, and at worst wakes somebody who looks and waits on.
type h2stream struct {
	c     *h2conn
	id    uint32
	state h2.State
	over  bool // came to its regular end
	arena h2.Arena

	req  message.Request // server
	pace pace            // server: of the body, of the goroutine that reads

	heads  []message.Response // client: decoded and not yet read
	headed bool               // client: the final head came
	toHead bool               // client: the request was HEAD
	tunnel bool               // a CONNECT of any kind: an extended one is accepted by a 2xx, which reads as 101

	trailers message.Fields
	declared int64 // bytes of the body that the head promised, or -1
	received int64
	first    *h2chunk // received and not yet read
	last     *h2chunk
	held     *h2chunk // the one that ReadBody returned
	gotEnd   bool     // END_STREAM came
	rerr     error    // why reading ends, unless gotEnd
	werr     error    // why writing ends
	asked    bool     // server: the client waits for 100 Continue
	stopped  bool     // server: ReadBody is of no interest any more
	replied  bool     // server: the final head was written

	headIn, headOut int32 // server: bytes of the heads, with their frames' headers

	sendWin  h2.SendWindow
	recvWin  h2.RecvWindow
	readable sync.Cond
	writable sync.Cond

	until   time.Time // SetReadDeadline
	sendBy  time.Time // SetWriteDeadline
	timer   *time.Timer
	armed   bool
	armedAt time.Time

	onGone  func(stream.Cause)
	telling bool
}

// h2chunk is a piece of a body that was received and not yet read.
type h2chunk struct {
	next *h2chunk
	buf  []byte // cap is the size of its pool
}

const (
	smallChunk = 2 << 10
	largeChunk = 16 << 10
)

var (
	smallChunks = sync.Pool{New: func() any { return &h2chunk{buf: make([]byte, 0, smallChunk)} }}
	largeChunks = sync.Pool{New: func() any { return &h2chunk{buf: make([]byte, 0, largeChunk)} }}
)

// dropLocked gives a chunk back to its pool.
func (c *h2conn) dropLocked(k *h2chunk) {
	c.cfg.Memory.keep(-cap(k.buf))
	k.next, k.buf = nil, k.buf[:0]
	if cap(k.buf) == smallChunk {
		smallChunks.Put(k)
	} else {
		largeChunks.Put(k)
	}
}

// takeLocked returns a stream ready for use.
func (c *h2conn) takeLocked() *h2stream {
	var st *h2stream
	if n := len(c.free); n > 0 {
		st, c.free = c.free[n-1], c.free[:n-1]
	} else {
		st = &h2stream{c: c}
		st.readable.L, st.writable.L = &c.mu, &c.mu
	}
	st.recvWin = h2.NewRecvWindow(c.cfg.StreamWindow)
	st.declared = -1
	c.active++
	c.open++
	if c.server != nil {
		c.cfg.Memory.Take(streamCost)
	}
	return st
}

// enterLocked gives a stream its number, by which frames find it. Only from here on does a SETTINGS frame move its window.
func (st *h2stream) enterLocked(id uint32) {
	st.id = id
	st.sendWin = h2.NewSendWindow(st.c.peer.InitialWindow)
	st.c.streams[id] = st
}

// releaseLocked ends the use of a stream: nothing refers to it any more. The window of what was not read is given back.
func (st *h2stream) releaseLocked() {
	c := st.c
	for st.telling {
		st.writable.Wait()
	}
	if st.id != 0 {
		delete(c.streams, st.id)
		if c.server == nil && st.over {
			c.whole.add(st.id)
		}
	}
	for k := st.first; k != nil; {
		next := k.next
		c.creditLocked(len(k.buf))
		c.dropLocked(k)
		k = next
	}
	if st.held != nil {
		c.dropLocked(st.held)
	}
	st.req.Reset()
	st.arena.Reset()
	for i := range st.heads {
		st.heads[i].Reset()
	}
	over := st.over
	clear(st.trailers[:cap(st.trailers)])
	*st = h2stream{c: c, arena: st.arena, req: st.req, heads: st.heads[:0], trailers: st.trailers[:0],
		readable: sync.Cond{L: &c.mu}, writable: sync.Cond{L: &c.mu}, timer: st.timer, armed: st.armed, armedAt: st.armedAt}
	if len(c.free) < freeMax && c.err == nil {
		c.free = append(c.free, st)
	} else {
		st.stop()
	}
	c.active--
	if c.server != nil {
		c.cfg.Memory.Take(-streamCost)
	}
	if !over {
		c.open--
	}
	if c.active == 0 {
		c.idleAt = time.Now()
	}
	c.doneLocked()
}

// doneLocked lets the reader end a connection that was left and has no stream any more.
func (c *h2conn) doneLocked() {
	if c.leaving && c.active == 0 && (c.server == nil || c.finalOut) {
		c.wakeReader()
	}
}

// stop ends the stream's timer.
func (st *h2stream) stop() {
	if st.timer != nil {
		st.timer.Stop()
	}
}

// endLocked ends the exchange early: what was received completely stays readable.
func (st *h2stream) endLocked(why error) {
	if st.rerr == nil {
		st.rerr = why
	}
	if st.werr == nil {
		st.werr = why
	}
	st.state = h2.Closed
	st.readable.Broadcast()
	st.writable.Broadcast()
	if st.c.waiting > 0 {
		st.c.space.Broadcast()
	}
}

// goneLocked takes the function that wants to know that the client went away; the caller calls tell without the lock.
func (st *h2stream) goneLocked() func(stream.Cause) {
	f := st.onGone
	if f != nil {
		st.onGone, st.telling = nil, true
	}
	return f
}

// tell calls what goneLocked returned. The stream is not released meanwhile.
func (st *h2stream) tell(f func(stream.Cause), cause stream.Cause) {
	if f == nil {
		return
	}
	f(cause)
	st.c.mu.Lock()
	st.telling = false
	st.writable.Broadcast()
	st.c.mu.Unlock()
}

// pushLocked keeps received bytes.
func (st *h2stream) pushLocked(p []byte) {
	for len(p) > 0 {
		k := st.last
		if k == nil || len(k.buf) == cap(k.buf) {
			if st.first == nil && len(p) <= smallChunk {
				k = smallChunks.Get().(*h2chunk)
			} else {
				k = largeChunks.Get().(*h2chunk)
			}
			st.c.cfg.Memory.keep(cap(k.buf))
			if st.last == nil {
				st.first = k
			} else {
				st.last.next = k
			}
			st.last = k
		}
		n := min(cap(k.buf)-len(k.buf), len(p))
		k.buf = append(k.buf, p[:n]...)
		p = p[n:]
	}
}

func (st *h2stream) creditLocked(n int) {
	if st.gotEnd || st.state == h2.Closed {
		return
	}
	if inc := st.recvWin.Consume(n); inc > 0 {
		st.c.out = h2.AppendWindowUpdate(st.c.out, st.id, inc)
	}
}

// waitLocked waits for a condition, until a time if that is not zero. It reports false when the time has passed.
func (st *h2stream) waitLocked(cond *sync.Cond, until time.Time) bool {
	if !until.IsZero() {
		now := time.Now()
		if !now.Before(until) {
			return false
		}
		// The timer is left running from one wait to the next: it fires early now and then, finds nothing to do and is
		// armed again here. That is cheaper than to stop it each time.
		if !st.armed || st.armedAt.After(until) {
			st.armed, st.armedAt = true, until
			if d := until.Sub(now); st.timer == nil {
				c := st.c // the timer may fire while the stream is being released, which writes all of it
				st.timer = time.AfterFunc(d, func() { st.fired(c) })
			} else {
				st.timer.Reset(d)
			}
		}
	}
	cond.Wait()
	return true
}

// fired wakes whoever waits on the stream, to look at the clock.
func (st *h2stream) fired(c *h2conn) {
	c.mu.Lock()
	st.armed = false
	st.readable.Broadcast()
	st.writable.Broadcast()
	if c.waiting > 0 {
		c.space.Broadcast()
	}
	c.mu.Unlock()
}

// spaceLocked waits for the connection rather than for the stream.
func (st *h2stream) spaceLocked(until time.Time) bool {
	st.c.waiting++
	ok := st.waitLocked(&st.c.space, until)
	st.c.waiting--
	return ok
}

// readBody is ReadBody of both sides.
func (st *h2stream) readBody(until time.Time) ([]byte, error) {
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.held != nil {
		c.dropLocked(st.held)
		st.held = nil
	}
	for {
		if st.stopped {
			return nil, stream.ErrCancelled
		}
		if k := st.first; k != nil {
			st.first = k.next
			if st.first == nil {
				st.last = nil
			}
			st.held = k
			c.creditLocked(len(k.buf))
			st.creditLocked(len(k.buf))
			if len(c.out) > 0 && !c.flushing {
				c.kickLocked()
			}
			if st.first == nil && st.gotEnd {
				return k.buf, io.EOF
			}
			return k.buf, nil
		}
		switch {
		case st.gotEnd:
			return nil, io.EOF
		case st.rerr != nil:
			return nil, st.rerr
		}
		if c.flushLocked(); st.first != nil || st.gotEnd || st.rerr != nil || st.stopped {
			continue
		}
		if !st.waitLocked(&st.readable, until) {
			return nil, stream.ErrDeadline
		}
	}
}

// roomLocked waits while out is too long, and returns why nothing more can be written.
func (st *h2stream) roomLocked() error {
	c := st.c
	if st.werr != nil {
		return st.werr
	}
	if len(c.out) < outHigh {
		return nil
	}
	c.flushLocked()
	var until time.Time
	for len(c.out) >= outHigh && st.werr == nil {
		if st.id == 0 && c.err != nil {
			return nil // of a client's that has sent no head nobody tells that the connection has ended: WriteHead looks
		}
		if until.IsZero() {
			until = st.writeUntil()
		}
		if !st.spaceLocked(until) {
			st.failLocked(stream.ErrDeadline, h2.Cancel)
		}
	}
	return st.werr
}

// writeUntil returns how long a write may wait.
func (st *h2stream) writeUntil() time.Time {
	if st.c.cfg.WriteTimeout <= 0 {
		return st.sendBy
	}
	until := time.Now().Add(st.c.cfg.WriteTimeout)
	if !st.sendBy.IsZero() && st.sendBy.Before(until) {
		return st.sendBy
	}
	return until
}

// failLocked ends the stream from our side.
func (st *h2stream) failLocked(why error, code h2.ErrCode) {
	if st.id != 0 && st.state != h2.Closed {
		st.c.resetLocked(st.id, code)
	}
	st.endLocked(why)
	st.c.kickLocked()
}

// sentLocked moves the state on by a frame of ours.
func (st *h2stream) sentLocked(end bool) error {
	next, ok := st.state.Send(end)
	if !ok {
		return fmt.Errorf("writing after the end of the message: %w", stream.ErrCancelled)
	}
	st.moveLocked(next)
	return nil
}

// moveLocked is a regular step of the state machine. A stream that came to its end makes room for another at once, while its
// worker may still be on its way out; one that was reset makes room only when its worker is done, or a client that resets
// could have any number of them (CVE-2023-44487).
func (st *h2stream) moveLocked(next h2.State) {
	if next == h2.Closed && st.state != h2.Closed {
		st.over = true
		st.c.open--
	}
	st.state = next
}

// WriteBody implements stream.Downstream and stream.Upstream.
func (st *h2stream) WriteBody(p []byte, end bool) error {
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server != nil && !st.replied || st.id == 0 {
		return fmt.Errorf("a body before its head: %w", stream.ErrProtocol)
	}
	var until time.Time
	for {
		if err := st.roomLocked(); err != nil {
			return err
		}
		if st.state.LocalDone() {
			return fmt.Errorf("writing after the end of the message: %w", stream.ErrCancelled)
		}
		n := min(len(p), h2.MinMaxFrame, st.sendWin.Available(), c.sendWin.Available())
		if n == 0 && (len(p) > 0 || !end) {
			if len(p) == 0 {
				return nil
			}
			if until.IsZero() {
				until = st.writeUntil()
			}
			if c.flushLocked(); st.werr != nil {
				continue
			}
			ok := true
			switch {
			case st.sendWin.Available() == 0:
				ok = st.waitLocked(&st.writable, until)
			case c.sendWin.Available() == 0:
				ok = st.spaceLocked(until)
			}
			if !ok && st.werr == nil {
				st.failLocked(stream.ErrDeadline, h2.Cancel)
			}
			continue
		}
		st.sendWin.Take(n)
		c.sendWin.Take(n)
		last := end && n == len(p)
		c.out = h2.AppendData(c.out, st.id, p[:n], last)
		if n == len(p) || n > 256 {
			c.earned = min(c.earned+4+n/512, maxEarned)
		}
		p = p[n:]
		until = time.Time{}
		if last {
			if err := st.sentLocked(true); err != nil {
				return err
			}
			c.flushLocked()
			return nil
		}
		if len(c.out) >= outFull {
			c.flushLocked()
		}
		if len(p) == 0 && !end {
			return nil
		}
	}
}

// WriteTrailers implements stream.Downstream and stream.Upstream.
func (st *h2stream) WriteTrailers(f message.Fields) error {
	if len(f) == 0 {
		return st.WriteBody(nil, true)
	}
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := st.roomLocked(); err != nil {
		return err
	}
	if err := st.sentLocked(true); err != nil {
		return err
	}
	start := len(c.out)
	c.out = c.enc.Trailers(h2.BeginHeaders(c.out), f)
	c.out = h2.EndHeaders(c.out, start, st.id, true, h2.MinMaxFrame)
	c.flushLocked()
	return nil
}

// Flush implements stream.Downstream and stream.Upstream.
func (st *h2stream) Flush() error {
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	st.c.flushLocked()
	if st.werr != nil && !st.state.LocalDone() {
		return st.werr
	}
	return nil
}

// Trailers implements stream.Downstream and stream.Upstream.
func (st *h2stream) Trailers() message.Fields {
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	return st.trailers
}

// BodyReady implements stream.Ready.
func (st *h2stream) BodyReady() bool {
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	return st.first != nil || st.gotEnd || st.rerr != nil
}

// Hijack implements stream.Downstream and stream.Upstream: the DATA frames of the stream are the tunnel.
func (st *h2stream) Hijack() error {
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if !st.tunnel {
		return fmt.Errorf("not a CONNECT: %w", stream.ErrProtocol)
	}
	return nil
}

// codeOf spells a cause.
func codeOf(cause stream.Cause) h2.ErrCode {
	switch cause {
	case stream.Internal:
		return h2.InternalError
	case stream.Refused:
		return h2.RefusedStream
	case stream.Protocol:
		return h2.ProtocolError
	case stream.TooMuch:
		return h2.EnhanceYourCalm
	}
	return h2.Cancel
}

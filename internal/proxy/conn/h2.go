package conn

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/wire/h2"
)

// How an HTTP/2 connection works, on both sides:
//
// One goroutine reads: it parses frames, moves streams on and wakes who waits for them. It never writes to the socket, so
// two proxies whose sockets are full of each other's data still read. A server runs each exchange on a worker goroutine,
// which it keeps for the next one; a client's exchanges run on the goroutines of its callers.
//
// Everybody writes by appending frames to out, under mu. Who flushes takes the write token (flushing), lets the others
// run once so that they append too, and writes until nothing is left; the others come back at once. So a burst of small
// messages is one system call.
//
// Memory is bounded: what a peer can send is bounded by the receive windows, which are given back only as the stack reads;
// what we queue is bounded by outHigh, above which writers wait, and by Config.H2Queued for answers to control frames,
// above which the connection ends.
type h2conn struct {
	nc     net.Conn
	sock   *Socket // under nc: it bounds writes itself; nil when that is something else
	cfg    *Config
	server *h2server // nil for a client

	// Of the reading goroutine.
	in       []byte // in[r:w] is unparsed
	r, w     int
	dec      *h2.Decoder
	block    []byte // of a header block that CONTINUATION goes on with
	blockID  uint32 // its stream, 0 when none is open
	blockEnd bool   // its END_STREAM
	blockErr error  // found in its HEADERS frame
	blockAt  time.Time
	started  bool // the peer's first SETTINGS came
	born     time.Time
	moved    bool      // bytes came since the last tick
	movedAt  time.Time // as of the last tick
	oddities h2.Budget // frames that move nothing
	ends     uint      // exchanges that a client ended early
	strange  bool      // three quarters of them are spent: a server takes no more requests

	wg sync.WaitGroup // workers and flushers

	mu       sync.Mutex // guards everything below, and the streams' fields
	space    sync.Cond  // out became shorter, the connection's window or the peer's settings changed, or the connection ended
	waiting  int        // how many wait for space
	enc      *h2.Encoder
	out      []byte
	spare    []byte
	flushing bool
	queued   int // control frames of the reader in out
	earned   int // WINDOW_UPDATE frames that the DATA we sent makes useful
	deadline time.Time
	peer     h2.Settings
	settled  bool // the peer's SETTINGS are in peer
	sendWin  h2.SendWindow
	recvWin  h2.RecvWindow
	streams  map[uint32]*h2stream
	free     []*h2stream
	active   int       // streams in use, also those that ended on the wire but not for their user
	open     int       // of them, those that count against MaxStreams: all but those that came to their regular end
	lastID   uint32    // server: highest stream of the client; client: highest stream of ours
	upTo     uint32    // client: highest stream that may be begun
	ended    ring      // streams that we reset, whose frames may still be under way
	whole    ring      // client: streams that came to their regular end
	shut     ring      // client: streams that the server reset
	resets   h2.Budget // streams that ended early, by either side's RST_STREAM
	idleAt   time.Time
	err      error // the connection is over
	leaving  bool  // no new streams: drained, or GOAWAY came
	finalAt  time.Time
	finalOut bool // server: the GOAWAY that names the last stream is out
	pingAt   time.Time
}

const (
	inSize  = 32 << 10 // a frame of MinMaxFrame fits
	outHigh = 64 << 10 // writers wait above
	outFull = 16 << 10 // writers flush above
	outKeep = 64 << 10 // the largest idle buffer
	freeMax = 128      // pooled streams

	maxEarned = 1 << 17 // for a window of 64 MiB
)

// pingDrain and pingAlive tell our own PINGs apart.
var (
	pingDrain = [8]byte{'m', 'a', 'l', 'h', 'a', 'b', 'y', 'e'}
	pingAlive = [8]byte{'m', 'a', 'l', 'h', 'a', ' ', 'u', 'p'}
)

var inPool = sync.Pool{New: func() any { b := make([]byte, inSize); return &b }}

// errClosed ends a connection that has nothing to tell the peer.
var errClosed = errors.New("connection closed")

func newH2conn(nc net.Conn, cfg *Config, server *h2server) *h2conn {
	now := time.Now()
	sock, _ := socketOf(nc)
	if sock != nil {
		sock.limit(cfg.WriteTimeout)
	}
	fields := cfg.MaxFields
	if server == nil {
		fields *= 2 // as NewH1Client
	}
	c := &h2conn{nc: nc, sock: sock, cfg: cfg, server: server, enc: h2.NewEncoder(), peer: h2.DefaultSettings(), streams: make(map[uint32]*h2stream),
		sendWin: h2.NewSendWindow(h2.InitialWindow), recvWin: h2.NewRecvWindow(max(cfg.ConnectionWindow, h2.InitialWindow)),
		dec:      h2.NewDecoder(h2.InitialTable, h2.Limits{Bytes: cfg.MaxHead, Fields: fields, TrailerBytes: cfg.MaxTrailers, Trim: server == nil}),
		oddities: h2.NewBudget(cfg.H2Oddities, cfg.H2OddityRate, now.UnixNano()),
		resets:   h2.NewBudget(cfg.H2Resets, cfg.H2ResetRate, now.UnixNano()), born: now, movedAt: now, idleAt: now,
		upTo: h2.MaxWindow - 2}
	c.space.L = &c.mu
	return c
}

// hello appends our SETTINGS and opens the connection's window.
func (c *h2conn) hello() {
	s := h2.DefaultSettings()
	s.InitialWindow = c.cfg.StreamWindow
	s.MaxStreams = c.cfg.MaxStreams
	s.MaxHeaderList = uint32(c.cfg.MaxHead)
	s.EnableConnect = true
	c.out = s.Append(c.out, c.server != nil)
	if c.cfg.ConnectionWindow > h2.InitialWindow {
		c.out = h2.AppendWindowUpdate(c.out, 0, c.cfg.ConnectionWindow-h2.InitialWindow)
	}
}

// read parses frames until the connection is over and says why.
func (c *h2conn) read() error {
	c.mu.Lock()
	err := c.tickLocked(time.Now())
	c.mu.Unlock()
	if err != nil {
		return err
	}
	for {
		for c.w-c.r >= h2.FrameHeaderLen {
			h := h2.ParseFrameHeader(c.in[c.r:])
			err := h.Check(h2.MinMaxFrame)
			if _, fatal := err.(h2.ConnError); fatal {
				return err
			}
			end := c.r + h2.FrameHeaderLen + int(h.Length)
			if end > c.w {
				break
			}
			p := c.in[c.r+h2.FrameHeaderLen : end : end]
			c.r = end
			if err == nil {
				err = c.frame(h, p)
			}
			if err == nil {
				continue
			}
			se, ok := err.(h2.StreamError)
			if !ok {
				return err
			}
			if err := c.refuse(h.StreamID, se.Code); err != nil {
				return err
			}
		}
		c.begin()
		if c.r > 0 {
			c.w = copy(c.in, c.in[c.r:c.w])
			c.r = 0
		}
		c.mu.Lock()
		if c.err != nil {
			c.mu.Unlock()
			return c.err
		}
		if c.strange && c.server != nil {
			c.leaveLocked() // who works has the time to end; who does not finds the connection closed at four quarters
		}
		c.kickLocked()
		c.mu.Unlock()
		n, err := c.nc.Read(c.in[c.w:])
		c.w += n
		c.moved = c.moved || n > 0
		if err == nil {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			if errors.Is(err, io.EOF) {
				return errClosed
			}
			return fmt.Errorf("reading: %w", err)
		}
		if n > 0 {
			continue
		}
		c.mu.Lock()
		err = c.tickLocked(time.Now())
		c.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// tickLocked does what needs the clock, a few times in each of the periods that matter, and asks to be called again: the
// socket's read deadline is the connection's only timer.
func (c *h2conn) tickLocked(now time.Time) error {
	if c.err != nil {
		return c.err
	}
	if c.moved {
		c.moved, c.movedAt = false, now
	}
	if !c.started && now.Sub(c.born) > c.cfg.HeadTimeout || c.blockID != 0 && now.Sub(c.blockAt) > c.cfg.HeadTimeout {
		return h2.ConnError{Code: h2.EnhanceYourCalm, Reason: "SETTINGS or header block took too long"}
	}
	idle := c.cfg.Idle
	if c.server == nil {
		idle = c.cfg.UpstreamIdle
	}
	if c.active == 0 && (c.leaving && (c.server == nil || c.finalOut) || idle > 0 && now.Sub(c.idleAt) > idle) {
		c.leaving = true // nobody opens a stream before the connection's end is told
		return h2.ConnError{Code: h2.NoError, Reason: "idle"}
	}
	wait := 5 * time.Second
	sooner := func(d time.Duration) {
		if d > 0 && d/4 < wait {
			wait = max(d/4, 5*time.Millisecond)
		}
	}
	sooner(idle)
	sooner(c.cfg.HeadTimeout)
	if c.server != nil {
		if c.leaving && !c.finalOut {
			if now.Before(c.finalAt) {
				wait = min(wait, c.finalAt.Sub(now))
			} else {
				c.finalLocked()
				return c.tickLocked(now)
			}
		}
		if c.active == 0 && now.Sub(c.idleAt) > wait {
			c.server.trimLocked()
		}
	} else if k := c.cfg.H2Keepalive; k > 0 {
		sooner(k)
		sooner(c.cfg.H2KeepaliveTimeout)
		switch {
		case !c.pingAt.IsZero() && now.Sub(c.pingAt) > c.cfg.H2KeepaliveTimeout:
			return h2.ConnError{Code: h2.NoError, Reason: "no answer to PING"}
		case c.pingAt.IsZero() && now.Sub(c.movedAt) > k:
			c.pingAt = now
			c.out = h2.AppendPing(c.out, false, pingAlive)
			c.kickLocked()
		}
	}
	return c.nc.SetReadDeadline(now.Add(wait))
}

// wakeReader makes read look at the clock and the connection's state soon.
func (c *h2conn) wakeReader() { _ = c.nc.SetReadDeadline(time.Unix(1, 0)) }

// frame handles one frame whose header was checked. Only the reading goroutine comes here.
func (c *h2conn) frame(h h2.FrameHeader, p []byte) error {
	if c.blockID != 0 && (h.Type != h2.Continuation || h.StreamID != c.blockID) {
		return h2.ConnError{Code: h2.ProtocolError, Reason: "frame inside a header block"} // RFC 9113 section 6.10
	}
	if !c.started {
		if h.Type != h2.SettingsType || h.Has(h2.FlagAck) {
			return h2.ConnError{Code: h2.ProtocolError, Reason: "first frame is not SETTINGS"} // section 3.4
		}
		c.started = true
	}
	switch h.Type {
	case h2.Data:
		return c.onData(h, p)
	case h2.Headers:
		fragment, err := h.Fragment(p)
		if _, fatal := err.(h2.ConnError); fatal {
			return err
		}
		if h.Has(h2.FlagEndHeaders) {
			return c.onBlock(h.StreamID, h.Has(h2.FlagEndStream), fragment, err)
		}
		if err := c.gather(fragment); err != nil {
			return err
		}
		c.blockID, c.blockEnd, c.blockErr, c.blockAt = h.StreamID, h.Has(h2.FlagEndStream), err, time.Now()
		return nil
	case h2.Continuation:
		if c.blockID == 0 {
			return h2.ConnError{Code: h2.ProtocolError, Reason: "CONTINUATION without HEADERS"}
		}
		if err := c.gather(p); err != nil {
			return err
		}
		if !h.Has(h2.FlagEndHeaders) {
			return c.odd(1)
		}
		id, end, err := c.blockID, c.blockEnd, c.blockErr
		c.blockID, c.blockErr = 0, nil
		block := c.block
		c.block = c.block[:0]
		return c.onBlock(id, end, block, err)
	case h2.Priority: // its meaning is gone (section 5.3.2)
		if h2.ParsePriority(p) == h.StreamID {
			if err := c.odd(1); err != nil {
				return err
			}
			return h2.StreamError{Code: h2.ProtocolError, Reason: "stream depends on itself"}
		}
		return c.odd(1)
	case h2.RSTStream:
		return c.onReset(h.StreamID, h2.ParseReset(p))
	case h2.SettingsType:
		return c.onSettings(h, p)
	case h2.PushPromise:
		return h2.ConnError{Code: h2.ProtocolError, Reason: "PUSH_PROMISE was not allowed"} // sections 6.5.2, 8.4
	case h2.Ping:
		return c.onPing(h, [8]byte(p))
	case h2.GoAway:
		last, _ := h2.ParseGoAway(p)
		return c.onGoAway(last)
	case h2.WindowUpdate:
		return c.onWindowUpdate(h.StreamID, h2.ParseWindowUpdate(p))
	}
	return c.odd(1) // unknown types are ignored (section 4.1)
}

// gather adds a fragment to the header block.
func (c *h2conn) gather(p []byte) error {
	if len(c.block)+len(p) > c.dec.MaxBlock() {
		return h2.ConnError{Code: h2.EnhanceYourCalm, Reason: "header block is too long"}
	}
	c.block = append(c.block, p...)
	return nil
}

// odd counts frames that the protocol allows and nobody needs.
func (c *h2conn) odd(n int) error {
	if !c.oddities.Spend(n, nanos) {
		return h2.ConnError{Code: h2.EnhanceYourCalm, Reason: "too many frames that do nothing"}
	}
	c.strange = c.strange || c.oddities.Low(nanos)
	return nil
}

func nanos() int64 { return time.Now().UnixNano() }

// refuse resets a stream for the peer's fault, on the reading goroutine.
func (c *h2conn) refuse(id uint32, code h2.ErrCode) error {
	c.mu.Lock()
	if !c.resets.Spend(1, nanos) {
		c.mu.Unlock()
		return h2.ConnError{Code: h2.EnhanceYourCalm, Reason: "too many streams were reset"}
	}
	st := c.streams[id]
	var gone func(stream.Cause)
	if st != nil {
		if c.wasResetLocked(id) {
			c.mu.Unlock()
			return nil
		}
		st.endLocked(stream.ErrProtocol)
		gone = st.goneLocked()
	}
	c.resetLocked(id, code)
	err := c.controlLocked()
	c.mu.Unlock()
	st.tell(gone, stream.Protocol)
	if gone != nil {
		c.endedOne()
	}
	return err
}

// endsAtOnce is how many exchanges a client ends before others have their turn. Each may have a connection to an endpoint, which
// nobody needs any more and which takes 15 µs to close.
const endsAtOnce = 4

// endedOne is called by the reading goroutine for each exchange that ended early.
func (c *h2conn) endedOne() {
	if c.server == nil {
		return
	}
	if c.ends++; c.ends%endsAtOnce == 0 {
		c.cfg.Poll.Look()
	}
}

// resetLocked appends RST_STREAM and remembers the stream.
func (c *h2conn) resetLocked(id uint32, code h2.ErrCode) {
	c.out = h2.AppendReset(c.out, id, code)
	c.ended.add(id)
}

// wasReset reports whether we reset a stream lately.
func (c *h2conn) wasResetLocked(id uint32) bool { return c.ended.has(id) }

// ring remembers the last few streams of a kind.
type ring struct {
	ids  [128]uint32
	next uint8
}

func (r *ring) add(id uint32) {
	r.ids[r.next%uint8(len(r.ids))] = id
	r.next++
}

func (r *ring) has(id uint32) bool {
	for _, e := range r.ids {
		if e == id {
			return true
		}
	}
	return false
}

// controlLocked counts a frame that the reader appended: a peer that makes us answer and does not read is cut off.
func (c *h2conn) controlLocked() error {
	if c.queued++; c.queued > c.cfg.H2Queued {
		return h2.ConnError{Code: h2.EnhanceYourCalm, Reason: "peer asks and does not read the answers"}
	}
	return nil
}

// closeLocked ends the connection for all who use it. The socket is closed by finish, which also ends a client's exchanges, a few
// at a time.
func (c *h2conn) closeLocked(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	if c.server == nil {
		for _, st := range c.streams {
			st.endLocked(stream.ErrReset)
		}
	}
	c.space.Broadcast()
}

// finish says goodbye, closes the socket, and waits for everybody. why is what read returned.
func (c *h2conn) finish(why error) {
	c.mu.Lock()
	c.closeLocked(why)
	var gone []*h2stream
	for _, st := range c.streams {
		gone = append(gone, st)
	}
	if bye, ok := why.(h2.ConnError); ok {
		last := c.lastID
		if c.server == nil {
			last = 0 // we processed no stream of the server's
		}
		c.out = h2.AppendGoAway(c.out, last, bye.Code, bye.Reason)
		if c.sock != nil {
			c.sock.limit(time.Second)
		}
		_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
		for c.flushing {
			c.space.Wait()
		}
		_, _ = c.nc.Write(c.out) // best effort: the connection ends either way
	}
	c.out, c.spare = nil, nil
	c.mu.Unlock()
	for _, st := range gone {
		c.mu.Lock()
		if c.server != nil {
			st.endLocked(stream.ErrReset)
		}
		f := st.goneLocked()
		c.mu.Unlock()
		st.tell(f, stream.Cancelled)
		c.endedOne()
	}
	if _, ok := why.(h2.ConnError); ok {
		linger(c.nc)
	}
	_ = c.nc.Close()
	c.mu.Lock()
	if c.server != nil {
		c.server.trimLocked()
	}
	c.mu.Unlock()
	c.wg.Wait()
	c.mu.Lock()
	if c.server != nil {
		for _, st := range c.server.asked {
			st.releaseLocked()
		}
		c.server.asked = nil
	}
	for _, st := range c.free {
		st.stop()
	}
	c.free = nil
	c.mu.Unlock()
}

// linger lets the peer read the last frames: closing a socket with unread bytes would take them back (RFC 9112 section 9.6).
func linger(nc net.Conn) {
	cw, ok := nc.(interface{ CloseWrite() error })
	if !ok || cw.CloseWrite() != nil {
		return
	}
	if nc.SetReadDeadline(time.Now().Add(200*time.Millisecond)) == nil {
		_, _ = io.CopyN(io.Discard, nc, 256<<10)
	}
}

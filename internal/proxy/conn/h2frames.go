package conn

import (
	"time"

	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/wire/h2"
)

// What the reading goroutine does about each type of frame, but for header blocks (h2server.go, h2client.go).

func (c *h2conn) onData(h h2.FrameHeader, p []byte) error {
	data, err := h.Unpad(p)
	if err != nil {
		return err
	}
	end := h.Has(h2.FlagEndStream)
	if len(data) == 0 && !end {
		if err := c.odd(1); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.recvWin.Receive(len(p)) {
		return h2.ConnError{Code: h2.FlowControlError, Reason: "connection window exceeded"}
	}
	st := c.streams[h.StreamID]
	if st == nil {
		c.creditLocked(len(p))
		if err := c.odd(1); err != nil {
			return err
		}
		return c.onStrayLocked(h.StreamID, "DATA")
	}
	if st.state == h2.Closed && st.werr != nil { // reset
		c.creditLocked(len(p))
		return c.onStrayLocked(h.StreamID, "DATA")
	}
	state, err := st.state.Receive(end)
	if err != nil {
		c.creditLocked(len(p))
		if c.server == nil && st.over {
			return errAfterEnd
		}
		return err
	}
	if !st.recvWin.Receive(len(p)) {
		c.creditLocked(len(p))
		return h2.StreamError{Code: h2.FlowControlError, Reason: "stream window exceeded"}
	}
	if c.server == nil && !st.headed {
		c.creditLocked(len(p))
		return h2.StreamError{Code: h2.ProtocolError, Reason: "DATA before the response head"} // section 8.1
	}
	st.received += int64(len(data))
	if st.declared >= 0 && (st.received > st.declared || end && st.received != st.declared) {
		c.creditLocked(len(p))
		return h2.StreamError{Code: h2.ProtocolError, Reason: "DATA and content-length differ"} // section 8.1.1
	}
	if len(data) > 0 && !c.cfg.Memory.room(st.first != nil) {
		c.creditLocked(len(p))
		return h2.StreamError{Code: h2.EnhanceYourCalm, Reason: "no memory for a body that nobody reads"}
	}
	st.moveLocked(state)
	if pad := len(p) - len(data); pad > 0 {
		c.creditLocked(pad)
		st.creditLocked(pad)
	}
	if len(data) >= 256 {
		c.oddities.Earn(1)
	}
	st.pushLocked(data)
	if end {
		st.gotEnd = true
	}
	st.readable.Broadcast()
	return nil
}

// onStrayLocked handles a frame for a stream that does not exist (any more), section 5.1.
func (c *h2conn) onStrayLocked(id uint32, what string) error {
	if id > c.lastID || id%2 == 0 {
		if c.finalOut && id%2 == 1 {
			return nil // of a stream after our GOAWAY, which we ignore (section 6.8)
		}
		return h2.ConnError{Code: h2.ProtocolError, Reason: what + " on an idle stream"}
	}
	if c.wasResetLocked(id) {
		return nil // sent before our RST_STREAM arrived
	}
	if c.server == nil {
		if c.whole.has(id) {
			return errAfterEnd
		}
		if !c.shut.has(id) {
			return nil // a client resets more streams than it remembers
		}
	}
	return h2.StreamError{Code: h2.StreamClosed, Reason: what + " on a closed stream"}
}

// errAfterEnd is a server that goes on after it ended a stream (RFC 9113 section 5.1, closed).
var errAfterEnd = h2.ConnError{Code: h2.StreamClosed, Reason: "frame on a stream that had ended"}

// creditLocked gives connection window back.
func (c *h2conn) creditLocked(n int) {
	if inc := c.recvWin.Consume(n); inc > 0 {
		c.out = h2.AppendWindowUpdate(c.out, 0, inc)
	}
}

func (c *h2conn) onReset(id uint32, code h2.ErrCode) error {
	c.mu.Lock()
	st := c.streams[id]
	if st == nil {
		var err error
		if !c.whole.has(id) {
			err = c.onStrayLocked(id, "RST_STREAM")
		} // else a server wants no more of a request that has ended meanwhile (section 8.1): ignored, section 5.1
		c.mu.Unlock()
		if _, fatal := err.(h2.ConnError); fatal {
			return err
		}
		return c.odd(1) // both ends closed it
	}
	early := !st.state.LocalDone() || !st.gotEnd
	cause := stream.ErrStreamReset
	if code == h2.RefusedStream {
		cause = stream.ErrRefused
	}
	st.endLocked(cause)
	if c.server == nil {
		c.shut.add(id)
	}
	gone := st.goneLocked()
	calm := c.server == nil || !early || c.resets.Spend(1, nanos)
	c.mu.Unlock()
	st.tell(gone, stream.Cancelled)
	if gone != nil {
		c.endedOne()
	}
	if !calm {
		return h2.ConnError{Code: h2.EnhanceYourCalm, Reason: "too many streams were reset"} // CVE-2023-44487
	}
	return nil
}

func (c *h2conn) onSettings(h h2.FrameHeader, p []byte) error {
	if err := c.odd(1 + len(p)/60); err != nil {
		return err
	}
	if h.Has(h2.FlagAck) {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.peer.InitialWindow
	if !c.settled {
		c.settled = true
		c.peer.MaxStreams = 1<<32 - 1 // without the setting there is no limit but ours
	}
	if err := c.peer.Apply(p, c.server == nil); err != nil {
		return err
	}
	if c.peer.InitialWindow != before { // section 6.9.2
		for _, st := range c.streams {
			if !st.sendWin.Add(int64(c.peer.InitialWindow) - int64(before)) {
				return h2.ConnError{Code: h2.FlowControlError, Reason: "SETTINGS_INITIAL_WINDOW_SIZE overflows a window"}
			}
			st.writable.Broadcast()
		}
	}
	c.enc.SetTableSize(c.peer.HeaderTableSize)
	c.space.Broadcast()
	c.out = h2.AppendSettingsAck(c.out)
	return c.controlLocked()
}

func (c *h2conn) onPing(h h2.FrameHeader, data [8]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !h.Has(h2.FlagAck) {
		c.out = h2.AppendPing(c.out, true, data)
		if err := c.controlLocked(); err != nil {
			return err
		}
		return c.odd(1)
	}
	switch data {
	case pingAlive:
		c.pingAt = time.Time{}
	case pingDrain:
		if c.leaving && !c.finalOut {
			c.finalLocked()
			c.doneLocked()
		}
	default:
		return c.odd(1)
	}
	return nil
}

func (c *h2conn) onGoAway(last uint32) error {
	if err := c.odd(1); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server != nil {
		return nil // the client opens no more, whatever its reason; what it opened runs on until it closes
	}
	c.leaving = true
	c.upTo = min(c.upTo, last)
	for id, st := range c.streams {
		if id > last {
			st.endLocked(stream.ErrRefused) // section 6.8: not processed
		}
	}
	c.doneLocked()
	return nil
}

func (c *h2conn) onWindowUpdate(id, n uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Some peers give back every frame, or every piece that they read of one, for the stream and for the connection: they
	// may, but for windows so small that they make the frames (CVE-2019-9511).
	if c.earned > 0 {
		c.earned--
	} else if err := c.odd(1); err != nil {
		return err
	}
	if id == 0 {
		if n == 0 {
			return h2.ConnError{Code: h2.ProtocolError, Reason: "WINDOW_UPDATE of 0"} // section 6.9
		}
		if !c.sendWin.Add(int64(n)) {
			return h2.ConnError{Code: h2.FlowControlError, Reason: "connection window overflows"} // section 6.9.1
		}
		c.space.Broadcast()
		return nil
	}
	st := c.streams[id]
	if st == nil {
		if c.whole.has(id) {
			return nil // a server read on after its answer, and gave window back before it saw the end of the request (section 5.1, closed)
		}
		if err, fatal := c.onStrayLocked(id, "WINDOW_UPDATE").(h2.ConnError); fatal {
			return err
		}
		return nil // crossed with the stream's end
	}
	if n == 0 {
		return h2.StreamError{Code: h2.ProtocolError, Reason: "WINDOW_UPDATE of 0"}
	}
	if !st.sendWin.Add(int64(n)) {
		return h2.StreamError{Code: h2.FlowControlError, Reason: "stream window overflows"}
	}
	st.writable.Broadcast()
	return nil
}

package conn

import (
	"fmt"
	"runtime"
	"time"
)

// flushLocked writes what is in out, or leaves it to who holds the token. mu is released meanwhile.
func (c *h2conn) flushLocked() {
	if len(c.out) == 0 || c.flushing || c.err != nil {
		return
	}
	c.flushing = true
	if c.active > 1 {
		// The others are likely to append their messages soon: let those that can run do so first.
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	c.writeLocked()
}

// writeLocked writes until out is empty, with the token, and gives the token back.
func (c *h2conn) writeLocked() {
	for len(c.out) > 0 && c.err == nil {
		b := c.out
		c.out, c.spare = c.spare[:0], nil
		c.queued = 0
		var late time.Time
		if c.sock == nil && c.cfg.WriteTimeout > 0 {
			// The deadline moves only when a quarter of the time is gone, to spare the runtime's timers.
			if now := time.Now(); c.deadline.Sub(now) < c.cfg.WriteTimeout*3/4 {
				c.deadline = now.Add(c.cfg.WriteTimeout)
				late = c.deadline
			}
		}
		c.mu.Unlock()
		var err error
		if !late.IsZero() {
			err = c.nc.SetWriteDeadline(late)
		}
		if err == nil {
			_, err = c.nc.Write(b)
		}
		c.mu.Lock()
		if cap(b) <= outKeep {
			c.spare = b[:0]
		}
		if err != nil {
			c.closeLocked(fmt.Errorf("writing: %w", err))
			c.wakeReader()
		}
		if c.waiting > 0 {
			c.space.Broadcast()
		}
	}
	c.flushing = false
	if c.err != nil {
		c.space.Broadcast()
	}
}

// kickLocked has what is in out written by somebody else than the caller, who must not block.
func (c *h2conn) kickLocked() {
	if len(c.out) == 0 || c.flushing || c.err != nil {
		return
	}
	c.flushing = true
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		c.mu.Lock()
		c.writeLocked()
		c.mu.Unlock()
	}()
}

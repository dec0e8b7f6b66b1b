package stack

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

// keepLimit is how much of a request body is kept so that it can be sent again, in bytes.
const keepLimit = 64 << 10

// body is the request body of an exchange.
//
// A body of known length up to keepLimit is read before anything is sent (keep). Any other is pumped: a second goroutine
// reads the client and writes to the lease of the moment, while the exchange waits for the response. What went through
// the pump is kept as long as it is little, so that a retry can begin with it.
type body struct {
	kept     []byte
	trailers message.Fields
	whole    bool // kept is all of it
	received uint64

	pumping bool
	done    sync.WaitGroup

	// The pump holds mu while it writes, which takes for ever where the endpoint does not read. So what is asked while it is at
	// work is not under it.
	ended atomic.Bool  // the pump has seen the end of the body
	moved atomic.Int64 // when the last of it came, with exchange.idle; since the exchange began

	mu     sync.Mutex
	to     *upstream.Lease // nil: nobody wants it
	spilt  bool            // more than keepLimit came: it cannot be sent again
	readBy error           // why reading the client ended, other than at the end
}

func (b *body) reset() {
	kept := b.kept[:0]
	if cap(kept) > keepLimit {
		kept = nil
	}
	b.kept, b.trailers, b.whole, b.received = kept, nil, false, 0
	b.pumping, b.to, b.spilt, b.readBy = false, nil, false, nil
	b.ended.Store(false)
	b.moved.Store(0)
}

// keep reads a body that is known to be small.
func (x *exchange) keep() bool {
	b := &x.body
	switch {
	case x.req.Length == 0 || len(x.req.Upgrade) > 0:
		b.whole = true
		return true
	case x.req.Length < 0 || x.req.Length > keepLimit, x.idle > 0: // only the pump leaves somebody to look at the clock
		return true
	}
	for {
		p, err := x.d.ReadBody()
		b.kept = append(b.kept, p...)
		b.received += uint64(len(p))
		if x.grpc {
			x.in.pass(p)
		}
		if err == io.EOF {
			b.whole, b.trailers = true, x.d.Trailers()
			x.now()
			if x.route != nil {
				x.bound() // the route's times are about the destination, not about how the body came (Envoy route timeout)
			}
			return true
		}
		if err != nil {
			return x.clientFailed(err)
		}
	}
}

// clientFailed ends an exchange whose request did not arrive.
func (x *exchange) clientFailed(err error) bool {
	switch {
	case errors.Is(err, stream.ErrProtocol):
		x.s.Recorder.Proxy.ProtocolErrors.Inc()
		return x.answer(400, telemetry.DownstreamProtocolError, "request_body_malformed", "the request body is malformed")
	case errors.Is(err, stream.ErrDeadline):
		return x.answer(408, telemetry.RequestTimeout, "request_timeout", "the request body did not arrive in time")
	}
	return x.abandon()
}

// abandon ends an exchange whose client went away.
func (x *exchange) abandon() bool {
	x.rec.Flags |= telemetry.DownstreamClosed
	x.rec.Detail = "downstream_remote_disconnect"
	x.rec.BodyIn = x.body.received
	x.d.Reset(stream.Cancelled)
	return false
}

// sendBody sends the body on a lease: the first time by starting the pump, later by what was kept. What is not pumped is written here,
// where nobody looks at the clock meanwhile.
func (x *exchange) sendBody(l *upstream.Lease) error {
	b := &x.body
	if b.pumping {
		b.mu.Lock() // until the deadline is taken away: the pump writes as soon as it can
		defer b.mu.Unlock()
	}
	if !x.attempt.Deadline.IsZero() && (b.pumping || b.whole) {
		l.SetWriteDeadline(x.attempt.Deadline)
		defer l.SetWriteDeadline(time.Time{}) // the pump goes on, and may do so when the head has come
	}
	if !b.pumping {
		if b.whole {
			return sendWhole(l, b)
		}
		if err := l.Flush(); err != nil {
			return err
		}
		b.pumping, b.to = true, l
		x.aside(&b.done, x.pump, x.pumpFailed)
		return nil
	}
	b.to = l
	if b.whole {
		return sendWhole(l, b)
	}
	if len(b.kept) > 0 {
		if err := l.WriteBody(b.kept, false); err != nil {
			return err
		}
	}
	return l.Flush()
}

// empty reports whether it is known that there is nothing to send, which stays so. The pump may be at work: an attempt
// after the first one begins while it is.
func (b *body) empty() bool {
	if b.pumping {
		b.mu.Lock()
		defer b.mu.Unlock()
	}
	return b.whole && len(b.kept) == 0 && len(b.trailers) == 0
}

// ending reports whether all of the request came.
func (b *body) ending() bool {
	if !b.pumping {
		return b.whole
	}
	return b.ended.Load()
}

func sendWhole(l *upstream.Lease, b *body) error {
	if len(b.trailers) > 0 {
		if err := l.WriteBody(b.kept, false); err != nil {
			return err
		}
		if err := l.WriteTrailers(b.trailers); err != nil {
			return err
		}
	} else if err := l.WriteBody(b.kept, true); err != nil {
		return err
	}
	return l.Flush()
}

// pump runs on its own goroutine until the client's body ends or stopBody is called.
func (x *exchange) pump() {
	for {
		p, err := x.d.ReadBody()
		x.pumped(p, err)
		if err != nil {
			return
		}
	}
}

// pumped passes on what the pump read.
func (x *exchange) pumped(p []byte, err error) {
	b := &x.body
	b.mu.Lock()
	defer b.mu.Unlock()
	b.received += uint64(len(p))
	if x.grpc {
		x.in.pass(p)
	}
	if x.idle > 0 {
		b.moved.Store(int64(time.Since(x.rec.Start)))
	}
	end := err == io.EOF
	if !b.spilt {
		if len(b.kept)+len(p) > keepLimit {
			b.spilt = true
			b.kept = b.kept[:0]
		} else {
			b.kept = append(b.kept, p...)
		}
	}
	if end {
		b.trailers = x.d.Trailers()
		b.whole = !b.spilt
		b.ended.Store(true)
	} else if err != nil {
		b.readBy = err
	}
	l := b.to
	if l == nil {
		return
	}
	// An error is the business of who reads the response; the client's bytes are still taken, as its next attempt may
	// want them.
	switch {
	case err != nil && !end:
		l.Cancel(stream.Cancelled)
	case end && len(b.trailers) > 0:
		if l.WriteBody(p, false) == nil && l.WriteTrailers(b.trailers) == nil {
			_ = l.Flush()
		}
	case end || len(p) > 0:
		// What is here already goes out together: chunks of a byte do not each make a system call, and a packet.
		if l.WriteBody(p, end) == nil && (end || !x.moreHere()) {
			_ = l.Flush()
		}
	}
}

// moreHere reports whether the client's next piece can be read without waiting.
func (x *exchange) moreHere() bool {
	ready, ok := x.d.(stream.Ready)
	return ok && ready.BodyReady()
}

// pumpFailed ends the body after the pump panicked.
func (x *exchange) pumpFailed() {
	b := &x.body
	b.mu.Lock()
	defer b.mu.Unlock()
	b.whole, b.spilt, b.readBy = false, true, stream.ErrCancelled
	b.ended.Store(false)
	if b.to != nil {
		b.to.Cancel(stream.Internal)
	}
}

// detachBody makes the pump let go of a lease that is about to be closed.
func (x *exchange) detachBody(l *upstream.Lease) {
	b := &x.body
	if !b.pumping {
		return
	}
	// A write that is stuck holds mu: cancelling ends it.
	if !b.mu.TryLock() {
		l.Cancel(stream.Cancelled)
		b.mu.Lock()
	}
	b.to = nil
	b.mu.Unlock()
}

// stopBody ends the pump and waits for it.
func (x *exchange) stopBody() {
	b := &x.body
	if !b.pumping {
		x.rec.BodyIn = b.received
		return
	}
	b.mu.Lock()
	finished := b.ended.Load() || b.readBy != nil
	b.mu.Unlock()
	if !finished {
		if x.watched != nil {
			x.watched.StopReading()
		} else {
			x.d.Reset(stream.Cancelled)
		}
	}
	b.done.Wait()
	b.pumping = false
	x.rec.BodyIn = b.received
}

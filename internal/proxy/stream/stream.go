// Package stream is the contract between the connections that carry HTTP messages (internal/proxy/conn) and the stack
// that decides about them (internal/proxy/stack): one request and its response, seen from each side, whatever the
// protocol version.
//
// The style is blocking: a stream is used by one goroutine at a time for each direction, except Cancel, which may come from any.
// Who calls is who owns the goroutine: an HTTP/1 connection serves its exchanges on its own, an HTTP/2 connection hands
// each stream to a pooled worker.
package stream

import (
	"errors"
	"fmt"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

// Downstream is the server side of one exchange: the client that asked.
type Downstream interface {
	// Request returns the head. It stays valid until the exchange is over; the stack may change it.
	Request() *message.Request
	// ReadBody reads body bytes into the stream's own buffer and returns them, valid until the next call.
	// err is io.EOF together with or after the last bytes. It sends "100 Continue" first when the client waits for it.
	// No call is needed for a request of Length 0.
	ReadBody() (p []byte, err error)
	// Trailers returns the trailer fields after ReadBody returned io.EOF.
	Trailers() message.Fields
	// WriteInformational sends a 1xx head other than 101.
	WriteInformational(*message.Response) error
	// WriteHead starts the response. end means that no body follows. Bytes may wait in a buffer until Flush.
	WriteHead(r *message.Response, end bool) error
	// WriteBody sends body bytes, blocking while the client's window or socket is full. It keeps nothing of p.
	WriteBody(p []byte, end bool) error
	// WriteTrailers ends the response with trailer fields.
	WriteTrailers(message.Fields) error
	// Flush hands what was written to the kernel; the connection may merge flushes of several streams.
	Flush() error
	// Reset ends the exchange without (the rest of) a response: HTTP/2 RST_STREAM, HTTP/1 close.
	Reset(Cause)
	// Hijack turns the exchange into a byte tunnel after a 101 or a 2xx to CONNECT was written: reads and writes go
	// through ReadBody and WriteBody from then on, without framing.
	Hijack() error
}

// Upstream is the client side of one exchange: a stream on a connection to an endpoint.
type Upstream interface {
	// WriteHead sends the request head. end means that no body follows.
	WriteHead(r *message.Request, end bool) error
	// WriteBody sends body bytes, blocking while the endpoint's window or socket is full. It keeps nothing of p.
	WriteBody(p []byte, end bool) error
	// WriteTrailers ends the request with trailer fields.
	WriteTrailers(message.Fields) error
	// Flush hands what was written to the kernel.
	Flush() error
	// ReadHead waits for a response head: also each 1xx, so it is called until Status >= 200 or 101.
	ReadHead(*message.Response) error
	// ReadBody returns the next body bytes, valid until the next call; err is io.EOF with or after the last ones.
	ReadBody() (p []byte, err error)
	// Trailers returns the trailer fields after ReadBody returned io.EOF.
	Trailers() message.Fields
	// SetReadDeadline bounds ReadHead and ReadBody; the zero time means no bound. A passed deadline is ErrDeadline.
	SetReadDeadline(time.Time)
	// SetWriteDeadline bounds what is written from now on, which the connection bounds anyway; the zero time means no more than that.
	// Like a write it is for one goroutine at a time. A passed deadline is ErrDeadline, and ends the stream.
	SetWriteDeadline(time.Time)
	// Cancel gives the stream up from any goroutine: pending calls return, an HTTP/1 connection is closed, an HTTP/2
	// stream is reset.
	Cancel(Cause)
	// Close ends the use of the stream: after a complete exchange the connection is ready for another, else it is Cancel.
	// It is called exactly once, and no other call follows.
	Close()
	// Hijack turns the exchange into a byte tunnel after a 101 or a 2xx to CONNECT was read.
	Hijack() error
}

// Ready may be implemented by an Upstream or a Downstream. BodyReady reports whether ReadBody would return at once; when it would
// not, the stack flushes what it wrote to the other side before it waits. One without it is taken to be never ready.
type Ready interface {
	BodyReady() bool
}

// Watched may be implemented by a Downstream. Both methods may be called from any goroutine.
type Watched interface {
	// Gone reports, without blocking, whether the client has left, so that nobody works for it in vain.
	Gone() bool
	// StopReading makes a pending ReadBody, and each later one, return ErrCancelled: the answer is complete and the rest of
	// the request is of no interest. What becomes of the rest is the connection's business. A Downstream without it is Reset.
	StopReading()
}

// Notifier may be implemented by a Downstream. OnGone sets what is called when the client gives the exchange up before it
// is over: at most once, maybe at once, on a goroutine that it must not hold up. The stack cancels the upstream there.
// OnGone(nil) takes it back and returns only when no such call is running; it is due before the upstream is closed.
type Notifier interface {
	OnGone(func(Cause))
}

// Cause says why an exchange ended early; each protocol spells it its own way.
type Cause uint8

// The causes.
const (
	Cancelled Cause = iota // the other side went away (HTTP/2 CANCEL)
	Internal               // our own fault (INTERNAL_ERROR)
	Refused                // not processed at all, safe to retry (REFUSED_STREAM)
	Protocol               // the peer broke the protocol (PROTOCOL_ERROR)
	TooMuch                // a limit was passed (ENHANCE_YOUR_CALM)
)

// Errors of streams. Use errors.Is.
var (
	// ErrDeadline is a passed SetReadDeadline.
	ErrDeadline = errors.New("deadline passed")
	// ErrRefused means that the endpoint did not process the request at all: it may be sent again elsewhere.
	// REFUSED_STREAM and GOAWAY below the stream's id are this.
	ErrRefused = errors.New("refused unprocessed")
	// ErrUnread is with the ErrStale or ErrReset of a TCP connection that ended before any byte of a response, of which the kernel tells
	// that the peer had not read the request: it never accepted the connection, or closed it with the request unread, which makes a
	// reset (RFC 2525 section 2.17), or before the request came, which is not acknowledged then. It says so of a peer on the same machine.
	ErrUnread = errors.New("the request was not read")
	// ErrReset means that the peer ended the stream or connection early.
	ErrReset = errors.New("reset by peer")
	// ErrStreamReset is the ErrReset of one stream of a connection that goes on: the peer gave that one up.
	ErrStreamReset = fmt.Errorf("the stream was %w", ErrReset)
	// ErrStale is the ErrReset of a kept HTTP/1 connection that ended before any byte of a response. Most likely the peer closed it
	// while it was idle (RFC 9112 section 9.3.1), but it may have read the request and acted on it: what may not be repeated is not
	// sent again for this.
	ErrStale = fmt.Errorf("the kept connection had ended: %w", ErrReset)
	// ErrProtocol means that the peer sent what the protocol forbids.
	ErrProtocol = errors.New("protocol error")
	// ErrNoForm is the ErrProtocol of a request that can't be said in the protocol which the endpoint speaks. Nothing was sent, and the
	// endpoint is not to blame.
	ErrNoForm = fmt.Errorf("the request has no form in what the endpoint speaks: %w", ErrProtocol)
	// ErrCancelled means that Cancel was called.
	ErrCancelled = errors.New("cancelled")
)

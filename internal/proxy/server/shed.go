package server

import (
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/wire/h2"
)

// DefaultMaxHandshakes is how many TLS handshakes may be under way in a proxy. Each costs about 30 KB and a signature.
const DefaultMaxHandshakes = 512

// keptFiles is how many descriptors are left to logs, the control stream, the admin port and the runtime.
const keptFiles = 32

// Room is what all listeners of a proxy share: how many connections and handshakes there may be at one time. What comes
// beyond is refused at once, with an answer where the protocol has one, as that costs less than everybody waiting.
type Room struct {
	connections    atomic.Int64
	maxConnections int64
	handshakes     chan struct{}
	answering      chan struct{} // places for refusals that are being said

	mu    sync.Mutex
	spare *os.File // a descriptor that is given up to refuse a connection when there is no other
}

// NewRoom returns a Room for so many downstream connections and handshakes. 0 connections means half of the file
// descriptors that the process may open, so that each can have one upstream; 0 handshakes the default.
func NewRoom(connections, handshakes int) *Room {
	if connections <= 0 {
		connections = halfOfFiles()
	}
	if handshakes <= 0 {
		handshakes = DefaultMaxHandshakes
	}
	r := &Room{maxConnections: int64(connections), handshakes: make(chan struct{}, handshakes), answering: make(chan struct{}, 64)}
	return r
}

func halfOfFiles() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil || l.Cur > 1<<30 {
		return 1 << 29
	}
	return max((int(l.Cur)-keptFiles)/2, 8)
}

// enter takes a place for a connection.
func (r *Room) enter() bool {
	if r.connections.Add(1) <= r.maxConnections {
		return true
	}
	r.connections.Add(-1)
	return false
}

func (r *Room) leave() { r.connections.Add(-1) }

// handshake takes a place for a TLS handshake, and reports how long it may take. shake or done gives it back. When more than
// half of the places are taken, those who are slow have less time: they are what fills them.
func (r *Room) handshake(limit time.Duration) (time.Duration, bool) {
	select {
	case r.handshakes <- struct{}{}:
	default:
		return 0, false
	}
	if 2*len(r.handshakes) > cap(r.handshakes) {
		limit /= 4
	}
	return limit, true
}

// shake runs a handshake in the place that was taken for it.
func (r *Room) shake(tc *tls.Conn) error {
	defer r.done()
	return tc.Handshake()
}

// done gives the place of a handshake back.
func (r *Room) done() { <-r.handshakes }

// exhausted tells errors that mean a lack of descriptors or kernel memory, which passes.
func exhausted(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
}

// keepSpare opens the spare descriptor if there are any left, and reports whether it is there.
func (r *Room) keepSpare() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.openSpareLocked()
	return r.spare != nil
}

func (r *Room) openSpareLocked() {
	if r.spare == nil {
		r.spare, _ = os.Open(os.DevNull)
	}
}

// withSpare accepts a connection for which there is no descriptor, with the spare one, and refuses it. Without that it
// would wait in the queue, and its client with it. false: the spare one is not there.
func (r *Room) withSpare(accept func() (*net.TCPConn, error), refuse func(*net.TCPConn)) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.spare == nil {
		r.openSpareLocked()
		return false
	}
	_ = r.spare.Close()
	r.spare = nil
	defer r.openSpareLocked()
	nc, err := accept()
	if err != nil {
		return false
	}
	refuse(nc)
	_ = nc.Close()
	return true
}

// Why a connection is not let in.
var (
	errNoRoom   = errors.New("the limit of connections is reached")
	errNoMemory = errors.New("the proxy is short of memory")
)

// full says why there was no place for a connection.
func (l *Listener) full() error {
	if l.o.Conn.Memory.Short() {
		return errNoMemory
	}
	return errNoRoom
}

// Shed ends one of every so many connections, whichever they are, at once. It is for when there is no memory left for those
// that are open: who holds most of them loses most.
func (l *Listener) Shed(every int) (ended int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for nc, p := range l.conns {
		if rand.IntN(every) != 0 {
			continue
		}
		_ = nc.Close() // first: one that is about to be parked is not taken in any more
		if p != nil {
			l.o.Lot.End(p)
		}
		ended++
	}
	l.o.Recorder.Proxy.ConnectionsShed.Add(uint64(ended))
	return ended
}

// turnedAway is what a client is told that is not let in, in the words of its protocol.
type turnedAway struct{ http1, http2 []byte }

// Our SETTINGS come first (RFC 9113 section 3.4); stream 0 as the last one says that nothing was processed, so that
// everything may be tried again elsewhere (section 6.8).
var (
	noRoom = &turnedAway{
		http1: []byte("HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: 44\r\nconnection: close\r\n\r\n" +
			"this proxy has no room for more connections\n"),
		http2: h2.AppendGoAway(h2.AppendFrameHeader(nil, h2.FrameHeader{Type: h2.SettingsType}), 0, h2.EnhanceYourCalm, "no room for more connections"),
	}
	notYours = &turnedAway{
		http1: []byte("HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\ncontent-length: 56\r\nconnection: close\r\n\r\n" +
			"this sidecar sends only for programs of the mesh's user\n"),
		http2: h2.AppendGoAway(h2.AppendFrameHeader(nil, h2.FrameHeader{Type: h2.SettingsType}), 0, h2.InadequateSecurity, "only for programs of the mesh's user"),
	}
)

// Time that a client has to say what it speaks before it is refused without a word.
const (
	refuseTime = 250 * time.Millisecond
	hurryTime  = 20 * time.Millisecond // where refusals stand in a line
)

// refuse closes a connection that is not let in, and says why. Too many at once get no answer.
func (l *Listener) refuse(nc *net.TCPConn, r *Rules, why *turnedAway) {
	l.o.Recorder.Proxy.ConnectionsRefused.Inc()
	l.o.Recorder.Proxy.ConnectionsClosed.Inc()
	select {
	case l.o.Room.answering <- struct{}{}:
	default:
		_ = nc.Close()
		return
	}
	l.wg.Go(func() {
		defer func() { <-l.o.Room.answering }()
		l.explain(nc, r, why, refuseTime)
		_ = nc.Close()
	})
}

// explain tells a client why it is not let in.
func (l *Listener) explain(nc *net.TCPConn, r *Rules, why *turnedAway, patience time.Duration) {
	if r == nil || r.HTTP == nil && !r.Listener.Forward || r.Listener.Direction == plan.Inbound && (r.Listener.TLS == plan.TLSStrict || r.Names != nil) {
		return // opaque bytes and TLS have no answer that costs less than what there is no room for
	}
	c := &prefixConn{Conn: nc}
	_ = c.SetDeadline(time.Now().Add(patience))
	s := look(nil)
	for s == unclear {
		if c.more() != nil {
			return
		}
		s = look(c.prefix)
	}
	var answer []byte
	switch s {
	case http1:
		answer = why.http1
	case http2:
		answer = why.http2
	default:
		return
	}
	if _, err := nc.Write(answer); err != nil {
		return
	}
	part(nc)
}

// part lets a client read the last that was written to it. What is unread when a socket closes makes the kernel reset it, and the client
// loses the answer (RFC 9112 section 9.6). The deadline is the caller's to set.
func part(nc net.Conn) {
	if half, ok := nc.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	_, _ = io.CopyN(io.Discard, nc, 64<<10)
}

// acceptNow accepts a connection that waits, if there is one: accept4(2) lacks a descriptor also when nobody waits.
func (l *Listener) acceptNow() (*net.TCPConn, error) {
	_ = l.ln.SetDeadline(time.Now().Add(time.Millisecond))
	nc, err := l.ln.AcceptTCP()
	_ = l.ln.SetDeadline(time.Time{})
	if l.drain.Begun() { // its deadline came before ours was taken away
		l.shutSoon()
	}
	return nc, err
}

// acceptFailed waits for things to get better after an error of accept, and sheds what can't be served meanwhile.
// Connections that were gone before they were accepted are no reason to wait.
func (l *Listener) acceptFailed(err error, pause time.Duration) time.Duration {
	if errors.Is(err, syscall.ECONNABORTED) {
		return 0
	}
	l.warn(err)
	if exhausted(err) && l.o.Room.withSpare(l.acceptNow, func(nc *net.TCPConn) {
		l.o.Recorder.Proxy.ConnectionsOpened.Inc()
		l.o.Recorder.Proxy.ConnectionsRefused.Inc()
		l.o.Recorder.Proxy.ConnectionsClosed.Inc()
		l.explain(nc, l.Rules(), noRoom, hurryTime)
	}) {
		return 0 // the next one waits for its answer, too
	}
	if exhausted(err) && !l.o.Room.keepSpare() {
		// A request took the spare one for its upstream connection, which may be idle by now.
		l.o.Upstreams.CloseIdle()
		l.o.Room.keepSpare()
	}
	pause = min(max(2*pause, 5*time.Millisecond), 200*time.Millisecond)
	time.Sleep(pause)
	return pause
}

// warn logs at most one line a second: who sheds load has no time for more.
func (l *Listener) warn(err error) {
	now := time.Now()
	if now.Sub(l.warned) < time.Second {
		l.unwarned++
		return
	}
	l.o.Log.Warn("a connection was not accepted", "listener", l.name(), "error", err, "more_of_it", l.unwarned)
	l.warned, l.unwarned = now, 0
}

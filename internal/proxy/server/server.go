// Package server is where connections come in: listeners, mesh TLS, protocol detection, the forward proxy, opaque
// connections, and draining.
//
// In come a bind address and the Rules of a plan's listener, which may be replaced at any time; out go HTTP connections
// to internal/proxy/conn, with internal/proxy/stack as their handler, and opaque connections to clusters of
// internal/proxy/upstream. A connection goes through, top to bottom:
//
//	accept → connection limit → PROXY protocol header, where one is expected → TLS: that of the mesh as the listener's mode
//	says, or that of the server name → protocol (declared, negotiated, or detected) → HTTP/1, HTTP/2, or authorization and
//	opaque bytes
//
// Each connection has a goroutine of its own, which Listener.Serve waits for; an opaque one has a second, for the other
// direction, and one of HTTP/1 that is idle has none while it is parked (conn.Lot). A panic ends the connection that it happened on, and nothing else.
package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/stack"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

// Defaults of Options.
const (
	DefaultMaxConnections   = 10000
	DefaultDetectTimeout    = time.Second
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultTCPIdle          = time.Hour // Envoy and Istio tcp_proxy idle_timeout
)

// Options are what listeners need from outside. Zero numbers mean the defaults.
type Options struct {
	Conn        *conn.Config // nil: conn.Defaults
	Credentials trust.Source // nil: no mesh TLS can be terminated
	Upstreams   *upstream.Set
	Recorder    *telemetry.Recorder
	Log         *slog.Logger // nil: nothing is logged

	Lot  *conn.Lot // where idle connections are parked, shared by listeners; nil: nowhere
	Room *Room     // shared by listeners; nil: one of its own
	// Sender says whether whoever connected from remote may send as the workload, on outbound listeners that have an address of
	// their own: it need not be the workload. nil: everybody may, as in a network namespace that is the workload's alone.
	Sender           func(remote, local netip.AddrPort) error
	MaxConnections   int           // of one listener; more are refused
	DetectTimeout    time.Duration // how long first bytes may take before a connection counts as opaque
	HandshakeTimeout time.Duration
	TCPIdle          time.Duration // of opaque connections in which nothing moves
}

func (o Options) withDefaults() Options {
	if o.Conn == nil {
		o.Conn = conn.Defaults()
	}
	if o.Credentials == nil {
		o.Credentials = trust.Static{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Room == nil {
		o.Room = NewRoom(0, 0)
	}
	if o.MaxConnections <= 0 {
		o.MaxConnections = DefaultMaxConnections
	}
	if o.DetectTimeout <= 0 {
		o.DetectTimeout = DefaultDetectTimeout
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if o.TCPIdle <= 0 {
		o.TCPIdle = DefaultTCPIdle
	}
	return o
}

// Listener is one open door. Connections use the Rules that are in force when they, or each of their requests, begin.
type Listener struct {
	o     Options
	ln    *net.TCPListener
	rules atomic.Pointer[Rules]
	drain conn.Drain
	tls   tlsConfigs

	warned   time.Time // of the accept loop: the last warning
	unwarned int       // and how many were left out since

	door *door                    // not nil: what comes is given to other listeners
	fed  atomic.Pointer[Listener] // the door that gives us connections, if one does
	shut chan struct{}            // without a socket: closed when no more connections come
	left atomic.Bool              // the socket is a successor's now

	count atomic.Int64
	wg    sync.WaitGroup
	done  chan struct{} // closed when Serve returns

	mu    sync.Mutex
	conns map[net.Conn]*conn.Parked // open, to be ended, with what was parked of them last
	over  bool                      // no new ones
}

// Listen opens a listener at bind ("IP:port"). SetRules says what to do, and then Serve accepts.
func Listen(ctx context.Context, o Options, bind string) (*Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // slower on one path, and without some socket options (Go tries it by default)
	ln, err := lc.Listen(ctx, "tcp", bind)
	if err != nil {
		return nil, err
	}
	return On(o, ln.(*net.TCPListener)), nil
}

// On makes a listener of a socket that is open already: one that another process hands over.
func On(o Options, ln *net.TCPListener) *Listener {
	l := &Listener{o: o.withDefaults(), ln: ln, conns: make(map[net.Conn]*conn.Parked), done: make(chan struct{})}
	l.tls.source = l.o.Credentials
	return l
}

// Socket gives access to the listening socket, to hand it over. It stays the listener's; nil when it has none.
func (l *Listener) Socket() syscall.Conn {
	if l.ln == nil {
		return nil
	}
	return l.ln
}

// Yield stops accepting at once, because somebody else accepts on the same socket: what waits in its queue is theirs.
// Drain ends the rest, and idle connections keep their chance for one more request for a while.
func (l *Listener) Yield(idle time.Duration) {
	l.drain.SetIdle(idle)
	_ = l.Close()
}

// Addr returns the address that the listener has; that of its door, or the zero one, when it has no socket.
func (l *Listener) Addr() netip.AddrPort {
	if l.ln == nil {
		if d := l.fed.Load(); d != nil {
			return d.Addr()
		}
		return netip.AddrPort{}
	}
	return l.ln.Addr().(*net.TCPAddr).AddrPort()
}

// SetRules puts rules in force for all exchanges and connections that begin from now on.
func (l *Listener) SetRules(r *Rules) { l.rules.Store(r) }

// Rules returns what is in force.
func (l *Listener) Rules() *Rules { return l.rules.Load() }

// Connections returns how many are open.
func (l *Listener) Connections() int { return int(l.count.Load()) }

// Serve accepts connections until Drain, and returns when all of them are over.
func (l *Listener) Serve() {
	if l.ln == nil {
		<-l.shut
	} else {
		l.o.Room.keepSpare()
		l.o.Lot.Open()
		l.accept()
		_ = l.ln.Close()
	}
	l.mu.Lock()
	l.over = true
	l.mu.Unlock()
	l.wg.Wait()
	close(l.done)
}

func (l *Listener) accept() {
	var pause time.Duration
	for {
		nc, err := l.ln.AcceptTCP()
		if err != nil {
			if l.drain.Begun() || errors.Is(err, net.ErrClosed) {
				return
			}
			pause = l.acceptFailed(err, pause)
			continue
		}
		pause = 0
		l.o.Recorder.Proxy.ConnectionsOpened.Inc()
		switch {
		case l.door != nil:
			l.give(nc)
		case !l.maySend(nc):
			l.refuse(nc, l.Rules(), notYours)
		case l.enter(nc):
			go l.serveConn(nc, netip.AddrPort{})
		default:
			l.warn(l.full())
			l.refuse(nc, l.Rules(), noRoom)
		}
	}
}

// maySend reports whether a client of an outbound listener may send what the workload sends. It asks before anything is read: what
// the client does next changes nothing.
func (l *Listener) maySend(nc *net.TCPConn) bool {
	if l.o.Sender == nil || l.Rules().Listener.Direction != plan.Outbound {
		return true
	}
	err := l.o.Sender(conn.AddrPort(nc.RemoteAddr()), conn.AddrPort(nc.LocalAddr()))
	if err != nil {
		l.warn(err)
	}
	return err == nil
}

// enter takes a place for a connection, which leave gives back; wg counts it meanwhile.
func (l *Listener) enter(nc net.Conn) bool {
	if l.count.Load() >= int64(l.o.MaxConnections) || l.o.Conn.Memory.Short() {
		return false
	}
	if !l.o.Room.enter() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		l.o.Room.leave()
		return false
	}
	l.o.Conn.Memory.Take(conn.ConnectionCost)
	l.conns[nc] = nil
	l.count.Add(1)
	l.wg.Add(1)
	return true
}

func (l *Listener) leave(nc net.Conn) {
	l.mu.Lock()
	delete(l.conns, nc)
	l.mu.Unlock()
	l.count.Add(-1)
	l.o.Recorder.Proxy.ConnectionsClosed.Inc()
	_ = nc.Close()
	l.o.Conn.Memory.Take(-conn.ConnectionCost)
	l.o.Room.leave()
	l.wg.Done()
}

// Drain stops accepting, lets connections finish what they do, and closes those that are left when ctx is over. What
// is in the accept queue is still served: those clients were told that they are connected. It returns when Serve did.
func (l *Listener) Drain(ctx context.Context) {
	l.drain.Begin()
	if l.ln != nil {
		l.shutSoon()
	} else {
		l.waitForDoor(ctx)
	}
	select {
	case <-l.done:
		return
	case <-ctx.Done():
	}
	_ = l.Close()
	l.mu.Lock()
	l.over = true
	for nc := range l.conns {
		_ = nc.Close()
	}
	l.mu.Unlock()
	<-l.done
}

// shutSoon makes a draining listener stop accepting after DrainIdle, or at once when somebody else does it.
func (l *Listener) shutSoon() {
	if !l.left.Load() {
		_ = l.ln.SetDeadline(time.Now().Add(l.o.Conn.DrainIdle))
	}
	if l.left.Load() { // perhaps since a moment ago
		_ = l.ln.SetDeadline(time.Now())
	}
}

// Share returns a second descriptor of a draining listener's socket, for a listener that takes its address over; nil when the door is shut already.
// Until Leave both accept, and a connection is one's or the other's.
func (l *Listener) Share() *net.TCPListener {
	if l.ln == nil {
		return nil
	}
	f, err := l.ln.File()
	if err != nil {
		return nil
	}
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		return nil
	}
	return ln.(*net.TCPListener)
}

// Leave ends a listener's accepting at once, for one that shares its socket. Who is connected is served as in Drain, which has still to be called.
func (l *Listener) Leave() {
	if l.ln == nil {
		return
	}
	l.left.Store(true)
	l.drain.Begin()
	l.shutSoon()
}

// Close closes a listener that Serve was not called on.
func (l *Listener) Close() error {
	if l.ln == nil {
		return nil
	}
	return l.ln.Close()
}

// serveConn is the whole life of one connection, which a door took for target, if that is valid.
func (l *Listener) serveConn(nc *net.TCPConn, target netip.AddrPort) {
	l.serve(nc, func() *conn.Parked {
		if rest := l.begin(nc, target); rest != nil {
			return rest()
		}
		return nil
	})
}

// serve runs a connection until it is over or parked. A parked one goes on here, on another goroutine.
func (l *Listener) serve(nc *net.TCPConn, run func() *conn.Parked) {
	parked := false
	defer func() {
		if !parked {
			l.leave(nc)
		}
	}()
	defer l.recovered("connection")
	for p := run(); p != nil; p = p.Serve() {
		l.mu.Lock()
		l.conns[nc] = p
		l.mu.Unlock()
		if parked = l.o.Lot.Park(p, func() { l.serve(nc, p.Serve) }); parked {
			return
		}
		p.Stay()
	}
}

// begin serves a connection until it is known what is spoken on it.
func (l *Listener) begin(nc *net.TCPConn, target netip.AddrPort) rest {
	s, err := conn.NewSocket(nc)
	if err != nil {
		return nil // it is closed already
	}
	p := &conn.Peer{Remote: conn.AddrPort(nc.RemoteAddr()), Local: conn.AddrPort(nc.LocalAddr())}
	r := l.Rules()
	p.Captured = target.IsValid()
	if r.Listener.Direction == plan.Inbound {
		if p.Captured {
			p.Local = target
		}
		return l.serveInbound(s, p, r)
	}
	if p.Captured {
		p.Target = target
		return l.serveCaptured(&prefixConn{Conn: s}, p, r)
	}
	if r.Listener.Forward {
		return l.serveDeclared(&prefixConn{Conn: s}, p, &forwarder{l: l})
	}
	c := &prefixConn{Conn: s}
	if r.Listener.ProxyProtocol && !l.readPreamble(c, p, r) {
		return nil
	}
	switch {
	case r.Names == nil:
	case r.Listener.Direction == plan.Edge:
		return l.serveEdge(c, p, r)
	default:
		if rest, ok := l.serveNamed(c, p, r, r.Names); ok {
			return rest
		}
	}
	return l.serveProtocol(c, p, r, "")
}

// recovered catches a panic: it must not end more than it has to. It has to be deferred itself: beneath another deferred
// function recover finds nothing.
func (l *Listener) recovered(what string) { l.caught(what, recover()) }

// caught counts a panic that somebody recovered, and reports whether there was one.
func (l *Listener) caught(what string, v any) bool {
	if v == nil {
		return false
	}
	l.o.Recorder.Proxy.Panics.Inc()
	l.o.Log.Error("panic while serving", "what", what, "panic", v, "stack", string(debug.Stack()))
	return true
}

// tag gives a connection's peer its name in telemetry.
func (l *Listener) tag(p *conn.Peer) { p.Tag = stack.Party(l.o.Recorder, p.Identity, p.Workload) }

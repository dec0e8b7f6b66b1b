package server

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
)

// prefixConn is a connection of which some bytes were read already.
type prefixConn struct {
	net.Conn
	prefix []byte
	silent bool // the time for first bytes is over
}

// Read returns the prefix first.
func (c *prefixConn) Read(b []byte) (int, error) {
	if len(c.prefix) > 0 {
		n := copy(b, c.prefix)
		c.prefix = c.prefix[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// CloseWrite ends our direction.
func (c *prefixConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Unwrap returns the connection beneath.
func (c *prefixConn) Unwrap() net.Conn { return c.Conn }

// SyscallConn gives access to the socket, to look whether the peer has gone.
func (c *prefixConn) SyscallConn() (syscall.RawConn, error) {
	if s, ok := c.Conn.(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// more reads more bytes behind the prefix, until the deadline that is set.
func (c *prefixConn) more() error {
	var b [512]byte
	n, err := c.Conn.Read(b[:])
	c.prefix = append(c.prefix, b[:n]...)
	if n > 0 {
		return nil
	}
	return err
}

// spoken is what the first bytes of a connection look like.
type spoken uint8

const (
	unclear spoken = iota // more bytes are needed
	opaque
	http1
	http2
	tlsHello
)

const h2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" // RFC 9113 section 3.4

// methods are those by which HTTP/1 is recognised where nobody declared it. Others would be found in many protocols.
var methods = []string{"GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "OPTIONS ", "PATCH ", "TRACE ", "CONNECT "}

// look tells what b begins with.
func look(b []byte) spoken {
	if len(b) == 0 {
		return unclear
	}
	if b[0] == 0x16 { // a TLS handshake record (RFC 8446 section 5.1), version 3.x
		switch {
		case len(b) == 1:
			return unclear
		case b[1] == 3:
			return tlsHello
		}
		return opaque
	}
	n := min(len(b), len(h2Preface))
	if string(b[:n]) == h2Preface[:n] {
		if n == len(h2Preface) {
			return http2
		}
		return unclear
	}
	for _, m := range methods {
		n := min(len(b), len(m))
		if string(b[:n]) != m[:n] {
			continue
		}
		if len(b) <= len(m) {
			return unclear
		}
		// What follows a method is a target: "/", "*", "http://" or, for CONNECT, a host.
		c := b[len(m)]
		if c == '/' || c == '*' || c == 'h' || c == 'H' || m == "CONNECT " {
			return http1
		}
		return opaque
	}
	return opaque
}

// sniff reads until it is clear what is spoken, for a short while only: where the server speaks first, the client is
// silent. Silence counts as opaque.
func (l *Listener) sniff(c *prefixConn) spoken {
	_ = c.SetReadDeadline(time.Now().Add(l.o.DetectTimeout))
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	for {
		if s := look(c.prefix); s != unclear {
			return s
		}
		if c.silent {
			return opaque // who asked before, for TLS, has waited
		}
		if err := c.more(); err != nil {
			c.silent = true
			if len(c.prefix) == 0 || !errors.Is(err, io.EOF) {
				l.o.Recorder.Proxy.DetectionTimeouts.Inc()
			}
			return opaque
		}
	}
}

// inside is what may be spoken on a connection, in plaintext or inside of TLS, and who serves it.
type inside struct {
	protocol ident.Protocol
	http     conn.Handler // nil: no HTTP is served
	tcp      *Opaque
}

// rest is what remains to be done for a connection once it is known what is spoken on it; nil: nothing. It is returned, and not
// called, so that a connection that idles holds no stack of the functions that found out: 1,000 of them 4 MB less. It returns the connection
// when that is idle for so long that it may be parked.
type rest func() *conn.Parked

// toEnd serves the rest here, for a tunnel, whose end somebody waits for.
func (r rest) toEnd() {
	if r == nil {
		return
	}
	for p := r(); p != nil; p = p.Serve() {
		p.Stay()
	}
}

// serveProtocol serves a connection in plaintext, or inside of mesh TLS, whose negotiated protocol is alpn.
func (l *Listener) serveProtocol(c *prefixConn, p *conn.Peer, r *Rules, alpn string) rest {
	in := inside{protocol: r.Listener.Protocol, tcp: r.TCP}
	if r.HTTP != nil {
		in.http = handler{l}
	}
	return l.serveInside(c, p, r, in, alpn)
}

func (l *Listener) serveInside(c *prefixConn, p *conn.Peer, r *Rules, in inside, alpn string) rest {
	switch {
	case in.http == nil || in.protocol == ident.TCP || in.protocol == ident.TLS || alpn == trust.ALPNOpaque && in.tcp != nil && !in.protocol.IsHTTP():
		l.serveTCP(c, p, r, in.tcp)
		return nil
	case alpn == trust.ALPNHTTP2 || alpn == "h2":
		return l.serveHTTP2(c, p, in.http)
	case alpn == trust.ALPNHTTP1 || alpn == "http/1.1":
		return l.serveHTTP1(c, p, in.http)
	case in.protocol.IsHTTP():
		// Declared: no time limit but those of HTTP itself. An HTTP/2 client with prior knowledge starts with its preface.
		return l.serveDeclared(c, p, in.http)
	}
	switch l.sniff(c) {
	case http1:
		return l.serveHTTP1(c, p, in.http)
	case http2:
		return l.serveHTTP2(c, p, in.http)
	}
	l.serveTCP(c, p, r, in.tcp)
	return nil
}

// serveDeclared serves a port that is declared to be HTTP, by whichever version the client begins with.
func (l *Listener) serveDeclared(c *prefixConn, p *conn.Peer, h conn.Handler) rest {
	if len(c.prefix) == 0 && !l.await(c) {
		return nil
	}
	_ = c.SetReadDeadline(time.Now().Add(l.o.Conn.HeadTimeout))
	for {
		n := min(len(c.prefix), len(h2Preface))
		if n > 0 && string(c.prefix[:n]) != h2Preface[:n] {
			break
		}
		if n == len(h2Preface) {
			return l.serveHTTP2(c, p, h)
		}
		if c.more() != nil {
			return nil
		}
	}
	return l.serveHTTP1(c, p, h)
}

// await waits for the first bytes of a connection whose client speaks first, and reports whether there are any. A drain
// shortens the wait.
func (l *Listener) await(c *prefixConn) bool {
	_ = c.SetReadDeadline(time.Now().Add(l.o.Conn.Idle))
	member := l.drain.Join(func() { _ = c.SetReadDeadline(time.Now().Add(l.drain.Idle(l.o.Conn))) })
	err := c.more()
	member.Leave()
	return err == nil
}

func (l *Listener) serveHTTP1(c *prefixConn, p *conn.Peer, h conn.Handler) rest {
	nc, first := c.unwrap()
	return func() *conn.Parked { return conn.ServeH1Parking(nc, first, p, h, l.o.Conn, &l.drain) }
}

func (l *Listener) serveHTTP2(c *prefixConn, p *conn.Peer, h conn.Handler) rest {
	nc, first := c.unwrap()
	return func() *conn.Parked {
		l.runHTTP2(nc, first, p, h)
		return nil
	}
}

// runHTTP2 serves a connection to its end. It costs more than others, so that it is begun only while there is memory.
func (l *Listener) runHTTP2(nc net.Conn, first []byte, p *conn.Peer, h conn.Handler) {
	m := l.o.Conn.Memory
	if m.Short() {
		l.o.Recorder.Proxy.ConnectionsRefused.Inc()
		_ = nc.SetDeadline(time.Now().Add(refuseTime))
		_, _ = nc.Write(noRoom.http2)
		return
	}
	m.Take(conn.HTTP2Cost)
	defer m.Take(-conn.HTTP2Cost)
	conn.ServeH2(nc, first, p, h, l.o.Conn, &l.drain)
}

// unwrap returns the connection beneath and the bytes that were read ahead of it.
func (c *prefixConn) unwrap() (net.Conn, []byte) {
	first := c.prefix
	c.prefix = nil
	return c.Conn, first
}

// tlsConfigs keeps the server configuration of mesh TLS.
type tlsConfigs struct {
	source trust.Source
	config atomic.Pointer[tls.Config]
}

func (t *tlsConfigs) get() *tls.Config {
	if c := t.config.Load(); c != nil {
		return c
	}
	c := trust.ServerConfig(t.source, []string{trust.ALPNHTTP2, trust.ALPNHTTP1, trust.ALPNOpaque})
	t.config.Store(c)
	return c
}

// serveInbound serves a connection from another workload, as the listener's TLS mode says.
func (l *Listener) serveInbound(nc net.Conn, p *conn.Peer, r *Rules) rest {
	c := &prefixConn{Conn: nc}
	switch r.Listener.TLS {
	case plan.TLSStrict:
		return l.serveTLS(c, p, r)
	case plan.TLSPermissive:
		return l.servePermissive(c, p, r)
	}
	l.tag(p)
	if r.Names != nil {
		return l.serveEdge(c, p, r)
	}
	return l.serveProtocol(c, p, r, "")
}

// servePermissive terminates TLS that is meant for the mesh, told by its ALPN, and lets everything else pass as it is, unless
// the listener ends the TLS of strangers.
func (l *Listener) servePermissive(c *prefixConn, p *conn.Peer, r *Rules) rest {
	var s spoken
	if r.Listener.Protocol.IsHTTP() {
		// The client speaks first: there is no reason to guess from silence.
		if !l.await(c) {
			return nil
		}
		_ = c.SetReadDeadline(time.Now().Add(l.o.Conn.HeadTimeout))
		for s = look(c.prefix); len(c.prefix) < 2 && s == unclear; s = look(c.prefix) {
			if c.more() != nil {
				return nil
			}
		}
		_ = c.SetReadDeadline(time.Time{})
	} else {
		s = l.sniff(c)
	}
	if s == tlsHello {
		if hello := l.readHello(c, l.o.HandshakeTimeout); hello != nil {
			p.SNI = hello.ServerName
			for _, proto := range hello.SupportedProtos {
				if strings.HasPrefix(proto, "istio") {
					return l.serveTLS(c, p, r)
				}
			}
		}
	}
	l.tag(p)
	switch {
	case r.Names != nil:
		return l.serveEdge(c, p, r) // the TLS of strangers is ended here; what is none is closed
	case s == tlsHello:
		l.serveTCP(c, p, r, r.TCP)
		return nil
	}
	return l.serveProtocol(c, p, r, "")
}

var errSniffed = errors.New("only looking")

// readHello reads a whole ClientHello without taking it from the connection; nil when there is none that can be read within
// limit. It may come in any number of records and packets, of at most 64 KiB together.
func (l *Listener) readHello(c *prefixConn, limit time.Duration) *tls.ClientHelloInfo {
	var hello *tls.ClientHelloInfo
	o := &onlooker{c: c}
	_ = c.SetReadDeadline(time.Now().Add(limit))
	// crypto/tls parses the hello and asks for a configuration; there we stop it.
	_ = tls.Server(o, &tls.Config{
		MinVersion: tls.VersionTLS10, // who ends TLS, here or behind, knows what is too old
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			hello = h
			return nil, errSniffed
		},
	}).Handshake()
	_ = c.SetReadDeadline(time.Time{})
	c.prefix = append(o.seen.Bytes(), c.prefix...)
	return hello
}

// onlooker reads a connection, keeps what it read, and writes nothing.
type onlooker struct {
	c    *prefixConn
	seen bytes.Buffer
}

func (o *onlooker) Read(b []byte) (int, error) {
	if o.seen.Len() > 64<<10 {
		return 0, errSniffed
	}
	n, err := o.c.Read(b)
	o.seen.Write(b[:n])
	return n, err
}

func (o *onlooker) Write([]byte) (int, error)        { return 0, errSniffed }
func (o *onlooker) Close() error                     { return nil }
func (o *onlooker) LocalAddr() net.Addr              { return o.c.LocalAddr() }
func (o *onlooker) RemoteAddr() net.Addr             { return o.c.RemoteAddr() }
func (o *onlooker) SetDeadline(time.Time) error      { return nil }
func (o *onlooker) SetReadDeadline(time.Time) error  { return nil }
func (o *onlooker) SetWriteDeadline(time.Time) error { return nil }

// serveTLS terminates mesh TLS and serves what is inside.
func (l *Listener) serveTLS(c *prefixConn, p *conn.Peer, r *Rules) rest {
	limit, ok := l.o.Room.handshake(l.o.HandshakeTimeout)
	if !ok {
		l.o.Recorder.Proxy.ConnectionsRefused.Inc()
		l.o.Log.Debug("too many TLS handshakes at once", "listener", r.Listener.Name, "remote", p.Remote)
		return nil
	}
	tc := tls.Server(c, l.tls.get())
	_ = c.SetDeadline(time.Now().Add(limit))
	if err := l.o.Room.shake(tc); err != nil {
		l.o.Recorder.Proxy.TLSFailures.Inc()
		if r.Listener.TLS == plan.TLSStrict {
			l.o.Recorder.Proxy.ConnectionsRefused.Inc()
		}
		l.o.Log.Debug("mesh TLS failed", "listener", r.Listener.Name, "remote", p.Remote, "error", err)
		return nil
	}
	_ = c.SetDeadline(time.Time{})
	state := tc.ConnectionState()
	id, labels, err := trust.PeerOf(state)
	if err != nil {
		l.o.Recorder.Proxy.TLSFailures.Inc()
		return nil
	}
	p.TLS, p.Identity, p.Workload, p.SNI = true, id, labels, state.ServerName
	l.tag(p)
	return within(tc, l.serveProtocol(&prefixConn{Conn: tc}, p, r, state.NegotiatedProtocol))
}

// within returns the rest of a connection inside of TLS, which ends TLS, too. Where there is none TLS is ended here.
func within(tc *tls.Conn, inner rest) rest {
	if inner == nil {
		_ = tc.Close()
	}
	return inner
}

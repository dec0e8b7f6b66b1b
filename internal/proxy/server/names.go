package server

import (
	"bytes"
	"crypto/tls"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/stack"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

// Name is a plan.ServerName made ready to run. It is immutable.
type Name struct {
	Plan *plan.ServerName
	TLS  *trust.Edge // nil: TLS is passed through as it is
	// Closed is why connections for these names are refused: a secret that is missing, say. nil: they are not.
	Closed error
	HTTP   *stack.Stack // inside TLS that is ended
	TCP    *Opaque
	// Auto finds the cluster that a server name spells; nil: server names spell none.
	Auto func(name string) *upstream.Cluster
}

// Names chooses among the server names of a listener. It is immutable.
type Names struct {
	exact  map[string]*Name
	suffix map[string]*Name // of "*.example.com": "example.com"
	any    *Name
	ends   bool // TLS of some is ended here
}

// NewNames returns nil for none.
func NewNames(names []*Name) *Names {
	if len(names) == 0 {
		return nil
	}
	s := &Names{exact: make(map[string]*Name), suffix: make(map[string]*Name)}
	for _, n := range names {
		s.ends = s.ends || n.TLS != nil || n.Closed != nil
		for _, host := range n.Plan.Names {
			if rest, ok := strings.CutPrefix(host, "*."); ok {
				s.suffix[rest] = n
			} else if host == "*" {
				s.any = n
			} else {
				s.exact[host] = n
			}
		}
	}
	return s
}

// Find returns the entry for a canonical host: the exact one, that of the longest suffix, or the one for all; nil when none
// covers it. The empty host is covered by the one for all only. It does not allocate.
func (s *Names) Find(host []byte) *Name {
	if n := s.exact[string(host)]; n != nil && len(host) > 0 {
		return n
	}
	if len(s.suffix) > 0 {
		for rest := host; ; {
			i := bytes.IndexByte(rest, '.')
			if i < 0 {
				break
			}
			rest = rest[i+1:]
			if n := s.suffix[string(rest)]; n != nil && i > 0 {
				return n
			}
		}
	}
	return s.any
}

// TLS alerts of a connection that ends before its handshake (RFC 8446 section 6, RFC 6066 section 3), as whole records.
var (
	alertUnrecognizedName = []byte{21, 3, 3, 0, 2, 2, 112}
	alertInternalError    = []byte{21, 3, 3, 0, 2, 2, 80}
)

// serveEdge serves a connection of a stranger at a door where the server name decides. Whatever is not TLS, or asks for a name that is not
// served here, is closed.
func (l *Listener) serveEdge(c *prefixConn, p *conn.Peer, r *Rules) rest {
	// Browsers open connections ahead of need: who says nothing yet holds no place of a handshake.
	if len(c.prefix) == 0 {
		_ = c.SetReadDeadline(time.Now().Add(l.o.HandshakeTimeout))
		if c.more() != nil {
			return nil
		}
	}
	limit, ok := l.o.Room.handshake(l.o.HandshakeTimeout)
	if !ok {
		l.o.Recorder.Proxy.ConnectionsRefused.Inc()
		l.o.Log.Debug("too many TLS handshakes at once", "listener", r.Listener.Name, "remote", p.Remote)
		return nil
	}
	by := time.Now().Add(limit)
	_ = c.SetReadDeadline(by)
	s := look(c.prefix)
	for s == unclear && c.more() == nil {
		s = look(c.prefix)
	}
	var hello *tls.ClientHelloInfo
	if s == tlsHello {
		hello = l.readHello(c, limit)
	}
	if hello == nil {
		l.o.Room.done()
		l.o.Recorder.Proxy.TLSFailures.Inc()
		l.turnAway(p, r, &r.Listener.Origin, telemetry.DownstreamProtocolError, "not_tls")
		return nil
	}
	p.SNI = strings.ToLower(hello.ServerName)
	n := r.Names.Find([]byte(p.SNI))
	if n == nil {
		l.o.Room.done()
		if r.Names.ends { // who only passes TLS on does not speak it
			_, _ = c.Write(alertUnrecognizedName)
		}
		l.turnAway(p, r, &r.Listener.Origin, telemetry.NoRoute, "no_server_name")
		return nil
	}
	return l.serveName(c, p, r, n, by)
}

// serveNamed serves a connection that begins TLS for a server name that names know, and reports whether it was one. Any other
// is left as it came.
func (l *Listener) serveNamed(c *prefixConn, p *conn.Peer, r *Rules, names *Names) (inner rest, was bool) {
	if l.sniff(c) != tlsHello {
		return nil, false
	}
	limit, ok := l.o.Room.handshake(l.o.HandshakeTimeout)
	if !ok {
		l.o.Recorder.Proxy.ConnectionsRefused.Inc()
		return nil, true
	}
	by := time.Now().Add(limit)
	hello := l.readHello(c, limit)
	if hello == nil {
		l.o.Room.done()
		return nil, false // TLS that we can't read: others may
	}
	p.SNI = strings.ToLower(hello.ServerName)
	n := names.Find([]byte(p.SNI))
	if n == nil {
		l.o.Room.done()
		return nil, false
	}
	return l.serveName(c, p, r, n, by), true
}

// turnAway records a connection that is closed before anything was served.
func (l *Listener) turnAway(p *conn.Peer, r *Rules, origin *ident.Origin, flags telemetry.Flags, detail string) {
	l.o.Recorder.Proxy.ConnectionsRefused.Inc()
	rec := l.tcpRecord(p, r)
	rec.Origin, rec.Flags, rec.Detail = origin, flags, detail
	l.refuseTCP(rec)
}

// serveName serves a connection whose server name chose n, within the place of a handshake that was taken for it.
func (l *Listener) serveName(c *prefixConn, p *conn.Peer, r *Rules, n *Name, by time.Time) rest {
	if n.Closed != nil {
		l.o.Room.done()
		_, _ = c.Write(alertInternalError)
		l.turnAway(p, r, &n.Plan.Origin, telemetry.NoCluster, "tls_not_usable")
		return nil
	}
	if n.TLS == nil {
		l.o.Room.done()
		_ = c.SetDeadline(time.Time{})
		l.passThrough(c, p, r, n)
		return nil
	}
	_ = c.SetDeadline(by)
	tc := tls.Server(c, n.TLS.Config())
	if err := l.o.Room.shake(tc); err != nil {
		l.o.Recorder.Proxy.TLSFailures.Inc()
		l.o.Log.Debug("TLS failed", "listener", r.Listener.Name, "remote", p.Remote, "server_name", p.SNI, "error", err)
		// A client of TLS 1.3 whose certificate is refused, or missing, has begun to send: the alert is to reach it all the same.
		_ = c.SetDeadline(time.Now().Add(refuseTime))
		part(c.Conn)
		return nil
	}
	_ = c.SetDeadline(time.Time{})
	state := tc.ConnectionState()
	p.TLS = true
	if n.TLS.Mesh() {
		var err error
		if p.Identity, p.Workload, err = trust.PeerOf(state); err != nil {
			l.o.Recorder.Proxy.TLSFailures.Inc()
			return nil
		}
	}
	l.tag(p)
	in := inside{protocol: n.Plan.Protocol, tcp: n.TCP}
	if n.HTTP != nil {
		in.http = &nameHandler{l: l, sni: []byte(p.SNI), edge: n.TLS}
	}
	return within(tc, l.serveInside(&prefixConn{Conn: tc}, p, r, in, state.NegotiatedProtocol))
}

// passThrough carries TLS as opaque bytes.
func (l *Listener) passThrough(c *prefixConn, p *conn.Peer, r *Rules, n *Name) {
	to := n.TCP
	if n.Auto != nil {
		if cluster := n.Auto(p.SNI); cluster != nil {
			to = &Opaque{Clusters: []*upstream.Cluster{cluster}, Weights: []uint32{1}, Origin: &n.Plan.Origin, Raw: true}
		}
	}
	if to == nil {
		l.turnAway(p, r, &n.Plan.Origin, telemetry.NoRoute, "no_tcp_route")
		return
	}
	l.serveTCP(c, p, r, to)
}

// nameHandler serves HTTP inside TLS that was ended for a server name, each exchange by the rules of its moment.
type nameHandler struct {
	l    *Listener
	sni  []byte
	edge *trust.Edge // by which the client was let in
}

// Serve implements conn.Handler.
//
// A request for a host of another server name came on a connection whose certificate, and whose demands on the client, are
// not that host's. It is answered with 421, upon which clients use another connection (RFC 9110 section 15.5.20; Gateway API
// HTTPSListenerDetectMisdirectedRequests). So is one whose connection would not be let in any more.
func (h *nameHandler) Serve(d stream.Downstream, p *conn.Peer) {
	defer func() {
		if h.l.caught("exchange", recover()) {
			d.Reset(stream.Internal)
		}
	}()
	names := h.l.Rules().Names
	if names == nil {
		d.Reset(stream.Refused) // the plan made it another door: the connection is of the past
		return
	}
	n := names.Find(h.sni)
	if n == nil || n.HTTP == nil || n.TLS == nil {
		d.Reset(stream.Refused)
		return
	}
	if n.TLS != h.edge && !n.TLS.Admits(h.edge) {
		n.HTTP.Answer(d, p, 421, telemetry.NoRoute, "tls_rules_changed", "this connection's TLS does not satisfy the rules of today; use another connection")
		return
	}
	if host := d.Request().Host; len(host) > 0 {
		if other := names.Find(host); other != nil && other != n {
			n.HTTP.Answer(d, p, 421, telemetry.NoRoute, "misdirected_request", "this connection is for another server name; use another connection")
			return
		}
	}
	serve(n.HTTP, d, p)
}

// Refused implements conn.Refuser.
func (h *nameHandler) Refused(p *conn.Peer, status int, detail string) {
	if names := h.l.Rules().Names; names != nil {
		if n := names.Find(h.sni); n != nil && n.HTTP != nil {
			n.HTTP.Refused(p, status, detail)
			return
		}
	}
	h.l.o.Recorder.Proxy.ProtocolErrors.Inc()
}

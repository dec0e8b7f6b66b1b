package server

import (
	"errors"
	"net"
	"net/netip"

	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/route"
	"github.com/malha-mesh/malha/internal/proxy/stack"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

// forwarder serves an explicit forward proxy (RFC 9110 section 3.7): requests in absolute-form, and CONNECT.
type forwarder struct{ l *Listener }

// Serve implements conn.Handler.
func (f *forwarder) Serve(d stream.Downstream, p *conn.Peer) {
	defer func() {
		if f.l.caught("exchange", recover()) {
			d.Reset(stream.Internal)
		}
	}()
	r := f.l.Rules()
	req := d.Request()
	if string(req.Method) == "CONNECT" {
		f.connect(d, p, r)
		return
	}
	port := r.port(portOf(req))
	if !req.Absolute || port.HTTP == nil {
		serve(port.Direct, d, p)
		return
	}
	serve(port.HTTP, d, p)
}

// Refused implements conn.Refuser.
func (f *forwarder) Refused(p *conn.Peer, status int, detail string) {
	f.l.Rules().Other.Direct.Refused(p, status, detail)
}

// port returns what is done for targets with a port.
func (r *Rules) port(n int) *Port {
	if p := r.Ports[n]; p != nil {
		return p
	}
	if p := r.Ports[0]; p != nil {
		return p
	}
	return r.Other
}

func portOf(req *message.Request) int {
	switch {
	case req.Port != 0:
		return req.Port
	case string(req.Scheme) == "https":
		return 443
	}
	return 80
}

// connect serves a tunnel as a listener of the target's port would: HTTP where the mesh has rules for the host, opaque
// bytes to an opaque service, or to the host as it is written when the mesh does not know it and lets it pass.
func (f *forwarder) connect(d stream.Downstream, p *conn.Peer, r *Rules) {
	l := f.l
	req := d.Request()
	port := r.port(req.Port)
	host := string(req.Host)
	service := port.host(host)
	known := port.HTTP != nil && port.Known(req.Host)
	inner := *p // the tunnel's end: what rules about addresses speak of is not our own
	ip, _ := netip.ParseAddr(host)
	inner.TargetName = host
	inner.Target = netip.AddrPortFrom(ip.Unmap(), uint16(req.Port))

	var direct *upstream.Cluster // the only place that the tunnel may lead to
	rec := l.tcpRecord(p, r)
	rec.Authority, rec.Method = req.Authority, req.Method
	switch {
	case known || service != nil && (service.Detect || service.Names != nil):
	case service != nil:
		to := service.TCP.toward(ip.Unmap())
		if to != nil {
			rec.Origin = to.Origin
			direct = to.pick()
		}
		if direct == nil {
			port.Direct.Answer(d, p, 503, telemetry.NoCluster, "no_destination", "the service has no destination")
			return
		}
	default:
		pass, within, _ := r.passes(port.Pass, ip)
		if !pass {
			port.Direct.Block(d, p)
			return
		}
		direct = l.o.Upstreams.Passthrough(host, req.Port, within)
	}
	// A destination that is certain is dialled before the client is told that the tunnel stands.
	var up net.Conn
	if direct != nil {
		var err error
		if up, err = l.dial(rec, direct, &inner, r, false); err != nil {
			if errors.Is(err, route.ErrOutside) {
				port.Direct.Block(d, p)
				return
			}
			port.Direct.Unreached(d, p, rec)
			return
		}
	}
	nc, first, ended, err := l.establish(d)
	if err != nil {
		if up != nil {
			_ = up.Close()
		}
		rec.Flags |= telemetry.DownstreamClosed
		l.refuseTCP(rec)
		return
	}
	defer ended()
	c := &prefixConn{Conn: nc, prefix: first}
	if up != nil {
		l.carry(c, up, rec, r)
		return
	}
	l.serveTunnel(c, &inner, r, req.Port, service, known || service == nil || service.Detect)
}

// establish answers 200 and takes the connection over, or the stream of one. ended is called when the tunnel has been served.
func (l *Listener) establish(d stream.Downstream) (nc net.Conn, first []byte, ended func(), err error) {
	ok := message.Response{Status: 200}
	if err := d.WriteHead(&ok, false); err != nil {
		return nil, nil, nil, err
	}
	if err := d.Hijack(); err != nil {
		return nil, nil, nil, err
	}
	if t, whole := d.(conn.Detacher); whole {
		nc, first = t.Detach()
		return nc, first, func() {}, nil
	}
	if err := d.Flush(); err != nil {
		return nil, nil, nil, err
	}
	nc, ended, err = l.overStream(d)
	return nc, nil, ended, err
}

// serveTunnel serves what a client speaks inside a tunnel to a host that the mesh has rules for. What looks like HTTP is served
// so, unless the service was declared to be opaque.
func (l *Listener) serveTunnel(c *prefixConn, p *conn.Peer, r *Rules, port int, service *Host, asHTTP bool) {
	h := &tunnelHandler{l: l, port: port}
	if service != nil && service.Names != nil {
		if inner, ok := l.serveNamed(c, p, r, service.Names); ok {
			inner.toEnd()
			return
		}
	}
	s := l.sniff(c)
	switch {
	case s == http1 && asHTTP:
		nc, first := c.unwrap()
		conn.ServeH1(nc, first, p, h, l.o.Conn, &l.drain)
	case s == http2 && asHTTP:
		nc, first := c.unwrap()
		l.runHTTP2(nc, first, p, h)
	case service != nil:
		l.serveTCP(c, p, r, service.TCP)
	default:
		rec := l.tcpRecord(p, r)
		rec.Flags, rec.Detail = telemetry.NoRoute, "tunnel_is_not_http"
		l.refuseTCP(rec)
	}
}

// tunnelHandler serves HTTP inside a tunnel, each exchange by the rules of its moment.
type tunnelHandler struct {
	l    *Listener
	port int
}

func (h *tunnelHandler) stack() *stack.Stack {
	p := h.l.Rules().port(h.port)
	if p.HTTP != nil {
		return p.HTTP
	}
	return p.Direct
}

// Serve implements conn.Handler. Most clients leave the port out of the Host of a request inside a tunnel only when it
// is the default one, so the request says itself which service it is for.
func (h *tunnelHandler) Serve(d stream.Downstream, p *conn.Peer) {
	defer func() {
		if h.l.caught("exchange", recover()) {
			d.Reset(stream.Internal)
		}
	}()
	serve(h.stack(), d, p)
}

// Refused implements conn.Refuser.
func (h *tunnelHandler) Refused(p *conn.Peer, status int, detail string) {
	h.stack().Refused(p, status, detail)
}

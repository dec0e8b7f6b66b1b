package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

// door is what makes a Listener one of captured connections: it asks the kernel what each was for, and gives it to the listener
// that serves that.
type door struct {
	name   string
	admits func(target netip.AddrPort) error
	to     atomic.Pointer[map[int]*Listener] // by port, 0 for all others
}

// NewDoor makes a Listener of a socket to which connections are redirected. admits refuses those for targets that are none: the
// proxy's own ports, to begin with. Feed says who takes them.
func NewDoor(o Options, ln *net.TCPListener, name string, admits func(target netip.AddrPort) error) *Listener {
	l := On(o, ln)
	l.door = &door{name: name, admits: admits}
	l.door.to.Store(&map[int]*Listener{})
	return l
}

// Fed makes a listener without a socket, which doors give connections.
func Fed(o Options) *Listener {
	l := On(o, nil)
	l.shut = make(chan struct{})
	return l
}

// Feed gives the door's connections to others from now on, by the port that they were for; 0 for all other ports.
func (l *Listener) Feed(to map[int]*Listener) {
	for _, other := range to {
		other.fed.Store(l)
	}
	l.door.to.Store(&to)
}

// Unfed tells a listener that no door gives it connections any more.
func (l *Listener) Unfed() { l.fed.Store(nil) }

// waitForDoor ends the life of a listener without a socket once its door has given it the last connection.
func (l *Listener) waitForDoor(ctx context.Context) {
	if d := l.fed.Load(); d != nil {
		select {
		case <-d.done:
		case <-ctx.Done():
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.shut:
	default:
		close(l.shut)
	}
}

func (l *Listener) name() string {
	if l.door != nil {
		return l.door.name
	}
	return l.Rules().Listener.Name
}

// give hands a connection to the listener that it is for.
func (l *Listener) give(nc *net.TCPConn) {
	target, err := originalTarget(nc)
	if err == nil {
		err = l.door.admits(target)
	}
	if err != nil {
		l.o.Log.Debug("a connection came that was not captured", "door", l.door.name, "remote", nc.RemoteAddr(), "error", err)
		l.close(nc)
		return
	}
	// A listener that a plan has just taken away gives up; then the table is new.
	for range 3 {
		to := (*l.door.to.Load())[int(target.Port())]
		if to == nil {
			to = (*l.door.to.Load())[0]
		}
		switch {
		case to == nil:
			l.o.Log.Debug("a captured connection is for a port that nobody serves", "door", l.door.name, "remote", nc.RemoteAddr(), "target", target)
			l.close(nc)
			return
		case to.enter(nc):
			go to.serveConn(nc, target)
			return
		case !to.isOver():
			l.warn(l.full())
			l.refuse(nc, to.Rules(), noRoom)
			return
		}
	}
	l.close(nc)
}

func (l *Listener) isOver() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over
}

func (l *Listener) close(nc *net.TCPConn) {
	l.o.Recorder.Proxy.ConnectionsRefused.Inc()
	l.o.Recorder.Proxy.ConnectionsClosed.Inc()
	_ = nc.SetLinger(0) // a reset says more than an end
	_ = nc.Close()
}

// ErrNotCaptured means that a connection came to the door itself: somebody dialled the proxy's port.
var ErrNotCaptured = errors.New("it was for the proxy's own port")

// at returns the opaque service that an address stands for; nil when it stands for none.
func (p *Port) at(a netip.Addr) *Host {
	if h := p.Addresses[a]; h != nil {
		return h
	}
	for i := range p.Networks {
		if p.Networks[i].Prefix.Contains(a) {
			return p.Networks[i].Host
		}
	}
	return nil
}

// SetAddresses makes the addresses of hosts known: IPs, and CIDRs of which the longest wins.
func (p *Port) SetAddresses(h *Host, addresses []string) error {
	for _, s := range addresses {
		n, err := ParseAddresses(s)
		if err != nil {
			return err
		}
		if n.IsSingleIP() {
			if p.Addresses == nil {
				p.Addresses = make(map[netip.Addr]*Host)
			}
			p.Addresses[n.Addr()] = h
			continue
		}
		i := 0
		for i < len(p.Networks) && p.Networks[i].Prefix.Bits() >= n.Bits() {
			i++
		}
		p.Networks = append(p.Networks[:i], append([]Network{{n, h}}, p.Networks[i:]...)...)
	}
	return nil
}

// ParseAddresses reads an IP or a CIDR of plan.ForwardHost.Addresses.
func ParseAddresses(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	n, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is neither an IP nor a CIDR", s)
	}
	return n.Masked(), nil
}

// serveCaptured serves a connection of the program, which was going to p.Target, as the forward proxy serves a tunnel to there.
// An address is all that is known of it: opaque services are told by that, HTTP by the request's host, and TLS by the name that
// its client asks for. What is for no service of the mesh goes on to where it was going, if it may.
func (l *Listener) serveCaptured(c *prefixConn, p *conn.Peer, r *Rules) rest {
	number := int(p.Target.Port())
	port := r.port(number)
	service := port.at(p.Target.Addr())
	if service != nil && service.TCP != nil && !service.Detect && service.Names == nil {
		l.serveTCP(c, p, r, service.TCP) // the server may speak first
		return nil
	}
	if service == nil && !port.Routed && !port.ByName {
		l.serveStranger(c, p, r, port)
		return nil
	}
	// On a port of HTTP the client speaks first: silence is a client that is not ready, and no reason to do without rules.
	if service == nil && port.Protocol.IsHTTP() && !l.await(c) {
		return nil
	}
	s := l.sniff(c)
	asHTTP := port.Routed && (service == nil || service.Detect)
	switch {
	case s == http1 && asHTTP:
		return l.serveHTTP1(c, p, &tunnelHandler{l: l, port: number})
	case s == http2 && asHTTP:
		return l.serveHTTP2(c, p, &tunnelHandler{l: l, port: number})
	case s == tlsHello && service == nil:
		service = l.byServerName(c, p, port)
	}
	if s == tlsHello && service != nil && service.Names != nil {
		if inner, ok := l.serveNamed(c, p, r, service.Names); ok {
			return inner
		}
	}
	switch {
	case service == nil || service.TCP == nil:
		l.serveStranger(c, p, r, port)
	default:
		l.serveTCP(c, p, r, service.TCP)
	}
	return nil
}

// byServerName finds the service that a client asks for in its hello; nil for none.
func (l *Listener) byServerName(c *prefixConn, p *conn.Peer, port *Port) *Host {
	if len(port.Hosts) == 0 {
		return nil
	}
	limit, ok := l.o.Room.handshake(l.o.HandshakeTimeout)
	if !ok {
		return nil
	}
	defer l.o.Room.done()
	var hello *tls.ClientHelloInfo
	if hello = l.readHello(c, limit); hello == nil || hello.ServerName == "" {
		return nil
	}
	p.SNI = strings.ToLower(hello.ServerName)
	return port.host(p.SNI)
}

// serveStranger carries a connection to where it was going, as opaque bytes, or closes it where the mesh lets nothing out that
// it does not know.
func (l *Listener) serveStranger(c *prefixConn, p *conn.Peer, r *Rules, port *Port) {
	pass := port.Pass
	if port == r.Other {
		pass = r.PassOther
	}
	pass, within, by := r.passes(pass, p.Target.Addr())
	if !pass {
		l.turnAway(p, r, by, telemetry.NoRoute, "host_not_in_registry")
		return
	}
	to := l.o.Upstreams.Passthrough(p.Target.Addr().String(), int(p.Target.Port()), within)
	l.serveTCP(c, p, r, &Opaque{Clusters: []*upstream.Cluster{to}, Weights: []uint32{1}, Origin: &r.Listener.Origin, total: 1})
}

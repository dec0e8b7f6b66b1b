package server

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/authz"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/route"
	"github.com/malha-mesh/malha/internal/proxy/stack"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

// Rules is a listener of a plan made ready to run. It is immutable.
type Rules struct {
	Listener *plan.Listener
	Authz    *authz.Engine  // nil: everybody may pass
	HTTP     *stack.Stack   // nil: no HTTP is served
	TCP      *Opaque        // nil: no opaque bytes are served
	Names    *Names         // nil: server names decide nothing
	Outside  *route.Outside // nil: Port.Pass and PassOther say it of all addresses

	// Of a forward proxy.
	Ports map[int]*Port // 0: for every port that has no other
	Other *Port         // for ports that nothing is known about
	// PassOther is whether captured connections for such ports may go on to where they were going.
	PassOther bool
}

// Port is what a forward proxy does for targets with one port.
type Port struct {
	Protocol ident.Protocol
	HTTP     *stack.Stack           // requests to the proxy; nil: none
	Direct   *stack.Stack           // requests that do not name a target as a proxy's do: no passthrough
	Hosts    map[string]*Host       // by canonical host, or "*.suffix"
	Known    func(host []byte) bool // hosts that HTTP has rules for
	Pass     bool                   // whether hosts without rules may be dialled

	// Of captured connections, which name an address instead of a host.
	Routed    bool                 // HTTP has rules for the port
	ByName    bool                 // there are Hosts that are known by the server name of TLS only
	Addresses map[netip.Addr]*Host // by address
	Networks  []Network            // longest prefixes first
}

// Network is the host of all addresses of a network.
type Network struct {
	Prefix netip.Prefix
	Host   *Host
}

// Host is an opaque service behind a forward proxy.
type Host struct {
	TCP    *Opaque
	Names  *Names // asked before TCP; nil: none
	Detect bool
}

// Opaque is where opaque connections go.
type Opaque struct {
	Clusters []*upstream.Cluster // nil ones stand for shares that are closed
	Weights  []uint32
	Origin   *ident.Origin
	Raw      bool // the bytes are mesh TLS already
	total    uint64
	routes   []way
}

// way is a plan.TCPRoute.
type way struct {
	nets []netip.Prefix // none: all
	to   *Opaque
}

// passes decides about what is for an address, or for a name that nobody has resolved (the zero address), and that the mesh does
// not know: whether it may pass, at which addresses, and who says so. pass is what is so where addresses don't matter.
func (r *Rules) passes(pass bool, addr netip.Addr) (bool, upstream.Within, *ident.Origin) {
	if r.Outside == nil {
		return pass, nil, &r.Listener.Origin
	}
	fate, by := r.Outside.Fate(addr)
	if by == nil {
		by = &r.Listener.Origin
	}
	return fate == plan.Passthrough, r.Outside, by
}

// host returns the opaque service of a host: the exact one, or that of the longest suffix, or for an IP that of the longest
// network; nil when there is none.
func (p *Port) host(name string) *Host {
	if h := p.Hosts[name]; h != nil {
		return h
	}
	if a, err := netip.ParseAddr(name); err == nil {
		return p.at(a.Unmap()) // the dots of an address part no labels
	}
	for rest := name; ; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			return nil
		}
		rest = rest[i+1:]
		if h := p.Hosts["*."+rest]; h != nil && i > 0 {
			return h
		}
	}
}

// NewOpaque resolves destinations, and the routes that are asked before them. It returns nil for neither. A destination that
// does not exist is an error, as is a subnet that is none.
func NewOpaque(set *upstream.Set, routes []plan.TCPRoute, ds []plan.Destination, origin *ident.Origin) (*Opaque, error) {
	if len(ds) == 0 && len(routes) == 0 {
		return nil, nil
	}
	o := &Opaque{Origin: origin}
	for i := range ds {
		var c *upstream.Cluster
		if ds[i].Status == 0 {
			if c = set.Cluster(ds[i].Cluster); c == nil {
				return nil, fmt.Errorf("TCP destination %q is not a cluster of the plan", ds[i].Cluster)
			}
		}
		o.Clusters = append(o.Clusters, c)
		o.Weights = append(o.Weights, ds[i].Weight)
		o.total += uint64(ds[i].Weight)
	}
	for i := range routes {
		nets, err := Subnets(&routes[i])
		if err != nil {
			return nil, err
		}
		to, err := NewOpaque(set, nil, routes[i].Forward, &routes[i].Origin)
		if err != nil {
			return nil, err
		}
		if to == nil {
			to = &Opaque{Origin: &routes[i].Origin}
		}
		o.routes = append(o.routes, way{nets, to})
	}
	return o, nil
}

// Subnets returns the subnets of a route.
func Subnets(r *plan.TCPRoute) ([]netip.Prefix, error) {
	nets := make([]netip.Prefix, len(r.Subnets))
	for i, s := range r.Subnets {
		n, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("TCP route: %q is not a subnet", s)
		}
		nets[i] = n.Masked()
	}
	return nets, nil
}

// toward returns where a connection to an address goes, nil for nowhere. The zero address, of a name that nobody has resolved,
// is in no subnet.
func (o *Opaque) toward(addr netip.Addr) *Opaque {
	if o == nil {
		return nil
	}
	for i := range o.routes {
		w := &o.routes[i]
		if len(w.nets) == 0 || slices.ContainsFunc(w.nets, func(n netip.Prefix) bool { return n.Contains(addr) }) {
			return w.to
		}
	}
	if len(o.Clusters) == 0 && len(o.routes) > 0 {
		return nil
	}
	return o
}

// pick draws a destination; nil when there is none, or all weights are 0.
func (o *Opaque) pick() *upstream.Cluster {
	switch {
	case len(o.Clusters) == 1:
		return o.Clusters[0]
	case o.total == 0:
		return nil
	}
	n := rand.Uint64N(o.total)
	for i, w := range o.Weights {
		if n < uint64(w) {
			return o.Clusters[i]
		}
		n -= uint64(w)
	}
	return nil
}

// handler serves the exchanges of an HTTP connection, each by the rules of its moment.
type handler struct{ l *Listener }

func (h handler) Serve(d stream.Downstream, p *conn.Peer) {
	defer func() {
		if h.l.caught("exchange", recover()) {
			d.Reset(stream.Internal)
		}
	}()
	if s := h.l.Rules().HTTP; s != nil {
		serve(s, d, p)
		return
	}
	d.Reset(stream.Refused) // the plan made the listener opaque: the connection is of the past
}

func (h handler) Refused(p *conn.Peer, status int, detail string) {
	if s := h.l.Rules().HTTP; s != nil {
		s.Refused(p, status, detail)
		return
	}
	h.l.o.Recorder.Proxy.ProtocolErrors.Inc()
}

// flagsOf returns the response flags for a failed dial.
func flagsOf(err error) telemetry.Flags { return stack.DialFlags(err) }

package live

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/authz"
	"github.com/malha-mesh/malha/internal/proxy/limit"
	"github.com/malha-mesh/malha/internal/proxy/route"
	"github.com/malha-mesh/malha/internal/proxy/server"
	"github.com/malha-mesh/malha/internal/proxy/stack"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// built is the parts of a plan that do not depend on what runs.
type built struct {
	plan    *packed.Plan
	secrets *trust.Materials
	edges   map[*plan.ServerName]*trust.Edge // those that can be used
	closed  map[*plan.ServerName]error       // and why others can't
	auto    map[string]string                // cluster by the server name that spells it
	faults  []Fault
	tables  map[string]*route.Table
	engines []*authz.Engine // of the plan's listeners
	limits  *limit.Set
	origins []*plan.Cluster           // those that begin TLS to strangers
	outside map[string]*route.Outside // by listener
	nothing *route.Table              // knows no host, and lets strangers pass or not, as the other tables do
}

// PieceError blames one piece of a plan; wire/watch tells the control plane which.
type PieceError struct {
	Kind, Name string // as wire.Kind spells it
	Err        error
}

// Error implements error.
func (e *PieceError) Error() string { return e.Kind + " " + e.Name + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *PieceError) Unwrap() error { return e.Err }

// PlanPiece returns the piece to blame.
func (e *PieceError) PlanPiece() (kind, name string) { return e.Kind, e.Name }

func bad(kind, name, format string, a ...any) error {
	return &PieceError{kind, name, fmt.Errorf(format, a...)}
}

// prepare checks a plan and builds its tables and engines. The error names the piece that cannot be used. What needs a secret
// that can't be used is no error: it is closed, and among the faults. before is what the plan in force was built to; nil: none.
func prepare(p *packed.Plan, before *built, self trust.Source) (*built, error) {
	if before == nil {
		before = &built{plan: &packed.Plan{}}
	}
	b := &built{plan: p, tables: make(map[string]*route.Table, len(p.Routes)), outside: make(map[string]*route.Outside)}
	limits, err := limit.Build(p.Limits, before.limits) // whose buckets go on
	if err != nil {
		var piece *limit.Error
		if errors.As(err, &piece) {
			return nil, &PieceError{"limit", piece.Name, piece.Err}
		}
		return nil, err
	}
	b.limits = limits
	if err := b.members(before); err != nil {
		return nil, err
	}
	strangers := plan.Otherwise("")
	for _, piece := range p.Routes {
		name := piece.Name()
		if b.tables[name] != nil {
			return nil, bad("routes", name, "it is there twice")
		}
		t := before.tables[name]
		if t == nil || t.Packed() != piece {
			if t, err = route.BuildPacked(piece, stack.Check); err != nil {
				return nil, &PieceError{"routes", name, err}
			}
		}
		b.tables[name] = t
		rt := t.Plan()
		// The strictest table decides about ports that no table is for.
		if rt.Otherwise == plan.Block || strangers == "" && rt.Otherwise == plan.Passthrough {
			strangers = rt.Otherwise
		}
	}
	if strangers == "" {
		strangers = plan.Passthrough // nothing is configured, so nothing is forbidden: ALLOW_ANY is the mesh's default
	}
	if b.nothing, err = route.Build(&plan.RouteTable{Name: "none", Otherwise: strangers}); err != nil {
		return nil, err
	}
	b.secure(before, self)
	if err := checkCapture(p); err != nil {
		return nil, &PieceError{"capture", "", err}
	}
	binds := make(map[string]string, len(p.Listeners))
	for i := range p.Listeners {
		l := &p.Listeners[i]
		if other, ok := binds[key(l)]; ok {
			return nil, bad("listener", l.Name, "it has the same address %s as listener %s", key(l), other)
		}
		binds[key(l)] = l.Name
		if err := b.reach(l, before); err != nil {
			return nil, &PieceError{"listener", l.Name, err}
		}
		e, err := b.listener(l)
		if err != nil {
			return nil, &PieceError{"listener", l.Name, err}
		}
		b.engines = append(b.engines, e)
	}
	return b, nil
}

// members checks clusters and endpoints. What was in the plan before was looked at then.
func (b *built) members(before *built) error {
	p := b.plan
	kept := make(map[string]*plan.Cluster, len(before.origins))
	for _, c := range before.origins {
		kept[c.Name] = c
	}
	last := ""
	for i, piece := range p.Clusters {
		name := piece.Name()
		if i > 0 && name == last {
			return bad("cluster", name, "it is there twice")
		}
		last = name
		if !piece.Has(originateField) {
			continue
		}
		if c := kept[name]; c != nil && packed.Get(before.plan.Clusters, name) == piece {
			b.origins = append(b.origins, c)
		} else {
			b.origins = append(b.origins, piece.Open())
		}
	}
	for i, piece := range p.Endpoints {
		name := piece.Name()
		_, known := packed.Find(p.Clusters, name)
		if !known || i > 0 && name == last {
			return bad("endpoints", name, "there is no such cluster, or they are there twice")
		}
		last = name
		if packed.Get(before.plan.Endpoints, name) == piece {
			continue
		}
		e := piece.Open()
		for j := range e.Endpoints {
			if !dialable(e.Endpoints[j].Address) {
				return bad("endpoints", name, "%q is not an address with a port", e.Endpoints[j].Address)
			}
		}
	}
	return nil
}

// dialable reports whether an endpoint can have an address.
func dialable(address string) bool {
	if socket, unix := strings.CutPrefix(address, plan.UnixPrefix); unix {
		return len(socket) > 1 && (socket[0] == '/' || socket[0] == '@')
	}
	host, port, err := net.SplitHostPort(address)
	return err == nil && host != "" && port != ""
}

// originateField is the number of plan.Cluster.Originate.
const originateField = 15

// reach makes what a listener lets out by address, or keeps what is the same: connections that were made within it go on.
func (b *built) reach(l *plan.Listener, before *built) error {
	if l.Outside == nil {
		return nil
	}
	if o := before.outside[l.Name]; o != nil && reflect.DeepEqual(o.Plan(), l.Outside) {
		b.outside[l.Name] = o
		return nil
	}
	o, err := route.NewOutside(l.Outside)
	b.outside[l.Name] = o
	return err
}

// listener checks what a listener refers to, and builds its policies.
func (b *built) listener(l *plan.Listener) (*authz.Engine, error) {
	if l.Bind == "" && b.plan.Capture != nil && (l.Direction == plan.Inbound || l.Forward) {
		// captured connections come to it
	} else if _, err := netip.ParseAddrPort(l.Bind); err != nil {
		return nil, err
	}
	c := &check{b: b}
	c.routes(l.Routes)
	c.opaque(l.TCPRoutes, l.TCP)
	c.limits(l.Limits)
	c.names(l.ServerNames)
	if c.err == nil && l.ProxyProtocol && l.Forward {
		c.err = errors.New("a forward proxy takes no PROXY protocol header")
	}
	for i := range l.Ports {
		fp := &l.Ports[i]
		c.at = fmt.Sprintf("port %d: ", fp.Port)
		c.routes(fp.Routes)
		for j := range fp.Hosts {
			h := &fp.Hosts[j]
			c.at = fmt.Sprintf("port %d: host %s: ", fp.Port, h.Host)
			c.opaque(h.TCPRoutes, h.TCP)
			c.names(h.ServerNames)
			for _, a := range h.Addresses {
				if _, err := server.ParseAddresses(a); err != nil {
					c.fail("%w", err)
				}
			}
		}
	}
	if c.err != nil || len(l.Policies) == 0 {
		return nil, c.err
	}
	var policies []plan.Policy
	for _, name := range l.Policies {
		found := false
		for i := range b.plan.Policies {
			if b.plan.Policies[i].Name == name {
				policies, found = append(policies, b.plan.Policies[i]), true
			}
		}
		if !found {
			// Without it the listener would be open to those whom the policy keeps out.
			return nil, fmt.Errorf("policy %q is not in the plan", name)
		}
	}
	return authz.Build(policies)
}

// check is a look at what a listener refers to. It keeps the first thing that is wrong.
type check struct {
	b   *built
	at  string
	err error
}

func (c *check) fail(format string, a ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("%s%w", c.at, fmt.Errorf(format, a...))
	}
}

func (c *check) routes(name string) {
	if name != "" && c.b.tables[name] == nil {
		c.fail("route table %q is not in the plan", name)
	}
}

func (c *check) opaque(routes []plan.TCPRoute, ds []plan.Destination) {
	for i := range ds {
		if _, known := packed.Find(c.b.plan.Clusters, ds[i].Cluster); ds[i].Status == 0 && !known {
			c.fail("TCP destination %q is not a cluster of the plan", ds[i].Cluster)
		}
	}
	for i := range routes {
		if _, err := server.Subnets(&routes[i]); err != nil {
			c.fail("%w", err)
		}
		c.opaque(nil, routes[i].Forward)
	}
}

func (c *check) limits(names []string) {
	for _, name := range names {
		if !slices.ContainsFunc(c.b.plan.Limits, func(l plan.RateLimit) bool { return l.Name == name }) {
			c.fail("rate limit %q is not in the plan", name)
		}
	}
}

func (c *check) names(names []plan.ServerName) {
	seen := make(map[string]bool)
	for i := range names {
		n := &names[i]
		if len(n.Names) == 0 {
			c.fail("server name %d has no names", i)
		}
		for _, host := range n.Names {
			if seen[host] {
				c.fail("server name %q is there twice", host)
			}
			seen[host] = true
			if canonical, err := ident.CanonicalHost(host, true); host != "*" && (err != nil || canonical != host) {
				c.fail("server name %q is not a canonical host", host)
			}
		}
		if n.TLS == nil && (n.Routes != "" || len(n.Limits) > 0) {
			c.fail("server name %q passes TLS through, so it can't have routes or limits of requests", n.Names)
		}
		if n.TLS != nil && n.Auto {
			c.fail("server name %q ends TLS, so it can't pass it to the cluster that is named", n.Names)
		}
		c.routes(n.Routes)
		c.opaque(n.TCPRoutes, n.TCP)
		c.limits(n.Limits)
	}
}

// rules makes what a listener does. The plan was checked and its clusters are in force, so nothing can be missing.
func (b *built) rules(p *Proxy, l *plan.Listener) *server.Rules {
	r := &server.Rules{Listener: l, Authz: b.engine(l), Outside: b.outside[l.Name]}
	r.TCP = b.opaque(p, l.TCPRoutes, l.TCP, &l.TCPOrigin)
	r.Names = b.names(p, l, l.ServerNames, r.Authz)
	if l.Routes != "" {
		r.HTTP = b.stack(p, l, r.Authz, b.tables[l.Routes], false)
	}
	if !l.Forward {
		return r
	}
	r.Ports = make(map[int]*server.Port, len(l.Ports))
	for i := range l.Ports {
		fp := &l.Ports[i]
		table := b.nothing
		if fp.Routes != "" {
			table = b.tables[fp.Routes]
		}
		sp := b.port(p, l, r.Authz, table)
		if fp.Otherwise != "" {
			sp.Pass = fp.Otherwise == plan.Passthrough
		}
		sp.Hosts = make(map[string]*server.Host, len(fp.Hosts))
		for j := range fp.Hosts {
			h := &fp.Hosts[j]
			sh := &server.Host{TCP: b.opaque(p, h.TCPRoutes, h.TCP, &h.Origin), Detect: h.Detect, Names: b.names(p, l, h.ServerNames, r.Authz)}
			if sh.TCP == nil && sh.Names == nil {
				continue // a service without a destination is one that nobody knows
			}
			sp.Hosts[h.Host] = sh
			_ = sp.SetAddresses(sh, h.Addresses) // checked before
		}
		sp.ByName = namedOnly(fp.Hosts)
		sp.Protocol, sp.Routed = fp.Protocol, fp.Routes != ""
		r.Ports[fp.Port] = sp
	}
	other := b.nothing
	if l.Routes != "" {
		other = b.tables[l.Routes]
	}
	r.Other = b.port(p, l, r.Authz, other)
	r.Other.Routed = l.Routes != ""
	if c := b.plan.Capture; c != nil {
		r.PassOther = c.Otherwise == "" || c.Otherwise == plan.Passthrough
	}
	return r
}

// namedOnly reports whether a service among hosts has no address: captured connections for it are known by the server name that
// they ask for. Other names of a service that has one are no reason to look.
func namedOnly(hosts []plan.ForwardHost) bool {
	leads := func(h *plan.ForwardHost) string {
		if len(h.TCP) == 0 {
			return ""
		}
		return h.TCP[0].Cluster
	}
	addressed := make(map[string]bool)
	for i := range hosts {
		if len(hosts[i].Addresses) > 0 {
			addressed[leads(&hosts[i])] = true
		}
	}
	for i := range hosts {
		if len(hosts[i].Addresses) == 0 && !addressed[leads(&hosts[i])] {
			return true
		}
	}
	return false
}

// names makes what a listener does by server name.
func (b *built) names(p *Proxy, l *plan.Listener, names []plan.ServerName, e *authz.Engine) *server.Names {
	out := make([]*server.Name, 0, len(names))
	for i := range names {
		sn := &names[i]
		n := &server.Name{Plan: sn, TLS: b.edges[sn], Closed: b.closed[sn], TCP: b.opaque(p, sn.TCPRoutes, sn.TCP, &sn.Origin)}
		if sn.Routes != "" {
			// The requests inside are a listener's of their own: they have routes and limits of their own.
			inner := *l
			inner.Routes, inner.Limits, inner.Protocol = sn.Routes, slices.Concat(l.Limits, sn.Limits), sn.Protocol
			n.HTTP = b.stack(p, &inner, e, b.tables[sn.Routes], false)
		}
		if sn.Auto {
			n.Auto = func(name string) *upstream.Cluster {
				if c, ok := b.auto[name]; ok {
					return p.upstreams.Cluster(c)
				}
				return nil
			}
		}
		out = append(out, n)
	}
	return server.NewNames(out)
}

func (b *built) port(p *Proxy, l *plan.Listener, e *authz.Engine, t *route.Table) *server.Port {
	return &server.Port{
		HTTP:   b.stack(p, l, e, t, false),
		Direct: b.stack(p, l, e, t, true),
		Known:  func(host []byte) bool { return t.Host(host) != nil },
		Pass:   t.Plan().Otherwise == plan.Passthrough,
	}
}

func (b *built) stack(p *Proxy, l *plan.Listener, e *authz.Engine, t *route.Table, direct bool) *stack.Stack {
	return stack.New(stack.Config{
		Node: &b.plan.Node, Listener: l, Table: t, Authz: e, Upstreams: p.upstreams, Recorder: p.o.Recorder,
		Mirrors: &p.mirrors, Memory: p.o.Conn.Memory, Limits: b.limits, Outside: b.outside[l.Name], NoPassthrough: direct, Log: p.o.Log,
	})
}

func (b *built) opaque(p *Proxy, routes []plan.TCPRoute, ds []plan.Destination, origin *ident.Origin) *server.Opaque {
	o, err := server.NewOpaque(p.upstreams, routes, ds, origin)
	if err != nil {
		return nil // checked before
	}
	return o
}

func (b *built) engine(l *plan.Listener) *authz.Engine {
	for i := range b.plan.Listeners {
		if &b.plan.Listeners[i] == l {
			return b.engines[i]
		}
	}
	return nil
}

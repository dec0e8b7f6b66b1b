package live

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/authz"
	"github.com/malha-mesh/malha/internal/proxy/route"
	"github.com/malha-mesh/malha/internal/proxy/server"
	"github.com/malha-mesh/malha/internal/proxy/stack"
)

// built is the parts of a plan that do not depend on what runs.
type built struct {
	plan    *plan.Plan
	tables  map[string]*route.Table
	engines []*authz.Engine // of the plan's listeners
	nothing *route.Table    // knows no host, and lets strangers pass or not, as the other tables do
}

// prepare checks a plan and builds its tables and engines. The error names the piece that cannot be used.
func prepare(p *plan.Plan) (*built, error) {
	b := &built{plan: p, tables: make(map[string]*route.Table, len(p.Routes))}
	clusters := make(map[string]bool, len(p.Clusters))
	for i := range p.Clusters {
		if clusters[p.Clusters[i].Name] {
			return nil, fmt.Errorf("cluster %s: it is there twice", p.Clusters[i].Name)
		}
		clusters[p.Clusters[i].Name] = true
	}
	members := make(map[string]bool, len(p.Endpoints))
	for i := range p.Endpoints {
		e := &p.Endpoints[i]
		if !clusters[e.Cluster] || members[e.Cluster] {
			return nil, fmt.Errorf("endpoints of %s: there is no such cluster, or they are there twice", e.Cluster)
		}
		members[e.Cluster] = true
		for j := range e.Endpoints {
			if host, port, err := net.SplitHostPort(e.Endpoints[j].Address); err != nil || host == "" || port == "" {
				return nil, fmt.Errorf("endpoints of %s: %q is not an address with a port", e.Cluster, e.Endpoints[j].Address)
			}
		}
	}
	strangers := plan.Otherwise("")
	for i := range p.Routes {
		rt := &p.Routes[i]
		if b.tables[rt.Name] != nil {
			return nil, fmt.Errorf("route table %s: it is there twice", rt.Name)
		}
		if err := stack.Check(rt); err != nil {
			return nil, err
		}
		t, err := route.Build(rt)
		if err != nil {
			return nil, err
		}
		b.tables[rt.Name] = t
		// The strictest table decides about ports that no table is for.
		if rt.Otherwise == plan.Block || strangers == "" && rt.Otherwise == plan.Passthrough {
			strangers = rt.Otherwise
		}
	}
	if strangers == "" {
		strangers = plan.Passthrough // nothing is configured, so nothing is forbidden: ALLOW_ANY is the mesh's default
	}
	var err error
	if b.nothing, err = route.Build(&plan.RouteTable{Name: "none", Otherwise: strangers}); err != nil {
		return nil, err
	}
	binds := make(map[string]string, len(p.Listeners))
	for i := range p.Listeners {
		l := &p.Listeners[i]
		if other, ok := binds[key(l)]; ok {
			return nil, fmt.Errorf("listener %s: it has the same address %s as listener %s", l.Name, l.Bind, other)
		}
		binds[key(l)] = l.Name
		e, err := b.listener(l, clusters)
		if err != nil {
			return nil, fmt.Errorf("listener %s: %w", l.Name, err)
		}
		b.engines = append(b.engines, e)
	}
	return b, nil
}

// listener checks what a listener refers to, and builds its policies.
func (b *built) listener(l *plan.Listener, clusters map[string]bool) (*authz.Engine, error) {
	if _, err := netip.ParseAddrPort(l.Bind); err != nil {
		return nil, err
	}
	if l.Routes != "" && b.tables[l.Routes] == nil {
		return nil, fmt.Errorf("route table %q is not in the plan", l.Routes)
	}
	destinations := func(ds []plan.Destination) error {
		for i := range ds {
			if !clusters[ds[i].Cluster] {
				return fmt.Errorf("TCP destination %q is not a cluster of the plan", ds[i].Cluster)
			}
		}
		return nil
	}
	if err := destinations(l.TCP); err != nil {
		return nil, err
	}
	for i := range l.Ports {
		fp := &l.Ports[i]
		if fp.Routes != "" && b.tables[fp.Routes] == nil {
			return nil, fmt.Errorf("port %d: route table %q is not in the plan", fp.Port, fp.Routes)
		}
		for j := range fp.Hosts {
			if err := destinations(fp.Hosts[j].TCP); err != nil {
				return nil, fmt.Errorf("port %d: host %s: %w", fp.Port, fp.Hosts[j].Host, err)
			}
		}
	}
	if len(l.Policies) == 0 {
		return nil, nil
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

// rules makes what a listener does. The plan was checked and its clusters are in force, so nothing can be missing.
func (b *built) rules(p *Proxy, l *plan.Listener) *server.Rules {
	r := &server.Rules{Listener: l, Authz: b.engine(l)}
	r.TCP = b.opaque(p, l.TCP, l)
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
		sp.Hosts = make(map[string]*server.Host, len(fp.Hosts))
		for j := range fp.Hosts {
			h := &fp.Hosts[j]
			o, err := server.NewOpaque(p.upstreams, h.TCP, &h.Origin)
			if err != nil || o == nil {
				continue // checked before: a service without a destination is one that nobody knows
			}
			sp.Hosts[h.Host] = &server.Host{TCP: o, Detect: h.Detect}
		}
		r.Ports[fp.Port] = sp
	}
	other := b.nothing
	if l.Routes != "" {
		other = b.tables[l.Routes]
	}
	r.Other = b.port(p, l, r.Authz, other)
	return r
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
		Mirrors: &p.mirrors, NoPassthrough: direct, Log: p.o.Log,
	})
}

func (b *built) opaque(p *Proxy, ds []plan.Destination, l *plan.Listener) *server.Opaque {
	o, err := server.NewOpaque(p.upstreams, ds, &l.TCPOrigin)
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

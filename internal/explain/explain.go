// Package explain says, without sending it, what the mesh would do with a request: the listener it enters, each rule that
// is tried, where it may go with which share, and whether it is let in there.
//
// In come the plans of the proxies (New) and a request; out goes a Walk. It is pure and asks the real router
// (internal/proxy/route) and the real authorizer (internal/proxy/authz) over the real plans; what the layers of
// internal/proxy/stack and the listeners of internal/proxy/server do around them is told in the same order. Where plans
// come from, and how a Walk is printed, is the caller's part; internal/trial asks many requests and compares.
//
// It starts no goroutine. A Mesh prepares each plan when it is first asked about, and so belongs to one goroutine.
package explain

import (
	"fmt"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/authz"
	"github.com/malha-mesh/malha/internal/proxy/limit"
	"github.com/malha-mesh/malha/internal/proxy/route"
)

// GatewayName is what people may call the gateway by, where there is one.
const GatewayName = "gateway"

// Mesh is the plans of all proxies, made ready to be asked.
type Mesh struct {
	nodes []*node // sorted by name
	binds map[string]door
	hosts map[string]bool // of all services
}

// door is an inbound listener.
type door struct {
	node     *node
	listener *plan.Listener
}

// node is one proxy.
type node struct {
	plan      *plan.Plan
	clusters  map[string]*plan.Cluster
	endpoints map[string][]plan.Endpoint
	tables    map[string]*route.Table
	engines   map[string]*authz.Engine  // by listener
	outside   map[string]*route.Outside // by listener
	limits    *limit.Set
	nothing   *route.Table // for ports that no table is for
}

// New makes a Mesh of the plans of its proxies, which must not change any more. The error names the plan that cannot be
// used.
func New(plans []*plan.Plan) (*Mesh, error) {
	m := &Mesh{binds: map[string]door{}, hosts: map[string]bool{}}
	for _, p := range plans {
		n, err := newNode(p)
		if err != nil {
			return nil, fmt.Errorf("the plan of %s: %w", p.Node.Name, err)
		}
		m.nodes = append(m.nodes, n)
		for _, c := range n.clusters {
			m.hosts[c.Service.Host] = true
		}
		for i := range p.Listeners {
			if l := &p.Listeners[i]; l.Direction == plan.Inbound {
				m.binds[l.Bind] = door{n, l}
			}
		}
	}
	slices.SortFunc(m.nodes, func(a, b *node) int { return a.plan.Node.Name.Compare(b.plan.Node.Name) })
	return m, nil
}

func newNode(p *plan.Plan) (*node, error) {
	n := &node{
		plan: p, clusters: make(map[string]*plan.Cluster, len(p.Clusters)), endpoints: make(map[string][]plan.Endpoint, len(p.Endpoints)),
		tables: make(map[string]*route.Table, len(p.Routes)), engines: map[string]*authz.Engine{},
		outside: map[string]*route.Outside{},
	}
	for i := range p.Clusters {
		n.clusters[p.Clusters[i].Name] = &p.Clusters[i]
	}
	for i := range p.Endpoints {
		n.endpoints[p.Endpoints[i].Cluster] = p.Endpoints[i].Endpoints
	}
	// As internal/proxy/live: the strictest table decides about ports that no table is for.
	strangers := plan.Passthrough
	for i := range p.Routes {
		t, err := route.Build(&p.Routes[i])
		if err != nil {
			return nil, err
		}
		n.tables[p.Routes[i].Name] = t
		if p.Routes[i].Otherwise == plan.Block {
			strangers = plan.Block
		}
	}
	var err error
	if n.limits, err = limit.Build(p.Limits, nil); err != nil {
		return nil, err
	}
	if n.nothing, err = route.Build(&plan.RouteTable{Name: "none", Otherwise: strangers}); err != nil {
		return nil, err
	}
	for i := range p.Listeners {
		l := &p.Listeners[i]
		if n.outside[l.Name], err = route.NewOutside(l.Outside); err != nil {
			return nil, fmt.Errorf("listener %s: %w", l.Name, err)
		}
		if n.engines[l.Name], err = n.engine(l); err != nil {
			return nil, fmt.Errorf("listener %s: %w", l.Name, err)
		}
	}
	return n, nil
}

func (n *node) engine(l *plan.Listener) (*authz.Engine, error) {
	if len(l.Policies) == 0 {
		return nil, nil
	}
	var policies []plan.Policy
	for _, name := range l.Policies {
		i := slices.IndexFunc(n.plan.Policies, func(p plan.Policy) bool { return p.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("policy %q is not in the plan", name)
		}
		policies = append(policies, n.plan.Policies[i])
	}
	return authz.Build(policies)
}

// Names returns the names of the proxies, sorted.
func (m *Mesh) Names() []ident.Name {
	out := make([]ident.Name, len(m.nodes))
	for i, n := range m.nodes {
		out[i] = n.plan.Node.Name
	}
	return out
}

// Resolve returns the proxy that a person calls by a name: "NS/NAME", a bare name in the default namespace or that only
// one proxy has, or "gateway" when there is one.
func (m *Mesh) Resolve(word string) (ident.Name, error) {
	want, err := ident.ParseName(word, ident.DefaultNamespace)
	if err != nil {
		return ident.Name{}, err
	}
	var same, gateways []ident.Name
	for _, n := range m.nodes {
		name := n.plan.Node.Name
		if name == want {
			return name, nil
		}
		if name.Name == word {
			same = append(same, name)
		}
		if n.plan.Node.Role == plan.Gateway {
			gateways = append(gateways, name)
		}
	}
	switch {
	case len(same) == 1:
		return same[0], nil
	case word == GatewayName && len(gateways) == 1:
		return gateways[0], nil
	}
	names := make([]string, 0, len(m.nodes))
	for _, n := range m.Names() {
		names = append(names, n.String())
	}
	if len(names) == 0 {
		return ident.Name{}, fmt.Errorf("no proxy %q: the mesh has no workloads", word)
	}
	if near := ident.Nearest(word, append(bare(m.Names()), names...)); near != "" {
		return ident.Name{}, fmt.Errorf("no proxy %q; did you mean %s?", word, near)
	}
	if n := len(names) - 10; n > 0 {
		names = append(names[:10], fmt.Sprintf("and %d more", n))
	}
	return ident.Name{}, fmt.Errorf("no proxy %q; there are %s", word, strings.Join(names, ", "))
}

// bare returns names without their namespaces.
func bare(names []ident.Name) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = n.Name
	}
	return out
}

// find returns a proxy by its name.
func (m *Mesh) find(name ident.Name) *node {
	i, ok := slices.BinarySearchFunc(m.nodes, name, func(n *node, want ident.Name) int { return n.plan.Node.Name.Compare(want) })
	if !ok {
		return nil
	}
	return m.nodes[i]
}

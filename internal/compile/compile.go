// Package compile turns what one proxy may see (model.Scope) into what it must therefore do (plan.Plan).
//
// It is a pure function: equal Scopes make equal plans, whatever order their objects were read in. Pieces are sorted by
// name, and a cluster is in the plan only when something refers to it. A reference that does not resolve fails closed:
// its share of the requests is answered with 503 (flag NC when nothing of a route resolves, else UH), and a diagnostic
// says why.
//
// scope has already decided everything that depends on who asks; the proxy's router decides for each request.
package compile

import (
	"cmp"
	"maps"
	"slices"
	"strconv"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// Compile returns the plan of the proxy that s is the scope of, and what could not be resolved for it.
func Compile(s *model.Scope) (*plan.Plan, []model.Diagnostic) { return compile(s, nil) }

func compile(s *model.Scope, m *Memory) (*plan.Plan, []model.Diagnostic) {
	c := &compiler{
		scope:     s,
		memory:    m,
		services:  make(map[string]*model.ScopedService, len(s.Services)),
		clusters:  make(map[string]plan.Cluster, 2*len(s.Services)),
		endpoints: make(map[string]plan.Endpoints, 2*len(s.Services)),
		exact:     map[string][]*model.Routing{},
		tables:    map[string]*table{},
		kept:      map[string]bool{},
		reported:  map[model.Diagnostic]bool{},
	}
	for i := range s.Services {
		c.services[s.Services[i].Host] = &s.Services[i]
	}
	c.indexAliases()
	c.indexRoutings()
	if s.Sidecar != nil {
		c.outbound()
		c.inbound()
	}
	if s.Gateway != nil {
		c.edge()
	}
	return c.plan(), c.diagnostics
}

// compiler holds the pieces of one plan while they are made.
type compiler struct {
	scope     *model.Scope
	memory    *Memory                         // nil: of nothing
	noted     []resolved                      // by resolve, for memory
	services  map[string]*model.ScopedService // by host
	exact     map[string][]*model.Routing     // of a sidecar, by exact host, oldest first
	wildcards []wildcard                      // of a sidecar, most specific first, then oldest

	listeners []plan.Listener
	tables    map[string]*table
	clusters  map[string]plan.Cluster
	endpoints map[string]plan.Endpoints
	scratch   []plan.Route // of one rule, without its conditions
	captured  *plan.Capture
	auto      map[string]string                 // addresses for hosts without one; nil: not given out yet
	kept      map[string]bool                   // clusters that connections may name themselves
	guarded   bool                              // a listener refers to the policies
	aliases   map[string][]*model.ScopedService // ExternalName services, by the host that they stand for in the end

	diagnostics []model.Diagnostic
	reported    map[model.Diagnostic]bool
}

type wildcard struct {
	host    string
	routing *model.Routing
}

// table is a RouteTable in the making, in which a domain stands once: the first to claim it has it.
type table struct {
	hosts     []plan.VirtualHost
	domains   map[string]bool
	otherwise plan.Otherwise
}

func (c *compiler) table(name string, otherwise plan.Otherwise) *table {
	t := c.tables[name]
	if t == nil {
		t = &table{domains: map[string]bool{}, otherwise: otherwise}
		c.tables[name] = t
	}
	return t
}

// add puts a virtual host in with those of its domains that are still free; without any it is left out.
func (t *table) add(h plan.VirtualHost) {
	var free []string
	for _, d := range h.Domains {
		if !t.domains[d] {
			t.domains[d] = true
			free = append(free, d)
		}
	}
	if free == nil {
		return
	}
	slices.Sort(free)
	h.Domains = free
	t.hosts = append(t.hosts, h)
}

func (c *compiler) plan() *plan.Plan {
	p := &plan.Plan{Node: c.scope.Node, Listeners: c.listeners, Capture: c.captured}
	slices.SortFunc(p.Listeners, func(a, b plan.Listener) int { return cmp.Compare(a.Name, b.Name) })
	used := c.sweep()
	for _, name := range slices.Sorted(maps.Keys(c.tables)) {
		t := c.tables[name]
		slices.SortFunc(t.hosts, func(a, b plan.VirtualHost) int { return cmp.Compare(a.Name, b.Name) })
		p.Routes = append(p.Routes, plan.RouteTable{Name: name, Hosts: t.hosts, Otherwise: t.otherwise})
	}
	var keys []string // of the node's labels: those that an order of preference compares
	for _, name := range slices.Sorted(maps.Keys(c.clusters)) {
		cl := c.clusters[name]
		if used.sessions[name] {
			cl.RuleSession = c.session(&plan.Session{})
		}
		if cl.Locality != nil {
			keys = append(keys, priorityKeys(cl.Locality)...)
			if cl.Locality.ZoneAware != nil {
				p.Node.Peers = c.scope.Peers
			}
		}
		p.Clusters = append(p.Clusters, cl)
		p.Endpoints = append(p.Endpoints, plan.Endpoints{Cluster: name, Endpoints: c.endpoints[name].Endpoints})
	}
	slices.Sort(keys)
	p.Node.Labels = labelSet(c.scope.Labels, c.scope.Node.Locality, slices.Compact(keys))
	domain := p.Node.Identity.TrustDomain
	if c.guarded {
		for _, a := range c.scope.Policies {
			p.Policies = append(p.Policies, localPolicy(a.Policy, domain))
		}
		slices.SortFunc(p.Policies, func(a, b plan.Policy) int { return cmp.Compare(a.Name, b.Name) })
	}
	for _, s := range c.scope.Secrets {
		if used.secrets[s.Secret.Name] {
			p.Secrets = append(p.Secrets, s.Secret)
		}
	}
	for _, l := range c.scope.Limits {
		if used.limits[l.Limit.Name] {
			p.Limits = append(p.Limits, localLimit(l.Limit, domain))
		}
	}
	return p
}

// uses is the pieces that others refer to, by name.
type uses struct {
	tables, clusters, secrets, limits map[string]bool
	sessions                          map[string]bool // clusters of routes that have one
}

func mark(set map[string]bool, names ...string) {
	for _, n := range names {
		if n != "" {
			set[n] = true
		}
	}
}

func (u *uses) destinations(ds []plan.Destination) {
	for i := range ds {
		mark(u.clusters, ds[i].Cluster)
		u.mirrors(ds[i].Mirrors)
	}
}

func (u *uses) mirrors(ms []plan.Mirror) {
	for i := range ms {
		mark(u.clusters, ms[i].Cluster)
	}
}

func (u *uses) tcpRoutes(rs []plan.TCPRoute) {
	for i := range rs {
		u.destinations(rs[i].Forward)
	}
}

func (u *uses) serverNames(names []plan.ServerName) {
	for i := range names {
		n := &names[i]
		mark(u.tables, n.Routes)
		mark(u.limits, n.Limits...)
		u.destinations(n.TCP)
		u.tcpRoutes(n.TCPRoutes)
		if n.TLS != nil {
			mark(u.secrets, n.TLS.Secrets...)
			mark(u.secrets, n.TLS.Authorities)
		}
	}
}

func (u *uses) listener(l *plan.Listener) {
	mark(u.tables, l.Routes)
	mark(u.limits, l.Limits...)
	u.destinations(l.TCP)
	u.tcpRoutes(l.TCPRoutes)
	u.serverNames(l.ServerNames)
	for j := range l.Ports {
		mark(u.tables, l.Ports[j].Routes)
		for k := range l.Ports[j].Hosts {
			h := &l.Ports[j].Hosts[k]
			u.destinations(h.TCP)
			u.tcpRoutes(h.TCPRoutes)
			u.serverNames(h.ServerNames)
		}
	}
}

// sweep drops the tables and clusters that nothing refers to: those of rules that could not be reached, for example. It
// returns what is referred to.
func (c *compiler) sweep() *uses {
	u := &uses{tables: map[string]bool{}, clusters: map[string]bool{}, secrets: map[string]bool{}, limits: map[string]bool{}, sessions: map[string]bool{}}
	for i := range c.listeners {
		u.listener(&c.listeners[i])
	}
	maps.DeleteFunc(c.tables, func(name string, _ *table) bool { return !u.tables[name] })
	for _, t := range c.tables {
		for i := range t.hosts {
			for j := range t.hosts[i].Routes {
				r := &t.hosts[i].Routes[j]
				u.destinations(r.Forward)
				mark(u.limits, r.Limits...)
				if r.Session != nil {
					for k := range r.Forward {
						mark(u.sessions, r.Forward[k].Cluster)
					}
				}
				u.mirrors(r.Mirrors)
			}
		}
	}
	maps.DeleteFunc(c.clusters, func(name string, _ plan.Cluster) bool { return !u.clusters[name] && !c.kept[name] })
	for _, cluster := range c.clusters {
		if o := cluster.Originate; o != nil {
			mark(u.secrets, o.Secret, o.Authorities)
		}
	}
	return u
}

// policyNames returns the names of the policies that guard the proxy, and keeps the policies in the plan.
func (c *compiler) policyNames() []string {
	if len(c.scope.Policies) == 0 {
		return nil
	}
	c.guarded = true
	names := make([]string, len(c.scope.Policies))
	for i, a := range c.scope.Policies {
		names[i] = a.Policy.Name
	}
	slices.Sort(names)
	return names
}

func (c *compiler) report(d model.Diagnostic) {
	if !c.reported[d] {
		c.reported[d] = true
		c.diagnostics = append(c.diagnostics, d)
	}
}

// indexAliases finds the ExternalName services by what they stand for.
func (c *compiler) indexAliases() {
	for i := range c.scope.Services {
		s := &c.scope.Services[i]
		if s.Alias == "" || s.Indirect {
			continue
		}
		if to := c.dealias(s); to != nil {
			if c.aliases == nil {
				c.aliases = map[string][]*model.ScopedService{}
			}
			c.aliases[to.Host] = append(c.aliases[to.Host], s)
		}
	}
}

// indexRoutings sorts the routings by the hosts that they name, for sidecars. A gateway looks from its servers instead.
func (c *compiler) indexRoutings() {
	if c.scope.Sidecar == nil {
		return
	}
	for i := range c.scope.Routings {
		r := &c.scope.Routings[i]
		for _, h := range r.Hosts {
			if h[0] == '*' {
				c.wildcards = append(c.wildcards, wildcard{host: h, routing: r})
			} else {
				c.exact[h] = append(c.exact[h], r)
			}
		}
	}
	slices.SortStableFunc(c.wildcards, func(a, b wildcard) int { return ident.CompareSpecific(a.host, b.host) })
}

// routings returns the routings for a host in order of precedence. Only one is ever in force on a sidecar: the first
// that has a rule for the port.
func (c *compiler) routings(host string) []*model.Routing {
	out := c.exact[host]
	for _, w := range c.wildcards {
		if ident.HostCovers(w.host, host) { // also a service whose own host is a wildcard
			out = append(slices.Clip(out), w.routing)
		}
	}
	return out
}

// serviceLabels returns the words of metrics for a service. The short name of what a ServiceEntry stands for is its host, as in
// Istio: the entry may have several.
func serviceLabels(s *model.Service) plan.ServiceLabels {
	if s.Origin.Kind == "ServiceEntry" {
		return plan.ServiceLabels{Host: s.Host, Name: s.Host, Namespace: s.Name.Namespace}
	}
	return plan.ServiceLabels{Host: s.Host, Name: s.Name.Name, Namespace: s.Name.Namespace}
}

func servicePort(s *model.Service, number int) (*model.ServicePort, bool) {
	for i := range s.Ports {
		if s.Ports[i].Port == number && s.Ports[i].Protocol != ident.UDP {
			return &s.Ports[i], true
		}
	}
	return nil, false
}

func hostPort(host string, port int) string { return host + ":" + strconv.Itoa(port) }

package compile

import (
	"slices"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// Memory is what was made for proxies before. A proxy that sees much of what another sees, or of what it saw itself, gets the
// same routes and endpoints again, the same memory even: so a changed rule is compiled once, whoever sees it, and what did not
// change is recognized by its address. Plans are what they would be without it, as each entry knows all that it was made of.
//
// A zero Memory is empty, and may be used by one goroutine at a time. It grows with the services that were seen: begin a new
// one with each new configuration.
type Memory struct {
	hosts     map[hostKey]recent[madeHost]
	endpoints map[string]recent[madeEndpoints] // by the name of the cluster, of which the port is a part
}

type hostKey struct {
	host string
	port int
}

// recent is the last few of what was made under one name: proxies of different namespaces may need different ones.
type recent[T any] []T

const maxRecent = 4

func (r recent[T]) with(v T) recent[T] {
	if len(r) < maxRecent {
		return append(r, v)
	}
	copy(r, r[1:])
	r[maxRecent-1] = v
	return r
}

// madeHost is the virtual host of a service port, and all that it was made of: a service with neither split nor profile, the
// routings for its host, and what their targets were resolved to.
type madeHost struct {
	port     *model.ServicePort // of one Service
	routings []heard
	resolved []resolved
	host     plan.VirtualHost
}

// heard is what a virtual host depends on of a routing, which is immutable: what is in the same place is the same.
type heard struct {
	origin               ident.Origin
	hosts                *string
	http                 *model.HTTPRule
	port                 int
	nHosts, nHTTP        int
	precedence, consumer bool
}

func hear(r *model.Routing) heard {
	return heard{
		origin: r.Origin, hosts: first(r.Hosts), http: first(r.HTTP), port: r.Port, nHosts: len(r.Hosts), nHTTP: len(r.HTTP),
		precedence: r.Precedence, consumer: r.Consumer,
	}
}

func first[T any](s []T) *T {
	if len(s) == 0 {
		return nil
	}
	return &s[0]
}

// resolved is what became of a target.
type resolved struct {
	target  model.Target
	port    int            // that resolve was asked with
	service *model.Service // that was meant; nil: none
	cluster string
	ok      bool
}

// madeEndpoints is the endpoints of a cluster, and what they were made of.
type madeEndpoints struct {
	member    **model.Member
	members   int
	subset    *model.Subset
	share     bool
	keys      []string
	endpoints []plan.Endpoint
}

// Compile is the function Compile, with what m remembers.
func (m *Memory) Compile(s *model.Scope) (*plan.Plan, []model.Diagnostic) {
	if m.hosts == nil {
		m.hosts, m.endpoints = map[hostKey]recent[madeHost]{}, map[string]recent[madeEndpoints]{}
	}
	return compile(s, m)
}

// serviceHTTP returns the virtual host, without domains, of a service port for requests: as it was made before, or fresh.
func (c *compiler) serviceHTTP(s *model.ScopedService, sp *model.ServicePort) plan.VirtualHost {
	if c.memory == nil || s.Split != nil || s.Profile != nil {
		return c.freshHost(s, sp)
	}
	about := c.routings(s.Host)
	if h, ok := c.remembered(sp, s.Host, about); ok {
		return h
	}
	c.noted = c.noted[:0]
	h := c.freshHost(s, sp)
	c.remember(sp, s.Host, about, c.noted, &h)
	return h
}

// remembered returns the virtual host of a service port as it was made before, once its clusters are in the plan; false when it
// was made of something else.
func (c *compiler) remembered(sp *model.ServicePort, host string, all []*model.Routing) (plan.VirtualHost, bool) {
	for _, made := range c.memory.hosts[hostKey{host, sp.Port}] {
		if made.port == sp && slices.EqualFunc(made.routings, all, func(h heard, r *model.Routing) bool { return h == hear(r) }) &&
			!slices.ContainsFunc(made.resolved, func(r resolved) bool { return !c.again(&r) }) {
			return made.host, true
		}
	}
	return plan.VirtualHost{}, false
}

// again resolves a target as resolve does. False when it is not what it was.
func (c *compiler) again(r *resolved) bool {
	s, host, port := c.meant(&r.target, r.port)
	if serviceOf(s) != r.service {
		return false
	}
	return c.use(r.cluster, s, host, &r.target, port) == r.ok
}

func serviceOf(s *model.ScopedService) *model.Service {
	if s == nil {
		return nil
	}
	return s.Service
}

// remember keeps a virtual host for proxies that come after.
func (c *compiler) remember(sp *model.ServicePort, host string, all []*model.Routing, noted []resolved, h *plan.VirtualHost) {
	made := madeHost{port: sp, host: *h}
	for _, r := range all {
		made.routings = append(made.routings, hear(r))
	}
	for i := range noted {
		if r := &noted[i]; !slices.ContainsFunc(made.resolved, func(o resolved) bool { return sameTarget(&o, r) }) {
			made.resolved = append(made.resolved, *r)
		}
	}
	key := hostKey{host, sp.Port}
	c.memory.hosts[key] = c.memory.hosts[key].with(made)
}

// sameTarget reports whether two targets always mean the same. What cannot be resolved is reported with its origin.
func sameTarget(a, b *resolved) bool {
	x, y := a.target, b.target
	if a.ok && b.ok {
		x.Origin, y.Origin = ident.Origin{}, ident.Origin{}
	}
	return x == y && a.port == b.port && a.ok == b.ok
}

// endpointsOf returns what endpoints does for a cluster: that made before when it is the same.
func (c *compiler) endpointsOf(cluster string, members []*model.Member, port int, subset *model.Subset, share bool, locality *plan.Locality) []plan.Endpoint {
	if c.memory == nil {
		return endpoints(members, port, subset, share, locality, c.scope.Node.Identity.TrustDomain)
	}
	var keys []string
	if locality != nil {
		keys = priorityKeys(locality)
	}
	have := c.memory.endpoints[cluster]
	for i := range have {
		if e := &have[i]; e.member == first(members) && e.members == len(members) && e.subset == subset && e.share == share && slices.Equal(e.keys, keys) {
			return e.endpoints
		}
	}
	out := endpoints(members, port, subset, share, locality, c.scope.Node.Identity.TrustDomain)
	c.memory.endpoints[cluster] = have.with(madeEndpoints{first(members), len(members), subset, share, keys, out})
	return out
}

package compile

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// edge makes one listener for each server port of a gateway. Servers of one port merge; a server whose protocol does not
// fit the oldest one's is left out (world.Check reports it).
func (c *compiler) edge() {
	// Sorted by port, the oldest Gateway first. TLS needs certificates that a Server does not carry: config reports such
	// servers, and a door that could not answer is better not opened.
	servers := slices.DeleteFunc(slices.Clone(c.scope.Gateway.Servers), func(s model.GatewayServer) bool {
		return s.Protocol == ident.TLS || s.Protocol == ident.UDP
	})
	for len(servers) > 0 {
		n := 1
		for n < len(servers) && servers[n].Port == servers[0].Port {
			n++
		}
		c.edgePort(servers[:n])
		servers = servers[n:]
	}
}

func (c *compiler) edgePort(servers []model.GatewayServer) {
	first := servers[0]
	bind := c.scope.Gateway.Binds[first.Port]
	if bind == "" {
		return
	}
	l := plan.Listener{
		Name:      "edge|" + strconv.Itoa(first.Port),
		Bind:      bind,
		Direction: plan.Edge,
		Protocol:  first.Protocol,
		Port:      first.Port,
		Policies:  c.policyNames(),
		Origin:    first.Origin,
	}
	fits := func(s model.GatewayServer) bool { return s.Protocol.IsHTTP() == first.Protocol.IsHTTP() }
	servers = slices.DeleteFunc(slices.Clone(servers), func(s model.GatewayServer) bool { return !fits(s) })
	if !first.Protocol.IsHTTP() {
		l.TCP, l.TCPOrigin = c.edgeTCP(servers)
		c.listeners = append(c.listeners, l)
		return
	}
	if slices.ContainsFunc(servers, func(s model.GatewayServer) bool { return s.Protocol != first.Protocol }) {
		l.Protocol = ident.HTTP // HTTP listeners take both versions
	}
	l.Routes = "http." + strconv.Itoa(first.Port)
	c.edgeHTTP(c.table(l.Routes, plan.NotFound), servers)
	c.listeners = append(c.listeners, l)
}

// bound is a routing and the Gateways through which it reaches a domain.
type bound struct {
	routing  *model.Routing
	gateways map[string]bool
}

// edgeHTTP fills the table of an edge port. A routing serves a domain when it is bound to a server's Gateway and one of
// its hosts overlaps one of the server's. The rules of several routings for one domain stand one after the other, oldest
// first, with rules that take every request at the end (Istio: gateways merge, sidecars do not).
func (c *compiler) edgeHTTP(t *table, servers []model.GatewayServer) {
	domains := map[string][]bound{}
	var order []string
	for i := range c.scope.Routings {
		r := &c.scope.Routings[i]
		for _, server := range servers {
			gateway := server.Gateway.String()
			if !slices.Contains(r.Gateways, gateway) {
				continue
			}
			for _, domain := range overlap(r, server.Server) {
				list := domains[domain]
				if list == nil {
					order = append(order, domain)
				}
				if n := len(list); n == 0 || list[n-1].routing != r {
					list = append(list, bound{routing: r, gateways: map[string]bool{}})
				}
				list[len(list)-1].gateways[gateway] = true
				domains[domain] = list
			}
		}
	}
	port := servers[0].Port
	for _, domain := range order {
		h := plan.VirtualHost{Name: hostPort(domain, port), Domains: []string{domain}}
		var last *plan.Route
		for _, b := range domains[domain] {
			routes, complete := c.httpRoutes(b.routing.HTTP, &door{port: port, gateways: b.gateways})
			if complete {
				if last == nil {
					last = &routes[len(routes)-1]
				}
				routes = routes[:len(routes)-1]
			}
			if h.Origin.IsZero() && (len(routes) > 0 || complete) {
				h.Origin = b.routing.Origin
			}
			h.Routes = append(h.Routes, routes...)
		}
		if last != nil {
			h.Routes = append(h.Routes, *last)
		}
		if len(h.Routes) > 0 {
			t.add(h)
		}
	}
}

// overlap returns the hosts that a routing serves at a server: the server's "namespace/host" says whose routings may
// come, and for which hosts.
func overlap(r *model.Routing, s *model.Server) []string {
	var out []string
	for _, rule := range s.Hosts {
		namespace, host, ok := strings.Cut(rule, "/")
		if !ok {
			namespace, host = "*", rule
		}
		if namespace != "*" && namespace != r.Name.Namespace {
			continue
		}
		for _, h := range r.Hosts {
			if both, ok := ident.HostOverlap(h, host); ok && !slices.Contains(out, both) {
				out = append(out, both)
			}
		}
	}
	return out
}

// edgeTCP returns where the connections of an opaque server go: as the oldest routing that is bound to it says.
func (c *compiler) edgeTCP(servers []model.GatewayServer) ([]plan.Destination, ident.Origin) {
	for i := range c.scope.Routings {
		r := &c.scope.Routings[i]
		for _, server := range servers {
			gateway := server.Gateway.String()
			if !slices.Contains(r.Gateways, gateway) || overlap(r, server.Server) == nil {
				continue
			}
			if rule := tcpRule(r.TCP, &door{port: server.Port, gateways: map[string]bool{gateway: true}}); rule != nil {
				return c.destinations(rule.Forward, server.Port), rule.Origin
			}
		}
	}
	return nil, servers[0].Origin
}

// splitScale is the resolution of shares of shares.
const splitScale = 1000

// throughSplits replaces, at a gateway, each target that is a whole service with a TrafficSplit by the split's backends:
// a gateway is a client of the service as others are, and no VirtualService of the service's own decides there.
// Sidecars are asked for the service itself, and division has the split then; a split does not lead to another.
func (c *compiler) throughSplits(targets []model.WeightedDestination) []model.WeightedDestination {
	split := func(t *model.WeightedDestination) []model.SplitBackend {
		if s := c.services[t.Host]; s != nil && s.Split != nil && t.Subset == "" {
			return s.Split.Backends
		}
		return nil
	}
	if c.scope.Gateway == nil || !slices.ContainsFunc(targets, func(t model.WeightedDestination) bool { return split(&t) != nil }) {
		return targets
	}
	var out []model.WeightedDestination
	for i := range targets {
		t := targets[i]
		if len(targets) == 1 {
			t.Weight = 1 // alone, it gets all whatever its weight
		}
		parts := c.splitTarget(&t, split(&t))
		total := uint64(0)
		for _, p := range parts {
			total += uint64(p.Weight)
		}
		if total == 0 {
			t.Weight = share(t.Weight, 1, 1)
			out = append(out, t)
			continue
		}
		for _, p := range parts {
			p.Weight = share(t.Weight, uint64(p.Weight), total)
			out = append(out, p)
		}
	}
	return out
}

// splitTarget returns the backends of a split as targets for the port that t means, with the split's weights.
func (c *compiler) splitTarget(t *model.WeightedDestination, backends []model.SplitBackend) []model.WeightedDestination {
	root := c.services[t.Host]
	if root == nil || backends == nil {
		return nil
	}
	port := t.Port
	if port == 0 {
		port, _ = onlyPort(root.Service)
	}
	sp, ok := servicePort(root.Service, port)
	if !ok {
		return nil
	}
	targets := c.backendTargets(backends, sp)
	for i := range targets {
		targets[i].Headers = t.Headers
	}
	return targets
}

// share returns the part of weight that part of total is, at least 1 unless there is none.
func share(weight uint32, part, total uint64) uint32 {
	if weight == 0 || part == 0 {
		return 0
	}
	return uint32(min(max(uint64(weight)*splitScale*part/total, 1), math.MaxUint32))
}

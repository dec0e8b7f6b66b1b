package compile

import (
	"cmp"
	"slices"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// edgeHTTP fills the table of servers for requests. listener is all servers of its address when the table is inside TLS.
func (c *compiler) edgeHTTP(t *table, servers, listener []model.GatewayServer) {
	if servers[0].Own {
		c.isolated(t, servers, listener)
		return
	}
	c.mergedServers(t, servers)
}

// mergedServers is edgeHTTP for Istio Gateways. A routing serves a domain when it is bound to a server's Gateway and one of
// its hosts overlaps one of the server's. The rules of several routings for one domain stand one after the other, oldest
// first, with rules that take every request at the end (Istio: gateways merge, sidecars do not).
func (c *compiler) mergedServers(t *table, servers []model.GatewayServer) {
	domains := map[string][]bound{}
	redirects := map[string]ident.Origin{}
	var order, wide []string // wide: domains with a wildcard for which routings with Precedence have rules
	for i := range servers {
		if s := &servers[i]; s.Redirect {
			for _, h := range hostsOf(s.Server) {
				if _, have := redirects[h]; !have {
					redirects[h] = s.Origin
					order = append(order, h)
				}
			}
		}
	}
	for i := range c.scope.Routings {
		r := &c.scope.Routings[i]
		for j := range servers {
			s := &servers[j]
			if !slices.Contains(r.Gateways, s.Ref) || r.Port != 0 && r.Port != s.Port {
				continue
			}
			for _, domain := range overlap(r, s.Server) {
				if _, have := redirects[domain]; s.Redirect && !have {
					redirects[domain] = s.Origin
				}
				list := domains[domain]
				if _, redirect := redirects[domain]; list == nil && (!redirect || !slices.Contains(order, domain)) {
					order = append(order, domain)
				}
				if r.Precedence && domain[0] == '*' && !slices.Contains(wide, domain) {
					wide = append(wide, domain)
				}
				if n := len(list); n == 0 || list[n-1].routing != r {
					list = append(list, bound{routing: r, age: i, host: domain, gateways: map[string]bool{}})
				}
				list[len(list)-1].gateways[s.Ref] = true
				domains[domain] = list
			}
		}
	}
	port := servers[0].Port
	slices.SortFunc(wide, ident.CompareSpecific) // of several hosts of one routing the most specific counts
	for _, domain := range order {
		h := plan.VirtualHost{Name: hostPort(domain, port), Domains: []string{domain}}
		if origin, ok := redirects[domain]; ok {
			h.Origin = origin
			h.Routes = []plan.Route{toHTTPS(origin)}
		} else {
			list := domains[domain]
			for _, other := range wide { // rules with Precedence for "*.suffix" come behind those for the host itself
				if other != domain && ident.HostCovers(other, domain) {
					for _, b := range domains[other] {
						if b.routing.Precedence && !slices.ContainsFunc(list, func(x bound) bool { return x.routing == b.routing }) {
							list = append(slices.Clip(list), b)
						}
					}
				}
			}
			c.domain(&h, list, port)
		}
		if len(h.Routes) > 0 {
			t.add(h)
		}
	}
}

// toHTTPS is the route of a server with httpsRedirect.
func toHTTPS(origin ident.Origin) plan.Route {
	return plan.Route{
		Name: "httpsRedirect", Origin: origin,
		Redirect: &plan.Redirect{Status: 301, Scheme: "https"},
	}
}

// domain puts the rules of routings for a domain into h: first those of routings with Precedence, merged, then the others one
// after the other.
func (c *compiler) domain(h *plan.VirtualHost, list []bound, port int) {
	d := &door{port: port}
	var merging, others []bound
	for _, b := range list {
		if b.routing.Precedence {
			merging = append(merging, b)
		} else {
			others = append(others, b)
		}
	}
	slices.SortStableFunc(merging, func(a, b bound) int { return cmp.Compare(a.age, b.age) })
	routes, complete := c.merged(merging, d)
	if h.Routes = routes; len(routes) > 0 {
		h.Origin = merging[0].routing.Origin
	}
	if complete {
		return
	}
	var last []plan.Route // of the oldest that takes every request
	for _, b := range others {
		routes, rest := c.httpRoutes(b.routing.HTTP, &door{port: port, gateways: b.gateways})
		if h.Origin.IsZero() && len(routes) > 0 {
			h.Origin = b.routing.Origin
		}
		if len(last) == 0 {
			last = routes[rest:]
		}
		h.Routes = append(h.Routes, routes[:rest]...)
	}
	h.Routes = append(h.Routes, last...)
}

// isolated is edgeHTTP for Gateway API Gateways. A request is for the server with the most specific host that covers its own,
// and for no other; there, rules of all routings that are attached count in their order of precedence. A request inside TLS
// whose host is that of another server of the listener was sent on the wrong connection: 421 (RFC 9110 section 15.5.20).
func (c *compiler) isolated(t *table, servers, listener []model.GatewayServer) {
	port := servers[0].Port
	all := servers
	if listener != nil {
		all = listener
	}
	for i := range servers {
		s := &servers[i]
		attached := map[string][]bound{} // by host
		var wide []bound
		domains := hostsOf(s.Server)
		for j := range c.scope.Routings {
			r := &c.scope.Routings[j]
			if !slices.Contains(r.Gateways, s.Ref) || r.Port != 0 && r.Port != s.Port {
				continue
			}
			for _, host := range overlap(r, s.Server) {
				b := bound{routing: r, age: j, host: host, gateways: map[string]bool{s.Ref: true}}
				domains = append(domains, host)
				attached[host] = append(attached[host], b)
				if host[0] == '*' {
					wide = append(wide, b)
				}
			}
		}
		slices.SortFunc(domains, ident.CompareSpecific)
		for _, domain := range slices.Compact(domains) {
			if owner(all, domain) != s.Ref {
				continue
			}
			h := plan.VirtualHost{Name: hostPort(domain, port), Domains: []string{domain}, Origin: s.Origin}
			list := slices.Clone(attached[domain])
			slices.SortFunc(wide, func(a, b bound) int { return specificity(a.host, b.host) })
			for _, b := range wide { // of several hosts of one routing the most specific counts
				if ident.HostCovers(b.host, domain) && !slices.ContainsFunc(list, func(x bound) bool { return x.routing == b.routing }) {
					list = append(list, b)
				}
			}
			c.domain(&h, list, port)
			t.add(h) // also without rules: no other server may answer for it
		}
	}
	for i := range listener {
		if s := &listener[i]; s.Ref != servers[0].Ref {
			for _, domain := range hostsOf(s.Server) {
				if owner(all, domain) == s.Ref {
					t.add(plan.VirtualHost{
						Name: hostPort(domain, port), Domains: []string{domain}, Origin: s.Origin,
						Routes: []plan.Route{{Name: "misdirected", Origin: s.Origin, Direct: &plan.DirectResponse{Status: 421}}},
					})
				}
			}
		}
	}
}

// owner returns the Ref of the server with the most specific host that covers a domain; the oldest of equals.
func owner(servers []model.GatewayServer, domain string) string {
	ref, best := "", ""
	for i := range servers {
		for _, h := range hostsOf(servers[i].Server) {
			if (h == domain || ident.HostCovers(h, domain)) && (best == "" || specificity(h, best) < 0) {
				ref, best = servers[i].Ref, h
			}
		}
	}
	return ref
}

// overlap returns the hosts that a routing serves at a server: the server's "namespace/host" says whose routings may
// come, and for which hosts.
func overlap(r *model.Routing, s *model.Server) []string {
	var out []string
	for _, rule := range s.Hosts {
		namespace, host := serverHost(rule)
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

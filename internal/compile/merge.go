package compile

import (
	"cmp"
	"slices"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// bound is a routing that speaks about a host, and how it does.
type bound struct {
	routing  *model.Routing
	age      int             // its place among all, oldest first
	host     string          // of the routing, or what it has in common with a server: the more specific it is the earlier its rules come
	gateways map[string]bool // servers through which it is bound, at a gateway
}

// hostRoutes returns the rules that are in force on a sidecar for requests to a host, and the routing that they came from;
// none when no routing has a rule for the port.
//
// Routings with Precedence merge: those of the client's own namespace alone, if there are any (GEP-1294, "Route types"), else
// all of them. Of the others, whose rules come behind, only one counts: that for the most specific host, then the oldest
// (Istio: sidecars do not merge).
func (c *compiler) hostRoutes(host string, d *door) (routes []plan.Route, origin ident.Origin) {
	return c.inForce(c.routings(host), host, d)
}

// inForce is hostRoutes among some routings, for the more specific host first, then the oldest.
func (c *compiler) inForce(all []*model.Routing, host string, d *door) (routes []plan.Route, origin ident.Origin) {
	var merging []bound
	consumers := false
	for _, r := range all {
		if r.Precedence && len(r.HTTP) > 0 && d.takes(r) {
			merging = append(merging, bound{routing: r, host: mostSpecific(r.Hosts, host)})
			consumers = consumers || r.Consumer
		}
	}
	if consumers {
		merging = slices.DeleteFunc(merging, func(b bound) bool { return !b.routing.Consumer })
	}
	routes, complete := c.merged(merging, d)
	if len(routes) > 0 {
		origin = merging[0].routing.Origin
	}
	for _, r := range all {
		if complete {
			break
		}
		if r.Precedence || !d.takes(r) {
			continue
		}
		if more, _ := c.httpRoutes(r.HTTP, d); len(more) > 0 {
			if len(routes) == 0 {
				return more, r.Origin
			}
			return append(routes, more...), origin
		}
	}
	return routes, origin
}

// precedes reports whether a routing of the Gateway API is among those for a host.
func precedes(all []*model.Routing, d *door) bool {
	return slices.ContainsFunc(all, func(r *model.Routing) bool { return r.Precedence && len(r.HTTP) > 0 && d.takes(r) })
}

// mostSpecific returns the host of a rule that decides about a host.
func mostSpecific(hosts []string, host string) string {
	best := "*"
	for _, h := range hosts {
		if (h == host || ident.HostCovers(h, host)) && ident.CompareSpecific(h, best) < 0 {
			best = h
		}
	}
	return best
}

// candidate is one alternative of a rule; match is nil for a rule without any.
type candidate struct {
	bound *bound
	rule  *model.HTTPRule
	match *model.HTTPMatch
}

// everything is the condition of a rule without any.
var everything plan.Match

func (c *candidate) conditions() *plan.Match {
	if c.match == nil {
		return &everything
	}
	return &c.match.Match
}

// merged returns the rules of routings with Precedence, which are given oldest first, as one list: the more specific host
// first (HTTPRoute.spec.hostnames), then the more specific match, then the older routing, then in the order of the rules.
// complete says that the last takes every request.
func (c *compiler) merged(all []bound, d *door) (routes []plan.Route, complete bool) {
	var list []candidate
	for i := range all {
		b := &all[i]
		rules := b.routing.HTTP
		for j := range rules {
			if len(rules[j].Matches) == 0 {
				list = append(list, candidate{bound: b, rule: &rules[j]})
			}
			for k := range rules[j].Matches {
				m := &rules[j].Matches[k]
				at := *d
				if b.gateways != nil {
					at.gateways = b.gateways
				}
				if at.holds(m.Port, m.Gateways) {
					list = append(list, candidate{bound: b, rule: &rules[j], match: m})
				}
			}
		}
	}
	slices.SortStableFunc(list, func(a, b candidate) int {
		return cmp.Or(specificity(a.bound.host, b.bound.host), model.ComparePrecedence(a.conditions(), b.conditions()))
	})
	made := map[*model.HTTPRule][]plan.Route{}
	for i := range list {
		x := &list[i]
		rs := made[x.rule]
		if rs == nil {
			rs = c.variants(nil, x.rule, d)
			made[x.rule] = rs
		}
		m := x.match
		if m == nil {
			m = &model.HTTPMatch{}
		}
		routes = alternative(routes, rs, x.rule, m)
		if takesAll(x.conditions()) {
			return routes, true
		}
	}
	return routes, false
}

// specificity orders rule hosts that cover one host, the most specific first: the exact one, then the longest.
func specificity(a, b string) int {
	wild := func(h string) int {
		if h[0] == '*' {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(wild(a), wild(b)), cmp.Compare(len(b), len(a)))
}

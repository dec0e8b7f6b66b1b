package compile

import (
	"reflect"
	"slices"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// opaque is where connections go whose bytes are not read.
type opaque struct {
	names   []plan.ServerName // of those that begin with TLS, by the server name that they ask for
	routes  []plan.TCPRoute   // asked before forward, by address
	forward []plan.Destination
	origin  ident.Origin // of forward
	decided bool         // a rule said what forward is
}

// serviceTCP returns where opaque connections to a service port go.
func (c *compiler) serviceTCP(s *model.ScopedService, sp *model.ServicePort) opaque {
	d := &door{port: sp.Port}
	all := c.routings(s.Host)
	if slices.ContainsFunc(all, func(r *model.Routing) bool { return r.Consumer && d.takes(r) && len(r.TCP)+len(r.TLS) > 0 }) {
		all = slices.DeleteFunc(slices.Clone(all), func(r *model.Routing) bool { return r.Precedence && !r.Consumer })
	}
	var out opaque
	for _, r := range all {
		if !d.takes(r) {
			continue
		}
		for i := range r.TLS {
			out.names = c.tlsRule(out.names, &r.TLS[i], d, nil)
		}
		if !out.decided && len(out.routes) == 0 {
			c.tcpRules(&out, r.TCP, d)
		}
	}
	out.names = joinNames(out.names)
	if !out.decided {
		out.forward, out.origin = c.division(s, sp)
	}
	return out
}

// tcpRules fills in what rules say at a door: those for some addresses, up to the first that takes every connection.
func (c *compiler) tcpRules(out *opaque, rules []model.TCPRule, d *door) {
	for i := range rules {
		r := &rules[i]
		subnets, all := []string(nil), len(r.Matches) == 0
		for j := range r.Matches {
			switch m := &r.Matches[j]; {
			case !d.holds(m.Port, m.Gateways):
			case len(m.Subnets) == 0:
				all = true
			default:
				subnets = append(subnets, m.Subnets...)
			}
		}
		switch {
		case all:
			out.forward, out.origin, out.decided = c.destinations(c.throughSplits(r.Forward, nil), d.port), r.Origin, true
			return
		case subnets != nil:
			out.routes = append(out.routes, plan.TCPRoute{Subnets: subnets, Forward: c.destinations(c.throughSplits(r.Forward, nil), d.port), Origin: r.Origin})
		}
	}
}

// tlsRule adds what a rule says for each of its server names, of which the first rule that names it decides; one for some
// addresses leaves the others to the rules behind. limit, when not nil, returns what of a name may be served.
func (c *compiler) tlsRule(names []plan.ServerName, r *model.TLSRule, d *door, limit func(name string) []string) []plan.ServerName {
	var forward []plan.Destination
	made := false
	for i := range r.Matches {
		m := &r.Matches[i]
		if !d.holds(m.Port, m.Gateways) {
			continue
		}
		served := m.ServerNames
		if limit != nil {
			served = nil
			for _, name := range m.ServerNames {
				served = append(served, limit(name)...)
			}
		}
		for _, name := range served {
			j := slices.IndexFunc(names, func(n plan.ServerName) bool { return n.Names[0] == name })
			if j >= 0 && !open(&names[j]) {
				continue
			}
			if !made {
				forward, made = c.destinations(c.throughSplits(r.Forward, nil), d.port), true
			}
			if j < 0 {
				j = len(names)
				names = append(names, plan.ServerName{Names: []string{name}, Protocol: ident.TCP})
			}
			n := &names[j]
			if len(m.Subnets) > 0 {
				n.TCPRoutes = append(n.TCPRoutes, plan.TCPRoute{Subnets: m.Subnets, Forward: forward, Origin: r.Origin})
			} else {
				n.TCP = forward
			}
			if len(m.Subnets) == 0 || n.Origin.IsZero() {
				n.Origin = r.Origin
			}
			if len(m.Subnets) == 0 && forward == nil { // closed: no rule behind may take it
				n.TCPRoutes = append(n.TCPRoutes, plan.TCPRoute{Origin: r.Origin})
			}
		}
	}
	return names
}

// open reports whether no rule has taken all connections of a server name yet.
func open(n *plan.ServerName) bool {
	return n.TCP == nil && !slices.ContainsFunc(n.TCPRoutes, func(r plan.TCPRoute) bool { return len(r.Subnets) == 0 })
}

// joinNames puts server names together of which the same becomes, and orders them.
func joinNames(names []plan.ServerName) []plan.ServerName {
	var out []plan.ServerName
	for _, n := range names {
		i := slices.IndexFunc(out, func(o plan.ServerName) bool {
			o.Names = n.Names
			return reflect.DeepEqual(o, n)
		})
		if i < 0 {
			out = append(out, n)
			continue
		}
		out[i].Names = append(slices.Clip(out[i].Names), n.Names...)
	}
	for i := range out {
		slices.SortFunc(out[i].Names, ident.CompareSpecific)
	}
	slices.SortStableFunc(out, func(a, b plan.ServerName) int { return ident.CompareSpecific(a.Names[0], b.Names[0]) })
	return out
}

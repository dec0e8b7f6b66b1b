package world

import (
	"fmt"
	"slices"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// unused warns of a field that nothing ever comes to. field is its path behind that of at.
func (c *checker) unused(code string, at ident.Origin, field, hint, format string, args ...any) {
	path := "spec." + field
	if at.Rule != "" {
		path = "spec." + at.Rule + "." + field
	}
	c.found = append(c.found, model.Diagnostic{
		Code: code, Severity: model.Warning, Origin: at, Path: path, Message: fmt.Sprintf(format, args...), Hint: hint,
	})
}

// delegates checks that what the rules of a routing refer to is there, and that somebody refers to a routing without hosts.
func (c *checker) delegates(r *model.Routing) {
	if r.Delegate && len(c.referrers(r.Name)) == 0 {
		c.warn(CodeIdleDelegate, r.Origin, "name it in http[].delegate of a VirtualService with hosts, or add hosts",
			"no VirtualService refers to it: without hosts its rules are in force nowhere")
	}
	for i := range r.HTTP {
		name := r.HTTP[i].Delegate
		if name == nil || r.Delegate { // that a delegate refers to nothing is said where it is read
			continue
		}
		at := place(r.HTTP[i].Origin, r.Origin)
		const then = "requests of this rule are answered with 503"
		d, visible := c.Delegate(*name, r.Name.Namespace)
		switch {
		case visible:
			continue
		case d != nil:
			c.add(model.Error, CodeNoDelegate, at, "add the namespace to its exportTo", "the delegate %s is not exported to namespace %s: %s", name, r.Name.Namespace, then)
			continue
		case slices.ContainsFunc(c.RoutingsIn(name.Namespace), func(o *model.Routing) bool {
			return o.Name == *name && kindOf(o.Origin, "VirtualService") == "VirtualService"
		}):
			c.add(model.Error, CodeNoDelegate, at, "remove its hosts and gateways, or put these rules into a VirtualService without them",
				"VirtualService %s has hosts, so it is no delegate: %s", name, then)
			continue
		}
		var names []string
		for _, o := range c.Routings() {
			if o.Delegate {
				names = append(names, o.Name.String())
			}
		}
		hint := "create a VirtualService of that name without hosts, or correct delegate.name and delegate.namespace"
		if near := ident.Nearest(name.String(), names); near != "" {
			hint = didYouMean(near)
		}
		c.add(model.Error, CodeNoDelegate, at, hint, "the delegate %s does not exist: %s", name, then)
	}
}

// referrers returns the routings with hosts whose rules refer to a delegate.
func (c *checker) referrers(name ident.Name) []*model.Routing {
	if c.referring == nil {
		c.referring = map[ident.Name][]*model.Routing{}
		for _, r := range c.Routings() {
			for i := range r.HTTP {
				if d := r.HTTP[i].Delegate; d != nil && !r.Delegate && !slices.Contains(c.referring[*d], r) {
					c.referring[*d] = append(c.referring[*d], r)
				}
			}
		}
	}
	return c.referring[name]
}

// matchedPorts tells of matches for ports at which nothing enters for the routing.
func (c *checker) matchedPorts(r *model.Routing) {
	check := func(at ident.Origin, field string, port int, gateways []string) {
		if port == 0 {
			return
		}
		ports, known := c.entrances(r, gateways)
		if known && !slices.Contains(ports, port) {
			c.unused(CodePortOfNone, at, field, "it is the port of the Service, or of the Gateway's server: "+list(ports),
				"no request comes to this match: port %d is none of those of the VirtualService's hosts and gateways", port)
		}
	}
	for i := range r.HTTP {
		for j := range r.HTTP[i].Matches {
			m := &r.HTTP[i].Matches[j]
			check(place(m.Origin, r.HTTP[i].Origin, r.Origin), "port", m.Port, m.Gateways)
		}
	}
	for i := range r.TLS {
		for j := range r.TLS[i].Matches {
			m := &r.TLS[i].Matches[j]
			check(place(r.TLS[i].Origin, r.Origin), fmt.Sprintf("match[%d].port", j), m.Port, m.Gateways)
		}
	}
	for i := range r.TCP {
		for j := range r.TCP[i].Matches {
			m := &r.TCP[i].Matches[j]
			check(place(r.TCP[i].Origin, r.Origin), fmt.Sprintf("match[%d].port", j), m.Port, m.Gateways)
		}
	}
}

// entrances returns the ports at which requests for a routing can enter by gateways (nil: its own), of a delegate for those who
// refer to it. known is false when they cannot be told: a host is no service, or a gateway does not exist.
func (c *checker) entrances(r *model.Routing, gateways []string) (ports []int, known bool) {
	if r.Delegate {
		roots := c.referrers(r.Name)
		for _, root := range roots {
			more, ok := c.entrances(root, gateways)
			if !ok {
				return nil, false
			}
			ports = append(ports, more...)
		}
		slices.Sort(ports)
		return slices.Compact(ports), len(roots) > 0
	}
	if gateways == nil {
		gateways = r.Gateways
	}
	for _, g := range gateways {
		if g != model.Mesh {
			door := c.doorNamed(g)
			if door == nil {
				return nil, false
			}
			for i := range door.Servers {
				ports = append(ports, door.Servers[i].Port)
			}
			continue
		}
		for _, h := range r.Hosts {
			more, ok := c.portsMeant(h)
			if !ok {
				return nil, false
			}
			ports = append(ports, more...)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports), true
}

// portsMeant returns the ports, but those of UDP, of the services that a host of a rule, maybe with a wildcard, has to do with; false
// when there is none.
func (c *checker) portsMeant(host string) (ports []int, known bool) {
	for _, s := range c.services {
		if _, both := ident.HostOverlap(host, s.Host); !both {
			continue
		}
		known = true
		ports = append(ports, carried(s)...)
	}
	slices.Sort(ports)
	return slices.Compact(ports), known
}

// carried returns the numbers of a service's ports that the mesh carries.
func carried(s *model.Service) []int {
	var out []int
	for i := range s.Ports {
		if s.Ports[i].Protocol != ident.UDP {
			out = append(out, s.Ports[i].Port)
		}
	}
	return out
}

// policyPorts tells of settings for ports that no service of the host has.
func (c *checker) policyPorts(p *model.DestinationPolicy) {
	var ports []int
	asked := false
	check := func(t *model.TrafficPolicy) {
		if t == nil || len(t.Ports) == 0 {
			return
		}
		if !asked {
			asked = true
			ports, _ = c.portsMeant(p.Host)
		}
		if len(ports) == 0 {
			return // there is no service, which is said
		}
		for i := range t.Ports {
			if q := &t.Ports[i]; !slices.Contains(ports, q.Port) {
				c.unused(CodePortOfNone, place(q.Origin, p.Origin), "port.number", "it is the port of the Service, not of its workloads: "+list(ports),
					"no service of host %s has port %d: the settings have no effect", p.Host, q.Port)
			}
		}
	}
	check(p.Traffic)
	for i := range p.Subsets {
		check(p.Subsets[i].Traffic)
	}
}

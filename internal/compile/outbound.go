package compile

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// strangersPort is the port on which a routing for a host that is no service is in force (Istio: hosts that are not in
// the registry are served on port 80).
const strangersPort = 80

// outbound makes what the workload reaches others through: one route table for each port number, the forward proxy over
// all of them, and one listener for each explicit local port and each egress listener with an address of its own.
func (c *compiler) outbound() {
	ports := map[int]*plan.ForwardPort{}
	for i := range c.scope.Services {
		s := &c.scope.Services[i]
		if s.Indirect || s.Alias != "" && c.dealias(s) != nil {
			continue // the second is one more name of what it stands for
		}
		for j := range s.Ports {
			if s.Ports[j].Protocol != ident.UDP {
				c.outboundPort(ports, s, &s.Ports[j])
			}
		}
	}
	c.strangers(ports)
	fate := c.fate()
	if fate == plan.Block {
		// Also on ports that no service has.
		c.table(othersTable, fate)
		ports[0] = &plan.ForwardPort{Protocol: ident.Detect, Routes: othersTable}
	}
	if c.scope.Sidecar.Forward != "" || c.scope.Sidecar.Captured != nil {
		l := plan.Listener{
			Name: "forward", Bind: c.scope.Sidecar.Forward, Direction: plan.Outbound, Protocol: ident.HTTP, Forward: true,
			Outside: c.outside(),
		}
		for _, number := range slices.Sorted(maps.Keys(ports)) {
			p := ports[number]
			if fate != plan.Passthrough {
				p.Otherwise = fate
			}
			// Of services that share an address the first has it, as in a route table.
			slices.SortStableFunc(p.Hosts, func(a, b plan.ForwardHost) int { return cmp.Compare(a.Host, b.Host) })
			p.Hosts = slices.CompactFunc(p.Hosts, func(a, b plan.ForwardHost) bool { return a.Host == b.Host })
			distinct(p.Hosts)
			l.Ports = append(l.Ports, *p)
		}
		c.listeners = append(c.listeners, l)
	}
	c.capture(fate)
	for _, local := range c.scope.Sidecar.Local {
		c.local(local)
	}
	for i := range c.scope.Sidecar.Views {
		c.view(&c.scope.Sidecar.Views[i])
	}
}

// othersTable is the table of ports that no service has, where hosts that the mesh does not know are blocked.
const othersTable = "others"

// fate is what happens to hosts that the mesh does not know.
func (c *compiler) fate() plan.Otherwise {
	if c.scope.Sidecar.Otherwise.Fate != "" {
		return c.scope.Sidecar.Otherwise.Fate
	}
	return plan.Passthrough
}

// outside is which addresses of hosts that the mesh does not know may be reached; nil where fate says it of all, and nobody has to
// be named for closing them.
func (c *compiler) outside() *plan.Outside {
	o := &c.scope.Sidecar.Otherwise
	if len(o.Networks) == 0 && (c.fate() == plan.Passthrough || o.Origin.IsZero()) {
		return nil
	}
	return &plan.Outside{Networks: o.Networks, Otherwise: c.fate(), Origin: o.Origin}
}

// outboundPort puts a service port into the tables.
func (c *compiler) outboundPort(ports map[int]*plan.ForwardPort, s *model.ScopedService, sp *model.ServicePort) {
	p := ports[sp.Port]
	if p == nil {
		p = &plan.ForwardPort{Port: sp.Port, Protocol: tunnelProtocol(sp.Protocol)}
		ports[sp.Port] = p
	}
	if t := tunnelProtocol(sp.Protocol); t != p.Protocol {
		p.Protocol = ident.Detect // services on one port differ: the first bytes tell
	}
	names := c.names(s.Service)
	if sp.Protocol.IsHTTP() || sp.Protocol == ident.Detect {
		p.Routes = strconv.Itoa(sp.Port)
		t := c.table(p.Routes, c.fate())
		h := c.serviceHTTP(s, sp)
		h.Domains = names
		if s.Headless {
			c.members(t, s, sp, &h)
			h.Domains = append(slices.Clip(names), "*."+s.Host) // its members have names of their own
		}
		t.add(h)
	}
	if sp.Protocol.IsHTTP() {
		return
	}
	host := c.opaque(s, sp)
	host.Detect = sp.Protocol == ident.Detect
	for i, name := range names {
		host.Host, host.Addresses = name, nil
		if i == 0 {
			host.Addresses = c.addresses(s.Service)
		}
		p.Hosts = append(p.Hosts, host)
	}
	host.Addresses = nil
	if s.Headless {
		c.opaqueMembers(p, s, sp, &host)
	}
}

// tunnelProtocol is what to expect inside a CONNECT tunnel to a service.
func tunnelProtocol(p ident.Protocol) ident.Protocol {
	switch p {
	case ident.HTTP, ident.HTTP2, ident.GRPC:
		return ident.HTTP
	case ident.Detect:
		return ident.Detect
	}
	return ident.TCP
}

// names returns every name that a client of the node's namespace may call a service by, those of its aliases and its
// addresses among them.
func (c *compiler) names(s *model.Service) []string {
	names := c.ownNames(s)
	for _, alias := range c.aliases[s.Host] {
		names = append(names, c.ownNames(alias.Service)...)
	}
	for _, a := range s.Addresses {
		if ip, err := netip.ParseAddr(a); err == nil { // a range is among ForwardHost.Addresses
			names = append(names, ip.String())
		}
	}
	return names
}

// ownNames returns the forms of a service's name. The short name means the service of the client's own namespace only
// (Kubernetes: DNS search domains).
func (c *compiler) ownNames(s *model.Service) []string {
	if s.Host != ident.ServiceHost(s.Name) {
		return []string{s.Host} // it stands in no cluster, and has the one name
	}
	return c.forms(s.Name.Name, s.Host, s.Name.Namespace)
}

func (c *compiler) forms(name, host, namespace string) []string {
	long := name + "." + namespace
	names := []string{host, long, long + ".svc"}
	if namespace == c.scope.Node.Name.Namespace {
		names = append(names, name)
	}
	return names
}

// strangers puts routings for hosts that are no service into the tables: on port 80, and on the ports that their rules name.
func (c *compiler) strangers(ports map[int]*plan.ForwardPort) {
	for i := range c.scope.Routings {
		r := &c.scope.Routings[i]
		numbers := []int{strangersPort}
		if r.Port != 0 {
			numbers = []int{r.Port}
		}
		for _, rule := range r.HTTP {
			for _, m := range rule.Matches {
				if m.Port != 0 {
					numbers = append(numbers, m.Port)
				}
			}
		}
		slices.Sort(numbers)
		for _, host := range r.Hosts {
			if s := c.services[host]; s != nil && !s.Indirect {
				continue
			}
			for _, number := range slices.Compact(slices.Clone(numbers)) {
				c.stranger(ports, host, number)
			}
		}
	}
}

func (c *compiler) stranger(ports map[int]*plan.ForwardPort, host string, number int) {
	name := strconv.Itoa(number)
	if t := c.tables[name]; t != nil && t.domains[host] {
		return // another routing for the host came by
	}
	about := c.exact[host]
	for _, w := range c.wildcards {
		if w.host == host {
			about = append(slices.Clip(about), w.routing)
		}
	}
	routes, origin := c.inForce(about, host, &door{port: number})
	if len(routes) == 0 {
		return
	}
	p := ports[number]
	if p == nil {
		p = &plan.ForwardPort{Port: number, Protocol: ident.HTTP}
		ports[number] = p
	}
	if p.Protocol == ident.TCP {
		p.Protocol = ident.Detect
	}
	p.Routes = name
	c.table(name, c.fate()).add(plan.VirtualHost{
		Name: hostPort(host, number), Domains: []string{host}, Routes: routes, Origin: origin,
	})
}

// local makes the listener of an explicit local port: it stands for one service, whatever a request calls itself.
func (c *compiler) local(p model.LocalPort) {
	s := c.services[p.Host]
	if s != nil && s.Alias != "" {
		if to := c.dealias(s); to != nil {
			s = to
		}
	}
	if s == nil || s.Indirect {
		return
	}
	sp, ok := servicePort(s.Service, p.Port)
	if !ok {
		return
	}
	l := plan.Listener{
		Name:      "local|" + strconv.Itoa(p.Port) + "|" + p.Host,
		Bind:      p.Bind,
		Direction: plan.Outbound,
		Protocol:  upstreamProtocol(sp.Protocol),
		Host:      p.Host,
		Port:      p.Port,
		Origin:    s.Origin,
	}
	if sp.Protocol.IsHTTP() || sp.Protocol == ident.Detect {
		l.Routes = strconv.Itoa(p.Port)
	}
	if !sp.Protocol.IsHTTP() {
		o := c.serviceTCP(s, sp)
		l.TCP, l.TCPOrigin, l.ServerNames, l.TCPRoutes = o.forward, o.origin, o.names, o.routes
	}
	c.listeners = append(c.listeners, l)
}

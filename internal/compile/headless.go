package compile

import (
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// members puts a virtual host for each member of a headless service that has a name of its own before that of the service,
// h: a request for it goes to that member. Rules for the service hold for its members too, and decide where they say so.
func (c *compiler) members(t *table, s *model.ScopedService, sp *model.ServicePort, h *plan.VirtualHost) {
	for _, m := range s.Members {
		if m.Host == "" || !slices.ContainsFunc(m.Ports, func(p model.MemberPort) bool { return p.Port == sp.Port }) {
			continue
		}
		one := *h
		one.Name = hostPort(m.Host, sp.Port)
		one.Domains = c.memberNames(s, m)
		one.Routes = slices.Clone(h.Routes)
		whole := clusterName(sp.Port, "", s.Host)
		for i := range one.Routes {
			f := one.Routes[i].Forward
			if len(f) == 1 && f[0].Cluster == whole { // to the service as a whole: the client chose one of it
				one.Routes[i].Forward = slices.Clone(f)
				one.Routes[i].Forward[0].Cluster = c.memberCluster(s, sp, m)
			}
		}
		t.add(one)
	}
}

// opaqueMembers is members for opaque connections.
func (c *compiler) opaqueMembers(p *plan.ForwardPort, s *model.ScopedService, sp *model.ServicePort, service *plan.ForwardHost) {
	whole := clusterName(sp.Port, "", s.Host)
	if len(service.TCP) != 1 || service.TCP[0].Cluster != whole {
		return
	}
	for _, m := range s.Members {
		at := slices.IndexFunc(m.Ports, func(p model.MemberPort) bool { return p.Port == sp.Port })
		if at < 0 {
			continue
		}
		var names, addresses []string
		if m.Host != "" {
			names = c.memberNames(s, m)
		}
		if c.scope.Sidecar != nil && c.scope.Sidecar.Captured != nil {
			// Its name, and that of the service, lead clients to its address.
			if ip := addressOf(m.Ports[at].Address); ip != "" {
				addresses = []string{ip}
				if names == nil {
					anonymous := *m
					anonymous.Host = ip
					m, names = &anonymous, addresses
				}
			}
		}
		for _, name := range names {
			one := *service
			one.Host, one.Addresses = name, addresses
			one.TCP = []plan.Destination{{Cluster: c.memberCluster(s, sp, m)}}
			p.Hosts = append(p.Hosts, one)
			addresses = nil
		}
	}
}

func (c *compiler) memberNames(s *model.ScopedService, m *model.Member) []string {
	own := strings.TrimSuffix(m.Host, "."+s.Host)
	if s.Host != ident.ServiceHost(s.Name) {
		return []string{m.Host}
	}
	return c.forms(own+"."+s.Name.Name, m.Host, s.Name.Namespace)
}

// memberCluster puts the cluster of one member into the plan.
func (c *compiler) memberCluster(s *model.ScopedService, sp *model.ServicePort, m *model.Member) string {
	name := clusterName(sp.Port, "", m.Host)
	if _, ok := c.clusters[name]; !ok {
		c.add(name, s, sp, "", nil, []*model.Member{m})
		cl := c.clusters[name]
		cl.Host, cl.Locality = m.Host, nil
		c.clusters[name] = cl
	}
	return name
}

// view makes an egress listener that has an address of its own: the services that its hosts show, by the host of a request,
// or the first of them for opaque connections. Source: Istio, IstioEgressListener.bind.
func (c *compiler) view(v *model.PortView) {
	l := plan.Listener{
		Name: "egress|" + strconv.Itoa(v.Port) + "|" + v.Bind, Bind: v.Bind, Direction: plan.Outbound,
		Protocol: upstreamProtocol(v.Protocol), Port: v.Port, Origin: v.Origin, Outside: c.outside(),
	}
	for _, host := range v.Hosts {
		s := c.services[host]
		if s == nil {
			continue
		}
		sp, ok := servicePort(s.Service, v.Port)
		if !ok {
			continue
		}
		if (v.Protocol.IsHTTP() || v.Protocol == ident.Detect) && (sp.Protocol.IsHTTP() || sp.Protocol == ident.Detect) {
			l.Routes = l.Name
			h := c.serviceHTTP(s, sp)
			h.Domains = c.names(s.Service)
			c.table(l.Routes, c.fate()).add(h)
		}
		if !v.Protocol.IsHTTP() && l.TCP == nil {
			o := c.opaque(s, sp)
			l.TCP, l.TCPOrigin, l.ServerNames, l.TCPRoutes = o.TCP, o.Origin, o.ServerNames, o.TCPRoutes
		}
	}
	if v.Protocol.IsHTTP() && l.Routes == "" {
		l.Routes = l.Name
		c.table(l.Routes, c.fate()) // nothing is in view: all of it is unknown
	}
	c.listeners = append(c.listeners, l)
}

// opaque returns what happens to opaque connections to a service port, without the name that they are for.
func (c *compiler) opaque(s *model.ScopedService, sp *model.ServicePort) plan.ForwardHost {
	o := c.serviceTCP(s, sp)
	return plan.ForwardHost{TCP: o.forward, Origin: o.origin, ServerNames: o.names, TCPRoutes: o.routes}
}

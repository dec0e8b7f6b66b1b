package compile

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// edge makes one listener for each server port of a gateway, and one for each address of it when servers ask for different
// ones. A server that is Broken is not served; the others on its port are.
func (c *compiler) edge() {
	// Sorted by port, the oldest Gateway first.
	servers := slices.DeleteFunc(slices.Clone(c.scope.Gateway.Servers), func(s model.GatewayServer) bool {
		return s.Protocol == ident.UDP || s.Broken != ""
	})
	for i := range servers {
		if servers[i].Ref == "" {
			servers[i].Ref = servers[i].Gateway.String()
		}
	}
	for len(servers) > 0 {
		n := 1
		for n < len(servers) && servers[n].Port == servers[0].Port {
			n++
		}
		c.edgePort(servers[:n])
		servers = servers[n:]
	}
}

// edgePort makes the listeners of one port.
func (c *compiler) edgePort(servers []model.GatewayServer) {
	bind := c.scope.Gateway.Binds[servers[0].Port]
	if bind == "" {
		return
	}
	own, err := netip.ParseAddrPort(bind)
	addresses := map[string][]model.GatewayServer{}
	var order []string
	for _, s := range servers {
		address := bind
		if ip, bad := netip.ParseAddr(s.Bind); bad == nil && err == nil {
			address = netip.AddrPortFrom(ip, own.Port()).String()
			if ip.IsUnspecified() { // it takes every address, also those of the others
				addresses, order = map[string][]model.GatewayServer{address: servers}, []string{address}
				break
			}
		}
		if addresses[address] == nil {
			order = append(order, address)
		}
		addresses[address] = append(addresses[address], s)
	}
	for _, address := range order {
		suffix := strconv.Itoa(servers[0].Port)
		if address != bind && len(order) > 1 {
			suffix += "|" + address
		}
		c.edgeListener(suffix, address, addresses[address])
	}
}

// kindOf says what a server makes of connections: those of one address must agree, since the first bytes decide.
func kindOf(s *model.Server) string {
	switch {
	case s.TLS != nil || s.Auto || s.Protocol == ident.TLS:
		return "TLS"
	case s.Protocol.IsHTTP():
		return "HTTP"
	}
	return "TCP"
}

// edgeListener makes one listener of the servers of one address. The oldest one's kind is in force; a server of another kind
// is left out, and so is a TLS server whose hosts all have one already (world.Check reports both).
func (c *compiler) edgeListener(suffix, bind string, servers []model.GatewayServer) {
	first := servers[0]
	kind := kindOf(first.Server)
	servers = slices.DeleteFunc(slices.Clone(servers), func(s model.GatewayServer) bool { return kindOf(s.Server) != kind })
	l := plan.Listener{
		Name:          "edge|" + suffix,
		Bind:          bind,
		Direction:     plan.Edge,
		Protocol:      first.Protocol,
		Port:          first.Port,
		Policies:      c.policyNames(),
		Origin:        first.Origin,
		TrustedHops:   first.TrustedHops,
		ProxyProtocol: first.ProxyProtocol,
	}
	switch kind {
	case "TCP":
		o := c.edgeTCP(servers)
		l.Protocol, l.TCP, l.TCPRoutes, l.TCPOrigin = ident.TCP, o.forward, o.routes, o.origin
	case "TLS":
		l.Protocol = ident.TLS
		l.ServerNames = c.edgeTLS(suffix, servers)
	default:
		if slices.ContainsFunc(servers, func(s model.GatewayServer) bool { return s.Protocol != first.Protocol }) {
			l.Protocol = ident.HTTP // HTTP listeners take both versions
		}
		l.Routes = "http." + suffix
		c.edgeHTTP(c.table(l.Routes, plan.NotFound), servers, nil)
	}
	c.listeners = append(c.listeners, l)
}

// serverHost splits "namespace/host" of a server.
func serverHost(rule string) (namespace, host string) {
	namespace, host, ok := strings.Cut(rule, "/")
	if !ok {
		return "*", rule
	}
	return namespace, host
}

// hostsOf returns the hosts of a server, most specific first.
func hostsOf(s *model.Server) []string {
	var out []string
	for _, rule := range s.Hosts {
		if _, host := serverHost(rule); !slices.Contains(out, host) {
			out = append(out, host)
		}
	}
	slices.SortFunc(out, ident.CompareSpecific)
	return out
}

// edgeTLS returns what becomes of TLS connections, by server name. A name belongs to the oldest server that names it.
func (c *compiler) edgeTLS(suffix string, servers []model.GatewayServer) []plan.ServerName {
	taken := map[string]bool{}
	free := func(names []string) []string {
		var out []string
		for _, n := range names {
			if !taken[n] {
				taken[n] = true
				out = append(out, n)
			}
		}
		return out
	}
	var out []plan.ServerName
	for i := range servers {
		s := &servers[i]
		switch {
		case s.Auto:
			if names := free(hostsOf(s.Server)); names != nil {
				c.everyCluster(names)
				out = append(out, plan.ServerName{Names: names, Protocol: ident.TCP, Auto: true, Origin: s.Origin})
			}
		case s.TLS == nil:
			for _, n := range c.edgeServerNames(servers[i:i+1], nil) {
				if n.Names = free(n.Names); n.Names != nil {
					out = append(out, n)
				}
			}
		case s.Protocol.IsHTTP():
			names := free(hostsOf(s.Server))
			if names == nil {
				continue
			}
			table := "https." + suffix + "." + strings.ReplaceAll(s.Ref, "/", ".")
			if !s.Own {
				table += "." + cmp.Or(s.Name, strconv.Itoa(i))
			}
			for c.tables[table] != nil { // servers of one Gateway may share a name
				table += "+"
			}
			c.edgeHTTP(c.table(table, plan.NotFound), servers[i:i+1], servers)
			out = append(out, plan.ServerName{Names: names, TLS: c.serverTLS(s.TLS), Protocol: ident.HTTP, Routes: table, Origin: s.Origin})
		default:
			end := c.serverTLS(s.TLS)
			for _, n := range c.edgeServerNames(servers[i:i+1], end) {
				if n.Names = free(n.Names); n.Names != nil {
					out = append(out, n)
				}
			}
			if names := free(hostsOf(s.Server)); names != nil {
				if o := c.edgeTCP(servers[i : i+1]); o.decided || o.routes != nil {
					out = append(out, plan.ServerName{Names: names, TLS: end, Protocol: ident.TCP, TCP: o.forward, TCPRoutes: o.routes, Origin: o.origin})
				}
			}
		}
	}
	slices.SortStableFunc(out, func(a, b plan.ServerName) int { return ident.CompareSpecific(a.Names[0], b.Names[0]) })
	return out
}

// serverTLS returns how a server ends TLS. A secret without a namespace is in that of the proxy (Istio credentialName).
func (c *compiler) serverTLS(t *plan.ServerTLS) *plan.ServerTLS {
	out := *t
	out.Secrets = slices.Clone(out.Secrets)
	for i, name := range out.Secrets {
		out.Secrets[i] = c.secretName(name)
	}
	out.Authorities = c.secretName(out.Authorities)
	return &out
}

func (c *compiler) secretName(name string) string {
	if name == "" || strings.ContainsAny(name, "/:") {
		return name
	}
	return c.scope.Node.Name.Namespace + "/" + name
}

// edgeServerNames returns what the TLS rules of routings that are bound to servers say.
func (c *compiler) edgeServerNames(servers []model.GatewayServer, end *plan.ServerTLS) []plan.ServerName {
	var out []plan.ServerName
	for i := range c.scope.Routings {
		r := &c.scope.Routings[i]
		for j := range servers {
			s := &servers[j]
			d := &door{port: s.Port, gateways: map[string]bool{s.Ref: true}}
			if !slices.Contains(r.Gateways, s.Ref) || !d.takes(r) {
				continue
			}
			for k := range r.TLS {
				out = c.tlsRule(out, &r.TLS[k], d, func(name string) []string { return within(r, s.Server, name) })
			}
		}
	}
	for i := range out {
		out[i].TLS = end
	}
	return joinNames(out)
}

// within returns what a server name of a rule and the hosts that the routing may serve at a server have in common.
func within(r *model.Routing, s *model.Server, name string) []string {
	var out []string
	for _, h := range overlap(r, s) {
		switch both, ok := ident.HostOverlap(h, name); {
		case both == name:
			return []string{name}
		case ok:
			out = append(out, both)
		}
	}
	return out
}

// edgeTCP returns where the connections of opaque servers go: as the oldest routing that is bound to them says.
func (c *compiler) edgeTCP(servers []model.GatewayServer) opaque {
	out := opaque{origin: servers[0].Origin}
	for i := range c.scope.Routings {
		r := &c.scope.Routings[i]
		for j := range servers {
			s := &servers[j]
			d := &door{port: s.Port, gateways: map[string]bool{s.Ref: true}}
			if out.decided || !slices.Contains(r.Gateways, s.Ref) || !d.takes(r) || overlap(r, s.Server) == nil && len(r.Hosts) > 0 {
				continue
			}
			c.tcpRules(&out, r.TCP, d)
		}
	}
	return out
}

// everyCluster puts the clusters of all services into the plan that a server name may spell (Istio AUTO_PASSTHROUGH).
func (c *compiler) everyCluster(hosts []string) {
	for i := range c.scope.Services {
		s := &c.scope.Services[i]
		if !slices.ContainsFunc(hosts, func(h string) bool { return ident.HostCovers(h, s.Host) }) {
			continue
		}
		subsets := []string{""}
		if s.Policy != nil {
			for j := range s.Policy.Subsets {
				subsets = append(subsets, s.Policy.Subsets[j].Name)
			}
		}
		for j := range s.Ports {
			if s.Ports[j].Protocol == ident.UDP {
				continue
			}
			for _, subset := range subsets {
				if name, ok := c.resolve(&model.Target{Host: s.Host, Subset: subset, Port: s.Ports[j].Port, Origin: s.Origin}, s.Ports[j].Port); ok {
					c.kept[name] = true
				}
			}
		}
	}
}

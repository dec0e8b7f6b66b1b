package world

import (
	"fmt"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// routing checks what a routing refers to.
func (c *checker) routing(r *model.Routing) {
	c.boundTo(r)
	if slices.Contains(r.Gateways, model.Mesh) {
		for _, h := range r.Hosts {
			if _, ok := c.Service(h); !ok && c.meantAsService(h) {
				c.warn(CodeUnknownHost, r.Origin, c.suggest(h), "host %s is no Service: sidecars apply these rules to requests for that very name, on port 80", h)
			}
		}
	}
	c.opaqueRules(r)
	doors := c.doorPorts(r)
	for i := range r.HTTP {
		rule := &r.HTTP[i]
		c.targets(rule.Forward, place(rule.Origin, r.Origin), doors)
		c.mirrors(rule.Mirrors, place(rule.Origin, r.Origin), doors)
		for _, name := range rule.Limits {
			if _, ok := c.RateLimit(name); !ok {
				c.warn(CodeNoLimit, place(rule.Origin, r.Origin), "create it, or remove the reference", "rate limit %s does not exist: requests of this rule are answered with 503", name)
			}
		}
	}
	for i := range r.TLS {
		c.targets(r.TLS[i].Forward, place(r.TLS[i].Origin, r.Origin), doors)
	}
	for i := range r.TCP {
		c.targets(r.TCP[i].Forward, place(r.TCP[i].Origin, r.Origin), doors)
	}
}

func (c *checker) mirrors(all []model.MirrorDestination, at ident.Origin, doors []int) {
	for i := range all {
		c.target(&all[i].Target, at, doors)
	}
}

// targets checks the destinations of one rule. One that is answered with a status was found wrong before.
func (c *checker) targets(all []model.WeightedDestination, at ident.Origin, doors []int) {
	for i := range all {
		if all[i].Status == 0 {
			c.target(&all[i].Target, at, doors)
		}
	}
}

// opaqueRules checks that sidecars can ask the rules about connections: they know those for services, by name and by address, while
// one to any other host is passed on unread.
func (c *checker) opaqueRules(r *model.Routing) {
	if len(r.TLS)+len(r.TCP) == 0 || !slices.Contains(r.Gateways, model.Mesh) {
		return
	}
	var at ident.Origin
	if len(r.TLS) > 0 {
		at = place(r.TLS[0].Origin, r.Origin)
	} else {
		at = place(r.TCP[0].Origin, r.Origin)
	}
	for _, h := range r.Hosts {
		if !slices.ContainsFunc(c.services, func(s *model.Service) bool { return s.Host == h || ident.HostCovers(h, s.Host) }) {
			c.warn(CodeUnknownHost, at, "add a ServiceEntry for it, with a port of protocol TLS or TCP",
				"host %s is no Service and no ServiceEntry: sidecars ask the tls and tcp rules for connections to services only", h)
		}
	}
}

// meantAsService reports whether a host that is no Service reads as one: it stands in the cluster's domain, or it is a
// name and a namespace that exist, which the mesh, as Istio, does not complete ("a.b" is not "a.b.svc.cluster.local").
func (c *checker) meantAsService(host string) bool {
	if strings.HasPrefix(host, "*") {
		return false
	}
	parts := strings.SplitN(strings.TrimSuffix(host, ".svc"), ".", 3)
	if len(parts) == 2 {
		_, ok := c.Service(ident.ServiceHost(ident.Name{Namespace: parts[1], Name: parts[0]}))
		return ok || strings.HasSuffix(host, ".svc")
	}
	return strings.HasSuffix(host, ".svc."+ident.ClusterDomain)
}

// doorPorts returns the ports at which requests for a routing can enter.
func (c *checker) doorPorts(r *model.Routing) []int {
	var ports []int
	for _, g := range r.Gateways {
		if g == model.Mesh {
			for _, h := range r.Hosts {
				if s, ok := c.Service(h); ok {
					ports = append(ports, carried(s)...)
				}
			}
			continue
		}
		if door := c.doorNamed(g); door != nil {
			for i := range door.Servers {
				ports = append(ports, door.Servers[i].Port)
			}
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// target checks that a destination exists. doors are the ports at which requests enter.
func (c *checker) target(t *model.Target, at ident.Origin, doors []int) {
	at = place(t.Origin, at)
	s, ok := c.Service(t.Host)
	if !ok {
		c.add(model.Error, model.CodeNoHost, at, c.suggest(t.Host), "destination host %s does not exist", t.Host)
		return
	}
	for range maxAliases {
		if next, ok := c.Service(s.Alias); ok {
			s = next
		}
	}
	c.targetPort(t, s, at, doors)
	if t.Subset == "" {
		return
	}
	var defined []string
	for _, p := range c.policiesFor(t.Host) {
		for j := range p.Subsets {
			if p.Subsets[j].Name == t.Subset {
				return
			}
			defined = append(defined, p.Subsets[j].Name)
		}
	}
	hint := "add a DestinationRule for the host, with the subset and its labels"
	if near := ident.Nearest(t.Subset, defined); near != "" {
		hint = "did you mean " + near + "?"
	} else if len(defined) > 0 {
		slices.Sort(defined)
		hint = "defined are " + strings.Join(slices.Compact(defined), ", ")
	}
	c.add(model.Error, model.CodeNoSubset, at, hint, "no DestinationRule defines subset %s of %s", t.Subset, t.Host)
}

// maxAliases is how many ExternalNames in a row are followed.
const maxAliases = 8

// policiesFor returns the destination policies of all namespaces that cover a host.
func (c *checker) policiesFor(host string) []*model.DestinationPolicy {
	if c.exact == nil {
		c.exact = map[string][]*model.DestinationPolicy{}
		for i := range c.config.Traffic {
			p := &c.config.Traffic[i]
			if strings.HasPrefix(p.Host, "*") {
				c.wide = append(c.wide, p)
			} else {
				c.exact[p.Host] = append(c.exact[p.Host], p)
			}
		}
	}
	out := slices.Clip(c.exact[host])
	for _, p := range c.wide {
		if ident.HostCovers(p.Host, host) {
			out = append(out, p)
		}
	}
	return out
}

func (c *checker) targetPort(t *model.Target, s *model.Service, at ident.Origin, doors []int) {
	var numbers []int
	for i := range s.Ports {
		if s.Ports[i].Protocol != ident.UDP {
			numbers = append(numbers, s.Ports[i].Port)
		}
	}
	slices.Sort(numbers)
	switch {
	case t.Port != 0 && !slices.Contains(numbers, t.Port):
		c.add(model.Error, model.CodeNoPort, at, "its ports are "+list(numbers), "service %s has no port %d", t.Host, t.Port)
	case t.Port == 0 && len(numbers) > 1:
		for _, d := range doors {
			if !slices.Contains(numbers, d) {
				c.warn(model.CodeAmbiguousPort, at, "add port.number, one of "+list(numbers),
					"the destination names no port, and %s has several: requests that enter at port %d are answered with 503", t.Host, d)
				return
			}
		}
	}
}

func list(numbers []int) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(numbers), " ", ", "), "[]")
}

func (c *checker) doorNamed(name string) *model.Gateway {
	for _, g := range c.World.doors {
		if g.Name.String() == name || g.Own && strings.HasPrefix(name, g.Name.String()+"/") {
			return g
		}
	}
	return nil
}

// boundTo checks the Gateways of a routing: that they exist, and that each host may enter at one of them.
func (c *checker) boundTo(r *model.Routing) {
	var doors []*model.Gateway
	mesh := false
	for _, g := range r.Gateways {
		if g == model.Mesh {
			mesh = true
			continue
		}
		door := c.doorNamed(g)
		if door == nil {
			names := make([]string, len(c.World.doors))
			for i, d := range c.World.doors {
				names[i] = d.Name.String()
			}
			c.warn(CodeNoGateway, r.Origin, didYouMean(ident.Nearest(g, names)), "Gateway %s does not exist: the rules are in force at no gateway of that name", g)
			continue
		}
		doors = append(doors, door)
	}
	if mesh || len(doors) == 0 {
		return
	}
	for _, h := range r.Hosts {
		if !slices.ContainsFunc(doors, func(g *model.Gateway) bool { return takes(g, r.Name.Namespace, h) }) {
			c.warn(CodeHostOutside, r.Origin, "add the host to the Gateway's servers[].hosts, or correct it",
				"no server of Gateway %s takes host %s of a %s in namespace %s: it cannot be reached there", doors[0].Name, h, kindOf(r.Origin, "VirtualService"), r.Name.Namespace)
		}
	}
}

// takes reports whether a server of g takes a host for routings of a namespace.
func takes(g *model.Gateway, namespace, host string) bool {
	for i := range g.Servers {
		for _, rule := range g.Servers[i].Hosts {
			ns, h, ok := strings.Cut(rule, "/")
			if !ok {
				ns, h = "*", rule
			}
			if _, both := ident.HostOverlap(h, host); both && (ns == "*" || ns == namespace) {
				return true
			}
		}
	}
	return false
}

// sameHosts warns of routings for one host: on sidecars the oldest wins whole.
func (c *checker) sameHosts() {
	first := map[string]*model.Routing{}
	for _, r := range c.Routings() { // oldest first
		if !slices.Contains(r.Gateways, model.Mesh) {
			continue
		}
		if r.Precedence {
			continue // they merge, and come before the others
		}
		for _, h := range r.Hosts {
			have := first[h]
			switch {
			case have == nil:
				first[h] = r
			case meetSomewhere(have, r):
				c.warn(CodeSameHost, r.Origin, "merge the two: sidecars do not",
					"VirtualService %s has rules for %s already, and comes first: these are not in force on sidecars", have.Name, h)
			}
		}
	}
}

// meetSomewhere reports whether some namespace sees both, with rules of the same kind.
func meetSomewhere(a, b *model.Routing) bool {
	kind := len(a.HTTP) > 0 && len(b.HTTP) > 0 || len(a.TCP) > 0 && len(b.TCP) > 0
	if slices.Contains(a.ExportTo, "*") || slices.Contains(b.ExportTo, "*") {
		return kind
	}
	return kind && slices.ContainsFunc(a.ExportTo, func(ns string) bool { return slices.Contains(b.ExportTo, ns) })
}

func (c *checker) door(g *model.Gateway) {
	if len(c.gateways) == 0 || g.Own {
		return // what runs is not known, or nothing had to: a Gateway of another mesh's workloads is nobody's fault
	}
	if !slices.ContainsFunc(c.gateways, func(i *model.GatewayInstance) bool { return Serves(i, g) }) {
		hint := "run a gateway with these labels"
		if i := slices.IndexFunc(c.gateways, func(i *model.GatewayInstance) bool { return i.For.IsZero() }); i >= 0 {
			hint = fmt.Sprintf("the gateway %s has the labels %s", c.gateways[i].Name, labelText(c.gateways[i].Labels))
		}
		c.warn(CodeIdleGateway, g.Origin, hint, "the Gateway selects no gateway workload (%s): nothing listens for it", labelText(g.Selector))
	}
}

// opens says what a server makes of connections: those of one port must agree, since the first bytes decide.
func opens(s *model.Server) string {
	switch {
	case s.TLS != nil || s.Auto || s.Protocol == ident.TLS:
		return "TLS"
	case s.Protocol.IsHTTP():
		return "HTTP"
	}
	return "TCP"
}

// servers warns of servers that share a port of a gateway: where they differ in kind the oldest one's is in force, and of
// two that end TLS for one host, too. It looks for their secrets.
func (c *checker) servers() {
	type name struct {
		instance *model.GatewayInstance
		bind     string
		port     int
		host     string
	}
	hosts := map[name]*model.Server{}
	c.eachServer(func(instance *model.GatewayInstance, s, first asksFor) {
		c.serverSecrets(instance, s.gateway, s.Server)
		switch {
		case first == s:
		case opens(first.Server) != opens(s.Server):
			c.warn(CodePortConflict, place(s.Origin, s.gateway.Origin), "use another port",
				"port %d is a %s port already (%s): this server is not opened", s.Port, opens(first.Server), first.Origin)
			return
		case first.gateway.TrustedHops != s.gateway.TrustedHops || first.gateway.ProxyProtocol != s.gateway.ProxyProtocol:
			c.warn(CodePortConflict, place(s.Origin, s.gateway.Origin), "write the same in both, or use another port",
				"port %d is also one of %s %s, which trusts %s: that counts for the whole port, and not what this one says",
				s.Port, kindOf(first.gateway.Origin, "Gateway"), first.gateway.Name, trusts(first.gateway))
		}
		if opens(s.Server) != "TLS" {
			return
		}
		for _, rule := range s.Hosts {
			_, host, ok := strings.Cut(rule, "/")
			if !ok {
				host = rule
			}
			at := name{instance, s.Bind, s.Port, host}
			switch have := hosts[at]; {
			case have == nil:
				hosts[at] = s.Server
			case have != s.Server:
				c.warn(CodeServerTwice, place(s.Origin, s.gateway.Origin), "merge the two servers, or give each its own hosts",
					"port %d has a TLS server for host %s already (%s): this one is not asked for it", s.Port, host, have.Origin)
			}
		}
	})
}

// asksFor is a server, and the Gateway that asks for it.
type asksFor struct {
	*model.Server
	gateway *model.Gateway
}

// eachServer visits the servers that each gateway is asked to open, with the one that came first on their port: it decides what
// the port is.
func (c *checker) eachServer(visit func(instance *model.GatewayInstance, s, first asksFor)) {
	type door struct {
		bind string
		port int
	}
	for _, instance := range c.gateways {
		first := map[door]asksFor{}
		for _, g := range c.World.doors {
			if !Serves(instance, g) {
				continue
			}
			for i := range g.Servers {
				s := asksFor{&g.Servers[i], g}
				if s.Broken != "" {
					continue // said where it is broken
				}
				at := door{s.Bind, s.Port}
				if first[at].Server == nil {
					first[at] = s
				}
				visit(instance, s, first[at])
			}
		}
	}
}

// opened returns the servers that some gateway opens. Why others are not, Check says.
func (c *checker) opened() map[*model.Server]bool {
	out := map[*model.Server]bool{}
	c.eachServer(func(instance *model.GatewayInstance, s, first asksFor) {
		secrets := checker{World: c.World}
		secrets.serverSecrets(instance, s.gateway, s.Server)
		if opens(first.Server) == opens(s.Server) && len(secrets.found) == 0 {
			out[s.Server] = true
		}
	})
	return out
}

// trusts says whom a gateway believes about the addresses of clients.
func trusts(g *model.Gateway) string {
	out := fmt.Sprintf("%d proxies in front of it", g.TrustedHops)
	if g.ProxyProtocol {
		out += " and a PROXY protocol header"
	}
	return out
}

// serverSecrets checks that a gateway has what a server ends TLS with.
func (c *checker) serverSecrets(g *model.GatewayInstance, door *model.Gateway, s *model.Server) {
	if s.TLS == nil {
		return
	}
	at := place(s.Origin, door.Origin)
	for _, name := range s.TLS.Secrets {
		c.secret(name, g.Name.Namespace, door.Own || strings.HasPrefix(name, door.Name.Namespace+"/"), at, "the server can't end TLS with it", hasCertificate)
	}
	if s.TLS.Authorities != "" {
		c.secret(s.TLS.Authorities, g.Name.Namespace, true, at, "no client's certificate can be verified", hasAuthorities)
	}
}

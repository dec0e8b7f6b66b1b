package world

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// alias checks what an ExternalName stands for.
func (c *checker) alias(s *model.Service) {
	seen := map[string]bool{s.Host: true}
	for at := s; ; {
		next, ok := c.Service(at.Alias)
		if !ok || next.Alias == "" {
			return
		}
		if seen[next.Host] {
			c.warn(CodeAlias, s.Origin, "name the host that is meant in the end", "the Service stands for %s, which comes back to where it was: requests to it are answered with 503", s.Alias)
			return
		}
		seen[next.Host] = true
		at = next
	}
}

// addresses checks what clients may call a service by.
func (c *checker) addresses(s *model.Service) {
	for _, a := range s.Addresses {
		if p, err := netip.ParsePrefix(a); err == nil && !p.IsSingleIP() {
			if slices.ContainsFunc(s.Ports, func(p model.ServicePort) bool { return p.Protocol.IsHTTP() }) {
				c.warn(CodeAddressRange, s.Origin, "name the addresses one by one, or let clients use the host",
					"addresses %s is a range, by which connections are told apart and HTTP requests are not: those to an address in it are for nobody that the mesh knows", a)
			}
			continue
		}
		for _, o := range c.byAddress()[a] {
			if o != s && o.Host < s.Host && slices.ContainsFunc(o.Ports, func(p model.ServicePort) bool {
				return slices.ContainsFunc(s.Ports, func(q model.ServicePort) bool { return p.Port == q.Port })
			}) {
				c.warn(CodeAddressRange, s.Origin, "give each its own address", "address %s is that of %s too, on the same port: it means that one", a, o.Host)
			}
		}
	}
}

func (c *checker) byAddress() map[string][]*model.Service {
	if c.addressed == nil {
		c.addressed = map[string][]*model.Service{}
		for _, s := range c.services {
			for _, a := range s.Addresses {
				c.addressed[a] = append(c.addressed[a], s)
			}
		}
	}
	return c.addressed
}

// endpoints checks endpoints that were written down.
func (c *checker) endpoints() {
	for _, s := range c.services {
		for i := range s.Endpoints {
			c.endpoint(s, &s.Endpoints[i], place(s.Endpoints[i].Origin, s.Origin))
		}
	}
	for i := range c.config.Endpoints {
		g := &c.config.Endpoints[i]
		services := c.servicesOf(g)
		if len(services) == 0 {
			if g.Host != "" {
				c.warn(CodeEndpoint, g.Origin, c.suggest(g.Host), "its Service %s does not exist: nobody uses these endpoints", g.Host)
			} else {
				c.add(model.Info, CodeEndpoint, g.Origin, "compare its labels with spec.workloadSelector of the ServiceEntries, and spec.selector of the Services",
					"no service of namespace %s selects it (%s): nobody uses it", g.Name.Namespace, labelText(g.Labels))
			}
			continue
		}
		for j := range g.Endpoints {
			for _, s := range services {
				c.endpoint(s, &g.Endpoints[j], place(g.Endpoints[j].Origin, g.Origin))
			}
		}
	}
}

func (c *checker) endpoint(s *model.Service, e *model.ServiceEndpoint, at ident.Origin) {
	if !reachable(s, e.Address) && s.Resolution != model.ByRequest {
		if strings.HasPrefix(e.Address, plan.UnixPrefix) {
			c.warn(CodeEndpoint, at, "use resolution: STATIC", "%s is no name, and %s resolves names: the endpoint is not used", e.Address, s.Host)
		} else {
			c.warn(CodeEndpoint, at, "write an IP address, or use resolution: DNS", "%s is a name, and %s does not resolve names: the endpoint is not used", e.Address, s.Host)
		}
		return
	}
	if !slices.ContainsFunc(s.Ports, func(p model.ServicePort) bool { return p.Protocol != ident.UDP }) {
		return
	}
	if writtenMember(s, &written{ServiceEndpoint: &model.ServiceEndpoint{Address: "192.0.2.1", Ports: e.Ports}, named: s.Resolution == model.BySelector && len(e.Ports) > 0}, map[string]bool{}) == nil {
		c.warn(CodeNoTargetPort, at, "name its ports as the Service does", "the endpoint %s serves none of the ports of %s", e.Address, s.Host)
	}
}

// sidecars checks Sidecar policies, proxies' settings and rate limits.
func (c *checker) sidecars() {
	type key struct{ namespace, selector string }
	first := map[key]*model.SidecarPolicy{}
	for _, p := range oldestFirst(c.config.Sidecars, func(p *model.SidecarPolicy) *model.Meta { return &p.Meta }) {
		k := key{p.Name.Namespace, labelText(p.Selector)}
		if have := first[k]; have != nil {
			c.warn(CodeTwice, p.Origin, "merge the two: Sidecars do not", "Sidecar %s is for the same workloads, and older: this one has no effect", have.Name)
			continue
		}
		first[k] = p
		if len(p.Selector) > 0 && len(c.World.selected(p.Name.Namespace, p.Selector)) == 0 {
			c.selectsNone(p.Origin, p.Name.Namespace, p.Selector)
		}
		for i := range p.Ingress {
			c.ingress(p, &p.Ingress[i])
		}
		for i := range p.Egress {
			c.egressHosts(p, &p.Egress[i])
		}
	}
	for i := range c.config.Proxies {
		p := &c.config.Proxies[i]
		if len(p.Selector) > 0 && !c.guards(p.Name.Namespace, p.Selector) {
			c.selectsNone(p.Origin, p.Name.Namespace, p.Selector)
		}
	}
	alone := map[key]*model.RateLimit{}
	for _, l := range oldestFirst(c.config.RateLimits, func(l *model.RateLimit) *model.Meta { return &l.Meta }) {
		if l.ByRoute {
			continue
		}
		selected := c.workloadsIn(l.Name.Namespace)
		if len(l.Selector) > 0 {
			selected = c.World.selected(l.Name.Namespace, l.Selector)
		}
		if len(selected) == 0 {
			c.selectsNone(l.Origin, l.Name.Namespace, l.Selector)
			continue
		}
		if (l.Port != 0 || l.PortName != "") && !slices.ContainsFunc(selected, func(wl *model.Workload) bool {
			return l.Port != 0 && mayHave(wl, l.Port) || slices.ContainsFunc(wl.Ports, func(p model.WorkloadPort) bool { return limitsPort(l, wl, p.Port) })
		}) {
			c.warn(CodeSelectsNone, l.Origin, "name a port of the workloads, not of their Service", "no selected workload has the port: the limit has no effect")
		}
		if !l.Alone {
			continue
		}
		k := key{l.Name.Namespace, labelText(l.Selector) + "|" + l.PortName + "|" + strconv.Itoa(l.Port)}
		if have := alone[k]; have != nil {
			c.warn(CodeTwice, l.Origin, "keep one", "%s %s limits the same port, and is older: this one has no effect", kindOf(have.Origin, "rate limit"), have.Name)
			continue
		}
		alone[k] = l
	}
}

// mayHave reports whether a workload has a port, as far as it says which it has.
func mayHave(wl *model.Workload, port int) bool {
	return wl.AnyPort || slices.ContainsFunc(wl.Ports, func(p model.WorkloadPort) bool { return p.Port == port })
}

// ingress checks that the sidecar can offer a port.
func (c *checker) ingress(p *model.SidecarPolicy, in *model.IngressPort) {
	at := place(in.Origin, p.Origin)
	selected := c.workloadsIn(p.Name.Namespace)
	if len(p.Selector) > 0 {
		selected = c.World.selected(p.Name.Namespace, p.Selector)
	}
	if in.App == "" && len(selected) > 0 && !slices.ContainsFunc(selected, func(wl *model.Workload) bool { return mayHave(wl, in.Port) }) {
		c.warn(CodeIngress, at, "add defaultEndpoint, or the port under spec.ports of the Workload", "no selected workload has port %d: it is not opened", in.Port)
	}
	if in.TLS == nil {
		return
	}
	strict, checked := false, map[string]bool{}
	for _, wl := range selected {
		if mode, by := c.World.tlsMode(wl.Name.Namespace, wl.Labels, in.Port); mode == plan.TLSStrict && !strict {
			strict = true
			c.warn(CodeIngress, at, fmt.Sprintf("set portLevelMtls: {%d: {mode: DISABLE}} in a PeerAuthentication that selects the workloads", in.Port),
				"%s asks for mesh TLS on port %d: the port's own tls is not in force", kindOf(by, "the mesh"), in.Port)
		}
		if ns := wl.Name.Namespace; !checked[ns] {
			checked[ns] = true
			for _, name := range in.TLS.Secrets {
				c.secret(name, ns, false, at, "the port can't end TLS with it", hasCertificate)
			}
			if in.TLS.Authorities != "" {
				c.secret(in.TLS.Authorities, ns, false, at, "no client's certificate can be verified", hasAuthorities)
			}
		}
	}
}

// egressHosts checks that an egress listener shows something.
func (c *checker) egressHosts(p *model.SidecarPolicy, e *model.EgressView) {
	for _, rule := range e.Hosts {
		namespace, host, ok := strings.Cut(rule, "/")
		if !ok || strings.HasPrefix(namespace, "~") || host == "*" && (namespace == "*" || namespace == ident.RootNamespace) {
			continue // every example of Istio shows its own namespace, which here is mostly empty
		}
		shows := func(s *model.Service) bool {
			return (namespace == "*" || namespace == s.Name.Namespace) && (host == s.Host || ident.HostCovers(host, s.Host)) && VisibleIn(s.ExportTo, p.Name.Namespace)
		}
		var some bool
		if strings.HasPrefix(host, "*") {
			some = slices.ContainsFunc(c.services, shows) || slices.ContainsFunc(c.RoutingsIn(namespace), func(r *model.Routing) bool { return len(r.Hosts) > 0 })
		} else {
			some = slices.ContainsFunc(c.ServicesOf(host), shows) || len(c.RoutingsOf(host)) > 0
		}
		if !some {
			c.warn(CodeSelectsNone, place(e.Origin, p.Origin), "hosts are NAMESPACE/HOST, with the complete name of the host; "+c.suggest(host), "egress host %s shows nothing", rule)
		}
	}
}

// references checks the secrets that policies of destinations name.
func (c *checker) references() {
	for i := range c.config.Traffic {
		p := &c.config.Traffic[i]
		c.policySecrets(p, p.Traffic, p.Origin)
		for j := range p.Subsets {
			c.policySecrets(p, p.Subsets[j].Traffic, place(p.Subsets[j].Origin, p.Origin))
		}
	}
	for _, s := range c.services {
		for i := range s.Ports {
			if t := s.Ports[i].Originate; t != nil && t.Authorities != "" {
				c.secret(t.Authorities, s.Name.Namespace, true, place(s.Ports[i].Origin, s.Origin), "connections to the port fail", hasAuthorities)
			}
		}
	}
}

func (c *checker) policySecrets(p *model.DestinationPolicy, t *model.TrafficPolicy, at ident.Origin) {
	if t == nil {
		return
	}
	check := func(o *plan.ClientTLS) {
		if o == nil {
			return
		}
		// Without a namespace it is of each client's: known to be missing is one that no namespace has.
		if o.Secret != "" {
			c.clientSecret(o.Secret, p.Name.Namespace, at, hasCertificate)
		}
		if o.Authorities != "" && o.Authorities != o.Secret {
			c.clientSecret(o.Authorities, p.Name.Namespace, at, hasAuthorities)
		}
	}
	check(t.Originate)
	for i := range t.Ports {
		check(t.Ports[i].Traffic.Originate)
	}
}

func (c *checker) clientSecret(name, namespace string, at ident.Origin, part func(*model.Secret) string) {
	if !strings.ContainsAny(name, "/:") && slices.ContainsFunc(c.config.Secrets, func(s model.Secret) bool {
		return strings.HasSuffix(s.Secret.Name, "/"+name)
	}) {
		if _, ok := c.Secret(model.SecretName(name, namespace)); !ok {
			return // in another namespace: for the clients there
		}
	}
	c.secret(name, namespace, true, at, "connections to the host fail", part)
}

// secret checks that a proxy in a namespace may have a secret, and that it has the part that is needed.
func (c *checker) secret(name, namespace string, anywhere bool, at ident.Origin, effect string, part func(*model.Secret) string) {
	name = model.SecretName(name, namespace)
	s, ok := c.Secret(name)
	if !ok && strings.HasPrefix(name, "file:") {
		return // who read the files said why there is none
	}
	if !ok || !anywhere && !strings.HasPrefix(name, namespace+"/") && !strings.HasPrefix(name, "file:") {
		var names []string
		for i := range c.config.Secrets {
			names = append(names, c.config.Secrets[i].Secret.Name)
		}
		hint := "create it in namespace " + namespace
		if near := ident.Nearest(name, names); near != "" && !ok {
			hint = didYouMean(near)
		}
		c.warn(model.CodeNoSecret, at, hint, "Secret %s does not exist for proxies in namespace %s: %s", name, namespace, effect)
		return
	}
	if missing := part(s); missing != "" {
		c.warn(CodeSecretPart, at, "add it to the Secret ("+place(s.Meta.Origin).String()+")", "Secret %s has no %s: %s", name, missing, effect)
	}
}

func hasCertificate(s *model.Secret) string {
	if len(s.Certificate) == 0 || len(s.Key) == 0 {
		return "certificate with its key (tls.crt, tls.key)"
	}
	return ""
}

func hasAuthorities(s *model.Secret) string {
	if len(s.Authorities) == 0 {
		return "certificates of authorities (ca.crt)"
	}
	return ""
}

// egress checks EgressNetworks.
func (c *checker) egress() {
	type key struct{ namespace, network string }
	first := map[key]*model.Egress{}
	for _, e := range c.outside {
		networks, what := e.Networks, "network "
		if len(networks) == 0 {
			networks, what = []string{"all others"}, ""
		}
		for _, n := range networks {
			k := key{e.Name.Namespace, n}
			if have := first[k]; have != nil {
				c.warn(CodeTwice, e.Origin, "merge the two", "EgressNetwork %s says what happens to %s%s, and is older: this one has no effect there", have.Name, what, n)
				continue
			}
			first[k] = e
		}
	}
}

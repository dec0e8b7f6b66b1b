package world

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Codes of what can be wrong between objects, besides those of model. docs/diagnostics.md explains each.
const (
	CodeEmptySubset    = "MALHA0805" // a subset whose labels select no workload
	CodeRuleNoHost     = "MALHA0806" // a DestinationRule for an unknown host
	CodeNoGateway      = "MALHA0807" // a reference to a Gateway that does not exist
	CodeHostOutside    = "MALHA0808" // a host that none of the Gateway's servers takes
	CodeIdleGateway    = "MALHA0809" // a Gateway that selects no gateway workload
	CodeSameHost       = "MALHA0810" // several VirtualServices for one host
	CodeSplitNoService = "MALHA0811" // a TrafficSplit whose service does not exist in its namespace
	CodeProfileNoHost  = "MALHA0812" // a ServiceProfile for an unknown service
	CodeShadowed       = "MALHA0813" // a TrafficSplit or ServiceProfile behind a VirtualService
	CodeNoWorkload     = "MALHA0814" // a Service that selects no workload
	CodeNoTargetPort   = "MALHA0815" // a targetPort that no workload has
	CodePolicyIdle     = "MALHA0816" // a policy that selects nothing
	CodeBackendPort    = "MALHA0817" // a split's backend without a port of its root
	CodePortConflict   = "MALHA0818" // servers of one port that differ in protocol
	CodeUnknownHost    = "MALHA0819" // a VirtualService for a host that looks like a Service and is none
	CodeSameName       = "MALHA0820" // a workload with the name of a gateway
	CodeSplitTwice     = "MALHA0821" // several TrafficSplits, or ServiceProfiles, for one service
	CodeTwice          = "MALHA0822" // several Sidecars, EgressNetworks or rate limits where one counts
	CodeSelectsNone    = "MALHA0823" // a Sidecar, rate limit or the like that selects nothing
	CodeIngress        = "MALHA0824" // an ingress listener of a Sidecar that can't be served
	CodeServerTwice    = "MALHA0825" // servers of one port with TLS for the same host
	CodeAlias          = "MALHA0826" // an ExternalName that stands for itself, or leads nowhere
	CodeEndpoint       = "MALHA0827" // endpoints that nobody can reach, or that belong to nothing
	CodeAddressRange   = "MALHA0828" // addresses of a service that clients of a proxy cannot be told apart by
	CodePortOfNone     = "MALHA0829" // a rule or setting for a port that nothing of its host has
	CodeNoDelegate     = "MALHA0860" // a delegate that does not exist, is none, or is not exported to who refers to it
	CodeIdleDelegate   = "MALHA0863" // a delegate that nobody refers to
	CodeNoLimit        = "MALHA0871" // a rate limit that does not exist
	CodeSecretPart     = "MALHA0872" // a Secret that has not what a rule needs of it
)

// Check returns what is wrong between the objects of w, ordered by place. A route to a host, subset or port that does
// not exist is an Error: its requests could only fail. The rest are warnings: the mesh works, though perhaps not as meant.
func Check(w *World) []model.Diagnostic {
	c := &checker{World: w}
	for _, s := range w.services {
		c.service(s)
	}
	c.workloads()
	for _, r := range w.Routings() {
		_, ds := model.WithDelegates(r, w.Delegate)
		c.found = append(c.found, ds...)
		c.delegates(r)
		c.routing(r)
		c.matchedPorts(r)
	}
	c.sameHosts()
	for i := range w.config.Traffic {
		c.traffic(&w.config.Traffic[i])
	}
	for _, g := range w.doors {
		c.door(g)
	}
	c.servers()
	for i := range w.config.Splits {
		c.split(&w.config.Splits[i])
	}
	for i := range w.config.Profiles {
		c.profile(&w.config.Profiles[i])
	}
	c.policies()
	c.sidecars()
	c.endpoints()
	c.references()
	c.egress()
	return c.sorted()
}

// sorted returns what was found by place, each once.
func (c *checker) sorted() []model.Diagnostic {
	slices.SortStableFunc(c.found, func(a, b model.Diagnostic) int {
		return cmp.Or(cmp.Compare(a.Origin.File, b.Origin.File), cmp.Compare(a.Origin.Line, b.Origin.Line),
			cmp.Compare(a.Origin.String(), b.Origin.String()), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Message, b.Message))
	})
	return slices.Compact(c.found)
}

type checker struct {
	*World
	found     []model.Diagnostic
	addressed map[string][]*model.Service           // by address; see byAddress
	exact     map[string][]*model.DestinationPolicy // by host; see policiesFor
	wide      []*model.DestinationPolicy
	referring map[ident.Name][]*model.Routing // by delegate; see referrers
}

func (c *checker) add(severity model.Severity, code string, at ident.Origin, hint, format string, args ...any) {
	c.found = append(c.found, model.Diagnostic{
		Code: code, Severity: severity, Origin: at, Message: fmt.Sprintf(format, args...), Hint: hint,
	})
}

func (c *checker) warn(code string, at ident.Origin, hint, format string, args ...any) {
	c.add(model.Warning, code, at, hint, format, args...)
}

// place returns the first origin that says something.
func place(origins ...ident.Origin) ident.Origin {
	for _, o := range origins {
		if !o.IsZero() {
			return o
		}
	}
	return ident.Origin{}
}

// selected returns the workloads of a service, placed or not.
func (c *checker) selected(s *model.Service) []*model.Workload {
	return c.World.selected(s.Name.Namespace, s.Selector)
}

// labelled returns the labels of everything that may be a member of a service, ready or not.
func (c *checker) labelled(s *model.Service) []map[string]string {
	var out []map[string]string
	for _, wl := range c.selected(s) {
		out = append(out, wl.Labels)
	}
	for _, e := range c.writtenFor(s) {
		out = append(out, e.labels)
	}
	return out
}

func (c *checker) service(s *model.Service) {
	c.addresses(s)
	switch {
	case s.Alias != "":
		c.alias(s)
		return
	case s.Resolution == model.ByRequest, s.Resolution != model.BySelector && len(s.Selector) == 0:
		return // it leads where its own endpoints or its name do
	case len(c.writtenFor(s)) > 0:
		return
	}
	if len(s.Selector) == 0 {
		c.warn(CodeNoWorkload, s.Origin, "add spec.selector, or endpoints (EndpointSlice)", "the Service has no selector and no endpoints: it leads nowhere")
		return
	}
	selected := c.selected(s)
	if len(selected) == 0 {
		c.warn(CodeNoWorkload, s.Origin, "compare the selector with the labels of the Workloads in namespace "+s.Name.Namespace,
			"the %s selects no workload (%s): requests to it are answered with 503", kindOf(s.Origin, "Service"), labelText(s.Selector))
		return
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.Protocol == ident.UDP {
			continue
		}
		has := slices.ContainsFunc(selected, func(wl *model.Workload) bool { _, ok := c.leadsTo(p, wl); return ok })
		if !has {
			target := p.TargetName
			if target == "" {
				target = fmt.Sprint(p.Target)
			}
			c.warn(CodeNoTargetPort, place(p.Origin, s.Origin), "correct targetPort, or add the port under spec.ports of the Workload",
				"port %d leads to targetPort %s, which no selected workload has", p.Port, target)
		}
	}
}

// objectOf names the object that rules come from: one that becomes several routings gives each a name of its own.
func objectOf(r *model.Routing) string {
	if r.Origin.Name == "" {
		return kindOf(r.Origin, "VirtualService") + " " + r.Name.String()
	}
	return r.Origin.Kind + " " + r.Origin.Namespace + "/" + r.Origin.Name
}

// kindOf returns the kind of the object that something came from.
func kindOf(o ident.Origin, otherwise string) string {
	if o.Kind != "" {
		return o.Kind
	}
	return otherwise
}

func (c *checker) workloads() {
	for _, wl := range c.World.workloads.all {
		if _, ok := c.Gateway(wl.Name); ok {
			c.add(model.Error, CodeSameName, wl.Origin, "rename the workload", "a gateway has the name %s already", wl.Name)
		}
	}
}

func (c *checker) traffic(p *model.DestinationPolicy) {
	s, ok := c.Service(p.Host)
	switch {
	case ok:
		c.subsets(p, s)
	case !strings.HasPrefix(p.Host, "*"), !slices.ContainsFunc(c.services, func(s *model.Service) bool { return ident.HostCovers(p.Host, s.Host) }):
		c.warn(CodeRuleNoHost, p.Origin, c.suggest(p.Host), "host %s is no Service: the rule has no effect", p.Host)
	}
	c.policyPorts(p)
	if len(p.Workloads) > 0 && !c.guards(p.Name.Namespace, p.Workloads) {
		c.selectsNone(p.Origin, p.Name.Namespace, p.Workloads)
	}
}

// subsets checks that the subsets of a rule for one service select something of it. Of a wildcard, they mean something else
// for each service.
func (c *checker) subsets(p *model.DestinationPolicy, s *model.Service) {
	labels := c.labelled(s)
	if len(labels) == 0 {
		return // said at the Service
	}
	for i := range p.Subsets {
		sub := &p.Subsets[i]
		if !slices.ContainsFunc(labels, func(have map[string]string) bool { return model.HasLabels(have, sub.Labels) }) {
			c.warn(CodeEmptySubset, place(sub.Origin, p.Origin), "compare its labels with those of the Workloads",
				"subset %s selects no workload of %s (%s): requests to it are answered with 503", sub.Name, s.Host, labelText(sub.Labels))
		}
	}
}

// selectsNone tells of a selector that is for nobody.
func (c *checker) selectsNone(at ident.Origin, namespace string, selector map[string]string) {
	c.warn(CodeSelectsNone, at, "compare the selector with the labels of the Workloads",
		"the %s selects no workload in namespace %s (%s): it has no effect", kindOf(at, "rule"), namespace, labelText(selector))
}

func (c *checker) split(s *model.Split) {
	root, ok := c.Service(s.Host)
	if !ok || root.Name.Namespace != s.Name.Namespace {
		c.warn(CodeSplitNoService, s.Origin, c.suggest(s.Host),
			"service %s does not exist in namespace %s: the split has no effect", s.Host, s.Name.Namespace)
		return
	}
	if first := c.splits[s.Host]; first != nil && first.Name != s.Name {
		c.warn(CodeSplitTwice, s.Origin, "remove one of the two", "TrafficSplit %s divides %s already, and is older: this one has no effect", first.Name, s.Host)
		return
	}
	c.shadowed("TrafficSplit", root, s.Origin)
	for i := range s.Backends {
		b := &s.Backends[i]
		c.backend(b, root, s.Origin)
		if next := c.splits[b.Host]; next != nil && b.Host != s.Host {
			c.warn(CodeSplitTwice, place(b.Origin, s.Origin), "name the backends of that split here", "backend %s has a TrafficSplit of its own (%s), and a split does not lead to another: its share goes to the service itself", b.Host, next.Name)
		}
	}
}

func (c *checker) profile(p *model.Profile) {
	root, ok := c.Service(p.Host)
	if !ok {
		c.warn(CodeProfileNoHost, p.Origin, c.suggest(p.Host), "%s is no Service: the profile has no effect", p.Host)
		return
	}
	if first := c.Profile(p.Name.Namespace, p.Host); first != nil && first.Name != p.Name {
		c.warn(CodeSplitTwice, p.Origin, "remove one of the two", "ServiceProfile %s describes %s already, and is older: this one has no effect", first.Name, p.Host)
		return
	}
	c.shadowed("ServiceProfile", root, p.Origin)
	for i := range p.Overrides {
		c.backend(&p.Overrides[i], root, p.Origin)
	}
}

// shadowed warns of an object for a service that a VirtualService decides about.
func (c *checker) shadowed(kind string, s *model.Service, at ident.Origin) {
	for _, list := range [...][]*model.Routing{c.RoutingsOf(s.Host), c.WideRoutings()} {
		for _, r := range list {
			if len(r.HTTP) == 0 || !slices.Contains(r.Gateways, model.Mesh) {
				continue
			}
			if slices.ContainsFunc(r.Hosts, func(h string) bool { return ident.HostCovers(h, s.Host) }) {
				c.warn(CodeShadowed, at, "remove one of the two", "%s decides for requests to %s: the %s has no effect on them", objectOf(r), s.Host, kind)
				return
			}
		}
	}
}

func (c *checker) backend(b *model.SplitBackend, root *model.Service, at ident.Origin) {
	s, ok := c.Service(b.Host)
	if !ok {
		c.add(model.Error, model.CodeNoHost, place(b.Origin, at), c.suggest(b.Host), "backend %s does not exist", b.Host)
		return
	}
	if b.Port != 0 {
		if !slices.ContainsFunc(s.Ports, func(q model.ServicePort) bool { return q.Port == b.Port }) {
			c.add(model.Error, model.CodeNoPort, place(b.Origin, at), "name one of its ports", "backend %s has no port %d", b.Host, b.Port)
		}
		return
	}
	for i := range root.Ports {
		p := &root.Ports[i]
		corresponds := slices.ContainsFunc(s.Ports, func(q model.ServicePort) bool {
			return q.Port == p.Port || q.Name != "" && q.Name == p.Name
		})
		if p.Protocol != ident.UDP && !corresponds {
			c.warn(CodeBackendPort, place(b.Origin, at), "give it a port of that number or name",
				"backend %s has no port for port %d of %s: it gets no traffic there", b.Host, p.Port, root.Host)
		}
	}
}

func (c *checker) policies() {
	for i := range c.config.PeerAuth {
		p := &c.config.PeerAuth[i]
		// One with a selector in the root namespace has no effect anywhere; config says so.
		if len(p.Selector) > 0 && p.Name.Namespace != ident.RootNamespace && !c.guards(p.Name.Namespace, p.Selector) {
			c.idle(p.Origin, p.Name.Namespace, p.Selector)
		}
	}
	for i := range c.config.Policies {
		p := &c.config.Policies[i]
		if len(p.Selector) > 0 && !c.guards(p.Name.Namespace, p.Selector) {
			c.idle(p.Origin, p.Name.Namespace, p.Selector)
		}
	}
}

func (c *checker) idle(at ident.Origin, namespace string, selector map[string]string) {
	c.warn(CodePolicyIdle, at, "compare spec.selector.matchLabels with the labels of the Workloads",
		"the policy selects no workload in namespace %s (%s): it guards nothing", namespace, labelText(selector))
}

// guards reports whether a selector in a namespace selects a workload or gateway.
func (c *checker) guards(namespace string, selector map[string]string) bool {
	reaches := func(ns string) bool { return ns == namespace || namespace == ident.RootNamespace }
	return slices.ContainsFunc(c.World.workloads.all, func(wl *model.Workload) bool {
		return reaches(wl.Name.Namespace) && selects(selector, wl.Labels)
	}) || slices.ContainsFunc(c.gateways, func(g *model.GatewayInstance) bool {
		return reaches(g.Name.Namespace) && selects(selector, g.Labels)
	})
}

// labelText returns labels as people write selectors on a command line.
func labelText(labels map[string]string) string {
	parts := make([]string, 0, len(labels))
	for k, v := range labels {
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

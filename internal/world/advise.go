package world

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// Codes of what is suspicious, for `malha analyze`. docs/diagnostics.md explains each.
const (
	CodeCovered        = "MALHA0830" // a rule whose requests an earlier rule takes
	CodeNoProtocol     = "MALHA0831" // a Service port that says no protocol
	CodeTrafficTwice   = "MALHA0832" // DestinationRules for one host that disagree
	CodePeerAuthTwice  = "MALHA0833" // PeerAuthentications for the same workloads
	CodeNoIdentity     = "MALHA0834" // a policy about peers on a port where no peer shows who it is
	CodeHTTPRule       = "MALHA0835" // a policy about requests on a port that carries bytes
	CodePeerAuthPort   = "MALHA0836" // a port of a PeerAuthentication that no workload has
	CodeNobody         = "MALHA0837" // a policy about an identity that no workload has
	CodePolicyAnything = "MALHA0838" // an ALLOW policy that denies everything
	CodeNoRoutes       = "MALHA0839" // a server of a Gateway to which no rules are attached
	CodeTargetTwice    = "MALHA0840" // one destination that stands twice in a rule
	CodeSubsetTwice    = "MALHA0841" // subsets that are the same workloads
	CodeNoEffect       = "MALHA0842" // settings that change nothing beside others
	CodeRuleTwice      = "MALHA0843" // rules of two objects with the same conditions for one host
)

// Advise returns what is suspicious in w beside what Check finds: it works as it stands, and probably was not meant so.
func Advise(w *World) []model.Diagnostic {
	c := &checker{World: w}
	for _, s := range w.services {
		c.protocols(s)
		c.altNames(s)
	}
	for _, r := range w.Routings() {
		c.covered(r)
		c.targetsTwice(r)
	}
	c.trafficTwice()
	for i := range w.config.Traffic {
		c.settings(&w.config.Traffic[i])
	}
	opened := c.opened()
	for _, g := range w.doors {
		c.attached(g, opened)
	}
	c.sameRules()
	c.peerAuthTwice()
	for i := range w.config.PeerAuth {
		c.peerAuthPorts(&w.config.PeerAuth[i])
	}
	for i := range w.config.Policies {
		c.policyRules(&w.config.Policies[i])
	}
	return c.sorted()
}

// protocols tells of ports whose protocol has to be found out from the first bytes of each connection.
func (c *checker) protocols(s *model.Service) {
	for i := range s.Ports {
		if p := &s.Ports[i]; p.Protocol == ident.Detect {
			c.add(model.Info, CodeNoProtocol, place(p.Origin, s.Origin), "name the port http-…, grpc-… or tcp-…, or set appProtocol",
				"port %d says no protocol: proxies look at the first bytes of each connection", p.Port)
		}
	}
}

// trafficTwice tells of DestinationRules of one namespace for one host where only the older one's word counts.
func (c *checker) trafficTwice() {
	type key struct{ namespace, host, workloads string } // those for some workloads stand beside those for all
	first := map[key]*model.DestinationPolicy{}
	for _, p := range oldestFirst(c.config.Traffic, func(p *model.DestinationPolicy) *model.Meta { return &p.Meta }) {
		k := key{p.Name.Namespace, p.Host, fmt.Sprint(p.Workloads)}
		have := first[k]
		if have == nil {
			first[k] = p
			continue
		}
		const hint = "merge the two"
		if !slices.Equal(slices.Sorted(slices.Values(have.ExportTo)), slices.Sorted(slices.Values(p.ExportTo))) {
			c.warn(CodeTrafficTwice, p.Origin, hint, "DestinationRule %s is for host %s too, with another exportTo: the two are not merged, and where both are seen the older one counts", have.Name, p.Host)
			continue
		}
		if have.Traffic != nil && p.Traffic != nil {
			c.warn(CodeTrafficTwice, p.Origin, hint, "DestinationRule %s is for host %s too, and older: this trafficPolicy is not in force", have.Name, p.Host)
		}
		for i := range p.Subsets {
			s := &p.Subsets[i]
			if slices.ContainsFunc(have.Subsets, func(o model.Subset) bool { return o.Name == s.Name }) {
				c.warn(CodeTrafficTwice, place(s.Origin, p.Origin), hint, "DestinationRule %s defines subset %s of %s too, and is older: this one is not in force", have.Name, s.Name, p.Host)
			}
		}
	}
}

// peerAuthTwice tells of PeerAuthentications with one selector: the oldest is in force.
func (c *checker) peerAuthTwice() {
	first := map[string]*model.PeerAuth{}
	for _, p := range oldestFirst(c.config.PeerAuth, func(p *model.PeerAuth) *model.Meta { return &p.Meta }) {
		k := p.Name.Namespace + "?" + labelText(p.Selector)
		if have := first[k]; have != nil {
			c.warn(CodePeerAuthTwice, p.Origin, "merge the two", "PeerAuthentication %s is for the same workloads, and older: this one is not in force", have.Name)
			continue
		}
		first[k] = p
	}
}

// peerAuthPorts tells of ports that none of the selected workloads has.
func (c *checker) peerAuthPorts(p *model.PeerAuth) {
	if len(p.Ports) == 0 || len(p.Selector) == 0 || !c.guards(p.Name.Namespace, p.Selector) {
		return
	}
	for _, port := range slices.Sorted(maps.Keys(p.Ports)) {
		has := slices.ContainsFunc(c.World.workloads.all, func(wl *model.Workload) bool {
			return wl.Name.Namespace == p.Name.Namespace && selects(p.Selector, wl.Labels) && mayHave(wl, port)
		})
		if !has {
			c.warn(CodePeerAuthPort, p.Origin, "portLevelMtls is about ports of workloads, not of Services", "no selected workload has port %d: its mode has no effect", port)
		}
	}
}

// policyRules tells of rules that cannot do what they say at the workloads that they guard.
func (c *checker) policyRules(p *model.AuthzPolicy) {
	if p.Policy.Action == plan.Allow && len(p.Policy.Rules) == 0 && len(p.Selector) == 0 && p.Name.Namespace == ident.RootNamespace {
		c.add(model.Info, CodePolicyAnything, p.Origin, "", "the policy denies every request in the mesh that no other ALLOW policy allows")
	}
	guarded := c.guardedBy(p)
	for i := range p.Policy.Rules {
		rule := &p.Policy.Rules[i]
		at := place(rule.Origin, p.Origin)
		c.identities(rule, at)
		for _, port := range guarded {
			what := port.workload.String() + " port " + strconv.Itoa(port.Port)
			if port.TLS == plan.TLSDisable && wantsIdentity(rule) {
				c.warn(CodeNoIdentity, at, "let the workload take mutual TLS, or remove the condition",
					"the rule is about who the peer is, and %s takes plaintext only (%s): it can never match there", what, port.TLSOrigin)
			}
			if port.Protocol == ident.TCP && wantsRequest(rule) {
				effect := "it can never match there"
				if p.Policy.Action == plan.Deny {
					effect = "that part is left out there, so it denies more than it says"
				}
				c.warn(CodeHTTPRule, at, "name the port http-… if it speaks HTTP, or use conditions on peers and ports only",
					"the rule is about requests, and %s carries bytes: %s", what, effect)
			}
		}
	}
}

// guardedPort is a port that a policy guards.
type guardedPort struct {
	model.InboundPort
	workload ident.Name
}

func (c *checker) guardedBy(p *model.AuthzPolicy) []guardedPort {
	var out []guardedPort
	for _, wl := range c.World.workloads.all {
		if wl.Name.Namespace != p.Name.Namespace && p.Name.Namespace != ident.RootNamespace || len(p.Selector) > 0 && !selects(p.Selector, wl.Labels) {
			continue
		}
		for _, port := range c.Inbound(wl.Name) {
			out = append(out, guardedPort{port, wl.Name})
		}
	}
	return out
}

// wantsIdentity reports whether nobody without a certificate can satisfy a rule.
func wantsIdentity(r *plan.PolicyRule) bool {
	if len(r.From) > 0 && !slices.ContainsFunc(r.From, func(s plan.Source) bool { return len(s.Principals) == 0 && len(s.Namespaces) == 0 }) {
		return true
	}
	return slices.ContainsFunc(r.When, func(w plan.Condition) bool {
		return (w.Key == "source.principal" || w.Key == "source.namespace") && len(w.Values) > 0
	})
}

// wantsRequest reports whether a rule has conditions on HTTP requests.
func wantsRequest(r *plan.PolicyRule) bool {
	for i := range r.To {
		o := &r.To[i]
		if len(o.Hosts)+len(o.NotHosts)+len(o.Methods)+len(o.NotMethods)+len(o.Paths)+len(o.NotPaths) > 0 {
			return true
		}
	}
	return slices.ContainsFunc(r.When, func(w plan.Condition) bool { return strings.HasPrefix(w.Key, "request.") })
}

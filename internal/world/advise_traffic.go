package world

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// settings tells of settings of a DestinationRule that change nothing, and of subsets that are the same workloads.
func (c *checker) settings(p *model.DestinationPolicy) {
	c.ineffective(p, p.Traffic, p.Origin)
	labels := map[string]*model.Subset{}
	for i := range p.Subsets {
		s := &p.Subsets[i]
		at := place(s.Origin, p.Origin)
		c.ineffective(p, s.Traffic, at)
		if have := labels[labelText(s.Labels)]; have != nil && len(s.Labels) > 0 {
			c.add(model.Info, CodeSubsetTwice, at, "compare the labels", "subset %s is the same workloads as subset %s (%s)", s.Name, have.Name, labelText(s.Labels))
			continue
		}
		labels[labelText(s.Labels)] = s
	}
}

func (c *checker) ineffective(p *model.DestinationPolicy, t *model.TrafficPolicy, at ident.Origin) {
	if t == nil {
		return
	}
	if t.PassThrough {
		if t.Outlier != nil || t.Locality != nil || len(p.Subsets) > 0 && t == p.Traffic {
			c.warn(CodeNoEffect, at, "use another load balancer", "subsets, locality and outlier detection have no effect with PASSTHROUGH, which dials what the client asked for")
		}
	}
	if t.Tunnel != nil {
		s, ok := c.Service(p.Host)
		if ok && !slices.ContainsFunc(s.Ports, func(q model.ServicePort) bool { return !q.Protocol.IsHTTP() }) {
			c.warn(CodeNoEffect, at, "tunnels are for TCP and TLS ports", "the tunnel has no effect: every port of %s carries HTTP", p.Host)
		}
	}
	if t.Originate != nil {
		s, ok := c.Service(p.Host)
		if ok && len(s.Ports) > 0 && !slices.ContainsFunc(s.Ports, func(q model.ServicePort) bool { return q.Protocol != ident.TLS }) {
			c.warn(CodeNoEffect, at, "declare the port as HTTP or TCP, or remove tls", "every port of %s carries the TLS of programs: the proxy begins another one around it", p.Host)
		}
	}
}

// altNames tells of names of certificates that no connection is held to, or of which only one is.
func (c *checker) altNames(s *model.Service) {
	if s.External || len(s.SubjectAltNames) == 0 {
		return
	}
	ids := 0
	for _, name := range s.SubjectAltNames {
		if _, err := ident.ParseIdentity(name); err == nil {
			ids++
		}
	}
	if ids < len(s.SubjectAltNames) {
		c.add(model.Info, CodeNoEffect, s.Origin, "", "subjectAltNames that are no SPIFFE ids count where a DestinationRule begins TLS; in the mesh endpoints prove SPIFFE ids")
	}
	if ids > 1 && slices.ContainsFunc(c.writtenFor(s), func(e written) bool {
		return !e.Identity.IsZero() && pointer(expected(s.SubjectAltNames, e.Identity)) != pointer(e.Identity)
	}) {
		c.warn(CodeNoEffect, s.Origin, "give each endpoint its serviceAccount", "several identities are expected, and an endpoint's own is none of them: it must prove the first")
	}
}

// targetsTwice tells of destinations that stand twice in one rule.
func (c *checker) targetsTwice(r *model.Routing) {
	type key struct {
		host, subset string
		port         int
	}
	twice := func(all []model.WeightedDestination, at ident.Origin) {
		seen := map[key]bool{}
		for i := range all {
			t := &all[i]
			k := key{t.Host, t.Subset, t.Port}
			if seen[k] && t.Status == 0 && len(t.Headers.Request.Set)+len(t.Headers.Request.Add)+len(t.Headers.Response.Set)+len(t.Headers.Response.Add) == 0 {
				c.add(model.Info, CodeTargetTwice, place(t.Origin, at), "add up the weights", "destination %s stands twice in the rule", strings.TrimSpace(t.Host+" "+t.Subset))
			}
			seen[k] = true
		}
	}
	for i := range r.HTTP {
		twice(r.HTTP[i].Forward, place(r.HTTP[i].Origin, r.Origin))
	}
	for i := range r.TCP {
		twice(r.TCP[i].Forward, place(r.TCP[i].Origin, r.Origin))
	}
	for i := range r.TLS {
		twice(r.TLS[i].Forward, place(r.TLS[i].Origin, r.Origin))
	}
}

// attached tells of open servers for which there are no rules: every request is answered with 404, every connection closed.
func (c *checker) attached(g *model.Gateway, opened map[*model.Server]bool) {
	for i := range g.Servers {
		s := &g.Servers[i]
		if s.Broken != "" || s.Redirect || s.Auto || len(c.gateways) > 0 && !opened[s] {
			continue
		}
		name := g.Name.String()
		if g.Own {
			name += "/" + s.Name
		}
		one := &model.Gateway{Servers: []model.Server{*s}}
		if !slices.ContainsFunc(c.Routings(), func(r *model.Routing) bool {
			return slices.Contains(r.Gateways, name) && (g.Own || slices.ContainsFunc(r.Hosts, func(h string) bool { return takes(one, r.Name.Namespace, h) }))
		}) {
			c.add(model.Info, CodeNoRoutes, place(s.Origin, g.Origin), "attach rules to it", "no rules are attached to port %d (%s): whatever comes is refused", s.Port, joined(s.Hosts))
		}
	}
}

func joined(hosts []string) string {
	if len(hosts) == 0 {
		return "every host"
	}
	if len(hosts) > 3 {
		return fmt.Sprintf("%s and %d more", hosts[0], len(hosts)-1)
	}
	return strings.Join(hosts, ", ")
}

// sameRules tells of rules of several objects that ask for the same of requests to one host, where the objects merge: those
// of the older one answer (Gateway API, HTTPRouteRule.matches).
func (c *checker) sameRules() {
	type key struct{ host, gateway, conditions string }
	first := map[key]*model.Routing{}
	for _, r := range c.Routings() {
		if !r.Precedence {
			continue
		}
		said := map[*model.Routing]bool{}
		for i := range r.HTTP {
			rule := &r.HTTP[i]
			for _, conditions := range conditionsOf(rule) {
				for _, h := range r.Hosts {
					for _, g := range r.Gateways {
						k := key{h, g + ":" + strconv.Itoa(r.Port), conditions}
						if r.Consumer {
							k.gateway += " from " + r.Name.Namespace
						}
						switch have := first[k]; {
						case have == nil:
							first[k] = r
						case have != r && !said[have]:
							said[have] = true
							c.warn(CodeRuleTwice, place(rule.Origin, r.Origin), "merge the two, or give them different conditions",
								"%s has a rule with the same conditions for %s, and is older: it answers", objectOf(have), h)
						}
					}
				}
			}
		}
	}
}

// conditionsOf returns the alternatives of a rule as texts that are equal when they ask for the same.
func conditionsOf(r *model.HTTPRule) []string {
	if len(r.Matches) == 0 {
		return []string{""}
	}
	var out []string
	for i := range r.Matches {
		m := &r.Matches[i]
		var parts []string
		add := func(name string, v any) { parts = append(parts, fmt.Sprintf("%s=%v", name, v)) }
		if m.Path != nil && takesMore(m) {
			add("path", *m.Path)
		}
		if m.Method != nil {
			add("method", *m.Method)
		}
		for _, f := range m.Headers {
			add("header", f)
		}
		for _, f := range m.Query {
			add("query", f)
		}
		slices.Sort(parts)
		if m.Cond != nil || m.Scheme != nil || m.Authority != nil {
			continue // other dialects' conditions
		}
		out = append(out, fmt.Sprint(parts))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// takesMore reports whether a path condition leaves something out.
func takesMore(m *model.HTTPMatch) bool {
	return !covers(&model.HTTPMatch{Match: plan.Match{Path: m.Path}}, &model.HTTPMatch{Match: plan.Match{Path: &match.String{Kind: match.Prefix, Value: "/"}}})
}

package scope

import (
	"slices"

	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/world"
)

// client is the proxy that asks, as routing conditions see it.
type client struct {
	namespace string
	labels    map[string]string
	sidecar   bool
	doors     map[string]bool // the servers of a gateway, as Routing.Gateways names them
	views     *views          // of a Sidecar; nil: everything is in view
}

// speaks reports whether a list of gateway names means the client.
func (c *client) speaks(gateways []string) bool {
	return slices.ContainsFunc(gateways, func(g string) bool {
		return c.sidecar && g == model.Mesh || c.doors[g]
	})
}

// holds reports whether a condition on source and gateways can hold for the client. When a condition names gateways the
// source is not asked about (Istio: HTTPMatchRequest.gateways overrides sourceLabels).
func (c *client) holds(gateways []string, labels map[string]string, namespace string) bool {
	if len(gateways) > 0 {
		return c.speaks(gateways)
	}
	return model.HasLabels(c.labels, labels) && (namespace == "" || namespace == c.namespace)
}

// holdsOpaque is holds for connections: there both are asked, but at a gateway, where the source is nobody that the mesh knows
// (Istio: its matchTCP and matchTLS, and l4SingleMatch of gateways).
func (c *client) holdsOpaque(gateways []string, labels map[string]string, namespace string) bool {
	if len(gateways) > 0 && !c.speaks(gateways) {
		return false
	}
	return !c.sidecar || c.holds(nil, labels, namespace)
}

// routings puts the routings that speak to the client into s, oldest first.
func (c *client) routings(w *world.World, s *model.Scope) {
	var all []*model.Routing
	if c.views != nil {
		all = c.views.routings(w)
	} else {
		all = w.Routings()
	}
	for _, r := range all {
		if r.Delegate || !world.VisibleIn(r.ExportTo, c.namespace) || c.views != nil && !c.views.routing(r) {
			continue
		}
		r, _ = model.WithDelegates(r, w.Delegate) // world.Check tells what is wrong with them
		if mine, ok := c.routing(r); ok {
			s.Routings = append(s.Routings, mine)
		}
	}
}

// routing returns r as it is for the client; false when it says nothing to it.
func (c *client) routing(r *model.Routing) (model.Routing, bool) {
	if !c.speaks(r.Gateways) {
		return model.Routing{}, false
	}
	out := *r
	out.HTTP = c.http(r.HTTP)
	out.TCP = conditional(c, r.TCP, func(r *model.TCPRule) *[]model.TCPMatch { return &r.Matches }, func(m *model.TCPMatch) *model.TCPMatch { return m })
	out.TLS = conditional(c, r.TLS, func(r *model.TLSRule) *[]model.TLSMatch { return &r.Matches }, func(m *model.TLSMatch) *model.TCPMatch { return &m.TCPMatch })
	return out, len(out.HTTP)+len(out.TCP)+len(out.TLS) > 0
}

// http returns the rules that can hold for the client, without the conditions that were decided. It shares r when
// nothing in it depends on the client.
func (c *client) http(rules []model.HTTPRule) []model.HTTPRule {
	decided := func(m model.HTTPMatch) bool {
		return len(m.SourceLabels) > 0 || m.SourceNamespace != "" || len(m.Gateways) > 0
	}
	if !slices.ContainsFunc(rules, func(r model.HTTPRule) bool { return slices.ContainsFunc(r.Matches, decided) }) {
		return rules
	}
	var out []model.HTTPRule
	for _, r := range rules {
		if len(r.Matches) > 0 {
			var left []model.HTTPMatch
			for _, m := range r.Matches {
				if !c.holds(m.Gateways, m.SourceLabels, m.SourceNamespace) {
					continue
				}
				m.SourceLabels, m.SourceNamespace = nil, ""
				if c.sidecar {
					m.Gateways = nil
				}
				left = append(left, m)
			}
			if left == nil {
				continue
			}
			r.Matches = left
		}
		out = append(out, r)
	}
	return out
}

// conditional is http for opaque connections and those of TLS: matches returns the alternatives of a rule, and common the
// conditions that both kinds have.
func conditional[R, M any](c *client, rules []R, matches func(*R) *[]M, common func(*M) *model.TCPMatch) []R {
	decided := func(m M) bool {
		t := common(&m)
		return len(t.SourceLabels) > 0 || t.SourceNamespace != "" || len(t.Gateways) > 0
	}
	if !slices.ContainsFunc(rules, func(r R) bool { return slices.ContainsFunc(*matches(&r), decided) }) {
		return rules
	}
	var out []R
	for _, r := range rules {
		if all := *matches(&r); len(all) > 0 {
			var left []M
			for _, m := range all {
				t := common(&m)
				if !c.holdsOpaque(t.Gateways, t.SourceLabels, t.SourceNamespace) {
					continue
				}
				t.SourceLabels, t.SourceNamespace = nil, ""
				if c.sidecar {
					t.Gateways = nil
				}
				left = append(left, m)
			}
			if left == nil {
				continue
			}
			*matches(&r) = left
		}
		out = append(out, r)
	}
	return out
}

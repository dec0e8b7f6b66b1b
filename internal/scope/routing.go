package scope

import (
	"slices"

	"github.com/malha-mesh/malha/internal/model"
)

// client is the proxy that asks, as routing conditions see it.
type client struct {
	namespace string
	labels    map[string]string
	sidecar   bool
	doors     map[string]bool // the Gateways that a gateway serves, "namespace/name"
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

// routing returns r as it is for the client; false when it says nothing to it.
func (c *client) routing(r *model.Routing) (model.Routing, bool) {
	if !c.speaks(r.Gateways) {
		return model.Routing{}, false
	}
	out := *r
	out.HTTP = c.http(r.HTTP)
	out.TCP = c.tcp(r.TCP)
	return out, len(out.HTTP)+len(out.TCP) > 0
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

// tcp is http for opaque connections.
func (c *client) tcp(rules []model.TCPRule) []model.TCPRule {
	decided := func(m model.TCPMatch) bool {
		return len(m.SourceLabels) > 0 || m.SourceNamespace != "" || len(m.Gateways) > 0
	}
	if !slices.ContainsFunc(rules, func(r model.TCPRule) bool { return slices.ContainsFunc(r.Matches, decided) }) {
		return rules
	}
	var out []model.TCPRule
	for _, r := range rules {
		if len(r.Matches) > 0 {
			var left []model.TCPMatch
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

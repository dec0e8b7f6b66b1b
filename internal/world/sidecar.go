package world

import (
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// SidecarFor returns the Sidecar policy of a workload: the oldest that selects it, else the oldest of its namespace
// without a selector, else that of the root namespace; nil: it sees everything. They do not merge. Source: Istio, Sidecar.
func (w *asked) SidecarFor(namespace string, labels map[string]string) *model.SidecarPolicy {
	var general *model.SidecarPolicy
	for _, p := range w.namespace(namespace).sidecars {
		switch {
		case selects(p.Selector, labels):
			return p
		case len(p.Selector) == 0 && general == nil:
			general = p
		}
	}
	if general != nil {
		return general
	}
	for _, p := range w.namespace(ident.RootNamespace).sidecars {
		if len(p.Selector) == 0 {
			return p
		}
	}
	return nil
}

// EgressFor returns what a namespace may reach outside the mesh, oldest first: as its own say, else as those that are global;
// none: nobody says.
func (w *asked) EgressFor(namespace string) []*model.Egress {
	var own, global []*model.Egress
	for _, e := range w.outside {
		switch {
		case e.Name.Namespace == namespace:
			own = append(own, e)
		case e.Global:
			global = append(global, e)
		}
	}
	if own != nil {
		return own
	}
	return global
}

// Secret returns a secret by the name that plans call it by.
func (w *asked) Secret(name string) (*model.Secret, bool) {
	s, ok := w.secrets[name]
	return s, ok
}

// Secrets returns every secret as they were written.
func (w *asked) Secrets() []model.Secret { return w.config.Secrets }

// RateLimit returns a rate limit by the name that plans call it by.
func (w *asked) RateLimit(name string) (*model.RateLimit, bool) {
	l, ok := w.limits[name]
	return l, ok
}

// Serves reports whether a gateway proxy serves a Gateway: its own one, or one that selects it. An empty selector takes
// every gateway.
func Serves(g *model.GatewayInstance, door *model.Gateway) bool {
	if door.Own || !g.For.IsZero() {
		return door.Own && g.For == door.Name
	}
	return model.HasLabels(g.Labels, door.Selector)
}

package world

import (
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// tlsMode resolves PeerAuthentication for one port of a workload: port, then workload, then namespace, then mesh; UNSET
// inherits; nothing at all means permissive. At each level the oldest policy counts. A policy with a selector in the
// root namespace is ignored there and nowhere else has effect. Source: Istio, PeerAuthentication.
func (w *World) tlsMode(namespace string, labels map[string]string, port int) (plan.TLSMode, ident.Origin) {
	if namespace != ident.RootNamespace {
		for _, p := range w.namespace(namespace).peerAuth {
			if !selects(p.Selector, labels) {
				continue
			}
			if mode := p.Ports[port]; mode != nil {
				return *mode, p.Origin
			}
			if p.Mode != nil {
				return *p.Mode, p.Origin
			}
			break
		}
		if mode, origin, ok := wholeNamespace(w.namespace(namespace).peerAuth); ok {
			return mode, origin
		}
	}
	if mode, origin, ok := wholeNamespace(w.namespace(ident.RootNamespace).peerAuth); ok {
		return mode, origin
	}
	return plan.TLSPermissive, ident.Origin{}
}

// wholeNamespace returns the mode of the oldest policy without a selector, unless that inherits.
func wholeNamespace(ps []*model.PeerAuth) (plan.TLSMode, ident.Origin, bool) {
	for _, p := range ps {
		if len(p.Selector) > 0 {
			continue
		}
		if p.Mode == nil {
			break
		}
		return *p.Mode, p.Origin, true
	}
	return "", ident.Origin{}, false
}

// PoliciesFor returns the authorization policies that guard a workload or gateway: those of the root namespace and of
// its own whose selector is empty or selects it. Sorted by name.
func (w *World) PoliciesFor(namespace string, labels map[string]string) []*model.AuthzPolicy {
	var out []*model.AuthzPolicy
	add := func(ps []*model.AuthzPolicy) {
		for _, p := range ps {
			if model.HasLabels(labels, p.Selector) {
				out = append(out, p)
			}
		}
	}
	if namespace != ident.RootNamespace {
		if namespace < ident.RootNamespace {
			add(w.namespace(namespace).policies)
			add(w.namespace(ident.RootNamespace).policies)
			return out
		}
		add(w.namespace(ident.RootNamespace).policies)
	}
	add(w.namespace(namespace).policies)
	return out
}

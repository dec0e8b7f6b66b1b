// Package scope answers what one proxy may see: the services that are visible from its namespace with the policies that
// win for it, the routings that speak to it, what it serves and who guards it.
//
// In come a world.World and the name of a proxy, out goes a model.Scope, the whole input of compile. Every choice that
// depends on who asks is made here and nowhere else. It is pure and starts no goroutine.
package scope

import (
	"cmp"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/world"
)

// For returns the scope of the proxy of a workload or gateway; false when the world knows none by that name, or the
// workload is not placed yet.
func For(w *world.World, node ident.Name) (*model.Scope, bool) {
	if wl, in := w.Workload(node); wl != nil && in != nil {
		return forSidecar(w, wl, in), true
	}
	if g, ok := w.Gateway(node); ok {
		return forGateway(w, g), true
	}
	return nil, false
}

func forSidecar(w *world.World, wl *model.Workload, in *model.Instance) *model.Scope {
	ns := wl.Name.Namespace
	s := &model.Scope{
		Node:     world.NodeOf(plan.Sidecar, wl.Name, wl.Identity, wl.Labels),
		Services: services(w, ns),
		Policies: w.PoliciesFor(ns, wl.Labels),
		Sidecar:  &model.SidecarScope{Inbound: w.Inbound(wl.Name), Forward: in.Forward},
		Secrets:  secrets(w, ns, nil),
		Limits:   limits(w),
	}
	for ref, bind := range in.Local {
		s.Sidecar.Local = append(s.Sidecar.Local, model.LocalPort{ServiceRef: ref, Bind: bind})
	}
	slices.SortFunc(s.Sidecar.Local, func(a, b model.LocalPort) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Port, b.Port))
	})
	asks := client{namespace: ns, labels: wl.Labels, sidecar: true}
	for _, r := range w.Routings() {
		if !world.VisibleIn(r.ExportTo, ns) {
			continue
		}
		if mine, ok := asks.routing(r); ok {
			s.Routings = append(s.Routings, mine)
		}
	}
	return s
}

func forGateway(w *world.World, g *model.GatewayInstance) *model.Scope {
	ns := g.Name.Namespace
	s := &model.Scope{
		Node:     world.NodeOf(plan.Gateway, g.Name, g.Identity, g.Labels),
		Services: services(w, ns),
		Policies: w.PoliciesFor(ns, g.Labels),
		Gateway:  &model.GatewayScope{Binds: g.Binds},
	}
	doors := map[string]bool{}
	for _, door := range w.Doors() {
		if !selects(door, g) {
			continue
		}
		for i := range door.Servers {
			server := model.GatewayServer{
				Server: &door.Servers[i], Gateway: door.Name, Ref: door.Name.String(),
				Own: door.Own, TrustedHops: door.TrustedHops, ProxyProtocol: door.ProxyProtocol,
			}
			if door.Own {
				server.Ref += "/" + server.Name
			}
			doors[server.Ref] = true
			s.Gateway.Servers = append(s.Gateway.Servers, server)
		}
	}
	s.Secrets = secrets(w, ns, s.Gateway.Servers)
	s.Limits = limits(w)
	slices.SortStableFunc(s.Gateway.Servers, func(a, b model.GatewayServer) int { return cmp.Compare(a.Port, b.Port) })
	asks := client{namespace: ns, labels: g.Labels, doors: doors}
	for _, r := range w.Routings() {
		if !world.VisibleIn(r.ExportTo, ns) {
			continue
		}
		if mine, ok := asks.routing(r); ok {
			s.Routings = append(s.Routings, mine)
		}
	}
	return s
}

// selects reports whether the servers of a Gateway are a gateway proxy's.
func selects(door *model.Gateway, g *model.GatewayInstance) bool {
	if door.Own || !g.For.IsZero() {
		return door.Own && door.Name == g.For
	}
	return model.HasLabels(g.Labels, door.Selector) // an empty selector takes every gateway
}

// secrets returns those that a proxy in a namespace may hold, sorted by plan name: one namespace must not be able to show
// another's certificate by naming it.
func secrets(w *world.World, namespace string, servers []model.GatewayServer) []*model.Secret {
	granted := map[string]bool{}
	for i := range servers {
		if t := servers[i].TLS; t != nil && servers[i].Own {
			granted[t.Authorities] = true
			for _, name := range t.Secrets {
				granted[name] = true
			}
		}
	}
	var out []*model.Secret
	all := w.Config().Secrets
	for i := range all {
		s := &all[i]
		if s.Meta.Name.Namespace == namespace || strings.HasPrefix(s.Secret.Name, fileSecret) || granted[s.Secret.Name] {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b *model.Secret) int { return cmp.Compare(a.Secret.Name, b.Secret.Name) })
	return out
}

// fileSecret begins the plan name of a secret that files of the configuration hold.
const fileSecret = "file:"

// limits returns the rate limits that routes name, sorted by plan name.
func limits(w *world.World) []*model.RateLimit {
	var out []*model.RateLimit
	all := w.Config().RateLimits
	for i := range all {
		if all[i].ByRoute {
			out = append(out, &all[i])
		}
	}
	slices.SortFunc(out, func(a, b *model.RateLimit) int { return cmp.Compare(a.Limit.Name, b.Limit.Name) })
	return out
}

// services returns what is visible from a namespace, sorted by host.
func services(w *world.World, namespace string) []model.ScopedService {
	out := make([]model.ScopedService, 0, len(w.Services()))
	for _, s := range w.Services() {
		if !world.VisibleIn(s.ExportTo, namespace) {
			continue
		}
		profile := w.Profile(namespace, s.Host) // Linkerd: the client's own profile first
		if profile == nil {
			profile = w.Profile(s.Name.Namespace, s.Host)
		}
		out = append(out, model.ScopedService{
			Service: s,
			Policy:  w.PolicyFor(namespace, s),
			Split:   w.Split(s.Host),
			Profile: profile,
			Members: w.Members(s.Host),
		})
	}
	return out
}

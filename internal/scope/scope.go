// Package scope answers what one proxy may see: the services that are visible from its namespace with the policies that
// win for it, the routings that speak to it, what it serves and who guards it.
//
// In come a world.World and the name of a proxy, out goes a model.Scope, the whole input of compile. Every choice that
// depends on who asks is made here and nowhere else. It is pure and starts no goroutine.
package scope

import (
	"cmp"
	"net/netip"
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

// Service returns a service as a proxy sees it, as For would: for an update of its endpoints alone (compile.Endpoints). False
// when it is not let out to the proxy's namespace. Whether a Sidecar shows it, and which of its ports, is not asked: its
// clusters are in the proxy's plan or they are not.
func Service(w *world.World, node ident.Name, host string) (model.ScopedService, bool) {
	c, ok := clientOf(w, node)
	if !ok {
		return model.ScopedService{}, false
	}
	s, ok := w.ServiceFor(c.namespace, host)
	if !ok {
		return model.ScopedService{}, false
	}
	return c.scoped(w, s), true
}

// Sees reports whether a routing says something to a proxy.
func Sees(w *world.World, node ident.Name, r *model.Routing) bool {
	c, ok := clientOf(w, node)
	if !ok {
		return false
	}
	if r.Delegate {
		return true // whoever delegates to it may
	}
	return c.speaks(r.Gateways) && world.VisibleIn(r.ExportTo, c.namespace) && (c.views == nil || c.views.routing(r))
}

func clientOf(w *world.World, node ident.Name) (*client, bool) {
	if wl, in := w.Workload(node); wl != nil && in != nil {
		return sidecarClient(w, wl), true
	}
	if g, ok := w.Gateway(node); ok {
		return gatewayClient(w, g), true
	}
	return nil, false
}

func sidecarClient(w *world.World, wl *model.Workload) *client {
	c := &client{namespace: wl.Name.Namespace, labels: wl.Labels, sidecar: true}
	if p := w.SidecarFor(wl.Name.Namespace, wl.Labels); p != nil && p.Egress != nil {
		c.views = viewsOf(p)
	}
	return c
}

func forSidecar(w *world.World, wl *model.Workload, in *model.Instance) *model.Scope {
	ns := wl.Name.Namespace
	c := sidecarClient(w, wl)
	s := &model.Scope{
		Node:     world.NodeOf(plan.Sidecar, wl.Name, wl.Identity, wl.Labels),
		Policies: w.PoliciesFor(ns, wl.Labels),
		Sidecar:  &model.SidecarScope{Inbound: w.Inbound(wl.Name), Forward: in.Forward, Captured: in.Captured, Otherwise: otherwise(w, wl)},
		Labels:   wl.Labels,
	}
	s.Node.Locality, s.Peers = wl.Locality, w.Peers(wl)
	for ref, bind := range in.Local {
		s.Sidecar.Local = append(s.Sidecar.Local, model.LocalPort{ServiceRef: ref, Bind: bind})
	}
	slices.SortFunc(s.Sidecar.Local, func(a, b model.LocalPort) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Port, b.Port))
	})
	c.routings(w, s)
	if c.views == nil {
		s.Services = c.services(w)
	} else {
		s.Node.View = c.views.policy.Origin
		s.Services = c.viewed(w, s)
		s.Sidecar.Views = c.views.own(s.Services)
	}
	c.limits(w, s)
	secrets(w, s)
	return s
}

// otherwise returns the fate of what the mesh does not know: as the Sidecar says, else as the EgressNetworks.
func otherwise(w *world.World, wl *model.Workload) model.Otherwise {
	if p := w.SidecarFor(wl.Name.Namespace, wl.Labels); p != nil && p.Outbound != "" {
		return model.Otherwise{Fate: p.Outbound, Origin: p.Origin}
	}
	out := model.Otherwise{Fate: plan.Passthrough}
	var all []plan.OutsideNetwork
	for _, e := range w.EgressFor(wl.Name.Namespace) {
		if len(e.Networks) == 0 && out.Origin.IsZero() {
			out.Fate, out.Origin = e.Otherwise, e.Origin
		}
		for _, n := range e.Networks {
			all = append(all, plan.OutsideNetwork{Network: n, Otherwise: e.Otherwise, Origin: e.Origin})
		}
	}
	// Oldest first among those that are as long.
	slices.SortStableFunc(all, func(a, b plan.OutsideNetwork) int { return cmp.Compare(bits(b.Network), bits(a.Network)) })
	seen := map[string]bool{}
	all = slices.DeleteFunc(all, func(n plan.OutsideNetwork) bool {
		twice := seen[n.Network]
		seen[n.Network] = true
		return twice
	})
	if slices.ContainsFunc(all, func(n plan.OutsideNetwork) bool { return n.Otherwise != out.Fate }) {
		out.Networks = all
	}
	return out
}

// bits is the length of a network.
func bits(network string) int {
	p, err := netip.ParsePrefix(network)
	if err != nil {
		return -1
	}
	return p.Bits()
}

func gatewayClient(w *world.World, g *model.GatewayInstance) *client {
	c := &client{namespace: g.Name.Namespace, labels: g.Labels, doors: map[string]bool{}}
	for _, door := range doorsOf(w, g) {
		for i := range door.Servers {
			c.doors[refOf(door, i)] = true
		}
	}
	return c
}

// refOf returns how routings name a server.
func refOf(door *model.Gateway, i int) string {
	if door.Own {
		return door.Name.String() + "/" + door.Servers[i].Name
	}
	return door.Name.String()
}

// doorsOf returns the Gateways that a gateway proxy serves, oldest first.
func doorsOf(w *world.World, g *model.GatewayInstance) []*model.Gateway {
	var out []*model.Gateway
	for _, door := range w.Doors() {
		if world.Serves(g, door) {
			out = append(out, door)
		}
	}
	return out
}

func forGateway(w *world.World, g *model.GatewayInstance) *model.Scope {
	ns := g.Name.Namespace
	s := &model.Scope{
		Node:     world.NodeOf(plan.Gateway, g.Name, g.Identity, g.Labels),
		Policies: w.PoliciesFor(ns, g.Labels),
		Gateway:  &model.GatewayScope{Binds: g.Binds},
		Labels:   g.Labels,
	}
	s.Node.Locality, s.Peers = g.Locality, w.GatewayPeers(g)
	c := gatewayClient(w, g)
	for _, door := range doorsOf(w, g) {
		if door.Own {
			s.Gateway.ClientCertificate = door.ClientCertificate
		}
		for i := range door.Servers {
			s.Gateway.Servers = append(s.Gateway.Servers, model.GatewayServer{
				Server: &door.Servers[i], Gateway: door.Name, Ref: refOf(door, i),
				Own: door.Own, TrustedHops: door.TrustedHops, ProxyProtocol: door.ProxyProtocol,
			})
		}
	}
	slices.SortStableFunc(s.Gateway.Servers, func(a, b model.GatewayServer) int { return cmp.Compare(a.Port, b.Port) })
	s.Services = c.services(w)
	c.routings(w, s)
	c.limits(w, s)
	secrets(w, s)
	return s
}

// scoped returns a service with what wins for the client.
func (c *client) scoped(w *world.World, s *model.Service) model.ScopedService {
	profile := w.Profile(c.namespace, s.Host) // Linkerd: the client's own profile first
	if profile == nil {
		profile = w.Profile(s.Name.Namespace, s.Host)
	}
	return model.ScopedService{
		Service: s,
		Policy:  w.PolicyFor(c.namespace, c.labels, s),
		Split:   w.Split(s.Host),
		Profile: profile,
		Members: c.near(s, w.MembersOf(s)),
	}
}

// services returns what is visible from the client's namespace, sorted by host.
func (c *client) services(w *world.World) []model.ScopedService {
	all := w.Services()
	out := make([]model.ScopedService, 0, len(all))
	for i, s := range all {
		if alone := (i == 0 || all[i-1].Host != s.Host) && (i+1 == len(all) || all[i+1].Host != s.Host); !alone {
			if best, _ := w.ServiceFor(c.namespace, s.Host); best != s {
				continue // of several with one host each client has one
			}
		} else if !world.VisibleIn(s.ExportTo, c.namespace) {
			continue
		}
		out = append(out, c.scoped(w, s))
	}
	return out
}

// limits puts the RateLimits in that something in the scope names.
func (c *client) limits(w *world.World, s *model.Scope) {
	names := map[string]bool{}
	note := func(all []string) {
		for _, n := range all {
			names[n] = true
		}
	}
	for i := range s.Routings {
		for j := range s.Routings[i].HTTP {
			note(s.Routings[i].HTTP[j].Limits)
		}
	}
	if s.Sidecar != nil {
		for i := range s.Sidecar.Inbound {
			note(s.Sidecar.Inbound[i].Limits)
		}
	}
	for name := range names {
		if l, ok := w.RateLimit(name); ok {
			s.Limits = append(s.Limits, l)
		}
	}
	slices.SortFunc(s.Limits, func(a, b *model.RateLimit) int { return cmp.Compare(a.Limit.Name, b.Limit.Name) })
}

// secrets puts in what the proxy may hold: one namespace must not be able to show another's certificate by naming it. So
// it gets the secrets of its own namespace and of files, those that a Gateway names in the Gateway's own namespace (an Ingress),
// and those that the servers of its Own gateway name, which the translation allowed. Authorities are no secret: those that a policy in its view names come from anywhere.
func secrets(w *world.World, s *model.Scope) {
	granted := map[string]bool{}
	if s.Gateway != nil {
		granted[s.Gateway.ClientCertificate] = true
		for i := range s.Gateway.Servers {
			server := &s.Gateway.Servers[i]
			if server.TLS == nil {
				continue
			}
			for _, name := range append([]string{server.TLS.Authorities}, server.TLS.Secrets...) {
				if server.Own || strings.HasPrefix(name, server.Gateway.Namespace+"/") {
					granted[name] = true
				}
			}
		}
	}
	have := map[string]bool{}
	for i, all := 0, w.Secrets(); i < len(all); i++ {
		x := &all[i]
		name := x.Secret.Name
		if first, _ := w.Secret(name); first == x && (x.Meta.Name.Namespace == s.Node.Name.Namespace || isFile(name) || granted[name]) {
			have[x.Secret.Name] = true
			s.Secrets = append(s.Secrets, x)
		}
	}
	foreign := func(t *plan.ClientTLS) {
		if t == nil || t.Authorities == "" {
			return
		}
		if x, ok := w.Secret(model.SecretName(t.Authorities, s.Node.Name.Namespace)); ok && !have[x.Secret.Name] {
			have[x.Secret.Name] = true
			public := *x
			public.Certificate, public.Key = nil, nil
			s.Secrets = append(s.Secrets, &public)
		}
	}
	for i := range s.Services {
		for j := range s.Services[i].Ports {
			foreign(s.Services[i].Ports[j].Originate)
		}
		p := s.Services[i].Policy
		if p == nil {
			continue
		}
		each(p.Traffic, foreign)
		for j := range p.Subsets {
			each(p.Subsets[j].Traffic, foreign)
		}
	}
	slices.SortFunc(s.Secrets, func(a, b *model.Secret) int { return cmp.Compare(a.Secret.Name, b.Secret.Name) })
}

func each(t *model.TrafficPolicy, f func(*plan.ClientTLS)) {
	if t == nil {
		return
	}
	f(t.Originate)
	for i := range t.Ports {
		f(t.Ports[i].Traffic.Originate)
	}
}

// filePrefix marks secrets that were read from files of the machine (plan.Secret.Name).
const filePrefix = "file:"

func isFile(name string) bool {
	return len(name) > len(filePrefix) && name[:len(filePrefix)] == filePrefix
}

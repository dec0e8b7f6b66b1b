// Package world is one moment of the mesh: what users wrote (model.Config) and what runs (instances), indexed so that
// scope finds what one proxy may see without walking everything.
//
// In come a Config, the workload instances and the gateway instances; out go an immutable World and, from Check, what is
// wrong between objects. What is wrong inside one object is for config to say. It is pure and starts no goroutine; a
// World may be read by many at once.
package world

import (
	"cmp"
	"maps"
	"slices"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// World is one moment of the mesh. It is immutable.
type World struct {
	config    *model.Config
	services  []*model.Service          // sorted by host
	hosts     map[string]*model.Service // by canonical host
	workloads []*model.Workload         // sorted by name
	byName    map[ident.Name]*model.Workload
	instances map[ident.Name]*model.Instance
	gateways  []*model.GatewayInstance // sorted by name
	members   map[string][]*model.Member
	inbound   map[ident.Name][]model.InboundPort

	routings []*model.Routing                // oldest first
	doors    []*model.Gateway                // oldest first
	traffic  map[string]trafficRules         // by namespace, merged for each host
	peerAuth map[string][]*model.PeerAuth    // by namespace, oldest first
	policies map[string][]*model.AuthzPolicy // by namespace, by name
	splits   map[string]*model.Split         // by host, the oldest
	profiles map[profileKey]*model.Profile   // the oldest
}

type profileKey struct{ namespace, host string }

// Build indexes a moment. The World shares cfg, instances and gateways, which must not change any more. Of several
// objects of one kind and name the first counts; config reports them.
func Build(cfg *model.Config, instances []model.Instance, gateways []model.GatewayInstance) *World {
	w := &World{
		config:    cfg,
		hosts:     make(map[string]*model.Service, len(cfg.Services)),
		byName:    make(map[ident.Name]*model.Workload, len(cfg.Workloads)),
		instances: make(map[ident.Name]*model.Instance, len(instances)),
		traffic:   map[string]trafficRules{},
		peerAuth:  map[string][]*model.PeerAuth{},
		policies:  map[string][]*model.AuthzPolicy{},
		splits:    map[string]*model.Split{},
		profiles:  map[profileKey]*model.Profile{},
	}
	for i := range cfg.Services {
		s := &cfg.Services[i]
		if w.hosts[s.Host] == nil {
			w.hosts[s.Host] = s
			w.services = append(w.services, s)
		}
	}
	slices.SortFunc(w.services, func(a, b *model.Service) int { return cmp.Compare(a.Host, b.Host) })
	for i := range cfg.Workloads {
		wl := &cfg.Workloads[i]
		if w.byName[wl.Name] == nil {
			w.byName[wl.Name] = wl
			w.workloads = append(w.workloads, wl)
		}
	}
	slices.SortFunc(w.workloads, func(a, b *model.Workload) int { return a.Name.Compare(b.Name) })
	for i := range instances {
		w.instances[instances[i].Workload] = &instances[i]
	}
	for i := range gateways {
		w.gateways = append(w.gateways, &gateways[i])
	}
	slices.SortFunc(w.gateways, func(a, b *model.GatewayInstance) int { return a.Name.Compare(b.Name) })

	w.routings = oldestFirst(cfg.Routings, func(r *model.Routing) *model.Meta { return &r.Meta })
	w.doors = oldestFirst(cfg.Gateways, func(g *model.Gateway) *model.Meta { return &g.Meta })
	for _, p := range oldestFirst(cfg.PeerAuth, func(p *model.PeerAuth) *model.Meta { return &p.Meta }) {
		w.peerAuth[p.Name.Namespace] = append(w.peerAuth[p.Name.Namespace], p)
	}
	for i := range cfg.Policies {
		p := &cfg.Policies[i]
		w.policies[p.Name.Namespace] = append(w.policies[p.Name.Namespace], p)
	}
	for _, ps := range w.policies {
		slices.SortFunc(ps, func(a, b *model.AuthzPolicy) int { return a.Name.Compare(b.Name) })
	}
	for _, s := range oldestFirst(cfg.Splits, func(s *model.Split) *model.Meta { return &s.Meta }) {
		// A split divides a service of its own namespace only (SMI), else one namespace could take another's traffic.
		if root := w.hosts[s.Host]; root != nil && root.Name.Namespace == s.Name.Namespace && w.splits[s.Host] == nil {
			w.splits[s.Host] = s
		}
	}
	for _, p := range oldestFirst(cfg.Profiles, func(p *model.Profile) *model.Meta { return &p.Meta }) {
		k := profileKey{p.Name.Namespace, p.Host}
		if w.profiles[k] == nil {
			w.profiles[k] = p
		}
	}
	w.indexTraffic()
	w.indexMembers()
	return w
}

// oldestFirst returns pointers to all, ordered by creation, then name: Istio's order of precedence.
func oldestFirst[T any](all []T, meta func(*T) *model.Meta) []*T {
	out := make([]*T, len(all))
	for i := range all {
		out[i] = &all[i]
	}
	slices.SortStableFunc(out, func(a, b *T) int {
		x, y := meta(a), meta(b)
		if c := x.Created.Compare(y.Created); c != 0 {
			return c
		}
		return x.Name.Compare(y.Name)
	})
	return out
}

// Config returns what users wrote.
func (w *World) Config() *model.Config { return w.config }

// Services returns every service, sorted by host.
func (w *World) Services() []*model.Service { return w.services }

// Service returns the service with a canonical host.
func (w *World) Service(host string) (*model.Service, bool) {
	s, ok := w.hosts[host]
	return s, ok
}

// Workload returns a workload and where it runs. The instance is nil while it is not placed.
func (w *World) Workload(name ident.Name) (*model.Workload, *model.Instance) {
	return w.byName[name], w.instances[name]
}

// Gateway returns a gateway instance.
func (w *World) Gateway(name ident.Name) (*model.GatewayInstance, bool) {
	i, ok := slices.BinarySearchFunc(w.gateways, name, func(g *model.GatewayInstance, n ident.Name) int { return g.Name.Compare(n) })
	if !ok {
		return nil, false
	}
	return w.gateways[i], true
}

// Nodes returns the name of every proxy, sorted: one for each placed workload and each gateway instance.
func (w *World) Nodes() []ident.Name {
	set := make(map[ident.Name]bool, len(w.instances)+len(w.gateways))
	for name := range w.instances {
		if w.byName[name] != nil {
			set[name] = true
		}
	}
	for _, g := range w.gateways {
		set[g.Name] = true
	}
	return slices.SortedFunc(maps.Keys(set), ident.Name.Compare)
}

// Routings returns every routing, oldest first.
func (w *World) Routings() []*model.Routing { return w.routings }

// Doors returns every Gateway, oldest first.
func (w *World) Doors() []*model.Gateway { return w.doors }

// Members returns the ready workloads that the service with a host selects, sorted by workload.
func (w *World) Members(host string) []*model.Member { return w.members[host] }

// Inbound returns the served ports of a placed workload, sorted by port.
func (w *World) Inbound(workload ident.Name) []model.InboundPort { return w.inbound[workload] }

// Split returns the split of a host: the oldest.
func (w *World) Split(host string) *model.Split { return w.splits[host] }

// Profile returns the profile of a host as written in a namespace: the oldest.
func (w *World) Profile(namespace, host string) *model.Profile {
	return w.profiles[profileKey{namespace, host}]
}

// selects reports whether a selector that must not be empty selects labels.
func selects(selector, labels map[string]string) bool {
	if len(selector) == 0 {
		return false
	}
	return model.HasLabels(labels, selector)
}

// VisibleIn reports whether something that exportTo lets out may be seen from a namespace.
func VisibleIn(exportTo []string, namespace string) bool {
	return len(exportTo) == 0 || slices.Contains(exportTo, "*") || slices.Contains(exportTo, namespace)
}

// describe returns the words that metrics use for a workload. Sources: Istio "Canonical Service" and the Kubernetes
// recommended labels.
func describe(name ident.Name, labels map[string]string) plan.WorkloadLabels {
	first := func(fallback string, keys ...string) string {
		for _, k := range keys {
			if v := labels[k]; v != "" {
				return v
			}
		}
		return fallback
	}
	workload := first(name.Name, "service.istio.io/workload-name")
	return plan.WorkloadLabels{
		Workload:          workload,
		Namespace:         name.Namespace,
		App:               first("", "app", "app.kubernetes.io/name"),
		Version:           first("", "version", "app.kubernetes.io/version"),
		CanonicalService:  first(workload, "service.istio.io/canonical-name", "app.kubernetes.io/name", "app"),
		CanonicalRevision: first("latest", "service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"),
		Cluster:           ClusterName,
	}
}

// ClusterName is the name of the one cluster of this mesh, in metrics (Istio's default).
const ClusterName = "Kubernetes"

// NodeOf returns how the proxy of a workload or gateway presents itself.
func NodeOf(role plan.Role, name ident.Name, identity ident.Identity, labels map[string]string) plan.Node {
	return plan.Node{Name: name, Role: role, Identity: identity, Workload: describe(name, labels)}
}

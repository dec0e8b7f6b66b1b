// Package world is one moment of the mesh: what users wrote (model.Config) and what runs (instances), indexed so that
// scope finds what one proxy may see without walking everything.
//
// In come a Config, the workload instances and the gateway instances; out go an immutable World and, from Check, what is
// wrong between objects. What is wrong inside one object is for config to say. It is pure and starts no goroutine; a
// World may be read by many at once.
package world

import (
	"cmp"
	"slices"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// World is one moment of the mesh. It is immutable.
type World struct {
	*asked // what users wrote, the same for every moment of one configuration

	placed
	nodes []ident.Name // of every proxy, sorted
}

// asked is the indexes over a configuration that no Delta changes.
type asked struct {
	config     *model.Config
	services   []*model.Service            // sorted by host, then namespace
	hosts      map[string][]*model.Service // by canonical host: the cluster's own Service first, then the oldest
	namespaces map[string]*namespace
	gateways   []*model.GatewayInstance // sorted by name

	doors    []*model.Gateway              // oldest first
	splits   map[string]*model.Split       // by host, the oldest
	profiles map[profileKey]*model.Profile // the oldest
	secrets  map[string]*model.Secret      // by plan.Secret.Name
	limits   map[string]*model.RateLimit   // by plan.RateLimit.Name
	outside  []*model.Egress               // oldest first

	zoneAware bool // a policy asks for Peers
}

// namespace is what stands in one namespace.
type namespace struct {
	services   []*model.Service           // sorted by host
	bySelector map[label][]*model.Service // by the first label of the selector
	traffic    trafficRules               // merged for each host
	peerAuth   []*model.PeerAuth          // oldest first
	policies   []*model.AuthzPolicy       // by name
	sidecars   []*model.SidecarPolicy     // oldest first
	limits     []*model.RateLimit         // that select workloads, oldest first
}

type label struct{ key, value string }

// placed is what a Delta may change, and what follows from it.
type placed struct {
	workloads workloadIndex
	instances sharded[ident.Name, *model.Instance]
	members   sharded[*model.Service, []*model.Member]
	inbound   sharded[ident.Name, []model.InboundPort]
	groups    groupIndex
	routings  routingIndex
}

type profileKey struct{ namespace, host string }

// Build indexes a moment. The World shares cfg, instances and gateways, which must not change any more. Of several
// objects of one kind and name the first counts; config reports them.
func Build(cfg *model.Config, instances []model.Instance, gateways []model.GatewayInstance) *World {
	w := &World{asked: ask(cfg, gateways)}
	w.workloads = indexWorkloads(cfg.Workloads)
	w.instances = newSharded[ident.Name, *model.Instance]()
	for i := range instances {
		w.instances.put(instances[i].Workload, &instances[i])
	}
	w.groups = indexGroups(cfg.Endpoints)
	w.routings = indexRoutings(cfg.Routings)
	w.inbound = newSharded[ident.Name, []model.InboundPort]()
	for i := range instances {
		name := instances[i].Workload
		if wl := w.workloads.byName.get(name); wl != nil && w.instances.get(name) == &instances[i] {
			w.inbound.put(name, w.inboundPorts(wl, &instances[i]))
			w.nodes = append(w.nodes, name)
		}
	}
	for _, g := range w.gateways {
		w.nodes = append(w.nodes, g.Name)
	}
	slices.SortFunc(w.nodes, ident.Name.Compare)
	w.nodes = slices.Compact(w.nodes)
	w.members = newSharded[*model.Service, []*model.Member]()
	for _, s := range w.services {
		if m := w.membersOf(s); m != nil {
			w.members.put(s, m)
		}
	}
	return w
}

func ask(cfg *model.Config, gateways []model.GatewayInstance) *asked {
	w := &asked{
		config:     cfg,
		hosts:      make(map[string][]*model.Service, len(cfg.Services)),
		namespaces: map[string]*namespace{},
		splits:     map[string]*model.Split{},
		profiles:   map[profileKey]*model.Profile{},
		secrets:    map[string]*model.Secret{},
		limits:     map[string]*model.RateLimit{},
		zoneAware:  asksForZones(cfg.Traffic),
	}
	w.indexServices()
	for i := range gateways {
		w.gateways = append(w.gateways, &gateways[i])
	}
	slices.SortFunc(w.gateways, func(a, b *model.GatewayInstance) int { return a.Name.Compare(b.Name) })

	w.doors = oldestFirst(cfg.Gateways, func(g *model.Gateway) *model.Meta { return &g.Meta })
	for _, p := range oldestFirst(cfg.PeerAuth, func(p *model.PeerAuth) *model.Meta { return &p.Meta }) {
		ns := w.in(p.Name.Namespace)
		ns.peerAuth = append(ns.peerAuth, p)
	}
	for i := range cfg.Policies {
		ns := w.in(cfg.Policies[i].Name.Namespace)
		ns.policies = append(ns.policies, &cfg.Policies[i])
	}
	for _, ns := range w.namespaces {
		slices.SortFunc(ns.policies, func(a, b *model.AuthzPolicy) int { return a.Name.Compare(b.Name) })
	}
	for _, s := range oldestFirst(cfg.Splits, func(s *model.Split) *model.Meta { return &s.Meta }) {
		// A split divides a service of its own namespace only (SMI), else one namespace could take another's traffic.
		if w.splits[s.Host] == nil && w.serviceOf(s.Host, s.Name.Namespace) != nil {
			w.splits[s.Host] = s
		}
	}
	for _, p := range oldestFirst(cfg.Profiles, func(p *model.Profile) *model.Meta { return &p.Meta }) {
		k := profileKey{p.Name.Namespace, p.Host}
		if w.profiles[k] == nil {
			w.profiles[k] = p
		}
	}
	for _, p := range oldestFirst(cfg.Sidecars, func(p *model.SidecarPolicy) *model.Meta { return &p.Meta }) {
		ns := w.in(p.Name.Namespace)
		ns.sidecars = append(ns.sidecars, p)
	}
	for _, l := range oldestFirst(cfg.RateLimits, func(l *model.RateLimit) *model.Meta { return &l.Meta }) {
		if w.limits[l.Limit.Name] == nil {
			w.limits[l.Limit.Name] = l
		}
		if !l.ByRoute {
			ns := w.in(l.Name.Namespace)
			ns.limits = append(ns.limits, l)
		}
	}
	for i := range cfg.Secrets {
		if s := &cfg.Secrets[i]; w.secrets[s.Secret.Name] == nil {
			w.secrets[s.Secret.Name] = s
		}
	}
	w.outside = oldestFirst(cfg.Egress, func(e *model.Egress) *model.Meta { return &e.Meta })
	w.indexTraffic()
	return w
}

// in returns the namespace called name, made when missing: only ask may call it.
func (w *asked) in(name string) *namespace {
	ns := w.namespaces[name]
	if ns == nil {
		ns = &namespace{bySelector: map[label][]*model.Service{}}
		w.namespaces[name] = ns
	}
	return ns
}

// nowhere is a namespace in which nothing stands.
var nowhere = &namespace{}

// namespace returns the namespace called name, an empty one when nothing stands there.
func (w *asked) namespace(name string) *namespace {
	if ns := w.namespaces[name]; ns != nil {
		return ns
	}
	return nowhere
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

// Config returns what users wrote, as Build was given it: what With changed since is not in it.
func (w *World) Config() *model.Config { return w.config }

// Workload returns a workload and where it runs. The instance is nil while it is not placed.
func (w *World) Workload(name ident.Name) (*model.Workload, *model.Instance) {
	return w.workloads.byName.get(name), w.instances.get(name)
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
func (w *World) Nodes() []ident.Name { return w.nodes }

// Doors returns every Gateway, oldest first.
func (w *World) Doors() []*model.Gateway { return w.doors }

// Inbound returns the served ports of a placed workload, sorted by port.
func (w *World) Inbound(workload ident.Name) []model.InboundPort { return w.inbound.get(workload) }

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
		CanonicalService:  cmp.Or(canonicalOf(labels).value, workload),
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

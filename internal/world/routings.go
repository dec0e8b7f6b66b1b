package world

import (
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// routingIndex finds routings. Every list is ordered oldest first.
type routingIndex struct {
	all       ordered
	byHost    sharded[string, ordered] // by exact host
	byNS      sharded[string, ordered]
	byName    sharded[model.RoutingName, *model.Routing]
	wildcards ordered // that have a host with "*"
	delegates sharded[ident.Name, *model.Routing]
}

func routingName(r *model.Routing) model.RoutingName {
	return model.RoutingName{Kind: r.Origin.Kind, Name: r.Name}
}

// Older orders routings by age, then name: Istio's order of precedence.
func Older(a, b *model.Routing) int {
	if c := a.Created.Compare(b.Created); c != 0 {
		return c
	}
	return a.Name.Compare(b.Name)
}

func wild(r *model.Routing) bool {
	return slices.ContainsFunc(r.Hosts, func(h string) bool { return strings.HasPrefix(h, "*") })
}

func indexRoutings(all []model.Routing) routingIndex {
	x := routingIndex{
		byHost: newSharded[string, ordered](), byNS: newSharded[string, ordered](),
		byName:    newSharded[model.RoutingName, *model.Routing](),
		delegates: newSharded[ident.Name, *model.Routing](),
	}
	sorted := oldestFirst(all, func(r *model.Routing) *model.Meta { return &r.Meta })
	hosts, namespaces := map[string][]*model.Routing{}, map[string][]*model.Routing{}
	var wildcards []*model.Routing
	for _, r := range sorted {
		x.byName.put(routingName(r), r)
		namespaces[r.Name.Namespace] = append(namespaces[r.Name.Namespace], r)
		for _, h := range exactHosts(r) {
			hosts[h] = append(hosts[h], r)
		}
		if wild(r) {
			wildcards = append(wildcards, r)
		}
		if r.Delegate && x.delegates.get(r.Name) == nil {
			x.delegates.put(r.Name, r)
		}
	}
	x.all, x.wildcards = orderedOf(sorted), orderedOf(wildcards)
	for h, list := range hosts {
		x.byHost.put(h, orderedOf(list))
	}
	for ns, list := range namespaces {
		x.byNS.put(ns, orderedOf(list))
	}
	return x
}

// exactHosts returns the hosts of r without "*", each once.
func exactHosts(r *model.Routing) []string {
	for i, h := range r.Hosts {
		if strings.HasPrefix(h, "*") || slices.Contains(r.Hosts[:i], h) {
			out := slices.DeleteFunc(slices.Clone(r.Hosts), func(h string) bool { return strings.HasPrefix(h, "*") })
			slices.Sort(out)
			return slices.Compact(out)
		}
	}
	return r.Hosts
}

// with returns x with routings set and gone, and those that are in only one of the two.
func (x *routingIndex) with(set []model.Routing, gone []model.RoutingName) (routingIndex, []*model.Routing) {
	out := *x
	hosts, namespaces, names, delegates := x.byHost.edit(), x.byNS.edit(), x.byName.edit(), x.delegates.edit()
	var differ []*model.Routing
	remove := func(n model.RoutingName) {
		r := names.next.get(n)
		if r == nil {
			return
		}
		differ = append(differ, r)
		names.remove(n)
		out.all = out.all.without(r)
		namespaces.set(n.Namespace, namespaces.next.get(n.Namespace).without(r))
		for _, h := range exactHosts(r) {
			hosts.set(h, hosts.next.get(h).without(r))
		}
		if wild(r) {
			out.wildcards = out.wildcards.without(r)
		}
		if r.Delegate {
			delegates.remove(r.Name)
		}
	}
	for _, n := range gone {
		remove(n)
	}
	for i := range set {
		r := &set[i]
		remove(routingName(r))
		differ = append(differ, r)
		names.set(routingName(r), r)
		out.all = out.all.with(r)
		namespaces.set(r.Name.Namespace, namespaces.next.get(r.Name.Namespace).with(r))
		for _, h := range exactHosts(r) {
			hosts.set(h, hosts.next.get(h).with(r))
		}
		if wild(r) {
			out.wildcards = out.wildcards.with(r)
		}
		if r.Delegate {
			delegates.set(r.Name, r)
		}
	}
	out.byHost, out.byNS, out.byName, out.delegates = hosts.next, namespaces.next, names.next, delegates.next
	return out, differ
}

// Routings returns every routing, oldest first.
func (w *World) Routings() []*model.Routing { return w.routings.all.flat() }

// RoutingsIn returns the routings of a namespace, oldest first.
func (w *World) RoutingsIn(namespace string) []*model.Routing {
	return w.routings.byNS.get(namespace).flat()
}

// RoutingsOf returns the routings that name an exact host, oldest first.
func (w *World) RoutingsOf(host string) []*model.Routing { return w.routings.byHost.get(host).flat() }

// WideRoutings returns the routings that have a host with "*", oldest first.
func (w *World) WideRoutings() []*model.Routing { return w.routings.wildcards.flat() }

// Delegate returns the routing that rules of a namespace delegate to by name; false when there is none, or it is not let
// out to that namespace.
func (w *World) Delegate(name ident.Name, namespace string) (*model.Routing, bool) {
	r := w.routings.delegates.get(name)
	return r, r != nil && VisibleIn(r.ExportTo, namespace)
}

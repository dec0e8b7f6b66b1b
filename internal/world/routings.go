package world

import (
	"slices"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// routingIndex finds routings. Every list is ordered oldest first.
type routingIndex struct {
	all       []*model.Routing
	byHost    sharded[string, []*model.Routing] // by exact host
	byNS      sharded[string, []*model.Routing]
	byName    sharded[model.RoutingName, *model.Routing]
	wildcards []*model.Routing // that have a host with "*"
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
	return slices.ContainsFunc(r.Hosts, func(h string) bool { return h[0] == '*' })
}

func indexRoutings(all []model.Routing) routingIndex {
	x := routingIndex{
		all:    oldestFirst(all, func(r *model.Routing) *model.Meta { return &r.Meta }),
		byHost: newSharded[string, []*model.Routing](), byNS: newSharded[string, []*model.Routing](),
		byName:    newSharded[model.RoutingName, *model.Routing](),
		delegates: newSharded[ident.Name, *model.Routing](),
	}
	for _, r := range x.all {
		x.byName.put(routingName(r), r)
		x.byNS.put(r.Name.Namespace, append(x.byNS.get(r.Name.Namespace), r))
		for _, h := range r.Hosts {
			if h[0] != '*' {
				x.byHost.put(h, append(x.byHost.get(h), r))
			}
		}
		if wild(r) {
			x.wildcards = append(x.wildcards, r)
		}
		if r.Delegate && x.delegates.get(r.Name) == nil {
			x.delegates.put(r.Name, r)
		}
	}
	return x
}

// with returns x with routings set and gone, and those that are in only one of the two.
func (x *routingIndex) with(set []model.Routing, gone []model.RoutingName) (routingIndex, []*model.Routing) {
	out := *x
	hosts, namespaces, names, delegates := x.byHost.edit(), x.byNS.edit(), x.byName.edit(), x.delegates.edit()
	out.all, out.wildcards = slices.Clone(x.all), slices.Clone(x.wildcards)
	var differ []*model.Routing
	remove := func(n model.RoutingName) {
		r := names.next.get(n)
		if r == nil {
			return
		}
		differ = append(differ, r)
		names.remove(n)
		out.all = without(out.all, r)
		out.wildcards = without(out.wildcards, r)
		namespaces.set(n.Namespace, without(slices.Clone(namespaces.next.get(n.Namespace)), r))
		for _, h := range r.Hosts {
			if h[0] != '*' {
				hosts.set(h, without(slices.Clone(hosts.next.get(h)), r))
			}
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
		out.all = inserted(out.all, r)
		namespaces.set(r.Name.Namespace, inserted(slices.Clone(namespaces.next.get(r.Name.Namespace)), r))
		for _, h := range r.Hosts {
			if h[0] != '*' {
				hosts.set(h, inserted(slices.Clone(hosts.next.get(h)), r))
			}
		}
		if wild(r) {
			out.wildcards = inserted(out.wildcards, r)
		}
		if r.Delegate {
			delegates.set(r.Name, r)
		}
	}
	out.byHost, out.byNS, out.byName, out.delegates = hosts.next, namespaces.next, names.next, delegates.next
	return out, differ
}

func without(list []*model.Routing, r *model.Routing) []*model.Routing {
	i, ok := slices.BinarySearchFunc(list, r, Older)
	if !ok {
		return list
	}
	for ; i < len(list) && Older(list[i], r) == 0; i++ {
		if list[i] == r {
			return slices.Delete(list, i, i+1)
		}
	}
	return list
}

// inserted puts r behind those of its age and name.
func inserted(list []*model.Routing, r *model.Routing) []*model.Routing {
	i, ok := slices.BinarySearchFunc(list, r, Older)
	for ok && i < len(list) && Older(list[i], r) == 0 {
		i++
	}
	return slices.Insert(list, i, r)
}

// Routings returns every routing, oldest first.
func (w *World) Routings() []*model.Routing { return w.routings.all }

// RoutingsIn returns the routings of a namespace, oldest first.
func (w *World) RoutingsIn(namespace string) []*model.Routing { return w.routings.byNS.get(namespace) }

// RoutingsOf returns the routings that name an exact host, oldest first.
func (w *World) RoutingsOf(host string) []*model.Routing { return w.routings.byHost.get(host) }

// WideRoutings returns the routings that have a host with "*", oldest first.
func (w *World) WideRoutings() []*model.Routing { return w.routings.wildcards }

// Delegate returns the routing that rules of a namespace delegate to by name; false when there is none, or it is not let
// out to that namespace.
func (w *World) Delegate(name ident.Name, namespace string) (*model.Routing, bool) {
	r := w.routings.delegates.get(name)
	return r, r != nil && VisibleIn(r.ExportTo, namespace)
}

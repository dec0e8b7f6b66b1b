package world

import (
	"cmp"
	"slices"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// With returns the moment after d, and what d touched. w stays as it is, and the two share everything else: the cost is
// that of what d names and of the services that this belongs to, however many others there are. The World shares what d
// holds, which must not change any more.
//
// What to do about a Change: a proxy in Nodes gets a new plan, or loses its own. For each host in Services, every other
// proxy that sees the service (scope.Service) gets the endpoints of compile.Endpoints, or a new plan where that says so.
// For Routings, compare scope.For of the proxies that see one of them (scope.Sees) with what it was.
func (w *World) With(d *model.Delta) (*World, model.Change) {
	next := &World{asked: w.asked, placed: w.placed, nodes: w.nodes}
	var change model.Change
	if len(d.Routings)+len(d.Unrouted) > 0 {
		next.routings, change.Routings = w.routings.with(d.Routings, d.Unrouted)
	}
	var touched []*model.Service
	if len(d.Workloads)+len(d.Ended) > 0 {
		next.workloads = w.workloads.with(d.Workloads, d.Ended)
	}
	if len(d.Instances)+len(d.Unplaced)+len(d.Workloads)+len(d.Ended) > 0 {
		touched = next.replace(w, d, &change)
		next.neighbours(w, d, &change)
	}
	if len(d.Groups)+len(d.Ungrouped) > 0 {
		var groups []*model.EndpointGroup
		next.groups, groups = w.groups.with(d.Groups, d.Ungrouped)
		for _, g := range groups {
			touched = append(touched, w.servicesOf(g)...)
		}
	}
	slices.SortFunc(touched, func(a, b *model.Service) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Name.Namespace, b.Name.Namespace))
	})
	members := w.members.edit()
	for _, s := range slices.Compact(touched) {
		now := next.membersOf(s)
		if before := w.MembersOf(s); slices.EqualFunc(before, now, sameMember) {
			continue
		}
		members.set(s, now)
		change.Services = append(change.Services, s.Host)
	}
	change.Services = slices.Compact(change.Services)
	next.members = members.next
	return next, change
}

// replace puts the instances of d in, whose workloads are in already, and returns the services that they belong to.
func (w *World) replace(before *World, d *model.Delta, change *model.Change) []*model.Service {
	instances, inbound := before.instances.edit(), before.inbound.edit()
	var touched []*model.Service
	touch := func(name ident.Name, in *model.Instance) {
		wl, was := w.workloads.byName.get(name), before.workloads.byName.get(name)
		old := before.instances.get(name)
		if in != nil {
			instances.set(name, in)
		} else {
			instances.remove(name)
		}
		services := w.namespace(name.Namespace)
		if was != nil {
			touched = append(touched, services.selecting(was.Labels)...)
		}
		if wl != nil && wl != was {
			touched = append(touched, services.selecting(wl.Labels)...)
		}
		here, there := wl != nil && in != nil, was != nil && old != nil
		if !here && !there || here && there && wl == was && sameButReady(in, old) {
			return // of nobody that is configured, or nothing new to its proxy
		}
		change.Nodes = append(change.Nodes, name)
		if here {
			inbound.set(name, w.inboundPorts(wl, in))
		} else {
			inbound.remove(name)
		}
		if here != there {
			w.nodes = changed(w.nodes, name, here)
		}
	}
	placed := map[ident.Name]bool{}
	for _, name := range d.Ended {
		touch(name, nil)
	}
	for _, name := range d.Unplaced {
		placed[name] = true
		touch(name, nil)
	}
	for i := range d.Instances {
		placed[d.Instances[i].Workload] = true
		touch(d.Instances[i].Workload, &d.Instances[i])
	}
	for i := range d.Workloads {
		if name := d.Workloads[i].Name; !placed[name] {
			touch(name, before.instances.get(name))
		}
	}
	w.instances, w.inbound = instances.next, inbound.next
	slices.SortFunc(change.Nodes, ident.Name.Compare)
	change.Nodes = slices.Compact(change.Nodes)
	return touched
}

// changed returns a copy of nodes with or without name.
func changed(nodes []ident.Name, name ident.Name, in bool) []ident.Name {
	i, have := slices.BinarySearchFunc(nodes, name, ident.Name.Compare)
	switch {
	case in && !have:
		return slices.Insert(slices.Clone(nodes), i, name)
	case !in && have:
		return slices.Delete(slices.Clone(nodes), i, i+1)
	}
	return nodes
}

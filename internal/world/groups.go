package world

import (
	"cmp"
	"slices"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// groupKey is where services look for groups of endpoints: those of their host, or, with an empty host, those of their
// namespace that labels select.
type groupKey struct{ namespace, host string }

func keyOf(g *model.EndpointGroup) groupKey { return groupKey{g.Name.Namespace, g.Host} }

// groupName names a group: an EndpointSlice and a WorkloadEntry may be called the same.
type groupName struct {
	ident.Name
	selected bool
}

func nameOf(g *model.EndpointGroup) groupName { return groupName{g.Name, g.Host == ""} }

// groupIndex finds endpoints that were written down for themselves. Every list is sorted by name.
type groupIndex struct {
	byKey  sharded[groupKey, []*model.EndpointGroup]
	byName sharded[groupName, *model.EndpointGroup]
}

func indexGroups(all []model.EndpointGroup) groupIndex {
	x := groupIndex{byKey: newSharded[groupKey, []*model.EndpointGroup](), byName: newSharded[groupName, *model.EndpointGroup]()}
	sorted := make([]*model.EndpointGroup, len(all))
	for i := range all {
		sorted[i] = &all[i]
	}
	slices.SortStableFunc(sorted, func(a, b *model.EndpointGroup) int { return a.Name.Compare(b.Name) })
	for _, g := range sorted {
		if x.byName.get(nameOf(g)) == nil {
			x.byName.put(nameOf(g), g)
			x.byKey.put(keyOf(g), append(x.byKey.get(keyOf(g)), g))
		}
	}
	return x
}

// with returns x with groups set and gone, and those that are in only one of the two.
func (x *groupIndex) with(set []model.EndpointGroup, gone []ident.Name) (groupIndex, []*model.EndpointGroup) {
	keys, names := x.byKey.edit(), x.byName.edit()
	var differ []*model.EndpointGroup
	remove := func(n groupName) {
		g := names.next.get(n)
		if g == nil {
			return
		}
		differ = append(differ, g)
		names.remove(n)
		list := slices.Clone(keys.next.get(keyOf(g)))
		keys.set(keyOf(g), slices.DeleteFunc(list, func(o *model.EndpointGroup) bool { return o == g }))
	}
	for _, n := range gone {
		remove(groupName{n, false})
		remove(groupName{n, true})
	}
	for i := range set {
		g := &set[i]
		remove(nameOf(g))
		differ = append(differ, g)
		names.set(nameOf(g), g)
		list := keys.next.get(keyOf(g))
		at, _ := slices.BinarySearchFunc(list, g, func(a, b *model.EndpointGroup) int { return a.Name.Compare(b.Name) })
		keys.set(keyOf(g), slices.Insert(slices.Clone(list), at, g))
	}
	return groupIndex{byKey: keys.next, byName: names.next}, differ
}

// written is an endpoint that was written down, and the labels that select it.
type written struct {
	*model.ServiceEndpoint
	labels map[string]string
	named  bool // it serves the ports that it names, and no others (EndpointSlice)
}

// writtenFor returns the endpoints of s that were written down: its own, those of groups of its host, and those of groups
// that its selector takes.
func (w *World) writtenFor(s *model.Service) []written {
	var out []written
	for i := range s.Endpoints {
		out = append(out, written{ServiceEndpoint: &s.Endpoints[i], labels: s.Endpoints[i].Labels})
	}
	for _, g := range w.groups.byKey.get(groupKey{s.Name.Namespace, s.Host}) {
		for i := range g.Endpoints {
			out = append(out, written{ServiceEndpoint: &g.Endpoints[i], labels: onNode(united(g.Labels, g.Endpoints[i].Labels), g.Endpoints[i].Node), named: true})
		}
	}
	if len(s.Selector) == 0 {
		return out
	}
	for _, g := range w.groups.byKey.get(groupKey{s.Name.Namespace, ""}) {
		for i := range g.Endpoints {
			if labels := united(g.Labels, g.Endpoints[i].Labels); model.HasLabels(labels, s.Selector) {
				out = append(out, written{ServiceEndpoint: &g.Endpoints[i], labels: labels})
			}
		}
	}
	return out
}

// nodeLabel is what endpoints on one node have in common (Kubernetes, well-known labels).
const nodeLabel = "kubernetes.io/hostname"

func onNode(labels map[string]string, node string) map[string]string {
	if node == "" {
		return labels
	}
	return united(map[string]string{nodeLabel: node}, labels)
}

// united returns the labels of both; those of the second win.
func united(a, b map[string]string) map[string]string {
	switch {
	case len(a) == 0:
		return b
	case len(b) == 0:
		return a
	}
	out := make(map[string]string, len(a)+len(b))
	for k, v := range a {
		out[k] = v
	}
	for k, v := range b {
		out[k] = v
	}
	return out
}

// servicesOf returns the services that a group's endpoints belong to.
func (w *World) servicesOf(g *model.EndpointGroup) []*model.Service {
	if g.Host != "" {
		if s := w.serviceOf(g.Host, g.Name.Namespace); s != nil {
			return []*model.Service{s}
		}
		return nil
	}
	var out []*model.Service
	for i := range g.Endpoints {
		for _, s := range w.namespace(g.Name.Namespace).selecting(united(g.Labels, g.Endpoints[i].Labels)) {
			if !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	slices.SortFunc(out, func(a, b *model.Service) int { return cmp.Compare(a.Host, b.Host) })
	return out
}

package world

import (
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// indexTraffic merges the destination policies of one namespace that name the same host, oldest first: subsets are
// united (the first of a name wins) and the first traffic policy wins. Policies are merged only when they are let out to
// the same namespaces, else a private block would leak. Source: Istio, DestinationRule "merge".
func (w *World) indexTraffic() {
	type key struct{ namespace, host, exportTo string }
	merged := map[key]*model.DestinationPolicy{}
	for _, p := range oldestFirst(w.config.Traffic, func(p *model.DestinationPolicy) *model.Meta { return &p.Meta }) {
		k := key{p.Name.Namespace, p.Host, strings.Join(slices.Sorted(slices.Values(p.ExportTo)), ",")}
		first := merged[k]
		if first == nil {
			merged[k] = p
			w.traffic[p.Name.Namespace] = append(w.traffic[p.Name.Namespace], p)
			continue
		}
		both := mergeTraffic(first, p)
		merged[k] = both
		list := w.traffic[p.Name.Namespace]
		list[slices.Index(list, first)] = both
	}
	for _, list := range w.traffic {
		slices.SortStableFunc(list, func(a, b *model.DestinationPolicy) int { return ident.CompareSpecific(a.Host, b.Host) })
	}
}

func mergeTraffic(first, second *model.DestinationPolicy) *model.DestinationPolicy {
	out := *first
	out.Subsets = slices.Clone(first.Subsets)
	for _, s := range second.Subsets {
		if !slices.ContainsFunc(out.Subsets, func(have model.Subset) bool { return have.Name == s.Name }) {
			out.Subsets = append(out.Subsets, s)
		}
	}
	if out.Traffic == nil && second.Traffic != nil {
		out.Traffic = second.Traffic
	}
	return &out
}

// PolicyFor returns the destination policy that wins for a client: the client's namespace is asked first, then the
// service's, then the root namespace, and in one namespace the most specific host wins. There is no merge across
// namespaces. Source: Istio, "DestinationRule lookup path".
func (w *World) PolicyFor(client string, s *model.Service) *model.DestinationPolicy {
	for i, ns := range [...]string{client, s.Name.Namespace, ident.RootNamespace} {
		if i > 0 && ns == client {
			continue
		}
		for _, p := range w.traffic[ns] {
			if ident.HostCovers(p.Host, s.Host) && VisibleIn(p.ExportTo, client) {
				return p
			}
		}
	}
	return nil
}

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
	merging := map[string][]*model.DestinationPolicy{} // by namespace, oldest first
	for _, p := range oldestFirst(w.config.Traffic, func(p *model.DestinationPolicy) *model.Meta { return &p.Meta }) {
		k := key{p.Name.Namespace, p.Host, strings.Join(slices.Sorted(slices.Values(p.ExportTo)), ",")}
		first := merged[k]
		if first == nil {
			merged[k] = p
			merging[p.Name.Namespace] = append(merging[p.Name.Namespace], p)
			continue
		}
		both := mergeTraffic(first, p)
		merged[k] = both
		list := merging[p.Name.Namespace]
		list[slices.Index(list, first)] = both
	}
	for ns, list := range merging {
		t := trafficRules{exact: map[string][]*model.DestinationPolicy{}}
		for _, p := range list {
			if strings.HasPrefix(p.Host, "*") {
				t.wildcards = append(t.wildcards, p)
			} else {
				t.exact[p.Host] = append(t.exact[p.Host], p)
			}
		}
		slices.SortStableFunc(t.wildcards, func(a, b *model.DestinationPolicy) int { return ident.CompareSpecific(a.Host, b.Host) })
		w.traffic[ns] = t
	}
}

// trafficRules are the destination policies of one namespace.
type trafficRules struct {
	exact     map[string][]*model.DestinationPolicy // by host, oldest first
	wildcards []*model.DestinationPolicy            // most specific host first
}

// find returns the policy for a host that a client may see: the most specific.
func (t *trafficRules) find(client, host string) *model.DestinationPolicy {
	for _, p := range t.exact[host] {
		if VisibleIn(p.ExportTo, client) {
			return p
		}
	}
	for _, p := range t.wildcards {
		if ident.HostCovers(p.Host, host) && VisibleIn(p.ExportTo, client) {
			return p
		}
	}
	return nil
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
		if t, ok := w.traffic[ns]; ok {
			if p := t.find(client, s.Host); p != nil {
				return p
			}
		}
	}
	return nil
}

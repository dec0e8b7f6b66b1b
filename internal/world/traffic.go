package world

import (
	"fmt"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// indexTraffic merges the destination policies of one namespace that name the same host, oldest first: subsets are
// united (the first of a name wins) and the first traffic policy wins. Policies are merged only when they are let out to
// the same namespaces, else a private block would leak, and are for the same workloads.
// Source: Istio, DestinationRule "merge", and its mergeDestinationRule.
func (w *asked) indexTraffic() {
	type key struct{ namespace, host, exportTo, workloads string }
	merged := map[key]int{}
	lists := map[string][]*model.DestinationPolicy{} // by namespace, oldest first
	for _, p := range oldestFirst(w.config.Traffic, func(p *model.DestinationPolicy) *model.Meta { return &p.Meta }) {
		ns := p.Name.Namespace
		k := key{ns, p.Host, strings.Join(slices.Sorted(slices.Values(p.ExportTo)), ","), fmt.Sprint(p.Workloads)}
		if i, ok := merged[k]; ok {
			lists[ns][i] = mergeTraffic(lists[ns][i], p)
			continue
		}
		merged[k] = len(lists[ns])
		lists[ns] = append(lists[ns], p)
	}
	for ns, list := range lists {
		t := trafficRules{exact: map[string][]*model.DestinationPolicy{}}
		for _, p := range list {
			if strings.HasPrefix(p.Host, "*") {
				t.wildcards = append(t.wildcards, p)
			} else {
				t.exact[p.Host] = append(t.exact[p.Host], p)
			}
		}
		slices.SortStableFunc(t.wildcards, func(a, b *model.DestinationPolicy) int { return ident.CompareSpecific(a.Host, b.Host) })
		w.in(ns).traffic = t
	}
}

// trafficRules are the destination policies of one namespace.
type trafficRules struct {
	exact     map[string][]*model.DestinationPolicy // by host, oldest first
	wildcards []*model.DestinationPolicy            // most specific host first, then oldest
}

// asker is a client that looks for a policy in a namespace.
type asker struct {
	namespace string
	labels    map[string]string
	own       bool // it asks in its own namespace
	private   bool // for what is let out to that alone
}

// find returns the policy for a host that a client may see: the most specific; of several for one host, one for the
// client's workload before one for all. Source: Istio, DestinationRule.workloadSelector.
func (t *trafficRules) find(a *asker, host string) *model.DestinationPolicy {
	if p := a.first(t.exact[host]); p != nil {
		return p
	}
	for i, p := range t.wildcards {
		if !ident.HostCovers(p.Host, host) {
			continue
		}
		n := i + 1
		for n < len(t.wildcards) && t.wildcards[n].Host == p.Host {
			n++
		}
		if found := a.first(t.wildcards[i:n]); found != nil {
			return found
		}
	}
	return nil
}

func (a *asker) first(all []*model.DestinationPolicy) *model.DestinationPolicy {
	var general *model.DestinationPolicy
	for _, p := range all {
		switch {
		case !VisibleIn(p.ExportTo, a.namespace), a.private && (len(p.ExportTo) != 1 || p.ExportTo[0] != a.namespace):
		case len(p.Workloads) > 0:
			if a.own && model.HasLabels(a.labels, p.Workloads) {
				return p
			}
		case general == nil:
			general = p
		}
	}
	return general
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

// PolicyFor returns the destination policy that wins for a client, a namespace and labels: the client's namespace is asked
// first, then the service's, then the root namespace, and in one namespace the most specific host wins. There is no merge
// across namespaces. What stands in the root namespace is for the whole mesh, and comes last for a client that lives there too, as
// gateways do, but for what is let out to no other. Source: Istio, "DestinationRule lookup path"; its PushContext.destinationRule.
func (w *asked) PolicyFor(client string, labels map[string]string, s *model.Service) *model.DestinationPolicy {
	rooted := client == ident.RootNamespace
	for i, ns := range [...]string{client, s.Name.Namespace, ident.RootNamespace} {
		if i > 0 && ns == client && !rooted {
			continue
		}
		t := &w.namespace(ns).traffic
		if p := t.find(&asker{client, labels, ns == client, i == 0 && rooted}, s.Host); p != nil {
			return p
		}
	}
	return nil
}

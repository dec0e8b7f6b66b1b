package world

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// canonical is the labels that say which workloads are replicas of one, the first that a workload has. Source: Istio, canonical
// service.
var canonical = [...]string{"service.istio.io/canonical-name", "app.kubernetes.io/name", "app"}

// replicas returns the workloads of which wl is one, itself among them, sorted by name: those of its namespace and identity whose
// canonical service the same label names.
func (w *World) replicas(wl *model.Workload) []*model.Workload {
	is := canonicalOf(wl.Labels)
	if is.key == "" {
		return []*model.Workload{wl}
	}
	return slices.DeleteFunc(w.selected(wl.Name.Namespace, map[string]string{is.key: is.value}), func(o *model.Workload) bool {
		return o.Identity != wl.Identity || canonicalOf(o.Labels) != is
	})
}

func canonicalOf(labels map[string]string) label {
	for _, key := range canonical {
		if v := labels[key]; v != "" {
			return label{key, v}
		}
	}
	return label{}
}

// zones counts the replicas of a workload that are ready, by "region/zone".
func (w *World) zones(replicas []*model.Workload) map[string]int {
	count := map[string]int{}
	for _, o := range replicas {
		if in := w.instances.get(o.Name); in != nil && in.Ready {
			if region, zone, _ := plan.SplitLocality(o.Locality); zone != "" {
				count[region+"/"+zone]++
			}
		}
	}
	return count
}

// Peers returns plan.Node.Peers of a workload. Empty where no policy of the mesh asks, or where it does not know its own zone.
func (w *World) Peers(wl *model.Workload) plan.LabelSet {
	if !w.zoneAware {
		return ""
	}
	return near(wl.Locality, w.zones(w.replicas(wl)))
}

// GatewayPeers is Peers of a gateway: of those that were started for the same Gateway, or serve under the same name.
func (w *World) GatewayPeers(g *model.GatewayInstance) plan.LabelSet {
	if !w.zoneAware {
		return ""
	}
	service := describe(g.Name, g.Labels).CanonicalService
	count := map[string]int{}
	for _, o := range w.gateways {
		if region, zone, _ := plan.SplitLocality(o.Locality); zone != "" && o.Name.Namespace == g.Name.Namespace && o.For == g.For && o.Identity == g.Identity &&
			describe(o.Name, o.Labels).CanonicalService == service {
			count[region+"/"+zone]++
		}
	}
	return near(g.Locality, count)
}

// near spells the counts of the region that a locality is in.
func near(here string, count map[string]int) plan.LabelSet {
	region, zone, _ := plan.SplitLocality(here)
	if zone == "" {
		return ""
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(count)) {
		if strings.HasPrefix(name, region+"/") && !strings.ContainsAny(name, ",=") {
			out = append(out, name+"="+strconv.Itoa(count[name]))
		}
	}
	return plan.LabelSet(strings.Join(out, ","))
}

// asksForZones reports whether any policy balances by zones.
func asksForZones(all []model.DestinationPolicy) bool {
	asks := func(t *model.TrafficPolicy) bool { return t.Locality != nil && t.Locality.ZoneAware != nil }
	anywhere := func(t *model.TrafficPolicy) bool {
		return t != nil && (asks(t) || slices.ContainsFunc(t.Ports, func(p model.PortPolicy) bool { return asks(&p.Traffic) }))
	}
	return slices.ContainsFunc(all, func(p model.DestinationPolicy) bool {
		return anywhere(p.Traffic) || slices.ContainsFunc(p.Subsets, func(s model.Subset) bool { return anywhere(s.Traffic) })
	})
}

// neighbours adds the proxies to a Change whose Peers are others than before: replicas of the workloads that d names.
func (w *World) neighbours(before *World, d *model.Delta, change *model.Change) {
	if !w.zoneAware {
		return
	}
	done := map[ident.Name]bool{}
	compare := func(name ident.Name) {
		for _, at := range [...]*World{before, w} { // it may have been a replica of another workload
			wl := at.workloads.byName.get(name)
			if wl == nil {
				continue
			}
			were, are := before.replicas(wl), w.replicas(wl)
			if len(are) == 0 || done[are[0].Name] {
				continue
			}
			done[are[0].Name] = true
			if maps.Equal(before.zones(were), w.zones(are)) {
				continue
			}
			for _, o := range are {
				if w.instances.get(o.Name) != nil {
					change.Nodes = append(change.Nodes, o.Name)
				}
			}
		}
	}
	for i := range d.Instances {
		compare(d.Instances[i].Workload)
	}
	for i := range d.Workloads {
		compare(d.Workloads[i].Name)
	}
	for _, names := range [...][]ident.Name{d.Unplaced, d.Ended} {
		for _, name := range names {
			compare(name)
		}
	}
	slices.SortFunc(change.Nodes, ident.Name.Compare)
	change.Nodes = slices.Compact(change.Nodes)
}

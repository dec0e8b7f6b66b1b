package balance

import (
	"math"
	"strconv"

	"github.com/malha-mesh/malha/internal/plan"
)

const (
	leastOfZones = 6 // endpoints, with ZoneAware.MinEndpoints 0 (Istio minClusterSize, Envoy min_cluster_size)
	// wholeLevel is the weights of a level that is divided by zones, together: a number that all up to 16 divide, so that the shares of
	// most are exact.
	wholeLevel = 720720 << 5
)

// Divide gives the members of the nearest level that are in one region weights by which the zones get what ZoneAware says, and
// makes those Spare whose zone gets nothing. locality returns where a member is. Members are left alone where there is no ZoneAware, or its
// conditions are not met: then the zones of a region are alike.
//
// Source: Envoy, "Zone aware routing" and ZoneAwareLoadBalancerBase::regenerateLocalityRoutingStructures. Shares are of the
// numbers of healthy endpoints and of clients; what the own zone cannot take goes to those with more endpoints than clients,
// by how many more.
func Divide[T comparable](m *Map, members []Member[T], locality func(T) string) {
	clients := m.clients()
	if clients == nil {
		return
	}
	type zone struct {
		endpoints int
		weight    float64 // together
		share     float64 // of the requests
	}
	zones, healthy := map[string]*zone{}, 0
	level := func(e *Member[T]) *zone { // nil: of another level, or put aside
		if e.Group != 0 || e.Aside {
			return nil
		}
		name := zoneOf(locality(e.Value))
		z := zones[name]
		if z == nil {
			z = &zone{}
			zones[name] = z
		}
		return z
	}
	for i := range members {
		if z := level(&members[i]); z != nil {
			z.endpoints++
			z.weight += float64(max(members[i].Weight, 1))
			healthy++
		}
	}
	here := zoneOf(m.here.Locality)
	least := int(m.locality.ZoneAware.MinEndpoints)
	if least == 0 {
		least = leastOfZones
	}
	if healthy < least || len(zones) < 2 || zones[here] == nil {
		return
	}
	surplus := func(name string) float64 { // of the share of endpoints over that of clients
		return float64(zones[name].endpoints)/float64(healthy) - clients[name]
	}
	if own := zones[here]; surplus(here) >= 0 {
		own.share = 1
	} else {
		own.share = float64(own.endpoints) / float64(healthy) / clients[here]
		total := 0.0
		for name := range zones {
			total += max(surplus(name), 0)
		}
		for name, z := range zones {
			if s := surplus(name); s > 0 {
				z.share = (1 - own.share) * s / total
			}
		}
	}
	for i := range members {
		z := level(&members[i])
		switch {
		case z == nil:
		case z.share == 0:
			members[i].Spare = true
		default:
			members[i].Weight = max(uint32(math.Round(float64(max(members[i].Weight, 1))/z.weight*z.share*wholeLevel)), 1)
		}
	}
}

// clients returns the share of the clients that each zone has; nil when that is not asked, or not known.
func (m *Map) clients() map[string]float64 {
	if !m.byZone || !m.levels || m.here.Peers == "" {
		return nil
	}
	out, total := map[string]float64{}, 0.0
	for name, number := range m.here.Peers.All() {
		if n, err := strconv.ParseUint(number, 10, 32); err == nil && n > 0 {
			out[name] += float64(n)
			total += float64(n)
		}
	}
	if out[zoneOf(m.here.Locality)] == 0 {
		return nil // it would not know itself
	}
	for name := range out {
		out[name] /= total
	}
	return out
}

// zoneOf returns the region and zone of a locality.
func zoneOf(locality string) string {
	region, zone, _ := plan.SplitLocality(locality)
	return region + "/" + zone
}

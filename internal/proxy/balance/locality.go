package balance

import (
	"math"
	"slices"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
)

// Place is where a proxy is, see plan.Node.
type Place struct {
	Locality string
	Labels   plan.LabelSet
	Peers    plan.LabelSet
}

// Map says how near endpoints are to a place. The zero Map knows nothing: all are in group 0.
type Map struct {
	here     Place
	locality *plan.Locality
	shares   []plan.LocalityShare // of distribute
	levels   bool
	byZone   bool // the zones of a region are one level
}

// NewMap returns the map of l (nil: none) for a place. Where the proxy does not know its own place, or no distribution is for
// it, endpoints everywhere are alike (Istio does the same).
func NewMap(l *plan.Locality, here Place) Map {
	m := Map{here: here, locality: l}
	switch {
	case l == nil:
	case len(l.Distribute) > 0:
		for i := range l.Distribute {
			if covers(l.Distribute[i].From, here.Locality) {
				m.shares = l.Distribute[i].To
				break
			}
		}
	default:
		m.levels = len(l.Priority) > 0 || here.Locality != ""
		m.byZone = l.ZoneAware != nil
	}
	return m
}

// Shares returns those for Options.Shares; nil: groups are levels.
func (m *Map) Shares() []uint32 {
	if m.shares == nil {
		return nil
	}
	s := make([]uint32, len(m.shares))
	for i := range m.shares {
		s[i] = m.shares[i].Percent
	}
	return s
}

// Group returns the group of an endpoint, below 0 when it gets nothing.
func (m *Map) Group(e *plan.Endpoint) int {
	switch {
	case m.shares != nil:
		// The most exact one: shares for a zone and for the rest of its region may stand beside each other.
		best, length := -1, -1
		for i := range m.shares {
			if p := m.shares[i].Locality; covers(p, e.Locality) && len(p) > length {
				best, length = i, len(p)
			}
		}
		return best
	case !m.levels:
		return 0
	case m.byZone:
		return m.byLabels(e)*regions + m.byRegion(e)
	case len(m.locality.Priority) > 0 && len(m.locality.Failover) > 0: // Istio applies both, the labels first
		return m.byLabels(e)*places + m.byPlace(e)
	case len(m.locality.Priority) > 0:
		return m.byLabels(e)
	}
	return m.byPlace(e)
}

// places is how many levels byPlace knows.
const places = 5

// regions is how many levels byRegion knows.
const regions = 3

// byRegion is Istio's order of regions: the own one, that which Failover names, all others.
func (m *Map) byRegion(e *plan.Endpoint) int {
	here, _, _ := plan.SplitLocality(m.here.Locality)
	there, _, _ := plan.SplitLocality(e.Locality)
	switch {
	case here == "" || here == there:
		return 0
	case slices.Contains(m.locality.Failover, plan.Failover{From: here, To: there}):
		return 1
	}
	return 2
}

// byPlace is Istio's order: the same subzone, zone, region; then the region that Failover names, then all others.
func (m *Map) byPlace(e *plan.Endpoint) int {
	hr, hz, hs := plan.SplitLocality(m.here.Locality)
	r, z, s := plan.SplitLocality(e.Locality)
	switch {
	case r != hr:
		for _, f := range m.locality.Failover {
			if f.From == hr && f.To == r {
				return 3
			}
		}
		return 4
	case z != hz:
		return 2
	case s != hs:
		return 1
	}
	return 0
}

// byLabels counts how many of the labels from the first on an endpoint shares with the proxy. One that both lack is shared. A
// value that is given stands for the proxy's own.
func (m *Map) byLabels(e *plan.Endpoint) int {
	for i, spec := range m.locality.Priority {
		key, want, given := strings.Cut(spec, "=")
		if !given {
			want = label(key, m.here.Labels, m.here.Locality)
		}
		if label(key, e.Labels, e.Locality) != want {
			return len(m.locality.Priority) - i
		}
	}
	return 0
}

// label returns the value of a label. Those that tell the locality are known without being written down.
func label(key string, set plan.LabelSet, locality string) string {
	if v, ok := set.Get(key); ok {
		return v
	}
	v, _ := plan.PlaceLabel(key, locality)
	return v
}

// covers reports whether a pattern ("*", "region/*", "region/zone", whole or up to a "/") stands for a locality.
func covers(pattern, locality string) bool {
	if p, wild := strings.CutSuffix(pattern, "*"); wild {
		return strings.HasPrefix(locality+"/", p)
	}
	return locality == pattern || strings.HasPrefix(locality, pattern+"/")
}

// Says describes a group for people.
func (m *Map) Says(group int) string {
	switch {
	case m.shares != nil:
		if group < 0 || group >= len(m.shares) {
			return "outside the distribution"
		}
		return m.shares[group].Locality
	case !m.levels:
		return ""
	case m.byZone:
		said := []string{"same region", "failover region", "elsewhere"}[max(group, 0)%regions]
		if len(m.locality.Priority) > 0 {
			said = m.saysLabels(group/regions) + ", " + said
		}
		return said
	case len(m.locality.Priority) > 0 && len(m.locality.Failover) > 0:
		return m.saysLabels(group/places) + ", " + saysPlace(max(group, 0)%places)
	case len(m.locality.Priority) > 0:
		return m.saysLabels(group)
	}
	return saysPlace(group)
}

func saysPlace(group int) string {
	return []string{"same subzone", "same zone", "same region", "failover region", "elsewhere"}[min(max(group, 0), places-1)]
}

func (m *Map) saysLabels(missing int) string {
	if missing <= 0 {
		return "all labels are ours"
	}
	return "differs in " + m.locality.Priority[max(len(m.locality.Priority)-missing, 0)]
}

// Whole is the factor by which Warm has multiplied a weight that is not reduced.
const Whole = 1000

// Warm returns the weight, times Whole, of an endpoint that is age old, and whether it is still less than all (plan.Warmup).
func Warm(w *plan.Warmup, weight uint32, age time.Duration) (uint32, bool) {
	weight = min(max(weight, 1), math.MaxUint32/Whole)
	if age >= w.Duration.D() || w.Duration <= 0 {
		return weight * Whole, false
	}
	least, aggression := w.MinimumPercent, w.Aggression
	if least <= 0 {
		least = 10
	}
	if aggression <= 0 {
		aggression = 1
	}
	f := math.Pow(max(float64(age), 0)/float64(w.Duration), 1/aggression)
	f = min(max(f, least/100), 1)
	return max(uint32(f*float64(weight)*Whole), 1), true
}

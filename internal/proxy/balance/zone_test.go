package balance

import (
	"math"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/plan"
)

// TestZones draws from what Divide makes, and compares the shares of zones with those that Envoy's algorithm gives.
func TestZones(t *testing.T) {
	for _, tt := range []struct {
		name      string
		l         plan.Locality
		here      Place
		endpoints string // localities, "!" in front of what is put aside
		want      map[string]float64
	}{
		{"as many as clients: everything stays", plan.Locality{}, Place{Locality: "eu/a", Peers: "eu/a=1,eu/b=1,eu/c=1"},
			"eu/a eu/a eu/b eu/b eu/c eu/c", map[string]float64{"eu/a": 1}},
		{"more than clients", plan.Locality{}, Place{Locality: "eu/a/1", Peers: "eu/a=1,eu/b=3"}, "eu/a/2 eu/a eu/a eu/b eu/b us/x us/y eu/b", map[string]float64{"eu/a": 1}},
		// Endpoints 1/6, 3/6, 2/6; clients a third each: half of what is here stays, the rest goes where there are more.
		{"fewer", plan.Locality{}, Place{Locality: "eu/a", Peers: "eu/a=2,eu/b=2,eu/c=2"}, "eu/a eu/b eu/b eu/b eu/c eu/c us/a", map[string]float64{"eu/a": .5, "eu/b": .5}},
		{"fewer, divided by surplus", plan.Locality{}, Place{Locality: "eu/a", Peers: "eu/a=8,eu/b=1,eu/c=1"}, "eu/a eu/a eu/b eu/b eu/b eu/b eu/c eu/c eu/c eu/c",
			map[string]float64{"eu/a": .25, "eu/b": .375, "eu/c": .375}},
		{"what is put aside does not count", plan.Locality{}, Place{Locality: "eu/a", Peers: "eu/a=1,eu/b=1"}, "eu/a !eu/a eu/b eu/b eu/b eu/b eu/b",
			map[string]float64{"eu/a": 1. / 3, "eu/b": 2. / 3}},
		{"too few endpoints", plan.Locality{}, Place{Locality: "eu/a", Peers: "eu/a=1,eu/b=1"}, "eu/a eu/a eu/b eu/b eu/b us/a", map[string]float64{"eu/a": .4, "eu/b": .6}},
		{"few are enough", plan.Locality{ZoneAware: &plan.ZoneAware{MinEndpoints: 2}}, Place{Locality: "eu/a", Peers: "eu/a=1,eu/b=1"}, "eu/a eu/b us/a", map[string]float64{"eu/a": 1}},
		{"nobody near is well", plan.Locality{}, Place{Locality: "eu/a", Peers: "eu/a=1"}, "!eu/a eu/b eu/b eu/b eu/b eu/c eu/c", map[string]float64{"eu/b": 4. / 6, "eu/c": 2. / 6}},
		{"where clients are is not known", plan.Locality{}, Place{Locality: "eu/a"}, "eu/a eu/b eu/b eu/b eu/b eu/b us/a", map[string]float64{"eu/a": 1. / 6, "eu/b": 5. / 6}},
		{"it does not know itself", plan.Locality{}, Place{Locality: "eu/a", Peers: "eu/b=1"}, "eu/a eu/b eu/b eu/b eu/b eu/b", map[string]float64{"eu/a": 1. / 6, "eu/b": 5. / 6}},
		{"it does not know where it is", plan.Locality{}, Place{}, "eu/a us/b us/b us/b", map[string]float64{"eu/a": .25, "us/b": .75}},
		{"another region when the own one is ill", plan.Locality{Failover: []plan.Failover{{From: "eu", To: "us"}}}, Place{Locality: "eu/a", Peers: "eu/a=1"},
			"!eu/a !eu/b asia/a us/a us/b us/b", map[string]float64{"us/a": 1. / 3, "us/b": 2. / 3}},
	} {
		l := tt.l
		if l.ZoneAware == nil {
			l.ZoneAware = &plan.ZoneAware{}
		}
		m := NewMap(&l, tt.here)
		var members []Member[string]
		for place := range strings.FieldsSeq(tt.endpoints) {
			at, aside := strings.CutPrefix(place, "!")
			members = append(members, Member[string]{Value: at, Group: m.Group(&plan.Endpoint{Locality: at}), Aside: aside})
		}
		Divide(&m, members, func(at string) string { return at })
		for _, policy := range []plan.Balancer{plan.Random, plan.RoundRobin, plan.LeastRequest} {
			p := New(Options{Policy: policy}, append([]Member[string](nil), members...))
			got, rnd := map[string]float64{}, uint64(1)
			const n = 5000
			for range n {
				rnd = step(rnd)
				at, ok := p.Pick(&Draw[string]{Random: rnd})
				if !ok {
					t.Fatalf("%s: nobody", tt.name)
				}
				got[zoneOf(at)] += 1. / n
			}
			for zone := range tt.want {
				got[zone] += 0
			}
			for zone, share := range got {
				if math.Abs(share-tt.want[zone]) > .025 {
					t.Errorf("%s, %s: %s gets %.3f, want %.3f", tt.name, policy, zone, share, tt.want[zone])
				}
			}
		}
	}
}

// TestZonesKeepHealth: what gets nothing still counts for how able its region is, and is picked from in panic.
func TestZonesKeepHealth(t *testing.T) {
	m := NewMap(&plan.Locality{ZoneAware: &plan.ZoneAware{}}, Place{Locality: "eu/a", Peers: "eu/a=1,eu/b=1"})
	var members []Member[int]
	for i := range 12 {
		members = append(members, Member[int]{Value: i, Aside: i%12 == 0})
	}
	at := func(i int) string { return []string{"eu/a", "eu/b"}[i%2] }
	divided := append([]Member[int](nil), members...)
	Divide(&m, divided, at)
	s := New(Options{}, divided).Groups()
	if len(s) != 1 || s[0].Members != 12 || s[0].Healthy != 11 || s[0].Percent != 100 {
		t.Errorf("%+v", s)
	}
	divided = append([]Member[int](nil), members...)
	Divide(&m, divided, at)
	if p := New(Options{MinHealthy: 99}, divided); !p.Panic() || p.Len() != 12 {
		t.Errorf("in panic there are %d", p.Len())
	}
}

// TestGroupsOfZones: labels come first, then regions; a zone makes no level.
func TestGroupsOfZones(t *testing.T) {
	m := NewMap(&plan.Locality{ZoneAware: &plan.ZoneAware{}, Priority: []string{"rack"}, Failover: []plan.Failover{{From: "eu", To: "us"}}}, Place{Locality: "eu/a", Labels: "rack=1"})
	for _, tt := range []struct {
		e    plan.Endpoint
		want int
		says string
	}{
		{plan.Endpoint{Locality: "eu/b", Labels: "rack=1"}, 0, "all labels are ours, same region"},
		{plan.Endpoint{Locality: "us/a", Labels: "rack=1"}, 1, "all labels are ours, failover region"},
		{plan.Endpoint{Locality: "asia", Labels: "rack=1"}, 2, "all labels are ours, elsewhere"},
		{plan.Endpoint{Locality: "eu/a", Labels: "rack=2"}, 3, "differs in rack, same region"},
		{plan.Endpoint{}, 5, "differs in rack, elsewhere"},
	} {
		if got := m.Group(&tt.e); got != tt.want || m.Says(got) != tt.says {
			t.Errorf("%+v: group %d (%s), want %d (%s)", tt.e, got, m.Says(got), tt.want, tt.says)
		}
	}
}

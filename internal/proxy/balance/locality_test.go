package balance

import (
	"slices"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
)

func TestGroupsOfLocalities(t *testing.T) {
	everywhere := []string{"eu/a/1", "eu/a/2", "eu/b/1", "us/a/1", "asia/x", ""}
	for _, tt := range []struct {
		name   string
		l      *plan.Locality
		here   Place
		want   []int
		shares []uint32
	}{
		{"none", nil, Place{Locality: "eu/a/1"}, []int{0, 0, 0, 0, 0, 0}, nil},
		{"failover", &plan.Locality{}, Place{Locality: "eu/a/1"}, []int{0, 1, 2, 4, 4, 4}, nil},
		{"failover to a region", &plan.Locality{Failover: []plan.Failover{{From: "us", To: "eu"}, {From: "eu", To: "asia"}}},
			Place{Locality: "eu/a/1"}, []int{0, 1, 2, 4, 3, 4}, nil},
		{"nobody knows where we are", &plan.Locality{}, Place{}, []int{0, 0, 0, 0, 0, 0}, nil},
		{"shares", &plan.Locality{Distribute: []plan.Distribution{
			{From: "us/*", To: []plan.LocalityShare{{Locality: "*", Percent: 100}}},
			{From: "eu/a/*", To: []plan.LocalityShare{{Locality: "eu/*", Percent: 70}, {Locality: "us/a/*", Percent: 20}, {Locality: "eu/b/1", Percent: 10}}},
			{From: "*", To: []plan.LocalityShare{{Locality: "asia/*", Percent: 100}}},
		}}, Place{Locality: "eu/a/1"}, []int{0, 0, 2, 1, -1, -1}, []uint32{70, 20, 10}},
		{"shares for everybody", &plan.Locality{Distribute: []plan.Distribution{
			{From: "*", To: []plan.LocalityShare{{Locality: "asia/*", Percent: 100}}},
		}}, Place{}, []int{-1, -1, -1, -1, 0, -1}, []uint32{100}},
		{"shares for others", &plan.Locality{Distribute: []plan.Distribution{
			{From: "eu/b", To: []plan.LocalityShare{{Locality: "asia/*", Percent: 100}}},
		}}, Place{Locality: "eu/a/1"}, []int{0, 0, 0, 0, 0, 0}, nil},
		{"labels of the locality", &plan.Locality{Priority: []string{"topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"}},
			Place{Locality: "eu/a/1"}, []int{0, 1, 2, 3, 3, 3}, nil},
		{"a label with a value", &plan.Locality{Priority: []string{"topology.kubernetes.io/region=asia"}}, Place{Locality: "eu/a/1"}, []int{1, 1, 1, 1, 0, 1}, nil},
		{"a label, then a region", &plan.Locality{Priority: []string{"topology.kubernetes.io/region=eu"}, Failover: []plan.Failover{{From: "us", To: "asia"}}},
			Place{Locality: "us/a/1"}, []int{4, 4, 4, 5, 8, 9}, nil},
	} {
		m := NewMap(tt.l, tt.here)
		var got []int
		for _, l := range everywhere {
			got = append(got, m.Group(&plan.Endpoint{Locality: l}))
		}
		if !slices.Equal(got, tt.want) || !slices.Equal(m.Shares(), tt.shares) {
			t.Errorf("%s: groups %v shares %v, want %v %v", tt.name, got, m.Shares(), tt.want, tt.shares)
		}
	}
}

func TestGroupsOfLabels(t *testing.T) {
	m := NewMap(&plan.Locality{Priority: []string{"network", "rack", "version=v1"}}, Place{Labels: "network=n1,rack=r7"})
	for labels, want := range map[plan.LabelSet]int{
		"network=n1,rack=r7,version=v1": 0,
		"network=n1,rack=r7,version=v2": 1,
		"network=n1,rack=r7":            1,
		"network=n1,rack=r8,version=v1": 2,
		"network=n1":                    2,
		"rack=r7,version=v1":            3, // it counts from the first on
		"":                              3,
	} {
		if got := m.Group(&plan.Endpoint{Labels: labels}); got != want {
			t.Errorf("%q: group %d, want %d", labels, got, want)
		}
	}
	if m.Says(0) != "all labels are ours" || m.Says(3) != "differs in network" || m.Says(1) != "differs in version=v1" {
		t.Errorf("%q, %q, %q", m.Says(0), m.Says(3), m.Says(1))
	}
	m = NewMap(&plan.Locality{Priority: []string{"network", "rack"}, Failover: []plan.Failover{{From: "eu", To: "us"}}}, Place{Locality: "eu/a", Labels: "network=n1,rack=r7"})
	if m.Says(0) != "all labels are ours, same subzone" || m.Says(5+3) != "differs in rack, failover region" || m.Says(10+4) != "differs in network, elsewhere" {
		t.Errorf("%q, %q, %q", m.Says(0), m.Says(8), m.Says(14))
	}
	// One that both lack is shared.
	m = NewMap(&plan.Locality{Priority: []string{"nobody/has-it", "rack"}}, Place{Labels: "rack=r7"})
	if got := m.Group(&plan.Endpoint{Labels: "rack=r7"}); got != 0 {
		t.Errorf("a label that nobody has: group %d", got)
	}
}

func TestWarm(t *testing.T) {
	for _, tt := range []struct {
		w    plan.Warmup
		age  time.Duration
		want uint32
		more bool
	}{
		{plan.Warmup{}, 0, 10, true},
		{plan.Warmup{}, 500 * time.Millisecond, 10, true},
		{plan.Warmup{}, 5 * time.Second, 50, true},
		{plan.Warmup{}, 10 * time.Second, 100, false},
		{plan.Warmup{}, time.Hour, 100, false},
		{plan.Warmup{}, -time.Hour, 10, true},
		{plan.Warmup{MinimumPercent: 40}, time.Second, 40, true},
		{plan.Warmup{Aggression: 2}, 2500 * time.Millisecond, 50, true}, // (1/4)^(1/2)
		{plan.Warmup{Aggression: 0.5}, 5 * time.Second, 25, true},       // (1/2)^2
		{plan.Warmup{MinimumPercent: 500}, 0, 100, true},
	} {
		tt.w.Duration = plan.Duration(10 * time.Second)
		for _, weight := range []uint32{1, 7} {
			got, more := Warm(&tt.w, weight, tt.age)
			if want := tt.want * weight * Whole / 100; got != want || more != tt.more {
				t.Errorf("%+v, age %v, weight %d: %d %v, want %d %v", tt.w, tt.age, weight, got, more, want, tt.more)
			}
		}
	}
	if w, _ := Warm(&plan.Warmup{}, 1<<31, 0); w == 0 {
		t.Error("a large weight became none")
	}
}

package compile_test

import (
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// TestWhoDecidesAboutAService: a DestinationRule before the Service block by block, and a ServiceProfile that switches
// annotations of the Service off.
func TestWhoDecidesAboutAService(t *testing.T) {
	accrual, rule := &plan.Outlier{Consecutive5xx: 7, Probe: true}, &plan.Outlier{Consecutive5xx: 1}
	random := plan.Random
	annotated := func(change func(*model.ScopedService)) model.ScopedService {
		s := svc("web", "80/http")
		s.Outlier, s.Balancer, s.Hash = accrual, plan.PeakEWMA, &plan.Hash{SourceIP: true}
		s.Check = &plan.HealthCheck{Path: "/"}
		s.Near = &plan.Locality{Strict: true}
		s.Defaults = &model.RequestPolicy{Timeout: time.Second, Retry: &plan.Retry{Attempts: 7, On: plan.Retry5xx}}
		change(&s)
		return s
	}
	dr := func(p *model.TrafficPolicy) *model.DestinationPolicy { return &model.DestinationPolicy{Traffic: p} }
	near := &plan.Locality{Priority: []string{"zone"}}
	for _, c := range []struct {
		name     string
		service  model.ScopedService
		outlier  *plan.Outlier
		balancer plan.Balancer
		locality *plan.Locality
		timeout  time.Duration
		attempts int
	}{
		{"as the Service says; a hash needs a ring", annotated(func(*model.ScopedService) {}), accrual, plan.RingHash, &plan.Locality{Strict: true}, time.Second, 7},
		{"without a hash its balancer", annotated(func(s *model.ScopedService) { s.Hash = nil }), accrual, plan.PeakEWMA, &plan.Locality{Strict: true}, time.Second, 7},
		{"a profile switches accrual and defaults off", annotated(func(s *model.ScopedService) {
			s.Profile = &model.Profile{Routes: []model.ProfileRoute{{Name: "r"}}}
		}), nil, plan.RingHash, &plan.Locality{Strict: true}, 0, 2},
		{"an empty profile does not", annotated(func(s *model.ScopedService) { s.Profile = &model.Profile{} }), accrual, plan.RingHash, &plan.Locality{Strict: true}, time.Second, 7},
		{"a rule's outlier detection stays beside a profile", annotated(func(s *model.ScopedService) {
			s.Profile = &model.Profile{Routes: []model.ProfileRoute{{Name: "r"}}}
			s.Policy = dr(&model.TrafficPolicy{Outlier: rule})
		}), rule, plan.RingHash, &plan.Locality{Strict: true}, 0, 2},
		{"a rule's load balancer is whole: no hash is left", annotated(func(s *model.ScopedService) {
			s.Policy = dr(&model.TrafficPolicy{Balancer: &random})
		}), accrual, plan.Random, &plan.Locality{Strict: true}, time.Second, 7},
		{"its locality before the Service's", annotated(func(s *model.ScopedService) {
			s.Policy = dr(&model.TrafficPolicy{Locality: near})
		}), accrual, "", near, time.Second, 7},
		{"locality off", annotated(func(s *model.ScopedService) {
			s.Policy = dr(&model.TrafficPolicy{LocalityOff: true})
		}), accrual, "", nil, time.Second, 7},
		{"failover needs a way to tell who is ill", annotated(func(s *model.ScopedService) {
			s.Outlier, s.Check, s.Policy = nil, nil, dr(&model.TrafficPolicy{Locality: near})
		}), nil, "", nil, time.Second, 7},
		{"zones of a region do not", annotated(func(s *model.ScopedService) {
			s.Outlier, s.Check, s.Policy = nil, nil, dr(&model.TrafficPolicy{Locality: &plan.Locality{ZoneAware: &plan.ZoneAware{}}})
		}), nil, "", &plan.Locality{ZoneAware: &plan.ZoneAware{}}, time.Second, 7},
		{"shares do not", annotated(func(s *model.ScopedService) {
			s.Outlier, s.Check, s.Policy = nil, nil, dr(&model.TrafficPolicy{Locality: &plan.Locality{Distribute: []plan.Distribution{{From: "*"}}}})
		}), nil, "", &plan.Locality{Distribute: []plan.Distribution{{From: "*"}}}, time.Second, 7},
		{"outlier detection of a rule prefers the near", annotated(func(s *model.ScopedService) {
			s.Near, s.Policy = nil, dr(&model.TrafficPolicy{Outlier: rule})
		}), rule, plan.RingHash, &plan.Locality{}, time.Second, 7},
		{"failure accrual does not", annotated(func(s *model.ScopedService) { s.Near = nil }), accrual, plan.RingHash, nil, time.Second, 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			sc := sidecar(c.service)
			sc.Node.Locality = "eu/eu-1"
			p := compiled(t, sc)
			cl := p.Clusters[len(p.Clusters)-1]
			if cl.Host != host("web") {
				t.Fatalf("clusters %+v", p.Clusters)
			}
			if cl.Outlier != c.outlier || cl.Balancer != c.balancer {
				t.Errorf("outlier %+v, balancer %q; want %+v, %q", cl.Outlier, cl.Balancer, c.outlier, c.balancer)
			}
			if (cl.Locality == nil) != (c.locality == nil) || cl.Locality != nil && (cl.Locality.Strict != c.locality.Strict ||
				len(cl.Locality.Priority) != len(c.locality.Priority) || len(cl.Locality.Distribute) != len(c.locality.Distribute)) {
				t.Errorf("locality %+v, want %+v", cl.Locality, c.locality)
			}
			routes := findHost(t, p, "80", host("web")).Routes
			last := routes[len(routes)-1]
			if last.Timeout.D() != c.timeout || last.Retry == nil || last.Retry.Attempts != c.attempts {
				t.Errorf("timeout %v, retry %+v; want %v and %d attempts", last.Timeout.D(), last.Retry, c.timeout, c.attempts)
			}
		})
	}
}

// TestOneAddressOfTwoServices: the first by host has it, for requests and for connections.
func TestOneAddressOfTwoServices(t *testing.T) {
	a, b := svc("a", "80/http", "90/tcp"), svc("b", "80/http", "90/tcp")
	a.Addresses, b.Addresses = []string{"240.0.0.1", "240.0.0.0/8"}, []string{"240.0.0.1", "240.0.0.2"}
	p := compiled(t, sidecar(b, a))
	for address, want := range map[string]string{"240.0.0.1": "a", "240.0.0.2": "b"} {
		if h := findHost(t, p, "80", address); h.Name != host(want)+":80" {
			t.Errorf("requests to %s go to %s, want %s", address, h.Name, want)
		}
		var found []string
		for _, port := range p.Listeners[0].Ports {
			for _, h := range port.Hosts {
				if h.Host == address {
					found = append(found, h.TCP[0].Cluster)
				}
			}
		}
		for _, port := range p.Listeners[0].Ports {
			for _, h := range port.Hosts { // ranges, where nothing is captured: single addresses are hosts
				if len(h.Addresses) > 0 && (h.Host != host("a") || len(h.Addresses) != 1 || h.Addresses[0] != "240.0.0.0/8") {
					t.Errorf("connections to %v go to %s", h.Addresses, h.Host)
				}
				if h.Host == host("a") && len(h.Addresses) == 0 {
					t.Error("no connection to the range of a goes there")
				}
			}
		}
		if len(found) != 1 || found[0] != "outbound|90||"+host(want) {
			t.Errorf("connections to %s go to %v, want %s", address, found, want)
		}
	}
}

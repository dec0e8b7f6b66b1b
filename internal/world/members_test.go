package world_test

import (
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

func identity(account string) ident.Identity {
	return ident.Identity{TrustDomain: "cluster.local", Namespace: "app", ServiceAccount: account}
}

// TestWhoServes is about endpoints that were written down; those of workloads stand in the tests beside.
func TestWhoServes(t *testing.T) {
	port := model.ServicePort{Name: "http", Port: 80, Target: 8080}
	one := []model.ServiceEndpoint{{Address: "10.0.0.1", Identity: identity("a"), Locality: "eu", Weight: 3}}
	entry := func(change func(*model.Service)) model.Service {
		s := model.Service{Meta: meta("app", "s"), Host: "s.example", Resolution: model.ByAddress, Ports: []model.ServicePort{port}, Endpoints: one}
		change(&s)
		return s
	}
	group := func(host string, labels map[string]string, ends ...model.ServiceEndpoint) model.EndpointGroup {
		g := model.EndpointGroup{Meta: meta("app", "g"), Host: host, Endpoints: ends}
		g.Labels = labels
		return g
	}
	type member struct {
		Address, Identity, Host string
		Weight                  uint32
	}
	for _, c := range []struct {
		name    string
		service model.Service
		groups  []model.EndpointGroup
		want    []member
	}{
		{"as written", entry(func(*model.Service) {}), nil, []member{{"10.0.0.1:8080", "a", "", 3}}},
		{"outside of the mesh nobody has an identity", entry(func(s *model.Service) { s.External = true }), nil, []member{{"10.0.0.1:8080", "", "", 3}}},
		{"its own names count before identities", entry(func(s *model.Service) {
			s.SubjectAltNames = []string{"x.example", "spiffe://cluster.local/ns/app/sa/b"}
		}), nil, []member{{"10.0.0.1:8080", "b", "", 3}}},
		{"an identity among the names stays", entry(func(s *model.Service) {
			s.SubjectAltNames = []string{"spiffe://cluster.local/ns/app/sa/b", "spiffe://cluster.local/ns/app/sa/a"}
		}), nil, []member{{"10.0.0.1:8080", "a", "", 3}}},
		{"an identity among the names says of which trust domain it is", entry(func(s *model.Service) {
			s.SubjectAltNames = []string{"spiffe://corp.example/ns/app/sa/b", "spiffe://corp.example/ns/app/sa/a"}
		}), nil, []member{{"10.0.0.1:8080", "a of corp.example", "", 3}}},
		{"a port by name", entry(func(s *model.Service) {
			s.Endpoints = []model.ServiceEndpoint{{Address: "::1", Ports: map[string]int{"http": 90}}}
		}), nil, []member{{"[::1]:90", "", "", 0}}},
		{"not ready", entry(func(s *model.Service) { s.Endpoints = []model.ServiceEndpoint{{Address: "10.0.0.1", NotReady: true}} }), nil, nil},
		{"a name where nothing is resolved", entry(func(s *model.Service) { s.Endpoints = []model.ServiceEndpoint{{Address: "a.example"}} }), nil, nil},
		{"a unix socket, once for all ports", entry(func(s *model.Service) {
			s.Endpoints = []model.ServiceEndpoint{{Address: "unix:///run/app.sock"}, {Address: "unix://@app", Ports: map[string]int{"http": 90}}}
		}), nil, []member{{"unix:///run/app.sock", "", "", 0}, {"unix://@app", "", "", 0}}},
		{"a unix socket where names are resolved", entry(func(s *model.Service) {
			s.Resolution, s.Endpoints = model.ByDNS, []model.ServiceEndpoint{{Address: "unix:///run/app.sock"}}
		}), nil, nil},
		{"a name that is resolved", entry(func(s *model.Service) {
			s.Resolution, s.Endpoints = model.ByDNS, []model.ServiceEndpoint{{Address: "a.example"}}
		}), nil, []member{{"a.example:8080", "", "", 0}}},
		{"the host itself is resolved", entry(func(s *model.Service) { s.Resolution, s.Endpoints = model.ByDNSFirst, nil }), nil, []member{{"s.example:8080", "", "", 0}}},
		{"a wildcard cannot be", entry(func(s *model.Service) { s.Host, s.Resolution, s.Endpoints = "*.example", model.ByDNS, nil }), nil, nil},
		{"where the client wants", entry(func(s *model.Service) { s.Resolution = model.ByRequest }), nil, nil},
		{"an alias", entry(func(s *model.Service) { s.Alias = "other.example" }), nil, nil},
		{"UDP is not carried", entry(func(s *model.Service) { s.Ports = []model.ServicePort{{Name: "dns", Port: 53, Protocol: ident.UDP}} }), nil, nil},
		{"selected by labels", entry(func(s *model.Service) { s.Endpoints, s.Selector = nil, map[string]string{"app": "vm"} }),
			[]model.EndpointGroup{group("", map[string]string{"app": "vm"}, one...)}, []member{{"10.0.0.1:8080", "a", "", 3}}},
		{"other labels", entry(func(s *model.Service) { s.Endpoints, s.Selector = nil, map[string]string{"app": "vm"} }),
			[]model.EndpointGroup{group("", map[string]string{"app": "w"}, one...)}, nil},
		{"a slice of the host", entry(func(s *model.Service) { s.Resolution, s.Endpoints = model.BySelector, nil }),
			[]model.EndpointGroup{group("s.example", nil, model.ServiceEndpoint{Address: "10.0.0.2", Ports: map[string]int{"http": 81}})}, []member{{"10.0.0.2:81", "", "", 0}}},
		{"a slice without the port", entry(func(s *model.Service) { s.Resolution, s.Endpoints = model.BySelector, nil }),
			[]model.EndpointGroup{group("s.example", nil, model.ServiceEndpoint{Address: "10.0.0.2", Ports: map[string]int{"grpc": 81}})}, nil},
		{"a slice of another host", entry(func(s *model.Service) { s.Resolution, s.Endpoints = model.BySelector, nil }),
			[]model.EndpointGroup{group("t.example", nil, one...)}, nil},
		{"written down twice", entry(func(s *model.Service) { s.Endpoints = append(one, one...) }), nil, []member{{"10.0.0.1:8080", "a", "", 3}}},
		{"a workload that is written down once more", entry(func(s *model.Service) {
			s.Resolution, s.Selector = model.BySelector, map[string]string{"app": "w"}
			s.Ports = []model.ServicePort{{Name: "http", Port: 80, TargetName: "http"}}
			s.Endpoints = []model.ServiceEndpoint{{Address: "127.0.0.1", Ports: map[string]int{"http": 80}}}
		}), nil, []member{{"127.0.0.1:1", "", "", 0}}},
		{"a member of a headless service has a name", entry(func(s *model.Service) {
			s.Headless, s.Endpoints = true, []model.ServiceEndpoint{{Address: "10.0.0.1", Hostname: "s-0"}}
		}), nil, []member{{"10.0.0.1:8080", "", "s-0.s.example", 0}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := place(&model.Config{Services: []model.Service{c.service}, Endpoints: c.groups})
			var got []member
			for _, m := range w.Members(c.service.Host) {
				who := m.Identity.ServiceAccount
				if d := m.Identity.TrustDomain; who != "" && d != ident.DefaultTrustDomain {
					who += " of " + d
				}
				for _, p := range m.Ports {
					got = append(got, member{p.Address, who, m.Host, m.Weight})
				}
			}
			if d := gocmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestPortOfTwoTransports has a Service with one number for UDP and TCP, as DNS and HTTP/3 have it: the mesh carries the second.
func TestPortOfTwoTransports(t *testing.T) {
	s := model.Service{Meta: meta("app", "s"), Host: "s.app.svc.cluster.local", Selector: map[string]string{"app": "w"}, Ports: []model.ServicePort{
		{Name: "dns", Port: 53, TargetName: "http", Protocol: ident.UDP}, {Name: "dns-tcp", Port: 53, TargetName: "http", Protocol: ident.TCP},
	}}
	w := place(&model.Config{Services: []model.Service{s}})
	want := []model.MemberPort{{Port: 53, Address: "127.0.0.1:1", Protocol: ident.TCP}}
	if got := w.Members(s.Host); len(got) != 1 || gocmp.Diff(want, got[0].Ports) != "" {
		t.Errorf("the members are %+v, want one with the ports %+v", got, want)
	}
	if got := w.Inbound(ident.Name{Namespace: "app", Name: "w"}); len(got) != 1 || got[0].Protocol != ident.TCP {
		t.Errorf("the sidecar serves %+v, want one port of TCP", got)
	}
}

func TestInboundPortsOfASidecar(t *testing.T) {
	pool, inbound := &model.TrafficPolicy{MaxStreams: 1}, &model.TrafficPolicy{MaxStreams: 2}
	limit := func(name string, alone bool, port int) model.RateLimit {
		return model.RateLimit{Meta: meta("app", name), Alone: alone, Port: port, Limit: plan.RateLimit{Name: name}}
	}
	rule := model.DestinationPolicy{Meta: meta("app", "d"), Host: "w.app.svc.cluster.local", Traffic: &model.TrafficPolicy{
		MaxStreams: 3, Ports: []model.PortPolicy{{Port: 8080, Traffic: model.TrafficPolicy{MaxStreams: 4}}},
	}}
	for _, c := range []struct {
		name   string
		cfg    model.Config
		app    string
		pool   uint32
		limits []string
		none   bool
	}{
		{"as placed", model.Config{}, "127.0.0.1:80", 0, nil, false},
		{"the pool of the rule, for the service's port", model.Config{Traffic: []model.DestinationPolicy{rule}}, "127.0.0.1:80", 4, nil, false},
		{"the Sidecar's pool before it", model.Config{Traffic: []model.DestinationPolicy{rule}, Sidecars: []model.SidecarPolicy{{Meta: meta("app", "s"), Inbound: inbound}}}, "127.0.0.1:80", 2, nil, false},
		{"the listener's pool before that, and another program", model.Config{Sidecars: []model.SidecarPolicy{{Meta: meta("app", "s"), Inbound: inbound, Ingress: []model.IngressPort{
			{Port: 80, Protocol: ident.HTTP, App: "127.0.0.1:99", Pool: pool},
		}}}}, "127.0.0.1:99", 1, nil, false},
		{"the workload's own address", model.Config{Sidecars: []model.SidecarPolicy{{Meta: meta("app", "s"), Ingress: []model.IngressPort{{Port: 80, App: "0.0.0.0:99"}}}}}, "127.0.0.1:99", 0, nil, false},
		{"a port of the workload, wherever it was placed", model.Config{Sidecars: []model.SidecarPolicy{{Meta: meta("app", "s"), Ingress: []model.IngressPort{{Port: 80, App: "127.0.0.1:80"}}}}}, "127.0.0.1:80", 0, nil, false},
		{"ingress without ports is none", model.Config{Sidecars: []model.SidecarPolicy{{Meta: meta("app", "s"), Ingress: []model.IngressPort{}}}}, "", 0, nil, true},
		{"limits: all of ours, the oldest of those that stand alone", model.Config{RateLimits: []model.RateLimit{
			limit("a", false, 0), limit("b", true, 0), limit("c", true, 80), limit("d", false, 80), limit("e", false, 81),
		}}, "127.0.0.1:80", 0, []string{"a", "b", "d"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.Services = []model.Service{{
				Meta: meta("app", "w"), Host: "w.app.svc.cluster.local", Selector: map[string]string{"app": "w"}, Ports: []model.ServicePort{{Port: 8080, Target: 80}},
			}}
			w := place(&c.cfg)
			in := w.Inbound(ident.Name{Namespace: "app", Name: "w"})
			if c.none {
				if len(in) != 0 {
					t.Fatalf("%+v is open", in)
				}
				return
			}
			if len(in) != 1 {
				t.Fatalf("%d ports", len(in))
			}
			streams := uint32(0)
			if in[0].Pool != nil {
				streams = in[0].Pool.MaxStreams
			}
			if in[0].App != c.app || streams != c.pool || !gocmp.Equal(in[0].Limits, c.limits) {
				t.Errorf("%+v with pool %d", in[0], streams)
			}
		})
	}
}

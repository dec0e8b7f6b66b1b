package scope_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/scope"
	"github.com/malha-mesh/malha/internal/world"
)

// seen returns the services that a client may call, with their ports, and those that only rules lead to in brackets.
func seen(s *model.Scope) []string {
	var out []string
	for i := range s.Services {
		svc := &s.Services[i]
		name := svc.Name.String()
		if svc.Indirect {
			name = "(" + name + ")"
		}
		for _, p := range svc.Ports {
			name += fmt.Sprintf(" %d", p.Port)
		}
		out = append(out, name)
	}
	return out
}

func TestSidecarShows(t *testing.T) {
	web := service("a", "web")
	web.Ports = append(web.Ports, model.ServicePort{Name: "admin", Port: 90, Protocol: ident.HTTP, Target: 80})
	external := service("b", "api")
	external.Host, external.Resolution = "api.example.com", model.ByDNS
	routing := func(ns, name, host, to string) model.Routing {
		return model.Routing{
			Meta: meta(ns, name), Hosts: []string{host}, Gateways: []string{model.Mesh}, ExportTo: []string{"*"},
			HTTP: []model.HTTPRule{{Forward: []model.WeightedDestination{{Target: model.Target{Host: to}}}}},
		}
	}
	split := model.Split{Meta: meta("a", "web"), Host: web.Host, Backends: []model.SplitBackend{{Host: ident.ServiceHost(ident.Name{Namespace: "a", Name: "canary"}), Weight: 1}}}
	cfg := &model.Config{
		Services:  []model.Service{web, service("a", "canary"), service("b", "db"), service("b", "private", "b"), external, service("c", "other")},
		Workloads: []model.Workload{workload("a", "x")},
		Routings: []model.Routing{
			routing("a", "web", web.Host, ident.ServiceHost(ident.Name{Namespace: "c", Name: "other"})),
			routing("b", "stranger", "stranger.example", "nowhere"),
			routing("c", "api", "api.example.com", "api.example.com"),
		},
		Splits: []model.Split{split},
	}
	view := func(port int, hosts ...string) model.EgressView { return model.EgressView{Port: port, Hosts: hosts} }
	for _, c := range []struct {
		name     string
		egress   []model.EgressView
		want     []string
		routings []string
	}{
		{"no list is everything", nil, []string{"b/api 80", "a/canary 80", "b/db 80", "c/other 80", "a/web 80 90"}, []string{"web", "stranger", "api"}},
		{"everything", []model.EgressView{view(0, "*/*")}, []string{"b/api 80", "a/canary 80", "b/db 80", "c/other 80", "a/web 80 90"}, []string{"web", "stranger", "api"}},
		{"the own namespace, and what its rules lead to", []model.EgressView{view(0, "a/*")}, []string{"a/canary 80", "(c/other) 80", "a/web 80 90"}, []string{"web"}},
		{"nothing", []model.EgressView{view(0, "~/*")}, nil, nil},
		{"an empty list is nothing", []model.EgressView{}, nil, nil},
		{"one host; its split leads to another", []model.EgressView{view(0, "*/web.a.svc.cluster.local")}, []string{"(a/canary) 80", "(c/other) 80", "a/web 80 90"}, []string{"web"}},
		{"the namespace of a host counts", []model.EgressView{view(0, "b/web.a.svc.cluster.local")}, nil, nil},
		{"a wildcard", []model.EgressView{view(0, "*/*.example.com")}, []string{"b/api 80"}, []string{"api"}},
		{"a host of rules alone", []model.EgressView{view(0, "b/stranger.example")}, nil, []string{"stranger"}},
		{"a port belongs to its listener", []model.EgressView{view(90, "a/*"), view(0, "b/*")}, []string{"b/api 80", "b/db 80", "(c/other) 80", "a/web 90"}, []string{"web", "stranger"}},
		{"the first listener of a port", []model.EgressView{view(80, "b/*"), view(80, "a/*")}, []string{"b/api 80", "b/db 80", "(c/other) 80"}, []string{"web", "stranger"}},
		{"what is not exported is not shown", []model.EgressView{view(0, "b/private.b.svc.cluster.local")}, nil, nil},
		{"taken out", []model.EgressView{view(0, "b/*", "~b/api.example.com")}, []string{"b/db 80"}, []string{"stranger"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			mine := *cfg
			mine.Sidecars = []model.SidecarPolicy{{Meta: meta("a", "s"), Egress: c.egress}}
			s := scopeOf(t, &mine, "a", "x")
			want := slices.Clone(c.want)
			if c.name == "a port belongs to its listener" { // the split of a service in view counts on any port
				want = slices.Insert(want, 1, "(a/canary) 80")
			}
			if d := cmp.Diff(want, seen(s)); d != "" {
				t.Errorf("services:\n%s", d)
			}
			var routings []string
			for _, r := range s.Routings {
				routings = append(routings, r.Name.Name)
			}
			if d := cmp.Diff(c.routings, routings); d != "" {
				t.Errorf("routings:\n%s", d)
			}
			seesItsRoutings(t, &mine, ident.Name{Namespace: "a", Name: "x"})
		})
	}
}

// TestViewsAreFoundQuickly compares what a Sidecar shows, which is looked up, with what an obvious walk over everything
// would show.
func TestViewsAreFoundQuickly(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	namespaces := []string{"a", "b", "c"}
	for range 300 {
		cfg := &model.Config{Workloads: []model.Workload{workload("a", "x")}}
		for i := range 8 {
			s := service(namespaces[rnd.IntN(3)], fmt.Sprintf("s%d", i))
			if rnd.IntN(3) == 0 {
				s.Host, s.Resolution = fmt.Sprintf("%s.example", []string{"x", "y", "z.y"}[rnd.IntN(3)]), model.ByDNS
			}
			if rnd.IntN(4) == 0 {
				s.ExportTo = []string{s.Name.Namespace}
			}
			cfg.Services = append(cfg.Services, s)
			cfg.Routings = append(cfg.Routings, model.Routing{
				Meta: meta(namespaces[rnd.IntN(3)], fmt.Sprintf("r%d", i)), Hosts: []string{s.Host, "*.y.example"}[:1+rnd.IntN(2)], Gateways: []string{model.Mesh},
				ExportTo: []string{"*"}, HTTP: []model.HTTPRule{{}},
			})
		}
		var hosts []string
		for range 1 + rnd.IntN(3) {
			host := cfg.Services[rnd.IntN(len(cfg.Services))].Host
			hosts = append(hosts, append(slices.Clone(namespaces), "*")[rnd.IntN(4)]+"/"+[]string{host, "*", "*.example", host}[rnd.IntN(4)])
		}
		cfg.Sidecars = []model.SidecarPolicy{{Meta: meta("a", "s"), Egress: []model.EgressView{{Hosts: hosts}}}}
		got := scopeOf(t, cfg, "a", "x")
		cfg.Sidecars = nil
		all := scopeOf(t, cfg, "a", "x")

		shows := func(ns, host string, overlap bool) bool {
			return slices.ContainsFunc(hosts, func(rule string) bool {
				n, h, _ := strings.Cut(rule, "/")
				_, both := ident.HostOverlap(h, host)
				return (n == "*" || n == ns) && (h == host || ident.HostCovers(h, host) || overlap && both)
			})
		}
		var routings []string
		for _, r := range all.Routings {
			if slices.ContainsFunc(r.Hosts, func(h string) bool { return shows(r.Name.Namespace, h, true) }) {
				routings = append(routings, r.Name.String())
			}
		}
		var have []string
		for _, r := range got.Routings {
			have = append(have, r.Name.String())
		}
		if d := cmp.Diff(routings, have); d != "" {
			t.Fatalf("%v: routings:\n%s", hosts, d)
		}
		inView := map[string]bool{}
		for i := range cfg.Services {
			s := &cfg.Services[i]
			if world.VisibleIn(s.ExportTo, "a") && shows(s.Name.Namespace, s.Host, false) {
				inView[s.Host] = true
			}
		}
		for i := range got.Services {
			if !inView[got.Services[i].Host] {
				t.Fatalf("%v shows %s", hosts, got.Services[i].Host)
			}
			delete(inView, got.Services[i].Host)
		}
		if len(inView) > 0 {
			t.Fatalf("%v does not show %v", hosts, inView)
		}
	}
}

func TestWhichSidecarCounts(t *testing.T) {
	policy := func(ns, name string, selector ...string) model.SidecarPolicy {
		return model.SidecarPolicy{Meta: meta(ns, name), Selector: meta("", "", selector...).Labels, Outbound: plan.Otherwise(ns + "/" + name)}
	}
	cfg := &model.Config{
		Workloads: []model.Workload{workload("a", "x", "app", "x"), workload("a", "y", "app", "y"), workload("b", "x", "app", "x")},
		Sidecars: []model.SidecarPolicy{
			policy("a", "z-default"), policy("a", "b-x", "app", "x"), policy("a", "c-x", "app", "x"), policy("istio-system", "default"), policy("istio-system", "x", "app", "x"),
		},
	}
	for node, want := range map[ident.Name]plan.Otherwise{
		{Namespace: "a", Name: "x"}: "a/b-x", {Namespace: "a", Name: "y"}: "a/z-default", {Namespace: "b", Name: "x"}: "istio-system/default",
	} {
		if got := scopeOf(t, cfg, node.Namespace, node.Name).Sidecar.Otherwise.Fate; got != want {
			t.Errorf("%s: %s, want %s", node, got, want)
		}
	}
}

func TestWhatIsOutside(t *testing.T) {
	egress := func(ns, name string, fate plan.Otherwise, global bool) model.Egress {
		return model.Egress{Meta: meta(ns, name), Otherwise: fate, Global: global}
	}
	cfg := &model.Config{
		Workloads: []model.Workload{workload("a", "x"), workload("b", "x"), workload("c", "x")},
		Egress:    []model.Egress{egress("linkerd-egress", "all", plan.Block, true), egress("a", "own", plan.Passthrough, false), egress("c", "own", plan.Passthrough, false)},
		Sidecars:  []model.SidecarPolicy{{Meta: meta("c", "s"), Outbound: plan.Block}},
	}
	for ns, want := range map[string]string{"a": "passthrough a/own", "b": "block linkerd-egress/all", "c": "block c/s"} {
		o := scopeOf(t, cfg, ns, "x").Sidecar.Otherwise
		_ = o.Origin
		if string(o.Fate) != strings.Fields(want)[0] {
			t.Errorf("%s: %s, want %s", ns, o.Fate, want)
		}
	}
}

func TestOneHostInSeveralNamespaces(t *testing.T) {
	entry := func(ns, address string, exportTo ...string) model.Service {
		return model.Service{
			Meta: meta(ns, "api"), Host: "api.example.com", ExportTo: exportTo, Resolution: model.ByAddress,
			Ports: []model.ServicePort{{Name: "http", Port: 80, Target: 80, Protocol: ident.HTTP}}, Endpoints: []model.ServiceEndpoint{{Address: address}},
		}
	}
	more := entry("b", "10.0.0.9")
	more.Name.Name = "more"
	cfg := &model.Config{
		Services:  []model.Service{entry("a", "10.0.0.1", "a"), entry("b", "10.0.0.2"), more, entry("c", "10.0.0.3", "*")},
		Workloads: []model.Workload{workload("a", "x"), workload("b", "x"), workload("c", "x"), workload("d", "x")},
	}
	for ns, want := range map[string][]string{
		"a": {"10.0.0.1:80"}, "b": {"10.0.0.2:80", "10.0.0.9:80"}, "c": {"10.0.0.3:80"}, "d": {"10.0.0.2:80", "10.0.0.9:80"},
	} {
		s := scopeOf(t, cfg, ns, "x")
		if len(s.Services) != 1 {
			t.Fatalf("%s sees %d services of one host", ns, len(s.Services))
		}
		var got []string
		for _, m := range s.Services[0].Members {
			got = append(got, m.Ports[0].Address)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: its own, else the oldest:\n%s", ns, d)
		}
		one, ok := scope.Service(worldOf(t, cfg), ident.Name{Namespace: ns, Name: "x"}, "api.example.com")
		if !ok || !cmp.Equal(one.Members, s.Services[0].Members) || one.Name != s.Services[0].Name {
			t.Errorf("%s: Service and For differ", ns)
		}
	}
}

func TestPolicyForSomeWorkloads(t *testing.T) {
	web := service("a", "web")
	policy := func(ns, name string, workloads ...string) model.DestinationPolicy {
		return model.DestinationPolicy{Meta: meta(ns, name), Host: web.Host, ExportTo: []string{"*"}, Workloads: meta("", "", workloads...).Labels}
	}
	cfg := &model.Config{
		Services:  []model.Service{web},
		Workloads: []model.Workload{workload("a", "x", "app", "x"), workload("a", "y", "app", "y"), workload("b", "x", "app", "x")},
		Traffic:   []model.DestinationPolicy{policy("a", "all"), policy("a", "zz-x", "app", "x")},
	}
	for node, want := range map[ident.Name]string{
		{Namespace: "a", Name: "x"}: "zz-x", {Namespace: "a", Name: "y"}: "all", {Namespace: "b", Name: "x"}: "all", // of its own namespace only
	} {
		if got := scopeOf(t, cfg, node.Namespace, node.Name).Services[0].Policy; got == nil || got.Name.Name != want {
			t.Errorf("%s: %v, want %s", node, got, want)
		}
	}
}

func TestSecretsStayWhereTheyAre(t *testing.T) {
	secret := func(ns, name string) model.Secret {
		n := ident.Name{Namespace: ns, Name: name}.String()
		if ns == "" {
			n = "file:" + name
		}
		return model.Secret{Meta: meta(ns, name), Secret: plan.Secret{Name: n, Certificate: []byte("c"), Key: []byte("k"), Authorities: []byte("a")}}
	}
	web := service("a", "web")
	tls := func(name string) *model.TrafficPolicy {
		return &model.TrafficPolicy{Originate: &plan.ClientTLS{Secret: name, Authorities: name}}
	}
	cfg := &model.Config{
		Services:  []model.Service{web},
		Workloads: []model.Workload{workload("a", "x"), workload("b", "x")},
		Secrets:   []model.Secret{secret("a", "own"), secret("b", "own"), secret("", "/etc/cert.pem"), secret("c", "ca"), secret("c", "unused")},
		Traffic:   []model.DestinationPolicy{{Meta: meta("a", "web"), Host: web.Host, ExportTo: []string{"*"}, Traffic: tls("c/ca")}},
	}
	for ns, want := range map[string][]string{
		"a": {"a/own key", "c/ca", "file:/etc/cert.pem key"}, "b": {"b/own key", "c/ca", "file:/etc/cert.pem key"},
	} {
		var got []string
		for _, s := range scopeOf(t, cfg, ns, "x").Secrets {
			name := s.Secret.Name
			if len(s.Key) > 0 || len(s.Certificate) > 0 {
				name += " key"
			}
			got = append(got, name)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s:\n%s", ns, d)
		}
	}
	if len(cfg.Secrets[3].Key) == 0 {
		t.Error("the configuration itself was changed")
	}
}

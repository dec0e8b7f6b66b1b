package scope_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/scope"
	"github.com/malha-mesh/malha/internal/world"
)

func meta(ns, name string, labels ...string) model.Meta {
	m := model.Meta{Name: ident.Name{Namespace: ns, Name: name}, Labels: map[string]string{}}
	for i := 0; i < len(labels); i += 2 {
		m.Labels[labels[i]] = labels[i+1]
	}
	return m
}

func service(ns, name string, exportTo ...string) model.Service {
	m := meta(ns, name)
	return model.Service{
		Meta: m, Host: ident.ServiceHost(m.Name), Selector: map[string]string{"app": name}, ExportTo: exportTo,
		Ports: []model.ServicePort{{Name: "http", Port: 80, Protocol: ident.HTTP, Target: 80}},
	}
}

func workload(ns, name string, labels ...string) model.Workload {
	return model.Workload{
		Meta: meta(ns, name, labels...), Address: "127.0.0.1", Ports: []model.WorkloadPort{{Name: "http", Port: 80, Protocol: ident.HTTP}},
		Identity: ident.Identity{TrustDomain: "cluster.local", Namespace: ns, ServiceAccount: name},
	}
}

func worldOf(t *testing.T, cfg *model.Config) *world.World {
	t.Helper()
	p, err := placement.Offline(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return world.Build(cfg, p.Instances, p.Gateways)
}

func scopeOf(t *testing.T, cfg *model.Config, ns, name string) *model.Scope {
	t.Helper()
	s, ok := scope.For(worldOf(t, cfg), ident.Name{Namespace: ns, Name: name})
	if !ok {
		t.Fatalf("%s/%s has no scope", ns, name)
	}
	return s
}

// seesItsRoutings holds Sees to For: a rule that Sees denies to a proxy which has it would change without that proxy.
func seesItsRoutings(t *testing.T, cfg *model.Config, node ident.Name) {
	t.Helper()
	w := worldOf(t, cfg)
	s, _ := scope.For(w, node)
	for i := range cfg.Routings {
		r := &cfg.Routings[i]
		has := slices.ContainsFunc(s.Routings, func(in model.Routing) bool { return in.Name == r.Name })
		if got := scope.Sees(w, node, r); got != has {
			t.Errorf("%s sees %s: %v; its scope has it: %v", node, r.Name, got, has)
		}
	}
}

func hosts(s *model.Scope) []string {
	var out []string
	for _, svc := range s.Services {
		out = append(out, svc.Name.String())
	}
	return out
}

func TestServicesAreSeenWhereTheyAreExported(t *testing.T) {
	cfg := &model.Config{
		Services:  []model.Service{service("a", "all"), service("a", "own", "a"), service("b", "to-c", "c"), service("b", "star", "*")},
		Workloads: []model.Workload{workload("a", "x"), workload("b", "x"), workload("c", "x")},
	}
	for ns, want := range map[string][]string{
		"a": {"a/all", "a/own", "b/star"},
		"b": {"a/all", "b/star"},
		"c": {"a/all", "b/star", "b/to-c"},
	} {
		if d := cmp.Diff(want, hosts(scopeOf(t, cfg, ns, "x"))); d != "" {
			t.Errorf("from %s:\n%s", ns, d)
		}
	}
}

func TestSourceConditionsAreDecided(t *testing.T) {
	rule := func(name string, matches ...model.HTTPMatch) model.HTTPRule {
		return model.HTTPRule{Name: name, Matches: matches}
	}
	cfg := &model.Config{
		Workloads: []model.Workload{workload("a", "old", "version", "v1"), workload("a", "new", "version", "v2"), workload("b", "other")},
		Routings: []model.Routing{{
			Meta: meta("a", "r"), Hosts: []string{"h"}, Gateways: []string{model.Mesh, "a/door"}, ExportTo: []string{"*"},
			HTTP: []model.HTTPRule{
				rule("v2", model.HTTPMatch{SourceLabels: map[string]string{"version": "v2"}}),
				rule("from b", model.HTTPMatch{SourceNamespace: "b"}),
				rule("v1 or b", model.HTTPMatch{SourceNamespace: "b"}, model.HTTPMatch{SourceLabels: map[string]string{"version": "v1"}}),
				rule("door only", model.HTTPMatch{Gateways: []string{"a/door"}}),
				// With gateways named, the source is not asked about.
				rule("mesh", model.HTTPMatch{Gateways: []string{model.Mesh}, SourceNamespace: "nowhere"}),
				rule("all"),
			},
		}},
		Gateways: []model.Gateway{{Meta: meta("a", "door"), Servers: []model.Server{{Port: 80, Protocol: ident.HTTP, Hosts: []string{"*/*"}}}}},
	}
	for node, want := range map[ident.Name][]string{
		{Namespace: "a", Name: "old"}:                             {"v1 or b", "mesh", "all"},
		{Namespace: "a", Name: "new"}:                             {"v2", "mesh", "all"},
		{Namespace: "b", Name: "other"}:                           {"from b", "v1 or b", "mesh", "all"},
		{Namespace: "istio-system", Name: "istio-ingressgateway"}: {"door only", "all"},
	} {
		s := scopeOf(t, cfg, node.Namespace, node.Name)
		var got []string
		for _, r := range s.Routings[0].HTTP {
			got = append(got, r.Name)
			for _, m := range r.Matches {
				if m.SourceNamespace != "" || m.SourceLabels != nil || s.Sidecar != nil && m.Gateways != nil {
					t.Errorf("%s: rule %q still has a condition on its source: %+v", node, r.Name, m)
				}
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s:\n%s", node, d)
		}
	}
	if len(cfg.Routings[0].HTTP[0].Matches[0].SourceLabels) == 0 {
		t.Error("the configuration itself was changed")
	}
}

// TestSourceConditionsOfConnections: they are decided beside a match's gateways, and not at gateways.
func TestSourceConditionsOfConnections(t *testing.T) {
	v2 := map[string]string{"version": "v2"}
	rule := func(host string, gateways []string, labels map[string]string) model.TCPRule {
		return model.TCPRule{Matches: []model.TCPMatch{{Gateways: gateways, SourceLabels: labels}}, Forward: []model.WeightedDestination{{Target: model.Target{Host: host}}}}
	}
	door := []string{"a/door"}
	cfg := &model.Config{
		Workloads: []model.Workload{workload("a", "old", "version", "v1"), workload("a", "new", "version", "v2")},
		Routings: []model.Routing{{
			Meta: meta("a", "r"), Hosts: []string{"h"}, Gateways: []string{model.Mesh, "a/door"}, ExportTo: []string{"*"},
			TCP: []model.TCPRule{
				rule("mesh and v2", []string{model.Mesh}, v2), rule("v2", nil, v2), rule("door and v2", door, v2), rule("door", door, nil), rule("all", nil, nil),
			},
		}},
		Gateways: []model.Gateway{{Meta: meta("a", "door"), Servers: []model.Server{{Port: 80, Protocol: ident.TCP, Hosts: []string{"*/*"}}}}},
	}
	for node, want := range map[ident.Name][]string{
		{Namespace: "a", Name: "old"}:                             {"all"},
		{Namespace: "a", Name: "new"}:                             {"mesh and v2", "v2", "all"},
		{Namespace: "istio-system", Name: "istio-ingressgateway"}: {"v2", "door and v2", "door", "all"},
	} {
		var got []string
		for _, r := range scopeOf(t, cfg, node.Namespace, node.Name).Routings[0].TCP {
			got = append(got, r.Forward[0].Host)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s:\n%s", node, d)
		}
	}
}

func TestRoutingsSpeakToWhomTheyName(t *testing.T) {
	routing := func(name string, exportTo string, gateways ...string) model.Routing {
		return model.Routing{Meta: meta("a", name), Hosts: []string{"h"}, Gateways: gateways, ExportTo: []string{exportTo}, HTTP: []model.HTTPRule{{}}}
	}
	cfg := &model.Config{
		Workloads: []model.Workload{workload("a", "x"), workload("b", "x")},
		Routings:  []model.Routing{routing("mesh", "*", model.Mesh), routing("private", "a", model.Mesh), routing("door", "*", "a/door"), routing("both", "*", model.Mesh, "a/door")},
		Gateways:  []model.Gateway{{Meta: meta("a", "door"), Servers: []model.Server{{Port: 80}}}},
	}
	for node, want := range map[ident.Name][]string{
		{Namespace: "a", Name: "x"}:                               {"both", "mesh", "private"},
		{Namespace: "b", Name: "x"}:                               {"both", "mesh"},
		{Namespace: "istio-system", Name: "istio-ingressgateway"}: {"both", "door"},
	} {
		var got []string
		for _, r := range scopeOf(t, cfg, node.Namespace, node.Name).Routings {
			got = append(got, r.Name.Name)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s:\n%s", node, d)
		}
		seesItsRoutings(t, cfg, node)
	}
	if w := worldOf(t, cfg); scope.Sees(w, ident.Name{Namespace: "a", Name: "nobody"}, &cfg.Routings[0]) {
		t.Error("who is not there sees a rule")
	}
}

func TestProfilesAndSplits(t *testing.T) {
	web := service("a", "web")
	split := func(ns, name string) model.Split { return model.Split{Meta: meta(ns, name), Host: web.Host} }
	cfg := &model.Config{
		Services:  []model.Service{web},
		Workloads: []model.Workload{workload("a", "x"), workload("b", "x"), workload("c", "x")},
		Profiles:  []model.Profile{{Meta: meta("a", web.Host), Host: web.Host}, {Meta: meta("b", web.Host), Host: web.Host}},
		// Of another namespace, and first by name: it must not take the service's traffic.
		Splits: []model.Split{split("c", "a"), split("a", "z"), split("a", "y")},
	}
	for ns, want := range map[string]string{"a": "a", "b": "b", "c": "a"} {
		s := scopeOf(t, cfg, ns, "x").Services[0]
		if s.Profile == nil || s.Profile.Name.Namespace != want {
			t.Errorf("from %s: profile %+v, want that of namespace %s", ns, s.Profile, want)
		}
		if s.Split == nil || s.Split.Name.String() != "a/y" {
			t.Errorf("from %s: split %+v, want a/y: the oldest of the service's own namespace", ns, s.Split)
		}
	}
}

func TestPoliciesThatGuard(t *testing.T) {
	policy := func(ns, name string, selector ...string) model.AuthzPolicy {
		return model.AuthzPolicy{Meta: meta(ns, name), Selector: meta("", "", selector...).Labels, Policy: plan.Policy{Name: ns + "/" + name}}
	}
	cfg := &model.Config{
		Workloads: []model.Workload{workload("a", "x", "app", "x"), workload("z", "x", "app", "x"), workload("a", "y", "app", "y")},
		Policies: []model.AuthzPolicy{
			policy("a", "all"), policy("a", "x", "app", "x"), policy("b", "all"), policy("istio-system", "all"),
			policy("istio-system", "x", "app", "x"), policy("istio-system", "gw", "istio", "ingressgateway"),
		},
		Gateways: []model.Gateway{{Meta: meta("a", "door"), Servers: []model.Server{{Port: 80}}}},
	}
	for node, want := range map[ident.Name][]string{
		{Namespace: "a", Name: "x"}:                               {"a/all", "a/x", "istio-system/all", "istio-system/x"},
		{Namespace: "a", Name: "y"}:                               {"a/all", "istio-system/all"},
		{Namespace: "z", Name: "x"}:                               {"istio-system/all", "istio-system/x"},
		{Namespace: "istio-system", Name: "istio-ingressgateway"}: {"istio-system/all", "istio-system/gw"},
	} {
		var got []string
		for _, p := range scopeOf(t, cfg, node.Namespace, node.Name).Policies {
			got = append(got, p.Policy.Name)
		}
		if !slices.Equal(want, got) {
			t.Errorf("%s: %v, want %v", node, got, want)
		}
	}
}

func TestNobody(t *testing.T) {
	if _, ok := scope.For(world.Build(&model.Config{Workloads: []model.Workload{workload("a", "x")}}, nil, nil), ident.Name{Namespace: "a", Name: "x"}); ok {
		t.Error("a workload that is not placed has a scope")
	}
}

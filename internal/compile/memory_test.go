package compile_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/compile"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/scope"
	"github.com/malha-mesh/malha/internal/world"
)

// TestMemoryChangesNothing: whatever was compiled before, and of whichever configuration, a plan and what is said of it are those
// of Compile.
func TestMemoryChangesNothing(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	cfg := bigConfig(12, 2)
	more(cfg)
	// Clients of ns1 mean others of the same members, and use them otherwise.
	no := false
	for i := range cfg.Services {
		cfg.Traffic = append(cfg.Traffic, model.DestinationPolicy{
			Meta: model.Meta{Name: ident.Name{Namespace: "ns1", Name: fmt.Sprint("own", i)}}, Host: cfg.Services[i].Host, ExportTo: []string{"ns1"},
			Traffic: &model.TrafficPolicy{HTTP2: []*bool{nil, &no}[i%2]}, Workloads: map[string]string{"version": "v1"},
			Subsets: []model.Subset{{Name: "v1", Labels: map[string]string{"version": []string{"v3", "v1"}[i%2]}}},
		})
	}
	var memory compile.Memory
	for round := range 8 {
		next := *cfg
		if round%2 == 1 { // without the rule for every host, splits and profiles decide
			next.Routings = slices.DeleteFunc(slices.Clone(next.Routings), func(r model.Routing) bool { return r.Hosts[0] == "*" })
		}
		// Other configurations, which share most objects with those before.
		switch {
		case round == 3:
			next.Splits, next.Profiles = nil, nil
		case round > 1:
			drop(rnd, &next.Services)
			drop(rnd, &next.Traffic)
			drop(rnd, &next.Splits)
			drop(rnd, &next.Profiles)
			drop(rnd, &next.Sidecars)
			drop(rnd, &next.Secrets)
		}
		p, err := placement.Offline(&next)
		if err != nil {
			t.Fatal(err)
		}
		w := world.Build(&next, p.Instances, p.Gateways)
		for change := range 3 {
			for _, node := range w.Nodes() {
				s, ok := scope.For(w, node)
				if !ok {
					t.Fatal(node)
				}
				want, wantSaid := compile.Compile(s)
				got, said := memory.Compile(s)
				if !reflect.DeepEqual(want, got) {
					t.Fatalf("round %d, change %d: %s (-without +with memory):\n%s", round, change, node, gocmp.Diff(want, got))
				}
				if !slices.Equal(wantSaid, said) {
					t.Fatalf("round %d, change %d: %s: what is said (-without +with memory):\n%s", round, change, node, gocmp.Diff(wantSaid, said))
				}
			}
			w, _ = w.With(someChange(rnd, &next, p.Instances))
		}
	}
}

// drop leaves one of all out, sometimes.
func drop[T any](rnd *rand.Rand, all *[]T) {
	if rnd.IntN(2) == 0 && len(*all) > 0 {
		i := rnd.IntN(len(*all))
		*all = slices.Delete(slices.Clone(*all), i, i+1)
	}
}

func someChange(rnd *rand.Rand, cfg *model.Config, instances []model.Instance) *model.Delta {
	in := instances[rnd.IntN(len(instances))]
	in.Ready = rnd.IntN(2) == 0
	r := cfg.Routings[rnd.IntN(len(cfg.Routings))]
	r.HTTP = slices.Clone(r.HTTP)
	rule := &r.HTTP[rnd.IntN(len(r.HTTP))]
	rule.Timeout = time.Duration(rnd.IntN(3)) * time.Second
	rule.Matches = []model.HTTPMatch{{Match: plan.Match{Path: &match.String{Kind: match.Prefix, Value: "/a"}}}}
	target := cfg.Services[rnd.IntN(len(cfg.Services))].Host
	switch rnd.IntN(4) {
	case 0:
		target = "gone.example"
	case 1:
		rule.Mirrors = []model.MirrorDestination{{Target: model.Target{Host: target, Subset: "v3"}}}
	case 2:
		rule.Matches[0].SourceNamespace = "ns1"
	}
	rule.Direct, rule.Forward = nil, []model.WeightedDestination{{Target: model.Target{Host: target}, Weight: 1}}
	r.Precedence, r.Port = rnd.IntN(3) == 0, []int{0, 0, 8000}[rnd.IntN(3)]
	return &model.Delta{Instances: []model.Instance{in}, Routings: []model.Routing{r}}
}

// TestMemoryShares: proxies that see the same have it once, and a rule that changes is all that is made again.
func TestMemoryShares(t *testing.T) {
	cfg := &model.Config{}
	for i := range 3 {
		name := ident.Name{Namespace: "default", Name: fmt.Sprintf("s%d", i)}
		meta := model.Meta{Name: name, Labels: map[string]string{"app": name.Name}}
		cfg.Services = append(cfg.Services, model.Service{
			Meta: meta, Host: ident.ServiceHost(name), Selector: meta.Labels, Ports: []model.ServicePort{{Name: "http", Port: 80, Target: 80, Protocol: ident.HTTP}},
		})
		cfg.Workloads = append(cfg.Workloads, model.Workload{Meta: meta, Address: "127.0.0.1", Ports: []model.WorkloadPort{{Name: "http", Port: 80, Protocol: ident.HTTP}}})
	}
	rule := func(timeout time.Duration) model.Routing {
		return model.Routing{
			Meta: model.Meta{Name: ident.Name{Namespace: "default", Name: "r"}}, Hosts: []string{cfg.Services[0].Host}, Gateways: []string{model.Mesh}, ExportTo: []string{"*"},
			HTTP: []model.HTTPRule{{Forward: []model.WeightedDestination{{Target: model.Target{Host: cfg.Services[1].Host}}}, Timeout: timeout}},
		}
	}
	cfg.Routings = []model.Routing{rule(time.Second)}
	p, err := placement.Offline(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := world.Build(cfg, p.Instances, p.Gateways)
	var memory compile.Memory
	// made returns where the routes of each host, and its endpoints, are.
	made := func(w *world.World, name string) map[string]any {
		s, ok := scope.For(w, ident.Name{Namespace: "default", Name: name})
		if !ok {
			t.Fatal(name)
		}
		pl, _ := memory.Compile(s)
		out := map[string]any{}
		for _, table := range pl.Routes {
			for _, h := range table.Hosts {
				if table.Name == "80" {
					out[h.Name] = &h.Routes[0]
				}
			}
		}
		for _, e := range pl.Endpoints {
			if len(e.Endpoints) > 0 && e.Cluster[0] == 'o' {
				out[e.Cluster] = &e.Endpoints[0]
			}
		}
		return out
	}
	first, second := made(w, "s0"), made(w, "s1")
	if len(first) != 5 { // s0 itself leads to s1
		t.Fatalf("%d pieces, want the routes of 3 hosts and the endpoints of 2: %v", len(first), first)
	}
	next, _ := w.With(&model.Delta{Routings: []model.Routing{rule(2 * time.Second)}})
	third := made(next, "s0")
	for name, at := range first {
		if second[name] != at {
			t.Errorf("%s was made for each of two proxies", name)
		}
		if changed := name == cfg.Services[0].Host+":80"; (third[name] == at) == changed {
			t.Errorf("%s: a rule of s0 changed, and it is the same memory: %v", name, third[name] == at)
		}
	}
}

// BenchmarkMemory makes the plan of BenchmarkCompile as it is made for one more proxy, or after a change of one rule.
func BenchmarkMemory(b *testing.B) {
	cfg := bigConfig(1000, 5)
	w := world.Build(cfg, []model.Instance{{Workload: cfg.Workloads[0].Name, Ready: true, Forward: "127.0.0.1:1"}}, nil)
	var memory compile.Memory
	b.ReportAllocs()
	for b.Loop() {
		s, _ := scope.For(w, cfg.Workloads[0].Name)
		memory.Compile(s)
	}
}

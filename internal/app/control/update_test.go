package control_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/compile"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/scope"
	"github.com/malha-mesh/malha/internal/world"
)

// crowd is a mesh of services with two workloads each, of which the client's namespace sees a part.
func crowd(services int) string {
	var b strings.Builder
	b.WriteString(app)
	for i := range services {
		fmt.Fprintf(&b, `
---
apiVersion: v1
kind: Service
metadata: {name: s%[1]d, namespace: team}
spec: {selector: {app: s%[1]d}, ports: [{name: http, port: 80}, {name: tcp-db, port: 90}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: s%[1]d, namespace: team}
spec: {host: s%[1]d, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
`, i)
		for _, v := range []string{"v1", "v2"} {
			fmt.Fprintf(&b, `
---
apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: s%[1]d-%[2]s, namespace: team, labels: {app: s%[1]d, version: %[2]s}}
spec: {ports: [{name: http, port: 80}, {name: tcp-db, port: 90}], address: 127.0.0.1}
`, i, v)
		}
	}
	return b.String()
}

// TestUpdatesMakeThePlansThatAWholeBuildMakes changes parts at random, and compares what proxies got with plans that are made
// from nothing.
func TestUpdatesMakeThePlansThatAWholeBuildMakes(t *testing.T) {
	const services = 4
	m := start(t, crowd(services)+`
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: narrow}
spec:
  workloadSelector: {labels: {app: web}}
  egress: [{hosts: ["team/s0.team.svc.cluster.local"]}]
`)
	proxies := map[string]*proxy{"client": m.proxy("client"), "web": m.proxy("web")}
	m.syncOnly("client", "web")
	rnd := rand.New(rand.NewPCG(7, 11))
	instances := map[ident.Name]model.Instance{}
	for _, in := range m.placed.Instances {
		instances[in.Workload] = in
	}
	routings := map[model.RoutingName]model.Routing{}
	pods := map[ident.Name]model.Workload{}
	team := func(format string, args ...any) ident.Name {
		return ident.Name{Namespace: "team", Name: fmt.Sprintf(format, args...)}
	}
	random := func() model.Delta {
		var d model.Delta
		for range 1 + rnd.IntN(3) {
			name := team("s%d-v%d", rnd.IntN(services), 1+rnd.IntN(2))
			if in, ok := instances[name]; ok && rnd.IntN(4) == 0 {
				delete(instances, name)
				d.Unplaced = append(d.Unplaced, name)
				d.Instances = slices.DeleteFunc(d.Instances, func(i model.Instance) bool { return i.Workload == name }) // it goes, then
			} else if ok {
				in.Ready = !in.Ready
				instances[name] = in
				d.Instances = append(d.Instances, in)
			} else if i := slices.IndexFunc(m.placed.Instances, func(i model.Instance) bool { return i.Workload == name }); !slices.Contains(d.Unplaced, name) {
				instances[name] = m.placed.Instances[i]
				d.Instances = append(d.Instances, m.placed.Instances[i])
			}
		}
		switch name := team("pod%d", rnd.IntN(3)); rnd.IntN(4) {
		case 0: // a Pod comes, or is another one
			wl := model.Workload{
				Meta:     model.Meta{Name: name, Labels: map[string]string{"app": fmt.Sprintf("s%d", rnd.IntN(services)), "version": "v1"}},
				Identity: ident.Identity{TrustDomain: "cluster.local", Namespace: "team", ServiceAccount: "pods"}, AnyPort: true,
			}
			in := model.Instance{Workload: name, Ready: true, Captured: &model.Captured{Address: fmt.Sprintf("10.0.0.%d", rnd.IntN(250)), Inbound: "0.0.0.0:15006"}}
			pods[name], instances[name] = wl, in
			d.Workloads, d.Instances = append(d.Workloads, wl), append(d.Instances, in)
		case 1:
			if _, ok := pods[name]; ok {
				delete(pods, name)
				delete(instances, name)
				d.Ended, d.Unplaced = append(d.Ended, name), append(d.Unplaced, name)
			}
		}
		if rnd.IntN(2) == 0 {
			to := rnd.IntN(services)
			r := model.Routing{
				Meta:  model.Meta{Name: team("r%d", rnd.IntN(3)), Origin: ident.Origin{Kind: "VirtualService", Name: "r"}},
				Hosts: []string{ident.ServiceHost(team("s%d", rnd.IntN(services)))}, Gateways: []string{model.Mesh}, ExportTo: []string{"*"},
				HTTP: []model.HTTPRule{{
					Matches: []model.HTTPMatch{{Match: plan.Match{Path: &match.String{Kind: match.Prefix, Value: fmt.Sprintf("/%d", rnd.IntN(5))}}}},
					Forward: []model.WeightedDestination{{Target: model.Target{Host: ident.ServiceHost(team("s%d", to)), Port: 80, Subset: "v1"}}},
					Timeout: time.Duration(rnd.IntN(5)) * time.Second,
				}},
			}
			name := model.RoutingName{Kind: "VirtualService", Name: r.Name}
			if _, ok := routings[name]; ok && rnd.IntN(2) == 0 {
				delete(routings, name)
				d.Unrouted = append(d.Unrouted, name)
			} else {
				routings[name] = r
				d.Routings = append(d.Routings, r)
			}
		}
		return d
	}
	base := *m.Config()
	whole := func() *model.Config {
		cfg := base
		cfg.Routings = slices.Clone(cfg.Routings)
		for _, r := range routings {
			cfg.Routings = append(cfg.Routings, r)
		}
		cfg.Workloads = slices.Clone(cfg.Workloads)
		for _, wl := range pods {
			cfg.Workloads = append(cfg.Workloads, wl)
		}
		return &cfg
	}
	wholes := m.Work().Whole
	for step := range 60 {
		for range 1 + rnd.IntN(2) {
			d := random()
			if rnd.IntN(3) > 0 {
				m.Update(d)
				continue
			}
			m.SetConfig(whole()) // says the same, and is found to be a part
			m.Update(model.Delta{Instances: d.Instances, Unplaced: d.Unplaced})
		}
		if step%20 == 19 { // a whole change in between keeps what updates said
			m.SetInstances(slices.Collect(mapValues(instances)), nil)
		}
		if step%15 != 14 && step < 55 {
			continue
		}
		m.syncOnly("client", "web")
		w := world.Build(whole(), slices.Collect(mapValues(instances)), nil)
		for name, p := range proxies {
			s, ok := scope.For(w, ident.Name{Namespace: "default", Name: name})
			if !ok {
				t.Fatalf("no scope for %s", name)
			}
			want, _ := compile.Compile(s)
			if d := cmp.Diff(want, p.current()); d != "" {
				t.Fatalf("step %d: the plan of %s (-whole +updated):\n%s", step, name, d)
			}
			if got, _ := m.Plan(s.Node.Name); !cmp.Equal(want, got) {
				t.Errorf("step %d: Plan(%s) is another (-whole +told):\n%s", step, name, cmp.Diff(want, got))
			}
		}
	}
	if n := m.Work().Whole - wholes; n > 0 {
		t.Errorf("%d times everything was made anew, though parts were changed", n)
	}
}

// TestConfigurationsAreTakenByParts: what the next configuration has in common with the one before is not made again, and what no
// part can say is.
func TestConfigurationsAreTakenByParts(t *testing.T) {
	m := start(t, rule("1s", "web"))
	client, _ := m.proxy("client"), m.proxy("web")
	m.sync()
	before := m.Work()
	for i, change := range []struct {
		name  string
		text  string
		whole bool
	}{
		{"a rule", rule("2s", "web"), false},
		{"the same", rule("2s", "web"), false},
		{"no rule", app, false},
		{"a rule again", rule("3s", "web"), false},
		{"a service", rule("3s", "web") + "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: other}\nspec: {ports: [{port: 80}]}\n", true},
	} {
		cfg := parse(t, change.text)
		cfg.Statuses = []model.Status{{Kind: "Gateway", Name: ident.Name{Namespace: "default", Name: fmt.Sprint(i)}}}
		m.SetConfig(cfg)
		m.sync()
		after := m.Work()
		if got := after.Whole > before.Whole; got != change.whole || after.Whole+after.Parts == before.Whole+before.Parts {
			t.Errorf("%s: made as a whole %v, want %v: %+v after %+v", change.name, got, change.whole, after, before)
		}
		if d := cmp.Diff(cfg.Statuses, m.Statuses()); d != "" {
			t.Errorf("%s: statuses %s", change.name, d)
		}
		before = after
	}
	if got := timeout(t, client.current()); got != 3*time.Second {
		t.Errorf("timeout %v", got)
	}
}

func mapValues[K comparable, V any](m map[K]V) func(func(V) bool) {
	return func(yield func(V) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

// TestUpdateIsToldEvenWhenWrong: a rule that leads nowhere is closed, alone, and said to be wrong.
func TestUpdateIsToldEvenWhenWrong(t *testing.T) {
	m := start(t, rule("1s", "web"))
	client, _ := m.proxy("client"), m.proxy("web")
	m.sync()
	m.Update(model.Delta{Routings: parse(t, rule("2s", "nobody")).Routings})
	m.sync()
	if got := timeout(t, client.current()); got != 2*time.Second {
		t.Errorf("timeout %v: what is updated is put in force", got)
	}
	if ds := m.Diagnostics(); !model.HasErrors(ds) {
		t.Errorf("diagnostics %v, want the host that does not exist", ds)
	}
}

// TestEachObjectForItself: a configuration with an error between objects is in force, but for the error.
func TestEachObjectForItself(t *testing.T) {
	m := start(t, rule("1s", "web"))
	client, _ := m.proxy("client"), m.proxy("web")
	m.sync()
	m.set(rule("2s", "nobody"))
	m.sync()
	if got := timeout(t, client.current()); got != 2*time.Second || !model.HasErrors(m.Diagnostics()) {
		t.Errorf("timeout %v, diagnostics %v", got, m.Diagnostics())
	}
}

func TestStatusesAreThoseOfTheConfigurationInForce(t *testing.T) {
	m := start(t, app)
	cfg := *parse(t, app)
	cfg.Statuses = []model.Status{{Kind: "Gateway", Name: ident.Name{Namespace: "default", Name: "g"}}}
	m.SetConfig(&cfg)
	flush(t, m)
	if d := cmp.Diff(cfg.Statuses, m.Statuses()); d != "" {
		t.Error(d)
	}
}

func (m *mesh) syncOnly(names ...string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var nodes []ident.Name
	for _, n := range names {
		nodes = append(nodes, ident.Name{Namespace: ident.DefaultNamespace, Name: n})
	}
	if err := m.WaitSynced(ctx, nodes...); err != nil {
		m.t.Fatal(err)
	}
}

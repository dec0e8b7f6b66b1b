package world_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/world"
)

// moment is what a World is made of, as a test changes it.
type moment struct {
	cfg       model.Config
	instances []model.Instance
}

func (m *moment) build() *world.World {
	cfg := m.cfg
	return world.Build(&cfg, slices.Clone(m.instances), nil)
}

// mesh returns n services in four namespaces, each with two workloads, of which the services of one group share some.
func mesh(n int) *moment {
	m := &moment{}
	for i := range n {
		ns, app := fmt.Sprintf("ns%d", i%4), fmt.Sprintf("app%d", i)
		s := model.Service{
			Meta: meta(ns, app), Selector: map[string]string{"app": app}, Headless: i%5 == 0,
			Ports: []model.ServicePort{{Name: "http", Port: 80, Target: 8080, Protocol: ident.HTTP}},
		}
		s.Host = ident.ServiceHost(s.Name)
		m.cfg.Services = append(m.cfg.Services, s)
		for j := range 2 {
			wl := model.Workload{Meta: meta(ns, fmt.Sprintf("%s-%d", app, j)), Address: "127.0.0.1", Ports: []model.WorkloadPort{{Name: "http", Port: 8080}}}
			wl.Labels = map[string]string{"app": app, "group": fmt.Sprint(i % 8)}
			m.cfg.Workloads = append(m.cfg.Workloads, wl)
			m.instances = append(m.instances, instance(wl.Name, len(m.instances), true))
		}
	}
	for i := range 4 { // over several
		s := model.Service{Meta: meta(fmt.Sprintf("ns%d", i), "group"), Selector: map[string]string{"group": fmt.Sprint(i)}, Resolution: model.ByAddress}
		s.Host = fmt.Sprintf("group%d.example", i)
		s.Ports = []model.ServicePort{{Name: "http", Port: 80, Target: 8080}}
		m.cfg.Services = append(m.cfg.Services, s)
	}
	return m
}

func instance(name ident.Name, port int, ready bool) model.Instance {
	return model.Instance{
		Workload: name, Ready: ready, Forward: fmt.Sprintf("127.0.1.1:%d", 1000+port),
		Inbound: map[int]string{8080: fmt.Sprintf("127.0.0.1:%d", 1000+port)}, App: map[int]string{8080: fmt.Sprintf("127.0.0.2:%d", 1000+port)},
	}
}

// TestWithIsBuild changes a mesh at random, and compares the world that With makes with one that is built anew: in what
// everybody can ask of it, and in what it says has changed.
func TestWithIsBuild(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	m := mesh(12)
	for i := range 200 { // so that lists have several parts
		m.cfg.Routings = append(m.cfg.Routings, model.Routing{Meta: meta("ns0", fmt.Sprintf("more%d", i)), Hosts: []string{"more.example"}})
	}
	zone := func() string { return []string{"", "eu", "eu/a/1", "eu/b", "eu/a/2", "us/a"}[rnd.IntN(6)] }
	for i := range m.cfg.Workloads {
		m.cfg.Workloads[i].Locality = zone()
	}
	m.cfg.Traffic = []model.DestinationPolicy{{Meta: meta("ns0", "zones"), Host: "x.example", Subsets: []model.Subset{{Traffic: &model.TrafficPolicy{
		Ports: []model.PortPolicy{{Port: 80, Traffic: model.TrafficPolicy{Locality: &plan.Locality{ZoneAware: &plan.ZoneAware{}}}}},
	}}}}}
	w := m.build()
	crew := m.cfg.Workloads
	for step := range 400 {
		var d model.Delta
		for range 1 + rnd.IntN(3) {
			wl := crew[rnd.IntN(len(crew))].Name
			at := slices.IndexFunc(m.instances, func(in model.Instance) bool { return in.Workload == wl })
			s := &m.cfg.Services[rnd.IntN(len(m.cfg.Services))]
			switch rnd.IntN(9) {
			case 0: // gone
				if at >= 0 && !slices.ContainsFunc(d.Instances, func(in model.Instance) bool { return in.Workload == wl }) {
					m.instances = slices.Delete(slices.Clone(m.instances), at, at+1)
					d.Unplaced = append(d.Unplaced, wl)
				}
			case 1, 2: // moved, or its readiness
				in := instance(wl, rnd.IntN(40), rnd.IntN(2) == 0)
				if slices.Contains(d.Unplaced, wl) || slices.ContainsFunc(d.Instances, func(o model.Instance) bool { return o.Workload == wl }) {
					continue
				}
				if at >= 0 {
					m.instances = slices.Delete(slices.Clone(m.instances), at, at+1)
				}
				m.instances = append(slices.Clip(m.instances), in)
				d.Instances = append(d.Instances, in)
			case 3, 4: // written down
				g := model.EndpointGroup{Meta: meta(s.Name.Namespace, fmt.Sprintf("slice%d", rnd.IntN(6)))}
				if rnd.IntN(2) == 0 {
					g.Host = s.Host
				} else {
					g.Labels = map[string]string{"group": fmt.Sprint(rnd.IntN(4))}
				}
				g.Endpoints = []model.ServiceEndpoint{{Address: fmt.Sprintf("10.0.0.%d", rnd.IntN(9)), NotReady: rnd.IntN(4) == 0, Weight: rnd.Uint32N(3)}}
				same := func(o model.EndpointGroup) bool { return o.Name == g.Name && (o.Host == "") == (g.Host == "") }
				if slices.ContainsFunc(d.Groups, same) || slices.Contains(d.Ungrouped, g.Name) {
					continue
				}
				m.cfg.Endpoints = append(slices.DeleteFunc(slices.Clone(m.cfg.Endpoints), same), g)
				d.Groups = append(d.Groups, g)
			case 5: // a group goes
				if n := len(m.cfg.Endpoints); n > 0 {
					name := m.cfg.Endpoints[rnd.IntN(n)].Name
					if !slices.ContainsFunc(d.Groups, func(o model.EndpointGroup) bool { return o.Name == name }) {
						m.cfg.Endpoints = slices.DeleteFunc(slices.Clone(m.cfg.Endpoints), func(o model.EndpointGroup) bool { return o.Name == name })
						d.Ungrouped = append(d.Ungrouped, name)
					}
				}
			case 7, 8: // a workload goes, comes back, or is another
				wl := crew[rnd.IntN(len(crew))]
				named := func(o model.Instance) bool { return o.Workload == wl.Name }
				if slices.Contains(d.Ended, wl.Name) || slices.Contains(d.Unplaced, wl.Name) || slices.ContainsFunc(d.Instances, named) ||
					slices.ContainsFunc(d.Workloads, func(o model.Workload) bool { return o.Name == wl.Name }) {
					continue
				}
				rest := slices.DeleteFunc(slices.Clone(m.cfg.Workloads), func(o model.Workload) bool { return o.Name == wl.Name })
				if rnd.IntN(2) == 0 {
					m.cfg.Workloads = rest
					m.instances = slices.DeleteFunc(slices.Clone(m.instances), named)
					d.Ended = append(d.Ended, wl.Name)
					continue
				}
				wl.Labels = map[string]string{"app": fmt.Sprintf("app%d", rnd.IntN(12)), "group": fmt.Sprint(rnd.IntN(8))}
				wl.AnyPort, wl.Locality = rnd.IntN(2) == 0, zone()
				m.cfg.Workloads = append(rest, wl)
				slices.SortFunc(m.cfg.Workloads, func(a, b model.Workload) int { return a.Name.Compare(b.Name) })
				d.Workloads = append(d.Workloads, wl)
				if rnd.IntN(2) == 0 { // it is a Pod, from now on
					in := model.Instance{Workload: wl.Name, Ready: true, Captured: &model.Captured{
						Address: fmt.Sprintf("10.0.1.%d", rnd.IntN(9)), Hostname: "own", Subdomain: wl.Labels["app"],
					}}
					m.instances = append(slices.DeleteFunc(slices.Clone(m.instances), named), in)
					d.Instances = append(d.Instances, in)
				}
			case 6: // a rule
				r := model.Routing{Meta: meta(s.Name.Namespace, fmt.Sprintf("r%d", rnd.IntN(6))), Hosts: []string{s.Host}, Gateways: []string{model.Mesh}, ExportTo: []string{"*"}}
				r.Origin.Kind = []string{"VirtualService", "HTTPRoute"}[rnd.IntN(2)]
				r.Created = time.Unix(int64(rnd.IntN(3)), 0)
				r.Delegate = rnd.IntN(4) == 0
				if rnd.IntN(3) == 0 {
					r.Hosts = []string{"*." + s.Host, "x.example"}
				}
				same := func(o model.Routing) bool { return o.Name == r.Name && o.Origin.Kind == r.Origin.Kind }
				name := model.RoutingName{Kind: r.Origin.Kind, Name: r.Name}
				if slices.ContainsFunc(d.Routings, same) || slices.Contains(d.Unrouted, name) {
					continue
				}
				m.cfg.Routings = slices.DeleteFunc(slices.Clone(m.cfg.Routings), same)
				if rnd.IntN(3) == 0 {
					d.Unrouted = append(d.Unrouted, name)
				} else {
					m.cfg.Routings = append(m.cfg.Routings, r)
					d.Routings = append(d.Routings, r)
				}
			}
		}
		next, change := w.With(&d)
		want := m.build()
		if diff := gocmp.Diff(view(m, want), view(m, next)); diff != "" {
			t.Fatalf("step %d: after %+v (-built anew +changed):\n%s", step, d, diff)
		}
		for i := range m.cfg.Services {
			s := &m.cfg.Services[i]
			differs := !gocmp.Equal(w.Members(s.Host), next.Members(s.Host))
			if said := slices.Contains(change.Services, s.Host); said != differs {
				t.Fatalf("step %d: members of %s differ: %v, and the change says %v", step, s.Host, differs, said)
			}
		}
		for i := range crew {
			name := crew[i].Name
			_, before := w.Workload(name)
			_, now := next.Workload(name)
			differs := (before == nil) != (now == nil) || !gocmp.Equal(w.Inbound(name), next.Inbound(name)) || before != nil && before.Forward != now.Forward
			was, _ := w.Workload(name)
			if was == nil {
				differs = differs && next.Inbound(name) != nil
			}
			if is, _ := next.Workload(name); is != nil && was != nil && now != nil {
				differs = differs || w.Peers(was) != next.Peers(is)
			}
			if differs && !slices.Contains(change.Nodes, name) {
				t.Fatalf("step %d: the proxy of %s has something else to do, and the change does not say so", step, name)
			}
		}
		w = next
	}
}

// view is what can be asked of a world about the parts that a Delta changes.
func view(m *moment, w *world.World) map[string]any {
	out := map[string]any{"nodes": w.Nodes()}
	names := func(all []*model.Routing) []string {
		var out []string
		for _, r := range all {
			out = append(out, r.Created.UTC().Format(time.RFC3339)+" "+r.Name.String())
		}
		return out
	}
	out["routings"], out["wide"] = names(w.Routings()), names(w.WideRoutings())
	for i := range m.cfg.Services {
		s := &m.cfg.Services[i]
		out["members "+s.Host] = w.Members(s.Host)
		out["routings "+s.Host] = names(w.RoutingsOf(s.Host))
		out["routings in "+s.Name.Namespace] = names(w.RoutingsIn(s.Name.Namespace))
	}
	for i := range 6 {
		for ns := range 4 {
			name := ident.Name{Namespace: fmt.Sprintf("ns%d", ns), Name: fmt.Sprintf("r%d", i)}
			_, ok := w.Delegate(name, name.Namespace)
			out["delegate "+name.String()] = ok
		}
	}
	for i := range m.cfg.Workloads {
		name := m.cfg.Workloads[i].Name
		wl, _ := w.Workload(name)
		out["workload "+name.String()] = wl
		if wl != nil {
			out["peers "+name.String()] = w.Peers(wl)
		}
		out["inbound "+name.String()] = w.Inbound(name)
		_, in := w.Workload(name)
		out["placed "+name.String()] = in
	}
	return out
}

// BenchmarkWith changes the readiness of one workload, and one rule, in meshes of 100 to 10,000 services. To reach: flat.
func BenchmarkWith(b *testing.B) {
	for _, n := range []int{100, 1000, 10000} {
		m := mesh(n)
		m.cfg.Services = m.cfg.Services[:n] // without those of many members, whose size is another matter
		for i := range m.cfg.Services {
			s := &m.cfg.Services[i]
			m.cfg.Routings = append(m.cfg.Routings, model.Routing{Meta: meta(s.Name.Namespace, s.Name.Name), Hosts: []string{s.Host}, Gateways: []string{model.Mesh}})
		}
		w := m.build()
		b.Run(fmt.Sprintf("endpoint/services=%d", n), func(b *testing.B) {
			in := m.instances[0]
			for b.Loop() {
				in.Ready = !in.Ready
				w, _ = w.With(&model.Delta{Instances: []model.Instance{in}})
			}
		})
		b.Run(fmt.Sprintf("pod/services=%d", n), func(b *testing.B) {
			wl, in := m.cfg.Workloads[0], m.instances[0]
			wl.Name.Name += "-more"
			in.Workload = wl.Name
			for b.Loop() { // it comes and goes
				w, _ = w.With(&model.Delta{Workloads: []model.Workload{wl}, Instances: []model.Instance{in}})
				w, _ = w.With(&model.Delta{Ended: []ident.Name{wl.Name}, Unplaced: []ident.Name{wl.Name}})
			}
		})
		b.Run(fmt.Sprintf("rule/services=%d", n), func(b *testing.B) {
			for b.Loop() {
				w, _ = w.With(&model.Delta{Routings: []model.Routing{m.cfg.Routings[n/2]}})
			}
		})
	}
}

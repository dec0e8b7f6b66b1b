package compile_test

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/compile"
	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/golden"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/scope"
	"github.com/malha-mesh/malha/internal/wire"
	"github.com/malha-mesh/malha/internal/wire/packed"
	"github.com/malha-mesh/malha/internal/world"
)

// parse translates manifests, placed offline. Errors of the manifests themselves fail the test.
func parse(t testing.TB, files ...golden.File) (*model.Config, placement.Placement) {
	t.Helper()
	var objs []config.Object
	var ds []model.Diagnostic
	for _, f := range files {
		o, d := config.Parse(f.Name, f.Data)
		objs, ds = append(objs, o...), append(ds, d...)
	}
	cfg, more := config.Translate(objs)
	if ds = append(ds, more...); model.HasErrors(ds) {
		t.Fatalf("the manifests are wrong: %v", ds)
	}
	p, err := placement.Offline(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return cfg, p
}

func planOf(t testing.TB, w *world.World, node string) (*plan.Plan, []model.Diagnostic) {
	t.Helper()
	name, err := ident.ParseName(node, ident.DefaultNamespace)
	if err != nil {
		t.Fatal(err)
	}
	s, ok := scope.For(w, name)
	if !ok {
		t.Fatalf("no proxy %s; there are %v", name, w.Nodes())
	}
	return compile.Compile(s)
}

// shown returns the kinds of pieces that an archive's file "show" names, all without one: the rest is checked and not
// written down.
func shown(in *golden.Archive, p *plan.Plan) *plan.Plan {
	words, ok := in.Get("show")
	if !ok {
		return p
	}
	out := &plan.Plan{Node: p.Node}
	for _, w := range strings.Fields(string(words)) {
		switch w {
		case "listeners":
			out.Listeners = p.Listeners
		case "routes":
			out.Routes = p.Routes
		case "clusters":
			out.Clusters = p.Clusters
		case "endpoints":
			out.Endpoints = p.Endpoints
		case "policies":
			out.Policies = p.Policies
		case "secrets":
			for _, secret := range p.Secrets {
				out.Secrets = append(out.Secrets, secret.Redacted())
			}
		case "capture":
			out.Capture = p.Capture
		case "limits":
			out.Limits = p.Limits
		default:
			panic("show: unknown word " + w)
		}
	}
	return out
}

// captured makes Pods of the workloads that an archive's file "captured" names, one in a line: "namespace/name IP node
// [hostname.subdomain]".
func captured(t *testing.T, in *golden.Archive, cfg *model.Config, instances []model.Instance) {
	text, _ := in.Get("captured")
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		name, err := ident.ParseName(words[0], "default")
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(instances, func(in model.Instance) bool { return in.Workload == name })
		j := slices.IndexFunc(cfg.Workloads, func(wl model.Workload) bool { return wl.Name == name })
		if i < 0 || j < 0 {
			t.Fatalf("no workload %s", name)
		}
		c := &model.Captured{Address: words[1], Inbound: "0.0.0.0:15006", Outbound: "0.0.0.0:15001", DNS: "0.0.0.0:15053", Node: words[2]}
		if len(words) > 3 {
			c.Hostname, c.Subdomain, _ = strings.Cut(words[3], ".")
		}
		instances[i] = model.Instance{Workload: name, Ready: true, Captured: c}
		wl := &cfg.Workloads[j]
		wl.AnyPort, wl.Labels = true, maps.Clone(wl.Labels)
		wl.Labels["kubernetes.io/hostname"] = words[2]
	}
}

// TestGolden compiles the proxies that each archive names in its file "proxies".
func TestGolden(t *testing.T) {
	golden.Run(t, "testdata", func(t *testing.T, in *golden.Archive) map[string][]byte {
		var files []golden.File
		for _, f := range in.Files {
			if strings.HasSuffix(f.Name, ".yaml") {
				files = append(files, f)
			}
		}
		cfg, p := parse(t, files...)
		captured(t, in, cfg, p.Instances)
		w := world.Build(cfg, p.Instances, p.Gateways)
		proxies, _ := in.Get("proxies")
		out := map[string][]byte{}
		for _, node := range strings.Fields(string(proxies)) {
			got, ds := planOf(t, w, node)
			checkPlan(t, got)
			out[strings.ReplaceAll(node, "/", ".")+".json"] = golden.JSON(t, shown(in, got))
			var b bytes.Buffer
			for _, d := range ds {
				fmt.Fprintln(&b, d)
			}
			if b.Len() > 0 {
				out[strings.ReplaceAll(node, "/", ".")+".diagnostics"] = b.Bytes()
			}
		}
		return out
	})
}

// checkPlan checks what holds for every plan: references resolve, names are unique and sorted, nothing is unused.
func checkPlan(t testing.TB, p *plan.Plan) {
	t.Helper()
	pack, err := packed.Of(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range wire.Check(pack, &packed.Plan{}) {
		t.Errorf("%s: %v", p.Node.Name, bad)
	}
	sorted := func(what string, names []string) map[string]bool {
		unused := map[string]bool{}
		for i, n := range names {
			if i > 0 && names[i-1] >= n {
				t.Errorf("%s: %ss are not sorted and unique: %q, then %q", p.Node.Name, what, names[i-1], n)
			}
			unused[n] = true
		}
		return unused
	}
	sorted("listener", namesOf(p.Listeners, func(l *plan.Listener) string { return l.Name }))
	tables := sorted("route table", namesOf(p.Routes, func(r *plan.RouteTable) string { return r.Name }))
	clusters := sorted("cluster", namesOf(p.Clusters, func(c *plan.Cluster) string { return c.Name }))
	policies := sorted("policy", namesOf(p.Policies, func(a *plan.Policy) string { return a.Name }))
	sorted("endpoints", namesOf(p.Endpoints, func(e *plan.Endpoints) string { return e.Cluster }))
	use := func(ds []plan.Destination) {
		for _, d := range ds {
			delete(clusters, d.Cluster)
		}
	}
	binds := map[string]string{}
	for _, l := range p.Listeners {
		if other, ok := binds[l.Bind]; ok && (l.Bind != "" || p.Capture == nil) {
			t.Errorf("%s: %s and %s bind %s", p.Node.Name, other, l.Name, l.Bind)
		}
		binds[l.Bind] = l.Name
		delete(tables, l.Routes)
		use(l.TCP)
		tcp := func(all []plan.TCPRoute) {
			for _, r := range all {
				use(r.Forward)
			}
		}
		tls := func(all []plan.ServerName) {
			for _, n := range all {
				delete(tables, n.Routes)
				if n.Auto {
					clear(clusters) // clients name them
				}
				use(n.TCP)
				tcp(n.TCPRoutes)
			}
		}
		tcp(l.TCPRoutes)
		tls(l.ServerNames)
		for _, name := range l.Policies {
			delete(policies, name)
		}
		for _, port := range l.Ports {
			delete(tables, port.Routes)
			for _, h := range port.Hosts {
				use(h.TCP)
				tcp(h.TCPRoutes)
				tls(h.ServerNames)
			}
		}
	}
	for _, r := range p.Routes {
		domains := map[string]bool{}
		for _, h := range r.Hosts {
			for _, d := range h.Domains {
				if domains[d] {
					t.Errorf("%s: domain %s stands twice in table %s", p.Node.Name, d, r.Name)
				}
				domains[d] = true
			}
			for _, route := range h.Routes {
				use(route.Forward)
				for _, m := range route.Mirrors {
					delete(clusters, m.Cluster)
				}
			}
		}
	}
	for what, left := range map[string]map[string]bool{"route table": tables, "cluster": clusters, "policy": policies} {
		for name := range left {
			t.Errorf("%s: nothing refers to %s %s", p.Node.Name, what, name)
		}
	}
}

func namesOf[T any](all []T, name func(*T) string) []string {
	out := make([]string, len(all))
	for i := range all {
		out[i] = name(&all[i])
	}
	return out
}

// TestOrderOfInputDoesNotMatter compiles one configuration with its objects in many orders.
func TestOrderOfInputDoesNotMatter(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	cfg := bigConfig(12, 3)
	more(cfg)
	p, err := placement.Offline(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := world.Build(cfg, p.Instances, p.Gateways)
	want := map[ident.Name]*plan.Plan{}
	for _, node := range w.Nodes() {
		want[node], _ = planOf(t, w, node.String())
		checkPlan(t, want[node])
	}
	for range 20 {
		other := *cfg
		other.Services = shuffled(rnd, cfg.Services)
		other.Workloads = shuffled(rnd, cfg.Workloads)
		other.Routings = shuffled(rnd, cfg.Routings)
		other.Traffic = shuffled(rnd, cfg.Traffic)
		other.Gateways = shuffled(rnd, cfg.Gateways)
		other.PeerAuth = shuffled(rnd, cfg.PeerAuth)
		other.Policies = shuffled(rnd, cfg.Policies)
		other.Splits = shuffled(rnd, cfg.Splits)
		other.Profiles = shuffled(rnd, cfg.Profiles)
		other.Endpoints = shuffled(rnd, cfg.Endpoints)
		other.Sidecars = shuffled(rnd, cfg.Sidecars)
		other.Secrets = shuffled(rnd, cfg.Secrets)
		other.RateLimits = shuffled(rnd, cfg.RateLimits)
		other.Egress = shuffled(rnd, cfg.Egress)
		placed, err := placement.Offline(&other)
		if err != nil {
			t.Fatal(err)
		}
		w := world.Build(&other, shuffled(rnd, placed.Instances), placed.Gateways)
		for node, wanted := range want {
			got, _ := planOf(t, w, node.String())
			if !reflect.DeepEqual(wanted, got) {
				t.Fatalf("the plan of %s depends on the order of the input (-sorted +shuffled):\n%s", node, gocmp.Diff(wanted, got))
			}
		}
	}
}

func shuffled[T any](rnd *rand.Rand, in []T) []T {
	out := slices.Clone(in)
	rnd.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// bigConfig returns services with a workload and a VirtualService of n rules each, subsets, a split, a profile, a gateway
// and policies, by hand.
func bigConfig(services, rules int) *model.Config {
	cfg := &model.Config{}
	meta := func(ns, kind, name string) model.Meta {
		return model.Meta{
			Name:   ident.Name{Namespace: ns, Name: name},
			Origin: ident.Origin{Kind: kind, Namespace: ns, Name: name, File: "big.yaml"},
			Labels: map[string]string{"app": name, "version": "v1"},
		}
	}
	for i := range services {
		ns := fmt.Sprintf("ns%d", i%4)
		name := fmt.Sprintf("svc%d", i)
		s := model.Service{Meta: meta(ns, "Service", name), Selector: map[string]string{"app": name}}
		s.Host = ident.ServiceHost(s.Name)
		s.Ports = []model.ServicePort{
			{Name: "http", Port: 8000 + i%3, Protocol: ident.HTTP, Target: 80},
			{Name: "tcp-db", Port: 9000, Protocol: []ident.Protocol{ident.TCP, ident.Detect}[i%2], TargetName: "db"},
		}
		cfg.Services = append(cfg.Services, s)
		wl := model.Workload{Meta: meta(ns, "Workload", name), Address: "127.0.0.1"}
		wl.Identity = ident.Identity{TrustDomain: "cluster.local", Namespace: ns, ServiceAccount: name}
		wl.Ports = []model.WorkloadPort{{Name: "http", Port: 80, Protocol: ident.HTTP}, {Name: "db", Port: 5432}}
		cfg.Workloads = append(cfg.Workloads, wl)
		cfg.Traffic = append(cfg.Traffic, model.DestinationPolicy{
			Meta: meta(ns, "DestinationRule", name), Host: s.Host, ExportTo: []string{"*"},
			Subsets: []model.Subset{{Name: "v1", Labels: map[string]string{"version": "v1"}}},
		})
		cfg.Traffic = append(cfg.Traffic, model.DestinationPolicy{
			Meta: meta(ns, "DestinationRule", name+"-more"), Host: s.Host, ExportTo: []string{"*"},
			Subsets: []model.Subset{{Name: "v2", Labels: map[string]string{"version": "v2"}}},
			Traffic: &model.TrafficPolicy{Outlier: &plan.Outlier{Consecutive5xx: 5}},
		})
		switch i % 5 {
		case 0:
			cfg.Splits = append(cfg.Splits, model.Split{
				Meta: meta(ns, "TrafficSplit", name), Host: s.Host, Backends: []model.SplitBackend{{Host: s.Host, Weight: 1}, {Host: "gone." + s.Host, Weight: 1}},
			})
			continue
		case 1:
			cfg.Profiles = append(cfg.Profiles, model.Profile{
				Meta: meta(ns, "ServiceProfile", s.Host), Host: s.Host, Routes: []model.ProfileRoute{{Name: "r", Retryable: true}},
			})
			continue
		}
		r := model.Routing{Meta: meta(ns, "VirtualService", name), Hosts: []string{s.Host, "www." + name + ".example"}, ExportTo: []string{"*"}}
		r.Gateways = []string{model.Mesh, "ns0/door"}
		for j := range rules {
			r.HTTP = append(r.HTTP, model.HTTPRule{
				Matches: []model.HTTPMatch{{Match: plan.Match{Headers: []plan.FieldMatch{{Name: fmt.Sprintf("x-%d", j)}}}}},
				Forward: []model.WeightedDestination{
					{Target: model.Target{Host: s.Host, Subset: "v1", Port: s.Ports[0].Port}, Weight: 90},
					{Target: model.Target{Host: s.Host, Subset: "v2", Port: s.Ports[0].Port}, Weight: 10},
				},
			})
		}
		cfg.Routings = append(cfg.Routings, r)
	}
	cfg.Routings = append(cfg.Routings, model.Routing{
		Meta: meta("ns1", "VirtualService", "wide"), Hosts: []string{"*"}, Gateways: []string{model.Mesh, "ns0/door"}, ExportTo: []string{"*"},
		HTTP: []model.HTTPRule{{Direct: &plan.DirectResponse{Status: 418}}},
	})
	cfg.Gateways = append(cfg.Gateways, model.Gateway{
		Meta: meta("ns0", "Gateway", "door"), Selector: map[string]string{"istio": "ingressgateway"},
		Servers: []model.Server{{Port: 80, Protocol: ident.HTTP, Hosts: []string{"*/*"}}},
	})
	strict := plan.TLSStrict
	cfg.PeerAuth = append(cfg.PeerAuth, model.PeerAuth{Meta: meta(ident.RootNamespace, "PeerAuthentication", "default"), Mode: &strict})
	for i := range 4 {
		ns := fmt.Sprintf("ns%d", i)
		cfg.Policies = append(cfg.Policies, model.AuthzPolicy{
			Meta: meta(ns, "AuthorizationPolicy", "all"), Policy: plan.Policy{Name: ns + "/all", Action: plan.Allow},
		})
	}
	slices.SortFunc(cfg.Services, func(a, b model.Service) int { return cmp.Compare(a.Host, b.Host) })
	return cfg
}

// more adds objects of which several compete, or belong together.
func more(cfg *model.Config) {
	meta := func(ns, kind, name string) model.Meta {
		return model.Meta{
			Name:   ident.Name{Namespace: ns, Name: name},
			Origin: ident.Origin{Kind: kind, Namespace: ns, Name: name, File: "more.yaml"},
			Labels: map[string]string{"app": name},
		}
	}
	for i := range cfg.Services { // HTTP/3 has the port of HTTP, which the mesh carries
		s := &cfg.Services[i]
		s.Ports = append(slices.Clip(s.Ports), model.ServicePort{Name: "h3", Port: s.Ports[0].Port, Target: s.Ports[0].Target, Protocol: ident.UDP})
	}
	for i := range 3 {
		ns := fmt.Sprintf("ns%d", i)
		for _, name := range []string{"a", "b"} {
			cfg.Services = append(cfg.Services, model.Service{
				Meta: meta(ns, "ServiceEntry", name), Host: "api.example.com", External: true, Resolution: model.ByDNS,
				Ports:     []model.ServicePort{{Name: "http-" + name, Port: 8000 + int(name[0]), Target: 443, Protocol: ident.HTTP}},
				Endpoints: []model.ServiceEndpoint{{Address: name + ns + ".example.com", Weight: 2, Locality: "eu/" + name}},
				Addresses: []string{"240.0.0.1"},
			}, model.Service{
				Meta: meta(ns, "Service", "alias-"+name), Host: ident.ServiceHost(ident.Name{Namespace: ns, Name: "alias-" + name}), Alias: cfg.Services[i].Host,
			})
			cfg.Endpoints = append(cfg.Endpoints, model.EndpointGroup{
				Meta: meta(ns, "EndpointSlice", name), Host: cfg.Services[i].Host,
				Endpoints: []model.ServiceEndpoint{{Address: "10.0.0.1", Ports: map[string]int{"http": 80, "tcp-db": 81}}},
			}, model.EndpointGroup{
				Meta:      model.Meta{Name: ident.Name{Namespace: ns, Name: "we" + name}, Labels: map[string]string{"app": cfg.Services[i].Name.Name}},
				Endpoints: []model.ServiceEndpoint{{Address: "10.0.1.1", Weight: uint32(name[0])}},
			})
			cfg.Sidecars = append(cfg.Sidecars, model.SidecarPolicy{
				Meta: meta(ns, "Sidecar", name), Outbound: []plan.Otherwise{plan.Block, plan.Passthrough}[name[0]%2],
				Egress:  []model.EgressView{{Port: 8000 + i, Bind: "127.9.9.9", Protocol: ident.HTTP, Hosts: []string{"*/*"}}, {Hosts: []string{ns + "/*", "ns3/*"}}},
				Inbound: &model.TrafficPolicy{ConnectTimeout: time.Duration(name[0]) * time.Second},
			})
			cfg.Secrets = append(cfg.Secrets, model.Secret{Meta: meta(ns, "Secret", name), Secret: plan.Secret{Name: ns + "/" + name, Certificate: []byte(name)}})
			cfg.RateLimits = append(cfg.RateLimits, model.RateLimit{
				Meta: meta(ns, "RateLimit", name), Alone: true, Limit: plan.RateLimit{Name: "RateLimit/" + ns + "/" + name, Rules: []plan.RateLimitRule{{Requests: 1}}},
			})
			cfg.Egress = append(cfg.Egress, model.Egress{Meta: meta("ns3", "EgressNetwork", name), Otherwise: []plan.Otherwise{plan.Block, plan.Passthrough}[name[0]%2]})
			cfg.Traffic = append(cfg.Traffic, model.DestinationPolicy{
				Meta: meta(ns, "DestinationRule", "some-"+name), Host: "*", ExportTo: []string{"*"}, Workloads: map[string]string{"version": "v1"},
				Traffic: &model.TrafficPolicy{
					Originate: &plan.ClientTLS{Secret: name}, Hash: &plan.Hash{Header: "x-" + name}, Outlier: &plan.Outlier{Consecutive5xx: 1},
					Locality: &plan.Locality{Priority: []string{"version", "app"}, ZoneAware: &plan.ZoneAware{}},
				},
			})
		}
	}
}

// TestEndpointsAreThoseOfANewPlan: what Endpoints and With make of a change is what compiling anew makes of it.
func TestEndpointsAreThoseOfANewPlan(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	cfg := bigConfig(12, 2)
	more(cfg)
	p, err := placement.Offline(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := world.Build(cfg, p.Instances, p.Gateways)
	plans := map[ident.Name]*plan.Plan{}
	for _, node := range w.Nodes() {
		plans[node], _ = planOf(t, w, node.String())
	}
	updates := 0
	for range 60 {
		in := p.Instances[rnd.IntN(len(p.Instances))]
		in.Ready = rnd.IntN(2) == 0
		next, change := w.With(&model.Delta{Instances: []model.Instance{in}})
		for _, node := range next.Nodes() {
			want, _ := planOf(t, next, node.String())
			got := *plans[node]
			got.Endpoints = slices.Clone(got.Endpoints)
			for _, host := range change.Services {
				s, ok := scope.Service(next, node, host)
				if !ok {
					continue
				}
				changed, ok := compile.Endpoints(&s, &got)
				if !ok {
					t.Fatalf("%s has no headless services, and Endpoints says it has", host)
				}
				for _, e := range changed {
					i := slices.IndexFunc(got.Endpoints, func(have plan.Endpoints) bool { return have.Cluster == e.Cluster })
					if !reflect.DeepEqual(got.Endpoints[i], e) {
						updates++
					}
					got.Endpoints[i] = e
				}
			}
			if !reflect.DeepEqual(want, &got) {
				t.Fatalf("%s, after %+v (-anew +updated):\n%s", node, change, gocmp.Diff(want, &got))
			}
			plans[node] = want
		}
		w = next
	}
	if updates == 0 {
		t.Error("nothing ever changed: the test proves nothing")
	}
}

// BenchmarkCompile makes one proxy's plan in a mesh of 1,000 services with 5 rules each. To reach: 50 ms.
func BenchmarkCompile(b *testing.B) {
	cfg := bigConfig(1000, 5)
	var p placement.Placement
	for i := range cfg.Workloads { // local ports for each pair would be a million
		in := model.Instance{Workload: cfg.Workloads[i].Name, Ready: true, Forward: fmt.Sprintf("127.0.1.1:%d", 10000+i)}
		in.Inbound = map[int]string{80: fmt.Sprintf("127.0.2.1:%d", 10000+i), 5432: fmt.Sprintf("127.0.3.1:%d", 10000+i)}
		in.App = map[int]string{80: fmt.Sprintf("127.0.4.1:%d", 10000+i), 5432: fmt.Sprintf("127.0.5.1:%d", 10000+i)}
		p.Instances = append(p.Instances, in)
	}
	node := ident.Name{Namespace: "ns0", Name: "svc0"}
	b.Run("world", func(b *testing.B) {
		for b.Loop() {
			world.Build(cfg, p.Instances, p.Gateways)
		}
	})
	w := world.Build(cfg, p.Instances, p.Gateways)
	b.Run("check", func(b *testing.B) {
		for b.Loop() {
			world.Check(w)
		}
	})
	b.Run("advise", func(b *testing.B) {
		for b.Loop() {
			world.Advise(w)
		}
	})
	b.Run("scope", func(b *testing.B) {
		for b.Loop() {
			scope.For(w, node)
		}
	})
	b.Run("scope+compile", func(b *testing.B) {
		for b.Loop() {
			s, _ := scope.For(w, node)
			compile.Compile(s)
		}
	})
}

// BenchmarkNarrow makes the plan of a proxy whose Sidecar shows ten hosts, in meshes of 100 to 10,000 services. To reach: flat.
func BenchmarkNarrow(b *testing.B) {
	for _, n := range []int{100, 1000, 10000} {
		cfg := bigConfig(n, 5)
		cfg.Routings = slices.DeleteFunc(cfg.Routings, func(r model.Routing) bool { return r.Hosts[0] == "*" })
		view := model.EgressView{}
		for i := range 10 {
			view.Hosts = append(view.Hosts, "*/"+ident.ServiceHost(ident.Name{Namespace: fmt.Sprintf("ns%d", i%4), Name: fmt.Sprintf("svc%d", i)}))
		}
		cfg.Sidecars = []model.SidecarPolicy{{Meta: model.Meta{Name: ident.Name{Namespace: "ns0", Name: "narrow"}}, Egress: []model.EgressView{view}}}
		var instances []model.Instance
		for i := range cfg.Workloads {
			instances = append(instances, model.Instance{
				Workload: cfg.Workloads[i].Name, Ready: true, Forward: "127.0.0.1:1",
				Inbound: map[int]string{80: fmt.Sprintf("127.0.2.1:%d", i)}, App: map[int]string{80: "127.0.0.1:80"},
			})
		}
		w := world.Build(cfg, instances, nil)
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			for b.Loop() {
				s, _ := scope.For(w, ident.Name{Namespace: "ns0", Name: "svc0"})
				compile.Compile(s)
			}
		})
	}
}

// TestBookinfoIsClean compiles what a newcomer runs first, alone and with each rule of the tour: nothing may be said
// against it, and every proxy has a plan that is whole.
func TestBookinfoIsClean(t *testing.T) {
	const dir = "../../samples/bookinfo/"
	read := func(pattern string) []golden.File {
		names, err := filepath.Glob(dir + pattern)
		if err != nil || len(names) == 0 {
			t.Fatalf("no %s: %v", pattern, err)
		}
		var out []golden.File
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, golden.File{Name: filepath.Base(name), Data: data})
		}
		return out
	}
	mesh := read("mesh/*.yaml")
	for _, rule := range append([]golden.File{{Name: "alone"}}, read("tour/*.yaml")...) {
		t.Run(rule.Name, func(t *testing.T) {
			cfg, p := parse(t, append(slices.Clip(mesh), rule)...)
			w := world.Build(cfg, p.Instances, p.Gateways)
			for _, d := range world.Check(w) {
				t.Error(d)
			}
			if n := len(w.Nodes()); n != 7 {
				t.Errorf("%d proxies, want one for each of 6 workloads, and a gateway", n)
			}
			for _, node := range w.Nodes() {
				got, ds := planOf(t, w, node.String())
				checkPlan(t, got)
				for _, d := range ds {
					t.Error(d)
				}
			}
		})
	}
}

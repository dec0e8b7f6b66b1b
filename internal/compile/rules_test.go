package compile_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/compile"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// sidecar returns the scope of a client in namespace default that sees services.
func sidecar(services ...model.ScopedService) *model.Scope {
	slices.SortFunc(services, func(a, b model.ScopedService) int { return strings.Compare(a.Host, b.Host) })
	return &model.Scope{
		Node:     plan.Node{Name: ident.Name{Namespace: "default", Name: "client"}, Role: plan.Sidecar},
		Services: services,
		Sidecar:  &model.SidecarScope{Forward: "127.0.0.1:1"},
	}
}

// svc returns a service of namespace default with ports like "80/http" and "90/tcp", and one member that serves them.
func svc(name string, ports ...string) model.ScopedService {
	s := &model.Service{Meta: model.Meta{Name: ident.Name{Namespace: "default", Name: name}}}
	s.Host = ident.ServiceHost(s.Name)
	s.Origin = ident.Origin{Kind: "Service", Name: name}
	m := &model.Member{Workload: s.Name}
	for _, p := range ports {
		var number int
		var protocol string
		if _, err := fmt.Sscanf(strings.ReplaceAll(p, "/", " "), "%d %s", &number, &protocol); err != nil {
			panic(err)
		}
		port := model.ServicePort{Name: protocol, Port: number}
		if err := port.Protocol.UnmarshalText([]byte(protocol)); err != nil {
			panic(err)
		}
		s.Ports = append(s.Ports, port)
		m.Ports = append(m.Ports, model.MemberPort{Port: number, Address: fmt.Sprintf("127.0.0.2:%d", number)})
	}
	return model.ScopedService{Service: s, Members: []*model.Member{m}}
}

func compiled(t *testing.T, s *model.Scope) *plan.Plan {
	t.Helper()
	p, _ := compile.Compile(s)
	checkPlan(t, p)
	return p
}

// routesOf returns the routes for a host in a table as "name cluster:weight ...", without "outbound|".
func routesOf(t *testing.T, p *plan.Plan, table, host string) []string {
	t.Helper()
	var out []string
	for _, r := range findHost(t, p, table, host).Routes {
		out = append(out, strings.TrimSpace(r.Name+" "+destinations(r.Forward)))
	}
	return out
}

func findHost(t *testing.T, p *plan.Plan, table, domain string) plan.VirtualHost {
	t.Helper()
	for _, r := range p.Routes {
		for _, h := range r.Hosts {
			if r.Name == table && slices.Contains(h.Domains, domain) {
				return h
			}
		}
	}
	t.Fatalf("no virtual host for %s in table %s", domain, table)
	return plan.VirtualHost{}
}

func destinations(ds []plan.Destination) string {
	var out []string
	for _, d := range ds {
		s := strings.TrimSuffix(strings.TrimPrefix(d.Cluster, "outbound|"), ".default.svc.cluster.local")
		if d.Weight > 0 {
			s += fmt.Sprintf(":%d", d.Weight)
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func host(name string) string { return ident.ServiceHost(ident.Name{Namespace: "default", Name: name}) }

func TestSplit(t *testing.T) {
	backend := func(name string, weight uint32) model.SplitBackend {
		return model.SplitBackend{Host: host(name), Weight: weight}
	}
	for _, c := range []struct {
		name     string
		backends []model.SplitBackend
		want     string
	}{
		{"two services", []model.SplitBackend{backend("v1", 90), backend("v2", 10)}, "80||v1:90 80||v2:10"},
		{"the root may be its own backend", []model.SplitBackend{backend("root", 1), backend("v1", 1)}, "80||root:1 80||v1:1"},
		{"weight 0 gets nothing", []model.SplitBackend{backend("v1", 0), backend("v2", 7)}, "80||v2"},
		{"no weight at all leaves the root", []model.SplitBackend{backend("v1", 0)}, "80||root"},
		{"a port corresponds by name", []model.SplitBackend{backend("named", 1), backend("v1", 1)}, "8080||named:1 80||v1:1"},
		{"a backend without the port is left out", []model.SplitBackend{backend("other", 50), backend("v1", 1)}, "80||v1"},
		{"only backends without the port leave the root", []model.SplitBackend{backend("other", 50)}, "80||root"},
		{"one that does not exist keeps its share", []model.SplitBackend{backend("gone", 50), backend("v1", 50)}, "80||gone:50 80||v1:50"},
		{"when none exists there is no destination but the root's", []model.SplitBackend{backend("gone", 50)}, "80||root"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := svc("root", "80/http")
			root.Split = &model.Split{Backends: c.backends}
			p := compiled(t, sidecar(root, svc("v1", "80/http"), svc("v2", "80/http"), svc("named", "8080/http"), svc("other", "81/tcp")))
			if got := routesOf(t, p, "80", "root"); len(got) != 1 || got[0] != "default "+c.want {
				t.Errorf("routes %q, want %q", got, c.want)
			}
		})
	}
}

func TestSplitOfOpaqueService(t *testing.T) {
	root := svc("root", "5432/tcp")
	root.Split = &model.Split{Backends: []model.SplitBackend{{Host: host("v1"), Weight: 1}, {Host: host("root"), Weight: 3}}}
	p := compiled(t, sidecar(root, svc("v1", "5432/tcp")))
	for _, h := range p.Listeners[0].Ports[0].Hosts {
		if h.Host == "root" {
			if got := destinations(h.TCP); got != "5432||v1:1 5432||root:3" {
				t.Errorf("destinations %q", got)
			}
			return
		}
	}
	t.Error("no entry for root")
}

func TestProfile(t *testing.T) {
	root := svc("root", "80/http")
	cond := plan.Cond{Method: &match.String{Kind: match.Exact, Value: "GET"}}
	root.Profile = &model.Profile{
		RetryBudget: plan.RetryBudget{Ratio: 0.5, MinPerSecond: 1, TTL: plan.Duration(time.Second)},
		Routes: []model.ProfileRoute{
			{Name: "GET /", Cond: cond, Timeout: 5 * time.Second, Retryable: true, Classes: []plan.ResponseClass{{Failure: true}}},
			{Name: "POST /", Cond: cond},
		},
		Overrides: []model.SplitBackend{{Host: host("v1"), Weight: 1}, {Host: host("v2"), Weight: 1}},
	}
	root.Split = &model.Split{Backends: []model.SplitBackend{{Host: host("root"), Weight: 1}}} // the profile's overrides win
	p := compiled(t, sidecar(root, svc("v1", "80/http"), svc("v2", "80/http")))
	h := findHost(t, p, "80", "root")
	if d := gocmp.Diff([]string{"GET / 80||v1:1 80||v2:1", "POST / 80||v1:1 80||v2:1", "default 80||v1:1 80||v2:1"}, routesOf(t, p, "80", "root")); d != "" {
		t.Error(d)
	}
	if h.RetryBudget != root.Profile.RetryBudget {
		t.Errorf("budget %+v", h.RetryBudget)
	}
	get, post, rest := h.Routes[0], h.Routes[1], h.Routes[2]
	if get.Profile != "GET /" || get.Timeout.D() != 5*time.Second || len(get.Classes) != 1 || get.Match.Cond == nil {
		t.Errorf("route %+v", get)
	}
	if get.Retry.On&plan.RetryFailureClass == 0 || get.Retry.Attempts < 3 {
		t.Errorf("a retryable route has %+v", get.Retry)
	}
	for _, r := range []plan.Route{post, rest} {
		if r.Retry.On&^(plan.RetryConnectFailure|plan.RetryRefusedStream) != 0 {
			t.Errorf("route %q is sent again after a server saw it: %+v", r.Name, r.Retry)
		}
	}
	if rest.Profile != "" {
		t.Errorf("the default route is labelled %q", rest.Profile)
	}
}

// An override may name a port, which need not correspond to the one asked for; one that its service lacks fails its share.
func TestOverrideWithPort(t *testing.T) {
	root := svc("root", "80/http")
	root.Profile = &model.Profile{Overrides: []model.SplitBackend{
		{Host: host("v1"), Port: 8080, Weight: 1}, {Host: host("v1"), Weight: 2}, {Host: host("v2"), Port: 9, Weight: 3},
	}}
	p := compiled(t, sidecar(root, svc("v1", "80/http", "8080/http"), svc("v2", "80/http")))
	if d := gocmp.Diff([]string{"default 8080||v1:1 80||v1:2 9||v2:3"}, routesOf(t, p, "80", "root")); d != "" {
		t.Error(d)
	}
	for _, e := range p.Endpoints {
		if strings.HasPrefix(e.Cluster, "outbound|9|") && len(e.Endpoints) > 0 {
			t.Errorf("a port that is not there has endpoints: %+v", e)
		}
	}
}

func TestVirtualServiceWinsOverSplitAndProfile(t *testing.T) {
	root := svc("root", "80/http")
	root.Split = &model.Split{Backends: []model.SplitBackend{{Host: host("v1"), Weight: 1}}}
	root.Profile = &model.Profile{Routes: []model.ProfileRoute{{Name: "r"}}, RetryBudget: plan.RetryBudget{Ratio: 1}}
	s := sidecar(root, svc("v1", "80/http"))
	s.Routings = []model.Routing{{Hosts: []string{host("root")}, HTTP: []model.HTTPRule{forward("rule", "root")}}}
	h := findHost(t, compiled(t, s), "80", "root")
	if len(h.Routes) != 1 || h.Routes[0].Name != "rule" || h.RetryBudget != (plan.RetryBudget{}) {
		t.Errorf("virtual host %+v, want the VirtualService's rule alone", h)
	}
}

// forward returns a rule that takes everything, or what matches say, to a service.
func forward(name, to string, matches ...model.HTTPMatch) model.HTTPRule {
	return model.HTTPRule{Name: name, Matches: matches, Forward: []model.WeightedDestination{{Target: model.Target{Host: host(to)}}}}
}

func path(kind match.Kind, value string) model.HTTPMatch {
	return model.HTTPMatch{Match: plan.Match{Path: &match.String{Kind: kind, Value: value}}}
}

func TestRulesEndAtTheFirstThatTakesAll(t *testing.T) {
	header := path(match.Prefix, "/")
	header.Headers = []plan.FieldMatch{{Name: "x"}}
	onPort := func(m model.HTTPMatch, port int) model.HTTPMatch { m.Port = port; return m }
	for _, c := range []struct {
		name  string
		rules []model.HTTPRule
		want  string
	}{
		{"no condition", []model.HTTPRule{forward("a", "web", path(match.Exact, "/a")), forward("b", "web"), forward("c", "web")}, "a b"},
		{"prefix /", []model.HTTPRule{forward("a", "web", path(match.Prefix, "/")), forward("b", "web")}, "a"},
		{"regex .*", []model.HTTPRule{forward("a", "web", path(match.Regex, ".*")), forward("b", "web")}, "a"},
		{"prefix / and a header", []model.HTTPRule{forward("a", "web", header), forward("b", "web")}, "a b"},
		{"exact /", []model.HTTPRule{forward("a", "web", path(match.Exact, "/")), forward("b", "web")}, "a b"},
		{"alternatives", []model.HTTPRule{forward("a", "web", path(match.Exact, "/x"), path(match.Prefix, "/"), path(match.Exact, "/y")), forward("b", "web")}, "a a"},
		{"another port's", []model.HTTPRule{forward("a", "web", onPort(path(match.Prefix, "/"), 81)), forward("b", "web", onPort(path(match.Exact, "/"), 80))}, "b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := sidecar(svc("web", "80/http"))
			s.Routings = []model.Routing{{Hosts: []string{host("web")}, HTTP: c.rules}}
			var names []string
			for _, r := range findHost(t, compiled(t, s), "80", "web").Routes {
				names = append(names, r.Name)
			}
			if got := strings.Join(names, " "); got != c.want {
				t.Errorf("routes %q, want %q", got, c.want)
			}
		})
	}
}

func TestPrecedenceOfRoutings(t *testing.T) {
	routing := func(name string, hosts ...string) model.Routing {
		return model.Routing{Hosts: hosts, HTTP: []model.HTTPRule{forward(name, "web")}}
	}
	other := routing("tcp only", host("web"))
	other.TCP, other.HTTP = []model.TCPRule{{}}, nil
	elsewhere := routing("elsewhere", host("web"))
	elsewhere.HTTP[0].Matches = []model.HTTPMatch{{Port: 99}}
	for _, c := range []struct {
		name     string
		routings []model.Routing // oldest first
		want     string
	}{
		{"the oldest", []model.Routing{routing("a", host("web")), routing("b", host("web"))}, "a"},
		{"exact before wildcard", []model.Routing{routing("a", "*"), routing("b", host("web"))}, "b"},
		{"the longest wildcard", []model.Routing{routing("a", "*"), routing("b", "*.local"), routing("c", "*.default.svc.cluster.local")}, "c"},
		{"one without rules for requests does not count", []model.Routing{other, routing("b", host("web"))}, "b"},
		{"nor one without rules for the port", []model.Routing{elsewhere, routing("b", host("web"))}, "b"},
		{"none", []model.Routing{routing("a", "*.example")}, "default"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := sidecar(svc("web", "80/http"))
			s.Routings = c.routings
			if got := findHost(t, compiled(t, s), "80", "web").Routes[0].Name; got != c.want {
				t.Errorf("rule %q is in force, want %q", got, c.want)
			}
		})
	}
}

func TestHostsThatAreNoService(t *testing.T) {
	s := sidecar(svc("web", "8080/http"), svc("db", "5432/tcp"))
	m := path(match.Exact, "/")
	m.Port = 5432
	s.Routings = []model.Routing{
		{Hosts: []string{"www.example", "*.wild.example"}, HTTP: []model.HTTPRule{forward("a", "web", m), forward("b", "web")}},
		{Hosts: []string{"www.example"}, HTTP: []model.HTTPRule{forward("younger", "web")}},
	}
	p := compiled(t, s)
	if d := gocmp.Diff([]string{"b 8080||web"}, routesOf(t, p, "80", "www.example")); d != "" {
		t.Error(d)
	}
	if d := gocmp.Diff([]string{"a 8080||web", "b 8080||web"}, routesOf(t, p, "5432", "*.wild.example")); d != "" {
		t.Error(d)
	}
	var ports []string
	for _, f := range p.Listeners[0].Ports {
		ports = append(ports, fmt.Sprintf("%d %s %s", f.Port, f.Protocol, f.Routes))
	}
	if d := gocmp.Diff([]string{"80 http 80", "5432 detect 5432", "8080 http 8080"}, ports); d != "" {
		t.Error(d)
	}
}

func TestRetries(t *testing.T) {
	def := &plan.Retry{
		Attempts:    2,
		On:          plan.RetryConnectFailure | plan.RetryRefusedStream | plan.RetryGRPCUnavailable | plan.RetryGRPCCancelled,
		BackoffBase: plan.Duration(25 * time.Millisecond), BackoffMax: plan.Duration(250 * time.Millisecond),
	}
	three := *def
	three.Attempts = 3
	own := plan.Retry{Attempts: 1, On: plan.Retry5xx, BackoffBase: plan.Duration(time.Second)}
	for _, c := range []struct {
		name string
		in   *plan.Retry
		want *plan.Retry
	}{
		{"none given", nil, def},
		{"switched off", &plan.Retry{}, nil},
		{"without conditions", &plan.Retry{Attempts: 3}, &three},
		{"complete", &own, &own},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := sidecar(svc("web", "80/http"))
			rule := forward("a", "web")
			rule.Retry = c.in
			s.Routings = []model.Routing{{Hosts: []string{host("web")}, HTTP: []model.HTTPRule{rule}}}
			if d := gocmp.Diff(c.want, findHost(t, compiled(t, s), "80", "web").Routes[0].Retry); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestTrafficPolicyOfPortsAndSubsets(t *testing.T) {
	robin, random := plan.RoundRobin, plan.Random
	off := plan.TLSOff
	outlier, budget := &plan.Outlier{Consecutive5xx: 1}, &plan.ActiveRetries{Percent: 1}
	base := func() *model.TrafficPolicy {
		return &model.TrafficPolicy{Balancer: &robin, Limits: &plan.Limits{MaxRequests: 1}, ConnectTimeout: time.Second, Outlier: outlier}
	}
	onPort := func(p model.TrafficPolicy) []model.PortPolicy { return []model.PortPolicy{{Port: 80, Traffic: p}} }
	for _, c := range []struct {
		name   string
		change func(base, subset *model.TrafficPolicy)
		want   plan.Cluster // the blocks only
	}{
		{"inherits all", func(_, _ *model.TrafficPolicy) {},
			plan.Cluster{Balancer: robin, Limits: plan.Limits{MaxRequests: 1}, ConnectTimeout: plan.Duration(time.Second), Outlier: outlier}},
		{"a subset's block replaces that block", func(_, s *model.TrafficPolicy) { s.Balancer = &random },
			plan.Cluster{Balancer: random, Limits: plan.Limits{MaxRequests: 1}, ConnectTimeout: plan.Duration(time.Second), Outlier: outlier}},
		{"the connection pool is one block", func(_, s *model.TrafficPolicy) { s.Limits = &plan.Limits{MaxConnections: 2} },
			plan.Cluster{Balancer: robin, Limits: plan.Limits{MaxConnections: 2}, Outlier: outlier}},
		{"a port's policy replaces all", func(b, _ *model.TrafficPolicy) { b.Ports = onPort(model.TrafficPolicy{TLS: &off}) },
			plan.Cluster{TLS: off}},
		{"a subset's port's policy replaces all", func(_, s *model.TrafficPolicy) { s.Ports = onPort(model.TrafficPolicy{Balancer: &random}) },
			plan.Cluster{Balancer: random}},
		{"but what a port cannot say", func(b, _ *model.TrafficPolicy) {
			b.ProxyProtocol, b.Budget, b.Ports = 2, budget, onPort(model.TrafficPolicy{Balancer: &random})
		}, plan.Cluster{Balancer: random, ProxyProtocol: 2, Budget: budget}},
		{"nor one of a subset", func(b, s *model.TrafficPolicy) {
			b.ProxyProtocol, b.Budget = 2, budget
			s.ProxyProtocol, s.Ports = 1, onPort(model.TrafficPolicy{Balancer: &random})
		}, plan.Cluster{Balancer: random, ProxyProtocol: 1, Budget: budget}},
		{"another port's does not count", func(b, _ *model.TrafficPolicy) { b.Ports = []model.PortPolicy{{Port: 81}} },
			plan.Cluster{Balancer: robin, Limits: plan.Limits{MaxRequests: 1}, ConnectTimeout: plan.Duration(time.Second), Outlier: outlier}},
	} {
		t.Run(c.name, func(t *testing.T) {
			web := svc("web", "80/http")
			subset := model.Subset{Name: "v1", Traffic: &model.TrafficPolicy{}}
			web.Policy = &model.DestinationPolicy{Traffic: base()}
			c.change(web.Policy.Traffic, subset.Traffic)
			web.Policy.Subsets = []model.Subset{subset}
			s := sidecar(web)
			rule := forward("a", "web")
			rule.Forward[0].Subset = "v1"
			s.Routings = []model.Routing{{Hosts: []string{host("web")}, HTTP: []model.HTTPRule{rule}}}
			got := compiled(t, s).Clusters[0]
			if d := gocmp.Diff(c.want, plan.Cluster{
				Balancer: got.Balancer, Limits: got.Limits, ConnectTimeout: got.ConnectTimeout, Outlier: got.Outlier, TLS: got.TLS,
				ProxyProtocol: got.ProxyProtocol, Budget: got.Budget,
			}); d != "" {
				t.Error(d)
			}
			if (got.SNI == "") != (got.TLS == plan.TLSOff) {
				t.Errorf("server name %q with TLS %q", got.SNI, got.TLS)
			}
		})
	}
}

func TestServicesOfOnePortThatDifferInProtocol(t *testing.T) {
	p := compiled(t, sidecar(svc("web", "80/http"), svc("db", "80/tcp"), svc("what", "80/detect"), svc("dns", "80/udp")))
	f := p.Listeners[0].Ports
	if len(f) != 1 || f[0].Protocol != ident.Detect || f[0].Routes != "80" {
		t.Fatalf("ports %+v, want one that looks at the first bytes", f)
	}
	got := map[string]bool{}
	for _, h := range f[0].Hosts {
		got[h.Host] = h.Detect
	}
	want := map[string]bool{}
	for name, detect := range map[string]bool{"db": false, "what": true} {
		for _, form := range []string{name, name + ".default", name + ".default.svc", host(name)} {
			want[form] = detect
		}
	}
	if d := gocmp.Diff(want, got); d != "" {
		t.Errorf("opaque hosts (true: looks at the first bytes):\n%s", d)
	}
	findHost(t, p, "80", "what") // its requests are routed too
	findHost(t, p, "80", "web")
}

func TestShortNamesMeanTheOwnNamespace(t *testing.T) {
	away := svc("web", "80/http")
	away.Name.Namespace = "away"
	away.Host = ident.ServiceHost(away.Name)
	home := svc("home", "80/http")
	home.Headless = true
	p := compiled(t, sidecar(away, home))
	if d := gocmp.Diff([]string{"web.away", "web.away.svc", "web.away.svc.cluster.local"}, findHost(t, p, "80", "web.away").Domains); d != "" {
		t.Error(d)
	}
	if d := gocmp.Diff([]string{"*." + host("home"), "home", "home.default", "home.default.svc", host("home")}, findHost(t, p, "80", "home").Domains); d != "" {
		t.Error(d)
	}
}

func TestOpaqueGateway(t *testing.T) {
	server := &model.Server{Port: 5432, Protocol: ident.TCP, Hosts: []string{"*/*"}, Origin: ident.Origin{Kind: "Gateway"}}
	second := &model.Server{Port: 5432, Protocol: ident.HTTP, Hosts: []string{"*/*"}}
	door := ident.Name{Namespace: "default", Name: "door"}
	s := &model.Scope{
		Node: plan.Node{Role: plan.Gateway}, Services: []model.ScopedService{svc("db", "5432/tcp"), svc("db2", "5432/tcp")},
		Gateway: &model.GatewayScope{
			Servers: []model.GatewayServer{{Server: server, Gateway: door}, {Server: second, Gateway: door}}, Binds: map[int]string{5432: "127.0.0.1:5432"},
		},
		Routings: []model.Routing{{
			Hosts: []string{"*"}, Gateways: []string{"default/door"},
			TCP: []model.TCPRule{
				{Matches: []model.TCPMatch{{Port: 99}}, Forward: []model.WeightedDestination{{Target: model.Target{Host: host("db2")}}}},
				{Forward: []model.WeightedDestination{{Target: model.Target{Host: host("db")}, Weight: 3}, {Target: model.Target{Host: host("db2")}, Weight: 1}}},
			},
			HTTP: []model.HTTPRule{forward("never", "db")},
		}},
	}
	p := compiled(t, s)
	if len(p.Listeners) != 1 || p.Listeners[0].Routes != "" || destinations(p.Listeners[0].TCP) != "5432||db:3 5432||db2:1" {
		t.Errorf("listeners %+v", p.Listeners)
	}
}

func TestGatewayIsAClientOfASplitService(t *testing.T) {
	web := svc("web", "80/http", "81/http")
	web.Split = &model.Split{Backends: []model.SplitBackend{{Host: host("web"), Weight: 90}, {Host: host("v2"), Weight: 10}}}
	profiled := svc("profiled", "80/http", "81/http")
	profiled.Profile = &model.Profile{Overrides: []model.SplitBackend{{Host: host("v2"), Weight: 1000}}}
	profiled.Split = &model.Split{Backends: []model.SplitBackend{{Host: host("other"), Weight: 1}}} // behind them
	target := func(name string, weight uint32) model.WeightedDestination {
		return model.WeightedDestination{Target: model.Target{Host: host(name), Port: 80}, Weight: weight}
	}
	for _, c := range []struct {
		name    string
		forward []model.WeightedDestination
		want    string
	}{
		{"alone", []model.WeightedDestination{target("web", 0)}, "80||web:900 80||v2:100"},
		{"beside another", []model.WeightedDestination{target("web", 50), target("other", 50)}, "80||web:45000 80||v2:5000 80||other:50000"},
		{"not asked for", []model.WeightedDestination{target("web", 0), target("other", 50)}, "80||other"},
		{"dstOverrides", []model.WeightedDestination{target("profiled", 1)}, "80||v2"},
		{"a service without a split", []model.WeightedDestination{target("other", 1), target("v2", 2)}, "80||other:1 80||v2:2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			door := ident.Name{Namespace: "default", Name: "door"}
			p := compiled(t, &model.Scope{
				Node: plan.Node{Role: plan.Gateway}, Services: []model.ScopedService{svc("other", "80/http"), svc("v2", "80/http"), web, profiled},
				Gateway: &model.GatewayScope{
					Servers: []model.GatewayServer{
						{Server: &model.Server{Port: 8080, Protocol: ident.HTTP, Hosts: []string{"*/*"}}, Gateway: door},
						{Server: &model.Server{Port: 8081, Protocol: ident.TCP, Hosts: []string{"*/*"}}, Gateway: door},
					},
					Binds: map[int]string{8080: "127.0.0.1:8080", 8081: "127.0.0.1:8081"},
				},
				Routings: []model.Routing{{
					Hosts: []string{"www.example"}, Gateways: []string{"default/door"}, HTTP: []model.HTTPRule{{Name: "r", Forward: c.forward}},
					TCP: []model.TCPRule{{Forward: c.forward}},
				}},
			})
			if got := destinations(p.Listeners[1].TCP); got != c.want {
				t.Errorf("connections go to %q, want %q", got, c.want)
			}
			if got := routesOf(t, p, "http.8080", "www.example"); len(got) != 1 || got[0] != "r "+c.want {
				t.Errorf("routes %q, want %q", got, c.want)
			}
		})
	}
}

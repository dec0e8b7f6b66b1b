package compile_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// gate returns the scope of a gateway in namespace edge with servers on ports 80 and 443.
func gate(servers ...model.GatewayServer) *model.Scope {
	for i := range servers {
		s := &servers[i]
		if s.Gateway.IsZero() {
			s.Gateway = ident.Name{Namespace: "default", Name: "door"}
		}
		if s.Ref == "" {
			s.Ref = s.Gateway.String()
			if s.Own {
				s.Ref += "/" + s.Name
			}
		}
	}
	return &model.Scope{
		Node:     plan.Node{Name: ident.Name{Namespace: "edge", Name: "gate"}, Role: plan.Gateway},
		Services: []model.ScopedService{svc("v2", "80/http", "443/tls", "90/tcp"), svc("web", "80/http", "443/tls", "90/tcp")},
		Gateway: &model.GatewayScope{
			Servers: servers, Binds: map[int]string{80: "127.0.0.1:8080", 443: "127.0.0.1:8443", 90: "127.0.0.1:9090"},
		},
	}
}

func server(port int, protocol ident.Protocol, tls *plan.ServerTLS, hosts ...string) model.GatewayServer {
	for i, h := range hosts {
		if !strings.Contains(h, "/") {
			hosts[i] = "*/" + h
		}
	}
	return model.GatewayServer{Server: &model.Server{Port: port, Protocol: protocol, TLS: tls, Hosts: hosts, Origin: ident.Origin{Kind: "Gateway", Name: fmt.Sprint(hosts)}}}
}

func simple(secrets ...string) *plan.ServerTLS {
	return &plan.ServerTLS{Mode: plan.ServeSimple, Secrets: secrets}
}

// doorRouting binds rules to default/door.
func doorRouting(name string, hosts []string, change func(*model.Routing)) model.Routing {
	r := model.Routing{
		Meta:  model.Meta{Name: ident.Name{Namespace: "default", Name: name}, Origin: ident.Origin{Kind: "VirtualService", Name: name}},
		Hosts: hosts, Gateways: []string{"default/door"},
	}
	change(&r)
	return r
}

func http(rules ...model.HTTPRule) func(*model.Routing) {
	return func(r *model.Routing) { r.HTTP = rules }
}

func sni(to string, names ...string) func(*model.Routing) {
	return func(r *model.Routing) {
		r.TLS = append(r.TLS, model.TLSRule{
			Matches: []model.TLSMatch{{ServerNames: names}},
			Forward: []model.WeightedDestination{{Target: model.Target{Host: host(to), Port: 443}}},
		})
	}
}

// doors tells the listeners of a plan: one line each, and one for each server name and virtual host.
func doors(p *plan.Plan) []string {
	var out []string
	table := func(name string) {
		for _, r := range p.Routes {
			if r.Name != name {
				continue
			}
			for _, h := range r.Hosts {
				var rs []string
				for _, x := range h.Routes {
					text := x.Name + " " + destinations(x.Forward)
					switch {
					case x.Redirect != nil:
						text = fmt.Sprintf("%d %s", x.Redirect.Status, x.Redirect.Scheme)
					case x.Direct != nil:
						text = fmt.Sprint(x.Direct.Status)
					}
					rs = append(rs, strings.TrimSpace(text))
				}
				out = append(out, "    "+strings.Join(h.Domains, " ")+": "+strings.Join(rs, "; "))
			}
		}
	}
	for _, l := range p.Listeners {
		text := l.Name + " " + l.Bind + " " + l.Protocol.String()
		if len(l.TCP)+len(l.TCPRoutes) > 0 {
			text += " tcp " + tcpText(l.TCPRoutes, l.TCP)
		}
		out = append(out, text)
		table(l.Routes)
		for _, n := range l.ServerNames {
			text := "  " + strings.Join(n.Names, " ") + ":"
			switch {
			case n.Auto:
				text += " auto"
			case n.TLS != nil:
				text += " " + string(n.TLS.Mode) + " " + strings.Join(append(slices.Clip(n.TLS.Secrets), n.TLS.Authorities), " ")
			default:
				text += " through"
			}
			text = strings.TrimRight(text, " ") + " " + n.Protocol.String()
			if len(n.TCP)+len(n.TCPRoutes) > 0 {
				text += " " + tcpText(n.TCPRoutes, n.TCP)
			}
			out = append(out, strings.TrimRight(text, " "))
			table(n.Routes)
		}
	}
	for _, s := range p.Secrets {
		out = append(out, "secret "+s.Name)
	}
	return out
}

func tcpText(routes []plan.TCPRoute, rest []plan.Destination) string {
	var out []string
	for _, r := range routes {
		out = append(out, strings.Join(r.Subnets, ",")+"→"+destinations(r.Forward))
	}
	if len(rest) > 0 {
		out = append(out, destinations(rest))
	}
	return strings.Join(out, " ")
}

func TestEdge(t *testing.T) {
	broken := server(443, ident.HTTP, simple("x"), "broken.example")
	broken.Broken = "the secret does not exist"
	redirect := server(80, ident.HTTP, nil, "*.example")
	redirect.Redirect = true
	auto := server(443, ident.TLS, nil, "*.local")
	auto.Auto = true
	other := server(443, ident.HTTP, simple("second"), "a.example", "b.example")
	other.Gateway = ident.Name{Namespace: "default", Name: "second"}
	own := func(name string, s model.GatewayServer) model.GatewayServer {
		s.Own, s.Name = true, name
		return s
	}
	tcp := func(subnets ...string) func(*model.Routing) {
		return func(r *model.Routing) {
			if subnets != nil {
				r.TCP = append(r.TCP, model.TCPRule{
					Matches: []model.TCPMatch{{Subnets: subnets}}, Forward: []model.WeightedDestination{{Target: model.Target{Host: host("v2"), Port: 90}}},
				})
			}
			r.TCP = append(r.TCP, model.TCPRule{Forward: []model.WeightedDestination{{Target: model.Target{Host: host("web"), Port: 90}}}})
		}
	}
	both := func(fs ...func(*model.Routing)) func(*model.Routing) {
		return func(r *model.Routing) {
			for _, f := range fs {
				f(r)
			}
		}
	}
	attached := func(name, server string, hosts []string, rules ...model.HTTPRule) model.Routing {
		r := doorRouting(name, hosts, http(rules...))
		r.Gateways, r.Precedence = []string{"default/door/" + server}, true
		return r
	}
	for _, c := range []struct {
		name     string
		servers  []model.GatewayServer
		routings []model.Routing
		want     []string
	}{
		{"TLS is ended, requests routed, in a table of its own", []model.GatewayServer{server(443, ident.HTTP, simple("cert"), "a.example")},
			[]model.Routing{doorRouting("r", []string{"a.example", "b.example"}, http(forward("r", "web")))},
			[]string{"edge|443 127.0.0.1:8443 tls", "  a.example: simple edge/cert http", "    a.example: r 443||web", "secret edge/cert"}},
		{"each server its own certificate; one of a name that is taken keeps the others", []model.GatewayServer{server(443, ident.HTTP, simple("cert"), "a.example"), other},
			nil, []string{"edge|443 127.0.0.1:8443 tls", "  a.example: simple edge/cert http", "  b.example: simple edge/second http", "secret edge/cert", "secret edge/second"}},
		{"a broken server takes only itself out", []model.GatewayServer{broken, server(443, ident.HTTP, simple("ns/cert", "file:x"), "a.example")},
			nil, []string{"edge|443 127.0.0.1:8443 tls", "  a.example: simple ns/cert file:x http"}},
		{"mutual", []model.GatewayServer{server(443, ident.HTTP, &plan.ServerTLS{Mode: plan.ServeMutual, Secrets: []string{"cert"}, Authorities: "cert-cacert"}, "a.example")},
			nil, []string{"edge|443 127.0.0.1:8443 tls", "  a.example: mutual edge/cert edge/cert-cacert http", "secret edge/cert", "secret edge/cert-cacert"}},
		{"passed through by name: the more specific first, none for others", []model.GatewayServer{server(443, ident.TLS, nil, "*.example")},
			[]model.Routing{doorRouting("r", []string{"*.example", "a.example"}, both(sni("web", "*.example"), sni("v2", "a.example", "a.elsewhere")))},
			[]string{"edge|443 127.0.0.1:8443 tls", "  a.example: through tcp 443||v2", "  *.example: through tcp 443||web"}},
		{"ended and passed through on one port", []model.GatewayServer{server(443, ident.HTTP, simple("cert"), "a.example"), server(443, ident.TLS, nil, "b.example")},
			[]model.Routing{doorRouting("r", []string{"b.example"}, sni("web", "b.example"))},
			[]string{"edge|443 127.0.0.1:8443 tls", "  a.example: simple edge/cert http", "  b.example: through tcp 443||web", "secret edge/cert"}},
		{"TLS ended, bytes routed: by name, else as TCP rules say", []model.GatewayServer{server(443, ident.TCP, simple("cert"), "*.example")},
			[]model.Routing{doorRouting("r", []string{"*.example"}, both(sni("v2", "a.example"), tcp("10.0.0.0/8")))},
			[]string{"edge|443 127.0.0.1:8443 tls", "  a.example: simple edge/cert tcp 443||v2", "  *.example: simple edge/cert tcp 10.0.0.0/8→90||v2 90||web", "secret edge/cert"}},
		{"AUTO_PASSTHROUGH has every cluster", []model.GatewayServer{auto}, nil, []string{"edge|443 127.0.0.1:8443 tls", "  *.local: auto tcp"}},
		{"httpsRedirect answers for every host of the server", []model.GatewayServer{redirect},
			[]model.Routing{doorRouting("r", []string{"a.example"}, http(forward("r", "web")))},
			[]string{"edge|80 127.0.0.1:8080 http", "    *.example: 301 https", "    a.example: 301 https"}},
		{"the oldest kind has the port", []model.GatewayServer{server(443, ident.HTTP, nil, "a.example"), server(443, ident.HTTP, simple("cert"), "b.example")},
			[]model.Routing{doorRouting("r", []string{"*"}, http(forward("r", "web")))},
			[]string{"edge|443 127.0.0.1:8443 http", "    a.example: r 443||web"}},
		{"namespace of a server's host", []model.GatewayServer{server(80, ident.HTTP, nil, "team/a.example")},
			[]model.Routing{doorRouting("r", []string{"a.example"}, http(forward("r", "web")))}, []string{"edge|80 127.0.0.1:8080 http"}},
		{"addresses of servers", []model.GatewayServer{server(90, ident.TCP, nil, "*"), {Server: &model.Server{Port: 90, Protocol: ident.TCP, Hosts: []string{"*/*"}, Bind: "127.0.0.9"}}},
			[]model.Routing{doorRouting("r", []string{"*"}, tcp())},
			[]string{"edge|90 127.0.0.1:9090 tcp tcp 90||web", "edge|90|127.0.0.9:9090 127.0.0.9:9090 tcp tcp 90||web"}},
		{"every address takes the others in", []model.GatewayServer{server(90, ident.TCP, nil, "*"), {Server: &model.Server{Port: 90, Protocol: ident.TCP, Hosts: []string{"*/*"}, Bind: "0.0.0.0"}}},
			[]model.Routing{doorRouting("r", []string{"*"}, tcp())}, []string{"edge|90 0.0.0.0:9090 tcp tcp 90||web"}},
		{"listeners are isolated, also without rules", []model.GatewayServer{own("any", server(80, ident.HTTP, nil, "*")), own("one", server(80, ident.HTTP, nil, "a.example"))},
			[]model.Routing{attached("r", "any", []string{"*"}, forward("r", "web"))},
			[]string{"edge|80 127.0.0.1:8080 http", "    *: r 80||web", "    a.example: "}},
		{"a request on the connection of another listener is misdirected", []model.GatewayServer{own("any", server(443, ident.HTTP, simple("ns/any"), "*.example")), own("one", server(443, ident.HTTP, simple("ns/one"), "a.example"))},
			[]model.Routing{attached("r", "any", []string{"*.example"}, forward("r", "web")), attached("q", "one", []string{"a.example"}, forward("q", "v2"))},
			[]string{
				"edge|443 127.0.0.1:8443 tls", "  a.example: simple ns/one http", "    *.example: 421", "    a.example: q 443||v2",
				"  *.example: simple ns/any http", "    *.example: r 443||web", "    a.example: 421",
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := gate(c.servers...)
			s.Routings = c.routings
			for _, name := range []string{"edge/cert", "edge/cert-cacert", "edge/second", "edge/unused"} {
				s.Secrets = append(s.Secrets, &model.Secret{Secret: plan.Secret{Name: name}})
			}
			p := compiled(t, s)
			if d := gocmp.Diff(c.want, doors(p)); d != "" {
				t.Error(d)
			}
			if strings.HasPrefix(c.name, "AUTO") && len(p.Clusters) != 6 {
				t.Errorf("%d clusters, want every port of both services", len(p.Clusters))
			}
		})
	}
}

// TestTLSOutbound: on a sidecar the rules for server names stand before where the service's connections go.
func TestTLSOutbound(t *testing.T) {
	s := sidecar(svc("web", "443/tls"), svc("v2", "443/tls"))
	r := doorRouting("r", []string{host("web")}, sni("v2", "canary.example"))
	r.Gateways = []string{model.Mesh}
	r.TLS[0].Matches = append(r.TLS[0].Matches, model.TLSMatch{TCPMatch: model.TCPMatch{Port: 444}, ServerNames: []string{"other.port"}})
	r.TCP = []model.TCPRule{{Matches: []model.TCPMatch{{Subnets: []string{"10.0.0.0/8"}}}, Forward: []model.WeightedDestination{{Target: model.Target{Host: host("v2"), Port: 443}}}}}
	s.Routings = []model.Routing{r}
	for _, h := range compiled(t, s).Listeners[0].Ports[0].Hosts {
		var want string
		switch h.Host {
		case "web":
			want = "canary.example→443||v2 10.0.0.0/8→443||v2 443||web"
		case "v2":
			want = "443||v2"
		default:
			continue
		}
		var got []string
		for _, n := range h.ServerNames {
			got = append(got, strings.Join(n.Names, ",")+"→"+destinations(n.TCP))
		}
		got = append(got, tcpText(h.TCPRoutes, h.TCP))
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", h.Host, got, want)
		}
	}
}

// TestConditionalSplit: an SMI split with matches divides the requests that meet them, on sidecars and at gateways.
func TestConditionalSplit(t *testing.T) {
	root := svc("root", "80/http")
	x := model.HTTPMatch{Name: "testers", Match: plan.Match{Headers: []plan.FieldMatch{{Name: "x", Value: match.String{Kind: match.Present}}}}}
	root.Split = &model.Split{Host: root.Host, Backends: []model.SplitBackend{{Host: host("v2"), Weight: 1}}, Matches: []model.HTTPMatch{x}}
	p := compiled(t, sidecar(root, svc("v2", "80/http")))
	if d := gocmp.Diff([]string{"testers 80||v2", "default 80||root"}, routesOf(t, p, "80", "root")); d != "" {
		t.Error(d)
	}
	s := gate(server(80, ident.HTTP, nil, "a.example"))
	s.Services = []model.ScopedService{root, svc("v2", "80/http")}
	s.Routings = []model.Routing{doorRouting("r", []string{"a.example"}, http(forward("r", "root", path(match.Prefix, "/x")), forward("rest", "v2")))}
	p = compiled(t, s)
	if d := gocmp.Diff([]string{"r 80||v2", "r 80||root", "rest 80||v2"}, routesOf(t, p, "http.80", "a.example")); d != "" {
		t.Error(d)
	}
	first := findHost(t, p, "http.80", "a.example").Routes[0].Match
	if first.Path == nil || first.Path.Value != "/x" || len(first.Headers) != 1 {
		t.Errorf("conditions %+v, want those of the rule and of the split", first)
	}
}

// TestRouteCarriesEverything: what a rule says stands in the route, and a share that may not be used is answered.
func TestRouteCarriesEverything(t *testing.T) {
	s := sidecar(svc("web", "80/http"))
	s.Limits = []*model.RateLimit{{Limit: plan.RateLimit{Name: "RateLimit/default/l"}}, {Limit: plan.RateLimit{Name: "RateLimit/default/unused"}}}
	rewrite, redirect, cors := &plan.Rewrite{Path: "/y"}, &plan.Redirect{Status: 302}, &plan.CORS{MaxAge: 7}
	s.Routings = []model.Routing{{Hosts: []string{host("web")}, Precedence: true, HTTP: []model.HTTPRule{{
		CORS: &plan.CORS{Credentials: true}, Response: 2, Idle: 3, Limits: []string{"RateLimit/default/l"},
		Forward: []model.WeightedDestination{{Target: model.Target{Host: host("web")}, Weight: 1, Rewrite: rewrite}, {Weight: 1, Status: 500}, {Target: model.Target{Host: host("web")}, Weight: 1, Redirect: redirect, CORS: cors}},
	}}}}
	p := compiled(t, s)
	r := findHost(t, p, "80", "web").Routes[0]
	if r.CORS == nil || r.Response != 2 || r.Idle != 3 || len(r.Limits) != 1 || len(r.Forward) != 3 || r.Forward[0].Rewrite != rewrite || r.Forward[1].Status != 500 || r.Forward[1].Cluster != "" ||
		r.Forward[2].Redirect != redirect || r.Forward[2].CORS != cors || r.Forward[2].Cluster == "" {
		t.Errorf("route %+v", r)
	}
	if len(p.Limits) != 1 || p.Limits[0].Name != "RateLimit/default/l" {
		t.Errorf("limits %v, want the one that is used", p.Limits)
	}
}

// TestServiceDefaults: annotations of a service are for requests that no rule decides.
func TestServiceDefaults(t *testing.T) {
	web := svc("web", "80/http")
	web.Defaults = &model.RequestPolicy{Timeout: 5, Retry: &plan.Retry{Attempts: 7, On: plan.Retry5xx}}
	r := findHost(t, compiled(t, sidecar(web)), "80", "web").Routes[0]
	if r.Timeout != 5 || r.Retry.Attempts != 7 {
		t.Errorf("route %+v", r)
	}
}

// TestStrangers: rules for a host that is no service are in force on port 80, or the one they are for, and merge as elsewhere.
func TestStrangers(t *testing.T) {
	s := sidecar(svc("web", "80/http"), svc("v2", "80/http"))
	target := func(name, to string, matches ...model.HTTPMatch) model.HTTPRule {
		r := forward(name, to, matches...)
		r.Forward[0].Port = 80
		return r
	}
	mesh := func(name string, port int, precedence bool, rules ...model.HTTPRule) model.Routing {
		r := doorRouting(name, []string{"out.example"}, http(rules...))
		r.Gateways, r.Port, r.Precedence = []string{model.Mesh}, port, precedence
		return r
	}
	s.Routings = []model.Routing{
		mesh("a", 0, false, target("classic", "web")),
		mesh("b", 8080, true, target("wide", "web")),
		mesh("c", 8080, true, target("narrow", "v2", path(match.Exact, "/x"))),
		mesh("d", 0, false, target("never", "v2")),
	}
	p := compiled(t, s)
	if d := gocmp.Diff([]string{"classic 80||web"}, routesOf(t, p, "80", "out.example")); d != "" {
		t.Error(d)
	}
	if d := gocmp.Diff([]string{"narrow 80||v2", "wide 80||web"}, routesOf(t, p, "8080", "out.example")); d != "" {
		t.Error(d)
	}
}

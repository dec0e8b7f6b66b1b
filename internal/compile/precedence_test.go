package compile_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/compile"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/route"
)

// asked is a request as the interpreter below reads it.
type asked struct {
	host, path, method, header string
}

func (a *asked) message() *message.Request {
	r := &message.Request{Method: []byte(a.method), Scheme: []byte("http"), Authority: []byte(a.host), Host: []byte(a.host), Path: []byte(a.path)}
	if a.header != "" {
		r.Fields.Set("x", []byte(a.header))
	}
	return r
}

func satisfies(s *match.String, value string, there bool) bool {
	if s == nil {
		return true
	}
	m, err := s.Compile()
	if err != nil {
		panic(err)
	}
	return there && m.Match([]byte(value))
}

// holds says whether an alternative holds for a request at a port and the servers through which its routing is bound.
func (a *asked) holds(m *model.HTTPMatch, port int, refs []string) bool {
	ok := satisfies(m.Path, a.path, true) && satisfies(m.Method, a.method, true)
	for _, h := range m.Headers {
		ok = ok && satisfies(&h.Value, a.header, a.header != "")
	}
	return ok && stands(m, port, refs)
}

// stands says whether an alternative is there at all.
func stands(m *model.HTTPMatch, port int, refs []string) bool {
	return (m.Port == 0 || m.Port == port) &&
		(len(m.Gateways) == 0 || refs == nil || slices.ContainsFunc(m.Gateways, func(g string) bool { return slices.Contains(refs, g) }))
}

// choice is one alternative that holds, and what its place depends on.
type choice struct {
	rule  string
	host  string
	match *plan.Match
	order int
}

func bestOf(all []choice) string {
	if len(all) == 0 {
		return ""
	}
	slices.SortFunc(all, func(a, b choice) int {
		return cmp.Or(compareHosts(a.host, b.host), model.ComparePrecedence(a.match, b.match), cmp.Compare(a.order, b.order))
	})
	return all[0].rule
}

// compareHosts: "the largest number of characters in a matching non-wildcard hostname, then in a matching hostname".
func compareHosts(a, b string) int {
	wildA, wildB := strings.HasPrefix(a, "*"), strings.HasPrefix(b, "*")
	if wildA != wildB {
		if wildA {
			return 1
		}
		return -1
	}
	return cmp.Compare(len(b), len(a))
}

func hostCovering(hosts []string, host string) (string, bool) {
	best, ok := "", false
	for _, h := range hosts {
		if ident.HostCovers(h, host) && (!ok || compareHosts(h, best) < 0) {
			best, ok = h, true
		}
	}
	return best, ok
}

// choices are the alternatives of a routing that hold.
func (a *asked) choices(r *model.Routing, host string, port int, refs []string, order *int) []choice {
	var out []choice
	for i := range r.HTTP {
		rule := &r.HTTP[i]
		if len(rule.Matches) == 0 {
			*order++
			out = append(out, choice{rule.Name, host, &plan.Match{}, *order})
		}
		for j := range rule.Matches {
			if *order++; a.holds(&rule.Matches[j], port, refs) {
				out = append(out, choice{rule.Name, host, &rule.Matches[j].Match, *order})
			}
		}
	}
	return out
}

// inOrder returns the first rule of a routing that holds, and whether the routing has any rule here.
func (a *asked) inOrder(r *model.Routing, port int, refs []string) (rule string, any bool) {
	for i := range r.HTTP {
		if len(r.HTTP[i].Matches) == 0 {
			return cmp.Or(rule, r.HTTP[i].Name), true
		}
		for j := range r.HTTP[i].Matches {
			m := &r.HTTP[i].Matches[j]
			any = any || stands(m, port, refs)
			if rule == "" && a.holds(m, port, refs) {
				rule = r.HTTP[i].Name
			}
		}
	}
	return rule, any
}

// onSidecar is which rule should answer, as docs/routing.md tells it: "default" is the service itself, "" is 404.
func (a *asked) onSidecar(s *model.Scope, port int) string {
	var mine []*model.Routing
	consumers, ruled := false, false
	for i := range s.Routings {
		r := &s.Routings[i]
		if _, ok := hostCovering(r.Hosts, a.host); ok && (r.Port == 0 || r.Port == port) {
			mine = append(mine, r)
			consumers = consumers || r.Precedence && r.Consumer
		}
	}
	var list []choice
	order := 0
	for _, r := range mine {
		if !r.Precedence || consumers && !r.Consumer {
			continue
		}
		_, any := a.inOrder(r, port, nil)
		ruled = ruled || any
		host, _ := hostCovering(r.Hosts, a.host)
		list = append(list, a.choices(r, host, port, nil, &order)...)
	}
	if best := bestOf(list); best != "" {
		return best
	}
	slices.SortStableFunc(mine, func(x, y *model.Routing) int {
		hx, _ := hostCovering(x.Hosts, a.host)
		hy, _ := hostCovering(y.Hosts, a.host)
		return compareHosts(hx, hy)
	})
	for _, r := range mine {
		if r.Precedence {
			continue
		}
		if rule, any := a.inOrder(r, port, nil); any {
			return rule
		}
	}
	if ruled {
		return ""
	}
	return "default"
}

func boundTo(r *model.Routing, s *model.GatewayServer) (hosts []string) {
	if !slices.Contains(r.Gateways, s.Ref) {
		return nil
	}
	for _, text := range s.Hosts {
		ns, host, _ := strings.Cut(text, "/")
		for _, h := range r.Hosts {
			if both, ok := ident.HostOverlap(h, host); ok && (ns == "*" || ns == r.Name.Namespace) {
				hosts = append(hosts, both)
			}
		}
	}
	return hosts
}

// atGateway is onSidecar for the shared gateway: "" is 404. The most specific host for which there is any rule decides.
func (a *asked) atGateway(s *model.Scope, port int) string {
	var domains []string
	for i := range s.Routings {
		for j := range s.Gateway.Servers {
			for _, d := range boundTo(&s.Routings[i], &s.Gateway.Servers[j]) {
				if ident.HostCovers(d, a.host) {
					domains = append(domains, d)
				}
			}
		}
	}
	slices.SortFunc(domains, compareHosts)
	for _, d := range domains {
		if rule, any := a.atDomain(s, d, port); any {
			return rule
		}
	}
	return ""
}

// atDomain returns the rule for a domain of the shared gateway, and whether there are any rules.
func (a *asked) atDomain(s *model.Scope, domain string, port int) (rule string, any bool) {
	var list []choice
	order, first, last := 0, "", ""
	for i := range s.Routings {
		r := &s.Routings[i]
		var here, wide []string // servers through which it serves the domain, or one around it
		host := ""
		for j := range s.Gateway.Servers {
			server := &s.Gateway.Servers[j]
			for _, d := range boundTo(r, server) {
				switch {
				case d == domain:
					here = append(here, server.Ref)
				case ident.HostCovers(d, domain) && (host == "" || compareHosts(d, host) <= 0):
					if d != host {
						wide = nil
					}
					host = d
					wide = append(wide, server.Ref)
				}
			}
		}
		for _, refs := range [][]string{here, wide} {
			if refs != nil && (r.Precedence || here != nil) {
				_, some := a.inOrder(r, port, refs)
				any = any || some
				break
			}
		}
		switch {
		case r.Precedence && here != nil:
			list = append(list, a.choices(r, domain, port, here, &order)...)
		case r.Precedence && wide != nil:
			list = append(list, a.choices(r, host, port, wide, &order)...)
		case r.Precedence || here == nil:
		default:
			for k := range r.HTTP {
				rule, end := &r.HTTP[k], len(r.HTTP[k].Matches) == 0
				for l := range rule.Matches {
					m := &rule.Matches[l]
					everything := m.Method == nil && len(m.Headers) == 0 && (m.Path == nil || m.Path.Value == "/" && (m.Path.Kind == match.Prefix || m.Path.Kind == match.Segment))
					switch {
					case !stands(m, port, here) || end:
					case everything:
						end = true
					case first == "" && a.holds(m, port, here):
						first = rule.Name
					}
				}
				if end {
					last = cmp.Or(last, rule.Name)
					break
				}
			}
		}
	}
	return cmp.Or(bestOf(list), first, last), any
}

// atOwnGateway is atGateway for a Gateway API Gateway: the listener first, then the rules that are attached there.
func (a *asked) atOwnGateway(s *model.Scope, port int) string {
	var server *model.GatewayServer
	host := ""
	for i := range s.Gateway.Servers {
		var hosts []string
		for _, text := range s.Gateway.Servers[i].Hosts {
			_, h, _ := strings.Cut(text, "/")
			hosts = append(hosts, h)
		}
		if h, ok := hostCovering(hosts, a.host); ok && (server == nil || compareHosts(h, host) < 0) {
			server, host = &s.Gateway.Servers[i], h
		}
	}
	if server == nil {
		return ""
	}
	var list []choice
	order := 0
	for i := range s.Routings {
		r := &s.Routings[i]
		if h, ok := hostCovering(boundTo(r, server), a.host); ok {
			list = append(list, a.choices(r, h, port, []string{server.Ref}, &order)...)
		}
	}
	return bestOf(list)
}

// generator makes routings at random, of few words so that they meet.
type generator struct {
	*rand.Rand
	n int
}

func pick[T any](g *generator, of ...T) T { return of[g.IntN(len(of))] }

func (g *generator) match(gateways ...string) model.HTTPMatch {
	var m model.HTTPMatch
	switch g.IntN(6) {
	case 0:
		m.Path = &match.String{Kind: match.Exact, Value: pick(g, "/", "/a", "/a/b")}
	case 1, 2:
		m.Path = &match.String{Kind: match.Segment, Value: pick(g, "/", "/a", "/a/b", "/ab")}
	case 3:
		m.Path = &match.String{Kind: match.Prefix, Value: pick(g, "/", "/a", "/ab")}
	case 4:
		m.Path = &match.String{Kind: match.Regex, Value: pick(g, "/a.*", "/[ab]+", "/")}
	}
	if g.IntN(3) == 0 {
		m.Method = &match.String{Kind: match.Exact, Value: pick(g, "GET", "PUT")}
	}
	if g.IntN(3) == 0 {
		m.Headers = []plan.FieldMatch{{Name: "x", Value: match.String{Kind: match.Exact, Value: pick(g, "1", "2")}}}
	}
	if g.IntN(6) == 0 {
		m.Port = pick(g, 80, 81)
	}
	if len(gateways) > 0 && g.IntN(6) == 0 {
		m.Gateways = []string{pick(g, gateways...)}
	}
	return m
}

func (g *generator) routing(hosts, gateways []string) model.Routing {
	g.n++
	r := model.Routing{
		Meta: model.Meta{
			Name: ident.Name{Namespace: pick(g, "default", "team"), Name: fmt.Sprintf("r%02d", g.n)}, Created: time.Unix(int64(g.n), 0),
			Origin: ident.Origin{Kind: "Rule", Name: fmt.Sprint(g.n)},
		},
		Hosts: []string{pick(g, hosts...)}, Gateways: gateways, Precedence: g.IntN(2) == 0,
	}
	if g.IntN(3) == 0 {
		if h := pick(g, hosts...); h != r.Hosts[0] {
			r.Hosts = append(r.Hosts, h)
		}
	}
	for i := range 1 + g.IntN(3) {
		rule := model.HTTPRule{Name: fmt.Sprintf("%s.%d", r.Name.Name, i), Direct: &plan.DirectResponse{Status: 200}}
		for range g.IntN(3) {
			rule.Matches = append(rule.Matches, g.match(gateways...))
		}
		r.HTTP = append(r.HTTP, rule)
	}
	return r
}

func (g *generator) request(hosts []string) asked {
	return asked{host: pick(g, hosts...), path: pick(g, "/", "/a", "/a/b", "/ab", "/a/c", "/b"), method: pick(g, "GET", "PUT"), header: pick(g, "", "1", "2")}
}

// answers returns the rule that the router of the proxy finds.
func answers(t *testing.T, p *plan.Plan, table string, a *asked) string {
	t.Helper()
	for i := range p.Routes {
		if p.Routes[i].Name != table {
			continue
		}
		built, err := route.Build(&p.Routes[i])
		if err != nil {
			t.Fatal(err)
		}
		if found := built.Find([]byte(a.host), a.message()); found.Route != nil {
			return found.Route.Plan().Name
		}
	}
	return ""
}

// TestWhichRuleWins compares the rule that the router of a compiled plan finds with what the routings themselves say.
func TestWhichRuleWins(t *testing.T) {
	g := &generator{Rand: rand.New(rand.NewPCG(3, 1))}
	services := []string{host("web"), host("db")}
	wide := []string{host("web"), host("db"), "*.svc.cluster.local", "*.default.svc.cluster.local", "*"}
	outside := []string{"a.example", "b.example", "*.example", "*.b.example", "x.b.example", "*"}
	different := map[string]int{}
	check := func(kind string, s *model.Scope, table, got, want string, a asked, port int) {
		t.Helper()
		different[want]++
		if got != want {
			t.Fatalf("%s, %+v at port %d: rule %q answers, want %q; routings:\n%s", kind, a, port, got, want, listed(s))
		}
	}
	for range 1000 {
		s := sidecar(svc("web", "80/http", "81/http"), svc("db", "80/http", "81/http"))
		for range g.IntN(5) {
			r := g.routing(wide, []string{model.Mesh})
			r.Port = pick(g, 0, 0, 0, 80, 81)
			r.Consumer = r.Precedence && g.IntN(4) == 0
			s.Routings = append(s.Routings, r)
		}
		p, _ := compile.Compile(s)
		for range 8 {
			a, port := g.request(services), pick(g, 80, 81)
			check("sidecar", s, fmt.Sprint(port), answers(t, p, fmt.Sprint(port), &a), a.onSidecar(s, port), a, port)
		}

		gateway := &model.Scope{Node: plan.Node{Role: plan.Gateway}, Gateway: &model.GatewayScope{Binds: map[int]string{80: "127.0.0.1:80"}}}
		refs := []string{"default/one", "default/two"}
		for _, ref := range refs {
			gateway.Gateway.Servers = append(gateway.Gateway.Servers, model.GatewayServer{
				Server: &model.Server{Port: 80, Protocol: ident.HTTP, Hosts: []string{pick(g, "*/*", "*/*.example", "team/*", "*/b.example")}}, Ref: ref,
			})
		}
		for range g.IntN(6) {
			gateway.Routings = append(gateway.Routings, g.routing(outside, pick(g, refs, refs[:1], refs[1:])))
		}
		p, _ = compile.Compile(gateway)
		for range 8 {
			a := g.request([]string{"a.example", "b.example", "x.b.example", "c.example", "other"})
			check("gateway", gateway, "http.80", answers(t, p, "http.80", &a), a.atGateway(gateway, 80), a, 80)
		}

		own := &model.Scope{Node: plan.Node{Role: plan.Gateway}, Gateway: &model.GatewayScope{Binds: map[int]string{80: "127.0.0.1:80"}}}
		refs = nil
		for i, h := range [][]string{{"*/*"}, {"*/*.example"}, {"*/b.example"}} {
			if ref := fmt.Sprintf("default/gate/l%d", i); g.IntN(3) > 0 {
				refs = append(refs, ref)
				own.Gateway.Servers = append(own.Gateway.Servers, model.GatewayServer{
					Server: &model.Server{Name: fmt.Sprintf("l%d", i), Port: 80, Protocol: ident.HTTP, Hosts: h}, Ref: ref, Own: true,
				})
			}
		}
		if refs == nil {
			continue
		}
		for range g.IntN(6) {
			r := g.routing(outside, []string{pick(g, refs...)})
			r.Precedence = true
			own.Routings = append(own.Routings, r)
		}
		p, _ = compile.Compile(own)
		for range 8 {
			a := g.request([]string{"a.example", "b.example", "x.b.example", "other"})
			check("own gateway", own, "http.80", answers(t, p, "http.80", &a), a.atOwnGateway(own, 80), a, 80)
		}
	}
	if different[""] < 100 || different["default"] < 100 || len(different) < 1000 {
		t.Errorf("the requests met %d rules, %d times none, %d times the service itself: too few to mean something", len(different), different[""], different["default"])
	}
}

func listed(s *model.Scope) string {
	var b strings.Builder
	if s.Gateway != nil {
		for _, server := range s.Gateway.Servers {
			fmt.Fprintf(&b, "server %s hosts %v\n", server.Ref, server.Hosts)
		}
	}
	for i := range s.Routings {
		r := &s.Routings[i]
		fmt.Fprintf(&b, "%s hosts %v gateways %v precedence %t consumer %t port %d\n", r.Name, r.Hosts, r.Gateways, r.Precedence, r.Consumer, r.Port)
		for _, rule := range r.HTTP {
			fmt.Fprintf(&b, "  %s\n", rule.Name)
			for _, m := range rule.Matches {
				fmt.Fprintf(&b, "    path %v method %v headers %v port %d gateways %v\n", m.Path, m.Method, m.Headers, m.Port, m.Gateways)
			}
		}
	}
	return b.String()
}

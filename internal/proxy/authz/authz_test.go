package authz

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

var (
	frontend = ident.Identity{TrustDomain: "cluster.local", Namespace: "production", ServiceAccount: "frontend"}
	other    = ident.Identity{TrustDomain: "cluster.local", Namespace: "staging", ServiceAccount: "other"}
	nobody   ident.Identity
)

func is(v ...string) []match.String { return kinds(match.Exact, v...) }

func kinds(k match.Kind, v ...string) []match.String {
	var out []match.String
	for _, s := range v {
		out = append(out, match.String{Kind: k, Value: s})
	}
	return out
}

func request(method, path string, headers ...string) *message.Request {
	r := &message.Request{Method: []byte(method), Path: []byte(path), Scheme: []byte("http"), Authority: []byte("backend:8080"), Host: []byte("backend"), Port: 8080}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Fields.Add(headers[i], []byte(headers[i+1]))
	}
	return r
}

func mustBuild(t testing.TB, ps ...plan.Policy) *Engine {
	t.Helper()
	e, err := Build(ps)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func input(peer ident.Identity, req *message.Request) *Input {
	return &Input{Peer: peer, Remote: netip.MustParseAddr("10.0.0.7"), Local: netip.MustParseAddr("::ffff:10.1.0.1"), Port: 8080, Request: req}
}

func guard(name string, a plan.Action, rules ...plan.PolicyRule) plan.Policy {
	return plan.Policy{Name: name, Action: a, Rules: rules, Origin: ident.Origin{Kind: "AuthorizationPolicy", Name: name}}
}

func TestIntroduction(t *testing.T) {
	rule := plan.PolicyRule{
		From:   []plan.Source{{Principals: is("cluster.local/ns/production/sa/frontend")}},
		To:     []plan.Operation{{Methods: is("GET", "POST"), Paths: kinds(match.Prefix, "/api/")}},
		Origin: ident.Origin{Rule: "rules[0]", File: "authz.yaml", Line: 12},
	}
	policy := guard("production/backend-policy", plan.Allow, rule)
	e := mustBuild(t, policy)
	allowed := Decision{Allow: true, Policy: "production/backend-policy", Rule: 0, Origin: &rule.Origin}
	denied := Decision{Rule: -1, Origin: &policy.Origin, Detail: DetailNone}
	for _, tc := range []struct {
		peer ident.Identity
		req  *message.Request
		want Decision
	}{
		{frontend, request("GET", "/api/x"), allowed},
		{frontend, request("POST", "/api/"), allowed},
		{frontend, request("DELETE", "/api/x"), denied},
		{frontend, request("GET", "/apix"), denied},
		{other, request("GET", "/api/x"), denied},
		{nobody, request("GET", "/api/x"), denied},
		{frontend, nil, denied},
	} {
		if d := cmp.Diff(tc.want, e.Check(input(tc.peer, tc.req))); d != "" {
			t.Errorf("%v %v (-want +got):\n%s", tc.peer, tc.req, d)
		}
	}
}

func TestOrderOfActions(t *testing.T) {
	all := plan.PolicyRule{}
	get := plan.PolicyRule{To: []plan.Operation{{Methods: is("GET")}}}
	dry := func(p plan.Policy) plan.Policy { p.DryRun = true; return p }
	for _, tc := range []struct {
		name     string
		policies []plan.Policy
		want     Decision // of GET /; Origin is not compared
	}{
		{"none", nil, Decision{Allow: true, Rule: -1}},
		{"allow without rules denies all", []plan.Policy{guard("n/a", plan.Allow)}, Decision{Rule: -1, Detail: DetailNone}},
		{"allow with an empty rule allows all", []plan.Policy{guard("n/a", plan.Allow, all)}, Decision{Allow: true, Policy: "n/a"}},
		{"deny without rules never matches", []plan.Policy{guard("n/d", plan.Deny)}, Decision{Allow: true, Rule: -1}},
		{"deny wins", []plan.Policy{guard("n/a", plan.Allow, all), guard("n/d", plan.Deny, plan.PolicyRule{To: []plan.Operation{{Ports: []int{1}}}}, get)},
			Decision{Policy: "n/d", Rule: 1, Detail: "rbac_access_denied_matched_policy[ns[n]-policy[d]-rule[1]]"}},
		{"second allow", []plan.Policy{guard("n/a", plan.Allow), guard("n/b", plan.Allow, get)}, Decision{Allow: true, Policy: "n/b"}},
		{"audit decides nothing", []plan.Policy{guard("n/u", plan.Audit, get)}, Decision{Allow: true, Rule: -1, Audit: "n/u"}},
		{"audit that does not match", []plan.Policy{guard("n/u", plan.Audit)}, Decision{Allow: true, Rule: -1}},
		{"dry-run allow alone denies nothing", []plan.Policy{dry(guard("n/a", plan.Allow))},
			Decision{Allow: true, Rule: -1, Shadow: &Shadow{Rule: -1, Detail: DetailNone}}},
		{"dry-run allow that matches", []plan.Policy{dry(guard("n/a", plan.Allow, get))}, Decision{Allow: true, Rule: -1}},
		{"dry-run deny", []plan.Policy{dry(guard("n/d", plan.Deny, get))},
			Decision{Allow: true, Rule: -1, Shadow: &Shadow{Policy: "n/d", Detail: "rbac_access_denied_matched_policy[ns[n]-policy[d]-rule[0]]"}}},
		{"dry-run allow would open", []plan.Policy{guard("n/a", plan.Allow), dry(guard("n/b", plan.Allow, get))},
			Decision{Rule: -1, Detail: DetailNone, Shadow: &Shadow{Allow: true, Policy: "n/b"}}},
		{"dry-run changes nothing", []plan.Policy{guard("n/d", plan.Deny, get), dry(guard("n/b", plan.Allow, get))},
			Decision{Policy: "n/d", Detail: "rbac_access_denied_matched_policy[ns[n]-policy[d]-rule[0]]"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := mustBuild(t, tc.policies...).Check(input(frontend, request("GET", "/")))
			if got.Detail == DetailNone && got.Origin == nil {
				t.Errorf("nothing says why it is denied: %+v", got)
			}
			if got.Policy != "" && got.Origin == nil {
				t.Error("no origin")
			}
			got.Origin = nil
			if got.Shadow != nil {
				got.Shadow.Origin = nil
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
	if !(*Engine)(nil).Check(input(nobody, nil)).Allow {
		t.Error("a nil Engine denies")
	}
}

// TestUnknown is the truth table of rule.holds: what happens where the peer or the request lacks the attribute.
func TestUnknown(t *testing.T) {
	from := func(s plan.Source) plan.PolicyRule { return plan.PolicyRule{From: []plan.Source{s}} }
	to := func(o plan.Operation) plan.PolicyRule { return plan.PolicyRule{To: []plan.Operation{o}} }
	when := func(key string, is, not []match.String) plan.PolicyRule {
		return plan.PolicyRule{When: []plan.Condition{{Key: key, Values: is, NotValues: not}}}
	}
	foo := is("foo")
	for _, tc := range []struct {
		name        string
		rule        plan.PolicyRule
		allow, deny bool // whether a rule of such a policy matches an unauthenticated TCP connection
	}{
		{"principals", from(plan.Source{Principals: foo}), false, false},
		{"principals *", from(plan.Source{Principals: kinds(match.NonEmpty, "")}), false, false},
		{"notPrincipals", from(plan.Source{NotPrincipals: foo}), false, true},
		{"notPrincipals *", from(plan.Source{NotPrincipals: kinds(match.NonEmpty, "")}), false, true},
		{"principals and notPrincipals", from(plan.Source{Principals: foo, NotPrincipals: foo}), false, false},
		{"namespaces", from(plan.Source{Namespaces: foo}), false, false},
		{"notNamespaces", from(plan.Source{NotNamespaces: foo}), false, true},
		{"when source.principal", when("source.principal", foo, nil), false, false},
		{"when not source.principal", when("source.principal", nil, foo), false, true},
		{"when not source.namespace", when("source.namespace", nil, foo), false, true},
		{"ipBlocks", from(plan.Source{IPBlocks: []string{"10.0.0.0/8"}}), true, true},
		{"methods", to(plan.Operation{Methods: foo}), false, true},
		{"notMethods", to(plan.Operation{NotMethods: foo}), false, true},
		{"paths", to(plan.Operation{Paths: foo}), false, true},
		{"hosts", to(plan.Operation{NotHosts: foo}), false, true},
		{"ports", to(plan.Operation{Ports: []int{8080}}), true, true},
		{"other port", to(plan.Operation{Ports: []int{1}, Methods: foo}), false, false},
		{"when header", when("request.headers[x]", foo, nil), false, true},
		{"when not header", when("request.headers[x]", nil, foo), false, true},
	} {
		in := input(nobody, nil)
		if got := mustBuild(t, guard("n/a", plan.Allow, tc.rule)).Check(in).Allow; got != tc.allow {
			t.Errorf("%s: an ALLOW rule matches: %v, want %v", tc.name, got, tc.allow)
		}
		if got := !mustBuild(t, guard("n/d", plan.Deny, tc.rule)).Check(in).Allow; got != tc.deny {
			t.Errorf("%s: a DENY rule matches: %v, want %v", tc.name, got, tc.deny)
		}
		if got := mustBuild(t, guard("n/u", plan.Audit, tc.rule)).Check(in).Audit != ""; got != tc.deny {
			t.Errorf("%s: an AUDIT rule matches: %v, want %v", tc.name, got, tc.deny)
		}
	}
}

// TestPresence is of a header that is there and empty, and of headers that the codecs keep elsewhere.
func TestPresence(t *testing.T) {
	there := func(name string) plan.Policy {
		return guard("n/d", plan.Deny, plan.PolicyRule{When: []plan.Condition{{Key: "request.headers[" + name + "]", Values: kinds(match.Present, "")}}})
	}
	for _, tc := range []struct {
		header string
		req    *message.Request
		denied bool
	}{
		{"x-a", request("GET", "/"), false},
		{"x-a", request("GET", "/", "x-a", ""), true},
		{"x-a", request("GET", "/", "x-a", "1"), true},
		{"upgrade", request("GET", "/"), false},
		{"upgrade", &message.Request{Upgrade: []byte{}}, false},
		{"upgrade", &message.Request{Upgrade: []byte("websocket")}, true},
	} {
		if got := !mustBuild(t, there(tc.header)).Check(input(frontend, tc.req)).Allow; got != tc.denied {
			t.Errorf("%s of %s: denied %v, want %v", tc.header, show(tc.req), got, tc.denied)
		}
	}
}

func TestAttributes(t *testing.T) {
	header := func(is, not []match.String) plan.PolicyRule {
		return plan.PolicyRule{When: []plan.Condition{{Key: "request.headers[X-Role]", Values: is, NotValues: not}}}
	}
	for _, tc := range []struct {
		name        string
		rule        plan.PolicyRule
		req         *message.Request
		allow, deny bool
	}{
		{"namespace", plan.PolicyRule{From: []plan.Source{{Namespaces: is("production")}}}, request("GET", "/"), true, true},
		{"any authenticated", plan.PolicyRule{From: []plan.Source{{Principals: kinds(match.NonEmpty, "")}}}, request("GET", "/"), true, true},
		{"principal suffix", plan.PolicyRule{From: []plan.Source{{Principals: kinds(match.Suffix, "/sa/frontend")}}}, request("GET", "/"), true, true},
		{"second source", plan.PolicyRule{From: []plan.Source{{Namespaces: is("x")}, {IPBlocks: []string{"10.0.0.7"}}}}, request("GET", "/"), true, true},
		{"not in block", plan.PolicyRule{From: []plan.Source{{NotIPBlocks: []string{"::ffff:10.0.0.0/104"}}}}, request("GET", "/"), false, false},
		{"destination ip", plan.PolicyRule{When: []plan.Condition{{Key: "destination.ip", Values: is("10.1.0.0/16")}}}, request("GET", "/"), true, true},
		{"destination port", plan.PolicyRule{When: []plan.Condition{{Key: "destination.port", NotValues: is("8080")}}}, request("GET", "/"), false, false},
		{"host without port", plan.PolicyRule{To: []plan.Operation{{Hosts: is("BACKEND")}}}, request("GET", "/"), true, true},
		{"host with port", plan.PolicyRule{To: []plan.Operation{{Hosts: kinds(match.Prefix, "backend:")}}}, request("GET", "/"), true, true},
		{"not host", plan.PolicyRule{To: []plan.Operation{{NotHosts: is("backend")}}}, request("GET", "/"), false, false},
		{"not path", plan.PolicyRule{To: []plan.Operation{{Paths: kinds(match.Prefix, "/"), NotPaths: is("/admin")}}}, request("GET", "/admin"), false, false},
		{"method is exact", plan.PolicyRule{To: []plan.Operation{{Methods: is("get")}}}, request("GET", "/"), false, false},
		{"header", header(is("admin"), nil), request("GET", "/", "x-role", "admin"), true, true},
		{"header absent", header(is("admin"), nil), request("GET", "/"), false, false},
		{"header repeated", header(is("admin"), nil), request("GET", "/", "x-role", "admin", "x-role", "user"), false, true},
		{"not header, absent", header(nil, is("user")), request("GET", "/"), true, true},
		{"not header, one line of two", header(nil, is("user")), request("GET", "/", "x-role", "user", "x-role", "admin"), false, true},
		{"not header, listed", header(nil, is("user")), request("GET", "/", "x-role", "user"), false, false},
		{"host as a header", plan.PolicyRule{When: []plan.Condition{{Key: "request.headers[Host]", Values: is("backend:8080")}}}, request("GET", "/"), true, true},
		{"method as a header", plan.PolicyRule{When: []plan.Condition{{Key: "request.headers[:method]", NotValues: is("GET")}}}, request("GET", "/"), false, false},
	} {
		in := input(frontend, tc.req)
		if got := mustBuild(t, guard("n/a", plan.Allow, tc.rule)).Check(in).Allow; got != tc.allow {
			t.Errorf("%s: an ALLOW rule matches: %v, want %v", tc.name, got, tc.allow)
		}
		if got := !mustBuild(t, guard("n/d", plan.Deny, tc.rule)).Check(in).Allow; got != tc.deny {
			t.Errorf("%s: a DENY rule matches: %v, want %v", tc.name, got, tc.deny)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	when := func(key string, v ...match.String) plan.PolicyRule {
		return plan.PolicyRule{When: []plan.Condition{{Key: key, Values: v}}}
	}
	for name, p := range map[string]plan.Policy{
		"action":        guard("n/p", "custom"),
		"no action":     guard("n/p", ""),
		"key":           guard("n/p", plan.Deny, when("request.auth.claims[x]", is("a")...)),
		"no header":     guard("n/p", plan.Deny, when("request.headers[]", is("a")...)),
		"open header":   guard("n/p", plan.Deny, when("request.headers[x", is("a")...)),
		"no values":     guard("n/p", plan.Deny, when("source.ip")),
		"port":          guard("n/p", plan.Deny, when("destination.port", is("80x")...)),
		"address":       guard("n/p", plan.Deny, when("source.ip", kinds(match.Prefix, "10.")...)),
		"block":         guard("n/p", plan.Deny, plan.PolicyRule{From: []plan.Source{{IPBlocks: []string{"10.0.0.0/33"}}}}),
		"bad address":   guard("n/p", plan.Deny, plan.PolicyRule{From: []plan.Source{{NotIPBlocks: []string{"10.0.0"}}}}),
		"regex":         guard("n/p", plan.Deny, plan.PolicyRule{To: []plan.Operation{{Paths: kinds(match.Regex, "(")}}}),
		"source string": guard("n/p", plan.Deny, plan.PolicyRule{From: []plan.Source{{Principals: kinds(match.Regex, "(")}}}),
	} {
		if _, err := Build([]plan.Policy{p}); err == nil || !strings.Contains(err.Error(), "n/p") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestMonotone checks on random policies that taking away knowledge (the identity, the HTTP head) never opens a door.
func TestMonotone(t *testing.T) {
	for seed := range 3000 {
		rnd := rand.New(rand.NewPCG(uint64(seed), 3))
		var ps []plan.Policy
		for i := range 1 + rnd.IntN(3) {
			p := guard(fmt.Sprintf("n/%d", i), []plan.Action{plan.Allow, plan.Deny}[rnd.IntN(2)])
			for range rnd.IntN(3) {
				p.Rules = append(p.Rules, randomRule(rnd))
			}
			ps = append(ps, p)
		}
		e := mustBuild(t, ps...)
		// A peer that no rule names stands for "anybody else": nobody may not do more than such a peer.
		stranger := ident.Identity{TrustDomain: "t", Namespace: "stranger", ServiceAccount: "s"}
		req := request([]string{"GET", "PUT"}[rnd.IntN(2)], []string{"/a", "/b"}[rnd.IntN(2)])
		if e.Check(input(nobody, req)).Allow && !e.Check(input(stranger, req)).Allow {
			t.Fatalf("seed %d: nobody may do what a stranger may not: %+v", seed, ps)
		}
	}
}

func randomRule(rnd *rand.Rand) plan.PolicyRule {
	some := func(v ...string) []match.String {
		if rnd.IntN(3) > 0 {
			return nil
		}
		return is(v[rnd.IntN(len(v))])
	}
	return plan.PolicyRule{
		From: []plan.Source{{Principals: some("cluster.local/ns/production/sa/frontend"), NotPrincipals: some("cluster.local/ns/staging/sa/other"),
			Namespaces: some("production", "staging"), NotNamespaces: some("production", "staging")}},
		To: []plan.Operation{{Methods: some("GET", "PUT"), NotMethods: some("GET"), Paths: some("/a", "/b"), NotPaths: some("/a")}},
	}
}

func TestCheckDoesNotAllocate(t *testing.T) {
	e := mustBuild(t,
		guard("n/d", plan.Deny, plan.PolicyRule{From: []plan.Source{{NotNamespaces: is("production")}}, When: []plan.Condition{{Key: "request.headers[x]", Values: is("y")}}}),
		guard("n/a", plan.Allow, plan.PolicyRule{
			From: []plan.Source{{Principals: is("x")}, {Principals: kinds(match.Prefix, "cluster.local/"), IPBlocks: []string{"10.0.0.0/8"}}},
			To:   []plan.Operation{{Hosts: is("backend"), Methods: is("GET"), Paths: kinds(match.Regex, "/a.*")}},
		}))
	in := input(frontend, request("GET", "/abc"))
	if n := testing.AllocsPerRun(200, func() {
		if !e.Check(in).Allow {
			t.Fatal("denied")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCheck(b *testing.B) {
	e := mustBuild(b, guard("n/a", plan.Allow, plan.PolicyRule{
		From: []plan.Source{{Principals: is("cluster.local/ns/production/sa/frontend")}},
		To:   []plan.Operation{{Methods: is("GET", "POST"), Paths: kinds(match.Prefix, "/api/")}},
	}))
	in := input(frontend, request("GET", "/api/x"))
	b.ReportAllocs()
	for b.Loop() {
		e.Check(in)
	}
}

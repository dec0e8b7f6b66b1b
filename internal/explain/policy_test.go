package explain

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
)

func gatewayPlan() *plan.Plan {
	limit := func(name string, n uint32, by plan.LimitBy, ms ...plan.Match) plan.RateLimit {
		return plan.RateLimit{Name: name, Origin: ident.Origin{Kind: "RateLimit", Name: name}, Rules: []plan.RateLimitRule{
			{Requests: n, Per: plan.Duration(time.Second), By: by, Matches: ms}}}
	}
	code := 14
	path := func(p string) plan.Match { return plan.Match{Path: &match.String{Kind: match.Prefix, Value: p}} }
	return &plan.Plan{
		Node: plan.Node{Name: ident.Name{Namespace: "ns", Name: "gw"}, Role: plan.Gateway},
		Listeners: []plan.Listener{
			{Name: "http", Bind: "127.0.0.1:80", Port: 80, Direction: plan.Edge, Routes: "t", Limits: []string{"all"}},
			{Name: "https", Bind: "127.0.0.1:443", Port: 443, Direction: plan.Edge, ServerNames: []plan.ServerName{
				{Names: []string{"a.example"}, TLS: &plan.ServerTLS{Mode: plan.ServeSimple}, Routes: "t", Limits: []string{"all"}, Origin: ident.Origin{Kind: "Gateway", Name: "ended"}},
				{Names: []string{"*.pass.example"}, TCP: []plan.Destination{{Cluster: "d"}}, TCPRoutes: []plan.TCPRoute{{Subnets: []string{"10.0.0.0/8"}, Forward: []plan.Destination{{Cluster: "c"}}}}},
				{Names: []string{"*.auto"}, Auto: true},
			}},
		},
		Routes: []plan.RouteTable{{Name: "t", Hosts: []plan.VirtualHost{{Name: "h", Domains: []string{"a.example"}, Routes: []plan.Route{
			{Name: "never", Match: path("/never"), Forward: []plan.Destination{{Cluster: "c"}}, Limits: []string{"never"}},
			{Name: "gone", Match: path("/gone"), Forward: []plan.Destination{{Cluster: "c"}}, Limits: []string{"no-such"}},
			{Name: "abort", Match: path("/abort"), Forward: []plan.Destination{{Cluster: "c"}}, Fault: &plan.Fault{AbortGRPC: &code, AbortPercent: 100}},
			{Name: "wild", Match: path("/wild"), Forward: []plan.Destination{{Cluster: "wild"}}, Rewrite: &plan.Rewrite{Authority: "x.wild"}},
			{Name: "bad", Match: path("/bad"), Forward: []plan.Destination{{Cluster: "c", Weight: 3}, {Status: 500, Weight: 1}}},
			{Name: "rest", Forward: []plan.Destination{{Cluster: "c", Rewrite: &plan.Rewrite{Regex: "x", Substitution: "y"}}}, Response: plan.Duration(time.Second),
				Idle: plan.Duration(time.Minute), Limits: []string{"mine"}, CORS: &plan.CORS{Origins: []match.String{{Kind: match.Exact, Value: "https://p.example"}}, AnswerUnmatched: true},
				Retry: &plan.Retry{Attempts: 1, On: plan.Retry5xx, AnyHost: true}},
		}}}}},
		Clusters: []plan.Cluster{
			{Name: "c", Host: "c.svc", Hash: &plan.Hash{Header: "x-user", Cookie: &plan.Cookie{Name: "id", HasTTL: true}}, Session: &plan.Session{Header: "s"}},
			{Name: "wild", Host: "*.wild", Discovery: plan.AsRequested, Port: 8443},
			{Name: "d", Host: "d.svc", SNI: "outbound.d.auto"},
		},
		Endpoints: []plan.Endpoints{{Cluster: "c", Endpoints: []plan.Endpoint{{Address: "10.0.0.1:1"}}}, {Cluster: "d", Endpoints: []plan.Endpoint{{Address: "10.0.0.2:1"}}}},
		Limits: []plan.RateLimit{limit("all", 100, plan.ByAll), limit("never", 0, plan.ByAll),
			limit("mine", 5, plan.ByAddress, plan.Match{Method: &match.String{Kind: match.Exact, Value: "PUT"}})},
	}
}

func TestPolicies(t *testing.T) {
	m, err := New([]*plan.Plan{gatewayPlan()})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, url string, headers ...string) *Walk {
		t.Helper()
		r := Request{Method: method, URL: url, Client: netip.MustParseAddr("192.0.2.1")}
		for i := 0; i < len(headers); i += 2 {
			r.Headers = append(r.Headers, Header{headers[i], headers[i+1]})
		}
		w, err := m.Request(ident.Name{Namespace: "ns", Name: "gw"}, r)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	for _, tc := range []struct {
		method, url string
		headers     []string
		want        string // "status flags detail" of the answer, or the destination
	}{
		{"GET", "http://a.example/x", nil, "c.svc"},
		{"GET", "https://a.example/x", nil, "c.svc"},
		{"GET", "http://a.example/never", nil, "429 RL local_rate_limited"},
		{"GET", "http://a.example/gone", nil, "503 NC rate_limit_not_found"},
		{"GET", "http://a.example/abort", nil, "503 FI fault_filter_abort"},
		{"OPTIONS", "http://a.example/x", []string{"origin", "https://p.example", "access-control-request-method", "PUT"}, "200  cors_preflight"},
		{"OPTIONS", "http://a.example/x", []string{"origin", "https://q.example", "access-control-request-method", "PUT"}, "200  cors_preflight"},
		{"OPTIONS", "http://a.example/x", []string{"origin", "https://q.example"}, "c.svc"},
		{"GET", "https://x.pass.example/", nil, "d.svc"},
		{"GET", "https://outbound.d.auto/", nil, "d.svc"},
		{"GET", "https://other.example/", nil, "0 NR no_server_name"},
		{"GET", "tcp://a.example:443", nil, "0 DPE not_tls"},
	} {
		w := ask(tc.method, tc.url, tc.headers...)
		if len(w.Outcomes) != 1 {
			t.Errorf("%s: outcomes %+v", tc.url, w.Outcomes)
			continue
		}
		o := w.Outcomes[0]
		var got string
		if a := o.Answer; a != nil {
			got = strings.Join([]string{itoa(a.Status), a.Flags, a.Detail}, " ")
		} else {
			got = w.Branches[0].Service
		}
		if got != tc.want {
			t.Errorf("%s %s: %s, want %s", tc.method, tc.url, got, tc.want)
		}
	}

	w := ask("GET", "http://a.example/x", "origin", "https://q.example", "x-user", "u")
	if a := w.Action; a.Response == 0 || a.Idle == 0 || a.CORS == nil || a.CORS.Why != `origin "https://q.example" is not allowed` || !a.Retry.AnyHost {
		t.Errorf("action %+v", a)
	}
	if len(w.Limits) != 2 || !w.Limits[0].Applies || w.Limits[0].Requests != 100 || w.Limits[1].Applies || w.Limits[1].Why != `method is "GET", want exact "PUT"` {
		t.Errorf("limits %+v", w.Limits)
	}
	if b := w.Branches[0]; b.Key == nil || *b.Key != (Key{By: "header x-user", Value: "u"}) || b.Path != "/y" || b.Rewrite.Regex != "x" || b.Session == nil {
		t.Errorf("branch %+v, key %+v", b, b.Key)
	}
	if k := ask("GET", "http://a.example/x", "cookie", `a=b; id="7"`).Branches[0].Key; *k != (Key{By: "cookie id", Value: "7"}) {
		t.Errorf("key %+v", k)
	}
	if k := ask("GET", "http://a.example/x").Branches[0].Key; *k != (Key{By: "cookie id", New: true}) {
		t.Errorf("key %+v", k)
	}
	if w := ask("GET", "https://a.example/x"); !w.Listener.Ends || w.Listener.ServerName != "a.example" || w.Listener.Origin.Name != "ended" || len(w.Limits) == 0 {
		t.Errorf("listener %+v", w.Listener)
	}
	if es := ask("GET", "http://a.example/wild").Branches[0].Endpoints; len(es) != 1 || es[0].Address != "x.wild:8443" {
		t.Errorf("a destination that goes where it is asked to has endpoints %+v", es)
	}
	w = ask("GET", "http://a.example/bad")
	if len(w.Outcomes) != 2 || w.Outcomes[1].Share != .25 || w.Outcomes[1].Answer.Status != 500 {
		t.Errorf("a destination that can't be used: %+v", w.Outcomes)
	}
}

func itoa(n int) string {
	if n == 0 {
		return "0"
	}
	return string([]byte{byte('0' + n/100), byte('0' + n/10%10), byte('0' + n%10)})
}

func TestTCPRoute(t *testing.T) {
	routes := []plan.TCPRoute{
		{Subnets: []string{"10.0.0.0/8", "fd00::/8"}, Forward: []plan.Destination{{Cluster: "a"}}},
		{Subnets: []string{"192.0.2.1/32"}, Forward: []plan.Destination{{Cluster: "b"}}},
	}
	rest := []plan.Destination{{Cluster: "c"}}
	for _, tc := range []struct {
		host, want string
		tried      []bool // which of the rules that were asked matched
	}{
		{"10.1.1.1", "a", []bool{true}}, {"fd00::1", "a", []bool{true}}, {"192.0.2.1", "b", []bool{false, true}},
		{"192.0.2.2", "c", []bool{false, false}}, {"name.example", "c", []bool{false, false}},
	} {
		x := &walker{req: &sent{}, walk: &Walk{}}
		x.req.Host = []byte(tc.host)
		if got, _ := x.tcpRoute(routes, rest, ident.Origin{}); got[0].Cluster != tc.want {
			t.Errorf("%s goes to %s, want %s", tc.host, got[0].Cluster, tc.want)
		}
		var tried []bool
		for _, r := range x.walk.Rules {
			tried = append(tried, r.Matched)
		}
		if !slices.Equal(tried, tc.tried) {
			t.Errorf("%s: rules tried %v, want %v", tc.host, tried, tc.tried)
		}
	}
}

package route

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

func str(k match.Kind, v string) *match.String { return &match.String{Kind: k, Value: v} }

func request(method, path string, headers ...string) *message.Request {
	r := &message.Request{Method: []byte(method), Scheme: []byte("http"), Authority: []byte("a.example:8080"), Host: []byte("a.example"), Port: 8080}
	p, q, has := strings.Cut(path, "?")
	r.Path, r.Query, r.HasQuery = []byte(p), []byte(q), has
	for i := 0; i+1 < len(headers); i += 2 {
		r.Fields.Add(headers[i], []byte(headers[i+1]))
	}
	return r
}

func mustBuild(t testing.TB, rt *plan.RouteTable) *Table {
	t.Helper()
	table, err := Build(rt)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func oneHost(routes ...plan.Route) *plan.RouteTable {
	return &plan.RouteTable{Name: "t", Hosts: []plan.VirtualHost{{Name: "h", Domains: []string{"*"}, Routes: routes}}}
}

func TestHost(t *testing.T) {
	table := mustBuild(t, &plan.RouteTable{Name: "t", Hosts: []plan.VirtualHost{
		{Name: "exact", Domains: []string{"a.example", "b.c.example"}},
		{Name: "wide", Domains: []string{"*.example"}},
		{Name: "narrow", Domains: []string{"*.c.example"}},
		{Name: "v6", Domains: []string{"fd00::1"}},
	}})
	for host, want := range map[string]string{
		"a.example": "exact", "b.c.example": "exact", "x.example": "wide", "y.x.example": "wide", "x.c.example": "narrow",
		"z.y.c.example": "narrow", "c.example": "wide", "example": "", ".example": "", "": "", "fd00::1": "v6", "a.examples": "",
	} {
		got := ""
		if h := table.Host([]byte(host)); h != nil {
			got = h.Plan().Name
		}
		if got != want {
			t.Errorf("Host(%q) = %q, want %q", host, got, want)
		}
		res := table.Find([]byte(host), request("GET", "/"))
		if (res.Host != nil) != (want != "") || res.Route != nil {
			t.Errorf("Find(%q) = %+v", host, res)
		}
	}
}

func TestAnyHostComesLast(t *testing.T) {
	table := mustBuild(t, &plan.RouteTable{Hosts: []plan.VirtualHost{{Name: "any", Domains: []string{"*"}}, {Name: "wild", Domains: []string{"*.a"}}}})
	if got := table.Host([]byte("x.a")).Plan().Name; got != "wild" {
		t.Errorf("x.a goes to %s", got)
	}
	if got := table.Host([]byte("x.b")).Plan().Name; got != "any" {
		t.Errorf("x.b goes to %s", got)
	}
}

func TestBuildRefuses(t *testing.T) {
	for name, rt := range map[string]*plan.RouteTable{
		"domain twice":            {Name: "t", Hosts: []plan.VirtualHost{{Name: "x", Domains: []string{"a"}}, {Name: "y", Domains: []string{"a"}}}},
		"any twice":               {Name: "t", Hosts: []plan.VirtualHost{{Name: "x", Domains: []string{"*", "*"}}}},
		"star in middle":          {Name: "t", Hosts: []plan.VirtualHost{{Name: "x", Domains: []string{"a.*.b"}}}},
		"empty domain":            {Name: "t", Hosts: []plan.VirtualHost{{Name: "x", Domains: []string{""}}}},
		"bad regex":               oneHost(plan.Route{Match: plan.Match{Path: str(match.Regex, "(")}}),
		"bad header":              oneHost(plan.Route{Match: plan.Match{Headers: []plan.FieldMatch{{Name: "x", Value: *str(match.Regex, "(")}}}}),
		"bad query":               oneHost(plan.Route{Match: plan.Match{Query: []plan.FieldMatch{{Name: "x", Value: *str(match.Regex, "(")}}}}),
		"bad tree":                oneHost(plan.Route{Match: plan.Match{Cond: &plan.Cond{Any: []plan.Cond{{Not: &plan.Cond{Path: str(match.Regex, "(")}}}}}}),
		"bad rewrite":             oneHost(plan.Route{Rewrite: &plan.Rewrite{Regex: "("}}),
		"long rewrite":            oneHost(plan.Route{Rewrite: &plan.Rewrite{Regex: strings.Repeat("a", match.MaxRegex+1)}}),
		"no such group":           oneHost(plan.Route{Rewrite: &plan.Rewrite{Regex: "(a)", Substitution: `\2`}}),
		"lone backslash":          oneHost(plan.Route{Rewrite: &plan.Rewrite{Regex: "(a)", Substitution: `a\`}}),
		"odd backslash":           oneHost(plan.Route{Rewrite: &plan.Rewrite{Regex: "(a)", Substitution: `\n`}}),
		"two rewrites":            oneHost(plan.Route{Rewrite: &plan.Rewrite{Regex: "a", Path: "/b"}}),
		"bad destination":         oneHost(plan.Route{Forward: []plan.Destination{{Rewrite: &plan.Rewrite{Regex: "("}}}}),
		"bad origin":              oneHost(plan.Route{CORS: &plan.CORS{Origins: []match.String{{Kind: match.Regex, Value: "("}}}}),
		"CORS that ends a header": oneHost(plan.Route{CORS: &plan.CORS{Methods: []string{"GET\r\nx: y"}}}),
		"bad authority":           oneHost(plan.Route{Rewrite: &plan.Rewrite{Authority: "a b"}}),
	} {
		if _, err := Build(rt); err == nil {
			t.Errorf("%s: no error", name)
		} else if !strings.Contains(err.Error(), "route table t") {
			t.Errorf("%s: error %q does not name the table", name, err)
		}
	}
}

func TestConditions(t *testing.T) {
	header := func(name string, k match.Kind, v string, invert bool) plan.Match {
		return plan.Match{Headers: []plan.FieldMatch{{Name: name, Value: *str(k, v), Invert: invert}}}
	}
	query := func(name string, k match.Kind, v string, invert bool) plan.Match {
		return plan.Match{Query: []plan.FieldMatch{{Name: name, Value: *str(k, v), Invert: invert}}}
	}
	for _, tc := range []struct {
		name string
		m    plan.Match
		req  *message.Request
		want bool
	}{
		{"nothing asked", plan.Match{}, request("GET", "/"), true},
		{"path and method", plan.Match{Path: str(match.Exact, "/a"), Method: str(match.Exact, "GET")}, request("GET", "/a?x"), true},
		{"path but other method", plan.Match{Path: str(match.Exact, "/a"), Method: str(match.Exact, "GET")}, request("POST", "/a"), false},
		{"prefix is bytes", plan.Match{Path: str(match.Prefix, "/a")}, request("GET", "/ab"), true},
		{"segment is not", plan.Match{Path: str(match.Segment, "/a")}, request("GET", "/ab"), false},
		{"segment", plan.Match{Path: str(match.Segment, "/a/")}, request("GET", "/a"), true},
		{"scheme", plan.Match{Scheme: str(match.Exact, "https")}, request("GET", "/"), false},
		{"authority has its port", plan.Match{Authority: str(match.Exact, "a.example:8080")}, request("GET", "/"), true},
		{"header", header("x-canary", match.Exact, "true", false), request("GET", "/", "x-canary", "true"), true},
		{"header value differs", header("x-canary", match.Exact, "true", false), request("GET", "/", "x-canary", "True"), false},
		{"header absent", header("x-canary", match.Exact, "true", false), request("GET", "/"), false},
		{"second line of a header", header("x", match.Exact, "b", false), request("GET", "/", "x", "a", "y", "", "x", "b"), true},
		{"without: absent", header("x", match.Exact, "b", true), request("GET", "/"), true},
		{"without: other value", header("x", match.Exact, "b", true), request("GET", "/", "x", "a"), true},
		{"without: hidden in the second line", header("x", match.Exact, "b", true), request("GET", "/", "x", "a", "x", "b"), false},
		{"without: present", header("x", match.Present, "", true), request("GET", "/", "x", ""), false},
		{"present and empty", header("x", match.Present, "", false), request("GET", "/", "x", ""), true},
		{"host as a header", header("host", match.Prefix, "a.example", false), request("GET", "/"), true},
		{"method as a header", header(":method", match.Exact, "GET", false), request("GET", "/"), true},
		{"path as a header", header(":path", match.Exact, "/x", false), request("GET", "/x"), true},
		{"scheme as a header", header(":scheme", match.Exact, "http", true), request("GET", "/x"), false},
		{"upgrade absent", header("upgrade", match.Present, "", false), request("GET", "/"), false},
		{"query", query("a", match.Exact, "1", false), request("GET", "/?b=2&a=1"), true},
		{"query first value", query("a", match.Exact, "2", false), request("GET", "/?a=1&a=2"), false},
		{"query decoded", query("a b", match.Exact, "x y/z", false), request("GET", "/?a+b=x%20y%2fz"), true},
		{"query broken escape", query("a", match.Exact, "%zz%", false), request("GET", "/?a=%zz%"), true},
		{"query without value", query("a", match.Present, "", false), request("GET", "/?a"), true},
		{"query prefix of a name", query("ab", match.Present, "", false), request("GET", "/?a=b"), false},
		{"query longer name", query("a", match.Present, "", false), request("GET", "/?ab=1"), false},
		{"query absent", query("a", match.Present, "", false), request("GET", "/"), false},
		{"query inverted", query("a", match.Exact, "1", true), request("GET", "/?a=2"), true},
		{"query empty pairs", query("a", match.Exact, "", false), request("GET", "/?&&a=&"), true},
		{"query regex decoded", query("a", match.Regex, "[0-9 ]+", false), request("GET", "/?a=1+2"), true},
		{"tree all", plan.Match{Cond: &plan.Cond{All: []plan.Cond{{Path: str(match.Regex, "/a.*")}, {Method: str(match.Exact, "GET")}}}}, request("GET", "/ab"), true},
		{"tree any", plan.Match{Cond: &plan.Cond{Any: []plan.Cond{{Path: str(match.Exact, "/b")}, {Method: str(match.Exact, "PUT")}}}}, request("GET", "/a"), false},
		{"tree not", plan.Match{Cond: &plan.Cond{Not: &plan.Cond{Any: []plan.Cond{{Path: str(match.Exact, "/b")}}}}}, request("GET", "/a"), true},
		{"tree empty", plan.Match{Cond: &plan.Cond{}}, request("GET", "/a"), true},
		{"never", plan.Match{Path: &match.String{}}, request("GET", "/"), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := mustBuild(t, oneHost(plan.Route{Match: tc.m}))
			if got := table.Find([]byte("any"), tc.req).Route != nil; got != tc.want {
				t.Errorf("matches = %v, want %v", got, tc.want)
			}
			steps := table.Explain([]byte("any"), tc.req)
			if last := steps[len(steps)-1]; last.Matched != tc.want || last.Reason == "" {
				t.Errorf("Explain says %+v", last)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	origin := ident.Origin{Kind: "VirtualService", Namespace: "default", Name: "reviews", Rule: "http[0]", File: "r.yaml", Line: 7}
	table := mustBuild(t, &plan.RouteTable{Name: "9080", Otherwise: plan.Passthrough, Hosts: []plan.VirtualHost{
		{Name: "reviews:9080", Domains: []string{"reviews", "*.reviews"}, Routes: []plan.Route{
			{Name: "canary", Origin: origin, Match: plan.Match{Headers: []plan.FieldMatch{{Name: "x-canary", Value: *str(match.Exact, "true")}}}},
			{Name: "none", Match: plan.Match{Query: []plan.FieldMatch{{Name: "debug", Value: *str(match.Present, "")}}}},
			{Name: "tree", Match: plan.Match{Cond: &plan.Cond{Not: &plan.Cond{Method: str(match.Exact, "GET")}}}},
			{Name: "host", Match: plan.Match{Headers: []plan.FieldMatch{{Name: "host", Value: *str(match.Exact, "b.example")}}}}, // which is no field
			{Name: "plain", Match: plan.Match{Headers: []plan.FieldMatch{{Name: "upgrade", Value: *str(match.Exact, "h2c")}}}},
			{Name: "default"},
			{Name: "unreached"},
		}},
	}})
	got := table.Explain([]byte("reviews"), request("GET", "/x", "x-canary", "no", "x-canary", "0"))
	want := []Step{
		{Host: "reviews:9080", Index: -1, Matched: true, Reason: `host "reviews" is named exactly`},
		{Host: "reviews:9080", Index: 0, Name: "canary", Origin: origin, Reason: `header x-canary is "no" and "0", want exact "true"`},
		{Host: "reviews:9080", Index: 1, Name: "none", Reason: `query parameter debug is absent, want present`},
		{Host: "reviews:9080", Index: 2, Name: "tree", Reason: `path "/x" with method GET does not satisfy not (method exact "GET")`},
		{Host: "reviews:9080", Index: 3, Name: "host", Reason: `header host is "a.example:8080", want exact "b.example"`},
		{Host: "reviews:9080", Index: 4, Name: "plain", Reason: `header upgrade is absent, want exact "h2c"`},
		{Host: "reviews:9080", Index: 5, Name: "default", Matched: true, Reason: "it has no conditions"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("Explain (-want +got):\n%s", d)
	}
	if s := table.Explain([]byte("x.reviews"), request("GET", "/"))[0]; s.Reason != `host "x.reviews": most specific domain is "*.reviews"` {
		t.Errorf("wildcard: %s", s.Reason)
	}
	if s := table.Explain([]byte("other"), request("GET", "/")); len(s) != 1 || s[0].Matched || s[0].Reason != `no host of table 9080 names "other": it is dialled as written` {
		t.Errorf("unknown host: %+v", s)
	}
}

func TestApplyRewrite(t *testing.T) {
	for _, tc := range []struct {
		kind                        match.Kind
		prefix, rewrite, path, want string // want "" for refused
	}{
		// Gateway API, HTTPPathModifier.ReplacePrefixMatch.
		{match.Segment, "/foo", "/xyz", "/foo/bar", "/xyz/bar"},
		{match.Segment, "/foo", "/xyz/", "/foo/bar", "/xyz/bar"},
		{match.Segment, "/foo/", "/xyz", "/foo/bar", "/xyz/bar"},
		{match.Segment, "/foo/", "/xyz/", "/foo/bar", "/xyz/bar"},
		{match.Segment, "/foo", "/xyz", "/foo", "/xyz"},
		{match.Segment, "/foo", "/xyz", "/foo/", "/xyz/"},
		{match.Segment, "/foo", "/", "/foo/bar", "/bar"},
		{match.Segment, "/foo", "/", "/foo/", "/"},
		{match.Segment, "/foo", "/", "/foo", "/"},
		// Istio uri.prefix with rewrite.
		{match.Prefix, "/api", "/", "/api/x", "/x"},
		{match.Prefix, "/api/", "/", "/api/x", "/x"},
		{match.Prefix, "/api/", "/v2", "/api/x", "/v2x"},
		{match.Prefix, "/", "/v2/", "/x", "/v2/x"},
		{match.Prefix, "/api", "v2", "/api/x", "/v2/x"},
		{match.Prefix, "/x", "/", "/x../admin", ""},
		{match.Prefix, "/x", "/a/", "/x./admin", ""},
		{match.Prefix, "/x%2", "/a", "/x%2Fb", "/aFb"},
		{match.Prefix, "/x%", "/a", "/x%2Fb", "/a2Fb"},
		{match.Prefix, "/a", "/b?c#d e%", "/a/x", "/b%3Fc%23d%20e%25/x"},
		{match.Exact, "/a", "/b", "/a", "/b"},
		{match.Regex, "/a.*", "/b", "/abc/d", "/b"},
		{match.Exact, "/a", "/x/../b", "/a", "/b"},
		{match.Exact, "*", "/x", "*", "*"},
		// No condition on the path: Istio's is then the prefix "/".
		{match.Never, "", "/", "/x/y", "/x/y"},
		{match.Never, "", "/v2/", "/x/y", "/v2/x/y"},
		{match.Never, "", "/v2/", "/", "/v2/"},
		{match.Never, "", "/v2", "/x", "/v2x"},
	} {
		path := str(tc.kind, tc.prefix)
		if tc.kind == match.Never {
			path = nil
		}
		table := mustBuild(t, oneHost(plan.Route{Match: plan.Match{Path: path}, Rewrite: &plan.Rewrite{Path: tc.rewrite, Authority: "b.example:81"}}))
		req := request("GET", tc.path)
		rt := table.Find(nil, req).Route
		if rt == nil {
			t.Fatalf("%+v does not match", tc)
		}
		buf, ok := rt.Rewriter(0).Apply(req, make([]byte, 0, 64))
		if ok != (tc.want != "") {
			t.Errorf("%+v: ok = %v (%s)", tc, ok, buf)
		}
		if !ok {
			if string(req.Path) != tc.path || string(req.Host) != "a.example" || len(buf) != 0 {
				t.Errorf("%+v: refused, but changed to %s %s", tc, req.Host, req.Path)
			}
			continue
		}
		if string(req.Path) != tc.want || string(req.Authority) != "b.example:81" || string(req.Host) != "b.example" || req.Port != 81 {
			t.Errorf("%+v: got %s %s", tc, req.Authority, req.Path)
		}
	}
}

func TestRewriteKeeps(t *testing.T) {
	table := mustBuild(t, oneHost(plan.Route{}))
	req := request("GET", "/a")
	if out, ok := table.Find(nil, req).Route.Rewriter(0).Apply(req, nil); !ok || out != nil || string(req.Path) != "/a" {
		t.Errorf("a route without a rewrite changed something")
	}
}

func TestAppendLocation(t *testing.T) {
	v6 := request("GET", "/a")
	v6.Authority, v6.Host, v6.Port = []byte("[fd00::1]:8080"), []byte("fd00::1"), 8080
	plain := request("GET", "/a?q=1")
	plain.Authority, plain.Port = plain.Host, 0
	explicit80 := request("GET", "/a")
	explicit80.Authority, explicit80.Port = []byte("a.example:80"), 80
	tls := request("GET", "/a")
	tls.Scheme = []byte("https")
	for _, tc := range []struct {
		req  *message.Request
		m    *match.String
		rd   plan.Redirect
		want string
	}{
		{plain, nil, plan.Redirect{Scheme: "https"}, "https://a.example/a?q=1"},
		{request("GET", "/a"), nil, plan.Redirect{Scheme: "https"}, "https://a.example/a"},
		{request("GET", "/a"), nil, plan.Redirect{Scheme: "https", Port: 8443}, "https://a.example:8443/a"},
		{request("GET", "/a"), nil, plan.Redirect{Port: 80}, "http://a.example/a"},
		{request("GET", "/a"), nil, plan.Redirect{}, "http://a.example/a"},
		{request("GET", "/a"), nil, plan.Redirect{KeepPort: true}, "http://a.example:8080/a"},
		{request("GET", "/a"), nil, plan.Redirect{KeepPort: true, Port: 81}, "http://a.example:81/a"},
		{request("GET", "/a"), nil, plan.Redirect{KeepPort: true, Scheme: "https"}, "https://a.example:8080/a"},
		{explicit80, nil, plan.Redirect{KeepPort: true, Scheme: "https"}, "https://a.example/a"},
		{explicit80, nil, plan.Redirect{KeepPort: true}, "http://a.example/a"},
		{request("GET", "/a"), nil, plan.Redirect{KeepPort: true, Authority: "b.example"}, "http://b.example:8080/a"},
		{request("GET", "/a"), nil, plan.Redirect{KeepPort: true, Authority: "b.example:81"}, "http://b.example:81/a"},
		{tls, nil, plan.Redirect{Port: 443}, "https://a.example/a"},
		{tls, nil, plan.Redirect{Port: 80}, "https://a.example:80/a"},
		{request("GET", "/a"), nil, plan.Redirect{Authority: "b.example"}, "http://b.example/a"},
		{request("GET", "/a"), nil, plan.Redirect{Authority: "b.example:81", Scheme: "https"}, "https://b.example:81/a"},
		{request("GET", "/a/b"), str(match.Segment, "/a"), plan.Redirect{Path: "/c"}, "http://a.example/c/b"},
		{request("GET", "/a/b"), str(match.Segment, "/a"), plan.Redirect{Path: "/c", WholePath: true}, "http://a.example/c"},
		{request("GET", "/a/b?x"), str(match.Regex, "/a/b"), plan.Redirect{Path: "/c?y=1"}, "http://a.example/c?y=1"},
		{request("GET", "/a/b?"), nil, plan.Redirect{}, "http://a.example/a/b?"},
		{request("GET", "/a..\r"), str(match.Prefix, "/a"), plan.Redirect{Path: "/"}, ""},
		{v6, nil, plan.Redirect{KeepPort: true}, "http://[fd00::1]:8080/a"},
	} {
		table := mustBuild(t, oneHost(plan.Route{Match: plan.Match{Path: tc.m}, Redirect: &tc.rd}))
		got, ok := table.Find(nil, tc.req).Route.Redirect().AppendLocation(nil, tc.req)
		if ok != (tc.want != "") || string(got) != tc.want {
			t.Errorf("%+v of %s: %q, %v; want %q", tc.rd, tc.req.Path, got, ok, tc.want)
		}
	}
}

func TestPick(t *testing.T) {
	for _, tc := range []struct {
		weights []uint32
		want    []float64 // shares; nil: -1
	}{
		{[]uint32{90, 10}, []float64{.9, .1}},
		{[]uint32{0, 1, 0, 3}, []float64{0, .25, 0, .75}},
		{[]uint32{0}, []float64{1}},
		{[]uint32{0, 0}, nil},
		{nil, nil},
		{[]uint32{1, 2, 3, 4, 90}, []float64{.01, .02, .03, .04, .9}},
		{[]uint32{1, 999}, []float64{.001, .999}},
		{[]uint32{1 << 31, 1 << 31, 1 << 31}, []float64{1. / 3, 1. / 3, 1. / 3}},
	} {
		var r plan.Route
		for _, w := range tc.weights {
			r.Forward = append(r.Forward, plan.Destination{Weight: w})
		}
		rt := mustBuild(t, oneHost(r)).Find(nil, request("GET", "/")).Route
		const n = 100_000
		got := make([]float64, len(tc.weights))
		rnd := rand.New(rand.NewPCG(1, 2))
		for range n {
			i := rt.Pick(rnd.Uint64())
			if tc.want == nil {
				if i != -1 {
					t.Fatalf("%v: picked %d", tc.weights, i)
				}
				continue
			}
			got[i]++
		}
		chi, free := 0.0, -1
		for i := range tc.want {
			if tc.want[i] == 0 {
				if got[i] != 0 {
					t.Errorf("%v: destination %d has no weight and gets requests", tc.weights, i)
				}
				continue
			}
			d := got[i] - n*tc.want[i]
			chi += d * d / (n * tc.want[i])
			free++
		}
		// The 99.99 % points of chi-squared: a fair split of this seed fails one time in 10,000.
		if free > 0 && chi > [...]float64{0, 15.14, 18.42, 21.11, 23.51}[free] {
			t.Errorf("%v: shares %v, want %v: chi-squared %.1f at %d degrees of freedom", tc.weights, got, tc.want, chi, free)
		}
		if tc.want != nil && (rt.Pick(0) < 0 || rt.Pick(^uint64(0)) < 0) {
			t.Errorf("%v: the ends of the range pick nothing", tc.weights)
		}
	}
}

var segments = []string{"a", "b", "ab", "A", ""}

func randomPath(rnd *rand.Rand) string {
	var b strings.Builder
	for range 1 + rnd.IntN(3) {
		b.WriteString("/" + segments[rnd.IntN(len(segments))])
	}
	return b.String()
}

func randomString(rnd *rand.Rand, v string) *match.String {
	switch rnd.IntN(9) {
	case 0:
		return &match.String{Kind: match.Regex, Value: []string{"/a.*", "/a|/b", "(/a)+", "(?i)/a/b?", "^/ab?(/.*)?$", "/(a|b)/a*", ".*b", "(/a/)b*"}[rnd.IntN(8)]}
	case 1:
		return &match.String{Kind: match.Suffix, Value: v[len(v)/2:]}
	case 2, 3:
		return &match.String{Kind: match.Exact, Value: v, IgnoreCase: rnd.IntN(3) == 0}
	case 4, 5:
		return &match.String{Kind: match.Segment, Value: v}
	case 6:
		return &match.String{Kind: match.NonEmpty}
	default:
		return &match.String{Kind: match.Prefix, Value: v[:rnd.IntN(len(v)+1)], IgnoreCase: rnd.IntN(3) == 0}
	}
}

func randomRoutes(rnd *rand.Rand) []plan.Route {
	routes := make([]plan.Route, rnd.IntN(30))
	for i := range routes {
		m := &routes[i].Match
		if rnd.IntN(5) > 0 {
			m.Path = randomString(rnd, randomPath(rnd))
		}
		if rnd.IntN(3) == 0 {
			m.Method = str(match.Exact, []string{"GET", "PUT"}[rnd.IntN(2)])
		}
		if rnd.IntN(3) == 0 {
			m.Headers = append(m.Headers, plan.FieldMatch{Name: "x", Value: *randomString(rnd, "/a"), Invert: rnd.IntN(2) == 0})
		}
		if rnd.IntN(3) == 0 {
			m.Query = append(m.Query, plan.FieldMatch{Name: "q", Value: *str(match.Exact, "1"), Invert: rnd.IntN(2) == 0})
		}
		if rnd.IntN(5) == 0 {
			m.Cond = &plan.Cond{Any: []plan.Cond{{Path: randomString(rnd, randomPath(rnd))}, {Not: &plan.Cond{Method: str(match.Exact, "GET")}}}}
		}
	}
	return routes
}

func randomRequest(rnd *rand.Rand) *message.Request {
	path := randomPath(rnd)
	if rnd.IntN(2) == 0 {
		path += []string{"?q=1", "?q=2&q=1", "?p&q=%31", "?"}[rnd.IntN(4)]
	}
	r := request([]string{"GET", "PUT", "POST"}[rnd.IntN(3)], path)
	for range rnd.IntN(3) {
		r.Fields.Add("x", []byte([]string{"/a", "/b", ""}[rnd.IntN(3)]))
	}
	return r
}

// obvious is plan.Match as its documentation says it, with nothing shared with the package but match.String.
func obvious(m *plan.Match, r *message.Request) bool {
	one := func(s *match.String, v []byte) bool {
		if s == nil {
			return true
		}
		c, err := s.Compile()
		return err == nil && c.Match(v)
	}
	if !one(m.Path, r.Path) || !one(m.Method, r.Method) {
		return false
	}
	for _, h := range m.Headers {
		any := false
		for _, f := range r.Fields {
			any = any || string(f.Name) == h.Name && one(&h.Value, f.Value)
		}
		if any == h.Invert {
			return false
		}
	}
	for _, q := range m.Query {
		holds := false
		for _, kv := range strings.Split(string(r.Query), "&") {
			if k, v, _ := strings.Cut(kv, "="); k == q.Name {
				holds = one(&q.Value, []byte(strings.ReplaceAll(v, "%31", "1")))
				break
			}
		}
		if holds == q.Invert {
			return false
		}
	}
	var tree func(c *plan.Cond) bool
	tree = func(c *plan.Cond) bool {
		if c == nil {
			return true
		}
		any := len(c.Any) == 0
		for i := range c.Any {
			any = any || tree(&c.Any[i])
		}
		for i := range c.All {
			any = any && tree(&c.All[i])
		}
		return any && one(c.Path, r.Path) && one(c.Method, r.Method) && (c.Not == nil || !tree(c.Not))
	}
	return tree(m.Cond)
}

func bigTable(n int) *plan.RouteTable {
	routes := make([]plan.Route, n)
	for i := range routes {
		routes[i].Match = plan.Match{Path: str(match.Segment, fmt.Sprintf("/svc-%d/api", i)), Method: str(match.Exact, "GET")}
		if i%2 == 0 {
			routes[i].Match.Path = str(match.Exact, fmt.Sprintf("/svc-%d/api/x", i))
		}
		routes[i].Rewrite = &plan.Rewrite{Path: "/api", Authority: "b"}
		routes[i].Forward = []plan.Destination{{Cluster: "a", Weight: 9}, {Cluster: "b", Weight: 1}}
	}
	rt := oneHost(routes...)
	rt.Hosts[0].Domains = []string{"*.example"}
	return rt
}

func TestFindDoesNotAllocate(t *testing.T) {
	table := mustBuild(t, bigTable(1000))
	query := mustBuild(t, oneHost(plan.Route{Match: plan.Match{Query: []plan.FieldMatch{{Name: "q", Value: *str(match.Exact, "a b")}}}}))
	req, encoded := request("GET", "/svc-999/api/x", "x", "y"), request("GET", "/?p&q=a+b")
	original := req.Path
	buf := make([]byte, 0, 256)
	if n := testing.AllocsPerRun(200, func() {
		req.Path = original
		rt := table.Find([]byte("a.b.example"), req).Route
		rt.Pick(42)
		if _, ok := rt.Rewriter(0).Apply(req, buf); !ok {
			t.Fatal("not rewritten")
		}
		if query.Find(nil, encoded).Route == nil {
			t.Fatal("query does not match")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// sizes are the numbers of rules, or hosts, over which a decision is to cost the same.
var sizes = []int{1, 100, 10_000}

// inTurn runs b for each way to ask a table of n: for one key all the time, for 64 that lie all over it in turn, and for all of
// them. What the last costs more is memory of the table that is no longer in the nearest cache; the work is the same.
func inTurn(b *testing.B, what string, n int, key func(i int) string, ask func(key []byte) bool) {
	shuffled := rand.New(rand.NewPCG(1, 2)).Perm(n)
	for _, how := range []struct {
		name string
		keys []int
	}{{"one", shuffled[:1]}, {"64", shuffled[:min(n, 64)]}, {"all", shuffled}} {
		var text []byte // one behind the other: reading the keys is not what is measured
		keys := make([][]byte, len(how.keys))
		for _, i := range how.keys {
			text = append(text, key(i)...)
		}
		for at, i := range how.keys {
			size := len(key(i))
			keys[at], text = text[:size:size], text[size:]
		}
		b.Run(fmt.Sprintf("%s/%s/%d", what, how.name, n), func(b *testing.B) {
			b.ReportAllocs()
			for at := 0; b.Loop(); {
				if !ask(keys[at]) {
					b.Fatalf("wrong answer for %s", keys[at])
				}
				if at++; at == len(keys) {
					at = 0
				}
			}
		})
	}
}

func BenchmarkFind(b *testing.B) {
	for _, kind := range []match.Kind{match.Exact, match.Prefix, match.Segment} {
		for _, n := range sizes {
			routes := make([]plan.Route, n)
			for i := range routes {
				routes[i].Match = plan.Match{Path: str(kind, fmt.Sprintf("/svc-%d/api", i)), Method: str(match.Exact, "GET")}
			}
			table, req, host := mustBuild(b, oneHost(routes...)), request("GET", "/"), []byte("reviews")
			inTurn(b, kind.String(), n, func(i int) string {
				if kind == match.Exact {
					return routes[i].Match.Path.Value
				}
				return routes[i].Match.Path.Value + "/x"
			}, func(path []byte) bool {
				req.Path = path
				return table.Find(host, req).Route != nil
			})
		}
	}
}

func BenchmarkHost(b *testing.B) {
	for _, n := range sizes {
		rt := &plan.RouteTable{}
		for i := range n {
			name := fmt.Sprintf("service-%d.default.svc.cluster.local", i)
			rt.Hosts = append(rt.Hosts, plan.VirtualHost{Name: name, Domains: []string{name, fmt.Sprintf("*.wild-%d.example", i)}})
		}
		table := mustBuild(b, rt)
		found := func(host []byte) bool { return table.Host(host) != nil }
		inTurn(b, "exact", n, func(i int) string { return rt.Hosts[i].Name }, found)
		inTurn(b, "wildcard", n, func(i int) string { return fmt.Sprintf("a.b.wild-%d.example", i) }, found)
		inTurn(b, "none", n, func(i int) string { return fmt.Sprintf("www.elsewhere-%d.example", i) }, func(host []byte) bool { return table.Host(host) == nil })
	}
}

func FuzzParameter(f *testing.F) {
	f.Add("a=1&b=%20+", "b")
	f.Fuzz(func(t *testing.T, query, name string) {
		v, s, found := parameter([]byte(query), name)
		if !found && v != nil {
			t.Errorf("a value of a parameter that is not there: %q", v)
		}
		if len(v) > len(query) {
			t.Errorf("decoding grew %q to %q", query, v)
		}
		s.free()
	})
}

package route

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
)

// TestAgrees compares Find and Explain with the obvious way: look at every domain of every host, and ask every route of the
// best one in order. A run is 20,000 pairs of table and request; with MALHA_LONG=1 it is 1,000,000.
func TestAgrees(t *testing.T) {
	seeds, found := 400, 0
	switch {
	case os.Getenv("MALHA_LONG") != "":
		seeds = 20_000
	case testing.Short():
		seeds = 50
	}
	for seed := range seeds {
		rnd := rand.New(rand.NewPCG(uint64(seed), 7))
		rt := randomTable(rnd)
		table := mustBuild(t, rt)
		for range 50 {
			req := randomRequest(rnd)
			req.Host = []byte(randomHost(rnd))
			host, index := linear(rt, string(req.Host)), -1
			if host != nil {
				for i := range host.Routes {
					if obvious(&host.Routes[i].Match, req) {
						index = i
						found++
						break
					}
				}
			}
			res := table.Find(req.Host, req)
			var gotHost *plan.VirtualHost
			got := -1
			if res.Host != nil {
				gotHost = res.Host.Plan()
			}
			if res.Route != nil {
				got = res.Route.Index()
			}
			if gotHost != host || got != index {
				t.Fatalf("seed %d: %s %s%s?%s %s: route %d of %v, want %d of %v", seed, req.Method, req.Host, req.Path, req.Query, req.Fields, got, gotHost, index, host)
			}
			steps := table.Explain(req.Host, req)
			last := steps[len(steps)-1]
			if last.Matched != (index != -1 || host != nil && len(host.Routes) == 0) || index != -1 && last.Index != index {
				t.Fatalf("seed %d: Explain ends with %+v, want route %d", seed, last, index)
			}
		}
	}
	if found < seeds*10 {
		t.Errorf("only %d of %d requests had a route: the comparison says little", found, seeds*50)
	}
}

var labels = []string{"a", "b", "c"}

func randomHost(rnd *rand.Rand) string {
	parts := make([]string, 1+rnd.IntN(3))
	for i := range parts {
		parts[i] = labels[rnd.IntN(len(labels))]
	}
	return strings.Join(parts, ".")
}

func randomTable(rnd *rand.Rand) *plan.RouteTable {
	rt := &plan.RouteTable{Name: "t"}
	taken := map[string]bool{}
	for i := range 1 + rnd.IntN(4) {
		h := plan.VirtualHost{Name: fmt.Sprint(i), Routes: randomRoutes(rnd)}
		for range 1 + rnd.IntN(3) {
			d := randomHost(rnd)
			switch rnd.IntN(4) {
			case 0:
				d = "*"
			case 1:
				d = "*." + d
			}
			if !taken[d] {
				taken[d] = true
				h.Domains = append(h.Domains, d)
			}
		}
		rt.Hosts = append(rt.Hosts, h)
	}
	return rt
}

// linear finds the host as the documentation of plan.VirtualHost says it.
func linear(rt *plan.RouteTable, host string) *plan.VirtualHost {
	var best *plan.VirtualHost
	rank := -1
	for i := range rt.Hosts {
		for _, d := range rt.Hosts[i].Domains {
			r := -1
			switch {
			case d == host:
				r = 1000
			case d == "*":
				r = 0
			case strings.HasPrefix(d, "*.") && strings.HasSuffix(host, d[1:]) && len(host) > len(d)-1:
				r = len(d)
			}
			if r > rank {
				best, rank = &rt.Hosts[i], r
			}
		}
	}
	return best
}

func TestLiteralPrefix(t *testing.T) {
	for expr, want := range map[string]string{
		"/api/v[0-9]+/.*": "/api/v", "/a": "/a", "^/a/(b|c)$": "/a/", "(/a)/b": "/a", "(?i)/a": "", "/a|/b": "/", "(/a)?b": "", "/ab*": "/a", "/ab?c": "/a",
		"/a{2}": "/", ".*": "", "": "", "(": "", "(^/a)b": "/a", "^": "", "(/a)+": "", "/a\uFFFDb": "/a",
	} {
		if got := literalPrefix(expr); got != want {
			t.Errorf("%q begins with %q, want %q", expr, got, want)
		}
	}
}

// Whatever an expression is, the index never hides a path that it matches.
func FuzzLiteralPrefix(f *testing.F) {
	f.Add("/a(b|c)*", "/abc")
	f.Add("/\uFFFD", "/\xff")
	f.Fuzz(func(t *testing.T, expr, path string) {
		m, err := match.String{Kind: match.Regex, Value: expr}.Compile()
		if err != nil {
			return
		}
		if p := literalPrefix(expr); m.Match([]byte(path)) && !strings.HasPrefix(path, p) {
			t.Errorf("%q matches %q, which does not begin with %q", expr, path, p)
		}
	})
}

// No rule is lost whatever its literal is, also one that no path can be.
func TestLiteralsOfAllBytes(t *testing.T) {
	var routes []plan.Route
	for i := range 512 {
		routes = append(routes, plan.Route{Match: plan.Match{Path: str(match.Exact, "/"+string([]byte{byte(i / 2), byte(i)}))}})
	}
	table := mustBuild(t, oneHost(routes...))
	for i := range routes {
		req := request("GET", "/")
		req.Path = []byte(routes[i].Match.Path.Value)
		if got := table.Find(nil, req).Route; got == nil || got.Plan().Match.Path.Value != string(req.Path) {
			t.Fatalf("%q is not found", req.Path)
		}
	}
}

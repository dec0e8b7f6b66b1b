package route

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

func nothingWrong(*plan.VirtualHost) error { return nil }

func pack(t *testing.T, rt *plan.RouteTable) packed.Routes {
	t.Helper()
	p, err := packed.Pack(rt)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A packed table decides as one that is not.
func TestPackedAgrees(t *testing.T) {
	for seed := range 50 {
		rnd := rand.New(rand.NewPCG(uint64(seed), 8))
		rt := randomTable(rnd)
		open := mustBuild(t, rt)
		closed, err := BuildPacked(pack(t, rt), nothingWrong)
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			req := randomRequest(rnd)
			req.Host = []byte(randomHost(rnd))
			want, got := open.Find(req.Host, req), closed.Find(req.Host, req)
			if (got.Host == nil) != (want.Host == nil) || (got.Route == nil) != (want.Route == nil) {
				t.Fatalf("seed %d: %s %s%s: %+v, want %+v", seed, req.Method, req.Host, req.Path, got, want)
			}
			if got.Host != nil && (got.Host.Name() != want.Host.Name() || got.Route != nil && got.Route.Index() != want.Route.Index()) {
				t.Fatalf("seed %d: %s %s%s leads to host %s", seed, req.Method, req.Host, req.Path, got.Host.Name())
			}
			if d := cmp.Diff(open.Explain(req.Host, req), closed.Explain(req.Host, req)); d != "" {
				t.Fatalf("seed %d: -open +packed:\n%s", seed, d)
			}
		}
	}
}

// Whoever comes first opens a host, for all: there is one of each of its routes. Its name opens nothing.
func TestPackedHostIsOpenedOnce(t *testing.T) {
	table, err := BuildPacked(pack(t, bigTable(20)), nothingWrong)
	if err != nil {
		t.Fatal(err)
	}
	h := table.Host([]byte("a.example"))
	if h.Name() != "h" || h.opened.Load() != nil {
		t.Fatalf("%q was opened for its name", h.Name())
	}
	var all sync.WaitGroup
	found := make([]*Route, 16)
	kept := make([]any, len(found))
	for i := range found {
		all.Go(func() {
			found[i] = table.Find([]byte("a.example"), request("GET", "/svc-7/api/x")).Route
			kept[i] = h.Keep(func() any { return new(int) })
		})
	}
	all.Wait()
	for i := range found {
		if found[i] == nil || found[i] != h.Route(7) || kept[i] != kept[0] {
			t.Fatalf("%d found %p and kept %p, want %p and %p", i, found[i], kept[i], h.Route(7), kept[0])
		}
	}
}

// What is wrong with a packed host is found before its first request.
func TestBuildPackedRefuses(t *testing.T) {
	host := func(name, domain string, routes ...plan.Route) plan.VirtualHost {
		return plan.VirtualHost{Name: name, Domains: []string{domain}, Routes: routes}
	}
	for want, hosts := range map[string][]plan.VirtualHost{
		"route table t: host b: domain \"a\" stands also in host a": {host("a", "a"), host("b", "a")},
		"route table t: host a: domain \"*a\"":                      {host("a", "*a")},
		"route table t: host a: route 0":                            {host("a", "a", plan.Route{Match: plan.Match{Path: str(match.Regex, "(")}})},
		"route table t: host bad: what check says":                  {host("a", "a"), host("bad", "b")},
	} {
		_, err := BuildPacked(pack(t, &plan.RouteTable{Name: "t", Hosts: hosts}), func(h *plan.VirtualHost) error {
			if h.Name == "bad" {
				return errors.New("what check says")
			}
			return nil
		})
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

package delta

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
)

// longest is the obvious way to the length of a longest common subsequence.
func longest(a, b string) int {
	if a == "" || b == "" {
		return 0
	}
	if a[0] == b[0] {
		return 1 + longest(a[1:], b[1:])
	}
	return max(longest(a[1:], b), longest(a, b[1:]))
}

func TestCommon(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	word := func() string {
		b := make([]byte, r.IntN(8))
		for i := range b {
			b[i] = "abc"[r.IntN(3)]
		}
		return string(b)
	}
	for range 5000 {
		a, b := word(), word()
		pairs := common(strings.Split(a, ""), strings.Split(b, ""))
		if len(pairs) != longest(a, b) {
			t.Fatalf("%q and %q: %v; want %d pairs", a, b, pairs, longest(a, b))
		}
		for i, p := range pairs {
			if a[p[0]] != b[p[1]] || i > 0 && (p[0] <= pairs[i-1][0] || p[1] <= pairs[i-1][1]) {
				t.Fatalf("%q and %q: %v is no common subsequence", a, b, pairs)
			}
		}
	}
}

// proxyWith returns a plan with one virtual host.
func proxyWith(name string, routes ...plan.Route) *plan.Plan {
	return &plan.Plan{
		Node:   plan.Node{Name: ident.Name{Namespace: "default", Name: name}},
		Routes: []plan.RouteTable{{Name: "80", Hosts: []plan.VirtualHost{{Name: "web:80", Domains: []string{"web"}, Routes: routes}}}},
	}
}

func rule(path string, timeout plan.Duration) plan.Route {
	return plan.Route{Name: path, Timeout: timeout, Match: plan.Match{Path: &match.String{Kind: match.Exact, Value: path}},
		Origin: ident.Origin{Kind: "VirtualService", Namespace: "default", Name: "web"}}
}

func TestBetween(t *testing.T) {
	a, b, c := rule("/a", 0), rule("/b", 0), rule("/c", 0)
	before := []*plan.Plan{proxyWith("one", a, b, c), proxyWith("two", a, b, c), proxyWith("gone", a)}
	slow := rule("/b", 1e9)
	after := []*plan.Plan{proxyWith("one", c, a, slow), proxyWith("two", c, a, slow), proxyWith("new", a)}
	got, err := Between(before, after)
	if err != nil {
		t.Fatal(err)
	}
	name := func(s string) ident.Name { return ident.Name{Namespace: "default", Name: s} }
	want := []Group{
		{Proxies: []ident.Name{name("one"), name("two")}, Changes: []Change{
			{Kind: "route", Name: "web:80 /c", Action: Moved, Origin: c.Origin, Fields: []Field{{"place", "2", "0"}}},
			{Kind: "route", Name: "web:80 /b", Action: Changed, Origin: c.Origin, Fields: []Field{{"timeout", "", "1s"}}},
		}},
		{Proxies: []ident.Name{name("gone")}, Changes: []Change{{Kind: "proxy", Name: "default/gone", Action: Removed}}},
		{Proxies: []ident.Name{name("new")}, Changes: []Change{{Kind: "proxy", Name: "default/new", Action: Added}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, p := range before {
		p.Routes[0].Hosts[0].Routes[0].Origin.Line = 7 // where a rule stands is no difference
	}
	if got, err = Between(before, before); err != nil || len(got) > 0 {
		t.Errorf("between equals: %v, %v", got, err)
	}
}

// TestPiecesOfTheEdge: doors by server name, certificates and rate limits are compared, and no key is told.
func TestPiecesOfTheEdge(t *testing.T) {
	with := func(key, certificate, secret string, requests uint32) []*plan.Plan {
		return []*plan.Plan{{
			Node: plan.Node{Name: ident.Name{Namespace: "edge", Name: "gate"}},
			Listeners: []plan.Listener{{Name: "edge|443", ServerNames: []plan.ServerName{
				{Names: []string{"a.example", "b.example"}, TLS: &plan.ServerTLS{Mode: plan.ServeSimple, Secrets: []string{secret}}},
				{Names: []string{"c.example"}, TCP: []plan.Destination{{Cluster: "c"}}},
			}}},
			Secrets: []plan.Secret{{Name: "edge/cert", Certificate: []byte(certificate), Key: []byte(key)}},
			Limits:  []plan.RateLimit{{Name: "RateLimit/edge/l", Rules: []plan.RateLimitRule{{Requests: requests, Per: 1e9}}}},
		}}
	}
	got, err := Between(with("KEY ONE", "one", "edge/cert", 10), with("KEY TWO", "two", "edge/other", 20))
	if err != nil || len(got) != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	want := []Change{
		{Kind: "listener", Name: "edge|443", Action: Changed, Fields: []Field{
			{Path: "serverNames[a.example b.example].tls.secrets[edge/cert]", Old: "edge/cert"}, {Path: "serverNames[a.example b.example].tls.secrets[edge/other]", New: "edge/other"},
		}},
		{Kind: "limit", Name: "RateLimit/edge/l", Action: Changed, Fields: []Field{{"rules[0].requests", "10", "20"}}},
		{Kind: "secret", Name: "edge/cert", Action: Changed, Fields: []Field{{"certificate", "sha256:7692c3ad3540bb80", "sha256:3fc4ccfe745870e2"}}},
	}
	if d := cmp.Diff(want, got[0].Changes); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if text := fmt.Sprintf("%+v", got); strings.Contains(text, "KEY") {
		t.Errorf("a key is told: %s", text)
	}
	redacted := with("(private key)", "one", "edge/cert", 10)
	if got, err := Between(with("KEY ONE", "one", "edge/cert", 10), redacted); err != nil || len(got) > 0 {
		t.Errorf("a plan with its key taken out is another: %v, %v", got, err)
	}
}

// TestCertificatesInFiles: a folder of manifests with its certificates means the same wherever it lies.
func TestCertificatesInFiles(t *testing.T) {
	in := func(folder, certificate string) []*plan.Plan {
		name := "file:" + folder + "/tls/cert.pem," + folder + "/tls/key.pem"
		return []*plan.Plan{{
			Node: plan.Node{Name: ident.Name{Namespace: "edge", Name: "gate"}},
			Listeners: []plan.Listener{{Name: "edge|443", ServerNames: []plan.ServerName{
				{Names: []string{"a.example"}, TLS: &plan.ServerTLS{Mode: plan.ServeSimple, Secrets: []string{name}}},
			}}},
			Clusters: []plan.Cluster{{Name: "c", Originate: &plan.ClientTLS{Secret: name}}},
			Secrets:  []plan.Secret{{Name: name, Certificate: []byte(certificate), Origin: ident.Origin{File: folder + "/gateway.yaml"}}},
		}}
	}
	if got, err := Between(in("mesh", "one"), in("/home/me/mesh", "one")); err != nil || len(got) > 0 {
		t.Errorf("the same certificate elsewhere: %+v, %v", got, err)
	}
	got, err := Between(in("mesh", "one"), in("mesh2", "two"))
	if err != nil || len(got) != 1 || len(got[0].Changes) != 1 || got[0].Changes[0].Name != "file:tls/cert.pem,tls/key.pem" {
		t.Errorf("another certificate: %+v, %v", got, err)
	}
}

func TestSeenFrom(t *testing.T) {
	for _, c := range []struct{ folder, file, want string }{
		{"mesh", "mesh/tls/a.pem", "tls/a.pem"},
		{"/home/me/mesh", "/home/me/mesh/tls/a.pem", "tls/a.pem"},
		{".", "tls/a.pem", "tls/a.pem"},
		{"mesh", "tls/a.pem", "../tls/a.pem"},
		{"/home/me/mesh", "/home/me/tls/a.pem", "../tls/a.pem"},
		{"../mesh", "../tls/a.pem", "../tls/a.pem"},
		{".", "../tls/a.pem", "../tls/a.pem"},
		{"mesh", "/etc/a.pem", "/etc/a.pem"},
		{"/home/me/mesh", "/etc/a.pem", "/etc/a.pem"},
		{"/", "/etc/a.pem", "/etc/a.pem"},
	} {
		if got := seenFrom(c.folder, c.file); got != c.want {
			t.Errorf("%s from %s: %s, want %s", c.file, c.folder, got, c.want)
		}
	}
}

// TestReplicas: endpoints of one workload are as many as they are.
func TestReplicas(t *testing.T) {
	with := func(weights ...uint32) []*plan.Plan {
		es := plan.Endpoints{Cluster: "web"}
		for i, w := range weights {
			es.Endpoints = append(es.Endpoints, plan.Endpoint{Address: fmt.Sprintf("10.0.0.%d:80", i), Weight: w, Workload: plan.WorkloadLabels{Namespace: "default", Workload: "web"}})
		}
		return []*plan.Plan{{Node: plan.Node{Name: ident.Name{Namespace: "default", Name: "one"}}, Endpoints: []plan.Endpoints{es}}}
	}
	for _, tc := range []struct {
		name   string
		is     []*plan.Plan
		before []*plan.Plan
		want   []Change
	}{
		{"the same", with(1, 1, 1), with(1, 1, 1), nil},
		{"two more", with(1, 1, 1), with(1), []Change{{Kind: "endpoint", Name: "default/web (2) of web", Action: Added}, {Kind: "endpoint", Name: "default/web (3) of web", Action: Added}}},
		{"one less", with(1, 1), with(1, 1, 1), []Change{{Kind: "endpoint", Name: "default/web (3) of web", Action: Removed}}},
		{"another weight", with(1, 2), with(1, 1), []Change{{Kind: "endpoint", Name: "default/web (2) of web", Action: Changed, Fields: []Field{{"weight", "1", "2"}}}}},
	} {
		got, err := Between(tc.before, tc.is)
		if err != nil {
			t.Fatal(err)
		}
		var changes []Change
		for _, g := range got {
			if len(g.Proxies) != 1 {
				t.Errorf("%s: proxies %v", tc.name, g.Proxies)
			}
			changes = append(changes, g.Changes...)
		}
		if d := cmp.Diff(tc.want, changes); d != "" {
			t.Errorf("%s: -want +got:\n%s", tc.name, d)
		}
	}
}

// TestOrderCounts where it decides.
func TestOrderCounts(t *testing.T) {
	with := func(priority ...string) []*plan.Plan {
		return []*plan.Plan{{Node: plan.Node{Name: ident.Name{Namespace: "default", Name: "one"}},
			Clusters: []plan.Cluster{{Name: "web", Locality: &plan.Locality{Priority: priority}}}}}
	}
	got, err := Between(with("zone", "rack"), with("rack", "zone"))
	if err != nil || len(got) != 1 {
		t.Fatalf("%v, %v; want one group", got, err)
	}
	want := []Change{{Kind: "cluster", Name: "web", Action: Changed, Fields: []Field{{"locality.priority", "zone, rack", "rack, zone"}}}}
	if d := cmp.Diff(want, got[0].Changes); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// TestMovedTwin: of two rules with the same conditions each may have moved.
func TestMovedTwin(t *testing.T) {
	a, b, c := rule("/a", 1e9), rule("/b", 0), rule("/c", 0)
	twin := rule("/a", 2e9)
	got, err := Between([]*plan.Plan{proxyWith("one", a, b, c, twin)}, []*plan.Plan{proxyWith("one", a, twin, b, c)})
	if err != nil || len(got) != 1 || len(got[0].Changes) != 1 || got[0].Changes[0].Action != Moved {
		t.Errorf("%+v, %v; want one rule moved", got, err)
	}
}

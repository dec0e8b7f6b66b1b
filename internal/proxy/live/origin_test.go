package live_test

import (
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/live"
)

// What the proxy of a destination answers itself is told, with its rule, through the proxies between to the application that
// asked, and never to a stranger at a gateway, through which the same answer goes.
func TestOriginThroughTheMesh(t *testing.T) {
	a := newAuthority(t)
	in := inbound(named(t, "x"), plan.TLSStrict, ident.HTTP)
	in.Listeners[0].Policies = []string{"production/p"}
	in.Policies = []plan.Policy{{Name: "production/p", Action: plan.Deny, Rules: []plan.PolicyRule{{
		To:     []plan.Operation{{Paths: []match.String{{Kind: match.Prefix, Value: "/admin"}}}},
		Origin: ident.Origin{Kind: "AuthorizationPolicy", Namespace: "production", Name: "p", Rule: "rules[0]", File: "mesh/policies.yaml", Line: 7},
	}}}}
	_, server := start(t, live.Options{Credentials: a.issue(t, backend)}, in)
	client := client(t)
	for _, direction := range []plan.Direction{plan.Outbound, plan.Edge} {
		for _, proto := range []ident.Protocol{ident.HTTP, ident.HTTP2} {
			out := simple(server["in"])
			out.Node.Identity = frontend
			out.Listeners[0].Direction = direction
			out.Clusters[0].Protocol = proto
			out.Endpoints[0].Endpoints[0].Identity = backend
			_, at := start(t, live.Options{Credentials: a.issue(t, frontend)}, out)
			resp, _ := get(t, client, "http://"+at["out"]+"/admin", "x-malha-origin", "forged")
			want := "AuthorizationPolicy/production/p rules[0] (policies.yaml:7) rbac_access_denied_matched_policy"
			if direction == plan.Edge {
				want = ""
			}
			got := resp.Header.Get("x-malha-origin")
			if resp.StatusCode != 403 || !strings.HasPrefix(got, want) || (got == "") != (want == "") {
				t.Errorf("%s, %v: %d, x-malha-origin %q", direction, proto, resp.StatusCode, got)
			}
			for name := range resp.Header {
				if direction == plan.Edge && strings.HasPrefix(strings.ToLower(name), "x-malha-") {
					t.Errorf("a stranger reads %s: %s", name, resp.Header.Get(name))
				}
			}
			if resp, body := get(t, client, "http://"+at["out"]+"/"); body != "x" || resp.Header.Get("x-malha-origin") != "" {
				t.Errorf("the application's own answer: %d, x-malha-origin %q", resp.StatusCode, resp.Header.Get("x-malha-origin"))
			}
		}
	}
}

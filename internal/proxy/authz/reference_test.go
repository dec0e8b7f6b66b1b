package authz

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// TestAgreesWithReference compares the engine with a small, slow evaluator that is written from Istio's documentation of
// AuthorizationPolicy and shares nothing with it, on random policies and requests.
func TestAgreesWithReference(t *testing.T) {
	n := 20_000
	if testing.Short() {
		n = 2000
	}
	allowed := 0
	for seed := range n {
		rnd := rand.New(rand.NewPCG(uint64(seed), 11))
		g := generator{rnd}
		ps := g.policies()
		e := mustBuild(t, ps...)
		for range 10 {
			in := g.input()
			want, got := reference(ps, in), e.Check(in).Allow
			if got != want {
				t.Fatalf("seed %d: allowed %v, want %v\npeer %q request %s\npolicies %+v", seed, got, want, in.Peer.Principal(), show(in.Request), ps)
			}
			if got {
				allowed++
			}
		}
	}
	if allowed < n || allowed > 9*n {
		t.Errorf("%d of %d requests are allowed: the policies say too little", allowed, 10*n)
	}
}

func show(r *message.Request) string {
	if r == nil {
		return "none (TCP)"
	}
	return fmt.Sprintf("%s %s%s %s", r.Method, r.Authority, r.Path, r.Fields)
}

// reference decides as the documentation says: DENY first, then ALLOW.
func reference(ps []plan.Policy, in *Input) bool {
	guarded, allowed := false, false
	for _, p := range ps {
		matches := slices.ContainsFunc(p.Rules, func(r plan.PolicyRule) bool { return referenceRule(r, in, p.Action == plan.Deny) })
		switch {
		case p.DryRun:
		case p.Action == plan.Deny && matches:
			return false
		case p.Action == plan.Allow:
			guarded, allowed = true, allowed || matches
		}
	}
	return !guarded || allowed
}

func referenceRule(r plan.PolicyRule, in *Input, deny bool) bool {
	from := len(r.From) == 0 || slices.ContainsFunc(r.From, func(s plan.Source) bool {
		return referenceIdentity(in, deny, in.Peer.Principal(), s.Principals, s.NotPrincipals) &&
			referenceIdentity(in, deny, in.Peer.Namespace, s.Namespaces, s.NotNamespaces) &&
			referenceIP(in.Remote, s.IPBlocks, s.NotIPBlocks)
	})
	to := len(r.To) == 0 || slices.ContainsFunc(r.To, func(o plan.Operation) bool {
		if len(o.Ports) > 0 && !slices.Contains(o.Ports, in.Port) || slices.Contains(o.NotPorts, in.Port) {
			return false
		}
		if in.Request == nil {
			http := len(o.Methods) + len(o.NotMethods) + len(o.Paths) + len(o.NotPaths) + len(o.Hosts) + len(o.NotHosts)
			return http == 0 || deny
		}
		return referenceStrings([]string{string(in.Request.Method)}, o.Methods, o.NotMethods) &&
			referenceStrings([]string{string(in.Request.Path)}, o.Paths, o.NotPaths) &&
			referenceStrings([]string{string(in.Request.Authority), string(in.Request.Host)}, o.Hosts, o.NotHosts)
	})
	when := !slices.ContainsFunc(r.When, func(c plan.Condition) bool { return !referenceWhen(c, in, deny) })
	return from && to && when
}

func referenceIdentity(in *Input, deny bool, v string, is, not []match.String) bool {
	if in.Peer.IsZero() && len(is)+len(not) > 0 {
		return deny && len(is) == 0
	}
	return referenceStrings([]string{v}, is, not)
}

func referenceIP(a netip.Addr, is, not []string) bool {
	in := func(list []string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return netip.MustParsePrefix(s).Contains(a) })
	}
	return (len(is) == 0 || in(is)) && !in(not)
}

// referenceStrings takes the forms of one value: one of them being listed counts.
func referenceStrings(forms []string, is, not []match.String) bool {
	listed := func(list []match.String) bool {
		return slices.ContainsFunc(list, func(m match.String) bool {
			return slices.ContainsFunc(forms, func(v string) bool {
				switch m.Kind {
				case match.Exact:
					return v == m.Value
				case match.Prefix:
					return strings.HasPrefix(v, m.Value)
				case match.Suffix:
					return strings.HasSuffix(v, m.Value)
				case match.NonEmpty:
					return v != ""
				}
				panic("not generated")
			})
		})
	}
	return (len(is) == 0 || listed(is)) && !listed(not)
}

func referenceWhen(c plan.Condition, in *Input, deny bool) bool {
	switch c.Key {
	case "source.namespace":
		return referenceIdentity(in, deny, in.Peer.Namespace, c.Values, c.NotValues)
	case "request.headers[x]":
		if in.Request == nil {
			return deny
		}
		satisfied, lines := 0, 0
		for _, f := range in.Request.Fields {
			if string(f.Name) == "x" {
				lines++
				if referenceStrings([]string{string(f.Value)}, c.Values, c.NotValues) {
					satisfied++
				}
			}
		}
		switch {
		case lines == 0:
			return len(c.Values) == 0
		case deny:
			return satisfied > 0
		}
		return satisfied == lines
	}
	panic("not generated")
}

type generator struct{ *rand.Rand }

func (g generator) some(of ...string) []match.String {
	if g.IntN(3) > 0 {
		return nil
	}
	var out []match.String
	for range 1 + g.IntN(2) {
		v := of[g.IntN(len(of))]
		switch g.IntN(6) {
		case 0:
			out = append(out, match.String{Kind: match.Prefix, Value: v[:len(v)/2]})
		case 1:
			out = append(out, match.String{Kind: match.Suffix, Value: v[len(v)/2:]})
		case 2:
			out = append(out, match.String{Kind: match.NonEmpty})
		default:
			out = append(out, match.String{Kind: match.Exact, Value: v})
		}
	}
	return out
}

func (g generator) blocks() []string {
	if g.IntN(5) > 0 {
		return nil
	}
	return []string{[]string{"10.0.0.0/8", "10.0.0.7/32", "192.168.0.0/16"}[g.IntN(3)]}
}

func (g generator) ports() []int {
	if g.IntN(5) > 0 {
		return nil
	}
	return []int{[]int{8080, 9090}[g.IntN(2)]}
}

func (g generator) policies() []plan.Policy {
	var ps []plan.Policy
	for i := range g.IntN(4) {
		p := plan.Policy{Name: fmt.Sprintf("n/%d", i), Action: []plan.Action{plan.Allow, plan.Allow, plan.Deny, plan.Audit}[g.IntN(4)], DryRun: g.IntN(6) == 0}
		for range g.IntN(4) {
			var r plan.PolicyRule
			for range g.IntN(3) {
				r.From = append(r.From, plan.Source{
					Principals: g.some(frontend.Principal(), other.Principal()), NotPrincipals: g.some(other.Principal()),
					Namespaces: g.some("production", "staging"), NotNamespaces: g.some("staging"), IPBlocks: g.blocks(), NotIPBlocks: g.blocks(),
				})
			}
			for range g.IntN(3) {
				r.To = append(r.To, plan.Operation{
					Hosts: g.some("backend", "backend:8080"), NotHosts: g.some("other"), Ports: g.ports(), NotPorts: g.ports(),
					Methods: g.some("GET", "PUT"), NotMethods: g.some("DELETE"), Paths: g.some("/api/x", "/admin"), NotPaths: g.some("/admin"),
				})
			}
			if c := (plan.Condition{Key: []string{"source.namespace", "request.headers[x]"}[g.IntN(2)], Values: g.some("production", "admin"), NotValues: g.some("staging", "admin")}); len(c.Values)+len(c.NotValues) > 0 {
				r.When = append(r.When, c)
			}
			p.Rules = append(p.Rules, r)
		}
		ps = append(ps, p)
	}
	return ps
}

func (g generator) input() *Input {
	in := &Input{
		Peer: []ident.Identity{frontend, other, nobody}[g.IntN(3)], Port: []int{8080, 9090}[g.IntN(2)],
		Remote: netip.MustParseAddr([]string{"10.0.0.7", "192.168.1.1"}[g.IntN(2)]),
	}
	if g.IntN(5) > 0 {
		in.Request = request([]string{"GET", "PUT", "DELETE"}[g.IntN(3)], []string{"/api/x", "/admin", "/"}[g.IntN(3)])
		for range g.IntN(3) {
			in.Request.Fields.Add("x", []byte([]string{"admin", "production", "user", ""}[g.IntN(4)]))
		}
	}
	return in
}

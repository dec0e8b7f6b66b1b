package model_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

func pathMatch(kind match.Kind, value string) model.HTTPMatch {
	return model.HTTPMatch{Match: plan.Match{Path: &match.String{Kind: kind, Value: value}}}
}

// described says what a rule became: "name path,path".
func described(rules []model.HTTPRule) []string {
	var out []string
	for _, r := range rules {
		var ms []string
		for _, m := range r.Matches {
			s := "any"
			if m.Path != nil {
				s = m.Path.Kind.String() + " " + m.Path.Value
			}
			for _, h := range m.Headers {
				s += fmt.Sprintf(" %s:%s:%t", h.Name, h.Value.Value, h.Invert)
			}
			ms = append(ms, s)
		}
		text := strings.TrimSpace(r.Name + " " + strings.Join(ms, ", "))
		if r.Forward == nil && r.Redirect == nil && r.Direct == nil {
			text += " closed"
		}
		out = append(out, text)
	}
	return out
}

func to(host string) []model.WeightedDestination {
	return []model.WeightedDestination{{Target: model.Target{Host: host}}}
}

func TestDelegates(t *testing.T) {
	name := ident.Name{Namespace: "team", Name: "part"}
	header := func(m model.HTTPMatch, name, value string, invert bool) model.HTTPMatch {
		m.Headers = append(slices.Clip(m.Headers), plan.FieldMatch{Name: name, Value: match.String{Kind: match.Exact, Value: value}, Invert: invert})
		return m
	}
	api := pathMatch(match.Prefix, "/api")
	nested := model.HTTPRule{Name: "deeper", Matches: []model.HTTPMatch{pathMatch(match.Exact, "/api/x")}, Delegate: &name}
	for _, c := range []struct {
		name  string
		root  []model.HTTPMatch
		leaf  []model.HTTPRule
		gone  bool
		want  []string
		codes []string
	}{
		{"a longer prefix and the rest", []model.HTTPMatch{api}, []model.HTTPRule{
			{Name: "v2", Matches: []model.HTTPMatch{pathMatch(match.Prefix, "/api/v2")}, Forward: to("v2")}, {Name: "rest", Forward: to("v1")},
		}, false, []string{"root-v2 prefix /api/v2", "root-rest prefix /api"}, nil},
		{"a root without conditions takes the delegate's", nil, []model.HTTPRule{{Matches: []model.HTTPMatch{api}, Forward: to("v1")}}, false, []string{"root prefix /api"}, nil},
		{"outside", []model.HTTPMatch{api}, []model.HTTPRule{{Name: "x", Matches: []model.HTTPMatch{pathMatch(match.Prefix, "/ap")}, Forward: to("v1")}}, false, nil, []string{"MALHA0862"}},
		{"one alternative outside takes the rule out", []model.HTTPMatch{api}, []model.HTTPRule{
			{Name: "x", Matches: []model.HTTPMatch{pathMatch(match.Prefix, "/api/a"), pathMatch(match.Exact, "/b")}, Forward: to("v1")},
		}, false, nil, []string{"MALHA0862"}},
		{"a regular expression is within nothing but itself", []model.HTTPMatch{api}, []model.HTTPRule{
			{Name: "x", Matches: []model.HTTPMatch{pathMatch(match.Regex, "/api/.*")}, Forward: to("v1")},
		}, false, nil, []string{"MALHA0862"}},
		{"each alternative with each that takes it", []model.HTTPMatch{header(api, "a", "1", false), header(api, "b", "1", false)}, []model.HTTPRule{
			{Matches: []model.HTTPMatch{pathMatch(match.Exact, "/api/x")}, Forward: to("v1")},
		}, false, []string{"root exact /api/x a:1:false, exact /api/x b:1:false"}, nil},
		{"headers add up", []model.HTTPMatch{header(api, "a", "1", false)}, []model.HTTPRule{
			{Matches: []model.HTTPMatch{header(model.HTTPMatch{}, "b", "2", false)}, Forward: to("v1")},
		}, false, []string{"root prefix /api b:2:false a:1:false"}, nil},
		{"a header with another value is outside", []model.HTTPMatch{header(api, "a", "1", false)}, []model.HTTPRule{
			{Matches: []model.HTTPMatch{header(api, "a", "2", false)}, Forward: to("v1")},
		}, false, nil, []string{"MALHA0862"}},
		{"what the root keeps out stays out", []model.HTTPMatch{header(api, "a", "1", true)}, []model.HTTPRule{
			{Matches: []model.HTTPMatch{header(api, "a", "2", true)}, Forward: to("v1")},
		}, false, []string{"root prefix /api a:2:true a:1:true"}, nil},
		{"no delegate: closed, not skipped", []model.HTTPMatch{api}, nil, true, []string{"root prefix /api closed"}, nil},
		{"one level only", []model.HTTPMatch{api}, []model.HTTPRule{nested}, false, []string{"root-deeper exact /api/x closed"}, []string{"MALHA0861"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := &model.Routing{
				Meta: model.Meta{Name: ident.Name{Namespace: "edge", Name: "root"}, Origin: ident.Origin{Kind: "VirtualService", Namespace: "edge", Name: "root"}},
				HTTP: []model.HTTPRule{{Name: "root", Matches: c.root, Delegate: &name}, {Name: "behind", Forward: to("behind")}},
			}
			delegate := &model.Routing{Meta: model.Meta{Name: name}, Delegate: true, HTTP: c.leaf}
			before := fmt.Sprintf("%+v %+v", root.HTTP, delegate.HTTP)
			got, ds := model.WithDelegates(root, func(n ident.Name, ns string) (*model.Routing, bool) {
				return delegate, !c.gone && n == name && ns == "edge"
			})
			if d := cmp.Diff(append(c.want, "behind"), described(got.HTTP)); d != "" {
				t.Error(d)
			}
			var codes []string
			for _, d := range ds {
				codes = append(codes, d.Code)
			}
			if d := cmp.Diff(c.codes, codes); d != "" {
				t.Error(d)
			}
			if after := fmt.Sprintf("%+v %+v", root.HTTP, delegate.HTTP); after != before {
				t.Errorf("the routings were changed:\n%s\n%s", before, after)
			}
		})
	}
}

// TestDelegateInherits: the delegate's own words win, the root fills the gaps.
func TestDelegateInherits(t *testing.T) {
	name := ident.Name{Namespace: "team", Name: "part"}
	root := &model.Routing{HTTP: []model.HTTPRule{{
		Delegate: &name, Timeout: time.Second, Retry: &plan.Retry{Attempts: 1}, Fault: &plan.Fault{AbortStatus: 500}, Rewrite: &plan.Rewrite{Path: "/root"},
		CORS: &plan.CORS{Credentials: true}, Limits: []string{"a", "b"}, Headers: plan.HeaderOps{Request: plan.FieldOps{Remove: []string{"x"}}},
		Origin: ident.Origin{Kind: "VirtualService", Namespace: "edge", Name: "root", Rule: "http[0]", File: "root.yaml", Line: 4},
	}}}
	leaf := model.HTTPRule{
		Forward: to("v1"), Timeout: 2 * time.Second, Rewrite: &plan.Rewrite{Path: "/leaf"}, Limits: []string{"b"},
		Origin: ident.Origin{Kind: "VirtualService", Namespace: "team", Name: "part", Rule: "http[0]", File: "part.yaml", Line: 7},
	}
	got, _ := model.WithDelegates(root, func(ident.Name, string) (*model.Routing, bool) {
		return &model.Routing{HTTP: []model.HTTPRule{leaf}}, true
	})
	r := got.HTTP[0]
	if r.Timeout != 2*time.Second || r.Rewrite.Path != "/leaf" || r.Retry == nil || r.Fault == nil || r.CORS == nil || len(r.Headers.Request.Remove) != 1 {
		t.Errorf("rule %+v", r)
	}
	if d := cmp.Diff([]string{"b", "a"}, r.Limits); d != "" {
		t.Error(d)
	}
	if want := "VirtualService/team/part http[0] via VirtualService/edge/root http[0] (part.yaml:7)"; r.Origin.String() != want {
		t.Errorf("origin %q, want %q", r.Origin, want)
	}
}

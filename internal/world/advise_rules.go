package world

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// identities tells of principals that are written out and that nobody has.
func (c *checker) identities(r *plan.PolicyRule, at ident.Origin) {
	var words []match.String
	for i := range r.From {
		words = append(words, r.From[i].Principals...)
	}
	for i := range r.When {
		if r.When[i].Key == "source.principal" {
			words = append(words, r.When[i].Values...)
		}
	}
	var known []string
	for _, wl := range c.World.workloads.all {
		known = append(known, pointer(wl.Identity))
	}
	for _, g := range c.gateways {
		known = append(known, pointer(g.Identity))
	}
	for _, w := range words {
		if w.Kind != match.Exact || !strings.HasPrefix(w.Value, ident.DefaultTrustDomain+"/") || slices.Contains(known, w.Value) {
			continue // patterns may be about workloads to come, and other domains about other meshes
		}
		c.warn(CodeNobody, at, didYouMean(ident.Nearest(w.Value, known)), "no workload or gateway has the identity %s", w.Value)
	}
}

// pointer returns the principal of an identity of the mesh as people write it, whatever the mesh's trust domain is.
func pointer(id ident.Identity) string {
	id.TrustDomain = ident.DefaultTrustDomain
	return id.Principal()
}

// covered tells of alternatives that no request reaches, as one before takes all of theirs. A rule that takes every
// request is config's to see, unless precedence and not the order of the rules decides.
func (c *checker) covered(r *model.Routing) {
	type alternative struct {
		match *model.HTTPMatch
		rule  *model.HTTPRule
		index int
	}
	var all []alternative
	for i := range r.HTTP {
		rule := &r.HTTP[i]
		if len(rule.Matches) == 0 {
			if !r.Precedence {
				break // what is behind it is reported already
			}
			all = append(all, alternative{&model.HTTPMatch{}, rule, i})
		}
		for j := range rule.Matches {
			all = append(all, alternative{&rule.Matches[j], rule, i})
		}
	}
	if r.Precedence {
		slices.SortStableFunc(all, func(a, b alternative) int { return model.ComparePrecedence(&a.match.Match, &b.match.Match) })
	}
	for n, a := range all {
		for _, b := range all[:n] {
			if !covers(b.match, a.match) {
				continue
			}
			first := "http[" + strconv.Itoa(b.index) + "]"
			if p := cmp.Or(b.match.Origin, b.rule.Origin).Place(); p != "" {
				first += " (" + p + ")"
			}
			c.warn(CodeCovered, place(a.match.Origin, a.rule.Origin), "put the narrower rule first", "no request reaches this match: %s takes all of them before", first)
			break
		}
		if !r.Precedence && everything(a.match) {
			return
		}
	}
}

// everything reports whether a match takes every request from everywhere.
func everything(m *model.HTTPMatch) bool {
	return covers(m, &model.HTTPMatch{Match: plan.Match{Path: &match.String{Kind: match.Prefix, Value: "/"}}})
}

// covers reports whether every request that b takes is taken by a. False when that is not certain.
func covers(a, b *model.HTTPMatch) bool {
	if a.Cond != nil || a.Port != 0 && a.Port != b.Port || a.SourceNamespace != "" && a.SourceNamespace != b.SourceNamespace {
		return false
	}
	if !model.HasLabels(b.SourceLabels, a.SourceLabels) {
		return false
	}
	if a.Gateways != nil {
		if b.Gateways == nil || slices.ContainsFunc(b.Gateways, func(g string) bool { return !slices.Contains(a.Gateways, g) }) {
			return false
		}
	}
	return implied(a.Path, b.Path) && implied(a.Method, b.Method) && implied(a.Scheme, b.Scheme) && implied(a.Authority, b.Authority) &&
		fieldsImplied(a.Headers, b.Headers) && fieldsImplied(a.Query, b.Query)
}

// implied reports whether every value that satisfies b satisfies a.
func implied(a, b *match.String) bool {
	switch {
	case a == nil:
		return true
	case b == nil:
		return false
	case *a == *b:
		return true
	case a.IgnoreCase != b.IgnoreCase && !a.IgnoreCase:
		return false
	}
	x, y := a.Value, b.Value
	if a.IgnoreCase {
		x, y = strings.ToLower(x), strings.ToLower(y)
	}
	switch a.Kind {
	case match.Present:
		return true
	case match.Prefix:
		return (b.Kind == match.Exact || b.Kind == match.Prefix) && strings.HasPrefix(y, x)
	case match.Suffix:
		return (b.Kind == match.Exact || b.Kind == match.Suffix) && strings.HasSuffix(y, x)
	case match.Segment:
		x = strings.TrimSuffix(x, "/")
		under := y == x || strings.HasPrefix(y, x+"/")
		return under && (b.Kind == match.Exact || b.Kind == match.Segment) || b.Kind == match.Prefix && strings.HasPrefix(y, x+"/")
	case match.Exact:
		return b.Kind == match.Exact && x == y
	}
	return false
}

func fieldsImplied(a, b []plan.FieldMatch) bool {
	for i := range a {
		if !slices.ContainsFunc(b, func(f plan.FieldMatch) bool {
			if f.Name != a[i].Name || f.Invert != a[i].Invert {
				return false
			}
			if f.Invert { // "none with y" implies "none with x" where x implies y
				return implied(&f.Value, &a[i].Value)
			}
			return implied(&a[i].Value, &f.Value)
		}) {
			return false
		}
	}
	return true
}

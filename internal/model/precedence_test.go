package model_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// wins is the text of HTTPRouteRule.matches, sentence by sentence: "precedence must be given to the match having …,
// continuing on ties".
func wins(a, b *plan.Match) (first, tie bool) {
	path := func(m *plan.Match) match.String {
		if m.Path == nil { // "If no matches are specified, the default is a prefix path match on "/""
			return match.String{Kind: match.Segment, Value: "/"}
		}
		return *m.Path
	}
	exactA, exactB := path(a).Kind == match.Exact, path(b).Kind == match.Exact
	if exactA != exactB { // `"Exact" path match.`
		return exactA, false
	}
	prefixA, prefixB := path(a).Kind == match.Segment, path(b).Kind == match.Segment
	if prefixA && prefixB && len(path(a).Value) != len(path(b).Value) { // `"Prefix" path match with largest number of characters.`
		return len(path(a).Value) > len(path(b).Value), false
	}
	if prefixA != prefixB { // ours: "The precedence of RegularExpression path matches are implementation-specific."
		return prefixA, false
	}
	if (a.Method != nil) != (b.Method != nil) { // "Method match."
		return a.Method != nil, false
	}
	if len(a.Headers) != len(b.Headers) { // "Largest number of header matches."
		return len(a.Headers) > len(b.Headers), false
	}
	if len(a.Query) != len(b.Query) { // "Largest number of query param matches."
		return len(a.Query) > len(b.Query), false
	}
	return false, true
}

func TestPrecedenceIsThatOfTheSpecification(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	any := func() *plan.Match {
		m := &plan.Match{Headers: make([]plan.FieldMatch, r.IntN(3)), Query: make([]plan.FieldMatch, r.IntN(3))}
		if kind := r.IntN(5); kind > 0 {
			m.Path = &match.String{
				Kind:  []match.Kind{match.Exact, match.Segment, match.Segment, match.Regex}[kind-1],
				Value: []string{"/", "/a", "/a/b", "/b"}[r.IntN(4)],
			}
		}
		if r.IntN(2) == 0 {
			m.Method = &match.String{Kind: match.Exact, Value: "GET"}
		}
		return m
	}
	for range 20000 {
		a, b, c := any(), any(), any()
		first, tie := wins(a, b)
		want := 1
		switch {
		case tie:
			want = 0
		case first:
			want = -1
		}
		if got := model.ComparePrecedence(a, b); got != want {
			t.Fatalf("ComparePrecedence(%+v, %+v) = %d, the specification says %d", a, b, got, want)
		}
		all := []*plan.Match{a, b, c}
		slices.SortFunc(all, model.ComparePrecedence)
		if model.ComparePrecedence(all[0], all[2]) > 0 {
			t.Fatalf("not an order: %+v", all)
		}
	}
}

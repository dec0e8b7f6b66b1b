package model

import (
	"cmp"

	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
)

// ComparePrecedence orders two alternatives of routings with Precedence: negative when a goes first (Gateway API
// HTTPRouteRule.matches: exact path, longest path prefix, method, most headers, most query parameters; an alternative
// without a path has the prefix "/"). Regular expressions, whose place the specification leaves open, come behind all
// prefixes. Ties are decided by the routings (older first, then by name) and then by the order of the rules.
//
// It orders GRPCRoute alternatives too (longest service, longest method, most headers): a service with a method is an exact
// path, a service alone is a prefix, a method alone is a regular expression, and of two that can match one request the
// longer service is the longer path.
func ComparePrecedence(a, b *plan.Match) int {
	kindA, lengthA := pathRank(a.Path)
	kindB, lengthB := pathRank(b.Path)
	return cmp.Or(
		cmp.Compare(kindB, kindA),
		cmp.Compare(lengthB, lengthA),
		cmp.Compare(isSet(b.Method), isSet(a.Method)),
		cmp.Compare(len(b.Headers), len(a.Headers)),
		cmp.Compare(len(b.Query), len(a.Query)),
	)
}

func pathRank(p *match.String) (kind, length int) {
	if p == nil {
		return 2, len("/")
	}
	switch p.Kind {
	case match.Exact:
		return 3, 0
	case match.Segment, match.Prefix:
		return 2, len(p.Value)
	}
	return 1, 0
}

func isSet(s *match.String) int {
	if s == nil {
		return 0
	}
	return 1
}

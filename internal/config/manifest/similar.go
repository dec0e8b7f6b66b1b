package manifest

import (
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
)

// DidYouMean returns a hint with the candidate nearest to word, or, when none is near, with all of them when they are few.
func DidYouMean(word string, candidates []string) string {
	if best := ident.Nearest(word, candidates); best != "" {
		return "did you mean `" + best + "`?"
	}
	known := slices.Compact(slices.Sorted(slices.Values(candidates)))
	if n := len(known); n > 0 && n <= 12 {
		return "known: " + strings.Join(known, ", ")
	}
	return ""
}

// AppProtocol warns of the protocol of a port that is nearly one that is known. Others are opaque: nothing is wrong with them.
func AppProtocol(at Cursor, name string, r *Report) {
	if near := ident.NearProtocol(name); near != "" {
		r.Warning(CodeBadValue, at, "did you mean `"+near+"`?", "appProtocol %q is unknown: the port carries bytes, not requests", name)
	}
}

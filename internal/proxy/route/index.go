package route

import (
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// indexFrom is the number of routes from which looking up beats trying one after the other.
const indexFrom = 8

// index finds the first matching route of a host without trying all of them. Every route stands in exactly one list:
// by its literal path, by its literal prefix, or in rest. Each list keeps the order of the rules, so the first match of
// each list that can hold the path, and of these the earliest, is the first match of all.
//
// The lists only narrow down: a candidate is still asked its whole condition, so the index cannot make a route match.
type index struct {
	exact    map[string][]int32
	prefixes map[string][]int32
	lengths  []int   // of the keys of prefixes, longest first
	rest     []int32 // no path condition, a regular expression, a suffix, or one that ignores case
}

func newIndex(routes []Route) *index {
	x := &index{exact: map[string][]int32{}, prefixes: map[string][]int32{}}
	for i := range routes {
		n := int32(i)
		switch key, kind := pathKey(routes[i].match); kind {
		case match.Exact:
			x.exact[key] = append(x.exact[key], n)
		case match.Prefix:
			x.prefixes[key] = append(x.prefixes[key], n)
			if !slices.Contains(x.lengths, len(key)) {
				x.lengths = append(x.lengths, len(key))
			}
		default:
			x.rest = append(x.rest, n)
		}
	}
	slices.SortFunc(x.lengths, func(a, b int) int { return b - a })
	return x
}

// pathKey returns the literal that every path the condition accepts is (Exact) or starts with (Prefix).
func pathKey(c *conditions) (string, match.Kind) {
	if c == nil || c.path == nil {
		return "", match.Never
	}
	value, kind, fold := c.path.Literal()
	if fold {
		return "", match.Never
	}
	switch kind {
	case match.Exact, match.Prefix:
		return value, kind
	case match.Segment:
		return strings.TrimSuffix(value, "/"), match.Prefix
	}
	return "", match.Never
}

// find returns the index of the first route that matches, or -1.
func (x *index) find(routes []Route, r *message.Request) int {
	best := int32(len(routes))
	best = first(routes, x.exact[string(r.Path)], best, r)
	for _, n := range x.lengths {
		if n <= len(r.Path) {
			best = first(routes, x.prefixes[string(r.Path[:n])], best, r)
		}
	}
	best = first(routes, x.rest, best, r)
	if int(best) == len(routes) {
		return -1
	}
	return int(best)
}

// first returns the first of list, which is sorted, that is below best and matches; else best.
func first(routes []Route, list []int32, best int32, r *message.Request) int32 {
	for _, i := range list {
		if i >= best {
			break
		}
		if routes[i].match.holds(r) {
			return i
		}
	}
	return best
}

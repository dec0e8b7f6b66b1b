package route

import (
	"cmp"
	"regexp/syntax"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// indexFrom is the number of routes from which looking a path up beats trying one after the other.
const indexFrom = 5

// index finds the first matching route of a host without trying all of them. The literals of the conditions on paths, exact paths
// and what paths begin with, stand in one dictionary. A path is looked up as a whole, then the longest beginning of it that is
// there; each literal knows the next shorter one. These are all that hold for the path, and with them every route that can.
// Each list keeps the order of the rules, so the first match of each, and of these the earliest, is the first match of all.
//
// The index only narrows down: a candidate is still asked its whole condition, so it cannot make a route match.
type index struct {
	literals dictionary[literal]
	lists    []int32  // of all literals, one behind the other
	lengths  []length // of those that paths begin with, the longest first
	exact    bool     // there are exact paths
	root     int32    // the literal "", which every path begins with; -1 for none
	rest     []int32  // no path condition, a suffix, one that ignores case, or an expression that begins with nothing literal
}

// literal is what is known of one: the path of the routes in lists[begin:whole] begins with it, that of those in
// lists[whole:end] is it.
type literal struct {
	begin, whole, end int32
	shorter           int32 // the longest other one that paths begin with and this one too; -1 for none
	least             int32 // route in lists[begin:whole], here and at those shorter
}

// length is one that literals have which paths begin with. Few paths go on behind it, or have the byte before, as one of these
// literals does; the others need not be looked up.
type length struct {
	size   int
	last   [8]uint32 // bits: bytes that such literals end with
	inside bool      // the path may go on inside a segment; else '/' follows, or it ends
}

func newIndex(routes []Route) *index {
	x := &index{literals: newDictionary[literal](0), root: -1}
	type place struct {
		literal int
		kind    match.Kind
	}
	places := make([]place, len(routes)) // where each route stands
	for i := range routes {
		key, kind := pathKey(routes[i].match)
		if kind == match.Never {
			x.rest = append(x.rest, int32(i))
			continue
		}
		at := x.literals.find([]byte(key))
		if at < 0 {
			at = len(x.literals.entries)
			x.literals.put(key, literal{})
		}
		places[i] = place{at, kind}
		l := &x.literals.entries[at].value
		l.end++ // counts, for now
		if kind == match.Exact {
			x.exact = true
			continue
		}
		l.whole++
		if key == "" {
			x.root = int32(at)
		} else {
			x.measure(key, kind)
		}
	}
	x.literals.entries = slices.Clone(x.literals.entries) // without the room to grow
	sort.Slice(x.lengths, func(i, j int) bool { return x.lengths[i].size > x.lengths[j].size })

	n := int32(0)
	for i := range x.literals.entries {
		l := &x.literals.entries[i].value
		l.begin, l.whole, l.end, n = n, n+l.whole, n+l.end, n+l.end
	}
	x.lists = make([]int32, n)
	next := make([]struct{ begin, whole int32 }, len(x.literals.entries)) // how much is in already
	for i, p := range places {
		if p.kind == match.Never {
			continue
		}
		l, have := &x.literals.entries[p.literal].value, &next[p.literal]
		if p.kind == match.Exact {
			x.lists[l.whole+have.whole] = int32(i)
			have.whole++
		} else {
			x.lists[l.begin+have.begin] = int32(i)
			have.begin++
		}
	}
	x.chain(int32(len(routes)))
	return x
}

// measure enters the length of a literal that paths begin with.
func (x *index) measure(key string, kind match.Kind) {
	i := slices.IndexFunc(x.lengths, func(l length) bool { return l.size == len(key) })
	if i < 0 {
		i = len(x.lengths)
		x.lengths = append(x.lengths, length{size: len(key)})
	}
	l, last := &x.lengths[i], key[len(key)-1]
	l.last[last/32] |= 1 << (last % 32)
	l.inside = l.inside || kind != match.Segment
}

// chain leads each literal to the next shorter one, from the shortest on. none is above the number of every route.
func (x *index) chain(none int32) {
	entries := x.literals.entries
	order := make([]int, len(entries))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(len(entries[a].key), len(entries[b].key)) })
	for _, i := range order {
		l, key := &entries[i].value, entries[i].key
		l.shorter, l.least = -1, none
		if key != "" {
			l.shorter = x.longest([]byte(key), len(key)-1)
		}
		if l.shorter >= 0 {
			l.least = entries[l.shorter].value.least
		}
		if l.begin < l.whole {
			l.least = min(l.least, x.lists[l.begin])
		}
	}
}

// pathKey returns the literal that every path the condition accepts is (Exact) or starts with (Prefix, or Segment when '/' or the
// end comes next); Never for none.
func pathKey(c *conditions) (string, match.Kind) {
	if c == nil || c.path.IsZero() {
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
		return strings.TrimSuffix(value, "/"), match.Segment
	case match.Regex:
		if p := literalPrefix(value); p != "" {
			return p, match.Prefix
		}
	}
	return "", match.Never
}

// literalPrefix returns bytes that everything begins with which the expression matches as a whole.
func literalPrefix(expr string) string {
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return ""
	}
	re = re.Simplify()
	for re.Op == syntax.OpCapture || re.Op == syntax.OpConcat && len(re.Sub) > 0 {
		if re.Op == syntax.OpConcat && re.Sub[0].Op == syntax.OpBeginText {
			re = &syntax.Regexp{Op: syntax.OpConcat, Sub: re.Sub[1:]}
			continue
		}
		re = re.Sub[0]
	}
	if re.Op != syntax.OpLiteral || re.Flags&syntax.FoldCase != 0 {
		return ""
	}
	literal := string(re.Rune)
	if i := strings.IndexRune(literal, utf8.RuneError); i >= 0 {
		return literal[:i] // to package regexp every byte that is not UTF-8 is this one, too
	}
	return literal
}

// longest returns the longest literal of at most size bytes that paths begin with and this one too; -1 for none. It may be one
// that only whole paths are, which leads on to the right one.
func (x *index) longest(path []byte, size int) int32 {
	for i := range x.lengths {
		l := &x.lengths[i]
		if l.size > size {
			continue
		}
		if last := path[l.size-1]; l.last[last/32]&(1<<(last%32)) == 0 {
			continue
		}
		if !l.inside && l.size < len(path) && path[l.size] != '/' {
			continue
		}
		if at := x.literals.find(path[:l.size]); at >= 0 {
			return int32(at)
		}
	}
	return x.root
}

// find returns the number of the first route that matches, or -1.
func (x *index) find(routes []Route, r *message.Request) int {
	best, at := int32(len(routes)), int32(-1)
	if x.exact {
		if at = int32(x.literals.find(r.Path)); at >= 0 {
			l := &x.literals.entries[at].value
			best = first(routes, x.lists[l.whole:l.end], best, r)
		}
	}
	if at < 0 {
		at = x.longest(r.Path, len(r.Path))
	}
	for at >= 0 {
		l := &x.literals.entries[at].value
		if l.least >= best {
			break
		}
		best = first(routes, x.lists[l.begin:l.whole], best, r)
		at = l.shorter
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

package route

import (
	"regexp/syntax"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// indexFrom is the number of routes from which walking down the tree beats trying one after the other.
const indexFrom = 3

// index finds the first matching route of a host without trying all of them. It is a radix tree over literal paths and
// prefixes: a path is walked down once, whatever the number of routes, and the routes that can hold it stand on the way.
// Each list keeps the order of the rules, so the first match of each, and of these the earliest, is the first match of all.
//
// The tree only narrows down: a candidate is still asked its whole condition, so it cannot make a route match.
type index struct {
	root node
	rest []int32 // no path condition, a suffix, one that ignores case, or an expression that begins with nothing literal
}

type node struct {
	label    string // bytes of the path between the parent and here
	children []*node
	// Once the tree is built, slots[c-low] is one more than the place of the child whose label begins with c, or 0.
	slots  []uint16
	low    byte
	prefix []int32 // routes whose path begins with the bytes up to here
	exact  []int32 // routes whose path is the bytes up to here
	least  int32   // route here and below
}

func newIndex(routes []Route) *index {
	x := &index{root: node{least: int32(len(routes))}}
	for i := range routes {
		n := int32(i)
		switch key, kind := pathKey(routes[i].match); kind {
		case match.Exact:
			leaf := x.root.insert(key, n)
			leaf.exact = append(leaf.exact, n)
		case match.Prefix:
			leaf := x.root.insert(key, n)
			leaf.prefix = append(leaf.prefix, n)
		default:
			x.rest = append(x.rest, n)
		}
	}
	x.root.finish()
	return x
}

// finish makes children quick to find.
func (n *node) finish() {
	if len(n.children) == 0 {
		return
	}
	low, high := n.children[0].label[0], n.children[0].label[0]
	for _, c := range n.children {
		low, high = min(low, c.label[0]), max(high, c.label[0])
		c.finish()
	}
	slots := make([]uint16, int(high-low)+1)
	for i, c := range n.children {
		slots[c.label[0]-low] = uint16(i + 1)
	}
	n.low, n.slots = low, slots
}

// insert returns the node for key below n, which it makes when there is none, for a route with the number i. Numbers come
// in ascending order.
func (n *node) insert(key string, i int32) *node {
	n.least = min(n.least, i)
	if key == "" {
		return n
	}
	at := slices.IndexFunc(n.children, func(c *node) bool { return c.label[0] == key[0] })
	if at < 0 {
		leaf := &node{label: key, least: i}
		n.children = append(n.children, leaf)
		return leaf
	}
	child := n.children[at]
	same := 0
	for same < len(key) && same < len(child.label) && key[same] == child.label[same] {
		same++
	}
	if same < len(child.label) {
		upper := &node{label: child.label[:same], children: []*node{child}, least: child.least}
		child.label = child.label[same:]
		n.children[at] = upper
		child = upper
	}
	return child.insert(key[same:], i)
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
	return string(re.Rune)
}

// find returns the number of the first route that matches, or -1.
func (x *index) find(routes []Route, r *message.Request) int {
	best := int32(len(routes))
	path, n := r.Path, &x.root
	for {
		if len(n.prefix) > 0 {
			best = first(routes, n.prefix, best, r)
		}
		if len(path) == 0 {
			best = first(routes, n.exact, best, r)
			break
		}
		at := int(path[0]) - int(n.low)
		if uint(at) >= uint(len(n.slots)) || n.slots[at] == 0 {
			break
		}
		n = n.children[n.slots[at]-1]
		size := len(n.label)
		if n.least >= best || len(path) < size || size > 1 && string(path[1:size]) != n.label[1:] {
			break
		}
		path = path[size:]
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

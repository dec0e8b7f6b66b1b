package wire

import (
	"fmt"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/codec"
)

// State is what a proxy has: a plan, and the hash of each of its pieces. It is immutable; With makes the next one, which
// shares everything that did not change.
type State struct {
	Plan   *plan.Plan
	Hashes map[Ref]Hash
}

// NewState returns the state of a proxy that has p, nil for nothing.
func NewState(p *plan.Plan) (*State, error) {
	s := &State{Plan: &plan.Plan{}, Hashes: make(map[Ref]Hash)}
	if p == nil {
		return s, nil
	}
	s.Plan = p
	var failed error
	Walk(p, func(ref Ref, piece any) {
		e, err := Encode(ref, piece)
		if err != nil && failed == nil {
			failed = err
		}
		s.Hashes[ref] = e.Hash
	})
	return s, failed
}

// Empty reports whether there is no plan.
func (s *State) Empty() bool { return len(s.Hashes) == 0 }

// Have lists the pieces for a Hello, sorted.
func (s *State) Have() []Have {
	have := make([]Have, 0, len(s.Hashes))
	for r, h := range s.Hashes {
		have = append(have, Have{r, h})
	}
	slices.SortFunc(have, func(a, b Have) int { return a.Ref.Compare(b.Ref) })
	return have
}

// With returns the state after a complete change. It reads every piece, checks that it is what its name and hash say, and
// that all references hold; whatever does not is a Rejection, and then there is no new state.
func (s *State) With(set []Piece, removed []Ref) (*State, []Rejection) {
	c := change{gone: make(map[Ref]bool, len(removed)+len(set))}
	hashes := make(map[Ref]Hash, len(s.Hashes)+len(set))
	for r, h := range s.Hashes {
		hashes[r] = h
	}
	for _, r := range removed {
		c.gone[r] = true
		delete(hashes, r)
	}
	var bad []Rejection
	for i := range set {
		p := &set[i]
		if err := c.read(p); err != nil {
			bad = append(bad, Rejection{p.Ref, err.Error()})
			continue
		}
		hashes[p.Ref] = p.Hash
	}
	if len(bad) > 0 {
		return nil, bad
	}
	next := &plan.Plan{
		Node:      s.Plan.Node,
		Listeners: merge(s.Plan.Listeners, c.set.Listeners, KindListener, c.gone, func(v *plan.Listener) string { return v.Name }),
		Routes:    merge(s.Plan.Routes, c.set.Routes, KindRoutes, c.gone, func(v *plan.RouteTable) string { return v.Name }),
		Clusters:  merge(s.Plan.Clusters, c.set.Clusters, KindCluster, c.gone, func(v *plan.Cluster) string { return v.Name }),
		Endpoints: merge(s.Plan.Endpoints, c.set.Endpoints, KindEndpoints, c.gone, func(v *plan.Endpoints) string { return v.Cluster }),
		Policies:  merge(s.Plan.Policies, c.set.Policies, KindPolicy, c.gone, func(v *plan.Policy) string { return v.Name }),
		Secrets:   merge(s.Plan.Secrets, c.set.Secrets, KindSecret, c.gone, func(v *plan.Secret) string { return v.Name }),
		Limits:    merge(s.Plan.Limits, c.set.Limits, KindLimit, c.gone, func(v *plan.RateLimit) string { return v.Name }),
	}
	next.Capture = s.Plan.Capture
	if capture := (Ref{Kind: KindCapture}); c.gone[capture] {
		next.Capture = c.set.Capture // nil where it was only removed
	}
	if c.node {
		next.Node = c.set.Node
	}
	if _, ok := hashes[Ref{Kind: KindNode}]; !ok {
		return nil, []Rejection{{Ref{Kind: KindNode}, "it is missing: a plan says whose it is"}}
	}
	if bad := Check(next); len(bad) > 0 {
		return nil, bad
	}
	return &State{Plan: next, Hashes: hashes}, nil
}

// change collects the pieces of a delta as values.
type change struct {
	set  plan.Plan
	node bool
	gone map[Ref]bool // what leaves the old plan: removed, or replaced by set
}

func (c *change) read(p *Piece) error {
	if HashOf(p.Ref.Kind, p.Bytes) != p.Hash {
		return fmt.Errorf("its bytes are not those of hash %s", p.Hash)
	}
	switch p.Ref.Kind {
	case KindNode:
		c.node = true
		if p.Ref.Name != "" {
			return fmt.Errorf("a node piece has no name")
		}
		return codec.Unmarshal(p.Bytes, &c.set.Node)
	case KindListener:
		return read(c, p, &c.set.Listeners, func(v *plan.Listener) string { return v.Name })
	case KindRoutes:
		return read(c, p, &c.set.Routes, func(v *plan.RouteTable) string { return v.Name })
	case KindCluster:
		return read(c, p, &c.set.Clusters, func(v *plan.Cluster) string { return v.Name })
	case KindEndpoints:
		return read(c, p, &c.set.Endpoints, func(v *plan.Endpoints) string { return v.Cluster })
	case KindPolicy:
		return read(c, p, &c.set.Policies, func(v *plan.Policy) string { return v.Name })
	case KindSecret:
		return read(c, p, &c.set.Secrets, func(v *plan.Secret) string { return v.Name })
	case KindLimit:
		return read(c, p, &c.set.Limits, func(v *plan.RateLimit) string { return v.Name })
	case KindCapture:
		if p.Ref.Name != "" {
			return fmt.Errorf("a capture piece has no name")
		}
		if c.set.Capture != nil {
			return fmt.Errorf("the change names it twice")
		}
		c.gone[p.Ref], c.set.Capture = true, new(plan.Capture)
		return codec.Unmarshal(p.Bytes, c.set.Capture)
	default:
		return fmt.Errorf("%w: this proxy does not know %s: the control plane is newer", codec.ErrUnknownField, p.Ref.Kind)
	}
}

func read[T any](c *change, p *Piece, into *[]T, name func(*T) string) error {
	var v T
	if err := codec.Unmarshal(p.Bytes, &v); err != nil {
		return err
	}
	if n := name(&v); n != p.Ref.Name {
		return fmt.Errorf("it calls itself %q", n)
	}
	if c.gone[p.Ref] {
		return fmt.Errorf("the change names it twice")
	}
	c.gone[p.Ref] = true
	*into = append(*into, v)
	return nil
}

// merge returns old without what is gone, and with set, sorted by name. When nothing of this kind changed it returns
// old itself: an endpoint that moves must not copy a thousand clusters.
func merge[T any](old, set []T, kind Kind, gone map[Ref]bool, name func(*T) string) []T {
	dropped := 0
	for r := range gone {
		if r.Kind != kind {
			continue
		}
		if _, ok := find(old, r.Name, name); ok {
			dropped++
		}
	}
	if dropped == 0 && len(set) == 0 {
		return old
	}
	n := len(old) - dropped + len(set)
	if n == 0 {
		return nil
	}
	slices.SortFunc(set, func(a, b T) int { return strings.Compare(name(&a), name(&b)) })
	next := make([]T, 0, n)
	for i := range old {
		for len(set) > 0 && name(&set[0]) < name(&old[i]) {
			next, set = append(next, set[0]), set[1:]
		}
		if !gone[Ref{kind, name(&old[i])}] {
			next = append(next, old[i])
		}
	}
	return append(next, set...)
}

func find[T any](s []T, want string, name func(*T) string) (int, bool) {
	lo, hi := 0, len(s)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if name(&s[mid]) < want {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < len(s) && name(&s[lo]) == want
}

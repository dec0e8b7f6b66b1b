package wire

import (
	"errors"
	"fmt"
	"sort"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/codec"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// State is what a proxy has. It is immutable; With makes the next one, which shares everything that did not change.
type State struct {
	Plan *packed.Plan
	has  bool // there is a plan
}

// NewState returns the state of a proxy that has p, nil for nothing.
func NewState(p *packed.Plan) *State {
	if p == nil {
		return &State{Plan: &packed.Plan{}}
	}
	return &State{Plan: p, has: true}
}

// Empty reports whether there is no plan.
func (s *State) Empty() bool { return !s.has }

// Pieces returns how many pieces the plan has.
func (s *State) Pieces() int {
	p := s.Plan
	n := len(p.Listeners) + len(p.Routes) + len(p.Clusters) + len(p.Endpoints) + len(p.Policies) + len(p.Secrets) + len(p.Limits)
	if s.has {
		n++ // the node
	}
	if p.Capture != nil {
		n++
	}
	return n
}

// Have lists the pieces for a Hello, sorted. Hashes are made for it: they are asked for once in a stream, and kept they would be
// a good part of what a piece takes.
func (s *State) Have() []Have {
	if !s.has {
		return nil
	}
	p := s.Plan
	have := make([]Have, 0, s.Pieces())
	some := &plan.Plan{Node: p.Node, Listeners: p.Listeners, Policies: p.Policies, Secrets: p.Secrets, Limits: p.Limits, Capture: p.Capture}
	Walk(some, func(ref Ref, piece any) {
		e, err := Encode(ref, piece)
		if err != nil {
			return // it was decoded from something that can be encoded; without it the piece comes once more
		}
		have = append(have, Have{ref, e.Hash})
	})
	have = haves(have, KindRoutes, p.Routes)
	have = haves(have, KindCluster, p.Clusters)
	have = haves(have, KindEndpoints, p.Endpoints)
	sort.Slice(have, func(i, j int) bool { return have[i].Ref.Compare(have[j].Ref) < 0 })
	return have
}

func haves[T any](have []Have, kind Kind, pieces []packed.Piece[T]) []Have {
	for _, p := range pieces {
		have = append(have, Have{Ref{kind, p.Name()}, HashOf(kind, []byte(p))})
	}
	return have
}

// With returns the state after a complete change. It reads every piece, checks that it is what its name and hash say, and
// that all references hold; whatever does not is a Rejection, and then there is no new state.
func (s *State) With(set []Piece, removed []Ref) (*State, []Rejection) {
	c := change{old: s.Plan, gone: make(map[Ref]bool, len(removed)+len(set))}
	for _, r := range removed {
		c.gone[r] = true
	}
	var bad []Rejection
	for i := range set {
		p := &set[i]
		if err := c.read(p); err != nil {
			bad = append(bad, Rejection{p.Ref, err.Error()})
		}
	}
	if len(bad) > 0 {
		return nil, bad
	}
	old := s.Plan
	next := &packed.Plan{
		Node:      old.Node,
		Listeners: merge(old.Listeners, c.set.Listeners, KindListener, c.gone, func(v *plan.Listener) string { return v.Name }),
		Routes:    merge(old.Routes, c.set.Routes, KindRoutes, c.gone, nameOf),
		Clusters:  merge(old.Clusters, c.set.Clusters, KindCluster, c.gone, nameOf),
		Endpoints: merge(old.Endpoints, c.set.Endpoints, KindEndpoints, c.gone, nameOf),
		Policies:  merge(old.Policies, c.set.Policies, KindPolicy, c.gone, func(v *plan.Policy) string { return v.Name }),
		Secrets:   merge(old.Secrets, c.set.Secrets, KindSecret, c.gone, func(v *plan.Secret) string { return v.Name }),
		Limits:    merge(old.Limits, c.set.Limits, KindLimit, c.gone, func(v *plan.RateLimit) string { return v.Name }),
	}
	next.Capture = old.Capture
	if capture := (Ref{Kind: KindCapture}); c.gone[capture] {
		next.Capture = c.set.Capture // nil where it was only removed
	}
	if c.node {
		next.Node = c.set.Node
	}
	if !c.node && (!s.has || c.gone[Ref{Kind: KindNode}]) {
		return nil, []Rejection{{Ref{Kind: KindNode}, "it is missing: a plan says whose it is"}}
	}
	if bad := Check(next, old); len(bad) > 0 {
		return nil, bad
	}
	return &State{Plan: next, has: true}, nil
}

func nameOf[T any](p *packed.Piece[T]) string { return p.Name() }

// change collects the pieces of a delta as values.
type change struct {
	old  *packed.Plan
	set  packed.Plan
	node bool
	gone map[Ref]bool // what leaves the old plan: removed, or replaced by set
}

func (c *change) read(p *Piece) error {
	if HashOf(p.Ref.Kind, p.Bytes) != p.Hash {
		return fmt.Errorf("its bytes are not those of hash %s", p.Hash)
	}
	switch p.Ref.Kind {
	case KindNode:
		if err := nameless(p, c.node); err != nil {
			return err
		}
		c.node = true
		return codec.Unmarshal(p.Bytes, &c.set.Node)
	case KindListener:
		return read(c, p, &c.set.Listeners, func(v *plan.Listener) string { return v.Name })
	case KindRoutes:
		return pack(c, p, &c.set.Routes, c.old.Routes)
	case KindCluster:
		return pack(c, p, &c.set.Clusters, c.old.Clusters)
	case KindEndpoints:
		return pack(c, p, &c.set.Endpoints, c.old.Endpoints)
	case KindPolicy:
		return read(c, p, &c.set.Policies, func(v *plan.Policy) string { return v.Name })
	case KindSecret:
		return read(c, p, &c.set.Secrets, func(v *plan.Secret) string { return v.Name })
	case KindLimit:
		return read(c, p, &c.set.Limits, func(v *plan.RateLimit) string { return v.Name })
	case KindCapture:
		if err := nameless(p, c.set.Capture != nil); err != nil {
			return err
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
	if err := c.names(p, name(&v)); err != nil {
		return err
	}
	*into = append(*into, v)
	return nil
}

// pack is read for what stays packed.
func pack[T any](c *change, p *Piece, into *[]packed.Piece[T], old []packed.Piece[T]) error {
	piece, err := packed.Read[T](string(p.Bytes))
	if err != nil {
		return err
	}
	if err := c.names(p, piece.Name()); err != nil {
		return err
	}
	if had := packed.Get(old, p.Ref.Name); had == piece {
		piece = had // one copy is enough
	}
	*into = append(*into, piece)
	return nil
}

var errTwice = errors.New("the change names it twice")

// nameless refuses a name of what there is one of, and a second one.
func nameless(p *Piece, had bool) error {
	switch {
	case p.Ref.Name != "":
		return fmt.Errorf("a %s piece has no name", p.Ref.Kind)
	case had:
		return errTwice
	}
	return nil
}

// names takes note of a piece that was read.
func (c *change) names(p *Piece, itself string) error {
	if itself != p.Ref.Name {
		return fmt.Errorf("it calls itself %q", itself)
	}
	if c.gone[p.Ref] {
		return errTwice
	}
	c.gone[p.Ref] = true
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
	sort.Slice(set, func(i, j int) bool { return name(&set[i]) < name(&set[j]) })
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

package serve

import (
	"fmt"
	"reflect"
	"slices"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire"
)

// blob is an encoded piece. Everything but value and refs is immutable.
type blob struct {
	piece wire.Piece
	// value is the piece that was encoded, last seen in some plan; nil for what a proxy said it has. It is there to
	// recognize the piece without encoding it again.
	value any
	refs  int // plans that hold it
}

// store keeps each encoded piece once. Server.mu guards it.
type store struct {
	byHash map[wire.Hash]*blob
	byRef  map[wire.Ref][]*blob // the blobs with one name: proxies may need different pieces of one name
	idle   []*blob              // may have lost their last reference
}

func newStore() store {
	return store{byHash: make(map[wire.Hash]*blob), byRef: make(map[wire.Ref][]*blob)}
}

// maxVariants is how many pieces of one name are compared before encoding. A name that is shared has one or two; a name
// that means something else for every proxy ("inbound|9080||") has one for each, and comparing with all would be quadratic.
const maxVariants = 8

// intern returns the blobs of all pieces of p, sorted, without references for the caller. old is what the same proxy had
// before, sorted: most pieces are still the same.
func (s *store) intern(p *plan.Plan, old []*blob, c *counters) ([]*blob, error) {
	n := 1 + len(p.Listeners) + len(p.Routes) + len(p.Clusters) + len(p.Endpoints) + len(p.Policies) + len(p.Secrets) + len(p.Limits) + 1
	blobs := make([]*blob, 0, n)
	var failed error
	wire.Walk(p, func(ref wire.Ref, piece any) {
		if failed != nil {
			return
		}
		var prior *blob
		if i, ok := search(old, ref); ok {
			prior = old[i]
		}
		b, err := s.one(ref, piece, prior, c)
		if err != nil {
			failed = err
			return
		}
		blobs = append(blobs, b)
	})
	// one gave a reference for each, so that sweep leaves them; the caller takes its own.
	defer func() {
		for _, b := range blobs {
			s.drop(b)
		}
	}()
	if failed != nil {
		return nil, failed
	}
	slices.SortFunc(blobs, byRef)
	for i := 1; i < len(blobs); i++ {
		if blobs[i].piece.Ref == blobs[i-1].piece.Ref {
			return nil, fmt.Errorf("%s is there twice", blobs[i].piece.Ref)
		}
	}
	return slices.Clone(blobs), nil
}

// one returns the blob of a piece with one reference for the caller. It encodes only what it has not seen.
func (s *store) one(ref wire.Ref, piece any, prior *blob, c *counters) (*blob, error) {
	if prior != nil && equal(prior, piece) {
		prior.refs++
		return prior, nil
	}
	variants := s.byRef[ref]
	for i := len(variants) - 1; i >= 0 && i >= len(variants)-maxVariants; i-- {
		if variants[i] != prior && equal(variants[i], piece) {
			variants[i].refs++
			return variants[i], nil
		}
	}
	e, err := wire.Encode(ref, piece)
	if err != nil {
		return nil, err
	}
	c.encodes.Add(1)
	if b, ok := s.byHash[e.Hash]; ok {
		b.value = piece
		b.refs++
		return b, nil
	}
	b := &blob{piece: e, value: piece, refs: 1}
	s.byHash[e.Hash] = b
	s.byRef[ref] = append(s.byRef[ref], b)
	return b, nil
}

// equal reports whether b is the encoding of piece. Slices that compile shared between plans are recognized by their address.
func equal(b *blob, piece any) bool {
	if b.value == nil || !reflect.DeepEqual(b.value, piece) {
		return false
	}
	b.value = piece // let go of the older plan that it was part of
	return true
}

func (s *store) keep(blobs []*blob) {
	for _, b := range blobs {
		b.refs++
	}
}

func (s *store) release(blobs []*blob) {
	for _, b := range blobs {
		s.drop(b)
	}
}

func (s *store) drop(b *blob) {
	if b.refs--; b.refs == 0 {
		s.idle = append(s.idle, b)
	}
}

// sweep forgets the blobs that no plan holds any more. Streams that still need one have their own pointer to it.
func (s *store) sweep() {
	for _, b := range s.idle {
		if b.refs > 0 || s.byHash[b.piece.Hash] != b {
			continue
		}
		delete(s.byHash, b.piece.Hash)
		ref := b.piece.Ref
		rest := slices.DeleteFunc(s.byRef[ref], func(o *blob) bool { return o == b })
		if len(rest) == 0 {
			delete(s.byRef, ref)
		} else {
			s.byRef[ref] = rest
		}
	}
	clear(s.idle)
	s.idle = s.idle[:0]
}

// bytes returns how many encoded bytes are kept.
func (s *store) bytes() (n int) {
	for _, b := range s.byHash {
		n += len(b.piece.Bytes)
	}
	return n
}

func byRef(a, b *blob) int { return a.piece.Ref.Compare(b.piece.Ref) }

func search(blobs []*blob, ref wire.Ref) (int, bool) {
	return slices.BinarySearchFunc(blobs, ref, func(b *blob, r wire.Ref) int { return b.piece.Ref.Compare(r) })
}

func has(blobs []*blob, ref wire.Ref) bool {
	_, ok := search(blobs, ref)
	return ok
}

// with returns blobs with b in its place, and the blob that stood there.
func with(blobs []*blob, b *blob) (next []*blob, old *blob, changed bool) {
	i, ok := search(blobs, b.piece.Ref)
	if !ok {
		next = make([]*blob, 0, len(blobs)+1)
		return append(append(append(next, blobs[:i]...), b), blobs[i:]...), nil, true
	}
	if old = blobs[i]; old.piece.Hash == b.piece.Hash {
		return blobs, old, false
	}
	next = slices.Clone(blobs)
	next[i] = b
	return next, old, true
}

func same(a, b []*blob) bool {
	return slices.EqualFunc(a, b, func(x, y *blob) bool { return x == y || x.piece.Hash == y.piece.Hash })
}

// diff returns what turns have into want. Both are sorted.
func diff(have, want []*blob) (set []*blob, removed []wire.Ref) {
	for len(have) > 0 || len(want) > 0 {
		c := 0
		switch {
		case len(have) == 0:
			c = 1
		case len(want) == 0:
			c = -1
		case have[0] != want[0]: // pointers: almost always the same blob
			c = have[0].piece.Ref.Compare(want[0].piece.Ref)
		}
		switch {
		case c < 0:
			removed = append(removed, have[0].piece.Ref)
			have = have[1:]
		case c > 0:
			set = append(set, want[0])
			want = want[1:]
		default:
			if have[0] != want[0] && have[0].piece.Hash != want[0].piece.Hash {
				set = append(set, want[0])
			}
			have, want = have[1:], want[1:]
		}
	}
	return set, removed
}

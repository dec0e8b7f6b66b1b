package wire

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/codec"
)

// Kind is the kind of a piece. Never reuse a number.
type Kind uint8

// The kinds.
const (
	KindNode Kind = iota + 1 // exactly one, without a name
	KindListener
	KindRoutes
	KindCluster
	KindEndpoints // under the cluster's name
	KindPolicy
	KindSecret
	KindLimit
	KindCapture // at most one, without a name
)

var kindNames = [...]string{
	KindNode: "node", KindListener: "listener", KindRoutes: "routes", KindCluster: "cluster", KindEndpoints: "endpoints", KindPolicy: "policy",
	KindSecret: "secret", KindLimit: "limit", KindCapture: "capture",
}

// String returns the word for the kind.
func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// KindByName is the inverse of Kind.String; 0 for a word that names none.
func KindByName(s string) Kind {
	for k, n := range kindNames {
		if n == s && n != "" {
			return Kind(k)
		}
	}
	return 0
}

// Ref names a piece of a plan.
type Ref struct {
	Kind Kind   `plan:"1"`
	Name string `plan:"2"`
}

// Compare orders by kind, then name.
func (r Ref) Compare(o Ref) int {
	if c := cmp.Compare(r.Kind, o.Kind); c != 0 {
		return c
	}
	return strings.Compare(r.Name, o.Name)
}

// String returns the piece as people are shown it: cluster "outbound|80||a".
func (r Ref) String() string {
	if r.Name == "" {
		return r.Kind.String()
	}
	return fmt.Sprintf("%s %q", r.Kind, r.Name)
}

// Hash is the SHA-256 of a piece's kind and encoding. The encoding holds the name too, and one value has one encoding: two
// pieces with one hash are one piece.
type Hash [sha256.Size]byte

// String returns the first 12 hexadecimal digits, enough for people.
func (h Hash) String() string { return hex.EncodeToString(h[:6]) }

// Piece is a part of a plan as it travels.
type Piece struct {
	Ref   Ref    `plan:"1"`
	Hash  Hash   `plan:"2"`
	Bytes []byte `plan:"3"`
}

// HashOf returns the hash of an encoded piece.
func HashOf(k Kind, encoded []byte) Hash {
	h := sha256.New()
	h.Write([]byte{byte(k)})
	h.Write(encoded)
	var sum Hash
	h.Sum(sum[:0])
	return sum
}

// Walk calls visit for every piece of p with a pointer to it: *plan.Node first, then *plan.Listener and so on in the order of
// the kinds. Nothing is copied.
func Walk(p *plan.Plan, visit func(ref Ref, piece any)) {
	visit(Ref{Kind: KindNode}, &p.Node)
	for i := range p.Listeners {
		visit(Ref{KindListener, p.Listeners[i].Name}, &p.Listeners[i])
	}
	for i := range p.Routes {
		visit(Ref{KindRoutes, p.Routes[i].Name}, &p.Routes[i])
	}
	for i := range p.Clusters {
		visit(Ref{KindCluster, p.Clusters[i].Name}, &p.Clusters[i])
	}
	for i := range p.Endpoints {
		visit(Ref{KindEndpoints, p.Endpoints[i].Cluster}, &p.Endpoints[i])
	}
	for i := range p.Policies {
		visit(Ref{KindPolicy, p.Policies[i].Name}, &p.Policies[i])
	}
	for i := range p.Secrets {
		visit(Ref{KindSecret, p.Secrets[i].Name}, &p.Secrets[i])
	}
	for i := range p.Limits {
		visit(Ref{KindLimit, p.Limits[i].Name}, &p.Limits[i])
	}
	if p.Capture != nil {
		visit(Ref{Kind: KindCapture}, p.Capture)
	}
}

// Encode makes the travelling form of a piece that Walk visited.
func Encode(ref Ref, piece any) (Piece, error) {
	b, err := codec.Marshal(piece)
	if err != nil {
		return Piece{}, fmt.Errorf("%s: %w", ref, err)
	}
	if len(b) > MaxPiece {
		return Piece{}, fmt.Errorf("%s takes %d bytes, at most %d are possible: split it", ref, len(b), MaxPiece)
	}
	return Piece{Ref: ref, Hash: HashOf(ref.Kind, b), Bytes: b}, nil
}

// Package packed keeps a plan as the bytes that it came in, and opens what is asked for.
//
// A proxy knows many services and talks to few. What it knows of the others is needed to look them up by name, and when
// somebody asks to see the plan; decoded it takes three to five times as much memory as encoded. So route tables, clusters and
// endpoints, which grow with the mesh, are kept encoded, and everything else as it is.
//
// In: a plan.Plan, or its encoding or JSON from disk, or pieces from the control stream. Each piece is made here, or decoded once before it
// is taken, so what is here can be opened. Out: pieces, whose names can be had without opening them, and which are equal when their
// strings are: one value has one encoding.
//
// It is pure and holds no state. Who keeps what was opened, and for how long, is its user's business: internal/proxy/route opens a virtual
// host, and internal/proxy/upstream a cluster, with its first request.
package packed

import (
	"bytes"
	"cmp"
	"fmt"
	"iter"
	"slices"
	"sort"
	"strings"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/codec"
)

// Piece is the encoding of a T whose first field is its name.
type Piece[T any] string

type (
	// Routes is a packed route table.
	Routes = Piece[plan.RouteTable]
	// Host is a packed virtual host, a part of Routes.
	Host = Piece[plan.VirtualHost]
	// Cluster is a packed cluster.
	Cluster = Piece[plan.Cluster]
	// Endpoints is the packed members of a cluster.
	Endpoints = Piece[plan.Endpoints]
)

// Pack encodes a value. An error is ours: a value that can't be encoded.
func Pack[T any](v *T) (Piece[T], error) {
	b, err := codec.Marshal(v)
	return Piece[T](b), err
}

// Read takes an encoding in that came from elsewhere, after a look at whether it is one.
func Read[T any](in string) (Piece[T], error) {
	if err := codec.UnmarshalString(in, new(T)); err != nil {
		return "", err
	}
	return Piece[T](in), nil
}

// Open decodes the piece. The strings of the value are parts of the piece, and keep it alive. Whoever makes pieces has looked at them,
// so that it can't fail.
func (p Piece[T]) Open() *T {
	v := new(T)
	if err := codec.Reopen(string(p), v); err != nil {
		panic(fmt.Sprintf("a piece of a plan was taken that can't be read: %v", err))
	}
	return v
}

// Name returns the name of the piece.
func (p Piece[T]) Name() string {
	for number, name := range codec.Fields(string(p)) {
		if number == 1 {
			return name
		}
		break
	}
	return ""
}

// Has reports whether a field of the piece is there, by its number: it is not zero, or a pointer that is not nil.
func (p Piece[T]) Has(field int) bool {
	for number := range codec.Fields(string(p)) {
		if number >= field {
			return number == field
		}
	}
	return false
}

// The numbers of fields that are read without opening a piece.
const (
	planRoutes    = 3
	planClusters  = 4
	planEndpoints = 5
	planEnd       = 10 // the first that is not in use

	tableHosts  = 2
	hostDomains = 2
)

// Hosts yields the virtual hosts of a route table, in order.
func Hosts(t Routes) iter.Seq[Host] {
	return func(yield func(Host) bool) {
		for number, body := range codec.Fields(string(t)) {
			if number == tableHosts && !yield(Host(body)) {
				return
			}
		}
	}
}

// Domains yields the domains of a virtual host, in order.
func Domains(h Host) iter.Seq[string] {
	return func(yield func(string) bool) {
		for number, body := range codec.Fields(string(h)) {
			if number == hostDomains && !yield(body) {
				return
			}
		}
	}
}

// Bare opens a route table without its hosts.
func Bare(t Routes) *plan.RouteTable {
	var rest []byte
	for number, body := range codec.Fields(string(t)) {
		if number != tableHosts { // all others are strings
			rest = codec.AppendField(rest, number, body)
		}
	}
	return Routes(rest).Open()
}

// Plan is a plan.Plan of which the parts that grow with the mesh are packed. It must not be changed.
type Plan struct {
	Node      plan.Node
	Listeners []plan.Listener
	Routes    []Routes    // sorted by name, as are the next two
	Clusters  []Cluster   //
	Endpoints []Endpoints // at most one for each cluster, under its name
	Policies  []plan.Policy
	Secrets   []plan.Secret
	Limits    []plan.RateLimit
	Capture   *plan.Capture
}

// Of packs a plan. The parts that are not packed are shared with p.
func Of(p *plan.Plan) (*Plan, error) {
	out := &Plan{Node: p.Node, Listeners: p.Listeners, Policies: p.Policies, Secrets: p.Secrets, Limits: p.Limits, Capture: p.Capture}
	var err error
	if out.Routes, err = packAll(p.Routes); err == nil {
		if out.Clusters, err = packAll(p.Clusters); err == nil {
			out.Endpoints, err = packAll(p.Endpoints)
		}
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Keeping returns p with the pieces of old wherever they are the same, so that there is one copy of each.
func (p *Plan) Keeping(old *Plan) *Plan {
	if old == nil {
		return p
	}
	out := *p
	out.Routes, out.Clusters, out.Endpoints = keep(p.Routes, old.Routes), keep(p.Clusters, old.Clusters), keep(p.Endpoints, old.Endpoints)
	return &out
}

func keep[T any](pieces, old []Piece[T]) []Piece[T] {
	out := slices.Clone(pieces)
	for i, p := range out {
		if had := Get(old, p.Name()); had == p {
			out[i] = had
		}
	}
	return out
}

func packAll[T any](values []T) ([]Piece[T], error) {
	if len(values) == 0 {
		return nil, nil
	}
	out := make([]Piece[T], len(values))
	for i := range values {
		var err error
		if out[i], err = Pack(&values[i]); err != nil {
			return nil, err
		}
	}
	sortPieces(out)
	return out, nil
}

func sortPieces[T any](pieces []Piece[T]) {
	sort.SliceStable(pieces, func(i, j int) bool { return pieces[i].Name() < pieces[j].Name() })
}

func inOrder[T any](pieces []Piece[T]) bool { return slices.IsSortedFunc(pieces, byName) }

func byName[T any](a, b Piece[T]) int { return cmp.Compare(a.Name(), b.Name()) }

// rest returns what is not packed, as a plan.
func (p *Plan) rest() *plan.Plan {
	return &plan.Plan{Node: p.Node, Listeners: p.Listeners, Policies: p.Policies, Secrets: p.Secrets, Limits: p.Limits, Capture: p.Capture}
}

// Open returns the plan.
func (p *Plan) Open() *plan.Plan {
	out := p.rest()
	out.Routes, out.Clusters, out.Endpoints = openAll(p.Routes), openAll(p.Clusters), openAll(p.Endpoints)
	return out
}

func openAll[T any](pieces []Piece[T]) []T {
	var out []T
	if len(pieces) > 0 {
		out = make([]T, len(pieces))
	}
	for i, p := range pieces {
		out[i] = *p.Open()
	}
	return out
}

// Append appends the encoding of the plan, as codec.Append does that of Open.
func (p *Plan) Append(dst []byte) ([]byte, error) {
	front, back := p.rest(), p.rest()
	front.Policies, front.Secrets, front.Limits, front.Capture = nil, nil, nil, nil
	back.Node, back.Listeners = plan.Node{}, nil
	dst, err := codec.Append(dst, front)
	if err != nil {
		return dst, err
	}
	dst = appendAll(dst, planRoutes, p.Routes)
	dst = appendAll(dst, planClusters, p.Clusters)
	dst = appendAll(dst, planEndpoints, p.Endpoints)
	return codec.Append(dst, back)
}

func appendAll[T any](dst []byte, number int, pieces []Piece[T]) []byte {
	for _, p := range pieces {
		dst = codec.AppendField(dst, number, string(p))
	}
	return dst
}

// Parse reads what Append wrote. Nothing of it refers to b.
func Parse(b []byte) (*Plan, error) {
	out := &Plan{}
	var rest []byte
	for number, body := range codec.Fields(string(b)) {
		var err error
		switch number {
		case planRoutes:
			out.Routes, err = take(out.Routes, body)
		case planClusters:
			out.Clusters, err = take(out.Clusters, body)
		case planEndpoints:
			out.Endpoints, err = take(out.Endpoints, body)
		default:
			rest = codec.AppendField(rest, number, body)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := out.setRest(rest); err != nil {
		return nil, err
	}
	if !inOrder(out.Routes) || !inOrder(out.Clusters) || !inOrder(out.Endpoints) {
		return nil, fmt.Errorf("%w: its pieces are not sorted by name", codec.ErrMalformed)
	}
	// Fields is lenient: one value has one encoding, so this is what it has to be.
	if again, err := out.Append(nil); err != nil || !bytes.Equal(again, b) {
		return nil, fmt.Errorf("%w: it is not the encoding of a plan", codec.ErrMalformed)
	}
	return out, nil
}

// setRest decodes what is not packed, after all that is packed was added.
func (p *Plan) setRest(b []byte) error {
	r := new(plan.Plan)
	if err := codec.Unmarshal(b, r); err != nil {
		return err
	}
	p.Node, p.Listeners, p.Policies, p.Secrets, p.Limits, p.Capture = r.Node, r.Listeners, r.Policies, r.Secrets, r.Limits, r.Capture
	p.Routes, p.Clusters, p.Endpoints = slices.Clone(p.Routes), slices.Clone(p.Clusters), slices.Clone(p.Endpoints) // without room for more
	return nil
}

// take adds a piece, with bytes of its own: each has to be let go for itself.
func take[T any](pieces []Piece[T], body string) ([]Piece[T], error) {
	p, err := Read[T](strings.Clone(body))
	return append(pieces, p), err
}

// Find returns the place of a name in pieces, which are sorted, and whether it is there.
func Find[T any](pieces []Piece[T], name string) (int, bool) {
	return slices.BinarySearchFunc(pieces, name, func(p Piece[T], name string) int { return cmp.Compare(p.Name(), name) })
}

// Get returns the piece with a name; "" for none.
func Get[T any](pieces []Piece[T], name string) Piece[T] {
	if i, ok := Find(pieces, name); ok {
		return pieces[i]
	}
	return ""
}

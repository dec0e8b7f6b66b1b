package serve

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire"
)

// Sync is how far a proxy is.
type Sync string

// The states.
const (
	SyncAbsent   Sync = "absent"   // not connected
	SyncWaiting  Sync = "waiting"  // connected, but there is no plan for it
	SyncPending  Sync = "pending"  // something is on its way
	SyncRejected Sync = "rejected" // it runs with an older version of what it rejected
	SyncSynced   Sync = "synced"   // it has confirmed everything
)

// ProxyStatus says how one proxy is.
type ProxyStatus struct {
	Node     ident.Name       `json:"node"`
	Sync     Sync             `json:"sync"`
	Role     plan.Role        `json:"role,omitempty"`
	Identity ident.Identity   `json:"identity,omitzero"`
	Version  string           `json:"version,omitempty"` // of the proxy program
	Remote   string           `json:"remote,omitempty"`  // address it connected from
	Pieces   int              `json:"pieces"`            // in its plan
	Rejected []wire.Rejection `json:"rejected,omitempty"`
	// Reason is why it last disconnected, or what it says about the change that it rejected.
	Reason    string        `json:"reason,omitempty"`
	Connected time.Time     `json:"connected,omitzero"` // since when, zero while it is not
	Expires   time.Time     `json:"expires,omitzero"`   // end of the certificate that it connected with, whoever signed it
	Since     time.Time     `json:"since,omitzero"`     // when its plan last changed
	Acked     time.Time     `json:"acked,omitzero"`     // last time it confirmed a change
	Took      time.Duration `json:"took,omitempty"`     // from the change to its confirmation, last time
	Pushes    uint64        `json:"pushes"`             // changes sent since it connected
}

// EventKind says what happened to a proxy.
type EventKind string

// The events.
const (
	EventConnected    EventKind = "connected"
	EventDisconnected EventKind = "disconnected"
	EventAck          EventKind = "ack"
	EventNack         EventKind = "nack"
)

// Event is something that happened to a proxy.
type Event struct {
	Kind     EventKind
	Node     ident.Name
	Took     time.Duration    // EventAck: from the change to its confirmation
	Reason   string           // EventNack, EventDisconnected
	Rejected []wire.Rejection // EventNack
}

// Status returns the state of all proxies, sorted by name.
func (s *Server) Status() []ProxyStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]ProxyStatus, 0, len(s.nodes))
	for _, n := range s.nodes {
		st := n.status
		st.Rejected = slices.Clone(st.Rejected)
		if n.target != nil {
			st.Pieces = len(n.target.blobs)
		}
		switch {
		case n.session == nil:
			st.Sync = SyncAbsent
		case n.target == nil:
			st.Sync = SyncWaiting
		case n.session.seen != n.target:
			st.Sync = SyncPending
		case len(st.Rejected) > 0 || n.session.stuck:
			st.Sync = SyncRejected
		default:
			st.Sync = SyncSynced
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b ProxyStatus) int { return a.Node.Compare(b.Node) })
	return out
}

// Synced reports whether every proxy in want is connected and has confirmed its plan, and names one that has not.
func (s *Server) Synced(want []ident.Name) (missing ident.Name, ok bool) {
	return s.all(want, func(n *node) bool { return n.running() && len(n.status.Rejected) == 0 })
}

// Running reports whether every proxy in want is connected and does of its plan what it will, and names one that does not: what it
// refuses a part of it runs without that.
func (s *Server) Running(want []ident.Name) (missing ident.Name, ok bool) {
	return s.all(want, (*node).running)
}

func (s *Server) all(want []ident.Name, ok func(*node) bool) (missing ident.Name, all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range want {
		if n := s.nodes[name]; n == nil || !ok(n) {
			return name, false
		}
	}
	return ident.Name{}, true
}

// running reports whether a proxy has what it takes of its target. Its caller holds mu.
func (n *node) running() bool {
	return n.session != nil && n.target != nil && n.session.seen == n.target && !n.session.stuck
}

type counters struct {
	encodes, pushes, pushed, acks, nacks, signed, refused, overflows atomic.Uint64

	convergeSum, convergeMax atomic.Int64
	convergeIn               [len(ConvergeBounds)]atomic.Uint64 // acks that took no longer than the bound, and longer than the one before
}

// ConvergeBounds are the upper bounds of Counters.ConvergeIn: Istio's (pilot_proxy_convergence_time), and finer ones below.
var ConvergeBounds = [...]time.Duration{
	5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond,
	500 * time.Millisecond, time.Second, 3 * time.Second, 5 * time.Second, 10 * time.Second, 20 * time.Second, 30 * time.Second,
}

func (c *counters) converged(d time.Duration) {
	c.acks.Add(1)
	c.convergeSum.Add(int64(d))
	if i := slices.IndexFunc(ConvergeBounds[:], func(b time.Duration) bool { return d <= b }); i >= 0 {
		c.convergeIn[i].Add(1)
	}
	for {
		m := c.convergeMax.Load()
		if int64(d) <= m || c.convergeMax.CompareAndSwap(m, int64(d)) {
			return
		}
	}
}

// Counters are totals since the server was made, and what it holds now.
type Counters struct {
	Encodes     uint64        `json:"encodes"`     // pieces encoded
	Pushes      uint64        `json:"pushes"`      // changes sent
	PushedBytes uint64        `json:"pushedBytes"` // in frames, before TLS
	Acks        uint64        `json:"acks"`
	Nacks       uint64        `json:"nacks"`
	Signed      uint64        `json:"signed"`    // certificates
	Refused     uint64        `json:"refused"`   // handshakes, tokens and hellos
	Overflows   uint64        `json:"overflows"` // connections over MaxConnections
	Connections int64         `json:"connections"`
	Proxies     int           `json:"proxies"`     // known
	Pieces      int           `json:"pieces"`      // different ones kept
	PieceBytes  int           `json:"pieceBytes"`  // of these
	ConvergeSum time.Duration `json:"convergeSum"` // of all Acks, from change to confirmation
	ConvergeMax time.Duration `json:"convergeMax"`
	// ConvergeIn are the Acks that took no longer than each of ConvergeBounds; those that took longer than all are in Acks alone.
	ConvergeIn [len(ConvergeBounds)]uint64 `json:"convergeIn"`
}

// Counters returns the counters.
func (s *Server) Counters() Counters {
	c := &s.counters
	out := Counters{
		Encodes: c.encodes.Load(), Pushes: c.pushes.Load(), PushedBytes: c.pushed.Load(), Acks: c.acks.Load(), Nacks: c.nacks.Load(),
		Signed: c.signed.Load(), Refused: c.refused.Load(), Overflows: c.overflows.Load(), Connections: s.conns.Load(),
		ConvergeSum: time.Duration(c.convergeSum.Load()), ConvergeMax: time.Duration(c.convergeMax.Load()),
	}
	below := uint64(0)
	for i := range c.convergeIn {
		below += c.convergeIn[i].Load()
		out.ConvergeIn[i] = below
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out.Proxies, out.Pieces, out.PieceBytes = len(s.nodes), len(s.store.byHash), s.store.bytes()
	return out
}

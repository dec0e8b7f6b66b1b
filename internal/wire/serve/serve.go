// Package serve is the control plane's end of the control stream: it hands every proxy its plan, and every change of it,
// and signs certificates on the same port.
//
// In: a whole plan for each proxy (SetPlan), or new endpoints for some (SetEndpoints). Out: to each connected proxy the pieces that
// it doesn't have, and a Status that says who is in sync and who refused what.
//
//   - A piece is encoded once, whoever needs it, and kept once under its hash until no plan holds it.
//   - A proxy has at most one delta in flight. What is set meanwhile replaces what was waiting, so a proxy that is slow
//     catches up in one step, and one that is dead costs nothing but its deadline.
//   - A piece that a proxy refuses is held back from that proxy, and the rest of the change goes out without it: one bad
//     resource never takes its neighbours down. It is tried again now and then, for what kept it out may pass.
//
// Goroutines: Run owns one for each connection and waits for all of them; a stream's goroutine owns the state of the
// conversation and writes, and has one reader, which it waits for. Server.mu guards what they share. SetPlan may be
// called from any goroutine and never waits for a proxy.
//
// Neighbours: wire has the words, identity/ca signs, app/control compiles plans and calls SetPlan; wire/watch is the other end.
package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/ca"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire"
)

// Options are what a server needs. Authority must be set.
type Options struct {
	Authority *ca.Authority
	// Authenticator says who a token is from; nil: certificates are only renewed, never given out.
	Authenticator ca.Authenticator
	// Admit may refuse a certificate to a workload that proved who it is, because it is gone; nil admits all.
	Admit func(ca.Workload) error
	// Credentials are the server's own; default: made by Authority for wire.ControlPlane.
	Credentials trust.Source
	// OnEvent is told of what happens to proxies, from their goroutines. It must not block.
	OnEvent func(Event)
	Log     *slog.Logger

	MaxConnections   int           // more are closed at once; default 20,000
	MaxHandshakes    int           // at a time, others wait; default 16 for each processor
	HandshakeTimeout time.Duration // from accept to the first message; default 10 s
	WriteTimeout     time.Duration // for one frame; default 10 s
	AckTimeout       time.Duration // from a delta to its answer; default 30 s
	Heartbeat        time.Duration // between heartbeats; a peer is dead after three; default 5 s
	// MaxAge bounds the life of a stream: between half of it and the whole, the proxy is asked to connect again, so that replicas that
	// came later get their share of the proxies; 0: streams last.
	MaxAge time.Duration
	// Again is the time after which a proxy is sent once more what it refused; each further time is put off twice as long, up to 5
	// minutes. Default 5 s.
	Again time.Duration
	// Spread is the time within which proxies are told that there are other roots, so that they don't all ask for certificates at once;
	// default 30 s.
	Spread time.Duration
}

// maxAgain bounds how long what a proxy refused is put off.
const maxAgain = 5 * time.Minute

// Server serves the control stream.
type Server struct {
	o        Options
	tls      *tls.Config
	counters counters
	conns    atomic.Int64
	hands    chan struct{} // one token for each handshake that may run

	mu    sync.Mutex
	store store
	nodes map[ident.Name]*node
}

// node is what the server knows of one proxy. Server.mu guards it.
type node struct {
	name    ident.Name
	target  *snapshot // what it should have; nil before SetPlan
	session *session  // nil while it is not connected
	status  ProxyStatus
}

// snapshot is what one proxy should have at one time. It is immutable.
type snapshot struct {
	blobs []*blob   // sorted by Ref
	since time.Time // when it was set
}

// New returns a server.
func New(o Options) *Server {
	o.Log = cmpOr(o.Log, slog.New(slog.DiscardHandler))
	if o.OnEvent == nil {
		o.OnEvent = func(Event) {}
	}
	if o.Credentials == nil {
		self := wire.ControlPlane(o.Authority.TrustDomain())
		o.Credentials = o.Authority.Source(ca.Workload{
			Identity: self,
			Node:     ident.Name{Namespace: self.Namespace, Name: self.ServiceAccount},
			Labels:   plan.WorkloadLabels{Workload: self.ServiceAccount, Namespace: self.Namespace, App: self.ServiceAccount},
		})
	}
	o.MaxConnections = cmpOr(o.MaxConnections, 20_000)
	o.MaxHandshakes = cmpOr(o.MaxHandshakes, 16*runtime.GOMAXPROCS(0))
	o.HandshakeTimeout = cmpOr(o.HandshakeTimeout, 10*time.Second)
	o.WriteTimeout = cmpOr(o.WriteTimeout, 10*time.Second)
	o.AckTimeout = cmpOr(o.AckTimeout, 30*time.Second)
	o.Heartbeat = cmpOr(o.Heartbeat, 5*time.Second)
	o.Again = cmpOr(o.Again, 5*time.Second)
	o.Spread = cmpOr(o.Spread, 30*time.Second)
	return &Server{
		o:     o,
		tls:   serverConfig(o.Credentials),
		hands: make(chan struct{}, o.MaxHandshakes),
		store: newStore(),
		nodes: make(map[ident.Name]*node),
	}
}

func cmpOr[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// serverConfig is mesh TLS, but for a client that has no certificate yet: that one may only ask for one.
func serverConfig(src trust.Source) *tls.Config {
	cfg := trust.ServerConfig(src, []string{wire.ALPN})
	verify := cfg.VerifyConnection
	cfg.ClientAuth = tls.RequestClientCert
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			if cs.NegotiatedProtocol != wire.ALPN {
				return fmt.Errorf("%w: it does not speak %s", trust.ErrPeer, wire.ALPN)
			}
			return nil
		}
		return verify(cs)
	}
	return cfg
}

// Run accepts connections until ctx ends, then hangs up on everybody. It closes ln.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	defer func() { _ = ln.Close() }()
	for pause := time.Duration(0); ; {
		nc, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = nc.Close()
			}
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accepting proxies: %w", err)
		case err != nil:
			// Out of file descriptors, or the client left already: both pass.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.o.Log.Warn("accepting a proxy failed, will go on", "error", err, "in", pause)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			continue
		}
		pause = 0
		if s.conns.Add(1) > int64(s.o.MaxConnections) {
			s.conns.Add(-1)
			s.counters.overflows.Add(1)
			_ = nc.Close()
			continue
		}
		wg.Go(func() {
			defer s.conns.Add(-1)
			defer func() { _ = nc.Close() }()
			s.serve(ctx, nc)
		})
	}
}

// SetPlan makes p what a proxy should have. p and everything in it must not change afterwards. An error says that p
// cannot be sent (a piece is too large, too deep, or there twice); then the proxy keeps what it has.
func (s *Server) SetPlan(name ident.Name, p *plan.Plan) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.node(name)
	var old []*blob
	if n.target != nil {
		old = n.target.blobs
	}
	blobs, err := s.store.intern(p, old, &s.counters)
	defer s.store.sweep()
	if err != nil {
		if n.target == nil && n.session == nil {
			delete(s.nodes, name)
		}
		return fmt.Errorf("plan of %s: %w", name, err)
	}
	if n.target != nil && same(old, blobs) {
		return nil
	}
	s.store.keep(blobs)
	s.store.release(old)
	n.retarget(blobs)
	return nil
}

// SetEndpoints replaces the endpoints of one cluster in the plans of some proxies, and nothing else: it costs the encoding of
// e once and a step for each of them. Proxies whose plan does not have the cluster are passed over.
func (s *Server) SetEndpoints(e plan.Endpoints, proxies []ident.Name) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ref := wire.Ref{Kind: wire.KindEndpoints, Name: e.Cluster}
	b, err := s.store.one(ref, &e, nil, &s.counters)
	if err != nil {
		return err
	}
	for _, name := range proxies {
		n, ok := s.nodes[name]
		if !ok || n.target == nil || !has(n.target.blobs, wire.Ref{Kind: wire.KindCluster, Name: e.Cluster}) {
			continue
		}
		if blobs, old, changed := with(n.target.blobs, b); changed {
			b.refs++
			if old != nil {
				s.store.drop(old)
			}
			n.retarget(blobs)
		}
	}
	s.store.drop(b) // the reference that one gave us; the plans have theirs
	s.store.sweep()
	return nil
}

// retarget gives n a new target and wakes its stream; Server.mu is held, and the blobs are kept.
func (n *node) retarget(blobs []*blob) {
	n.target = &snapshot{blobs: blobs, since: time.Now()}
	n.status.Since = n.target.since
	if n.session != nil {
		n.session.poke()
	}
}

// RemovePlan forgets a proxy. When it is connected it is sent nothing any more, and keeps what it has: a plan is never
// taken away from a proxy that may still have requests to serve.
func (s *Server) RemovePlan(name ident.Name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.nodes[name]
	if !ok {
		return
	}
	if n.target != nil {
		s.store.release(n.target.blobs)
		s.store.sweep()
		n.target = nil
	}
	if n.session == nil {
		delete(s.nodes, name)
	}
}

// node returns the entry for name, made when missing; s.mu is held.
func (s *Server) node(name ident.Name) *node {
	n, ok := s.nodes[name]
	if !ok {
		n = &node{name: name, status: ProxyStatus{Node: name}}
		s.nodes[name] = n
	}
	return n
}

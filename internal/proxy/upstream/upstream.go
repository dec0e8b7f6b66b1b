package upstream

import (
	"context"
	crand "crypto/rand"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/balance"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// Options are what a Set needs from outside.
type Options struct {
	Credentials trust.Source // nil: there is no mesh TLS, and connections that need it fail
	Conn        *conn.Config // nil: conn.Defaults
	// Dial makes the transport connection, nil: TCP without delay (Nagle) and without multipath, or that to a unix socket
	// (plan.UnixPrefix). Names are resolved by it.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	Log  *slog.Logger     // nil: nothing is logged
	Now  func() time.Time // nil: time.Now
	// Secrets finds what TLS to strangers needs (trust.Materials.Get); nil: there is none, and connections that need one fail.
	Secrets func(name string) (*trust.Material, error)
	// Resolve returns the addresses of a host, best first, for clusters whose endpoints are names; nil: Go's resolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Own reports whether an address is a listener of this proxy: no request goes there because a client says so (clusters with
	// Discovery AsRequested, Passthrough). nil: none is. Dial, when it is given, must look itself.
	Own func(netip.AddrPort) bool
}

// Set is the clusters of one proxy. It is safe for concurrent use.
type Set struct {
	credentials trust.Source
	conn        *conn.Config
	dial        func(ctx context.Context, addr string) (net.Conn, error)
	log         *slog.Logger
	now         func() time.Time
	secrets     func(name string) (*trust.Material, error)
	lookup      func(ctx context.Context, host string) ([]netip.Addr, error)
	own         func(netip.AddrPort) bool
	deliver     atomic.Pointer[Delivery]
	secret      [32]byte // of sessions whose plan has no key
	checking    chan struct{}
	place       atomic.Pointer[balance.Place]
	base        time.Time    // of clock
	coarse      atomic.Int64 // nanoseconds since base, as of the last tick or new connection

	clusters    atomic.Pointer[map[string]*Cluster]
	passthrough passthrough

	// live bounds every dial; it ends when Close gives up or is done.
	live   context.Context
	stop   context.CancelFunc
	kick   chan struct{} // wakes the keeper when it is asleep
	asleep atomic.Bool
	wg     sync.WaitGroup

	turns turns // of those who open connections

	updating sync.Mutex // one Update or Close at a time

	mu      sync.Mutex
	started bool // the keeper runs
	closed  bool
	conns   map[killer]struct{} // every open connection, for Close
	drained chan struct{}       // closed when Close was called and conns is empty
	ended   chan struct{}       // closed when Close was called
}

// killer is a connection that can be closed under its user.
type killer interface{ kill() }

// New returns a Set without clusters. Its keeper starts with the first connection or ejection.
func New(o Options) *Set {
	s := &Set{
		credentials: o.Credentials,
		conn:        o.Conn,
		dial:        o.Dial,
		log:         o.Log,
		now:         o.Now,
		secrets:     o.Secrets,
		lookup:      o.Resolve,
		own:         o.Own,
		checking:    make(chan struct{}, checksAtOnce),
		kick:        make(chan struct{}, 1),
		conns:       make(map[killer]struct{}),
		drained:     make(chan struct{}),
		ended:       make(chan struct{}),
	}
	if s.credentials == nil {
		s.credentials = trust.Static{}
	}
	if s.conn == nil {
		s.conn = conn.Defaults()
	}
	if s.dial == nil {
		s.dial = s.dialSocket
	}
	if s.secrets == nil {
		s.secrets = (*trust.Materials)(nil).Get
	}
	if s.lookup == nil {
		s.lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	_, _ = crand.Read(s.secret[:]) // it never fails (crypto/rand)
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.base = s.now()
	s.turns.set = s
	s.live, s.stop = context.WithCancel(context.Background())
	s.clusters.Store(&map[string]*Cluster{})
	s.passthrough.init(s)
	return s
}

// Locate says where the proxy is, for the locality of clusters (plan.Node). It is called before Update, which puts it in force
// for clusters that exist.
func (s *Set) Locate(n *plan.Node) {
	s.place.Store(&balance.Place{Locality: n.Locality, Labels: n.Labels, Peers: n.Peers})
}

func (s *Set) here() balance.Place {
	if p := s.place.Load(); p != nil {
		return *p
	}
	return balance.Place{}
}

// Update makes the clusters those of the plan, sorted by name as the endpoints are. Clusters that stay keep their counters, and endpoints that stay
// keep their connections and health. What is gone is drained: its idle connections are closed, requests in flight finish.
func (s *Set) Update(clusters []packed.Cluster, endpoints []packed.Endpoints) {
	s.updating.Lock()
	defer s.updating.Unlock()
	old := *s.clusters.Load()
	next := make(map[string]*Cluster, len(clusters))
	for _, p := range clusters {
		name := p.Name()
		g := given{p, packed.Get(endpoints, name)}
		c := old[name]
		switch {
		case c == nil:
			c = newCluster(s, g)
		case c.update(g):
			name = c.Name() // in the bytes that are kept
		}
		next[name] = c
	}
	s.clusters.Store(&next)
	for name, c := range old {
		if next[name] == nil {
			c.retire()
		}
	}
}

// Cluster returns a cluster by its name, or nil. It stays valid, and follows updates, for as long as it is in the plan;
// after that it still works, but keeps no connection.
func (s *Set) Cluster(name string) *Cluster { return (*s.clusters.Load())[name] }

// Clusters is the clusters that there were at one moment, whatever comes after it.
type Clusters struct{ clusters map[string]*Cluster }

// Clusters returns the clusters that there are now.
func (s *Set) Clusters() Clusters { return Clusters{*s.clusters.Load()} }

// Cluster is that of the Set at that moment.
func (v Clusters) Cluster(name string) *Cluster { return v.clusters[name] }

// Close ends the Set: idle connections are closed, requests in flight may finish until ctx is done, then their
// connections are closed too. It returns when every goroutine of the Set did, with ctx's error when it had to cut.
func (s *Set) Close(ctx context.Context) error {
	s.updating.Lock()
	defer s.updating.Unlock()
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.ended)
		if len(s.conns) == 0 {
			close(s.drained)
		}
	}
	s.mu.Unlock()

	s.each(func(c *Cluster) { c.retire() })
	var err error
	select {
	case <-s.drained:
	case <-ctx.Done():
		err = ctx.Err()
		s.mu.Lock()
		cut := make([]killer, 0, len(s.conns))
		for k := range s.conns {
			cut = append(cut, k)
		}
		s.mu.Unlock()
		for _, k := range cut {
			k.kill()
		}
	}
	s.stop()
	s.wg.Wait()
	return err
}

// CloseIdle closes every idle HTTP/1 connection. It is for a process that has no file descriptor left: they are a cache.
func (s *Set) CloseIdle() {
	s.each(func(c *Cluster) {
		if k := c.running(); k != nil {
			for _, e := range k.state.Load().endpoints {
				e.h1.distrust()
			}
		}
	})
}

// each calls f with every cluster there is.
func (s *Set) each(f func(*Cluster)) {
	for _, c := range *s.clusters.Load() {
		f(c)
	}
	s.passthrough.each(f)
}

// register notes a new connection and, when run is given, starts it as a goroutine of the Set. It reports false when
// the Set is closed: then the connection is the caller's to close.
func (s *Set) register(k killer, run func()) bool {
	s.coarse.Store(int64(s.now().Sub(s.base)))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.conns[k] = struct{}{}
	if run != nil {
		s.wg.Go(run)
	}
	s.wakeLocked()
	return true
}

// spawn starts a goroutine of the Set, which ends soon after live does. It reports false when the Set is closed.
func (s *Set) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Go(f)
	return true
}

// precise returns the time since base in nanoseconds.
func (s *Set) precise() int64 { return int64(s.now().Sub(s.base)) }

// unregister forgets a connection that is closed.
func (s *Set) unregister(k killer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.conns[k]; !ok {
		return
	}
	delete(s.conns, k)
	if s.closed && len(s.conns) == 0 {
		close(s.drained)
	}
}

// clock returns the time since base in nanoseconds, as of the last tick: as exact as idle times need, and free.
func (s *Set) clock() int64 { return s.coarse.Load() }

func random() uint64 { return rand.Uint64() }

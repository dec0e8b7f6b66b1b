package upstream

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/balance"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// defaultConnectTimeout bounds a connect, TLS included, when the plan does not (Istio connectTimeout).
const defaultConnectTimeout = 10 * time.Second

// What exactly is behind ErrNoHealthy and ErrOverflow. They are made once: an overload is no time to allocate.
var (
	errNoEndpoints = fmt.Errorf("%w: the cluster has none; check that the service's selector or subset labels match a running workload", ErrNoHealthy)
	errNoIdentity  = fmt.Errorf("%w: mutual TLS is demanded and no endpoint has a mesh identity", ErrNoHealthy)
	errAllEjected  = fmt.Errorf("%w: outlier detection ejected all of them", ErrNoHealthy)

	errMaxRequests    = fmt.Errorf("%w: too many requests in flight (maxRequests)", ErrOverflow)
	errMaxRetries     = fmt.Errorf("%w: too many retries in flight (maxRetries)", ErrOverflow)
	errMaxPending     = fmt.Errorf("%w: too many requests wait for a connection (maxPendingRequests)", ErrOverflow)
	errMaxConnections = fmt.Errorf("%w: too many connections (maxConnections)", ErrOverflow)
	errWaited         = fmt.Errorf("%w: no connection became free within the connect timeout (maxConnections)", ErrOverflow)

	errWaitDeadline = fmt.Errorf("%w while waiting for a connection", stream.ErrDeadline)

	// errMoved sends a waiter back to the picker: its endpoint is gone.
	errMoved = errors.New("endpoint is gone")
)

// Cluster is a group of endpoints that are alike, with the circuit limits that they share.
type Cluster struct {
	set     *Set
	name    string
	state   atomic.Pointer[state]
	counted counters

	mu        sync.Mutex // writers of state and of the endpoints' ejections
	endpoints map[key]*Endpoint
	nextSweep time.Time
}

// counters are the gauges that limits are held against, and totals for metrics.
type counters struct {
	requests    atomic.Int64 // in flight: from Acquire to Done
	pending     atomic.Int64 // of these, those that have no connection yet
	retries     atomic.Int64 // of these, those that are retries
	connections atomic.Int64 // open or being opened

	requestsTotal    atomic.Uint64
	retriesTotal     atomic.Uint64
	overflow         atomic.Uint64
	connectionsTotal atomic.Uint64 // opened
	connectFailed    atomic.Uint64
	ejections        atomic.Uint64
}

// state is what a cluster decides by. It is immutable.
type state struct {
	plan      *plan.Cluster
	planned   []plan.Endpoint // as they came
	endpoints []*Endpoint     // usable ones, health aside
	picker    *balance.Picker[*Endpoint]
}

// key is what makes an endpoint the same one across updates: connections must never outlive a change of it.
type key struct {
	address  string
	identity ident.Identity
	tls      bool
	sni      string
}

func newCluster(s *Set, name string) *Cluster {
	c := &Cluster{set: s, name: name, endpoints: make(map[key]*Endpoint)}
	c.state.Store(&state{plan: &plan.Cluster{Name: name}, picker: new(balance.Picker[*Endpoint])})
	return c
}

// Name returns the cluster's name.
func (c *Cluster) Name() string { return c.name }

// Plan returns the plan in force. It must not be changed.
func (c *Cluster) Plan() *plan.Cluster { return c.state.Load().plan }

// update puts a plan in force.
func (c *Cluster) update(p *plan.Cluster, planned []plan.Endpoint) {
	c.mu.Lock()
	old := c.state.Load()
	if slices.Equal(old.planned, planned) && reflect.DeepEqual(old.plan, p) {
		c.mu.Unlock()
		return
	}
	st := &state{plan: p, planned: planned}
	next := make(map[key]*Endpoint, len(planned))
	for i := range planned {
		pe := planned[i]
		k, ok := keyOf(p, &pe)
		if !ok || next[k] != nil {
			continue
		}
		e := c.endpoints[k]
		if e == nil {
			e = newEndpoint(c, k)
		}
		e.plan.Store(&pe)
		next[k] = e
		st.endpoints = append(st.endpoints, e)
	}
	var gone []*Endpoint
	for k, e := range c.endpoints {
		if next[k] == nil {
			gone = append(gone, e)
		}
	}
	c.endpoints = next
	if p.Outlier == nil {
		for _, e := range st.endpoints {
			e.forgive()
		}
	}
	c.repick(st)
	c.mu.Unlock()
	for _, e := range gone {
		e.drain()
	}
	c.slotFreed(nil) // a limit may have been raised
}

// keyOf says how an endpoint is to be reached, and false when it must not be used at all.
func keyOf(p *plan.Cluster, e *plan.Endpoint) (key, bool) {
	k := key{address: e.Address, identity: e.Identity}
	switch p.TLS {
	case plan.TLSOff:
	case plan.TLSMutual:
		if e.Identity.IsZero() {
			return k, false // fail closed: nobody could prove to be this endpoint
		}
		k.tls = true
	default:
		k.tls = !e.Identity.IsZero() && !e.Plaintext
	}
	if k.tls {
		k.sni = p.SNI
	}
	return k, true
}

// repick puts a state in force with a picker over its endpoints and their health. c.mu is held.
func (c *Cluster) repick(st *state) {
	members := make([]balance.Member[*Endpoint], len(st.endpoints))
	for i, e := range st.endpoints {
		members[i] = balance.Member[*Endpoint]{
			Value: e, Weight: e.Plan().Weight, InFlight: &e.inFlight, Aside: e.ejected.Load(),
		}
	}
	var minHealth uint32
	if st.plan.Outlier != nil {
		minHealth = st.plan.Outlier.MinHealthPercent
	}
	st.picker = balance.New(st.plan.Balancer, members, minHealth, random())
	c.state.Store(st)
}

// retire lets go of every connection that is not in use, now and from now on.
func (c *Cluster) retire() {
	for _, e := range c.state.Load().endpoints {
		e.drain()
	}
}

// trim closes connections that were idle or old enough. It returns when to look again, and whether any are left.
func (c *Cluster) trim() (pause time.Duration, left bool) {
	if c.counted.connections.Load() == 0 {
		return 0, false
	}
	st := c.state.Load()
	pause = keepSeldom
	for _, e := range st.endpoints {
		if e.connections.Load() == 0 {
			continue
		}
		left = true
		// An eighth of the shortest time that matters is as exact as these times need to be.
		if e.h1.trim(st) {
			pause = min(pause, e.idleTimeout(st, plaintextIdle)/8)
		}
		e.h2.trim(st)
		pause = min(pause, e.idleTimeout(st, appIdle)/8)
		if most := st.plan.Limits.MaxConnectionDuration.D(); most > 0 {
			pause = min(pause, most/8)
		}
	}
	return pause, left
}

func (s *state) connectTimeout() time.Duration {
	if d := s.plan.ConnectTimeout.D(); d > 0 {
		return d
	}
	return defaultConnectTimeout
}

// http2 says what is spoken to an endpoint for a request.
func (s *state) http2(a *Attempt, e *Endpoint) bool {
	switch s.plan.Protocol {
	case ident.HTTP:
		return e.key.tls && !a.HTTP1 && e.Plan().HTTP2
	case ident.HTTP2, ident.GRPC:
		return true
	default:
		return a.HTTP2
	}
}

// none says why there is nobody to pick.
func (s *state) none() error {
	switch {
	case len(s.planned) == 0:
		return errNoEndpoints
	case len(s.endpoints) == 0:
		return errNoIdentity
	default:
		return errAllEjected
	}
}

// take adds one to a gauge unless that would pass a limit; 0 is none.
func take(n *atomic.Int64, limit uint32) bool {
	if limit == 0 {
		n.Add(1)
		return true
	}
	for {
		v := n.Load()
		if v >= int64(limit) {
			return false
		}
		if n.CompareAndSwap(v, v+1) {
			return true
		}
	}
}

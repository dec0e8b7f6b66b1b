package upstream

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/balance"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// defaultConnectTimeout bounds a connect, TLS included, when the plan does not (Istio connectTimeout).
const defaultConnectTimeout = 10 * time.Second

// What exactly is behind ErrNoHealthy and ErrOverflow. They are made once: an overload is no time to allocate.
var (
	errNoEndpoints = fmt.Errorf("%w: the cluster has none; check that the service's selector or subset labels match a running workload", ErrNoHealthy)
	errNoIdentity  = fmt.Errorf("%w: mutual TLS is demanded and no endpoint has a mesh identity", ErrNoHealthy)
	errAllEjected  = fmt.Errorf("%w: health checks or outlier detection put all of them aside", ErrNoHealthy)
	errNoShare     = fmt.Errorf("%w: none is in a locality that has a share of this proxy's traffic (localityLbSetting.distribute)", ErrNoHealthy)
	errNoHost      = fmt.Errorf("%w: the cluster goes where the request says, and the request names no host and port", ErrNoHealthy)

	errMaxRequests    = fmt.Errorf("%w: too many requests in flight (maxRequests)", ErrOverflow)
	errMaxRetries     = fmt.Errorf("%w: too many retries in flight (maxRetries)", ErrOverflow)
	errRetryBudget    = fmt.Errorf("%w: too many retries for the requests there are (retryBudget)", ErrOverflow)
	errMaxPending     = fmt.Errorf("%w: too many requests wait for a connection (maxPendingRequests)", ErrOverflow)
	errMaxConnections = fmt.Errorf("%w: too many connections (maxConnections)", ErrOverflow)
	errWaited         = fmt.Errorf("%w: no connection became free within the connect timeout (maxConnections)", ErrOverflow)

	errWaitDeadline = fmt.Errorf("%w while waiting for a connection", stream.ErrDeadline)

	// errMoved sends a waiter back to the picker: its endpoint is gone.
	errMoved = errors.New("endpoint is gone")
)

// Cluster is a group of endpoints that are alike, with the circuit limits that they share. Until its first use it is no more
// than a name for what the plan says: a proxy knows many clusters that it never sends anything to.
type Cluster struct {
	set    *Set
	made   atomic.Pointer[core]
	within Within // which addresses clients may be led to; nil: any

	mu      sync.Mutex // of who makes the core, updates or retires it
	given   given
	retired bool
}

// given is what a plan says about a cluster; nothing where no plan knows it (Passthrough).
type given struct {
	cluster   packed.Cluster
	endpoints packed.Endpoints // "" for none
}

func (g *given) open() (*plan.Cluster, []plan.Endpoint) {
	if g.endpoints == "" {
		return g.cluster.Open(), nil
	}
	return g.cluster.Open(), g.endpoints.Open().Endpoints
}

// core is what runs of a cluster.
type core struct {
	of      *Cluster
	set     *Set
	name    string
	state   atomic.Pointer[state]
	counted counters

	mu        sync.Mutex // writers of state and of the endpoints' health
	checks    *checks    // active health checks; nil: none
	endpoints map[key]*Endpoint
	nextSweep time.Time
	nextWarm  time.Time
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
	checks           atomic.Uint64
	checksFailed     atomic.Uint64
	checkTurns       atomic.Uint64 // an endpoint became sick or well
}

// state is what a cluster decides by. It is immutable.
type state struct {
	plan      *plan.Cluster
	planned   []plan.Endpoint // as they came
	endpoints []*Endpoint     // usable ones, health aside
	unusable  int
	names     *names  // of endpoints that are names; nil: none are
	window    *window // of requests, for plan.ActiveRetries.Interval; nil: none
	picker    *balance.Picker[*Endpoint]
	near      balance.Map
	vouched   vouched
	place     balance.Place
	conn      *conn.Config
	byHost    map[hostPort]*Endpoint // with Discovery AsRequested
	bySession map[uint64]*Endpoint   // with Session
	timed     bool                   // latencies decide
	single    bool                   // a connection is for one client
	warming   bool                   // an endpoint has less than its weight
}

// key is what makes an endpoint the same one across updates: connections must never outlive a change of it.
type key struct {
	address  string
	identity ident.Identity
	tls      bool   // mesh TLS
	sni      string // of mesh TLS
	name     string // that address was found by
	origin   string // everything else about how connections are begun, in some spelling
	vouched  vouched
}

// own returns k with strings of its own: an endpoint outlives the plan that it came with.
func (k key) own() key {
	packed.Own(&k.address, &k.identity.TrustDomain, &k.identity.Namespace, &k.identity.ServiceAccount, &k.sni, &k.name)
	return k
}

// vouched is the material of TLS to strangers. A connection must not outlive the certificate or the authorities that it was
// made by. Materials that did not change are the same from plan to plan (trust.NewMaterials).
type vouched struct{ certificate, authorities *trust.Material }

func (s *Set) vouched(p *plan.Cluster) (v vouched) {
	if p.Originate == nil {
		return v
	}
	// What is missing is nil here, and an error when a connection is made.
	if p.Originate.Secret != "" {
		v.certificate, _ = s.secrets(p.Originate.Secret)
	}
	if p.Originate.Authorities != "" {
		v.authorities, _ = s.secrets(p.Originate.Authorities)
	}
	return v
}

func newCluster(s *Set, g given) *Cluster {
	c := &Cluster{set: s, given: g}
	if g.cluster.Has(checkField) {
		c.core() // it is checked before its first use
	}
	return c
}

// checkField is the number of plan.Cluster.Check.
const checkField = 19

// Name returns the cluster's name.
func (c *Cluster) Name() string {
	if k := c.made.Load(); k != nil {
		return k.name
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.given.cluster.Name()
}

// Plan returns the plan in force, of a cluster that is about to be used. It must not be changed.
func (c *Cluster) Plan() *plan.Cluster { return c.core().state.Load().plan }

// core returns what runs, and makes it on the first use.
func (c *Cluster) core() *core {
	if k := c.made.Load(); k != nil {
		return k
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.made.Load(); k != nil {
		return k
	}
	return c.makeLocked(c.given.open())
}

// makeLocked makes what runs.
func (c *Cluster) makeLocked(p *plan.Cluster, planned []plan.Endpoint) *core {
	k := &core{of: c, set: c.set, name: strings.Clone(p.Name), endpoints: make(map[key]*Endpoint)}
	k.state.Store(&state{plan: &plan.Cluster{Name: k.name}, picker: new(balance.Picker[*Endpoint]), conn: c.set.conn})
	k.update(p, planned)
	if c.retired {
		k.retire()
	}
	c.made.Store(k)
	return k
}

// update puts a plan in force, and reports whether it is that of before, whose bytes are kept.
func (c *Cluster) update(g given) (same bool) {
	if c.replace(g) {
		return true
	}
	if g.cluster.Has(checkField) {
		c.core()
	}
	return false
}

func (c *Cluster) replace(g given) (same bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.made.Load()
	if same = c.given == g; same {
		if k != nil {
			st := k.state.Load()
			k.update(st.plan, st.planned) // where we are may have changed, and secrets
		}
		return true
	}
	c.given = g
	if k != nil {
		p, planned := g.open()
		k.update(p, planned)
	}
	return false
}

// retire lets go of every connection that is not in use, now and from now on.
func (c *Cluster) retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retired = true
	if k := c.made.Load(); k != nil {
		k.retire()
	}
}

// running returns the core if there is one.
func (c *Cluster) running() *core { return c.made.Load() }

func (c *core) update(p *plan.Cluster, planned []plan.Endpoint) {
	here := c.set.here()
	c.mu.Lock()
	old := c.state.Load()
	same := old.conn != nil && slices.Equal(old.planned, planned) && reflect.DeepEqual(old.plan, p) && old.place == here && old.vouched == c.set.vouched(p)
	if same {
		// Still, the plan of before is not ours to keep alive.
		next := *old
		next.plan, next.planned = p, planned
		c.state.Store(&next)
		for _, e := range next.endpoints {
			e.repoint(planned)
		}
		c.mu.Unlock()
		return
	}
	gone := c.rebuild(p, planned, here)
	c.mu.Unlock()
	for _, e := range gone {
		e.drain()
	}
	c.slotFreed(nil) // a limit may have been raised
}

// rebuild makes the state of a plan, and returns the endpoints that are gone. c.mu is held.
func (c *core) rebuild(p *plan.Cluster, planned []plan.Endpoint, here balance.Place) (gone []*Endpoint) {
	old := c.state.Load()
	st := &state{plan: p, planned: planned, place: here, vouched: c.set.vouched(p), near: balance.NewMap(p.Locality, here), conn: connConfig(c.set.conn, p),
		timed: p.Balancer == plan.PeakEWMA, single: p.ProxyProtocol != 0 || sniOfRequest(p)}
	if p.Discovery == plan.AsRequested {
		st.byHost = make(map[hostPort]*Endpoint)
	}
	if p.Budget != nil && p.Budget.Interval > 0 {
		if st.window = old.window; st.window == nil || st.window.length != p.Budget.Interval.D() {
			st.window = newWindow(p.Budget.Interval.D())
		}
	}
	st.names = c.resolved(old.names, p, planned)
	next := make(map[key]*Endpoint, len(planned))
	add := func(k key, pe *plan.Endpoint) *Endpoint {
		e := c.endpoints[k]
		if e == nil {
			e = newEndpoint(c, k)
		}
		e.plan.Store(pe)
		next[k] = e
		st.endpoints = append(st.endpoints, e)
		return e
	}
	for i := range planned {
		pe := &planned[i]
		k, ok := keyOf(p, pe)
		if !ok {
			st.unusable++
			continue
		}
		if !k.tls {
			k.vouched = st.vouched
		}
		for _, at := range st.names.addresses(p, pe.Address) {
			k.address, k.name = at.address, at.name
			if next[k] == nil {
				add(k, pe)
			}
		}
	}
	if st.byHost != nil {
		for k, e := range c.endpoints {
			want, _ := keyOf(p, e.Plan())
			want.address, want.name = k.address, k.name
			if !want.tls {
				want.vouched = st.vouched
			}
			if h := hostOf(k.address); k == want && h.host != "" {
				st.byHost[h] = add(k, e.Plan())
			}
		}
	}
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
	if s := cmp.Or(p.Session, p.RuleSession); s != nil { // both have the same key
		st.bySession = make(map[uint64]*Endpoint, len(st.endpoints))
		for _, e := range st.endpoints {
			st.bySession[c.set.sessionID(s, e.key.address)] = e
		}
	}
	c.repick(st)
	if st.names != old.names {
		old.names.stop() // who waits for them looks at the state again
	}
	c.check(p)
	return gone
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
	k.origin = begins(p, k.tls)
	return k, true
}

// repick puts a state in force with a picker over its endpoints and their health. c.mu is held.
func (c *core) repick(st *state) {
	members := make([]balance.Member[*Endpoint], len(st.endpoints))
	now := c.set.now()
	st.warming = false
	for i, e := range st.endpoints {
		pe := e.Plan()
		m := balance.Member[*Endpoint]{Value: e, Weight: pe.Weight, InFlight: &e.inFlight, Group: st.near.Group(pe), Aside: e.aside()}
		switch st.plan.Balancer {
		case plan.PeakEWMA:
			m.Latency = e.latencyOf(int64(now.Sub(c.set.base)))
		case plan.RingHash, plan.Maglev:
			m.Key = balance.HashString(e.key.address)
		case plan.Random:
		default:
			if w := st.plan.Warmup; w != nil {
				var more bool
				m.Weight, more = balance.Warm(w, pe.Weight, now.Sub(e.born))
				st.warming = st.warming || more
			}
		}
		members[i] = m
	}
	if b := st.plan.Balancer; b != plan.RingHash && b != plan.Maglev { // a hash leads to the same endpoint in whichever zone the client is
		balance.Divide(&st.near, members, func(e *Endpoint) string { return e.Plan().Locality })
	}
	o := balance.Options{Policy: st.plan.Balancer, Hash: st.plan.Hash, MinHealthy: st.plan.PanicPercent, Shares: st.near.Shares(), Seed: random()}
	if st.plan.Locality != nil {
		o.Strict = st.plan.Locality.Strict
	}
	if o.MinHealthy == 0 && st.plan.Outlier != nil {
		o.MinHealthy = st.plan.Outlier.MinHealthPercent
	}
	st.picker = balance.Again(o, members, c.state.Load().picker)
	c.state.Store(st)
	if st.warming {
		c.set.wake()
	}
}

// again is repick for the state in force, because health or weights changed. c.mu is held.
func (c *core) again() {
	next := *c.state.Load()
	c.repick(&next)
}

// warm raises the weights of new endpoints. It returns when to look again.
func (c *core) warm(now time.Time) (pause time.Duration, more bool) {
	if !c.state.Load().warming {
		return 0, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	pause = max(c.state.Load().plan.Warmup.Duration.D()/100, keepEvery)
	if !now.Before(c.nextWarm) {
		c.nextWarm = now.Add(pause)
		c.again()
	}
	return pause, c.state.Load().warming
}

// retire lets go of every connection that is not in use, now and from now on.
func (c *core) retire() {
	c.state.Load().names.stop()
	c.mu.Lock()
	c.checks.stop()
	c.mu.Unlock()
	for _, e := range c.state.Load().endpoints {
		e.drain()
	}
}

// trim closes connections that were idle or old enough. It returns when to look again, and whether any are left.
func (c *core) trim() (pause time.Duration, left bool) {
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
	switch {
	case s.plan.ClientProtocol:
		return a.HTTP2 && !a.HTTP1
	case s.plan.Protocol == ident.HTTP:
		return e.key.tls && !a.HTTP1 && e.Plan().HTTP2
	case s.plan.Protocol == ident.HTTP2 || s.plan.Protocol == ident.GRPC:
		return true
	}
	return a.Detected
}

// none says why there is nobody to pick.
func (c *core) none(st *state) error {
	switch {
	case len(st.planned) == 0:
		return errNoEndpoints
	case len(st.endpoints) == 0 && st.unusable == len(st.planned):
		return errNoIdentity
	case len(st.endpoints) == 0:
		return st.names.why()
	case st.near.Shares() != nil && st.picker.Len() == 0 && !slices.ContainsFunc(st.endpoints, (*Endpoint).aside):
		return errNoShare
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

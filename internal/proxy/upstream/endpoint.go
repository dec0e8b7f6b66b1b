package upstream

import (
	"cmp"
	"crypto/tls"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/balance"
)

// Endpoint is one member of a cluster, with its connections and health.
type Endpoint struct {
	cluster *core
	key     key
	plan    atomic.Pointer[plan.Endpoint]

	inFlight    atomic.Int64 // requests, from their pick to Done
	connections atomic.Int64 // open or being opened

	h1 h1Pool
	h2 h2Pool

	used    atomic.Int64 // Set.clock, with Discovery AsRequested
	born    time.Time    // when it came, or came back to health: plan.Warmup
	latency atomic.Pointer[balance.Latency]

	// Health. Counts are of failures in a row.
	fives    atomic.Uint32
	gateways atomic.Uint32
	locals   atomic.Uint32
	rate     atomic.Pointer[window] // of successes and all
	ejected  atomic.Bool            // by outlier detection; written with cluster.mu held
	sick     atomic.Bool            // by active checks; written with cluster.mu held
	trial    atomic.Uint32          // plan.Outlier.Probe: see the values; written with cluster.mu held

	// With cluster.mu held:
	ejectedAt time.Time
	until     time.Time // when the ejection ends
	why       string    // of the ejection, or of what the last check said
	ejections uint32    // less one for every interval of good health

	configs [3]atomic.Pointer[clientConfig] // by protocol
}

// aside reports whether health keeps the endpoint from being picked.
func (e *Endpoint) aside() bool { return e.ejected.Load() || e.sick.Load() }

// latencyOf returns the endpoint's latency, which begins with its first use.
func (e *Endpoint) latencyOf(now int64) *balance.Latency {
	if l := e.latency.Load(); l != nil {
		return l
	}
	l := new(balance.Latency)
	l.Begin(now)
	e.latency.CompareAndSwap(nil, l)
	return e.latency.Load()
}

// repoint takes an equal plan of the endpoint from a newer array, so that the one before can go.
func (e *Endpoint) repoint(planned []plan.Endpoint) {
	old := e.Plan()
	if i, ok := slices.BinarySearchFunc(planned, old.Address, func(p plan.Endpoint, a string) int { return cmp.Compare(p.Address, a) }); ok && planned[i] == *old {
		e.plan.Store(&planned[i])
		return
	}
	for i := range planned { // not sorted as it should be
		if planned[i] == *old {
			e.plan.Store(&planned[i])
			return
		}
	}
}

// clientConfig is a TLS configuration and the credentials it was made of.
type clientConfig struct {
	credentials *trust.Credentials
	config      *tls.Config
}

func newEndpoint(c *core, k key) *Endpoint {
	e := &Endpoint{cluster: c, key: k.own(), born: c.set.now()}
	e.h1.endpoint = e
	e.h2.endpoint = e
	return e
}

// Plan returns the plan in force. It must not be changed.
func (e *Endpoint) Plan() *plan.Endpoint { return e.plan.Load() }

// Address returns the address that is dialled.
func (e *Endpoint) Address() string { return e.key.address }

// Cluster returns the cluster that the endpoint is a member of.
func (e *Endpoint) Cluster() *Cluster { return e.cluster.of }

// Host returns the name by which the endpoint is known: that which was resolved, or else the host of its address, which for a unix
// socket is localhost (RFC 9110 section 7.2 wants one; curl says the same).
func (e *Endpoint) Host() string {
	if e.key.name != "" {
		return e.key.name
	}
	if strings.HasPrefix(e.key.address, plan.UnixPrefix) {
		return "localhost"
	}
	host, _, err := net.SplitHostPort(e.key.address)
	if err != nil {
		return e.key.address
	}
	return host
}

// TLS reports whether mesh TLS is spoken to the endpoint.
func (e *Endpoint) TLS() bool { return e.key.tls }

// drain closes idle connections and keeps none from now on. Those that wait for one are sent to the picker again.
func (e *Endpoint) drain() {
	e.h1.drain()
	e.h2.drain()
}

// reserve takes a place for a new connection. The first one of an endpoint's pool is always granted: a request that was
// picked for it would have nothing to wait for (Envoy does the same).
func (e *Endpoint) reserve(limit uint32, first bool) bool {
	c := &e.cluster.counted.connections
	if first {
		c.Add(1)
	} else if !take(c, limit) {
		return false
	}
	e.connections.Add(1)
	return true
}

// unreserve gives a place back; the caller calls Cluster.slotFreed once its own pool is consistent.
func (e *Endpoint) unreserve() {
	e.connections.Add(-1)
	e.cluster.counted.connections.Add(-1)
}

// slotFreed offers free places for connections to those who wait for one, the pool where it became free first.
func (c *core) slotFreed(first *Endpoint) {
	if c.counted.pending.Load() == 0 {
		return
	}
	st := c.state.Load()
	limit := st.plan.Limits.MaxConnections
	if first != nil {
		first.h1.offer(limit)
		first.h2.offer(limit)
	}
	if limit == 0 && first != nil {
		return // nobody waits for a place but those who came in line before the limit was lifted
	}
	for _, e := range st.endpoints {
		if e != first {
			e.h1.offer(limit)
			e.h2.offer(limit)
		}
	}
}

package upstream

import (
	"crypto/tls"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
)

// Endpoint is one member of a cluster, with its connections and health.
type Endpoint struct {
	cluster *Cluster
	key     key
	plan    atomic.Pointer[plan.Endpoint]

	inFlight    atomic.Int64 // requests, from their pick to Done
	connections atomic.Int64 // open or being opened

	h1 h1Pool
	h2 h2Pool

	// Outlier detection. Counts are of failures in a row.
	fives    atomic.Uint32
	gateways atomic.Uint32
	ejected  atomic.Bool // written with cluster.mu held

	// With cluster.mu held:
	ejectedAt time.Time
	ejections uint32 // less one for every interval of good health

	configs [3]atomic.Pointer[clientConfig] // by protocol
}

// clientConfig is a TLS configuration and the credentials it was made of.
type clientConfig struct {
	credentials *trust.Credentials
	config      *tls.Config
}

func newEndpoint(c *Cluster, k key) *Endpoint {
	e := &Endpoint{cluster: c, key: k}
	e.h1.endpoint = e
	e.h2.endpoint = e
	return e
}

// Plan returns the plan in force. It must not be changed.
func (e *Endpoint) Plan() *plan.Endpoint { return e.plan.Load() }

// Address returns the address that is dialled.
func (e *Endpoint) Address() string { return e.key.address }

// Cluster returns the cluster that the endpoint is a member of.
func (e *Endpoint) Cluster() *Cluster { return e.cluster }

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
func (c *Cluster) slotFreed(first *Endpoint) {
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

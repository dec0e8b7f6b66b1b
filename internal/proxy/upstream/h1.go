package upstream

import (
	"net"
	"slices"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
)

// plaintextIdle is how long an HTTP/1 connection to an application is kept idle when the plan does not say. Applications
// close idle connections after 5 s (Node.js server.keepAliveTimeout, Apache KeepAliveTimeout, uvicorn) or more; who
// closes first never sends a request into a connection that is being closed. Endpoints with mesh TLS are proxies, which
// keep connections for an hour: there conn.Config.UpstreamIdle holds.
const plaintextIdle = 4 * time.Second

// Of the connections of a burst most are not needed again soon: beyond spareKept those that were idle for spareIdle are closed,
// where that is cheap (plaintext) and the plan does not say how long they are kept. One takes 1 KB.
const (
	spareKept = 32
	spareIdle = time.Second
)

// h1Pool is the HTTP/1 connections of an endpoint: one exchange each at a time.
type h1Pool struct {
	endpoint *Endpoint

	mu       sync.Mutex
	idle     []*h1Conn // the last one was used last and is used next, so that the first ones can go
	open     int       // idle, in use, or being opened
	line     line      // waits for a connection, or for its turn to open one; idle is empty then
	draining bool      // nothing is kept any more

	turns int // that are due to it, under the mutex of turns
}

// h1Conn is a connection and the lease of the exchange that it carries.
type h1Conn struct {
	lease  Lease
	client *conn.H1Client
	pool   *h1Pool
	born   int64 // Set.clock
	since  int64 // Set.clock when it became idle
	used   uint32
}

// acquire takes an idle connection, else opens one, else waits for one.
func (p *h1Pool) acquire(st *state, a *Attempt) (*Lease, error) {
	if hc := p.takeIdle(); hc != nil { // none is kept where a connection is for one client
		return hc.begin(), nil
	}
	c := p.endpoint.cluster
	limits := &st.plan.Limits
	// A request that opens its own connection is pending too (Envoy counts it so): maxPendingRequests bounds connects.
	if !take(&c.counted.pending, limits.MaxPendingRequests) {
		return nil, errMaxPending
	}
	defer c.counted.pending.Add(-1)

	deadline, timeout := c.bound(st, a)
	for {
		hc, w := p.join(limits)
		if w != nil {
			g, err := c.wait(w, deadline, timeout, p.leave)
			switch {
			case err != nil:
				return nil, err
			case g.moved:
				return nil, errMoved
			}
			hc = g.h1
		}
		switch {
		case hc == nil:
			return p.connect(st, a)
		case hc.client.Alive():
			return hc.begin(), nil
		}
		hc.close()
	}
}

// join returns a connection that came back in between, or else the caller's place in line. With neither, the caller opens a
// connection, for which there is room.
func (p *h1Pool) join(limits *plan.Limits) (*h1Conn, *waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if hc := p.pop(); hc != nil {
		return hc, nil
	}
	if p.endpoint.reserve(limits.MaxConnections, p.open == 0) {
		p.open++
		if p.endpoint.cluster.set.turns.take(p) {
			return nil, nil
		}
	}
	return nil, p.line.join()
}

// turn lets the first in line open a connection, for which room was reserved. It reports false when nobody needs one any more.
func (p *h1Pool) turn() bool {
	p.mu.Lock()
	needed := !p.line.empty()
	if needed {
		p.line.next().grant <- grant{open: true}
	}
	p.mu.Unlock()
	if !needed {
		p.closed()
	}
	return needed
}

// connect opens a connection in a place that is reserved.
func (p *h1Pool) connect(st *state, a *Attempt) (*Lease, error) {
	nc, err := p.endpoint.connect(st, a, trust.ALPNHTTP1)
	if err != nil {
		p.closed()
		return nil, err
	}
	s := p.endpoint.cluster.set
	hc := &h1Conn{pool: p}
	hc.client = conn.NewH1Client(nc, st.conn, hc.release)
	hc.lease = Lease{Upstream: hc.client, Endpoint: p.endpoint, h1: hc, TLS: p.endpoint.key.tls}
	hc.lease.Remote, hc.lease.Local = addresses(nc)
	if !s.register(hc, nil) {
		_ = nc.Close()
		p.closed()
		return nil, ErrClosed
	}
	hc.born = s.clock()
	return hc.begin(), nil
}

// begin readies a connection for its next exchange.
func (hc *h1Conn) begin() *Lease {
	hc.lease.Reused = hc.used > 0
	hc.lease.probe, hc.lease.returned, hc.lease.began = false, false, 0
	hc.used++
	hc.client.Begin()
	return &hc.lease
}

// release is called by the client at the end of an exchange.
func (hc *h1Conn) release(_ *conn.H1Client, reusable bool) {
	p := hc.pool
	st := p.endpoint.cluster.state.Load()
	now := p.endpoint.cluster.set.clock()
	if !reusable || st.single || !hc.fresh(&st.plan.Limits, now) {
		hc.close()
		return
	}
	hc.since = now
	p.mu.Lock()
	switch {
	case p.draining:
		p.mu.Unlock()
		hc.close()
		return
	case !p.line.empty():
		p.line.next().grant <- grant{h1: hc}
	default:
		p.idle = append(p.idle, hc)
	}
	p.mu.Unlock()
}

// fresh reports whether a connection may carry one more exchange.
func (hc *h1Conn) fresh(l *plan.Limits, now int64) bool {
	if l.MaxRequestsPerConnection > 0 && hc.used >= l.MaxRequestsPerConnection {
		return false
	}
	return l.MaxConnectionDuration <= 0 || now-hc.born < int64(l.MaxConnectionDuration)
}

// takeIdle returns the connection that was used last, if the peer did not close it meanwhile.
func (p *h1Pool) takeIdle() *h1Conn {
	for {
		p.mu.Lock()
		hc := p.pop()
		p.mu.Unlock()
		if hc == nil || hc.client.Alive() {
			return hc
		}
		hc.close()
	}
}

// pop is takeIdle with p.mu held and without a look at the connection.
func (p *h1Pool) pop() *h1Conn {
	n := len(p.idle)
	if n == 0 {
		return nil
	}
	hc := p.idle[n-1]
	p.idle[n-1] = nil
	p.idle = p.idle[:n-1]
	return hc
}

// close closes a connection that nobody uses and gives its place back.
func (hc *h1Conn) close() {
	hc.client.CloseConn()
	hc.pool.closed()
	hc.pool.endpoint.cluster.set.unregister(hc) // last: Set.Close promises that nothing is counted then
}

// kill closes the connection under its user, who then releases it.
func (hc *h1Conn) kill() { hc.client.CloseConn() }

// closed gives the place of a connection back.
func (p *h1Pool) closed() {
	p.mu.Lock()
	p.open--
	p.mu.Unlock()
	p.endpoint.unreserve()
	p.endpoint.cluster.slotFreed(p.endpoint)
}

// offer lets those in line open connections while there are places.
func (p *h1Pool) offer(limit uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := &p.endpoint.cluster.set.turns
	for len(p.line.waiters) > t.due(p) && p.endpoint.reserve(limit, p.open == 0) { // for each turn that is due there is room
		p.open++
		if t.take(p) {
			p.line.next().grant <- grant{open: true}
		}
	}
}

func (p *h1Pool) leave(w *waiter) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.line.leave(w)
}

// distrust closes every idle connection: one of them turned out to be dead, as all are when a server restarts. The retry
// that follows goes out on a new connection.
func (p *h1Pool) distrust() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, hc := range idle {
		hc.close()
	}
}

// drain closes idle connections and keeps none from now on.
func (p *h1Pool) drain() {
	p.mu.Lock()
	p.draining = true
	for !p.line.empty() {
		p.line.next().grant <- grant{moved: true}
	}
	p.mu.Unlock()
	p.distrust()
}

// trim closes connections that were idle or old enough, and reports whether any are left, in use or not.
func (p *h1Pool) trim(st *state) bool {
	now := p.endpoint.cluster.set.clock()
	idle := int64(p.endpoint.idleTimeout(st, plaintextIdle))
	spare := idle
	if !p.endpoint.key.tls && st.plan.Originate == nil && st.plan.Limits.IdleTimeout <= 0 {
		spare = min(idle, int64(spareIdle))
	}
	var old []*h1Conn
	p.mu.Lock()
	beyond := len(p.idle) - spareKept // the first of p.idle, which were used least lately
	keep := slices.DeleteFunc(p.idle, func(hc *h1Conn) bool {
		most := idle
		if beyond > 0 {
			most = spare
		}
		beyond--
		if now-hc.since < most && hc.fresh(&st.plan.Limits, now) {
			return false
		}
		old = append(old, hc)
		return true
	})
	if cap(keep) > 2*spareKept && len(keep) <= spareKept {
		keep = slices.Clone(keep) // without the room of the burst
	}
	p.idle = keep
	left := p.open > len(old)
	p.mu.Unlock()
	for _, hc := range old {
		hc.close()
	}
	return left
}

// idleTimeout returns how long a connection is kept idle; app is the default for plaintext connections.
func (e *Endpoint) idleTimeout(st *state, app time.Duration) time.Duration {
	d := st.plan.Limits.IdleTimeout.D()
	switch {
	case d > 0:
		return d
	case e.key.tls:
		return e.cluster.set.conn.UpstreamIdle
	default:
		return min(app, e.cluster.set.conn.UpstreamIdle)
	}
}

func addresses(nc net.Conn) (remote, local net.Addr) { return nc.RemoteAddr(), nc.LocalAddr() }

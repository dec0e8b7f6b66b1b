package upstream

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// appIdle is how long an HTTP/2 connection without streams to an application is kept when the plan does not say. Servers
// announce the end with GOAWAY, so that there is no race to lose as with HTTP/1.
const appIdle = 5 * time.Minute

// h2Pool is the HTTP/2 connections of an endpoint: many streams on each. A second one is opened when the first is full.
type h2Pool struct {
	endpoint *Endpoint

	mu       sync.Mutex
	conns    []*h2Conn // oldest first; the first with room is used, so that the last ones become idle
	opening  *opening  // one connect for all who need it
	line     line      // waits for a stream to end
	draining bool      // nothing is kept any more
}

// h2Conn is a connection that is shared by streams.
type h2Conn struct {
	client *conn.H2Client
	pool   *h2Pool
	lease  Lease // what every lease of a stream starts from
	born   int64 // Set.clock

	// With pool.mu held:
	streams int    // leased
	opened  uint32 // ever
	since   int64  // Set.clock when the last stream ended
	ending  bool   // not in pool.conns any more
}

// opening is a connect that others wait for.
type opening struct {
	done chan struct{}
	err  error // readable once done is closed
}

// leases of streams are used again.
var leases = sync.Pool{New: func() any { return new(Lease) }}

// acquire takes a stream on a connection that has room, else opens a connection, else waits.
func (p *h2Pool) acquire(st *state, a *Attempt) (*Lease, error) {
	if st.single {
		return p.single(st, a)
	}
	p.mu.Lock()
	if l := p.take(&st.plan.Limits); l != nil {
		p.mu.Unlock()
		return l, nil
	}
	p.mu.Unlock()

	c := p.endpoint.cluster
	if !take(&c.counted.pending, st.plan.Limits.MaxPendingRequests) {
		return nil, errMaxPending
	}
	defer c.counted.pending.Add(-1)
	deadline, timeout := c.bound(st, a)
	for ; ; st = c.state.Load() { // limits may be lifted meanwhile
		limits := &st.plan.Limits
		p.mu.Lock()
		l := p.take(limits)
		o := p.opening
		var w *waiter
		lead := false
		switch {
		case l != nil, o != nil:
		case p.endpoint.reserve(limits.MaxConnections, len(p.conns) == 0):
			lead = true
			o = &opening{done: make(chan struct{})}
			p.opening = o
		default:
			w = p.line.join()
		}
		p.mu.Unlock()

		switch {
		case l != nil:
			return l, nil
		case lead:
			return p.connect(st, a, o)
		case o != nil:
			if err := c.waitOpening(o, deadline, timeout); err != nil {
				return nil, err
			}
		default:
			g, err := c.wait(w, deadline, timeout, p.leave)
			switch {
			case err != nil:
				return nil, err
			case g.moved:
				return nil, errMoved
			}
		}
		if !c.set.now().Before(deadline) {
			return nil, timeout
		}
	}
}

// single opens a connection for one stream of one client.
func (p *h2Pool) single(st *state, a *Attempt) (*Lease, error) {
	c := p.endpoint.cluster
	if !take(&c.counted.pending, st.plan.Limits.MaxPendingRequests) {
		return nil, errMaxPending
	}
	defer c.counted.pending.Add(-1)
	if !p.endpoint.reserve(st.plan.Limits.MaxConnections, false) {
		return nil, errMaxConnections
	}
	s := c.set
	nc, err := p.endpoint.connect(st, a, trust.ALPNHTTP2)
	if err != nil {
		p.closed()
		return nil, err
	}
	hc := &h2Conn{pool: p, client: conn.NewH2Client(nc, st.conn), ending: true}
	hc.lease = Lease{Endpoint: p.endpoint, h2: hc, TLS: p.endpoint.key.tls}
	hc.lease.Remote, hc.lease.Local = addresses(nc)
	hc.born = s.clock()
	up, err := hc.client.Open()
	if err != nil {
		_ = nc.Close()
		p.closed()
		return nil, p.endpoint.failed(st, errNoStream)
	}
	if !s.register(hc, hc.run) {
		_ = nc.Close()
		p.closed()
		return nil, ErrClosed
	}
	hc.client.Shutdown() // once its stream is done
	l := leases.Get().(*Lease)
	*l = hc.lease
	l.Upstream = up
	hc.streams++
	return l, nil
}

// waitOpening waits for somebody else's connect.
func (c *core) waitOpening(o *opening, deadline time.Time, timeout error) error {
	timer := time.NewTimer(deadline.Sub(c.set.now()))
	defer timer.Stop()
	select {
	case <-o.done:
		return o.err
	case <-timer.C:
		return timeout
	case <-c.set.ended:
		return ErrClosed
	}
}

// take opens a stream on the first connection with room, or returns nil. p.mu is held.
func (p *h2Pool) take(limits *plan.Limits) *Lease {
	for i := 0; i < len(p.conns); i++ {
		hc := p.conns[i]
		up, err := hc.client.Open()
		if err != nil { // full or going away
			if hc.client.Leaving() {
				p.end(hc) // its streams run to their end beside the connection that replaces it
				i--
			}
			continue
		}
		l := leases.Get().(*Lease)
		*l = hc.lease
		l.Upstream = up
		l.Reused = hc.opened > 0
		hc.opened++
		hc.streams++
		if limits.MaxRequestsPerConnection > 0 && hc.opened >= limits.MaxRequestsPerConnection {
			p.end(hc)
		}
		return l
	}
	return nil
}

// connect opens a connection in a place that is reserved, and a stream on it.
func (p *h2Pool) connect(st *state, a *Attempt, o *opening) (*Lease, error) {
	s := p.endpoint.cluster.set
	nc, err := p.endpoint.connect(st, a, trust.ALPNHTTP2)
	var hc *h2Conn
	if err == nil {
		hc = &h2Conn{pool: p, client: conn.NewH2Client(nc, st.conn)}
		hc.lease = Lease{Endpoint: p.endpoint, h2: hc, TLS: p.endpoint.key.tls}
		hc.lease.Remote, hc.lease.Local = addresses(nc)
		if !s.register(hc, hc.run) {
			_ = nc.Close()
			err = ErrClosed
		}
	}
	p.mu.Lock()
	p.opening = nil
	var l *Lease
	opened := err == nil
	if opened {
		hc.born = s.clock()
		hc.since = hc.born
		if !hc.ending { // run did not end yet, and will take it out when it does
			p.conns = append(p.conns, hc)
			l = p.take(&st.plan.Limits)
		}
		if p.draining {
			p.end(hc)
		}
	}
	p.mu.Unlock()
	if opened && l == nil {
		// Never try again from here: an endpoint that accepts and refuses would keep us busy until the deadline.
		err = p.endpoint.failed(st, errNoStream) // not under p.mu: it may eject, which takes the cluster's
	}
	// A connect that failed only because its own request had no more time is no answer for others: they look again.
	if err != nil && !errors.Is(err, stream.ErrDeadline) {
		o.err = err
	}
	close(o.done)
	if !opened {
		p.closed()
	}
	return l, err
}

var errNoStream = errors.New("the new connection ended, or allowed no stream, before one could be opened")

// run reads a connection until its end. It is the reader goroutine.
func (hc *h2Conn) run() {
	p := hc.pool
	s := p.endpoint.cluster.set
	if err := hc.client.Run(); err != nil {
		s.log.Debug("connection ended", "cluster", p.endpoint.cluster.name, "endpoint", p.endpoint.Address(), "error", err)
	}
	hc.client.CloseConn()
	p.mu.Lock()
	hc.ending = true
	p.conns = slices.DeleteFunc(p.conns, func(o *h2Conn) bool { return o == hc })
	p.mu.Unlock()
	s.unregister(hc)
	p.closed()
}

// end stops the use of a connection: open streams run to their end. p.mu is held.
func (p *h2Pool) end(hc *h2Conn) {
	if hc.ending {
		return
	}
	hc.ending = true
	p.conns = slices.DeleteFunc(p.conns, func(o *h2Conn) bool { return o == hc })
	hc.client.Shutdown()
	if len(p.conns) == 0 {
		p.lookAgain() // the first connection of a pool is always granted
	}
}

// lookAgain sends everybody in line to look for a stream again. p.mu is held.
func (p *h2Pool) lookAgain() {
	for !p.line.empty() {
		p.line.next().grant <- grant{}
	}
}

// kill closes the connection under its streams.
func (hc *h2Conn) kill() { hc.client.CloseConn() }

// done is called when a stream is closed.
func (hc *h2Conn) done() {
	p := hc.pool
	p.mu.Lock()
	hc.streams--
	if hc.streams == 0 {
		hc.since = p.endpoint.cluster.set.clock()
	}
	if !p.line.empty() {
		p.line.next().grant <- grant{}
	}
	p.mu.Unlock()
}

// closed gives the place of a connection back.
func (p *h2Pool) closed() {
	p.endpoint.unreserve()
	p.endpoint.cluster.slotFreed(p.endpoint)
}

// offer tells those in line that there are places for connections: one opens, the others share it.
func (p *h2Pool) offer(limit uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if limit == 0 || p.endpoint.cluster.counted.connections.Load() < int64(limit) || len(p.conns) == 0 {
		p.lookAgain()
	}
}

func (p *h2Pool) leave(w *waiter) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.line.leave(w)
}

// drain ends every connection once its streams did, and keeps none from now on.
func (p *h2Pool) drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.draining = true
	for !p.line.empty() {
		p.line.next().grant <- grant{moved: true}
	}
	for len(p.conns) > 0 {
		p.end(p.conns[0])
	}
}

// trim ends connections that were idle or are old enough.
func (p *h2Pool) trim(st *state) {
	now := p.endpoint.cluster.set.clock()
	idle := int64(p.endpoint.idleTimeout(st, appIdle))
	most := int64(st.plan.Limits.MaxConnectionDuration)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, hc := range slices.Clone(p.conns) {
		if (hc.streams == 0 && now-hc.since >= idle) || (most > 0 && now-hc.born >= most) {
			p.end(hc)
		}
	}
}

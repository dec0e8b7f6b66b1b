package upstream

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/balance"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// Attempt is what Acquire needs to know about one try of a request.
type Attempt struct {
	HTTP2    bool        // what the client speaks, for clusters with ClientProtocol
	Detected bool        // HTTP/2 is to be spoken to clusters of protocol Detect
	HTTP1    bool        // the request needs HTTP/1.1: it asks to switch to another protocol
	Deadline time.Time   // zero: the connect timeout alone bounds the wait
	Avoid    []*Endpoint // tried already: picked only when nothing else is left
	// Retry is set when it counts against Limits.MaxRetries. It needs no word about connections: a lease
	// that ends with stream.ErrStale closes all idle ones of the endpoint, so that the retry opens its own.
	Retry bool
	// Hash is of what the request has in common with others that must meet again (plan.Cluster.Hash). Without HasHash it had
	// nothing of the kind, and any endpoint will do.
	Hash    uint64
	HasHash bool
	// Sticky is what the client sent to come back to its endpoint (plan.Cluster.Session); empty: it has none yet.
	Sticky []byte
	// ByRule is set when the session is one of the rule (plan.Route.Session), not the cluster's.
	ByRule bool
	// Farther lets a retry leave the locality of the tries before it (plan.Retry.Farther).
	Farther bool
	// Source and Target are the ends of the client's connection, for a PROXY protocol header (plan.Cluster.ProxyProtocol).
	Source, Target netip.AddrPort
	// ToTarget makes Target, instead of Host and Port, the place where clusters with Discovery AsRequested go: that is where a
	// captured connection was going, and what its client says in it must not lead anywhere else. With TLS to a stranger it is
	// Host still, which is the name that must be proved.
	ToTarget bool
	// Host and Port are what the request asks for: where clusters with Discovery AsRequested go, and the name that a server
	// outside of the mesh must prove when the plan gives none.
	Host []byte
	Port int
	// Raw is set when opaque bytes are mesh TLS already, which only passes here (plan.ServerName.Auto): no TLS is begun.
	Raw bool
}

// Lease is a stream to an endpoint for one attempt of a request. Its owner calls Done, and never Close, exactly once; no
// other call follows. (Use the embedded Upstream to ask for optional interfaces like stream.Ready.)
type Lease struct {
	stream.Upstream
	Endpoint *Endpoint
	// Remote and Local are the addresses of the connection.
	Remote, Local net.Addr
	// Reused is set when the connection carried a request before.
	Reused bool
	// TLS is set when the connection is mesh TLS.
	TLS bool

	h1       *h1Conn // one of h1 and h2
	h2       *h2Conn
	retry    bool
	probe    bool  // it decides whether the endpoint is let back
	returned bool  // the client's session led here
	byRule   bool  // it is a session of the rule
	began    int64 // Set.precise, when latencies decide
}

// Outcome is how an attempt ended.
type Outcome struct {
	Status int   // of the response; for gRPC the HTTP status that its grpc-status stands for; 0 without a response
	Err    error // what ended the exchange early, nil when it is complete
	// Latency is the time from sending the request to its response head; 0: the time of the whole lease is taken.
	Latency time.Duration
}

// Acquire picks an endpoint and takes a stream on a connection to it; it blocks at most until the attempt's deadline or
// the connect timeout. The error is ErrNoHealthy, ErrOverflow, *ConnectError, stream.ErrDeadline or ErrClosed.
func (c *Cluster) Acquire(a *Attempt) (*Lease, error) { return c.core().acquire(a) }

func (c *core) acquire(a *Attempt) (*Lease, error) {
	st := c.state.Load()
	if err := c.admit(st, a); err != nil {
		return nil, err
	}
	for {
		e, chosen, err := c.pick(st, a)
		if err != nil {
			c.finished(a.Retry)
			return nil, err
		}
		e.inFlight.Add(1)
		var l *Lease
		st = c.state.Load() // the endpoint may be of a newer one
		if st.http2(a, e) {
			l, err = e.h2.acquire(st, a)
		} else {
			l, err = e.h1.acquire(st, a)
		}
		if err == nil {
			l.retry, l.probe, l.returned, l.byRule = a.Retry, chosen == byTrial, chosen == bySession, a.ByRule
			if st.timed {
				l.began = c.set.precise()
			}
			return l, nil
		}
		e.inFlight.Add(-1)
		if chosen == byTrial {
			e.tried(failureOf(err))
		}
		if errors.Is(err, errMoved) {
			st = c.state.Load()
			continue
		}
		if errors.Is(err, ErrOverflow) {
			c.counted.overflow.Add(1)
		}
		c.finished(a.Retry)
		return nil, err
	}
}

// failureOf says what not getting a connection to an endpoint means for its health.
func failureOf(err error) verdict {
	var connect *ConnectError
	if errors.As(err, &connect) && !ours(err) || errors.Is(err, stream.ErrDeadline) {
		return failed
	}
	return unknown
}

// admit holds a request against the circuit limits that are about requests, and counts it.
func (c *core) admit(st *state, a *Attempt) error {
	n := &c.counted
	if !take(&n.requests, st.plan.Limits.MaxRequests) {
		n.overflow.Add(1)
		return errMaxRequests
	}
	n.requestsTotal.Add(1)
	b := st.plan.Budget
	if a.Retry {
		limit, err := st.plan.Limits.MaxRetries, errMaxRetries
		if b != nil {
			if most := c.budget(st, 0); limit == 0 || most < limit {
				limit, err = most, errRetryBudget
			}
		}
		if b != nil && limit == 0 || !take(&n.retries, limit) {
			n.requests.Add(-1)
			n.overflow.Add(1)
			return err
		}
		n.retriesTotal.Add(1)
	}
	if st.window != nil {
		c.budget(st, 1)
	}
	return nil
}

// budget returns how many retries may be in flight by plan.ActiveRetries, and counts requests.
func (c *core) budget(st *state, more uint32) uint32 {
	b := st.plan.Budget
	requests := uint32(max(c.counted.requests.Load(), 0))
	if w := st.window; w != nil {
		requests, _ = w.add(c.set.now(), more, 0)
	}
	return max(b.MinConcurrent, uint32(float64(requests)*b.Percent/100))
}

// CanRetry reports whether a retry would be admitted now (Limits.MaxRetries, plan.ActiveRetries). Who asks before giving up the
// answer that he has can pass that on instead.
func (c *Cluster) CanRetry() bool { return c.core().canRetry(0) }

// CanRetry is Cluster.CanRetry for the request that holds the lease: if that is a retry itself, its place becomes free.
func (l *Lease) CanRetry() bool {
	held := int64(0)
	if l.retry {
		held = 1
	}
	return l.Endpoint.cluster.canRetry(held)
}

func (c *core) canRetry(held int64) bool {
	st := c.state.Load()
	now := c.counted.retries.Load() - held
	if most := st.plan.Limits.MaxRetries; most > 0 && now >= int64(most) {
		return false
	}
	return st.plan.Budget == nil || now < int64(c.budget(st, 0))
}

// reason is how an endpoint was chosen.
type reason uint8

const (
	byPolicy reason = iota
	bySession
	byTrial // it was put aside, and this request decides whether it is let back
)

// pick chooses an endpoint.
func (c *core) pick(st *state, a *Attempt) (*Endpoint, reason, error) {
	if st.byHost != nil {
		e, err := c.asRequested(a)
		return e, byPolicy, err
	}
	for st.names != nil {
		n := st.names
		if err := n.wait(st, a.Deadline); err != nil {
			return nil, byPolicy, err
		}
		if st = c.state.Load(); st.names == n {
			break
		} // else an update has other names
	}
	if p := st.sessionOf(a.ByRule); p != nil && len(a.Sticky) > 0 {
		if e := c.session(st, p, a.Sticky); e != nil && e.trial.Load() == 0 && (!e.aside() || st.picker.Panic()) && !slices.Contains(a.Avoid, e) {
			return e, bySession, nil
		}
	}
	for {
		d := balance.Draw[*Endpoint]{Random: random(), Hash: a.Hash, Hashed: a.HasHash, Avoid: a.Avoid, Farther: a.Farther}
		if st.timed {
			d.Now = c.set.precise()
		}
		e, ok := st.picker.Pick(&d)
		switch {
		case !ok:
			return nil, byPolicy, c.none(st)
		case e.trial.Load() == 0:
			return e, byPolicy, nil
		case c.try(e):
			return e, byTrial, nil
		}
		st = c.state.Load()
	}
}

// finished gives back what Acquire counted.
func (c *core) finished(retry bool) {
	c.counted.requests.Add(-1)
	if retry {
		c.counted.retries.Add(-1)
	}
}

// Answered tells the status of a response of which more may come for hours: whether the endpoint is let back is decided by it, where
// the request is to decide that, and everybody else does not wait for its end.
func (l *Lease) Answered(status int) {
	if l.probe {
		l.probe = false
		l.Endpoint.probed(Outcome{Status: status})
	}
}

// probed ends a probe.
func (e *Endpoint) probed(o Outcome) {
	v, _, _ := judge(e.cluster.state.Load().plan.Outlier, o)
	if v == success && o.Status == 429 {
		v = failed // an endpoint that asks to be left alone is
	}
	e.tried(v)
}

// Done ends the lease: it reports how the attempt went to outlier detection and closes the stream, after which the
// connection may serve another request.
func (l *Lease) Done(o Outcome) {
	// The lease may be somebody else's as soon as the stream is closed.
	e, up, h2, retry := l.Endpoint, l.Upstream, l.h2, l.retry
	c := e.cluster
	st := c.state.Load()
	if st.timed && l.began != 0 {
		e.observe(l.began, c.set.precise(), &o)
	}
	switch {
	case l.probe:
		e.probed(o)
	case st.plan.Outlier != nil:
		e.report(st, o)
	}
	if o.Err != nil && errors.Is(o.Err, stream.ErrStale) {
		e.h1.distrust()
	}
	up.Close()
	if h2 != nil {
		*l = Lease{}
		leases.Put(l)
		h2.done()
	}
	e.inFlight.Add(-1)
	c.finished(retry)
}

// observe notes how long an exchange took. A failure never makes an endpoint look faster than it was.
func (e *Endpoint) observe(began, now int64, o *Outcome) {
	l := e.latencyOf(now)
	took := o.Latency
	if took <= 0 {
		took = time.Duration(now - began)
	}
	if v, _, _ := judge(nil, *o); v != success {
		took = max(took, time.Duration(l.At(now)))
	}
	l.Observe(took, now)
}

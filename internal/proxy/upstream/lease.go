package upstream

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// Attempt is what Acquire needs to know about one try of a request.
type Attempt struct {
	HTTP2    bool        // what the client speaks, for clusters of protocol Detect
	HTTP1    bool        // the request needs HTTP/1.1: it asks to switch to another protocol
	Deadline time.Time   // zero: the connect timeout alone bounds the wait
	Avoid    []*Endpoint // tried already: picked only when nothing else is left
	// Retry is set when it counts against Limits.MaxRetries. It needs no word about connections: a lease on a reused
	// one that ends with stream.ErrRefused closes all idle ones of the endpoint, so that the retry opens its own.
	Retry bool
	// Hash is of what the request has in common with others that must meet again (plan.Cluster.Hash). Without HasHash it had
	// nothing of the kind, and any endpoint will do.
	Hash    uint64
	HasHash bool
	// Sticky is what the client sent to come back to its endpoint (plan.Cluster.Session); empty: it has none yet.
	Sticky []byte
	// Farther lets a retry leave the locality of the tries before it (plan.Retry.Farther).
	Farther bool
	// Source and Target are the ends of the client's connection, for a PROXY protocol header (plan.Cluster.ProxyProtocol).
	Source, Target netip.AddrPort
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

	h1    *h1Conn // one of h1 and h2
	h2    *h2Conn
	retry bool
}

// Outcome is how an attempt ended.
type Outcome struct {
	Status int   // of the response; for gRPC the HTTP status that its grpc-status stands for; 0 without a response
	Err    error // what ended the exchange early, nil when it is complete
}

// Acquire picks an endpoint and takes a stream on a connection to it; it blocks at most until the attempt's deadline or
// the connect timeout. The error is ErrNoHealthy, ErrOverflow, *ConnectError, stream.ErrDeadline or ErrClosed.
func (c *Cluster) Acquire(a *Attempt) (*Lease, error) {
	st := c.state.Load()
	n := &c.counted
	if !take(&n.requests, st.plan.Limits.MaxRequests) {
		n.overflow.Add(1)
		return nil, errMaxRequests
	}
	if a.Retry {
		if !take(&n.retries, st.plan.Limits.MaxRetries) {
			n.requests.Add(-1)
			n.overflow.Add(1)
			return nil, errMaxRetries
		}
		n.retriesTotal.Add(1)
	}
	n.requestsTotal.Add(1)
	for {
		e, ok := st.picker.Pick(random(), a.Avoid)
		if !ok {
			c.finished(a.Retry)
			return nil, st.none()
		}
		e.inFlight.Add(1)
		var l *Lease
		var err error
		if st.http2(a, e) {
			l, err = e.h2.acquire(st, a)
		} else {
			l, err = e.h1.acquire(st, a)
		}
		if err == nil {
			l.retry = a.Retry
			return l, nil
		}
		e.inFlight.Add(-1)
		if errors.Is(err, errMoved) {
			st = c.state.Load()
			continue
		}
		if errors.Is(err, ErrOverflow) {
			n.overflow.Add(1)
		}
		c.finished(a.Retry)
		return nil, err
	}
}

// finished gives back what Acquire counted.
func (c *Cluster) finished(retry bool) {
	c.counted.requests.Add(-1)
	if retry {
		c.counted.retries.Add(-1)
	}
}

// Done ends the lease: it reports how the attempt went to outlier detection and closes the stream, after which the
// connection may serve another request.
func (l *Lease) Done(o Outcome) {
	// The lease may be somebody else's as soon as the stream is closed.
	e, up, h2, retry := l.Endpoint, l.Upstream, l.h2, l.retry
	c := e.cluster
	if st := c.state.Load(); st.plan.Outlier != nil {
		e.report(st, o)
	}
	if l.h1 != nil && l.Reused && o.Err != nil && errors.Is(o.Err, stream.ErrRefused) {
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

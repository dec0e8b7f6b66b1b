package upstream

import (
	"context"
	"log/slog"
	"net"
	"time"

	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// Options are what a Set needs from outside.
type Options struct {
	Credentials trust.Source // nil: there is no mesh TLS, and endpoints that need it fail
	Conn        *conn.Config // nil: conn.Defaults
	// Dial makes the transport connection, nil: TCP without delay (Nagle) and without multipath.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	Log  *slog.Logger
	Now  func() time.Time // nil: time.Now
}

// Set is the clusters of one proxy.
type Set struct{}

// New returns a Set without clusters.
func New(o Options) *Set { return &Set{} }

// Update makes the clusters those of the plan. Clusters, endpoints, pools, health and counters that are in both the
// old and the new plan are kept.
func (s *Set) Update(clusters []plan.Cluster, endpoints []plan.Endpoints) {}

// Cluster returns a cluster by its name, or nil.
func (s *Set) Cluster(name string) *Cluster { return nil }

// Passthrough returns a cluster that dials a host as it is written, in plaintext.
func (s *Set) Passthrough(host string, port int) *Cluster { return nil }

// Close ends the Set.
func (s *Set) Close(ctx context.Context) error { return nil }

// Cluster is a group of endpoints that are alike.
type Cluster struct{}

// Plan returns the plan in force. It must not be changed.
func (c *Cluster) Plan() *plan.Cluster { return nil }

// Attempt is what Acquire needs to know about one try of a request.
type Attempt struct {
	HTTP2    bool        // what the client speaks, for clusters of protocol Detect
	Deadline time.Time   // zero: the connect timeout alone bounds the wait
	Avoid    []*Endpoint // tried already: used only when nothing else is left
	Retry    bool        // it counts against Limits.MaxRetries
}

// Acquire picks an endpoint and takes a stream on a connection to it.
func (c *Cluster) Acquire(a *Attempt) (*Lease, error) { return nil, ErrNoHealthy }

// Dial picks an endpoint and opens a connection for opaque bytes, TLS included.
func (c *Cluster) Dial(deadline time.Time) (net.Conn, *Endpoint, error) {
	return nil, nil, ErrNoHealthy
}

// Endpoint is one member of a cluster.
type Endpoint struct{}

// Plan returns the plan in force. It must not be changed.
func (e *Endpoint) Plan() *plan.Endpoint { return nil }

// Address returns the address that is dialled.
func (e *Endpoint) Address() string { return "" }

// Lease is a stream to an endpoint for one attempt of a request.
type Lease struct {
	stream.Upstream
	Endpoint *Endpoint
	// Remote and Local are the addresses of the connection, nil when it has none.
	Remote, Local net.Addr
	// Reused is set when the connection carried a request before.
	Reused bool
	// TLS is set when the connection is mesh TLS.
	TLS bool
}

// Outcome is how an attempt ended.
type Outcome struct {
	Status int   // of the response; for gRPC the HTTP status that its grpc-status stands for; 0 without a response
	Err    error // what ended the exchange early, nil when it is complete
}

// Done ends the lease, exactly once: it closes the stream.
func (l *Lease) Done(o Outcome) {}

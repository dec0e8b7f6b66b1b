// Package telemetry counts and logs what the proxy did.
package telemetry

import (
	"io"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// Options are what New needs.
type Options struct {
	Node      plan.Node
	Log       *AccessLog    // nil: no access log
	MaxSeries int           // 0: DefaultMaxSeries
	Idle      time.Duration // a series that was not touched for so long is forgotten; 0: DefaultIdle
	Version   string
}

// Recorder counts and logs.
type Recorder struct{ Proxy Internals }

// New returns a Recorder.
func New(o Options) *Recorder { return &Recorder{} }

// Record counts and logs one finished exchange.
func (rec *Recorder) Record(r *Record) {}

// Party returns the one pointer for this identity and these labels. Call it once for each connection.
func (rec *Recorder) Party(id ident.Identity, w plan.WorkloadLabels) *Party { return nil }

// Connection is a TCP connection that is being counted.
type Connection struct{}

// OpenTCP counts a connection as opened.
func (rec *Recorder) OpenTCP(r *Record) *Connection { return nil }

// Add counts bytes to the client (sent) and from it (received).
func (c *Connection) Add(sent, received uint64) {}

// Close counts the connection as closed and logs it. Bytes must have been given to Add.
func (c *Connection) Close(r *Record) {}

// WriteTo writes the metrics in the Prometheus text format 0.0.4.
func (rec *Recorder) WriteTo(w io.Writer) (int64, error) { return 0, nil }

// Internals are the proxy's own counters.
type Internals struct {
	ConnectionsOpened, ConnectionsClosed, DetectionTimeouts, TLSFailures, ProtocolErrors, Panics Counter
	Retries, RetriesRefused, Ejections, ConfigApplied, ConfigRejected                            Counter
	CertificateExpiry                                                                            Gauge
}

// Counter only grows.
type Counter struct{}

// Inc adds one.
func (c *Counter) Inc() {}

// Add adds n.
func (c *Counter) Add(n uint64) {}

// Gauge goes up and down.
type Gauge struct{}

// Set replaces the value.
func (g *Gauge) Set(v int64) {}

// Add adds n, which may be negative.
func (g *Gauge) Add(n int64) {}

// AccessLog writes one JSON line for each Record.
type AccessLog struct{}

// Failed reports whether the response counts as a failure for the route's classes.
func Failed(classes []plan.ResponseClass, status, grpc int) bool { return status >= 500 }

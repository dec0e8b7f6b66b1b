// Package telemetry counts and logs what the proxy did.
//
// In: a Record for each finished exchange, from the stack, on the goroutine that served it. Out: metrics in the
// Prometheus text format for whoever scrapes (internal/proxy/admin), and access log lines. The names and labels are
// those of Istio's standard metrics, so that its dashboards and canary controllers read them as they are; routes of a
// Linkerd ServiceProfile are counted under Linkerd's names as well; malha_proxy_* tells about the proxy itself.
//
// Recording neither allocates nor takes a lock when the same combination was seen before: a Record's pointers and
// small numbers are the key of a cache of series handles, and no label is spelled until somebody scrapes. The number of
// series is bounded; what exceeds it is counted in one series for each reporter that says so. Series that were idle for
// long are forgotten by Run, the only goroutine besides the access log's writer.
package telemetry

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// Defaults of Options.
const (
	// DefaultMaxSeries bounds label combinations. Each costs about a kilobyte here and 70 lines in a scrape.
	DefaultMaxSeries = 2000
	// DefaultIdle is how long a series is kept that nothing happens to.
	DefaultIdle = time.Hour
)

// sweepEvery is the time between two looks for idle series. It is also the longest time that the cache of handles keeps
// parts of a plan alive that is no longer in force.
const sweepEvery = time.Minute

// Options are what New needs.
type Options struct {
	Node      plan.Node     // the proxy itself; SetNode changes it
	Log       *AccessLog    // nil: no access log
	MaxSeries int           // 0: DefaultMaxSeries
	Idle      time.Duration // 0: DefaultIdle
	Version   string        // for istio_build
	Off       bool          // traffic is not counted, only logged: for measuring what counting costs
}

// Recorder counts and logs. All methods may be called from any goroutine.
type Recorder struct {
	Proxy Internals

	log       *AccessLog
	maxSeries int
	idle      uint32 // in sweeps
	version   string
	off       bool

	self atomic.Pointer[Party]

	// registry makes one step of naming a series and one of a sweep: a party that a new series is about to use must not
	// be forgotten between the two, or there would be two series with the same labels. It is held on a miss only.
	registry sync.Mutex
	parties  cache[Party, *Party]
	services cache[plan.ServiceLabels, *plan.ServiceLabels]
	handles  cache[handleKey, *handle]
	series   cache[seriesKey, *series]
	routes   cache[routeKey, *routeSeries]

	// Labels of the overflow series, which must be one when parties and services have no room either.
	nobody Party
	beyond plan.ServiceLabels

	sweeps     atomic.Uint32
	overflowed Counter

	collectors []func(*Writer)
}

// New returns a Recorder.
func New(o Options) *Recorder {
	if o.MaxSeries <= 0 {
		o.MaxSeries = DefaultMaxSeries
	}
	if o.Idle <= 0 {
		o.Idle = DefaultIdle
	}
	rec := &Recorder{log: o.Log, maxSeries: o.MaxSeries, idle: uint32(max(o.Idle/sweepEvery, 1)), version: o.Version, off: o.Off,
		nobody: Party{}.told(false), beyond: told(plan.ServiceLabels{Name: "overflow"})}
	rec.SetNode(o.Node)
	return rec
}

// SetNode says who the proxy is, as the plan tells. What was counted before keeps its labels.
func (rec *Recorder) SetNode(n plan.Node) {
	rec.registry.Lock()
	defer rec.registry.Unlock()
	p := &Party{Identity: n.Identity, Workload: n.Workload}
	if old := rec.self.Load(); old == nil || *old != *p {
		rec.self.Store(p)
		rec.handles.clear()
	}
}

// Logs reports whether there is an access log: what only that shows need not be found out without.
func (rec *Recorder) Logs() bool { return rec.log != nil }

// Collect adds metrics to every scrape. Call it before the first one.
func (rec *Recorder) Collect(f func(*Writer)) { rec.collectors = append(rec.collectors, f) }

// Party returns the one pointer for this identity and these labels, or one of its own when there are too many. Call it once for each
// connection, not for each request.
func (rec *Recorder) Party(id ident.Identity, w plan.WorkloadLabels) *Party {
	p := Party{Identity: id, Workload: w}
	if known := rec.party(p, 2*rec.maxSeries); known != nil {
		return known
	}
	return &p
}

// party returns the one pointer for a party, nil when there is none and the room is taken.
func (rec *Recorder) party(p Party, room int) *Party {
	if known, ok := rec.parties.lookup(p); ok {
		return known
	}
	w := &p.Workload
	packed.Own(&p.Identity.TrustDomain, &p.Identity.Namespace, &p.Identity.ServiceAccount,
		&w.Workload, &w.Namespace, &w.App, &w.Version, &w.CanonicalService, &w.CanonicalRevision, &w.Cluster)
	return rec.parties.get(p, func(n int) (*Party, bool) {
		if n >= room {
			return nil, false
		}
		return &p, true
	})
}

// service returns the one pointer for a service's labels, nil when there is no room for it.
func (rec *Recorder) service(s plan.ServiceLabels) *plan.ServiceLabels {
	packed.Own(&s.Host, &s.Name, &s.Namespace)
	return rec.services.get(s, func(n int) (*plan.ServiceLabels, bool) {
		if n >= 2*rec.maxSeries {
			return nil, false
		}
		return &s, true
	})
}

// Record counts and logs one finished exchange. A TCP connection that was given to OpenTCP belongs to Connection.Close
// instead.
func (rec *Recorder) Record(r *Record) {
	if r.Protocol == TCP {
		c := rec.OpenTCP(r)
		c.Add(r.BodyOut, r.BodyIn)
		c.Close(r)
		return
	}
	if rec.off {
		if rec.log != nil {
			rec.log.Write(r)
		}
		return
	}
	h := rec.handle(r)
	c := h.series.http
	c.duration.duration(r.Duration)
	c.request.size(r.HeadIn + r.BodyIn)
	c.response.size(r.HeadOut + r.BodyOut)
	if r.Protocol == GRPC {
		c.messagesIn.Add(r.MessagesIn)
		c.messagesOut.Add(r.MessagesOut)
	}
	if h.route != nil {
		h.route.latency.duration(r.Duration)
	}
	if h.overflow {
		rec.overflowed.Inc()
	}
	if rec.log != nil {
		rec.log.Write(r)
	}
}

// Connection is an open TCP connection that is being counted. Add may be called while it lives, so that long ones show
// their traffic; Close exactly once.
type Connection struct {
	rec    *Recorder
	series *series // nil: not counted
}

// OpenTCP counts a connection as opened.
func (rec *Recorder) OpenTCP(r *Record) *Connection {
	if rec.off {
		return &Connection{rec: rec}
	}
	h := rec.handle(r)
	h.series.active.Add(1)
	h.series.tcp.opened.Inc()
	if h.overflow {
		rec.overflowed.Inc()
	}
	return &Connection{rec: rec, series: h.series}
}

// Add counts bytes to the client (sent) and from it (received).
func (c *Connection) Add(sent, received uint64) {
	if c.series != nil {
		c.series.tcp.sent.Add(sent)
		c.series.tcp.received.Add(received)
	}
}

// Close counts the connection as closed, under the flags that r has now, and logs it. It counts no bytes.
func (c *Connection) Close(r *Record) {
	if c.series != nil {
		c.rec.handle(r).series.tcp.closed.Inc()
		c.series.active.Add(-1)
	}
	if c.rec.log != nil {
		c.rec.log.Write(r)
	}
}

// Run forgets idle series until ctx is over.
func (rec *Recorder) Run(ctx context.Context) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			rec.sweep()
		}
	}
}

// sweep forgets every handle, and the series that no handle was made for in idle sweeps. A request that holds a handle
// from before counts into a series that is still there: it goes two sweeps later at the earliest.
func (rec *Recorder) sweep() {
	rec.registry.Lock()
	defer rec.registry.Unlock()
	now := rec.sweeps.Add(1)
	rec.handles.clear()
	parties, services := map[*Party]bool{}, map[*plan.ServiceLabels]bool{}
	rec.series.retain(func(k seriesKey, s *series) bool {
		if now-s.touched.Load() > rec.idle+1 && s.active.Load() == 0 {
			return false
		}
		parties[k.source], parties[k.destination], services[k.service] = true, true, true
		return true
	})
	rec.routes.retain(func(_ routeKey, s *routeSeries) bool { return now-s.touched.Load() <= rec.idle+1 })
	rec.parties.retain(func(_ Party, p *Party) bool { return parties[p] })
	rec.services.retain(func(_ plan.ServiceLabels, s *plan.ServiceLabels) bool { return services[s] })
}

// WriteTo writes every metric in the Prometheus text format 0.0.4.
func (rec *Recorder) WriteTo(dst io.Writer) (int64, error) {
	w := NewWriter(dst)
	w.Family("istio_build", "gauge", "Version of the component, always 1.")
	w.Uint("istio_build", 1, Label{"component", "proxy"}, Label{"tag", unknown(rec.version)})
	rec.writeSeries(w)
	rec.writeRoutes(w)
	w.Family("malha_proxy_series", "gauge", "Label combinations of requests and connections that are kept.")
	w.Int("malha_proxy_series", int64(rec.series.size()))
	w.Family("malha_proxy_series_overflow_total", "counter", "Requests and connections counted without their labels because there are too many combinations.")
	w.Uint("malha_proxy_series_overflow_total", rec.overflowed.Value())
	if rec.log != nil {
		w.Family("malha_proxy_access_log_dropped_total", "counter", "Access log lines lost: the log could not be written fast enough, or not at all.")
		w.Uint("malha_proxy_access_log_dropped_total", rec.log.Dropped())
	}
	for _, f := range rec.collectors { // before the internals, whose gauges they may bring up to date
		f(w)
	}
	rec.Proxy.write(w)
	writeProcess(w)
	err := w.Flush()
	return w.n, err
}

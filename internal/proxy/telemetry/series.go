package telemetry

import (
	"strconv"
	"sync/atomic"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// handleKey is what decides about the series of a Record, as the Record has it. Two keys may lead to one series (parts of
// an old and a new plan with the same names).
type handleKey struct {
	peer     *Party
	host     *plan.VirtualHost
	cluster  *plan.Cluster
	endpoint *plan.Endpoint
	route    *plan.Route
	flags    Flags
	status   uint16
	grpc     int8
	reporter reporter
	protocol Protocol
	mtls     bool
}

// handle is where a kind of Record is counted.
type handle struct {
	series   *series
	route    *routeSeries // nil without a Linkerd profile
	overflow bool
}

type reporter uint8

const (
	reporterSource reporter = iota
	reporterDestination
	reporterEdge // of a handleKey only: a gateway, which is a source that has no mesh around its clients
)

var reporterNames = [...]string{"source", "destination"}

// side returns how the reporter is called.
func (r reporter) side() reporter {
	if r == reporterDestination {
		return reporterDestination
	}
	return reporterSource
}

// seriesKey is the content of a series' labels. The pointers are canonical, and so is what they point to: two keys are equal exactly
// when their labels are. A page on which two samples have the same labels is refused as a whole by who scrapes it.
type seriesKey struct {
	source, destination *Party
	service             *plan.ServiceLabels
	flags               Flags
	status              uint16
	grpc                int8
	reporter            reporter
	protocol            string // request_protocol
	secured             bool   // mutual TLS on the hop that the reporter is about
	overflow            bool
}

// series is the counters of one label combination.
type series struct {
	key     seriesKey
	touched atomic.Uint32 // sweep in which a handle was last made for it
	active  atomic.Int64  // open TCP connections, which hold it
	http    *httpCounts
	tcp     *tcpCounts
}

type httpCounts struct {
	duration, request, response histogram
	messagesIn, messagesOut     Counter // of gRPC
}

type tcpCounts struct {
	opened, closed, sent, received Counter
}

// handle returns where r is counted.
func (rec *Recorder) handle(r *Record) *handle {
	key := handleKey{
		peer: r.Peer, host: r.VirtualHost, cluster: r.Cluster, endpoint: r.Endpoint, route: r.Route,
		flags: r.Flags, status: uint16(min(max(r.Status, 0), 999)), grpc: grpcStatus(r.GRPCStatus),
		protocol: r.Protocol, mtls: r.MTLS,
	}
	switch r.Direction {
	case plan.Inbound:
		key.reporter = reporterDestination
	case plan.Edge:
		key.reporter = reporterEdge
	}
	if h, ok := rec.handles.lookup(key); ok {
		return h
	}
	return rec.newHandle(key)
}

// grpcStatus keeps the codes that gRPC defines (0 to 16); any other is UNKNOWN, so that a peer can't make up series.
func grpcStatus(code int) int8 {
	switch {
	case code < 0:
		return NoGRPC
	case code > 16:
		return 2
	}
	return int8(code)
}

func (rec *Recorder) newHandle(key handleKey) *handle {
	rec.registry.Lock()
	defer rec.registry.Unlock()
	h := &handle{}
	h.series, h.overflow = rec.seriesOf(rec.label(&key))
	if rt := key.route; rt != nil && rt.Profile != "" && key.host != nil {
		h.route = rec.routeSeriesOf(routeKey{
			dst: key.host.Name, route: rt.Profile, reporter: key.reporter.side(), status: key.status,
			failure: Failed(rt.Classes, int(key.status), int(key.grpc)),
		})
	}
	// The cache of handles may be a few times larger than that of series, not more: then it starts again.
	if rec.handles.size() >= 4*rec.maxSeries {
		rec.handles.clear()
	}
	return rec.handles.get(key, func(int) (*handle, bool) { return h, true })
}

// label decides about the labels of a Record: those of the overflow series when there is no room for a party's or a service's.
func (rec *Recorder) label(h *handleKey) seriesKey {
	k := seriesKey{flags: h.flags, status: h.status, grpc: h.grpc, reporter: h.reporter.side(), protocol: protocolMetricNames[h.protocol]}
	if h.protocol == TCP {
		k.status, k.grpc = 0, NoGRPC // which are no labels of a connection
	}
	var source, destination Party
	if h.reporter == reporterDestination {
		destination, k.secured = *rec.self.Load(), h.mtls
		if h.peer != nil {
			source = *h.peer
		}
	} else {
		source = *rec.self.Load()
		if e := h.endpoint; e != nil {
			destination = Party{Identity: e.Identity, Workload: e.Workload}
			k.secured = secured(h.cluster, e)
		}
	}
	room := 4 * rec.maxSeries // twice what peers may take that only connect
	k.source, k.destination = rec.party(source.told(k.secured), room), rec.party(destination.told(k.secured), room)
	k.service = rec.service(told(routedService(h)))
	if k.source == nil || k.destination == nil || k.service == nil {
		return rec.overflow(k.reporter, k.protocol)
	}
	return k
}

// overflow is the labels of what there is no room for.
func (rec *Recorder) overflow(r reporter, protocol string) seriesKey {
	return seriesKey{source: &rec.nobody, destination: &rec.nobody, service: &rec.beyond, grpc: NoGRPC, reporter: r, protocol: protocol, overflow: true}
}

// secured reports whether a request went to an endpoint by mesh TLS, which has verified its identity.
func secured(c *plan.Cluster, e *plan.Endpoint) bool {
	return e != nil && !e.Identity.IsZero() && !e.Plaintext && (c == nil || c.TLS != plan.TLSOff)
}

// routedService returns the labels of the service that was routed to, which is never what a client's Host header says.
// A request that no service was found for has Istio's names for that.
func routedService(h *handleKey) plan.ServiceLabels {
	switch {
	case h.cluster != nil && h.cluster.Service != (plan.ServiceLabels{}):
		return h.cluster.Service
	case h.host != nil && h.host.Service != (plan.ServiceLabels{}):
		return h.host.Service
	case h.reporter == reporterDestination && h.cluster != nil:
		return plan.ServiceLabels{Name: "InboundPassthroughCluster"}
	case h.host != nil || h.reporter != reporterSource: // a stranger at a gateway who asks for nothing that is there
		return plan.ServiceLabels{}
	case h.cluster != nil:
		return plan.ServiceLabels{Name: "PassthroughCluster"}
	}
	return plan.ServiceLabels{Name: "BlackHoleCluster"}
}

// seriesOf returns the series with these labels, or the overflow series when there are too many.
func (rec *Recorder) seriesOf(k seriesKey) (s *series, overflow bool) {
	s = rec.series.get(k, func(n int) (*series, bool) {
		if n >= rec.maxSeries && !k.overflow {
			return nil, false
		}
		s := &series{key: k}
		if k.protocol == protocolMetricNames[TCP] {
			s.tcp = &tcpCounts{}
		} else {
			s.http = &httpCounts{}
		}
		return s, true
	})
	if s == nil {
		return rec.seriesOf(rec.overflow(k.reporter, k.protocol))
	}
	s.touched.Store(rec.sweeps.Load())
	return s, k.overflow
}

// unknown returns the word for a label that has no value.
func unknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// append appends the labels of a series as they stand in a sample, without braces.
func (k *seriesKey) append(b []byte) []byte {
	return appendLabels(b, k.labels(make([]Label, 0, 32)))
}

// labels appends the labels of a series, as Istio names them.
func (k *seriesKey) labels(l []Label) []Label {
	l = append(l, Label{"reporter", reporterNames[k.reporter]})
	l = k.source.labels(l, &sourceNames)
	l = k.destination.labels(l, &destinationNames)
	l = append(l,
		Label{"destination_service", k.service.Host},
		Label{"destination_service_name", k.service.Name},
		Label{"destination_service_namespace", k.service.Namespace},
		Label{"request_protocol", k.protocol})
	if k.protocol != protocolMetricNames[TCP] {
		grpc := ""
		if k.grpc >= 0 {
			grpc = strconv.Itoa(int(k.grpc))
		}
		l = append(l, Label{"response_code", strconv.Itoa(int(k.status))}, Label{"grpc_response_status", grpc})
	}
	security := "unknown" // Istio: what a source reporter says, whatever the connection was
	if k.reporter == reporterDestination {
		security = "none"
		if k.secured {
			security = "mutual_tls"
		}
	}
	return append(l, Label{"response_flags", k.flags.String()}, Label{"connection_security_policy", security})
}

// partyNames are the label names of one end: workload, namespace, principal, app, version, service, revision, cluster.
type partyNames [8]string

var (
	sourceNames      = partyNamesFor("source_")
	destinationNames = partyNamesFor("destination_")
)

func partyNamesFor(prefix string) partyNames {
	n := partyNames{"workload", "workload_namespace", "principal", "app", "version", "canonical_service", "canonical_revision", "cluster"}
	for i := range n {
		n[i] = prefix + n[i]
	}
	return n
}

// told is what labels say of a party: without what they leave out, so that nobody is told from another by that.
func (p Party) told(secured bool) Party {
	w := p.Workload
	if p.Identity.Namespace != "" {
		w.Namespace = p.Identity.Namespace // what the certificate proves goes first
	}
	if w.CanonicalRevision == "" && p != (Party{}) {
		w.CanonicalRevision = "latest"
	}
	for _, s := range [...]*string{&w.Workload, &w.Namespace, &w.App, &w.Version, &w.CanonicalService, &w.CanonicalRevision, &w.Cluster} {
		*s = unknown(*s)
	}
	if !secured {
		p.Identity = ident.Identity{}
	}
	return Party{p.Identity, w}
}

// told is what labels say of a service.
func told(s plan.ServiceLabels) plan.ServiceLabels {
	return plan.ServiceLabels{Host: unknown(s.Host), Name: unknown(s.Name), Namespace: unknown(s.Namespace)}
}

// labels appends those of a party as told returns it.
func (p *Party) labels(l []Label, names *partyNames) []Label {
	w := &p.Workload
	for i, v := range [...]string{w.Workload, w.Namespace, unknown(p.Identity.URI()), w.App, w.Version, w.CanonicalService, w.CanonicalRevision, w.Cluster} {
		l = append(l, Label{names[i], v})
	}
	return l
}

// writeSeries writes the istio_* metrics. The labels of a series are spelled once for all of its samples in a family, which
// are 22 for a histogram: they are nearly all of a page.
func (rec *Recorder) writeSeries(w *Writer) {
	all := rec.series.all()
	var room []byte
	each := func(name, kind, help string, of func(*series) bool, f func(s *series, labels []byte)) {
		met := false
		for _, s := range all {
			if !of(s) {
				continue
			}
			if !met {
				w.Family(name, kind, help)
				met = true
			}
			room = s.key.append(room[:0])
			f(s, room)
		}
	}
	counts := make([]uint64, len(bounds)+1)
	http := func(s *series) bool { return s.http != nil }
	histograms := func(name, help string, scale float64, of func(*httpCounts) *histogram) {
		each(name, "histogram", help, http, func(s *series, labels []byte) {
			h := of(s.http)
			for i := range h.buckets {
				counts[i] = h.buckets[i].Load()
			}
			w.histogram(name, bounds[:], counts, float64(h.sum.Load())/scale, labels)
		})
	}
	counters := func(name, help string, has func(*series) bool, of func(*series) uint64) {
		each(name, "counter", help, has, func(s *series, labels []byte) { w.count(name, of(s), labels) })
	}
	grpc := func(s *series) bool { return s.http != nil && s.key.protocol == protocolMetricNames[GRPC] }
	tcp := func(s *series) bool { return s.tcp != nil }
	counters("istio_requests_total", "Requests that ended.", http, func(s *series) (n uint64) {
		for i := range s.http.duration.buckets {
			n += s.http.duration.buckets[i].Load()
		}
		return n
	})
	histograms("istio_request_duration_milliseconds", "Time from the first byte of a request to the last of its response.", 1000, func(c *httpCounts) *histogram { return &c.duration })
	histograms("istio_request_bytes", "Size of requests, with their heads.", 1, func(c *httpCounts) *histogram { return &c.request })
	histograms("istio_response_bytes", "Size of responses, with their heads.", 1, func(c *httpCounts) *histogram { return &c.response })
	counters("istio_request_messages_total", "gRPC messages from clients.", grpc, func(s *series) uint64 { return s.http.messagesIn.Value() })
	counters("istio_response_messages_total", "gRPC messages to clients.", grpc, func(s *series) uint64 { return s.http.messagesOut.Value() })
	counters("istio_tcp_connections_opened_total", "TCP connections opened.", tcp, func(s *series) uint64 { return s.tcp.opened.Value() })
	counters("istio_tcp_connections_closed_total", "TCP connections closed.", tcp, func(s *series) uint64 { return s.tcp.closed.Value() })
	counters("istio_tcp_sent_bytes_total", "Bytes sent to clients.", tcp, func(s *series) uint64 { return s.tcp.sent.Value() })
	counters("istio_tcp_received_bytes_total", "Bytes received from clients.", tcp, func(s *series) uint64 { return s.tcp.received.Value() })
}

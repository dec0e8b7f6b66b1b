package telemetry

import (
	"strconv"
	"sync/atomic"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// routeKey is the labels of a Linkerd ServiceProfile route.
type routeKey struct {
	dst, route string
	reporter   reporter
	status     uint16
	failure    bool
}

type routeSeries struct {
	key     routeKey
	touched atomic.Uint32
	latency latency // its count is route_response_total
}

// routeSeriesOf returns the series of a route, or nil when there are too many.
func (rec *Recorder) routeSeriesOf(k routeKey) *routeSeries {
	packed.Own(&k.dst, &k.route)
	s := rec.routes.get(k, func(n int) (*routeSeries, bool) {
		if n >= rec.maxSeries {
			return nil, false
		}
		return &routeSeries{key: k}, true
	})
	if s != nil {
		s.touched.Store(rec.sweeps.Load())
	}
	return s
}

// writeRoutes writes the metrics of ServiceProfile routes under Linkerd's names.
func (rec *Recorder) writeRoutes(w *Writer) {
	all := rec.routes.all()
	if len(all) == 0 {
		return
	}
	labels := func(k *routeKey) []byte {
		direction, class := "outbound", "success"
		if k.reporter == reporterDestination {
			direction = "inbound"
		}
		if k.failure {
			class = "failure"
		}
		return appendLabels(nil, []Label{{"direction", direction}, {"dst", k.dst}, {"rt_route", k.route},
			{"status_code", strconv.Itoa(int(k.status))}, {"classification", class}})
	}
	counts := make([]uint64, len(linkerdBounds)+1)
	load := func(s *routeSeries) (total uint64) {
		for i := range s.latency.buckets {
			counts[i] = s.latency.buckets[i].Load()
			total += counts[i]
		}
		return total
	}
	w.Family("route_response_total", "counter", "Responses by ServiceProfile route.")
	for _, s := range all {
		w.count("route_response_total", load(s), labels(&s.key))
	}
	w.Family("route_response_latency_ms", "histogram", "Time to the end of responses by ServiceProfile route.")
	for _, s := range all {
		load(s)
		w.histogram("route_response_latency_ms", linkerdBounds[:], counts, float64(s.latency.sum.Load())/1000, labels(&s.key))
	}
}

// Failed reports whether a response is a failure: as the first of classes that fits says, else by Linkerd's defaults,
// which are status 5xx and the gRPC codes UNKNOWN, DEADLINE_EXCEEDED, PERMISSION_DENIED, INTERNAL, UNAVAILABLE and
// DATA_LOSS. A response without a status (0) failed, whatever the classes are. grpc is NoGRPC for other responses.
func Failed(classes []plan.ResponseClass, status, grpc int) bool {
	if status == 0 {
		return true
	}
	for i := range classes {
		if holds(&classes[i].Cond, status) {
			return classes[i].Failure
		}
	}
	switch grpc {
	case 2, 4, 7, 13, 14, 15:
		return true
	}
	return status >= 500
}

// holds reports whether every part of c that is set holds.
func holds(c *plan.StatusCond, status int) bool {
	if c.Min != 0 && status < c.Min || c.Max != 0 && status > c.Max {
		return false
	}
	for i := range c.All {
		if !holds(&c.All[i], status) {
			return false
		}
	}
	if len(c.Any) > 0 {
		found := false
		for i := range c.Any {
			found = found || holds(&c.Any[i], status)
		}
		if !found {
			return false
		}
	}
	return c.Not == nil || !holds(c.Not, status)
}

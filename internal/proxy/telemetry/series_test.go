package telemetry

import (
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/plan"
)

// The labels are those of Istio's standard metrics, all of them and no other.
func TestLabelNames(t *testing.T) {
	http := strings.Fields(`reporter source_workload source_workload_namespace source_principal source_app source_version source_canonical_service
		source_canonical_revision source_cluster destination_workload destination_workload_namespace destination_principal destination_app
		destination_version destination_canonical_service destination_canonical_revision destination_cluster destination_service
		destination_service_name destination_service_namespace request_protocol response_code grpc_response_status response_flags
		connection_security_policy`)
	tcp := slices.DeleteFunc(slices.Clone(http), func(s string) bool { return s == "response_code" || s == "grpc_response_status" })
	rec := New(Options{Node: productpage})
	rec.Record(outbound())
	c := outbound()
	c.Protocol = TCP
	rec.Record(c)
	p := scrape(t, rec)
	for name, want := range map[string][]string{"istio_requests_total": http, "istio_tcp_sent_bytes_total": tcp} {
		for k := range p.samples {
			rest, ok := strings.CutPrefix(k, name+"{")
			if !ok {
				continue
			}
			got := map[string]bool{}
			for _, l := range strings.Split(strings.TrimSuffix(rest, "}"), separator) {
				n, _, _ := strings.Cut(l, "=")
				got[n] = true
			}
			if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, slices.Sorted(slices.Values(want))) {
				t.Errorf("%s has %v", name, names)
			}
		}
	}
}

// What no service was found for has Istio's names at a sidecar; at a gateway, where strangers ask for anything, none.
func TestRequestsForNoService(t *testing.T) {
	for _, tt := range []struct {
		direction plan.Direction
		cluster   *plan.Cluster
		want      string
	}{
		{plan.Outbound, nil, "BlackHoleCluster"},
		{plan.Outbound, &plan.Cluster{Name: "PassthroughCluster"}, "PassthroughCluster"},
		{plan.Inbound, &plan.Cluster{Name: "inbound"}, "InboundPassthroughCluster"},
		{plan.Inbound, nil, "unknown"},
		{plan.Edge, nil, "unknown"},
		{plan.Edge, &plan.Cluster{Name: "c"}, "unknown"},
	} {
		rec := New(Options{Node: productpage})
		r := outbound()
		r.Direction, r.Cluster, r.VirtualHost, r.Route, r.Endpoint = tt.direction, tt.cluster, nil, nil, nil
		rec.Record(r)
		p := scrape(t, rec)
		if p.find(t, "istio_requests_total", "destination_service_name="+tt.want, "destination_service=unknown") != 1 {
			t.Errorf("%s, cluster %v: not counted as %s: %v", tt.direction, tt.cluster, tt.want, p.samples)
		}
	}
}

// gRPC has messages, and nothing else has.
func TestMessages(t *testing.T) {
	rec := New(Options{Node: productpage})
	r := outbound()
	rec.Record(r)
	r.Protocol, r.GRPCStatus, r.MessagesIn, r.MessagesOut = GRPC, 0, 3, 5
	rec.Record(r)
	rec.Record(r)
	p := scrape(t, rec)
	in, out := p.find(t, "istio_request_messages_total", "request_protocol=grpc", "grpc_response_status=0"), p.find(t, "istio_response_messages_total", "request_protocol=grpc")
	if in != 6 || out != 10 || p.kinds["istio_request_messages_total"] != "counter" {
		t.Errorf("%v messages in, %v out", in, out)
	}
	for k := range p.samples {
		if strings.Contains(k, "_messages_total{") && strings.Contains(k, "=http") {
			t.Errorf("%s", k)
		}
	}
}

// What Go programs and their dashboards expect of a process is there and makes sense.
func TestProcessMetrics(t *testing.T) {
	p := scrape(t, New(Options{Node: productpage}))
	for _, name := range strings.Fields(`process_start_time_seconds process_cpu_seconds_total process_resident_memory_bytes process_virtual_memory_bytes
		process_open_fds process_max_fds go_goroutines go_threads go_memstats_alloc_bytes go_memstats_alloc_bytes_total go_memstats_heap_inuse_bytes
		go_memstats_stack_inuse_bytes go_memstats_next_gc_bytes go_memstats_sys_bytes`) {
		if p.find(t, name) <= 0 {
			t.Errorf("%s is %v", name, p.find(t, name))
		}
	}
	if p.find(t, "process_virtual_memory_bytes") < p.find(t, "process_resident_memory_bytes") {
		t.Error("more memory is resident than there is")
	}
	if p.find(t, "go_memstats_sys_bytes") < p.find(t, "go_memstats_heap_inuse_bytes") {
		t.Error("more heap is in use than Go has")
	}
}

// BenchmarkScrape is a page of a proxy whose application has called 1,000 services.
func BenchmarkScrape(b *testing.B) {
	rec := New(Options{Node: productpage})
	for i := range 1000 {
		r := outbound()
		r.Cluster = &plan.Cluster{Service: plan.ServiceLabels{Host: "service-" + strconv.Itoa(i) + ".default.svc.cluster.local", Name: "service-" + strconv.Itoa(i), Namespace: "default"}}
		rec.Record(r)
	}
	b.ReportAllocs()
	var size int64
	for b.Loop() {
		size, _ = rec.WriteTo(discard{})
	}
	b.ReportMetric(float64(size)/1e6, "MB/page")
}

// What a new combination costs does not depend on how many there are: a gateway has thousands of endpoints, and all are met anew
// after each sweep.
func TestManyCombinations(t *testing.T) {
	rec := New(Options{Node: productpage})
	const n = 4000
	records := make([]*Record, n)
	for i := range records {
		e := backend
		records[i] = outbound()
		records[i].Endpoint = &e
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, r := range records {
		rec.Record(r)
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / n; each > 10_000 {
		t.Errorf("%d bytes for each combination", each)
	}
	if got := scrape(t, rec).find(t, "istio_requests_total"); got != n {
		t.Errorf("%v requests", got)
	}
}

// What exceeds the bounds is counted in one series, however many clients are known already.
func TestOverflowIsOneSeries(t *testing.T) {
	rec := New(Options{Node: productpage, MaxSeries: 1})
	for i := range 20 {
		id := reviews
		id.ServiceAccount = "client-" + strconv.Itoa(i)
		r := outbound()
		r.Direction, r.MTLS, r.Peer = plan.Inbound, true, rec.Party(id, plan.WorkloadLabels{})
		for j := range 3 {
			rec.Party(reviews, plan.WorkloadLabels{App: strconv.Itoa(i*3 + j)})
		}
		rec.Record(r)
	}
	p := scrape(t, rec)
	if n := p.find(t, "malha_proxy_series"); n != 2 {
		t.Errorf("%v series", n)
	}
	if n := p.find(t, "istio_requests_total", "destination_service_name=overflow"); n != 19 {
		t.Errorf("%v beyond the bound", n)
	}
}

// Peers that connect and ask for nothing take no room that series need, and a peer that is not kept has one series, however often he
// comes.
func TestMorePeersThanAreKept(t *testing.T) {
	rec := New(Options{Node: productpage, MaxSeries: 10})
	for i := range 30 {
		rec.Party(reviews, plan.WorkloadLabels{App: strconv.Itoa(i)})
	}
	for range 3 {
		r := outbound()
		r.Direction, r.MTLS, r.Peer = plan.Inbound, true, rec.Party(reviews, plan.WorkloadLabels{App: "late"})
		rec.Record(r)
	}
	if n := scrape(t, rec).find(t, "istio_requests_total", "source_app=late"); n != 3 { // scrape fails when a sample stands twice
		t.Errorf("%v requests of the last peer", n)
	}
}

// What differs in nothing that a label says is one series.
func TestSameLabelsAreOneSeries(t *testing.T) {
	for name, differ := range map[string]func(a, b *Record){
		"the service account of a plaintext endpoint": func(a, b *Record) {
			a.Cluster = &plan.Cluster{Service: service, TLS: plan.TLSOff}
			b.Cluster, b.Endpoint.Identity.ServiceAccount = a.Cluster, "default"
		},
		"a namespace that the identity says as well": func(_, b *Record) { b.Endpoint.Workload.Namespace = reviews.Namespace },
		"a revision that is the default":             func(_, b *Record) { b.Endpoint.Workload.CanonicalRevision = "latest" },
		"a label that says unknown":                  func(_, b *Record) { b.Endpoint.Workload.CanonicalService = "unknown" },
		"a service that says unknown": func(a, b *Record) {
			a.Cluster = &plan.Cluster{Service: plan.ServiceLabels{Name: service.Name}}
			b.Cluster = &plan.Cluster{Service: plan.ServiceLabels{Name: service.Name, Host: "unknown"}}
		},
		"the status of a connection": func(a, b *Record) { a.Protocol, b.Protocol, b.Status = TCP, TCP, 0 },
	} {
		rec := New(Options{Node: productpage})
		a, b, e := outbound(), outbound(), backend
		b.Endpoint = &e
		differ(a, b)
		rec.Record(a)
		rec.Record(b)
		if n := scrape(t, rec).find(t, "malha_proxy_series"); n != 1 {
			t.Errorf("%s: %v series", name, n)
		}
	}
}

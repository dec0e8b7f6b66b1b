package telemetry

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

var (
	productpage = plan.Node{
		Name: ident.Name{Namespace: "default", Name: "productpage-v1"}, Role: plan.Sidecar,
		Identity: ident.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "productpage"},
		Workload: plan.WorkloadLabels{Workload: "productpage-v1", Namespace: "default", App: "productpage", Version: "v1", CanonicalService: "productpage", CanonicalRevision: "v1", Cluster: "local"},
	}
	reviews = ident.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "reviews"}
	service = plan.ServiceLabels{Host: "reviews.default.svc.cluster.local", Name: "reviews", Namespace: "default"}
	cluster = plan.Cluster{Name: "outbound|9080|v2|reviews.default.svc.cluster.local", Service: service}
	backend = plan.Endpoint{Address: "127.0.0.1:15006", Identity: reviews, Workload: plan.WorkloadLabels{Workload: "reviews-v2", App: "reviews", Version: "v2"}}
	host    = plan.VirtualHost{Name: "reviews.default.svc.cluster.local:9080", Service: service}
	rule    = plan.Route{Name: "canary", Origin: ident.Origin{Kind: "VirtualService", Namespace: "default", Name: "reviews", Rule: "http[0]", File: "reviews.yaml", Line: 12}}
)

func outbound() *Record {
	r := &Record{}
	r.Reset()
	r.Start, r.Duration = time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC), 7*time.Millisecond
	r.Direction, r.Protocol, r.Method, r.Path, r.Status = plan.Outbound, HTTP11, []byte("GET"), []byte("/reviews/0"), 200
	r.Authority, r.Cluster, r.Endpoint, r.VirtualHost, r.Route, r.Origin = []byte("reviews:9080"), &cluster, &backend, &host, &rule, &rule.Origin
	r.BodyIn, r.BodyOut, r.HeadIn, r.HeadOut = 0, 300, 120, 200
	return r
}

// page is a scrape taken apart by a parser that shares nothing with the writer: sample name and sorted labels → value.
type page struct {
	samples map[string]float64
	kinds   map[string]string
}

func scrape(t *testing.T, rec *Recorder) page {
	t.Helper()
	var b bytes.Buffer
	n, err := rec.WriteTo(&b)
	if err != nil || n != int64(b.Len()) {
		t.Fatalf("WriteTo: %d of %d bytes, %v", n, b.Len(), err)
	}
	p, err := parse(b.String())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// separator stands between the labels of a page's keys.
const separator = " ; "

func parse(text string) (page, error) {
	p := page{map[string]float64{}, map[string]string{}}
	if !strings.HasSuffix(text, "\n") {
		return p, errors.New("no newline at the end")
	}
	family, done := "", map[string]bool{}
	sc := bufio.NewScanner(strings.NewReader(text))
	for sc.Scan() {
		l := sc.Text()
		if rest, ok := strings.CutPrefix(l, "# TYPE "); ok {
			name, kind, _ := strings.Cut(rest, " ")
			if done[name] {
				return p, fmt.Errorf("family %s stands twice", name)
			}
			family, done[name], p.kinds[name] = name, true, kind
			continue
		}
		if strings.HasPrefix(l, "#") {
			continue
		}
		i := strings.IndexAny(l, "{ ")
		name, rest := l[:i], l[i:]
		var labels []string
		if rest[0] == '{' {
			rest = rest[1:]
			for rest[0] != '}' {
				k, r, ok := strings.Cut(rest, `="`)
				if !ok {
					return p, fmt.Errorf("labels of %q", l)
				}
				var v strings.Builder
				for r[0] != '"' {
					if r[0] == '\\' {
						switch r[1] {
						case 'n':
							v.WriteByte('\n')
						case '\\', '"':
							v.WriteByte(r[1])
						default:
							return p, fmt.Errorf("escape in %q", l)
						}
						r = r[2:]
						continue
					}
					v.WriteByte(r[0])
					r = r[1:]
				}
				labels = append(labels, k+"="+v.String())
				rest = strings.TrimPrefix(r[1:], ",")
			}
			rest = rest[1:]
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
		if err != nil {
			return p, fmt.Errorf("%q: %w", l, err)
		}
		base := name
		if p.kinds[family] == "histogram" {
			base = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
		}
		if base != family {
			return p, fmt.Errorf("%q stands in family %s", l, family)
		}
		sort.Strings(labels)
		key := name + "{" + strings.Join(labels, separator) + "}"
		if _, twice := p.samples[key]; twice {
			return p, fmt.Errorf("sample %s stands twice", key)
		}
		p.samples[key] = v
	}
	return p, p.histograms()
}

// histograms checks that buckets are cumulative and end with the count.
func (p page) histograms() error {
	type bucket struct{ le, n float64 }
	by := map[string][]bucket{}
	for k, v := range p.samples {
		name, labels, _ := strings.Cut(k, "{")
		if !strings.HasSuffix(name, "_bucket") {
			continue
		}
		var rest []string
		le := 0.
		for _, l := range strings.Split(strings.TrimSuffix(labels, "}"), separator) {
			if s, ok := strings.CutPrefix(l, "le="); ok {
				le = math.Inf(1)
				if s != "+Inf" {
					le, _ = strconv.ParseFloat(s, 64)
				}
			} else {
				rest = append(rest, l)
			}
		}
		id := strings.TrimSuffix(name, "_bucket") + "_count{" + strings.Join(rest, separator) + "}"
		by[id] = append(by[id], bucket{le, v})
	}
	for id, bs := range by {
		sort.Slice(bs, func(i, j int) bool { return bs[i].le < bs[j].le })
		for i := 1; i < len(bs); i++ {
			if bs[i].n < bs[i-1].n {
				return fmt.Errorf("%s: bucket %v has less than %v", id, bs[i], bs[i-1])
			}
		}
		if last := bs[len(bs)-1]; !math.IsInf(last.le, 1) || last.n != p.samples[id] {
			return fmt.Errorf("%s: last bucket %v, count %v", id, last, p.samples[id])
		}
	}
	return nil
}

// find returns the only sample of a metric that has all these labels.
func (p page) find(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	var keys []string
next:
	for k := range p.samples {
		if !strings.HasPrefix(k, name+"{") {
			continue
		}
		have := strings.Split(strings.TrimSuffix(strings.TrimPrefix(k, name+"{"), "}"), separator)
		for _, l := range labels {
			found := false
			for _, h := range have {
				found = found || h == l
			}
			if !found {
				continue next
			}
		}
		keys = append(keys, k)
	}
	if len(keys) != 1 {
		t.Errorf("%d samples of %s with %v: %v", len(keys), name, labels, keys)
		return math.NaN()
	}
	return p.samples[keys[0]]
}

func TestRequestMetrics(t *testing.T) {
	rec := New(Options{Node: productpage, Version: "1.2.3"})
	rec.Record(outbound())
	rec.Record(outbound())
	p := scrape(t, rec)
	want := "istio_requests_total{connection_security_policy=unknown,destination_app=reviews,destination_canonical_revision=latest,destination_canonical_service=unknown," +
		"destination_cluster=unknown,destination_principal=spiffe://cluster.local/ns/default/sa/reviews,destination_service=reviews.default.svc.cluster.local," +
		"destination_service_name=reviews,destination_service_namespace=default,destination_version=v2,destination_workload=reviews-v2,destination_workload_namespace=default," +
		"grpc_response_status=,reporter=source,request_protocol=http,response_code=200,response_flags=-,source_app=productpage,source_canonical_revision=v1," +
		"source_canonical_service=productpage,source_cluster=local,source_principal=spiffe://cluster.local/ns/default/sa/productpage,source_version=v1,source_workload=productpage-v1," +
		"source_workload_namespace=default}"
	want = strings.ReplaceAll(want, ",", separator)
	if p.samples[want] != 2 {
		for k := range p.samples {
			if strings.HasPrefix(k, "istio_requests_total") {
				t.Errorf("got  %s", k)
			}
		}
		t.Errorf("want %s", want)
	}
	for _, tc := range []struct {
		name string
		le   string
		want float64
	}{
		{"istio_request_duration_milliseconds_bucket", "le=5", 0}, {"istio_request_duration_milliseconds_bucket", "le=10", 2},
		{"istio_request_bytes_bucket", "le=100", 0}, {"istio_request_bytes_bucket", "le=250", 2}, {"istio_response_bytes_bucket", "le=500", 2},
		{"istio_response_bytes_bucket", "le=1800000", 2},
	} {
		if got := p.find(t, tc.name, tc.le); got != tc.want {
			t.Errorf("%s %s = %v, want %v", tc.name, tc.le, got, tc.want)
		}
	}
	if got := p.find(t, "istio_request_duration_milliseconds_sum"); got != 14 {
		t.Errorf("sum %v", got)
	}
	if p.find(t, "istio_build", "component=proxy", "tag=1.2.3") != 1 || p.find(t, "malha_proxy_series") != 1 {
		t.Error("istio_build or malha_proxy_series")
	}
}

func TestInboundAndProtocols(t *testing.T) {
	rec := New(Options{Node: productpage})
	in := cluster
	in.Name, in.Service = "inbound|9080||", service
	record := func(f func(*Record)) {
		r := outbound()
		r.Direction, r.Cluster, r.Endpoint, r.VirtualHost = plan.Inbound, &in, nil, nil
		f(r)
		rec.Record(r)
	}
	record(func(r *Record) {
		r.Peer, r.MTLS = rec.Party(reviews, plan.WorkloadLabels{Workload: "reviews-v1", Namespace: "claimed"}), true
	})
	record(func(r *Record) {})
	record(func(r *Record) {
		r.Protocol, r.GRPCStatus, r.Flags = GRPC, 14, UpstreamConnectFailure|UpstreamRetryLimit
	})
	record(func(r *Record) { r.Protocol, r.GRPCStatus = GRPC, 9999 })
	p := scrape(t, rec)
	for _, labels := range [][]string{
		{"reporter=destination", "source_workload=reviews-v1", "source_workload_namespace=default", "source_principal=spiffe://cluster.local/ns/default/sa/reviews",
			"destination_workload=productpage-v1", "connection_security_policy=mutual_tls"},
		{"source_workload=unknown", "source_canonical_revision=unknown", "source_principal=unknown", "destination_principal=unknown", "connection_security_policy=none", "request_protocol=http"},
		{"request_protocol=grpc", "grpc_response_status=14", "response_flags=UF,URX", "response_code=200"},
		{"request_protocol=grpc", "grpc_response_status=2"},
	} {
		if got := p.find(t, "istio_requests_total", labels...); got != 1 {
			t.Errorf("%v: %v", labels, got)
		}
	}
}

func TestRoutedServiceNames(t *testing.T) {
	rec := New(Options{Node: productpage})
	bare, vhost := plan.Cluster{Name: "PassthroughCluster"}, plan.VirtualHost{Name: "gateway"}
	for i, tc := range []struct {
		direction plan.Direction
		cluster   *plan.Cluster
		host      *plan.VirtualHost
		want      string
	}{
		{plan.Outbound, &bare, nil, "PassthroughCluster"},
		{plan.Outbound, nil, nil, "BlackHoleCluster"},
		{plan.Inbound, &bare, nil, "InboundPassthroughCluster"},
		{plan.Edge, nil, &vhost, "unknown"},
		{plan.Inbound, nil, nil, "unknown"},
	} {
		r := outbound()
		r.Direction, r.Cluster, r.VirtualHost, r.Endpoint, r.Status = tc.direction, tc.cluster, tc.host, nil, 400+i
		rec.Record(r)
	}
	p := scrape(t, rec)
	for i, want := range []string{"PassthroughCluster", "BlackHoleCluster", "InboundPassthroughCluster", "unknown", "unknown"} {
		if p.find(t, "istio_requests_total", "response_code="+strconv.Itoa(400+i), "destination_service_name="+want, "destination_service=unknown") != 1 {
			t.Errorf("%d: not counted under %s", i, want)
		}
	}
}

func TestTCPMetrics(t *testing.T) {
	rec := New(Options{Node: productpage})
	r := outbound()
	r.Protocol, r.Status = TCP, 0
	c := rec.OpenTCP(r)
	c.Add(1000, 10)
	c.Add(1, 2)
	p := scrape(t, rec)
	if p.find(t, "istio_tcp_connections_opened_total", "request_protocol=tcp", "response_flags=-") != 1 || p.find(t, "istio_tcp_connections_closed_total") != 0 ||
		p.find(t, "istio_tcp_sent_bytes_total") != 1001 || p.find(t, "istio_tcp_received_bytes_total") != 12 {
		t.Errorf("open connection: %v", p.samples)
	}
	for k := range p.samples {
		if strings.HasPrefix(k, "istio_tcp") && strings.Contains(k, "response_code") {
			t.Errorf("TCP has no response code: %s", k)
		}
	}
	c.Close(r)
	r.Flags, r.BodyIn, r.BodyOut = NoHealthyUpstream, 5, 6
	rec.Record(r)
	p = scrape(t, rec)
	if p.find(t, "istio_tcp_connections_closed_total", "response_flags=-") != 1 || p.find(t, "istio_tcp_connections_opened_total", "response_flags=UH") != 1 ||
		p.find(t, "istio_tcp_sent_bytes_total", "response_flags=UH") != 6 {
		t.Errorf("closed connections: %v", p.samples)
	}
}

func TestServiceProfileRoutes(t *testing.T) {
	rec := New(Options{Node: productpage})
	r := outbound()
	r.Route = &plan.Route{Profile: `GET /a"\` + "\n", Classes: []plan.ResponseClass{{Cond: plan.StatusCond{Min: 404, Max: 404}, Failure: true}}}
	for _, status := range []int{200, 404, 503} {
		r.Status = status
		rec.Record(r)
	}
	p := scrape(t, rec)
	for status, class := range map[string]string{"200": "success", "404": "failure", "503": "failure"} {
		l := []string{"direction=outbound", "dst=" + host.Name, `rt_route=GET /a"\` + "\n", "status_code=" + status, "classification=" + class}
		if p.find(t, "route_response_total", l...) != 1 || p.find(t, "route_response_latency_ms_bucket", append(l, "le=10")...) != 1 {
			t.Errorf("%s", status)
		}
	}
}

func TestFailed(t *testing.T) {
	class := func(c plan.StatusCond, failure bool) plan.ResponseClass {
		return plan.ResponseClass{Cond: c, Failure: failure}
	}
	for _, tc := range []struct {
		classes      []plan.ResponseClass
		status, grpc int
		want         bool
	}{
		{nil, 200, NoGRPC, false}, {nil, 499, NoGRPC, false}, {nil, 500, NoGRPC, true}, {nil, 0, NoGRPC, true},
		{nil, 200, 0, false}, {nil, 200, 14, true}, {nil, 200, 5, false},
		{[]plan.ResponseClass{class(plan.StatusCond{Min: 500}, false)}, 503, NoGRPC, false},
		{[]plan.ResponseClass{class(plan.StatusCond{Max: 404, Min: 404}, true), class(plan.StatusCond{}, false)}, 404, NoGRPC, true},
		{[]plan.ResponseClass{class(plan.StatusCond{Not: &plan.StatusCond{Max: 299}}, true)}, 301, NoGRPC, true},
		{[]plan.ResponseClass{class(plan.StatusCond{Any: []plan.StatusCond{{Min: 400, Max: 400}, {Min: 409, Max: 409}}}, true)}, 409, NoGRPC, true},
		{[]plan.ResponseClass{class(plan.StatusCond{Any: []plan.StatusCond{{Min: 400, Max: 400}}}, true)}, 409, NoGRPC, false},
		{[]plan.ResponseClass{class(plan.StatusCond{All: []plan.StatusCond{{Min: 400}, {Max: 450}}}, true)}, 460, NoGRPC, false},
		{[]plan.ResponseClass{class(plan.StatusCond{Max: 499}, false)}, 0, NoGRPC, true}, // no status is below 499
		{[]plan.ResponseClass{class(plan.StatusCond{Not: &plan.StatusCond{Min: 500}}, false)}, 0, NoGRPC, true},
	} {
		if got := Failed(tc.classes, tc.status, tc.grpc); got != tc.want {
			t.Errorf("Failed(%+v, %d, %d) = %v", tc.classes, tc.status, tc.grpc, got)
		}
	}
}

func TestSeriesAreBounded(t *testing.T) {
	rec := New(Options{Node: productpage, MaxSeries: 10})
	for i := range 200 {
		r := outbound()
		e := backend
		e.Workload.Workload = fmt.Sprint("w", i)
		r.Endpoint = &e
		rec.Record(r)
	}
	p := scrape(t, rec)
	if n := p.find(t, "malha_proxy_series"); n > 11 {
		t.Errorf("%v series", n)
	}
	if p.find(t, "istio_requests_total", "destination_service_name=overflow") != 190 || p.find(t, "malha_proxy_series_overflow_total") != 190 {
		t.Errorf("overflow: %v", p.find(t, "malha_proxy_series_overflow_total"))
	}
	var total float64
	for k, v := range p.samples {
		if strings.HasPrefix(k, "istio_requests_total") {
			total += v
		}
	}
	if total != 200 {
		t.Errorf("%v requests in all, want 200", total)
	}
	if n := len(rec.handles.all()); n > 40 {
		t.Errorf("%d handles", n)
	}
}

func TestIdleSeriesExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := New(Options{Node: productpage, Idle: 10 * time.Minute})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { rec.Run(ctx); close(done) }()
		old, busy, tcp := outbound(), outbound(), outbound()
		busy.Status, tcp.Protocol, tcp.Status = 201, TCP, 0
		rec.Record(old)
		c := rec.OpenTCP(tcp)
		for range 30 {
			rec.Record(busy)
			time.Sleep(time.Minute)
			synctest.Wait()
		}
		p := scrape(t, rec)
		if p.find(t, "istio_requests_total") != 30 {
			t.Error("the idle series is still there, or the busy one lost something")
		}
		if p.find(t, "istio_tcp_connections_opened_total") != 1 {
			t.Error("the series of an open connection is gone")
		}
		if n := len(rec.parties.all()); n != 2 {
			t.Errorf("%d parties", n)
		}
		c.Close(tcp)
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(rec.series.all()) + len(rec.parties.all()) + len(rec.services.all()) + len(rec.handles.all()); n != 0 {
			t.Errorf("%d things are left", n)
		}
		cancel()
		<-done
	})
}

// TestStaleParty has a long connection keep a Party that the recorder forgot: there must not be two series with the
// same labels.
// The labels of a series are no parts of the plan that they came from: it would stay as long as its series.
func TestSeriesKeepNoPlan(t *testing.T) {
	text := string([]byte("cluster.local default reviews reviews-v2 reviews.default.svc.cluster.local slow"))
	part := func(s string) string {
		i := strings.Index(text, s)
		return text[i : i+len(s)]
	}
	id := ident.Identity{TrustDomain: part("cluster.local"), Namespace: part("default"), ServiceAccount: part("reviews")}
	labels := plan.WorkloadLabels{
		Workload: part("reviews-v2"), Namespace: part("default"), App: part("reviews"), Version: part("v2"),
		CanonicalService: part("reviews"), CanonicalRevision: part("v2"), Cluster: part("local"),
	}
	named := plan.ServiceLabels{Host: part("reviews.default.svc.cluster.local"), Name: part("reviews"), Namespace: part("default")}
	r := outbound()
	r.Cluster, r.Endpoint = &plan.Cluster{Service: named}, &plan.Endpoint{Identity: id, Workload: labels}
	r.VirtualHost, r.Route = &plan.VirtualHost{Name: part("reviews.default.svc.cluster.local")}, &plan.Route{Profile: part("slow")}
	rec := New(Options{})
	rec.Record(r)
	var kept []string
	for p := range rec.parties.all() {
		w := p.Workload
		kept = append(kept, p.Identity.TrustDomain, p.Identity.Namespace, p.Identity.ServiceAccount,
			w.Workload, w.Namespace, w.App, w.Version, w.CanonicalService, w.CanonicalRevision, w.Cluster)
	}
	for s := range rec.services.all() {
		kept = append(kept, s.Host, s.Name, s.Namespace)
	}
	for k := range rec.routes.all() {
		kept = append(kept, k.dst, k.route)
	}
	if !slices.Contains(kept, "reviews-v2") || !slices.Contains(kept, "slow") || !slices.Contains(kept, named.Host) {
		t.Fatalf("the labels are %q", kept)
	}
	for _, s := range kept {
		if at := uintptr(unsafe.Pointer(unsafe.StringData(s))) - uintptr(unsafe.Pointer(unsafe.StringData(text))); s != "" && at < uintptr(len(text)) {
			t.Errorf("%q is a part of the plan", s)
		}
	}
}

func TestStaleParty(t *testing.T) {
	rec := New(Options{Node: productpage})
	r := outbound()
	r.Direction, r.Peer, r.MTLS = plan.Inbound, rec.Party(reviews, plan.WorkloadLabels{}), true
	rec.sweep()
	again := *r
	again.Peer = rec.Party(reviews, plan.WorkloadLabels{})
	if again.Peer == r.Peer {
		t.Fatal("the party was not forgotten")
	}
	rec.Record(r)
	rec.Record(&again)
	if got := scrape(t, rec).find(t, "istio_requests_total"); got != 2 {
		t.Errorf("%v", got)
	}
}

func TestConcurrentRecords(t *testing.T) {
	rec := New(Options{Node: productpage, MaxSeries: 20})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				r := outbound()
				r.Status = 200 + (i+g)%15
				rec.Record(r)
				if i%500 == 0 {
					rec.sweep()
				}
			}
		})
	}
	wg.Wait()
	var total float64
	for k, v := range scrape(t, rec).samples {
		if strings.HasPrefix(k, "istio_requests_total") {
			total += v
		}
	}
	if total != 8000 {
		t.Errorf("%v requests, want 8000", total)
	}
}

func TestRecordDoesNotAllocate(t *testing.T) {
	log := NewAccessLog(discard{})
	rec := New(Options{Node: productpage, Log: log})
	r := outbound()
	r.Route = &plan.Route{Profile: "GET /"}
	r.Remote, r.UserAgent = netip.MustParseAddrPort("10.0.0.1:1234"), []byte("curl/8 é")
	for range 100 {
		rec.Record(r)
	}
	spare, _ := log.flush(nil)
	if n := testing.AllocsPerRun(300, func() {
		rec.Record(r)
		spare, _ = log.flush(spare)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func BenchmarkRecord(b *testing.B) {
	rec := New(Options{Node: productpage})
	r := outbound()
	b.ReportAllocs()
	for b.Loop() {
		rec.Record(r)
	}
}

func BenchmarkAccessLog(b *testing.B) {
	log := NewAccessLog(discard{})
	r := outbound()
	var spare []byte
	b.ReportAllocs()
	for b.Loop() {
		log.Write(r)
		spare, _ = log.flush(spare)
	}
}

func TestOff(t *testing.T) {
	var out strings.Builder
	log := NewAccessLog(&out)
	rec := New(Options{Node: productpage, Log: log, Off: true})
	r := outbound()
	rec.Record(r)
	tcp := outbound()
	tcp.Protocol = TCP
	rec.Record(tcp)
	for k := range scrape(t, rec).samples {
		if strings.HasPrefix(k, "istio_requests") || strings.HasPrefix(k, "istio_tcp") {
			t.Errorf("%s was counted", k)
		}
	}
	if _, err := log.flush(nil); err != nil || strings.Count(out.String(), "\n") != 2 {
		t.Errorf("the access log has %q (%v), want two lines", out.String(), err)
	}
}

func TestFlagsString(t *testing.T) {
	if len(flagNames) != 20 || flagsEnd != 1<<len(flagNames) {
		t.Fatalf("%d names for flags below %b", len(flagNames), flagsEnd)
	}
	for f, want := range map[Flags]string{0: "-", NoRoute: "NR", UpstreamTimeout | UpstreamRetryLimit: "URX,UT", Unauthorized: "UAEX", UpstreamReset | RequestTimeout: "UR,DT"} {
		if f.String() != want {
			t.Errorf("%b: %s, want %s", f, f, want)
		}
	}
}

var logKeys = []string{
	"start_time", "method", "path", "protocol", "response_code", "response_flags", "response_code_details", "connection_termination_details",
	"upstream_transport_failure_reason", "bytes_received", "bytes_sent", "duration", "upstream_service_time", "x_forwarded_for", "user_agent", "request_id", "authority",
	"upstream_host", "upstream_cluster", "upstream_local_address", "downstream_local_address", "downstream_remote_address", "requested_server_name", "route_name", "route_origin",
	"grpc_status", "attempts", "direction", "downstream_peer", "upstream_peer",
}

func TestAccessLogLine(t *testing.T) {
	r := outbound()
	r.Original, r.Query, r.HasQuery = []byte("/old"), []byte("a=1"), true
	r.Flags, r.Detail, r.ServiceTime, r.SNI = UpstreamTimeout, "response_timeout", 3*time.Millisecond, "sni"
	r.RequestID, r.Remote, r.Attempts = []byte("id"), netip.MustParseAddrPort("127.0.0.1:9"), 2
	r.Peer, r.MTLS = &Party{Identity: productpage.Identity}, true
	var got map[string]any
	b := appendLine(nil, r)
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"start_time": "2026-01-02T03:04:05.006Z", "method": "GET", "path": "/old?a=1", "protocol": "HTTP/1.1", "response_code": 200., "response_flags": "UT",
		"response_code_details": "response_timeout", "connection_termination_details": nil, "upstream_transport_failure_reason": nil, "bytes_received": 0., "bytes_sent": 300.,
		"duration": 7., "upstream_service_time": 3., "x_forwarded_for": nil, "user_agent": nil, "request_id": "id", "authority": "reviews:9080", "upstream_host": "127.0.0.1:15006",
		"upstream_cluster": cluster.Name, "upstream_local_address": nil, "downstream_local_address": nil, "downstream_remote_address": "127.0.0.1:9",
		"requested_server_name": "sni", "route_name": "canary", "route_origin": rule.Origin.String(),
		"grpc_status": nil, "attempts": 2., "direction": "outbound", "downstream_peer": "spiffe://cluster.local/ns/default/sa/productpage",
		"upstream_peer": "spiffe://cluster.local/ns/default/sa/reviews",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	last := -1
	for _, k := range logKeys {
		i := bytes.Index(b, []byte(`"`+k+`":`))
		if i <= last {
			t.Errorf("key %s is not in its place", k)
		}
		last = i
	}
	if len(got) != len(logKeys) {
		t.Errorf("%d keys, want %d", len(got), len(logKeys))
	}
}

func FuzzAccessLogLine(f *testing.F) {
	f.Add([]byte("/a\r\n\x1b[31m\"\\\x7f\xff\xc2\x85\xe2\x80\xa8é"), "sni\x00")
	f.Fuzz(func(t *testing.T, p []byte, s string) {
		r := outbound()
		r.Path, r.Query, r.HasQuery, r.UserAgent, r.SNI, r.Detail, r.Authority = p, p, true, p, s, s, p
		r.Origin = &ident.Origin{Kind: s, File: s, Line: 3}
		b := appendLine(nil, r)
		var got map[string]any
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%v: %q", err, b)
		}
		if len(got) != len(logKeys) || b[len(b)-1] != '\n' {
			t.Fatalf("%q", b)
		}
		for _, c := range string(b[:len(b)-1]) {
			if c < 0x20 || c >= 0x7f && c < 0xa0 || c == 0x2028 {
				t.Fatalf("control character %q in %q", c, b)
			}
		}
	})
}

// slow is a sink that writes only when it is let.
type slow struct {
	let chan struct{}
	mu  sync.Mutex
	b   bytes.Buffer
}

func (s *slow) Write(p []byte) (int, error) {
	<-s.let
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func TestAccessLogDropsRatherThanBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &slow{let: make(chan struct{})}
		log := NewAccessLog(sink)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- log.Run(ctx) }()
		r := outbound()
		log.Write(r)
		time.Sleep(time.Second) // the writer is stuck in the sink with one line
		const n = 2000
		for range n {
			log.Write(r)
		}
		dropped := log.Dropped()
		if dropped == 0 || dropped >= n {
			t.Errorf("%d of %d lines dropped", dropped, n)
		}
		cancel()
		close(sink.let)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := strings.Count(sink.b.String(), "\n"); uint64(got) != n+1-dropped {
			t.Errorf("%d lines written, %d dropped of %d", got, dropped, n+1)
		}
	})
}

func TestAccessLogIsFlushedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &slow{let: make(chan struct{})}
		close(sink.let)
		log := NewAccessLog(sink)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- log.Run(ctx) }()
		for range 3 {
			log.Write(outbound())
			time.Sleep(logEvery + time.Millisecond)
			synctest.Wait()
		}
		sink.mu.Lock()
		got := strings.Count(sink.b.String(), "\n")
		sink.mu.Unlock()
		if got != 3 {
			t.Errorf("%d lines are out, want 3", got)
		}
		for range 200 { // more than a batch: at once
			log.Write(outbound())
		}
		synctest.Wait()
		sink.mu.Lock()
		if sink.b.Len() < logBatch {
			t.Errorf("%d bytes are out", sink.b.Len())
		}
		sink.mu.Unlock()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestWriterEscapesAndFails(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	w.Family("m", "gauge", "a\nb\\")
	w.Float("m", 1.5, Label{"l", "a\"b\\c\nd\xff"})
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if want := "# HELP m a\\nb\\\\\n# TYPE m gauge\nm{l=\"a\\\"b\\\\c\\nd\ufffd\"} 1.5\n"; b.String() != want {
		t.Errorf("got %q", b.String())
	}
	if _, err := New(Options{}).WriteTo(broken{}); err == nil {
		t.Error("the error of the sink is lost")
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken") }

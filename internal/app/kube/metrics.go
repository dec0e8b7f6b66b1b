package kube

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/wire/serve"
)

// exposition is the Prometheus text format (version 0.0.4) as it is written.
type exposition struct{ strings.Builder }

// family begins a metric.
func (e *exposition) family(name, kind, help string) {
	fmt.Fprintf(e, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// value writes a sample of the family that was begun last. labels are written as they are, "" or `{a="b"}`.
func (e *exposition) value(name, labels string, v float64) {
	fmt.Fprintf(e, "%s%s %s\n", name, labels, strconv.FormatFloat(v, 'g', -1, 64))
}

// one writes a family of one sample.
func (e *exposition) one(name, kind, help, labels string, v float64) {
	e.family(name, kind, help)
	e.value(name, labels, v)
}

// histogram writes a family: how many took no longer than each bound, how long all took, and how many there were.
func (e *exposition) histogram(name, help string, bounds []time.Duration, below []uint64, sum time.Duration, count uint64) {
	e.family(name, "histogram", help)
	for i, b := range bounds {
		e.value(name+"_bucket", fmt.Sprintf("{le=%q}", strconv.FormatFloat(b.Seconds(), 'g', -1, 64)), float64(below[i]))
	}
	if n := len(below); n > 0 {
		count = max(count, below[n-1]) // they are counted one after the other
	}
	e.value(name+"_bucket", `{le="+Inf"}`, float64(count))
	e.value(name+"_sum", "", sum.Seconds())
	e.value(name+"_count", "", float64(count))
}

// answerBounds are the upper bounds of how long webhooks take; the API server waits 5 seconds.
var answerBounds = []time.Duration{
	time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond, time.Second, 5 * time.Second,
}

// Answers counts what webhooks answer, for the metrics of a Server. Any number of goroutines may count.
type Answers struct {
	mu     sync.Mutex
	counts map[answered]uint64
	below  map[string][]uint64 // of each webhook, by answerBounds
	sum    map[string]time.Duration
	all    map[string]uint64
}

type answered struct{ webhook, outcome string }

// NewAnswers returns an Answers that counted nothing yet.
func NewAnswers() *Answers {
	return &Answers{counts: map[answered]uint64{}, below: map[string][]uint64{}, sum: map[string]time.Duration{}, all: map[string]uint64{}}
}

// Count counts an answer of a webhook, "inject" or "validate", with what became of it (internal/admit) and the time it took.
func (a *Answers) Count(webhook, outcome string, took time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.counts[answered{webhook, outcome}]++
	if a.below[webhook] == nil {
		a.below[webhook] = make([]uint64, len(answerBounds))
	}
	for i, b := range answerBounds {
		if took <= b {
			a.below[webhook][i]++
		}
	}
	a.sum[webhook] += took
	a.all[webhook]++
}

// injections are Istio's four words for what becomes of a pod, by ours. What is no new pod is counted under ours alone; everything
// else that is not here is a pod that is left alone.
var injections = map[string]string{"asked": "success", "invalid": "failure", "failed": "failure", "not-a-new-pod": ""}

// validations are the same for objects.
var validations = map[string]string{"accepted": "passed", "tolerated": "passed", "refused": "failed", "failed": "http_error"}

// write writes what was counted: by Istio's names, and with all outcomes by ours.
func (a *Answers) write(e *exposition) {
	a.mu.Lock()
	defer a.mu.Unlock()
	injected, validated, all := map[string]uint64{}, map[string]uint64{}, uint64(0)
	for k, n := range a.counts {
		switch k.webhook {
		case "inject":
			word, known := injections[k.outcome]
			if !known {
				word = "skip"
			}
			injected[word] += n
			if word != "" {
				all += n
			}
		case "validate":
			validated[validations[k.outcome]] += n
		}
	}
	e.one("sidecar_injection_requests_total", "counter", "Pods that the injector was asked about.", "", float64(all))
	for _, w := range [][2]string{
		{"success", "Pods that got a proxy."}, {"failure", "Pods that were refused, and questions that could not be answered."}, {"skip", "Pods that were left alone."},
	} {
		e.one("sidecar_injection_"+w[0]+"_total", "counter", w[1], "", float64(injected[w[0]]))
	}
	for _, w := range [][2]string{
		{"passed", "Objects that were let pass."}, {"failed", "Objects that were refused."}, {"http_error", "Questions about objects that could not be answered."},
	} {
		e.one("galley_validation_"+w[0], "counter", w[1], "", float64(validated[w[0]]))
	}
	e.family("malha_webhook_answers_total", "counter", "Answers of webhooks, by what they say.")
	for _, k := range slices.SortedFunc(maps.Keys(a.counts), func(x, y answered) int {
		return cmp.Or(cmp.Compare(x.webhook, y.webhook), cmp.Compare(x.outcome, y.outcome))
	}) {
		e.value("malha_webhook_answers_total", fmt.Sprintf("{webhook=%q,outcome=%q}", k.webhook, k.outcome), float64(a.counts[k]))
	}
	if a.all["inject"] > 0 {
		e.histogram("sidecar_injection_time_seconds", "Time that the injector took for a pod.", answerBounds, a.below["inject"], a.sum["inject"], a.all["inject"])
	}
}

// metrics serves the metrics. Names are those of Istio's control plane where the meaning is the same.
func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	e := &exposition{}
	version := fmt.Sprintf("{version=%q}", s.o.Version)
	e.one("pilot_info", "gauge", "The control plane's version.", version, 1)
	e.one("istiod_uptime_seconds", "gauge", "Time since the control plane started.", "", time.Since(s.started).Seconds())
	e.one("malha_leader", "gauge", "Whether this replica writes statuses, trust bundles and gateways.", "", truthNumber(s.leading.Load()))
	e.one("malha_ready", "gauge", "Whether this replica serves.", "", truthNumber(s.Ready() == nil))
	if a := s.authority.Load(); a != nil {
		e.one("citadel_server_root_cert_expiry_timestamp", "gauge", "When the certificate that signs expires, in seconds since 1970.", "", float64(a.NotAfter().Unix()))
	}
	s.planeMetrics(e, version)
	if s.o.Answers != nil {
		s.o.Answers.write(e)
	}
	counts := map[model.Severity]int{}
	for _, d := range s.findings() {
		counts[d.Severity]++
	}
	e.family("malha_diagnostics", "gauge", "What is wrong with the configuration, with reading it, or with what this replica writes.")
	for _, sev := range []model.Severity{model.Error, model.Warning} {
		e.value("malha_diagnostics", fmt.Sprintf("{severity=%q}", sev), float64(counts[sev]))
	}
	processMetrics(e)
	_, _ = io.WriteString(w, e.String())
}

// planeMetrics writes those of the part that compiles, serves proxies and signs.
func (s *Server) planeMetrics(e *exposition, version string) {
	plane := s.plane.Load()
	if plane == nil {
		return
	}
	c, work := plane.Counters(), plane.Work()
	connected, sync := 0, map[string]int{}
	for _, p := range plane.Status() {
		if p.Connected {
			connected++
			sync[string(p.Sync)]++
		}
	}
	e.one("pilot_xds", "gauge", "Proxies that are connected to this replica.", version, float64(connected))
	e.family("malha_control_proxies", "gauge", "Proxies that are connected to this replica, by whether they run what it has for them.")
	for _, state := range slices.Sorted(maps.Keys(sync)) {
		e.value("malha_control_proxies", fmt.Sprintf("{sync=%q}", state), float64(sync[state]))
	}
	e.one("pilot_xds_pushes", "counter", "Changes sent to proxies.", `{type="malha"}`, float64(c.Pushes))
	e.one("pilot_total_xds_rejects", "counter", "Changes, or parts of them, that proxies refused.", "", float64(c.Nacks))
	e.histogram("pilot_proxy_convergence_time", "Time from a change to its confirmation by a proxy, in seconds.", serve.ConvergeBounds[:], c.ConvergeIn[:], c.ConvergeSum, c.Acks)
	e.family("malha_control_compile_seconds", "summary", "Time that compiling took, of whole configurations and of parts of one.")
	for _, w := range []struct {
		what string
		n    uint64
		took time.Duration
	}{{"whole", work.Whole, work.WholeTime}, {"parts", work.Parts, work.PartsTime}} {
		e.value("malha_control_compile_seconds_sum", fmt.Sprintf("{what=%q}", w.what), w.took.Seconds())
		e.value("malha_control_compile_seconds_count", fmt.Sprintf("{what=%q}", w.what), float64(w.n))
	}
	e.one("malha_control_pushed_bytes_total", "counter", "Bytes of changes sent to proxies, before TLS.", "", float64(c.PushedBytes))
	e.one("malha_control_encodes_total", "counter", "Pieces of plans that were encoded.", "", float64(c.Encodes))
	e.one("malha_control_pieces", "gauge", "Different pieces of plans that are kept.", "", float64(c.Pieces))
	e.one("malha_control_piece_bytes", "gauge", "Bytes of these pieces.", "", float64(c.PieceBytes))
	e.one("malha_control_refused_total", "counter", "Handshakes, tokens and proxies that were refused.", "", float64(c.Refused))
	e.one("malha_control_overflows_total", "counter", "Connections of proxies that were turned away for being too many.", "", float64(c.Overflows))
	e.one("citadel_server_success_cert_issuance_count", "counter", "Certificates signed for proxies.", "", float64(c.Signed))
	if cfg := plane.Config(); cfg != nil {
		e.one("pilot_services", "gauge", "Services that are known.", "", float64(len(cfg.Services)))
		e.one("pilot_virt_services", "gauge", "Objects that route requests, of every dialect.", "", float64(len(cfg.Routings)))
	}
}

// processMetrics writes those of every Go program that dashboards know.
func processMetrics(e *exposition) {
	e.one("go_goroutines", "gauge", "Goroutines.", "", float64(runtime.NumGoroutine()))
	e.family("go_info", "gauge", "The version of Go.")
	e.value("go_info", fmt.Sprintf("{version=%q}", runtime.Version()), 1)
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(heap)
	e.one("go_memstats_heap_alloc_bytes", "gauge", "Bytes of objects on the heap.", "", float64(heap[0].Value.Uint64()))
	var used syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &used) == nil {
		e.one("process_cpu_seconds_total", "counter", "CPU time, of programs and the kernel.", "", time.Duration(used.Utime.Nano()+used.Stime.Nano()).Seconds())
	}
	if rss, ok := residentBytes(); ok {
		e.one("process_resident_memory_bytes", "gauge", "Resident memory.", "", float64(rss))
	}
}

func truthNumber(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// residentBytes reads the second field of /proc/self/statm (proc(5)).
func residentBytes() (int64, bool) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, false
	}
	if f := strings.Fields(string(text)); len(f) > 1 {
		n, err := strconv.ParseInt(f[1], 10, 64)
		return n * int64(os.Getpagesize()), err == nil
	}
	return 0, false
}

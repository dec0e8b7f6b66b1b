package kube

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/app/control"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// monitor serves health and metrics, to everybody.
func (s *Server) monitor() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz/live", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	ready := func(w http.ResponseWriter, _ *http.Request) {
		err := s.Ready()
		if err == nil && s.ending.Load() {
			err = fmt.Errorf("it is about to end")
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	}
	mux.HandleFunc("GET /healthz/ready", ready)
	mux.HandleFunc("GET /ready", ready) // Istio's path
	mux.HandleFunc("GET /metrics", s.metrics)
	return mux
}

// metrics writes the Prometheus text format. Names are those of Istio's control plane where the meaning is the same.
func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	var b strings.Builder
	put := func(name, kind, help, labels string, v float64) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n%s%s %s\n", name, help, name, kind, name, labels, strconv.FormatFloat(v, 'g', -1, 64))
	}
	version := fmt.Sprintf("{version=%q}", s.o.Version)
	put("pilot_info", "gauge", "The control plane's version.", version, 1)
	put("istiod_uptime_seconds", "gauge", "Time since the control plane started.", "", time.Since(s.started).Seconds())
	put("malha_leader", "gauge", "Whether this replica writes statuses, trust bundles and gateways.", "", truthNumber(s.leading.Load()))
	put("malha_ready", "gauge", "Whether this replica serves.", "", truthNumber(s.Ready() == nil))
	if a := s.authority.Load(); a != nil {
		put("citadel_server_root_cert_expiry_timestamp", "gauge", "When the certificate that signs expires, in seconds since 1970.", "", float64(a.NotAfter().Unix()))
	}
	if plane := s.plane.Load(); plane != nil {
		c := plane.Counters()
		connected := 0
		for _, p := range plane.Status() {
			if p.Connected {
				connected++
			}
		}
		put("pilot_xds", "gauge", "Proxies that are connected to this replica.", version, float64(connected))
		put("pilot_xds_pushes", "counter", "Changes sent to proxies.", `{type="malha"}`, float64(c.Pushes))
		put("pilot_total_xds_rejects", "counter", "Changes, or parts of them, that proxies refused.", "", float64(c.Nacks))
		fmt.Fprintf(&b, "# HELP pilot_proxy_convergence_time Time from a change to its confirmation by a proxy, in seconds.\n# TYPE pilot_proxy_convergence_time summary\npilot_proxy_convergence_time_sum %s\npilot_proxy_convergence_time_count %d\n",
			strconv.FormatFloat(c.ConvergeSum.Seconds(), 'g', -1, 64), c.Acks)
		put("malha_control_pushed_bytes_total", "counter", "Bytes of changes sent to proxies, before TLS.", "", float64(c.PushedBytes))
		put("malha_control_encodes_total", "counter", "Pieces of plans that were encoded.", "", float64(c.Encodes))
		put("malha_control_pieces", "gauge", "Different pieces of plans that are kept.", "", float64(c.Pieces))
		put("malha_control_piece_bytes", "gauge", "Bytes of these pieces.", "", float64(c.PieceBytes))
		put("malha_control_refused_total", "counter", "Handshakes, tokens and proxies that were refused.", "", float64(c.Refused))
		put("citadel_server_success_cert_issuance_count", "counter", "Certificates signed for proxies.", "", float64(c.Signed))
		if cfg := plane.Config(); cfg != nil {
			put("pilot_services", "gauge", "Services that are known.", "", float64(len(cfg.Services)))
			put("pilot_virt_services", "gauge", "Objects that route requests, of every dialect.", "", float64(len(cfg.Routings)))
		}
	}
	counts := map[model.Severity]int{}
	s.mu.Lock()
	for i := range s.diagnostics {
		counts[s.diagnostics[i].Severity]++
	}
	s.mu.Unlock()
	b.WriteString("# HELP malha_diagnostics What is wrong with the configuration.\n# TYPE malha_diagnostics gauge\n")
	for _, sev := range []model.Severity{model.Error, model.Warning} {
		fmt.Fprintf(&b, "malha_diagnostics{severity=%q} %d\n", sev, counts[sev])
	}
	put("go_goroutines", "gauge", "Goroutines.", "", float64(runtime.NumGoroutine()))
	if rss, ok := residentBytes(); ok {
		put("process_resident_memory_bytes", "gauge", "Resident memory.", "", float64(rss))
	}
	_, _ = io.WriteString(w, b.String())
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

// debug serves what tools ask of this replica. It has no authentication: it is for who may forward ports of the pod.
func (s *Server) debug() http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("GET /debug/version", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]string{"version": s.o.Version})
	})
	mux.HandleFunc("GET /debug/proxies", func(w http.ResponseWriter, _ *http.Request) {
		list := []control.ProxyStatus{}
		if p := s.plane.Load(); p != nil {
			list = append(list, p.Status()...)
		}
		answer(w, list)
	})
	mux.HandleFunc("GET /debug/diagnostics", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		ds := append([]model.Diagnostic{}, s.diagnostics...)
		s.mu.Unlock()
		if !s.source.Synced() { // what keeps it from beginning
			ds = append(ds, s.source.Diagnostics()...)
		}
		answer(w, ds)
	})
	mux.HandleFunc("GET /debug/plan", func(w http.ResponseWriter, r *http.Request) {
		name, err := ident.ParseName(r.URL.Query().Get("proxy"), ident.DefaultNamespace)
		if err != nil {
			http.Error(w, "proxy: want NAMESPACE/NAME: "+err.Error(), http.StatusBadRequest)
			return
		}
		if p := s.plane.Load(); p != nil {
			if made, ok := p.Plan(name); ok {
				answer(w, made)
				return
			}
		}
		http.Error(w, "there is no plan for "+name.String()+": is it a pod with a sidecar, or a gateway?", http.StatusNotFound)
	})
	return mux
}

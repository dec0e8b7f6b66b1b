package kube

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/malha-mesh/malha/internal/app/control"
	"github.com/malha-mesh/malha/internal/config"
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
		answer(w, append([]model.Diagnostic{}, s.findings()...))
	})
	mux.HandleFunc("GET /debug/analysis", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.analysis()) })
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

// analysis is what `malha analyze --cluster` shows.
func (s *Server) analysis() *config.Analysis {
	out := &config.Analysis{Diagnostics: s.findings()}
	if p := s.plane.Load(); p != nil {
		out.Diagnostics = append(out.Diagnostics, p.Advise()...)
	}
	s.mu.Lock()
	r := s.last
	s.mu.Unlock()
	if r != nil {
		out.Suppressed = config.Suppressions(r.Objects)
	}
	return out
}

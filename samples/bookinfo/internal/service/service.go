// Package service is what the four programs of Bookinfo have in common: flags, a server that drains, health endpoints,
// metrics, and a client that forwards the headers which tie one user's request together across services.
//
// The programs know nothing of Malha: they call each other by name with Go's ordinary HTTP client, which finds the
// sidecar through the standard proxy variables.
package service

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Service is one running program.
type Service struct {
	Name    string // "reviews"
	Version string // "v2"
	Log     *slog.Logger

	mux      *http.ServeMux
	client   *http.Client
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	metrics  *prometheus.Registry
}

// forwarded are the headers that a service hands on with every call it makes for a request: the trace context of the
// usual tracers, the request id, and the two headers that the samples route by.
var forwarded = []string{
	"x-request-id", "traceparent", "tracestate", "b3",
	"x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags",
	"x-datadog-trace-id", "x-datadog-parent-id", "x-datadog-sampling-priority", "sw8", "grpc-trace-bin",
	"end-user", "x-canary",
}

// Caller is who a sidecar says made a request, from the verified certificate of mutual TLS.
func Caller(r *http.Request) string {
	for part := range strings.SplitSeq(r.Header.Get("x-forwarded-client-cert"), ";") {
		if uri, ok := strings.CutPrefix(part, "URI="); ok {
			return strings.Trim(uri, `"`)
		}
	}
	return ""
}

// Main runs a service until a signal ends it: routes adds its handlers. It returns the exit code.
func Main(name string, routes func(*Service, *flag.FlagSet) func(*http.ServeMux)) int {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:9080", "`address` to serve on")
	version := flags.String("version", "v1", "the `version` of the service to be")
	s := &Service{
		Name:    name,
		Log:     slog.New(slog.NewTextHandler(os.Stdout, nil)),
		mux:     http.NewServeMux(),
		client:  &http.Client{Timeout: 10 * time.Second},
		metrics: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bookinfo_requests_total", Help: "Requests served, by path pattern and status code.",
		}, []string{"path", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bookinfo_request_duration_seconds", Help: "Time to serve a request, by path pattern.",
			Buckets: prometheus.DefBuckets,
		}, []string{"path"}),
	}
	s.metrics.MustRegister(s.requests, s.duration)
	register := routes(s, flags)
	if err := flags.Parse(os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	s.Version = *version
	register(s.mux)
	s.mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		s.JSON(w, http.StatusOK, map[string]string{"status": s.Name + " " + s.Version + " is healthy"})
	})
	s.mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics, promhttp.HandlerOpts{}))

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := s.serve(ctx, *listen); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}

// serve listens until ctx is done, then lets the requests in flight finish.
func (s *Service) serve(ctx context.Context, addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("cannot listen: %w", err)
	}
	server := &http.Server{Handler: s.instrument(s.mux), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() {
		<-ctx.Done()
		bound, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		done <- server.Shutdown(bound)
	}()
	s.Log.Info("serving", "service", s.Name, "version", s.Version, "address", l.Addr().String())
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-done
}

// instrument counts and times every request under the pattern that served it, and says who sent it.
func (s *Service) instrument(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
		if caller := Caller(r); caller != "" {
			w.Header().Set(verified, caller)
		}
		next.ServeHTTP(rec, r)
		path := r.Pattern
		if path == "" {
			path = "none"
		}
		s.requests.WithLabelValues(path, fmt.Sprint(rec.status)).Inc()
		s.duration.WithLabelValues(path).Observe(time.Since(start).Seconds())
	})
}

type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (r *statusRecorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the real writer.
func (r *statusRecorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// JSON answers with v.
func (s *Service) JSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("content-type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.Log.Warn("cannot answer", "error", err)
	}
}

// Call is what became of a call to another service.
type Call struct {
	Millis  float64 `json:"millis"`           // until the body was read
	Caller  string  `json:"caller,omitempty"` // who the other side's sidecar verified that we are; "" without mutual TLS
	Problem string  `json:"problem,omitempty"`
}

// OK reports whether the call brought what was asked for.
func (c Call) OK() bool { return c.Problem == "" }

// verified is the header in which a service says whom its sidecar took the caller for.
const verified = "x-verified-caller"

// Get calls another service for the request r and decodes its JSON answer into v.
func (s *Service) Get(r *http.Request, url string, v any) Call {
	start := time.Now()
	var call Call
	if err := s.get(r, url, &call, v); err != nil {
		call.Problem = err.Error()
	}
	call.Millis = float64(time.Since(start).Microseconds()) / 1000
	return call
}

func (s *Service) get(r *http.Request, url string, call *Call, v any) error {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	for _, h := range forwarded {
		if v := r.Header.Get(h); v != "" {
			req.Header.Set(h, v)
		}
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	call.Caller = resp.Header.Get(verified)
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	return json.Unmarshal(body, v)
}

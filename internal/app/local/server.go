package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// maxOrder bounds the body of an apply, in bytes: the manifests in base64, and their names.
const maxOrder = MaxManifests/3*4 + 1<<20

// servers are the control socket and the metrics page.
type servers struct {
	control, metrics   *http.Server
	controlL, metricsL net.Listener
	ctx                context.Context // of all requests
	cancel             context.CancelFunc
	wg                 sync.WaitGroup
}

// listen opens both, so that nothing is started when one of them cannot be.
func (m *Mesh) listen() (*servers, error) {
	s := &servers{}
	var err error
	if s.controlL, err = listenSocket(m.o.State); err != nil {
		return nil, err
	}
	if s.metricsL, err = listenLoopback(); err != nil {
		_ = s.controlL.Close()
		return nil, err
	}
	m.metrics = "http://" + s.metricsL.Addr().String() + "/metrics"
	s.ctx, s.cancel = context.WithCancel(context.Background())
	base := func(net.Listener) context.Context { return s.ctx }
	s.control = &http.Server{Handler: m.controlHandler(), BaseContext: base, ReadHeaderTimeout: 10 * time.Second}
	s.metrics = &http.Server{Handler: named(m.metricsHandler()), BaseContext: base, ReadHeaderTimeout: 10 * time.Second}
	return s, nil
}

func (s *servers) run(m *Mesh) {
	for _, p := range []struct {
		srv *http.Server
		l   net.Listener
	}{{s.control, s.controlL}, {s.metrics, s.metricsL}} {
		s.wg.Go(func() {
			if err := p.srv.Serve(p.l); !errors.Is(err, http.ErrServerClosed) {
				m.log.Error("a local server ended", "addr", p.l.Addr().String(), "error", err)
			}
		})
	}
}

// stop ends both; whoever follows a log is told by the end of the stream.
func (s *servers) stop() {
	s.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, srv := range []*http.Server{s.control, s.metrics} {
		if srv.Shutdown(ctx) != nil {
			_ = srv.Close()
		}
	}
	s.wg.Wait()
}

func (m *Mesh) controlHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, m.Status())
	})
	mux.HandleFunc("GET /v1/objects", func(w http.ResponseWriter, r *http.Request) {
		answer(w, m.Objects(r.FormValue("kind"), r.FormValue("namespace")))
	})
	for _, verb := range []string{"apply", "delete"} {
		mux.HandleFunc("POST /v1/"+verb, func(w http.ResponseWriter, r *http.Request) {
			var files []ManifestFile
			if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxOrder)).Decode(&files); err != nil {
				refuse(w, http.StatusBadRequest, "the manifests could not be read: "+err.Error())
				return
			}
			if m.ending() {
				refuse(w, http.StatusConflict, "the mesh is stopping; start it again with `malha up`")
				return
			}
			answer(w, m.change(r.Context(), order{verb: verb, files: files, namespace: r.FormValue("namespace"),
				missingOK: r.FormValue("missing-ok") == "true", dryRun: r.FormValue("dry-run") == "true"}))
		})
	}
	mux.HandleFunc("GET /v1/plans", m.plans)
	mux.HandleFunc("GET /v1/analysis", m.analyze)
	mux.HandleFunc("GET /v1/logs", m.logs)
	mux.HandleFunc("POST /v1/down", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, struct{}{})
		m.downNow.Do(func() { close(m.down) })
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, "this mesh does not know "+r.URL.Path+"; is it another version than the command?")
	})
	return mux
}

func (m *Mesh) ending() bool {
	ending := true
	m.do(func() { ending = m.phase == Stopping })
	return ending
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the reader has gone
}

func refuse(w http.ResponseWriter, code int, why string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(Failure{why})
}

// logs sends the last lines of a source, and with follow those to come.
func (m *Mesh) logs(w http.ResponseWriter, r *http.Request) {
	source := r.FormValue("source")
	n, err := strconv.Atoi(r.FormValue("tail"))
	if err != nil || n < 0 {
		n = keepLines
	}
	var last []Line
	var lines <-chan Line // nil: only the last ones are wanted
	if r.FormValue("follow") == "true" {
		var stop func()
		last, lines, stop = m.out.follow(source, n)
		defer stop()
	} else {
		last = m.out.tail(source, n)
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	for _, l := range last {
		if enc.Encode(l) != nil {
			return
		}
	}
	if lines == nil {
		return
	}
	flush := http.NewResponseController(w)
	for {
		if flush.Flush() != nil {
			return
		}
		select {
		case l := <-lines:
			if enc.Encode(l) != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

// metricsHandler serves every proxy's metrics on one page, and the list of the proxies for a Prometheus that would
// rather ask each (https://prometheus.io/docs/prometheus/latest/http_sd/).
func (m *Mesh) metricsHandler() http.Handler {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{Proxy: nil, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		proxies := m.admins()
		pages := make([][]byte, len(proxies))
		var wg sync.WaitGroup
		for i, p := range proxies {
			wg.Go(func() {
				var err error
				if pages[i], err = fetch(r.Context(), client, "http://"+p.Admin+"/metrics"); err != nil {
					m.log.Warn("a proxy does not tell its metrics", "proxy", p.Name.String(), "error", err)
				}
			})
		}
		wg.Wait()
		var e exposition
		for i, p := range proxies {
			up := "1"
			if pages[i] == nil {
				up = "0"
			}
			e.add(p.Name.String(), pages[i])
			e.add(p.Name.String(), []byte("# HELP malha_proxy_up Whether the proxy told its metrics.\n# TYPE malha_proxy_up gauge\nmalha_proxy_up "+up+"\n"))
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_ = e.write(w) // the reader has gone
	})
	mux.HandleFunc("GET /targets", func(w http.ResponseWriter, _ *http.Request) {
		type group struct {
			Targets []string          `json:"targets"`
			Labels  map[string]string `json:"labels"`
		}
		groups := []group{}
		for _, p := range m.admins() {
			groups = append(groups, group{[]string{p.Admin}, map[string]string{
				"__metrics_path__": "/metrics", "proxy": p.Name.String(), "namespace": p.Name.Namespace,
			}})
		}
		answer(w, groups)
	})
	return mux
}

// named answers only who names the server by an address or as localhost, and not a page in a browser.
func named(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		if host != "" && !ident.HostIsAddress(host) {
			refuse(w, http.StatusForbidden, "this page is for who asks its address or localhost, not "+r.Host)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func fetch(ctx context.Context, c *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answered %s", res.Status)
	}
	return io.ReadAll(io.LimitReader(res.Body, 64<<20))
}

// admins returns the name and admin address of every proxy.
func (m *Mesh) admins() []ProxyStatus {
	var out []ProxyStatus
	m.do(func() {
		for _, u := range m.units {
			if u.admin != "" {
				out = append(out, ProxyStatus{Name: u.name, Role: u.role, Admin: u.admin})
			}
		}
	})
	slices.SortFunc(out, func(a, b ProxyStatus) int { return a.Name.Compare(b.Name) })
	return out
}

// Objects returns the objects in force of a kind ("" any) and namespace ("" all), by namespace and name.
func (m *Mesh) Objects(kind, namespace string) []Object {
	out := []Object{}
	m.do(func() {
		applied := byKey(m.applied)
		for _, o := range merge(m.objects, m.applied) {
			if (kind != "" && o.Kind != kind) || (namespace != "" && o.Name.Namespace != namespace) {
				continue
			}
			out = append(out, Object{APIVersion: o.APIVersion, Kind: o.Kind, Name: o.Name, Labels: o.Labels,
				Applied: applied[config.KeyOf(&o)] != nil, Origin: o.Origin, YAML: yamlOf(whole(&o))})
		}
	})
	slices.SortStableFunc(out, func(a, b Object) int { return a.Name.Compare(b.Name) })
	return out
}

// names returns the names of all proxies that should run. It runs in the loop.
func (m *Mesh) names() []ident.Name {
	out := make([]ident.Name, 0, len(m.units))
	for name, u := range m.units {
		if !u.stopping || u.workload != nil && m.configured(name) {
			out = append(out, name)
		}
	}
	slices.SortFunc(out, ident.Name.Compare)
	return out
}

// configured reports whether the configuration in force has a workload or a gateway of this name.
func (m *Mesh) configured(name ident.Name) bool {
	for i := range m.config.Workloads {
		if m.config.Workloads[i].Name == name {
			return true
		}
	}
	return slices.ContainsFunc(m.placed.Gateways, func(g model.GatewayInstance) bool { return g.Name == name })
}

// Package testmesh runs a whole mesh in one process, for tests: a control plane with its CA, the real control stream, a
// real proxy for each workload and for the gateway, and small HTTP applications that say who they are.
//
// In come manifests as users write them; out go real requests over real sockets, each with the identity of the workload
// it is sent as. Everything is started by Start and gone when the test ends. What the command line and the supervisor add
// (processes, folders, output) is internal/app/local's, and tested there.
package testmesh

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/app/control"
	"github.com/malha-mesh/malha/internal/config/file"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/live"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/testport"
	"github.com/malha-mesh/malha/internal/wire/watch"
	"github.com/malha-mesh/malha/internal/world"
)

// Options change a mesh from its defaults.
type Options struct {
	CertTTL time.Duration // lifetime of certificates; 0 the CA's default
	// Handler answers for a workload; nil or a nil answer: Echo.
	Handler func(workload ident.Name) http.Handler
}

// patience is how long anything may take before a test gives up. Nothing waits for it when all is well.
const patience = time.Minute

// Mesh is a running mesh. Its methods fail the test when the mesh itself does not work; what a request comes to is the
// test's to judge.
type Mesh struct {
	t   testing.TB
	o   Options
	ctl *control.Control
	dir string
	log *slog.Logger
	ctx context.Context
	wg  sync.WaitGroup

	mu        sync.Mutex
	placement placement.Placement
	apps      map[ident.Name]*App
	proxies   map[ident.Name]*Proxy
}

// App is the application of a workload.
type App struct {
	Name   ident.Name
	server *httptest.Server
}

// Proxy is a running proxy.
type Proxy struct {
	Name     ident.Name
	Live     *live.Proxy
	Recorder *telemetry.Recorder
	Creds    *trust.Holder
	Log      *lockedBuffer // the access log, JSON lines
	lines    *telemetry.AccessLog
	cancel   context.CancelFunc
	done     chan struct{}
}

// Answer is what a request came to.
type Answer struct {
	Status int
	Header http.Header
	Body   string
	By     string // the workload that answered, "reviews-v1"; "" when the mesh did
}

// Start runs the mesh that manifests describe and waits until every proxy is in sync. Every port that listens here is on
// loopback and chosen by the operating system.
func Start(t testing.TB, manifests string, opts ...Options) *Mesh {
	t.Helper()
	m := &Mesh{t: t, dir: t.TempDir(), apps: map[ident.Name]*App{}, proxies: map[ident.Name]*Proxy{}}
	if len(opts) > 0 {
		m.o = opts[0]
	}
	logs := &lockedBuffer{}
	m.log = slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelInfo}))
	ctx, cancel := context.WithCancel(context.Background())
	m.ctx = ctx
	var err error
	if m.ctl, err = control.Open(control.Options{CertTTL: m.o.CertTTL, Log: m.log}); err != nil {
		t.Fatal(err)
	}
	m.wg.Go(func() { _ = m.ctl.Run(ctx) })
	t.Cleanup(func() {
		var stops sync.WaitGroup
		for _, p := range m.proxies {
			stops.Go(p.Stop)
		}
		stops.Wait()
		cancel()
		m.wg.Wait()
		for _, a := range m.apps {
			a.Stop()
		}
		if t.Failed() {
			t.Logf("log of the mesh:\n%s", logs)
		}
	})
	if err := os.WriteFile(filepath.Join(m.dir, "roots.pem"), m.ctl.RootsPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	if ds := m.Apply(manifests); model.HasErrors(ds) {
		t.Fatalf("the manifests are wrong: %v", ds)
	}
	return m
}

// Apply makes manifests the whole configuration: new workloads start, programs and proxies of what is gone end, and it waits until every proxy is in sync. With
// errors among the diagnostics nothing changes.
func (m *Mesh) Apply(manifests string) []model.Diagnostic {
	m.t.Helper()
	res := file.Parse("mesh.yaml", strings.NewReader(manifests))
	if model.HasErrors(res.Diagnostics) {
		return res.Diagnostics
	}
	m.mu.Lock()
	next, err := placement.Place(res.Config, m.placement, func(string) (string, error) { return testport.Address(m.t), nil })
	if err != nil {
		m.mu.Unlock()
		m.t.Fatal(err)
	}
	for i := range next.Instances {
		next.Instances[i].Ready = true
	}
	ds := append(res.Diagnostics, world.Check(world.Build(res.Config, next.Instances, next.Gateways))...)
	if model.HasErrors(ds) {
		m.mu.Unlock()
		return ds
	}
	m.placement = next
	for i := range res.Config.Workloads {
		m.startApp(&res.Config.Workloads[i], next)
	}
	m.mu.Unlock()

	m.ctl.SetConfig(res.Config)
	m.ctl.SetInstances(next.Instances, next.Gateways)
	wanted := map[ident.Name]bool{}
	for i := range res.Config.Workloads {
		w := &res.Config.Workloads[i]
		wanted[w.Name] = true
		m.startProxy(world.NodeOf(plan.Sidecar, w.Name, w.Identity, w.Labels))
	}
	for _, g := range next.Gateways {
		wanted[g.Name] = true
		m.startProxy(world.NodeOf(plan.Gateway, g.Name, g.Identity, g.Labels))
	}
	m.stopProxies(func(n ident.Name) bool { return !wanted[n] })
	m.stopApps(func(n ident.Name) bool { return !wanted[n] })
	m.Sync()
	return ds
}

// SetReady makes a workload's instance ready or not, as a supervisor that probes it would.
func (m *Mesh) SetReady(name ident.Name, ready bool) {
	m.t.Helper()
	m.mu.Lock()
	next := append([]model.Instance(nil), m.placement.Instances...)
	for i := range next {
		if next[i].Workload == name {
			next[i].Ready = ready
		}
	}
	m.placement.Instances = next
	gateways := m.placement.Gateways
	m.mu.Unlock()
	m.ctl.SetInstances(next, gateways)
	m.Sync()
}

// Sync waits until everything that was set is in force in every proxy.
func (m *Mesh) Sync() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.ctx, patience)
	defer cancel()
	m.mu.Lock()
	var nodes []ident.Name
	for n := range m.proxies {
		nodes = append(nodes, n)
	}
	m.mu.Unlock()
	if err := m.ctl.WaitSynced(ctx, nodes...); err != nil {
		m.t.Fatalf("the mesh does not come into sync: %v; status %+v; diagnostics %v", err, m.ctl.Status(), m.ctl.Diagnostics())
	}
}

// Proxy returns the proxy of a workload of the namespace default, or of "namespace/name".
func (m *Mesh) Proxy(workload string) *Proxy {
	m.t.Helper()
	name := m.name(workload)
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.proxies[name]
	if p == nil {
		m.t.Fatalf("no proxy %s", name)
	}
	return p
}

// App returns the application of a workload.
func (m *Mesh) App(workload string) *App {
	m.t.Helper()
	name := m.name(workload)
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.apps[name]
	if a == nil {
		m.t.Fatalf("no application %s", workload)
	}
	return a
}

func (m *Mesh) name(s string) ident.Name {
	m.t.Helper()
	n, err := ident.ParseName(s, ident.DefaultNamespace)
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

// Instance returns where a workload is reached.
func (m *Mesh) Instance(workload string) model.Instance {
	m.t.Helper()
	name := m.name(workload)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, in := range m.placement.Instances {
		if in.Workload == name {
			return in
		}
	}
	m.t.Fatalf("no instance %s", name)
	return model.Instance{}
}

// Client returns an HTTP client that sends as a workload: through its sidecar's forward proxy.
func (m *Mesh) Client(workload string) *http.Client {
	m.t.Helper()
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: m.Instance(workload).Forward}), MaxIdleConnsPerHost: 64}
	m.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// Gateway returns the host:port of a gateway's server port.
func (m *Mesh) Gateway(port int) string {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, g := range m.placement.Gateways {
		if addr := g.Binds[port]; addr != "" {
			return addr
		}
	}
	m.t.Fatalf("no gateway listens for port %d", port)
	return ""
}

// Get sends a GET as a workload; headers are "name: value".
func (m *Mesh) Get(from, url string, headers ...string) Answer {
	m.t.Helper()
	return m.Do(m.Client(from), http.MethodGet, url, "", headers...)
}

// Do sends a request and reads the whole answer. A request without an answer fails the test.
func (m *Mesh) Do(c *http.Client, method, url, body string, headers ...string) Answer {
	m.t.Helper()
	a, err := Try(c, method, url, body, headers...)
	if err != nil {
		m.t.Fatalf("%s %s: %v", method, url, err)
	}
	return a
}

// Try is Do for use outside of the test's goroutine.
func Try(c *http.Client, method, url, body string, headers ...string) (Answer, error) {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if strings.EqualFold(name, "host") {
			req.Host = value
			continue
		}
		req.Header.Add(name, value)
	}
	resp, err := c.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return Answer{}, err
	}
	return Answer{Status: resp.StatusCode, Header: resp.Header, Body: string(b), By: resp.Header.Get("x-app")}, nil
}

// Metrics returns the exposition of a proxy.
func (p *Proxy) Metrics() string {
	var b bytes.Buffer
	_, _ = p.Recorder.WriteTo(&b)
	return b.String()
}

// Stop drains the proxy and ends it.
func (p *Proxy) Stop() {
	p.cancel()
	<-p.done
}

// Stop ends the application: its connections are refused from then on.
func (a *App) Stop() {
	a.server.CloseClientConnections()
	a.server.Close()
}

// Echo answers 200 with who it is in x-app and, in the body, the request as it arrived.
func Echo(name ident.Name) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("x-app", name.Name)
		fmt.Fprintf(w, "%s %s %s\nhost: %s\n", r.Method, r.URL, r.Proto, r.Host)
		_ = r.Header.Write(w)
		fmt.Fprintf(w, "\n%s", body)
	})
}

// startApp runs the application of a workload on the ports where its sidecar looks for it.
func (m *Mesh) startApp(w *model.Workload, p placement.Placement) {
	if m.apps[w.Name] != nil || w.Run == nil {
		return
	}
	var h http.Handler
	if m.o.Handler != nil {
		h = m.o.Handler(w.Name)
	}
	if h == nil {
		h = Echo(w.Name)
	}
	for _, in := range p.Instances {
		if in.Workload != w.Name {
			continue
		}
		for _, addr := range in.App {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				m.t.Fatal(err)
			}
			s := httptest.NewUnstartedServer(h)
			s.Listener.Close()
			s.Listener = l
			s.EnableHTTP2 = true
			protocols := new(http.Protocols)
			protocols.SetHTTP1(true)
			protocols.SetUnencryptedHTTP2(true)
			s.Config.Protocols = protocols
			s.Start()
			m.apps[w.Name] = &App{Name: w.Name, server: s}
			return // one port is what the tests' workloads have
		}
	}
}

// startProxy runs the proxy of a node.
func (m *Mesh) startProxy(n plan.Node) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.proxies[n.Name] != nil {
		return
	}
	token, err := m.ctl.Token(n)
	if err != nil {
		m.t.Fatal(err)
	}
	tokenFile := filepath.Join(m.dir, n.Name.Namespace+"_"+n.Name.Name+".token")
	if err := os.WriteFile(tokenFile, []byte(token), 0o600); err != nil {
		m.t.Fatal(err)
	}
	log := m.log.With("proxy", n.Name.String())
	p := &Proxy{Name: n.Name, Creds: &trust.Holder{}, Log: &lockedBuffer{}, done: make(chan struct{})}
	p.lines = telemetry.NewAccessLog(p.Log)
	p.Recorder = telemetry.New(telemetry.Options{Node: n, Log: p.lines, Version: "test"})
	p.Live = live.New(live.Options{Credentials: p.Creds, Recorder: p.Recorder, Log: log})
	w := watch.New(watch.Options{
		Addr: m.ctl.Addr(), Node: n.Name, Role: n.Role, Version: "test", Credentials: p.Creds,
		RootsFile: filepath.Join(m.dir, "roots.pem"), TokenFile: tokenFile, ApplyPacked: p.Live.ApplyPacked, Log: log,
	})
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	still, end := context.WithCancel(context.Background())
	var feed, data sync.WaitGroup
	data.Go(func() { _ = p.Live.Run(still) })
	data.Go(func() { _ = p.lines.Run(still) })
	feed.Go(func() { _ = w.Run(ctx) })
	go func() {
		defer close(p.done)
		<-ctx.Done()
		feed.Wait()
		drain, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		p.Live.Drain(drain)
		end()
		data.Wait()
	}()
	m.proxies[n.Name] = p
}

// stopProxies ends the proxies that nobody wants any more.
func (m *Mesh) stopProxies(unwanted func(ident.Name) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, p := range m.proxies {
		if unwanted(name) {
			p.Stop()
			delete(m.proxies, name)
		}
	}
}

// stopApps ends the applications that nobody wants any more: one that comes again listens elsewhere.
func (m *Mesh) stopApps(unwanted func(ident.Name) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, a := range m.apps {
		if unwanted(name) {
			a.Stop()
			delete(m.apps, name)
		}
	}
}

// lockedBuffer is a buffer that several goroutines write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns what was written.
func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

package control_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/app/control"
	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/watch"
	"github.com/malha-mesh/malha/internal/world"
)

// patience bounds what has to happen, on a machine that is busy with other tests too.
const patience = 3 * time.Minute

const app = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: web, labels: {app: web}}
spec: {serviceAccount: web, ports: [{name: http, port: 80}], address: 127.0.0.1}
---
apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: client, labels: {app: client}}
spec: {ports: [{name: http, port: 81}], address: 127.0.0.1}
`

const route = `
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http: [{timeout: TIMEOUT, route: [{destination: {host: HOST}}]}]
`

func parse(t *testing.T, text string) *model.Config {
	t.Helper()
	objs, ds := config.Parse("test.yaml", []byte(text))
	cfg, more := config.Translate(objs)
	if ds = append(ds, more...); model.HasErrors(ds) {
		t.Fatal(ds)
	}
	return cfg
}

// mesh is a control plane that runs, and the proxies of a test.
type mesh struct {
	*control.Control
	t      *testing.T
	placed placement.Placement
}

func start(t *testing.T, text string) *mesh {
	t.Helper()
	return startWith(t, text, func(*control.Options) {})
}

func startWith(t *testing.T, text string, change func(*control.Options)) *mesh {
	t.Helper()
	o := control.Options{Dir: t.TempDir()}
	change(&o)
	c, err := control.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{Control: c, t: t}
	m.run(c.Run)
	m.set(text)
	return m
}

// run runs a part of the mesh until the test ends.
func (m *mesh) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	m.t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			m.t.Errorf("a part of the mesh ended with %v", err)
		}
	})
}

func (m *mesh) set(text string) {
	m.t.Helper()
	cfg := parse(m.t, text)
	var err error
	if m.placed, err = placement.OfflineAfter(cfg, m.placed); err != nil {
		m.t.Fatal(err)
	}
	m.SetConfig(cfg)
	m.SetInstances(m.placed.Instances, m.placed.Gateways)
}

// proxy is the control stream's end of a proxy, which applies nothing and remembers.
type proxy struct {
	mu   sync.Mutex
	plan *plan.Plan
	fail error
}

func (p *proxy) apply(got *plan.Plan) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return p.fail
	}
	p.plan = got
	return nil
}

func (p *proxy) current() *plan.Plan {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.plan
}

func (m *mesh) proxy(name string) *proxy {
	m.t.Helper()
	p := &proxy{}
	dir := m.t.TempDir()
	node := ident.Name{Namespace: ident.DefaultNamespace, Name: name}
	n := world.NodeOf(plan.Sidecar, node, ident.Identity{
		TrustDomain: m.TrustDomain(), Namespace: node.Namespace, ServiceAccount: map[string]string{"web": "web"}[name],
	}, nil)
	if n.Identity.ServiceAccount == "" {
		n.Identity.ServiceAccount = "default"
	}
	token, err := m.Token(n)
	if err != nil {
		m.t.Fatal(err)
	}
	for file, data := range map[string]string{"token": token, "roots.pem": string(m.RootsPEM())} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(data), 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
	w := watch.New(watch.Options{
		Addr: m.Addr(), Node: node, Role: plan.Sidecar, Version: "test",
		RootsFile: filepath.Join(dir, "roots.pem"), TokenFile: filepath.Join(dir, "token"), Apply: p.apply,
	})
	m.run(w.Run)
	return p
}

func (m *mesh) sync() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := m.WaitSynced(ctx); err != nil {
		m.t.Fatal(err)
	}
}

// timeout returns the timeout of the one route for web that a proxy has, -1 without a rule.
func timeout(t *testing.T, p *plan.Plan) time.Duration {
	t.Helper()
	for _, table := range p.Routes {
		for _, h := range table.Hosts {
			if h.Name == "web.default.svc.cluster.local:80" {
				if h.Origin.Kind != "VirtualService" {
					return -1
				}
				return h.Routes[0].Timeout.D()
			}
		}
	}
	t.Fatal("no virtual host for web")
	return 0
}

func rule(after, host string) string {
	return app + strings.NewReplacer("TIMEOUT", after, "HOST", host).Replace(route)
}

func TestChangesReachProxies(t *testing.T) {
	m := start(t, app)
	client, web := m.proxy("client"), m.proxy("web")
	m.sync()
	if got := timeout(t, client.current()); got != -1 {
		t.Errorf("a timeout of %v before there is a rule", got)
	}
	if web.current().Node.Identity.ServiceAccount != "web" {
		t.Errorf("web has the plan of %+v", web.current().Node)
	}
	m.set(rule("3s", "web"))
	m.sync()
	if got := timeout(t, client.current()); got != 3*time.Second {
		t.Errorf("timeout %v, want 3s", got)
	}
	for _, s := range m.Status() {
		if !s.Connected || s.Sync != control.Synced || s.Version != "test" || s.Role != plan.Sidecar || s.LastAck.IsZero() || s.CertExpires.Before(time.Now()) {
			t.Errorf("status %+v, want connected and synced, with a certificate", s)
		}
	}
}

func TestOnlyWhatChangedIsCompiled(t *testing.T) {
	m := start(t, app)
	flush(t, m)
	web := ident.Name{Namespace: ident.DefaultNamespace, Name: "web"}
	before, ok := m.Plan(web)
	if !ok {
		t.Fatal("web has no plan")
	}
	m.set(app) // the same, read anew
	flush(t, m)
	if after, _ := m.Plan(web); after != before {
		t.Error("the plan was made anew though nothing changed")
	}
	m.set(rule("1s", "web"))
	flush(t, m)
	if after, _ := m.Plan(web); after == before {
		t.Error("the plan was not made anew though a rule came")
	}
}

func flush(t *testing.T, m *mesh) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := m.Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestRejectionIsTold(t *testing.T) {
	m := start(t, app)
	client, _ := m.proxy("client"), m.proxy("web")
	m.sync()
	client.mu.Lock()
	client.fail = errors.New("port in use")
	client.mu.Unlock()
	m.set(rule("1s", "web"))
	flush(t, m)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		for _, s := range m.Status() {
			if s.Name.Name == "client" && s.Sync == control.Failed {
				if !strings.Contains(s.Reason, "port in use") {
					t.Errorf("reason %q, want what the proxy said", s.Reason)
				}
				return
			}
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("the rejection never showed: %+v", m.Status())
		}
	}
}

func TestStrangersGetNoCertificate(t *testing.T) {
	m := start(t, app)
	flush(t, m)
	stranger := m.proxy("stranger") // with a token that is ours, for a workload that is not configured
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	node := ident.Name{Namespace: ident.DefaultNamespace, Name: "stranger"}
	if err := m.WaitSynced(ctx, node); err == nil || !strings.Contains(err.Error(), "default/stranger") {
		t.Errorf("WaitSynced = %v, want an error that names it", err)
	}
	if stranger.current() != nil {
		t.Error("a stranger has a plan")
	}
}

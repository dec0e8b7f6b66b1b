package serve_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/ca"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire"
	"github.com/malha-mesh/malha/internal/wire/serve"
	"github.com/malha-mesh/malha/internal/wire/watch"
)

// control is a control plane on a loopback port that can be stopped and started again.
type control struct {
	t      testing.TB
	ca     *ca.Authority
	tokens *ca.Tokens
	roots  string
	addr   string
	opts   serve.Options

	s    *serve.Server
	stop func()
}

func newControl(t testing.TB, ttl time.Duration, opts serve.Options) *control {
	t.Helper()
	authority, err := ca.Open(ca.Options{TTL: ttl})
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := ca.NewTokens(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &control{t: t, ca: authority, tokens: tokens, roots: filepath.Join(t.TempDir(), "roots.pem"), addr: "127.0.0.1:0", opts: opts}
	c.trust()
	c.opts.Authority, c.opts.Authenticator = authority, tokens
	if opts.Again == 0 {
		c.opts.Again = time.Hour // so that refusals can be counted
	}
	c.start()
	t.Cleanup(func() { c.stop() })
	return c
}

// trust writes the file that proxies start from.
func (c *control) trust() {
	c.t.Helper()
	if err := os.WriteFile(c.roots, c.ca.RootsPEM(), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func (c *control) start() {
	c.t.Helper()
	ln, err := net.Listen("tcp", c.addr)
	if err != nil {
		c.t.Fatal(err)
	}
	c.addr = ln.Addr().String()
	c.s = serve.New(c.opts)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := c.s.Run(ctx, ln); !errors.Is(err, context.Canceled) {
			c.t.Errorf("Run: %v", err)
		}
	}()
	c.stop = sync.OnceFunc(func() { cancel(); <-done })
}

func workload(name string) ca.Workload {
	n := ident.Name{Namespace: "default", Name: name}
	return ca.Workload{
		Node:     n,
		Identity: ident.Identity{TrustDomain: ident.DefaultTrustDomain, Namespace: "default", ServiceAccount: "sa"},
		Labels:   plan.WorkloadLabels{Workload: name, Namespace: "default", App: name, Version: "v1"},
	}
}

// proxy is a watcher that remembers what it was told to apply.
type proxy struct {
	t     testing.TB
	node  ident.Name
	creds trust.Holder
	plans chan *plan.Plan
	fail  atomic.Pointer[error]
	w     *watch.Watcher
	dir   string
	stop  func()
}

func (c *control) proxy(name string, change ...func(*watch.Options)) *proxy {
	c.t.Helper()
	w := workload(name)
	p := &proxy{t: c.t, node: w.Node, plans: make(chan *plan.Plan, 1000), dir: c.t.TempDir()}
	token, err := c.tokens.Issue(w, time.Minute)
	if err != nil {
		c.t.Fatal(err)
	}
	tokenFile := filepath.Join(c.t.TempDir(), "token")
	if err := os.WriteFile(tokenFile, []byte(token+"\n"), 0o600); err != nil {
		c.t.Fatal(err)
	}
	o := watch.Options{
		Addr: c.addr, Node: w.Node, Role: plan.Sidecar, Version: "test", Credentials: &p.creds, RootsFile: c.roots, TokenFile: tokenFile,
		CacheDir: p.dir,
		Log:      slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Apply: func(pl *plan.Plan) error {
			if err := p.fail.Load(); err != nil {
				return *err
			}
			p.plans <- pl
			return nil
		},
	}
	for _, f := range change {
		f(&o)
	}
	p.dir = o.CacheDir
	p.w = watch.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := p.w.Run(ctx); !errors.Is(err, context.Canceled) {
			c.t.Errorf("%s: Run: %v", name, err)
		}
	}()
	p.stop = sync.OnceFunc(func() { cancel(); <-done })
	c.t.Cleanup(p.stop)
	return p
}

const patience = time.Minute

// until waits for the proxy to apply a plan equal to want.
func (p *proxy) until(want *plan.Plan) {
	p.t.Helper()
	deadline := time.After(patience)
	var last *plan.Plan
	for {
		select {
		case last = <-p.plans:
			if cmp.Equal(want, last) {
				return
			}
		case <-deadline:
			p.t.Fatalf("%s never applied the plan (-want +last):\n%s", p.node, cmp.Diff(want, last))
		}
	}
}

// eventually waits for cond, which some goroutine is about to make true.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (c *control) set(name string, p *plan.Plan) {
	c.t.Helper()
	if err := c.s.SetPlan(workload(name).Node, p); err != nil {
		c.t.Fatal(err)
	}
}

func (c *control) synced(names ...string) {
	c.t.Helper()
	var nodes []ident.Name
	for _, n := range names {
		nodes = append(nodes, workload(n).Node)
	}
	eventually(c.t, "all in sync", func() bool { _, ok := c.s.Synced(nodes); return ok })
}

func (c *control) status(name string) serve.ProxyStatus {
	for _, st := range c.s.Status() {
		if st.Node == workload(name).Node {
			return st
		}
	}
	return serve.ProxyStatus{}
}

// planFor is a plan with services that all proxies share and a listener of its own.
func planFor(name string, services int, address string) *plan.Plan {
	w := workload(name)
	p := &plan.Plan{
		Node:      plan.Node{Name: w.Node, Role: plan.Sidecar, Identity: w.Identity, Workload: w.Labels},
		Listeners: []plan.Listener{{Name: "in-" + name, Bind: "127.0.0.1:1", Direction: plan.Inbound, Policies: []string{"default/p"}}},
		Policies:  []plan.Policy{{Name: "default/p", Action: plan.Allow}},
	}
	for i := range services {
		cl := fmt.Sprintf("outbound|80||s%04d", i)
		p.Clusters = append(p.Clusters, plan.Cluster{Name: cl, Port: 80})
		p.Endpoints = append(p.Endpoints, plan.Endpoints{Cluster: cl, Endpoints: []plan.Endpoint{{Address: address, Workload: w.Labels}}})
		p.Endpoints[i].Endpoints[0].Workload = plan.WorkloadLabels{Workload: "s"}
	}
	return p
}

func TestManyProxiesShareEncodedPieces(t *testing.T) {
	c := newControl(t, 0, serve.Options{})
	const proxies, services = 8, 20
	var names []string
	var ps []*proxy
	for i := range proxies {
		names = append(names, fmt.Sprintf("p%d", i))
		ps = append(ps, c.proxy(names[i]))
		c.set(names[i], planFor(names[i], services, "10.0.0.1:80"))
	}
	for i, p := range ps {
		p.until(planFor(names[i], services, "10.0.0.1:80"))
	}
	c.synced(names...)
	own, shared := uint64(2*proxies), uint64(2*services+1) // node and listener; clusters, endpoints and the policy
	if got := c.s.Counters(); got.Encodes != own+shared || got.Pieces != int(own+shared) {
		t.Errorf("encoded %d pieces and kept %d, want %d of both: each shared one once", got.Encodes, got.Pieces, own+shared)
	}

	// One endpoint moves: one encoding, one push for each proxy, and nothing else on the wire.
	before := c.s.Counters()
	moved := plan.Endpoints{Cluster: "outbound|80||s0003", Endpoints: []plan.Endpoint{{Address: "10.9.9.9:80"}}}
	var nodes []ident.Name
	for _, n := range names {
		nodes = append(nodes, workload(n).Node)
	}
	if err := c.s.SetEndpoints(moved, nodes); err != nil {
		t.Fatal(err)
	}
	for i, p := range ps {
		want := planFor(names[i], services, "10.0.0.1:80")
		want.Endpoints[3] = moved
		p.until(want)
	}
	c.synced(names...)
	after := c.s.Counters()
	if after.Encodes-before.Encodes != 1 || after.Pushes-before.Pushes != proxies {
		t.Errorf("an endpoint change took %d encodings and %d pushes, want 1 and %d", after.Encodes-before.Encodes, after.Pushes-before.Pushes, proxies)
	}
	if n := (after.PushedBytes - before.PushedBytes) / proxies; n > 200 {
		t.Errorf("an endpoint change sent %d bytes to each proxy, want only the one piece", n)
	}
	if after.Pieces != before.Pieces {
		t.Errorf("kept %d pieces, want the %d that are in use: the old one must go", after.Pieces, before.Pieces)
	}

	// The same through SetPlan, with values made anew: still only what differs is sent.
	c.set("p0", planFor("p0", services, "10.0.0.1:80"))
	ps[0].until(planFor("p0", services, "10.0.0.1:80"))
	if got := c.s.Counters(); got.Pushes-after.Pushes != 1 || got.PushedBytes-after.PushedBytes > 200 {
		t.Errorf("SetPlan with one difference: %d pushes of %d bytes", got.Pushes-after.Pushes, got.PushedBytes-after.PushedBytes)
	}
	for _, n := range names {
		c.s.RemovePlan(workload(n).Node)
	}
	if got := c.s.Counters(); got.Pieces != 0 || got.PieceBytes != 0 {
		t.Errorf("%d pieces (%d bytes) are kept for nobody", got.Pieces, got.PieceBytes)
	}
}

func TestReconnectSendsOnlyWhatDiffers(t *testing.T) {
	c := newControl(t, 0, serve.Options{})
	p := c.proxy("a")
	c.set("a", planFor("a", 50, "10.0.0.1:80"))
	p.until(planFor("a", 50, "10.0.0.1:80"))
	c.synced("a")

	c.stop() // mid-stream
	eventually(t, "the watcher notices", func() bool { return !p.w.Status().Connected })
	c.start() // a new process: it knows nothing of what it sent before
	want := planFor("a", 50, "10.0.0.1:80")
	want.Endpoints[7].Endpoints[0].Address = "10.0.0.2:80"
	want.Clusters = append(want.Clusters, plan.Cluster{Name: "outbound|80||z"})
	want.Clusters, want.Endpoints = want.Clusters[1:], want.Endpoints[1:]
	c.set("a", want)
	p.until(want)
	c.synced("a")
	if got := c.s.Counters(); got.Pushes != 1 || got.PushedBytes > 500 {
		t.Errorf("after a reconnect: %d pushes of %d bytes, want one with only the difference", got.Pushes, got.PushedBytes)
	}
	if st := p.w.Status(); st.Source != "stream" || !st.Connected {
		t.Errorf("status %+v", st)
	}
}

type pieceError struct{ kind, name string }

func (e pieceError) Error() string                  { return "port in use" }
func (e pieceError) PlanPiece() (kind, name string) { return e.kind, e.name }

func TestRejectedPieceIsHeldBackAlone(t *testing.T) {
	var nacks atomic.Int32
	c := newControl(t, 0, serve.Options{OnEvent: func(e serve.Event) {
		if e.Kind == serve.EventNack {
			nacks.Add(1)
		}
	}})
	var bad atomic.Bool
	p := c.proxy("a", func(o *watch.Options) {
		apply := o.Apply
		o.Apply = func(pl *plan.Plan) error {
			for _, l := range pl.Listeners {
				if bad.Load() && l.Bind == "127.0.0.1:666" {
					return fmt.Errorf("building: %w", errors.Join(pieceError{"listener", l.Name}))
				}
			}
			return apply(pl)
		}
	})
	good := planFor("a", 3, "10.0.0.1:80")
	c.set("a", good)
	p.until(good)

	bad.Store(true)
	next := planFor("a", 3, "10.0.0.2:80")
	next.Listeners[0].Bind = "127.0.0.1:666"
	c.set("a", next)
	half := planFor("a", 3, "10.0.0.2:80") // the endpoints are new, the listener is the old one
	p.until(half)
	eventually(t, "rejected", func() bool { return c.status("a").Sync == serve.SyncRejected })
	st := c.status("a")
	want := []wire.Rejection{{Ref: wire.Ref{Kind: wire.KindListener, Name: "in-a"}, Reason: "building: port in use"}}
	if diff := cmp.Diff(want, st.Rejected); diff != "" || nacks.Load() != 1 {
		t.Errorf("rejected after %d nacks (-want +got):\n%s", nacks.Load(), diff)
	}
	// It is not sent again with the next change, and is forgotten once a version is taken.
	p.until2(t, c, planFor("a", 3, "10.0.0.3:80"), next)
	fixed := planFor("a", 3, "10.0.0.4:80")
	fixed.Listeners[0].Bind = "127.0.0.1:2"
	c.set("a", fixed)
	p.until(fixed)
	c.synced("a")
	if st := c.status("a"); len(st.Rejected) != 0 || st.Reason != "" || nacks.Load() != 1 {
		t.Errorf("after the repair: %+v, %d nacks", st, nacks.Load())
	}
}

// until2 sets want with the refused listener of bad, and waits for want without it.
func (p *proxy) until2(t *testing.T, c *control, want, bad *plan.Plan) {
	t.Helper()
	set := *want
	set.Listeners = bad.Listeners
	c.set("a", &set)
	p.until(want)
}

func TestWholePlanRejected(t *testing.T) {
	c := newControl(t, 0, serve.Options{})
	p := c.proxy("a")
	good := planFor("a", 1, "10.0.0.1:80")
	c.set("a", good)
	p.until(good)
	failure := errors.New("no memory")
	p.fail.Store(&failure)
	c.set("a", planFor("a", 1, "10.0.0.2:80"))
	eventually(t, "rejected", func() bool { st := c.status("a"); return st.Sync == serve.SyncRejected && st.Reason == "no memory" })
	if got := c.s.Counters(); got.Nacks != 1 {
		t.Errorf("%d nacks: a plan that was refused whole must not be sent again at once", got.Nacks)
	}
	p.fail.Store(nil)
	last := planFor("a", 1, "10.0.0.3:80")
	c.set("a", last)
	p.until(last)
	c.synced("a")
}

func TestDanglingReferenceIsRefused(t *testing.T) {
	c := newControl(t, 0, serve.Options{})
	p := c.proxy("a")
	good := planFor("a", 1, "10.0.0.1:80")
	c.set("a", good)
	p.until(good)
	open := planFor("a", 1, "10.0.0.1:80")
	open.Policies = nil // the listener still names its policy: running this would leave it unguarded
	c.set("a", open)
	eventually(t, "rejected", func() bool { return c.status("a").Sync == serve.SyncRejected })
	if r := c.status("a").Reason; !strings.Contains(r, `policy "default/p"`) {
		t.Errorf("reason %q does not name what is missing", r)
	}
	if st := p.w.Status(); st.Pieces != 5 {
		t.Errorf("the proxy has %d pieces, want the 5 of the good plan", st.Pieces)
	}
}

func TestStartFromDiskWhileControlPlaneIsAway(t *testing.T) {
	c := newControl(t, 0, serve.Options{})
	first := c.proxy("a")
	want := planFor("a", 5, "10.0.0.1:80")
	c.set("a", want)
	first.until(want)
	first.stop()
	c.stop()

	second := c.proxy("a", func(o *watch.Options) { o.CacheDir = first.dir; o.TokenFile = "" })
	second.until(want)
	eventually(t, "the kept plan is in force", func() bool { return second.w.Status().Source == "cache" })
	eventually(t, "identity from disk", func() bool { return second.creds.Current() != nil })
	for _, f := range []string{"plan.cache", "identity.pem"} {
		info, err := os.Stat(filepath.Join(first.dir, f))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o, want 600", f, info.Mode().Perm())
		}
	}
	// The control plane comes back; the certificate renews without a token, and nothing is sent again.
	c.start()
	c.set("a", want)
	c.synced("a")
	if got := c.s.Counters(); got.Pushes != 0 {
		t.Errorf("%d pushes to a proxy that has everything", got.Pushes)
	}
	second.stop()

	// A damaged cache is not used.
	path := filepath.Join(first.dir, "plan.cache")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	third := c.proxy("a", func(o *watch.Options) { o.CacheDir = first.dir })
	third.until(want)
	// The status follows Apply, which is what until has seen.
	eventually(t, "the plan of the stream is in force", func() bool { return third.w.Status().Source == "stream" })
}

// Keys go to the proxies whose plans hold them, and into no log and no status.
func TestSecretsStayWhereTheyBelong(t *testing.T) {
	const key = "MHcCAQEEIPzrivate"
	var mu sync.Mutex
	var said strings.Builder
	log := slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return said.Write(b)
	}), &slog.HandlerOptions{Level: slog.LevelDebug}))
	c := newControl(t, 0, serve.Options{Log: log})
	a, b := c.proxy("a", func(o *watch.Options) { o.Log = log }), c.proxy("b", func(o *watch.Options) { o.Log = log })
	with := planFor("a", 1, "10.0.0.1:80")
	with.Secrets = []plan.Secret{{Name: "default/web", Certificate: []byte("certificate"), Key: []byte(key)}}
	with.Limits = []plan.RateLimit{{Name: "RateLimit/default/l", Rules: []plan.RateLimitRule{{Requests: 1, Per: plan.Duration(time.Second)}}}}
	c.set("a", with)
	c.set("b", planFor("b", 1, "10.0.0.1:80"))
	a.until(with)
	b.until(planFor("b", 1, "10.0.0.1:80"))
	c.synced("a", "b")

	// A new key alone is one piece; a proxy that can't use it blames the piece by its name.
	refusal := error(pieceError{"secret", "default/web"})
	a.fail.Store(&refusal)
	next := planFor("a", 1, "10.0.0.1:80")
	next.Limits = with.Limits
	next.Secrets = []plan.Secret{{Name: "default/web", Certificate: []byte("certificate"), Key: []byte(key + "2")}}
	before := c.s.Counters()
	c.set("a", next)
	eventually(t, "the secret is held back", func() bool {
		st := c.status("a")
		return st.Sync == serve.SyncRejected && len(st.Rejected) == 1 && st.Rejected[0].Ref == wire.Ref{Kind: wire.KindSecret, Name: "default/web"}
	})
	if n := c.s.Counters().Encodes - before.Encodes; n != 1 {
		t.Errorf("%d pieces were encoded for one secret", n)
	}
	a.stop()
	b.stop()
	c.stop()
	mu.Lock()
	defer mu.Unlock()
	all := said.String() + fmt.Sprintf("%v %+v %#v", c.s.Status(), next.Secrets, next.Secrets)
	for _, form := range []string{key, base64.StdEncoding.EncodeToString([]byte(key)), fmt.Sprintf("%d", []byte(key))[1:20]} {
		if strings.Contains(all, form) {
			t.Errorf("a key was shown as %q", form)
		}
	}
	if info, err := os.Stat(filepath.Join(a.dir, "plan.cache")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the kept plan: %v, %v", info, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestOnlyTheRightProxyGetsAPlan(t *testing.T) {
	c := newControl(t, 0, serve.Options{})
	secret := planFor("a", 1, "10.0.0.1:80")
	c.set("a", secret)

	// A token of another proxy: the agent itself notices that its certificate is not of its node.
	other, err := c.tokens.Issue(workload("b"), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{"another's": other, "forged": other[:len(other)-4] + "AAAA", "none": ""} {
		path := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		p := c.proxy("a", func(o *watch.Options) { o.TokenFile = path })
		time.Sleep(50 * time.Millisecond) // long enough for a first attempt; what follows must hold at any time
		p.stop()
		if len(p.plans) > 0 || p.creds.Current() != nil {
			t.Errorf("%s token: the proxy got a plan or credentials", name)
		}
	}

	// A proxy with a good certificate that asks for somebody else's plan.
	creds, err := c.ca.Credentials(workload("b"))
	if err != nil {
		t.Fatal(err)
	}
	nobody := &trust.Credentials{Roots: c.ca.Pool()}
	for name, tc := range map[string]struct {
		creds *trust.Credentials
		hello wire.Hello
	}{
		"other node":     {creds, wire.Hello{Node: workload("a").Node}},
		"no certificate": {nobody, wire.Hello{Node: workload("a").Node}},
		"no node":        {creds, wire.Hello{}},
	} {
		if r := c.refusal(tc.creds, wire.TypeHello, &tc.hello); r == "" {
			t.Errorf("%s: not refused", name)
		}
	}
	if r := c.refusal(creds, wire.TypeDelta, &wire.Delta{}); !strings.Contains(r, "cannot begin") {
		t.Errorf("a connection that begins with a delta: refusal %q", r)
	}
	if r := c.refusal(nobody, wire.TypeSignRequest, &wire.SignRequest{}); !strings.Contains(r, "neither a token nor a certificate") {
		t.Errorf("signing for nobody: refusal %q", r)
	}
}

// say connects, sends one message, and returns the connection.
func (c *control) say(creds *trust.Credentials, mt wire.Type, msg any) *tls.Conn {
	c.t.Helper()
	cfg := trust.ClientConfig(trust.Static{Credentials: creds}, []ident.Identity{wire.ControlPlane("cluster.local")}, "", []string{wire.ALPN})
	conn, err := tls.Dial("tcp", c.addr, cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	frame, err := wire.AppendFrame(nil, mt, msg)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := conn.Write(frame); err != nil {
		c.t.Fatal(err)
	}
	return conn
}

// refusal sends one message and returns the reason of the refusal that comes back, "" for anything else.
func (c *control) refusal(creds *trust.Credentials, mt wire.Type, msg any) string {
	c.t.Helper()
	got, body, err := wire.NewReader(c.say(creds, mt, msg)).Next(wire.MaxDelta)
	if err != nil || got != wire.TypeRefusal {
		return ""
	}
	var r wire.Refusal
	if err := wire.Decode(got, got, body, &r); err != nil {
		c.t.Fatal(err)
	}
	return r.Reason
}

// TestRotationUnderUse lives through several certificates of two seconds: mesh handshakes never fail, and the stream
// goes on. A machine that is so busy that no new certificate comes in time has a right to failures.
func TestRotationUnderUse(t *testing.T) {
	if testing.Short() {
		t.Skip("takes five seconds of real time")
	}
	c := newControl(t, 2*time.Second, serve.Options{})
	a, b := c.proxy("a"), c.proxy("b")
	for name, p := range map[string]*proxy{"a": a, "b": b} {
		c.set(name, planFor(name, 1, "10.0.0.1:80"))
		p.until(planFor(name, 1, "10.0.0.1:80"))
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", trust.ServerConfig(&b.creds, []string{trust.ALPNHTTP2}))
	if err != nil {
		t.Fatal(err)
	}
	expiry := func() time.Time { // of the first one of those in use
		at := a.creds.Current().NotAfter
		if other := b.creds.Current().NotAfter; other.Before(at) {
			at = other
		}
		return at
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer ln.Close()
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			until := expiry()
			if err := nc.(*tls.Conn).Handshake(); err != nil && time.Now().Before(until) {
				t.Errorf("server side: %v", err)
			}
			_, _ = nc.Write([]byte{1})
			_ = nc.Close()
		}
	})
	client := trust.ClientConfig(&a.creds, []ident.Identity{workload("b").Identity}, "", []string{trust.ALPNHTTP2})
	serials := make(map[string]bool)
	handshake := func() error {
		conn, err := tls.Dial("tcp", ln.Addr().String(), client)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			return err
		}
		serials[conn.ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
		return nil
	}
	n := 0
	for by := time.Now().Add(patience); len(serials) < 4; n++ {
		if time.Now().After(by) {
			t.Fatalf("saw %d certificates in %d handshakes, want 4", len(serials), n)
		}
		until := expiry()
		if err := handshake(); err != nil && time.Now().Before(until) {
			t.Fatalf("handshake %d: %v", n, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	want := planFor("a", 1, "10.0.0.2:80")
	c.set("a", want)
	a.until(want)
}

// TestSlowConsumer: a proxy that says hello and then reads nothing is disconnected, and nobody waits for it.
func TestSlowConsumer(t *testing.T) {
	gone := make(chan string, 10)
	c := newControl(t, 0, serve.Options{
		WriteTimeout: 300 * time.Millisecond, Heartbeat: 100 * time.Millisecond, AckTimeout: 300 * time.Millisecond,
		OnEvent: func(e serve.Event) {
			if e.Kind == serve.EventDisconnected && e.Node.Name == "slow" {
				gone <- e.Reason
			}
		},
	})
	fast := c.proxy("fast", func(o *watch.Options) { o.Heartbeat = 100 * time.Millisecond })
	creds, err := c.ca.Credentials(workload("slow"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := trust.ClientConfig(trust.Static{Credentials: creds}, []ident.Identity{wire.ControlPlane("cluster.local")}, "", []string{wire.ALPN})
	conn, err := tls.Dial("tcp", c.addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	frame, err := wire.AppendFrame(nil, wire.TypeHello, &wire.Hello{Node: workload("slow").Node})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(frame); err != nil {
		t.Fatal(err)
	}
	big := planFor("slow", 1, "10.0.0.1:80")
	for i := range 8 {
		big.Policies = append(big.Policies, plan.Policy{Name: fmt.Sprintf("default/q%d", i), Origin: ident.Origin{File: strings.Repeat("x", 1<<20)}})
	}
	c.set("slow", big)
	for i := range 20 {
		want := planFor("fast", 1, fmt.Sprintf("10.0.0.%d:80", i))
		c.set("fast", want)
		fast.until(want)
	}
	select {
	case <-gone:
	case <-time.After(patience):
		t.Fatal("the slow proxy is still connected")
	}
	c.synced("fast")
}

// TestNewestStreamWins connects a proxy while its old stream stands, as one whose network was away does: the old one ends, and is told why.
func TestNewestStreamWins(t *testing.T) {
	c := newControl(t, 0, serve.Options{})
	want := planFor("a", 1, "10.0.0.1:80")
	c.set("a", want)
	creds, err := c.ca.Credentials(workload("a"))
	if err != nil {
		t.Fatal(err)
	}
	old := wire.NewReader(c.say(creds, wire.TypeHello, &wire.Hello{Node: workload("a").Node}))
	if mt, _, err := old.Next(wire.MaxDelta); err != nil || mt != wire.TypeDelta {
		t.Fatalf("the first stream: a frame of type %d, %v; want its plan", mt, err)
	}
	p := c.proxy("a")
	p.until(want)
	for {
		mt, body, err := old.Next(wire.MaxDelta)
		if err != nil {
			t.Fatalf("the first stream ended without a word: %v", err)
		}
		if mt != wire.TypeRefusal {
			continue
		}
		var r wire.Refusal
		if err := wire.Decode(mt, mt, body, &r); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(r.Reason, "connected again") {
			t.Errorf("the first stream ended for %q", r.Reason)
		}
		break
	}
	c.synced("a")
	if got := len(c.s.Status()); got != 1 {
		t.Errorf("%d proxies in the status, want 1", got)
	}
}

// TestSilentClient: one that says nothing after its handshake does not keep the control plane from ending.
func TestSilentClient(t *testing.T) {
	c := newControl(t, 0, serve.Options{HandshakeTimeout: 2 * patience, MaxHandshakes: 1})
	cfg := trust.ClientConfig(trust.Static{Credentials: &trust.Credentials{Roots: c.ca.Pool()}}, []ident.Identity{wire.ControlPlane("cluster.local")}, "", []string{wire.ALPN})
	conn, err := tls.Dial("tcp", c.addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if r := c.refusal(&trust.Credentials{Roots: c.ca.Pool()}, wire.TypeDelta, &wire.Delta{}); r == "" { // its turn is after the first one's
		t.Error("a connection that begins with a delta was not refused")
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.stop()
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the server waits for a client that says nothing")
		_ = conn.Close()
		<-ended
	}
}

func TestSetPlanRefusesWhatCannotBeSent(t *testing.T) {
	c := newControl(t, 0, serve.Options{})
	twice := planFor("a", 1, "10.0.0.1:80")
	twice.Clusters = append(twice.Clusters, twice.Clusters[0])
	if err := c.s.SetPlan(workload("a").Node, twice); err == nil || !strings.Contains(err.Error(), "there twice") {
		t.Errorf("duplicate cluster: %v", err)
	}
	deep := planFor("a", 1, "10.0.0.1:80")
	cond := plan.Cond{}
	for range 100 {
		inner := cond
		cond = plan.Cond{Not: &inner}
	}
	deep.Routes = []plan.RouteTable{{Name: "r", Hosts: []plan.VirtualHost{{Name: "h", Routes: []plan.Route{{Match: plan.Match{Cond: &cond}}}}}}}
	if err := c.s.SetPlan(workload("a").Node, deep); err == nil || !strings.Contains(err.Error(), `routes "r"`) {
		t.Errorf("deep condition: %v", err)
	}
	if got := c.s.Counters(); got.Pieces != 0 {
		t.Errorf("%d pieces kept from plans that were refused", got.Pieces)
	}
}

package stack

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/authz"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/limit"
	"github.com/malha-mesh/malha/internal/proxy/route"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// rig is a whole stack between real connections: a client, the layers, and programs.
type rig struct {
	t       testing.TB
	url     string
	client  *http.Client
	stack   *Stack
	mirrors *Mirrors
	rec     *telemetry.Recorder
	log     *telemetry.AccessLog
	out     bytes.Buffer
	dial    func(ctx context.Context, addr string) (net.Conn, error)
	stop    func()
}

// setup is what a rig is made of. The zero fields have sensible meanings.
type setup struct {
	listener  plan.Listener // direction outbound
	routes    []plan.Route
	otherwise plan.Otherwise
	domains   []string         // of the one host; "*"
	budget    plan.RetryBudget // of its retries
	clusters  []plan.Cluster
	apps      map[string][]http.HandlerFunc // endpoints by cluster
	at        map[string][]plan.Endpoint    // endpoints by cluster that are no programs of ours
	limits    []plan.RateLimit
	policies  []plan.Policy
	service   plan.ServiceLabels // of the clusters
	bodyIdle  time.Duration
	peer      ident.Identity // of the client
	remote    string         // its address
	http2     bool           // spoken by the client
	pipes     *pipes         // the network; nil: loopback
}

func program(t testing.TB, h http.HandlerFunc) string {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.Start()
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// program runs a program behind a door.
func (p *pipes) program(t testing.TB, h http.HandlerFunc) string {
	ln := p.listen()
	s := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)} //nolint:gosec // its clients are ours
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = s.Serve(ln)
	}()
	t.Cleanup(func() { _ = s.Close(); <-over })
	return ln.Addr().String()
}

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

func newRig(t testing.TB, c setup) *rig {
	t.Helper()
	r := &rig{t: t, mirrors: &Mirrors{}}
	r.log = telemetry.NewAccessLog(&r.out)
	r.rec = telemetry.New(telemetry.Options{Log: r.log})
	if c.domains == nil {
		c.domains = []string{"*"}
	}
	if c.remote == "" {
		c.remote = "127.0.0.1:1000"
	}
	if c.listener.Direction == "" {
		c.listener.Direction = plan.Outbound
	}
	if c.listener.Name == "" {
		c.listener.Name = "door"
	}
	table := &plan.RouteTable{Name: "t", Otherwise: c.otherwise, Hosts: []plan.VirtualHost{{Name: "all", Domains: c.domains, Routes: c.routes, RetryBudget: c.budget,
		Origin: ident.Origin{Kind: "VirtualService", Namespace: "ns", Name: "vs", File: "dir/vs.yaml", Line: 1}}}}
	if err := Check(&table.Hosts[0]); err != nil {
		t.Fatal(err)
	}
	rt, err := route.Build(table)
	if err != nil {
		t.Fatal(err)
	}
	limits, err := limit.Build(c.limits, nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := conn.Defaults()
	cfg.BodyIdle = c.bodyIdle
	var policies *authz.Engine
	if len(c.policies) > 0 {
		if policies, err = authz.Build(c.policies); err != nil {
			t.Fatal(err)
		}
	}
	o := upstream.Options{Conn: cfg}
	r.dial = func(ctx context.Context, addr string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
	start := program
	if c.pipes != nil {
		o.Dial, r.dial, start = c.pipes.dial, c.pipes.dial, c.pipes.program
	}
	set := upstream.New(o)
	var endpoints []plan.Endpoints
	for name, hs := range c.apps {
		es := plan.Endpoints{Cluster: name, Endpoints: c.at[name]}
		for _, h := range hs {
			es.Endpoints = append(es.Endpoints, plan.Endpoint{Address: start(t, h)})
		}
		endpoints = append(endpoints, es)
	}
	for name, es := range c.at {
		if c.apps[name] == nil {
			endpoints = append(endpoints, plan.Endpoints{Cluster: name, Endpoints: es})
		}
	}
	if c.clusters == nil {
		for _, e := range endpoints {
			c.clusters = append(c.clusters, plan.Cluster{Name: e.Cluster, Protocol: ident.HTTP, Service: c.service})
		}
	}
	update(t, set, c.clusters, endpoints)
	r.stack = New(Config{Node: &plan.Node{}, Listener: &c.listener, Table: rt, Upstreams: set, Recorder: r.rec, Mirrors: r.mirrors, Limits: limits, Authz: policies})

	var front net.Listener
	if c.pipes != nil {
		front = c.pipes.listen()
	} else if front, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	peer := &conn.Peer{Remote: netip.MustParseAddrPort(c.remote), Local: netip.MustParseAddrPort("127.0.0.1:2000"), Identity: c.peer, TLS: !c.peer.IsZero()}
	serving.Go(func() {
		for {
			nc, err := front.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				if c.http2 {
					conn.ServeH2(nc, nil, peer, r.stack, cfg, nil)
				} else {
					conn.ServeH1(nc, nil, peer, r.stack, cfg, nil)
				}
			})
		}
	})
	tr := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return r.dial(ctx, addr) }}
	tr.Protocols.SetHTTP1(!c.http2)
	tr.Protocols.SetUnencryptedHTTP2(c.http2)
	r.client = &http.Client{Transport: tr, Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	r.url = "http://" + front.Addr().String()
	r.stop = sync.OnceFunc(func() {
		tr.CloseIdleConnections()
		_ = front.Close()
		serving.Wait()
		r.mirrors.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = set.Close(ctx)
	})
	t.Cleanup(r.stop)
	return r
}

// do sends a request. Words are "name: value" headers; "host: NAME" is the host.
func (r *rig) do(method, path, body string, headers ...string) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequest(method, r.url+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "host" {
			req.Host = value
			continue
		}
		req.Header.Add(name, value)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp, string(b)
}

// records ends the rig and returns what the access log says of each exchange, in order.
func (r *rig) records() []map[string]any {
	r.t.Helper()
	r.stop()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.log.Run(ctx); err != nil {
		r.t.Fatal(err)
	}
	var out []map[string]any
	for line := range strings.Lines(r.out.String()) {
		m := map[string]any{}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			r.t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

// at is the origin of the rules of a rig.
func at(rule string) ident.Origin {
	return ident.Origin{Kind: "VirtualService", Namespace: "ns", Name: "vs", Rule: rule, File: "dir/vs.yaml", Line: 12}
}

func to(cluster string) []plan.Destination { return []plan.Destination{{Cluster: cluster}} }

var mesh = ident.Identity{TrustDomain: "cluster.local", Namespace: "ns", ServiceAccount: "caller"}

// update puts clusters into a Set.
func update(t testing.TB, s *upstream.Set, clusters []plan.Cluster, endpoints []plan.Endpoints) {
	t.Helper()
	p, err := packed.Of(&plan.Plan{Clusters: clusters, Endpoints: endpoints})
	if err != nil {
		t.Fatal(err)
	}
	s.Update(p.Clusters, p.Endpoints)
}

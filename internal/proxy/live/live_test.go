package live_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/live"
	"github.com/malha-mesh/malha/internal/testport"
)

// app is a program behind or beside a proxy.
func app(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func named(t *testing.T, name string) string {
	return app(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-served-by", name)
		_, _ = io.WriteString(w, name)
	})
}

// start runs a proxy with a plan until the test ends, and returns the addresses of its listeners by name.
func start(t *testing.T, o live.Options, p *plan.Plan) (*live.Proxy, map[string]string) {
	t.Helper()
	if o.Conn == nil {
		o.Conn = conn.Defaults()
		o.Conn.DrainIdle = 50 * time.Millisecond
	}
	if o.DrainTime == 0 {
		o.DrainTime = 2 * time.Second
	}
	px := live.New(o)
	if err := px.Apply(p); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = px.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return px, addresses(px)
}

func addresses(px *live.Proxy) map[string]string {
	m := map[string]string{}
	for _, l := range px.Status().Listeners {
		m[l.Name] = l.Address.String()
	}
	return m
}

func endpoints(cluster string, addrs ...string) plan.Endpoints {
	e := plan.Endpoints{Cluster: cluster}
	for i, a := range addrs {
		e.Endpoints = append(e.Endpoints, plan.Endpoint{Address: a,
			Workload: plan.WorkloadLabels{Workload: fmt.Sprintf("%s-%d", cluster, i), Namespace: "default"}})
	}
	return e
}

func cluster(name string) plan.Cluster {
	return plan.Cluster{Name: name, Host: name, Port: 80, Protocol: ident.HTTP}
}

func table(name string, routes ...plan.Route) plan.RouteTable {
	return plan.RouteTable{Name: name, Hosts: []plan.VirtualHost{{Name: name, Domains: []string{"*"}, Routes: routes}}}
}

func to(clusters ...string) []plan.Destination {
	var ds []plan.Destination
	for _, c := range clusters {
		ds = append(ds, plan.Destination{Cluster: c, Weight: 1})
	}
	return ds
}

func outbound(table string) plan.Listener {
	return plan.Listener{Name: "out", Bind: "127.0.0.1:0", Direction: plan.Outbound, Protocol: ident.HTTP, Routes: table}
}

// simple is a plan with one outbound listener and one route to one cluster.
func simple(addr string, change ...func(*plan.Route)) *plan.Plan {
	r := plan.Route{Name: "default", Origin: ident.Origin{Kind: "VirtualService", Namespace: "default", Name: "v", Rule: "http[0]"}, Forward: to("a")}
	for _, f := range change {
		f(&r)
	}
	return &plan.Plan{
		Listeners: []plan.Listener{outbound("t")},
		Routes:    []plan.RouteTable{table("t", r)},
		Clusters:  []plan.Cluster{cluster("a")},
		Endpoints: []plan.Endpoints{endpoints("a", addr)},
	}
}

func client(t *testing.T) *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 100, DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func get(t *testing.T, c *http.Client, url string, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp, string(body)
}

func TestRoutesByHeaderAndWeight(t *testing.T) {
	p := simple("127.0.0.1:1")
	p.Routes = []plan.RouteTable{table("t",
		plan.Route{Name: "canary", Match: plan.Match{Headers: []plan.FieldMatch{{Name: "x-canary", Value: match.String{Kind: match.Exact, Value: "true"}}}}, Forward: to("b")},
		plan.Route{Name: "default", Forward: []plan.Destination{{Cluster: "a", Weight: 90}, {Cluster: "b", Weight: 10}}},
	)}
	p.Clusters = []plan.Cluster{cluster("a"), cluster("b")}
	p.Endpoints = []plan.Endpoints{endpoints("a", named(t, "v1")), endpoints("b", named(t, "v2"))}
	_, at := start(t, live.Options{}, p)
	c := client(t)
	for range 20 {
		if _, body := get(t, c, "http://"+at["out"]+"/", "x-canary", "true"); body != "v2" {
			t.Fatalf("canary went to %s", body)
		}
	}
	n := 0
	for range 1000 {
		if _, body := get(t, c, "http://"+at["out"]+"/"); body == "v2" {
			n++
		}
	}
	if n < 60 || n > 140 {
		t.Errorf("%d of 1000 went to a destination with 10%%", n)
	}
}

func TestExplain(t *testing.T) {
	seen := make(chan http.Header, 1)
	p := simple(app(t, func(w http.ResponseWriter, r *http.Request) { seen <- r.Header.Clone() }))
	_, at := start(t, live.Options{}, p)
	resp, _ := get(t, client(t), "http://"+at["out"]+"/", "x-malha-explain", "1", "x-forwarded-client-cert", "By=evil")
	if got := resp.Header.Get("x-malha-route"); !strings.HasPrefix(got, "VirtualService/default/v http[0]") {
		t.Errorf("x-malha-route is %q", got)
	}
	if got := resp.Header.Get("x-malha-cluster"); got != "a" {
		t.Errorf("x-malha-cluster is %q", got)
	}
	if got := resp.Header.Get("x-malha-endpoint"); !strings.HasPrefix(got, "default/a-0 127.0.0.1:") {
		t.Errorf("x-malha-endpoint is %q", got)
	}
	h := <-seen
	if h.Get("x-malha-explain") != "" || h.Get("x-forwarded-client-cert") != "" {
		t.Errorf("the endpoint saw what only a proxy may say: %v", h)
	}
	if len(h.Get("x-request-id")) != 36 {
		t.Errorf("x-request-id is %q", h.Get("x-request-id"))
	}
}

func TestOwnAnswers(t *testing.T) {
	slow := app(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-time.After(time.Minute):
		}
	})
	dead := testport.Address(t)
	code := 14
	tests := []struct {
		name   string
		change func(*plan.Plan)
		status int
		detail string
	}{
		{"timeout", func(p *plan.Plan) { p.Routes[0].Hosts[0].Routes[0].Timeout = plan.Duration(50 * time.Millisecond) }, 504, "upstream_response_timeout"},
		{"no cluster", func(p *plan.Plan) { p.Routes[0].Hosts[0].Routes[0].Forward = to("nowhere") }, 503, "cluster_not_found"},
		{"no destination", func(p *plan.Plan) { p.Routes[0].Hosts[0].Routes[0].Forward = nil }, 503, "no_destination"},
		{"no endpoint", func(p *plan.Plan) { p.Endpoints = nil }, 503, "no_healthy_upstream"},
		{"refused", func(p *plan.Plan) { p.Endpoints[0].Endpoints[0].Address = dead }, 503, "upstream_reset_before_response_started{connection_failure}"},
		{"no route", func(p *plan.Plan) {
			p.Routes[0].Hosts[0].Routes[0].Match.Path = &match.String{Kind: match.Exact, Value: "/other"}
		}, 404, "route_not_found"},
		{"no host", func(p *plan.Plan) { p.Routes[0].Hosts[0].Domains = []string{"x"} }, 404, "host_not_found"},
		{"blocked", func(p *plan.Plan) {
			p.Routes[0].Hosts[0].Domains = []string{"x"}
			p.Routes[0].Otherwise = plan.Block
		}, 502, "host_not_in_registry"},
		{"abort", func(p *plan.Plan) {
			p.Routes[0].Hosts[0].Routes[0].Fault = &plan.Fault{AbortStatus: 418, AbortPercent: 100}
		}, 418, "fault_filter_abort"},
		{"abort gRPC", func(p *plan.Plan) {
			p.Routes[0].Hosts[0].Routes[0].Fault = &plan.Fault{AbortGRPC: &code, AbortPercent: 100}
		}, 503, "fault_filter_abort"},
		{"direct", func(p *plan.Plan) {
			p.Routes[0].Hosts[0].Routes[0].Direct = &plan.DirectResponse{Status: 299, Body: []byte("hi")}
		}, 299, "direct_response"},
		{"redirect", func(p *plan.Plan) {
			p.Routes[0].Hosts[0].Routes[0].Redirect = &plan.Redirect{Status: 301, Path: "/there"}
		}, 301, "direct_response"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := simple(slow)
			tt.change(p)
			_, at := start(t, live.Options{}, p)
			resp, body := get(t, client(t), "http://"+at["out"]+"/", "x-malha-explain", "1")
			if resp.StatusCode != tt.status || resp.Header.Get("x-malha-detail") != tt.detail {
				t.Errorf("status %d detail %q body %q flags %q", resp.StatusCode, resp.Header.Get("x-malha-detail"), body, resp.Header.Get("x-malha-flags"))
			}
		})
	}
}

func TestRetries(t *testing.T) {
	var n atomic.Int32
	flaky := app(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if n.Add(1)%3 != 0 {
			w.WriteHeader(503)
			return
		}
		_, _ = w.Write(body)
	})
	_, at := start(t, live.Options{}, simple(flaky, func(r *plan.Route) {
		r.Retry = &plan.Retry{Attempts: 2, On: plan.Retry5xx, BackoffBase: plan.Duration(time.Millisecond)}
	}))
	c := client(t)
	for _, body := range []io.Reader{
		strings.NewReader("known length"),
		io.MultiReader(strings.NewReader("chunked "), strings.NewReader("body")), // goes through the pump
	} {
		n.Store(0)
		resp, err := c.Post("http://"+at["out"]+"/", "text/plain", body)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != 200 || len(got) < 12 || n.Load() != 3 {
			t.Errorf("status %d body %q after %d attempts", resp.StatusCode, got, n.Load())
		}
	}
}

func TestBigBodies(t *testing.T) {
	echo := app(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	})
	_, at := start(t, live.Options{}, simple(echo))
	data := make([]byte, 8<<20)
	_, _ = rand.Read(data)
	c := client(t)
	for range 3 {
		resp, err := c.Post("http://"+at["out"]+"/", "", bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes came back of %d: %v", len(got), len(data), err)
		}
	}
}

func TestForwardProxy(t *testing.T) {
	web := named(t, "web")
	other := named(t, "stranger")
	p := simple(web)
	p.Listeners = []plan.Listener{{Name: "forward", Bind: "127.0.0.1:0", Direction: plan.Outbound, Protocol: ident.HTTP, Forward: true,
		Ports: []plan.ForwardPort{
			{Port: 80, Protocol: ident.HTTP, Routes: "t"},
			{Port: 5000, Protocol: ident.TCP, Hosts: []plan.ForwardHost{{Host: "db", TCP: to("a")}}},
		}}}
	p.Routes[0].Hosts[0].Domains = []string{"web", "web.default"}
	p.Routes[0].Otherwise = plan.Passthrough
	_, at := start(t, live.Options{}, p)
	proxy, _ := url.Parse("http://" + at["forward"])
	tr := &http.Transport{Proxy: http.ProxyURL(proxy)}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, Timeout: time.Minute}
	if _, body := get(t, c, "http://web/"); body != "web" {
		t.Errorf("http://web/ was answered by %q", body)
	}
	if _, body := get(t, c, "http://"+other+"/"); body != "stranger" {
		t.Errorf("a host outside of the mesh was answered by %q", body)
	}
	// A request that is not a proxy's goes nowhere, above all not back to the proxy itself.
	if resp, _ := get(t, client(t), "http://"+at["forward"]+"/"); resp.StatusCode != 404 {
		t.Errorf("origin-form to the proxy itself: %d", resp.StatusCode)
	}
	for target, want := range map[string]string{"web:80": "web", "db:5000": "web", other: "stranger"} {
		nc, err := net.Dial("tcp", at["forward"])
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprintf(nc, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
		br := bufio.NewReader(nc)
		resp, err := http.ReadResponse(br, &http.Request{Method: "CONNECT"})
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("CONNECT %s: %v %v", target, resp, err)
		}
		host, _, _ := net.SplitHostPort(target)
		_, _ = fmt.Fprintf(nc, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host)
		resp, err = http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("in the tunnel to %s: %v", target, err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != want {
			t.Errorf("the tunnel to %s leads to %q", target, body)
		}
		_ = nc.Close()
	}
}

// One HTTP/2 connection to a forward proxy carries many tunnels (RFC 9113 section 8.5), each of which ends on its own.
func TestForwardProxyTunnelsOverHTTP2(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 1<<16)
	web := app(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/big" {
			_, _ = io.WriteString(w, big)
			return
		}
		_, _ = io.WriteString(w, "web")
	})
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = echo.Close() }()
	go func() {
		for {
			nc, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = nc.Close() }()
				b, _ := io.ReadAll(nc) // until the client's direction has ended: half-close passes through
				_, _ = nc.Write(b)
			}()
		}
	}()
	p := simple(web)
	p.Listeners = []plan.Listener{{Name: "forward", Bind: "127.0.0.1:0", Direction: plan.Outbound, Protocol: ident.HTTP, Forward: true,
		Ports: []plan.ForwardPort{{Port: 80, Protocol: ident.HTTP, Routes: "t"}, {Port: 81, Protocol: ident.TCP, Otherwise: plan.Block}}}}
	p.Routes[0].Hosts[0].Domains = []string{"web"}
	p.Routes[0].Otherwise = plan.Passthrough
	_, at := start(t, live.Options{}, p)
	tr := &http.Transport{Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10}}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	tunnel := func(target string) (io.WriteCloser, *http.Response) {
		t.Helper()
		r, w := io.Pipe()
		req := &http.Request{Method: "CONNECT", URL: &url.URL{Scheme: "http", Host: at["forward"]}, Host: target, Header: http.Header{}, Body: r}
		resp, err := tr.RoundTrip(req.WithContext(t.Context()))
		if err != nil {
			t.Fatalf("CONNECT %s: %v", target, err)
		}
		return w, resp
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			w, resp := tunnel(echo.Addr().String())
			defer func() { _ = resp.Body.Close() }()
			go func() { _, _ = io.WriteString(w, big); _ = w.Close() }()
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != big {
				t.Errorf("%d bytes came back, %v", len(b), err)
			}
		})
	}
	all.Wait()
	// The proxy ends this one itself, while much of what it said last is still on its way.
	w, resp := tunnel("web:80")
	_, _ = io.WriteString(w, "GET /big HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
	inner, err := http.ReadResponse(bufio.NewReader(resp.Body), nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(inner.Body); err != nil || string(b) != big {
		t.Errorf("the tunnel leads to %d bytes, %v", len(b), err)
	}
	_ = w.Close()
	_ = resp.Body.Close()
	// A tunnel whose client leaves is over, also for the endpoint; the connection goes on.
	w, resp = tunnel(echo.Addr().String())
	_, _ = io.WriteString(w, "x")
	_ = resp.Body.Close()
	_ = w.Close()
	// So are those that the proxy ends because no HTTP is spoken in them, whether the client may still say something or not.
	for _, said := range []string{"", "\x00 is not HTTP"} {
		w, resp = tunnel("web:80")
		_, _ = io.WriteString(w, said)
		if said == "" {
			_ = w.Close()
		}
		if b, err := io.ReadAll(resp.Body); len(b) > 0 || err != nil {
			t.Errorf("a tunnel with %q in it got %q, %v", said, b, err)
		}
		_ = w.Close()
	}
	if _, resp = tunnel("nowhere:81"); resp.StatusCode != 502 {
		t.Errorf("to a host that is unknown: %d", resp.StatusCode)
	}
	_ = resp.Body.Close()
}

func TestUpgrade(t *testing.T) {
	echo := app(t, func(w http.ResponseWriter, r *http.Request) {
		nc, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = nc.Close() }()
		_, _ = io.WriteString(nc, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(nc, rw)
	})
	_, at := start(t, live.Options{}, simple(echo))
	nc, err := net.Dial("tcp", at["out"])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	_, _ = io.WriteString(nc, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	br := bufio.NewReader(nc)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("%v %v", resp, err)
	}
	for _, word := range []string{"one", "two", strings.Repeat("three", 20000)} {
		go func() { _, _ = io.WriteString(nc, word) }()
		got := make([]byte, len(word))
		if _, err := io.ReadFull(br, got); err != nil || string(got) != word {
			t.Fatalf("the tunnel said %.20q, error %v", got, err)
		}
	}
	_ = nc.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(br); err != nil || len(rest) > 0 {
		t.Errorf("after the end: %q %v", rest, err)
	}
}

func TestSwapAndDrainLoseNothing(t *testing.T) {
	v1, v2 := named(t, "v1"), named(t, "v2")
	px, at := start(t, live.Options{}, simple(v1))
	url := "http://" + at["out"] + "/"
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var failed, done atomic.Int64
	c := client(t)
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := c.Get(url)
				if err != nil {
					failed.Add(1)
					continue
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
					failed.Add(1)
				}
				_ = resp.Body.Close()
				done.Add(1)
			}
		})
	}
	for i := range 20 {
		addr := v1
		if i%2 == 0 {
			addr = v2
		}
		next := simple(addr)
		if err := px.Apply(next); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	close(stop)
	wg.Wait()
	if failed.Load() > 0 || done.Load() == 0 {
		t.Errorf("%d requests failed, %d were answered", failed.Load(), done.Load())
	}
}

// A listener that a plan takes away and the next one has again is there at once, while the one before still lets its last clients in: no
// client is refused by it, and the rules are those of the plan in force.
func TestListenersThatComeBack(t *testing.T) {
	patient := conn.Defaults()
	patient.DrainIdle = time.Minute
	there := app(t, func(http.ResponseWriter, *http.Request) {})
	says := func(status int) *plan.Plan {
		p := simple(there)
		p.Routes[0].Hosts[0].Routes[0].Direct = &plan.DirectResponse{Status: status}
		return p
	}
	bind := testport.Address(t)
	at := func(p *plan.Plan) *plan.Plan { p.Listeners[0].Bind = bind; return p }
	gone := &plan.Plan{}
	px, _ := start(t, live.Options{Conn: patient, DrainTime: 2 * time.Second}, at(says(201)))
	for i, status := range []int{202, 203, 206} {
		if err := px.Apply(gone); err != nil {
			t.Fatal(err)
		}
		if err := px.Apply(at(says(status))); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		for range 10 {
			if resp, _ := get(t, client(t), "http://"+bind+"/"); resp.StatusCode != status {
				t.Errorf("round %d: %d, want %d", i, resp.StatusCode, status)
			}
		}
	}
}

func TestBadPlanChangesNothing(t *testing.T) {
	px, at := start(t, live.Options{}, simple(named(t, "v1")))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for name, change := range map[string]func(*plan.Plan){
		"route table": func(p *plan.Plan) { p.Listeners[0].Routes = "missing" },
		"policy":      func(p *plan.Plan) { p.Listeners[0].Policies = []string{"missing"} },
		"header": func(p *plan.Plan) {
			p.Routes[0].Hosts[0].Routes[0].Headers.Request.Set = []plan.Field{{Name: "a", Value: "b\r\nc: d"}}
		},
		"framing header": func(p *plan.Plan) {
			p.Routes[0].Hosts[0].Routes[0].Headers.Request.Set = []plan.Field{{Name: "content-length", Value: "1"}}
		},
		"address": func(p *plan.Plan) {
			p.Listeners = append(p.Listeners, outbound("t"))
			p.Listeners[1].Name, p.Listeners[1].Bind = "z", taken.Addr().String()
		},
		"regex": func(p *plan.Plan) {
			p.Routes[0].Hosts[0].Routes[0].Match.Path = &match.String{Kind: match.Regex, Value: "("}
		},
		"endpoint": func(p *plan.Plan) { p.Endpoints[0].Endpoints[0].Address = "nonsense" },
		"socket":   func(p *plan.Plan) { p.Endpoints[0].Endpoints[0].Address = plan.UnixPrefix + "relative" },
	} {
		p := simple("127.0.0.1:1")
		change(p)
		if err := px.Apply(p); err == nil {
			t.Errorf("a plan with a bad %s was accepted", name)
		}
		if _, body := get(t, client(t), "http://"+at["out"]+"/"); body != "v1" {
			t.Errorf("after a bad %s the answer is %q", name, body)
		}
	}
}

func TestMaxForwards(t *testing.T) {
	p := simple(app(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Method+" "+r.Header.Get("Max-Forwards"))
	}))
	_, at := start(t, live.Options{}, p)
	c := client(t)
	for _, tc := range []struct {
		method, hops string
		status       int
		body         string
	}{
		{"OPTIONS", "0", 200, ""},
		{"TRACE", "0", 501, "this proxy, the last recipient"},
		{"OPTIONS", "1", 200, "OPTIONS 0"},
		{"TRACE", "10", 200, "TRACE 9"},
		{"OPTIONS", "", 200, "OPTIONS "},
		{"OPTIONS", "many", 200, "OPTIONS many"},
		{"GET", "0", 200, "GET 0"},
	} {
		req, err := http.NewRequest(tc.method, "http://"+at["out"]+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if tc.hops != "" {
			req.Header.Set("Max-Forwards", tc.hops)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != tc.status || !strings.HasPrefix(string(b), tc.body) || tc.body == "" && len(b) > 0 {
			t.Errorf("%s with Max-Forwards %q: %d %q, want %d %q", tc.method, tc.hops, resp.StatusCode, b, tc.status, tc.body)
		}
	}
}

// A drain ends when its time is over, whoever is not ready then: a program that gets a copy and does not answer, too.
func TestDrainWaitsForNoMirror(t *testing.T) {
	copied := make(chan struct{}, 1)
	silent := app(t, func(_ http.ResponseWriter, r *http.Request) {
		copied <- struct{}{}
		<-r.Context().Done()
	})
	p := simple(named(t, "a"), func(r *plan.Route) { r.Mirrors = []plan.Mirror{{Cluster: "m", Percent: 100}} })
	p.Clusters, p.Endpoints = append(p.Clusters, cluster("m")), append(p.Endpoints, endpoints("m", silent))
	px, addrs := start(t, live.Options{}, p)
	if resp, _ := get(t, client(t), "http://"+addrs["out"]); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	<-copied
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	over := make(chan struct{})
	go func() { px.Drain(ctx); close(over) }()
	select {
	case <-over:
	case <-time.After(10 * time.Second):
		t.Error("the drain goes on")
	}
}

// A drain that has time sends the copies of what it served, also those that wait for a connection.
func TestDrainSendsMirrors(t *testing.T) {
	copied, answer := make(chan struct{}, 2), make(chan struct{})
	slow := app(t, func(_ http.ResponseWriter, r *http.Request) {
		copied <- struct{}{}
		select {
		case <-answer:
		case <-r.Context().Done():
		}
	})
	p := simple(named(t, "a"), func(r *plan.Route) { r.Mirrors = []plan.Mirror{{Cluster: "m", Percent: 100}} })
	m := cluster("m")
	m.Limits.MaxConnections = 1
	p.Clusters, p.Endpoints = append(p.Clusters, m), append(p.Endpoints, endpoints("m", slow))
	px, addrs := start(t, live.Options{}, p)
	for range 2 {
		if resp, _ := get(t, client(t), "http://"+addrs["out"]); resp.StatusCode != 200 {
			t.Fatal(resp.Status)
		}
	}
	<-copied
	over := make(chan struct{})
	go func() { px.Drain(context.Background()); close(over) }()
	for { // until the door is shut, after which little is left to drain
		nc, err := net.Dial("tcp", addrs["out"])
		if err != nil {
			break
		}
		_ = nc.Close()
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond)
	close(answer)
	<-over
	if len(copied) != 1 {
		t.Error("the second copy was not sent")
	}
}

package live_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/live"
)

func TestProxyProtocolAtTheEdge(t *testing.T) {
	a := newAuthority(t)
	one, _ := a.secret(t, "n/one", "one.example")
	p := edgePlan([]plan.ServerName{ends("n/one", "one", "one.example")}, one)
	p.Listeners = append(p.Listeners, plan.Listener{Name: "plain", Bind: "127.0.0.1:0", Direction: plan.Edge, Protocol: ident.HTTP, Port: 80, Routes: "one", ProxyProtocol: true})
	p.Listeners[0].ProxyProtocol = true
	goes(p, "one", app(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("x-forwarded-for"))
	}))
	log := newLogged(t)
	_, at := start(t, live.Options{Recorder: log.rec}, p)
	const request = "GET / HTTP/1.1\r\nHost: one.example\r\nConnection: close\r\n\r\n"
	v2 := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x01\xdc\x04\x01\xbb"
	for head, want := range map[string]string{
		"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n": "192.0.2.1", v2: "192.0.2.1", "PROXY TCP6 2001:db8::1 ::2 1 2\r\n": "2001:db8::1",
		"PROXY UNKNOWN\r\n": "127.0.0.1", "PROXY nonsense\r\n": "", "": "",
	} {
		nc, err := net.Dial("tcp", at["plain"])
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(nc, head+request)
		resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
		if want == "" {
			if err == nil {
				t.Errorf("%q was served", head)
			}
			_ = nc.Close()
			continue
		}
		if err != nil {
			t.Fatalf("%q: %v", head, err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != want {
			t.Errorf("%q: x-forwarded-for is %q, want %q", head, body, want)
		}
		_ = nc.Close()
		// In front of TLS it is the same.
		if nc, err = net.Dial("tcp", at["edge"]); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(nc, head)
		tc := tls.Client(nc, &tls.Config{RootCAs: a.roots, ServerName: "one.example"})
		_, _ = io.WriteString(tc, request)
		if resp, err = http.ReadResponse(bufio.NewReader(tc), nil); err != nil {
			t.Fatalf("%q and TLS: %v", head, err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != want {
			t.Errorf("%q and TLS: x-forwarded-for is %q, want %q", head, body, want)
		}
		_ = nc.Close()
	}
	log.until(t, `"DPE"`, "proxy_protocol_malformed")
}

// TestAutoPassthrough: mesh TLS goes through a gateway to the cluster that its server name spells, and is ended where it was
// meant to be: the gateway has no identity and sees nothing.
func TestAutoPassthrough(t *testing.T) {
	const sni = "outbound_.9080_.v1_.reviews.default.svc.cluster.local"
	a := newAuthority(t)
	_, v1 := start(t, live.Options{Credentials: a.issue(t, backend)}, inbound(named(t, "v1"), plan.TLSStrict, ident.HTTP))
	_, all := start(t, live.Options{Credentials: a.issue(t, backend)}, inbound(named(t, "all"), plan.TLSStrict, ident.HTTP))
	p := edgePlan([]plan.ServerName{{Names: []string{"*.local"}, Auto: true}})
	for name, at := range map[string]string{"outbound|9080|v1|reviews.default.svc.cluster.local": v1["in"], "outbound|9080||reviews.default.svc.cluster.local": all["in"], "inbound|1||": v1["in"]} {
		p.Clusters = append(p.Clusters, cluster(name))
		e := endpoints(name, at)
		e.Endpoints[0].Identity = backend // it would be spoken to by mesh TLS
		p.Endpoints = append(p.Endpoints, e)
	}
	_, at := start(t, live.Options{}, p)
	for name, want := range map[string]string{sni: "v1", strings.Replace(sni, "_.v1_", "_._", 1): "all"} {
		out := simple(at["edge"])
		out.Node.Identity = frontend
		out.Clusters[0].SNI = name
		out.Endpoints[0].Endpoints[0].Identity = backend
		_, client1 := start(t, live.Options{Credentials: a.issue(t, frontend)}, out)
		if resp, body := get(t, client(t), "http://"+client1["out"]+"/"); resp.StatusCode != 200 || body != want {
			t.Errorf("%s: %d %q, want %q", name, resp.StatusCode, body, want)
		}
	}
	for _, name := range []string{strings.Replace(sni, "v1", "v3", 1), "other.svc.cluster.local", "inbound_.1_._.local"} {
		if _, err := tls.Dial("tcp", at["edge"], &tls.Config{ServerName: name, InsecureSkipVerify: true}); err == nil {
			t.Errorf("%s was served", name)
		}
	}
}

// TestServerNamesOfTheMesh: VirtualService tls rules at a local port, and in tunnels.
func TestServerNamesOfTheMesh(t *testing.T) {
	a := newAuthority(t)
	_, cert := a.secret(t, "x", "one.example", "two.example", "db.example")
	p := &plan.Plan{}
	for _, n := range []string{"one", "two", "rest"} {
		goes(p, n, tlsApp(t, cert, n))
	}
	goes(p, "web", named(t, "web"))
	names := []plan.ServerName{{Names: []string{"one.example"}, TCP: to("one")}, {Names: []string{"two.example"}, TCP: to("two")}}
	subnets := []plan.TCPRoute{{Subnets: []string{"192.0.2.0/24"}, Forward: to("one")}, {Subnets: []string{"198.51.100.0/24"}}}
	p.Listeners = []plan.Listener{
		{Name: "local", Bind: "127.0.0.1:0", Direction: plan.Outbound, Protocol: ident.TLS, ServerNames: names, TCP: to("rest")},
		{Name: "subnets", Bind: "127.0.0.1:0", Direction: plan.Outbound, Protocol: ident.TCP, TCP: to("rest"),
			TCPRoutes: []plan.TCPRoute{{Subnets: []string{"192.0.2.0/24"}, Forward: to("one")}, {Subnets: []string{"127.0.0.0/8"}, Forward: to("two")}}},
		{Name: "forward", Bind: "127.0.0.1:0", Direction: plan.Outbound, Protocol: ident.HTTP, Forward: true, Ports: []plan.ForwardPort{
			{Port: 443, Protocol: ident.TLS, Hosts: []plan.ForwardHost{
				{Host: "names", TCP: to("rest"), ServerNames: names},
				{Host: "192.0.2.7", TCP: to("rest"), TCPRoutes: subnets},
				{Host: "198.51.100.7", TCP: to("rest"), TCPRoutes: subnets},
				{Host: "203.0.113.7", TCP: to("rest"), TCPRoutes: subnets},
				{Host: "unresolved", TCP: to("rest"), TCPRoutes: subnets},
				{Host: "*.wild.example", TCP: to("one")},
				{Host: "*.deep.wild.example", TCP: to("two")},
				{Host: "x.deep.wild.example", TCP: to("rest")},
				{Host: "*.1", TCP: to("rest")},
			}, Otherwise: plan.Block},
			{Port: 0, Protocol: ident.TCP, Hosts: []plan.ForwardHost{{Host: "anywhere", TCP: to("two")}}, Otherwise: plan.Block},
			{Port: 80, Protocol: ident.HTTP, Routes: "web", Otherwise: plan.Passthrough},
		}},
	}
	p.Routes[3].Hosts[0].Domains = []string{"web"}
	_, at := start(t, live.Options{}, p)
	said := func(nc net.Conn, sni string) string {
		t.Helper()
		defer func() { _ = nc.Close() }()
		tc := tls.Client(nc, &tls.Config{RootCAs: a.roots, ServerName: sni})
		_, _ = fmt.Fprintf(tc, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", sni)
		resp, err := http.ReadResponse(bufio.NewReader(tc), nil)
		if err != nil {
			return err.Error()
		}
		b, _ := io.ReadAll(resp.Body)
		return string(b)
	}
	dial := func(name string) net.Conn {
		t.Helper()
		nc, err := net.Dial("tcp", at[name])
		if err != nil {
			t.Fatal(err)
		}
		return nc
	}
	tunnel := func(target string) (net.Conn, int) {
		t.Helper()
		nc := dial("forward")
		_, _ = fmt.Fprintf(nc, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
		resp, err := http.ReadResponse(bufio.NewReader(nc), &http.Request{Method: "CONNECT"})
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 200 {
			_ = nc.Close()
		}
		return nc, resp.StatusCode
	}
	for sni, want := range map[string]string{"one.example": "one", "two.example": "two", "db.example": "rest"} {
		if got := said(dial("local"), sni); got != want {
			t.Errorf("local port, %s: %q, want %q", sni, got, want)
		}
		nc, _ := tunnel("names:443")
		if got := said(nc, sni); got != want {
			t.Errorf("tunnel, %s: %q, want %q", sni, got, want)
		}
	}
	if got := said(dial("subnets"), "db.example"); got != "two" {
		t.Errorf("by the address of the connection: %q", got)
	}
	for target, want := range map[string]string{"192.0.2.7:443": "one", "203.0.113.7:443": "rest", "unresolved:443": "rest",
		"a.wild.example:443": "one", "deep.wild.example:443": "one", "b.deep.wild.example:443": "two", "x.deep.wild.example:443": "rest",
		"anywhere:7": "two"} {
		nc, status := tunnel(target)
		if status != 200 {
			t.Errorf("%s: %d", target, status)
			continue
		}
		if got := said(nc, "db.example"); got != want {
			t.Errorf("%s: %q, want %q", target, got, want)
		}
	}
	for target, want := range map[string]int{"198.51.100.7:443": 503, "stranger:443": 502, "127.0.0.1:443": 502,
		"wild.example:443": 502, "one.example:7": 502} {
		if nc, status := tunnel(target); status != want {
			_ = nc.Close()
			t.Errorf("%s: %d, want %d", target, status, want)
		}
	}
}

// A plan with a piece that can't be used is refused with the name of the piece, and the one before stays.
func TestPiecesAreBlamed(t *testing.T) {
	p := edgePlan(nil)
	p.Listeners[0].Routes = "one"
	goes(p, "one", named(t, "one"))
	px, at := start(t, live.Options{}, p)
	listener := func(change func(*plan.Listener)) func(*plan.Plan) {
		return func(p *plan.Plan) { change(&p.Listeners[0]) }
	}
	for what, tc := range map[string]struct {
		change     func(*plan.Plan)
		kind, name string
		says       string
	}{
		"server name twice": {listener(func(l *plan.Listener) {
			l.ServerNames = []plan.ServerName{{Names: []string{"a"}, TCP: to("one")}, {Names: []string{"a"}, TCP: to("one")}}
		}), "listener", "edge", `"a" is there twice`},
		"not canonical": {listener(func(l *plan.Listener) {
			l.ServerNames = []plan.ServerName{{Names: []string{"A.example"}, TCP: to("one")}}
		}), "listener", "edge", "canonical"},
		"routes of TLS that passes": {listener(func(l *plan.Listener) { l.ServerNames = []plan.ServerName{{Names: []string{"a"}, Routes: "one"}} }), "listener", "edge", "passes TLS through"},
		"no names":                  {listener(func(l *plan.Listener) { l.ServerNames = []plan.ServerName{{TCP: to("one")}} }), "listener", "edge", "has no names"},
		"subnet": {listener(func(l *plan.Listener) {
			l.TCPRoutes = []plan.TCPRoute{{Subnets: []string{"10.0.0.1"}, Forward: to("one")}}
		}), "listener", "edge", `"10.0.0.1" is not a subnet`},
		"TCP cluster": {listener(func(l *plan.Listener) { l.TCPRoutes = []plan.TCPRoute{{Forward: to("gone")}} }), "listener", "edge", `"gone" is not a cluster`},
		"limit":       {listener(func(l *plan.Listener) { l.Limits = []string{"RateLimit/n/gone"} }), "listener", "edge", `rate limit "RateLimit/n/gone"`},
		"limit of a server name": {listener(func(l *plan.Listener) {
			l.ServerNames = []plan.ServerName{{Names: []string{"a"}, TLS: &plan.ServerTLS{Mode: plan.ServeSimple}, Limits: []string{"RateLimit/n/gone"}}}
		}), "listener", "edge", `rate limit "RateLimit/n/gone"`},
		"cluster twice": {func(p *plan.Plan) { p.Clusters = append(p.Clusters, p.Clusters[0]) }, "cluster", "one", "twice"},
		"address":       {func(p *plan.Plan) { p.Endpoints[0].Endpoints[0].Address = "x" }, "endpoints", "one", "not an address"},
		"taken port": {func(p *plan.Plan) {
			l := p.Listeners[0]
			l.Name, l.Bind = "second", at["edge"]
			p.Listeners = append(p.Listeners, l)
		}, "listener", "second", "in use"},
	} {
		next := edgePlan(nil)
		next.Listeners[0].Routes = "one"
		goes(next, "one", "127.0.0.1:1")
		tc.change(next)
		err := px.Apply(next)
		var piece *live.PieceError
		if !errors.As(err, &piece) || piece.Kind != tc.kind || piece.Name != tc.name || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %s %s blamed for %q", what, err, tc.kind, tc.name, tc.says)
		}
	}
	if _, body := get(t, client(t), "http://"+at["edge"]+"/"); body != "one" {
		t.Errorf("after refusals: %q", body)
	}
}

// The idle time of a cluster ends opaque connections, whatever the listener's is.
func TestIdleTimeOfACluster(t *testing.T) {
	p := &plan.Plan{Listeners: []plan.Listener{{Name: "tcp", Bind: "127.0.0.1:0", Direction: plan.Outbound, Protocol: ident.TCP, TCP: to("echo"), TCPIdle: plan.Duration(time.Hour)}}}
	goes(p, "echo", echoServer(t))
	p.Clusters[0].TCPIdle = plan.Duration(20 * time.Millisecond)
	log := newLogged(t)
	_, at := start(t, live.Options{Recorder: log.rec}, p)
	nc, err := net.Dial("tcp", at["tcp"])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	_ = nc.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := nc.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an idle connection: %v", err)
	}
	log.until(t, `"SI"`, "tcp_idle_timeout")
}

// What the plan's secrets and addresses are to the clusters: TLS to strangers, PROXY protocol headers, and no way back into the
// proxy itself.
func TestClustersKnowTheProxy(t *testing.T) {
	a := newAuthority(t)
	_, cert := a.secret(t, "x", "api.example")
	ca := plan.Secret{Name: "n/ca", Authorities: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})}
	heard := make(chan string, 1)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer func() { _ = nc.Close() }()
		line, _ := bufio.NewReader(nc).ReadString('\n')
		heard <- line
	}()
	p := &plan.Plan{Secrets: []plan.Secret{ca}}
	goes(p, "api", tlsApp(t, cert, "api"))
	p.Clusters[0].Originate = &plan.ClientTLS{Authorities: "n/ca", SNI: "api.example"}
	goes(p, "tcp", ln.Addr().String())
	p.Clusters[1].ProxyProtocol = 1
	goes(p, "any", "127.0.0.1:1")
	p.Endpoints = p.Endpoints[:2]
	p.Clusters[2].Discovery = plan.AsRequested
	p.Listeners = []plan.Listener{outbound("api"),
		{Name: "tcp", Bind: "127.0.0.1:0", Direction: plan.Outbound, Protocol: ident.TCP, TCP: to("tcp")},
		{Name: "forward", Bind: "0.0.0.0:0", Direction: plan.Outbound, Protocol: ident.HTTP, Forward: true, Ports: []plan.ForwardPort{
			{Port: 0, Protocol: ident.TCP, Hosts: []plan.ForwardHost{{Host: "*.1", TCP: to("any")}, {Host: "127.0.0.1", TCP: to("any")}}, Otherwise: plan.Block},
		}},
	}
	px, at := start(t, live.Options{}, p)
	if resp, body := get(t, client(t), "http://"+at["out"]+"/"); resp.StatusCode != 200 || body != "api" {
		t.Errorf("TLS that the proxy begins: %d %q", resp.StatusCode, body)
	}
	next := *p
	next.Secrets = nil
	if err := px.Apply(&next); err != nil {
		t.Fatal(err)
	}
	if resp, body := get(t, client(t), "http://"+at["out"]+"/"); resp.StatusCode != 503 {
		t.Errorf("without its authorities: %d %q", resp.StatusCode, body)
	}
	if err := px.Apply(p); err != nil {
		t.Fatal(err)
	}
	if resp, body := get(t, client(t), "http://"+at["out"]+"/"); resp.StatusCode != 200 {
		t.Errorf("after they came back: %d %q", resp.StatusCode, body)
	}

	nc, err := net.Dial("tcp", at["tcp"])
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(nc, "x\n")
	local, remote := nc.LocalAddr().(*net.TCPAddr), nc.RemoteAddr().(*net.TCPAddr)
	if got, want := <-heard, fmt.Sprintf("PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\n", local.Port, remote.Port); got != want {
		t.Errorf("the endpoint was told %q, want %q", got, want)
	}
	_ = nc.Close()

	_, forward, _ := net.SplitHostPort(at["forward"])
	_, out, _ := net.SplitHostPort(at["out"])
	_, stranger, _ := net.SplitHostPort(echoServer(t))
	for port, want := range map[string]int{forward: 503, out: 503, stranger: 200} {
		nc, err := net.Dial("tcp", "127.0.0.1:"+forward)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprintf(nc, "CONNECT 127.0.0.1:%s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\n\r\n", port, port)
		resp, err := http.ReadResponse(bufio.NewReader(nc), &http.Request{Method: "CONNECT"})
		if err != nil || resp.StatusCode != want {
			t.Errorf("a tunnel to port %s: %v, %v, want %d", port, resp, err, want)
		}
		_ = nc.Close()
	}
}

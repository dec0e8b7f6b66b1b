package live_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/live"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

// authority issues workload certificates.
type authority struct {
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	roots *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: ident.DefaultTrustDomain}}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	a := &authority{cert: cert, key: key, roots: x509.NewCertPool()}
	a.roots.AddCert(cert)
	return a
}

func (a *authority) issue(t *testing.T, id ident.Identity) trust.Source {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, _ := url.Parse(id.URI())
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, URIs: []*url.URL{uri}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := trust.New(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, a.roots, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return trust.Static{Credentials: c}
}

var (
	frontend = ident.Identity{TrustDomain: ident.DefaultTrustDomain, Namespace: "production", ServiceAccount: "frontend"}
	backend  = ident.Identity{TrustDomain: ident.DefaultTrustDomain, Namespace: "production", ServiceAccount: "backend"}
)

// inbound is the plan of the proxy beside an application.
func inbound(appAddr string, mode plan.TLSMode, proto ident.Protocol) *plan.Plan {
	p := simple(appAddr)
	p.Node = plan.Node{Name: ident.Name{Namespace: "production", Name: "backend"}, Role: plan.Sidecar, Identity: backend}
	p.Clusters[0].TLS = plan.TLSOff
	p.Listeners = []plan.Listener{{Name: "in", Bind: "127.0.0.1:0", Direction: plan.Inbound, Protocol: proto, Routes: "t", Port: 9080,
		TCP: to("a"), TLS: mode}}
	return p
}

// pair is two proxies with mutual TLS between them; it returns the address of the client's.
func meshPair(t *testing.T, in *plan.Plan, proto ident.Protocol, change ...func(out *plan.Cluster)) string {
	a := newAuthority(t)
	_, server := start(t, live.Options{Credentials: a.issue(t, backend)}, in)
	out := simple(server["in"])
	out.Node.Identity = frontend
	out.Clusters[0].Protocol = proto
	for _, f := range change {
		f(&out.Clusters[0])
	}
	out.Endpoints[0].Endpoints[0].Identity = backend
	_, client := start(t, live.Options{Credentials: a.issue(t, frontend)}, out)
	return client["out"]
}

func TestMutualTLS(t *testing.T) {
	seen := make(chan http.Header, 10)
	echo := app(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case seen <- r.Header.Clone():
		default:
		}
		_, _ = io.Copy(w, r.Body)
	})
	for _, proto := range []ident.Protocol{ident.HTTP, ident.HTTP2} {
		t.Run(proto.String(), func(t *testing.T) {
			in := inbound(echo, plan.TLSStrict, ident.HTTP)
			in.Listeners[0].Policies = []string{"production/p"}
			in.Policies = []plan.Policy{{Name: "production/p", Action: plan.Allow, Rules: []plan.PolicyRule{{
				From: []plan.Source{{Principals: []match.String{{Kind: match.Exact, Value: frontend.Principal()}}}},
				To:   []plan.Operation{{Paths: []match.String{{Kind: match.Prefix, Value: "/api/"}}}},
			}}}}
			url := "http://" + meshPair(t, in, proto)
			resp, err := client(t).Post(url+"/api/x", "text/plain", strings.NewReader("hello"))
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != 200 || string(body) != "hello" {
				t.Errorf("%d %q", resp.StatusCode, body)
			}
			want := "By=" + backend.URI() + ";URI=" + frontend.URI()
			if got := (<-seen).Get("x-forwarded-client-cert"); got != want {
				t.Errorf("x-forwarded-client-cert is %q, want %q", got, want)
			}
			for _, path := range []string{"/", "/api/../admin", "/api/%2e%2e/admin"} {
				if resp, body := get(t, client(t), url+path); resp.StatusCode != 403 || body != "RBAC: access denied" {
					t.Errorf("%s: %d %q", path, resp.StatusCode, body)
				}
			}
		})
	}
}

func TestStrictRefusesPlaintext(t *testing.T) {
	a := newAuthority(t)
	_, at := start(t, live.Options{Credentials: a.issue(t, backend)}, inbound(named(t, "x"), plan.TLSStrict, ident.HTTP))
	if resp, err := client(t).Get("http://" + at["in"] + "/"); err == nil {
		t.Errorf("plaintext got %d", resp.StatusCode)
	}
}

func TestPermissive(t *testing.T) {
	a := newAuthority(t)
	for _, proto := range []ident.Protocol{ident.HTTP, ident.Detect} {
		_, at := start(t, live.Options{Credentials: a.issue(t, backend)}, inbound(named(t, "x"), plan.TLSPermissive, proto))
		if resp, body := get(t, client(t), "http://"+at["in"]+"/"); body != "x" {
			t.Errorf("%v: plaintext got %d %q", proto, resp.StatusCode, body)
		}
		cfg := trust.ClientConfig(a.issue(t, frontend), []ident.Identity{backend}, "", []string{trust.ALPNHTTP1})
		tr := &http.Transport{DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return (&tls.Dialer{Config: cfg}).DialContext(ctx, network, addr)
		}}
		if resp, body := get(t, &http.Client{Transport: tr}, "https://"+at["in"]+"/"); body != "x" {
			t.Errorf("%v: mesh TLS got %d %q", proto, resp.StatusCode, body)
		}
		tr.CloseIdleConnections()
	}
	// The application's own TLS passes as it is.
	own := newTLSApp(t)
	_, at := start(t, live.Options{Credentials: a.issue(t, backend)}, inbound(own, plan.TLSPermissive, ident.HTTP))
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // the test's own server
	if _, body := get(t, &http.Client{Transport: tr}, "https://"+at["in"]+"/"); body != "own" {
		t.Errorf("the application's TLS got %q", body)
	}
	tr.CloseIdleConnections()
}

func newTLSApp(t *testing.T) string {
	ca := newAuthority(t)
	c := ca.issue(t, backend).Current()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{c.Certificate}})
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "own") })}
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { _ = s.Close() })
	return ln.Addr().String()
}

// A server that speaks first is not kept waiting for its client's first bytes beyond the detection time, wherever there is something to
// find out; that is counted. Where the protocol is declared, nothing is waited for: a time of hours changes nothing. In the mesh the
// client's proxy says it is opaque, so that only that one waits.
func TestServerFirst(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.WriteString(nc, "220 hello\r\n")
				_, _ = io.Copy(nc, nc)
				_ = nc.(*net.TCPConn).CloseWrite()
			}()
		}
	}()
	app := ln.Addr().String()
	outbound := func(to string, proto ident.Protocol) *plan.Plan {
		p := simple(to)
		p.Clusters[0].Protocol = ident.TCP
		p.Listeners[0].TCP, p.Listeners[0].Protocol = p.Routes[0].Hosts[0].Routes[0].Forward, proto
		return p
	}
	for _, tt := range []struct {
		name    string
		timeout time.Duration
		counted uint64 // silences
		plans   func(start func(p *plan.Plan) string) string
	}{
		{"outbound, to be detected", 20 * time.Millisecond, 1, func(start func(*plan.Plan) string) string { return start(outbound(app, ident.Detect)) }},
		{"outbound, declared", time.Hour, 0, func(start func(*plan.Plan) string) string { return start(outbound(app, ident.TCP)) }},
		{"inbound, to be detected", 20 * time.Millisecond, 1, func(start func(*plan.Plan) string) string {
			return start(inbound(app, plan.TLSPermissive, ident.Detect))
		}},
		{"inbound, declared, with or without TLS", 20 * time.Millisecond, 1, func(start func(*plan.Plan) string) string { return start(inbound(app, plan.TLSPermissive, ident.TCP)) }},
		{"inbound, declared, without TLS", time.Hour, 0, func(start func(*plan.Plan) string) string { return start(inbound(app, plan.TLSDisable, ident.TCP)) }},
		{"mesh, to be detected", 20 * time.Millisecond, 1, func(start func(*plan.Plan) string) string {
			p := outbound(start(inbound(app, plan.TLSStrict, ident.Detect)), ident.Detect)
			p.Node.Identity, p.Endpoints[0].Endpoints[0].Identity = frontend, backend
			return start(p)
		}},
		{"mesh, declared", time.Hour, 0, func(start func(*plan.Plan) string) string {
			p := outbound(start(inbound(app, plan.TLSStrict, ident.TCP)), ident.TCP)
			p.Node.Identity, p.Endpoints[0].Endpoints[0].Identity = frontend, backend
			return start(p)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := telemetry.New(telemetry.Options{})
			a := newAuthority(t)
			at := tt.plans(func(p *plan.Plan) string {
				o := live.Options{Recorder: rec}
				if id := p.Node.Identity; !id.IsZero() {
					o.Credentials = a.issue(t, id)
				}
				o.Server.DetectTimeout = tt.timeout
				_, at := start(t, o, p)
				return at[p.Listeners[0].Name]
			})
			nc := dial(t, at)
			br := bufio.NewReader(nc)
			if line, err := br.ReadString('\n'); line != "220 hello\r\n" {
				t.Fatalf("%q %v", line, err)
			}
			_, _ = io.WriteString(nc, "bytes")
			_ = nc.(*net.TCPConn).CloseWrite()
			if rest, err := io.ReadAll(br); string(rest) != "bytes" || err != nil {
				t.Errorf("after our half was closed: %q %v", rest, err)
			}
			if n := rec.Proxy.DetectionTimeouts.Value(); n != tt.counted {
				t.Errorf("%d silences were counted, want %d", n, tt.counted)
			}
		})
	}
}

// Everything that was accepted before a drain is answered, and the drain ends soon.
func TestDrain(t *testing.T) {
	release := make(chan struct{})
	var busy atomic.Int32
	px, at := start(t, live.Options{}, simple(app(t, func(w http.ResponseWriter, r *http.Request) {
		busy.Add(1)
		<-release
		_, _ = io.WriteString(w, "late")
	})))
	c := client(t)
	got := make(chan string, 3)
	for range 3 {
		go func() {
			resp, err := c.Get("http://" + at["out"] + "/")
			if err != nil {
				got <- err.Error()
				return
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if !resp.Close {
				got <- "the connection was not announced to end"
				return
			}
			got <- string(body)
		}()
	}
	for busy.Load() < 3 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	done := make(chan struct{})
	go func() { px.Drain(ctx); close(done) }()
	for { // a door is shut after the connections that came through it have been told
		nc, err := net.Dial("tcp", at["out"])
		if err != nil {
			break
		}
		_ = nc.Close()
		time.Sleep(time.Millisecond)
	}
	close(release)
	for range 3 {
		if s := <-got; s != "late" {
			t.Error(s)
		}
	}
	<-done
	if ctx.Err() != nil {
		t.Error("the drain had to be cut")
	}
}

// A client that leaves is noticed while its answer is awaited, and the endpoint is let go.
func TestClientLeaves(t *testing.T) {
	came, left := make(chan struct{}), make(chan struct{})
	_, at := start(t, live.Options{}, simple(app(t, func(w http.ResponseWriter, r *http.Request) {
		close(came)
		<-r.Context().Done()
		close(left)
	})))
	nc, err := net.Dial("tcp", at["out"])
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(nc, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	<-came
	_ = nc.Close()
	select {
	case <-left:
	case <-time.After(time.Minute):
		t.Error("the endpoint still works for nobody")
	}
}

// An answer that comes before the request was read leaves a connection on which the next request is read correctly, or
// none at all.
func TestEarlyAnswer(t *testing.T) {
	p := simple(app(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(413) }))
	p.Routes[0].Hosts[0].Routes = append([]plan.Route{{Match: plan.Match{Path: &match.String{Kind: match.Exact, Value: "/no"}},
		Direct: &plan.DirectResponse{Status: 403}}}, p.Routes[0].Hosts[0].Routes...)
	_, at := start(t, live.Options{}, p)
	for _, path := range []string{"/no", "/"} {
		for _, size := range []int{10, 100 << 10, 5 << 20} {
			nc, err := net.Dial("tcp", at["out"])
			if err != nil {
				t.Fatal(err)
			}
			_ = nc.SetDeadline(time.Now().Add(time.Minute))
			go func() {
				_, _ = io.WriteString(nc, "POST "+path+" HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
				for sent := 0; sent < size; sent += 10 {
					// If this were ever read as requests, more than two answers would come.
					if _, err := io.WriteString(nc, "a\r\nGET / HTTP\r\n"); err != nil {
						return
					}
				}
				_, _ = io.WriteString(nc, "0\r\n\r\nGET /no HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
			}()
			answers, _ := io.ReadAll(nc)
			_ = nc.Close()
			n := strings.Count(string(answers), "HTTP/1.1 ")
			if n < 1 || n > 2 || strings.Contains(string(answers), " 400 ") {
				t.Errorf("%s with %d bytes: %d answers: %.300q", path, size, n, answers)
			}
			if size == 10 && n != 2 {
				t.Errorf("%s: the connection did not survive %d unread bytes", path, size)
			}
		}
	}
}

func TestPipelineAndOldClients(t *testing.T) {
	_, at := start(t, live.Options{}, simple(app(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = io.WriteString(w, r.URL.Path+string(b))
	})))
	say := func(in string, half bool) string {
		nc, err := net.Dial("tcp", at["out"])
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = nc.Close() }()
		_ = nc.SetDeadline(time.Now().Add(time.Minute))
		_, _ = io.WriteString(nc, in)
		if half {
			_ = nc.(*net.TCPConn).CloseWrite()
		}
		out, err := io.ReadAll(nc)
		if err != nil {
			t.Errorf("%.40q: %v", in, err)
		}
		return string(out)
	}
	var in strings.Builder
	for range 10 {
		in.WriteString("POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nxy")
	}
	in.WriteString("GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if out := say(in.String(), false); strings.Count(out, "/pxy") != 10 || !strings.HasSuffix(out, "/last") {
		t.Errorf("pipeline: %q", out)
	}
	if out := say("GET /old HTTP/1.0\r\nHost: a\r\n\r\n", false); !strings.HasSuffix(out, "/old") || !strings.Contains(out, "connection: close") {
		t.Errorf("HTTP/1.0: %q", out)
	}
	if out := say("GET /half HTTP/1.1\r\nHost: a\r\n\r\n", true); !strings.HasSuffix(out, "/half") {
		t.Errorf("half-closed: %q", out)
	}
	if out := say("HEAD /h HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", false); strings.HasSuffix(out, "/h") || !strings.Contains(out, "content-length: 2") {
		t.Errorf("HEAD: %q", out)
	}
	if out := say("GET / HTTP/9.9\r\nHost: a\r\n\r\n", false); !strings.HasPrefix(out, "HTTP/1.1 505 ") {
		t.Errorf("version: %q", out)
	}
	if out := say("POST /e HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n", true); !strings.Contains(out, "100 Continue") {
		t.Errorf("expect: %q", out)
	}
}

// A body that is malformed after its request was sent on ends the exchange and the connection, whatever follows it.
func TestMalformedBody(t *testing.T) {
	var smuggled atomic.Int32
	_, at := start(t, live.Options{}, simple(app(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			smuggled.Add(1)
		}
		_, _ = io.Copy(io.Discard, r.Body)
	})))
	for _, body := range []string{"3\nabc\r\n0\r\n\r\n", "3\r\nabcXX0\r\n\r\n", "0x3\r\nabc\r\n0\r\n\r\n", "3\r\nabc\r\n-1\r\n\r\n"} {
		nc, err := net.Dial("tcp", at["out"])
		if err != nil {
			t.Fatal(err)
		}
		_ = nc.SetDeadline(time.Now().Add(time.Minute))
		_, _ = io.WriteString(nc, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"+body+"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
		out, err := io.ReadAll(nc)
		_ = nc.Close()
		if n := strings.Count(string(out), "HTTP/1.1 "); err != nil || n != 1 || !strings.Contains(string(out), " 400 ") {
			t.Errorf("%q was answered with %q, error %v", body, out, err)
		}
		if smuggled.Load() > 0 {
			t.Errorf("what followed %q became a request", body)
		}
	}
}

package live_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/live"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

// secret returns a secret with a certificate of a for names, and the certificate itself.
func (a *authority) secret(t *testing.T, name string, hosts ...string) (plan.Secret, tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, DNSNames: hosts}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return plan.Secret{Name: name, Certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k})}, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// logged is a recorder that shows its lines.
type logged struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	rec  *telemetry.Recorder
	file *telemetry.AccessLog
}

func newLogged(t *testing.T) *logged {
	l := &logged{}
	l.file = telemetry.NewAccessLog(l)
	l.rec = telemetry.New(telemetry.Options{Log: l.file})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.file.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return l
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// until waits for a line that holds all the words.
func (l *logged) until(t *testing.T, words ...string) string {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		l.mu.Lock()
		all := l.buf.String()
		l.mu.Unlock()
	lines:
		for line := range strings.SplitSeq(all, "\n") {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue lines
				}
			}
			return line
		}
		if time.Now().After(deadline) {
			t.Fatalf("no line of the access log has %q:\n%s", words, all)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// edgePlan is a gateway with one door.
func edgePlan(names []plan.ServerName, secrets ...plan.Secret) *plan.Plan {
	p := &plan.Plan{
		Node:      plan.Node{Name: ident.Name{Namespace: "istio-system", Name: "gateway"}, Role: plan.Gateway},
		Listeners: []plan.Listener{{Name: "edge", Bind: "127.0.0.1:0", Direction: plan.Edge, Protocol: ident.HTTP, Port: 443, ServerNames: names}},
		Secrets:   secrets,
	}
	return p
}

// goes adds a cluster at addr, and a route table of the same name that leads there.
func goes(p *plan.Plan, name, addr string) {
	p.Clusters = append(p.Clusters, cluster(name))
	p.Endpoints = append(p.Endpoints, endpoints(name, addr))
	p.Routes = append(p.Routes, table(name, plan.Route{Name: "default", Forward: to(name)}))
}

func ends(secret, routes string, hosts ...string) plan.ServerName {
	return plan.ServerName{Names: hosts, Protocol: ident.HTTP, Routes: routes,
		TLS: &plan.ServerTLS{Mode: plan.ServeSimple, Secrets: []string{secret}}}
}

// tlsClient returns a client that asks for sni whatever the URL says.
func tlsClient(t *testing.T, a *authority, sni string, h2 bool, certs ...tls.Certificate) *http.Client {
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.roots, ServerName: sni, Certificates: certs}, ForceAttemptHTTP2: h2}
	if !h2 {
		tr.TLSClientConfig.NextProtos = []string{"http/1.1"}
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

func ask(t *testing.T, c *http.Client, at, host string) (*http.Response, string, error) {
	t.Helper()
	req, err := http.NewRequest("GET", "https://"+at+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := c.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

func TestEdgeChoosesByServerName(t *testing.T) {
	a := newAuthority(t)
	one, _ := a.secret(t, "n/one", "one.example")
	wild, _ := a.secret(t, "n/wild", "*.example", "*.deep.example")
	all, _ := a.secret(t, "n/all", "anything", "localhost")
	inner, innerCert := a.secret(t, "n/inner", "inside.example")
	_ = inner
	backend := tlsApp(t, innerCert, "inside")
	tcp := echoServer(t)
	p := edgePlan([]plan.ServerName{
		ends("n/one", "one", "one.example"),
		ends("n/wild", "wild", "*.example"),
		{Names: []string{"*.deep.example"}, Protocol: ident.TCP, TLS: &plan.ServerTLS{Mode: plan.ServeSimple, Secrets: []string{"n/wild"}}, TCP: to("echo")},
		{Names: []string{"inside.example"}, TCP: to("inside"), Origin: ident.Origin{Kind: "VirtualService", Namespace: "n", Name: "v", Rule: "tls[0]"}},
		{Names: []string{"nowhere.example"}, TCPRoutes: []plan.TCPRoute{{Subnets: []string{"192.0.2.0/24"}, Forward: to("inside")}}},
	}, one, wild, all)
	goes(p, "one", named(t, "one"))
	p.Clusters[0].Protocol = ident.Detect // and it speaks HTTP/1.1, whatever an edge's client speaks
	goes(p, "wild", named(t, "wild"))
	goes(p, "inside", backend)
	goes(p, "echo", tcp)
	log := newLogged(t)
	px, at := start(t, live.Options{Recorder: log.rec}, p)
	for _, h2 := range []bool{false, true} {
		for sni, want := range map[string]string{"one.example": "one", "two.example": "wild", "ONE.example": "one"} {
			resp, body, err := ask(t, tlsClient(t, a, sni, h2), at["edge"], strings.ToLower(sni))
			if err != nil || body != want || (resp.ProtoMajor == 2) != h2 {
				t.Errorf("%s (h2 %v): %v, %q, %v", sni, h2, resp, body, err)
			}
		}
		// TLS that passes is the application's own.
		c := tlsClient(t, a, "inside.example", h2)
		resp, body, err := ask(t, c, at["edge"], "inside.example")
		c.CloseIdleConnections()
		if err != nil || body != "inside" || resp.TLS.PeerCertificates[0].DNSNames[0] != "inside.example" {
			t.Errorf("passed through: %q, %v", body, err)
		}
	}
	log.until(t, "inside.example", "VirtualService")
	tc, err := tls.Dial("tcp", at["edge"], &tls.Config{RootCAs: a.roots, ServerName: "x.deep.example"})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(tc, "hello")
	b := make([]byte, 5)
	if _, err := io.ReadFull(tc, b); err != nil || string(b) != "hello" {
		t.Errorf("TCP inside TLS: %q, %v", b, err)
	}
	_ = tc.Close()

	// No name, an unknown one, no TLS: closed, and each with a line that says why.
	for _, sni := range []string{"", "stranger.test"} {
		_, err := tls.Dial("tcp", at["edge"], &tls.Config{ServerName: sni, InsecureSkipVerify: true})
		if err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("server name %q: %v", sni, err)
		}
	}
	log.until(t, `"NR"`, "no_server_name", "stranger.test")
	if _, err := tls.Dial("tcp", at["edge"], &tls.Config{ServerName: "nowhere.example", InsecureSkipVerify: true}); err == nil {
		t.Error("no subnet covers the address, and it was served")
	}
	log.until(t, `"NR"`, "no_tcp_route", "nowhere.example")
	nc, err := net.Dial("tcp", at["edge"])
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(nc, "GET / HTTP/1.1\r\nHost: one.example\r\n\r\n")
	if rest, _ := io.ReadAll(nc); len(rest) > 0 {
		t.Errorf("plaintext was answered: %q", rest)
	}
	_ = nc.Close()
	log.until(t, `"DPE"`, "not_tls")

	// Who only passes TLS on says nothing in it.
	passing := *p
	passing.Listeners = []plan.Listener{p.Listeners[0]}
	passing.Listeners[0].ServerNames = p.Listeners[0].ServerNames[3:]
	if err := px.Apply(&passing); err != nil {
		t.Fatal(err)
	}
	if _, err := tls.Dial("tcp", at["edge"], &tls.Config{ServerName: "stranger.test", InsecureSkipVerify: true}); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a server name that nobody has, where TLS is passed through: %v", err)
	}

	// One for all takes those that name nobody, too.
	next := *p
	next.Listeners = []plan.Listener{p.Listeners[0]}
	next.Listeners[0].ServerNames = append([]plan.ServerName{ends("n/all", "wild", "*")}, p.Listeners[0].ServerNames...)
	if err := px.Apply(&next); err != nil {
		t.Fatal(err)
	}
	c := tlsClient(t, a, "", false)
	c.Transport.(*http.Transport).TLSClientConfig.InsecureSkipVerify = true
	if _, body, err := ask(t, c, at["edge"], "unknown.test"); err != nil || body != "wild" {
		t.Errorf("no server name: %q, %v", body, err)
	}
}

// tlsApp is an application that ends TLS itself.
func tlsApp(t *testing.T, c tls.Certificate, says string) string {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{c}, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, says) }), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { _ = s.Close() })
	return ln.Addr().String()
}

func echoServer(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = nc.Close() }()
				_, _ = io.Copy(nc, nc)
			}()
		}
	}()
	return ln.Addr().String()
}

// A hello that comes in many packets, or in many records, is the same hello.
func TestSplitHello(t *testing.T) {
	a := newAuthority(t)
	one, _ := a.secret(t, "n/one", "one.example")
	p := edgePlan([]plan.ServerName{ends("n/one", "one", "one.example")}, one)
	goes(p, "one", named(t, "one"))
	_, at := start(t, live.Options{}, p)
	for what, split := range map[string]func([]byte) [][]byte{
		"bytes": func(b []byte) (out [][]byte) {
			for i := range b {
				out = append(out, b[i:i+1])
			}
			return out
		},
		"records": func(b []byte) (out [][]byte) {
			for body := b[5:]; len(body) > 0; {
				n := min(40, len(body))
				out = append(out, append([]byte{b[0], b[1], b[2], 0, byte(n)}, body[:n]...))
				body = body[n:]
			}
			return out
		},
	} {
		nc, err := net.Dial("tcp", at["edge"])
		if err != nil {
			t.Fatal(err)
		}
		tc := tls.Client(&splitter{Conn: nc, split: split}, &tls.Config{RootCAs: a.roots, ServerName: "one.example"})
		if err := tc.Handshake(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		_, _ = io.WriteString(tc, "GET / HTTP/1.1\r\nHost: one.example\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(tc), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Errorf("%s: %v, %v", what, resp, err)
		}
		_ = nc.Close()
	}
}

// splitter divides the first write.
type splitter struct {
	net.Conn
	split func([]byte) [][]byte
}

func (s *splitter) Write(b []byte) (int, error) {
	if s.split == nil {
		return s.Conn.Write(b)
	}
	parts := s.split(b)
	s.split = nil
	for _, p := range parts {
		if _, err := s.Conn.Write(p); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

func TestMisdirectedRequests(t *testing.T) {
	a := newAuthority(t)
	both, _ := a.secret(t, "n/both", "one.example", "two.example", "three.example")
	p := edgePlan([]plan.ServerName{ends("n/both", "one", "one.example", "three.example"), ends("n/both", "two", "two.example")}, both)
	goes(p, "one", named(t, "one"))
	goes(p, "two", named(t, "two"))
	log := newLogged(t)
	_, at := start(t, live.Options{Recorder: log.rec}, p)
	for _, h2 := range []bool{false, true} {
		c := tlsClient(t, a, "one.example", h2)
		for host, want := range map[string]int{"one.example": 200, "three.example": 200, "two.example": 421, "four.example": 200, "TWO.example:443": 421} {
			if resp, body, err := ask(t, c, at["edge"], host); err != nil || resp.StatusCode != want {
				t.Errorf("%s on a connection for one.example (h2 %v): %v, %q, %v, want %d", host, h2, resp, body, err, want)
			}
		}
	}
	log.until(t, "misdirected_request", "421")
}

// TestCertificateIsReplaced: connections outlive their certificate, new ones have the new one, and a connection whose client was
// let in by weaker rules serves nothing any more.
func TestCertificateIsReplaced(t *testing.T) {
	a := newAuthority(t)
	first, _ := a.secret(t, "n/web", "web.example", "first")
	second, clientCert := a.secret(t, "n/web", "web.example", "second")
	p := edgePlan([]plan.ServerName{ends("n/web", "web", "web.example")}, first)
	goes(p, "web", named(t, "web"))
	px, at := start(t, live.Options{}, p)
	c := tlsClient(t, a, "web.example", true)
	ask1 := func(c *http.Client, cert string, status int) {
		t.Helper()
		resp, _, err := ask(t, c, at["edge"], "web.example")
		if err != nil || resp.StatusCode != status || resp.TLS.PeerCertificates[0].DNSNames[1] != cert {
			t.Errorf("%v, %v; want %d with the %s certificate", resp, err, status, cert)
		}
	}
	ask1(c, "first", 200)
	next := *p
	next.Secrets = []plan.Secret{second}
	if err := px.Apply(&next); err != nil {
		t.Fatal(err)
	}
	ask1(c, "first", 200) // the same connection
	ask1(tlsClient(t, a, "web.example", true), "second", 200)

	ca := plan.Secret{Name: "n/ca", Authorities: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})}
	strict := next
	strict.Secrets = []plan.Secret{ca, second}
	strict.Listeners = []plan.Listener{p.Listeners[0]}
	sn := ends("n/web", "web", "web.example")
	sn.TLS = &plan.ServerTLS{Mode: plan.ServeMutual, Secrets: []string{"n/web"}, Authorities: "n/ca"}
	strict.Listeners[0].ServerNames = []plan.ServerName{sn}
	if err := px.Apply(&strict); err != nil {
		t.Fatal(err)
	}
	ask1(c, "first", 421)
	if resp, _, err := ask(t, tlsClient(t, a, "web.example", true), at["edge"], "web.example"); err == nil {
		t.Errorf("without a client certificate: %v", resp)
	}
	ask1(tlsClient(t, a, "web.example", true, clientCert), "second", 200)
}

// TestMissingSecretClosesItsNameOnly, says so, and shows no key.
func TestMissingSecretClosesItsNameOnly(t *testing.T) {
	a := newAuthority(t)
	one, _ := a.secret(t, "n/one", "one.example")
	broken := plan.Secret{Name: "n/broken", Certificate: one.Certificate, Key: bytes.ReplaceAll(one.Key, []byte("PRIVATE"), []byte("SECRET"))}
	p := edgePlan([]plan.ServerName{ends("n/one", "one", "one.example"), ends("n/two", "one", "two.example"), ends("n/broken", "one", "three.example")}, one, broken)
	p.Listeners[0].ServerNames[1].Origin = ident.Origin{Kind: "Gateway", Namespace: "n", Name: "g", Rule: "servers[1]"}
	goes(p, "one", named(t, "one"))
	outside := cluster("outside")
	outside.Originate = &plan.ClientTLS{Secret: "n/client"}
	p.Clusters = append(p.Clusters, outside)
	var said syncedBuffer
	log := newLogged(t)
	px, at := start(t, live.Options{Recorder: log.rec, Log: slog.New(slog.NewTextHandler(&said, nil))}, p)
	if _, body, err := ask(t, tlsClient(t, a, "one.example", true), at["edge"], "one.example"); err != nil || body != "one" {
		t.Errorf("the neighbour: %q, %v", body, err)
	}
	for _, sni := range []string{"two.example", "three.example"} {
		if _, err := tls.Dial("tcp", at["edge"], &tls.Config{ServerName: sni, InsecureSkipVerify: true}); err == nil || !strings.Contains(err.Error(), "internal error") {
			t.Errorf("%s: %v", sni, err)
		}
	}
	log.until(t, "tls_not_usable", "two.example", "servers[1]")
	faults := px.Status().Faults
	if len(faults) != 3 || !faults[0].Closed || faults[0].Piece != "edge" || !strings.Contains(faults[0].Reason, "n/two is missing") ||
		!strings.Contains(faults[1].Reason, "n/broken") || faults[2].Kind != "cluster" || !strings.Contains(faults[2].Reason, "n/client is missing") {
		t.Errorf("faults %+v", faults)
	}
	status, err := json.Marshal(px.Status())
	if err != nil {
		t.Fatal(err)
	}
	if err := px.Apply(p); err != nil { // the same again is not told again
		t.Fatal(err)
	}
	if n := strings.Count(said.String(), "n/two is missing"); n != 1 {
		t.Errorf("told %d times:\n%s", n, said.String())
	}
	block, _ := pem.Decode(one.Key)
	for _, all := range []string{said.String(), string(status)} {
		if strings.Contains(all, base64.StdEncoding.EncodeToString(block.Bytes)[:40]) || strings.Contains(all, "BEGIN") {
			t.Errorf("a key is shown: %s", all)
		}
	}
	// It comes, and its name opens.
	two, _ := a.secret(t, "n/two", "two.example")
	next := *p
	next.Secrets = []plan.Secret{broken, one, two}
	if err := px.Apply(&next); err != nil {
		t.Fatal(err)
	}
	if _, body, err := ask(t, tlsClient(t, a, "two.example", true), at["edge"], "two.example"); err != nil || body != "one" {
		t.Errorf("after the secret came: %q, %v", body, err)
	}
}

type syncedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncedBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncedBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

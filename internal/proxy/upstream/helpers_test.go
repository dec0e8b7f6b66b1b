package upstream

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// newSet returns a Set that is closed, with nothing left of it, when the test ends.
func newSet(t testing.TB, o Options) *Set {
	t.Helper()
	s := New(o)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("Close: %v: connections were left in use", err)
		}
		for _, c := range s.Snapshot().Clusters {
			if c.Requests != 0 || c.Pending != 0 || c.Retries != 0 || c.Connections != 0 {
				t.Errorf("left after Close: %+v", c)
			}
		}
	})
	return s
}

// checkGoroutines fails the test when goroutines of ours are left.
func checkGoroutines(t testing.TB) {
	t.Helper()
	var left []string
	for range 6000 {
		left = nil
		buf := make([]byte, 1<<20)
		for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "created by github.com/malha-mesh/malha/internal/proxy/") && !strings.Contains(g, "_test.go") {
				left = append(left, g)
			}
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines are left:\n%s", len(left), strings.Join(left, "\n\n"))
}

// put is Update with clusters and endpoints as plain values.
func (s *Set) put(clusters []plan.Cluster, endpoints []plan.Endpoints) {
	p, err := packed.Of(&plan.Plan{Clusters: clusters, Endpoints: endpoints})
	if err != nil {
		panic(err)
	}
	s.Update(p.Clusters, p.Endpoints)
}

// only makes a Set of one cluster.
func only(s *Set, p plan.Cluster, addresses ...string) *Cluster {
	if p.Name == "" {
		p.Name = "c"
	}
	var eps []plan.Endpoint
	for _, a := range addresses {
		eps = append(eps, plan.Endpoint{Address: a})
	}
	s.put([]plan.Cluster{p}, []plan.Endpoints{{Cluster: p.Name, Endpoints: eps}})
	return s.Cluster(p.Name)
}

// roundTrip sends a GET and reads the whole response.
func roundTrip(l *Lease, path string) (int, string, error) {
	r := &message.Request{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("test"), Host: []byte("test"),
		Path: []byte(path), Major: 1, Minor: 1}
	if err := l.WriteHead(r, true); err != nil {
		return 0, "", fmt.Errorf("WriteHead: %w", err)
	}
	if err := l.Flush(); err != nil {
		return 0, "", fmt.Errorf("Flush: %w", err)
	}
	var head message.Response
	for head.Status < 200 {
		if err := l.ReadHead(&head); err != nil {
			return 0, "", fmt.Errorf("ReadHead: %w", err)
		}
	}
	var body strings.Builder
	if head.HasBody && head.Length != 0 {
		for {
			p, err := l.ReadBody()
			body.Write(p)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return head.Status, body.String(), fmt.Errorf("ReadBody: %w", err)
			}
		}
	}
	return head.Status, body.String(), nil
}

// get does one whole attempt.
func get(c *Cluster, a Attempt, path string) (status int, body string, reused bool, err error) {
	l, err := c.Acquire(&a)
	if err != nil {
		return 0, "", false, err
	}
	reused = l.Reused
	status, body, err = roundTrip(l, path)
	l.Done(Outcome{Status: status, Err: err})
	return status, body, reused, err
}

func mustGet(t testing.TB, c *Cluster, a Attempt, path string) (body string, reused bool) {
	t.Helper()
	status, body, reused, err := get(c, a, path)
	if err != nil || status != 200 {
		t.Fatalf("GET %s: status %d, %v", path, status, err)
	}
	return body, reused
}

func acquire(t testing.TB, c *Cluster, a Attempt) *Lease {
	t.Helper()
	l, err := c.Acquire(&a)
	if err != nil {
		t.Fatalf("Acquire: %v", err)
	}
	return l
}

// finish completes the exchange of a lease.
func finish(t testing.TB, l *Lease) {
	t.Helper()
	status, _, err := roundTrip(l, "/")
	l.Done(Outcome{Status: status, Err: err})
	if err != nil {
		t.Fatalf("finishing a lease: %v", err)
	}
}

// app is an application that counts its connections.
type app struct {
	*httptest.Server
	mu    sync.Mutex
	conns map[net.Conn]http.ConnState
	total int
}

func newApp(t testing.TB, h http.Handler) *app {
	return newAppTLS(t, h, nil)
}

func newAppTLS(t testing.TB, h http.Handler, cfg *tls.Config) *app {
	if h == nil {
		h = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "hello") })
	}
	a := &app{Server: httptest.NewUnstartedServer(h), conns: make(map[net.Conn]http.ConnState)}
	a.Config.Protocols = new(http.Protocols)
	a.Config.Protocols.SetHTTP1(true)
	a.Config.Protocols.SetUnencryptedHTTP2(true)
	a.Config.ErrorLog = log.New(io.Discard, "", 0)
	a.Config.ConnState = func(nc net.Conn, s http.ConnState) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if s == http.StateNew {
			a.total++
		}
		if a.conns[nc] = s; s == http.StateClosed || s == http.StateHijacked {
			delete(a.conns, nc)
		}
	}
	if cfg != nil {
		a.Listener = tls.NewListener(a.Listener, cfg)
	}
	a.Start()
	t.Cleanup(a.Close)
	return a
}

func (a *app) addr() string { return a.Listener.Addr().String() }

// opened returns how many connections there ever were.
func (a *app) opened() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.total
}

// all returns the connections that are not closed yet.
func (a *app) all() []net.Conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []net.Conn
	for nc := range a.conns {
		all = append(all, nc)
	}
	return all
}

// closeIdle closes idle connections as a server does whose keep-alive time is up.
func (a *app) closeIdle() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for nc, s := range a.conns {
		if s == http.StateIdle {
			_ = nc.Close()
		}
	}
}

// eventually waits for something that another goroutine is about to do.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for range 12_000 {
		if f() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s: it did not happen", what)
}

// pipeNet is a network of net.Pipe for tests in fake time: every address has a server that speaks HTTP/1.
type pipeNet struct {
	mu    sync.Mutex
	serve map[string]func(nc net.Conn, r *bufio.Reader, n int) bool // answers the nth request of a connection; false closes
	dials int
	wg    sync.WaitGroup
}

func newPipeNet() *pipeNet {
	return &pipeNet{serve: make(map[string]func(net.Conn, *bufio.Reader, int) bool)}
}

// status answers every request with a status.
func status(code func() int) func(net.Conn, *bufio.Reader, int) bool {
	return func(nc net.Conn, r *bufio.Reader, _ int) bool {
		if _, err := http.ReadRequest(r); err != nil {
			return false
		}
		_, err := fmt.Fprintf(nc, "HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n", code())
		return err == nil
	}
}

func ok200() int { return 200 }

func (p *pipeNet) dial(ctx context.Context, addr string) (net.Conn, error) {
	p.mu.Lock()
	serve := p.serve[addr]
	p.dials++
	p.mu.Unlock()
	if serve == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ours, theirs := net.Pipe()
	p.wg.Go(func() {
		defer func() { _ = theirs.Close() }()
		r := bufio.NewReader(theirs)
		for n := 0; ; n++ {
			if _, err := r.Peek(1); err != nil || !serve(theirs, r, n) {
				return
			}
		}
	})
	return ours, nil
}

func (p *pipeNet) dialled() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dials
}

// authority is a CA for tests.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{key: key, cert: cert, pool: pool}
}

func (a *authority) issue(t testing.TB, id ident.Identity) *trust.Credentials {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id.URI())
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs: []*url.URL{uri}, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := trust.New(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, a.pool, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func identity(account string) ident.Identity {
	return ident.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: account}
}

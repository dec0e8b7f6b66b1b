package conformance

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

var (
	program = flag.String("proxy", "", "the malha-proxy to test; built from this tree when empty")
	results = flag.String("results", "", "file whose tables are to be written: docs/conformance.md")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if *program == "" {
		dir, err := os.MkdirTemp("", "malha-conformance")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		*program = filepath.Join(dir, "malha-proxy")
		build := exec.Command("go", "build", "-o", *program, "./cmd/malha-proxy")
		build.Dir = filepath.Join("..", "..")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building malha-proxy: %v\n%s", err, out)
			return 1
		}
	}
	code := m.Run()
	if code == 0 && *results != "" {
		if err := writeResults(*results); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// startProxy runs malha-proxy from a plan until the test ends, waits for its listeners, and returns its process id.
func startProxy(t *testing.T, p *plan.Plan, args ...string) int {
	t.Helper()
	file := filepath.Join(t.TempDir(), "plan.json")
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, *program, append([]string{"--plan", file, "--admin", "", "--drain-timeout", "1s"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("malha-proxy said:\n%s", log.Bytes())
		}
	})
	for _, l := range p.Listeners {
		waitFor(t, l.Bind)
	}
	return cmd.Process.Pid
}

func waitFor(t *testing.T, addr string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(25 * time.Millisecond) {
		if nc, err := net.Dial("tcp", addr); err == nil {
			_ = nc.Close()
			return
		}
	}
	t.Fatalf("nothing listens on %s", addr)
}

// newPlan is a plan of one listener whose requests all go to one cluster.
func newPlan(d plan.Direction, proto ident.Protocol, endpoint string, self ident.Identity) *plan.Plan {
	role := plan.Sidecar
	if d == plan.Edge {
		role = plan.Gateway
	}
	p := &plan.Plan{
		Node:      plan.Node{Name: ident.Name{Namespace: "default", Name: "proxy"}, Role: role, Identity: self},
		Listeners: []plan.Listener{{Name: "l", Bind: "", Direction: d, Protocol: ident.HTTP, Routes: "t"}},
		Routes: []plan.RouteTable{{Name: "t", Hosts: []plan.VirtualHost{{Name: "all", Domains: []string{"*"},
			Routes: []plan.Route{{Name: "default", Forward: []plan.Destination{{Cluster: "c"}}}}}}}},
		Clusters:  []plan.Cluster{{Name: "c", Host: "c", Port: 80, Protocol: proto}},
		Endpoints: []plan.Endpoints{{Cluster: "c", Endpoints: []plan.Endpoint{{Address: endpoint}}}},
	}
	if d == plan.Inbound {
		p.Clusters[0].TLS = plan.TLSOff
		p.Listeners[0].Port = 8080
		p.Listeners[0].TLS = plan.TLSPermissive
	}
	return p
}

// endTLS makes the listener one that ends TLS for everybody, with the certificate in a folder.
func endTLS(t *testing.T, p *plan.Plan, dir string) {
	t.Helper()
	s := plan.Secret{Name: "default/tls"}
	for name, to := range map[string]*[]byte{"cert.pem": &s.Certificate, "key.pem": &s.Key} {
		var err error
		if *to, err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	p.Secrets = []plan.Secret{s}
	l := &p.Listeners[0]
	l.ServerNames = []plan.ServerName{{Names: []string{"*"}, Protocol: ident.HTTP, Routes: l.Routes, TLS: &plan.ServerTLS{Mode: plan.ServeSimple, Secrets: []string{s.Name}}}}
	l.Routes = ""
}

// startApp is an application that speaks HTTP/1.1 and HTTP/2 without TLS.
func startApp(t *testing.T, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	var done sync.WaitGroup
	done.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { _ = s.Close(); done.Wait() })
	return l.Addr().String()
}

// authority issues workload certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
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
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert: cert, key: key}
}

// issue returns a folder for --identity.
func (a *authority) issue(t *testing.T, id ident.Identity) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id.URI())
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, URIs: []*url.URL{uri}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]*pem.Block{
		"cert.pem":  {Type: "CERTIFICATE", Bytes: der},
		"key.pem":   {Type: "PRIVATE KEY", Bytes: private},
		"roots.pem": {Type: "CERTIFICATE", Bytes: a.cert.Raw},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

var (
	clientIdentity = ident.Identity{TrustDomain: ident.DefaultTrustDomain, Namespace: "default", ServiceAccount: "client"}
	serverIdentity = ident.Identity{TrustDomain: ident.DefaultTrustDomain, Namespace: "default", ServiceAccount: "server"}
)

// startRelay adds mesh TLS for a client that has none: h2spec cannot present a workload's certificate with the mesh's
// application protocol. It passes bytes and ends on as they are.
func startRelay(t *testing.T, identity, to string) string {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(identity, "cert.pem"), filepath.Join(identity, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	// The peer's certificate is not what is tested here.
	config := &tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, NextProtos: []string{"istio-h2"}, MinVersion: tls.VersionTLS13}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer func() { _ = nc.Close() }()
				up, err := tls.Dial("tcp", to, config)
				if err != nil {
					return
				}
				defer func() { _ = up.Close() }()
				var back sync.WaitGroup
				back.Go(func() {
					_, _ = io.Copy(nc, up)
					_ = nc.Close()
				})
				_, _ = io.Copy(up, nc)
				_ = up.Close()
				back.Wait()
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
	return l.Addr().String()
}

// tables collects what docs/conformance.md shows.
var tables strings.Builder

// writeResults puts the tables between the marks in a file.
func writeResults(file string) error {
	const begin, end = "<!-- results -->\n", "<!-- /results -->"
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(b), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no marks for the results", file)
	}
	return os.WriteFile(file, []byte(head+begin+"\n"+tables.String()+"\n"+end+tail), 0o644)
}

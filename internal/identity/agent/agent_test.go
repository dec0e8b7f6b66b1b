package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/ca"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/wire"
)

var node = ident.Name{Namespace: "default", Name: "a"}

func workload() ca.Workload {
	return ca.Workload{Node: node, Identity: ident.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "sa"}}
}

// signer is the control plane's side as the agent sees it: one request for each connection, over net.Pipe.
type signer struct {
	t  *testing.T
	ca *ca.Authority
	wg sync.WaitGroup

	mu       sync.Mutex
	down     bool
	issued   []time.Time
	workload ca.Workload
}

func (s *signer) dial(context.Context) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, errors.New("connection refused")
	}
	client, server := net.Pipe()
	s.wg.Go(func() { s.answer(server) })
	return client, nil
}

func (s *signer) answer(nc net.Conn) {
	defer nc.Close()
	cp := wire.ControlPlane("cluster.local")
	cfg := trust.ServerConfig(s.ca.Source(ca.Workload{Identity: cp}), []string{wire.ALPN})
	cfg.ClientAuth, cfg.VerifyConnection = tls.RequestClientCert, nil
	conn := tls.Server(nc, cfg)
	mt, body, err := wire.NewReader(conn).Next(wire.MaxGreeting)
	var req wire.SignRequest
	if err == nil {
		err = wire.Decode(mt, wire.TypeSignRequest, body, &req)
	}
	if err != nil {
		return
	}
	s.mu.Lock()
	w := s.workload
	s.issued = append(s.issued, time.Now())
	s.mu.Unlock()
	chain, err := s.ca.Sign(req.CSR, w)
	if err != nil {
		s.t.Error(err)
		return
	}
	frame, err := wire.AppendFrame(nil, wire.TypeSignResponse, &wire.SignResponse{Chain: chain, Roots: s.ca.Roots()})
	if err != nil {
		s.t.Error(err)
		return
	}
	_, _ = conn.Write(frame)
}

func (s *signer) set(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

func (s *signer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.issued)
}

// run runs f in a bubble of fake time, with an agent that renews from a signer.
func run(t *testing.T, ttl time.Duration, f func(t *testing.T, s *signer, a *Agent)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		authority, err := ca.Open(ca.Options{TTL: ttl})
		if err != nil {
			t.Fatal(err)
		}
		roots, token := filepath.Join(dir, "roots.pem"), filepath.Join(dir, "token")
		if err := errors.Join(os.WriteFile(roots, authority.RootsPEM(), 0o600), os.WriteFile(token, []byte("x\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
		s := &signer{t: t, ca: authority, workload: workload()}
		a := New(Options{Node: node, RootsFile: roots, TokenFile: token, StateDir: dir, Dial: s.dial})
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := a.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v", err)
			}
		})
		f(t, s, a)
		cancel()
		wg.Wait()
		s.wg.Wait()
	})
}

func TestRenewsAtHalfOfTheLifetime(t *testing.T) {
	run(t, 24*time.Hour, func(t *testing.T, s *signer, a *Agent) {
		<-a.Ready()
		first := a.Current()
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		if a.Current() != first {
			t.Error("renewed before 45 % of the lifetime")
		}
		time.Sleep(4 * time.Hour)
		synctest.Wait()
		if a.Current() == first {
			t.Error("not renewed after 55 % of the lifetime")
		}
		if a.Current().Certificate.Leaf.PublicKey.(*ecdsa.PublicKey).Equal(first.Certificate.Leaf.PublicKey) {
			t.Error("the old key was used again")
		}
		time.Sleep(30 * 24 * time.Hour)
		synctest.Wait()
		if n := s.count(); n < 50 || n > 70 {
			t.Errorf("%d certificates in 30 days, want about 60", n)
		}
		if time.Until(a.Current().NotAfter) < 8*time.Hour {
			t.Errorf("only %s left", time.Until(a.Current().NotAfter))
		}
	})
}

// TestSurvivesAnOutage: while nobody answers, the certificate stays in force, attempts go on, and the first answer is enough.
func TestSurvivesAnOutage(t *testing.T) {
	run(t, time.Hour, func(t *testing.T, s *signer, a *Agent) {
		<-a.Ready()
		first := a.Current()
		s.set(true)
		time.Sleep(50 * time.Minute)
		synctest.Wait()
		if a.Current() != first {
			t.Error("the certificate was taken away")
		}
		s.set(false)
		time.Sleep(backoffMax)
		synctest.Wait()
		if a.Current() == first {
			t.Error("not renewed within one backoff of the control plane's return")
		}
	})
}

// TestFirstCertificateIsPrompt: a workload waits for its first certificate, so a control plane that comes back is asked soon.
func TestFirstCertificateIsPrompt(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		authority, err := ca.Open(ca.Options{})
		if err != nil {
			t.Fatal(err)
		}
		roots, token := filepath.Join(dir, "roots.pem"), filepath.Join(dir, "token")
		if err := errors.Join(os.WriteFile(roots, authority.RootsPEM(), 0o600), os.WriteFile(token, []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
		s := &signer{t: t, ca: authority, workload: workload(), down: true}
		a := New(Options{Node: node, RootsFile: roots, TokenFile: token, Dial: s.dial})
		ctx, cancel := context.WithCancel(t.Context())
		defer s.wg.Wait()
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		running.Go(func() { _ = a.Run(ctx) })
		time.Sleep(10 * time.Minute)
		s.set(false)
		time.Sleep(unreachedMax)
		synctest.Wait()
		if a.Current() == nil {
			t.Errorf("no certificate %s after the control plane came", unreachedMax)
		}
	})
}

func TestRenewAsksAtOnce(t *testing.T) {
	run(t, 24*time.Hour, func(t *testing.T, s *signer, a *Agent) {
		<-a.Ready()
		first := a.Current()
		a.Renew()
		synctest.Wait()
		if a.Current() == first {
			t.Error("not renewed")
		}
	})
}

func TestCertificateOfAnotherNodeIsRefused(t *testing.T) {
	dir := t.TempDir()
	authority, err := ca.Open(ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	a := New(Options{Node: node, StateDir: dir})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(w ca.Workload, key *ecdsa.PrivateKey) *wire.SignResponse {
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			t.Fatal(err)
		}
		chain, err := authority.Sign(csr, w)
		if err != nil {
			t.Fatal(err)
		}
		return &wire.SignResponse{Chain: chain, Roots: authority.Roots()}
	}
	if _, err := a.accept(sign(workload(), key), key); err != nil {
		t.Errorf("a good answer: %v", err)
	}
	other := workload()
	other.Node.Name = "b"
	if _, err := a.accept(sign(other, key), key); err == nil || !strings.Contains(err.Error(), "its own token") {
		t.Errorf("another node's certificate: %v", err)
	}
	key2, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.accept(sign(workload(), key2), key); err == nil {
		t.Error("a certificate for another key was accepted")
	}
	noRoots := sign(workload(), key)
	noRoots.Roots = nil
	if _, err := a.accept(noRoots, key); err == nil {
		t.Error("a certificate without roots was accepted")
	}

	// What is kept comes back, unless others could have read it.
	resp := sign(workload(), key)
	c, err := a.accept(resp, key)
	if err != nil {
		t.Fatal(err)
	}
	a.keep(c, key, resp.Roots)
	if got := a.load(); got == nil || got.Identity != c.Identity || got.Node != node {
		t.Errorf("kept %v, got back %v", c, got)
	}
	if got := New(Options{Node: other.Node, StateDir: dir}).load(); got != nil {
		t.Error("another proxy took over the identity")
	}
	if err := os.Chmod(filepath.Join(dir, stateFile), 0o640); err != nil {
		t.Fatal(err)
	}
	if got := a.load(); got != nil {
		t.Error("a key that others can read was used")
	}
}

func TestReadRoots(t *testing.T) {
	path := filepath.Join(t.TempDir(), "roots.pem")
	for what, content := range map[string]string{"empty": "", "garbage": "hello", "broken": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadRoots(path); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

// TestBackoffOfTheExpired: a certificate that ran out is no reason to ask ten times a second; everybody's may have, with the root's.
func TestBackoffOfTheExpired(t *testing.T) {
	now := time.Now()
	refused := errors.New("refused")
	for _, c := range []*trust.Credentials{nil, {NotAfter: now.Add(-time.Second)}} {
		if d := backoff(20, refused, c, now); d < firstMax/2 || d > firstMax {
			t.Errorf("%v: asks again in %s, want up to %s", c, d, firstMax)
		}
	}
	if d := backoff(20, refused, &trust.Credentials{NotAfter: now.Add(8 * time.Second)}, now); d > time.Second {
		t.Errorf("waits %s with a certificate that ends in 8s", d)
	}
}

package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
)

func workload() Workload {
	return Workload{
		Node:     ident.Name{Namespace: "default", Name: "reviews-v2"},
		Identity: ident.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "reviews"},
		Labels:   plan.WorkloadLabels{Workload: "reviews-v2", Namespace: "default", App: "reviews", Version: "v2"},
	}
}

func request(t *testing.T, template *x509.CertificateRequest) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func open(t *testing.T, o Options) *Authority {
	t.Helper()
	a, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestSignIgnoresWhatTheRequestClaims(t *testing.T) {
	a := open(t, Options{})
	csr := request(t, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "admin"}, DNSNames: []string{"evil.example"}, EmailAddresses: []string{"root@evil.example"},
	})
	chain, err := a.Sign(csr, workload())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(leaf.DNSNames)+len(leaf.EmailAddresses)+len(leaf.IPAddresses) > 0 || leaf.Subject.String() != "" || leaf.IsCA {
		t.Errorf("names %v %v, subject %q, CA %v: nothing of the request may count", leaf.DNSNames, leaf.EmailAddresses, leaf.Subject, leaf.IsCA)
	}
	for _, ext := range leaf.Extensions {
		// RFC 5280 section 4.2.1.6: critical, for the subject is empty. Ours is not: others must be able to ignore it.
		if ext.Id.Equal(oidSubjectAltName) != ext.Critical && (ext.Id.Equal(oidSubjectAltName) || ext.Id.Equal(trust.OIDWorkload)) {
			t.Errorf("extension %s: critical is %v", ext.Id, ext.Critical)
		}
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		id, err := trust.Verify([]*x509.Certificate{leaf}, a.Pool(), usage, time.Time{})
		if err != nil || id != workload().Identity {
			t.Errorf("verified as %s, %v", id.URI(), err)
		}
	}
	node, labels := trust.WorkloadOf(leaf, workload().Identity)
	if node != workload().Node || labels != workload().Labels {
		t.Errorf("carries %s %+v", node, labels)
	}
}

func TestSignRefuses(t *testing.T) {
	a := open(t, Options{})
	good := request(t, &x509.CertificateRequest{})
	flipped := append([]byte(nil), good...)
	flipped[len(flipped)-1] ^= 1
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	large, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, p384)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, edKey)
	if err != nil {
		t.Fatal(err)
	}
	with := func(f func(*Workload)) Workload {
		w := workload()
		f(&w)
		return w
	}
	for what, tc := range map[string]struct {
		csr []byte
		w   Workload
	}{
		"no request":           {nil, workload()},
		"signature broken":     {flipped, workload()},
		"P-384":                {large, workload()},
		"Ed25519":              {ed, workload()},
		"nobody":               {good, Workload{}},
		"foreign trust domain": {good, with(func(w *Workload) { w.Identity.TrustDomain = "evil.example" })},
		"slash in a name":      {good, with(func(w *Workload) { w.Identity.ServiceAccount = "a/../b" })},
		"node elsewhere":       {good, with(func(w *Workload) { w.Node.Namespace = "other" })},
	} {
		if _, err := a.Sign(tc.csr, tc.w); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: got %v, want ErrRequest", what, err)
		}
	}
}

func TestLifetimes(t *testing.T) {
	now := time.Now()
	a := open(t, Options{TTL: 2 * time.Second, Now: func() time.Time { return now }})
	dates := func() (from, to time.Time) {
		chain, err := a.Sign(request(t, &x509.CertificateRequest{}), workload())
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(chain[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.NotBefore, leaf.NotAfter
	}
	from, to := dates()
	if from.Before(a.signer.Load().cert.NotBefore) || to.Sub(now) < 2*time.Second || to.Sub(now) > 3*time.Second {
		t.Errorf("valid from %s (root %s) for %s", from, a.signer.Load().cert.NotBefore, to.Sub(now))
	}
	now = now.Add(time.Hour)
	if from, _ := dates(); now.Sub(from) < backdate || now.Sub(from) > backdate+time.Second {
		t.Errorf("backdated by %s, want %s", now.Sub(from), backdate)
	}
	now = a.signer.Load().cert.NotAfter.Add(-time.Second)
	if _, to := dates(); to.After(a.signer.Load().cert.NotAfter) {
		t.Errorf("the leaf outlives its root by %s", to.Sub(a.signer.Load().cert.NotAfter))
	}
	now = a.signer.Load().cert.NotAfter.Add(time.Second)
	if _, err := a.Sign(request(t, &x509.CertificateRequest{}), workload()); err == nil {
		t.Error("an expired root still signs")
	}
	if _, err := Open(Options{TTL: time.Millisecond}); err == nil {
		t.Error("a lifetime of a millisecond was accepted")
	}
	if _, err := Open(Options{TrustDomain: "Not Valid"}); err == nil {
		t.Error("a trust domain that no SPIFFE id can have was accepted")
	}
}

func TestSourceRenewsItself(t *testing.T) {
	now := time.Now()
	a := open(t, Options{TTL: time.Hour, Now: func() time.Time { return now }})
	src := a.Source(workload())
	first := src.Current()
	if first == nil || src.Current() != first {
		t.Fatal("want the same credentials while they are young")
	}
	now = now.Add(31 * time.Minute)
	if second := src.Current(); second == first || !second.NotAfter.After(first.NotAfter) {
		t.Error("not renewed after half of its life")
	}
}

func TestRootIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	first := open(t, Options{Dir: dir})
	second := open(t, Options{Dir: dir})
	if diff := cmp.Diff(first.Roots(), second.Roots()); diff != "" {
		t.Errorf("another root after a restart:\n%s", diff)
	}
	key := filepath.Join(dir, keyFile)
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info, err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".tmp-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if _, err := Open(Options{Dir: dir, TrustDomain: "other.example"}); err == nil {
		t.Error("a root of another trust domain was accepted")
	}
	if _, err := Open(Options{Dir: dir, Now: func() time.Time { return time.Now().Add(rootTTL + time.Hour) }}); err == nil {
		t.Error("an expired root was accepted")
	}
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others can read: %v", err)
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir}); err == nil {
		t.Error("a root without its key was replaced silently")
	}
	other := filepath.Join(t.TempDir(), "other")
	open(t, Options{Dir: other})
	b, err := os.ReadFile(filepath.Join(other, keyFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "not the certificate's") {
		t.Errorf("somebody else's key: %v", err)
	}
}

func TestTokens(t *testing.T) {
	now := time.Now()
	tokens, err := NewTokens(func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	token, err := tokens.Issue(workload(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	got, err := tokens.Authenticate(context.Background(), token)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(workload(), got); diff != "" {
		t.Errorf("-issued +authenticated:\n%s", diff)
	}
	if _, err := tokens.Issue(Workload{}, time.Minute); err == nil {
		t.Error("a token for nobody was issued")
	}

	other, err := NewTokens(nil)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	sign := func(header, payload string) string {
		signed := b64([]byte(header)) + "." + b64([]byte(payload))
		return signed + "." + b64(tokens.mac(signed))
	}
	parts := strings.Split(token, ".")
	later := now.Add(time.Hour).Unix()
	for what, bad := range map[string]string{
		"empty":            "",
		"no parts":         "abc",
		"no signature":     parts[0] + "." + parts[1] + ".",
		"payload swapped":  parts[0] + "." + b64([]byte(`{"aud":"malha-ca"}`)) + "." + parts[2],
		"padding":          token + "=",
		"algorithm none":   b64([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".",
		"another header":   sign(`{"alg":"none"}`, fmt.Sprintf(`{"aud":"malha-ca","sub":"spiffe://cluster.local/ns/a/sa/b","exp":%d}`, later)),
		"another audience": sign(tokenHeader, fmt.Sprintf(`{"aud":"istio-ca","sub":"spiffe://cluster.local/ns/a/sa/b","exp":%d}`, later)),
		"no expiry":        sign(tokenHeader, `{"aud":"malha-ca","sub":"spiffe://cluster.local/ns/a/sa/b"}`),
		"no subject":       sign(tokenHeader, fmt.Sprintf(`{"aud":"malha-ca","exp":%d}`, later)),
		"too long":         strings.Repeat("a", maxToken+1),
	} {
		if w, err := tokens.Authenticate(context.Background(), bad); !errors.Is(err, ErrToken) || w != (Workload{}) {
			t.Errorf("%s: got %+v, %v", what, w, err)
		}
	}
	if _, err := other.Authenticate(context.Background(), token); !errors.Is(err, ErrToken) {
		t.Errorf("another control plane's token: %v", err)
	}
	now = now.Add(time.Minute)
	if _, err := tokens.Authenticate(context.Background(), token); !errors.Is(err, ErrToken) {
		t.Errorf("an expired token: %v", err)
	}
	if s := fmt.Sprintf("%v %+v %#v", tokens, tokens, tokens); s != "tokens tokens tokens" {
		t.Errorf("prints its key: %s", s)
	}
}

func FuzzTokens(f *testing.F) {
	tokens, err := NewTokens(nil)
	if err != nil {
		f.Fatal(err)
	}
	token, err := tokens.Issue(workload(), time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token + "x")
	f.Add(strings.Replace(token, ".", "..", 1))
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := tokens.Authenticate(context.Background(), s); err == nil && s != token {
			t.Errorf("accepted %q", s)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	a, err := Open(Options{})
	if err != nil {
		b.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := a.Sign(csr, workload()); err != nil {
			b.Fatal(err)
		}
	}
}

func TestDerive(t *testing.T) {
	dir := t.TempDir()
	derive := func(dir, purpose string) string {
		a, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		k, err := a.Derive(purpose)
		if err != nil || len(k) != 32 {
			t.Fatalf("%d bytes, %v", len(k), err)
		}
		return string(k)
	}
	one := derive(dir, "one")
	if derive(dir, "one") != one {
		t.Error("the same authority derives another key after a restart")
	}
	if derive(dir, "two") == one || derive("", "one") == one {
		t.Error("other purposes and other authorities derive the same key")
	}
}

package file_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/config/file"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// pair makes a self-signed certificate and its key.
func pair(t *testing.T, name string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
}

const gatewayManifest = `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: door}
spec:
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: ["*"]
    tls: {mode: MUTUAL, serverCertificate: certs/tls.crt, privateKey: certs/tls.key, caCertificates: ca.crt}
`

func TestSecretsInFiles(t *testing.T) {
	dir := t.TempDir()
	cert, key := pair(t, "a")
	write(t, filepath.Join(dir, "sub", "door.yaml"), gatewayManifest)
	write(t, filepath.Join(dir, "sub", "certs", "tls.crt"), cert)
	write(t, filepath.Join(dir, "sub", "certs", "tls.key"), key)
	write(t, filepath.Join(dir, "sub", "ca.crt"), cert)
	r := file.Read(dir)
	if len(r.Config.Secrets) != 2 {
		t.Fatalf("want two Secrets: %s", r.Diagnostics)
	}
	server := r.Config.Gateways[0].Servers[0]
	for _, s := range r.Config.Secrets {
		switch s.Secret.Name {
		case server.TLS.Secrets[0]:
			if string(s.Certificate) != cert || string(s.Key) != key || s.Authorities != nil {
				t.Error("the pair is not what the files hold")
			}
		case server.TLS.Authorities:
			if string(s.Authorities) != cert || s.Key != nil {
				t.Error("the authorities are not what the file holds")
			}
		default:
			t.Errorf("nobody asked for %s", s.Secret.Name)
		}
		if s.Meta.Origin.Kind != "Gateway" {
			t.Errorf("%s comes from %s", s.Secret.Name, s.Meta.Origin)
		}
	}
}

func TestSecretsInFilesThatCannotBeUsed(t *testing.T) {
	dir := t.TempDir()
	cert, _ := pair(t, "a")
	_, other := pair(t, "b")
	write(t, filepath.Join(dir, "door.yaml"), gatewayManifest)
	write(t, filepath.Join(dir, "certs", "tls.crt"), cert)
	write(t, filepath.Join(dir, "certs", "tls.key"), other)
	r := file.Read(dir)
	var got []string
	for _, d := range r.Diagnostics {
		if d.Code == manifest.CodeSecret {
			got = append(got, d.Message)
		}
		if strings.Contains(d.String(), "PRIVATE") || strings.Contains(d.String(), "BEGIN") {
			t.Errorf("a diagnostic quotes a file: %s", d)
		}
	}
	if text := strings.Join(got, "\n"); len(got) != 2 || !strings.Contains(text, "ca.crt: no such file") || !strings.Contains(text, "not that of the certificate") {
		t.Errorf("got %q", got)
	}
	if len(r.Config.Secrets) > 0 {
		t.Error("files that cannot be used became a Secret")
	}
}

// TestBadSecretsKeepTheLastGoodOnes breaks a certificate that is in force.
func TestBadSecretsKeepTheLastGoodOnes(t *testing.T) {
	dir := t.TempDir()
	cert, key := pair(t, "a")
	write(t, filepath.Join(dir, "door.yaml"), gatewayManifest)
	write(t, filepath.Join(dir, "certs", "tls.crt"), cert)
	write(t, filepath.Join(dir, "certs", "tls.key"), key)
	write(t, filepath.Join(dir, "ca.crt"), cert)
	s := file.New(file.Options{Dir: dir})
	if r := s.Load(); len(r.Diagnostics) > 0 || !holds(r.Config, cert) {
		t.Fatalf("at first: %s", codes(r))
	}
	write(t, filepath.Join(dir, "certs", "tls.crt"), "garbage")
	if err := os.Remove(filepath.Join(dir, "ca.crt")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it is not forgotten the second time
		r := s.Load()
		if !holds(r.Config, cert) {
			t.Error("the last good certificate does not serve any more")
		}
		if got, want := codes(r), "door.yaml MALHA0112, door.yaml MALHA0112, door.yaml MALHA0305, door.yaml MALHA0305"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// TestWatchFollowsSecrets rotates a certificate whose manifest does not change.
func TestWatchFollowsSecrets(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "door.yaml"), gatewayManifest)
	first, firstKey := pair(t, "a")
	next, nextKey := pair(t, "b")
	put := func(cert, key string) {
		write(t, filepath.Join(dir, "certs", "tls.crt"), cert)
		write(t, filepath.Join(dir, "certs", "tls.key"), key)
		write(t, filepath.Join(dir, "ca.crt"), cert)
	}
	w := watch(t, dir)
	until := func(cert string) {
		t.Helper()
		for limit := time.After(time.Minute); ; {
			select {
			case r := <-w.results:
				if len(r.Config.Secrets) == 2 && holds(r.Config, cert) {
					return
				}
			case <-limit:
				t.Fatal("the certificate did not arrive")
			}
		}
	}
	put(first, firstKey) // were not there when the watch began
	until(first)
	put(next, nextKey)
	until(next)
}

func holds(cfg *model.Config, cert string) bool {
	n := 0
	for _, s := range cfg.Secrets {
		for _, b := range [][]byte{s.Certificate, s.Authorities} {
			if string(b) == cert {
				n++
			}
		}
	}
	return n == 2
}

func TestReadSecretsOfClients(t *testing.T) {
	dir := t.TempDir()
	cert, key := pair(t, "a")
	write(t, filepath.Join(dir, "c"), cert)
	write(t, filepath.Join(dir, "k"), key)
	name := manifest.FileSecretPrefix + filepath.Join(dir, "c") + "," + filepath.Join(dir, "k")
	roots := manifest.FileSecretPrefix + filepath.Join(dir, "c")
	tls := &plan.ClientTLS{Secret: name, Authorities: roots}
	cfg := &model.Config{
		Traffic: []model.DestinationPolicy{{
			Traffic: &model.TrafficPolicy{Originate: tls, Ports: []model.PortPolicy{{Traffic: model.TrafficPolicy{Originate: tls}}}},
			Subsets: []model.Subset{{Traffic: &model.TrafficPolicy{Originate: &plan.ClientTLS{Authorities: "default/other"}}}},
		}},
		Sidecars: []model.SidecarPolicy{{Ingress: []model.IngressPort{{TLS: &plan.ServerTLS{Secrets: []string{name}}}}}},
	}
	if ds := file.ReadSecrets(cfg, nil); len(ds) > 0 || len(cfg.Secrets) != 2 {
		t.Errorf("%d Secrets, %v", len(cfg.Secrets), ds)
	}
}

// TestWatchFollowsOthers tells of a file that only an applied object names.
func TestWatchFollowsOthers(t *testing.T) {
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "other.pem")
	write(t, filepath.Join(dir, "a.yaml"), service("a"))
	write(t, outside, "one")
	results := make(chan *file.Result, 100)
	s := file.New(file.Options{Dir: dir})
	s.Load()
	s.Follow([]string{outside})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx, func(r *file.Result) { results <- r }) }()
	defer func() { cancel(); <-done }()
	next := func(what string) {
		t.Helper()
		select {
		case r := <-results:
			if names(r) != "a" {
				t.Errorf("%s: %q", what, names(r))
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s was not told", what)
		}
	}
	next("that it is followed now")
	write(t, outside, "two")
	next("its change")
}

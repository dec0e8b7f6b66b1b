package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/app/local"
	"github.com/malha-mesh/malha/internal/testport"
)

// shopMesh is the shop, the port of its supplier and its first certificate.
type shopMesh struct {
	*mesh
	supplier    string
	certificate string // PEM
}

// shop is the sample in which objects of every dialect stand side by side, running.
func shop(t *testing.T) shopMesh {
	m := shopMesh{mesh: newMesh(t, nil)}
	var manifest string
	files, err := filepath.Glob("../../samples/shop/mesh/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no sample: %v", err)
	}
	// The supplier has a port of its own, which is somebody else's system and may be in use here.
	m.supplier = strconv.Itoa(testport.Reserve(t))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		m.write(filepath.Base(f), strings.ReplaceAll(string(b), "18931", m.supplier))
	}
	m.certificate, manifest = newCertificate(t) // as samples/shop/certificate prints one
	m.write("certificate.yaml", manifest)
	m.up()
	return m
}

// https asks the shop's gateway for a path as a stranger who trusts the PEM certificate does; it returns the status.
func https(m shopMesh, certificate string) (int, error) {
	addr := ""
	for _, d := range m.status().Doors {
		if after, ok := strings.CutPrefix(d.URL, "https://"); ok && d.Gateway.Name == "shop-gateway" {
			addr = after
		}
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(certificate))
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		},
	}}
	res, err := client.Get("https://shop.example.com/details/0")
	if err != nil {
		return 0, err
	}
	_ = res.Body.Close()
	return res.StatusCode, nil
}

func TestShop(t *testing.T) {
	m := shop(t)
	for _, c := range []struct{ what, url, header, want string }{
		{"SMI leaves everybody else alone", "http://prices:9080/ratings/0", "", "prices-v1"},
		{"SMI divides the requests of testers", "http://prices:9080/ratings/0", "x-tester: yes", "prices-v2"},
		{"Istio makes the supplier known", "http://supplier.example.com/details/0", "", "127.0.0.1:" + m.supplier},
		{"Linkerd says which request it is", "http://catalog:9080/details/0", "", "ServiceProfile/default/catalog.default.svc.cluster.local"},
	} {
		args := []string{"curl", "--from", "front", "-v", "--fail", c.url}
		if c.header != "" {
			args = append(args, "-H", c.header)
		}
		out, errs, code := m.run("", args...)
		if code != 0 || !strings.Contains(out+errs, c.want) {
			t.Errorf("%s: exit code %d, want %q in\n%s%s", c.what, code, c.want, out, errs)
		}
	}

	if code, err := https(m, m.certificate); err != nil || code != 200 {
		t.Errorf("the HTTPS gateway answers %d, %v", code, err)
	}
	statuses := m.status().Objects
	if !slices.ContainsFunc(statuses, func(o local.ObjectStatus) bool {
		return o.Kind == "HTTPRoute" && len(o.Parents) == 1 && o.Parents[0].Conditions[0].Status
	}) {
		t.Errorf("no HTTPRoute is accepted: %+v", statuses)
	}

	next, manifest := newCertificate(t)
	if out, errs, code := m.run(manifest, "apply", "-f", "-"); code != 0 {
		t.Fatalf("applying a new certificate: %s%s", out, errs)
	}
	m.eventually("the new certificate is served", func() bool { code, err := https(m, next); return err == nil && code == 200 })
	for _, args := range [][]string{{"status", "-o", "yaml"}, {"explain", "--from", "shop-gateway", "-o", "json", "https://shop.example.com/details/0"}} {
		if out, errs, _ := m.run("", args...); strings.Contains(out+errs, "PRIVATE KEY") {
			t.Errorf("malha %s shows a private key", args[0])
		}
	}
}

// newCertificate makes another certificate for the shop, and the Secret that holds it.
func newCertificate(t *testing.T) (certificate, manifest string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{"shop.example.com"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certificate = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	text := func(s string) string { return fmt.Sprintf("%q", s) }
	return certificate, "apiVersion: v1\nkind: Secret\nmetadata: {name: shop}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: " + text(certificate) +
		"\n  tls.key: " + text(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))) + "\n"
}

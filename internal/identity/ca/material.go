package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
)

// Material is what an Authority signs with, as PEM: for places that are no directory, as a Secret of Kubernetes.
type Material struct {
	Cert []byte // the certificate that signs: a root, or an intermediate
	Key  []byte // its key, PKCS #8, ECDSA P-256
	// Roots is the bundle that everybody verifies by; empty: Cert, which is then a root itself. It holds the old and the new one
	// while a root is being replaced.
	Roots []byte
	// Chain is what leads from Cert to a root, without either, nearest first; empty: a root signed Cert.
	Chain []byte
}

// String keeps the key out of logs.
func (*Material) String() string { return "certificate authority" }

// GoString keeps the key out of logs.
func (*Material) GoString() string { return "certificate authority" }

// NewMaterial makes a root for a trust domain, by default ident.DefaultTrustDomain.
func NewMaterial(trustDomain string) (*Material, error) {
	if trustDomain == "" {
		trustDomain = ident.DefaultTrustDomain
	}
	root, key, err := newRoot(Options{TrustDomain: trustDomain, Now: time.Now})
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("ca: writing the root key: %w", err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
	return &Material{Cert: cert, Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), Roots: cert}, nil
}

// signer is a Material that was read.
type signer struct {
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey   // never logged, never leaves the package
	roots []*x509.Certificate // at least one
	above [][]byte            // DER that goes with every leaf: cert and Chain, for an intermediate
}

func (m *Material) read(now time.Time) (*signer, error) {
	cert, key, err := parseRoot(m.Cert, m.Key)
	if err != nil {
		return nil, fmt.Errorf("ca: the certificate authority cannot be used: %w", err)
	}
	if now.After(cert.NotAfter) {
		return nil, fmt.Errorf("ca: the certificate authority expired at %s: replace it", cert.NotAfter.UTC().Format(time.RFC3339))
	}
	s := &signer{cert: cert, key: key, roots: []*x509.Certificate{cert}}
	if len(bytes.TrimSpace(m.Roots)) > 0 {
		if s.roots, err = parseBundle(m.Roots); err != nil {
			return nil, fmt.Errorf("ca: the bundle of roots cannot be used: %w", err)
		}
	}
	chain, err := parseBundle(m.Chain)
	if err != nil {
		return nil, fmt.Errorf("ca: the chain of the certificate authority cannot be used: %w", err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	isRoot := false
	for _, r := range s.roots {
		roots.AddCert(r)
		isRoot = isRoot || r.Equal(cert)
	}
	for _, c := range chain {
		between.AddCert(c)
	}
	_, err = cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("ca: the bundle of roots does not vouch for the certificate authority, so nobody would accept what it signs: put its root into the bundle: %w", err)
	}
	if !isRoot {
		s.above = append(s.above, cert.Raw)
		for _, c := range chain {
			s.above = append(s.above, c.Raw)
		}
	}
	return s, nil
}

// parseBundle reads any number of certificates.
func parseBundle(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for data = bytes.TrimSpace(data); len(data) > 0; data = bytes.TrimSpace(data) {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil || b.Type != "CERTIFICATE" {
			return nil, errors.New("want PEM CERTIFICATE blocks and nothing else")
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// NotAfter is when the certificate that signs expires.
func (a *Authority) NotAfter() time.Time { return a.cert.NotAfter }

// ServerCertificate makes a key and a certificate for a server with DNS names, for callers outside the mesh: the API server
// that asks webhooks. It names no workload, so no peer in the mesh accepts it.
func (a *Authority) ServerCertificate(ttl time.Duration, names ...string) (*tls.Certificate, error) {
	if len(names) == 0 {
		return nil, errors.New("ca: a server certificate needs a name")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("ca: making a key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	notBefore, notAfter, err := a.life(ttl)
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: notBefore, NotAfter: notAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("ca: signing for %s: %w", names[0], err)
	}
	out := &tls.Certificate{Certificate: append([][]byte{der}, a.above...), PrivateKey: key}
	out.Leaf, err = x509.ParseCertificate(der)
	return out, err
}

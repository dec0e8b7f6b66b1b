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
	"slices"
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

// With returns m with the roots of others in its bundle, too, each once.
func (m *Material) With(others ...*Material) (*Material, error) {
	out := *m
	var all []*x509.Certificate
	for _, from := range append([]*Material{m}, others...) {
		bundle := from.Roots
		if len(bytes.TrimSpace(bundle)) == 0 {
			bundle = from.Cert
		}
		roots, err := parseBundle(bundle)
		if err != nil {
			return nil, fmt.Errorf("ca: the bundle of roots cannot be used: %w", err)
		}
		for _, r := range roots {
			if !slices.ContainsFunc(all, r.Equal) {
				all = append(all, r)
			}
		}
	}
	out.Roots = nil
	for _, r := range all {
		out.Roots = append(out.Roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Raw})...)
	}
	return &out, nil
}

// Check says why an authority could not sign with m.
func (m *Material) Check(now time.Time) error {
	_, err := m.read(now)
	return err
}

// Equal reports whether two materials are the same to the letter.
func (m *Material) Equal(o *Material) bool {
	return bytes.Equal(m.Cert, o.Cert) && bytes.Equal(m.Key, o.Key) && bytes.Equal(m.Roots, o.Roots) && bytes.Equal(m.Chain, o.Chain)
}

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

// life returns the dates of a leaf that begins now.
func (s *signer) life(now time.Time, ttl time.Duration) (notBefore, notAfter time.Time, err error) {
	if now.After(s.cert.NotAfter) {
		return notBefore, notAfter, fmt.Errorf("ca: the root expired at %s: remove it to have a new one made, and restart the mesh", s.cert.NotAfter)
	}
	// Certificates count whole seconds: round up, so that a life is never shorter than was asked for.
	notBefore, notAfter = now.Add(-backdate), now.Add(ttl+time.Second-1).Truncate(time.Second)
	// A leaf must lie inside its root's life, or no peer accepts it (RFC 5280 section 6.1.3).
	if notBefore.Before(s.cert.NotBefore) {
		notBefore = s.cert.NotBefore
	}
	if notAfter.After(s.cert.NotAfter) {
		notAfter = s.cert.NotAfter
	}
	return notBefore, notAfter, nil
}

// bundle is the roots, DER.
func (s *signer) bundle() [][]byte {
	out := make([][]byte, len(s.roots))
	for i, r := range s.roots {
		out[i] = r.Raw
	}
	return out
}

func (s *signer) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, r := range s.roots {
		pool.AddCert(r)
	}
	return pool
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
func (a *Authority) NotAfter() time.Time { return a.signer.Load().cert.NotAfter }

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
	by := a.signer.Load()
	notBefore, notAfter, err := by.life(a.now(), ttl)
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: notBefore, NotAfter: notAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, by.cert, &key.PublicKey, by.key)
	if err != nil {
		return nil, fmt.Errorf("ca: signing for %s: %w", names[0], err)
	}
	out := &tls.Certificate{Certificate: append([][]byte{der}, by.above...), PrivateKey: key}
	out.Leaf, err = x509.ParseCertificate(der)
	return out, err
}

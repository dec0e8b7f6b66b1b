package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/identity/trust"
)

func material(t *testing.T) *Material {
	t.Helper()
	m, err := NewMaterial("")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// below makes an authority that another one signed.
func below(t *testing.T, root *Material, life time.Duration) *Material {
	t.Helper()
	s, err := root.read(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "intermediate"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}, s.cert, &key.PublicKey, s.key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &Material{
		Cert:  pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text}),
		Roots: root.Roots,
	}
}

func parsed(t *testing.T, chain [][]byte) []*x509.Certificate {
	t.Helper()
	out := make([]*x509.Certificate, len(chain))
	for i, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		out[i] = c
	}
	return out
}

// A root is replaced in steps, and at each of them everybody accepts everybody: first the new root is trusted beside the old,
// then it signs, then the old one goes.
func TestMaterialRotation(t *testing.T) {
	old, next := material(t), material(t)
	both := append(append([]byte{}, old.Roots...), next.Roots...)
	steps := []*Material{
		old,
		{Cert: old.Cert, Key: old.Key, Roots: both},
		{Cert: next.Cert, Key: next.Key, Roots: both},
		next,
	}
	authorities := make([]*Authority, len(steps))
	for i, m := range steps {
		authorities[i] = open(t, Options{Material: m})
	}
	for i := range steps[:len(steps)-1] {
		for _, pair := range [][2]int{{i, i + 1}, {i + 1, i}} { // while the step is under way there are both
			signer, verifier := authorities[pair[0]], authorities[pair[1]]
			chain, err := signer.Sign(request(t, &x509.CertificateRequest{}), workload())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := trust.Verify(parsed(t, chain), verifier.Pool(), x509.ExtKeyUsageClientAuth, time.Time{}); err != nil {
				t.Errorf("signed in step %d, verified in step %d: %v", pair[0], pair[1], err)
			}
		}
	}
	chain, err := authorities[0].Sign(request(t, &x509.CertificateRequest{}), workload())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trust.Verify(parsed(t, chain), authorities[3].Pool(), x509.ExtKeyUsageClientAuth, time.Time{}); err == nil {
		t.Error("what the old root signed is accepted after its end")
	}
}

func TestMaterialIntermediate(t *testing.T) {
	root := material(t)
	a := open(t, Options{Material: below(t, root, time.Hour)})
	chain, err := a.Sign(request(t, &x509.CertificateRequest{}), workload())
	if err != nil {
		t.Fatal(err)
	}
	certs := parsed(t, chain)
	if len(certs) != 2 {
		t.Fatalf("a chain of %d, want leaf and intermediate", len(certs))
	}
	if _, err := trust.Verify(certs, open(t, Options{Material: root}).Pool(), x509.ExtKeyUsageServerAuth, time.Time{}); err != nil {
		t.Error(err)
	}
	if certs[0].NotAfter.After(certs[1].NotAfter) {
		t.Error("the leaf outlives its intermediate")
	}
	if c := a.Source(workload()).Current(); c == nil || len(c.Certificate.Certificate) != 2 {
		t.Errorf("credentials of our own: %v", c)
	}
}

func TestMaterialRefused(t *testing.T) {
	good, other := material(t), material(t)
	for what, m := range map[string]*Material{
		"nothing":            {},
		"another's key":      {Cert: good.Cert, Key: other.Key},
		"another root":       {Cert: good.Cert, Key: good.Key, Roots: other.Roots},
		"roots are no PEM":   {Cert: good.Cert, Key: good.Key, Roots: []byte("x")},
		"a key in the roots": {Cert: good.Cert, Key: good.Key, Roots: good.Key},
		"expired":            below(t, good, -time.Minute),
	} {
		if _, err := Open(Options{Material: m}); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if s := fmt.Sprintf("%v %+v %#v", good, good, good); strings.Contains(s, "PRIVATE") || strings.Contains(s, "0x2d") {
		t.Errorf("prints its key: %s", s)
	}
}

func TestServerCertificate(t *testing.T) {
	a := open(t, Options{Material: below(t, material(t), time.Hour)})
	c, err := a.ServerCertificate(time.Hour, "malhad.malha-system.svc")
	if err != nil {
		t.Fatal(err)
	}
	between := x509.NewCertPool()
	for _, x := range parsed(t, c.Certificate)[1:] {
		between.AddCert(x)
	}
	if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: a.Pool(), Intermediates: between, DNSName: "malhad.malha-system.svc"}); err != nil {
		t.Error(err)
	}
	if _, err := trust.Verify(parsed(t, c.Certificate), a.Pool(), x509.ExtKeyUsageServerAuth, time.Time{}); err == nil {
		t.Error("a peer in the mesh takes it for a workload's")
	}
	if _, err := a.ServerCertificate(time.Hour); err == nil {
		t.Error("a certificate for nobody was made")
	}
}

// TestReplace: an authority that is in use signs with another material from one moment to the next, and its own credentials follow.
func TestReplace(t *testing.T) {
	old, next := material(t), material(t)
	a := open(t, Options{Material: old})
	self := a.Source(workload())
	before, derived := self.Current(), must(a.Derive("x"))
	both, err := old.With(next, old)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Replace(both); err != nil {
		t.Fatal(err)
	}
	if n := len(a.Roots()); n != 2 {
		t.Fatalf("%d roots, want each of the two once", n)
	}
	second := self.Current()
	if second.Bundle == before.Bundle || second.Bundle != a.Bundle() {
		t.Error("its own credentials know the roots that were")
	}
	if string(must(a.Derive("x"))) != string(derived) {
		t.Error("another root beside it changes what is derived from the key")
	}
	if both, err = next.With(old); err != nil {
		t.Fatal(err)
	}
	if err := a.Replace(both); err != nil {
		t.Fatal(err)
	}
	if a.Bundle() != second.Bundle {
		t.Error("the order of the roots makes another bundle")
	}
	third := self.Current()
	if _, err := trust.Verify(parsed(t, third.Certificate.Certificate), open(t, Options{Material: next}).Pool(), x509.ExtKeyUsageServerAuth, time.Time{}); err != nil {
		t.Errorf("what is signed after the replacement: %v", err)
	}
	if string(must(a.Derive("x"))) == string(derived) {
		t.Error("what is derived outlives the key")
	}
	if err := a.Replace(&Material{Cert: old.Cert, Key: next.Key}); err == nil {
		t.Error("a material that cannot sign was taken")
	}
	if a.Bundle() != third.Bundle {
		t.Error("a material that was refused changed something")
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

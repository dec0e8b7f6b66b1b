package trust_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
)

// root is a CA that signs anything: the peers of these tests are as strange as they like.
type root struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newRoot(t *testing.T) *root {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &root{t, cert, key, pool}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

const uriA = "spiffe://cluster.local/ns/default/sa/a"

// leaf signs a certificate that is good in every respect but for what change does to it.
func (r *root) leaf(uri string, change func(*x509.Certificate)) tls.Certificate {
	r.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Minute),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	if uri != "" {
		template.ExtraExtensions = []pkix.Extension{san(r.t, name(6, uri))}
	}
	if change != nil {
		change(template)
	}
	key := newKey(r.t)
	der, err := x509.CreateCertificate(rand.Reader, template, r.cert, &key.PublicKey, r.key)
	if err != nil {
		r.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func name(tag int, s string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(s)}
}

func san(t *testing.T, names ...asn1.RawValue) pkix.Extension {
	t.Helper()
	b, err := asn1.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: b}
}

// source is credentials as they are: New would refuse the bad ones.
func (r *root) source(cert tls.Certificate) trust.Source {
	return trust.Static{Credentials: &trust.Credentials{Certificate: cert, Roots: r.pool}}
}

var alpn = []string{trust.ALPNHTTP2}

// shake runs a handshake over a loopback connection and returns what each side made of it. A TLS 1.3 client is done before the
// server has looked at its certificate, so each side also says one byte.
func shake(t *testing.T, client, server *tls.Config) (cs tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan error, 1)
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		conn := tls.Server(nc, server)
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		err = conn.Handshake()
		if err == nil {
			cs = conn.ConnectionState()
			_, err = conn.Write([]byte{1})
		}
		done <- err
	}()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(nc, client)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if clientErr = conn.Handshake(); clientErr == nil {
		_, clientErr = io.ReadFull(conn, make([]byte, 1)) // which takes a byte that comes with the end
	}
	if clientErr != nil {
		_ = conn.Close()
	}
	return cs, clientErr, <-done
}

func identity(t *testing.T, uri string) ident.Identity {
	t.Helper()
	id, err := ident.ParseIdentity(uri)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestMutualTLS(t *testing.T) {
	r := newRoot(t)
	want := plan.WorkloadLabels{Workload: "a-v1", Namespace: "default", App: "a", Version: "v1"}
	node := ident.Name{Namespace: "default", Name: "a-v1-0"}
	ext, err := trust.WorkloadExtension(node, want)
	if err != nil {
		t.Fatal(err)
	}
	a := r.source(r.leaf(uriA, func(c *x509.Certificate) { c.ExtraExtensions = append(c.ExtraExtensions, ext) }))
	b := r.source(r.leaf("spiffe://cluster.local/ns/other/sa/b", nil))
	expect := []ident.Identity{identity(t, "spiffe://cluster.local/ns/other/sa/b")}
	cs, cerr, serr := shake(t, trust.ClientConfig(a, expect, "outbound_.80_._.b", alpn), trust.ServerConfig(b, alpn))
	if cerr != nil || serr != nil {
		t.Fatalf("client %v, server %v", cerr, serr)
	}
	if cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != trust.ALPNHTTP2 || cs.DidResume {
		t.Errorf("version %x, protocol %q, resumed %v", cs.Version, cs.NegotiatedProtocol, cs.DidResume)
	}
	id, labels, err := trust.PeerOf(cs)
	if err != nil || id.URI() != uriA || labels != want {
		t.Errorf("peer %s %+v, %v", id.URI(), labels, err)
	}
	if got, err := trust.NodeOf(cs); err != nil || got != node {
		t.Errorf("node %s, %v", got, err)
	}
}

// TestBadPeers presents certificates that must be refused, to servers and to clients.
func TestBadPeers(t *testing.T) {
	r, stranger := newRoot(t), newRoot(t)
	good := r.leaf(uriA, nil)
	for what, bad := range map[string]tls.Certificate{
		"other root": stranger.leaf(uriA, nil),
		"expired":    r.leaf(uriA, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }),
		"not yet":    r.leaf(uriA, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(30 * time.Second) }),
		"is a CA":    r.leaf(uriA, func(c *x509.Certificate) { c.IsCA = true }),
		"may sign":   r.leaf(uriA, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }),
		"no usage":   r.leaf(uriA, func(c *x509.Certificate) { c.KeyUsage = 0 }),
		"email usage": r.leaf(uriA, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}
		}),
		"no extended usage": r.leaf(uriA, func(c *x509.Certificate) { c.ExtKeyUsage = nil }),
		"no URI":            r.leaf("", nil),
		"two URIs": r.leaf("", func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{san(t, name(6, uriA), name(6, "spiffe://cluster.local/ns/default/sa/b"))}
		}),
		"same URI twice": r.leaf("", func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{san(t, name(6, uriA), name(6, uriA))} }),
		"URI as DNS":     r.leaf("", func(c *x509.Certificate) { c.DNSNames = []string{"spiffe.cluster.local"} }),
		"URI as email":   r.leaf("", func(c *x509.Certificate) { c.EmailAddresses = []string{"a@cluster.local"} }),
		"URI as CN":      r.leaf("", func(c *x509.Certificate) { c.Subject.CommonName = uriA }),
		"https":          r.leaf("", func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "https", Host: "a"}} }),
		"fragment":       r.leaf(uriA+"#", nil),
		"query":          r.leaf(uriA+"?", nil),
		"upper scheme":   r.leaf("SPIFFE"+strings.TrimPrefix(uriA, "spiffe"), nil),
		"escape":         r.leaf(uriA+"%2e", nil),
		"no namespace":   r.leaf("spiffe://cluster.local/sa/a", nil),
		"long path":      r.leaf(uriA+"/b", nil),
		"upper domain":   r.leaf("spiffe://Cluster.local/ns/default/sa/a", nil),
		"user":           r.leaf("spiffe://x@cluster.local/ns/default/sa/a", nil),
		"port":           r.leaf("spiffe://cluster.local:1/ns/default/sa/a", nil),
		"dots":           r.leaf("spiffe://cluster.local/ns/../sa/a", nil),
		"NUL":            r.leaf(uriA+"\x00.evil", nil),
		"escaped letter": r.leaf("spiffe://cluster.local/ns/default/sa/%61", nil),
		"escaped slash":  r.leaf("spiffe://cluster.local/ns/default%2fsa/a", nil),
		"wildcard":       r.leaf("spiffe://cluster.local/ns/*/sa/*", nil),
		"slash at end":   r.leaf(uriA+"/", nil),
		"two slashes":    r.leaf("spiffe://cluster.local//ns/default/sa/a", nil),
		"domain's dot":   r.leaf("spiffe://cluster.local./ns/default/sa/a", nil),
		"no domain":      r.leaf("spiffe:///ns/default/sa/a", nil),
		"white space":    r.leaf(" "+uriA, nil),
		"two extensions": r.leaf("", func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{san(t, name(2, "b")), {Id: asn1.ObjectIdentifier{2, 5, 29, 17, 1}, Value: san(t, name(6, uriA)).Value}}
		}),
	} {
		expect := []ident.Identity{identity(t, uriA)}
		if _, _, err := shake(t, trust.ClientConfig(r.source(bad), expect, "", alpn), trust.ServerConfig(r.source(good), alpn)); err == nil {
			t.Errorf("%s: the server accepted it", what)
		}
		if _, err, _ := shake(t, trust.ClientConfig(r.source(good), expect, "", alpn), trust.ServerConfig(r.source(bad), alpn)); err == nil {
			t.Errorf("%s: the client accepted it", what)
		}
		if _, err := trust.New(bad, r.pool, time.Now()); err == nil {
			t.Errorf("%s: New accepted it as our own", what)
		}
	}
	for what, usage := range map[string]x509.ExtKeyUsage{"server only": x509.ExtKeyUsageServerAuth, "client only": x509.ExtKeyUsageClientAuth} {
		half := r.leaf(uriA, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{usage} })
		expect := []ident.Identity{identity(t, uriA)}
		_, _, asClient := shake(t, trust.ClientConfig(r.source(half), expect, "", alpn), trust.ServerConfig(r.source(good), alpn))
		_, asServer, _ := shake(t, trust.ClientConfig(r.source(good), expect, "", alpn), trust.ServerConfig(r.source(half), alpn))
		if (asClient == nil) != (usage == x509.ExtKeyUsageClientAuth) || (asServer == nil) != (usage == x509.ExtKeyUsageServerAuth) {
			t.Errorf("%s: as client %v, as server %v", what, asClient, asServer)
		}
	}
}

func TestFailsClosed(t *testing.T) {
	r := newRoot(t)
	src := r.source(r.leaf(uriA, nil))
	a := []ident.Identity{identity(t, uriA)}
	none := new(trust.Holder)
	noRoots := trust.Static{Credentials: &trust.Credentials{Certificate: r.leaf(uriA, nil)}}
	for what, tc := range map[string]struct{ client, server *tls.Config }{
		"expects nobody":                {trust.ClientConfig(src, nil, "", alpn), trust.ServerConfig(src, alpn)},
		"expects another":               {trust.ClientConfig(src, []ident.Identity{identity(t, uriA+"b")}, "", alpn), trust.ServerConfig(src, alpn)},
		"client without credentials":    {trust.ClientConfig(none, a, "", alpn), trust.ServerConfig(src, alpn)},
		"server without credentials":    {trust.ClientConfig(src, a, "", alpn), trust.ServerConfig(none, alpn)},
		"client without roots":          {trust.ClientConfig(noRoots, a, "", alpn), trust.ServerConfig(src, alpn)},
		"server without roots":          {trust.ClientConfig(src, a, "", alpn), trust.ServerConfig(noRoots, alpn)},
		"client without certificate":    {&tls.Config{InsecureSkipVerify: true, NextProtos: alpn}, trust.ServerConfig(src, alpn)},
		"client of TLS 1.2":             {&tls.Config{InsecureSkipVerify: true, NextProtos: alpn, MaxVersion: tls.VersionTLS12}, trust.ServerConfig(src, alpn)},
		"client with another protocol":  {trust.ClientConfig(src, a, "", []string{"h2"}), trust.ServerConfig(src, alpn)},
		"client with no protocol":       {trust.ClientConfig(src, a, "", nil), trust.ServerConfig(src, alpn)},
		"server with no protocol":       {trust.ClientConfig(src, a, "", alpn), trust.ServerConfig(src, nil)},
		"server that asks for no proof": {trust.ClientConfig(src, []ident.Identity{{}}, "", alpn), trust.ServerConfig(src, alpn)},
	} {
		if _, cerr, _ := shake(t, tc.client, tc.server); cerr == nil {
			t.Errorf("%s: the connection was made", what)
		}
	}
}

// TestRotationAndNoResumption: a config that lives on uses new credentials and new roots for the next handshake, and a
// peer that was good before is verified again.
func TestRotationAndNoResumption(t *testing.T) {
	old, next := newRoot(t), newRoot(t)
	var ours trust.Holder
	set := func(r *root) {
		c, err := trust.New(r.leaf(uriA, nil), r.pool, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		ours.Set(c)
	}
	set(old)
	server := trust.ServerConfig(&ours, alpn)
	client := trust.ClientConfig(old.source(old.leaf(uriA, nil)), []ident.Identity{identity(t, uriA)}, "", alpn)
	client.ClientSessionCache = tls.NewLRUClientSessionCache(8) // a client that would like to resume
	for i := range 2 {
		cs, cerr, serr := shake(t, client, server)
		if cerr != nil || serr != nil || cs.DidResume {
			t.Fatalf("handshake %d: client %v, server %v, resumed %v", i, cerr, serr, cs.DidResume)
		}
	}
	set(next) // the old root is not trusted any more
	if _, _, err := shake(t, client, server); err == nil {
		t.Error("a peer of a root that was removed got in")
	}
	fresh := trust.ClientConfig(next.source(next.leaf(uriA, nil)), []ident.Identity{identity(t, uriA)}, "", alpn)
	if _, cerr, serr := shake(t, fresh, server); cerr != nil || serr != nil {
		t.Errorf("a peer of the new root: client %v, server %v", cerr, serr)
	}
}

func TestForeignPeersHaveNoLabels(t *testing.T) {
	r := newRoot(t)
	ext, err := trust.WorkloadExtension(ident.Name{Namespace: "x", Name: "y"}, plan.WorkloadLabels{Workload: "w", Namespace: "kube-system"})
	if err != nil {
		t.Fatal(err)
	}
	for what, tc := range map[string]struct {
		ext  []pkix.Extension
		want plan.WorkloadLabels
	}{
		"absent":            {nil, plan.WorkloadLabels{Namespace: "default"}},
		"garbage":           {[]pkix.Extension{{Id: trust.OIDWorkload, Value: []byte("garbage")}}, plan.WorkloadLabels{Namespace: "default"}},
		"too long":          {[]pkix.Extension{{Id: trust.OIDWorkload, Value: make([]byte, 5000)}}, plan.WorkloadLabels{Namespace: "default"}},
		"another namespace": {[]pkix.Extension{ext}, plan.WorkloadLabels{Workload: "w", Namespace: "default"}},
	} {
		c, err := trust.New(r.leaf(uriA, func(c *x509.Certificate) { c.ExtraExtensions = append(c.ExtraExtensions, tc.ext...) }), r.pool, time.Now())
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if c.Workload != tc.want {
			t.Errorf("%s: got %+v, want %+v", what, c.Workload, tc.want)
		}
	}
}

func TestCredentialsDoNotPrintKeys(t *testing.T) {
	r := newRoot(t)
	c, err := trust.New(r.leaf(uriA, nil), r.pool, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "c", c)
	secret := c.Certificate.PrivateKey.(*ecdsa.PrivateKey).D.String() //nolint:staticcheck // the raw scalar is what must not appear
	for _, s := range []string{fmt.Sprintf("%v", c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c), c.String(), log.String()} {
		if !strings.Contains(s, uriA) || strings.Contains(s, secret[:12]) {
			t.Errorf("printed as %q", s)
		}
	}
	if got := fmt.Sprint((*trust.Credentials)(nil)); got != "no credentials" {
		t.Errorf("nil prints as %q", got)
	}
}

func TestVerifyBoundsTheChain(t *testing.T) {
	r := newRoot(t)
	leaf, err := x509.ParseCertificate(r.leaf(uriA, nil).Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	long := []*x509.Certificate{leaf}
	for range 100 {
		long = append(long, r.cert)
	}
	if _, err := trust.Verify(long, r.pool, x509.ExtKeyUsageClientAuth, time.Time{}); !errors.Is(err, trust.ErrPeer) {
		t.Errorf("a chain of 101 certificates: %v", err)
	}
}

func BenchmarkHandshake(b *testing.B) {
	t := &testing.T{}
	r := newRoot(t)
	src := r.source(r.leaf(uriA, nil))
	id, err := ident.ParseIdentity(uriA)
	if err != nil {
		b.Fatal(err)
	}
	client, server := trust.ClientConfig(src, []ident.Identity{id}, "", alpn), trust.ServerConfig(src, alpn)
	for b.Loop() {
		if _, cerr, serr := shake(t, client, server); cerr != nil || serr != nil {
			b.Fatal(cerr, serr)
		}
	}
}

package trust_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"
	"weak"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
)

func block(kind string, der ...[]byte) []byte {
	var b bytes.Buffer
	for _, d := range der {
		_ = pem.Encode(&b, &pem.Block{Type: kind, Bytes: d})
	}
	return b.Bytes()
}

// secret is a plan.Secret with a certificate for names.
func (r *root) secret(name string, change func(*x509.Certificate), names ...string) plan.Secret {
	r.t.Helper()
	return secretOf(r.t, name, r.leaf("", func(c *x509.Certificate) {
		c.DNSNames = names
		if change != nil {
			change(c)
		}
	}))
}

func secretOf(t *testing.T, name string, c tls.Certificate) plan.Secret {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return plan.Secret{Name: name, Certificate: block("CERTIFICATE", c.Certificate...), Key: block("PRIVATE KEY", key)}
}

func (r *root) revoke(until time.Time, serials ...*big.Int) []byte {
	r.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: until}
	for _, s := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: s, RevocationTime: time.Now()})
	}
	signer := *r.cert
	signer.KeyUsage |= x509.KeyUsageCRLSign
	der, err := x509.CreateRevocationList(rand.Reader, list, &signer, r.key)
	if err != nil {
		r.t.Fatal(err)
	}
	return block("X509 CRL", der)
}

func edge(t *testing.T, st *plan.ServerTLS, secrets ...plan.Secret) *trust.Edge {
	t.Helper()
	e, err := trust.NewEdge(st, true, trust.NewMaterials(secrets, nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestMaterialErrorsNameTheSecretAndNoKey(t *testing.T) {
	r, stranger := newCRLRoot(t), newRoot(t)
	good, other := r.secret("n/good", nil, "a.example"), r.secret("n/other", nil, "b.example")
	ca := block("CERTIFICATE", r.cert.Raw)
	for what, tc := range map[string]struct {
		s    plan.Secret
		want string
	}{
		"empty":           {plan.Secret{Name: "n/x"}, "it is empty"},
		"no key":          {plan.Secret{Name: "n/x", Certificate: good.Certificate}, "no private key (tls.key)"},
		"no certificate":  {plan.Secret{Name: "n/x", Key: good.Key}, "no certificate (tls.crt)"},
		"another's key":   {plan.Secret{Name: "n/x", Certificate: good.Certificate, Key: other.Key}, "can't be used together"},
		"garbage":         {plan.Secret{Name: "n/x", Certificate: []byte("a"), Key: good.Key}, "can't be used together"},
		"bad key":         {plan.Secret{Name: "n/x", Certificate: good.Certificate, Key: bytes.ToLower(good.Key)}, "can't be used together"},
		"no authority":    {plan.Secret{Name: "n/x", Authorities: good.Key}, "ca.crt): there is no certificate"},
		"bad authority":   {plan.Secret{Name: "n/x", Authorities: block("CERTIFICATE", []byte{1, 2})}, "ca.crt): certificate 0"},
		"list alone":      {plan.Secret{Name: "n/x", Certificate: good.Certificate, Key: good.Key, Revoked: r.revoke(time.Now())}, "no authorities (ca.crt)"},
		"list of another": {plan.Secret{Name: "n/x", Authorities: block("CERTIFICATE", stranger.cert.Raw), Revoked: r.revoke(time.Now())}, "not signed by any"},
		"bad list":        {plan.Secret{Name: "n/x", Authorities: ca, Revoked: []byte("x")}, "ca.crl): there is no list"},
	} {
		_, err := trust.NewMaterial(&tc.s)
		if err == nil || !strings.Contains(err.Error(), "secret n/x: ") || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", what, err, tc.want)
			continue
		}
		for _, line := range strings.Split(string(good.Key)+string(other.Key), "\n") {
			if !strings.HasPrefix(line, "-----") && line != "" && strings.Contains(strings.ToLower(err.Error()), strings.ToLower(line)) {
				t.Errorf("%s: the error shows the key: %v", what, err)
			}
		}
	}
	m, err := trust.NewMaterial(&good)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%v %+v %#v", m, m, m); strings.Contains(got, "PRIVATE") || !strings.Contains(got, "n/good") {
		t.Errorf("printed: %s", got)
	}
	ms := trust.NewMaterials([]plan.Secret{good, {Name: "n/bad"}}, nil)
	again := trust.NewMaterials([]plan.Secret{good}, ms)
	first, _ := ms.Get("n/good")
	if same, err := again.Get("n/good"); same != first || err != nil {
		t.Errorf("a secret that did not change was read again: %v", err)
	}
	if _, err := again.Get("n/bad"); err == nil || !strings.Contains(err.Error(), "n/bad is missing") {
		t.Errorf("missing: %v", err)
	}
	if _, err := ms.Get("n/bad"); err == nil || !strings.Contains(err.Error(), "it is empty") {
		t.Errorf("broken: %v", err)
	}
	if _, err := ms.GetAuthorities("n/good"); err == nil || !strings.Contains(err.Error(), "no authorities") {
		t.Errorf("authorities: %v", err)
	}
}

// newCRLRoot is a root that may sign revocation lists.
func newCRLRoot(t *testing.T) *root {
	t.Helper()
	r := newRoot(t)
	template := *r.cert
	template.KeyUsage |= x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, r.key.Public(), r.key)
	if err != nil {
		t.Fatal(err)
	}
	if r.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	r.pool = x509.NewCertPool()
	r.pool.AddCert(r.cert)
	return r
}

// TestEdgeClients: who may come in, for every mode and condition on clients.
func TestEdgeClients(t *testing.T) {
	r, stranger := newCRLRoot(t), newCRLRoot(t)
	server := r.secret("n/web", nil, "web.example")
	ca := plan.Secret{Name: "n/ca", Authorities: block("CERTIFICATE", r.cert.Raw)}
	client := r.leaf("spiffe://partner/client", func(c *x509.Certificate) {
		c.DNSNames, c.SerialNumber = []string{"client.example", "*.wild.example"}, big.NewInt(77)
		c.IPAddresses, c.EmailAddresses = []net.IP{net.IPv4(10, 0, 0, 7)}, []string{"ops@example"}
		c.ExtraExtensions = nil
		c.URIs = append(c.URIs, mustURL(t, "spiffe://partner/client"))
	})
	leaf, err := x509.ParseCertificate(client.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	serverOnly := r.leaf("", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	expired := r.leaf("", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) })
	other := stranger.leaf("", nil)
	certHash, keyHash := sha256.Sum256(leaf.Raw), sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	wrong := make([]byte, sha256.Size)
	revoked, fine, old := ca, ca, ca
	revoked.Revoked, fine.Revoked = r.revoke(time.Now().Add(time.Hour), big.NewInt(77)), r.revoke(time.Now().Add(time.Hour), big.NewInt(78))
	old.Revoked = r.revoke(time.Now().Add(-time.Minute))
	mutual := func(change func(*plan.ServerTLS)) plan.ServerTLS {
		st := plan.ServerTLS{Mode: plan.ServeMutual, Secrets: []string{"n/web"}, Authorities: "n/ca"}
		if change != nil {
			change(&st)
		}
		return st
	}
	optional := mutual(func(s *plan.ServerTLS) { s.Mode = plan.ServeOptionalMutual })
	anyClient := mutual(func(s *plan.ServerTLS) { s.Mode = plan.ServeAnyClient })
	names := func(n ...string) plan.ServerTLS {
		return mutual(func(s *plan.ServerTLS) { s.SubjectAltNames = n })
	}
	none := tls.Certificate{}
	for what, tc := range map[string]struct {
		st     plan.ServerTLS
		ca     plan.Secret
		client tls.Certificate
		ok     bool
	}{
		"simple, none":               {plan.ServerTLS{Mode: plan.ServeSimple, Secrets: []string{"n/web"}}, ca, none, true},
		"mutual, good":               {mutual(nil), ca, client, true},
		"mutual, none":               {mutual(nil), ca, none, false},
		"mutual, of others":          {mutual(nil), ca, other, false},
		"mutual, expired":            {mutual(nil), ca, expired, false},
		"mutual, a server's":         {mutual(nil), ca, serverOnly, false},
		"optional, none":             {optional, ca, none, true},
		"optional, good":             {optional, ca, client, true},
		"optional, of others":        {optional, ca, other, false},
		"any, none":                  {anyClient, ca, none, true},
		"any, good":                  {anyClient, ca, client, true},
		"any, of others":             {anyClient, ca, other, true},
		"any, expired":               {anyClient, ca, expired, true},
		"revoked":                    {mutual(nil), revoked, client, false},
		"optional, revoked":          {optional, revoked, client, false},
		"another was revoked":        {mutual(nil), fine, client, true},
		"list out of date":           {mutual(nil), old, client, false},
		"DNS name":                   {names("x", "CLIENT.example"), ca, client, true},
		"DNS wildcard":               {names("one.wild.example"), ca, client, true},
		"DNS wildcard, two labels":   {names("two.one.wild.example"), ca, client, false},
		"URI name":                   {names("spiffe://partner/client"), ca, client, true},
		"IP name":                    {names("10.0.0.7"), ca, client, true},
		"email name":                 {names("ops@example"), ca, client, true},
		"another name":               {names("spiffe://partner/other", "example", "10.0.0.8"), ca, client, false},
		"certificate hash":           {mutual(func(s *plan.ServerTLS) { s.CertificateHashes = [][]byte{wrong, certHash[:]} }), ca, client, true},
		"key hash":                   {mutual(func(s *plan.ServerTLS) { s.KeyHashes = [][]byte{keyHash[:]} }), ca, client, true},
		"either hash":                {mutual(func(s *plan.ServerTLS) { s.CertificateHashes, s.KeyHashes = [][]byte{wrong}, [][]byte{keyHash[:]} }), ca, client, true},
		"wrong certificate hash":     {mutual(func(s *plan.ServerTLS) { s.CertificateHashes = [][]byte{wrong, keyHash[:]} }), ca, client, false},
		"wrong key hash":             {mutual(func(s *plan.ServerTLS) { s.KeyHashes = [][]byte{wrong, certHash[:], nil} }), ca, client, false},
		"optional, none, with names": {mutual(func(s *plan.ServerTLS) { s.Mode, s.SubjectAltNames = plan.ServeOptionalMutual, []string{"x"} }), ca, none, true},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			cc := &tls.Config{RootCAs: r.pool, ServerName: "web.example", MaxVersion: version}
			asked := false
			cc.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				asked = true
				return &tc.client, nil
			}
			cs, cerr, serr := shake(t, cc, edge(t, &tc.st, server, tc.ca).Config())
			if ok := cerr == nil && serr == nil; ok != tc.ok || ok && cs.Version != version {
				t.Errorf("%s, %s: client %v, server %v", what, tls.VersionName(version), cerr, serr)
			}
			if asked != (tc.st.Mode != plan.ServeSimple) {
				t.Errorf("%s, %s: was the client asked for a certificate? %v", what, tls.VersionName(version), asked)
			}
		}
	}
}

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// TestResumption: only where there is no client certificate to skip, and only at the server that gave the ticket out.
func TestResumption(t *testing.T) {
	r := newRoot(t)
	server := r.secret("n/web", nil, "web.example", "other.example")
	ca := plan.Secret{Name: "n/ca", Authorities: block("CERTIFICATE", r.cert.Raw)}
	client := r.leaf(uriA, nil)
	simple := &plan.ServerTLS{Mode: plan.ServeSimple, Secrets: []string{"n/web"}}
	mutual := &plan.ServerTLS{Mode: plan.ServeMutual, Secrets: []string{"n/web"}, Authorities: "n/ca"}
	optional := &plan.ServerTLS{Mode: plan.ServeOptionalMutual, Secrets: []string{"n/web"}, Authorities: "n/ca"}
	first := edge(t, simple, server, ca)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for what, tc := range map[string]struct {
			before, after *trust.Edge
			resumes       bool
		}{
			"same server":                 {first, first, true},
			"another server, same secret": {first, edge(t, simple, server, ca), false},
			"mutual":                      {edge(t, mutual, server, ca), nil, false},
			"optional":                    {edge(t, optional, server, ca), nil, false},
			"from simple to mutual":       {first, edge(t, mutual, server, ca), false},
		} {
			if tc.after == nil {
				tc.after = tc.before
			}
			cc := &tls.Config{RootCAs: r.pool, ServerName: "web.example", MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(4), Certificates: []tls.Certificate{client}}
			if _, cerr, serr := shake(t, cc, tc.before.Config()); cerr != nil || serr != nil {
				t.Fatalf("%s: client %v, server %v", what, cerr, serr)
			}
			cs, cerr, serr := shake(t, cc, tc.after.Config())
			if cerr != nil || serr != nil || cs.DidResume != tc.resumes {
				t.Errorf("%s, %s: resumed %v (%v, %v)", what, tls.VersionName(version), cs.DidResume, cerr, serr)
			}
		}
	}
}

func TestEdgeSettings(t *testing.T) {
	r := newRoot(t)
	server := r.secret("n/web", nil, "web.example")
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(9), Subject: pkix.Name{CommonName: "rsa"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{"web.example"},
	}, r.cert, &rsaKey.PublicKey, r.key)
	if err != nil {
		t.Fatal(err)
	}
	second := secretOf(t, "n/rsa", tls.Certificate{Certificate: [][]byte{der}, PrivateKey: rsaKey})
	other := r.secret("n/other", nil, "other.example")
	simple := func(change func(*plan.ServerTLS)) *plan.ServerTLS {
		st := &plan.ServerTLS{Mode: plan.ServeSimple, Secrets: []string{"n/web"}}
		if change != nil {
			change(st)
		}
		return st
	}
	try := func(what string, st *plan.ServerTLS, http bool, cc *tls.Config) (tls.ConnectionState, bool) {
		t.Helper()
		e, err := trust.NewEdge(st, http, trust.NewMaterials([]plan.Secret{server, second, other}, nil), nil)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		cc.RootCAs = r.pool
		if cc.ServerName == "" {
			cc.ServerName = "web.example"
		}
		cs, cerr, serr := shake(t, cc, e.Config())
		return cs, cerr == nil && serr == nil
	}
	if _, ok := try("TLS 1.1 by default", simple(nil), true, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); ok {
		t.Error("TLS 1.1 is taken by default")
	}
	if cs, ok := try("TLS 1.1", simple(func(s *plan.ServerTLS) { s.MinVersion = tls.VersionTLS10 }), true, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); !ok || cs.Version != tls.VersionTLS11 {
		t.Error("minVersion 1.0 does not take TLS 1.1")
	}
	if _, ok := try("1.3 only", simple(func(s *plan.ServerTLS) { s.MinVersion = tls.VersionTLS13 }), true, &tls.Config{MaxVersion: tls.VersionTLS12}); ok {
		t.Error("minVersion 1.3 takes TLS 1.2")
	}
	if cs, ok := try("1.2 only", simple(func(s *plan.ServerTLS) { s.MaxVersion = tls.VersionTLS12 }), true, &tls.Config{}); !ok || cs.Version != tls.VersionTLS12 {
		t.Error("maxVersion 1.2 is not held")
	}
	aes := tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
	if cs, ok := try("cipher", simple(func(s *plan.ServerTLS) { s.Ciphers = []uint16{aes, 0xc0af} }), true, &tls.Config{MaxVersion: tls.VersionTLS12}); !ok || cs.CipherSuite != aes {
		t.Errorf("cipher %x", cs.CipherSuite)
	}
	if e := edge(t, simple(func(s *plan.ServerTLS) { s.Ciphers = []uint16{aes, 0xc0af} }), server); len(e.Warnings) != 1 || !strings.Contains(e.Warnings[0].Error(), "0xc0af") {
		t.Errorf("warnings %v", e.Warnings)
	}
	for _, tc := range []struct {
		http, one bool
		offer     []string
		want      string
		ok        bool
	}{
		{true, false, []string{"h2", "http/1.1"}, "h2", true},
		{true, false, nil, "", true},
		{true, true, []string{"h2", "http/1.1"}, "http/1.1", true},
		{true, false, []string{"imap"}, "", false}, // ALPACA
		{false, false, []string{"imap"}, "", true},
	} {
		cs, ok := try("alpn", simple(func(s *plan.ServerTLS) { s.HTTP1Only = tc.one }), tc.http, &tls.Config{NextProtos: tc.offer})
		if ok != tc.ok || cs.NegotiatedProtocol != tc.want {
			t.Errorf("%+v: %q, %v", tc, cs.NegotiatedProtocol, ok)
		}
	}
	// Of several certificates the first that fits.
	all := simple(func(s *plan.ServerTLS) { s.Secrets = []string{"n/missing", "n/web", "n/rsa", "n/other"} })
	e := edge(t, all, server, second, other)
	if len(e.Warnings) != 1 || !strings.Contains(e.Warnings[0].Error(), "n/missing") {
		t.Errorf("warnings %v", e.Warnings)
	}
	leafOf := func(cc *tls.Config) *x509.Certificate {
		cc.RootCAs = r.pool
		var leaf *x509.Certificate
		cc.VerifyConnection = func(cs tls.ConnectionState) error {
			leaf = cs.PeerCertificates[0]
			return nil
		}
		if _, cerr, serr := shake(t, cc, e.Config()); cerr != nil || serr != nil {
			t.Fatal(cerr, serr)
		}
		return leaf
	}
	if c := leafOf(&tls.Config{ServerName: "other.example"}); c.DNSNames[0] != "other.example" {
		t.Errorf("other.example was given %v", c.DNSNames)
	}
	if c := leafOf(&tls.Config{ServerName: "web.example", MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}}); c.PublicKeyAlgorithm != x509.RSA {
		t.Errorf("a client without ECDSA was given %s", c.PublicKeyAlgorithm)
	}
	if c := leafOf(&tls.Config{ServerName: "web.example"}); c.PublicKeyAlgorithm != x509.ECDSA {
		t.Errorf("a client was not given the first certificate that it can use, but %s", c.PublicKeyAlgorithm)
	}

	for what, tc := range map[string]struct {
		st   *plan.ServerTLS
		want string
	}{
		"missing secret":      {simple(func(s *plan.ServerTLS) { s.Secrets = []string{"n/gone"} }), "secret n/gone is missing"},
		"no secret":           {simple(func(s *plan.ServerTLS) { s.Secrets = nil }), "no secret is named"},
		"mutual without CA":   {simple(func(s *plan.ServerTLS) { s.Mode = plan.ServeMutual }), "by whose certificates"},
		"CA missing":          {simple(func(s *plan.ServerTLS) { s.Mode, s.Authorities = plan.ServeOptionalMutual, "n/gone" }), "secret n/gone is missing"},
		"CA secret has none":  {simple(func(s *plan.ServerTLS) { s.Mode, s.Authorities = plan.ServeMutual, "n/web" }), "no authorities"},
		"versions":            {simple(func(s *plan.ServerTLS) { s.MinVersion, s.MaxVersion = tls.VersionTLS13, tls.VersionTLS12 }), "above the highest"},
		"unknown version":     {simple(func(s *plan.ServerTLS) { s.MinVersion = 0x0305 }), "0x0305"},
		"unknown mode":        {simple(func(s *plan.ServerTLS) { s.Mode = "later" }), `"later"`},
		"no cipher":           {simple(func(s *plan.ServerTLS) { s.Ciphers = []uint16{1} }), "none of its cipher suites"},
		"mesh without us":     {&plan.ServerTLS{Mode: plan.ServeMesh}, "no credentials"},
		"mesh with TLS 1.2":   {&plan.ServerTLS{Mode: plan.ServeMesh, MaxVersion: tls.VersionTLS12}, "TLS 1.3"},
		"mode of no contract": {simple(func(s *plan.ServerTLS) { s.Mode = "" }), "not known"},
	} {
		if _, err := trust.NewEdge(tc.st, true, trust.NewMaterials([]plan.Secret{server}, nil), nil); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", what, err, tc.want)
		}
	}
}

// TestEdgeIsKept: what did not change keeps its ticket keys, and what did change does not.
func TestEdgeIsKept(t *testing.T) {
	r := newRoot(t)
	server, ca := r.secret("n/web", nil, "web.example"), plan.Secret{Name: "n/ca", Authorities: block("CERTIFICATE", r.cert.Raw)}
	st := &plan.ServerTLS{Mode: plan.ServeMutual, Secrets: []string{"n/web"}, Authorities: "n/ca"}
	before := trust.NewMaterials([]plan.Secret{server, ca}, nil)
	e, err := trust.NewEdge(st, true, before, nil)
	if err != nil {
		t.Fatal(err)
	}
	again := *st
	if !e.Same(&again, true, trust.NewMaterials([]plan.Secret{server, ca}, before)) {
		t.Error("nothing changed, and it is not the same")
	}
	renewed := r.secret("n/web", nil, "web.example")
	if e.Same(st, true, trust.NewMaterials([]plan.Secret{renewed, ca}, before)) {
		t.Error("the certificate changed")
	}
	if e.Same(st, true, trust.NewMaterials([]plan.Secret{server}, before)) {
		t.Error("the authorities are gone")
	}
	again.SubjectAltNames = []string{"x"}
	if e.Same(&again, true, before) || e.Same(st, false, before) {
		t.Error("its settings changed")
	}
}

// An Edge that is kept from plan to plan does not keep the plan that it came with.
func TestEdgeKeepsNoPlan(t *testing.T) {
	r := newRoot(t)
	come := func() (*trust.Edge, weak.Pointer[byte]) {
		encoding := bytes.Repeat([]byte("mutual n/web n/ca san "), 1<<10)
		text := unsafe.String(&encoding[0], len(encoding))
		st := &plan.ServerTLS{Mode: plan.ServerTLSMode(text[:6]), Secrets: []string{text[7:12]}, Authorities: text[13:17], SubjectAltNames: []string{text[18:21]}}
		e := edge(t, st, r.secret("n/web", nil, "web.example"), plan.Secret{Name: "n/ca", Authorities: block("CERTIFICATE", r.cert.Raw)})
		return e, weak.Make(&encoding[0])
	}
	e, encoding := come()
	runtime.GC()
	if encoding.Value() != nil {
		t.Error("the encoding of the listener is still there")
	}
	runtime.KeepAlive(e)
}

func TestEdgeOfTheMesh(t *testing.T) {
	r := newRoot(t)
	self := r.source(r.leaf("spiffe://cluster.local/ns/istio-system/sa/gateway", nil))
	a := r.source(r.leaf(uriA, nil))
	cc := trust.ClientConfig(a, identities(t, "spiffe://cluster.local/ns/istio-system/sa/gateway"), "web.example", []string{trust.ALPNHTTP1})
	for what, tc := range map[string]struct {
		names []string
		ok    bool
	}{"anybody of the mesh": {nil, true}, "this one": {[]string{uriA}, true}, "another": {[]string{uriA + "x"}, false}} {
		e, err := trust.NewEdge(&plan.ServerTLS{Mode: plan.ServeMesh, SubjectAltNames: tc.names}, true, nil, self)
		if err != nil || !e.Mesh() {
			t.Fatal(err)
		}
		cs, cerr, serr := shake(t, cc, e.Config())
		if ok := cerr == nil && serr == nil; ok != tc.ok || ok && cs.NegotiatedProtocol != trust.ALPNHTTP1 {
			t.Errorf("%s: client %v, server %v", what, cerr, serr)
		}
	}
}

// TestOrigin: which servers a client outside of the mesh believes.
func identities(t *testing.T, uris ...string) (out []ident.Identity) {
	t.Helper()
	for _, u := range uris {
		out = append(out, identity(t, u))
	}
	return out
}

func TestOrigin(t *testing.T) {
	r, stranger := newCRLRoot(t), newRoot(t)
	cert := r.leaf("", func(c *x509.Certificate) { c.DNSNames, c.SerialNumber = []string{"api.example"}, big.NewInt(5) })
	server := &tls.Config{Certificates: []tls.Certificate{cert}}
	mutual := &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: r.pool}
	ca := plan.Secret{Name: "n/ca", Authorities: block("CERTIFICATE", r.cert.Raw)}
	revoked := ca
	revoked.Name, revoked.Revoked = "n/revoked", r.revoke(time.Now().Add(time.Hour), big.NewInt(5))
	ms := trust.NewMaterials([]plan.Secret{ca, revoked, {Name: "n/other", Authorities: block("CERTIFICATE", stranger.cert.Raw)}, r.secret("n/client", nil, "us.example")}, nil)
	for what, tc := range map[string]struct {
		t      plan.ClientTLS
		server *tls.Config
		ok     bool
	}{
		"host":              {plan.ClientTLS{Authorities: "n/ca"}, server, true},
		"SNI is the name":   {plan.ClientTLS{Authorities: "n/ca", SNI: "other.example"}, server, false},
		"names":             {plan.ClientTLS{Authorities: "n/ca", SNI: "other.example", SubjectAltNames: []string{"x", "api.example"}}, server, true},
		"other names":       {plan.ClientTLS{Authorities: "n/ca", SubjectAltNames: []string{"x"}}, server, false},
		"other authorities": {plan.ClientTLS{Authorities: "n/other"}, server, false},
		"the system's":      {plan.ClientTLS{}, server, false},
		"revoked":           {plan.ClientTLS{Authorities: "n/revoked"}, server, false},
		"insecure":          {plan.ClientTLS{Insecure: true}, server, true},
		"no certificate":    {plan.ClientTLS{Authorities: "n/ca"}, mutual, false},
		"certificate":       {plan.ClientTLS{Authorities: "n/ca", Secret: "n/client"}, mutual, true},
	} {
		cfg, err := trust.OriginConfig(&tc.t, ms.Get, "api.example", []string{"h2"})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		_, cerr, serr := shake(t, cfg, tc.server)
		if ok := cerr == nil && serr == nil; ok != tc.ok {
			t.Errorf("%s: client %v, server %v", what, cerr, serr)
		}
	}
	for want, ct := range map[string]plan.ClientTLS{
		"secret n/gone is missing": {Secret: "n/gone"}, "n/gone": {Authorities: "n/gone"}, "no authorities": {Authorities: "n/client"}, "no certificate": {Secret: "n/ca"},
	} {
		if _, err := trust.OriginConfig(&ct, ms.Get, "api.example", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", ct, err, want)
		}
	}
	if _, err := trust.OriginConfig(&plan.ClientTLS{}, ms.Get, "", nil); err == nil {
		t.Error("a server without a name is believed")
	}
}

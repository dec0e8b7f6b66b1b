package testmesh

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"
)

// issuer is a CA outside of the mesh.
type issuer struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{t: t}
	i.cert, i.key = i.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return i
}

func (i *issuer) sign(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	i.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	parent, signer := i.cert, i.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		i.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		i.t.Fatal(err)
	}
	return cert, key
}

func (i *issuer) leaf(host string) (*x509.Certificate, *ecdsa.PrivateKey) {
	return i.sign(&x509.Certificate{DNSNames: []string{host}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}})
}

func inBase64(kind string, der []byte) string {
	return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// secret is a Secret with a certificate for host, and the authorities of i.
func (i *issuer) secret(name, host string) string {
	i.t.Helper()
	cert, key := i.leaf(host)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		i.t.Fatal(err)
	}
	return fmt.Sprintf("\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: istio-system}\ntype: kubernetes.io/tls\ndata:\n  tls.crt: %s\n  tls.key: %s\n  ca.crt: %s\n",
		name, inBase64("CERTIFICATE", cert.Raw), inBase64("PRIVATE KEY", der), inBase64("CERTIFICATE", i.cert.Raw))
}

// A gateway ends TLS by server name with certificates of Secrets, asks for those of clients where it is told to, and takes a
// new certificate without a break; from the manifests to the wire.
func TestGatewayEndsTLS(t *testing.T) {
	t.Parallel()
	ca := newIssuer(t)
	const rules = shop + `
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: ["shop.example.com"], tls: {mode: SIMPLE, credentialName: shop}}
  - {port: {number: 443, name: https-partners, protocol: HTTPS}, hosts: ["partners.example.com"], tls: {mode: MUTUAL, credentialName: partners}}
  - {port: {number: 443, name: https-late, protocol: HTTPS}, hosts: ["late.example.com"], tls: {mode: SIMPLE, credentialName: late}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: front}
spec:
  hosts: [shop.example.com, partners.example.com, late.example.com]
  gateways: [front]
  http: [{route: [{destination: {host: web, port: {number: 80}}}]}]
`
	secrets := ca.secret("shop", "shop.example.com") + ca.secret("partners", "partners.example.com")
	m := Start(t, rules+secrets)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	ask := func(sni string, certs ...tls.Certificate) (Answer, error) {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: sni, Certificates: certs}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		return Try(&http.Client{Transport: tr, Timeout: 20 * time.Second}, "GET", "https://"+m.Gateway(443)+"/", "", "Host: "+sni)
	}
	if a, err := ask("shop.example.com"); err != nil || a.Status != 200 || !strings.HasPrefix(a.By, "web-") {
		t.Errorf("SIMPLE: %d by %q, %v", a.Status, a.By, err)
	}
	if a, err := ask("partners.example.com"); err == nil {
		t.Errorf("MUTUAL without a certificate: %d", a.Status)
	}
	cert, key := ca.leaf("partner")
	if a, err := ask("partners.example.com", tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}); err != nil || a.Status != 200 {
		t.Errorf("MUTUAL: %d, %v", a.Status, err)
	}
	if a, err := ask("late.example.com"); err == nil || !strings.Contains(err.Error(), "internal error") {
		t.Errorf("without its secret: %d, %v", a.Status, err)
	}
	if a, err := ask("nobody.example.com"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("a name that nobody serves: %d, %v", a.Status, err)
	}
	m.Apply(rules + secrets + ca.secret("late", "late.example.com"))
	m.Sync()
	if a, err := ask("late.example.com"); err != nil || a.Status != 200 {
		t.Errorf("after its secret came: %d, %v", a.Status, err)
	}
}

// A sidecar ends the TLS of strangers on a port of its workload, with a certificate of a Secret: from the manifests to the wire.
func TestSidecarEndsTLS(t *testing.T) {
	t.Parallel()
	ca := newIssuer(t)
	manifests := func(tls, mtls string) string {
		return shop + strings.ReplaceAll(ca.secret("web", "web.example.com"), "istio-system", "default") + `
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: web}
spec:
  workloadSelector: {labels: {app: web}}
  egress: [{hosts: ["*/*"]}]
  ingress:
  - {port: {number: 8000, protocol: HTTP, name: http}}
  - {port: {number: 8443, protocol: HTTPS, name: https}, defaultEndpoint: "127.0.0.1:8000", tls: {mode: ` + tls + `, credentialName: web}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8443: {mode: ` + mtls + `}}}
---
apiVersion: v1
kind: Service
metadata: {name: tls}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8443}]}
`
	}
	m := Start(t, manifests("SIMPLE", "DISABLE"))
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	at := func() string { return m.Instance("web-v1").Inbound[8443] }
	ask := func(certs ...tls.Certificate) (Answer, error) {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "web.example.com", Certificates: certs}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		return Try(&http.Client{Transport: tr, Timeout: 20 * time.Second}, "GET", "https://"+at()+"/", "", "X-Forwarded-Client-Cert: By=me")
	}
	plain := func() error {
		_, err := Try(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, "GET", "http://"+at()+"/", "")
		return err
	}
	if a, err := ask(); err != nil || a.By != "web-v1" || strings.Contains(a.Body, "By=me") {
		t.Errorf("SIMPLE: %d by %q, %v\n%s", a.Status, a.By, err, a.Body)
	}
	if plain() == nil {
		t.Error("plaintext was served on the port")
	}
	if ds := m.Apply(manifests("MUTUAL", "PERMISSIVE")); len(ds) > 0 {
		t.Log(ds)
	}
	if a, err := ask(); err == nil {
		t.Errorf("MUTUAL without a certificate: %d", a.Status)
	}
	cert, key := ca.leaf("partner")
	if a, err := ask(tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}); err != nil || a.By != "web-v1" {
		t.Errorf("MUTUAL: %d by %q, %v", a.Status, a.By, err)
	}
	if plain() == nil {
		t.Error("plaintext was served on the port, which is permissive about the mesh's TLS")
	}
	if a := m.Get("client", "http://tls/"); a.Status != 200 || !strings.HasPrefix(a.By, "web-") || !strings.Contains(a.Body, "sa/client") {
		t.Errorf("mesh TLS beside it: %d by %q\n%s", a.Status, a.By, a.Body)
	}
	m.Apply(manifests("SIMPLE", "STRICT"))
	if a, err := ask(); err == nil {
		t.Errorf("where mesh TLS is asked for, a stranger was served with %d", a.Status)
	}
}

package testmesh

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
)

// A gateway ends TLS by server name with certificates of Secrets, asks for those of clients where it is told to, and takes a
// new certificate without a break; from the manifests to the wire.
func TestGatewayEndsTLS(t *testing.T) {
	t.Parallel()
	ca := NewAuthority(t)
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
	secrets := ca.Secret("istio-system", "shop", "shop.example.com") + ca.Secret("istio-system", "partners", "partners.example.com")
	m := Start(t, rules+secrets)
	ask := func(sni string, certs ...tls.Certificate) (Answer, error) {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool, ServerName: sni, Certificates: certs}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		return Try(&http.Client{Transport: tr, Timeout: patience}, "GET", "https://"+m.Gateway(443)+"/", "", "Host: "+sni)
	}
	if a, err := ask("shop.example.com"); err != nil || a.Status != 200 || !strings.HasPrefix(a.By, "web-") {
		t.Errorf("SIMPLE: %d by %q, %v", a.Status, a.By, err)
	}
	for range 20 { // each time: what the client has sent by then must not cost it the reason
		c, err := tls.Dial("tcp", m.Gateway(443), &tls.Config{RootCAs: ca.Pool, ServerName: "partners.example.com"})
		if err == nil {
			_, _ = c.Write(make([]byte, 1000))
			_, err = c.Read(make([]byte, 1))
			_ = c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "certificate required") {
			t.Fatalf("MUTUAL without a certificate: %v", err)
		}
	}
	if a, err := ask("partners.example.com", ca.Issue("partner")); err != nil || a.Status != 200 {
		t.Errorf("MUTUAL: %d, %v", a.Status, err)
	}
	if a, err := ask("late.example.com"); err == nil || !strings.Contains(err.Error(), "internal error") {
		t.Errorf("without its secret: %d, %v", a.Status, err)
	}
	if a, err := ask("nobody.example.com"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("a name that nobody serves: %d, %v", a.Status, err)
	}
	m.Apply(rules + secrets + ca.Secret("istio-system", "late", "late.example.com"))
	m.Sync()
	if a, err := ask("late.example.com"); err != nil || a.Status != 200 {
		t.Errorf("after its secret came: %d, %v", a.Status, err)
	}
}

// A sidecar ends the TLS of strangers on a port of its workload, with a certificate of a Secret: from the manifests to the wire.
func TestSidecarEndsTLS(t *testing.T) {
	t.Parallel()
	ca := NewAuthority(t)
	manifests := func(tls, mtls string) string {
		return shop + ca.Secret("default", "web", "web.example.com") + `
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
	at := func() string { return m.Instance("web-v1").Inbound[8443] }
	ask := func(certs ...tls.Certificate) (Answer, error) {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool, ServerName: "web.example.com", Certificates: certs}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		return Try(&http.Client{Transport: tr, Timeout: patience}, "GET", "https://"+at()+"/", "", "X-Forwarded-Client-Cert: By=me")
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
	if a, err := ask(ca.Issue("partner")); err != nil || a.By != "web-v1" {
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

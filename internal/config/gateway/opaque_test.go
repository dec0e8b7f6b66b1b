package gateway_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/testmesh"
)

// TestConnectionsOfAGateway passes TLS on by server name, ends it for what is no HTTP, passes TCP on, begins TLS as a
// BackendTLSPolicy says, and routes gRPC.
func TestConnectionsOfAGateway(t *testing.T) {
	ca := testmesh.NewAuthority(t)
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-app", "secure")
		fmt.Fprintf(w, "%s %s", r.TLS.ServerName, r.Proto)
	}))
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Issue("backend.example", "*.pass.example")}, MinVersion: tls.VersionTLS12}
	secure.StartTLS()
	defer secure.Close()
	_, port, err := net.SplitHostPort(secure.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	defer func() { _ = echo.Close(); <-done }()
	go func() {
		defer close(done)
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			line, _ := bufio.NewReader(c).ReadString('\n')
			_, _ = io.WriteString(c, "echo "+line)
			_ = c.Close()
		}
	}()
	_, echoPort, err := net.SplitHostPort(echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	outside := func(name, portName, port string) string {
		return `
---
apiVersion: v1
kind: Service
metadata: {name: ` + name + `}
spec: {ports: [{name: ` + portName + `, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: ` + name + `-1, labels: {kubernetes.io/service-name: ` + name + `}}
addressType: IPv4
ports: [{name: ` + portName + `, port: ` + port + `}]
endpoints: [{addresses: [127.0.0.1]}]
`
	}
	manifests := workloads("grpc") + outside("secure", "http", port) + outside("broken", "http", port) + outside("pass", "tls", port) + outside("echo", "tcp", echoPort) +
		ca.Secret("default", "cert", "backend.example") + ca.ConfigMap("default", "ca") + `
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: secure}
spec:
  targetRefs: [{group: "", kind: Service, name: secure}]
  validation: {hostname: backend.example, caCertificateRefs: [{group: "", kind: ConfigMap, name: ca}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: broken}
spec:
  targetRefs: [{group: "", kind: Service, name: broken}]
  validation: {hostname: backend.example, caCertificateRefs: [{group: "", kind: ConfigMap, name: gone}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw}
spec:
  gatewayClassName: malha
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - {name: pass, port: 443, protocol: TLS, hostname: "*.pass.example", tls: {mode: Passthrough}}
  - {name: ended, port: 443, protocol: TLS, hostname: backend.example, tls: {mode: Terminate, certificateRefs: [{name: cert}]}}
  - {name: tcp, port: 5432, protocol: TCP}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: secure}
spec:
  parentRefs: [{name: gw, sectionName: http}]
  hostnames: [www.example]
  rules:
  - matches: [{path: {value: /secure}}]
    backendRefs: [{name: secure, port: 80}]
  - matches: [{path: {value: /broken}}]
    backendRefs: [{name: broken, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: grpc}
spec:
  parentRefs: [{name: gw, sectionName: http}]
  hostnames: [grpc.example]
  rules: [{matches: [{method: {service: shop.Cart, method: Add}}], backendRefs: [{name: grpc, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: pass}
spec: {parentRefs: [{name: gw, sectionName: pass}], hostnames: [a.pass.example], rules: [{backendRefs: [{name: pass, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: ended}
spec: {parentRefs: [{name: gw, sectionName: ended}], hostnames: [backend.example], rules: [{backendRefs: [{name: echo, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: tcp}
spec: {parentRefs: [{name: gw, sectionName: tcp}], rules: [{backendRefs: [{name: echo, port: 80}]}]}
`
	mesh := testmesh.Start(t, manifests)
	client, at := plainClient(t), mesh.Gateway(80)
	if a := mesh.Do(client, "GET", "http://"+at+"/secure", "", "host: www.example"); a.By != "secure" || !strings.HasPrefix(a.Body, "backend.example ") {
		t.Errorf("with a BackendTLSPolicy: %d by %q, %s", a.Status, a.By, a.Body)
	}
	if a := mesh.Do(client, "GET", "http://"+at+"/broken", "", "host: www.example"); a.By != "" || a.Status < 500 {
		t.Errorf("with a BackendTLSPolicy that has no authority: %d by %q", a.Status, a.By)
	}
	h2 := &http.Transport{Protocols: new(http.Protocols)}
	h2.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(h2.CloseIdleConnections)
	grpc := &http.Client{Transport: h2, Timeout: time.Minute}
	for path, by := range map[string]string{"/shop.Cart/Add": "grpc", "/shop.Cart/Remove": ""} {
		if a := mesh.Do(grpc, "POST", "http://"+at+path, "", "host: grpc.example", "content-type: application/grpc"); a.By != by {
			t.Errorf("%s: %d by %q, want %q", path, a.Status, a.By, by)
		}
	}

	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool, ServerName: "a.pass.example", MinVersion: tls.VersionTLS12}}
	t.Cleanup(tr.CloseIdleConnections)
	if a := mesh.Do(&http.Client{Transport: tr, Timeout: time.Minute}, "GET", "https://"+mesh.Gateway(443)+"/", ""); a.By != "secure" || !strings.HasPrefix(a.Body, "a.pass.example ") {
		t.Errorf("passed through: %d by %q, %s", a.Status, a.By, a.Body)
	}
	talk := func(c net.Conn, err error) string {
		if err != nil {
			return err.Error()
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		_, _ = io.WriteString(c, "hello\n")
		answer, _ := io.ReadAll(c)
		return string(answer)
	}
	if got := talk(net.Dial("tcp", mesh.Gateway(5432))); got != "echo hello\n" {
		t.Errorf("TCP: %q", got)
	}
	ended, err := tls.Dial("tcp", mesh.Gateway(443), &tls.Config{RootCAs: ca.Pool, ServerName: "backend.example", MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	if got := talk(ended, nil); got != "echo hello\n" {
		t.Errorf("TLS that is ended: %q", got)
	}
	if _, err := tls.Dial("tcp", mesh.Gateway(443), &tls.Config{RootCAs: ca.Pool, ServerName: "b.pass.example", MinVersion: tls.VersionTLS12}); err == nil {
		t.Error("a server name that no route has was passed on")
	}
}

// FuzzObjects looks for manifests that make the translation fail otherwise than by a diagnostic.
func FuzzObjects(f *testing.F) {
	for _, seed := range []string{
		"apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: gw}\nspec: {gatewayClassName: malha, listeners: [{name: a, port: 80, protocol: HTTP, hostname: '*.a.example', allowedRoutes: {kinds: [{kind: HTTPRoute}]}}]}\n",
		"apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec: {parentRefs: [{name: gw}], rules: [{matches: [{path: {type: RegularExpression, value: '/(a|b)'}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /x}}}], backendRefs: [{name: web, port: 80, weight: 0}]}]}\n",
		"apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g}\nspec: {parentRefs: [{name: gw}, {group: '', kind: Service, name: web}], rules: [{matches: [{method: {method: M}}]}]}\n",
		"apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: s}\nspec: {parentRef: {name: gw}, listeners: [{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}}]}\n",
		"apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: b}\nspec: {targetRefs: [{group: '', kind: Service, name: web}], validation: {hostname: a.example, wellKnownCACertificates: System}}\n",
		"apiVersion: policy.linkerd.io/v1beta3\nkind: HTTPRoute\nmetadata: {name: l}\nspec: {parentRefs: [{group: core, kind: Service, name: web, port: 80}], rules: [{timeouts: {backendRequest: 1s}}]}\n",
	} {
		f.Add(seed)
	}
	const base = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {a: b}, ports: [{name: http, port: 80}]}\n---\n" +
		"apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: gw}\nspec: {gatewayClassName: malha, listeners: [{name: http, port: 80, protocol: HTTP}]}\n---\n"
	f.Fuzz(func(t *testing.T, text string) {
		objs, _ := config.Parse("a.yaml", []byte(base+text))
		cfg, _ := config.Translate(objs)
		for _, r := range cfg.Routings {
			if len(r.Gateways) == 0 || len(r.Hosts) == 0 && !r.Delegate {
				t.Errorf("%s: gateways %v, hosts %v", r.Origin, r.Gateways, r.Hosts)
			}
		}
	})
}

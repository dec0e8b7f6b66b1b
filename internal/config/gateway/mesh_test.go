package gateway_test

import (
	"crypto/tls"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/testmesh"
)

// workloads are programs and Services in the manner of the conformance suite's base manifests.
func workloads(names ...string) string {
	var b strings.Builder
	for _, n := range names {
		ns, name, ok := strings.Cut(n, "/")
		if !ok {
			ns, name = "default", n
		}
		b.WriteString(`
---
apiVersion: v1
kind: Service
metadata: {name: ` + name + `, namespace: ` + ns + `}
spec: {selector: {app: ` + name + `}, ports: [{name: http, port: 80, targetPort: http}, {name: http-alt, port: 8080, targetPort: http}]}
---
apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: ` + name + `, namespace: ` + ns + `, labels: {app: ` + name + `}}
spec: {serviceAccount: ` + name + `, ports: [{name: http, port: 8000}], run: {command: [` + name + `]}}
`)
	}
	return b.String()
}

// exchange is a request and what must come of it.
type exchange struct {
	request string   // "GET host/path", or "host/path"
	headers []string // of the request
	status  int      // 0: 200
	by      string   // the program that answers
	want    []string // lines of the answer's head, or parts of what the program saw
	not     []string
}

func (e *exchange) check(t *testing.T, a *testmesh.Answer) {
	t.Helper()
	status := e.status
	if status == 0 {
		status = 200
	}
	seen := strings.ToLower(a.Body)
	for name, values := range a.Header {
		for _, v := range values {
			seen += "\n" + strings.ToLower(name+": "+v) + "\n"
		}
	}
	if a.Status != status || a.By != e.by {
		t.Errorf("%s %v: answered %d by %q, want %d by %q\n%s", e.request, e.headers, a.Status, a.By, status, e.by, a.Body)
	}
	for _, w := range e.want {
		if !strings.Contains(seen, strings.ToLower(w)) {
			t.Errorf("%s %v: no %q in\n%s", e.request, e.headers, w, seen)
		}
	}
	for _, w := range e.not {
		if strings.Contains(seen, strings.ToLower(w)) {
			t.Errorf("%s %v: there is %q in\n%s", e.request, e.headers, w, seen)
		}
	}
}

func split(request string) (method, host, path string) {
	method, rest, ok := strings.Cut(request, " ")
	if !ok {
		method, rest = "GET", request
	}
	host, path, _ = strings.Cut(rest, "/")
	return method, host, "/" + path
}

func plainClient(t *testing.T) *http.Client {
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// TestRoutesOfAGateway sends the requests of the Gateway API's conformance suite (GATEWAY-HTTP) through a real gateway.
func TestRoutesOfAGateway(t *testing.T) {
	var tries atomic.Int32
	mesh := testmesh.Start(t, workloads("v1", "v2", "v3", "flaky", "slow", "far/other")+`
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw}
spec:
  gatewayClassName: malha
  listeners:
  - {name: all, port: 80, protocol: HTTP}
  - {name: isolated, port: 80, protocol: HTTP, hostname: "*.isolated.example"}
  - {name: empty, port: 80, protocol: HTTP, hostname: empty.isolated.example}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: matching}
spec:
  parentRefs: [{name: gw, sectionName: all}]
  hostnames: [match.example]
  rules:
  - backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /v2}}, {headers: [{name: version, value: two}]}, {queryParams: [{name: animal, value: whale}]}, {method: PUT}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {type: Exact, value: /v2/three}}, {path: {value: /v2}, method: POST, headers: [{name: version, value: three}]}, {path: {type: RegularExpression, value: "/re/[0-9]+"}}]
    backendRefs: [{name: v3, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: z-across}
spec:
  parentRefs: [{name: gw, sectionName: all}]
  hostnames: [match.example, "*.wild.example"]
  rules:
  - matches: [{path: {value: /v2/longer/path}}]
    backendRefs: [{name: v3, port: 80}]
  - matches: [{path: {value: /v2}}]
    backendRefs: [{name: v1, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: filters}
spec:
  parentRefs: [{name: gw, sectionName: all}]
  hostnames: [filters.example]
  rules:
  - matches: [{path: {value: /headers}}]
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: set}], add: [{name: X-Add, value: added}], remove: [X-Remove]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: X-Answer, value: "yes"}], remove: [X-App-Secret]}}
    backendRefs: [{name: v1, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-Backend, value: one}]}}]}]
  - matches: [{path: {value: /full}}]
    filters: [{type: URLRewrite, urlRewrite: {hostname: new.example, path: {type: ReplaceFullPath, replaceFullPath: /whole}}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /prefix}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /short}}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /strip}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /to-host}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: other.example}}]
  - matches: [{path: {value: /to-scheme}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301}}]
  - matches: [{path: {value: /to-port}}]
    filters: [{type: RequestRedirect, requestRedirect: {port: 8083, statusCode: 307}}]
  - matches: [{path: {value: /to-path}}]
    filters: [{type: RequestRedirect, requestRedirect: {statusCode: 308, path: {type: ReplacePrefixMatch, replacePrefixMatch: /there}}}]
  - matches: [{path: {value: /to-full}}]
    filters: [{type: RequestRedirect, requestRedirect: {statusCode: 303, path: {type: ReplaceFullPath, replaceFullPath: /there}}}]
  - matches: [{path: {value: /cors}}]
    filters: [{type: CORS, cors: {allowOrigins: ["https://*.a.example"], allowMethods: [PUT], maxAge: 60}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /mirror}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /unknown}}]
    filters: [{type: ExtensionRef, extensionRef: {group: example.com, kind: Magic, name: x}}]
    backendRefs: [{name: v1, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: backends}
spec:
  parentRefs: [{name: gw, sectionName: all}]
  hostnames: [backends.example]
  rules:
  - matches: [{path: {value: /gone}}]
    backendRefs: [{name: gone, port: 80}]
  - matches: [{path: {value: /denied}}]
    backendRefs: [{name: other, namespace: far, port: 8080}]
  - matches: [{path: {value: /none}}]
  - matches: [{path: {value: /zero}}]
    backendRefs: [{name: v1, port: 80, weight: 0}]
  - matches: [{path: {value: /half}}]
    backendRefs: [{name: v1, port: 80, weight: 1}, {name: gone, port: 80, weight: 1}, {name: v2, port: 80, weight: 0}]
  - matches: [{path: {value: /retry}}]
    retry: {codes: [500], attempts: 2, backoff: 1ms}
    backendRefs: [{name: flaky, port: 80}]
  - matches: [{path: {value: /slow}}]
    timeouts: {request: 100ms}
    backendRefs: [{name: slow, port: 80}]
  - matches: [{path: {value: /try}}]
    timeouts: {backendRequest: 100ms}
    backendRefs: [{name: slow, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: isolated}
spec:
  parentRefs: [{name: gw, sectionName: isolated}]
  rules: [{backendRefs: [{name: v2, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: fallback}
spec:
  parentRefs: [{name: gw, sectionName: all}]
  rules: [{matches: [{path: {value: /fallback}}], backendRefs: [{name: v3, port: 80}]}]
`, testmesh.Options{Handler: func(n ident.Name) http.Handler {
		switch n.Name {
		case "flaky": // answers every third request
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("x-app", n.Name)
				if tries.Add(1)%3 != 0 {
					w.WriteHeader(500)
				}
			})
		case "slow":
			return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		}
		return nil
	}})
	client, at := plainClient(t), mesh.Gateway(80)
	for _, e := range []exchange{
		{request: "match.example/", by: "v1"},
		{request: "match.example/v2", by: "v2"},
		{request: "match.example/v2/", by: "v2"},
		{request: "match.example/v2example", by: "v1"},
		{request: "match.example/", headers: []string{"Version: two"}, by: "v2"},
		{request: "match.example/v2/x", headers: []string{"Version: three"}, by: "v2"},
		{request: "POST match.example/v2/x", headers: []string{"Version: three"}, by: "v3"},
		{request: "match.example/?animal=whale", by: "v2"},
		{request: "match.example/?animal=dolphin", by: "v1"},
		{request: "PUT match.example/x", by: "v2"},
		{request: "match.example/v2/three", by: "v3"},
		{request: "match.example/v2/three/four", by: "v2"},
		{request: "match.example/re/12", by: "v1"}, // a prefix goes before an expression
		{request: "match.example/v2/longer/path/x", by: "v3"},
		{request: "a.wild.example/v2", by: "v1"},
		{request: "a.b.wild.example/v2", by: "v1"},
		{request: "wild.example/v2", status: 404},
		{request: "a.wild.example/x", status: 404},
		{request: "nobody.example/x", status: 404},
		{request: "nobody.example/fallback", by: "v3"},

		{request: "filters.example/headers", headers: []string{"x-set: no", "x-add: there", "x-remove: x"}, by: "v1",
			want: []string{"x-set: set\r", "x-add: there", "x-add: added", "x-backend: one", "x-answer: yes"}, not: []string{"x-remove", "x-set: no"}},
		{request: "filters.example/full/a?q=1", by: "v1", want: []string{"GET /whole?q=1 ", "host: new.example"}},
		{request: "filters.example/prefix/a", by: "v1", want: []string{"GET /short/a "}},
		{request: "filters.example/prefix", by: "v1", want: []string{"GET /short "}},
		{request: "filters.example/strip/a", by: "v1", want: []string{"GET /a "}},
		{request: "filters.example/strip", by: "v1", want: []string{"GET / "}},
		{request: "filters.example/to-host/a", status: 302, want: []string{"location: http://other.example/to-host/a"}},
		{request: "filters.example/to-scheme", status: 301, want: []string{"location: https://filters.example/to-scheme\n"}},
		{request: "filters.example/to-port", status: 307, want: []string{"location: http://filters.example:8083/to-port\n"}},
		{request: "filters.example/to-path/a?q=1", status: 308, want: []string{"location: http://filters.example/there/a?q=1\n"}},
		{request: "filters.example/to-full/a", status: 303, want: []string{"location: http://filters.example/there\n"}},
		{request: "OPTIONS filters.example/cors", headers: []string{"Origin: https://x.y.a.example", "Access-Control-Request-Method: PUT"},
			want: []string{"access-control-allow-origin: https://x.y.a.example", "access-control-allow-methods: put", "access-control-max-age: 60"}},
		{request: "OPTIONS filters.example/cors", headers: []string{"Origin: https://b.example", "Access-Control-Request-Method: PUT"}, not: []string{"access-control-allow-origin"}},
		{request: "filters.example/cors", headers: []string{"Origin: https://z.a.example"}, by: "v1", want: []string{"access-control-allow-origin: https://z.a.example"}},
		{request: "filters.example/mirror", by: "v1"},
		{request: "filters.example/unknown", status: 500},

		{request: "backends.example/gone", status: 500},
		{request: "backends.example/denied", status: 500},
		{request: "backends.example/none", status: 500},
		{request: "backends.example/zero", status: 500},
		{request: "backends.example/retry", by: "flaky"},
		{request: "backends.example/slow", status: 504},
		{request: "backends.example/try", status: 504},

		{request: "a.isolated.example/", by: "v2"},
		{request: "a.isolated.example/fallback", by: "v2"},
		{request: "empty.isolated.example/fallback", status: 404},
	} {
		method, host, path := split(e.request)
		a := mesh.Do(client, method, "http://"+at+path, "", append([]string{"host: " + host}, e.headers...)...)
		e.check(t, &a)
	}
	counts := map[int]int{}
	const n = 200
	for range n {
		a := mesh.Do(client, "GET", "http://"+at+"/half", "", "host: backends.example")
		counts[a.Status]++
		if a.By == "v2" {
			t.Error("a backend of weight 0 got a request")
		}
	}
	if counts[200] < n/4 || counts[500] < n/4 || counts[200]+counts[500] != n { // the half, and six standard deviations
		t.Errorf("half of the requests have no backend: %v", counts)
	}
}

// TestRoutesOfTheMesh sends the requests of the suite's MESH-HTTP profile from programs of two namespaces.
func TestRoutesOfTheMesh(t *testing.T) {
	mesh := testmesh.Start(t, workloads("client", "echo", "v1", "v2", "consumer/visitor")+`
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: echo}
spec:
  parentRefs: [{group: "", kind: Service, name: echo, port: 80}]
  rules:
  - matches: [{path: {value: /v1}}, {headers: [{name: version, value: v1}]}, {queryParams: [{name: version, value: v1}]}]
    backendRefs: [{name: v1, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-backend, value: v1}]}}]}]
  - matches: [{path: {value: /rewrite}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {value: /away}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: example.org, port: 8443, path: {type: ReplaceFullPath, replaceFullPath: /x}}}]
  - name: itself
    matches: [{path: {value: /itself}}]
    timeouts: {request: 5s}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: mine, namespace: consumer}
spec:
  parentRefs: [{group: "", kind: Service, namespace: default, name: echo, port: 80}]
  rules:
  - filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-consumer, value: "yes"}]}}]
`)
	client, visitor := mesh.Client("client"), mesh.Client("consumer/visitor")
	for _, e := range []exchange{
		{request: "echo/v1", by: "v1", want: []string{"x-backend: v1"}},
		{request: "echo.default.svc.cluster.local/v1", by: "v1"},
		{request: "echo/itself", headers: []string{"version: v1"}, by: "echo"}, // the longer path goes before the header
		{request: "echo/x", headers: []string{"version: v1"}, status: 0, by: "v1"},
		{request: "echo/x?version=v1", by: "v1"},
		{request: "echo/rewrite/a", by: "v2", want: []string{"GET /new/a "}},
		{request: "echo/away", status: 302, want: []string{"location: https://example.org:8443/x\n"}},
		{request: "echo/itself", by: "echo"},
		{request: "echo/other", status: 404},
		{request: "echo:8080/other", by: "echo"}, // of another port the route says nothing
		{request: "v1/x", by: "v1"},
	} {
		method, host, path := split(e.request)
		a := mesh.Do(client, method, "http://"+host+path, "", e.headers...)
		e.check(t, &a)
		if strings.Contains(strings.ToLower(a.Header.Get("x-consumer")), "yes") {
			t.Errorf("%s: the consumer's route is in force for others", e.request)
		}
	}
	e := exchange{request: "echo.default/v1", by: "echo", want: []string{"x-consumer: yes"}}
	a := mesh.Do(visitor, "GET", "http://echo.default/v1", "")
	e.check(t, &a)
}

// TestTLSOfAGateway ends TLS at a gateway, by server name, with and without client certificates.
func TestTLSOfAGateway(t *testing.T) {
	ca := testmesh.NewAuthority(t)
	mesh := testmesh.Start(t, workloads("v1", "v2")+ca.Secret("default", "cert", "*.shop.example", "one.example")+ca.ConfigMap("default", "ca")+`
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw}
spec:
  gatewayClassName: malha
  tls: {frontend: {default: {}, perPort: [{port: 8443, tls: {validation: {caCertificateRefs: [{group: "", kind: ConfigMap, name: ca}]}}}]}}
  listeners:
  - {name: shop, port: 443, protocol: HTTPS, hostname: "*.shop.example", tls: {certificateRefs: [{name: cert}]}}
  - {name: one, port: 443, protocol: HTTPS, hostname: one.example, tls: {certificateRefs: [{name: cert}]}}
  - {name: known, port: 8443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{name: gw, sectionName: shop}, {name: gw, sectionName: known}]
  rules: [{backendRefs: [{name: v1, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: one}
spec:
  parentRefs: [{name: gw, sectionName: one}]
  rules: [{backendRefs: [{name: v2, port: 80}]}]
`)
	client := func(serverName string, certs ...tls.Certificate) *http.Client {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool, ServerName: serverName, Certificates: certs, MinVersion: tls.VersionTLS12}}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr, Timeout: time.Minute}
	}
	for _, c := range []struct {
		serverName, host, by string
		status               int
	}{
		{"a.shop.example", "a.shop.example", "v1", 200},
		{"a.shop.example", "b.shop.example", "v1", 200},
		{"one.example", "one.example", "v2", 200},
		{"one.example", "a.shop.example", "", 421},
		{"a.shop.example", "one.example", "", 421},
	} {
		a := mesh.Do(client(c.serverName), "GET", "https://"+mesh.Gateway(443)+"/", "", "host: "+c.host)
		if a.Status != c.status || a.By != c.by {
			t.Errorf("server name %s, host %s: %d by %q, want %d by %q", c.serverName, c.host, a.Status, a.By, c.status, c.by)
		}
	}
	if _, err := testmesh.Try(client("other.example"), "GET", "https://"+mesh.Gateway(443)+"/", ""); err == nil {
		t.Error("a server name that no listener has was let in")
	}
	if _, err := testmesh.Try(client("a.shop.example"), "GET", "https://"+mesh.Gateway(8443)+"/", ""); err == nil {
		t.Error("a client without a certificate was let in")
	}
	if a := mesh.Do(client("a.shop.example", ca.Issue("client.example")), "GET", "https://"+mesh.Gateway(8443)+"/", ""); a.Status != 200 || a.By != "v1" {
		t.Errorf("a client with a certificate got %d by %q", a.Status, a.By)
	}
}

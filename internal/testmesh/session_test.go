package testmesh

import (
	"net/http"
	"strings"
	"testing"
)

// Sessions of a rule of the Gateway API keep a client on one endpoint of one of its backends, in the mesh and at a gateway, by cookie
// and by header, until they are over.
func TestSessionsOfRules(t *testing.T) {
	t.Parallel()
	m := Start(t, shop+`
---
apiVersion: v1
kind: Service
metadata: {name: web-v1}
spec: {selector: {app: web, version: v1}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-v2}
spec: {selector: {app: web, version: v2}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front}
spec:
  gatewayClassName: malha
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec:
  parentRefs: [{group: "", kind: Service, name: web}, {name: front}]
  rules:
  - matches: [{path: {value: /header}}]
    backendRefs: [{name: web-v1, port: 80}, {name: web-v2, port: 80}]
    sessionPersistence: {type: Header, sessionName: X-Session}
  - matches: [{path: {value: /permanent}}]
    backendRefs: [{name: web-v1, port: 80}, {name: web-v2, port: 80}]
    sessionPersistence: {sessionName: kept, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}
  - backendRefs: [{name: web-v1, port: 80}, {name: web-v2, port: 80}]
    sessionPersistence: {absoluteTimeout: 1h}
`)
	inside := m.Client("client")
	for name, at := range map[string]struct {
		client *http.Client
		url    string
	}{"mesh": {inside, "http://web"}, "gateway": {http.DefaultClient, "http://" + m.Gateway(80)}} {
		ask := func(path string, headers ...string) Answer {
			t.Helper()
			a := m.Do(at.client, "GET", at.url+path, "", headers...)
			if a.Status != 200 || a.By == "" {
				t.Fatalf("%s %s: %d by %q", name, path, a.Status, a.By)
			}
			return a
		}
		for path, header := range map[string]bool{"/header": true, "/permanent": false, "/other": false} {
			by := map[string]bool{}
			for n := 0; n < 12 || len(by) < 2 && n < 100; n++ { // new sessions begin at either by chance
				first := ask(path)
				by[first.By] = true
				token := "X-Session: " + first.Header.Get("x-session")
				if !header {
					cookie := first.Header.Get("set-cookie")
					if strings.Contains(cookie, "Max-Age=3600") != (path == "/permanent") || !strings.Contains(cookie, "; Path=/; HttpOnly") {
						t.Errorf("%s %s: Set-Cookie: %s", name, path, cookie)
					}
					cookie, _, _ = strings.Cut(cookie, ";")
					token = "Cookie: " + cookie
				}
				for range 6 {
					if a := ask(path, token); a.By != first.By || a.Header.Get("set-cookie")+a.Header.Get("x-session") != "" {
						t.Errorf("%s %s: came to %s with a session of %s, and was told %q", name, path, a.By, first.By, a.Header.Get("set-cookie")+a.Header.Get("x-session"))
					}
				}
				if dot := strings.LastIndexByte(token, '.'); dot > 0 {
					if a := ask(path, token[:dot]+".1"); a.Header.Get("set-cookie") == "" {
						t.Errorf("%s %s: a session of long ago goes on", name, path)
					}
				} else if !header {
					t.Errorf("%s %s: %s does not tell when the session began", name, path, token)
				}
			}
			if len(by) != 2 {
				t.Errorf("%s %s: all sessions began at %v", name, path, by)
			}
		}
	}
}

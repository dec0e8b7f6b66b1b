package testmesh

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// program is a workload that runs a program of the test, under an account of that name.
func program(name, app string) string {
	return fmt.Sprintf(`---
apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: %[1]s, labels: {app: %[2]s}}
spec: {serviceAccount: %[2]s, ports: [{name: http, port: 8000}], run: {command: [%[2]s]}}
`, name, app)
}

// Requests of one user meet at one replica, whichever proxy sends them, and users are spread over both.
func TestUsersMeet(t *testing.T) {
	t.Parallel()
	for _, lb := range []string{"ringHash: {minimumRingSize: 4096}", "maglev: {tableSize: 251}"} {
		m := Start(t, `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
`+program("client", "client")+program("other", "other")+program("web-1", "web")+program("web-2", "web")+fmt.Sprintf(`---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec:
  host: web
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user, %s}}}
`, lb))
		one, two := m.Client("client"), m.Client("other")
		replicas := make(map[string]int)
		for user := range 40 {
			h := fmt.Sprintf("x-user: u%d", user)
			by := m.Do(one, http.MethodGet, "http://web/", "", h).By
			for _, c := range []*http.Client{one, two} {
				if again := m.Do(c, http.MethodGet, "http://web/", "", h).By; again != by || by == "" {
					t.Fatalf("%s: user %d went to %q and %q", lb, user, by, again)
				}
			}
			replicas[by]++
		}
		if len(replicas) != 2 {
			t.Errorf("%s: all users went to %v", lb, replicas)
		}
	}
}

// A session leads to its replica through every proxy, and through one that was started anew.
func TestSessionsOutliveProxies(t *testing.T) {
	t.Parallel()
	manifests := `
apiVersion: v1
kind: Service
metadata: {name: web, labels: {istio.io/persistent-session: visit}}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
`
	for _, name := range []string{"client", "other"} {
		manifests += program(name, name)
	}
	for i := range 4 {
		manifests += program(fmt.Sprint("web-", i), "web")
	}
	m := Start(t, manifests)
	sessions := map[string]string{} // cookie to replica
	for range 40 {
		a := m.Get("client", "http://web/")
		cookie, _, _ := strings.Cut(a.Header.Get("Set-Cookie"), ";")
		if a.By == "" || !strings.HasPrefix(cookie, "visit=") {
			t.Fatalf("%d by %q with cookie %q", a.Status, a.By, cookie)
		}
		sessions[cookie] = a.By
	}
	if len(sessions) != 4 {
		t.Fatalf("sessions %v", sessions)
	}
	follow := func(when, from string) {
		c := m.Client(from)
		for cookie, want := range sessions {
			for range 3 {
				if by := m.Do(c, http.MethodGet, "http://web/", "", "cookie: "+cookie).By; by != want {
					t.Errorf("%s, from %s: a session of %s came to %s", when, from, want, by)
				}
			}
		}
	}
	follow("at once", "client")
	follow("at once", "other")
	p := m.Proxy("client")
	m.stopProxies(func(n ident.Name) bool { return n == p.Name })
	m.startProxy(plan.Node{Name: p.Name, Role: plan.Sidecar, Identity: p.Creds.Current().Identity})
	m.Sync()
	follow("after a restart", "client")
}

package testmesh

import (
	"fmt"
	"net/http"
	"testing"
)

// Requests of one user meet at one replica, whichever proxy sends them, and users are spread over both.
func TestUsersMeet(t *testing.T) {
	t.Parallel()
	for _, lb := range []string{"ringHash: {minimumRingSize: 4096}", "maglev: {tableSize: 251}"} {
		m := Start(t, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: client}
spec: {selector: {app: client}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: client, labels: {app: client}}
spec: {serviceAccount: client, ports: [{name: http, port: 80}], run: {command: [client]}}
---
apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: other, labels: {app: other}}
spec: {serviceAccount: other, ports: [{name: http, port: 80}], run: {command: [other]}}
---
apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: web-1, labels: {app: web}}
spec: {serviceAccount: web, ports: [{name: http, port: 8000}], run: {command: [web]}}
---
apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: web-2, labels: {app: web}}
spec: {serviceAccount: web, ports: [{name: http, port: 8000}], run: {command: [web]}}
---
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

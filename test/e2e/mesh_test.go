package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// strict refuses whoever has no certificate of the mesh.
const strict = `apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: malha-system}
spec: {mtls: {mode: STRICT}}
`

// TestMesh installs the mesh and deploys the applications in it, unchanged, under strict mutual TLS; each is used by a client
// in the mesh. Afterwards nothing of the mesh is left.
func TestMesh(t *testing.T) {
	b := up(t)
	b.install(t, "--profile=demo")
	b.apply(t, strict)
	t.Cleanup(func() { b.remove(t, strict) })
	t.Run("in", func(t *testing.T) { // ends when all of them have, which run at the same time
		for _, app := range Apps {
			t.Run(app.Name, func(t *testing.T) {
				t.Parallel()
				namespace := "mesh-" + app.Name
				b.app(t, app, namespace, "malha.dev/inject: enabled")
				from := b.client(t, namespace)
				b.everyPodHasTheProxy(t, namespace)
				eventually(t, func() error {
					return app.Check(t.Context(), b.c, namespace, true, func(url string, times int) ([]string, error) { return from.get(t.Context(), url, times) })
				})
				if app.Name == "goweb" {
					b.doors(t, namespace)
				}
			})
		}
		for name, story := range map[string]func(*bed, *testing.T){
			"probes": (*bed).probes, "jobs": (*bed).jobs, "opaque": (*bed).opaque, "names": (*bed).names, "rollouts": (*bed).rollouts, "commands": (*bed).commands,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				story(b, t)
			})
		}
	})
}

func (b *bed) everyPodHasTheProxy(t *testing.T, namespace string) {
	t.Helper()
	pods := kubectl(t, b.c, "", "-n", namespace, "get", "pods", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.initContainers[*].name}{"\n"}{end}`)
	for line := range strings.Lines(pods) {
		if !strings.Contains(line, "malha-proxy") {
			t.Errorf("a pod without the proxy: %s", line)
		}
	}
}

// doors: who is not in the mesh is refused at every door of a Service, the pod's address, a port of the nodes and the load balancer's
// address, until the port permits plain text.
func (b *bed) doors(t *testing.T, namespace string) {
	t.Helper()
	b.apply(t, `apiVersion: v1
kind: Service
metadata: {name: by-node}
spec:
  type: NodePort
  selector: {name: go-web-app}
  ports: [{name: http, port: 80}]
`, "-n", namespace)
	in, out := client{b.c, namespace}, b.outside(t)
	doors := map[string]string{
		"pod":           kubectl(t, b.c, "", "-n", namespace, "get", "pods", "-l", "name=go-web-app", "-o", "jsonpath={.items[0].status.podIP}"),
		"load balancer": kubectl(t, b.c, "", "-n", namespace, "get", "service", "go-web-service", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}"),
		"node": kubectl(t, b.c, "", "get", "nodes", "-o", `jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}`) + ":" +
			kubectl(t, b.c, "", "-n", namespace, "get", "service", "by-node", "-o", "jsonpath={.spec.ports[0].nodePort}"),
	}
	for door, address := range doors {
		eventually(t, func() error {
			if got, err := out.get(t.Context(), "http://"+address+"/", 1); err == nil {
				return fmt.Errorf("%s: strict mutual TLS lets plain requests in: %s", door, got)
			}
			return nil
		})
	}
	// Of these the mesh knows the load balancer's address as the Service's; the others get plain text from its clients too.
	eventually(t, func() error {
		_, err := in.get(t.Context(), "http://"+doors["load balancer"]+"/", 1)
		return err
	})
	b.apply(t, `apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web}
spec:
  selector: {matchLabels: {name: go-web-app}}
  mtls: {mode: STRICT}
  portLevelMtls: {80: {mode: PERMISSIVE}}
`, "-n", namespace)
	for door, address := range doors {
		eventually(t, func() error {
			if _, err := out.get(t.Context(), "http://"+address+"/", 1); err != nil {
				return fmt.Errorf("%s: plain requests are permitted and fail: %w", door, err)
			}
			return nil
		})
	}
}

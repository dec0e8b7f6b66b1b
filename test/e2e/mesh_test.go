package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/test/cluster"
)

// TestMesh installs the mesh and deploys the applications in it, unchanged, under strict mutual TLS; each is used by a client
// in the mesh. Afterwards nothing of the mesh is left.
func TestMesh(t *testing.T) {
	c, goweb := up(t)
	if err := Kinds(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	mesh, err := BuildMesh(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Load(t.Context(), mesh.Images...); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"check", "--pre"}, {"install", "--profile=demo", "--timeout=90s"}, {"check"}} {
		out, err := mesh.Run(t.Context(), c, args...)
		if err != nil {
			pods, _ := c.Kubectl(t.Context(), "", "-n", "malha-system", "get", "pods", "-o", "wide")
			logs, _ := c.Kubectl(t.Context(), "", "-n", "malha-system", "logs", "deployment/malhad", "--tail=30")
			t.Fatalf("%v\n%s\n%s", err, pods, logs)
		}
		t.Log(out)
	}
	kubectl(t, c, strict, "apply", "-f", "-")
	for _, app := range Apps {
		t.Run(app.Name, func(t *testing.T) {
			namespace := "mesh-" + app.Name
			remake(t, c, namespace, "malha.dev/inject: enabled")
			if err := app.Deploy(t.Context(), c, namespace); err != nil {
				t.Fatal(err)
			}
			kubectl(t, c, "", "-n", namespace, "run", "client", "--image=malha.test/goweb:1")
			kubectl(t, c, "", "-n", namespace, "wait", "--for=condition=Ready", "pod/client", "--timeout=60s")
			pods := kubectl(t, c, "", "-n", namespace, "get", "pods", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.initContainers[*].name}{"\n"}{end}`)
			for line := range strings.Lines(pods) {
				if !strings.Contains(line, "malha-proxy") {
					t.Errorf("a pod without the proxy: %s", line)
				}
			}
			eventually(t, func() error {
				return app.Check(t.Context(), c, namespace, true, func(url string) (string, error) {
					return c.Kubectl(t.Context(), "", "-n", namespace, "exec", "client", "-c", "client", "--", "/goweb", "get", url)
				})
			})
			if app.Name == "goweb" {
				checkStrict(t, c, namespace, goweb)
			}
			kubectl(t, c, "", "delete", "namespace", namespace, "--timeout=90s")
		})
	}
	if _, err := mesh.Run(t.Context(), c, "uninstall"); err != nil {
		t.Error(err)
	}
	if left := kubectl(t, c, "", "get", "all,configmaps,secrets,mutatingwebhookconfigurations,validatingwebhookconfigurations,clusterroles,clusterrolebindings", "-A", "-o", "name", "-l", "app.kubernetes.io/part-of=malha"); left != "" {
		t.Errorf("after uninstall there is still: %s", left)
	}
}

// checkStrict: who is not in the mesh is refused, until the namespace permits it. The client is on the node.
func checkStrict(t *testing.T, c *cluster.Cluster, namespace, goweb string) {
	t.Helper()
	plain := func() ([]byte, error) {
		ip := kubectl(t, c, "", "-n", namespace, "get", "pods", "-l", "name=go-web-app", "-o", "jsonpath={.items[0].status.podIP}")
		return c.Command(t.Context(), goweb, "get", "http://"+ip+"/").CombinedOutput()
	}
	eventually(t, func() error {
		if out, err := plain(); err == nil {
			return fmt.Errorf("strict mutual TLS lets plain requests in: %s", out)
		}
		return nil
	})
	kubectl(t, c, strings.NewReplacer("malha-system", namespace, "STRICT", "PERMISSIVE").Replace(strict), "apply", "-f", "-")
	eventually(t, func() error {
		if out, err := plain(); err != nil {
			return fmt.Errorf("plain requests are permitted and fail: %w: %s", err, out)
		}
		return nil
	})
}

const strict = `apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: malha-system}
spec: {mtls: {mode: STRICT}}
`

package e2e

import (
	"os"
	"strings"
	"testing"
)

// TestMesh installs the mesh and deploys the applications in it, unchanged, under strict mutual TLS; each is used by a client
// in the mesh. Afterwards nothing of the mesh is left.
func TestMesh(t *testing.T) {
	if os.Getenv("MALHA_E2E_MESH") == "" {
		t.Skip("set MALHA_E2E_MESH=1 too: make e2e doesn't ask for the mesh yet")
	}
	c, _ := up(t)
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
	for _, app := range Apps {
		t.Run(app.Name, func(t *testing.T) {
			namespace := "mesh-" + app.Name
			remake(t, c, namespace, "malha.dev/inject: enabled")
			// Istio's kinds are not there in every cluster: the mesh's default is what is tested.
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
			kubectl(t, c, "", "delete", "namespace", namespace, "--wait=false")
		})
	}
	if _, err := mesh.Run(t.Context(), c, "uninstall", "--yes"); err != nil {
		t.Error(err)
	}
	if left := kubectl(t, c, "", "get", "all,configmaps,secrets,mutatingwebhookconfigurations,validatingwebhookconfigurations,clusterroles,clusterrolebindings", "-A", "-o", "name", "-l", "app.kubernetes.io/part-of=malha"); left != "" {
		t.Errorf("after uninstall there is still: %s", left)
	}
}

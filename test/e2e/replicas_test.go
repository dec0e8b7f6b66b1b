package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// TestReplicas runs three control planes: all of them serve proxies, one of them writes, and when that one dies another does. Pods of
// the mesh start meanwhile, and no request fails.
func TestReplicas(t *testing.T) {
	b := up(t)
	const namespace = "replicas"
	b.install(t, "--profile=default", "--set", "controlPlane.replicas=3", "--set", "ingressGateway.enabled=false")
	b.apply(t, strict)
	t.Cleanup(func() { b.remove(t, strict) })
	b.namespace(t, namespace, "malha.dev/inject: enabled", "")
	b.apply(t, strings.Replace(server("web", ready), "spec:\n", "spec:\n  replicas: 6\n", 1), "-n", namespace)
	in := b.client(t, namespace)
	b.available(t, namespace)

	// All serve. The Service leads each proxy to any one of them, so by chance (one in nine) a replica has none of seven: then draw again.
	for try := range 5 {
		serving := b.serving(t)
		if len(serving) == 3 {
			break
		}
		if try == 4 {
			t.Errorf("proxies are served by %v, and there are three replicas", serving)
		}
		kubectl(t, b.c, "", "-n", namespace, "rollout", "restart", "deployment/web")
		kubectl(t, b.c, "", "-n", namespace, "rollout", "status", "deployment/web", "--timeout=300s")
	}

	w := in.watch(t, "the Service", "http://web/", `(web)-`)
	leader := b.leader(t)
	b.reviewed(t, namespace, "before", leader)
	kubectl(t, b.c, "", "-n", "malha-system", "delete", "pod", leader, "--force", "--grace-period=0")
	// Before another leads: pods start as ever, by the webhooks of those that are left.
	kubectl(t, b.c, "", "-n", namespace, "scale", "deployment/web", "--replicas=8")
	kubectl(t, b.c, "", "-n", namespace, "rollout", "status", "deployment/web", "--timeout=300s")
	b.everyPodHasTheProxy(t, namespace)
	eventually(t, func() error { // the Lease lives 15 s
		if now := b.leader(t); now == leader {
			return fmt.Errorf("%s leads, and was deleted", now)
		}
		return nil
	})
	b.reviewed(t, namespace, "after", b.leader(t))
	kubectl(t, b.c, "", "-n", "malha-system", "rollout", "status", "deployment/malhad", "--timeout=300s")
	if answers := w.end(t); len(w.failed) > 0 {
		t.Errorf("of %d requests failed: %q", answers, w.failed)
	}
	kubectl(t, b.c, "", "-n", namespace, "delete", "virtualservice", "before", "after")
	eventually(t, func() error {
		_, err := b.mesh.Run(t.Context(), b.c, "check", "--proxy")
		return err
	})
}

// leader is the pod that holds the Lease.
func (b *bed) leader(t *testing.T) string {
	t.Helper()
	holder := kubectl(t, b.c, "", "-n", "malha-system", "get", "lease", "malha-leader", "-o", "jsonpath={.spec.holderIdentity}")
	name, _, _ := strings.Cut(holder, "_")
	return name
}

// serving counts the proxies of each replica of the control plane.
func (b *bed) serving(t *testing.T) map[string]string {
	t.Helper()
	serving := map[string]string{}
	for pod := range strings.FieldsSeq(kubectl(t, b.c, "", "-n", "malha-system", "get", "pods", "-l", "app=malhad", "-o", "jsonpath={.items[*].metadata.name}")) {
		out := kubectl(t, b.c, "", "get", "--raw", "/api/v1/namespaces/malha-system/pods/"+pod+":15014/proxy/metrics")
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 2 && strings.HasPrefix(f[0], "pilot_xds{") && f[1] != "0" {
				serving[pod] = f[1]
			}
		}
	}
	return serving
}

// reviewed writes an object that has something to be said about, and waits until its status says it.
func (b *bed) reviewed(t *testing.T, namespace, name, leader string) {
	t.Helper()
	b.apply(t, fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %s}
spec:
  hosts: [%s.example.com]
  http: [{route: [{destination: {host: nobody-%s}}]}]
`, name, name, name), "-n", namespace)
	eventually(t, func() error {
		var vs struct {
			Status struct {
				Conditions         []struct{ Type, Status, Message string }
				ValidationMessages []struct{ Type struct{ Code string } }
			}
		}
		if err := json.Unmarshal([]byte(kubectl(t, b.c, "", "-n", namespace, "get", "virtualservice", name, "-o", "json")), &vs); err != nil {
			return err
		}
		if len(vs.Status.Conditions) == 0 {
			return fmt.Errorf("VirtualService %s has no status while %s leads", name, leader)
		}
		return nil
	})
}

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// commands: what the command line says of a small application, as malha and as a plug-in of kubectl.
func (b *bed) commands(t *testing.T) {
	const namespace = "mesh-commands"
	b.namespace(t, namespace, "malha.dev/inject: enabled", "")
	b.apply(t, server("web", ready)+`apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http: [{timeout: 3s, match: [{uri: {prefix: /api}}], route: [{destination: {host: web, port: {number: 80}}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules: [{to: [{operation: {methods: [DELETE]}}]}]
`, "-n", namespace)
	in := b.client(t, namespace)
	b.available(t, namespace)
	if _, err := in.get(t.Context(), "http://web/api", 1); err != nil {
		t.Error(err)
	}
	pod := kubectl(t, b.c, "", "-n", namespace, "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}")
	ask := func(want []string, args ...string) {
		t.Helper()
		eventually(t, func() error {
			out, err := b.mesh.Run(t.Context(), b.c, args...)
			return says(out, err, want, args)
		})
	}
	const identity = "spiffe://cluster.local/ns/" + namespace + "/sa/default"
	ask([]string{"malha " + b.mesh.Version, "control plane " + b.mesh.Version + ` \(malhad-`, "proxies .*" + b.mesh.Version}, "version")
	ask([]string{namespace + "/client +sidecar +synced", namespace + "/" + pod + " +sidecar +synced +[0-9a-z.]+ +23h +" + b.mesh.Version}, "proxy-status", "-n", namespace)
	ask([]string{"proxy +" + namespace + "/" + pod, "identity +" + identity, "captures +inbound at 0.0.0.0:15006, outbound at 127.0.0.1:15001", "policies +1"}, "proxy-config", pod, "-n", namespace)
	ask([]string{`web\.` + namespace + `\.svc\.cluster\.local:80 .*/api.* VirtualService/` + namespace + "/web"}, "proxy-config", "client."+namespace, "routes", "--host", "web")
	ask([]string{identity + " .*Malha root"}, "proxy-config", pod, "certs", "-n", namespace)
	ask([]string{"proxy +ready, malha.dev/malha-proxy:" + b.mesh.Version, "identity +" + identity, `services +web \(80 http, 9090 grpc, 7000 tcp-greeting\)`,
		"8080 .*mutual TLS: strict.*PeerAuthentication/malha-system/default", "deny AuthorizationPolicy/" + namespace + "/readers"}, "describe", "pod", pod, "-n", namespace)
	ask([]string{"proxy +1 of 1 pods have one", "pod +" + pod + ": ready", "/api.*VirtualService/" + namespace + "/web"}, "describe", "service", "web."+namespace)
	ask([]string{"√ Pod " + namespace + "/" + pod + ": it has the proxy", "ready: true, restarts: 0"}, "check-inject", pod, "-n", namespace)
	ask([]string{"‼ Pod outside/client: it has no proxy: nothing asks for it"}, "check-inject", "client", "-n", "outside")
	ask([]string{"control plane\n-+\n√ namespace malha-system exists\n", "√ the API server can reach and trust them", "√ the root of the certificates is valid"}, "check")

	// A pod that was made before its namespace was of the mesh: it is named, and the exit code says so.
	b.namespace(t, "mesh-late", "", "")
	b.client(t, "mesh-late")
	kubectl(t, b.c, "", "label", "namespace", "mesh-late", "malha.dev/inject=enabled")
	eventually(t, func() error {
		out, err := b.mesh.Run(t.Context(), b.c, "check-inject", "client", "-n", "mesh-late")
		if err == nil {
			t.Error("check-inject finds nothing wrong with a pod that has no proxy and should have one")
		}
		return says(out, nil, []string{"× Pod mesh-late/client: it has no proxy, though", "fix: make it again"}, []string{"check-inject"})
	})
	eventually(t, func() error {
		out, err := b.mesh.Run(t.Context(), b.c, "check", "--proxy", "-n", "mesh-late")
		if err != nil && !strings.Contains(out, "mesh-late/client") {
			return err
		}
		return says(out, nil, []string{"pods in namespaces of the mesh have a proxy\n.*mesh-late/client"}, []string{"check", "--proxy"})
	})

	// A link of another name makes it a plug-in.
	plugin := filepath.Join(t.TempDir(), "kubectl-malha")
	if err := os.Symlink(b.mesh.Malha, plugin); err != nil {
		t.Fatal(err)
	}
	cmd := b.c.Command(t.Context(), "sh", "-c", `PATH="$0:$PATH" exec kubectl malha describe pod "$1" -n "$2"`, filepath.Dir(plugin), pod, namespace)
	out, err := cmd.CombinedOutput()
	if err := says(string(out), err, []string{"identity +" + identity}, []string{"describe", "as a plug-in"}); err != nil {
		t.Error(err)
	}
	cmd = b.c.Command(t.Context(), "sh", "-c", `PATH="$0:$PATH" exec kubectl malha --help`, filepath.Dir(plugin))
	out, err = cmd.CombinedOutput()
	if err := says(string(out), err, []string{"kubectl malha \\[command\\]"}, []string{"help", "as a plug-in"}); err != nil {
		t.Error(err)
	}
}

// says compares what a command printed with patterns of lines.
func says(out string, err error, want, args []string) error {
	if err != nil {
		return err
	}
	for _, pattern := range want {
		if !regexp.MustCompile(pattern).MatchString(out) {
			return fmt.Errorf("malha %s does not say %q:\n%s", strings.Join(args, " "), pattern, out)
		}
	}
	return nil
}

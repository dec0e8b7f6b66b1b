package ctl

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/cluster/clustertest"
	"github.com/malha-mesh/malha/internal/inject"
)

// piped runs a command line with a standard input.
func piped(t *testing.T, in string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Main(t.Context(), "v1.2.3", args, strings.NewReader(in), &out, &errs)
	return code, out.String(), errs.String()
}

const web = `# the front page
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}%s
    spec:
      containers:
      - name: app # mine
        image: shop/app:1
        readinessProbe:
          tcpSocket: {port: 80}
---
apiVersion: v1
kind: Service
metadata:   {name: web}
`

func TestInjectAndBack(t *testing.T) {
	in := strings.Replace(web, "%s", "", 1)
	code, out, said := piped(t, in, "inject", "-f", "-")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, said)
	}
	has(t, said, "√ Deployment shop/web: injected", "1 injected, 0 left alone, 0 with a mistake; 1 other objects")
	has(t, out, "# the front page", "- name: app # mine", "image: malha.dev/malha-proxy:v1.2.3", "metadata:   {name: web}", "path: /app-health/app/readyz")

	code, again, said := piped(t, out, "inject", "-f", "-")
	if code != 0 || again != out {
		t.Errorf("injected twice: exit %d, %s\n%s", code, said, again)
	}
	has(t, said, "‼ Deployment shop/web: not injected: it is injected already")

	code, back, said := piped(t, out, "uninject", "-f", "-")
	if code != 0 || strings.Contains(back, "malha") || !strings.Contains(back, "tcpSocket") {
		t.Errorf("uninject: exit %d, %s\n%s", code, said, back)
	}
	has(t, said, "√ Deployment shop/web: uninjected")
	code, same, said := piped(t, back, "uninject", "-f", "-")
	if code != 0 || same != back {
		t.Errorf("uninject twice: exit %d\n%s", code, same)
	}
	has(t, said, "‼ Deployment shop/web: not uninjected: it is not injected")
}

func TestInjectReports(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	declined := file("a.yaml", strings.Replace(web, "labels: {app: web}%s", "labels: {app: web, malha.dev/inject: disabled}", 1))
	wrong := file("b.yaml", strings.Replace(web, "%s", "\n      annotations: {malha.dev/proxy-log-level: loud}", 1))
	broken := file("c.yaml", "a: [")
	settings := file("injection.yml", "image: registry.example/proxy:v7\nadopt: [linkerd]\n")

	code, out, said := piped(t, "", "inject", "-f", declined, "-f", declined)
	if code != 0 || strings.Count(out, "kind: Deployment") != 2 || strings.Contains(out, "malha-proxy") {
		t.Errorf("exit %d: %s\n%s", code, said, out)
	}
	has(t, said, "‼ Deployment shop/web: not injected: the pod has the label malha.dev/inject: disabled")

	code, out, said = piped(t, "", "inject", "-f", wrong)
	if code != 1 || out != "" {
		t.Errorf("exit %d: %s\n%s", code, said, out)
	}
	has(t, said, "× Deployment shop/web:", `"loud" is none of debug, info, warn, error`, "fix: want debug, info, warn, error", "nothing was written")

	code, _, said = piped(t, "", "inject", "-f", broken)
	if code != 1 {
		t.Errorf("exit %d", code)
	}
	has(t, said, "c.yaml: the document at line 1: it is not valid YAML")

	code, out, said = piped(t, strings.Replace(web, "%s", "", 1), "inject", "-f", "-", "--config", settings, "--mesh-namespace", "mesh", "--native-sidecars=false", "--adopt", "istio")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, said)
	}
	has(t, out, "image: registry.example/proxy:v7", "--control=malhad.mesh.svc:15012", "kubectl.kubernetes.io/default-container: app")
	if strings.Contains(out, "restartPolicy") {
		t.Error("it is a native sidecar")
	}
	if code, _, said = piped(t, "", "inject", "-f", "-", "--adopt", "consul"); code != 1 {
		t.Errorf("exit %d: %s", code, said)
	}
	has(t, said, "neither istio nor linkerd")

	code, out, said = piped(t, strings.Replace(web, "%s", "", 1), "check-inject", "-f", "-")
	if code != 0 || out != "" {
		t.Errorf("exit %d: %s\n%s", code, said, out)
	}
	has(t, said, "not injected: nothing asks for it: label the namespace or the pod malha.dev/inject: enabled")
}

func TestCheckInject(t *testing.T) {
	s := clustertest.New(t, `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {malha.dev/inject: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: malha, namespace: malha-system}
data: {injection.yaml: "image: malha.dev/malha-proxy:v1\n"}
---
apiVersion: v1
kind: Pod
metadata: {name: old, namespace: shop}
spec: {containers: [{name: app, image: a}]}
---
apiVersion: v1
kind: Pod
metadata: {name: new, namespace: shop, annotations: {malha.dev/status: "{}"}}
spec: {initContainers: [{name: malha-proxy, image: p}], containers: [{name: app, image: a}]}
status: {initContainerStatuses: [{name: malha-proxy, image: malha.dev/malha-proxy:v1, ready: true, imageID: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: node, namespace: shop}
spec: {hostNetwork: true, containers: [{name: app, image: a}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: outside}
spec: {containers: [{name: app, image: a}]}
`)
	for _, tc := range []struct {
		pod  string
		code int
		want []string
	}{
		{"shop/old", 1, []string{"× Pod shop/old: it has no proxy, though namespace shop has the label malha.dev/inject: enabled", "fix: make it again"}},
		{"shop/new", 0, []string{"√ Pod shop/new: it has the proxy", "image malha.dev/malha-proxy:v1, ready: true"}},
		{"shop/node", 0, []string{"it has no proxy: it has hostNetwork"}},
		{"outside/other", 0, []string{"it has no proxy: nothing asks for it"}},
		{"outside/nobody", 1, []string{"nobody"}},
	} {
		code, out, said := onCluster(t, s, "check-inject", tc.pod)
		if code != tc.code || out != "" {
			t.Errorf("%s: exit %d, want %d: %s%s", tc.pod, code, tc.code, out, said)
		}
		has(t, said, tc.want...)
	}
	out, _ := must(t, s, "check-inject", "node.shop", "-o", "json")
	var d decision
	if err := json.Unmarshal([]byte(out), &d); err != nil || d.Code != inject.HostNetwork || d.Inject || d.Namespace != "shop" || d.Reason == "" {
		t.Errorf("%v: %s", err, out)
	}
	file := filepath.Join(t.TempDir(), "app.yaml")
	const bad = "apiVersion: v1\nkind: Pod\nmetadata: {name: app, labels: {malha.dev/inject: enabled}, annotations: {malha.dev/dns: maybe}}\nspec: {containers: [{name: app, image: a}]}\n"
	if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, _ := onCluster(t, s, "check-inject", "-f", file, "-o", "yaml")
	if has(t, out, "code: invalid", "path: metadata.annotations[malha.dev/dns]"); code != 1 {
		t.Errorf("exit %d", code)
	}
	code, _, said := onCluster(t, s, "check-inject")
	if code != 1 {
		t.Error(code)
	}
	has(t, said, "name a pod, or manifests with -f")
}

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// TestAdopt moves workloads over that were made for Istio and for Linkerd: the labels, annotations and root namespace of those
// meshes are obeyed, and nothing of the workloads is changed.
func TestAdopt(t *testing.T) {
	b := up(t)
	b.install(t, "--profile=minimal", "--adopt=istio,linkerd")
	b.namespace(t, "istio-system", "", "")
	b.namespace(t, "adopt-istio", "istio-injection: enabled", "")
	b.namespace(t, "adopt-linkerd", "", "linkerd.io/inject: enabled")

	b.apply(t, withPod(server("web", ready), "sidecar.istio.io/proxyCPU: 30m, sidecar.istio.io/proxyMemoryLimit: 99Mi, traffic.sidecar.istio.io/excludeInboundPorts: '9090', sidecar.istio.io/logLevel: warning", ""), "-n", "adopt-istio")
	b.apply(t, withPod(server("bare", ready), "", "sidecar.istio.io/inject: 'false'"), "-n", "adopt-istio")
	b.apply(t, withPod(server("web", ready), "config.linkerd.io/proxy-cpu-request: 40m, config.linkerd.io/skip-inbound-ports: '9090', config.linkerd.io/proxy-log-level: 'warn,linkerd=debug'", ""), "-n", "adopt-linkerd")
	b.apply(t, withPod(server("bare", ready), "linkerd.io/inject: disabled", ""), "-n", "adopt-linkerd")
	b.available(t, "adopt-istio")
	b.available(t, "adopt-linkerd")
	const proxy = `jsonpath={range .items[*].spec.initContainers[?(@.name=="malha-proxy")]}{.resources.requests.cpu} {.resources.limits.memory} {.args}{end}`
	for namespace, want := range map[string][]string{
		"adopt-istio":   {"30m 99Mi ", "--log-level=warn"},
		"adopt-linkerd": {"40m ", "--log-level=debug"},
	} {
		got := kubectl(t, b.c, "", "-n", namespace, "get", "pods", "-l", "app=web", "-o", proxy)
		for _, part := range want {
			if !strings.Contains(got, part) {
				t.Errorf("the proxy of web in %s has %q, want %q", namespace, got, part)
			}
		}
		if got := kubectl(t, b.c, "", "-n", namespace, "get", "pods", "-l", "app=bare", "-o", proxy); got != "" {
			t.Errorf("bare in %s asked to be left alone and has a proxy: %q", namespace, got)
		}
	}

	// One mesh: clients of each reach servers of the other, and the root namespace of Istio speaks for all.
	b.apply(t, strings.ReplaceAll(strict, "malha-system", "istio-system"))
	out := b.outside(t)
	for from, to := range map[string]string{"adopt-istio": "adopt-linkerd", "adopt-linkerd": "adopt-istio"} {
		in := b.client(t, from)
		eventually(t, func() error {
			if got, err := out.get(t.Context(), "http://web."+to+"/", 1); err == nil {
				return fmt.Errorf("the policy of istio-system lets plain requests in: %s", got)
			}
			return nil
		})
		if _, err := in.get(t.Context(), "http://web."+to+"/", 3); err != nil {
			t.Error(err)
		}
		if _, err := in.get(t.Context(), "http://bare."+to+"/", 1); err != nil { // plain text, for who is not in the mesh
			t.Error(err)
		}
		// What was excluded passes by the proxy: gRPC's port answers in plain text.
		if _, err := out.run(t.Context(), "http2", "web."+to+":9090"); err != nil {
			t.Errorf("the excluded port of web in %s: %v", to, err)
		}
	}
}

// withPod adds annotations and labels, in YAML's flow style, to the pods of a server.
func withPod(manifest, annotations, labels string) string {
	if labels != "" {
		labels += ", "
	}
	return strings.Replace(manifest, "    metadata: {labels: {", "    metadata: {annotations: {"+annotations+"}, labels: {"+labels, 1)
}

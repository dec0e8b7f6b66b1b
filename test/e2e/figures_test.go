package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// figureStart measures how much later a pod with a sidecar is Ready than the same without: by the median of 20, one of each in
// turn, on a node that has the images. The API server tells both the request and the condition. A kubelet takes two seconds for the
// two init containers whatever they do (docs/design/0020-kubernetes.md); what is more than half a second beyond is ours.
func figureStart(t *testing.T, b *bed, api *API) {
	const namespace, kubelet, most = "start", 2 * time.Second, 500 * time.Millisecond
	b.namespace(t, namespace, "malha.dev/inject: enabled", "")
	var plain, meshed []time.Duration
	for i := range 2 * (1 + scale(20, 4)) {
		name, inject := fmt.Sprintf("plain-%d", i), "disabled"
		if i%2 == 1 {
			name, inject = fmt.Sprintf("meshed-%d", i), "enabled"
		}
		took := startPod(t, api, namespace, name, inject)
		if i < 2 {
			continue // the first of each fetches what others have
		}
		if i%2 == 1 {
			meshed = append(meshed, took)
		} else {
			plain = append(plain, took)
		}
	}
	without, with := median(plain), median(meshed)
	t.Logf("FIGURE start to Ready, median of %d: %v without a sidecar, %v with, so %v more", len(meshed), without, with, with-without)
	t.Logf("without: %v", plain)
	t.Logf("with: %v", meshed)
	if with-without > kubelet+most {
		missed(t, "a sidecar costs a pod %v of its start, want at most %v besides the kubelet's %v", with-without, most, kubelet)
	}
}

// startPod makes a pod, waits until it is Ready, and takes it away.
func startPod(t *testing.T, api *API, namespace, name, inject string) time.Duration {
	t.Helper()
	path := "/api/v1/namespaces/" + namespace + "/pods"
	pod := map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": name, "labels": map[string]string{"malha.dev/inject": inject}},
		"spec": map[string]any{"containers": []any{map[string]any{
			"name": "app", "image": loadImage, "args": []string{"serve"},
			"readinessProbe": map[string]any{"periodSeconds": 1, "httpGet": map[string]any{"path": "/", "port": 8080}},
		}}},
	}
	begun := time.Now()
	if err := api.Do(t.Context(), http.MethodPost, path, pod, nil); err != nil {
		t.Fatal(err)
	}
	var took time.Duration
	if err := api.Watch(t.Context(), path, func(object json.RawMessage, at time.Time) bool {
		var p struct {
			Metadata struct{ Name string }
			Status   struct {
				Conditions []struct{ Type, Status string }
			}
		}
		if json.Unmarshal(object, &p) != nil || p.Metadata.Name != name {
			return true
		}
		for _, cond := range p.Status.Conditions {
			if cond.Type == "Ready" && cond.Status == "True" {
				took = at.Sub(begun)
				return false
			}
		}
		return time.Since(begun) < time.Minute
	}); err != nil {
		t.Fatal(err)
	}
	if took == 0 {
		t.Fatalf("pod %s is not Ready after a minute", name)
	}
	if err := api.Do(t.Context(), http.MethodDelete, path+"/"+name+"?gracePeriodSeconds=1", nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := api.Watch(t.Context(), path, func(object json.RawMessage, _ time.Time) bool { // the next one has the node for itself
		var list struct{ Items []struct{} }
		return api.Do(t.Context(), http.MethodGet, path, nil, &list) != nil || len(list.Items) > 0
	}); err != nil {
		t.Fatal(err)
	}
	return took
}

// figureEffect changes an EndpointSlice and wants each of 50 proxies to obey it within 300 ms, at the 99th percentile. Every pod
// asks the Service all the time, and notes when another endpoint answers: so what is measured has up to one period of asking too
// much. The two servers are not in the mesh, so that no other proxies have to do with it.
func figureEffect(t *testing.T, b *bed, api *API) {
	const namespace, most, period = "effect", 300 * time.Millisecond, 50 * time.Millisecond
	n, changes := scale(50, 10), scale(20, 5)
	b.namespace(t, namespace, "malha.dev/inject: enabled", "")
	b.apply(t, effectServers, "-n", namespace)
	kubectl(t, b.c, "", "-n", namespace, "wait", "--for=condition=Ready", "pod", "-l", "app=server", "--timeout=300s")
	servers := [2]string{"server-a", "server-b"}
	var addresses [2]string
	for i, name := range servers {
		addresses[i] = kubectl(t, b.c, "", "-n", namespace, "get", "pod", name, "-o", "jsonpath={.status.podIP}")
	}
	slice := func(i int) map[string]any {
		return map[string]any{
			"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
			"metadata":  map[string]any{"name": "flip", "labels": map[string]string{"kubernetes.io/service-name": "flip"}},
			"endpoints": []any{map[string]any{"addresses": []string{addresses[i%2]}}},
			"ports":     []any{map[string]any{"name": "http", "port": 8080}},
		}
	}
	path := "/apis/discovery.k8s.io/v1/namespaces/" + namespace + "/endpointslices"
	if err := api.Do(t.Context(), http.MethodPost, path, slice(1), nil); err != nil {
		t.Fatal(err)
	}
	b.apply(t, fmt.Sprintf(effectWatchers, n, period), "-n", namespace)
	kubectl(t, b.c, "", "-n", namespace, "rollout", "status", "deployment/watcher", "--timeout=600s")
	time.Sleep(3 * time.Second)
	var at []time.Time
	for i := range changes {
		at = append(at, time.Now())
		if err := api.Do(t.Context(), http.MethodPatch, path+"/flip", map[string]any{"endpoints": slice(i)["endpoints"]}, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
	}
	var took []time.Duration
	names := strings.Fields(kubectl(t, b.c, "", "-n", namespace, "get", "pods", "-l", "app=watcher", "-o", "jsonpath={.items[*].metadata.name}"))
	for _, name := range names {
		var seen []struct {
			At     time.Time
			Answer string
		}
		report := kubectl(t, b.c, "", "-n", namespace, "exec", name, "-c", "watcher", "--", "/load", "report")
		if err := json.Unmarshal([]byte(report), &seen); err != nil {
			t.Fatalf("%v: %s", err, report)
		}
		for i := range at {
			j := slices.IndexFunc(seen, func(s struct {
				At     time.Time
				Answer string
			}) bool {
				return s.At.After(at[i])
			})
			if j < 0 || i+1 < len(at) && seen[j].At.After(at[i+1]) || seen[j].Answer != servers[i%2] {
				t.Fatalf("pod %s did not obey change %d: %s", name, i, report)
			}
			took = append(took, seen[j].At.Sub(at[i]))
		}
	}
	if len(names) != n {
		t.Errorf("%d pods watch, want %d", len(names), n)
	}
	slices.Sort(took)
	p99 := took[len(took)*99/100]
	t.Logf("FIGURE change of an EndpointSlice to effect, %d changes, %d pods: p50 %v, p99 %v, slowest %v", changes, len(names),
		median(took).Round(time.Millisecond), p99.Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	if p99 > most {
		missed(t, "p99 is %v, want at most %v", p99, most)
	}
}

const effectServers = `apiVersion: v1
kind: Service
metadata: {name: flip}
spec: {ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server-a, labels: {app: server, malha.dev/inject: disabled}}
spec: {containers: [{name: server, image: "malha.test/load:1", args: [serve]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server-b, labels: {app: server, malha.dev/inject: disabled}}
spec: {containers: [{name: server, image: "malha.test/load:1", args: [serve]}]}
`

const effectWatchers = `apiVersion: apps/v1
kind: Deployment
metadata: {name: watcher}
spec:
  replicas: %d
  selector: {matchLabels: {app: watcher}}
  template:
    metadata: {labels: {app: watcher}}
    spec:
      containers: [{name: watcher, image: "malha.test/load:1", args: [watch, "http://flip:8080/", %v]}]
`

// missed fails a test that takes the whole figure. On the smaller scale it only says so: the machine may have other work.
func missed(t *testing.T, format string, args ...any) {
	t.Helper()
	if scale(true, false) {
		t.Errorf(format, args...)
	} else {
		t.Logf("MISSED: "+format, args...)
	}
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

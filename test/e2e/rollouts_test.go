package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// rollouts: Bookinfo behind an ingress gateway of Istio's kinds and one of the Gateway API. While its page is watched through both,
// versions of reviews get their shares by three dialects, one after the other, and no request fails.
func (b *bed) rollouts(t *testing.T) {
	const namespace = "mesh-rollouts"
	bookinfo := Apps[slices.IndexFunc(Apps, func(a App) bool { return a.Name == "bookinfo" })]
	b.app(t, bookinfo, namespace, "malha.dev/inject: enabled")
	b.apply(t, reviewsByVersion+ingress, "-n", namespace)
	kubectl(t, b.c, "", "-n", namespace, "apply", "-f", "../../samples/bookinfo/kubernetes/gateway.yaml", "-f", "../../samples/bookinfo/kubernetes/gateway-api.yaml")
	out := b.outside(t)

	istio := kubectl(t, b.c, "", "-n", "malha-system", "get", "service", "malha-ingressgateway", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}")
	kubectl(t, b.c, "", "-n", namespace, "wait", "--for=condition=Programmed", "gateway.gateway.networking.k8s.io/bookinfo", "--timeout=300s")
	api := kubectl(t, b.c, "", "-n", namespace, "get", "gateway.gateway.networking.k8s.io/bookinfo", "-o", "jsonpath={.status.addresses[0].value}")
	// An Ingress is served by the same gateway as Istio's kinds, for its host, and says where that is.
	eventually(t, func() error {
		at, err := b.c.Kubectl(t.Context(), "", "-n", namespace, "get", "ingress", "bookinfo", "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}")
		if err == nil && at != istio {
			err = fmt.Errorf("the Ingress says that it is reached at %q, want %q", at, istio)
		}
		return err
	})
	eventually(t, func() error {
		page, err := out.run(t.Context(), "get", "http://"+istio+"/productpage", "1", "ingress.example.com")
		if err == nil && !strings.Contains(page, "The Comedy of Errors") {
			err = fmt.Errorf("the page of the Ingress is %s", page)
		}
		return err
	})
	var watches []*watch
	for name, url := range map[string]string{"Istio's gateway": "http://" + istio + "/productpage", "the Gateway API's": "http://" + api + "/productpage"} {
		eventually(t, func() error {
			pages, err := out.get(t.Context(), url, 1)
			if err == nil && !strings.Contains(pages[0], "The Comedy of Errors") {
				err = fmt.Errorf("the page is %s", pages[0])
			}
			return err
		})
		if t.Failed() {
			return
		}
		watches = append(watches, out.watch(t, name, url, `reviews[- ](v\d)`))
	}
	for _, step := range []struct {
		name, objects, remove string
		want                  map[string]float64
	}{
		{"VirtualService, first", virtualService("v1", 100, "v2", 0), "", map[string]float64{"v1": 1}},
		{"VirtualService, canary", virtualService("v1", 90, "v2", 10), "", map[string]float64{"v1": .9, "v2": .1}},
		{"VirtualService, half", virtualService("v1", 50, "v2", 50), "", map[string]float64{"v1": .5, "v2": .5}},
		{"VirtualService, blue", virtualService("v2", 100, "v3", 0), "", map[string]float64{"v2": 1}},
		{"VirtualService, green", virtualService("v2", 0, "v3", 100), "", map[string]float64{"v3": 1}},
		{"TrafficSplit, blue", trafficSplit("v1", 100, "v3", 0), "virtualservice/reviews", map[string]float64{"v1": 1}},
		{"TrafficSplit, canary", trafficSplit("v1", 80, "v3", 20), "", map[string]float64{"v1": .8, "v3": .2}},
		{"TrafficSplit, green", trafficSplit("v1", 0, "v3", 100), "", map[string]float64{"v3": 1}},
		{"HTTPRoute, blue", httpRoute("v1", 100, "v2", 0), "trafficsplit/reviews", map[string]float64{"v1": 1}},
		{"HTTPRoute, canary", httpRoute("v1", 75, "v2", 25), "", map[string]float64{"v1": .75, "v2": .25}},
		{"HTTPRoute, green", httpRoute("v1", 0, "v2", 100), "", map[string]float64{"v2": 1}},
	} {
		b.apply(t, step.objects, "-n", namespace)
		if step.remove != "" { // of two dialects, the rules of the one that is left
			kubectl(t, b.c, "", "-n", namespace, "delete", step.remove)
		}
		eventually(t, func() error { return shares(t.Context(), watches, 250, step.want) })
		if t.Failed() {
			t.Fatal(step.name)
		}
	}
	for _, w := range watches {
		answers := w.end(t)
		if len(w.failed) > 0 {
			t.Errorf("through %s, %d of %d requests failed while rules changed: %q", w.name, len(w.failed), answers, w.failed)
		}
		t.Logf("through %s: %d requests, %d failed", w.name, answers, len(w.failed))
	}
}

// watch is a client that asks the same again and again.
type watch struct {
	name  string
	stdin io.Closer
	cmd   *exec.Cmd
	done  chan struct{}

	mu     sync.Mutex
	seen   []string // what was matched in the answers, in their order
	failed []string
}

// watch starts to ask from the client's pod; pattern has one group. It ends with end, or with the test.
func (p client) watch(t *testing.T, name, url, pattern string) *watch {
	t.Helper()
	args := []string{"-n", p.namespace, "exec", "-i", "client", "-c", "client", "--", "/workload", "watch", url, pattern}
	w := &watch{name: name, cmd: p.c.Command(t.Context(), "kubectl", args...), done: make(chan struct{})}
	stdin, err := w.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.stdin = stdin
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(w.done)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			status, what, _ := strings.Cut(s.Text(), " ")
			w.mu.Lock()
			if status != "200" || what == "-" { // a page without reviews says that they are unavailable
				w.failed = append(w.failed, time.Now().Format("15:04:05.000 ")+s.Text())
			}
			w.seen = append(w.seen, what)
			w.mu.Unlock()
		}
	}()
	return w
}

// shares waits until each has so many answers from now on and compares what is in them.
func shares(ctx context.Context, watches []*watch, count int, want map[string]float64) error {
	from := make([]int, len(watches))
	for i, w := range watches {
		from[i] = w.count()
	}
	for i, w := range watches {
		if err := poll(ctx, 30*time.Second, func() error {
			if n := w.count() - from[i]; n < count {
				return fmt.Errorf("%s gave %d of %d answers", w.name, n, count)
			}
			return nil
		}); err != nil {
			return err
		}
		if err := w.compare(from[i], count, want); err != nil {
			return err
		}
	}
	return nil
}

// compare compares the shares in so many answers with those that are wanted.
func (w *watch) compare(from, count int, want map[string]float64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	got := map[string]float64{}
	for _, version := range w.seen[from : from+count] {
		got[version] += 1 / float64(count)
	}
	for _, version := range slices.Concat(slices.Collect(maps.Keys(got)), slices.Collect(maps.Keys(want))) {
		p := want[version]
		// Five times the standard deviation of a draw: once in two million.
		if bound := 5 * math.Sqrt(p*(1-p)/float64(count)); math.Abs(got[version]-p) > bound+1e-9 {
			return fmt.Errorf("through %s, of %d pages the shares are %v, want %v", w.name, count, got, want)
		}
	}
	return nil
}

func (w *watch) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.seen)
}

// end ends the client and returns how many answers there were.
func (w *watch) end(t *testing.T) int {
	t.Helper()
	_ = w.stdin.Close()
	<-w.done
	if err := w.cmd.Wait(); err != nil {
		t.Error(err)
	}
	return len(w.seen)
}

// ingress leads into the mesh too.
const ingress = `apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: bookinfo}
spec:
  ingressClassName: malha
  rules: [{host: ingress.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: productpage, port: {number: 9080}}}}]}}]
`

// reviewsByVersion are subsets for VirtualServices, and Services for the others.
const reviewsByVersion = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}, {name: v3, labels: {version: v3}}]
---
apiVersion: v1
kind: Service
metadata: {name: reviews-v1}
spec: {selector: {app: reviews, version: v1}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews-v2}
spec: {selector: {app: reviews, version: v2}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews-v3}
spec: {selector: {app: reviews, version: v3}, ports: [{name: http, port: 9080}]}
---
`

func virtualService(one string, share int, other string, rest int) string {
	return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - route:
    - {destination: {host: reviews, subset: %s}, weight: %d}
    - {destination: {host: reviews, subset: %s}, weight: %d}
`, one, share, other, rest)
}

func trafficSplit(one string, share int, other string, rest int) string {
	return fmt.Sprintf(`apiVersion: split.smi-spec.io/v1alpha2
kind: TrafficSplit
metadata: {name: reviews}
spec:
  service: reviews
  backends:
  - {service: reviews-%s, weight: %d}
  - {service: reviews-%s, weight: %d}
`, one, share, other, rest)
}

func httpRoute(one string, share int, other string, rest int) string {
	return fmt.Sprintf(`apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews}
spec:
  parentRefs: [{group: "", kind: Service, name: reviews, port: 9080}]
  rules:
  - backendRefs:
    - {name: reviews-%s, port: 9080, weight: %d}
    - {name: reviews-%s, port: 9080, weight: %d}
`, one, share, other, rest)
}

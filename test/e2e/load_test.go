package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestLoad takes the figures of docs/kubernetes.md: nothing fails while pods and parts of the control plane come and go, pods
// start about as fast as without the mesh, and changes are in force soon. It prints each; make e2e-figures takes them whole, make
// e2e on a smaller scale.
func TestLoad(t *testing.T) {
	b := up(t)
	b.install(t, "--profile=minimal")
	b.apply(t, strict)
	api, err := OpenAPI(t.Context(), b.c, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := api.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("rollouts", func(t *testing.T) { loadRollouts(t, b) })
	t.Run("abrupt", func(t *testing.T) { loadAbrupt(t, b) })
	t.Run("controlplane", func(t *testing.T) { loadControlPlane(t, b) })
	t.Run("apiserver", func(t *testing.T) { loadAPIServer(t, b) })
	t.Run("start", func(t *testing.T) { figureStart(t, b, api) })
	t.Run("effect", func(t *testing.T) { figureEffect(t, b, api) })
}

// scale chooses between the whole figure and a smaller one, which shows that it can be taken, and most mistakes.
func scale[T any](whole, small T) T {
	if os.Getenv("MALHA_E2E_FIGURES") != "" {
		return whole
	}
	return small
}

// loadServer has three replicas and ends as soon as it is told to; loadClient asks it in every protocol.
const loadServer = `apiVersion: apps/v1
kind: Deployment
metadata: {name: server}
spec:
  replicas: 3
  selector: {matchLabels: {app: server}}
  template:
    metadata: {labels: {app: server}}
    spec:
      containers:
        - name: server
          image: malha.test/load:1
          args: [serve]
          ports: [{name: http, containerPort: 8080}, {name: grpc, containerPort: 9090}]
          readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports: [{name: http, port: 8080}, {name: grpc, port: 9090}]
`

const loadClient = `apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  containers: [{name: client, image: "malha.test/load:1", args: [ask, server]}]
`

// unchanged leaves the manifests as they are.
var unchanged = strings.NewReplacer()

// count is what the load says of one kind of client.
type count struct {
	Sent, Failed, Opened int
	Slowest              time.Duration
	Failures             []string // the first ones
}

// cuts says how many requests may fail because an application took them and gave no answer: it may have acted on them, so nobody
// sends them again unasked.
type cuts struct {
	most    int
	clients string // a part of their names
}

// polite is of the load's server, which means to finish what it has: net/http's Shutdown closes a connection of which it has read
// a request, but not come to its end, as an idle one. What may be repeated is; of POST there may be one in a restart.
func polite(restarts int) cuts { return cuts{restarts, "POST"} }

// cut takes such failures out of a count, and returns how many. Of many failures the load tells the first ones only; then all count.
func (n *count) cut() int {
	if n.Failed > len(n.Failures) {
		return 0
	}
	n.Failures = slices.DeleteFunc(n.Failures, func(text string) bool { return strings.HasSuffix(text, "reset reason: connection termination") })
	lost := n.Failed - len(n.Failures)
	n.Failed -= lost
	return lost
}

// underLoad runs change while the load is on, and wants no request of it to fail but what the application may cut. edit changes the
// manifests.
func underLoad(t *testing.T, b *bed, what string, may cuts, edit *strings.Replacer, change func(namespace string)) {
	t.Helper()
	const namespace = "load"
	b.namespace(t, namespace, "malha.dev/inject: enabled", "")
	b.apply(t, edit.Replace(loadServer), "-n", namespace)
	b.available(t, namespace)
	b.apply(t, edit.Replace(loadClient), "-n", namespace)
	kubectl(t, b.c, "", "-n", namespace, "wait", "--for=condition=Ready", "pod/client", "--timeout=300s")
	begun := time.Now()
	change(namespace)
	time.Sleep(time.Second)
	var counts map[string]*count
	report := kubectl(t, b.c, "", "-n", namespace, "exec", "client", "-c", "client", "--", "/load", "report")
	if err := json.Unmarshal([]byte(report), &counts); err != nil {
		t.Fatalf("%v: %s", err, report)
	}
	all, lost, took := count{}, 0, time.Since(begun)
	names := make([]string, 0, len(counts))
	for name := range counts {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		n := counts[name]
		if strings.Contains(name, may.clients) {
			lost += n.cut()
		}
		all.Sent, all.Failed = all.Sent+n.Sent, all.Failed+n.Failed
		t.Logf("%-32s %6d sent, %d failed, slowest %v, streams %d", name, n.Sent, n.Failed, n.Slowest.Round(time.Millisecond), n.Opened)
		if float64(n.Sent) < took.Seconds() {
			t.Errorf("%s: only %d requests in %v: the figure says nothing", name, n.Sent, took)
		}
		if n.Failed > 0 {
			t.Errorf("%s: %d of %d failed:\n%s", name, n.Failed, n.Sent, strings.Join(n.Failures, "\n"))
		}
	}
	if len(counts) < 7 {
		t.Errorf("the load has %d kinds of clients, want 7, or 8 with gRPC: %s", len(counts), report)
	}
	if lost > may.most {
		t.Errorf("the application cut %d requests, want %d at most", lost, may.most)
	}
	t.Logf("FIGURE %s: %d of %d failed, %d more were cut by the application, in %v", what, all.Failed, all.Sent, lost, took.Round(time.Second))
}

// loadRollouts restarts the server again and again.
func loadRollouts(t *testing.T, b *bed) {
	n := scale(20, 3)
	underLoad(t, b, fmt.Sprintf("%d rolling restarts of 3 replicas", n), polite(n), unchanged, func(namespace string) {
		for range n {
			b.restart(t, namespace)
		}
	})
}

// loadAbrupt restarts a server that finishes nothing, as one does that takes no notice of SIGTERM. What it has taken when it ends
// is lost: of seven clients that ask three replicas less than a request each time, as a rule. A stream of gRPC that it cuts has
// failed, so there is none.
func loadAbrupt(t *testing.T, b *bed) {
	n := scale(10, 2)
	edit := strings.NewReplacer("args: [serve]", "args: [serve, abruptly]", "args: [ask, server]", "args: [ask, server, http]")
	underLoad(t, b, fmt.Sprintf("%d rolling restarts of 3 replicas that finish nothing", n), cuts{most: 3 * n}, edit, func(namespace string) {
		for range n {
			b.restart(t, namespace)
		}
	})
}

// restart replaces all pods of the server.
func (b *bed) restart(t *testing.T, namespace string) {
	t.Helper()
	kubectl(t, b.c, "", "-n", namespace, "rollout", "restart", "deployment/server")
	kubectl(t, b.c, "", "-n", namespace, "rollout", "status", "deployment/server", "--timeout=300s")
}

// loadControlPlane kills the control plane, which has one replica, again and again; now and then the server is restarted after
// that, so that what a new one says is obeyed.
func loadControlPlane(t *testing.T, b *bed) {
	n := scale(20, 4)
	underLoad(t, b, fmt.Sprintf("control plane killed %d times", n), polite(n/4), unchanged, func(namespace string) {
		for i := range n {
			kubectl(t, b.c, "", "-n", "malha-system", "delete", "pod", "-l", "app=malhad", "--grace-period=0", "--force")
			kubectl(t, b.c, "", "-n", "malha-system", "rollout", "status", "deployment/malhad", "--timeout=300s")
			if i%4 == 3 {
				b.restart(t, namespace)
			}
		}
	})
}

// loadAPIServer takes the API server away for a while.
func loadAPIServer(t *testing.T, b *bed) {
	if b.c.External {
		t.Skip("the API server of a cluster that was not made here is not stopped")
	}
	outage := scale(5*time.Minute, 20*time.Second)
	underLoad(t, b, fmt.Sprintf("API server away for %v", outage), polite(1), unchanged, func(namespace string) {
		if err := b.c.Stop("kube-apiserver"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(outage)
		begin(t)
		eventually(t, func() error {
			_, err := b.c.Kubectl(t.Context(), "", "-n", namespace, "get", "pods")
			return err
		})
		b.restart(t, namespace)
	})
}

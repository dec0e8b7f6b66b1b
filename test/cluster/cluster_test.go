package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestCluster brings up a cluster of its own, beside one that may run, and proves what tests build upon.
func TestCluster(t *testing.T) {
	if os.Getenv("MALHA_CLUSTER") == "" {
		t.Skip("set MALHA_CLUSTER=1 to bring up a cluster: that needs root, and the first time four minutes")
	}
	if os.Getenv("KUBECONFIG") != "" {
		t.Skip("KUBECONFIG is set: this tests the cluster that is made here")
	}
	ctx := t.Context()
	o := Options{Name: "test", Nodes: 2, Index: 3, Log: t.Output()}
	if err := Down(ctx, o); err != nil { // what a test that was killed left
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Down(context.Background(), o); err != nil {
			t.Error(err)
		}
	})
	c, err := Up(ctx, o)
	if err != nil {
		t.Fatal(err)
	}

	t.Run("again", func(t *testing.T) {
		before := ids(c)
		if _, err := Up(ctx, o); err != nil {
			t.Fatal(err)
		}
		if after := ids(c); !reflect.DeepEqual(before, after) {
			t.Errorf("up again started something: %v, then %v", before, after)
		}
	})

	t.Run("nodes", func(t *testing.T) {
		got := kubectl(t, c, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.nodeInfo.kubeletVersion} {.status.conditions[?(@.type=="Ready")].status};{end}`)
		if want := fmt.Sprintf("node-1 %[1]s True;node-2 %[1]s True;", Version); got != want {
			t.Errorf("nodes: %q, want %q", got, want)
		}
	})

	program := filepath.Join(t.TempDir(), "echo")
	build := exec.Command("go", "build", "-o", program, "./testdata/echo")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := c.Load(ctx, Image{Name: "malha.test/echo:1", Files: map[string]string{"/echo": program}, Entrypoint: []string{"/echo"}, User: "65532:65532"}); err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, "apply", "-f", "testdata/echo.yaml")
	kubectl(t, c, "-n", "echo", "wait", "--for=condition=Ready", "pod/a", "pod/b", "pod/c", "--timeout=300s")
	address := map[string]string{}
	for _, pod := range []string{"a", "b", "c"} {
		address[pod] = kubectl(t, c, "-n", "echo", "get", "pod", pod, "-o", "jsonpath={.status.podIP}")
	}
	ask := func(pod, url string) (string, error) {
		return c.Kubectl(ctx, "", "-n", "echo", "exec", pod, "--", "/echo", "get", url)
	}
	get := func(t *testing.T, pod, url string) string {
		t.Helper()
		got, err := ask(pod, url)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}

	t.Run("pods", func(t *testing.T) {
		for from := range address {
			for to := range address {
				got := get(t, from, "http://"+address[to]+":8080")
				if !strings.HasPrefix(got, to+" ") {
					t.Errorf("%s asked %s: %q", from, to, got)
				}
				if !strings.Contains(got, address[from]+":") && from != to {
					t.Errorf("%s does not see that it is %s who asks: %q", to, from, got)
				}
			}
		}
	})

	t.Run("services", func(t *testing.T) {
		for _, name := range []string{"third", "third.echo", "third.echo.svc", "third.echo.svc.cluster.local"} {
			for pod := range address { // c asks itself through its Service
				eventually(t, func() error { // each node's kube-proxy is told a moment after the endpoints are ready
					got, err := ask(pod, "http://"+name)
					if err == nil && !strings.HasPrefix(got, "c ") {
						err = fmt.Errorf("%s asked %s: %q", pod, name, got)
					}
					return err
				})
			}
		}
		eventually(t, func() error { // by way of each endpoint, from both nodes
			for _, pod := range []string{"a", "c"} {
				seen := map[string]bool{}
				for range 40 {
					got, err := ask(pod, "http://all")
					if err != nil {
						return err
					}
					name, _, _ := strings.Cut(got, " ")
					seen[name] = true
				}
				if len(seen) != 3 {
					return fmt.Errorf("%s reached %v", pod, seen)
				}
			}
			return nil
		})
	})

	t.Run("load balancer", func(t *testing.T) {
		var outside string
		eventually(t, func() error {
			outside = kubectl(t, c, "-n", "echo", "get", "service", "outside", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}")
			if outside == "" {
				return fmt.Errorf("the Service has no address")
			}
			return nil
		})
		eventually(t, func() error { // kube-proxy is told a moment later
			out, err := c.Command(ctx, program, "get", "http://"+outside).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
		for _, pod := range []string{"a", "c"} {
			eventually(t, func() error {
				got, err := ask(pod, "http://"+outside)
				if err == nil && len(strings.Fields(got)) != 2 {
					err = fmt.Errorf("%s got %q", pod, got)
				}
				return err
			})
		}
	})

	t.Run("job with a sidecar", func(t *testing.T) {
		kubectl(t, c, "-n", "echo", "wait", "--for=condition=Complete", "job/job", "--timeout=300s")
	})

	t.Run("exec and logs", func(t *testing.T) {
		for pod := range address {
			if got := kubectl(t, c, "-n", "echo", "exec", pod, "--", "/echo", "say", "hello"); got != "hello\n" {
				t.Errorf("exec in %s: %q", pod, got)
			}
			if got := kubectl(t, c, "-n", "echo", "logs", pod); !strings.HasPrefix(got, pod+" serves\n") {
				t.Errorf("log of %s: %q", pod, got)
			}
		}
	})

	t.Run("kubelet restarts", func(t *testing.T) {
		was := kubectl(t, c, "-n", "echo", "get", "pod", "c", "-o", "jsonpath={.status.containerStatuses[0].containerID}")
		if err := c.Stop("node-2-kubelet"); err != nil {
			t.Fatal(err)
		}
		if got := get(t, "a", "http://"+address["c"]+":8080"); !strings.HasPrefix(got, "c ") {
			t.Errorf("a pod without its kubelet: %q", got)
		}
		if _, err := Up(ctx, o); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			_, err := c.Kubectl(ctx, "", "-n", "echo", "exec", "c", "--", "/echo", "say", "hello")
			return err
		})
		if is := kubectl(t, c, "-n", "echo", "get", "pod", "c", "-o", "jsonpath={.status.containerStatuses[0].containerID}"); is != was {
			t.Errorf("the container was %s and is %s", was, is)
		}
	})

	t.Run("API server restarts", func(t *testing.T) {
		if err := c.Stop("kube-apiserver"); err != nil {
			t.Fatal(err)
		}
		if c.Running() {
			t.Error("the cluster is said to run without an API server")
		}
		out, err := c.Command(ctx, program, "get", "http://"+address["c"]+":8080").Output()
		if err != nil || !strings.HasPrefix(string(out), "c ") {
			t.Errorf("a pod without an API server: %q, %v", out, err)
		}
		if _, err := Up(ctx, o); err != nil {
			t.Fatal(err)
		}
		kubectl(t, c, "-n", "echo", "get", "pods")
	})

	t.Run("a node joins", func(t *testing.T) {
		o := o
		o.Nodes = 3
		if _, err := Up(ctx, o); err != nil {
			t.Fatal(err)
		}
		if got := kubectl(t, c, "get", "nodes", "-o", "name"); strings.Count(got, "node/") != 3 {
			t.Errorf("nodes: %s", got)
		}
	})

	t.Run("down leaves nothing", func(t *testing.T) {
		// A containerd that was killed leaves its shims and containers to nobody.
		if err := c.Stop("node-2-containerd"); err != nil {
			t.Fatal(err)
		}
		if len(c.inside()) == 0 {
			t.Error("no process of the cluster is found while it runs")
		}
		if err := Down(ctx, o); err != nil {
			t.Fatal(err)
		}
		if pids := c.inside(); len(pids) > 0 {
			t.Errorf("processes: %v", pids)
		}
		if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), c.dir) || strings.Contains(string(mounts), c.run) {
			t.Errorf("mounts of the cluster, %v:\n%s", err, mounts)
		}
		for _, pattern := range []string{c.dir, c.run, "/run/netns/malha-test-*", "/sys/fs/cgroup/malha-test-*", "/sys/fs/cgroup/*/malha-test-*"} {
			if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		}
		if err := Down(ctx, o); err != nil {
			t.Errorf("down when all is down: %v", err)
		}
	})
}

// ids are the process ids of the cluster's programs.
func ids(c *Cluster) map[string]int {
	all := map[string]int{}
	for _, name := range c.Programs() {
		all[name] = c.process(name)
	}
	return all
}

func kubectl(t *testing.T, c *Cluster, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	if err := poll(t.Context(), 3*time.Minute, f); err != nil {
		t.Error(err)
	}
}

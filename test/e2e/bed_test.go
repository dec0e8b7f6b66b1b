package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/malha-mesh/malha/test/cluster"
)

// bed is what all tests share: a cluster that has the images, a pod outside of the mesh, and the mesh's command line.
type bed struct {
	c    *cluster.Cluster
	mesh *Mesh
}

// shared is made by the first test that needs it.
var shared struct {
	once sync.Once
	bed  *bed
	err  error
}

func makeBed() (*bed, error) {
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Minute)
	defer stop()
	c := cluster.Open(own) // begin brought it up
	if err := c.CanLoad(); err != nil {
		return nil, err
	}
	dir, err := builds(c)
	if err != nil {
		return nil, err
	}
	b := &bed{c: c}
	if b.mesh, err = BuildMesh(ctx, dir); err != nil {
		return nil, err
	}
	images, err := Images(ctx, dir)
	if err != nil {
		return nil, err
	}
	if err := c.Load(ctx, images...); err != nil {
		return nil, err
	}
	if err := b.mesh.Load(ctx, c); err != nil {
		return nil, err
	}
	if err := Kinds(ctx, c); err != nil {
		return nil, err
	}
	if _, err := c.Kubectl(ctx, outside, "delete", "--ignore-not-found", "-f", "-"); err != nil { // of a cluster that was kept
		return nil, err
	}
	_, err = c.Kubectl(ctx, outside, "apply", "-f", "-")
	return b, err
}

// builds is a folder for programs and images. That of a cluster of ours goes with it, even if this process is killed.
func builds(c *cluster.Cluster) (string, error) {
	if c.External {
		return os.MkdirTemp("", "malha-e2e-")
	}
	dir := filepath.Join(c.Dir(), "built")
	return dir, os.MkdirAll(dir, 0o700)
}

// outside is a client that is not in the mesh. The accounts are its: the default one may not be there yet.
const outside = `apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: client, namespace: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: outside}
spec:
  serviceAccountName: client
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: "malha.test/workload:1", args: [sleep]}]
`

// up brings up the cluster, with the images, the first time.
func up(t *testing.T) *bed {
	t.Helper()
	begin(t)
	shared.once.Do(func() { shared.bed, shared.err = makeBed() })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.bed
}

// cleanBed removes from a cluster that goes on what is not a test's own.
func cleanBed() {
	b := shared.bed
	if b == nil || !b.c.External {
		return
	}
	_ = os.RemoveAll(filepath.Dir(b.mesh.Malha))
	if _, err := b.c.Kubectl(context.Background(), "", "delete", "namespace", "outside", "--timeout=300s"); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// namespace makes an empty namespace, with labels and annotations in YAML's flow style, and removes it at the end of the test;
// when that failed, it says before what is there.
func (b *bed) namespace(t *testing.T, name, labels, annotations string) {
	t.Helper()
	kubectl(t, b.c, "", "delete", "namespace", name, "--ignore-not-found", "--timeout=300s")
	b.apply(t, fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {%s}, annotations: {%s}}\n", name, "malha-e2e: test, "+labels, annotations))
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(b.diagnose(name))
		}
		_, err := b.c.Kubectl(context.Background(), "", "delete", "namespace", name, "--wait=false")
		if err != nil {
			t.Error(err)
		}
	})
}

// diagnose is what one wants to know of a namespace where something did not work.
func (b *bed) diagnose(namespace string) string {
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()
	var out strings.Builder
	for _, args := range [][]string{
		{"get", "pods,services,deployments,jobs", "-o", "wide"},
		{"get", "events", "--field-selector=type=Warning", "-o", `custom-columns=LAST:.lastTimestamp,OBJECT:.involvedObject.name,REASON:.reason,MESSAGE:.message`},
	} {
		text, err := b.c.Kubectl(ctx, "", append([]string{"-n", namespace}, args...)...)
		fmt.Fprintf(&out, "%s$ kubectl -n %s %s\n%s", errorText(err), namespace, strings.Join(args, " "), text)
	}
	pods, err := b.c.Kubectl(ctx, "", "-n", namespace, "get", "pods", "-o", "name")
	fmt.Fprint(&out, errorText(err))
	for pod := range strings.Lines(pods) {
		text, err := b.c.Kubectl(ctx, "", "-n", namespace, "logs", strings.TrimSpace(pod), "--all-containers", "--prefix", "--tail=12")
		fmt.Fprintf(&out, "%s%s", errorText(err), text)
	}
	return out.String()
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error() + "\n"
}

// apply applies objects, in a namespace if one is named by more.
func (b *bed) apply(t *testing.T, objects string, more ...string) {
	t.Helper()
	kubectl(t, b.c, objects, append([]string{"apply", "-f", "-"}, more...)...)
}

// remove deletes objects at the end of a test.
func (b *bed) remove(t *testing.T, objects string) {
	t.Helper()
	if _, err := b.c.Kubectl(context.Background(), objects, "delete", "--ignore-not-found", "-f", "-"); err != nil {
		t.Error(err)
	}
}

// available waits until all Deployments of a namespace are.
func (b *bed) available(t *testing.T, namespace string) {
	t.Helper()
	kubectl(t, b.c, "", "-n", namespace, "wait", "--for=condition=Available", "deployment", "--all", "--timeout=300s")
}

// client makes a client in a namespace.
func (b *bed) client(t *testing.T, namespace string) client {
	t.Helper()
	kubectl(t, b.c, "", "-n", namespace, "run", "client", "--image=malha.test/workload:1", "--grace-period=1", "--", "sleep")
	return b.clientOf(t, namespace)
}

// clientOf waits for the pod called client of a namespace.
func (b *bed) clientOf(t *testing.T, namespace string) client {
	t.Helper()
	kubectl(t, b.c, "", "-n", namespace, "wait", "--for=condition=Ready", "pod/client", "--timeout=300s")
	return client{b.c, namespace}
}

// outside is the client that is not in the mesh.
func (b *bed) outside(t *testing.T) client {
	t.Helper()
	return b.clientOf(t, "outside")
}

// client is a pod of malha.test/workload.
type client struct {
	c         *cluster.Cluster
	namespace string
}

// run runs the client's program and returns what it prints.
func (p client) run(ctx context.Context, args ...string) (string, error) {
	return p.c.Kubectl(ctx, "", append([]string{"-n", p.namespace, "exec", "client", "-c", "client", "--", "/workload"}, args...)...)
}

// get asks for a URL so many times, each on a connection of its own, and returns the bodies; a status other than 200 is an error.
func (p client) get(ctx context.Context, url string, times int) ([]string, error) {
	out, err := p.run(ctx, "get", url, fmt.Sprint(times))
	if err != nil {
		return nil, err
	}
	var answers []struct {
		Status int
		Body   string
	}
	if err := json.Unmarshal([]byte(out), &answers); err != nil {
		return nil, fmt.Errorf("the client printed %q: %w", out, err)
	}
	bodies := make([]string, 0, len(answers))
	for _, a := range answers {
		if a.Status != 200 {
			return bodies, fmt.Errorf("%s answered %d: %s", url, a.Status, a.Body)
		}
		bodies = append(bodies, a.Body)
	}
	return bodies, nil
}

// install installs the mesh for a test, and proves at its end that nothing is left.
func (b *bed) install(t *testing.T, args ...string) {
	t.Helper()
	// What a test that was killed left.
	kubectl(t, b.c, "", "delete", "namespace", "-l", "malha-e2e=test", "--timeout=300s")
	if _, err := b.mesh.Run(t.Context(), b.c, "uninstall", "--force"); err != nil {
		t.Fatal(err)
	}
	before := b.inventory(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(b.diagnose("malha-system"))
		}
		if os.Getenv("MALHA_E2E_KEEP") == "mesh" {
			return
		}
		b.uninstall(t, before)
	})
	install := append(append([]string{"install", "--timeout=300s"}, args...), strings.Fields(os.Getenv("MALHA_E2E_INSTALL"))...)
	for _, args := range [][]string{{"check", "--pre"}, install, {"check"}} {
		out, err := b.mesh.Run(t.Context(), b.c, args...)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(out)
	}
}

// uninstall takes the mesh away, and compares what is in the cluster with what was before.
func (b *bed) uninstall(t *testing.T, before []string) {
	ctx := context.Background() // the test's is over
	err := poll(ctx, 2*time.Minute, func() error {
		out, err := b.c.Kubectl(ctx, "", "get", "namespaces", "-o", `jsonpath={range .items[?(@.status.phase=="Terminating")]}{.metadata.name} {end}`)
		if err == nil && out != "" {
			err = fmt.Errorf("namespaces that end: %s", out)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if out, err := b.mesh.Run(ctx, b.c, "uninstall"); err != nil {
		t.Error(err)
	} else {
		t.Log(out)
	}
	var left []string
	for _, o := range b.inventory(t) {
		if _, was := slices.BinarySearch(before, o); !was {
			left = append(left, o)
		}
	}
	if len(left) > 0 {
		t.Errorf("after uninstall there is still:\n%s", strings.Join(left, "\n"))
	}
}

// inventory lists every object of the cluster but those that come and go by themselves, sorted.
func (b *bed) inventory(t *testing.T) []string {
	t.Helper()
	ctx := context.Background()
	kinds, err := b.c.Kubectl(ctx, "", "api-resources", "--verbs=list", "-o", "name")
	if err != nil {
		t.Error(err)
		return nil
	}
	var names []string
	for kind := range strings.FieldsSeq(kinds) {
		if !slices.Contains([]string{"events", "events.events.k8s.io", "componentstatuses", "endpoints"}, kind) {
			names = append(names, kind)
		}
	}
	out, err := b.c.Kubectl(ctx, "", "get", strings.Join(names, ","), "-A", "--ignore-not-found", "-o", `jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{"\n"}{end}`)
	if err != nil {
		t.Error(err)
	}
	return slices.Sorted(strings.SplitSeq(strings.TrimSpace(out), "\n"))
}

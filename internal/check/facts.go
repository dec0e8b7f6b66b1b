package check

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	core "k8s.io/api/core/v1"

	"github.com/malha-mesh/malha/internal/app/control"
	"github.com/malha-mesh/malha/internal/cluster"
	"github.com/malha-mesh/malha/internal/model"
)

const (
	labelInject = "malha.dev/inject"
	proxyName   = "malha-proxy" // of the container
	debugPort   = 15000         // of malhad, on its loopback interface
)

// once remembers the answer to a question.
type once[T any] struct {
	asked bool
	value T
	err   error
}

func (o *once[T]) get(ask func() (T, error)) (T, error) {
	if !o.asked {
		o.value, o.err = ask()
		o.asked = true
	}
	return o.value, o.err
}

// facts are what checks read, each thing once. One goroutine uses them.
type facts struct {
	*Options
	c *cluster.Cluster

	namespaces once[[]core.Namespace]
	pods       once[[]core.Pod]
	mutating   once[[]admissionregistration.MutatingWebhookConfiguration]
	debug      once[*Answers]
}

func newFacts(o *Options) *facts {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &facts{Options: o, c: o.Cluster}
}

func (f *facts) allNamespaces(ctx context.Context) ([]core.Namespace, error) {
	return f.namespaces.get(func() ([]core.Namespace, error) {
		return cluster.List[core.Namespace](ctx, f.c, cluster.Namespaces, "", "")
	})
}

func (f *facts) allPods(ctx context.Context) ([]core.Pod, error) {
	return f.pods.get(func() ([]core.Pod, error) { return cluster.List[core.Pod](ctx, f.c, cluster.Pods, f.Only, "") })
}

func (f *facts) webhooks(ctx context.Context) ([]admissionregistration.MutatingWebhookConfiguration, error) {
	return f.mutating.get(func() ([]admissionregistration.MutatingWebhookConfiguration, error) {
		return cluster.List[admissionregistration.MutatingWebhookConfiguration](ctx, f.c, cluster.Mutating, "", "")
	})
}

// adopted is which meshes the installation obeys, as its webhooks say.
func (f *facts) adopted(ctx context.Context) []string {
	if f.Adopt != nil {
		return f.Adopt
	}
	hooks, _ := f.webhooks(ctx)
	var out []string
	for i := range hooks {
		for _, h := range hooks[i].Webhooks {
			for _, a := range []string{"istio", "linkerd"} {
				if hooks[i].Name == "malha" && strings.Contains(h.Name, "."+a+".") && !slices.Contains(out, a) {
					out = append(out, a)
				}
			}
		}
	}
	return out
}

// inMesh reports whether a namespace says that its pods are to be in the mesh.
func inMesh(n *core.Namespace, adopted []string) bool {
	if v, ok := n.Labels[labelInject]; ok {
		return v == "enabled"
	}
	if slices.Contains(adopted, "istio") && (n.Labels["istio-injection"] == "enabled" || n.Labels["istio-injection"] == "" && n.Labels["istio.io/rev"] != "") {
		return true
	}
	return slices.Contains(adopted, "linkerd") && (n.Annotations["linkerd.io/inject"] == "enabled" || n.Annotations["linkerd.io/inject"] == "ingress")
}

// meshNamespaces are the namespaces whose pods are to be in the mesh.
func (f *facts) meshNamespaces(ctx context.Context) ([]core.Namespace, error) {
	all, err := f.allNamespaces(ctx)
	if err != nil {
		return nil, err
	}
	adopted := f.adopted(ctx)
	var out []core.Namespace
	for i := range all {
		if inMesh(&all[i], adopted) && (f.Only == "" || f.Only == all[i].Name) {
			out = append(out, all[i])
		}
	}
	return out, nil
}

// Proxy returns the status of a pod's proxy, nil while the kubelet said nothing of it, and whether the pod has one.
func Proxy(p *core.Pod) (status *core.ContainerStatus, has bool) {
	for _, list := range [][]core.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			has = has || list[i].Name == proxyName
		}
	}
	for _, list := range [][]core.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for i := range list {
			if list[i].Name == proxyName {
				return &list[i], true
			}
		}
	}
	return nil, has
}

// Answers are what the replicas of the control plane say.
type Answers struct {
	Versions    map[string]string     // of each replica, by the name of its pod
	Proxies     []control.ProxyStatus // each as the replica sees it that it is connected to
	Diagnostics []model.Diagnostic    // of the configuration, and of what a replica cannot do
	Away        []error               // why replicas did not answer; another did
}

func (f *facts) debugged(ctx context.Context) (*Answers, error) {
	return f.debug.get(func() (*Answers, error) { return Ask(ctx, f.c, f.Namespace) })
}

// ControlPlanes returns the running pods of the control plane.
func ControlPlanes(ctx context.Context, c *cluster.Cluster, namespace string) ([]core.Pod, error) {
	pods, err := cluster.List[core.Pod](ctx, c, cluster.Pods, namespace, "app=malhad")
	if err != nil {
		return nil, err
	}
	var trouble string
	pods = slices.DeleteFunc(pods, func(p core.Pod) bool {
		away := p.Status.Phase != core.PodRunning || p.DeletionTimestamp != nil
		if away && trouble == "" {
			trouble = p.Name + ": " + cluster.Trouble(&p)
		}
		return away
	})
	if len(pods) == 0 && trouble != "" {
		return nil, wrong("kubectl -n "+namespace+" describe pods -l app=malhad; `malha check` says more", "docs/kubernetes.md", "no pod of the control plane runs in namespace %s: %s", namespace, trouble)
	}
	if len(pods) == 0 {
		return nil, wrong("install the mesh with `malha install`, or name its namespace with --mesh-namespace; `malha check` says more", "docs/install.md", "no control plane runs in namespace %s", namespace)
	}
	return pods, nil
}

// Ask asks every replica of the control plane how it and its proxies are.
func Ask(ctx context.Context, c *cluster.Cluster, namespace string) (*Answers, error) {
	pods, err := ControlPlanes(ctx, c, namespace)
	if err != nil {
		return nil, err
	}
	out := &Answers{Versions: map[string]string{}}
	for i := range pods {
		if err := out.ask(ctx, c, &pods[i]); err != nil {
			if unready(&pods[i]) { // an upgrade, say; for how long is asked elsewhere
				err = doubtful("ask again in a minute; `malha check` says above what it lacks", "docs/kubernetes.md", "pod %s/%s is starting: %v", pods[i].Namespace, pods[i].Name, err)
			}
			out.Away = append(out.Away, err)
		}
	}
	if len(out.Versions) == 0 {
		return nil, out.Away[0]
	}
	out.Proxies = merged(out.Proxies)
	return out, nil
}

// unready reports whether the kubelet says that a pod is not ready.
func unready(p *core.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c core.PodCondition) bool { return c.Type == core.PodReady && c.Status == core.ConditionFalse })
}

// ask adds what one replica says: all of it or nothing.
func (out *Answers) ask(ctx context.Context, c *cluster.Cluster, pod *core.Pod) error {
	var version struct {
		Version string `json:"version"`
	}
	var proxies []control.ProxyStatus
	var diagnostics []model.Diagnostic
	for _, q := range []struct {
		path string
		into any
	}{{"/debug/version", &version}, {"/debug/proxies", &proxies}, {"/debug/diagnostics", &diagnostics}} {
		if err := AskReplica(ctx, c, pod, q.path, q.into); err != nil {
			return err
		}
	}
	out.Versions[pod.Name] = version.Version
	out.Proxies = append(out.Proxies, proxies...)
	for _, d := range diagnostics { // all replicas read the same; only the leader writes
		if !slices.Contains(out.Diagnostics, d) {
			out.Diagnostics = append(out.Diagnostics, d)
		}
	}
	return nil
}

// AskReplica asks one replica of the control plane, and reads its answer, JSON, into a value.
func AskReplica(ctx context.Context, c *cluster.Cluster, pod *core.Pod, path string, into any) error {
	data, err := c.Ask(ctx, pod.Namespace, pod.Name, debugPort, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("pod %s/%s answers %s with something else: %w; `malha version` says whether it is of another version", pod.Namespace, pod.Name, path, err)
	}
	return nil
}

// merged keeps one entry for each proxy: of the replica that it is connected to, and else of whichever heard of it last.
func merged(all []control.ProxyStatus) []control.ProxyStatus {
	slices.SortStableFunc(all, func(a, b control.ProxyStatus) int {
		return cmp.Or(a.Name.Compare(b.Name), rank(a)-rank(b), b.LastAck.Compare(a.LastAck))
	})
	return slices.CompactFunc(all, func(a, b control.ProxyStatus) bool { return a.Name == b.Name })
}

func rank(p control.ProxyStatus) int {
	if p.Connected {
		return 0
	}
	return 1
}

// some writes the first few of many names.
func some(names []string) string {
	slices.Sort(names)
	names = slices.Compact(names)
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

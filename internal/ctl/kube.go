package ctl

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/malha-mesh/malha/internal/check"
	"github.com/malha-mesh/malha/internal/cluster"
	"github.com/malha-mesh/malha/internal/release"
)

// kube are the flags of verbs that work on a Kubernetes cluster.
type kube struct {
	cluster.Options
	mesh string // namespace of the control plane
}

// clusterFlags adds the flags that say which cluster, and with scoped which namespace in it.
func clusterFlags(cmd *cobra.Command, k *kube, scoped bool) {
	f := cmd.Flags()
	f.StringVar(&k.Kubeconfig, "kubeconfig", "", "`FILE` that says how to reach the cluster (default as kubectl: $KUBECONFIG or ~/.kube/config)")
	f.StringVar(&k.Context, "context", "", "the `NAME` of a context in it")
	f.StringVar(&k.mesh, "mesh-namespace", release.Namespace, "`NAMESPACE` of the control plane")
	if scoped {
		f.StringVarP(&k.Namespace, "namespace", "n", "", "`NAMESPACE`")
	}
	_ = cmd.MarkFlagFilename("kubeconfig")
}

// open connects to the cluster of the flags.
func (s *session) open(k *kube) (*cluster.Cluster, error) {
	if s.connect != nil {
		return s.connect(k.Options)
	}
	return cluster.Open(k.Options)
}

// Marks of lists that people read, as other meshes' tools have them.
const (
	markOK   = "√"
	markWarn = "‼"
	markBad  = "×"
)

// step prints what was done, or is waited for.
type step struct {
	ui   *ui
	last string
}

// done prints a finished step.
func (p *step) done(format string, args ...any) {
	p.clear()
	p.ui.say("%s %s", paint(p.ui.errColor, green, markOK), fmt.Sprintf(format, args...))
}

// waiting shows what is still missing: on a terminal in place, elsewhere once for each new reason.
func (p *step) waiting(text string) {
	if text == p.last {
		return
	}
	p.clear()
	p.last = text
	if p.ui.errTTY {
		fmt.Fprintf(p.ui.err, "… %s", strings.ReplaceAll(text, "\n", " "))
	} else {
		p.ui.say("… %s", text)
	}
}

func (p *step) clear() {
	if p.last != "" && p.ui.errTTY {
		fmt.Fprint(p.ui.err, "\r\x1b[2K")
	}
	p.last = ""
}

// splitPod reads POD, POD.NAMESPACE (as istioctl) or NAMESPACE/POD; kind/ in front is taken off.
func splitPod(arg, namespace string) (ns, pod string) {
	if a, b, ok := strings.Cut(arg, "/"); ok {
		if a == "pod" || a == "pods" || a == "po" {
			return splitPod(b, namespace)
		}
		return a, b
	}
	if i := strings.LastIndexByte(arg, '.'); i > 0 {
		return arg[i+1:], arg[:i]
	}
	return namespace, arg
}

// podOwners are the kinds that stand for their pods, by the words that kubectl takes.
var podOwners = map[string]cluster.Kind{
	"deploy": cluster.Deployments, "deployment": cluster.Deployments, "deployments": cluster.Deployments,
	"sts": cluster.StatefulSets, "statefulset": cluster.StatefulSets, "statefulsets": cluster.StatefulSets,
	"ds": cluster.DaemonSets, "daemonset": cluster.DaemonSets, "daemonsets": cluster.DaemonSets,
	"job": cluster.Jobs, "jobs": cluster.Jobs,
	"svc": cluster.Services, "service": cluster.Services, "services": cluster.Services,
}

// findPod is splitPod, and for KIND/NAME one of the pods of that object: the first by name, before all one whose proxy is ready.
func findPod(ctx context.Context, c *cluster.Cluster, arg string) (namespace, name string, err error) {
	word, rest, _ := strings.Cut(arg, "/")
	kind, known := podOwners[word]
	if !known || rest == "" {
		namespace, name = splitPod(arg, c.Namespace)
		return namespace, name, nil
	}
	namespace, owner := splitPod(rest, c.Namespace)
	u, err := c.Dynamic.Resource(kind).Namespace(namespace).Get(ctx, owner, metav1.GetOptions{})
	if cluster.IsNotFound(err) {
		return "", "", fmt.Errorf("there is no %s %s in namespace %s; name another with -n", word, owner, namespace)
	}
	if err != nil {
		return "", "", c.Explain(err)
	}
	path := []string{"spec", "selector", "matchLabels"}
	if kind == cluster.Services {
		path = path[:2]
	}
	chosen, _, err := unstructured.NestedStringMap(u.Object, path...)
	if err != nil || len(chosen) == 0 {
		return "", "", fmt.Errorf("%s %s/%s selects no pods; name one", word, namespace, owner)
	}
	pods, err := cluster.List[corev1.Pod](ctx, c, cluster.Pods, namespace, labels.FormatLabels(chosen))
	if err != nil {
		return "", "", err
	}
	for i := range pods {
		p := &pods[i]
		if status, _ := check.Proxy(p); status != nil && status.Ready && p.DeletionTimestamp == nil {
			return namespace, p.Name, nil
		}
		if name == "" {
			name = p.Name
		}
	}
	if name == "" {
		return "", "", fmt.Errorf("%s %s/%s has no pods", word, namespace, owner)
	}
	return namespace, name, nil
}

// completePods offers the pods of the namespace.
func (s *session) completePods(k *kube) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return s.completeObjects(k, func(string) (cluster.Kind, string) { return cluster.Pods, "" })
}

// completeObjects offers the names of the objects of a kind.
func (s *session) completeObjects(k *kube, kind func(prefix string) (cluster.Kind, string)) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := s.open(k)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second)
		defer cancel()
		of, before := kind(prefix)
		found, err := c.Objects(ctx, of, c.Namespace, "")
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for i := range found {
			if n := before + found[i].GetName(); strings.HasPrefix(n, prefix) {
				names = append(names, n)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

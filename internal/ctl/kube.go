package ctl

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

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

// completePods offers the pods of the namespace that have a proxy, and their namespaces' are not asked for.
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

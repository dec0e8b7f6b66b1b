package ctl

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/malha-mesh/malha/internal/cluster"
	"github.com/malha-mesh/malha/internal/inject"
)

func (s *session) checkInject() *cobra.Command {
	var (
		i injection
		k kube
	)
	out := format("table")
	cmd := &cobra.Command{
		Use:   "check-inject POD | -f FILE|DIR|-",
		Short: "Explain why a pod has a proxy, or has none",
		Long: `Explain the decision about a pod: which label asks or declines, what stands against it, and what to do. With -f about the
workloads of manifests, as if they came into a namespace that says nothing. Exit code 1: it asks for a proxy and has none.`,
		Example: `  malha check-inject web-7d9c6b5f4-x2x9z -n shop
  malha check-inject -f app.yaml
  malha check-inject -f deploy -o json | jq '.[] | select(.code != "asked")'`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: s.completePods(&k),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (len(i.files) > 0) {
				return errors.New("name a pod, or manifests with -f")
			}
			if len(args) == 1 {
				r := &injectReport{s: s}
				err := s.checkPod(cmd.Context(), r, args[0], &k)
				if out != "table" && len(r.all) == 1 {
					return errors.Join(out.encode(s.ui.out, r.all[0]), err)
				}
				return err
			}
			c, err := i.settings(cmd, s)
			if err != nil {
				return err
			}
			r := &injectReport{s: s, verb: "would be injected", dry: true}
			err = r.rewrite(i.files, func(w *inject.Workload) (inject.Patch, error) {
				result, err := c.Workload(w, inject.Namespace{Name: w.Namespace})
				if result.Inject {
					r.done++
					r.note(w, result, err)
					r.line(markOK, green, w, "would be injected: "+result.Reason)
					return nil, err
				}
				return r.result(w, result, err)
			})
			if out != "table" {
				return errors.Join(out.encode(s.ui.out, r.all), err)
			}
			return err
		},
	}
	clusterFlags(cmd, &k, true)
	f := cmd.Flags()
	f.StringVar(&i.config, "config", "", "with -f: `FILE` with the settings of injection")
	f.StringSliceVar(&i.adopt, "adopt", nil, "with -f: obey the words of these `MESHES` too: istio, linkerd")
	f.StringArrayVarP(&i.files, "filename", "f", nil, "`FILE`, folder (with its sub-folders) or - for standard input")
	addFormat(cmd, &out)
	return cmd
}

// checkPod explains the decision about a pod of the cluster.
func (s *session) checkPod(ctx context.Context, r *injectReport, arg string, k *kube) error {
	c, err := s.open(k)
	if err != nil {
		return err
	}
	namespace, name, err := findPod(ctx, c, arg)
	if err != nil {
		return err
	}
	pod, err := cluster.Get[corev1.Pod](ctx, c, cluster.Pods, namespace, name)
	if cluster.IsNotFound(err) {
		return fmt.Errorf("there is no pod %s in namespace %s; name another with -n", name, namespace)
	}
	if err != nil {
		return err
	}
	ns, err := cluster.Get[corev1.Namespace](ctx, c, cluster.Namespaces, "", namespace)
	if err != nil {
		return err
	}
	settings, err := injectionOf(ctx, c, k.mesh)
	if err != nil {
		return err
	}
	result, err := settings.Pod(&pod.ObjectMeta, &pod.Spec, inject.Namespace{Name: namespace, Labels: ns.Labels, Annotations: ns.Annotations})
	w := &inject.Workload{Kind: "Pod", Namespace: namespace, Name: pod.Name}
	if err == nil {
		r.note(w, result, nil)
	}
	switch {
	case err != nil:
		if _, err := r.result(w, result, err); err != nil {
			return err
		}
		return exitCode(1)
	case result.Code == inject.Already:
		r.line(markOK, green, w, "it has the proxy")
		for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
			for j := range list {
				if st := &list[j]; st.Name == inject.ProxyContainer {
					s.ui.say("    image %s, ready: %t, restarts: %d", st.Image, st.Ready, st.RestartCount)
				}
			}
		}
		return nil
	case result.Inject:
		r.line(markBad, red, w, "it has no proxy, though "+result.Reason)
		s.ui.say("    it was made before that was said, or while the webhook did not answer")
		s.ui.say("    %smake it again, for instance kubectl rollout restart its Deployment; `malha check` tells whether the webhook answers", paint(s.ui.errColor, dim, "fix: "))
		return exitCode(1)
	}
	r.line(markWarn, yellow, w, "it has no proxy: "+result.Reason)
	return nil
}

// injectionOf returns the settings of the mesh in a cluster.
func injectionOf(ctx context.Context, c *cluster.Cluster, mesh string) (*inject.Config, error) {
	m, err := cluster.Get[corev1.ConfigMap](ctx, c, cluster.ConfigMaps, mesh, "malha")
	if cluster.IsNotFound(err) {
		return nil, fmt.Errorf("there is no ConfigMap malha in namespace %s: is the mesh installed? see `malha check`, or name its namespace with --mesh-namespace", mesh)
	}
	if err != nil {
		return nil, err
	}
	settings, err := inject.ReadConfig([]byte(m.Data["injection.yaml"]))
	if err != nil {
		return nil, fmt.Errorf("ConfigMap %s/malha, key injection.yaml: %w", mesh, err)
	}
	settings.Namespace = mesh
	return settings, nil
}

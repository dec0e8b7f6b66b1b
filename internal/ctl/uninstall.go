package ctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/malha-mesh/malha/internal/check"
	"github.com/malha-mesh/malha/internal/cluster"
	"github.com/malha-mesh/malha/internal/release"
)

func (s *session) uninstall() *cobra.Command {
	var (
		k                       kube
		dryRun, force, keepCRDs bool
		timeout                 time.Duration
	)
	out := format("table")
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove the mesh from a Kubernetes cluster",
		Long: `Remove everything that belongs to the mesh: what the chart made, what the control plane made (trust bundles, leases,
gateways' Deployments), the key of the certificates, the kinds of malha.dev, and the namespace if install made it.
Then wait until it is gone. Kinds and objects of other projects stay.

Pods keep their proxy until they are restarted, and with the certificates gone these soon refuse each other. So while pods
have one, or objects of malha.dev exist, uninstall says which and stops, unless --force is given.`,
		Example: `  malha uninstall --dry-run
  malha uninstall`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.open(&k)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return s.runUninstall(ctx, c, k.mesh, out, dryRun, force, keepCRDs)
		},
	}
	clusterFlags(cmd, &k, false)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only print what would be removed")
	cmd.Flags().BoolVar(&force, "force", false, "also while pods have a proxy, or objects of malha.dev exist, which are deleted")
	cmd.Flags().BoolVar(&keepCRDs, "keep-crds", false, "leave the kinds of malha.dev, and objects of them")
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Minute, "how long to wait at most")
	addFormat(cmd, &out)
	return cmd
}

func (s *session) runUninstall(ctx context.Context, c *cluster.Cluster, mesh string, out format, dryRun, force, keepCRDs bool) error {
	if _, err := c.Version(); err != nil {
		return err
	}
	objects, err := everything(ctx, c, mesh)
	if err != nil {
		return err
	}
	if keepCRDs {
		objects = slices.DeleteFunc(objects, func(o unstructured.Unstructured) bool { return o.GetKind() == "CustomResourceDefinition" })
	}
	if len(objects) == 0 {
		s.ui.say("there is nothing of Malha in this cluster")
		if out != "table" {
			return out.encode(s.ui.out, []objectResult{})
		}
		return nil
	}
	inUse, err := stillUsed(ctx, c, objects)
	if err != nil {
		return err
	}
	for _, u := range inUse {
		s.ui.say("%s %s", paint(s.ui.errColor, yellow, markWarn), u)
	}
	if len(inUse) > 0 && !force && !dryRun {
		return errors.New("the mesh is in use; take namespaces out of it and restart their pods (kubectl label namespace NAME malha.dev/inject-, kubectl -n NAME rollout restart deployment), or use --force")
	}
	p := &step{ui: s.ui}
	gone := func(o *unstructured.Unstructured) error {
		err := cluster.WaitFor(ctx, func(ctx context.Context) (bool, string, error) {
			gone, err := c.Gone(ctx, o)
			if !gone && err == nil {
				p.waiting("waiting for " + o.GetKind() + " " + o.GetName() + " to be gone")
			}
			return gone, "", err
		})
		p.clear()
		if err != nil {
			return fmt.Errorf("%s %s is not gone: %w; `kubectl get -o yaml` shows what holds it (finalizers)", o.GetKind(), o.GetName(), err)
		}
		return nil
	}
	var results []objectResult
	waited := 0 // objects before it that were waited for
	for i := range objects {
		o := &objects[i]
		there := true
		if !dryRun && waited == 0 && release.Order(o.GetKind()) < release.Order("Deployment") {
			// A control plane that is ending still makes again what is missing of its own.
			for ; waited < i; waited++ {
				if err := gone(&objects[waited]); err != nil {
					return err
				}
			}
		}
		if !dryRun {
			if there, err = c.Delete(ctx, o, false); err != nil {
				return fmt.Errorf("removing %s %s: %w", o.GetKind(), o.GetName(), err)
			}
		}
		if there {
			results = append(results, resultOf(o, "deleted"))
			if out == "table" {
				fmt.Fprintln(s.ui.out, deleted(o, dryRun))
			}
		}
	}
	if !dryRun {
		for i := range objects[waited:] {
			if err := gone(&objects[waited+i]); err != nil {
				return err
			}
		}
		p.done("everything of Malha is gone")
	}
	if out != "table" {
		return out.encode(s.ui.out, results)
	}
	return nil
}

func deleted(o *unstructured.Unstructured, dryRun bool) string {
	line := strings.ToLower(o.GetKind()) + "/" + o.GetName()
	if ns := o.GetNamespace(); ns != "" {
		line += " in " + ns
	}
	if dryRun {
		return line + " deleted (dry run)"
	}
	return line + " deleted"
}

// releaseKinds are what the chart may make.
var releaseKinds = []cluster.Kind{
	cluster.Namespaces, cluster.CRDs, {Version: "v1", Resource: "serviceaccounts"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"}, {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"}, {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"},
	cluster.ConfigMaps, cluster.Services, {Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}, {Group: "autoscaling", Version: "v2", Resource: "horizontalpodautoscalers"}, cluster.Deployments,
	cluster.Mutating, cluster.Validating,
}

// releaseObjects finds what the chart made, by its label.
func releaseObjects(ctx context.Context, c *cluster.Cluster) ([]unstructured.Unstructured, error) {
	var out []unstructured.Unstructured
	for _, k := range releaseKinds {
		found, err := c.Objects(ctx, k, "", release.LabelRelease+"="+release.Name)
		if err != nil {
			return nil, fmt.Errorf("finding %s of the mesh: %w", k.Resource, err)
		}
		out = append(out, found...)
	}
	return out, nil
}

// everything finds what the chart and the control plane made, in the order in which it is deleted: webhooks first, so that nothing
// asks a control plane that is gone.
func everything(ctx context.Context, c *cluster.Cluster, mesh string) ([]unstructured.Unstructured, error) {
	out, err := releaseObjects(ctx, c)
	if err != nil {
		return nil, err
	}
	partOf := release.LabelPartOf + "=" + release.Name
	keep := func(k cluster.Kind, found []unstructured.Unstructured, err error, ours func(*unstructured.Unstructured) bool) error {
		if err != nil && (cluster.IsNotFound(err) || meta.IsNoMatchError(err)) {
			return nil // the kind does not exist
		}
		if err != nil {
			return fmt.Errorf("finding %s of the mesh: %w", k.Resource, err)
		}
		for i := range found {
			if ours(&found[i]) {
				out = append(out, found[i])
			}
		}
		return nil
	}
	add := func(k cluster.Kind, namespace, selector string, ours func(*unstructured.Unstructured) bool) error {
		found, err := c.Objects(ctx, k, namespace, selector)
		return keep(k, found, err, ours)
	}
	roots, rerr := c.Named(ctx, cluster.ConfigMaps, "malha-ca-root")
	madeForGateway := func(o *unstructured.Unstructured) bool {
		_, ok := o.GetLabels()["gateway.networking.k8s.io/gateway-name"]
		return ok
	}
	named := func(name string) func(*unstructured.Unstructured) bool {
		return func(o *unstructured.Unstructured) bool { return o.GetName() == name }
	}
	err = errors.Join(
		keep(cluster.ConfigMaps, roots, rerr, named("malha-ca-root")),
		add(cluster.Leases, mesh, "", named("malha-leader")),
		add(cluster.Deployments, "", partOf, madeForGateway),
		add(cluster.Services, "", partOf, madeForGateway),
		add(cluster.Kind{Version: "v1", Resource: "serviceaccounts"}, "", partOf, madeForGateway),
		add(cluster.Kind{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gatewayclasses"}, "", "", func(o *unstructured.Unstructured) bool {
			controller, _, _ := unstructured.NestedString(o.Object, "spec", "controllerName")
			return controller == "malha.dev/gateway-controller"
		}),
	)
	if err != nil {
		return nil, err
	}
	// Reading Secrets is a right that who uninstalls need not have: they are deleted by their names.
	if len(out) > 0 {
		for _, name := range []string{"malha-ca", "malha-ca-previous"} {
			out = append(out, unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": name, "namespace": mesh}}})
		}
	}
	seen := map[string]bool{}
	out = slices.DeleteFunc(out, func(o unstructured.Unstructured) bool {
		id := o.GetKind() + "/" + o.GetNamespace() + "/" + o.GetName()
		twice := seen[id]
		seen[id] = true
		return twice
	})
	// What install does not know of goes before the rest: while the control plane is there it would be made again, so behind that.
	rank := func(o *unstructured.Unstructured) int {
		if n := release.Order(o.GetKind()); n < release.Order("") {
			return -n
		}
		return -release.Order("ConfigMap")
	}
	slices.SortStableFunc(out, func(a, b unstructured.Unstructured) int { return cmp.Compare(rank(&a), rank(&b)) })
	return out, nil
}

// stillUsed names pods with a proxy, and users' objects of kinds that go.
func stillUsed(ctx context.Context, c *cluster.Cluster, objects []unstructured.Unstructured) ([]string, error) {
	pods, err := cluster.List[core.Pod](ctx, c, cluster.Pods, "", "")
	if err != nil {
		return nil, err
	}
	count := map[string]int{}
	for i := range pods {
		p := &pods[i]
		if _, has := check.Proxy(p); has && p.Labels["malha.dev/role"] != "gateway" && p.DeletionTimestamp == nil && p.Status.Phase != core.PodSucceeded && p.Status.Phase != core.PodFailed {
			count[p.Namespace]++
		}
	}
	var out []string
	for ns, n := range count {
		out = append(out, fmt.Sprintf("namespace %s: %d pods have a proxy", ns, n))
	}
	for i := range objects {
		o := &objects[i]
		if o.GetKind() != "CustomResourceDefinition" {
			continue
		}
		group, _, _ := unstructured.NestedString(o.Object, "spec", "group")
		plural, _, _ := unstructured.NestedString(o.Object, "spec", "names", "plural")
		found, err := c.Objects(ctx, cluster.Kind{Group: group, Version: "v1alpha1", Resource: plural}, "", "")
		if err != nil && !cluster.IsNotFound(err) {
			return nil, err
		}
		for j := range found {
			out = append(out, fmt.Sprintf("%s %s/%s goes with its kind", found[j].GetKind(), found[j].GetNamespace(), found[j].GetName()))
		}
	}
	slices.Sort(out)
	return out, nil
}

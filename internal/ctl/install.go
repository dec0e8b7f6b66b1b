package ctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/malha-mesh/malha/internal/check"
	"github.com/malha-mesh/malha/internal/cluster"
	"github.com/malha-mesh/malha/internal/release"
)

// installation are the flags of `malha install`.
type installation struct {
	kube
	release.Options
	files         []string
	dryRun, force bool
	wait          bool
	timeout       time.Duration
	out           format
}

func (s *session) install() *cobra.Command {
	in := &installation{out: "table"}
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install or upgrade the mesh in a Kubernetes cluster",
		Long: `Render the chart of the mesh and apply it to the cluster, then wait until it is healthy. What the cluster has already of
it is brought to what is asked for, and what is no longer part of it is removed, so the same command upgrades, and repairs.

Helm does the same with the same chart: helm install malha chart/malha -n malha-system --create-namespace.`,
		Example: `  malha install
  malha install --profile demo --adopt istio
  malha install --set controlPlane.replicas=3 --dry-run > mesh.yaml`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return s.runInstall(cmd.Context(), in) },
	}
	clusterFlags(cmd, &in.kube, false)
	f := cmd.Flags()
	f.StringVar(&in.Profile, "profile", "default", strings.Join(release.Profiles(), ", ")+": what is installed, and how big")
	f.StringArrayVar(&in.Set, "set", nil, "`PATH=VALUE` of a value of the chart; docs/install.md lists them")
	f.StringArrayVarP(&in.files, "values", "f", nil, "`FILE` with values of the chart")
	f.StringSliceVar(&in.Adopt, "adopt", nil, "obey the labels and annotations of istio, linkerd too")
	f.BoolVar(&in.dryRun, "dry-run", false, "print what would be applied as YAML (or, with -o json, JSON), and ask no cluster")
	f.BoolVar(&in.wait, "wait", true, "wait until everything is healthy")
	f.DurationVar(&in.timeout, "timeout", 5*time.Minute, "how long to wait at most")
	f.BoolVar(&in.force, "force-conflicts", false, "take over fields that somebody else, Helm for instance, has set")
	addFormat(cmd, &in.out)
	_ = cmd.MarkFlagFilename("values", "yaml", "yml")
	_ = cmd.RegisterFlagCompletionFunc("profile", cobra.FixedCompletions(release.Profiles(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("adopt", cobra.FixedCompletions([]string{"istio", "linkerd"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// objectResult is what was done with one object, as -o shows it.
type objectResult struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Action    string `json:"action"`
}

func resultOf(o *unstructured.Unstructured, action string) objectResult {
	return objectResult{o.GetKind(), o.GetNamespace(), o.GetName(), action}
}

func (s *session) runInstall(ctx context.Context, in *installation) error {
	for _, name := range in.files {
		data, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("cannot read %s: %w", name, err)
		}
		in.Values = append(in.Values, data)
	}
	in.Options.Namespace, in.Version = in.mesh, s.version
	r, err := release.Render(in.Options)
	if err != nil {
		return err
	}
	if in.dryRun {
		return s.printRelease(r, in.out)
	}
	c, err := s.open(&in.kube)
	if err != nil {
		return err
	}
	if _, err := c.Version(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, in.timeout)
	defer cancel()
	p := &step{ui: s.ui}
	results, err := apply(ctx, c, r, in, p)
	p.clear()
	if err != nil {
		if len(results) > 0 {
			s.ui.say("%d objects were applied before; `malha install` goes on from there, `malha uninstall` removes them", len(results))
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("not done after %s: %w; `malha check` says what is missing", in.timeout, err)
		}
		return err
	}
	if in.out != "table" {
		return in.out.encode(s.ui.out, results)
	}
	s.ui.say("\nMalha %s is installed in namespace %s. Next: put a namespace into the mesh and restart its pods,", s.version, r.Namespace)
	s.ui.say("  kubectl label namespace default malha.dev/inject=enabled\n  kubectl -n default rollout restart deployment\nand look: malha check --proxy")
	return nil
}

func (s *session) printRelease(r *release.Release, out format) error {
	if out == "json" {
		items := make([]any, len(r.Objects))
		for i := range r.Objects {
			items[i] = r.Objects[i].Object
		}
		return out.encode(s.ui.out, map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
	}
	data, err := r.YAML()
	if err != nil {
		return err
	}
	_, err = s.ui.out.Write(data)
	return err
}

// stages are what is waited for together: a later one needs the earlier.
var stages = []struct {
	title string
	last  string // the last kind, in the order of package release
}{
	{"namespace and kinds", "CustomResourceDefinition"},
	{"accounts and rights", "RoleBinding"},
	{"control plane and gateways", "Deployment"},
	{"webhooks", ""},
}

// apply applies what Render made, stage by stage, and removes what is no longer part of it.
func apply(ctx context.Context, c *cluster.Cluster, r *release.Release, in *installation, p *step) ([]objectResult, error) {
	if err := mayApply(ctx, c, r); err != nil {
		return nil, err
	}
	p.done("you may do all of it")
	// Its webhooks and rights would become this one's, and what is its alone would be removed as no longer part of the mesh.
	switch other, err := check.Elsewhere(ctx, c, r.Namespace); {
	case err != nil:
		return nil, err
	case other != "":
		return nil, fmt.Errorf("the mesh is installed in namespace %s already, and a cluster has one; nothing was changed: upgrade it with --mesh-namespace %s, or uninstall it first", other, other)
	}
	var results []objectResult
	rest := r.Objects
	var later []*unstructured.Unstructured // waited for behind the webhooks: a gateway's pod waits for what the control plane writes
	for _, stage := range stages {
		count := map[cluster.Applied]int{}
		begin := len(results)
		var applied []*unstructured.Unstructured
		for len(rest) > 0 && (stage.last == "" || release.Order(rest[0].GetKind()) <= release.Order(stage.last)) {
			o := &rest[0]
			rest = rest[1:]
			did, err := c.Apply(ctx, o, false, in.force)
			if err != nil {
				return results, fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err)
			}
			results = append(results, resultOf(o, string(did)))
			applied = append(applied, o)
			count[did]++
		}
		for _, o := range applied {
			if o.GetKind() == "Deployment" {
				later = append(later, o)
				continue
			}
			if in.wait || o.GetKind() == "CustomResourceDefinition" {
				if err := waitReady(ctx, c, o, p); err != nil {
					return results, err
				}
			}
		}
		p.done("%s: %s", stage.title, counted(count, len(results)-begin))
	}
	pruned, err := prune(ctx, c, r)
	results = append(results, pruned...)
	if err != nil {
		return results, err
	}
	if len(pruned) > 0 {
		p.done("removed what is no longer part of it: %d objects", len(pruned))
	}
	if in.wait {
		// The control plane first: gateways wait for it, and why it does not start is what the user must know.
		if i := slices.IndexFunc(later, func(o *unstructured.Unstructured) bool { return o.GetName() == "malhad" }); i > 0 {
			later[0], later[i] = later[i], later[0]
		}
		for _, o := range later {
			if err := waitReady(ctx, c, o, p); err != nil {
				return results, err
			}
			p.done("%s is ready", o.GetName())
		}
	}
	return results, nil
}

func counted(count map[cluster.Applied]int, all int) string {
	var parts []string
	for _, a := range []cluster.Applied{cluster.Created, cluster.Configured, cluster.Unchanged} {
		if n := count[a]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, a))
		}
	}
	if len(parts) == 0 {
		return fmt.Sprintf("%d objects", all)
	}
	return strings.Join(parts, ", ")
}

func waitReady(ctx context.Context, c *cluster.Cluster, o *unstructured.Unstructured, p *step) error {
	err := cluster.WaitFor(ctx, func(ctx context.Context) (bool, string, error) {
		ok, why, err := c.Ready(ctx, o)
		if !ok && why != "" {
			p.waiting(o.GetName() + ": " + why)
		}
		return ok, why, err
	})
	if err != nil {
		return fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err)
	}
	return nil
}

// mayApply asks for every right before anything is changed, so that nothing is left half done for want of one.
func mayApply(ctx context.Context, c *cluster.Cluster, r *release.Release) error {
	missing, err := release.Missing(ctx, c, r, "get", "create", "patch")
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("you lack rights in this cluster: %s; have a cluster administrator install the mesh, or give you these (docs/install.md)", strings.Join(missing, ", "))
	}
	return nil
}

// prune deletes what an earlier installation made and this one does not have.
func prune(ctx context.Context, c *cluster.Cluster, r *release.Release) ([]objectResult, error) {
	type key struct{ kind, namespace, name string }
	keep := map[key]bool{}
	for i := range r.Objects {
		o := &r.Objects[i]
		keep[key{o.GetKind(), o.GetNamespace(), o.GetName()}] = true
	}
	found, err := releaseObjects(ctx, c)
	if err != nil {
		return nil, err
	}
	var results []objectResult
	for i := range found {
		o := &found[i]
		// A kind is not taken away by a setting: objects of users go with it.
		if keep[key{o.GetKind(), o.GetNamespace(), o.GetName()}] || o.GetKind() == "CustomResourceDefinition" || o.GetKind() == "Namespace" {
			continue
		}
		if there, err := c.Delete(ctx, o, false); err != nil {
			return results, fmt.Errorf("removing %s %s: %w", o.GetKind(), o.GetName(), err)
		} else if there {
			results = append(results, resultOf(o, "deleted"))
		}
	}
	return results, nil
}

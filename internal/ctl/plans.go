package ctl

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/compile"
	"github.com/malha-mesh/malha/internal/config/file"
	"github.com/malha-mesh/malha/internal/explain"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/scope"
	"github.com/malha-mesh/malha/internal/world"
)

// compiled is what became of a folder of manifests.
type compiled struct {
	files       *file.Result
	placed      placement.Placement
	plans       []*plan.Plan // of every proxy, by name; nil with errors among the diagnostics
	diagnostics []model.Diagnostic
}

// compileAll compiles folders and files for every proxy, without a mesh. prev keeps addresses as they were.
func compileAll(prev placement.Placement, paths ...string) (*compiled, error) {
	c := &compiled{files: file.ReadAll(paths...)}
	c.diagnostics = c.files.Diagnostics
	if model.HasErrors(c.diagnostics) {
		return c, nil
	}
	var err error
	if c.placed, err = placement.OfflineAfter(c.files.Config, prev); err != nil {
		return nil, err
	}
	w := world.Build(c.files.Config, c.placed.Instances, c.placed.Gateways)
	c.diagnostics = append(c.diagnostics, world.Check(w)...)
	if model.HasErrors(c.diagnostics) {
		return c, nil
	}
	type cause struct {
		code string
		at   ident.Origin
	}
	said := map[cause]bool{}
	for _, d := range c.diagnostics {
		said[cause{d.Code, d.Origin}] = true
	}
	for _, n := range w.Nodes() {
		sc, ok := scope.For(w, n)
		if !ok {
			continue
		}
		p, ds := compile.Compile(sc)
		c.plans = append(c.plans, p)
		for _, d := range ds {
			if k := (cause{d.Code, d.Origin}); !said[k] { // many proxies meet the same reference
				said[k] = true
				c.diagnostics = append(c.diagnostics, d)
			}
		}
	}
	return c, nil
}

// plans returns the plans of all proxies: of folders and files, or without any of the running mesh.
func (s *session) plans(ctx context.Context, paths []string) ([]*plan.Plan, error) {
	if len(paths) == 0 {
		plans, err := s.running(ctx)
		if err != nil {
			return nil, fmt.Errorf("%w; or name a folder with -f DIR, which needs no mesh", err)
		}
		return plans, nil
	}
	c, err := compileAll(placement.Placement{}, paths...)
	if err != nil {
		return nil, err
	}
	if c.plans == nil {
		s.ui.diagnostics(c.diagnostics)
		return nil, fmt.Errorf("the configuration in %s has errors; correct them", shownPaths(paths))
	}
	return c.plans, nil
}

// running returns the plans of the running mesh.
func (s *session) running(ctx context.Context) ([]*plan.Plan, error) {
	m, err := s.mesh()
	if err != nil {
		return nil, err
	}
	var plans []*plan.Plan
	err = m.get(ctx, "/v1/plans", nil, &plans)
	return plans, err
}

func shownPaths(paths []string) string {
	out := make([]string, len(paths))
	for i, p := range paths {
		out[i] = shortPath(p)
	}
	return strings.Join(out, " and ")
}

// asked returns the mesh that questions are put to.
func (s *session) asked(ctx context.Context, paths []string) (*explain.Mesh, error) {
	plans, err := s.plans(ctx, paths)
	if err != nil {
		return nil, err
	}
	return explain.New(plans)
}

// completeSenders offers the names of workloads: of the folders in -f, or of the running mesh.
func (s *session) completeSenders(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	paths, err := cmd.Flags().GetStringArray("filename")
	if err != nil || len(paths) == 0 {
		return s.completeWorkloads(cmd, args, prefix)
	}
	slices.Sort(paths)
	c, err := compileAll(placement.Placement{}, slices.Compact(paths)...) // cobra reads flags twice before it asks
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, p := range c.plans {
		n := p.Node.Name
		for _, word := range []string{n.Name, n.String()} {
			if strings.HasPrefix(word, prefix) && strings.Contains(prefix, "/") == strings.Contains(word, "/") {
				names = append(names, word+"\t"+cmp.Or(string(p.Node.Role), "sidecar"))
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

package ctl

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/delta"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/plan"
)

// Exit codes of `malha diff`, as diff(1) has them.
const (
	diffDiffers exitCode = 1
	diffTrouble exitCode = 2
)

func (s *session) diff() *cobra.Command {
	var paths []string
	out := format("table")
	cmd := &cobra.Command{
		Use:   "diff [-f OLD] -f NEW",
		Short: "Say what a change would do to which proxies, before it is applied",
		Long: `Compile two folders of manifests, or the running mesh and a folder, and compare what each proxy would do: listeners,
hosts, rules, policies, destinations and endpoints. Changes that are the same for several proxies are told once. Only what
proxies do counts: comments, order of files and names of objects do not, nor which local ports were given out.

Exits with 0 when nothing differs, 1 when something does, 2 on trouble, as diff(1) does.`,
		Example: `  malha diff -f mesh-old -f mesh-new
  malha diff -f ./mesh
  git stash; cp -r mesh /tmp/before; git stash pop; malha diff -f /tmp/before -f mesh -o json`,
		ValidArgsFunction: cobra.NoFileCompletions,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return s.trouble(fmt.Errorf("unexpected %q; folders are named with -f", args[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(paths) < 1 || len(paths) > 2 {
				return s.trouble(fmt.Errorf("want -f OLD -f NEW, or one -f to compare the running mesh with; got %d", len(paths)))
			}
			before, after, err := s.both(cmd.Context(), paths)
			if err != nil {
				return s.trouble(err)
			}
			groups, err := delta.Between(before, after)
			if err != nil {
				return s.trouble(err)
			}
			if out == "table" {
				s.groups(groups)
			} else {
				if groups == nil {
					groups = []delta.Group{}
				}
				if err := out.encode(s.ui.out, groups); err != nil {
					return s.trouble(err)
				}
			}
			if len(groups) > 0 {
				return diffDiffers
			}
			return nil
		},
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return s.trouble(fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath()))
	})
	cmd.Flags().StringArrayVarP(&paths, "filename", "f", nil, "`DIR` or file of manifests; twice: before and after")
	addFormat(cmd, &out)
	return cmd
}

// trouble prints why nothing could be compared.
func (s *session) trouble(err error) error {
	s.ui.fail(err)
	return diffTrouble
}

// both returns the plans before and after.
func (s *session) both(ctx context.Context, paths []string) (before, after []*plan.Plan, err error) {
	prev := placement.Placement{}
	if len(paths) == 1 {
		if before, err = s.running(ctx); err != nil {
			return nil, nil, fmt.Errorf("%w; or name two folders: -f OLD -f NEW", err)
		}
	}
	for i, p := range paths {
		c, err := compileAll(prev, p)
		if err != nil {
			return nil, nil, err
		}
		if model.HasErrors(c.diagnostics) {
			s.ui.diagnostics(c.diagnostics)
			return nil, nil, fmt.Errorf("the configuration in %s has errors; correct them", shortPath(p))
		}
		prev = c.placed
		if i == len(paths)-1 {
			after = c.plans
		} else {
			before = c.plans
		}
	}
	return before, after, nil
}

// groups prints what differs.
func (s *session) groups(groups []delta.Group) {
	u := s.ui
	if len(groups) == 0 {
		u.say("no proxy would do anything differently")
		return
	}
	v := newWalkView(u)
	proxies := map[string]bool{}
	for i, g := range groups {
		if i > 0 {
			v.lines = append(v.lines, "")
		}
		names := make([]string, len(g.Proxies))
		for j, n := range g.Proxies {
			names[j] = n.String()
			proxies[names[j]] = true
		}
		v.lines = append(v.lines, paint(u.outColor, bold, strings.Join(names, ", ")))
		for _, c := range g.Changes {
			mark, tone := "~", yellow
			switch c.Action {
			case delta.Added:
				mark, tone = "+", green
			case delta.Removed:
				mark, tone = "-", red
			}
			text := fmt.Sprintf("%s %-8s %s", mark, c.Kind, c.Name)
			if c.Action == delta.Moved {
				text += " (moved)"
			}
			v.lines = append(v.lines, "  "+paint(u.outColor, tone, text)+v.from(c.Origin))
			width := 0
			for _, f := range c.Fields {
				width = max(width, len([]rune(f.Path)))
			}
			for _, f := range c.Fields {
				v.lines = append(v.lines, fmt.Sprintf("      %-*s  %s", width, f.Path, fieldText(c.Action, f)))
			}
		}
	}
	v.flush()
	changes := 0
	for _, g := range groups {
		changes += len(g.Changes)
	}
	what, where := "changes", "proxies"
	if changes == 1 {
		what = "change"
	}
	if len(proxies) == 1 {
		where = "proxy"
	}
	u.say("%d %s at %d %s", changes, what, len(proxies), where)
}

func fieldText(a delta.Action, f delta.Field) string {
	switch a {
	case delta.Added:
		return f.New
	case delta.Removed:
		return f.Old
	}
	return cmp.Or(f.Old, "none") + " → " + cmp.Or(f.New, "none")
}

package ctl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/explain"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/plan"
)

func (s *session) compile() *cobra.Command {
	var (
		paths      []string
		proxy, out string
		keys       bool
	)
	cmd := &cobra.Command{
		Use:   "compile -f DIR --proxy [NS/]NAME|gateway [-o plan.json]",
		Short: "Write what one proxy would do, without a mesh",
		Long: `Compile a folder of manifests and write the plan of one proxy: of a workload, or of the gateway. malha-proxy --plan runs
a proxy from it, with no control plane.

Private keys are written to files only, which their owner alone may read; on standard output they are left out unless
--show-keys is given.

Addresses are given out from 127.0.0.1:20000 upward, always the same for the same folder.`,
		Example: `  malha compile -f samples/bookinfo/mesh --proxy productpage-v1 -o plan.json
  malha-proxy --plan plan.json --access-log stdout

  malha compile -f samples/bookinfo/mesh --proxy gateway | jq '.listeners[].bind'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			if out == "json" || out == "yaml" {
				return fmt.Errorf("-o names a file here, and a plan is JSON; leave it out for standard output, or write -o ./%s", out)
			}
			p, err := s.planOf(paths, proxy)
			if err != nil {
				return err
			}
			if out == "" || out == "-" {
				if !keys {
					p = p.Redacted()
				}
				return format("json").encode(s.ui.out, p)
			}
			return writePlan(out, p)
		},
	}
	cmd.Flags().StringArrayVarP(&paths, "filename", "f", nil, "folder or file of manifests, a `DIR`; may be repeated")
	cmd.Flags().StringVar(&proxy, "proxy", "", "`NAME` of the workload or gateway")
	cmd.Flags().StringVarP(&out, "output", "o", "", "`FILE` to write (default: standard output)")
	cmd.Flags().BoolVar(&keys, "show-keys", false, "write private keys to standard output too")
	_ = cmd.MarkFlagRequired("filename")
	_ = cmd.MarkFlagRequired("proxy")
	_ = cmd.RegisterFlagCompletionFunc("proxy", s.completeSenders)
	return cmd
}

// planOf compiles folders for one proxy.
func (s *session) planOf(paths []string, name string) (*plan.Plan, error) {
	c, err := compileAll(placement.Placement{}, paths...)
	if err != nil {
		return nil, err
	}
	s.ui.diagnostics(c.diagnostics)
	if model.HasErrors(c.diagnostics) {
		return nil, fmt.Errorf("the configuration in %s has errors; correct them", shownPaths(paths))
	}
	m, err := explain.New(c.plans)
	if err != nil {
		return nil, err
	}
	found, err := m.Resolve(name)
	if err != nil {
		return nil, err
	}
	for _, p := range c.plans {
		if p.Node.Name == found {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no proxy %s", found)
}

// writePlan writes a plan to a file that only its owner reads, as it may hold private keys: whole, or not at all. A pipe or a
// device is written as it is.
func writePlan(path string, p *plan.Plan) error {
	fail := func(err error) error { return fmt.Errorf("cannot write the plan to %s: %w", path, err) }
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return fail(err)
		}
		if err := errors.Join(format("json").encode(f, p), f.Close()); err != nil {
			return fail(err)
		}
		return nil
	}
	if linked, err := filepath.EvalSymlinks(path); err == nil {
		path = linked
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return fail(err)
	}
	err = errors.Join(format("json").encode(f, p), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fail(err)
	}
	return nil
}

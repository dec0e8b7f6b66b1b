package ctl

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/compile"
	"github.com/malha-mesh/malha/internal/config/file"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/scope"
	"github.com/malha-mesh/malha/internal/world"
)

func (s *session) compile() *cobra.Command {
	var folder, proxy, out string
	var keys bool
	cmd := &cobra.Command{
		Use:   "compile -f DIR --proxy [NS/]NAME [-o plan.json]",
		Short: "Write what one proxy would do, without a mesh",
		Long: `Compile a folder of manifests and write the plan of one proxy: of a workload, or of the gateway
(istio-system/istio-ingressgateway). malha-proxy --plan runs a proxy from it, with no control plane.

Private keys are written to files only, which their owner alone may read; on standard output they are left out unless
--show-keys is given.

Addresses are given out from 127.0.0.1:20000 upward, always the same for the same folder.`,
		Example: `  malha compile -f samples/bookinfo/mesh --proxy productpage-v1 -o plan.json
  malha-proxy --plan plan.json --access-log stdout`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			name, err := ident.ParseName(proxy, ident.DefaultNamespace)
			if err != nil {
				return err
			}
			p, err := s.plan(folder, name)
			if err != nil {
				return err
			}
			if out == "" || out == "-" {
				if !keys {
					p = p.Redacted()
				}
				return format("json").encode(s.ui.out, p)
			}
			// A plan may hold private keys.
			f, err := os.OpenFile(out, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
			if err != nil {
				return fmt.Errorf("cannot write the plan: %w", err)
			}
			if err := errors.Join(format("json").encode(f, p), f.Close()); err != nil {
				return fmt.Errorf("cannot write %s: %w", out, err)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&folder, "filename", "f", "", "folder or file of manifests, a `DIR`")
	cmd.Flags().StringVar(&proxy, "proxy", "", "`NAME` of the workload or gateway")
	cmd.Flags().StringVarP(&out, "output", "o", "", "`FILE` to write (default: standard output)")
	cmd.Flags().BoolVar(&keys, "show-keys", false, "write private keys to standard output too")
	_ = cmd.MarkFlagRequired("filename")
	_ = cmd.MarkFlagRequired("proxy")
	return cmd
}

// plan compiles a folder for one proxy.
func (s *session) plan(folder string, name ident.Name) (*plan.Plan, error) {
	r := file.Read(folder)
	if model.HasErrors(r.Diagnostics) {
		s.ui.diagnostics(r.Diagnostics)
		return nil, fmt.Errorf("the configuration in %s has errors; correct them", shortPath(folder))
	}
	placed, err := placement.Offline(r.Config)
	if err != nil {
		return nil, err
	}
	w := world.Build(r.Config, placed.Instances, placed.Gateways)
	ds := append(slices.Clone(r.Diagnostics), world.Check(w)...)
	s.ui.diagnostics(ds)
	if model.HasErrors(ds) {
		return nil, fmt.Errorf("the configuration in %s has errors; correct them", shortPath(folder))
	}
	sc, ok := scope.For(w, name)
	if !ok {
		var known []string
		for _, in := range placed.Instances {
			known = append(known, in.Workload.String())
		}
		for _, g := range placed.Gateways {
			known = append(known, g.Name.String())
		}
		return nil, fmt.Errorf("no proxy %s in %s; there are %s", name, shortPath(folder), strings.Join(known, ", "))
	}
	p, ds := compile.Compile(sc)
	s.ui.diagnostics(ds)
	return p, nil
}

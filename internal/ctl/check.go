package ctl

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/check"
)

func (s *session) check() *cobra.Command {
	var (
		k            kube
		pre, proxies bool
		adopt        []string
	)
	out := format("table")
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check whether the mesh in a Kubernetes cluster is well",
		Long: `Check the control plane of the mesh, its webhooks, certificates and configuration; with --proxy each proxy too; with --pre,
before an installation, whether the cluster and your rights are fit for it. It only reads.

√ is well, ‼ works and deserves a look, × is broken; each with its cause, what to do, and the page that says more.
Exits with 1 when anything is broken.`,
		Example: `  malha check --pre
  malha check --proxy -n shop`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.open(&k)
			if err != nil {
				return err
			}
			o := check.Options{Cluster: c, Namespace: k.mesh, Only: k.Namespace, Version: s.version}
			if out == "table" {
				o.Each = s.section
			}
			var sections []check.Section
			switch {
			case pre:
				o.Adopt = append([]string{}, adopt...)
				sections = check.Before(cmd.Context(), o)
			case proxies:
				sections = check.Proxies(cmd.Context(), o)
			default:
				sections = check.Control(cmd.Context(), o)
			}
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			worst := check.Worst(sections)
			if out != "table" {
				if err := out.encode(s.ui.out, map[string]any{"result": worst, "sections": sections}); err != nil {
					return err
				}
			} else {
				fmt.Fprintln(s.ui.out, s.verdict(worst))
			}
			if worst == check.Error {
				return exitCode(1)
			}
			return nil
		},
	}
	clusterFlags(cmd, &k, true)
	cmd.Flags().BoolVar(&pre, "pre", false, "before an installation: whether the cluster is fit for it")
	cmd.Flags().BoolVar(&proxies, "proxy", false, "each proxy too; with -n those of one namespace")
	cmd.Flags().StringSliceVar(&adopt, "adopt", nil, "with --pre: what the installation would adopt: istio, linkerd")
	cmd.MarkFlagsMutuallyExclusive("pre", "proxy")
	addFormat(cmd, &out)
	return cmd
}

// mark returns how a level is shown.
func (s *session) mark(l check.Level) string {
	switch l {
	case check.Error:
		return paint(s.ui.outColor, red, markBad)
	case check.Warning:
		return paint(s.ui.outColor, yellow, markWarn)
	}
	return paint(s.ui.outColor, green, markOK)
}

// section prints a heading and its results.
func (s *session) section(sec check.Section) {
	fmt.Fprintf(s.ui.out, "%s\n%s\n", paint(s.ui.outColor, bold, sec.Name), strings.Repeat("-", len(sec.Name)))
	for _, r := range sec.Results {
		fmt.Fprintf(s.ui.out, "%s %s\n", s.mark(r.Level), r.Name)
		for _, l := range []struct{ label, text string }{{"", r.Cause}, {"fix: ", r.Fix}, {"see: ", r.Page}} {
			if l.text != "" {
				fmt.Fprintf(s.ui.out, "    %s%s\n", paint(s.ui.outColor, dim, l.label), s.words(l.text))
			}
		}
	}
	fmt.Fprintln(s.ui.out)
}

func (s *session) verdict(l check.Level) string {
	switch l {
	case check.Error:
		return s.mark(l) + " something is broken"
	case check.Warning:
		return s.mark(l) + " it works, and there is something to look at"
	}
	return s.mark(l) + " all is well"
}

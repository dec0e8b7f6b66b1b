package ctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/app/local"
	"github.com/malha-mesh/malha/internal/check"
	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/file"
	"github.com/malha-mesh/malha/internal/model"
)

// Exit codes of `malha analyze`.
const (
	analyzeErrors   exitCode = 1
	analyzeWarnings exitCode = 2
	analyzeUsage    exitCode = 3
)

// diagnosticsPage explains every code.
const diagnosticsPage = "https://github.com/malha-mesh/malha/blob/main/docs/diagnostics.md"

// finding is a diagnostic in the output of `malha analyze`.
type finding struct {
	model.Diagnostic
	Page       string `json:"page"`
	Suppressed string `json:"suppressed,omitempty"` // by what: "annotation" or "flag"
}

func (s *session) analyze() *cobra.Command {
	var (
		paths, suppress []string
		k               kube
		inCluster       bool
	)
	cmd := &cobra.Command{
		Use:   "analyze [-f DIR | --cluster]",
		Short: "Find everything that is wrong or suspicious in a configuration",
		Long: `Look at a folder of manifests, at the configuration of the running mesh, or at that of a Kubernetes cluster, and say everything that is wrong or
suspicious: unknown fields, references to nothing, rules that no request reaches, objects that contradict each other,
selectors that select nothing, policies that cannot do what they say. Each finding has a stable code, a severity, its file
and line, the fix, and an entry in docs/diagnostics.md.

A warning or an info is suppressed by --suppress, or on its object by the annotation malha.dev/analyze-suppress with codes
("MALHA0810,MALHA0831", or "*"); galley.istio.io/analyze-suppress with Istio's codes counts too. Errors cannot be
suppressed: an object with one does not come into force.

Exits with 0 when there is nothing as bad as --fail-on says, 1 with errors, 2 with no more than warnings (or infos), and 3
when the command line is wrong or nothing could be looked at.`,
		Example: `  malha analyze -f ./mesh
  malha analyze
  malha analyze --cluster --fail-on warning
  malha analyze -f ./mesh --fail-on warning --suppress MALHA0831 --suppress 'MALHA0816=AuthorizationPolicy test/*'
  malha analyze -f ./mesh -o sarif > malha.sarif`,
		ValidArgsFunction: cobra.NoFileCompletions,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return s.usage(fmt.Errorf("unexpected %q; a folder is named with -f", args[0]))
			}
			return nil
		},
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return s.usage(fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath()))
	})
	out := addChoice(cmd, "output", "o", "format: text, json, yaml or sarif (SARIF 2.1.0)", "text", "json", "yaml", "sarif")
	failOn := addChoice(cmd, "fail-on", "", "from which severity on the exit code is not 0", "error", "warning", "info", "never")
	cmd.Flags().StringArrayVarP(&paths, "filename", "f", nil, "folder or file of manifests, or - for standard input; may be repeated (default: the running mesh)")
	cmd.Flags().StringArrayVar(&suppress, "suppress", nil, "CODE, or 'CODE=KIND NS/NAME' with * as in file names, to say nothing of; may be repeated")
	cmd.Flags().BoolVar(&inCluster, "cluster", false, "the objects of a Kubernetes cluster, as its control plane sees them, and what the control plane itself lacks")
	clusterFlags(cmd, &k, false)
	cmd.MarkFlagsMutuallyExclusive("cluster", "filename")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		rules, err := parseSuppress(suppress)
		if err != nil {
			return s.usage(err)
		}
		var a *config.Analysis
		if inCluster {
			a, err = s.clusterAnalysis(cmd.Context(), &k)
		} else {
			a, err = s.analysis(cmd.Context(), paths)
		}
		if err != nil {
			return s.usage(err)
		}
		all := judge(a, rules)
		switch out.value {
		case "text":
			s.findings(all)
		case "sarif":
			err = format("json").encode(s.ui.out, sarif(all, s.version))
		default:
			err = format(out.value).encode(s.ui.out, all)
		}
		if err != nil {
			return err
		}
		return verdict(all, failOn.value)
	}
	return cmd
}

// usage prints an error that is not a finding.
func (s *session) usage(err error) error {
	s.ui.fail(err)
	return analyzeUsage
}

// analysis looks at folders and files, or at the running mesh.
func (s *session) analysis(ctx context.Context, paths []string) (*config.Analysis, error) {
	if len(paths) == 0 {
		m, err := s.mesh()
		if err != nil {
			return nil, err
		}
		a := new(config.Analysis)
		if err := m.get(ctx, "/v1/analysis", nil, a); err != nil {
			return nil, fmt.Errorf("%w; or name a folder with -f DIR, which needs no mesh", err)
		}
		return a, nil
	}
	for _, p := range paths {
		if _, err := os.Stat(p); err != nil && p != "-" {
			return nil, fmt.Errorf("cannot read %q: %w; -f names a folder or file of manifests, or - for standard input", p, errors.Unwrap(err))
		}
	}
	return local.Analyze(file.ReadAll(paths...))
}

// clusterAnalysis asks every replica of a cluster's control plane: all see the same objects, and only the one that writes knows what
// it may not write.
func (s *session) clusterAnalysis(ctx context.Context, k *kube) (*config.Analysis, error) {
	c, err := s.open(k)
	if err != nil {
		return nil, err
	}
	pods, err := check.ControlPlanes(ctx, c, k.mesh)
	if err != nil {
		return nil, err
	}
	out := &config.Analysis{}
	var failed error
	answers := 0
	for i := range pods {
		var a config.Analysis
		if err := check.AskReplica(ctx, c, &pods[i], "/debug/analysis", &a); err != nil {
			failed = err
			continue
		}
		answers++
		out.Diagnostics, out.Suppressed = append(out.Diagnostics, a.Diagnostics...), append(out.Suppressed, a.Suppressed...) // judge takes each once
	}
	if answers == 0 {
		return nil, failed
	}
	if failed != nil {
		s.ui.say("not every replica answers: %v", failed)
	}
	return out, nil
}

// suppression is the value of a --suppress.
type suppression struct{ code, object string }

func parseSuppress(flags []string) ([]suppression, error) {
	var out []suppression
	for _, f := range flags {
		code, object, _ := strings.Cut(f, "=")
		codes := config.OurCodes(strings.ToUpper(strings.TrimSpace(code)))
		if len(codes) == 0 {
			return nil, fmt.Errorf("--suppress %q: want a code such as MALHA0831, or one of Istio's that has a counterpart", f)
		}
		if _, err := path.Match(code+object, ""); err != nil {
			return nil, fmt.Errorf("--suppress %q: %w", f, err)
		}
		for _, c := range codes {
			out = append(out, suppression{c, strings.TrimSpace(object)})
		}
	}
	return out, nil
}

// judge orders what was found, each once, and marks what is suppressed.
func judge(a *config.Analysis, rules []suppression) []finding {
	out := []finding{}
	seen := make(map[model.Diagnostic]bool, len(a.Diagnostics))
	for _, d := range a.Diagnostics {
		if seen[d] {
			continue
		}
		seen[d] = true
		f := finding{Diagnostic: d, Page: diagnosticsPage + "#" + strings.ToLower(d.Code)}
		f.Origin.File = shortPath(f.Origin.File)
		if d.Severity != model.Error {
			f.Suppressed = suppressedBy(&d, a.Suppressed, rules)
		}
		out = append(out, f)
	}
	slices.SortStableFunc(out, func(a, b finding) int {
		return cmp.Or(cmp.Compare(a.Origin.File, b.Origin.File), cmp.Compare(a.Origin.Line, b.Origin.Line), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Message, b.Message))
	})
	return out
}

func suppressedBy(d *model.Diagnostic, objects []config.Suppression, rules []suppression) string {
	for _, o := range objects {
		if o.Kind == d.Origin.Kind && o.Name.Namespace == d.Origin.Namespace && o.Name.Name == d.Origin.Name &&
			(slices.Contains(o.Codes, d.Code) || slices.Contains(o.Codes, "*")) {
			return "annotation"
		}
	}
	object := d.Object()
	for _, r := range rules {
		if ok, err := path.Match(r.code, d.Code); err != nil || !ok {
			continue
		}
		if ok, err := path.Match(r.object, object); r.object == "" || err == nil && ok {
			return "flag"
		}
	}
	return ""
}

// findings prints what was found to a person.
func (s *session) findings(all []finding) {
	count := map[model.Severity]int{}
	suppressed := 0
	for i := range all {
		if all[i].Suppressed != "" {
			suppressed++
			continue
		}
		count[all[i].Severity]++
		fmt.Fprint(s.ui.out, renderDiagnostic(all[i].Diagnostic, s.ui.outColor))
	}
	number := func(sev model.Severity) string {
		if count[sev] == 1 {
			return "1 " + string(sev)
		}
		return fmt.Sprintf("%d %ss", count[sev], sev)
	}
	line := number(model.Error) + ", " + number(model.Warning) + ", " + number(model.Info)
	if suppressed > 0 {
		line += fmt.Sprintf(", %d suppressed", suppressed)
	}
	s.ui.say("%s", line)
	if len(all) > suppressed {
		s.ui.say("each code is explained in %s", diagnosticsPage)
	}
}

// verdict is the exit code.
func verdict(all []finding, failOn string) error {
	rank := map[model.Severity]int{model.Info: 1, model.Warning: 2, model.Error: 3}
	worst := 0
	for i := range all {
		if all[i].Suppressed == "" {
			worst = max(worst, rank[all[i].Severity])
		}
	}
	least := map[string]int{"error": 3, "warning": 2, "info": 1, "never": 4}[failOn]
	switch {
	case worst < least:
		return nil
	case worst == 3:
		return analyzeErrors
	}
	return analyzeWarnings
}

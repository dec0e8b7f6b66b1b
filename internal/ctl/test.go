package ctl

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/explain"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/trial"
)

func (s *session) test() *cobra.Command {
	var (
		paths   []string
		report  string
		only    string
		verbose bool
	)
	cmd := &cobra.Command{
		Use:   "test FILE|DIR…",
		Short: "Test routing and policies, without starting anything",
		Long: `Run the tests in files of kind Test (malha.dev/v1alpha1): each case is a request, who sends it, and what should become
of it. Nothing is started or sent; the proxy's own router and authorizer are asked, thousands of times a second.

A Test names the manifests it is about under spec.files; -f takes others instead. A case that fails shows how the request
went. In a folder, files without a Test are passed over.

  apiVersion: malha.dev/v1alpha1
  kind: Test
  metadata: {name: reviews}
  spec:
    files: [mesh, canary.yaml]
    cases:
      - name: testers get the canary
        from: productpage-v1
        request: GET http://reviews:9080/reviews/0
        headers: {x-canary: "true"}
        expect: {subset: v2}

An expectation has any of workload, version, subset, service, split, status, flags, denied, deniedBy, allowedBy, redirect,
body, rule, timeout, response, idle, retries, perTry, path, authority, mtls, fault, mirrors, server, tls, cors, limits, balancer,
hash, session and external. docs/tools.md explains each.

Exits with 1 when a case fails or a file is wrong.`,
		Example: `  malha test samples/bookinfo/tour/tests.yaml
  malha test tests/ -f ./mesh --junit report.xml`,
		Args: cobra.MinimumNArgs(1),
	}
	out := addChoice(cmd, "output", "o", "format: table, json, yaml or junit", "table", "json", "yaml", "junit")
	f := cmd.Flags()
	f.StringArrayVarP(&paths, "filename", "f", nil, "`DIR` or file of manifests under test; may be repeated (default: spec.files of each Test)")
	f.StringVar(&report, "junit", "", "`FILE` to write a JUnit report to as well")
	f.StringVar(&only, "run", "", "only cases whose name contains `TEXT`")
	f.BoolVarP(&verbose, "verbose", "v", false, "show how each request went, also of cases that pass")
	_ = cmd.MarkFlagFilename("junit", "xml")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		suites, err := s.suites(args)
		if err != nil {
			return err
		}
		r := &testRun{session: s, paths: paths, meshes: map[string]*explain.Mesh{}}
		for i := range suites {
			if only != "" {
				suites[i].Keep(only)
			}
			if err := r.run(&suites[i]); err != nil {
				return err
			}
		}
		if report != "" {
			if err := r.writeJUnit(report); err != nil {
				return err
			}
		}
		switch out.value {
		case "table":
			r.table(verbose)
		case "junit":
			err = r.junit(s.ui.out)
		default:
			err = format(out.value).encode(s.ui.out, r.results)
		}
		if err == nil && r.failed > 0 {
			return exitCode(1)
		}
		return err
	}
	return cmd
}

// suites reads the Tests of files and folders.
func (s *session) suites(paths []string) ([]trial.Suite, error) {
	var all []trial.Suite
	wrong := false
	for _, p := range paths {
		files, err := s.readManifests(p)
		if err != nil {
			return nil, err
		}
		found := 0
		for _, f := range files {
			suites, ds := trial.Parse(shortPath(f.Name), f.Data)
			if len(suites) == 0 && len(files) > 1 && !strings.Contains(string(f.Data), trial.Group) {
				continue // a folder holds more than tests
			}
			s.ui.diagnostics(ds)
			wrong = wrong || model.HasErrors(ds)
			found += len(suites)
			all = append(all, suites...)
		}
		if found == 0 && !wrong {
			return nil, fmt.Errorf("%s has no Test; see `malha test --help` for how one is written", shortPath(p))
		}
	}
	if wrong {
		return nil, errors.New("the tests have errors; correct them")
	}
	return all, nil
}

// testRun runs suites, compiling each set of manifests once.
type testRun struct {
	session *session
	paths   []string
	meshes  map[string]*explain.Mesh
	results []trial.Result
	failed  int
	took    time.Duration // of asking, without compiling
}

func (r *testRun) run(suite *trial.Suite) error {
	if len(suite.Cases) == 0 {
		return nil
	}
	paths := r.paths
	if len(paths) == 0 {
		paths = suite.Files
	}
	if len(paths) == 0 {
		return fmt.Errorf("%s: Test %s names no manifests; add spec.files, or use -f DIR", suite.Origin.Place(), suite.Name)
	}
	key := strings.Join(paths, "\x00")
	m := r.meshes[key]
	if m == nil {
		for _, p := range paths {
			if _, err := os.Stat(p); err != nil {
				return fmt.Errorf("%s: Test %s: cannot read %s: %w; spec.files is relative to the test's folder", suite.Origin.Place(), suite.Name, shortPath(p), errors.Unwrap(err))
			}
		}
		c, err := compileAll(placement.Placement{}, paths...)
		if err != nil {
			return err
		}
		if c.plans == nil {
			r.session.ui.diagnostics(c.diagnostics)
			return fmt.Errorf("the configuration in %s has errors; correct them", shownPaths(paths))
		}
		if m, err = explain.New(c.plans); err != nil {
			return err
		}
		r.meshes[key] = m
	}
	began := time.Now()
	results := suite.Run(m)
	r.took += time.Since(began)
	for i := range results {
		if !results[i].Passed() {
			r.failed++
		}
	}
	r.results = append(r.results, results...)
	return nil
}

// table prints the cases that failed with their walks, and one line for each that passed.
func (r *testRun) table(verbose bool) {
	u := r.session.ui
	v := newWalkView(u)
	t := &table{}
	flush := func() { t.write(u.out, u.outColor); t = &table{} }
	for i := range r.results {
		c := &r.results[i]
		mark := cell{"✓", green}
		if !c.Passed() {
			mark = cell{"✗", red}
		}
		t.row(mark, plain(c.Suite.Name), plain(c.Case), plain(c.From), cell{shortPath(c.Origin.Place()), dim})
		if c.Passed() && !verbose {
			continue
		}
		flush()
		for _, f := range c.Failures {
			fmt.Fprintf(u.out, "    %s\n", paint(u.outColor, red, f))
		}
		if c.Walk != nil {
			v.walk(c.Walk)
			for j := range v.lines {
				v.lines[j] = "    " + v.lines[j]
			}
			v.flush()
		}
	}
	flush()
	u.say("%d passed, %d failed in %s", len(r.results)-r.failed, r.failed, r.took.Round(10*time.Microsecond))
}

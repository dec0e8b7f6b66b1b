package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/app/local"
	"github.com/malha-mesh/malha/internal/ident"
)

func (s *session) apply() *cobra.Command {
	var (
		paths []string
		dry   bool
	)
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Change the running mesh",
		Long: `Bring objects into force in the running mesh, until they are deleted or the mesh is stopped. An object shadows the one
of the same kind, namespace and name in the folder. All of them come into force, or with an error among them none.`,
		Example: `  malha apply -f canary.yaml
  sed 's/weight: 90/weight: 50/' canary.yaml | malha apply -f -`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return s.change(cmd.Context(), "apply", paths, dry) },
	}
	cmd.Flags().StringArrayVarP(&paths, "filename", "f", nil, "`FILE`, folder (with its sub-folders) or - for standard input")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would happen")
	_ = cmd.MarkFlagRequired("filename")
	return cmd
}

func (s *session) delete() *cobra.Command {
	var (
		paths []string
		dry   bool
	)
	cmd := &cobra.Command{
		Use:   "delete -f FILE|DIR|-",
		Short: "Take back what was applied to the running mesh",
		Long: `Take back objects that were applied. An object of the folder that was shadowed is in force again; an object that only
the folder has cannot be deleted here: edit its file.`,
		Example:           `  malha delete -f canary.yaml`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return s.change(cmd.Context(), "delete", paths, dry) },
	}
	cmd.Flags().StringArrayVarP(&paths, "filename", "f", nil, "`FILE`, folder (with its sub-folders) or - for standard input")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would happen")
	_ = cmd.MarkFlagRequired("filename")
	return cmd
}

// change applies or deletes, and says what happened as kubectl does.
func (s *session) change(ctx context.Context, verb string, paths []string, dry bool) error {
	m, err := s.mesh()
	if err != nil {
		return err
	}
	var files []local.ManifestFile
	for _, p := range paths {
		fs, err := readManifests(p, s.in)
		if err != nil {
			return err
		}
		files = append(files, fs...)
	}
	a, err := m.change(ctx, verb, files, dry)
	if err != nil {
		return err
	}
	s.ui.diagnostics(a.Diagnostics)
	for _, r := range a.Refused {
		s.ui.fail(errors.New(r))
	}
	if !a.OK() {
		s.ui.say("nothing was changed")
		return exitCode(1)
	}
	for _, c := range a.Changes {
		line := resourceName(c) + " " + c.Action
		if dry {
			line += " (dry run)"
		}
		fmt.Fprintln(s.ui.out, line)
		if c.Note != "" {
			s.ui.say("  %s", c.Note)
		}
	}
	if !a.Synced && !dry && slices.ContainsFunc(a.Changes, func(c local.Change) bool { return c.Action != "unchanged" }) {
		s.ui.say("not every proxy has it yet; see `malha status`")
	}
	return nil
}

// resourceName returns "virtualservice/reviews", with the namespace when it is not the default one.
func resourceName(c local.Change) string {
	name := c.Name.Name
	if c.Name.Namespace != ident.DefaultNamespace {
		name = c.Name.String()
	}
	return strings.ToLower(c.Kind) + "/" + name
}

// readManifests reads a file, the manifests below a folder in the order of their names, or standard input.
func readManifests(path string, stdin io.Reader) ([]local.ManifestFile, error) {
	if path == "-" {
		b, err := io.ReadAll(stdin)
		if err != nil {
			return nil, fmt.Errorf("cannot read standard input: %w", err)
		}
		return []local.ManifestFile{{Name: "stdin", Data: b}}, nil
	}
	abs, err := absolute(path)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(abs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist; name a file or a folder of manifests, or - for standard input", path)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	names := []string{abs}
	if st.IsDir() {
		names = nil
		err := filepath.WalkDir(abs, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			hidden := strings.HasPrefix(d.Name(), ".") && p != abs
			switch {
			case d.IsDir() && hidden:
				return fs.SkipDir
			case !d.IsDir() && !hidden && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(p)):
				names = append(names, p)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", path, err)
		}
		if len(names) == 0 {
			return nil, fmt.Errorf("%s holds no manifest (*.yaml, *.yml, *.json); name the folder that does", path)
		}
	}
	var files []local.ManifestFile
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", shortPath(n), err)
		}
		files = append(files, local.ManifestFile{Name: n, Data: b})
	}
	return files, nil
}

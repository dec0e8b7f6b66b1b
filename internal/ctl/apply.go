package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/app/local"
	"github.com/malha-mesh/malha/internal/config/file"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// changeFlags are the flags of `malha apply` and `malha delete`.
type changeFlags struct {
	cmd        *cobra.Command
	paths      []string
	namespace  string
	dry        dryRun
	missingOK  bool
	all        bool // delete: all objects of a kind
	kustomize  string
	subFolders bool
}

func (s *session) apply() *cobra.Command {
	f := &changeFlags{}
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Change the running mesh",
		Long: `Bring objects into force in the running mesh, until they are deleted or the mesh is stopped. An object shadows the one
of the same kind, namespace and name in the folder. All of them come into force, or with an error among them none.`,
		Example: `  malha apply -f canary.yaml
  sed 's/weight: 90/weight: 50/' canary.yaml | malha apply -f -
  malha get vs reviews -o yaml | sed 's/weight: 90/weight: 50/' | malha apply -f -`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("files are named with -f; write malha apply -f %s", strings.Join(args, " -f "))
			}
			return s.changeFiles(cmd.Context(), "apply", f)
		},
	}
	f.add(s, cmd)
	return cmd
}

func (s *session) delete() *cobra.Command {
	f := &changeFlags{}
	cmd := &cobra.Command{
		Use:   "delete -f FILE|DIR|- | delete KIND NAME…|--all",
		Short: "Take back what was applied to the running mesh",
		Long: `Take back objects that were applied, by the files that were, or by name. An object of the folder that was shadowed is in
force again; an object that only the folder has cannot be deleted here: edit its file. All of them are taken back, or with
one among them that cannot be, none.`,
		Example: `  malha delete -f canary.yaml
  malha delete vs reviews
  malha delete vs/reviews ap/ratings-readers
  malha delete all --all -A`,
		Args: cobra.ArbitraryArgs,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			return s.completeResources(cmd, args, prefix, true)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return s.changeFiles(cmd.Context(), "delete", f)
			}
			if len(f.paths) > 0 {
				return errors.New("files and names cannot go together; leave out -f, or what stands behind it")
			}
			everywhere, _ := cmd.Flags().GetBool("all-namespaces")
			return s.deleteNamed(cmd.Context(), args, everywhere, f)
		},
	}
	f.add(s, cmd)
	cmd.Flags().BoolVar(&f.all, "all", false, "all objects of the kind that were applied")
	cmd.Flags().BoolP("all-namespaces", "A", false, "with --all: in all namespaces")
	cmd.Flags().BoolVar(&f.missingOK, "ignore-not-found", false, "what is not there is no mistake")
	return cmd
}

// add gives a command the flags that apply and delete share.
func (f *changeFlags) add(s *session, cmd *cobra.Command) {
	f.cmd = cmd
	fl := cmd.Flags()
	fl.StringSliceVarP(&f.paths, "filename", "f", nil, "`FILE`, folder (with its sub-folders) or - for standard input")
	s.addNamespace(cmd, &f.namespace, "`NAMESPACE` of objects that name none")
	fl.Var(&f.dry, "dry-run", "only say what would happen")
	fl.Lookup("dry-run").NoOptDefVal = "true"
	fl.BoolVarP(&f.subFolders, "recursive", "R", true, "") // as kubectl has it: folders are always read with their sub-folders
	fl.StringVarP(&f.kustomize, "kustomize", "k", "", "")
	_, _ = fl.MarkHidden("recursive"), fl.MarkHidden("kustomize")
}

// dryRun is a flag that is true, or what kubectl calls it.
type dryRun bool

// Set reads true, false, client, server or none.
func (d *dryRun) Set(text string) error {
	switch text {
	case "true", "server", "client":
		*d = true
	case "false", "none":
		*d = false
	default:
		return errors.New("must stand alone")
	}
	return nil
}

func (d *dryRun) String() string { return strconv.FormatBool(bool(*d)) }

// Type says that no value is needed.
func (d *dryRun) Type() string { return "bool" }

// changeFiles applies or deletes what files hold.
func (s *session) changeFiles(ctx context.Context, verb string, f *changeFlags) error {
	if f.kustomize != "" {
		return fmt.Errorf("malha builds no kustomizations; write kubectl kustomize %s | malha %s -f -", f.kustomize, verb)
	}
	if len(f.paths) == 0 {
		return fmt.Errorf("-f is missing; write malha %s -f FILE|DIR|-, see `malha %s --help`", verb, verb)
	}
	m, err := s.mesh()
	if err != nil {
		return err
	}
	var files []local.ManifestFile
	for _, p := range f.paths {
		fs, err := s.readManifests(p)
		if err != nil {
			return err
		}
		files = append(files, fs...)
	}
	return s.change(ctx, m, verb, files, f)
}

// deleteNamed takes back objects by their names.
func (s *session) deleteNamed(ctx context.Context, args []string, everywhere bool, f *changeFlags) error {
	resources, err := parseResources(args)
	if err != nil {
		return err
	}
	switch named := len(resources[0].names) > 0; {
	case named && f.all:
		return errors.New("names and --all cannot go together; leave one of them out")
	case !named && !f.all:
		return fmt.Errorf("which of them? write malha delete %s NAME, or --all for all that were applied", args[0])
	}
	m, err := s.mesh()
	if err != nil {
		return err
	}
	doomed, missing, err := m.find(ctx, resources, f.namespace, everywhere && f.all)
	if err != nil {
		return err
	}
	if f.all {
		doomed = slices.DeleteFunc(doomed, func(o local.Object) bool { return !o.Applied })
	}
	if len(missing) > 0 && !f.missingOK {
		for _, e := range missing {
			s.ui.fail(e)
		}
		s.ui.say("nothing was changed")
		return exitCode(1)
	}
	if len(doomed) == 0 {
		s.ui.say("nothing to delete: no such object was applied")
		return nil
	}
	var b strings.Builder
	for i := range doomed {
		fmt.Fprintf(&b, "---\n%s", doomed[i].YAML)
	}
	return s.change(ctx, m, "delete", []local.ManifestFile{{Name: "the mesh", Data: []byte(b.String())}}, f)
}

// change applies or deletes, and says what happened as kubectl does.
func (s *session) change(ctx context.Context, m *client, verb string, files []local.ManifestFile, f *changeFlags) error {
	size := 0
	for i := range files {
		size += len(files[i].Data)
	}
	if size > local.MaxManifests {
		return fmt.Errorf("these are %d MiB of manifests; at most %d are taken at once: %s them in parts", size>>20, local.MaxManifests>>20, verb)
	}
	namespace := ""
	if len(f.paths) > 0 && f.cmd.Flags().Changed("namespace") { // without -n objects may name any
		namespace = f.namespace
	}
	a, err := m.change(ctx, verb, files, namespace, f)
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
	for i := range a.Changes {
		c := &a.Changes[i]
		line := resourceName(c) + " " + c.Action
		if f.dry {
			line += " (dry run)"
		}
		fmt.Fprintln(s.ui.out, line)
		if c.Note != "" {
			s.ui.say("  %s", c.Note)
		}
	}
	if !a.Synced && !bool(f.dry) && slices.ContainsFunc(a.Changes, func(c local.Change) bool { return c.Acts() }) {
		s.ui.say("not every proxy has it yet; see `malha status`")
	}
	return nil
}

// resourceName returns "virtualservice/reviews", with the namespace when it is not the default one.
func resourceName(c *local.Change) string {
	name := c.Name.Name
	if c.Name.Namespace != ident.DefaultNamespace && !model.ClusterScoped(c.Kind) {
		name = c.Name.String()
	}
	return strings.ToLower(c.Kind) + "/" + name
}

// readManifests reads a file, the manifests below a folder in the order of their names, or standard input.
func (s *session) readManifests(path string) ([]local.ManifestFile, error) {
	if path == "-" {
		b, err := io.ReadAll(s.in)
		if err != nil {
			return nil, fmt.Errorf("cannot read standard input: %w", err)
		}
		name, err := absolute("stdin") // relative paths in it begin where we are
		if err != nil {
			return nil, err
		}
		return []local.ManifestFile{{Name: name, Data: b}}, nil
	}
	if strings.HasPrefix(path, "https://") || strings.HasPrefix(path, "http://") {
		return nil, fmt.Errorf("nothing is downloaded; write curl -fsSL %s, and behind a pipe the command with -f -", path)
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
	if st.IsDir() {
		return s.folder(path, abs)
	}
	if !st.Mode().IsRegular() && st.Mode().Type() != fs.ModeNamedPipe { // a pipe is the output of a command
		return nil, fmt.Errorf("cannot read %s: it is neither a file nor a folder; name files, or - for standard input", shortPath(abs))
	}
	b, err := os.ReadFile(abs)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", shortPath(abs), errors.Unwrap(err))
	}
	return []local.ManifestFile{{Name: abs, Data: b}}, nil
}

// folder reads the manifests that `malha up -f` reads from a folder, and says what it passes over.
func (s *session) folder(path, abs string) ([]local.ManifestFile, error) {
	found, ds := file.Manifests(abs)
	if len(found) > 0 || model.HasErrors(ds) {
		s.ui.diagnostics(ds)
	}
	switch {
	case model.HasErrors(ds):
		return nil, exitCode(1)
	case len(found) == 0:
		return nil, fmt.Errorf("%s holds no manifest (*.yaml, *.yml, *.json); name the folder that does", path)
	}
	var files []local.ManifestFile
	for _, f := range found {
		files = append(files, local.ManifestFile{Name: f.Name, Data: f.Data})
	}
	return files, nil
}

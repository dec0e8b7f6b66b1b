// Package ctl is the command line: one file for each verb. Arguments in; on standard output data and nothing else, on
// standard error everything that is said to a person, and an exit code.
//
// The verbs that need a running mesh talk to its control socket (client.go); `up` runs internal/app/local in this
// process; `compile`, `test`, and with -f `explain`, `analyze` and `diff` need no mesh. No verb starts a goroutine that outlives it.
package ctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/app/local"
	"github.com/malha-mesh/malha/internal/cluster"
)

// Main runs the command line and returns the exit code of the process: 0, 1 for an error, or what the verb asked for.
func Main(ctx context.Context, version string, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	s := &session{version: version, args: args, in: stdin, ui: newUI(stdout, stderr)}
	if filepath.Base(os.Args[0]) == pluginFile {
		s.plugin()
	}
	root := s.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		err = s.ui.written()
	}
	if err == nil {
		return 0
	}
	err = withUsage(cmd, err)
	var code exitCode
	if errors.As(err, &code) {
		return int(code)
	}
	s.ui.fail(err)
	return 1
}

// quoted finds the names in cobra's sentences.
var quoted = regexp.MustCompile(`"([^"]+)"`)

// withUsage adds the next step to what cobra itself says about wrong arguments: it knows nothing but their number.
func withUsage(cmd *cobra.Command, err error) error {
	text := err.Error()
	usage := strings.TrimSuffix(cmd.UseLine(), " [flags]")
	switch {
	case strings.HasPrefix(text, "unknown command"):
		var typed string
		if _, scanErr := fmt.Sscanf(text, "unknown command %q", &typed); scanErr != nil {
			return err
		}
		if cmd.HasSubCommands() {
			if near := cmd.SuggestionsFor(typed); len(near) > 0 {
				return fmt.Errorf("%w; did you mean `%s %s`?", err, cmd.CommandPath(), near[0])
			}
			return fmt.Errorf("%w; `%s --help` lists them", err, cmd.CommandPath())
		}
		return fmt.Errorf("%q is one argument too many; write %s", typed, usage)
	case strings.HasPrefix(text, "required flag(s)"):
		var missing []string
		for _, m := range quoted.FindAllStringSubmatch(text, -1) {
			name := "--" + m[1]
			if f := cmd.Flags().Lookup(m[1]); f != nil && f.Shorthand != "" {
				name = "-" + f.Shorthand
			}
			missing = append(missing, name)
		}
		are := " is"
		if len(missing) > 1 {
			are = " are"
		}
		return fmt.Errorf("%s%s missing; write %s, see `%s --help`", strings.Join(missing, " and "), are, usage, cmd.CommandPath())
	case strings.HasPrefix(text, "accepts "), strings.HasPrefix(text, "requires at least "):
		return fmt.Errorf("arguments are missing or too many; write %s, see `%s --help`", usage, cmd.CommandPath())
	}
	return err
}

// exitCode ends the process with a code; what there is to say was said.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// session is what the verbs share: where to read and write, and the flags of the root command.
type session struct {
	version string
	args    []string // of the process
	in      io.Reader
	ui      *ui
	state   string                                          // --state
	connect func(cluster.Options) (*cluster.Cluster, error) // nil: cluster.Open

	asPlugin bool // we are called as `kubectl malha`
}

func (s *session) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "malha",
		Short: "A service mesh, on this machine or on Kubernetes",
		Long: `Malha runs a service mesh from a folder of ordinary manifests: Kubernetes Services, Istio, Linkerd and SMI
kinds, and a Workload for each program.

  malha up            start the bundled Bookinfo, with mutual TLS, routing and metrics
  malha up -f DIR     start your own folder
  malha install       into the Kubernetes cluster of your kubeconfig`,
		Version:       s.versionText(),
		SilenceErrors: true, // Main prints them, once
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SuggestionsMinimumDistance = 2
	if s.asPlugin {
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl malha"}
	}
	width := strconv.Itoa(s.ui.width())
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), "FlagUsages", "FlagUsagesWrapped "+width))
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		fmt.Fprint(s.ui.out, s.words(fmt.Sprintf("%s\n\n%s", wrap(cmp.Or(cmd.Long, cmd.Short), s.ui.width()), cmd.UsageString())))
	})
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetIn(s.in)
	root.SetOut(s.ui.out)
	root.SetErr(s.ui.err)
	root.PersistentFlags().StringVar(&s.state, "state", "", "`DIR` in which the mesh keeps its state (default $MALHA_STATE, else malha in $XDG_RUNTIME_DIR or $XDG_STATE_HOME, else ~/.local/state/malha)")
	_ = root.MarkPersistentFlagDirname("state")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath())
	})
	for _, g := range []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{"machine", "A mesh on this machine:", []*cobra.Command{s.up(), s.down(), s.status(), s.url(), s.logs(), s.apply(), s.delete(), s.get(), s.curl()}},
		{"rules", "Questions about rules, with a mesh or without:", []*cobra.Command{s.explainCommand(), s.analyze(), s.test(), s.diff(), s.compile()}},
		{"cluster", "A mesh on Kubernetes:", []*cobra.Command{s.install(), s.uninstall(), s.check(), s.proxyStatus(), s.proxyConfig(), s.describe(),
			s.injectCommand(), s.uninjectCommand(), s.checkInject()}},
		{"self", "This program:", []*cobra.Command{s.versionCommand()}},
	} {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, c := range g.commands {
			c.GroupID, c.SuggestFor = g.id, otherWords[c.Name()]
			root.AddCommand(c)
		}
	}
	root.SetHelpCommandGroupID("self")
	root.SetCompletionCommandGroupID("self")
	return root
}

// otherWords are those that other programs have for our commands.
var otherWords = map[string][]string{
	"up": {"start", "run"}, "down": {"stop"}, "status": {"list", "ls", "top"}, "url": {"dashboard", "port-forward", "address"},
	"apply": {"create", "replace", "edit", "patch"}, "delete": {"remove", "rm"}, "get": {"show"}, "curl": {"exec", "request"},
	"explain": {"route", "trace"}, "analyze": {"lint", "validate", "vet"}, "test": {"verify"}, "logs": {"tail"},
}

// pluginFile is the name under which kubectl finds us, and calls us as `kubectl malha`.
const pluginFile = "kubectl-malha"

// commands finds our own name where a person is told to type it: at the beginning of a line or behind a quote, a pipe or a $(.
var commands = regexp.MustCompile("(?m)(`|^ +|\\| |\\$\\()malha ")

// words writes our name as it was called.
func (s *session) words(text string) string {
	if !s.asPlugin {
		return text
	}
	return commands.ReplaceAllString(text, "${1}kubectl malha ")
}

// plugin makes all that is said to the person name kubectl.
func (s *session) plugin() {
	s.asPlugin = true
	s.ui.words = s.words
}

// stateDir returns the state directory that the command is about.
func (s *session) stateDir() (string, error) {
	if s.state != "" {
		return absolute(s.state)
	}
	return local.DefaultState()
}

// mesh returns a client of the running mesh, or an error that says how to get one.
func (s *session) mesh() (*client, error) {
	dir, err := s.stateDir()
	if err != nil {
		return nil, err
	}
	return newClient(dir), nil
}

// completeWorkloads offers the names of the running mesh's workloads.
func (s *session) completeWorkloads(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	m, err := s.mesh()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	st, err := m.status(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, p := range st.Proxies {
		if p.Forward == "" && cmd.Name() == "curl" {
			continue // a gateway sends nothing of its own
		}
		for _, n := range []string{p.Name.Name, p.Name.String()} {
			if strings.HasPrefix(n, prefix) && (strings.Contains(prefix, "/") == strings.Contains(n, "/")) {
				names = append(names, n+"\t"+string(p.Role))
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

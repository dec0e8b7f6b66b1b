package flags_test

import (
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/flags"
)

func set() *flag.FlagSet {
	fs := flag.NewFlagSet("gate open", flag.ContinueOnError)
	fs.String("plan", "", "run from this `FILE`, which is described at such a length that it has to go on in another line of the help")
	fs.Duration("drain", 90*time.Minute, "the longest time to wait")
	fs.Bool("loud", false, "say more")
	fs.Int("threads", 0, "how many")
	return fs
}

func TestHelp(t *testing.T) {
	var out strings.Builder
	if err := flags.Parse(set(), "gate open opens.\n\nFlags:\n", []string{"-h"}, &out); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("error %v", err)
	}
	want := `gate open opens.

Flags:
  --drain duration
        the longest time to wait (default 1h30m)
  --loud
        say more
  --plan FILE
        run from this FILE, which is described at such a length that it has to go on in another line
        of the help
  --threads int
        how many
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestErrorsSayWhatIsWrongAndWhereHelpIs(t *testing.T) {
	for args, want := range map[string]string{
		"--drian 1s":      "unknown flag --drian (did you mean --drain?)",
		"-colour":         "unknown flag --colour",
		"--plan":          "flag needs an argument: --plan",
		"--drain soon":    `invalid value "soon" for --drain: want a duration such as 500ms, 30s or 2h`,
		"--loud=very":     `invalid boolean value "very" for --loud: want true or false`,
		"--loud now":      `unexpected argument "now"`,
		"---":             "bad flag syntax: ---",
		"--threads 1.5":   `invalid value "1.5" for --threads: want a whole number`,
		"--plan a --plan": "flag needs an argument: --plan",
	} {
		err := flags.Parse(set(), "", strings.Fields(args), io.Discard)
		if err == nil || err.Error() != want+"; see gate open --help" {
			t.Errorf("%s:\n  error %v\n  want  %s; see gate open --help", args, err, want)
		}
	}
}

// The script completes what a program of that name prints as its help, in the real shell.
func TestCompletionInBash(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("there is no bash on this machine")
	}
	dir := t.TempDir()
	program := "#!/bin/sh\ncase $1 in open) printf '  --drain duration\\n        --not-a-flag\\n  --loud\\n' ;; *) printf '  --version\\n' ;; esac\n"
	if err := os.WriteFile(filepath.Join(dir, "gate-keeper"), []byte(program), 0o755); err != nil { //nolint:gosec // it is run
		t.Fatal(err)
	}
	var script strings.Builder
	if code := flags.PrintCompletion(&script, t.Output(), "gate-keeper", []string{"bash"}, "open", "shut"); code != 0 {
		t.Fatal("exit code", code)
	}
	for words, want := range map[string]string{
		"":              "open shut",
		"o":             "open",
		"--":            "--version",
		"open --":       "--drain --loud",
		"open --l":      "--loud",
		"open --loud f": "", // bash's own: files
	} {
		line := strings.Split("gate-keeper "+words, " ")
		var quoted []string
		for _, w := range line {
			quoted = append(quoted, "'"+w+"'")
		}
		run := exec.CommandContext(t.Context(), bash, "--norc", "-c", script.String()+"\nCOMP_WORDS=("+strings.Join(quoted, " ")+"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _gate_keeper; echo ${COMPREPLY[*]}")
		run.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := run.CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%q: %q (%v), want %q", words, got, err, want)
		}
	}
}

func TestCompletionOfNoShell(t *testing.T) {
	for _, args := range [][]string{nil, {"tcsh"}, {"bash", "zsh"}} {
		var out, errs strings.Builder
		if code := flags.PrintCompletion(&out, &errs, "gate", args); code != 2 || out.Len() > 0 || !strings.Contains(errs.String(), "bash, zsh or fish") {
			t.Errorf("%q: exit code %d, %q, %q", args, code, out.String(), errs.String())
		}
	}
}

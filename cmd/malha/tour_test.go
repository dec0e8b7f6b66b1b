package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestTour executes the tour of the README: each "$ command" in a console block, in order, in one mesh of its own, with
// the programs built from this tree. What a command prints must be what the README shows; "…" stands for any text, and
// alone on a line for any lines.
func TestTour(t *testing.T) {
	for _, tool := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the tour uses %s, which is not installed", tool)
		}
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	steps := parseTour(string(readme))
	if len(steps) < 8 {
		t.Fatalf("only %d commands found in the README's tour", len(steps))
	}
	env := append(os.Environ(), "PATH="+programs(t)+":"+os.Getenv("PATH"), "MALHA_STATE="+filepath.Join(t.TempDir(), "state"), "MALHA_GATEWAY_PORT=0", "NO_COLOR=1")
	shell := func(command string) string {
		cmd := exec.Command("bash", "-c", command)
		cmd.Dir, cmd.Env = root, env
		cmd.WaitDelay = time.Minute
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Logf("$ %s: %v", command, err)
		}
		return string(out)
	}
	defer shell("malha down")
	for _, s := range steps {
		// A machine that is slow is told what it waits for, which the README does not show.
		if out := slow.ReplaceAllString(shell(s.command), ""); !s.matches(out) {
			t.Fatalf("$ %s\nprinted:\n%s\nthe README shows:\n%s", s.command, out, strings.Join(s.want, "\n"))
		}
	}
}

// slow are the lines that tell what a mesh waits for.
var slow = regexp.MustCompile(`(?m)^(• still waiting for|the mesh is stopping: it waits for) .*\n`)

// step is one command of the tour and what it shows.
type step struct {
	command string
	want    []string
}

// matches compares line by line, with "…" for anything.
func (s step) matches(out string) bool {
	var re strings.Builder
	re.WriteString(`\A`)
	for _, line := range s.want {
		if line == "…" {
			re.WriteString(`(?:.*\n)*?`)
			continue
		}
		re.WriteString(strings.ReplaceAll(regexp.QuoteMeta(line), "…", ".*") + `[ \t\r]*\n`)
	}
	re.WriteString(`\z`)
	if out != "" && !strings.HasSuffix(out, "\n") {
		out += "\n"
	}
	return regexp.MustCompile(re.String()).MatchString(out)
}

// parseTour returns the commands of the console blocks.
func parseTour(readme string) []step {
	var steps []step
	inside := false
	for line := range strings.Lines(readme) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line == "```console":
			inside = true
		case line == "```":
			inside = false
		case inside && strings.HasPrefix(line, "$ "):
			steps = append(steps, step{command: line[2:]})
		case inside && len(steps) > 0:
			last := &steps[len(steps)-1]
			last.want = append(last.want, line)
		}
	}
	return steps
}

func TestStepMatches(t *testing.T) {
	for _, c := range []struct {
		want []string
		out  string
		ok   bool
	}{
		{[]string{"a"}, "a\n", true},
		{[]string{"a"}, "a", true},
		{[]string{"a"}, "b\n", false},
		{[]string{"a"}, "a\nb\n", false},
		{[]string{"a…z"}, "abcz\n", true},
		{[]string{"a…z"}, "abc\n", false},
		{[]string{"a", "…", "z"}, "a\nb\nc\nz\n", true},
		{[]string{"a", "…", "z"}, "a\nb\nc\n", false},
		{[]string{"…"}, "", true},
		{nil, "", true},
		{nil, "x\n", false},
	} {
		if got := (step{want: c.want}).matches(c.out); got != c.ok {
			t.Errorf("%q against %q: %v, want %v", c.out, c.want, got, c.ok)
		}
	}
}

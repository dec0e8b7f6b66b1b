package ctl

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/golden"
)

// took is what differs from run to run.
var took = regexp.MustCompile(` in [0-9.]+[µm]?s$|time="[0-9.]+"`)

// TestTools runs the command lines of each archive's "commands" in a folder with its files; words are separated by
// spaces, and quoted by '.
func TestTools(t *testing.T) {
	archives, err := filepath.Abs(filepath.Join("testdata", "tools")) // the commands run elsewhere
	if err != nil {
		t.Fatal(err)
	}
	golden.Run(t, archives, func(t *testing.T, in *golden.Archive) map[string][]byte {
		dir := t.TempDir()
		commands, ok := in.Get("commands")
		if !ok {
			t.Fatal("the archive has no commands")
		}
		for _, f := range in.Inputs() {
			if f.Name == "commands" {
				continue
			}
			path := filepath.Join(dir, f.Name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, f.Data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		state := t.TempDir()
		t.Chdir(dir)
		var b bytes.Buffer
		for line := range strings.Lines(string(commands)) {
			line = strings.TrimSpace(line)
			var out, errs bytes.Buffer
			code := Main(t.Context(), "v1.2.3", append([]string{"--state", state}, words(line)...), strings.NewReader(""), &out, &errs)
			b.WriteString("$ malha " + line + "\n" + out.String())
			for said := range strings.Lines(errs.String()) {
				b.WriteString("! " + took.ReplaceAllString(strings.ReplaceAll(strings.TrimRight(said, "\n"), state, "STATE"), "") + "\n")
			}
			if code != 0 {
				b.WriteString("exit code " + string(rune('0'+code)) + "\n")
			}
		}
		return map[string][]byte{"output": took.ReplaceAll(b.Bytes(), nil)}
	})
}

// words splits a command line.
func words(line string) []string {
	var out []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			out = append(out, part)
			continue
		}
		out = append(out, strings.Fields(part)...)
	}
	return out
}

package ctl

import (
	"io"
	"regexp"
	"strings"
	"testing"
)

// TestExamplesAreCommandLines: what help shows as an example is a line that its command takes.
func TestExamplesAreCommandLines(t *testing.T) {
	word := regexp.MustCompile(`'[^']*'|"[^"]*"|[^\s'"]+`)
	for _, c := range (&session{ui: newUI(io.Discard, io.Discard)}).root().Commands() {
		lines := 0
		for line := range strings.SplitSeq(c.Example, "\n") {
			for part := range strings.SplitSeq(line, " | ") {
				part, ours := strings.CutPrefix(strings.TrimSpace(part), "malha ")
				if !ours {
					continue
				}
				lines++
				part, _, _ = strings.Cut(part, " > ")
				var args []string
				for _, w := range word.FindAllString(part, -1) {
					args = append(args, strings.Trim(w, `'"`))
				}
				root := (&session{ui: newUI(io.Discard, io.Discard)}).root() // flags keep what they were given
				cmd, rest, err := root.Find(args)
				if err == nil {
					err = cmd.ParseFlags(rest)
				}
				if err == nil {
					err = cmd.ValidateArgs(cmd.Flags().Args())
				}
				if err == nil {
					err = cmd.ValidateRequiredFlags()
				}
				if err != nil {
					t.Errorf("malha %s shows: malha %s: %v", c.Name(), part, err)
				}
			}
		}
		if lines == 0 && !strings.Contains(c.Example, "malha "+c.Name()) {
			t.Errorf("malha %s has an example that does not call it:\n%s", c.Name(), c.Example)
		}
	}
}

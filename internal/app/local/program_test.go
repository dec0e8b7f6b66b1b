package local

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWhatCannotBeStartedSaysWhy(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("good", "#! /bin/sh -e\n", 0o700)
	write("env", "#!/usr/bin/env", 0o700)
	write("plain", "echo", 0o600)
	write("lost", "#!/no/such/python3 -u\nprint()\n", 0o700)
	p := &Programs{}
	for name, want := range map[string]string{
		"./good":                    "",
		"./env":                     "",
		filepath.Join(dir, "good"):  "",
		"./plain":                   "is not executable; chmod +x it",
		"./lost":                    "to be run by /no/such/python3, which does not exist",
		"./absent":                  "does not exist; build it",
		"./.":                       "is a folder",
		"there-is-no-such-program-": "is not in $PATH",
	} {
		path, err := p.Find(t.Context(), name, dir)
		switch {
		case want == "" && (err != nil || !filepath.IsAbs(path)):
			t.Errorf("%s: %q, %v", name, path, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

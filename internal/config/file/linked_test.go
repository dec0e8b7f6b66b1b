package file

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFilesBehindLinksAreWatchedWhereTheyAre(t *testing.T) {
	folder, outside := t.TempDir(), t.TempDir()
	real, err := filepath.EvalSymlinks(outside)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.yaml", "b.yaml"} {
		if err := os.WriteFile(filepath.Join(outside, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(outside, name), filepath.Join(folder, name)); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{folder, real}, glance(folder).dirs); diff != "" {
		t.Errorf("watched (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{folder, real}, glance(filepath.Join(folder, "a.yaml")).dirs); diff != "" {
		t.Errorf("for one file, watched (-want +got):\n%s", diff)
	}
}

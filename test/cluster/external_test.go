package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestExternal: a cluster that was not made here gets images by a command, is asked before it is used, and is not touched.
func TestExternal(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("KUBECONFIG", filepath.Join(dir, "config"))
	t.Setenv(LoaderEnv, "")
	if err := Possible(); err != nil {
		t.Errorf("a cluster that runs needs nothing of this machine: %v", err)
	}
	c := Open(Options{Name: "test"})
	if !c.External {
		t.Fatal("KUBECONFIG is not heeded")
	}
	if err := c.CanLoad(); err == nil || !strings.Contains(err.Error(), LoaderEnv) {
		t.Errorf("how images come to its nodes is not known, and the error is %v", err)
	}
	if err := c.Stop("kube-apiserver"); err == nil {
		t.Error("a program of it can be stopped")
	}
	file, loaded := filepath.Join(dir, "file"), filepath.Join(dir, "loaded")
	for _, err := range []error{os.WriteFile(file, []byte("x"), 0o600), os.Mkdir(loaded, 0o700)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv(LoaderEnv, "cp -t "+loaded)
	if err := c.Load(t.Context(), Image{Name: "malha.test/x:1", Files: map[string]string{"/x": file}}); err != nil {
		t.Fatal(err)
	}
	if found, _ := filepath.Glob(loaded + "/*.tar"); len(found) != 1 {
		t.Errorf("the loader got %q, want one archive", found)
	}
	if _, err := Up(t.Context(), Options{Name: "test"}); err == nil || !strings.Contains(err.Error(), "KUBECONFIG="+c.Kubeconfig) {
		t.Errorf("it does not answer, and the error is %v", err)
	}
	if err := Down(t.Context(), Options{Name: "test"}); err != nil {
		t.Error(err)
	}
}

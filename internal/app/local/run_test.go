package local

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

const sleeper = "apiVersion: malha.dev/v1alpha1\nkind: Workload\nmetadata: {name: w, labels: {app: w}}\nspec: {ports: [{name: http, port: 80}], run: {command: [sleep, \"600\"]}}\n---\n"

// folderMesh is a mesh over a folder with one manifest, whose proxies only sleep.
func folderMesh(t *testing.T, manifest string, events func(*Mesh, Event)) (m *Mesh, folder string) {
	t.Helper()
	folder, beside := t.TempDir(), t.TempDir()
	write(t, filepath.Join(folder, "mesh.yaml"), manifest)
	proxy := filepath.Join(beside, "malha-proxy")
	write(t, proxy, "#!/bin/sh\nexec sleep 600\n")
	if err := os.Chmod(proxy, 0o700); err != nil { //nolint:gosec // it is to be run
		t.Fatal(err)
	}
	m, err := New(Options{
		State: filepath.Join(t.TempDir(), "state"), Folder: folder, Timeout: time.Hour, Programs: &Programs{Beside: beside},
		Events: func(e Event) { events(m, e) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return m, folder
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Commands reach a mesh from the moment that it listens, which is before anything of it runs.
func TestAskedBeforeAnythingRuns(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var first sync.Once
	m, _ := folderMesh(t, sleeper, func(m *Mesh, e Event) {
		if e.Kind == EventStep {
			first.Do(func() {
				defer cancel()
				if st := m.Status(); st.Phase != Starting {
					t.Errorf("the mesh is %s", st.Phase)
				}
				a := &Applied{}
				w := order{verb: "apply", files: []ManifestFile{{Name: "x.yaml", Data: []byte(serviceB)}}}
				if !m.carryOut(ctx, w, w.objects(a), a) {
					t.Errorf("an apply that comes first does nothing: %v %v", a.Refused, a.Diagnostics)
				}
			})
		}
	})
	if err := m.Run(ctx); err != nil {
		t.Error(err)
	}
	if len(m.config.Services) != 1 {
		t.Errorf("%d services were in force, want the one that was applied", len(m.config.Services))
	}
}

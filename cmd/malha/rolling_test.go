package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
)

// An edit of all replicas of a service goes from one to the next: requests find one that serves at every moment. A new
// program that does not come up ends the round, and the others stay.
func TestReplicasRestartOneAfterTheOther(t *testing.T) {
	t.Parallel()
	m := newMesh(t, nil)
	replicas := func(edit string) string { return m.replicas(3, edit) }
	m.write("web.yaml", replicas(""))
	m.write("door.yaml", gateway)
	m.up()
	url := m.gateway()
	version := strings.NewReplacer("version: v1", "version: v2")
	m.roll(url, "another variable", replicas(", {name: EDIT, value: one}"))
	m.roll(url, "another version", version.Replace(replicas(", {name: EDIT, value: one}")))

	before := m.programs()
	broken := strings.Replace(version.Replace(replicas(", {name: EDIT, value: two}")), "[@PROGRAM@, --listen, \"$(PORT_HTTP)\"]", "[sh, -c, \"exit 3\"]", 1)
	m.write("web.yaml", broken)
	m.eventually("the first replica keeps crashing", func() bool { _, _, code := m.run("", "status"); return code == 1 })
	for name, pid := range m.programs() {
		if name.Name != "web-1" && pid != before[name] {
			t.Errorf("%s was restarted too", name)
		}
	}
	m.must("down")
	m.noneLeft()
}

// A replica is up again when its proxy is, which may be later than its program: then the next one has its turn.
func TestReplicasWaitForTheirProxies(t *testing.T) {
	t.Parallel()
	m := newMesh(t, nil)
	m.bin = filepath.Join(slowProxies(t), "malha")
	m.write("web.yaml", m.replicas(2, ""))
	m.write("door.yaml", gateway)
	m.up()
	m.roll(m.gateway(), "another version", strings.ReplaceAll(m.replicas(2, ""), "version: v1", "version: v2"))
}

// slowProxies returns a folder of programs in which proxies start later than the workloads' programs.
func slowProxies(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	real := filepath.Join(programs(t), "malha-proxy")
	if err := os.Link(filepath.Join(programs(t), "malha"), filepath.Join(dir, "malha")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "malha-proxy"), []byte("#!/bin/sh\nsleep 0.5\nexec '"+real+"' \"$@\"\n"), 0o700); err != nil { //nolint:gosec // it is to be run
		t.Fatal(err)
	}
	return dir
}

// replicas returns some replicas of web, each with more variables.
func (m *mesh) replicas(n int, variables string) string {
	text := service("web")
	for i := range n {
		text += strings.Replace(workload(fmt.Sprintf("web-%d", i+1), "web", "v1", m.folder), "}]\n---", "}"+variables+"]\n---", 1)
	}
	return text
}

// roll makes an edit for which every program has to be restarted, and asks url all the while.
func (m *mesh) roll(url, edit, text string) {
	m.t.Helper()
	before := m.programs()
	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		failed := 0
		for {
			select {
			case <-stop:
				stopped <- failed
				return
			default:
				if status, _, err := get(url); err != nil || status != http.StatusOK {
					failed++
				}
			}
		}
	}()
	m.write("web.yaml", text)
	m.eventually(edit+": every replica was restarted", func() bool {
		now := m.programs()
		for name, pid := range before {
			if now[name] == 0 || now[name] == pid {
				return false
			}
		}
		return true
	})
	close(stop)
	if failed := <-stopped; failed > 0 {
		m.t.Errorf("%s: %d requests failed while the replicas were restarted", edit, failed)
	}
}

// programs returns the pids of the workloads' programs; 0 for one that is not ready.
func (m *mesh) programs() map[ident.Name]int {
	pids := make(map[ident.Name]int)
	for _, w := range m.status().Workloads {
		pids[w.Name] = w.PID
		if w.Health != "ready" {
			pids[w.Name] = 0
		}
	}
	return pids
}

package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
)

// An edit of all replicas of a service goes from one to the next: requests find one that serves at every moment. A new
// program that does not come up ends the round, and the others stay.
func TestReplicasRestartOneAfterTheOther(t *testing.T) {
	t.Parallel()
	m := newMesh(t, nil)
	replicas := func(edit string) string {
		text := service("web")
		for i := range 3 {
			text += strings.Replace(workload(fmt.Sprintf("web-%d", i+1), "web", "v1", m.folder), "}]\n---", "}"+edit+"]\n---", 1)
		}
		return text
	}
	m.write("web.yaml", replicas(""))
	m.write("door.yaml", gateway)
	m.up()
	url := m.gateway()
	version := strings.NewReplacer("version: v1", "version: v2")
	for _, edit := range []struct{ what, text string }{
		{"another variable", replicas(", {name: EDIT, value: one}")},
		{"another version", version.Replace(replicas(", {name: EDIT, value: one}"))},
	} {
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
		m.write("web.yaml", edit.text)
		m.eventually(edit.what+": every replica was restarted", func() bool {
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
			t.Errorf("%s: %d requests failed while the replicas were restarted", edit.what, failed)
		}
	}

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

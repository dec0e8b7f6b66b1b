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
	before := m.programs()

	stop, stopped := make(chan struct{}), make(chan int)
	url := m.gateway()
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
	m.write("web.yaml", replicas(", {name: EDIT, value: one}"))
	m.eventually("every replica was restarted", func() bool {
		for name, pid := range m.programs() {
			if pid == 0 || pid == before[name] {
				return false
			}
		}
		return true
	})
	close(stop)
	if failed := <-stopped; failed > 0 {
		t.Errorf("%d requests failed while the replicas were restarted", failed)
	}

	before = m.programs()
	broken := strings.Replace(replicas(", {name: EDIT, value: two}"), "[@PROGRAM@, --listen, \"$(PORT_HTTP)\"]", "[sh, -c, \"exit 3\"]", 1)
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

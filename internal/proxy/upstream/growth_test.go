package upstream

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// manyClusters is a plan that a Set knows and does not use.
func manyClusters(n int) ([]plan.Cluster, []plan.Endpoints) {
	clusters, endpoints := make([]plan.Cluster, n), make([]plan.Endpoints, n)
	for i := range n {
		name := fmt.Sprintf("outbound|80||svc-%d.default.svc.cluster.local", i)
		clusters[i] = plan.Cluster{Name: name, Protocol: ident.HTTP, Outlier: &plan.Outlier{Consecutive5xx: 5}}
		endpoints[i] = plan.Endpoints{Cluster: name, Endpoints: []plan.Endpoint{{Address: fmt.Sprintf("10.0.%d.%d:80", i/250, i%250)}}}
	}
	return clusters, endpoints
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A cluster that nobody uses costs a few words beside its encoding (110 bytes here), and an update that changes nothing keeps no old
// plan alive.
func TestUnusedClustersAreSmall(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has a heap of its own")
	}
	const n = 5000
	s := newSet(t, Options{})
	clusters, endpoints := manyClusters(n)
	before := heap()
	s.put(clusters, endpoints)
	after := heap()
	if each := int64(after-before) / n; each > 300 {
		t.Errorf("%d bytes for a cluster that nobody used", each)
	}
	for range 3 {
		clusters, endpoints = manyClusters(n)
		s.put(clusters, endpoints)
	}
	if each := (int64(heap()) - int64(after)) / n; each > 250 {
		t.Errorf("%d bytes more for each cluster after updates that change nothing", each)
	}
	runtime.KeepAlive(clusters)
	runtime.KeepAlive(endpoints)
	if st := s.Snapshot(); len(st.Clusters) != n || len(st.Clusters[7].Endpoints) != 1 {
		t.Error("clusters that nobody used are not in the snapshot")
	}
}

// An endpoint that stays keeps nothing of the plan that it came with: else endpoints that come one after the other, each with a plan of
// all, would keep as many plans alive.
func TestEndpointsKeepNoOldPlan(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has a heap of its own")
	}
	const n = 400
	s := newSet(t, Options{})
	put := func(first int) {
		e := plan.Endpoints{Cluster: "c"}
		for i := first; i < first+n; i++ {
			e.Endpoints = append(e.Endpoints, plan.Endpoint{
				Address:  fmt.Sprintf("10.0.%d.%d:80", i/250, i%250),
				Identity: ident.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: fmt.Sprint("account-", i)},
				Workload: plan.WorkloadLabels{Workload: fmt.Sprint("workload-", i), Namespace: "default", App: "c", Version: "v1"},
			})
		}
		s.put([]plan.Cluster{{Name: "c", Protocol: ident.HTTP}}, []plan.Endpoints{e})
	}
	put(0)
	s.Cluster("c").core()
	before := heap()
	for i := range n {
		put(i + 1)
	}
	if grown := int64(heap() - before); grown > 500<<10 { // an encoding has 40 KB
		t.Errorf("the heap grew by %d KB while %d endpoints were replaced", grown>>10, n)
	}
}

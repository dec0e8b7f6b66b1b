package local

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// counted is the admin port of a sidecar that tells its clusters.
type counted struct {
	mu       sync.Mutex
	clusters map[string]cluster
	asked    chan struct{} // told each question that was answered
}

func (s *counted) set(c cluster) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clusters[c.Name] = c
}

func (s *counted) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all struct {
		Clusters []cluster `json:"clusters"`
	}
	for _, c := range s.clusters {
		all.Clusters = append(all.Clusters, c)
	}
	_ = json.NewEncoder(w).Encode(all)
	s.asked <- struct{}{}
}

// resting is a mesh in which only the loop runs, with two sidecars, and a call of rest that says when it is over.
func resting(t *testing.T, ctx context.Context, first ...cluster) (m *Mesh, sidecar *counted, over chan struct{}) {
	t.Helper()
	m = &Mesh{calls: make(chan func()), ended: make(chan struct{}), units: map[ident.Name]*unit{}}
	loop, stop := context.WithCancel(context.Background())
	go m.loop(loop)
	t.Cleanup(func() { stop(); <-m.ended })
	sidecar = &counted{clusters: map[string]cluster{}, asked: make(chan struct{}, 1000)}
	for _, c := range first {
		sidecar.set(c)
	}
	idle := &counted{asked: make(chan struct{}, 1000)}
	for name, h := range map[string]http.Handler{"busy": sidecar, "idle": idle} {
		srv := httptest.NewServer(h)
		t.Cleanup(srv.Close)
		n := ident.Name{Namespace: "default", Name: name}
		m.units[n] = &unit{name: n, role: plan.Sidecar, admin: srv.Listener.Addr().String()}
	}
	over = make(chan struct{})
	go func() {
		defer close(over)
		m.rest(ctx)
	}()
	return m, sidecar, over
}

// again waits until the sidecar was asked n times more.
func (s *counted) again(n int) {
	for range n {
		<-s.asked
	}
}

func still(t *testing.T, over chan struct{}, why string) {
	t.Helper()
	select {
	case <-over:
		t.Fatal("not waited for: " + why)
	default:
	}
}

func TestRestWaitsForWhatIsInFlight(t *testing.T) {
	m, s, over := resting(t, t.Context(), cluster{Name: "outbound|80||b", Requests: 2, Total: 10}, cluster{Name: "outbound|80||c", Total: 7})
	s.again(3)
	still(t, over, "two requests in flight")
	var waiting []string
	m.do(func() { waiting = m.waitingFor() })
	if len(waiting) != 1 || !strings.Contains(waiting[0], "default/busy") {
		t.Errorf("waits for %q", waiting)
	}
	// One has ended, another began: the one that was there at the beginning may be the one that is left.
	s.set(cluster{Name: "outbound|80||b", Requests: 2, Total: 11})
	s.again(3)
	still(t, over, "one of two has ended")
	// What began later is nobody's business.
	s.set(cluster{Name: "outbound|80||c", Requests: 5, Total: 12})
	s.set(cluster{Name: "outbound|80||b", Requests: 0, Total: 11})
	<-over
	m.do(func() { waiting = m.waitingFor() })
	if len(waiting) != 0 {
		t.Errorf("afterwards it waits for %q", waiting)
	}
}

func TestRestEndsUnderALoadThatDoesNot(t *testing.T) {
	_, s, over := resting(t, t.Context(), cluster{Name: "outbound|80||b", Requests: 3, Total: 100})
	s.again(2)
	s.set(cluster{Name: "outbound|80||b", Requests: 3, Total: 102})
	s.again(3)
	still(t, over, "two of three have ended")
	s.set(cluster{Name: "outbound|80||b", Requests: 3, Total: 103})
	<-over
}

func TestRestEndsWithItsTime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, s, over := resting(t, ctx, cluster{Name: "outbound|80||b", Requests: 1, Total: 1})
	s.again(2)
	cancel()
	<-over
}

func TestRestPassesOverSidecarsThatAreGone(t *testing.T) {
	m := &Mesh{calls: make(chan func()), ended: make(chan struct{}), units: map[ident.Name]*unit{}}
	loop, stop := context.WithCancel(context.Background())
	go m.loop(loop)
	defer func() { stop(); <-m.ended }()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	n := ident.Name{Namespace: "default", Name: "a"}
	m.units[n] = &unit{name: n, role: plan.Sidecar, admin: addr}
	m.rest(t.Context())
}

func TestLeaveTellsWhoIsLeft(t *testing.T) {
	m := &Mesh{calls: make(chan func()), ended: make(chan struct{}), units: map[ident.Name]*unit{}}
	loop, stop := context.WithCancel(context.Background())
	go m.loop(loop)
	defer func() { stop(); <-m.ended }()
	var asked sync.WaitGroup
	newChild := func() *child {
		asked.Add(1)
		return &child{stop: sync.OnceFunc(asked.Done), done: make(chan struct{})}
	}
	a, b := newChild(), newChild()
	over := make(chan struct{})
	go func() {
		defer close(over)
		m.leave(map[*child]string{a: "the first", b: "the second"}, []*child{a, b})
	}()
	asked.Wait() // both are asked before one is waited for
	close(a.done)
	var left []string
	for left == nil {
		m.do(func() { left = m.waitingFor() })
	}
	if got := strings.Join(left, ", "); got != "the second" {
		t.Errorf("waits for %q", got)
	}
	close(b.done)
	select {
	case <-over:
	case <-time.After(time.Minute):
		t.Fatal("it goes on waiting")
	}
}

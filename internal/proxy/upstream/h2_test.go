package upstream

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// protocols answers with the protocol of the request.
var protocols = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) })

func TestProtocolChoice(t *testing.T) {
	for _, tt := range []struct {
		cluster ident.Protocol
		client  bool
		want    string
	}{
		{ident.HTTP, false, "HTTP/1.1"}, {ident.HTTP, true, "HTTP/1.1"},
		{ident.HTTP2, false, "HTTP/2.0"}, {ident.GRPC, false, "HTTP/2.0"},
		{ident.Detect, false, "HTTP/1.1"}, {ident.Detect, true, "HTTP/2.0"},
	} {
		c := only(newSet(t, Options{}), plan.Cluster{Protocol: tt.cluster}, newApp(t, protocols).addr())
		if body, _ := mustGet(t, c, Attempt{Detected: tt.client}, "/"); body != tt.want {
			t.Errorf("cluster %v, client http2 %v: %s", tt.cluster, tt.client, body)
		}
	}
}

func TestH2RequestsShareOneConnection(t *testing.T) {
	checkAfter(t)
	release := make(chan struct{})
	var in atomic.Int32
	a := newApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in.Add(1)
		<-release
	}))
	c := only(newSet(t, Options{}), plan.Cluster{Protocol: ident.HTTP2}, a.addr())
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, _, _, err := get(c, Attempt{}, "/"); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "all requests arrive", func() bool { return in.Load() == 50 })
	close(release)
	wg.Wait()
	if n := a.opened(); n != 1 {
		t.Errorf("%d connections for 50 concurrent requests", n)
	}
	if _, reused := mustGet(t, c, Attempt{}, "/"); !reused {
		t.Error("the next request opened a connection")
	}
}

func TestH2OpensAnotherConnectionWhenFull(t *testing.T) {
	a := newApp(t, nil)
	a.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 2}
	c := only(newSet(t, Options{}), plan.Cluster{Protocol: ident.HTTP2}, a.addr())
	mustGet(t, c, Attempt{}, "/") // the server's SETTINGS are known after this
	var held []*Lease
	for range 5 {
		held = append(held, acquire(t, c, Attempt{}))
		mustGetMaybe(t, c)
	}
	for _, l := range held {
		finish(t, l)
	}
	if n := a.opened(); n < 3 {
		t.Errorf("%d connections for 5 streams, 2 on each", n)
	}
}

// mustGetMaybe does a request beside others: it makes a new connection learn the server's SETTINGS.
func mustGetMaybe(t *testing.T, c *Cluster) {
	t.Helper()
	if _, _, _, err := get(c, Attempt{}, "/"); err != nil {
		t.Error(err)
	}
}

func TestH2MaxConnectionsWaits(t *testing.T) {
	a := newApp(t, nil)
	a.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 1}
	c := only(newSet(t, Options{}), plan.Cluster{Protocol: ident.HTTP2, Limits: plan.Limits{MaxConnections: 1}}, a.addr())
	mustGet(t, c, Attempt{}, "/")
	held := acquire(t, c, Attempt{})
	if _, err := c.Acquire(&Attempt{Deadline: time.Now().Add(20 * time.Millisecond)}); !errors.Is(err, stream.ErrDeadline) {
		t.Errorf("a full connection: %v", err)
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { mustGetMaybe(t, c) })
	}
	eventually(t, "three are in line", func() bool { return c.core().counted.pending.Load() == 3 })
	finish(t, held)
	wg.Wait()
	if n := a.opened(); n != 1 {
		t.Errorf("%d connections, maxConnections is 1", n)
	}
}

// A server that shuts down says GOAWAY; the stream that is open finishes, the next one opens a connection elsewhere, also
// when there is a limit of one.
func TestH2GoAwayIsReplaced(t *testing.T) {
	checkAfter(t)
	in, release := make(chan struct{}, 1), make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			in <- struct{}{}
			<-release
		}
	})
	old, young := newApp(t, h), newApp(t, h)
	var addr atomic.Pointer[string]
	first, second := old.addr(), young.addr()
	addr.Store(&first)
	s := newSet(t, Options{Dial: func(ctx context.Context, _ string) (net.Conn, error) { return new(Set).dialTCP(ctx, *addr.Load()) }})
	c := only(s, plan.Cluster{Protocol: ident.HTTP2, Limits: plan.Limits{MaxConnections: 1}}, "service:80")
	done := make(chan error)
	go func() {
		status, _, _, err := get(c, Attempt{}, "/slow")
		if status != 200 && err == nil {
			err = errors.New(http.StatusText(status))
		}
		done <- err
	}()
	<-in
	addr.Store(&second)
	go func() { _ = old.Config.Shutdown(context.Background()) }()
	eventually(t, "GOAWAY arrives and requests go elsewhere", func() bool {
		// A request that crosses the GOAWAY is refused unprocessed, which the stack sends again.
		if _, _, _, err := get(c, Attempt{}, "/"); err != nil && !errors.Is(err, stream.ErrRefused) {
			t.Errorf("during the shutdown: %v", err)
		}
		return young.opened() == 1
	})
	close(release)
	if err := <-done; err != nil {
		t.Errorf("the request that was in flight: %v", err)
	}
}

func TestH2LimitsOfAConnection(t *testing.T) {
	a := newApp(t, nil)
	c := only(newSet(t, Options{}), plan.Cluster{Protocol: ident.HTTP2, Limits: plan.Limits{MaxRequestsPerConnection: 2, MaxConnections: 1}}, a.addr())
	for i := range 6 {
		if _, reused := mustGet(t, c, Attempt{}, "/"); reused != (i%2 == 1) {
			t.Errorf("request %d: reused %v", i, reused)
		}
	}
	if n := a.opened(); n != 3 {
		t.Errorf("%d connections for 6 requests, 2 on each", n)
	}
}

func TestH2IdleConnectionsAreClosed(t *testing.T) {
	checkAfter(t)
	a := newApp(t, nil)
	s := newSet(t, Options{})
	c := only(s, plan.Cluster{Protocol: ident.HTTP2, Limits: plan.Limits{IdleTimeout: plan.Duration(time.Millisecond)}}, a.addr())
	mustGet(t, c, Attempt{}, "/")
	eventually(t, "the idle connection is closed", func() bool { return c.core().counted.connections.Load() == 0 && len(a.all()) == 0 })
}

// One connect is shared by all who need it, also when it fails.
func TestH2OneConnectForAll(t *testing.T) {
	var dials atomic.Int32
	gate := make(chan struct{})
	s := newSet(t, Options{Dial: func(context.Context, string) (net.Conn, error) {
		dials.Add(1)
		<-gate
		return nil, errors.New("no route to host")
	}})
	c := only(s, plan.Cluster{Protocol: ident.HTTP2, Outlier: &plan.Outlier{Consecutive5xx: 2}}, "a:1")
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			var ce *ConnectError
			if _, err := c.Acquire(&Attempt{}); !errors.As(err, &ce) {
				t.Errorf("%v", err)
			}
		})
	}
	eventually(t, "all wait", func() bool { return c.core().counted.pending.Load() == 10 })
	close(gate)
	wg.Wait()
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connects", n)
	}
	if c.core().counted.ejections.Load() != 0 {
		t.Error("one failed connect counted as many")
	}
}

// An endpoint that accepts connections and ends them at once must not be hammered until the deadline.
func TestH2ConnectionThatEndsAtOnce(t *testing.T) {
	checkAfter(t)
	var dials atomic.Int32
	s := newSet(t, Options{Dial: func(context.Context, string) (net.Conn, error) {
		dials.Add(1)
		ours, theirs := net.Pipe()
		_ = theirs.Close()
		return ours, nil
	}})
	// Every failure ejects and everything is looked at meanwhile: no lock may be held the wrong way round.
	c := only(s, plan.Cluster{Protocol: ident.HTTP2, Outlier: &plan.Outlier{Consecutive5xx: 1, MinHealthPercent: 100,
		Interval: plan.Duration(time.Millisecond), BaseEjection: plan.Duration(time.Millisecond)}}, "a:1")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				s.Snapshot()
			}
		}
	})
	for range 20 {
		if _, _, _, err := get(c, Attempt{Deadline: time.Now().Add(time.Second)}, "/"); err == nil {
			t.Fatal("a request succeeded on a closed connection")
		}
	}
	if n := dials.Load(); n > 20 {
		t.Errorf("%d connects for 20 requests", n)
	}
}

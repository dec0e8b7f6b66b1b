package upstream

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/plan"
)

func TestPassthroughDialsTheHostAsWritten(t *testing.T) {
	a := newApp(t, nil)
	_, p, err := net.SplitHostPort(a.addr())
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(p)
	if err != nil {
		t.Fatal(err)
	}
	var dialled []string
	s := newSet(t, Options{Dial: func(ctx context.Context, addr string) (net.Conn, error) {
		dialled = append(dialled, addr)
		return new(Set).dialTCP(ctx, net.JoinHostPort("127.0.0.1", p))
	}})
	for _, host := range []string{"localhost", "Example.com", "::1"} {
		c := s.Passthrough(host, port)
		mustGet(t, c, Attempt{}, "/")
		if c != s.Passthrough(host, port) {
			t.Error("two clusters for one host")
		}
		if _, reused := mustGet(t, c, Attempt{}, "/"); !reused {
			t.Error("the connection was not used again")
		}
	}
	want := []string{"localhost:" + p, "Example.com:" + p, "[::1]:" + p}
	if d := cmp.Diff(want, dialled); d != "" {
		t.Error(d)
	}
}

func TestPassthroughIsBoundedAndExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipeNet()
		s := newSet(t, Options{Dial: p.dial})
		for _, host := range []string{"held", "last"} {
			p.serve[host+":80"] = status(ok200)
		}
		held := s.Passthrough("held", 80)
		l := acquire(t, held, Attempt{})
		for i := range 10 * passthroughMost {
			s.Passthrough(fmt.Sprint("h", i), 80)
		}
		if n := len(s.Snapshot().Clusters); n != passthroughMost {
			t.Errorf("%d clusters are remembered", n)
		}
		finish(t, l) // forgotten long ago, and works
		synctest.Wait()
		if n := held.core().counted.connections.Load(); n != 0 {
			t.Error("a forgotten cluster keeps its connection")
		}
		last := s.Passthrough("last", 80)
		l = acquire(t, last, Attempt{})
		time.Sleep(passthroughIdle + 2*keepSeldom)
		synctest.Wait()
		if n := len(s.Snapshot().Clusters); n != 1 || s.Passthrough("last", 80) != last {
			t.Errorf("%d clusters are left, want the one with a request in flight", n)
		}
		finish(t, l)
		time.Sleep(passthroughIdle + 2*keepSeldom)
		synctest.Wait()
		if n := len(s.Snapshot().Clusters); n != 0 {
			t.Errorf("%d clusters are left", n)
		}
	})
}

func TestSnapshot(t *testing.T) {
	a := newApp(t, nil)
	s := newSet(t, Options{})
	c := only(s, plan.Cluster{Name: "outbound|80||a", Host: "a", Port: 80, TLS: plan.TLSOff}, a.addr())
	mustGet(t, c, Attempt{}, "/")
	l := acquire(t, c, Attempt{Retry: true})
	defer finish(t, l)
	want := &Status{Clusters: []ClusterStatus{{
		Name: "outbound|80||a", Host: "a", Port: 80, Requests: 1, Retries: 1, Connections: 1,
		RequestsTotal: 2, RetriesTotal: 1, ConnectionsTotal: 1,
		Endpoints: []EndpointStatus{{Address: a.addr(), Weight: 1, Requests: 1, Connections: 1}},
	}}}
	if d := cmp.Diff(want, s.Snapshot()); d != "" {
		t.Error(d)
	}
}

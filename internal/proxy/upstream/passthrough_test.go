package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
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
		c := s.Passthrough(host, port, nil)
		mustGet(t, c, Attempt{}, "/")
		if c != s.Passthrough(host, port, nil) {
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
		held := s.Passthrough("held", 80, nil)
		l := acquire(t, held, Attempt{})
		for i := range 10 * passthroughMost {
			s.Passthrough(fmt.Sprint("h", i), 80, nil)
		}
		if n := len(s.Snapshot().Clusters); n != passthroughMost {
			t.Errorf("%d clusters are remembered", n)
		}
		finish(t, l) // forgotten long ago, and works
		synctest.Wait()
		if n := held.core().counted.connections.Load(); n != 0 {
			t.Error("a forgotten cluster keeps its connection")
		}
		last := s.Passthrough("last", 80, nil)
		l = acquire(t, last, Attempt{})
		time.Sleep(passthroughIdle + 2*keepSeldom)
		synctest.Wait()
		if n := len(s.Snapshot().Clusters); n != 1 || s.Passthrough("last", 80, nil) != last {
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

// closed lets no address through but one.
type closed struct{ but string }

var errClosed = errors.New("closed")

func (c *closed) Reaches(a netip.Addr) error {
	if a.String() == c.but {
		return nil
	}
	return errClosed
}

// TestPassthroughStaysWithin resolves names before it decides, and uses no connection under rules that it was not made under.
func TestPassthroughStaysWithin(t *testing.T) {
	a := newApp(t, nil)
	_, p, err := net.SplitHostPort(a.addr())
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(p)
	if err != nil {
		t.Fatal(err)
	}
	s := newSet(t, Options{})
	open, shut := &closed{"127.0.0.1"}, &closed{"192.0.2.1"}
	for _, host := range []string{"127.0.0.1", "localhost"} {
		mustGet(t, s.Passthrough(host, port, open), Attempt{}, "/")
		if _, reused := mustGet(t, s.Passthrough(host, port, open), Attempt{}, "/"); !reused {
			t.Errorf("%s: the connection was not used again", host)
		}
		_, err := s.Passthrough(host, port, shut).Acquire(&Attempt{})
		var connect *ConnectError
		if !errors.As(err, &connect) || host == "127.0.0.1" && !errors.Is(err, errClosed) {
			t.Errorf("%s: %v, want a refusal", host, err)
		}
	}
}

package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// zone answers for names.
type zone struct {
	mu    sync.Mutex
	names map[string][]string
	asked int
}

func (z *zone) set(name string, addrs ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.names == nil {
		z.names = make(map[string][]string)
	}
	z.names[name] = addrs
}

func (z *zone) count() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.asked
}

func (z *zone) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	z.mu.Lock()
	z.asked++
	addrs, ok := z.names[host]
	z.mu.Unlock()
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	if len(addrs) == 1 && addrs[0] == "hang" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	var out []netip.Addr
	for _, a := range addrs {
		out = append(out, netip.MustParseAddr(a))
	}
	return out, nil
}

func TestEveryAddressOfANameIsAnEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, p := new(zone), newPipeNet()
		z.set("api.example", "10.0.0.2", "10.0.0.1", "2001:db8::1", "::ffff:10.0.0.1")
		for _, a := range []string{"10.0.0.1:80", "10.0.0.2:80", "[2001:db8::1]:80", "10.0.0.3:80", "10.9.9.9:80"} {
			p.serve[a] = status(ok200)
		}
		s := newSet(t, Options{Dial: p.dial, Resolve: z.resolve})
		c := only(s, plan.Cluster{Protocol: ident.HTTP, Discovery: plan.DNS, Balancer: plan.RoundRobin}, "10.9.9.9:80", "api.example:80")
		synctest.Wait()
		if z.count() != 0 {
			t.Error("names are resolved for a cluster that nobody uses")
		}
		went := func() []string {
			at := make(map[string]bool)
			for range 16 {
				l := acquire(t, c, Attempt{})
				at[l.Endpoint.Address()] = true
				if l.Endpoint.Address() != "10.9.9.9:80" && l.Endpoint.Host() != "api.example" {
					t.Errorf("the host of %s is %q", l.Endpoint.Address(), l.Endpoint.Host())
				}
				finish(t, l)
			}
			var all []string
			for a := range at {
				all = append(all, a)
			}
			slices.Sort(all)
			return all
		}
		if got, want := fmt.Sprint(went()), "[10.0.0.1:80 10.0.0.2:80 10.9.9.9:80 [2001:db8::1]:80]"; got != want {
			t.Errorf("requests went to %s, want %s", got, want)
		}
		kept := c.core().state.Load().endpoints[1]
		z.set("api.example", "10.0.0.3", "10.0.0.1")
		time.Sleep(dnsRefresh * 12 / 10)
		synctest.Wait()
		if got, want := fmt.Sprint(went()), "[10.0.0.1:80 10.0.0.3:80 10.9.9.9:80]"; got != want {
			t.Errorf("after a new answer requests went to %s, want %s", got, want)
		}
		if !slices.Contains(c.core().state.Load().endpoints, kept) {
			t.Error("an address that stays has a new endpoint")
		}
		// The last good answer stays.
		z.mu.Lock()
		delete(z.names, "api.example")
		z.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := went(); len(got) != 3 {
			t.Errorf("while the name does not resolve, requests went to %v", got)
		}
		// Nobody asks for what nobody uses, and the next use asks again.
		z.set("api.example", "10.0.0.2")
		time.Sleep(dnsUnused + time.Minute)
		synctest.Wait()
		before := z.count()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if z.count() != before {
			t.Error("names are resolved although nobody uses the cluster")
		}
		went()
		synctest.Wait()
		if got, want := fmt.Sprint(went()), "[10.0.0.2:80 10.9.9.9:80]"; got != want {
			t.Errorf("after a long pause requests went to %s, want %s", got, want)
		}
	})
}

func TestNamesAreAskedForEveryFewSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, p := new(zone), newPipeNet()
		z.set("a", "10.0.0.1")
		p.serve["10.0.0.1:80"] = status(ok200)
		c := only(newSet(t, Options{Dial: p.dial, Resolve: z.resolve}), plan.Cluster{Protocol: ident.HTTP, Discovery: plan.DNS}, "a:80")
		for range 100 {
			mustGet(t, c, Attempt{}, "/")
			time.Sleep(time.Second)
		}
		if n := z.count(); n < 18 || n > 24 {
			t.Errorf("asked %d times in 100 s", n)
		}
	})
}

func TestNamesThatDontResolve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := new(zone)
		s := newSet(t, Options{Resolve: z.resolve})
		c := only(s, plan.Cluster{Protocol: ident.HTTP, Discovery: plan.DNS}, "gone.example:80")
		_, err := c.Acquire(&Attempt{})
		if !errors.Is(err, ErrNoHealthy) || !strings.Contains(err.Error(), "gone.example") || !strings.Contains(err.Error(), "no such host") {
			t.Errorf("%v", err)
		}
		z.set("slow.example", "hang")
		c = only(s, plan.Cluster{Protocol: ident.HTTP, Discovery: plan.DNS}, "slow.example:80")
		start := time.Now()
		if _, err := c.Acquire(&Attempt{Deadline: start.Add(time.Second)}); !errors.Is(err, stream.ErrDeadline) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		z.set("empty.example")
		c = only(s, plan.Cluster{Protocol: ident.HTTP, Discovery: plan.DNS}, "empty.example:80")
		if _, err := c.Acquire(&Attempt{}); err == nil || !strings.Contains(err.Error(), "no addresses") {
			t.Errorf("%v", err)
		}
		var many []string
		for i := range 500 {
			many = append(many, fmt.Sprintf("10.1.%d.%d", i/250, i%250))
		}
		z.set("many.example", many...)
		c = only(s, plan.Cluster{Protocol: ident.HTTP, Discovery: plan.DNS}, "many.example:80")
		_, _, _ = c.core().pick(c.core().state.Load(), &Attempt{})
		if n := len(c.core().state.Load().endpoints); n != dnsMost {
			t.Errorf("%d endpoints of a name with 500 addresses", n)
		}
	})
}

func TestOneAddressAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, p := new(zone), newPipeNet()
		z.set("api.example", "10.0.0.9", "10.0.0.1", "10.0.0.2")
		var dialled []string
		refuse := map[string]bool{}
		dial := func(ctx context.Context, addr string) (net.Conn, error) {
			dialled = append(dialled, addr)
			if refuse[addr] {
				return nil, errors.New("refused")
			}
			return p.dial(ctx, addr)
		}
		for _, a := range []string{"10.0.0.1:80", "10.0.0.2:80", "10.0.0.9:80"} {
			p.serve[a] = status(ok200)
		}
		s := newSet(t, Options{Dial: dial, Resolve: z.resolve})
		c := only(s, plan.Cluster{Protocol: ident.HTTP, Discovery: plan.DNSFirst}, "api.example:80")
		var held []*Lease
		for range 3 {
			held = append(held, acquire(t, c, Attempt{}))
		}
		if got := fmt.Sprint(dialled); got != "[10.0.0.9:80 10.0.0.9:80 10.0.0.9:80]" || len(s.Snapshot().Clusters[0].Endpoints) != 1 {
			t.Errorf("dialled %s, want the resolver's first three times", got)
		}
		refuse["10.0.0.9:80"], dialled = true, nil
		held = append(held, acquire(t, c, Attempt{}))
		if got := fmt.Sprint(dialled); got != "[10.0.0.9:80 10.0.0.1:80]" {
			t.Errorf("dialled %s, want the next address after one that refuses", got)
		}
		for _, l := range held {
			finish(t, l)
		}
		z.set("api.example", "10.0.0.2")
		time.Sleep(dnsRefresh * 12 / 10)
		synctest.Wait()
		dialled = nil
		nc, _, err := c.Dial(time.Time{})
		if err != nil || fmt.Sprint(dialled) != "[10.0.0.2:80]" {
			t.Fatalf("dialled %v: %v", dialled, err)
		}
		_ = nc.Close()
	})
}

func TestGoroutinesOfNamesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, p := new(zone), newPipeNet()
		z.set("a", "10.0.0.1")
		z.set("b", "hang")
		p.serve["10.0.0.1:80"] = status(ok200)
		s := newSet(t, Options{Dial: p.dial, Resolve: z.resolve})
		mustGet(t, only(s, plan.Cluster{Protocol: ident.HTTP, Discovery: plan.DNS}, "a:80"), Attempt{}, "/")
		s.put(nil, nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		before := z.count()
		time.Sleep(time.Minute)
		if z.count() != before {
			t.Error("the names of a cluster that is gone are asked for")
		}
		c := only(s, plan.Cluster{Protocol: ident.HTTP, Discovery: plan.DNS}, "b:80")
		_, _ = c.Acquire(&Attempt{Deadline: time.Now().Add(time.Millisecond)}) // Close ends the lookup that hangs
	})
}

// Who waits for a name that does not resolve goes to the one that a plan puts in its place.
func TestNamesChangeUnderAWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, p := new(zone), newPipeNet()
		z.set("wrong.example", "hang")
		z.set("right.example", "10.0.0.1")
		p.serve["10.0.0.1:80"] = status(ok200)
		s := newSet(t, Options{Dial: p.dial, Resolve: z.resolve})
		cluster := plan.Cluster{Protocol: ident.HTTP, Discovery: plan.DNS}
		c := only(s, cluster, "wrong.example:80")
		done := make(chan error, 1)
		go func() {
			status, _, _, err := get(c, Attempt{}, "/")
			if err == nil && status != 200 {
				err = fmt.Errorf("status %d", status)
			}
			done <- err
		}()
		time.Sleep(time.Second)
		only(s, cluster, "right.example:80")
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

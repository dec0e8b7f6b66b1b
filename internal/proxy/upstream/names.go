package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// How endpoints that are names are resolved. Go's resolver does not tell how long an answer holds, so it is asked again every
// few seconds while the cluster is used (Envoy's default for dns_refresh_rate); the last good answer stays.
const (
	dnsRefresh = 5 * time.Second
	dnsTimeout = 5 * time.Second
	dnsUnused  = 5 * time.Minute // after which nobody is asked any more
	dnsAtOnce  = 4               // names of one cluster
	dnsMost    = 64              // addresses of one name
)

// names is what the names of a cluster's endpoints stand for. Its goroutine begins with the first use.
type names struct {
	core  *core
	ready chan struct{} // closed once every name was asked for once
	quit  chan struct{}
	used  atomic.Int64 // Set.precise
	known atomic.Bool  // ready is closed and the goroutine runs

	mu      sync.Mutex
	answers map[string]*answer
	running bool
	stopped bool
}

// answer is the last good one for a name, and the last error.
type answer struct {
	addrs []netip.Addr
	err   error
}

// at is an address to dial and the name that it was found by.
type at struct{ address, name string }

// resolved makes names for a plan, or keeps those there are, which are not stopped here. core.mu is held.
func (c *core) resolved(before *names, p *plan.Cluster, planned []plan.Endpoint) *names {
	hosts := make(map[string]*answer)
	if p.Discovery == plan.DNS || p.Discovery == plan.DNSFirst {
		for i := range planned {
			if host, _, err := net.SplitHostPort(planned[i].Address); err == nil {
				if _, err := netip.ParseAddr(host); err != nil {
					hosts[host] = &answer{}
				}
			}
		}
	}
	if len(hosts) == 0 {
		return nil
	}
	if before != nil {
		before.mu.Lock()
		same := len(hosts) == len(before.answers)
		for h := range hosts {
			if old := before.answers[h]; old != nil {
				hosts[h] = &answer{addrs: old.addrs, err: old.err}
			} else {
				same = false
			}
		}
		before.mu.Unlock()
		if same {
			return before
		}
	}
	return &names{core: c, answers: hosts, ready: make(chan struct{}), quit: make(chan struct{})}
}

// stop ends the goroutine. n may be nil.
func (n *names) stop() {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.stopped {
		n.stopped = true
		close(n.quit)
	}
}

// addresses returns what the address of an endpoint stands for: itself when it is no name, or only one of its addresses is used
// at a time. n may be nil.
func (n *names) addresses(p *plan.Cluster, address string) []at {
	host, port, err := net.SplitHostPort(address)
	if n == nil || err != nil {
		return []at{{address: address}}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	a := n.answers[host]
	switch {
	case a == nil:
		return []at{{address: address}}
	case len(a.addrs) == 0:
		return nil
	case p.Discovery == plan.DNSFirst:
		return []at{{address: address, name: host}}
	}
	out := make([]at, len(a.addrs))
	for i, ip := range a.addrs {
		out[i] = at{address: net.JoinHostPort(ip.String(), port), name: host}
	}
	return out
}

// inTurn returns the addresses to dial for an endpoint, one after the other. n may be nil.
func (n *names) inTurn(p *plan.Cluster, address string) []string {
	host, port, err := net.SplitHostPort(address)
	if n != nil && err == nil && p.Discovery == plan.DNSFirst {
		n.mu.Lock()
		defer n.mu.Unlock()
		if a := n.answers[host]; a != nil && len(a.addrs) > 0 {
			out := make([]string, len(a.addrs))
			for i, ip := range a.addrs {
				out[i] = net.JoinHostPort(ip.String(), port)
			}
			return out
		}
	}
	return []string{address}
}

// why says why there are no addresses. n may be nil.
func (n *names) why() error {
	if n == nil {
		return errNoEndpoints
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs error
	for host, a := range n.answers {
		if a.err != nil {
			errs = errors.Join(errs, fmt.Errorf("%s: %w", host, a.err))
		}
	}
	if errs == nil {
		errs = errors.New("nobody has been asked yet")
	}
	return fmt.Errorf("%w: no name of its endpoints resolves: %w", ErrNoHealthy, errs)
}

// wait waits until every name was asked for once, and keeps the answers fresh from now on.
func (n *names) wait(st *state, deadline time.Time) error {
	s := n.core.set
	n.used.Store(s.precise())
	if n.known.Load() {
		return nil
	}
	n.start()
	select {
	case <-n.ready:
		return nil
	default:
	}
	limit := st.connectTimeout()
	if !deadline.IsZero() {
		limit = min(limit, deadline.Sub(s.now()))
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-n.ready:
		return nil
	case <-n.quit:
		return nil
	case <-s.ended:
		return ErrClosed
	case <-timer.C:
		return fmt.Errorf("%w while resolving the names of endpoints", stream.ErrDeadline)
	}
}

func (n *names) start() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.running && !n.stopped {
		n.running = n.core.set.spawn(n.run)
	}
}

// run keeps the answers fresh while the cluster is used.
func (n *names) run() {
	s := n.core.set
	first := true
	for {
		if n.ask() || first {
			n.core.answered(n)
		}
		if first {
			first = false
			select {
			case <-n.ready: // by a run before
			default:
				close(n.ready)
			}
		}
		n.known.Store(true)
		if s.precise()-n.used.Load() > int64(dnsUnused) {
			n.mu.Lock()
			n.known.Store(false)
			n.running = false
			n.mu.Unlock()
			return
		}
		// A tenth of jitter: proxies that started together need not ask together.
		timer := time.NewTimer(dnsRefresh*9/10 + rand.N(dnsRefresh/5))
		select {
		case <-timer.C:
		case <-n.quit:
			timer.Stop()
			return
		case <-s.ended:
			timer.Stop()
			return
		}
	}
}

// ask resolves every name, and reports whether any answer changed.
func (n *names) ask() bool {
	s := n.core.set
	n.mu.Lock()
	hosts := make([]string, 0, len(n.answers))
	for h := range n.answers {
		hosts = append(hosts, h)
	}
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(s.live, dnsTimeout)
	defer cancel()
	var wg sync.WaitGroup
	var changed atomic.Bool
	free := make(chan struct{}, dnsAtOnce)
	for _, h := range hosts {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			addrs, err := s.lookup(ctx, h)
			if n.note(h, addrs, err) {
				changed.Store(true)
			}
		})
	}
	wg.Wait()
	return changed.Load()
}

// note takes an answer, and reports whether it is another one.
func (n *names) note(host string, found []netip.Addr, err error) bool {
	addrs := make([]netip.Addr, 0, len(found))
	for _, a := range found {
		if a = a.Unmap(); a.IsValid() && !slices.Contains(addrs, a) && len(addrs) < dnsMost {
			addrs = append(addrs, a)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	a := n.answers[host]
	if err == nil && len(addrs) == 0 {
		err = errors.New("the name has no addresses")
	}
	if a.err = err; err != nil {
		return false // the last good answer is better than none
	}
	if n.core.state.Load().plan.Discovery != plan.DNSFirst {
		sort.Slice(addrs, func(i, j int) bool { return addrs[i].Less(addrs[j]) }) // a resolver that turns its answers round says nothing new
	}
	if slices.Equal(a.addrs, addrs) {
		return false
	}
	a.addrs = addrs
	return true
}

// answered puts the addresses of names in force.
func (c *core) answered(n *names) {
	c.mu.Lock()
	st := c.state.Load()
	if st.names != n {
		c.mu.Unlock()
		return
	}
	gone := c.rebuild(st.plan, st.planned, st.place)
	c.mu.Unlock()
	for _, e := range gone {
		e.drain()
	}
}

// hostOf splits an address; the host is empty when it is none.
func hostOf(address string) hostPort {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return hostPort{}
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return hostPort{}
	}
	return hostPort{host, n}
}

package upstream

import (
	"cmp"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/malha-mesh/malha/internal/plan"
)

// asRequested returns the endpoint that a request names, for a cluster that goes wherever requests want to (Istio resolution
// NONE, LoadBalancerSettings PASSTHROUGH). At most 256 are remembered, and none that was not used for five minutes.
func (c *core) asRequested(a *Attempt) (*Endpoint, error) {
	st := c.state.Load()
	host, port := a.Host, a.Port
	if a.ToTarget && st.plan.Originate == nil {
		var text [64]byte
		host, port = a.Target.Addr().Unmap().AppendTo(text[:0]), int(a.Target.Port())
	}
	if port == 0 {
		port = st.plan.Port
	}
	if e := st.byHost[hostPort{string(host), port}]; e != nil {
		if e.aside() && e.trial.Load() == noTrial {
			return nil, errAllEjected
		}
		e.used.Store(c.set.clock())
		return e, nil
	}
	if !isHost(host) || port < 1 || port > 65535 {
		return nil, errNoHost
	}
	at := hostPort{string(host), port}
	c.mu.Lock()
	st = c.state.Load()
	if st.byHost == nil {
		c.mu.Unlock()
		return nil, errNoHost // an update made it another kind of cluster
	}
	e := st.byHost[at]
	var gone *Endpoint
	if e == nil {
		pe := &plan.Endpoint{Address: net.JoinHostPort(at.host, strconv.Itoa(at.port))}
		k, _ := keyOf(st.plan, pe)
		if !k.tls {
			k.vouched = st.vouched
		}
		e = newEndpoint(c, k)
		e.plan.Store(pe)
		next := *st
		next.byHost = maps.Clone(st.byHost)
		next.endpoints = slices.Clone(st.endpoints)
		if len(next.endpoints) >= passthroughMost {
			gone = slices.MinFunc(next.endpoints, func(a, b *Endpoint) int { return cmp.Compare(a.used.Load(), b.used.Load()) })
			next.forget(c, gone)
		}
		next.byHost[at] = e
		next.endpoints = append(next.endpoints, e)
		c.endpoints[k] = e
		c.state.Store(&next)
	}
	e.used.Store(c.set.clock())
	c.mu.Unlock()
	if gone != nil {
		gone.drain()
	}
	c.set.wake()
	return e, nil
}

// forget takes an endpoint out of a state that is being made. c.mu is held.
func (s *state) forget(c *core, e *Endpoint) {
	delete(s.byHost, hostOf(e.key.address))
	delete(c.endpoints, e.key)
	s.endpoints = slices.DeleteFunc(s.endpoints, func(o *Endpoint) bool { return o == e })
}

// expire forgets endpoints that nobody asked for in a while, and reports whether any are left.
func (c *core) expire() bool {
	if st := c.state.Load(); st.byHost == nil || len(st.endpoints) == 0 {
		return false
	}
	var gone []*Endpoint
	c.mu.Lock()
	next := *c.state.Load()
	now := c.set.clock()
	for _, e := range next.endpoints {
		if now-e.used.Load() >= int64(passthroughIdle) && e.inFlight.Load() == 0 {
			gone = append(gone, e)
		}
	}
	if len(gone) > 0 {
		next.byHost, next.endpoints = maps.Clone(next.byHost), slices.Clone(next.endpoints)
		for _, e := range gone {
			next.forget(c, e)
		}
		c.state.Store(&next)
	}
	left := len(next.endpoints) > 0
	c.mu.Unlock()
	for _, e := range gone {
		e.drain()
	}
	return left
}

// isHost reports whether h can be dialled: an address without a zone, or a name (RFC 1123 section 2.1, and underscores).
func isHost(h []byte) bool {
	if len(h) == 0 || len(h) > 253 {
		return false
	}
	if a, err := netip.ParseAddr(string(h)); err == nil {
		return a.Zone() == ""
	}
	for _, c := range h {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

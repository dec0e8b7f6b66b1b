package upstream

import (
	"errors"
	"math"
	"math/rand/v2"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// Defaults of plan.Outlier (Istio OutlierDetection), and Envoy's max_ejection_time.
const (
	defaultInterval           = 10 * time.Second
	defaultBaseEjection       = 30 * time.Second
	defaultMaxEjectionPercent = 10
	maxEjection               = 300 * time.Second
	defaultWindow             = 10 * time.Second // Linkerd failure accrual
	defaultMinRequests        = 5
)

// Values of Endpoint.trial (plan.Outlier.Probe).
const (
	noTrial  uint32 = iota
	mayTry          // its time is up: the next request that is picked for it is the probe
	isTrying        // the probe is under way; nothing else goes there
)

// report counts how an attempt at an endpoint ended (Envoy "Outlier detection": consecutive 5xx, consecutive gateway failure
// and consecutive local origin failure; Linkerd's success rate).
func (e *Endpoint) report(st *state, o Outcome) {
	p := st.plan.Outlier
	v, gateway, local := judge(p, o)
	if v == unknown || e.trial.Load() != noTrial {
		return
	}
	if p.SplitLocal && local {
		if n := e.locals.Add(1); p.ConsecutiveLocal > 0 && n >= p.ConsecutiveLocal {
			e.cluster.eject(e, "consecutive local errors", n)
			return
		}
	} else {
		reset(&e.locals)
		if v == success {
			reset(&e.fives)
			reset(&e.gateways)
		} else {
			n, g := e.fives.Add(1), uint32(0)
			if gateway {
				g = e.gateways.Add(1)
			} else {
				e.gateways.Store(0)
			}
			switch {
			case p.ConsecutiveGatewayError > 0 && g >= p.ConsecutiveGatewayError:
				e.cluster.eject(e, "consecutive gateway errors", g)
				return
			case p.Consecutive5xx > 0 && n >= p.Consecutive5xx:
				e.cluster.eject(e, "consecutive 5xx", n)
				return
			}
		}
	}
	if p.SuccessRate > 0 {
		e.rated(p, v == success && o.Status != 429) // who asks to be left alone has no success (Linkerd)
	}
}

// reset reads before it writes: on a healthy endpoint the counters' cache lines stay shared.
func reset(n interface {
	Load() uint32
	Store(uint32)
}) {
	if n.Load() != 0 {
		n.Store(0)
	}
}

// rated counts for the success rate.
func (e *Endpoint) rated(p *plan.Outlier, ok bool) {
	length := p.Window.D()
	if length <= 0 {
		length = defaultWindow
	}
	w := e.rate.Load()
	if w == nil || w.length != length {
		w = newWindow(length)
		e.rate.Store(w)
	}
	good := uint32(0)
	if ok {
		good = 1
	}
	n, all := w.add(e.cluster.set.now(), good, 1)
	least := p.MinRequests
	if least == 0 {
		least = defaultMinRequests
	}
	if all >= least && float64(n) < p.SuccessRate*float64(all) {
		e.cluster.eject(e, "success rate", uint32(math.Round(float64(n)*100/float64(all))))
	}
}

type verdict uint8

const (
	unknown verdict = iota // says nothing about the endpoint
	success
	failed
)

// judge says what an outcome means for the endpoint's health: local is set when the endpoint did not say it itself.
func judge(p *plan.Outlier, o Outcome) (v verdict, gateway, local bool) {
	bad := o.Status >= 500
	if p != nil && len(p.Statuses) > 0 {
		bad = false
		for _, r := range p.Statuses {
			bad = bad || o.Status >= r.Min && o.Status <= r.Max
		}
	}
	switch {
	case o.Err == nil && o.Status == 0:
		return unknown, false, false
	case o.Err == nil && !bad, o.Status >= 100 && !bad && errors.Is(o.Err, stream.ErrCancelled):
		return success, false, false
	case o.Err == nil || o.Status >= 100 && bad:
		return failed, o.Status >= 502 && o.Status <= 504, false
	// The client went away, or asked what can't be passed on, or the endpoint said that it did not even look, or had closed the connection
	// before: neither good nor bad.
	case errors.Is(o.Err, stream.ErrCancelled), errors.Is(o.Err, stream.ErrNoForm), errors.Is(o.Err, stream.ErrRefused), errors.Is(o.Err, stream.ErrStale):
		return unknown, false, false
	default:
		return failed, true, true
	}
}

// eject puts an endpoint aside, unless too many are.
func (c *core) eject(e *Endpoint, why string, count uint32) {
	now := c.set.now()
	c.mu.Lock()
	st := c.state.Load()
	o := st.plan.Outlier
	if o == nil || e.ejected.Load() || c.endpoints[e.key] != e {
		c.mu.Unlock()
		return
	}
	aside := 0
	for _, x := range st.endpoints {
		if x.ejected.Load() {
			aside++
		}
	}
	most := uint64(o.MaxEjectionPercent)
	if most == 0 {
		most = defaultMaxEjectionPercent
	}
	if aside > 0 && uint64(aside+1)*100 > most*uint64(len(st.endpoints)) {
		c.mu.Unlock()
		return
	}
	e.ejections++
	lasts := e.putAside(o, now, why)
	c.again()
	c.mu.Unlock()

	c.counted.ejections.Add(1)
	c.set.log.Warn("endpoint ejected", "cluster", c.name, "endpoint", e.Address(), "why", why, "count", count, "for", lasts)
	c.set.wake()
}

// putAside notes an ejection and returns how long it lasts. cluster.mu is held.
func (e *Endpoint) putAside(o *plan.Outlier, now time.Time, why string) time.Duration {
	lasts := ejection(o, e.ejections)
	if o.Jitter > 0 {
		lasts += time.Duration(rand.Float64() * o.Jitter * float64(lasts))
	}
	e.ejected.Store(true)
	e.trial.Store(noTrial)
	e.ejectedAt, e.until, e.why = now, now.Add(lasts), why
	e.fives.Store(0)
	e.gateways.Store(0)
	e.locals.Store(0)
	if w := e.rate.Load(); w != nil {
		w.clear()
	}
	return lasts
}

// ejection returns how long the nth ejection lasts: n times the base, or doubled each time where a probe ends it.
func ejection(o *plan.Outlier, n uint32) time.Duration {
	base := o.BaseEjection.D()
	if base <= 0 {
		base = defaultBaseEjection
	}
	longest := o.MaxEjection.D()
	if longest <= 0 {
		longest = maxEjection
	}
	longest = max(longest, base)
	times := time.Duration(n)
	if o.Probe {
		times = 1 << min(max(n, 1)-1, 40)
	}
	if times > longest/base {
		return longest
	}
	return base * times
}

// sweep lets endpoints back whose time is up: once in every interval, or at once by a probe. It returns when to look again and
// whether there is anything left to sweep for.
func (c *core) sweep(now time.Time) (interval time.Duration, more bool) {
	o := c.state.Load().plan.Outlier
	if o == nil {
		return 0, false
	}
	if interval = o.Interval.D(); interval <= 0 {
		interval = defaultInterval
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	due := !now.Before(c.nextSweep)
	if due {
		c.nextSweep = now.Add(interval)
	}
	st := c.state.Load()
	changed := false
	for _, e := range st.endpoints {
		over := e.ejected.Load() && e.trial.Load() == noTrial && !now.Before(e.until)
		switch {
		case over && o.Probe:
			e.trial.Store(mayTry)
			e.ejected.Store(false)
			changed = true
		case due && over:
			e.back()
			changed = true
			c.set.log.Info("endpoint let back", "cluster", c.name, "endpoint", e.Address())
		case due && !o.Probe && !e.ejected.Load() && e.ejections > 0:
			e.ejections-- // one interval of good health takes back one ejection
		case o.Probe && e.ejected.Load() && e.trial.Load() == noTrial:
			interval = min(interval, max(e.until.Sub(now), keepOften))
		}
		more = more || e.ejected.Load() || e.ejections > 0 && !o.Probe
	}
	if changed {
		c.again()
	}
	return interval, more
}

// try makes a request the probe of an endpoint whose time is up. It reports false when another one is already.
func (c *core) try(e *Endpoint) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.trial.Load() != mayTry {
		return false
	}
	e.trial.Store(isTrying)
	e.ejected.Store(true)
	c.again()
	return true
}

// tried ends a probe.
func (e *Endpoint) tried(v verdict) {
	c := e.cluster
	now := c.set.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.trial.Load() != isTrying {
		return // an update took the detection away
	}
	o := c.state.Load().plan.Outlier
	switch {
	case v == success || o == nil:
		e.ejections = 0
		e.back()
		c.set.log.Info("endpoint let back", "cluster", c.name, "endpoint", e.Address())
	case v == failed:
		e.ejections++
		lasts := e.putAside(o, now, "its probe failed")
		c.counted.ejections.Add(1)
		c.set.log.Warn("endpoint ejected", "cluster", c.name, "endpoint", e.Address(), "why", e.why, "count", e.ejections, "for", lasts)
		c.set.wake()
	default: // that said nothing: the next request tries
		e.trial.Store(mayTry)
		e.ejected.Store(false)
	}
	c.again()
}

// back lets an endpoint be picked again. cluster.mu is held.
func (e *Endpoint) back() {
	e.ejected.Store(false)
	e.trial.Store(noTrial)
	e.fives.Store(0)
	e.gateways.Store(0)
	e.locals.Store(0)
	e.until, e.why = time.Time{}, ""
}

// forgive lets an endpoint back because there is no outlier detection any more. cluster.mu is held.
func (e *Endpoint) forgive() {
	if e.ejected.Load() || e.trial.Load() != noTrial {
		e.back()
	}
	e.ejections = 0
}

package upstream

import (
	"errors"
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
)

// report counts how an attempt at an endpoint ended (Envoy "Outlier detection": consecutive 5xx and consecutive gateway
// failure, with errors of our own side of the connection counted among them).
func (e *Endpoint) report(st *state, o Outcome) {
	failure, gateway := judge(o)
	o5, oGateway := st.plan.Outlier.Consecutive5xx, st.plan.Outlier.ConsecutiveGatewayError
	switch failure {
	case unknown:
	case success:
		// Read before write: on a healthy endpoint the counters' cache lines stay shared.
		if e.fives.Load() != 0 {
			e.fives.Store(0)
		}
		if e.gateways.Load() != 0 {
			e.gateways.Store(0)
		}
	case failed:
		n, g := e.fives.Add(1), uint32(0)
		if gateway {
			g = e.gateways.Add(1)
		} else {
			e.gateways.Store(0)
		}
		switch {
		case oGateway > 0 && g >= oGateway:
			e.cluster.eject(e, "consecutive gateway errors", g)
		case o5 > 0 && n >= o5:
			e.cluster.eject(e, "consecutive 5xx", n)
		}
	}
}

type verdict uint8

const (
	unknown verdict = iota // says nothing about the endpoint
	success
	failed
)

// judge says what an outcome means for the endpoint's health.
func judge(o Outcome) (v verdict, gateway bool) {
	switch {
	case o.Err == nil && o.Status == 0:
		return unknown, false
	case o.Err == nil && o.Status < 500, o.Status >= 100 && o.Status < 500 && errors.Is(o.Err, stream.ErrCancelled):
		return success, false
	case o.Err == nil || o.Status >= 500:
		return failed, o.Status >= 502 && o.Status <= 504
	// The client went away, or the endpoint said that it did not even look: neither good nor bad.
	case errors.Is(o.Err, stream.ErrCancelled), errors.Is(o.Err, stream.ErrRefused):
		return unknown, false
	default:
		return failed, true
	}
}

// eject puts an endpoint aside, unless too many are.
func (c *Cluster) eject(e *Endpoint, why string, count uint32) {
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
	e.ejected.Store(true)
	e.ejectedAt = now
	e.ejections++
	e.fives.Store(0)
	e.gateways.Store(0)
	lasts := ejection(o, e.ejections)
	next := *st
	c.repick(&next)
	c.mu.Unlock()

	c.counted.ejections.Add(1)
	c.set.log.Warn("endpoint ejected", "cluster", c.name, "endpoint", e.Address(), "why", why, "count", count, "for", lasts)
	c.set.wake()
}

// ejection returns how long the nth ejection lasts.
func ejection(o *plan.Outlier, n uint32) time.Duration {
	base := o.BaseEjection.D()
	if base <= 0 {
		base = defaultBaseEjection
	}
	longest := max(maxEjection, base)
	if time.Duration(n) > longest/base {
		return longest
	}
	return base * time.Duration(n)
}

// sweep lets endpoints back whose time is up, once in every interval. It returns the interval and whether there is
// anything left to sweep for.
func (c *Cluster) sweep(now time.Time) (interval time.Duration, more bool) {
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
		switch {
		case due && e.ejected.Load() && now.Sub(e.ejectedAt) >= ejection(o, e.ejections):
			e.ejected.Store(false)
			e.fives.Store(0)
			e.gateways.Store(0)
			changed = true
			c.set.log.Info("endpoint let back", "cluster", c.name, "endpoint", e.Address())
		case due && !e.ejected.Load() && e.ejections > 0:
			e.ejections-- // one interval of good health takes back one ejection
		}
		more = more || e.ejected.Load() || e.ejections > 0
	}
	if changed {
		next := *st
		c.repick(&next)
	}
	return interval, more
}

// forgive lets an endpoint back because there is no outlier detection any more. cluster.mu is held.
func (e *Endpoint) forgive() {
	e.ejected.Store(false)
	e.ejections = 0
	e.fives.Store(0)
	e.gateways.Store(0)
}

// Package limit decides whether a request is within the rate limits that it falls under.
//
// In: the plan.RateLimits of a plan (Build), then, for each request, what it is and the time. Out: it passes, or the rule
// that it passed over and how long to wait. It is pure: the time is an argument, and there is no goroutine.
//
// A bucket is one number, the time at which it would be full again (GCRA, ITU-T I.371: the "theoretical arrival time"),
// so it refills steadily, needs no timer, and costs nothing while nobody asks. Rules for all requests take no lock; rules
// with a bucket for each identity, header value or address keep them in shards, each with a bound: when it is full, the
// bucket that was used least recently goes. State outlives plans: a rule that is found again goes on with its buckets.
//
// What is answered above a limit belongs to internal/proxy/stack.
package limit

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/route"
)

// Set is the limits of one plan. It is immutable but for its buckets; any number of goroutines may use it. A nil Set has
// none.
type Set struct {
	limits map[string]*Limit
}

// Limit is a plan.RateLimit made ready to run.
type Limit struct {
	plan  *plan.RateLimit
	rules []rule
}

type rule struct {
	plan       *plan.RateLimitRule
	conditions []route.Condition // any
	rate       rate
	overrides  map[ident.Identity]rate
	state      *state
	policy     string
}

// rate is how fast a bucket refills, in nanoseconds.
type rate struct {
	each      int64 // time that one request costs; 0: nothing passes
	tolerance int64 // how far ahead of its time a request may come: (capacity − 1) × each
	requests  uint32
}

// Subject is a request that asks to pass.
type Subject struct {
	Request *message.Request
	Peer    ident.Identity // zero: nobody
	Client  netip.Addr
}

// Excess is a request above a limit.
type Excess struct {
	Limit *plan.RateLimit
	Rule  *plan.RateLimitRule
	// Policy names the rule to clients: "all", "identity", "header" or "address", with a number when there are more of them.
	Policy   string
	Requests uint32        // that the rule lets pass in Per, for this client
	Wait     time.Duration // until one more would pass; above zero
}

// Error is a limit that cannot be used, and why.
type Error struct {
	Name string
	Err  error
}

// Error implements error.
func (e *Error) Error() string { return "rate limit " + e.Name + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Build makes the limits of a plan ready to run; it keeps pointers into them. Rules that before has too go on with its
// buckets: those of the same limit, at the same place, that count by the same thing. before may be nil. The error is an *Error.
func Build(limits []plan.RateLimit, before *Set) (*Set, error) {
	s := &Set{limits: make(map[string]*Limit, len(limits))}
	for i := range limits {
		p := &limits[i]
		if s.limits[p.Name] != nil {
			return nil, &Error{p.Name, errors.New("it is there twice")}
		}
		l := &Limit{plan: p, rules: make([]rule, len(p.Rules))}
		old := before.Get(p.Name)
		seen := map[plan.LimitBy]int{}
		for j := range p.Rules {
			r := &l.rules[j]
			if err := r.build(&p.Rules[j]); err != nil {
				return nil, &Error{p.Name, fmt.Errorf("rule %d (%s): %w", j, p.Rules[j].Origin, err)}
			}
			if old != nil && j < len(old.rules) && old.rules[j].plan.By == r.plan.By && old.rules[j].plan.Header == r.plan.Header {
				r.state = old.rules[j].state
			} else {
				r.state = newState()
			}
			if r.policy = string(r.plan.By); r.plan.By == plan.ByAll {
				r.policy = "all"
			}
			if seen[r.plan.By]++; seen[r.plan.By] > 1 {
				r.policy += "-" + strconv.Itoa(seen[r.plan.By])
			}
		}
		s.limits[p.Name] = l
	}
	return s, nil
}

func (r *rule) build(p *plan.RateLimitRule) error {
	r.plan = p
	switch p.By {
	case plan.ByAll, plan.ByIdentity, plan.ByAddress:
	case plan.ByHeader:
		if p.Header == "" {
			return fmt.Errorf("it counts by a header and names none")
		}
	default:
		return fmt.Errorf("it counts by %q, which is not known", p.By)
	}
	if p.Per <= 0 {
		return fmt.Errorf("it has no time in which requests count")
	}
	for i := range p.Matches {
		c, err := route.NewCondition(&p.Matches[i])
		if err != nil {
			return err
		}
		r.conditions = append(r.conditions, c)
	}
	r.rate = newRate(p.Requests, p.Burst, p.Per.D())
	for i := range p.Overrides {
		o := &p.Overrides[i]
		if r.overrides == nil {
			r.overrides = map[ident.Identity]rate{}
		}
		for _, id := range o.Identities {
			r.overrides[id] = newRate(o.Requests, p.Burst, p.Per.D())
		}
	}
	return nil
}

func newRate(requests, burst uint32, per time.Duration) rate {
	if requests == 0 {
		return rate{}
	}
	if burst == 0 {
		burst = requests
	}
	const forever = math.MaxInt64 / 4 // no sum of two of them and a time overflows
	each := min(max(int64(per)/int64(requests), 1), forever)
	tolerance := int64(forever)
	if int64(burst-1) < tolerance/each {
		tolerance = int64(burst-1) * each
	}
	return rate{each: each, tolerance: tolerance, requests: requests}
}

// Get returns a limit by its name; nil when there is none.
func (s *Set) Get(name string) *Limit {
	if s == nil {
		return nil
	}
	return s.limits[name]
}

// Plan returns what the limit was made from.
func (l *Limit) Plan() *plan.RateLimit { return l.plan }

// Take counts a request against every rule that it falls under, and reports whether it is within all of them. One that is
// not is counted nowhere.
func Take(limits []*Limit, now time.Time, s *Subject) (Excess, bool) {
	at := now.UnixNano()
	for i, l := range limits {
		for j := range l.rules {
			r := &l.rules[j]
			if !r.covers(s.Request) {
				continue
			}
			rt := r.rateOf(s)
			wait := r.state.take(r, rt, at, s)
			if wait == 0 {
				continue
			}
			giveBack(limits[:i+1], j, s)
			if rt.each == 0 {
				wait = int64(r.plan.Per)
			}
			return Excess{Limit: l.plan, Rule: r.plan, Policy: r.policy, Requests: rt.requests, Wait: time.Duration(wait)}, false
		}
	}
	return Excess{}, true
}

// giveBack undoes a Take: for all limits but the last, and for rules of the last below n.
func giveBack(limits []*Limit, n int, s *Subject) {
	for i, l := range limits {
		rules := l.rules
		if i == len(limits)-1 {
			rules = rules[:n]
		}
		for j := range rules {
			if r := &rules[j]; r.covers(s.Request) {
				r.state.giveBack(r, r.rateOf(s), s)
			}
		}
	}
}

func (r *rule) covers(req *message.Request) bool {
	if len(r.conditions) == 0 {
		return true
	}
	for i := range r.conditions {
		if r.conditions[i].Holds(req) {
			return true
		}
	}
	return false
}

func (r *rule) rateOf(s *Subject) rate {
	if r.overrides != nil {
		if o, ok := r.overrides[s.Peer]; ok {
			return o
		}
	}
	return r.rate
}

// Step is one rule of a limit and whether a request falls under it.
type Step struct {
	Rule    *plan.RateLimitRule
	Applies bool
	Reason  string // the condition that failed
	// Requests is what the rule lets pass in Per, for the subject.
	Requests uint32
}

// Explain returns the rules of the limit, in order, as Take looks at them. It counts nothing.
func (l *Limit) Explain(s *Subject) []Step {
	out := make([]Step, len(l.rules))
	for i := range l.rules {
		r := &l.rules[i]
		out[i] = Step{Rule: r.plan, Applies: r.covers(s.Request), Requests: r.rateOf(s).requests}
		if !out[i].Applies {
			out[i].Reason = r.conditions[0].Failure(s.Request)
		}
	}
	return out
}

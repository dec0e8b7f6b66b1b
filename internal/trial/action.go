package trial

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/explain"
	"github.com/malha-mesh/malha/internal/ident"
)

// reply compares what a proxy answers itself.
func (j *judge) reply(e *Expectation) {
	a := j.walk.Answer
	if e.Redirect != "" {
		answers := []*explain.Answer{a}
		if a == nil && len(j.walk.Branches) > 0 {
			answers = answers[:0]
			for i := range j.walk.Branches {
				answers = append(answers, j.walk.Branches[i].Answer)
			}
		}
		for _, a := range answers {
			if a == nil || a.Location == "" {
				j.fail("want a redirect to %s, is %s", e.Redirect, j.endings())
				break
			}
			if a.Location != e.Redirect {
				j.fail("want a redirect to %s, is to %s", e.Redirect, a.Location)
			}
		}
	}
	if e.Body != nil {
		switch {
		case a == nil || a.Text != "direct response":
			j.fail("want a direct response, is %s", j.endings())
		case a.Body != *e.Body:
			j.fail("want body %q, is %q", *e.Body, a.Body)
		}
	}
}

// action compares what the rule says.
func (j *judge) action(e *Expectation) {
	if e.Rule == "" && e.Timeout == nil && e.Retries == nil {
		return
	}
	a := j.walk.Action
	if a == nil {
		j.fail("no rule applies: %s", j.endings())
		return
	}
	if e.Rule != "" && a.Name != e.Rule && !isOrigin(a.Origin, e.Rule) {
		origin := a.Origin
		origin.File, origin.Line = "", 0
		j.fail("want rule %s, is %s (%s)", e.Rule, a.Name, origin)
	}
	if e.Timeout != nil && a.Timeout.D() != time.Duration(*e.Timeout) {
		j.fail("want timeout %s, is %s", time.Duration(*e.Timeout), a.Timeout.D())
	}
	if e.Retries != nil {
		n := 0
		if a.Retry != nil {
			n = a.Retry.Attempts
		}
		if n != *e.Retries {
			j.fail("want %d retries, are %d", *e.Retries, n)
		}
	}
}

// isOrigin compares an origin with how a person writes it: without its place, and perhaps without what is deepest.
func isOrigin(o ident.Origin, want string) bool {
	o.File, o.Line = "", 0
	got := o.String()
	rest, ok := strings.CutPrefix(got, want)
	return ok && (rest == "" || rest[0] == ' ' || rest[0] == '.')
}

// sent compares what destinations see.
func (j *judge) sent(e *Expectation) {
	if e.Path == "" && e.Authority == "" && e.MTLS == nil {
		return
	}
	branches := j.walk.Branches
	if e.MTLS != nil && !slices.ContainsFunc(branches, func(b explain.Branch) bool { return len(b.Endpoints) > 0 }) {
		branches = nil // nobody is spoken to, by TLS or without
	}
	if len(branches) == 0 {
		j.fail("it is sent nowhere: %s", j.endings())
		return
	}
	for i := range branches {
		b := &branches[i]
		if e.Path != "" && b.Path != e.Path {
			j.fail("want path %s, is %s", e.Path, b.Path)
		}
		if e.Authority != "" && b.Authority != e.Authority {
			j.fail("want authority %s, is %s", e.Authority, b.Authority)
		}
		if e.MTLS == nil {
			continue
		}
		for k := range b.Endpoints {
			if p := &b.Endpoints[k]; p.MTLS != *e.MTLS {
				j.fail("want mutual TLS %t, is %t to %s", *e.MTLS, p.MTLS, orWord(p.Workload.Name, p.Address))
			}
		}
	}
}

func (j *judge) fault(want *Fault) {
	if want == nil {
		return
	}
	if j.walk.Action == nil || j.walk.Action.Fault == nil {
		j.fail("want a fault, is none")
		return
	}
	f := j.walk.Action.Fault
	if want.Delay != nil && f.Delay.D() != time.Duration(*want.Delay) {
		j.fail("want a delay of %s, is %s", time.Duration(*want.Delay), f.Delay.D())
	}
	if want.DelayPercent != nil && !want.DelayPercent.Holds(f.DelayPercent) {
		j.fail("want %s delayed, are %s %%", want.DelayPercent, number(f.DelayPercent))
	}
	if want.Abort != nil && f.AbortStatus != *want.Abort {
		j.fail("want an abort with %d, is with %d", *want.Abort, f.AbortStatus)
	}
	if want.AbortPercent != nil && !want.AbortPercent.Holds(f.AbortPercent) {
		j.fail("want %s aborted, are %s %%", want.AbortPercent, number(f.AbortPercent))
	}
}

func (j *judge) mirrors(want *map[string]Percentage) {
	if want == nil {
		return
	}
	got := map[string]float64{}
	if j.walk.Action != nil {
		for _, m := range j.walk.Action.Mirrors {
			got[m.Cluster] += m.Percent
		}
	}
	for i := range j.walk.Branches { // what only one destination's requests are copied to
		b := &j.walk.Branches[i]
		for _, m := range b.Mirrors {
			got[m.Cluster] += b.Share * m.Percent
		}
	}
	for _, key := range slices.Sorted(maps.Keys(*want)) {
		sum := 0.0
		for cluster, percent := range got {
			if isService(cluster[strings.LastIndexByte(cluster, '|')+1:], key) {
				sum += percent
				delete(got, cluster)
			}
		}
		if share := (*want)[key]; !share.Holds(sum) {
			j.fail("want %s copied to %s, are %s %%", share, key, number(sum))
		}
	}
	for _, cluster := range slices.Sorted(maps.Keys(got)) {
		j.fail("want no copies to %s, are %s %%", cluster, number(got[cluster]))
	}
}

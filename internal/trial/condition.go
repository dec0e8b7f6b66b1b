package trial

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/explain"
	"github.com/malha-mesh/malha/internal/plan"
)

// entrance compares how a request enters the proxy of its sender.
func (j *judge) entrance(e *Expectation) {
	l := &j.walk.Listener
	if e.Server != "" && !slices.Contains(strings.Split(l.ServerName, ", "), e.Server) {
		j.fail("want server %s, is %s", e.Server, orWord(l.ServerName, "none"))
	}
	if e.TLS != "" {
		is := "no TLS"
		switch {
		case l.ServerName != "" && l.Ends:
			is = string(TLSEnded)
		case l.ServerName != "":
			is = string(TLSPassed)
		}
		if is != string(e.TLS) {
			j.fail("want TLS %s, is %s", e.TLS, is)
		}
	}
}

// crossOrigin compares what the policy of the rule, or of each destination in its place, says of the origin.
func (j *judge) crossOrigin(want bool, of *explain.CORS) {
	policies := []*explain.CORS{of}
	if len(j.walk.Branches) > 0 {
		policies = policies[:0]
		for i := range j.walk.Branches {
			policies = append(policies, cmp.Or(j.walk.Branches[i].CORS, of))
		}
	}
	for _, p := range policies {
		is := "no policy asks"
		if p != nil {
			is = p.Why
		}
		if strings.HasSuffix(is, " is allowed") == want {
			continue
		}
		if want {
			j.fail("want the origin allowed, but %s", is)
		} else {
			j.fail("want the origin refused, but %s", is)
		}
		return
	}
}

// times compares what the rule says about times, and whether its cross-origin policy lets the request in.
func (j *judge) times(e *Expectation) {
	if e.CORS == nil && e.Response == nil && e.Idle == nil && e.PerTry == nil {
		return
	}
	a := j.walk.Action
	if a == nil {
		j.fail("no rule applies: %s", j.endings())
		return
	}
	if e.CORS != nil {
		j.crossOrigin(*e.CORS, a.CORS)
	}
	perTry := plan.Duration(0)
	if a.Retry != nil {
		perTry = a.Retry.PerTry
	}
	for _, t := range []struct {
		what string
		want *manifest.Duration
		is   plan.Duration
	}{{"timeout of the response head", e.Response, a.Response}, {"idle timeout", e.Idle, a.Idle}, {"timeout of an attempt", e.PerTry, perTry}} {
		if t.want != nil && t.is.D() != time.Duration(*t.want) {
			j.fail("want a %s of %s, is %s", t.what, time.Duration(*t.want), t.is.D())
		}
	}
}

// limited compares the rate limits that count the request, on its way out and at its destinations.
func (j *judge) limited(want *[]string) {
	if want == nil {
		return
	}
	var got []string
	note := func(limits []explain.Limit) {
		for i := range limits {
			_, name, _ := strings.Cut(limits[i].Name, "/") // without the kind
			if limits[i].Applies && !slices.Contains(got, name) {
				got = append(got, name)
			}
		}
	}
	note(j.walk.Limits)
	for i := range j.walk.Branches {
		for k := range j.walk.Branches[i].Endpoints {
			if a := j.walk.Branches[i].Endpoints[k].Arrival; a != nil {
				note(a.Limits)
			}
		}
	}
	for _, w := range *want {
		if !slices.ContainsFunc(got, func(g string) bool { return sameName(g, w) }) {
			j.fail("want it counted by rate limit %s, is by %s", w, orWord(strings.Join(got, ", "), "none"))
		}
	}
	for _, g := range got {
		if !slices.ContainsFunc(*want, func(w string) bool { return sameName(g, w) }) {
			j.fail("rate limit %s counts it too", g)
		}
	}
}

// choice compares how an endpoint is chosen.
func (j *judge) choice(e *Expectation) {
	if e.Hash == nil && e.Session == nil && e.Balancer == "" {
		return
	}
	if len(j.walk.Branches) == 0 {
		j.fail("it is sent nowhere: %s", j.endings())
	}
	for i := range j.walk.Branches {
		b := &j.walk.Branches[i]
		if e.Balancer != "" && string(b.Balancer) != e.Balancer {
			j.fail("want balancer %s, is %s", e.Balancer, b.Balancer)
		}
		by := ""
		if b.Key != nil {
			by = b.Key.By
		}
		if e.Hash != nil && by != *e.Hash {
			j.fail("want the endpoint chosen by %s, is by %s", orWord(*e.Hash, "nothing"), orWord(by, "nothing"))
		}
		by = ""
		switch s := b.Session; {
		case s == nil:
		case s.Cookie != nil:
			by = "cookie " + s.Cookie.Name
		default:
			by = "header " + s.Header
		}
		if e.Session != nil && by != *e.Session {
			j.fail("want the endpoint kept by %s, is by %s", orWord(*e.Session, "nothing"), orWord(by, "nothing"))
		}
	}
}

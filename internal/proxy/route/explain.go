package route

import (
	"fmt"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// Step is one candidate that was looked at, and its fate.
type Step struct {
	Host    string       // name of the virtual host; "" for the table's Otherwise
	Index   int          // of the route in the host; -1 for the choice of the host itself
	Name    string       // of the route
	Origin  ident.Origin // of the host or the route
	Matched bool
	Reason  string // the condition that failed and what was there instead, or why it matched
}

// Explain returns the steps to the answer that Find gives for the same request, in order: which host and why, then
// each of its routes up to the one that matched, with the condition that each of the others failed.
func (t *Table) Explain(host []byte, r *message.Request) []Step {
	h := t.Host(host)
	if h == nil {
		return []Step{{Index: -1, Reason: fmt.Sprintf("no host of table %s names %q: %s", t.plan.Name, host, otherwise(t.plan.Otherwise))}}
	}
	rules := h.rules()
	steps := []Step{{Host: rules.plan.Name, Index: -1, Origin: rules.plan.Origin, Matched: true, Reason: t.why(host, h)}}
	for i := range rules.routes {
		rt := &rules.routes[i]
		s := Step{Host: rules.plan.Name, Index: i, Name: rt.plan.Name, Origin: rt.plan.Origin}
		s.Reason = failure(&rt.plan.Match, rt.match, r)
		if s.Reason == "" {
			s.Matched, s.Reason = true, "every condition holds"
			if rt.match == nil {
				s.Reason = "it has no conditions"
			}
		}
		steps = append(steps, s)
		if s.Matched {
			break
		}
	}
	return steps
}

func otherwise(o plan.Otherwise) string {
	switch o {
	case plan.Passthrough:
		return "it is dialled as written"
	case plan.Block:
		return "it is blocked (502)"
	}
	return "not found (404)"
}

// why says which domain of h serves host.
func (t *Table) why(host []byte, h *Host) string {
	switch {
	case t.exact.find(host) >= 0:
		return fmt.Sprintf("host %q is named exactly", host)
	case t.any == h && !strings.Contains(strings.Join(h.Plan().Domains, " "), "*."):
		return fmt.Sprintf("host %q: every host (*)", host)
	}
	best := "*"
	for _, d := range h.Plan().Domains {
		if strings.HasPrefix(d, "*.") && len(host) >= len(d) && strings.HasSuffix(string(host), d[1:]) && len(d) > len(best) {
			best = d
		}
	}
	return fmt.Sprintf("host %q: most specific domain is %q", host, best)
}

// failure names the first condition that does not hold, or "" when all hold. It runs the same matchers as holds, in
// the same order.
func failure(m *plan.Match, c *conditions, r *message.Request) string {
	if c == nil {
		return ""
	}
	x := c.more
	if x == nil {
		x = &rareConditions{}
	}
	for _, s := range []struct {
		what string
		want *match.String
		m    *match.Matcher
		got  []byte
	}{
		{"path", m.Path, &c.path, r.Path}, {"method", m.Method, &c.method, r.Method},
		{"scheme", m.Scheme, &x.scheme, r.Scheme}, {"authority", m.Authority, &x.authority, r.Authority},
	} {
		if !fits(s.m, s.got) {
			return fmt.Sprintf("%s is %q, want %s", s.what, s.got, s.want)
		}
	}
	for i := range x.headers {
		if f := &x.headers[i]; !f.holdsHeader(r) {
			var got []string
			for _, line := range r.Fields {
				if string(line.Name) == f.name {
					got = append(got, fmt.Sprintf("%q", line.Value))
				}
			}
			if one := f.from.of(r); len(one) > 0 {
				got = []string{fmt.Sprintf("%q", one)}
			}
			return fieldFailure("header", &m.Headers[i], strings.Join(got, " and "))
		}
	}
	for i := range x.query {
		if f := &x.query[i]; !f.holdsQuery(r) {
			got := ""
			v, scratch, found := parameter(r.Query, f.name)
			if found {
				got = fmt.Sprintf("%q", v)
			}
			scratch.free()
			return fieldFailure("query parameter", &m.Query[i], got)
		}
	}
	if x.tree != nil && !x.tree.holds(r) {
		return fmt.Sprintf("path %q with method %s does not satisfy %s", r.Path, r.Method, condString(m.Cond))
	}
	return ""
}

func fieldFailure(what string, f *plan.FieldMatch, got string) string {
	is := "is " + got
	if got == "" {
		is = "is absent"
	}
	want := "want "
	if f.Invert {
		want = "want none with "
	}
	return fmt.Sprintf("%s %s %s, %s%s", what, f.Name, is, want, f.Value)
}

func condString(c *plan.Cond) string {
	var parts []string
	if c.Path != nil {
		parts = append(parts, "path "+c.Path.String())
	}
	if c.Method != nil {
		parts = append(parts, "method "+c.Method.String())
	}
	if len(c.All) > 0 {
		parts = append(parts, "all of ("+condList(c.All)+")")
	}
	if len(c.Any) > 0 {
		parts = append(parts, "any of ("+condList(c.Any)+")")
	}
	if c.Not != nil {
		parts = append(parts, "not ("+condString(c.Not)+")")
	}
	if len(parts) == 0 {
		return "anything"
	}
	return strings.Join(parts, " and ")
}

func condList(cs []plan.Cond) string {
	out := make([]string, len(cs))
	for i := range cs {
		out[i] = condString(&cs[i])
	}
	return strings.Join(out, "; ")
}

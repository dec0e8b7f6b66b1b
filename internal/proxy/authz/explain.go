package authz

import (
	"fmt"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
)

// Step is one policy that was asked, and what it said.
type Step struct {
	Policy  string // "namespace/name"
	Action  plan.Action
	DryRun  bool
	Matched bool
	Rule    int          // that matched; -1
	Origin  ident.Origin // of that rule, else of the policy
	Reasons []string     // for each rule that did not match, in order: the condition that failed and what was there instead
}

// Explain returns the policies that Check asks for the same input, in the order in which they are asked: DENY policies up
// to one that matches, ALLOW policies up to one that matches, then what decides nothing (AUDIT and dry-run). It runs the
// same rules as Check.
func (e *Engine) Explain(in *Input) []Step {
	if e == nil {
		return nil
	}
	p := newPeer(in)
	defer p.release()
	steps, stop := ask(nil, e.deny, &p, true)
	if !stop {
		steps, _ = ask(steps, e.allow, &p, true)
	}
	for _, list := range [][]policy{e.audit, e.shadowDeny, e.shadowAllow} {
		steps, _ = ask(steps, list, &p, false)
	}
	return steps
}

// ask appends the steps of a list of policies; with first it stops behind the one that matches.
func ask(steps []Step, list []policy, p *peer, first bool) (_ []Step, stopped bool) {
	for i := range list {
		steps = append(steps, list[i].ask(p))
		if first && steps[len(steps)-1].Matched {
			return steps, true
		}
	}
	return steps, false
}

func (pol *policy) ask(p *peer) Step {
	s := Step{Policy: pol.plan.Name, Action: pol.plan.Action, DryRun: pol.plan.DryRun, Rule: -1, Origin: pol.plan.Origin}
	for i := range pol.rules {
		r := &pol.rules[i]
		if !r.matches(p) {
			s.Reasons = append(s.Reasons, fmt.Sprintf("rule %d: %s", i, r.failure(p)))
			continue
		}
		s.Matched, s.Rule = true, i
		if !r.plan.Origin.IsZero() {
			s.Origin = r.plan.Origin
		}
		return s
	}
	if len(pol.rules) == 0 {
		s.Reasons = []string{"it has no rules, so nothing matches it"}
	}
	return s
}

// failure says what keeps a rule from matching.
func (r *rule) failure(p *peer) string {
	for _, part := range []struct {
		name string
		list []conjunction
	}{{"from", r.from}, {"to", r.to}} {
		if r.one(part.list, p) {
			continue
		}
		why := make([]string, len(part.list))
		for i, c := range part.list {
			why[i] = r.firstFailure(c, p)
		}
		return part.name + ": " + strings.Join(why, "; nor ")
	}
	return "when: " + r.firstFailure(r.when, p)
}

func (r *rule) firstFailure(c conjunction, p *peer) string {
	for i := range c {
		if !r.holds(&c[i], p) {
			return c[i].failure(p)
		}
	}
	return "it holds" // not reached: the conjunction failed
}

var attributeNames = [...]string{
	attrPrincipal: "principal", attrNamespace: "namespace", attrSourceIP: "source address", attrDestinationIP: "destination address",
	attrPort: "port", attrHost: "host", attrMethod: "method", attrPath: "path", attrHeader: "header",
}

// failure says what the attribute is and what it should be.
func (c *condition) failure(p *peer) string {
	name := attributeNames[c.attribute]
	if c.attribute == attrHeader {
		name += " " + c.header
	}
	want := "want " + c.is.String()
	switch {
	case c.is.empty():
		want = "want none of " + c.not.String()
	case !c.not.empty():
		want += " and none of " + c.not.String()
	}
	return name + " " + c.got(p) + ", " + want
}

// got says what the attribute of a peer or request is.
func (c *condition) got(p *peer) string {
	if c.attribute.http() && p.in.Request == nil {
		return "is not known of a TCP connection"
	}
	if c.attribute.identity() && p.in.Peer.IsZero() {
		return "is not known: the peer has shown no certificate"
	}
	switch c.attribute {
	case attrPrincipal:
		return fmt.Sprintf("is %q", p.principal())
	case attrNamespace:
		return fmt.Sprintf("is %q", p.namespace())
	case attrSourceIP:
		return "is " + p.remote.String()
	case attrDestinationIP:
		return "is " + p.local.String()
	case attrPort:
		return fmt.Sprintf("is %d", p.in.Port)
	case attrHost:
		return fmt.Sprintf("is %q", p.in.Request.Authority)
	case attrMethod:
		return fmt.Sprintf("is %q", p.in.Request.Method)
	case attrPath:
		return fmt.Sprintf("is %q", p.in.Request.Path)
	}
	var lines []string
	for _, f := range p.in.Request.Fields {
		if string(f.Name) == c.header {
			lines = append(lines, fmt.Sprintf("%q", f.Value))
		}
	}
	if v := unlisted(c.header, p.in.Request); len(lines) == 0 && v != nil {
		lines = append(lines, fmt.Sprintf("%q", v))
	}
	if len(lines) == 0 {
		return "is absent"
	}
	return "is " + strings.Join(lines, " and ")
}

// String lists the alternatives.
func (v *values) String() string {
	var out []string
	for i := range v.strings {
		value, kind, fold := v.strings[i].Literal()
		out = append(out, match.String{Kind: kind, Value: value, IgnoreCase: fold}.String())
	}
	for _, p := range v.prefixes {
		out = append(out, p.String())
	}
	for _, p := range v.ports {
		out = append(out, fmt.Sprint(p))
	}
	return strings.Join(out, " or ")
}

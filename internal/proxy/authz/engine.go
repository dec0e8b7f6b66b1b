// Package authz decides whether a request or a connection may pass.
//
// In: the plan.Policy values that guard a listener, once for each plan; then, for each request, who asks (the verified
// peer) and the canonical head. Out: a Decision that names the policy and rule it came from. It is pure, holds no
// goroutine, and Check allocates nothing, dry-run findings apart. An Engine is immutable; any number of goroutines may
// use it.
//
// The semantics are those of Istio's AuthorizationPolicy: a DENY policy that matches denies; if any ALLOW policy guards
// the listener one of them must match; AUDIT policies are reported and decide nothing; dry-run policies decide nothing
// and what they would change is reported.
//
// Where knowledge is missing the engine fails closed. "Not foo" is a statement about somebody, and an unauthenticated
// peer is nobody, so a negative condition on the peer (notPrincipals, notNamespaces, notValues of source.principal and
// source.namespace) never makes an ALLOW rule match it, but does make a DENY rule match it. A TCP connection has no HTTP
// attributes: a rule that names any never allows it, while a DENY rule ignores that part and so becomes wider. AUDIT rules
// match as DENY rules do: nobody escapes notice by telling less.
//
// How a denial is answered belongs to internal/proxy/stack (403) and internal/proxy/server (close).
package authz

import (
	"fmt"
	"net/netip"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// Engine is a set of policies made ready to run. It is immutable; a nil Engine allows everything.
type Engine struct {
	deny, allow             []policy // in force
	audit                   []policy
	shadowDeny, shadowAllow []policy // dry-run
}

// Input is what the policies ask about.
type Input struct {
	Peer    ident.Identity   // zero: unauthenticated
	Remote  netip.Addr       // TCP peer
	Local   netip.Addr       // address that the peer connected to
	Port    int              // workload port
	Request *message.Request // nil for TCP
}

// Decision is the answer.
type Decision struct {
	Allow  bool
	Policy string        // "namespace/name" of the policy that decided; "" when none did
	Rule   int           // index in the policy; -1 when none
	Origin *ident.Origin // of the rule that decided, or of the policy; of the first ALLOW policy when none of them matched; else nil
	Detail string        // for the access log, as Istio writes it; "" when allowed
	Audit  string        // the first AUDIT policy that matched
	Shadow *Shadow       // what dry-run policies would change; nil: nothing
}

// Shadow is the decision that would be made if the dry-run policies were in force, where it differs.
type Shadow struct {
	Allow  bool
	Policy string
	Rule   int
	Origin *ident.Origin
	Detail string
}

// DetailNone is the Detail of a denial because no ALLOW policy matched.
const DetailNone = "rbac_access_denied_matched_policy[none]"

// policy is a plan.Policy made ready to run.
type policy struct {
	plan  *plan.Policy
	rules []rule
}

// verdict is where a list of policies matched.
type verdict struct {
	policy *policy
	rule   int
}

// Build makes policies ready to run. It keeps pointers into them; they must not change afterwards. The error names the
// policy that cannot be used: a caller must not go on without it.
func Build(policies []plan.Policy) (*Engine, error) {
	e := &Engine{}
	for i := range policies {
		p := policy{plan: &policies[i]}
		for j := range p.plan.Rules {
			r, err := compileRule(&p.plan.Rules[j], p.plan.Action != plan.Allow)
			if err != nil {
				return nil, fmt.Errorf("policy %s: rule %d %s: %w", p.plan.Name, j, p.plan.Rules[j].Origin, err)
			}
			r.detail = detail(p.plan, j)
			p.rules = append(p.rules, r)
		}
		list := e.list(p.plan)
		if list == nil {
			return nil, fmt.Errorf("policy %s: unknown action %q", p.plan.Name, p.plan.Action)
		}
		*list = append(*list, p)
	}
	return e, nil
}

func (e *Engine) list(p *plan.Policy) *[]policy {
	switch {
	case p.Action == plan.Deny && p.DryRun:
		return &e.shadowDeny
	case p.Action == plan.Deny:
		return &e.deny
	case p.Action == plan.Allow && p.DryRun:
		return &e.shadowAllow
	case p.Action == plan.Allow:
		return &e.allow
	case p.Action == plan.Audit:
		return &e.audit
	}
	return nil
}

// detail spells a rule as Istio does: rbac_access_denied_matched_policy[ns[NS]-policy[NAME]-rule[I]].
func detail(p *plan.Policy, rule int) string {
	n, err := ident.ParseName(p.Name, "")
	if err != nil {
		n.Name = p.Name
	}
	return fmt.Sprintf("rbac_access_denied_matched_policy[ns[%s]-policy[%s]-rule[%d]]", n.Namespace, n.Name, rule)
}

// Check decides. It does not allocate unless a dry-run policy would change the decision.
func (e *Engine) Check(in *Input) Decision {
	if e == nil {
		return Decision{Allow: true, Rule: -1}
	}
	p := newPeer(in)
	defer p.release()
	d := e.enforce(&p)
	if len(e.audit) > 0 {
		if v := find(e.audit, &p); v.policy != nil {
			d.Audit = v.policy.plan.Name
		}
	}
	if len(e.shadowDeny) > 0 || len(e.shadowAllow) > 0 {
		d.Shadow = e.shadow(&p, &d)
	}
	return d
}

func (e *Engine) enforce(p *peer) Decision {
	if v := find(e.deny, p); v.policy != nil {
		return v.decision(false)
	}
	if len(e.allow) == 0 {
		return Decision{Allow: true, Rule: -1}
	}
	if v := find(e.allow, p); v.policy != nil {
		return v.decision(true)
	}
	return unmatched(e.allow)
}

// unmatched denies because no ALLOW policy matched. Who asks why is shown the first of them: what it lacks is what denied.
func unmatched(allow []policy) Decision {
	return Decision{Rule: -1, Origin: &allow[0].plan.Origin, Detail: DetailNone}
}

// shadow returns what would be decided with the dry-run policies in force, or nil when that is what d decided.
func (e *Engine) shadow(p *peer, d *Decision) *Shadow {
	v := find(e.deny, p)
	if v.policy == nil {
		v = find(e.shadowDeny, p)
	}
	var with Decision
	switch {
	case v.policy != nil:
		with = v.decision(false)
	case len(e.allow) == 0 && len(e.shadowAllow) == 0:
		with = Decision{Allow: true, Rule: -1}
	default:
		if v = find(e.allow, p); v.policy == nil {
			v = find(e.shadowAllow, p)
		}
		switch {
		case v.policy != nil:
			with = v.decision(true)
		case len(e.allow) > 0:
			with = unmatched(e.allow)
		default:
			with = unmatched(e.shadowAllow)
		}
	}
	if with.Allow == d.Allow {
		return nil
	}
	return &Shadow{Allow: with.Allow, Policy: with.Policy, Rule: with.Rule, Origin: with.Origin, Detail: with.Detail}
}

// find returns the first policy and rule that match.
func find(list []policy, p *peer) verdict {
	for i := range list {
		for j := range list[i].rules {
			if list[i].rules[j].matches(p) {
				return verdict{&list[i], j}
			}
		}
	}
	return verdict{}
}

func (v verdict) decision(allow bool) Decision {
	r := &v.policy.rules[v.rule]
	d := Decision{Allow: allow, Policy: v.policy.plan.Name, Rule: v.rule, Origin: &r.plan.Origin}
	if d.Origin.IsZero() {
		d.Origin = &v.policy.plan.Origin
	}
	if !allow {
		d.Detail = r.detail
	}
	return d
}

package model

import (
	"maps"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
)

// Codes of delegates that can't stand where they are referred to.
const (
	CodeNestedDelegate  = "MALHA0861" // a delegate that refers to another
	CodeDelegateOutside = "MALHA0862" // a delegate's rule whose conditions are not within those of the rule that refers to it
)

// WithDelegates returns r with the rules of delegates in place of the rules that refer to them (Istio VirtualService,
// HTTPRoute.delegate), and what is wrong with those rules. find returns the delegate of a name that is let out to a
// namespace. Rules that refer to nothing stay, without an action: their requests are answered with 503, rather than by the
// rule behind. A routing that refers to none is returned as it is.
func WithDelegates(r *Routing, find func(name ident.Name, namespace string) (*Routing, bool)) (*Routing, []Diagnostic) {
	if !slices.ContainsFunc(r.HTTP, func(r HTTPRule) bool { return r.Delegate != nil }) {
		return r, nil
	}
	whole := *r
	whole.HTTP = make([]HTTPRule, 0, len(r.HTTP))
	var ds []Diagnostic
	for i := range r.HTTP {
		rule := &r.HTTP[i]
		if rule.Delegate == nil {
			whole.HTTP = append(whole.HTTP, *rule)
			continue
		}
		d, ok := find(*rule.Delegate, r.Name.Namespace)
		if !ok {
			d = nil
		}
		rules, bad := delegated(r, rule, d)
		whole.HTTP, ds = append(whole.HTTP, rules...), append(ds, bad...)
	}
	return &whole, ds
}

// delegated returns what stands in place of a rule of root that refers to a delegate; nil for one that does not exist.
func delegated(root *Routing, rule *HTTPRule, delegate *Routing) ([]HTTPRule, []Diagnostic) {
	at := first(rule.Origin, root.Origin)
	closed := *rule // it has the conditions, and no action
	closed.Delegate, closed.Forward, closed.Redirect, closed.Direct = nil, nil, nil, nil
	if delegate == nil {
		return []HTTPRule{closed}, nil // world.Check says why there is none
	}
	var out []HTTPRule
	var ds []Diagnostic
	for i := range delegate.HTTP {
		leaf := delegate.HTTP[i]
		matches, ok := within(rule.Matches, leaf.Matches)
		if !ok {
			ds = append(ds, Diagnostic{
				Code: CodeDelegateOutside, Severity: Warning, Origin: first(leaf.Origin, delegate.Origin),
				Message: "the rule is not in force for " + root.Origin.Kind + " " + root.Name.String() + ": its conditions are not within those of the rule that refers to it (" + at.String() + ")",
				Hint:    "match a part of what that rule matches: a longer path under its prefix, the same headers and more",
			})
			continue
		}
		leaf.Matches = matches
		if leaf.Delegate != nil {
			ds = append(ds, Diagnostic{
				Code: CodeNestedDelegate, Severity: Error, Origin: first(leaf.Origin, delegate.Origin),
				Message: "a delegate must not refer to another: requests of this rule are answered with 503",
				Hint:    "refer to " + leaf.Delegate.String() + " from a VirtualService with hosts",
			})
			leaf.Delegate, leaf.Forward, leaf.Redirect, leaf.Direct = nil, nil, nil, nil
		}
		out = append(out, inherit(rule, leaf, at))
	}
	return out, ds
}

// inherit fills the gaps of a delegate's rule with what the rule that refers to it says.
func inherit(root *HTTPRule, leaf HTTPRule, at ident.Origin) HTTPRule {
	leaf.Name = joined(root.Name, leaf.Name)
	leaf.Origin = via(leaf.Origin, at)
	for i := range leaf.Matches {
		leaf.Matches[i].Origin = via(leaf.Matches[i].Origin, at)
	}
	if leaf.Rewrite == nil {
		leaf.Rewrite = root.Rewrite
	}
	if leaf.Direct == nil && leaf.Redirect == nil && leaf.Forward == nil {
		leaf.Direct = root.Direct
	}
	if leaf.Timeout == 0 {
		leaf.Timeout = root.Timeout
	}
	if leaf.Response == 0 {
		leaf.Response = root.Response
	}
	if leaf.Idle == 0 {
		leaf.Idle = root.Idle
	}
	if leaf.Retry == nil {
		leaf.Retry = root.Retry
	}
	if leaf.Fault == nil {
		leaf.Fault = root.Fault
	}
	if leaf.Mirrors == nil {
		leaf.Mirrors = root.Mirrors
	}
	if leaf.CORS == nil {
		leaf.CORS = root.CORS
	}
	if none := len(leaf.Headers.Request.Set) + len(leaf.Headers.Request.Add) + len(leaf.Headers.Request.Remove) +
		len(leaf.Headers.Response.Set) + len(leaf.Headers.Response.Add) + len(leaf.Headers.Response.Remove); none == 0 {
		leaf.Headers = root.Headers
	}
	for _, name := range root.Limits { // a limit that somebody set is never lifted by a delegate
		if !slices.Contains(leaf.Limits, name) {
			leaf.Limits = append(slices.Clip(leaf.Limits), name)
		}
	}
	return leaf
}

// joined is the name of a rule or an alternative of a delegate (Istio: root and delegate, joined by "-").
func joined(root, leaf string) string {
	if root == "" || leaf == "" {
		return root + leaf
	}
	return root + "-" + leaf
}

// via says in the origin of a delegate's rule who refers to it.
func via(o, at ident.Origin) ident.Origin {
	if o.IsZero() {
		return o
	}
	at.File, at.Line = "", 0
	o.Rule = strings.TrimSpace(o.Rule + " via " + at.String())
	return o
}

// within returns the alternatives of a delegate's rule, each combined with every alternative of the root's rule that it can
// be within; false when one is within none. Source: Istio, "delegate": the conditions must be a subset of the root's.
func within(root, leaf []HTTPMatch) ([]HTTPMatch, bool) {
	switch {
	case len(root) == 0:
		return slices.Clone(leaf), true
	case len(leaf) == 0:
		return slices.Clone(root), true
	}
	var out []HTTPMatch
	for i := range leaf {
		found := false
		for j := range root {
			if m, ok := combine(&root[j], &leaf[i]); ok {
				out = append(out, m)
				found = true
			}
		}
		if !found {
			return nil, false
		}
	}
	return out, true
}

// combine returns the conditions of leaf within root.
func combine(root, leaf *HTTPMatch) (HTTPMatch, bool) {
	out := *leaf
	out.Name = joined(root.Name, leaf.Name)
	if out.Origin.IsZero() {
		out.Origin = root.Origin
	}
	for _, s := range []struct{ root, leaf, to **match.String }{
		{&root.Path, &leaf.Path, &out.Path}, {&root.Method, &leaf.Method, &out.Method},
		{&root.Scheme, &leaf.Scheme, &out.Scheme}, {&root.Authority, &leaf.Authority, &out.Authority},
	} {
		switch {
		case *s.root == nil:
		case *s.leaf == nil:
			*s.to = *s.root
		case !narrower(**s.root, **s.leaf):
			return out, false
		}
	}
	for _, s := range []struct{ root, leaf, to *[]plan.FieldMatch }{{&root.Headers, &leaf.Headers, &out.Headers}, {&root.Query, &leaf.Query, &out.Query}} {
		fields, ok := fieldsWithin(*s.root, *s.leaf)
		if !ok {
			return out, false
		}
		*s.to = fields
	}
	if out.Cond == nil {
		out.Cond = root.Cond
	} else if root.Cond != nil {
		return out, false // a tree is no condition of VirtualServices, which alone have delegates
	}
	if root.Port != 0 && leaf.Port != 0 && root.Port != leaf.Port ||
		root.SourceNamespace != "" && leaf.SourceNamespace != "" && root.SourceNamespace != leaf.SourceNamespace {
		return out, false
	}
	if out.Port == 0 {
		out.Port = root.Port
	}
	if out.SourceNamespace == "" {
		out.SourceNamespace = root.SourceNamespace
	}
	if len(root.SourceLabels) > 0 {
		labels := maps.Clone(root.SourceLabels)
		for k, v := range leaf.SourceLabels {
			if have, ok := labels[k]; ok && have != v {
				return out, false
			}
			labels[k] = v
		}
		out.SourceLabels = labels
	}
	switch {
	case len(leaf.Gateways) == 0:
		out.Gateways = root.Gateways
	case len(root.Gateways) > 0 && slices.ContainsFunc(leaf.Gateways, func(g string) bool { return !slices.Contains(root.Gateways, g) }):
		return out, false
	}
	return out, true
}

// fieldsWithin returns conditions on headers or query parameters: those of leaf, which must be narrower where they are about
// what root has one about, and the others of root.
func fieldsWithin(root, leaf []plan.FieldMatch) ([]plan.FieldMatch, bool) {
	out := slices.Clip(leaf)
	for i := range root {
		r := &root[i]
		j := slices.IndexFunc(leaf, func(l plan.FieldMatch) bool { return l.Name == r.Name && l.Invert == r.Invert })
		switch {
		case j < 0 || r.Invert: // what must not be there must not be there: both hold
			out = append(out, *r)
		case !narrower(r.Value, leaf[j].Value):
			return nil, false
		}
	}
	return out, true
}

// narrower reports whether every value that satisfies leaf satisfies root, as far as that can be told from the text.
func narrower(root, leaf match.String) bool {
	if root == leaf || root.Kind == match.Present {
		return true
	}
	if leaf.IgnoreCase && !root.IgnoreCase {
		return false
	}
	r, l := root.Value, leaf.Value
	if root.IgnoreCase {
		r, l = strings.ToLower(r), strings.ToLower(l)
	}
	literal := leaf.Kind == match.Exact || leaf.Kind == match.Prefix || leaf.Kind == match.Segment
	switch root.Kind {
	case match.Exact:
		return leaf.Kind == match.Exact && l == r
	case match.Prefix:
		return literal && strings.HasPrefix(l, r)
	case match.Segment:
		r = strings.TrimSuffix(r, "/")
		return (leaf.Kind == match.Exact || leaf.Kind == match.Segment) && (strings.TrimSuffix(l, "/") == r || strings.HasPrefix(l, r+"/"))
	case match.Suffix:
		return (leaf.Kind == match.Exact || leaf.Kind == match.Suffix) && strings.HasSuffix(l, r)
	case match.NonEmpty:
		return leaf.Kind != match.Present && leaf.Kind != match.Regex && l != ""
	}
	return false
}

// first returns the first origin that says something.
func first(a, b ident.Origin) ident.Origin {
	if a.IsZero() {
		return b
	}
	return a
}

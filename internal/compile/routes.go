package compile

import (
	"slices"
	"time"

	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// defaultRoute names a route to which the user gave no name, as Istio's access log does.
const defaultRoute = "default"

// A door is where requests enter: conditions on port and gateway are decided for it.
type door struct {
	port     int             // of the service or server
	gateways map[string]bool // the servers behind an edge listener, by GatewayServer.Ref; nil for a sidecar
}

func (d *door) holds(port int, gateways []string) bool {
	if port != 0 && port != d.port {
		return false
	}
	return len(gateways) == 0 || d.gateways == nil || slices.ContainsFunc(gateways, func(g string) bool { return d.gateways[g] })
}

// takes reports whether a routing is for the door's port.
func (d *door) takes(r *model.Routing) bool { return r.Port == 0 || r.Port == d.port }

// httpRoutes returns the routes of a routing for a door, in order. rest is where those of the first rule that takes every
// request begin, which are the last as nothing behind them could be reached; len(routes) when no rule does.
func (c *compiler) httpRoutes(rules []model.HTTPRule, d *door) (routes []plan.Route, rest int) {
	n := 0
	for i := range rules {
		n += max(1, len(rules[i].Matches))
	}
	routes = make([]plan.Route, 0, n)
	for i := range rules {
		r := &rules[i]
		if len(r.Matches) == 0 {
			return c.variants(routes, r, d), len(routes)
		}
		var made []plan.Route // alternatives of one rule share all but their conditions
		for j := range r.Matches {
			m := &r.Matches[j]
			if !d.holds(m.Port, m.Gateways) {
				continue
			}
			if made == nil {
				c.scratch = c.variants(c.scratch[:0], r, d)
				made = c.scratch
			}
			rest := len(routes)
			routes = alternative(routes, made, r, m)
			if takesAll(&m.Match) {
				return routes, rest
			}
		}
	}
	return routes, len(routes)
}

// alternative adds the routes of a rule for one of its alternatives.
func alternative(routes, made []plan.Route, r *model.HTTPRule, m *model.HTTPMatch) []plan.Route {
	n := len(routes)
	routes = append(routes, made...)
	for i := n; i < len(routes); i++ {
		one := &routes[i]
		one.Match = both(&m.Match, &one.Match)
		if !m.Origin.IsZero() {
			one.Origin = m.Origin
		}
		if r.Name != "" && m.Name != "" {
			one.Name = r.Name + "." + m.Name
		}
	}
	return routes
}

// both returns the conjunction of two conditions. Where each asks about the path, a's stays, as rewrites count from it, and b's
// goes into the tree.
func both(a, b *plan.Match) plan.Match {
	out := *a
	if nothing(b) {
		return out
	}
	var rest plan.Cond
	switch {
	case out.Path == nil:
		out.Path = b.Path
	case b.Path != nil:
		rest.Path = b.Path
	}
	switch {
	case out.Method == nil:
		out.Method = b.Method
	case b.Method != nil:
		rest.Method = b.Method
	}
	out.Headers = append(slices.Clip(a.Headers), b.Headers...)
	out.Query = append(slices.Clip(a.Query), b.Query...)
	if out.Scheme == nil {
		out.Scheme = b.Scheme
	} else if b.Scheme != nil {
		out.Headers = append(out.Headers, plan.FieldMatch{Name: ":scheme", Value: *b.Scheme})
	}
	if out.Authority == nil {
		out.Authority = b.Authority
	} else if b.Authority != nil {
		out.Headers = append(out.Headers, plan.FieldMatch{Name: ":authority", Value: *b.Authority})
	}
	for _, cond := range []*plan.Cond{b.Cond, &rest} {
		switch {
		case cond == nil || cond == &rest && rest.Path == nil && rest.Method == nil:
		case out.Cond == nil:
			one := *cond
			out.Cond = &one
		default:
			out.Cond = &plan.Cond{All: []plan.Cond{*out.Cond, *cond}}
		}
	}
	return out
}

// takesAll reports whether every request satisfies m.
func takesAll(m *plan.Match) bool {
	if m.Path == nil || nothing(m) {
		return nothing(m)
	}
	if !nothing(&plan.Match{Method: m.Method, Scheme: m.Scheme, Authority: m.Authority, Headers: m.Headers, Query: m.Query, Cond: m.Cond}) {
		return false
	}
	switch m.Path.Kind {
	case match.Prefix, match.Segment:
		return m.Path.Value == "/" || m.Path.Value == ""
	case match.Regex:
		return m.Path.Value == ".*" || m.Path.Value == "/.*"
	case match.Present:
		return true
	}
	return false
}

// nothing reports whether m has no conditions.
func nothing(m *plan.Match) bool {
	return m.Path == nil && m.Method == nil && m.Scheme == nil && m.Authority == nil && m.Cond == nil && len(m.Headers)+len(m.Query) == 0
}

// variants adds the routes of a rule without its own conditions: one, unless splits with conditions divide what the rule
// forwards. The last takes what the rule takes.
func (c *compiler) variants(out []plan.Route, r *model.HTTPRule, d *door) []plan.Route {
	splits := c.conditionalSplits(r.Forward)
	if len(splits) == 0 {
		return append(out, c.route(r, d, nil))
	}
	divided := map[string]bool{}
	var add func(i int, cond plan.Match)
	add = func(i int, cond plan.Match) {
		if i == len(splits) {
			route := c.route(r, d, divided)
			route.Match = cond
			out = append(out, route)
			return
		}
		divided[splits[i].Host] = true
		for j := range splits[i].Matches {
			if m := &splits[i].Matches[j]; d.holds(m.Port, nil) {
				add(i+1, both(&cond, &m.Match))
			}
		}
		delete(divided, splits[i].Host)
		add(i+1, cond)
	}
	add(0, plan.Match{})
	return out
}

// route returns the route of a rule, without conditions. divided is the services whose splits count though they have
// conditions: the route is for requests that meet them.
func (c *compiler) route(r *model.HTTPRule, d *door, divided map[string]bool) plan.Route {
	out := plan.Route{
		Name:     r.Name,
		Origin:   r.Origin,
		Redirect: r.Redirect,
		Direct:   r.Direct,
		Rewrite:  r.Rewrite,
		Headers:  r.Headers,
		Timeout:  plan.Duration(r.Timeout),
		Fault:    r.Fault,
		CORS:     r.CORS,
		Response: plan.Duration(r.Response),
		Idle:     plan.Duration(r.Idle),
		Limits:   r.Limits,
	}
	if out.Name == "" {
		out.Name = defaultRoute
	}
	if out.Redirect != nil || out.Direct != nil {
		return out
	}
	out.Forward = c.destinations(c.throughSplits(r.Forward, divided), d.port)
	out.Mirrors = c.mirrors(r.Mirrors, d.port)
	out.Retry = retryOf(r.Retry)
	if out.Forward != nil {
		out.Session = r.Session
	}
	return out
}

// mirrors resolves targets of copies. One that does not resolve gets none.
func (c *compiler) mirrors(targets []model.MirrorDestination, port int) (out []plan.Mirror) {
	for i := range targets {
		if name, ok := c.resolve(&targets[i].Target, port); ok {
			out = append(out, plan.Mirror{Cluster: name, Percent: targets[i].Percent})
		}
	}
	return out
}

// destinations resolves weighted targets. Those of weight 0 get nothing and are left out, unless one stands alone: then
// its weight does not count. One that does not resolve keeps its share, in a cluster without endpoints, for that share to
// fail closed rather than fall to its neighbours; when none resolves there is no destination at all. A target that may not
// be used is answered with its status.
func (c *compiler) destinations(targets []model.WeightedDestination, port int) []plan.Destination {
	var out []plan.Destination
	some := false
	for i := range targets {
		t := &targets[i]
		if t.Weight == 0 && len(targets) > 1 {
			continue
		}
		if t.Status != 0 {
			some = true
			out = append(out, plan.Destination{Weight: t.Weight, Status: t.Status})
			continue
		}
		name, ok := c.resolve(&t.Target, port)
		some = some || ok
		out = append(out, plan.Destination{
			Cluster: name, Weight: t.Weight, Headers: t.Headers, Rewrite: t.Rewrite, Mirrors: c.mirrors(t.Mirrors, port), Redirect: t.Redirect, CORS: t.CORS,
		})
	}
	if !some {
		return nil
	}
	if len(out) == 1 {
		out[0].Weight = 0
	}
	return out
}

// onDefault is when Istio retries if nobody says otherwise: what was not processed. (A program's own 503 is not among it since
// Istio 1.24: the program may have acted on the request before it failed.)
const onDefault = plan.RetryConnectFailure | plan.RetryRefusedStream | plan.RetryGRPCUnavailable | plan.RetryGRPCCancelled

// meshRetry returns the mesh's default retry policy (Istio's: 2 attempts, from 25 ms).
func meshRetry() *plan.Retry {
	return &plan.Retry{
		Attempts: 2, On: onDefault,
		BackoffBase: plan.Duration(25 * time.Millisecond), BackoffMax: plan.Duration(250 * time.Millisecond),
	}
}

// retryOf returns the policy in force: the default when the user gave none, nil when they switched it off.
func retryOf(r *plan.Retry) *plan.Retry {
	if r == nil {
		return meshRetry()
	}
	if r.Attempts <= 0 {
		return nil
	}
	out, def := *r, meshRetry()
	if out.On == 0 {
		out.On = def.On
	}
	if out.BackoffBase == 0 {
		out.BackoffBase, out.BackoffMax = def.BackoffBase, def.BackoffMax
	}
	return &out
}

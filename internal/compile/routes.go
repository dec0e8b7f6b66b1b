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
	gateways map[string]bool // the Gateways behind an edge listener; nil for a sidecar
}

func (d *door) holds(port int, gateways []string) bool {
	if port != 0 && port != d.port {
		return false
	}
	return len(gateways) == 0 || d.gateways == nil || slices.ContainsFunc(gateways, func(g string) bool { return d.gateways[g] })
}

// httpRoutes returns the routes of a routing for a door, in order, and whether the last takes every request. A rule that
// takes every request ends emission: nothing behind it could be reached.
func (c *compiler) httpRoutes(rules []model.HTTPRule, d *door) (routes []plan.Route, complete bool) {
	for i := range rules {
		r := &rules[i]
		if len(r.Matches) == 0 {
			return append(routes, c.route(r, d)), true
		}
		var made *plan.Route // alternatives of one rule share all but their conditions
		for j := range r.Matches {
			m := &r.Matches[j]
			if !d.holds(m.Port, m.Gateways) {
				continue
			}
			if made == nil {
				route := c.route(r, d)
				made = &route
			}
			one := *made
			one.Match = m.Match
			if !m.Origin.IsZero() {
				one.Origin = m.Origin
			}
			if r.Name != "" && m.Name != "" {
				one.Name = r.Name + "." + m.Name
			}
			routes = append(routes, one)
			if takesAll(&m.Match) {
				return routes, true
			}
		}
	}
	return routes, false
}

// takesAll reports whether every request satisfies m.
func takesAll(m *plan.Match) bool {
	if m.Method != nil || m.Scheme != nil || m.Authority != nil || m.Cond != nil || len(m.Headers)+len(m.Query) > 0 {
		return false
	}
	if m.Path == nil {
		return true
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

// route returns the route of a rule, without conditions.
func (c *compiler) route(r *model.HTTPRule, d *door) plan.Route {
	out := plan.Route{
		Name:     r.Name,
		Origin:   r.Origin,
		Redirect: r.Redirect,
		Direct:   r.Direct,
		Rewrite:  r.Rewrite,
		Headers:  r.Headers,
		Timeout:  plan.Duration(r.Timeout),
		Fault:    r.Fault,
	}
	if out.Name == "" {
		out.Name = defaultRoute
	}
	if out.Redirect != nil || out.Direct != nil {
		return out
	}
	out.Forward = c.destinations(r.Forward, d.port)
	for i := range r.Mirrors {
		if name, ok := c.resolve(&r.Mirrors[i].Target, d.port); ok {
			out.Mirrors = append(out.Mirrors, plan.Mirror{Cluster: name, Percent: r.Mirrors[i].Percent})
		}
	}
	out.Retry = retryOf(r.Retry)
	return out
}

// destinations resolves weighted targets. Those of weight 0 get nothing and are left out, unless one stands alone: then
// its weight does not count. One that does not resolve keeps its share, in a cluster without endpoints, for that share to
// fail closed rather than fall to its neighbours; when none resolves there is no destination at all.
func (c *compiler) destinations(targets []model.WeightedDestination, port int) []plan.Destination {
	targets = c.throughSplits(targets)
	var out []plan.Destination
	some := false
	for i := range targets {
		t := &targets[i]
		if t.Weight == 0 && len(targets) > 1 {
			continue
		}
		name, ok := c.resolve(&t.Target, port)
		some = some || ok
		out = append(out, plan.Destination{Cluster: name, Weight: t.Weight, Headers: t.Headers})
	}
	if !some {
		return nil
	}
	if len(out) == 1 {
		out[0].Weight = 0
	}
	return out
}

// onDefault is when Istio retries if nobody says otherwise.
const onDefault = plan.RetryConnectFailure | plan.RetryRefusedStream | plan.RetryGRPCUnavailable | plan.RetryGRPCCancelled | plan.RetryStatusCodes

// meshRetry returns the mesh's default retry policy (Istio's: 2 attempts, 503, from 25 ms).
func meshRetry() *plan.Retry {
	return &plan.Retry{
		Attempts: 2, On: onDefault, StatusCodes: []int{503},
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
		out.On, out.StatusCodes = def.On, def.StatusCodes
	}
	if out.BackoffBase == 0 {
		out.BackoffBase, out.BackoffMax = def.BackoffBase, def.BackoffMax
	}
	return &out
}

package compile

import (
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// freshHost returns the virtual host, without domains, of a service port for requests. A routing for the host wins over a
// TrafficSplit or ServiceProfile; without any the service's own endpoints answer.
func (c *compiler) freshHost(s *model.ScopedService, sp *model.ServicePort) plan.VirtualHost {
	h := plan.VirtualHost{Name: hostPort(s.Host, sp.Port), Service: serviceLabels(s.Service), Origin: s.Origin}
	if routes, origin := c.hostRoutes(s.Host, &door{port: sp.Port}); len(routes) > 0 {
		h.Routes, h.Origin = routes, origin
		h.ByAddress = precedes(c.routings(s.Host), &door{port: sp.Port})
		return h
	}
	if s.Profile != nil {
		h.RetryBudget = s.Profile.RetryBudget
		if len(s.Profile.Routes) > 0 {
			h.Origin = s.Profile.Origin
		}
	}
	h.Routes = c.ownRoutes(s, sp)
	return h
}

// profileAttempts bounds the retries of one request on a route with isRetryable. Linkerd knows only the budget; a bound
// keeps one hopeless request from spending it all.
const profileAttempts = 10

// unsentRetry is the policy of a route whose profile does not call it retryable: only what no server has seen goes again.
func unsentRetry() *plan.Retry {
	r := meshRetry()
	r.On = plan.RetryConnectFailure | plan.RetryRefusedStream
	return r
}

// profileRoutes returns the routes of a ServiceProfile in its order. Requests that match none take the default route.
func profileRoutes(p *model.Profile, forward []plan.Destination) []plan.Route {
	out := make([]plan.Route, 0, len(p.Routes)+1)
	for i := range p.Routes {
		r := &p.Routes[i]
		route := plan.Route{
			Name: r.Name, Profile: r.Name, Origin: r.Origin,
			Match:   plan.Match{Cond: &r.Cond},
			Forward: forward,
			Timeout: plan.Duration(r.Timeout),
			Classes: r.Classes,
			Retry:   unsentRetry(),
		}
		if r.Retryable {
			route.Retry.Attempts = profileAttempts
			route.Retry.On |= plan.RetryFailureClass
		}
		out = append(out, route)
	}
	return out
}

// division returns where the traffic of a service port goes when no VirtualService says: to the dstOverrides of its
// profile, to the backends of its split, or to itself. origin is the object that decided.
func (c *compiler) division(s *model.ScopedService, sp *model.ServicePort) (forward []plan.Destination, origin ident.Origin) {
	if s.Profile != nil {
		if forward = c.backends(s.Profile.Overrides, sp); forward != nil {
			return forward, s.Profile.Origin.At("dstOverrides", 0)
		}
	}
	if s.Split != nil && len(s.Split.Matches) == 0 {
		if forward = c.backends(s.Split.Backends, sp); forward != nil {
			return forward, s.Split.Origin
		}
	}
	return c.destinations([]model.WeightedDestination{{Target: model.Target{Host: s.Host, Port: sp.Port, Origin: s.Origin}}}, sp.Port), s.Origin
}

// backends returns the shares of a split for one port of its root; nil when none has a weight and a port that
// corresponds: the root then answers itself. A backend without such a port is left out (SMI TrafficSplit, "Ports").
func (c *compiler) backends(all []model.SplitBackend, root *model.ServicePort) []plan.Destination {
	return c.destinations(c.backendTargets(all, root), root.Port)
}

func (c *compiler) backendTargets(all []model.SplitBackend, root *model.ServicePort) []model.WeightedDestination {
	var targets []model.WeightedDestination
	for i := range all {
		b := &all[i]
		if b.Weight == 0 {
			continue
		}
		port := root.Port
		if b.Port != 0 {
			port = b.Port // one that the backend does not have fails its share closed
		} else if s := c.services[b.Host]; s != nil {
			var ok bool
			if port, ok = correspondingPort(s.Service, root); !ok {
				continue
			}
		}
		targets = append(targets, model.WeightedDestination{
			Target: model.Target{Host: b.Host, Port: port, Origin: b.Origin}, Weight: b.Weight,
		})
	}
	return targets
}

// correspondingPort returns the port of a backend for a port of the root: that of the same number, else of the same name.
func correspondingPort(s *model.Service, root *model.ServicePort) (int, bool) {
	if _, ok := servicePort(s, root.Port); ok {
		return root.Port, true
	}
	for i := range s.Ports {
		if p := &s.Ports[i]; p.Name != "" && p.Name == root.Name && p.Protocol != ident.UDP {
			return p.Port, true
		}
	}
	return 0, false
}

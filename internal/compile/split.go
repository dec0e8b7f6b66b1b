package compile

import (
	"math"
	"slices"

	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// splitScale is the resolution of shares of shares.
const splitScale = 1000

// whole returns the service that a target is at a gateway; nil for a subset, and on a sidecar: that is asked for the service itself, and
// divides it there (division).
func (c *compiler) whole(t *model.WeightedDestination) *model.ScopedService {
	if c.scope.Gateway == nil || t.Subset != "" || t.Status != 0 {
		return nil
	}
	return c.services[t.Host]
}

// overrides returns the dstOverrides of a service, behind which a split has no effect.
func overrides(s *model.ScopedService) []model.SplitBackend {
	if s.Profile == nil {
		return nil
	}
	return s.Profile.Overrides
}

// conditionalSplits returns the splits with conditions that targets have, each once.
func (c *compiler) conditionalSplits(targets []model.WeightedDestination) []*model.Split {
	var out []*model.Split
	for i := range targets {
		s := c.whole(&targets[i])
		if s != nil && s.Split != nil && len(s.Split.Matches) > 0 && overrides(s) == nil && !slices.Contains(out, s.Split) {
			out = append(out, s.Split)
		}
	}
	return out
}

// throughSplits replaces, at a gateway, each target that is a whole service with dstOverrides or a TrafficSplit by the backends of
// these: a gateway is a client of the service as others are, and no VirtualService of the service's own decides there.
// Sidecars are asked for the service itself, and division has the split then; a split does not lead to another. A split with
// conditions counts where divided names its service.
func (c *compiler) throughSplits(targets []model.WeightedDestination, divided map[string]bool) []model.WeightedDestination {
	backends := func(t *model.WeightedDestination) []model.SplitBackend {
		s := c.whole(t)
		switch {
		case s == nil:
		case overrides(s) != nil:
			return overrides(s)
		case s.Split != nil && (len(s.Split.Matches) == 0 || divided[t.Host]):
			return s.Split.Backends
		}
		return nil
	}
	if !slices.ContainsFunc(targets, func(t model.WeightedDestination) bool { return backends(&t) != nil }) {
		return targets
	}
	var out []model.WeightedDestination
	for i := range targets {
		t := targets[i]
		if len(targets) == 1 {
			t.Weight = 1 // alone, it gets all whatever its weight
		}
		parts := c.splitTarget(&t, backends(&t))
		total := uint64(0)
		for _, p := range parts {
			total += uint64(p.Weight)
		}
		if total == 0 {
			t.Weight = share(t.Weight, 1, 1)
			out = append(out, t)
			continue
		}
		for _, p := range parts {
			p.Weight = share(t.Weight, uint64(p.Weight), total)
			out = append(out, p)
		}
	}
	return out
}

// splitTarget returns the backends of a split as targets for the port that t means, with the split's weights.
func (c *compiler) splitTarget(t *model.WeightedDestination, backends []model.SplitBackend) []model.WeightedDestination {
	root := c.services[t.Host]
	if root == nil || backends == nil {
		return nil
	}
	port := t.Port
	if port == 0 {
		port, _ = onlyPort(root.Service)
	}
	sp, ok := servicePort(root.Service, port)
	if !ok {
		return nil
	}
	targets := c.backendTargets(backends, sp)
	for i := range targets {
		targets[i].Headers, targets[i].Rewrite, targets[i].Mirrors, targets[i].Redirect, targets[i].CORS = t.Headers, t.Rewrite, t.Mirrors, t.Redirect, t.CORS
	}
	return targets
}

// share returns the part of weight that part of total is, at least 1 unless there is none.
func share(weight uint32, part, total uint64) uint32 {
	if weight == 0 || part == 0 {
		return 0
	}
	return uint32(min(max(uint64(weight)*splitScale*part/total, 1), math.MaxUint32))
}

// ownRoutes returns the routes of a service port for which no routing has a rule: those of its profile, its split and its
// defaults.
func (c *compiler) ownRoutes(s *model.ScopedService, sp *model.ServicePort) []plan.Route {
	forward, origin := c.division(s, sp)
	routes := c.undivided(s, forward)
	routes[len(routes)-1].Origin = origin
	if s.Split == nil || len(s.Split.Matches) == 0 || s.Profile != nil && c.backends(s.Profile.Overrides, sp) != nil {
		return routes
	}
	parts := c.backends(s.Split.Backends, sp)
	if parts == nil {
		return routes
	}
	var out []plan.Route
	d := &door{port: sp.Port}
	divided := c.undivided(s, parts)
	divided[len(divided)-1].Origin = s.Split.Origin
	for i := range s.Split.Matches {
		m := &s.Split.Matches[i]
		if !d.holds(m.Port, nil) {
			continue
		}
		for _, r := range divided {
			r.Match = both(&m.Match, &r.Match)
			if m.Name != "" && r.Profile == "" {
				r.Name = m.Name
			}
			out = append(out, r)
		}
		if takesAll(&m.Match) {
			return out
		}
	}
	return append(out, routes...)
}

// undivided returns the routes of a service to some destinations: those of its profile, and one for everything else.
func (c *compiler) undivided(s *model.ScopedService, forward []plan.Destination) []plan.Route {
	rest := plan.Route{Name: defaultRoute, Forward: forward, Retry: meshRetry()}
	if s.Profile != nil && len(s.Profile.Routes) > 0 {
		rest.Retry = unsentRetry()
		return append(profileRoutes(s.Profile, forward), rest)
	}
	if d := s.Defaults; d != nil {
		rest.Timeout, rest.Response, rest.Idle = plan.Duration(d.Timeout), plan.Duration(d.Response), plan.Duration(d.Idle)
		if d.Retry != nil {
			rest.Retry = retryOf(d.Retry)
		}
	}
	return []plan.Route{rest}
}

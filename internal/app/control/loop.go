package control

import (
	"context"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/malha-mesh/malha/internal/compile"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/scope"
	"github.com/malha-mesh/malha/internal/world"
)

// loop compiles what was set: once it has been quiet for a moment, or has waited for long enough. A folder that is
// copied in file by file, or workloads that come up one after the other, are so compiled once and not each.
func (c *Control) loop(ctx context.Context) {
	timer := time.NewTimer(0)
	timer.Stop()
	var first time.Time // when the oldest change that waits was set; zero: none waits
	for {
		select {
		case <-c.wake:
			now := time.Now()
			if first.IsZero() {
				first = now
			}
			timer.Reset(min(c.o.Quiet, c.o.Cap-now.Sub(first)))
		case <-timer.C:
			first = time.Time{}
			c.rebuild()
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// rebuild makes plans of what is set now, and publishes them: of all of it, or, when only parts changed, of these.
func (c *Control) rebuild() {
	c.mu.Lock()
	d, before := c.desired, c.made
	c.desired.pending = nil
	whole := before.world == nil || d.whole > before.generation
	if whole {
		d.instances = maps.Clone(d.instances) // Update changes the maps of c.desired in place
		d.routings, d.groups, d.workloads = maps.Clone(d.routings), maps.Clone(d.groups), maps.Clone(d.workloads)
	}
	c.mu.Unlock()
	next := before
	next.generation = d.generation
	started := time.Now()
	switch {
	case whole:
		c.rebuildAll(&d, &next)
	default:
		for i := range d.pending {
			next.world = c.apply(next.world, &d.pending[i])
		}
		next.config = d.config
	}
	took := time.Since(started)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made = next
	c.work.add(whole, took)
	if whole {
		for name := range c.granted {
			if _, ok := c.desired.identity(name); !ok {
				delete(c.granted, name)
			}
		}
	}
	c.announce()
}

// rebuildAll makes every plan anew whose scope is not what it was.
func (c *Control) rebuildAll(d *desired, next *made) {
	if d.config == nil {
		return
	}
	next.config, next.world = d.config, c.build(d)
	c.memory = compile.Memory{} // what it knows is of objects that are gone
	c.compileAll(next.world)
}

// build returns the moment that is wanted.
func (c *Control) build(d *desired) *world.World {
	instances := make([]model.Instance, 0, len(d.instances))
	for _, name := range slices.SortedFunc(maps.Keys(d.instances), ident.Name.Compare) {
		instances = append(instances, *d.instances[name])
	}
	w := world.Build(d.config, instances, d.gateways)
	var delta model.Delta
	for name, r := range d.routings {
		if r == nil {
			delta.Unrouted = append(delta.Unrouted, name)
		} else {
			delta.Routings = append(delta.Routings, *r)
		}
	}
	for name, g := range d.groups {
		if g == nil {
			delta.Ungrouped = append(delta.Ungrouped, name)
		} else {
			delta.Groups = append(delta.Groups, *g)
		}
	}
	for name, wl := range d.workloads {
		if wl == nil {
			delta.Ended = append(delta.Ended, name)
		} else {
			delta.Workloads = append(delta.Workloads, *wl)
		}
	}
	if len(d.routings)+len(d.groups)+len(d.workloads) > 0 {
		w, _ = w.With(&delta)
	}
	return w
}

// compileAll makes the plan of every proxy of w whose scope is not what it was, and forgets those that are gone.
func (c *Control) compileAll(w *world.World) {
	started, compiled, all := time.Now(), 0, map[ident.Name]bool{}
	for _, node := range w.Nodes() {
		all[node] = true
		if c.compile(w, node) {
			compiled++
		}
	}
	for _, node := range slices.SortedFunc(maps.Keys(c.proxies), ident.Name.Compare) {
		if !all[node] {
			c.forget(node)
		}
	}
	if compiled > 0 {
		c.log.Debug("plans compiled", "proxies", compiled, "of", len(all), "took", time.Since(started))
	}
}

// compile makes the plan of one proxy, when its scope is not what it was, and hands it to the server.
func (c *Control) compile(w *world.World, node ident.Name) bool {
	s, ok := scope.For(w, node)
	if !ok {
		c.forget(node)
		return false
	}
	s.SessionKey = *c.sessionKey.Load()
	old := c.proxies[node] // only the loop writes them: reading needs no lock here
	c.subscribers.put(node, scope.InterestOf(w, node), s)
	if old != nil && old.scope != nil && reflect.DeepEqual(old.scope, s) {
		return false
	}
	p, ds := c.memory.Compile(s)
	made := &proxy{scope: s, plan: p, diagnostics: ds}
	if err := c.server.SetPlan(node, p); err != nil {
		// A plan that cannot be spelled is too large; the proxy keeps what it has, and the next change tries again.
		c.log.Error("cannot send a proxy its plan: it keeps the one before", "proxy", node.String(), "error", err)
		if old == nil {
			return true
		}
		made = &proxy{plan: old.plan, diagnostics: old.diagnostics, stale: old.stale}
	}
	c.publish(node, made)
	return true
}

func (c *Control) publish(node ident.Name, p *proxy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proxies[node] = p
}

// forget ends the plan of a proxy that is gone.
func (c *Control) forget(node ident.Name) {
	if c.proxies[node] == nil {
		return
	}
	c.subscribers.remove(node)
	c.server.RemovePlan(node)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.proxies, node)
}

// apply puts a part in force, and returns the moment after.
func (c *Control) apply(w *world.World, d *model.Delta) *world.World {
	next, change := w.With(d)
	done := map[ident.Name]bool{}
	again := func(node ident.Name) {
		if !done[node] {
			done[node] = true
			c.compile(next, node)
		}
	}
	for _, node := range change.Nodes {
		again(node)
	}
	for _, r := range change.Routings {
		c.subscribers.ofRouting(r, func(node ident.Name) {
			if !done[node] && scope.Sees(next, node, r) {
				again(node)
			}
		})
	}
	for _, host := range change.Services {
		c.moved(next, host, done, again)
	}
	return next
}

// moved tells every proxy that sees a service where its members are now: those not in done, whose whole plan is new already.
func (c *Control) moved(w *world.World, host string, done map[ident.Name]bool, again func(ident.Name)) {
	type group struct {
		endpoints []plan.Endpoints
		nodes     []ident.Name
	}
	var groups []*group
	var rest []ident.Name // that need a whole plan
	c.subscribers.ofService(host, func(node ident.Name) {
		p := c.proxies[node]
		if p == nil || done[node] {
			return
		}
		s, ok := scope.Service(w, node, host)
		if !ok {
			return
		}
		endpoints, ok := compile.Endpoints(&s, p.plan)
		switch {
		case !ok:
			rest = append(rest, node)
			return
		case len(endpoints) == 0:
			return
		}
		c.publish(node, &proxy{plan: p.plan, diagnostics: p.diagnostics, stale: true})
		i := slices.IndexFunc(groups, func(g *group) bool { return reflect.DeepEqual(g.endpoints, endpoints) })
		if i < 0 {
			i = len(groups)
			groups = append(groups, &group{endpoints: endpoints})
		}
		groups[i].nodes = append(groups[i].nodes, node)
	})
	for _, g := range groups {
		for i := range g.endpoints {
			if err := c.server.SetEndpoints(g.endpoints[i], g.nodes); err != nil {
				c.log.Error("cannot send the endpoints of a service: proxies keep those before", "cluster", g.endpoints[i].Cluster, "error", err)
			}
		}
	}
	for _, node := range rest {
		again(node)
	}
}

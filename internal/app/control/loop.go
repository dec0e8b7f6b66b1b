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

// rebuild makes plans of what is set now, and publishes them.
func (c *Control) rebuild() {
	c.mu.Lock()
	d, before := c.desired, c.made
	c.mu.Unlock()
	next := made{generation: d.generation, proxies: before.proxies}
	next.world, next.diagnostics = choose(&d, before.world)
	if next.world != nil {
		next.proxies = c.compile(next.world, before.proxies)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made = next
	for name := range c.granted {
		if _, ok := c.desired.identity(name); !ok {
			delete(c.granted, name)
		}
	}
	c.announce()
}

// choose returns the world to put in force, nil for none yet: that of the wanted configuration, or, when objects in it
// contradict each other, that of the configuration in force with the instances of now. Never half of a change.
func choose(d *desired, inForce *world.World) (*world.World, []model.Diagnostic) {
	if d.config == nil {
		return nil, nil
	}
	w := world.Build(d.config, d.instances, d.gateways)
	ds := world.Check(w)
	switch {
	case !model.HasErrors(ds):
		return w, ds
	case inForce == nil:
		return nil, ds
	}
	return world.Build(inForce.Config(), d.instances, d.gateways), ds
}

// compile makes the plan of every proxy of w whose scope is not what it was, and hands it to the server.
func (c *Control) compile(w *world.World, before map[ident.Name]*proxy) map[ident.Name]*proxy {
	started, compiled := time.Now(), 0
	out := make(map[ident.Name]*proxy, len(before))
	for _, node := range w.Nodes() {
		s, ok := scope.For(w, node)
		if !ok {
			continue
		}
		old := before[node]
		if old != nil && reflect.DeepEqual(old.scope, s) {
			out[node] = old
			continue
		}
		compiled++
		p, ds := compile.Compile(s)
		if err := c.server.SetPlan(node, p); err != nil {
			// A plan that cannot be spelled is too large; the proxy keeps what it has, and the next change tries again.
			c.log.Error("cannot send a proxy its plan: it keeps the one before", "proxy", node.String(), "error", err)
			if old != nil {
				out[node] = &proxy{plan: old.plan, diagnostics: old.diagnostics}
			}
			continue
		}
		out[node] = &proxy{scope: s, plan: p, diagnostics: ds}
	}
	for _, node := range slices.SortedFunc(maps.Keys(before), ident.Name.Compare) {
		if out[node] == nil {
			c.server.RemovePlan(node)
		}
	}
	if compiled > 0 {
		c.log.Debug("plans compiled", "proxies", compiled, "of", len(out), "took", time.Since(started))
	}
	return out
}

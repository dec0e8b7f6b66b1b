package control

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/malha-mesh/malha/internal/compile"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/scope"
	"github.com/malha-mesh/malha/internal/wire/serve"
	"github.com/malha-mesh/malha/internal/world"
)

// Sync says whether a proxy does what the control plane has for it.
type Sync string

// The states.
const (
	Synced Sync = "synced" // it confirmed everything
	Stale  Sync = "stale"  // it is not connected, or something is on its way
	Failed Sync = "error"  // it rejected something, and goes on with what it had
)

// ProxyStatus is how one proxy is.
type ProxyStatus struct {
	Name        ident.Name `json:"name"`
	Role        plan.Role  `json:"role,omitempty"`
	Version     string     `json:"version,omitempty"` // of the proxy program; "" before it first connected
	Connected   bool       `json:"connected"`
	Sync        Sync       `json:"sync"`
	Reason      string     `json:"reason,omitempty"`     // why it is not Synced
	Changed     time.Time  `json:"changed,omitzero"`     // when its plan last changed
	LastAck     time.Time  `json:"lastAck,omitzero"`     // when it last confirmed a change
	CertExpires time.Time  `json:"certExpires,omitzero"` // end of the certificate that it connected with, or was granted here since
	Pieces      int        `json:"pieces"`               // in its plan
}

// Status returns the state of every proxy that has a plan or is connected, sorted by name.
func (c *Control) Status() []ProxyStatus {
	all := c.server.Status()
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]ProxyStatus, 0, len(all))
	for i := range all {
		s := &all[i]
		p := ProxyStatus{
			Name: s.Node, Role: s.Role, Version: s.Version, Connected: !s.Connected.IsZero() && s.Sync != serve.SyncAbsent,
			Changed: s.Since, LastAck: s.Acked, CertExpires: certEnd(s, c.granted[s.Node], c.authority.TTL()), Pieces: s.Pieces,
		}
		if made := c.proxies[s.Node]; made != nil {
			p.Role = made.plan.Node.Role
		}
		p.Sync, p.Reason = syncOf(s)
		out = append(out, p)
	}
	return out
}

// certEnd returns when the certificate of a proxy ends: another replica may have signed the one that it connected with, for another
// time than ours.
func certEnd(s *serve.ProxyStatus, granted time.Time, ttl time.Duration) time.Time {
	if granted.After(s.Connected) {
		return granted.Add(ttl)
	}
	return s.Expires
}

// Work is what compiling took since the start, as time of the clock: whole configurations, and parts of one.
type Work struct {
	Whole, Parts         uint64
	WholeTime, PartsTime time.Duration
}

func (w *Work) add(whole bool, took time.Duration) {
	if whole {
		w.Whole++
		w.WholeTime += took
	} else {
		w.Parts++
		w.PartsTime += took
	}
}

// Work returns what compiling took.
func (c *Control) Work() Work {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.work
}

// Counters returns totals since the start, and what is held now.
func (c *Control) Counters() serve.Counters { return c.server.Counters() }

func syncOf(s *serve.ProxyStatus) (Sync, string) {
	switch s.Sync {
	case serve.SyncSynced:
		return Synced, ""
	case serve.SyncRejected:
		if s.Reason == "" && len(s.Rejected) > 0 {
			return Failed, s.Rejected[0].Error()
		}
		return Failed, s.Reason
	case serve.SyncPending:
		return Stale, "a change is on its way"
	case serve.SyncWaiting:
		return Stale, "connected, and no plan is made for it: no workload or gateway has its name"
	}
	if s.Reason != "" {
		return Stale, "not connected: " + s.Reason
	}
	return Stale, "not connected"
}

// Diagnostics returns what is wrong between the objects in force, and what could not be resolved for single proxies.
func (c *Control) Diagnostics() []model.Diagnostic {
	c.look()
	c.mu.Lock()
	defer c.mu.Unlock()
	type cause struct {
		code   string
		origin ident.Origin
	}
	out := slices.Clone(c.made.diagnostics)
	said := map[cause]bool{}
	for _, d := range out {
		said[cause{d.Code, d.Origin}] = true
	}
	for _, name := range slices.SortedFunc(maps.Keys(c.proxies), ident.Name.Compare) {
		for _, d := range c.proxies[name].diagnostics {
			if k := (cause{d.Code, d.Origin}); !said[k] { // many proxies meet the same reference
				said[k] = true
				out = append(out, d)
			}
		}
	}
	return out
}

// Advise returns what is suspicious in the configuration in force: more than what is wrong with it (Diagnostics).
func (c *Control) Advise() []model.Diagnostic {
	c.mu.Lock()
	w := c.made.world
	c.mu.Unlock()
	if w == nil {
		return nil
	}
	return world.Advise(w)
}

// look finds out what is wrong, if something changed since it was done last: it costs the size of the mesh.
func (c *Control) look() {
	c.mu.Lock()
	w := c.made.world
	done := w == nil || w == c.made.looked
	c.mu.Unlock()
	if done {
		return
	}
	ds := world.Check(w)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made.world == w {
		c.made.diagnostics, c.made.looked = ds, w
	}
}

// Plan returns the plan that was last made for a proxy.
func (c *Control) Plan(node ident.Name) (*plan.Plan, bool) {
	c.mu.Lock()
	p, w := c.proxies[node], c.made.world
	c.mu.Unlock()
	if p == nil {
		return nil, false
	}
	if !p.stale {
		return p.plan, true
	}
	s, ok := scope.For(w, node)
	if !ok {
		return p.plan, true // it is just going
	}
	fresh, _ := compile.Compile(s)
	return fresh, true
}

// Statuses returns what the statuses of the objects of the configuration in force should say.
func (c *Control) Statuses() []model.Status {
	if cfg := c.Config(); cfg != nil {
		return cfg.Statuses
	}
	return nil
}

// Config returns the configuration in force; nil before the first.
func (c *Control) Config() *model.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.made.config
}

// Flush waits until everything that was set before the call is compiled and on its way to proxies.
func (c *Control) Flush(ctx context.Context) error {
	c.mu.Lock()
	want := c.desired.generation
	c.mu.Unlock()
	for {
		c.mu.Lock()
		have, changed := c.made.generation, c.changed
		c.mu.Unlock()
		if have >= want {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for plans to be compiled: %w", ctx.Err())
		}
	}
}

// Synced reports whether each of nodes is connected and does what there is for it, and names one that doesn't.
func (c *Control) Synced(nodes []ident.Name) (missing ident.Name, ok bool) {
	return c.server.Synced(nodes)
}

// WaitSynced waits until everything that was set before the call is in force in each of nodes; without nodes, in every
// proxy that has a plan. The error names one that did not get so far.
func (c *Control) WaitSynced(ctx context.Context, nodes ...ident.Name) error {
	return c.wait(ctx, nodes, c.server.Synced)
}

// WaitRunning waits until each of nodes does of everything that was set before the call what it will: the rest of what a proxy refuses
// a part of is in force.
func (c *Control) WaitRunning(ctx context.Context, nodes ...ident.Name) error {
	return c.wait(ctx, nodes, c.server.Running)
}

func (c *Control) wait(ctx context.Context, nodes []ident.Name, reached func([]ident.Name) (missing ident.Name, ok bool)) error {
	if err := c.Flush(ctx); err != nil {
		return err
	}
	// A proxy that comes back with everything it should have confirms nothing: only looking again shows it.
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		c.mu.Lock()
		want, changed := nodes, c.changed
		if len(want) == 0 {
			want = slices.SortedFunc(maps.Keys(c.proxies), ident.Name.Compare)
		}
		c.mu.Unlock()
		missing, ok := reached(want)
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-look.C:
		case <-ctx.Done():
			reason := "it never connected"
			for _, p := range c.Status() {
				if p.Name == missing && p.Reason != "" {
					reason = p.Reason
				}
			}
			return fmt.Errorf("the proxy of %s is not in sync (%s): %w", missing, reason, ctx.Err())
		}
	}
}

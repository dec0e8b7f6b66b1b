// Package control is the control plane of one mesh: it turns what users wrote and what runs into a plan for each proxy,
// hands the plans out, and signs certificates.
//
// In come configurations (SetConfig) and the facts of the running mesh (SetInstances), whole, or what of them changes (Update),
// from any goroutine, as often as they like; out go plans over the control stream, and Status, Diagnostics, Statuses and Plan
// for tools. Where configurations come from, and what starts proxies, is the caller's part.
//
// A change costs what it touches: an endpoint that comes or goes, one piece for each proxy that sees its service; a rule, the
// plans of those that see it (docs/design/0016-incremental.md). Only a whole new configuration is looked at as a whole.
//
// Goroutines: Run owns two, the loop and the stream's server, and returns when both have ended. The loop alone builds
// worlds and compiles; what it made is published under Control.mu. world, scope and compile do the work and are pure.
package control

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/compile"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/ca"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/serve"
	"github.com/malha-mesh/malha/internal/world"
)

// Options are the choices of a Control. Every one has a default.
type Options struct {
	Listen      string        // host:port of the control stream; default 127.0.0.1 and any free port
	Dir         string        // keeps the root of the certificates; "" in memory
	TrustDomain string        // default ident.DefaultTrustDomain
	CertTTL     time.Duration // lifetime of certificates; default ca.DefaultTTL
	TokenTTL    time.Duration // how long a token can be used; default a year: it ends with this Control at the latest
	Log         *slog.Logger

	// Authority signs; nil: one that is opened in Dir. TrustDomain and CertTTL are then its own.
	Authority *ca.Authority
	// Authenticator says who tokens are from; nil: those of Token, which are of use to nobody else then.
	Authenticator ca.Authenticator

	// ConnectionAge bounds how long a proxy stays connected before it is asked to connect again, to whichever replica; 0: no bound.
	ConnectionAge time.Duration

	Quiet time.Duration // how long nothing must change before it is compiled; default 10 ms
	Cap   time.Duration // how long a change may wait for quiet at most; default 100 ms
}

// Control is a control plane.
type Control struct {
	o         Options
	log       *slog.Logger
	authority *ca.Authority
	tokens    *ca.Tokens
	// sessionKey is that of all sticky sessions. It comes from the authority's key: so sessions last when this process or a proxy is
	// restarted, and control planes beside each other agree.
	sessionKey atomic.Pointer[[]byte]
	listener   net.Listener
	server     *serve.Server
	wake       chan struct{} // one slot: something was set

	// setting is held by whoever sets something, before mu: what is set can be compared with what was without anybody else waiting,
	// which for a whole configuration takes long. desired, but for generation and pending, is written with both held.
	setting sync.Mutex

	mu      sync.Mutex
	desired desired
	made    made
	proxies map[ident.Name]*proxy    // what was made for each; only the loop changes it
	granted map[ident.Name]time.Time // when a proxy was given its last certificate
	work    Work
	changed chan struct{} // closed and replaced whenever made, or the state of a proxy, changes

	subscribers subscribers    // the loop's
	memory      compile.Memory // the loop's
}

// desired is what callers set. Its values do not change any more, its maps do, under Control.mu.
type desired struct {
	generation uint64
	whole      uint64 // generation of the last change that was not an Update
	config     *model.Config
	identities map[ident.Name]ident.Identity // of config's workloads
	instances  map[ident.Name]*model.Instance
	gateways   []model.GatewayInstance
	// What Update changed since the configuration was set.
	routings  map[model.RoutingName]*model.Routing // nil: gone
	groups    map[ident.Name]*model.EndpointGroup  // nil: gone
	workloads map[ident.Name]*model.Workload       // nil: gone
	pending   []model.Delta                        // since the loop looked last
}

// made is what the loop made of it.
type made struct {
	generation uint64
	config     *model.Config
	world      *world.World // of config, and of what Update said since; nil before the first configuration
	// diagnostics are what was found in looked. They are looked for when somebody asks.
	diagnostics []model.Diagnostic
	looked      *world.World
}

// proxy is what was made for one proxy. It is immutable.
type proxy struct {
	scope       *model.Scope // nil: it is not what the plan was made of any more
	plan        *plan.Plan
	diagnostics []model.Diagnostic
	stale       bool // endpoints have changed since plan was made; the server has the new ones
}

// Open opens the certificate authority in o.Dir, making its root when there is none, and the port. Nobody is answered
// before Run.
func Open(o Options) (*Control, error) {
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.TokenTTL == 0 {
		o.TokenTTL = 365 * 24 * time.Hour
	}
	if o.Quiet == 0 {
		o.Quiet = 10 * time.Millisecond
	}
	if o.Cap == 0 {
		o.Cap = 100 * time.Millisecond
	}
	c := &Control{
		o: o, log: o.Log,
		wake:        make(chan struct{}, 1),
		proxies:     make(map[ident.Name]*proxy),
		subscribers: newSubscribers(),
		granted:     make(map[ident.Name]time.Time),
		changed:     make(chan struct{}),
	}
	var err error
	if c.authority = o.Authority; c.authority == nil {
		if c.authority, err = ca.Open(ca.Options{Dir: o.Dir, TrustDomain: o.TrustDomain, TTL: o.CertTTL}); err != nil {
			return nil, fmt.Errorf("opening the certificate authority: %w", err)
		}
	}
	key, err := c.authority.Derive(purposeSessions)
	if err != nil {
		return nil, err
	}
	c.sessionKey.Store(&key)
	if c.tokens, err = ca.NewTokens(nil); err != nil {
		return nil, err
	}
	if o.Authenticator == nil {
		o.Authenticator = c.tokens
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	if c.listener, err = lc.Listen(context.Background(), "tcp", o.Listen); err != nil {
		return nil, fmt.Errorf("opening the port for proxies: %w", err)
	}
	c.server = serve.New(serve.Options{
		Authority: c.authority, Authenticator: o.Authenticator, Admit: c.admit, OnEvent: c.event, Log: o.Log, MaxAge: o.ConnectionAge,
	})
	return c, nil
}

// purposeSessions is what the key of sticky sessions is derived for.
const purposeSessions = "malha: sticky sessions"

// Rekey makes anew what comes from the authority's key, which was replaced.
func (c *Control) Rekey() {
	key, err := c.authority.Derive(purposeSessions)
	if err != nil {
		c.log.Error("sticky sessions keep the key that they have", "error", err)
		return
	}
	c.sessionKey.Store(&key)
	c.setting.Lock()
	defer c.setting.Unlock()
	c.set(func(d *desired) { d.whole, d.pending = d.generation, nil })
}

// Close gives the port back when Run is not going to be called.
func (c *Control) Close() error { return c.listener.Close() }

// Addr returns the host:port of the control stream.
func (c *Control) Addr() string { return c.listener.Addr().String() }

// TrustDomain returns the trust domain of the mesh.
func (c *Control) TrustDomain() string { return c.authority.TrustDomain() }

// RootsPEM returns the certificates that proxies verify the control plane and each other by.
func (c *Control) RootsPEM() []byte { return c.authority.RootsPEM() }

// Roots returns RootsPEM as a pool.
func (c *Control) Roots() *x509.CertPool { return c.authority.Pool() }

// Token returns a secret with which the proxy of a node proves to be that. Write it where only the proxy reads.
func (c *Control) Token(n plan.Node) (string, error) {
	return c.tokens.Issue(ca.Workload{Node: n.Name, Identity: n.Identity, Labels: n.Workload}, c.o.TokenTTL)
}

// SetConfig makes cfg what is in force, whatever is wrong between its objects: what refers to nothing is closed, all else is
// served, and Diagnostics says why. cfg must not change any more. It is all that counts: what Update changed in the configuration
// before is forgotten. Where it differs from that in nothing but what Update could have said, it costs no more than that.
func (c *Control) SetConfig(cfg *model.Config) {
	identities := make(map[ident.Name]ident.Identity, len(cfg.Workloads))
	for i := range cfg.Workloads {
		if _, ok := identities[cfg.Workloads[i].Name]; !ok {
			identities[cfg.Workloads[i].Name] = cfg.Workloads[i].Identity
		}
	}
	c.setting.Lock()
	defer c.setting.Unlock()
	delta, partial := c.desired.difference(cfg)
	c.set(func(d *desired) {
		d.config, d.identities, d.routings, d.groups, d.workloads = cfg, identities, nil, nil, nil
		if !partial {
			d.whole, d.pending = d.generation, nil
			return
		}
		for _, name := range delta.Ended {
			delete(d.instances, name)
			delete(c.granted, name)
		}
		d.pending = append(d.pending, *delta)
	})
}

// SetInstances says where everything runs and what is ready. The slices must not change any more. It finds out what of it is
// new; a caller that knows uses Update.
func (c *Control) SetInstances(instances []model.Instance, gateways []model.GatewayInstance) {
	all := make(map[ident.Name]*model.Instance, len(instances))
	for i := range instances {
		all[instances[i].Workload] = &instances[i]
	}
	c.setting.Lock()
	defer c.setting.Unlock()
	now := &c.desired
	partial := now.config != nil && reflect.DeepEqual(now.gateways, gateways)
	var delta model.Delta
	if partial {
		for name, in := range all {
			if old := now.instances[name]; old == nil || !reflect.DeepEqual(old, in) {
				delta.Instances = append(delta.Instances, *in)
			}
		}
		for name := range now.instances {
			if all[name] == nil {
				delta.Unplaced = append(delta.Unplaced, name)
			}
		}
	}
	c.set(func(d *desired) {
		d.instances, d.gateways = all, gateways
		if !partial {
			d.whole, d.pending = d.generation, nil
			return
		}
		if len(delta.Instances)+len(delta.Unplaced) > 0 {
			d.pending = append(d.pending, delta)
		}
	})
}

// Update changes a part of what SetConfig and SetInstances said. What d holds must not change any more. It is put in force
// whatever is wrong with it: a rule that leads nowhere is closed.
func (c *Control) Update(d model.Delta) {
	c.setting.Lock()
	defer c.setting.Unlock()
	c.set(func(have *desired) {
		have.update(&d)
		for _, name := range d.Ended {
			delete(c.granted, name)
		}
	})
}

func (d *desired) update(delta *model.Delta) {
	if d.instances == nil {
		d.instances = map[ident.Name]*model.Instance{}
	}
	if d.routings == nil {
		d.routings, d.groups = map[model.RoutingName]*model.Routing{}, map[ident.Name]*model.EndpointGroup{}
		d.workloads = map[ident.Name]*model.Workload{}
	}
	if d.identities == nil {
		d.identities = map[ident.Name]ident.Identity{}
	}
	for _, name := range delta.Ended {
		d.workloads[name] = nil
		delete(d.instances, name)
		delete(d.identities, name)
	}
	for i := range delta.Workloads {
		wl := &delta.Workloads[i]
		d.workloads[wl.Name], d.identities[wl.Name] = wl, wl.Identity
	}
	for i := range delta.Instances {
		d.instances[delta.Instances[i].Workload] = &delta.Instances[i]
	}
	for _, name := range delta.Unplaced {
		delete(d.instances, name)
	}
	for i := range delta.Routings {
		r := &delta.Routings[i]
		d.routings[model.RoutingName{Kind: r.Origin.Kind, Name: r.Name}] = r
	}
	for _, name := range delta.Unrouted {
		d.routings[name] = nil
	}
	for i := range delta.Groups {
		d.groups[delta.Groups[i].Name] = &delta.Groups[i]
	}
	for _, name := range delta.Ungrouped {
		d.groups[name] = nil
	}
	d.pending = append(d.pending, *delta)
}

// set changes what is wanted, and wakes the loop; c.setting is held.
func (c *Control) set(change func(*desired)) {
	c.mu.Lock()
	c.desired.generation++
	change(&c.desired)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default: // it is awake already
	}
}

// Run serves proxies and keeps their plans up to date until ctx ends. Its error is ctx's, or why it could not go on.
func (c *Control) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { c.loop(ctx) })
	err := c.server.Run(ctx, c.listener)
	cancel()
	wg.Wait()
	return err
}

// admit refuses a certificate to whom nothing that was set knows by that identity.
func (c *Control) admit(w ca.Workload) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id, ok := c.desired.identity(w.Node); !ok || id != w.Identity {
		return errors.New("no such workload is configured")
	}
	c.granted[w.Node] = time.Now()
	return nil
}

// identity returns who the proxy of a name is wanted to be; false when none is wanted.
func (d *desired) identity(node ident.Name) (ident.Identity, bool) {
	if id, ok := d.identities[node]; ok {
		return id, true
	}
	for i := range d.gateways {
		if d.gateways[i].Name == node {
			return d.gateways[i].Identity, true
		}
	}
	return ident.Identity{}, false
}

// Known waits until the proxy of a name is wanted by what was set, and returns who it is then. A control plane that follows an
// API server hears of a pod about when the pod's proxy asks for its certificate, and not always before.
func (c *Control) Known(ctx context.Context, node ident.Name) (plan.Node, bool) {
	for {
		c.mu.Lock()
		n, ok := c.node(node)
		changed := c.changed
		c.mu.Unlock()
		if ok {
			return n, true
		}
		select {
		case <-changed: // it is announced when made, shortly after it was set
		case <-ctx.Done():
			return plan.Node{}, false
		}
	}
}

// node returns who the proxy of a name is; c.mu is held.
func (c *Control) node(name ident.Name) (plan.Node, bool) {
	d := &c.desired
	id, ok := d.identity(name)
	if !ok {
		return plan.Node{}, false
	}
	if p := c.proxies[name]; p != nil && p.plan.Node.Identity == id {
		return p.plan.Node, true
	}
	for i := range d.gateways {
		if g := &d.gateways[i]; g.Name == name {
			return world.NodeOf(plan.Gateway, name, id, g.Labels), true
		}
	}
	var labels map[string]string
	if d.config != nil {
		for i := range d.config.Workloads {
			if w := &d.config.Workloads[i]; w.Name == name {
				labels = w.Labels
				break
			}
		}
	}
	return world.NodeOf(plan.Sidecar, name, id, labels), true
}

// Changed returns a channel that is closed when what is in force, or the state of a proxy, changes next.
func (c *Control) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// event hears from the server that something happened to a proxy.
func (c *Control) event(serve.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.announce()
}

// announce wakes whoever waits for a change; c.mu is held.
func (c *Control) announce() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Package kube is the configuration source of a cluster: the objects of a Kubernetes API server, and where its pods run.
//
// In come the objects of every kind that config translates and that the API server serves, Services, EndpointSlices,
// Namespaces, Nodes and Pods, and of Secrets and ConfigMaps those that another object names; out goes a Result for every
// change: the whole configuration when objects changed, and only a model.Delta when pods or endpoints did. Each object stands
// alone: what is wrong with one takes only itself out of force, and a kind that may not be read, or is not there, is a
// diagnostic.
//
// What objects mean is config's part: they are translated as those of files are. Only Pods, which no user writes, are read
// here: one with a sidecar becomes a model.Workload and a model.Instance, one with a gateway a model.GatewayInstance, and the
// endpoints of others stay what their EndpointSlice says.
//
// Source.Run owns one goroutine that makes Results and calls the caller's function from it, one at a time, and one goroutine
// for each kind (and each named Secret) that is watched; it returns when all have ended. The watchers write what they hear
// into state, under its mutex, as little of it as is needed.
package kube

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Options are those of New. The clients are one API server's.
type Options struct {
	Client   kubernetes.Interface // Kubernetes' own kinds, and which kinds there are
	Dynamic  dynamic.Interface    // every other kind
	Metadata metadata.Interface   // of CRDs: one that comes or goes is noticed; nil: only every Discover

	// Roots are the namespaces whose policies are those of the whole mesh; nil: malha-system.
	Roots       []string
	TrustDomain string // default ident.DefaultTrustDomain

	Quiet    time.Duration // how long nothing must change before a Result is made; default 10 ms
	Cap      time.Duration // how long a change may wait for quiet at most; default 100 ms
	Discover time.Duration // how often to ask which kinds there are, besides whenever a CRD changes; default 1 minute
	// Patience bounds the wait for a kind that cannot be read: then Results are made without it; default 10 s. Pods, Services,
	// EndpointSlices and Namespaces are always waited for, and at the beginning kinds that refuse somebody something
	// (config.Guards): until they are read nobody would be refused.
	Patience time.Duration

	Log *slog.Logger
}

// Result is what changed.
type Result struct {
	// Config is the whole configuration, each object translated for itself; nil when only pods or endpoints changed. With it
	// Instances and Gateways are all there are.
	Config    *model.Config
	Instances []model.Instance
	Gateways  []model.GatewayInstance
	Objects   []config.Object
	// Diagnostics are of all objects, and of what may not be read. They are only given with Config.
	Diagnostics []model.Diagnostic

	Delta model.Delta // when Config is nil
}

// Sink takes Results: app/control.Control is one, opened with Each.
type Sink interface {
	SetConfig(cfg *model.Config)
	SetInstances(instances []model.Instance, gateways []model.GatewayInstance)
	Update(d model.Delta)
}

// Apply hands a Result to a control plane.
func (r *Result) Apply(to Sink) {
	if r.Config == nil {
		to.Update(r.Delta)
		return
	}
	to.SetConfig(r.Config)
	to.SetInstances(r.Instances, r.Gateways)
}

// RootNamespace is where the mesh itself is installed, and the default of Options.Roots.
const RootNamespace = "malha-system"

// Source reads an API server and follows its changes.
type Source struct {
	o     Options
	log   *slog.Logger
	wake  chan struct{} // one slot: state changed
	again chan struct{} // one slot: a CRD changed
	state state
}

// New returns a Source. It asks nobody anything yet.
func New(o Options) *Source {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Roots == nil {
		o.Roots = []string{RootNamespace}
	}
	if o.TrustDomain == "" {
		o.TrustDomain = ident.DefaultTrustDomain
	}
	for _, d := range []struct {
		to *time.Duration
		v  time.Duration
	}{{&o.Quiet, 10 * time.Millisecond}, {&o.Cap, 100 * time.Millisecond}, {&o.Discover, time.Minute}, {&o.Patience, 10 * time.Second}} {
		if *d.to == 0 {
			*d.to = d.v
		}
	}
	return &Source{o: o, log: o.Log, wake: make(chan struct{}, 1), again: make(chan struct{}, 1), state: newState(o.TrustDomain)}
}

// Synced reports whether a first Result was made: everything that was there when Run began, and may be read, is known.
func (s *Source) Synced() bool {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	return s.state.begun
}

// Run calls changed with a Result for every change until ctx ends. The first one holds everything that there is; while the
// API server is away it waits, and later goes on with what it knows. It never returns another error than ctx's.
func (s *Source) Run(ctx context.Context, changed func(*Result)) error {
	ctx, cancel := context.WithCancel(ctx)
	w := &watchers{source: s, ctx: ctx, running: map[string]*watcher{}}
	defer func() {
		cancel()
		w.wait()
	}()
	w.startOwn()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	discovered := make(chan *kindsFound)
	wg.Go(func() { s.discover(ctx, discovered) })

	quiet := time.NewTimer(time.Hour)
	quiet.Stop()
	defer quiet.Stop()
	var first time.Time // of the changes not acted on yet; zero: none
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case found := <-discovered:
			w.follow(found)
			s.notify()
		case <-s.wake:
			now := time.Now()
			if first.IsZero() {
				first = now
			}
			quiet.Reset(max(0, min(s.o.Quiet, s.o.Cap-now.Sub(first))))
		case <-quiet.C:
			first = time.Time{}
			if r := s.result(w); r != nil {
				changed(r)
			}
		}
	}
}

// notify wakes Run.
func (s *Source) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

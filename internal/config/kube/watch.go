package kube

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/ident"
)

// feed is what becomes of the objects of one watch. Neither function keeps the object.
type feed struct {
	convert func(metav1.Object) (any, error)        // outside of the lock
	put     func(st *state, name ident.Name, v any) // v nil: it is gone; state.mu is held
}

// resource is what one watcher asks the API server for.
type resource struct {
	key      string // unique among watchers
	what     string // for people: "Pods", "VirtualServices (networking.istio.io)"
	plural   string // as RBAC has it: "pods", "virtualservices.networking.istio.io"
	name     string // of the one object that is wanted; "" all
	required bool   // nothing can be said without it
	guards   bool   // its objects refuse somebody something: nothing is said before they are read, unless they may not be
	loss     string // what there is to lose without it; "": what users wrote in it
	like     runtime.Object
	client   any // fakes know no streamed lists, and say so
	list     func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch    func(context.Context, metav1.ListOptions) (watch.Interface, error)
	feed     feed
}

// watcher follows one resource. It is the cache.ReflectorStore of its reflector.
type watcher struct {
	resource
	source *Source
	cancel context.CancelFunc
	done   chan struct{}
	since  time.Time

	// Under state.mu.
	names   map[ident.Name]bool // that are in state
	stopped bool                // it has nothing to say any more

	mu     sync.Mutex
	synced bool
	err    error // of the last question; nil: it was answered
}

// watchers are the watchers of one Run, which alone uses them.
type watchers struct {
	source  *Source
	ctx     context.Context // Run's
	running map[string]*watcher
	ended   []*watcher  // that may still be on their way out
	kinds   *kindsFound // nil: not known yet
}

// start follows a resource, unless it is followed already.
func (w *watchers) start(r resource) {
	if w.running[r.key] != nil {
		return
	}
	s := w.source
	ctx, cancel := context.WithCancel(w.ctx)
	x := &watcher{resource: r, source: s, cancel: cancel, done: make(chan struct{}), since: time.Now(), names: map[ident.Name]bool{}}
	w.running[r.key] = x
	if r.name != "" {
		one := fields.OneTermEqualSelector("metadata.name", r.name).String()
		list, follow := r.list, r.watch
		x.list = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = one
			return list(ctx, o)
		}
		x.watch = func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = one
			return follow(ctx, o)
		}
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			v, err := x.list(ctx, o)
			x.asked(ctx, err)
			return v, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			v, err := x.watch(ctx, o)
			x.asked(ctx, err)
			return v, err
		},
	}
	reflector := cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, r.client), r.like, x,
		cache.ReflectorOptions{Name: r.key, TypeDescription: r.what, Logger: &klog.Logger{}})
	wake := time.AfterFunc(s.o.Patience, s.notify) // then nobody waits for it any longer
	go func() {
		defer close(x.done)
		defer wake.Stop()
		// What fails is told by asked, once. The library's word for the same comes with every attempt.
		reflector.RunWithContext(klog.NewContext(ctx, klog.Logger{}))
	}()
}

// stop ends a watcher, and takes out what it brought.
func (w *watchers) stop(key string) {
	w.source.state.touch(func(st *state) { w.drop(key, st) })
}

// drop is stop with state.mu held.
func (w *watchers) drop(key string, st *state) {
	x := w.running[key]
	x.cancel()
	x.stopped = true
	delete(w.running, key)
	w.ended = append(slices.DeleteFunc(w.ended, func(o *watcher) bool { return o.over() }), x)
	for name := range x.names {
		x.feed.put(st, name, nil)
	}
}

// over reports whether a watcher's goroutine has ended.
func (x *watcher) over() bool {
	select {
	case <-x.done:
		return true
	default:
		return false
	}
}

// wait ends every watcher.
func (w *watchers) wait() {
	for _, x := range w.running {
		x.cancel()
		<-x.done
	}
	for _, x := range w.ended {
		<-x.done
	}
}

// settled reports whether everything that is there is known, or nobody should wait for it any longer.
func (w *watchers) settled() (ready, all bool) {
	ready, all = true, w.kinds != nil
	for _, x := range w.running {
		x.mu.Lock()
		synced, err := x.synced, x.err
		x.mu.Unlock()
		refused := apierrors.IsForbidden(err) || apierrors.IsNotFound(err)
		switch {
		case synced:
		case x.required, x.guards && !refused:
			ready = false
		}
		if !synced && !x.required && !refused && time.Since(x.since) < w.source.o.Patience {
			all = false
		}
	}
	return ready, all
}

// asked notes what became of a question.
func (x *watcher) asked(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	x.mu.Lock()
	before := x.err
	x.err = err
	x.mu.Unlock()
	switch {
	case err != nil && (before == nil || apierrors.ReasonForError(before) != apierrors.ReasonForError(err)):
		d := x.diagnostic(err)
		x.source.log.Warn("cannot read a kind of objects", "kind", x.what, "error", err, "hint", d.Hint)
	case err == nil && before != nil:
		x.source.log.Info("a kind of objects can be read again", "kind", x.what)
	}
	if apierrors.IsForbidden(err) != apierrors.IsForbidden(before) {
		x.source.state.touch(func(st *state) { st.config = true }) // objects come or go by that; an API server that is away takes none
	}
	if (err == nil) != (before == nil) {
		x.source.notify()
	}
}

// Add puts an object in.
func (x *watcher) Add(obj any) error { return x.set(obj) }

// Update puts an object in.
func (x *watcher) Update(obj any) error { return x.set(obj) }

func (x *watcher) set(obj any) error {
	o, ok := obj.(metav1.Object)
	if !ok {
		return fmt.Errorf("a %T is no object", obj)
	}
	v, err := x.feed.convert(o)
	if err != nil {
		x.source.log.Error("cannot read an object", "kind", x.what, "object", nameOf(o).String(), "error", err)
		v = nil
	}
	name := nameOf(o)
	if x.name != "" && name.Name != x.name {
		return nil
	}
	x.put(name, v)
	return nil
}

func (x *watcher) put(name ident.Name, v any) {
	x.source.state.touch(func(st *state) {
		switch {
		case x.stopped:
			return
		case v == nil:
			delete(x.names, name)
		default:
			x.names[name] = true
		}
		x.feed.put(st, name, v)
	})
	x.source.notify()
}

// Delete takes an object out.
func (x *watcher) Delete(obj any) error {
	o, ok := obj.(metav1.Object)
	if !ok {
		return fmt.Errorf("a %T is no object", obj)
	}
	if x.name == "" || o.GetName() == x.name {
		x.put(nameOf(o), nil)
	}
	return nil
}

// Replace puts all objects in that there are, and takes out the others.
func (x *watcher) Replace(list []any, _ string) error {
	type read struct {
		name  ident.Name
		value any
	}
	all := make([]read, 0, len(list))
	now := make(map[ident.Name]bool, len(list))
	for i, obj := range list {
		list[i] = nil // it may be large, and is not needed any more
		o, ok := obj.(metav1.Object)
		if !ok {
			return fmt.Errorf("a %T is no object", obj)
		}
		if x.name != "" && o.GetName() != x.name {
			continue
		}
		v, err := x.feed.convert(o)
		if err != nil {
			x.source.log.Error("cannot read an object", "kind", x.what, "object", nameOf(o).String(), "error", err)
			continue
		}
		if v == nil {
			continue
		}
		all = append(all, read{nameOf(o), v})
		now[nameOf(o)] = true
	}
	x.source.state.touch(func(st *state) {
		if x.stopped {
			return
		}
		for name := range x.names {
			if !now[name] {
				x.feed.put(st, name, nil)
			}
		}
		for i := range all {
			x.feed.put(st, all[i].name, all[i].value)
		}
		x.names = now
	})
	x.mu.Lock()
	x.synced = true
	x.mu.Unlock()
	x.source.notify()
	return nil
}

// Resync does nothing: state is all there is.
func (x *watcher) Resync() error { return nil }

// own returns Kubernetes' own kinds that are always followed.
func (s *Source) own() []resource {
	c := s.o.Client
	core, disc, net := c.CoreV1(), c.DiscoveryV1(), c.NetworkingV1()
	all := []resource{
		{
			what: "Services", plural: "services", required: true, like: &corev1.Service{},
			list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return core.Services("").List(ctx, o)
			},
			watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return core.Services("").Watch(ctx, o)
			},
			feed: feed{convert: readService, put: putService},
		},
		{
			what: "EndpointSlices", plural: "endpointslices.discovery.k8s.io", required: true, like: &discoveryv1.EndpointSlice{},
			list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return disc.EndpointSlices("").List(ctx, o)
			},
			watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return disc.EndpointSlices("").Watch(ctx, o)
			},
			feed: feed{convert: readSlice, put: putSlice},
		},
		{
			what: "Namespaces", plural: "namespaces", required: true, like: &corev1.Namespace{},
			list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return core.Namespaces().List(ctx, o)
			},
			watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return core.Namespaces().Watch(ctx, o)
			},
			feed: objectFeed("v1", "Namespace"),
		},
		{
			what: "Nodes", plural: "nodes", like: &corev1.Node{}, loss: "nothing is known of where endpoints are, and none is preferred for being near",
			list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return core.Nodes().List(ctx, o)
			},
			watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return core.Nodes().Watch(ctx, o)
			},
			feed: feed{convert: readNode, put: putNode},
		},
		{
			what: "Pods", plural: "pods", required: true, like: &corev1.Pod{},
			list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return core.Pods("").List(ctx, o)
			},
			watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return core.Pods("").Watch(ctx, o)
			},
			feed: feed{convert: readPod, put: putPod},
		},
		{
			what: "Ingresses", plural: "ingresses.networking.k8s.io", like: &networkingv1.Ingress{},
			list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return net.Ingresses("").List(ctx, o)
			},
			watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return net.Ingresses("").Watch(ctx, o)
			},
			feed: objectFeed("networking.k8s.io/v1", "Ingress"),
		},
		{
			what: "IngressClasses", plural: "ingressclasses.networking.k8s.io", like: &networkingv1.IngressClass{},
			list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return net.IngressClasses().List(ctx, o)
			},
			watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return net.IngressClasses().Watch(ctx, o)
			},
			feed: objectFeed("networking.k8s.io/v1", "IngressClass"),
		},
	}
	for i := range all {
		all[i].key, all[i].client = all[i].plural, c
	}
	return all
}

// startOwn follows what is always followed.
func (w *watchers) startOwn() {
	for _, r := range w.source.own() {
		w.start(r)
	}
	if w.source.o.Metadata == nil {
		return
	}
	crds := w.source.o.Metadata.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	w.start(resource{
		key: "crds", what: "CustomResourceDefinitions", plural: "customresourcedefinitions.apiextensions.k8s.io",
		loss: "a kind that is installed or removed is noticed " + w.source.o.Discover.String() + " later",
		like: &metav1.PartialObjectMetadata{}, client: w.source.o.Metadata,
		list:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return crds.List(ctx, o) },
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return crds.Watch(ctx, o) },
		feed: feed{
			convert: func(o metav1.Object) (any, error) { return o.GetName(), nil },
			put: func(*state, ident.Name, any) {
				select {
				case w.source.again <- struct{}{}:
				default:
				}
			},
		},
	})
}

// dynamicResource follows a kind that was discovered.
func (s *Source) dynamicResource(k servedKind) resource {
	client := s.o.Dynamic.Resource(k.resource)
	like := &unstructured.Unstructured{}
	like.SetGroupVersionKind(k.resource.GroupVersion().WithKind(k.kind))
	return resource{
		key: k.resource.String(), guards: config.Guards(k.kind), what: k.kind + " (" + k.resource.GroupVersion().String() + ")",
		plural: k.resource.GroupResource().String(), like: like, client: s.o.Dynamic,
		list:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return client.List(ctx, o) },
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return client.Watch(ctx, o) },
		feed:  objectFeed(k.resource.GroupVersion().String(), k.kind),
	}
}

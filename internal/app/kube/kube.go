// Package kube is the control plane on Kubernetes: app/control between the objects of an API server and the proxies of its pods.
//
// In: the API server, through config/kube (what users wrote, and where pods run) and TokenReviews (who asks for a certificate).
// Out: the control stream, webhooks that the caller made, metrics, and into the API server what its objects lack: their statuses,
// the trust bundle in every namespace, the roots of the webhooks, and what Gateways run in.
//
// Every replica reads, compiles, serves and signs; one of them, the leader, writes. Writers compare before they write and look
// again when somebody else did, so the moment at which two replicas believe to lead costs nothing.
//
// Run owns all goroutines: one for each listener, the control plane's, the source's, one that tells the writers what to write, and
// while it leads one for each writer. It returns after all of them. docs/kubernetes.md has the picture and what happens when one of
// the parts is away.
package kube

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"github.com/malha-mesh/malha/internal/app/control"
	source "github.com/malha-mesh/malha/internal/config/kube"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/ca"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/world"
)

// Clients speak to one API server.
type Clients struct {
	Kubernetes kubernetes.Interface
	Dynamic    dynamic.Interface
	Metadata   metadata.Interface
	Mapper     meta.ResettableRESTMapper
	// Reviews asks for TokenReviews: apart, so that a thousand pods that start do not wait behind statuses. nil: Kubernetes.
	Reviews kubernetes.Interface
}

// Options are the choices of a control plane. All but the addresses have a default.
type Options struct {
	Control string // host:port of the control stream
	Webhook string // host:port of the webhooks; "" none
	Monitor string // host:port of metrics and health; "" none
	Debug   string // host:port of /debug, which has no authentication: of loopback; "" none

	Namespace   string // where the mesh is installed; default source.RootNamespace
	Replica     string // this replica, among the others; default the host's name
	Roots       []string
	TrustDomain string
	CertTTL     time.Duration
	// ConnectionAge bounds how long a proxy stays connected to one replica: serve.Options.MaxAge.
	ConnectionAge time.Duration
	Version       string

	// Webhooks answers what the API server asks on Webhook; nil: nothing does.
	Webhooks http.Handler
	Answers  *Answers // what Webhooks counts, for the metrics; nil: nothing

	ProxyImage    string // of Gateways
	PullPolicy    string // of their pods; default the cluster's
	ProxyLogLevel string
	// NoGateways leaves Gateways of our class without a Deployment: whoever installed it took the right away.
	NoGateways bool

	// Linger is how long everything is still served after the end was asked for, unready: whoever leads traffic here hears of it
	// meanwhile. 0: not at all.
	Linger time.Duration
	Log    *slog.Logger
}

func (o *Options) defaults() {
	if o.Namespace == "" {
		o.Namespace = source.RootNamespace
	}
	if o.TrustDomain == "" {
		o.TrustDomain = ident.DefaultTrustDomain
	}
	if o.Roots == nil {
		o.Roots = []string{o.Namespace}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// Server is the control plane of a cluster.
type Server struct {
	o       Options
	clients Clients
	log     *slog.Logger
	started time.Time

	listeners map[string]net.Listener // by what is served there
	authority atomic.Pointer[ca.Authority]
	plane     atomic.Pointer[control.Control]
	source    *source.Source
	leading   atomic.Bool
	ending    atomic.Bool

	told     *troubles
	statuses *statuses
	gateways *gateways
	fresh    chan struct{} // one slot: there is a new Result

	mu          sync.Mutex
	last        *source.Result // with a configuration
	diagnostics []model.Diagnostic
	said        map[string]bool      // diagnostics that were logged
	young       map[string]time.Time // tell's own: when what may pass by itself was met first
}

// Open opens the ports. Nobody is answered before Run.
func Open(clients Clients, o Options) (*Server, error) {
	o.defaults()
	if clients.Reviews == nil {
		clients.Reviews = clients.Kubernetes
	}
	s := &Server{
		o: o, clients: clients, log: o.Log, started: time.Now(), listeners: map[string]net.Listener{}, fresh: make(chan struct{}, 1), said: map[string]bool{}, young: map[string]time.Time{}, told: newTroubles(o.Log),
		source: source.New(source.Options{
			Client: clients.Kubernetes, Dynamic: clients.Dynamic, Metadata: clients.Metadata, Roots: o.Roots, TrustDomain: o.TrustDomain, Log: o.Log,
		}),
		statuses: newStatuses(clients.Dynamic, clients.Mapper, o.Log),
	}
	s.statuses.told = s.told
	s.gateways = &gateways{
		o: &s.o, client: clients.Kubernetes, dynamic: clients.Dynamic, mapper: clients.Mapper, log: o.Log, told: s.told,
		report: s.statuses.setGateways, wake: make(chan struct{}, 1),
	}
	webhook := o.Webhook
	if o.Webhooks == nil {
		webhook = ""
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	for _, l := range []struct{ what, addr string }{{"webhooks", webhook}, {"monitor", o.Monitor}, {"debug", o.Debug}} {
		if l.addr == "" {
			continue
		}
		ln, err := lc.Listen(context.Background(), "tcp", l.addr)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("opening the port of %s: %w", l.what, err), s.Close())
		}
		s.listeners[l.what] = ln
	}
	return s, nil
}

// Close gives the ports back when Run is not going to be called.
func (s *Server) Close() error {
	var all []error
	for _, ln := range s.listeners {
		all = append(all, ln.Close())
	}
	return errors.Join(all...)
}

// Addr returns the host:port of "webhooks", "monitor", "debug" or, once it is served, "control"; "" none.
func (s *Server) Addr(what string) string {
	if what == "control" {
		if p := s.plane.Load(); p != nil {
			return p.Addr()
		}
		return ""
	}
	if ln := s.listeners[what]; ln != nil {
		return ln.Addr().String()
	}
	return ""
}

// Run serves until ctx ends, and for Options.Linger after that. Its error is ctx's, or why it could not go on.
func (s *Server) Run(ctx context.Context) error {
	asked, fail := context.WithCancelCause(ctx) // until the end is asked for, or a part fails
	defer fail(nil)
	serving, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	stop := context.AfterFunc(ctx, func() {
		s.ending.Store(true)
		if s.o.Linger > 0 && s.Ready() == nil {
			select {
			case <-serving.Done():
			case <-time.After(s.o.Linger):
			}
		}
		end()
	})
	defer stop()
	var wg sync.WaitGroup
	part := func(ctx context.Context, what string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				fail(fmt.Errorf("%s: %w", what, err))
				end()
			}
		})
	}
	if ln := s.listeners["monitor"]; ln != nil {
		part(serving, "metrics and health", func(ctx context.Context) error { return serveHTTP(ctx, ln, s.monitor(), nil) })
	}
	if ln := s.listeners["debug"]; ln != nil {
		part(serving, "debug", func(ctx context.Context) error { return serveHTTP(ctx, ln, s.debug(), nil) })
	}
	part(serving, "control plane", func(serving context.Context) error { return s.serve(asked, serving, part) })
	wg.Wait()
	return context.Cause(asked) // the first failure, which ended the others, or ctx's
}

// serve is Run once there is an API server that lets it know what to sign with. asked ends when the end is asked for or a part
// failed, serving when the end has come.
func (s *Server) serve(asked, serving context.Context, part func(context.Context, string, func(context.Context) error)) error {
	authority, material, err := openAuthority(asked, s.clients.Kubernetes, &s.o, s.log, s.told)
	if err != nil {
		if ln := s.listeners["webhooks"]; ln != nil {
			_ = ln.Close()
		}
		return nil // only the end of asked ends it
	}
	root := newRotation(s.clients.Kubernetes, s.o.Namespace, authority, material, s.told, s.log)
	root.leading = s.leading.Load
	root.look(asked) // it may be in the middle of being replaced
	s.authority.Store(authority)
	known := func(ctx context.Context, name ident.Name) (n plan.Node, ok bool) {
		if p := s.plane.Load(); p != nil {
			return p.Known(ctx, name)
		}
		return n, false
	}
	plane, err := control.Open(control.Options{
		Listen: s.o.Control, Authority: authority, Log: s.log, ConnectionAge: s.o.ConnectionAge,
		Authenticator: &reviewer{client: s.clients.Reviews, trustDomain: s.o.TrustDomain, told: s.told, known: known},
	})
	if err != nil {
		return err
	}
	s.plane.Store(plane)
	part(serving, "control stream", plane.Run)
	part(serving, "configuration", func(ctx context.Context) error { return s.source.Run(ctx, s.take) })
	part(serving, "diagnostics", s.tell)
	if ln := s.listeners["webhooks"]; ln != nil {
		names := []string{"malhad." + s.o.Namespace + ".svc", "malhad." + s.o.Namespace + ".svc.cluster.local"}
		cert := &certificates{authority: authority, names: names, now: time.Now}
		part(serving, "webhooks", func(ctx context.Context) error {
			return serveHTTP(ctx, ln, s.o.Webhooks, &tls.Config{GetCertificate: cert.certificate, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}})
		})
	}
	root.rekeyed = plane.Rekey
	part(serving, "the root", root.run)
	part(asked, "leader election", func(ctx context.Context) error {
		return elect(ctx, s.clients.Kubernetes, s.o.Namespace, s.o.Replica, s.log, s.told, func(ctx context.Context) {
			s.leading.Store(true)
			defer s.leading.Store(false)
			var wg sync.WaitGroup
			wg.Go(func() {
				root.each(ctx, func(ctx context.Context, roots []byte) {
					(&bundles{client: s.clients.Kubernetes, roots: roots, log: s.log, told: s.told}).run(ctx)
				})
			})
			wg.Go(func() {
				root.each(ctx, func(ctx context.Context, roots []byte) {
					(&webhooks{client: s.clients.Kubernetes, roots: roots, log: s.log, told: s.told}).run(ctx)
				})
			})
			wg.Go(func() { s.statuses.run(ctx) })
			wg.Go(func() {
				(&ingresses{client: s.clients.Kubernetes, log: s.log, told: s.told, report: s.statuses.setDoors}).run(ctx)
			})
			if !s.o.NoGateways {
				wg.Go(func() { s.gateways.run(ctx) })
			}
			wg.Wait()
		})
	})
	return nil
}

// take puts what changed in force. It runs in the source's goroutine.
func (s *Server) take(r *source.Result) {
	r.Apply(s.plane.Load())
	if r.Config == nil {
		return
	}
	s.mu.Lock()
	s.last = r
	s.mu.Unlock()
	poke(s.fresh)
}

// tell finds out what is to be said about each new configuration, once it is in force, and says it to the log and the writers.
func (s *Server) tell(ctx context.Context) error {
	plane := s.plane.Load()
	again := time.NewTimer(time.Hour) // when something is no longer young
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.fresh:
		case <-again.C:
		}
		s.mu.Lock()
		r := s.last
		s.mu.Unlock()
		if r == nil {
			continue
		}
		if err := plane.Flush(ctx); err != nil {
			return err
		}
		ds := append(append([]model.Diagnostic(nil), r.Diagnostics...), plane.Diagnostics()...)
		ds, wait := s.grown(ds, time.Now())
		again.Reset(wait)
		s.mu.Lock()
		s.diagnostics = ds
		s.mu.Unlock()
		s.say(ds)
		s.statuses.set(verdicts{objects: r.Objects, statuses: r.Config.Statuses, diagnostics: ds})
		s.gateways.set(r.Config, r.Objects)
		if s.o.NoGateways {
			s.statuses.setGateways(unmade(r.Config, r.Gateways))
		}
	}
}

// infancy is how long what may pass by itself has to last before it is told: a Service is written before its pods, as a rule.
const infancy = 30 * time.Second

// grown returns the diagnostics without those that may pass by themselves and are too young yet, and when to look again.
func (s *Server) grown(ds []model.Diagnostic, now time.Time) (told []model.Diagnostic, again time.Duration) {
	again = time.Hour
	met := map[string]time.Time{}
	told = slices.DeleteFunc(ds, func(d model.Diagnostic) bool {
		if d.Code != world.CodeNoWorkload {
			return false
		}
		key := d.Code + d.Origin.String()
		since, known := s.young[key]
		if !known {
			since = now
		}
		met[key] = since
		left := infancy - now.Sub(since)
		if left > 0 {
			again = min(again, left)
		}
		return left > 0
	})
	s.young = met
	return told, again
}

// findings is all that is wrong now: with the configuration, with reading it, and with what the control plane does.
func (s *Server) findings() []model.Diagnostic {
	s.mu.Lock()
	out := slices.Clone(s.diagnostics)
	s.mu.Unlock()
	said := make(map[model.Diagnostic]bool, len(out))
	for _, d := range out {
		said[d] = true
	}
	for _, d := range s.source.Diagnostics() { // also what keeps it from beginning, or what passes
		if !said[d] {
			out = append(out, d)
		}
	}
	return append(out, s.told.diagnostics()...)
}

// say logs what is wrong now and was not before.
func (s *Server) say(ds []model.Diagnostic) {
	now := map[string]bool{}
	for i := range ds {
		if ds[i].Severity == model.Info {
			continue
		}
		text := ds[i].String()
		if !s.said[text] && !now[text] {
			level := slog.LevelInfo // a warning may be as somebody wants it
			if ds[i].Severity == model.Error {
				level = slog.LevelWarn
			}
			s.log.Log(context.Background(), level, "something is wrong with the configuration", "what", text)
		}
		now[text] = true
	}
	for text := range s.said {
		if !now[text] {
			s.log.Info("no longer wrong with the configuration", "what", text)
		}
	}
	s.said = now
}

// Ready says why nothing can be asked of this replica yet, or any more; nil: everything can.
func (s *Server) Ready() error {
	plane := s.plane.Load()
	switch {
	case s.authority.Load() == nil:
		return fmt.Errorf("there is nothing to sign certificates with yet: Secret %s/%s could not be read or made", s.o.Namespace, SecretName)
	case !s.source.Synced():
		return errors.New("the objects of the API server are not all read yet")
	case plane == nil || plane.Config() == nil:
		return errors.New("no plan is compiled yet")
	}
	return nil
}

// serveHTTP serves until ctx ends, and lets what is under way finish.
func serveHTTP(ctx context.Context, ln net.Listener, h http.Handler, secure *tls.Config) error {
	srv := &http.Server{
		Handler: h, TLSConfig: secure, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = srv.Shutdown(bounded)
		_ = srv.Close()
	})
	var err error
	if secure != nil {
		err = srv.ServeTLS(ln, "", "")
	} else {
		err = srv.Serve(ln)
	}
	if !stop() {
		<-done
		return ctx.Err()
	}
	return err
}

package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/world"
)

// mayNot is what the API server's authorizer says.
func mayNot(a clienttesting.Action) error {
	r := a.GetResource()
	return apierrors.NewForbidden(r.GroupResource(), "", fmt.Errorf("User %q cannot %s resource %q in API group %q", "system:serviceaccount:malha-system:malhad", a.GetVerb(), r.Resource, r.Group))
}

// forbid takes rights away while on is set.
func forbid(f interface {
	PrependReactor(verb, resource string, reaction clienttesting.ReactionFunc)
}, on *atomic.Bool, verb, resource string,
) {
	f.PrependReactor(verb, resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
		if !on.Load() {
			return false, nil, nil
		}
		return true, nil, mayNot(a)
	})
}

// journal is a log with its lines.
func journal() (*slog.Logger, *bytes.Buffer) {
	var b bytes.Buffer
	return slog.New(slog.NewTextHandler(&b, nil)), &b
}

// TestStatusesThatMayNotBeWritten: said once for the kind however many objects there are, stands where check looks, and keeps no
// other kind waiting.
func TestStatusesThatMayNotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runtimes []runtime.Object
		var v verdicts
		for i := range 30 {
			u, o := parse(t, strings.ReplaceAll(virtualService, "name: web", fmt.Sprintf("name: web%d", i)))
			runtimes, v.objects = append(runtimes, u), append(v.objects, o)
		}
		u, o := parse(t, route)
		runtimes, v.objects, v.statuses = append(runtimes, u), append(v.objects, o), []model.Status{routeStatus()}
		client := newDynamic(runtimes...)
		var on atomic.Bool
		on.Store(true)
		forbid(client, &on, "update", "virtualservices")
		log, lines := journal()
		s := newStatuses(client, newMapper(), log)
		s.told = newTroubles(log)
		s.set(v)
		during(t, s.run, func() {
			pause(10 * time.Minute)
			if n := strings.Count(lines.String(), "level=ERROR"); n != 1 || strings.Contains(lines.String(), "level=WARN") {
				t.Errorf("%d errors in the log:\n%s", n, lines)
			}
			ds := s.told.diagnostics()
			if len(ds) != 1 || ds[0].Code != CodeMayNot || !strings.Contains(ds[0].Message, "VirtualService.networking.istio.io") || !strings.Contains(ds[0].Hint, "cannot update") {
				t.Errorf("%v", ds)
			}
			if st := statusOf(t, client, httpRoutes, "shop", "web"); len(st["parents"].([]any)) != 2 {
				t.Errorf("the other kind: %v", st)
			}
			on.Store(false)
			pause(time.Minute)
			if ds := s.told.diagnostics(); len(ds) != 0 || !strings.Contains(lines.String(), "can do its part again") {
				t.Errorf("after the right came back: %v\n%s", ds, lines)
			}
			for i := range 30 {
				if st := statusOf(t, client, virtualServices, "shop", fmt.Sprintf("web%d", i)); st["conditions"] == nil {
					t.Errorf("web%d has no status", i)
				}
			}
		})
	})
}

func TestPartsThatMayNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &admissionv1.ServiceReference{Name: "malhad"}
		client := fake.NewClientset(
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "b"}},
			&admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: WebhookName}, Webhooks: []admissionv1.MutatingWebhook{{Name: "a", ClientConfig: admissionv1.WebhookClientConfig{Service: service}}}},
		)
		var on atomic.Bool
		on.Store(true)
		for verb, resource := range map[string]string{"create": "configmaps", "get": "validatingwebhookconfigurations", "list": "validatingwebhookconfigurations", "update": "leases"} {
			forbid(client, &on, verb, resource)
		}
		forbid(client, &on, "create", "tokenreviews")
		log, lines := journal()
		told := newTroubles(log)
		reviews := &reviewer{client: client, told: told, known: nil}
		all := func(ctx context.Context) {
			done := make(chan struct{}, 3)
			for _, part := range []func(context.Context){
				(&bundles{client: client, roots: []byte("roots"), log: log, told: told}).run,
				(&webhooks{client: client, roots: []byte("roots"), log: log, told: told}).run,
				func(ctx context.Context) {
					_ = elect(ctx, client, "malha-system", "one", log, told, func(ctx context.Context) { <-ctx.Done() })
				},
			} {
				go func() { part(ctx); done <- struct{}{} }()
			}
			for range 3 {
				<-done
			}
		}
		during(t, all, func() {
			for range 6 {
				if _, err := reviews.Authenticate(t.Context(), "token"); err == nil {
					t.Fatal("a token that nobody looked at")
				}
				pause(30 * time.Second)
			}
			said := map[string]int{}
			for _, d := range told.diagnostics() {
				if d.Code != CodeMayNot || d.Severity != model.Error || d.Hint == "" {
					t.Errorf("%+v", d)
				}
				said[d.Message]++
			}
			for _, k := range []task{taskBundle, taskValidating, taskReview, taskLease} {
				if n := said["the control plane may not "+k.what+": "+k.loss]; n != 1 {
					t.Errorf("%s stands %d times in %v", k.what, n, said)
				}
			}
			if n := strings.Count(lines.String(), "level=ERROR"); n != 5 { // the configuration is asked for by a watch, too
				t.Errorf("%d errors in the log:\n%s", n, lines)
			}
			c, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), WebhookName, metav1.GetOptions{})
			if err != nil || string(c.Webhooks[0].ClientConfig.CABundle) != "roots" {
				t.Errorf("the webhook that may be written: %v %v", c, err)
			}
			on.Store(false)
			_, _ = reviews.Authenticate(t.Context(), "token")
			pause(lapse + time.Minute)
			if ds := told.diagnostics(); len(ds) != 0 {
				t.Errorf("after the rights came back: %v", ds)
			}
			if got := bundleOf(t, client, "b"); got != "roots" {
				t.Errorf("the bundle: %q", got)
			}
		})
	})
}

// TestWatchesInTrouble: what may not be followed is in trouble until it is followed again, whatever else of its task is, and although
// nothing of it changes.
func TestWatchesInTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
		var lists, watches atomic.Bool
		forbid(client, &lists, "list", "services")
		client.PrependWatchReactor("deployments", func(a clienttesting.Action) (bool, watch.Interface, error) {
			if !watches.Load() {
				return false, nil, nil
			}
			return true, nil, mayNot(a)
		})
		lists.Store(true)
		watches.Store(true)
		log, lines := journal()
		told := newTroubles(log)
		all := func(ctx context.Context) {
			var wg sync.WaitGroup
			wg.Go(func() {
				(&ingresses{client: client, log: log, told: told, report: func([]reach) {}}).run(ctx)
			})
			wg.Go(func() {
				(&gateways{o: &Options{}, client: client, dynamic: newDynamic(), mapper: newMapper(), log: log, told: told, wake: make(chan struct{}, 1)}).run(ctx)
			})
			wg.Wait()
		}
		during(t, all, func() {
			pause(20 * time.Minute)
			if ds := told.diagnostics(); len(ds) != 2 || strings.Count(lines.String(), "level=ERROR") != 3 || strings.Contains(lines.String(), "again") {
				t.Errorf("while they may not be followed: %v\n%s", ds, lines)
			}
			lists.Store(false)
			pause(2 * time.Minute)
			if ds := told.diagnostics(); len(ds) != 1 || !strings.Contains(ds[0].Message, taskGateways.what) {
				t.Errorf("when one of two kinds may: %v\n%s", ds, lines)
			}
			watches.Store(false)
			pause(2 * time.Minute)
			if ds := told.diagnostics(); len(ds) != 0 || strings.Count(lines.String(), "level=ERROR") != 3 {
				t.Errorf("when all may: %v\n%s", ds, lines)
			}
		})
	})
}

// TestLeaseInTrouble: the library's own words are switched off, so that what keeps a replica from leading must be told, whatever it is; that
// another one was first is nothing.
func TestLeaseInTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}
		client := fake.NewClientset()
		var failure atomic.Pointer[error]
		client.PrependReactor("update", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
			err := failure.Load()
			if err == nil {
				return false, nil, nil
			}
			if apierrors.IsConflict(*err) { // once: then it is another one
				failure.Store(nil)
			}
			return true, nil, *err
		})
		log, lines := journal()
		told := newTroubles(log)
		run := func(ctx context.Context) {
			_ = elect(ctx, client, "malha-system", "one", log, told, func(ctx context.Context) { <-ctx.Done() })
		}
		during(t, run, func() {
			conflict, broken := error(apierrors.NewConflict(r, LeaseName, errors.New("it is another one"))), error(apierrors.NewInternalError(errors.New("etcd is full")))
			failure.Store(&conflict)
			pause(time.Minute)
			if ds := told.diagnostics(); len(ds) != 0 {
				t.Errorf("conflicts: %v", ds)
			}
			failure.Store(&broken)
			pause(time.Minute)
			if ds := told.diagnostics(); len(ds) != 1 || ds[0].Code != CodeCannot || !strings.Contains(ds[0].Hint, "etcd is full") {
				t.Errorf("%v", ds)
			}
			failure.Store(nil)
			pause(time.Minute)
			if ds := told.diagnostics(); len(ds) != 0 || strings.Count(lines.String(), "level=ERROR") != 1 {
				t.Errorf("at the end: %v\n%s", ds, lines)
			}
		})
	})
}

// Quotas, policies and namespaces that are going are forbidden, too, and no role helps against them.
func TestLacksRight(t *testing.T) {
	r := virtualServices.GroupResource()
	for _, err := range []error{
		nil, errors.New("cannot read resource"), apierrors.NewNotFound(r, "x"),
		apierrors.NewForbidden(r, "x", errors.New("exceeded quota: small")),
		apierrors.NewForbidden(r, "x", errors.New("unable to create new content in namespace x because it is being terminated")),
	} {
		if lacksRight(err) {
			t.Errorf("%v", err)
		}
	}
}

func TestAuthorityInTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		away := time.Now().Add(5 * time.Minute)
		client.PrependReactor("*", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			return time.Now().Before(away), nil, errors.New("connection refused")
		})
		log, lines := journal()
		told := newTroubles(log)
		o := Options{}
		o.defaults()
		time.AfterFunc(time.Minute, func() {
			if ds := told.diagnostics(); len(ds) != 1 || ds[0].Code != CodeCannot || !strings.Contains(ds[0].Hint, "connection refused") {
				t.Errorf("%v", ds)
			}
		})
		if _, _, err := openAuthority(t.Context(), client, &o, log, told); err != nil {
			t.Fatal(err)
		}
		if ds := told.diagnostics(); len(ds) != 0 || strings.Count(lines.String(), "level=ERROR") != 1 {
			t.Errorf("%v\n%s", ds, lines)
		}
	})
}

// A Service is written before its pods: that it selects none is told when it lasts.
func TestYoungServices(t *testing.T) {
	s := &Server{young: map[string]time.Time{}}
	now := time.Now()
	of := func(name string) model.Diagnostic {
		return model.Diagnostic{Code: world.CodeNoWorkload, Severity: model.Warning, Origin: ident.Origin{Kind: "Service", Namespace: "shop", Name: name}}
	}
	other := model.Diagnostic{Code: "MALHA0801", Severity: model.Error}
	if got, again := s.grown([]model.Diagnostic{of("a"), other}, now); len(got) != 1 || got[0] != other || again != infancy {
		t.Errorf("at first: %v, again in %v", got, again)
	}
	later := now.Add(infancy / 2)
	if got, again := s.grown([]model.Diagnostic{of("a"), of("b")}, later); len(got) != 0 || again != infancy/2 {
		t.Errorf("later: %v, again in %v", got, again)
	}
	if got, again := s.grown([]model.Diagnostic{of("a"), of("b")}, now.Add(infancy)); len(got) != 1 || got[0] != of("a") || again != infancy/2 {
		t.Errorf("when the first is grown: %v, again in %v", got, again)
	}
	s.grown(nil, now.Add(infancy)) // it has pods now, and then none again
	if got, _ := s.grown([]model.Diagnostic{of("a")}, now.Add(2*infancy)); len(got) != 0 {
		t.Errorf("it begins anew: %v", got)
	}
}

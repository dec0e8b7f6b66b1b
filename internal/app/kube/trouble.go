package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Codes of what the control plane cannot do in the API server. What it cannot read is the source's part.
const (
	CodeMayNot = "MALHA1105" // it lacks a right
	CodeCannot = "MALHA1106" // it can't be done for another reason, and much depends on it
)

// task is something that the control plane does in the API server again and again.
type task struct {
	what string // "write the statuses of VirtualServices"
	rule string // what a role must give for it: "update on virtualservices/status of apiGroup networking.istio.io"
	loss string // what there is not without it
	step string // of several questions that it takes; each fails and succeeds for itself
}

// by is one of the questions that a task takes.
func (k task) by(step string) task {
	k.step = step
	return k
}

// The tasks that are not of a single kind of objects.
var (
	taskRoot = task{
		what: "read or make the Secret " + SecretName,
		rule: "create on secrets, and get on the one called " + SecretName,
		loss: "no certificate is signed, and no proxy is served",
	}
	taskFresh = task{
		what: "go on with the Secret " + SecretName + " as it is now",
		rule: "create on secrets, get on those called " + SecretName + " and " + PreviousName + ", and delete on the latter",
		loss: "certificates are signed and verified with what it was",
	}
	taskLease = task{
		what: "hold the Lease " + LeaseName,
		rule: "create on leases of apiGroup coordination.k8s.io, and get, update on the one called " + LeaseName,
		loss: "no replica writes statuses, trust bundles, the roots of the webhooks or gateways",
	}
	taskReview = task{
		what: "ask whose a token is",
		rule: "create on tokenreviews of apiGroup authentication.k8s.io",
		loss: "proxies that start get no certificate and no plan, and others can't renew theirs",
	}
	taskBundle = task{
		what: "write the ConfigMap " + BundleName + " of every namespace",
		rule: "create on configmaps, and list, watch, update on those called " + BundleName,
		loss: "pods with a sidecar can't start in namespaces that lack it",
	}
	taskMutating = task{
		what: "write the roots into the MutatingWebhookConfiguration " + WebhookName,
		rule: "get, list, watch, update on mutatingwebhookconfigurations of apiGroup admissionregistration.k8s.io called " + WebhookName,
		loss: "the API server does not trust the injector, and pods that ask for a proxy are refused",
	}
	taskValidating = task{
		what: "write the roots into the ValidatingWebhookConfiguration " + WebhookName,
		rule: "get, list, watch, update on validatingwebhookconfigurations of apiGroup admissionregistration.k8s.io called " + WebhookName,
		loss: "objects are stored unchecked, and judged when they are read",
	}
	taskGateways = task{
		what: "make what Gateways run in",
		rule: "list, watch, create, patch, delete on deployments of apiGroup apps and on services, create, patch, delete on serviceaccounts (chart value gatewayAPI.deployments)",
		loss: "Gateways of class malha stay as they are",
	}
	taskIngresses = task{
		what: "follow where the gateways are that serve Ingresses",
		rule: "list, watch on services",
		loss: "the statuses of Ingresses don't say where they are reached",
	}
	taskClass = task{
		what: "make the GatewayClass malha",
		rule: "get, create on gatewayclasses of apiGroup gateway.networking.k8s.io",
		loss: "Gateways of class malha are nobody's",
	}
)

// lapse is how long a trouble stands that nobody met again: every task is tried again sooner, as long as there is need for it.
const lapse = resync + time.Minute

// troubles are the tasks that fail. Each is said once to the log, when it begins, and once when it is over; while it lasts it
// stands in Server.findings, which metrics count and `malha check` shows. nil keeps nothing.
type troubles struct {
	log *slog.Logger

	mu   sync.Mutex
	held map[string]trouble // by task.what and task.step
}

type trouble struct {
	model.Diagnostic
	met time.Time // the last time
}

func newTroubles(log *slog.Logger) *troubles {
	return &troubles{log: log, held: map[string]trouble{}}
}

// tried notes what became of a task, and reports whether what is wrong with it stands here: then nobody else says it. What only
// passes, and does not end with a right, is left to the caller.
func (t *troubles) tried(k task, err error) bool {
	switch {
	case t == nil:
		return false
	case err == nil:
		t.over(k)
		return false
	case !lacksRight(err):
		return false
	}
	t.begin(k, model.Diagnostic{
		Code: CodeMayNot, Message: "the control plane may not " + k.what + ": " + k.loss,
		Hint: "give the control plane's role the verbs " + k.rule + " (malha install does); the API server says: " + sentence(err),
	})
	return true
}

// fails notes that a task on which much depends does not succeed, for whatever reason.
func (t *troubles) fails(k task, err error) {
	if t.tried(k, err) || t == nil || err == nil {
		return
	}
	t.begin(k, model.Diagnostic{
		Code: CodeCannot, Message: "the control plane cannot " + k.what + ": " + k.loss, Hint: "it tries again by itself; the reason: " + sentence(err),
	})
}

// waits notes that a task is for the user to begin.
func (t *troubles) waits(k task, next string) {
	t.begin(k, model.Diagnostic{Code: CodeCannot, Message: "the control plane cannot " + k.what + ": " + k.loss, Hint: next})
}

func (t *troubles) begin(k task, d model.Diagnostic) {
	d.Severity, d.Origin = model.Error, ident.Origin{File: manifest.Kubernetes}
	now := time.Now()
	t.mu.Lock()
	before, was := t.held[k.what+k.step]
	t.held[k.what+k.step] = trouble{d, now}
	t.mu.Unlock()
	if !was || before.Code != d.Code || now.Sub(before.met) > lapse {
		t.log.Error("the control plane cannot do its part", "what", d.Message, "next", d.Hint)
	}
}

func (t *troubles) over(k task) {
	t.mu.Lock()
	_, was := t.held[k.what+k.step]
	delete(t.held, k.what+k.step)
	t.mu.Unlock()
	if was {
		t.log.Info("the control plane can do its part again", "what", k.what)
	}
}

// diagnostics returns what is wrong now.
func (t *troubles) diagnostics() []model.Diagnostic {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []model.Diagnostic
	for _, k := range slices.Sorted(maps.Keys(t.held)) {
		d := t.held[k]
		switch {
		case time.Since(d.met) > lapse:
			delete(t.held, k)
		case len(out) == 0 || out[len(out)-1].Message != d.Message:
			out = append(out, d.Diagnostic)
		}
	}
	return out
}

// kindClient is what an informer asks the API server with: the client of a kind.
type kindClient[L runtime.Object] interface {
	List(ctx context.Context, o metav1.ListOptions) (L, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// informer gives a factory the informer of a kind: it asks api for the objects that tweak selects, and wakes whenever it hears something.
// That it may not listen is noted, until it listens again. like is an object of the kind.
func informer[L runtime.Object](t *troubles, k task, wake chan struct{}, f informers.SharedInformerFactory, like runtime.Object, api kindClient[L], tweak func(*metav1.ListOptions)) (cache.SharedIndexInformer, error) {
	k = k.by(fmt.Sprintf("watch %T", like))
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			tweak(&o)
			return api.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			tweak(&o)
			w, err := api.Watch(ctx, o)
			if err == nil {
				t.tried(k, nil)
			}
			return w, err
		},
	}
	i := f.InformerFor(like, func(client kubernetes.Interface, every time.Duration) cache.SharedIndexInformer {
		return cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(lw, client), like, every, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	})
	err := i.SetWatchErrorHandlerWithContext(func(ctx context.Context, r *cache.Reflector, err error) {
		if !t.tried(k, err) { // else the library says it at every attempt
			cache.DefaultWatchErrorHandler(ctx, r, err)
		}
	})
	if err != nil {
		return nil, err
	}
	_, err = i.AddEventHandler(waking(wake))
	return i, err
}

// unfiltered selects all objects of a kind; named, that of a name; labelled, those that a selector of labels does.
func unfiltered(*metav1.ListOptions) {}

func named(name string) func(*metav1.ListOptions) {
	return func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
	}
}

func labelled(selector string) func(*metav1.ListOptions) {
	return func(o *metav1.ListOptions) { o.LabelSelector = selector }
}

// lacksRight tells a right that is missing from what else the API server calls forbidden: quotas, policies, a namespace that is
// going. Its authorizer writes `User "x" cannot create resource "y"` (k8s.io/apiserver .../handlers/responsewriters/errors.go).
func lacksRight(err error) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), " cannot ") && strings.Contains(err.Error(), " resource ")
}

// sentence is an error of the API server as it says it.
func sentence(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Message != "" {
		return status.Status().Message
	}
	return err.Error()
}

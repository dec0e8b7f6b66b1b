package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Pace of statuses: so many writes a second, and so many at once.
const (
	statusRate  = 20
	statusBurst = 40
)

// target names an object whose status is written.
type target struct {
	group, kind string
	name        ident.Name
}

func (t target) compare(o target) int {
	return cmp.Or(cmp.Compare(t.group, o.group), cmp.Compare(t.kind, o.kind), t.name.Compare(o.name))
}

func (t target) String() string { return t.kind + " " + t.name.String() }

// wanted is what the status of an object should say.
type wanted struct {
	version    string
	generation int64
	status     *model.Status      // nil: of a kind whose status says whether it is in force
	findings   []model.Diagnostic // then what is wrong with it
	addresses  []any              // of a Gateway; nil: left alone
	balancer   tree               // of an Ingress; nil: left alone
	mark       string             // differs when anything of it does, or the object is another one of its name
}

// verdicts is what is to be said about the objects of one configuration.
type verdicts struct {
	objects     []config.Object
	statuses    []model.Status
	diagnostics []model.Diagnostic
}

// statuses writes statuses. Its goroutine is run's; the others only set what it shall write.
type statuses struct {
	dynamic dynamic.Interface
	mapper  meta.ResettableRESTMapper
	log     *slog.Logger
	told    *troubles
	now     func() time.Time
	limit   flowcontrol.RateLimiter
	wake    chan struct{}

	mu       sync.Mutex
	verdicts verdicts
	gateways map[ident.Name]gatewayState
	doors    []reach // where Ingresses are reached; nil: not known yet

	// run's own.
	written map[target]string // mark of what was written, or found written
	without map[schema.GroupKind]bool
}

func newStatuses(client dynamic.Interface, mapper meta.ResettableRESTMapper, log *slog.Logger) *statuses {
	return &statuses{
		dynamic: client, mapper: mapper, log: log, now: time.Now, wake: make(chan struct{}, 1),
		limit: flowcontrol.NewTokenBucketRateLimiter(statusRate, statusBurst),
	}
}

// set says what should be written from now on.
func (s *statuses) set(v verdicts) {
	s.mu.Lock()
	s.verdicts = v
	s.mu.Unlock()
	poke(s.wake)
}

// setGateways says how the gateways that we run are.
func (s *statuses) setGateways(g map[ident.Name]gatewayState) {
	s.mu.Lock()
	same := maps.EqualFunc(s.gateways, g, func(a, b gatewayState) bool { return a.equal(&b) })
	s.gateways = g
	s.mu.Unlock()
	if !same {
		poke(s.wake)
	}
}

// setDoors says where Ingresses are reached.
func (s *statuses) setDoors(doors []reach) {
	s.mu.Lock()
	same := s.doors != nil && slices.Equal(s.doors, doors)
	s.doors = doors
	s.mu.Unlock()
	if !same {
		poke(s.wake)
	}
}

// run writes until ctx ends.
func (s *statuses) run(ctx context.Context) {
	s.written, s.without = map[target]string{}, map[schema.GroupKind]bool{}
	looked := s.now()
	settle(ctx, s.wake, 50*time.Millisecond, func() bool {
		if s.now().Sub(looked) >= resync { // others may have written meanwhile: look at each again
			looked = s.now()
			clear(s.written)
			clear(s.without)
		}
		return s.pass(ctx)
	})
}

// pass writes what is not yet as it should be, and reports whether all of it could be. It stops when there is news, which may
// be more urgent.
func (s *statuses) pass(ctx context.Context) bool {
	want := s.wanted()
	todo := slices.SortedFunc(maps.Keys(want), func(a, b target) int {
		// What somebody waits for first: those of the Gateway API, then what is wrong, then what is well.
		return cmp.Or(cmp.Compare(urgency(want[a]), urgency(want[b])), a.compare(b))
	})
	maps.DeleteFunc(s.written, func(t target, _ string) bool { return want[t] == nil }) // gone
	done := true
	refused := map[schema.GroupKind]bool{} // kinds whose statuses may not be written: the first of them stands for all
	for i, t := range todo {
		w := want[t]
		kind := schema.GroupKind{Group: t.group, Kind: t.kind}
		if s.written[t] == w.mark || s.without[kind] || refused[kind] {
			continue
		}
		if len(s.wake) > 0 && i > 0 {
			return done // which wakes us again
		}
		if err := s.limit.Wait(ctx); err != nil {
			return false
		}
		err := s.write(ctx, t, w)
		switch {
		case err == nil:
			s.told.tried(statusTask(kind), nil)
			s.written[t] = w.mark
		case ctx.Err() != nil:
			return false
		case s.told.tried(statusTask(kind), err):
			done, refused[kind] = false, true
		case errors.Is(err, errNoStatus):
			s.without[kind] = true
			s.log.Info("a kind has no status to write to: see the control plane's log and malha check for what is wrong with its objects", "kind", t.kind, "group", t.group)
		case errors.Is(err, errAhead): // a Result with the newer object comes
		default:
			done = false
			s.log.Warn("a status could not be written, will try again", "object", t.String(), "error", err)
		}
	}
	return done
}

// statusTask is writing the statuses of a kind.
func statusTask(k schema.GroupKind) task {
	return task{
		what: "write the statuses of " + k.String(), rule: "get on the kind and update on its status",
		loss: "what is wrong with these objects is said in the log and by malha check only, and conditions that others wait for don't come",
	}
}

func urgency(w *wanted) int {
	switch {
	case w.status != nil:
		return 0
	case len(w.findings) > 0:
		return 1
	}
	return 2
}

// checked reports whether the status of objects of a group says whether they are in force.
func checked(group string) bool { return strings.HasSuffix(group, ".istio.io") || group == "malha.dev" }

// attaches reports whether objects of a kind have a status for each parent that they attach to.
func attaches(t target) bool {
	return t.group == gatewayGroup && (t.kind == "BackendTLSPolicy" || strings.HasSuffix(t.kind, "Route")) || t.group == "policy.linkerd.io" && t.kind == "HTTPRoute"
}

// wanted returns what every status should say.
func (s *statuses) wanted() map[target]*wanted {
	s.mu.Lock()
	v, gateways, doors := s.verdicts, s.gateways, s.doors
	s.mu.Unlock()
	out := map[target]*wanted{}
	objects := map[target]*config.Object{}
	// Findings know the kind of their object and not its group: where two kinds share a name (Gateway), each is asked for its own
	// objects' names, and only objects of both with one name would share findings.
	type key struct {
		kind string
		name ident.Name
	}
	findings := map[key][]model.Diagnostic{}
	for _, d := range v.diagnostics {
		k := key{d.Origin.Kind, ident.Name{Namespace: d.Origin.Namespace, Name: d.Origin.Name}}
		findings[k] = append(findings[k], d)
	}
	for i := range v.objects {
		o := &v.objects[i]
		t := target{o.Group(), o.Kind, o.Name}
		objects[t] = o
		if checked(t.group) {
			w := &wanted{version: o.Version(), generation: o.Generation, findings: findings[key{o.Kind, o.Name}]}
			w.mark = fmt.Sprint(o.UID, o.Generation, w.findings)
			out[t] = w
		}
		if attaches(t) { // unless it has parents of ours: then what we said of former ones is taken back
			out[t] = &wanted{version: o.Version(), generation: o.Generation, status: &model.Status{Group: t.group, Kind: t.kind, Name: t.name}, mark: "none " + o.UID}
		}
	}
	for i := range v.statuses {
		st := v.statuses[i]
		t := target{st.Group, st.Kind, st.Name}
		o, ok := objects[t]
		if !ok { // cluster-wide objects stand in the default namespace there
			o = objects[target{st.Group, st.Kind, ident.Name{Namespace: ident.DefaultNamespace, Name: st.Name.Name}}]
		}
		w := &wanted{generation: st.Generation, status: &st}
		uid := ""
		if o != nil {
			w.version, uid = o.Version(), o.UID
		}
		if st.Kind == "Gateway" {
			if g, ok := gateways[st.Name]; ok {
				st.Conditions = g.conditions(st.Conditions)
				w.addresses = g.addresses()
			}
		}
		if st.Group == ingressGroup {
			if doors == nil {
				continue
			}
			w.balancer = ingressStatus(doors)
		}
		mark, _ := json.Marshal([]any{uid, st, w.addresses, w.balancer}) // a Status is plain values
		w.mark = string(mark)
		out[t] = w
	}
	return out
}

var (
	errNoStatus = errors.New("the kind has no status")
	errAhead    = errors.New("the object is newer than what is known of it")
)

// resource returns where an object is.
func (s *statuses) resource(t target, version string) (dynamic.ResourceInterface, error) {
	versions := []string{version}
	if version == "" {
		versions = nil
	}
	m, err := s.mapper.RESTMapping(schema.GroupKind{Group: t.group, Kind: t.kind}, versions...)
	if meta.IsNoMatchError(err) {
		s.mapper.Reset() // a CRD may have come since
		m, err = s.mapper.RESTMapping(schema.GroupKind{Group: t.group, Kind: t.kind}, versions...)
	}
	if err != nil {
		return nil, err
	}
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		return s.dynamic.Resource(m.Resource).Namespace(t.name.Namespace), nil
	}
	return s.dynamic.Resource(m.Resource), nil
}

// write brings the status of an object to what is wanted. What others write at the same time is not lost: the API server refuses
// a write that is based on an older state, and the next pass looks again.
func (s *statuses) write(ctx context.Context, t target, w *wanted) error {
	return s.change(ctx, t, w.version, func(o *unstructured.Unstructured, have tree) (tree, error) {
		if w.generation > 0 && o.GetGeneration() > w.generation {
			return nil, errAhead
		}
		if w.status == nil {
			return renderChecked(w.generation, w.findings, have, s.now()), nil
		}
		next := render(w.status, have, s.now())
		if w.addresses != nil {
			next["addresses"] = w.addresses
		}
		if w.balancer != nil {
			next["loadBalancer"] = w.balancer
		}
		return next, nil
	})
}

func (s *statuses) change(ctx context.Context, t target, version string, f func(*unstructured.Unstructured, tree) (tree, error)) error {
	r, err := s.resource(t, version)
	if err != nil {
		return err
	}
	o, err := r.Get(ctx, t.name.Name, metav1.GetOptions{})
	if err != nil {
		return absent(err) // it is just going, or not there yet for us: its event comes
	}
	have, _ := o.Object["status"].(tree)
	next, err := f(o, have)
	if err != nil {
		return err
	}
	if same(have, next) || len(have) == 0 && len(next) == 0 {
		return nil
	}
	o.Object["status"] = next
	_, err = r.UpdateStatus(ctx, o, metav1.UpdateOptions{FieldManager: fieldManager})
	if apierrors.IsNotFound(err) {
		if _, gone := r.Get(ctx, t.name.Name, metav1.GetOptions{}); gone == nil {
			return errNoStatus // the object is there, and its status is not
		}
		return nil
	}
	return err
}

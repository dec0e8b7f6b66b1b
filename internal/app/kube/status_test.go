package kube

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/gateway"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// mapper knows a few kinds and needs no API server.
type mapper struct{ *meta.DefaultRESTMapper }

func (mapper) Reset() {}

var (
	virtualServices = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "virtualservices"}
	httpRoutes      = schema.GroupVersionResource{Group: gatewayGroup, Version: "v1", Resource: "httproutes"}
	gatewayObjects  = schema.GroupVersionResource{Group: gatewayGroup, Version: "v1", Resource: "gateways"}
	ingressObjects  = schema.GroupVersionResource{Group: ingressGroup, Version: "v1", Resource: "ingresses"}
	gatewayClasses  = schema.GroupVersionResource{Group: gatewayGroup, Version: "v1", Resource: "gatewayclasses"}
)

func newMapper() mapper {
	m := meta.NewDefaultRESTMapper([]schema.GroupVersion{virtualServices.GroupVersion(), httpRoutes.GroupVersion(), ingressObjects.GroupVersion()})
	for gvr, kind := range map[schema.GroupVersionResource]string{virtualServices: "VirtualService", httpRoutes: "HTTPRoute", gatewayObjects: "Gateway", ingressObjects: "Ingress"} {
		m.AddSpecific(gvr.GroupVersion().WithKind(kind), gvr, gvr, meta.RESTScopeNamespace)
	}
	m.AddSpecific(gatewayClasses.GroupVersion().WithKind("GatewayClass"), gatewayClasses, gatewayClasses, meta.RESTScopeRoot)
	return mapper{m}
}

func newDynamic(objects ...runtime.Object) *dynamicfake.FakeDynamicClient {
	return dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		virtualServices: "VirtualServiceList", httpRoutes: "HTTPRouteList", gatewayObjects: "GatewayList", ingressObjects: "IngressList", gatewayClasses: "GatewayClassList",
	}, objects...)
}

// parse makes an object, and what config reads of it.
func parse(t *testing.T, text string) (*unstructured.Unstructured, config.Object) {
	t.Helper()
	objs, ds := config.Parse("kubernetes", []byte(text))
	if len(objs) != 1 || model.HasErrors(ds) {
		t.Fatalf("%d objects, %v", len(objs), ds)
	}
	var content tree
	if err := objs[0].Node.Decode(&content); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(data); err != nil {
		t.Fatal(err)
	}
	return u, objs[0]
}

const route = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop, generation: 3}
spec: {parentRefs: [{name: gw}]}
status:
  parents:
  - controllerName: another.example/controller
    parentRef: {name: theirs}
    conditions: [{type: Accepted, status: "True", reason: Accepted, message: "", lastTransitionTime: "2020-01-01T00:00:00Z"}]
  - controllerName: malha.dev/gateway-controller
    parentRef: {name: gw, port: 80}
    conditions:
    - {type: Accepted, status: "True", reason: Accepted, message: "", observedGeneration: 2, lastTransitionTime: "2021-01-01T00:00:00Z"}
    - {type: ResolvedRefs, status: "True", reason: ResolvedRefs, message: "", observedGeneration: 2, lastTransitionTime: "2021-01-01T00:00:00Z"}
  - controllerName: malha.dev/gateway-controller
    parentRef: {name: former}
    conditions: []
`

func routeStatus() model.Status {
	return model.Status{
		Group: gatewayGroup, Kind: "HTTPRoute", Name: ident.Name{Namespace: "shop", Name: "web"}, Generation: 3,
		Parents: []model.ParentStatus{{Ref: []byte(`{"name":"gw","port":80}`), Conditions: []model.Condition{
			{Type: "Accepted", Status: true, Reason: "Accepted"},
			{Type: "ResolvedRefs", Status: false, Reason: "BackendNotFound", Message: "no Service"},
		}}},
	}
}

func TestRenderRoute(t *testing.T) {
	u, _ := parse(t, route)
	have := u.Object["status"].(tree)
	before, _ := json.Marshal(have)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	st := routeStatus()
	got := render(&st, have, now)
	want := []any{
		have["parents"].([]any)[0], // another controller's
		tree{
			"controllerName": gateway.ControllerName, "parentRef": tree{"name": "gw", "port": int64(80)},
			"conditions": []any{
				tree{"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "observedGeneration": int64(3), "lastTransitionTime": "2021-01-01T00:00:00Z"},
				tree{"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound", "message": "no Service", "observedGeneration": int64(3), "lastTransitionTime": "2026-01-01T00:00:00Z"},
			},
		},
	}
	if diff := cmp.Diff(want, got["parents"]); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if again := render(&st, got, now.Add(time.Hour)); !same(got, again) {
		t.Errorf("rendering what is there changes it:\n%s", cmp.Diff(got, again))
	}
	if after, _ := json.Marshal(have); string(after) != string(before) {
		t.Error("the status that was given is changed")
	}
	// Without parents of ours only those of others stay.
	if p := render(&model.Status{Kind: "HTTPRoute"}, have, now)["parents"].([]any); len(p) != 1 {
		t.Errorf("%d parents left, want the other controller's", len(p))
	}
}

// TestRenderRateLimit looks at the status of Linkerd's rate limits, which the API server takes only with the target in it
// (charts/linkerd-crds of Linkerd: status.required is targetRef, and conditions have no observedGeneration).
func TestRenderRateLimit(t *testing.T) {
	objs, ds := config.Parse("kubernetes", []byte(`
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: web-http, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}, port: http, accessPolicy: all-unauthenticated}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: HTTPLocalRateLimitPolicy
metadata: {name: few, namespace: shop, generation: 2, creationTimestamp: "2026-01-01T00:00:00Z"}
spec: {targetRef: {group: policy.linkerd.io, kind: Server, name: web-http}, total: {requestsPerSecond: 100}}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: HTTPLocalRateLimitPolicy
metadata: {name: more, namespace: shop, generation: 2, creationTimestamp: "2026-01-02T00:00:00Z"}
spec: {targetRef: {group: policy.linkerd.io, kind: Server, name: web-http}, total: {requestsPerSecond: 200}}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: HTTPLocalRateLimitPolicy
metadata: {name: none, namespace: shop, generation: 2}
spec: {targetRef: {group: policy.linkerd.io, kind: Server, name: api-http}, total: {requestsPerSecond: 100}}
`))
	if len(objs) != 4 || model.HasErrors(ds) {
		t.Fatalf("%d objects, %v", len(objs), ds)
	}
	cfg, _ := config.Translate(objs)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	got := map[string]tree{}
	for i := range cfg.Statuses {
		st := &cfg.Statuses[i]
		got[st.Name.Name] = render(st, nil, now)
		if again := render(st, got[st.Name.Name], now.Add(time.Hour)); !same(got[st.Name.Name], again) {
			t.Errorf("rendering what is there changes it:\n%s", cmp.Diff(got[st.Name.Name], again))
		}
	}
	status := func(target, truth, reason, message string) tree {
		return tree{
			"targetRef":  tree{"group": "policy.linkerd.io", "kind": "Server", "name": target},
			"conditions": []any{tree{"type": "Accepted", "status": truth, "reason": reason, "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"}},
		}
	}
	want := map[string]tree{
		"few":  status("web-http", "True", "Accepted", ""),
		"more": status("web-http", "False", "RateLimitReasonAlreadyExists", "shop/few is older"),
		"none": status("api-http", "False", "NoMatchingTarget", "there is no Server api-http"),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestRenderGateway(t *testing.T) {
	now := time.Now()
	st := model.Status{
		Group: gatewayGroup, Kind: "Gateway", Generation: 1, ListenerSets: 2,
		Conditions: []model.Condition{{Type: "Programmed", Status: true, Reason: "Programmed"}},
		Listeners: []model.ListenerStatus{{Name: "http", Kinds: []string{gatewayGroup + "/HTTPRoute"}, Routes: 4, Conditions: []model.Condition{
			{Type: "Accepted", Status: true, Reason: "Accepted", Message: strings.Repeat("é", maxMessage)},
		}}},
	}
	got := render(&st, tree{"conditions": []any{
		tree{"type": "Mine", "status": "True"}, tree{"type": "InsecureFrontendValidationMode", "status": "True"}, // and no longer so
		tree{"type": "Programmed", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z"},
	}}, now)
	cs := got["conditions"].([]any)
	if len(cs) != 2 || cs[0].(tree)["type"] != "Mine" || cs[1].(tree)["status"] != "True" || cs[1].(tree)["lastTransitionTime"] == "2020-01-01T00:00:00Z" {
		t.Errorf("conditions %v", cs)
	}
	l := got["listeners"].([]any)[0].(tree)
	if diff := cmp.Diff([]any{tree{"group": gatewayGroup, "kind": "HTTPRoute"}}, l["supportedKinds"]); diff != "" || l["attachedRoutes"] != int64(4) || got["attachedListenerSets"] != int64(2) {
		t.Errorf("%v %s", got, diff)
	}
	if m := l["conditions"].([]any)[0].(tree)["message"].(string); len(m) > maxMessage || !strings.HasSuffix(m, "…") || strings.ContainsRune(m, '�') {
		t.Errorf("a message of %d bytes, which ends in %q", len(m), m[len(m)-6:])
	}
	down := gatewayState{problem: "not yet", reason: "Pending"}
	if c := down.conditions(st.Conditions)[0]; c.Status || c.Reason != "Pending" || st.Conditions[0].Status == false {
		t.Errorf("%+v", c)
	}
	set := render(&model.Status{Group: gatewayGroup, Kind: "ListenerSet", Conditions: []model.Condition{{Type: "Accepted", Reason: "NotAllowed"}}},
		tree{"listeners": []any{tree{"name": "http", "conditions": []any{tree{"type": "Programmed", "status": "True"}}}}}, now)
	if l := set["listeners"].([]any); len(l) != 0 {
		t.Errorf("a set that is not allowed says %v of its listeners", l)
	}
	class := render(&model.Status{Group: gatewayGroup, Kind: "GatewayClass", Features: []string{"A", "Mesh"}}, tree{}, now)
	if diff := cmp.Diff([]any{tree{"name": "A"}, tree{"name": clusterFeature}, tree{"name": "Mesh"}}, class["supportedFeatures"]); diff != "" {
		t.Error(diff)
	}
}

const virtualService = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop, generation: 2}
spec: {hosts: [web], http: [{route: [{destination: {host: wep}}]}]}
`

// world is a status writer before a fake API server.
func writer(t *testing.T, objects ...runtime.Object) (*statuses, *dynamicfake.FakeDynamicClient, func(verb string) int) {
	t.Helper()
	client := newDynamic(objects...)
	s := newStatuses(client, newMapper(), quiet)
	return s, client, func(verb string) (n int) {
		for _, a := range client.Actions() {
			if a.GetVerb() == verb {
				n++
			}
		}
		return n
	}
}

func statusOf(t *testing.T, client *dynamicfake.FakeDynamicClient, gvr schema.GroupVersionResource, namespace, name string) tree {
	t.Helper()
	o, err := client.Resource(gvr).Namespace(namespace).Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	st, _ := o.Object["status"].(tree)
	return st
}

func TestStatusesAreWrittenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, o := parse(t, virtualService)
		r, ro := parse(t, route)
		s, client, count := writer(t, u, r)
		bad := model.Diagnostic{
			Code: "MALHA0801", Severity: model.Error, Origin: o.Origin, Path: "spec.http[0]", Message: "there is no host wep", Hint: "did you mean web?",
		}
		v := verdicts{objects: []config.Object{o, ro}, statuses: []model.Status{routeStatus()}, diagnostics: []model.Diagnostic{bad}}
		s.set(v)
		during(t, s.run, func() {
			st := statusOf(t, client, virtualServices, "shop", "web")
			c := st["conditions"].([]any)[0].(tree)
			if c["type"] != "Reconciled" || c["status"] != "False" || c["reason"] != reasonRefused || !strings.Contains(c["message"].(string), "did you mean web?") || st["observedGeneration"] != int64(2) {
				t.Errorf("%v", st)
			}
			want := []any{tree{"level": "ERROR", "type": tree{"code": "MALHA0801", "name": "spec.http[0]"}, "documentationUrl": docsURL + "malha0801"}}
			if diff := cmp.Diff(want, st["validationMessages"]); diff != "" {
				t.Error(diff)
			}
			if n := len(statusOf(t, client, httpRoutes, "shop", "web")["parents"].([]any)); n != 2 {
				t.Errorf("%d parents", n)
			}
			if n := count("update"); n != 2 {
				t.Errorf("%d writes for two objects", n)
			}
			gets := count("get")
			s.set(v)
			pause(time.Second)
			if n := count("update"); n != 2 || count("get") != gets {
				t.Errorf("%d writes and %d reads when nothing changed", n, count("get")-gets)
			}
			v.diagnostics = nil
			s.set(v)
			pause(time.Second)
			st = statusOf(t, client, virtualServices, "shop", "web")
			if c := st["conditions"].([]any)[0].(tree); c["status"] != "True" || c["reason"] != reasonInForce || len(st["validationMessages"].([]any)) != 0 {
				t.Errorf("after it was mended: %v", st)
			}
			// Its last parent of ours goes, and what we said of it.
			v.statuses = nil
			s.set(v)
			pause(time.Second)
			if p := statusOf(t, client, httpRoutes, "shop", "web")["parents"].([]any); len(p) != 1 || p[0].(tree)["controllerName"] == gateway.ControllerName {
				t.Errorf("%v", p)
			}
		})
	})
}

func TestStatusesMeetTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, o := parse(t, virtualService)
		s, client, count := writer(t, u)
		conflicts := 2
		client.PrependReactor("update", "virtualservices", func(clienttesting.Action) (bool, runtime.Object, error) {
			if conflicts--; conflicts >= 0 {
				return true, nil, apierrors.NewConflict(virtualServices.GroupResource(), "web", errors.New("it changed"))
			}
			return false, nil, nil
		})
		v := verdicts{objects: []config.Object{o}}
		s.set(v)
		during(t, s.run, func() {
			pause(time.Minute)
			if st := statusOf(t, client, virtualServices, "shop", "web"); st["conditions"] == nil || count("update") != 3 {
				t.Errorf("after two conflicts: %v, %d writes", st, count("update"))
			}
			// The object is newer than what is known of it: what would be said may be wrong already.
			newer := u.DeepCopy()
			newer.SetGeneration(9)
			newer.Object["status"] = tree{"conditions": []any{}}
			if err := client.Tracker().Update(virtualServices, newer, "shop"); err != nil {
				t.Fatal(err)
			}
			v.diagnostics = []model.Diagnostic{{Code: "MALHA0801", Severity: model.Error, Origin: o.Origin}}
			s.set(v)
			pause(time.Minute)
			if st := statusOf(t, client, virtualServices, "shop", "web"); len(st["conditions"].([]any)) != 0 {
				t.Errorf("a newer object was judged: %v", st)
			}
		})
	})
}

func TestKindWithoutStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, o := parse(t, virtualService)
		s, client, count := writer(t, u)
		client.PrependReactor("update", "virtualservices", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewNotFound(virtualServices.GroupResource(), "web")
		})
		s.set(verdicts{objects: []config.Object{o}})
		during(t, s.run, func() {
			s.set(verdicts{objects: []config.Object{o}, diagnostics: []model.Diagnostic{{Code: "X", Severity: model.Warning, Origin: o.Origin}}})
			pause(time.Minute)
			if n := count("update"); n != 1 {
				t.Errorf("%d writes to a status that does not exist", n)
			}
		})
	})
}

// An object that was deleted and made again under its name, between two looks, has no status: what was written is the other one's.
func TestStatusOfAnObjectMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, o := parse(t, virtualService)
		r, ro := parse(t, route)
		u.SetUID("1")
		r.SetUID("2")
		s, client, count := writer(t, u, r)
		v := func(uid string) verdicts {
			vs, hr := o, ro
			vs.UID, hr.UID = uid, uid
			return verdicts{objects: []config.Object{vs, hr}, statuses: []model.Status{routeStatus()}}
		}
		s.set(v("old"))
		during(t, s.run, func() {
			before := count("update")
			for gvr, u := range map[schema.GroupVersionResource]*unstructured.Unstructured{virtualServices: u, httpRoutes: r} {
				fresh := u.DeepCopy()
				delete(fresh.Object, "status")
				if err := client.Tracker().Update(gvr, fresh, "shop"); err != nil {
					t.Fatal(err)
				}
			}
			s.set(v("new"))
			pause(time.Second)
			if n := count("update") - before; n != 2 {
				t.Errorf("%d writes for two objects that were made again", n)
			}
			if st := statusOf(t, client, httpRoutes, "shop", "web"); len(st["parents"].([]any)) == 0 {
				t.Errorf("%v", st)
			}
		})
	})
}

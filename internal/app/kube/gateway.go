package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	v1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/gateway"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

const (
	gatewayGroup = v1.GroupName
	// labelGatewayName says on everything that is made for a Gateway which one that is (GEP-1762).
	labelGatewayName = "gateway.networking.k8s.io/gateway-name"
	labelClassName   = "gateway.networking.k8s.io/gateway-class-name"
	// serviceTypes are annotations of a Gateway that choose the type of its Service: ours, and Istio's.
	serviceTypeAnnotation      = "malha.dev/service-type"
	serviceTypeAnnotationIstio = "networking.istio.io/service-type"
	// maxLabel is the longest value of a label, which the name of a Gateway becomes.
	maxLabel = 63
	// classEvery is how often to look whether our GatewayClass is there.
	classEvery = 30 * time.Second
)

// gatewayState is how a Gateway that we run is.
type gatewayState struct {
	problem   string // why it is not reached; "" it is
	reason    string // then, of Programmed: False
	reachable []reach
}

type reach struct{ kind, value string } // IPAddress or Hostname

func (g *gatewayState) equal(o *gatewayState) bool {
	return g.problem == o.problem && g.reason == o.reason && slices.Equal(g.reachable, o.reachable)
}

// conditions says Programmed: False for a Gateway that could be served, and isn't yet.
func (g *gatewayState) conditions(in []model.Condition) []model.Condition {
	if g.problem == "" {
		return in
	}
	out := slices.Clone(in)
	for i := range out {
		if out[i].Type == string(v1.GatewayConditionProgrammed) && out[i].Status {
			out[i] = model.Condition{Type: out[i].Type, Reason: g.reason, Message: g.problem}
		}
	}
	return out
}

func (g *gatewayState) addresses() []any {
	out := []any{}
	for _, a := range g.reachable {
		out = append(out, tree{"type": a.kind, "value": a.value})
	}
	return out
}

// gateways runs the Gateways of our class: a Deployment, a Service and a ServiceAccount for each, in its namespace and owned by it,
// so that the API server removes them when it goes.
type gateways struct {
	o       *Options
	client  kubernetes.Interface
	dynamic dynamic.Interface
	mapper  meta.ResettableRESTMapper
	log     *slog.Logger
	told    *troubles
	report  func(map[ident.Name]gatewayState)
	wake    chan struct{}

	mu      sync.Mutex
	known   bool // set was called
	objects []config.Object
	wanted  []model.Gateway     // Own ones that can be served
	ours    map[ident.Name]bool // of our classes, whether they can be served or not

	// run's own.
	applied map[ident.Name]any // what it was made of
	classed time.Time
}

// set says which Gateways there should be.
func (g *gateways) set(cfg *model.Config, objects []config.Object) {
	var wanted []model.Gateway
	for i := range cfg.Gateways {
		if cfg.Gateways[i].Own {
			wanted = append(wanted, cfg.Gateways[i])
		}
	}
	ours := map[ident.Name]bool{}
	for i := range cfg.Statuses {
		if s := &cfg.Statuses[i]; s.Group == gatewayGroup && s.Kind == "Gateway" {
			ours[s.Name] = true
		}
	}
	var own []config.Object
	for i := range objects {
		if objects[i].Kind == "Gateway" && objects[i].Group() == gatewayGroup {
			own = append(own, objects[i])
		}
	}
	g.mu.Lock()
	g.known, g.wanted, g.ours, g.objects = true, wanted, ours, own
	g.mu.Unlock()
	poke(g.wake)
}

// run makes and removes until ctx ends.
func (g *gateways) run(ctx context.Context) {
	g.applied, g.classed = map[ident.Name]any{}, time.Time{}
	f := informers.NewSharedInformerFactory(g.client, 0)
	ours := labelled(labelGatewayName + "," + labelManaged + "=" + fieldManager)
	deployments, err := informer(g.told, taskGateways, g.wake, f, &appsv1.Deployment{}, g.client.AppsV1().Deployments(""), ours)
	services, other := informer(g.told, taskGateways, g.wake, f, &corev1.Service{}, g.client.CoreV1().Services(""), ours)
	if err := errors.Join(err, other); err != nil {
		g.log.Error("gateways cannot be watched", "error", err)
		return
	}
	f.Start(ctx.Done())
	defer f.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), deployments.HasSynced, services.HasSynced) {
		return
	}
	looked := time.Now()
	settle(ctx, g.wake, 50*time.Millisecond, func() bool {
		if time.Since(looked) >= resync {
			looked = time.Now()
			clear(g.applied)
		}
		return g.pass(ctx, appslisters.NewDeploymentLister(deployments.GetIndexer()), corelisters.NewServiceLister(services.GetIndexer()))
	})
}

func (g *gateways) pass(ctx context.Context, deployments appslisters.DeploymentLister, services corelisters.ServiceLister) bool {
	g.mu.Lock()
	known, wanted, ours, objects := g.known, g.wanted, g.ours, g.objects
	g.mu.Unlock()
	if !known {
		return true // set wakes us
	}
	done := g.class(ctx)
	made := true
	failed := func(err error, doing string, name ident.Name) {
		made = false
		if !g.told.tried(taskGateways, err) {
			g.log.Warn("a Gateway does not run as it should, will try again", "gateway", name.String(), "doing", doing, "error", err)
		}
	}
	states := map[ident.Name]gatewayState{}
	for i := range wanted {
		w := &wanted[i]
		var object *config.Object
		if at := slices.IndexFunc(objects, func(o config.Object) bool { return o.Name == w.Name }); at >= 0 {
			object = &objects[at]
		}
		state, err := g.one(ctx, w, object, deployments, services)
		if err != nil {
			if ctx.Err() != nil {
				return false
			}
			failed(err, "making what it runs in", w.Name)
			state = gatewayState{reason: string(v1.GatewayReasonPending), problem: "what it runs in could not be made: " + err.Error()}
		}
		states[w.Name] = state
	}
	g.report(states)
	// One that is ours and can't be served now keeps what it has: its clients may yet be served as before.
	all, err := deployments.List(labels.Everything())
	if err != nil {
		return false
	}
	classes := map[ident.Name]string{}
	for i := range objects {
		classes[objects[i].Name] = specOf(&objects[i])
	}
	for _, d := range all {
		name, class := ident.Name{Namespace: d.Namespace, Name: d.Labels[labelGatewayName]}, d.Labels[labelClassName]
		if d.DeletionTimestamp != nil || ours[name] && (classes[name] == class || states[name].problem != "") {
			continue // of another class of ours it is no longer needed once its successor serves
		}
		if left, err := g.left(ctx, name, class); err != nil {
			failed(err, "finding out whether what runs for it is needed", name)
			continue
		} else if !left {
			continue
		}
		if err := g.remove(ctx, d.Namespace, d.Name); err != nil {
			failed(err, "removing what ran for it: it is gone", name)
		} else {
			g.log.Info("gateway removed", "gateway", name.String())
			delete(g.applied, name)
		}
	}
	if made {
		g.told.tried(taskGateways, nil)
	}
	return done && made
}

// left reports whether a Gateway is gone, or no longer of a class. That it isn't known is not enough to take away what serves its clients:
// whoever could not read the Gateways knows none.
func (g *gateways) left(ctx context.Context, name ident.Name, class string) (bool, error) {
	m, err := g.mapper.RESTMapping(schema.GroupKind{Group: gatewayGroup, Kind: "Gateway"})
	switch {
	case meta.IsNoMatchError(err): // with the kind all Gateways went, and with them what they own
		return false, nil
	case err != nil:
		return false, err
	}
	o, err := g.dynamic.Resource(m.Resource).Namespace(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
	if err != nil {
		return apierrors.IsNotFound(err), absent(err)
	}
	now, _, err := unstructured.NestedString(o.Object, "spec", "gatewayClassName")
	return now != class, err
}

// remove deletes what was made for a Gateway that is another controller's now. For one that was deleted the API server is doing the same.
func (g *gateways) remove(ctx context.Context, namespace, name string) error {
	back := metav1.DeletePropagationBackground
	o := metav1.DeleteOptions{PropagationPolicy: &back}
	for _, err := range []error{
		g.client.AppsV1().Deployments(namespace).Delete(ctx, name, o),
		g.client.CoreV1().Services(namespace).Delete(ctx, name, o),
		g.client.CoreV1().ServiceAccounts(namespace).Delete(ctx, name, o),
	} {
		if err := absent(err); err != nil {
			return err
		}
	}
	return nil
}

// one brings what a Gateway runs in to what it should be, and says how it is.
func (g *gateways) one(ctx context.Context, w *model.Gateway, object *config.Object, deployments appslisters.DeploymentLister, services corelisters.ServiceLister) (gatewayState, error) {
	if len(w.Name.Name) > maxLabel {
		return gatewayState{reason: string(v1.GatewayReasonInvalid), problem: fmt.Sprintf("a Gateway that Malha runs has a name of at most %d characters", maxLabel)}, nil
	}
	if len(portsOf(w)) == 0 {
		return gatewayState{}, nil // its status says why no listener is served
	}
	if object == nil {
		return gatewayState{}, fmt.Errorf("the Gateway %s is just going", w.Name)
	}
	made := []any{*w, object.Annotations}
	class := specOf(object)
	name := gatewayObject(w.Name.Name, class)
	d, derr := deployments.Deployments(w.Name.Namespace).Get(name)
	s, serr := services.Services(w.Name.Namespace).Get(name)
	if derr != nil || serr != nil || !reflect.DeepEqual(g.applied[w.Name], made) {
		owner, err := g.owner(ctx, w.Name)
		if apierrors.IsNotFound(err) {
			return gatewayState{}, nil
		}
		if err != nil {
			return gatewayState{}, err
		}
		if err := g.apply(ctx, w, name, class, object.Annotations, owner); err != nil {
			return gatewayState{}, err
		}
		g.applied[w.Name] = made
	}
	if derr != nil || serr != nil {
		return gatewayState{reason: string(v1.GatewayReasonPending), problem: "its Deployment and Service are being made"}, nil
	}
	return stateOf(w, d, s), nil
}

// unmade says which Gateways of our class nothing serves, where we make nothing for them: who took that right away makes the pods.
func unmade(cfg *model.Config, running []model.GatewayInstance) map[ident.Name]gatewayState {
	out := map[ident.Name]gatewayState{}
	for i := range cfg.Gateways {
		name := cfg.Gateways[i].Name
		if !cfg.Gateways[i].Own || slices.ContainsFunc(running, func(g model.GatewayInstance) bool { return g.For == name }) {
			continue
		}
		out[name] = gatewayState{
			reason:  string(v1.GatewayReasonPending),
			problem: "this mesh makes no Deployments for Gateways (gatewayAPI.deployments: false), and no gateway pod has the label " + labelGatewayName + ": " + name.Name,
		}
	}
	return out
}

// stateOf says how a gateway is by what it runs in.
func stateOf(w *model.Gateway, d *appsv1.Deployment, s *corev1.Service) gatewayState {
	out := gatewayState{}
	switch s.Spec.Type {
	case corev1.ServiceTypeLoadBalancer:
		out.reachable = balancers(s)
	default:
		for _, ip := range s.Spec.ClusterIPs {
			if ip != "" && ip != corev1.ClusterIPNone {
				out.reachable = append(out.reachable, reach{string(v1.IPAddressType), ip})
			}
		}
	}
	for _, want := range w.Addresses {
		if !slices.ContainsFunc(out.reachable, func(r reach) bool { return r.value == want }) {
			out.reason, out.problem = string(v1.GatewayReasonAddressNotUsable), "the cluster has not given its Service the address "+want
			return out
		}
	}
	switch {
	case len(out.reachable) == 0:
		out.reason = string(v1.GatewayReasonAddressNotAssigned)
		out.problem = "Service " + s.Name + " has no address yet: does the cluster serve Services of type LoadBalancer? Else annotate the Gateway with " + serviceTypeAnnotation + ": NodePort or ClusterIP"
	case d.Status.AvailableReplicas == 0:
		out.reason = string(v1.GatewayReasonPending)
		out.problem = "Deployment " + d.Name + " has no available replica yet"
	}
	return out
}

// owner returns the reference by which what is made goes with its Gateway.
func (g *gateways) owner(ctx context.Context, name ident.Name) (*metav1.OwnerReference, error) {
	m, err := g.mapper.RESTMapping(schema.GroupKind{Group: gatewayGroup, Kind: "Gateway"})
	if err != nil {
		return nil, err
	}
	o, err := g.dynamic.Resource(m.Resource).Namespace(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if o.GetDeletionTimestamp() != nil {
		return nil, apierrors.NewNotFound(m.Resource.GroupResource(), name.Name)
	}
	return &metav1.OwnerReference{APIVersion: o.GetAPIVersion(), Kind: o.GetKind(), Name: o.GetName(), UID: o.GetUID()}, nil
}

// class sees to it that there is a GatewayClass malha, every classEvery.
func (g *gateways) class(ctx context.Context) bool {
	if !g.classed.IsZero() && time.Since(g.classed) < classEvery {
		return true
	}
	err := g.makeClass(ctx)
	if ctx.Err() != nil {
		return false
	}
	told := g.told.tried(taskClass, err)
	if err != nil {
		if !told {
			g.log.Warn("the GatewayClass could not be made, will try again", "class", gateway.ClassName, "error", err)
		}
		return false
	}
	g.classed = time.Now()
	return true
}

// makeClass makes the GatewayClass malha where the cluster knows the kind and somebody did not make it already.
func (g *gateways) makeClass(ctx context.Context) error {
	m, err := g.mapper.RESTMapping(schema.GroupKind{Group: gatewayGroup, Kind: "GatewayClass"})
	if meta.IsNoMatchError(err) {
		g.mapper.Reset()
		return nil // the Gateway API is not installed
	}
	if err != nil {
		return err
	}
	classes := g.dynamic.Resource(m.Resource)
	if _, err = classes.Get(ctx, gateway.ClassName, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return err
	}
	_, err = classes.Create(ctx, &unstructured.Unstructured{Object: tree{
		"apiVersion": m.GroupVersionKind.GroupVersion().String(), "kind": "GatewayClass",
		"metadata": tree{"name": gateway.ClassName, "labels": tree{labelPartOf: "malha", labelManaged: fieldManager}},
		"spec":     tree{"controllerName": gateway.ControllerName, "description": "gateways that the Malha mesh runs"},
	}}, metav1.CreateOptions{FieldManager: fieldManager})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// apply writes the three objects; what others set in them stays theirs (replicas, for instance).
func (g *gateways) apply(ctx context.Context, w *model.Gateway, name, class string, annotations map[string]string, owner *metav1.OwnerReference) error {
	account, deployment, service := renderGateway(g.o, w, name, class, annotations, owner)
	force := true
	o := metav1.PatchOptions{FieldManager: fieldManager, Force: &force}
	for _, x := range []struct {
		what  string
		value any
		patch func(data []byte) error
	}{
		{"ServiceAccount", account, func(data []byte) error {
			_, err := g.client.CoreV1().ServiceAccounts(w.Name.Namespace).Patch(ctx, name, types.ApplyPatchType, data, o)
			return err
		}},
		{"Deployment", deployment, func(data []byte) error {
			_, err := g.client.AppsV1().Deployments(w.Name.Namespace).Patch(ctx, name, types.ApplyPatchType, data, o)
			return err
		}},
		{"Service", service, func(data []byte) error {
			_, err := g.client.CoreV1().Services(w.Name.Namespace).Patch(ctx, name, types.ApplyPatchType, data, o)
			return err
		}},
	} {
		data, err := applied(x.value)
		if err == nil {
			err = x.patch(data)
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w", x.what, name, err)
		}
	}
	return nil
}

// applied spells an object for a server-side apply: without a status, which is not ours to own.
func applied(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var t tree
	if err := json.Unmarshal(data, &t); err != nil {
		return nil, err
	}
	delete(t, "status")
	return json.Marshal(t)
}

// portsOf returns the ports that a Gateway is reached at, sorted, with the protocol of the first listener there.
func portsOf(w *model.Gateway) []gatewayPort {
	seen := map[int]string{}
	for i := range w.Servers {
		s := &w.Servers[i]
		if s.Broken != "" || s.Protocol == ident.UDP {
			continue
		}
		if _, ok := seen[s.Port]; !ok {
			word := "tcp"
			switch {
			case s.Protocol == ident.TLS || s.TLS != nil && s.Protocol == ident.TCP:
				word = "tls"
			case s.TLS != nil:
				word = "https"
			case s.Protocol != ident.TCP:
				word = "http"
			}
			seen[s.Port] = word
		}
	}
	out := make([]gatewayPort, 0, len(seen))
	for _, p := range slices.Sorted(maps.Keys(seen)) {
		out = append(out, gatewayPort{number: p, name: seen[p] + "-" + strconv.Itoa(p)})
	}
	taken := map[int]bool{}
	for i := range out { // those that can be bound as they are, first
		if n := out[i].number; n >= 1024 && (n < proxyPorts || n > proxyPorts+100) {
			out[i].target, taken[n] = n, true
		}
	}
	for i := range out {
		for n := out[i].number + 8000; out[i].target == 0; n++ {
			if n = 1024 + (n-1024)%(65536-1024); !taken[n] && (n < proxyPorts || n > proxyPorts+100) {
				out[i].target, taken[n] = n, true
			}
		}
	}
	return out
}

// proxyPorts is where the proxy's own ports begin.
const proxyPorts = 15000

// gatewayPort is a port of the Service of a Gateway, and where its proxies listen: below 1024 a process without privileges may not.
type gatewayPort struct {
	number, target int
	name           string
}

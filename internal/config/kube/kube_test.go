package kube_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
	discoveryfake "k8s.io/client-go/discovery/fake"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/malha-mesh/malha/internal/config/kube"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// cluster is a fake API server and what a Source says of it.
type cluster struct {
	t       *testing.T
	client  *fake.Clientset
	watches chan watch.Interface // of Services
	dynamic *dynamicfake.FakeDynamicClient
	crds    *metadatafake.FakeMetadataClient
	source  *kube.Source
	results []*kube.Result
	seen    int
	done    chan struct{}
	stop    context.CancelFunc
}

var (
	virtualServices = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "virtualservices"}
	gateways        = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "gateways"}
	peerAuth        = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"}
	crds            = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
)

func kinds(gvs ...string) []*metav1.APIResourceList {
	all := map[string][]metav1.APIResource{
		"networking.istio.io/v1": {{Name: "virtualservices", Kind: "VirtualService"}, {Name: "virtualservices/status", Kind: "VirtualService"}, {Name: "gateways", Kind: "Gateway"}},
		"security.istio.io/v1":   {{Name: "peerauthentications", Kind: "PeerAuthentication"}},
		"security.istio.io/v9":   {{Name: "peerauthentications", Kind: "PeerAuthentication"}},
	}
	var out []*metav1.APIResourceList
	for _, gv := range gvs {
		l := &metav1.APIResourceList{GroupVersion: gv, APIResources: slices.Clone(all[gv])}
		for i := range l.APIResources {
			l.APIResources[i].Verbs = metav1.Verbs{"get", "list", "watch"}
			l.APIResources[i].Namespaced = true
		}
		out = append(out, l)
	}
	return out
}

func newCluster(t *testing.T, objects ...runtime.Object) *cluster {
	t.Helper()
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	c := &cluster{
		t: t, client: fake.NewClientset(objects...),
		dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
			virtualServices: "VirtualServiceList", gateways: "GatewayList", peerAuth: "PeerAuthenticationList",
		}),
		crds: metadatafake.NewSimpleMetadataClient(scheme),
	}
	c.serve("networking.istio.io/v1", "security.istio.io/v1")
	c.watches = make(chan watch.Interface, 100)
	c.client.PrependWatchReactor("services", func(a clienttesting.Action) (bool, watch.Interface, error) {
		w, err := c.client.Tracker().Watch(a.GetResource(), a.GetNamespace())
		if err == nil {
			c.watches <- w
		}
		return true, w, err
	})
	return c
}

func (c *cluster) serve(gvs ...string) {
	c.client.Discovery().(*discoveryfake.FakeDiscovery).Resources = kinds(gvs...)
}

// run starts the Source; wait sees its first Result.
func (c *cluster) run() {
	c.source = kube.New(kube.Options{Client: c.client, Dynamic: c.dynamic, Metadata: c.crds})
	ctx, cancel := context.WithCancel(context.Background())
	c.stop, c.done = cancel, make(chan struct{})
	go func() {
		defer close(c.done)
		if err := c.source.Run(ctx, func(r *kube.Result) { c.results = append(c.results, r) }); err != context.Canceled {
			c.t.Errorf("Run = %v", err)
		}
	}()
	c.settle()
}

func (c *cluster) end() {
	c.stop()
	<-c.done
}

// settle lets everything be said that is to be said.
func (c *cluster) settle() {
	time.Sleep(5 * time.Second)
	synctest.Wait()
}

// drop ends the watches of Services, as an API server does that goes away.
func (c *cluster) drop() {
	for len(c.watches) > 0 {
		(<-c.watches).Stop()
	}
}

// next returns the Results since the last call.
func (c *cluster) next() []*kube.Result {
	c.settle()
	out := c.results[c.seen:]
	c.seen = len(c.results)
	return out
}

// whole returns the last Result, which must be one of everything.
func (c *cluster) whole() *kube.Result {
	c.t.Helper()
	all := c.next()
	if len(all) == 0 || all[len(all)-1].Config == nil {
		c.t.Fatalf("no Result of everything: %d Results", len(all))
	}
	return all[len(all)-1]
}

// delta returns the only Result, which must be one of a part.
func (c *cluster) delta() model.Delta {
	c.t.Helper()
	all := c.next()
	if len(all) != 1 || all[0].Config != nil {
		c.t.Fatalf("want one Result of a part, got %d", len(all))
	}
	return all[0].Delta
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// apply creates or updates an object of a CRD.
func (c *cluster) apply(r schema.GroupVersionResource, text string) {
	c.t.Helper()
	u := &unstructured.Unstructured{}
	c.must(yaml.Unmarshal([]byte(text), &u.Object))
	ns := c.dynamic.Resource(r).Namespace(u.GetNamespace())
	if _, err := ns.Create(c.t.Context(), u, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
		_, err = ns.Update(c.t.Context(), u, metav1.UpdateOptions{})
		c.must(err)
	} else {
		c.must(err)
	}
}

func service(name string, selector map[string]string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec:       corev1.ServiceSpec{Selector: selector, Ports: ports, ClusterIP: "10.0.0.1", ClusterIPs: []string{"10.0.0.1"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}},
	}
}

func port(name string, number int32, target int) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Port: number, TargetPort: intstr.FromInt(target), Protocol: corev1.ProtocolTCP}
}

// meshPod is a pod with a sidecar, as the webhook makes it.
func meshPod(name, ip string, ready bool) *corev1.Pod {
	always := corev1.ContainerRestartPolicyAlways
	p := plainPod(name, ip)
	p.Spec.InitContainers = []corev1.Container{{Name: "malha-init"}, {Name: kube.ContainerName, RestartPolicy: &always}}
	setReady(p, ready)
	return p
}

func setReady(p *corev1.Pod, ready bool) {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}
}

func plainPod(name, ip string) *corev1.Pod {
	yes := true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: name, Labels: map[string]string{"app": "web", "pod-template-hash": "abc"},
			OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web-abc", Controller: &yes}},
		},
		Spec: corev1.PodSpec{
			NodeName: "n1", ServiceAccountName: "web",
			Containers: []corev1.Container{{Name: "web", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}},
		},
		Status: corev1.PodStatus{PodIP: ip, Phase: corev1.PodRunning},
	}
}

func nodeIn(name, region, zone string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		corev1.LabelTopologyRegion: region, corev1.LabelTopologyZone: zone, corev1.LabelHostname: name,
	}}}
}

func slice(name, service string, endpoints ...string) *discoveryv1.EndpointSlice {
	yes, node, portName, number := true, "n1", "http", int32(8080)
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &number}},
	}
	for _, e := range endpoints {
		pod, ip, _ := strings.Cut(e, "=")
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}, NodeName: &node,
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: pod},
		})
	}
	return s
}

const rule = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop, generation: %d, managedFields: [{manager: x}], uid: u, resourceVersion: "%d"}
spec:
  hosts: [web]
  http: [{route: [{destination: {host: web}}]}]
status: {conditions: [{type: Reconciled}]}
`

// inBubble runs a test in a time of its own. The library's handlers of errors wait by the time that they remember, which is
// another bubble's; Source reports errors itself.
func inBubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	handlers := utilruntime.ErrorHandlers
	utilruntime.ErrorHandlers = nil
	defer func() { utilruntime.ErrorHandlers = handlers }()
	synctest.Test(t, f)
}

func TestEverything(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, nodeIn("n1", "eu", "eu-1"), service("web", map[string]string{"app": "web"}, port("http", 80, 8080)),
			meshPod("web-1", "10.1.0.1", true), meshPod("web-2", "", false), plainPod("web-3", "10.1.0.3"),
			slice("web-x", "web", "web-1=10.1.0.1", "web-3=10.1.0.3"),
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"a": "b"}}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceActive}},
		)
		c.apply(virtualServices, fmt.Sprintf(rule, 1, 1))
		c.run()
		defer c.end()
		r := c.whole()
		if len(r.Diagnostics) > 0 {
			t.Errorf("diagnostics: %v", r.Diagnostics)
		}
		if len(r.Config.Services) != 1 || len(r.Config.Routings) != 1 || len(r.Config.Namespaces) != 1 {
			t.Errorf("services %v, routings %v, namespaces %v", r.Config.Services, r.Config.Routings, r.Config.Namespaces)
		}
		if o := r.Config.Routings[0].Origin; o.File != "kubernetes" || o.Line != 0 || o.Name != "web" {
			t.Errorf("origin %+v", o)
		}
		var names []string
		for _, wl := range r.Config.Workloads {
			names = append(names, wl.Name.String()+" "+wl.Identity.URI()+" "+wl.Locality+" "+wl.Labels["service.istio.io/workload-name"]+" "+wl.Labels[corev1.LabelHostname])
		}
		const id = "spiffe://cluster.local/ns/shop/sa/web"
		if diff := cmp.Diff([]string{"shop/web-1 " + id + " eu/eu-1 web n1", "shop/web-2 " + id + " eu/eu-1 web n1"}, names); diff != "" {
			t.Error(diff)
		}
		want := []model.Instance{{
			Workload: ident.Name{Namespace: "shop", Name: "web-1"}, Ready: true,
			Captured: &model.Captured{Address: "10.1.0.1", Inbound: "0.0.0.0:15006", Outbound: "127.0.0.1:15001", DNS: "127.0.0.1:15053", Node: "n1"},
		}}
		if diff := cmp.Diff(want, r.Instances); diff != "" {
			t.Errorf("instances: %s", diff)
		}
		// The endpoint of the pod with a sidecar is its workload, and not there twice.
		if len(r.Config.Endpoints) != 1 || len(r.Config.Endpoints[0].Endpoints) != 1 || r.Config.Endpoints[0].Endpoints[0].Address != "10.1.0.3" {
			t.Fatalf("endpoints: %+v", r.Config.Endpoints)
		}
		if e := r.Config.Endpoints[0].Endpoints[0]; e.Locality != "eu/eu-1" || e.Node != "n1" || e.Labels["app"] != "web" || !e.Identity.IsZero() {
			t.Errorf("endpoint: %+v", e)
		}
	})
}

func TestPodsComeAndGo(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, service("web", map[string]string{"app": "web"}, port("http", 80, 8080)))
		c.run()
		defer c.end()
		c.whole()
		pods := c.client.CoreV1().Pods("shop")
		name := ident.Name{Namespace: "shop", Name: "web-1"}

		p := meshPod("web-1", "", false)
		_, err := pods.Create(t.Context(), p, metav1.CreateOptions{})
		c.must(err)
		d := c.delta()
		if len(d.Workloads) != 1 || d.Workloads[0].Name != name || len(d.Instances) != 0 {
			t.Errorf("a pod without an address: %+v", d)
		}
		p.Status.PodIP = "10.1.0.1"
		_, err = pods.Update(t.Context(), p, metav1.UpdateOptions{})
		c.must(err)
		if d = c.delta(); len(d.Workloads) != 0 || len(d.Instances) != 1 || d.Instances[0].Ready {
			t.Errorf("a pod with an address: %+v", d)
		}
		setReady(p, true)
		_, err = pods.Update(t.Context(), p, metav1.UpdateOptions{})
		c.must(err)
		if d = c.delta(); len(d.Instances) != 1 || !d.Instances[0].Ready {
			t.Errorf("a pod that is ready: %+v", d)
		}
		p.Annotations = map[string]string{"a": "b"} // nothing to the mesh
		_, err = pods.Update(t.Context(), p, metav1.UpdateOptions{})
		c.must(err)
		if all := c.next(); len(all) != 0 {
			t.Errorf("%d Results for nothing", len(all))
		}
		now := metav1.Now()
		p.DeletionTimestamp = &now // still ready for the kubelet
		_, err = pods.Update(t.Context(), p, metav1.UpdateOptions{})
		c.must(err)
		if d = c.delta(); len(d.Instances) != 1 || d.Instances[0].Ready {
			t.Errorf("a pod that is to go: %+v", d)
		}
		c.must(pods.Delete(t.Context(), "web-1", metav1.DeleteOptions{}))
		if d = c.delta(); !slices.Equal(d.Ended, []ident.Name{name}) || !slices.Equal(d.Unplaced, []ident.Name{name}) {
			t.Errorf("a pod that is gone: %+v", d)
		}
	})
}

func TestEndpointsAreDeltas(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, service("web", map[string]string{"app": "web"}, port("http", 80, 8080)), service("bare", nil, port("http", 80, 8080)),
			slice("web-x", "web", "web-1=10.1.0.1"))
		c.run()
		defer c.end()
		c.whole()
		slices := c.client.DiscoveryV1().EndpointSlices("shop")
		_, err := slices.Update(t.Context(), slice("web-x", "web", "web-1=10.1.0.1", "web-2=10.1.0.2"), metav1.UpdateOptions{})
		c.must(err)
		if d := c.delta(); len(d.Groups) != 1 || len(d.Groups[0].Endpoints) != 2 {
			t.Errorf("one more: %+v", d)
		}
		// It was a stranger, and turns out to be of the mesh: its workload stands for it.
		_, err = c.client.CoreV1().Pods("shop").Create(t.Context(), meshPod("web-2", "10.1.0.2", true), metav1.CreateOptions{})
		c.must(err)
		if d := c.delta(); len(d.Workloads) != 1 || len(d.Instances) != 1 || len(d.Groups) != 1 || len(d.Groups[0].Endpoints) != 1 {
			t.Errorf("of the mesh: %+v", d)
		}
		// Behind a Service without a selector nothing else stands for it.
		_, err = slices.Create(t.Context(), slice("bare-x", "bare", "web-2=10.1.0.2"), metav1.CreateOptions{})
		c.must(err)
		d := c.delta()
		if len(d.Groups) != 1 || len(d.Groups[0].Endpoints) != 1 || d.Groups[0].Endpoints[0].Identity.ServiceAccount != "web" {
			t.Errorf("without a selector: %+v", d)
		}
		c.must(slices.Delete(t.Context(), "web-x", metav1.DeleteOptions{}))
		if d := c.delta(); len(d.Ungrouped) != 1 {
			t.Errorf("gone: %+v", d)
		}
	})
}

// TestEndpointsByHand: an EndpointSlice that somebody wrote names addresses, not pods. One of a pod with a sidecar is called by its
// identity all the same, whichever of the two came first, and no longer when the pod has gone.
func TestEndpointsByHand(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		byHand := func(name, service string, ips ...string) *discoveryv1.EndpointSlice {
			s := slice(name, service)
			for _, ip := range ips {
				s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}})
			}
			return s
		}
		c := newCluster(t, service("db", nil, port("http", 80, 8080)), service("web", map[string]string{"app": "web"}, port("http", 80, 8080)),
			service("old", map[string]string{"app": "old"}, port("http", 80, 8080)),
			meshPod("web-1", "10.1.0.1", true), byHand("db-x", "db", "10.1.0.1", "10.1.0.2", "192.0.2.1"), byHand("web-x", "web", "10.1.0.1"), byHand("old-x", "old", "10.1.0.1"))
		c.run()
		defer c.end()
		const id = "spiffe://cluster.local/ns/shop/sa/web"
		said := func(groups []model.EndpointGroup) []string {
			var out []string
			for _, g := range groups {
				for _, e := range g.Endpoints {
					who := "nobody"
					if !e.Identity.IsZero() {
						who = e.Identity.URI()
					}
					out = append(out, g.Host+" "+e.Address+" "+who)
				}
			}
			slices.Sort(out)
			return out
		}
		want := []string{
			"db.shop.svc.cluster.local 10.1.0.1 " + id, "db.shop.svc.cluster.local 10.1.0.2 nobody", "db.shop.svc.cluster.local 192.0.2.1 nobody",
			"old.shop.svc.cluster.local 10.1.0.1 " + id, // web's is that of its workload
		}
		if diff := cmp.Diff(want, said(c.whole().Config.Endpoints)); diff != "" {
			t.Error(diff)
		}
		pods := c.client.CoreV1().Pods("shop")
		_, err := pods.Create(t.Context(), meshPod("web-2", "10.1.0.2", true), metav1.CreateOptions{})
		c.must(err)
		want = want[:3]
		want[1] = "db.shop.svc.cluster.local 10.1.0.2 " + id
		if diff := cmp.Diff(want, said(c.delta().Groups)); diff != "" {
			t.Error(diff)
		}
		c.must(pods.Delete(t.Context(), "web-1", metav1.DeleteOptions{}))
		want[0] = "db.shop.svc.cluster.local 10.1.0.1 nobody"
		got := said(c.delta().Groups)
		if diff := cmp.Diff(want, slices.DeleteFunc(got, func(s string) bool { return !strings.HasPrefix(s, "db.") })); diff != "" {
			t.Error(diff)
		}
	})
}

func TestStatusesAreNoChange(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t)
		c.apply(virtualServices, fmt.Sprintf(rule, 1, 1))
		c.run()
		defer c.end()
		c.whole()
		c.apply(virtualServices, fmt.Sprintf(rule, 1, 2))
		if all := c.next(); len(all) != 0 {
			t.Errorf("%d Results for a status", len(all))
		}
		c.apply(virtualServices, strings.ReplaceAll(fmt.Sprintf(rule, 2, 3), "hosts: [web]", "hosts: [shop]"))
		if r := c.whole(); r.Config.Routings[0].Hosts[0] != "shop.shop.svc.cluster.local" {
			t.Errorf("hosts %v", r.Config.Routings[0].Hosts)
		}
	})
}

func TestOneBadObject(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t)
		c.apply(virtualServices, fmt.Sprintf(rule, 1, 1))
		c.apply(virtualServices, `{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: bad, namespace: shop}, spec: {hosts: [web], nonsense: 1}}`)
		c.run()
		defer c.end()
		r := c.whole()
		if len(r.Config.Routings) != 1 || r.Config.Routings[0].Name.Name != "web" {
			t.Errorf("routings %v", r.Config.Routings)
		}
		if len(r.Diagnostics) != 1 || r.Diagnostics[0].Origin.Name != "bad" || r.Diagnostics[0].Severity != model.Error {
			t.Errorf("diagnostics %v", r.Diagnostics)
		}
		c.apply(peerAuth, `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: bad, namespace: shop}, spec: {mtls: {mode: STRIKT}}}`)
		if ds := c.whole().Diagnostics; !slices.ContainsFunc(ds, func(d model.Diagnostic) bool { return d.Code == manifest.CodeUnguarded }) {
			t.Errorf("nothing says that nobody is refused: %v", ds)
		}
	})
}

// TestKindsComeAndGo installs a CRD and removes it, without a restart.
func TestKindsComeAndGo(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t)
		c.serve("networking.istio.io/v1")
		c.apply(peerAuth, `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p, namespace: shop}, spec: {mtls: {mode: STRICT}}}`)
		c.run()
		defer c.end()
		if r := c.whole(); len(r.Config.PeerAuth) != 0 {
			t.Fatal("a kind that is not served is in force")
		}
		crd := &metav1.PartialObjectMetadata{
			TypeMeta:   metav1.TypeMeta{APIVersion: "apiextensions.k8s.io/v1", Kind: "CustomResourceDefinition"},
			ObjectMeta: metav1.ObjectMeta{Name: "peerauthentications.security.istio.io"},
		}
		c.serve("networking.istio.io/v1", "security.istio.io/v1")
		c.must(c.crds.Tracker().Create(crds, crd, ""))
		if r := c.whole(); len(r.Config.PeerAuth) != 1 || len(r.Diagnostics) != 0 {
			t.Fatalf("PeerAuthentications %v, %v", r.Config.PeerAuth, r.Diagnostics)
		}
		c.serve("networking.istio.io/v1", "security.istio.io/v9")
		c.must(c.crds.Tracker().Delete(crds, "", crd.Name))
		r := c.whole()
		if len(r.Config.PeerAuth) != 0 || len(r.Diagnostics) != 1 || r.Diagnostics[0].Code != kube.CodeVersion {
			t.Fatalf("PeerAuthentications %v, %v", r.Config.PeerAuth, r.Diagnostics)
		}
	})
}

// TestForbidden may not read VirtualServices: that is said, and everything else is in force.
func TestForbidden(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, service("web", map[string]string{"app": "web"}, port("http", 80, 8080)))
		c.apply(peerAuth, `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p, namespace: shop}, spec: {mtls: {mode: STRICT}}}`)
		c.dynamic.PrependReactor("list", "virtualservices", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(virtualServices.GroupResource(), "", nil)
		})
		c.run()
		defer c.end()
		r := c.whole()
		if len(r.Config.Services) != 1 || len(r.Config.PeerAuth) != 1 {
			t.Errorf("services %v, PeerAuthentications %v", r.Config.Services, r.Config.PeerAuth)
		}
		if len(r.Diagnostics) != 1 || r.Diagnostics[0].Code != kube.CodeForbidden || !strings.Contains(r.Diagnostics[0].Hint, "virtualservices") {
			t.Errorf("diagnostics %v", r.Diagnostics)
		}
		if diff := cmp.Diff(r.Diagnostics, c.source.Diagnostics()); diff != "" {
			t.Error(diff)
		}
	})
}

// TestAway asks an API server that is away: nothing is new by that, and it is said for as long as it is so.
func TestAway(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, service("web", map[string]string{"app": "web"}, port("http", 80, 8080)))
		c.run()
		defer c.end()
		c.whole()
		var away atomic.Bool
		away.Store(true)
		refused := func(clienttesting.Action) (bool, runtime.Object, error) {
			return away.Load(), nil, errors.New("connection refused")
		}
		c.client.PrependReactor("list", "services", refused)
		c.client.PrependWatchReactor("services", func(clienttesting.Action) (bool, watch.Interface, error) {
			return away.Load(), nil, errors.New("connection refused")
		})
		c.drop()
		time.Sleep(3 * time.Minute)
		if all := c.next(); len(all) != 0 {
			t.Errorf("%d Results because the API server is away", len(all))
		}
		if ds := c.source.Diagnostics(); len(ds) != 1 || ds[0].Code != kube.CodeUnread {
			t.Errorf("diagnostics %v", ds)
		}
		away.Store(false)
		_, err := c.client.CoreV1().Services("shop").Create(t.Context(), service("more", map[string]string{"app": "web"}, port("http", 80, 8080)), metav1.CreateOptions{})
		c.must(err)
		time.Sleep(3 * time.Minute)
		if r := c.whole(); len(r.Config.Services) != 2 || len(c.source.Diagnostics()) != 0 {
			t.Errorf("%d services, %v", len(r.Config.Services), c.source.Diagnostics())
		}
	})
}

// TestBusyAtTheBeginning asks an API server that answers about some kinds later: what guards is waited for, as proxies that have policies
// would lose them; other kinds for as long as patience lasts.
func TestBusyAtTheBeginning(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, service("web", map[string]string{"app": "web"}, port("http", 80, 8080)))
		c.apply(peerAuth, `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p, namespace: shop}, spec: {mtls: {mode: STRICT}}}`)
		c.apply(virtualServices, `{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: v, namespace: shop}, spec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}}`)
		var guards, routes atomic.Bool
		busy := func(done *atomic.Bool) clienttesting.ReactionFunc {
			return func(clienttesting.Action) (bool, runtime.Object, error) {
				return !done.Load(), nil, apierrors.NewServiceUnavailable("busy")
			}
		}
		c.dynamic.PrependReactor("list", "peerauthentications", busy(&guards))
		c.dynamic.PrependReactor("list", "virtualservices", busy(&routes))
		c.run()
		defer c.end()
		if all := c.next(); len(all) != 0 {
			t.Fatalf("a Result with %d PeerAuthentications and %d routings before any was read", len(all[0].Config.PeerAuth), len(all[0].Config.Routings))
		}
		time.Sleep(time.Minute)
		if all := c.next(); len(all) != 0 || c.source.Synced() {
			t.Fatal("a Result without what guards")
		}
		guards.Store(true)
		time.Sleep(time.Minute)
		if r := c.whole(); len(r.Config.PeerAuth) != 1 || len(r.Config.Routings) != 0 {
			t.Errorf("%d PeerAuthentications, %d routings", len(r.Config.PeerAuth), len(r.Config.Routings))
		}
		routes.Store(true)
		time.Sleep(time.Minute)
		if r := c.whole(); len(r.Config.PeerAuth) != 1 || len(r.Config.Routings) != 1 {
			t.Errorf("%d PeerAuthentications, %d routings", len(r.Config.PeerAuth), len(r.Config.Routings))
		}
	})
}

// TestPodsForbidden must not say that there are no workloads: there would be no plan for any.
func TestPodsForbidden(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, meshPod("web-1", "10.1.0.1", true))
		var allowed atomic.Bool
		c.client.PrependReactor("list", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
			return !allowed.Load(), nil, apierrors.NewForbidden(corev1.Resource("pods"), "", nil)
		})
		c.run()
		defer c.end()
		if all := c.next(); len(all) != 0 || c.source.Synced() {
			t.Fatalf("%d Results, synced %t", len(all), c.source.Synced())
		}
		if ds := c.source.Diagnostics(); len(ds) != 1 || ds[0].Code != kube.CodeForbidden {
			t.Errorf("diagnostics %v", ds)
		}
		allowed.Store(true)
		time.Sleep(3 * time.Minute) // it is asked again a minute later at most
		if r := c.whole(); len(r.Instances) != 1 || len(r.Diagnostics) != 0 || !c.source.Synced() {
			t.Errorf("instances %v, %v", r.Instances, r.Diagnostics)
		}
	})
}

const door = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: door, namespace: shop}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: shop-cert}, hosts: ["*"]}
  - {port: {number: 8081, name: http, protocol: HTTP}, hosts: ["*"]}
`

// TestGatewayAndItsSecret reads no Secret but the one that is named.
func TestGatewayAndItsSecret(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g := plainPod("gw-1", "10.1.0.9")
		g.Namespace, g.Labels = "malha-system", map[string]string{"app": "gw", "istio": "ingressgateway", kube.LabelRole: kube.GatewayValue}
		g.Spec.Containers = []corev1.Container{{Name: kube.ContainerName, Ports: []corev1.ContainerPort{{Name: "https", ContainerPort: 8443}}}}
		s := service("gw", map[string]string{"app": "gw"}, corev1.ServicePort{Name: "https", Port: 443, TargetPort: intstr.FromString("https")})
		s.Namespace = "malha-system"
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.7"}}
		cert, key := keyPair(t)
		secret := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: "malha-system", Name: "shop-cert"}, Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": cert, "tls.key": key},
		}
		c := newCluster(t, g, s, secret, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "malha-system", Name: "private"}, Data: map[string][]byte{"tls.crt": cert, "tls.key": key}})
		c.apply(gateways, door)
		c.run()
		defer c.end()
		r := c.whole()
		if len(r.Diagnostics) > 0 {
			t.Errorf("diagnostics %v", r.Diagnostics)
		}
		if len(r.Config.Secrets) != 1 || r.Config.Secrets[0].Secret.Name != "malha-system/shop-cert" {
			t.Errorf("%d secrets", len(r.Config.Secrets))
		}
		for _, a := range c.client.Actions() {
			if l, ok := a.(clienttesting.ListActionImpl); ok && a.GetResource().Resource == "secrets" && (a.GetNamespace() == "" || l.ListRestrictions.Fields.String() != "metadata.name=shop-cert") {
				t.Errorf("asked for secrets in namespace %q, fields %s", a.GetNamespace(), l.ListRestrictions.Fields)
			}
		}
		if len(r.Gateways) != 1 {
			t.Fatalf("gateways %v", r.Gateways)
		}
		if diff := cmp.Diff(map[int]string{443: "0.0.0.0:8443", 8081: "0.0.0.0:8081"}, r.Gateways[0].Binds); diff != "" {
			t.Error(diff)
		}
		if got := r.Config.Services[0].Addresses; !slices.Equal(got, []string{"10.0.0.1", "192.0.2.7"}) {
			t.Errorf("addresses %v", got)
		}
		c.must(c.client.CoreV1().Secrets("malha-system").Delete(t.Context(), "shop-cert", metav1.DeleteOptions{}))
		if r := c.whole(); len(r.Config.Secrets) != 0 {
			t.Error("a Secret that is gone is still there")
		}
	})
}

// TestRoots makes policies of malha-system the mesh's, and leaves those of another mesh's root alone.
func TestRoots(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t)
		for _, ns := range []string{"malha-system", "istio-system", "shop"} {
			c.apply(peerAuth, `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p, namespace: `+ns+`}, spec: {mtls: {mode: STRICT}}}`)
		}
		c.run()
		defer c.end()
		r := c.whole()
		var got []string
		for _, p := range r.Config.PeerAuth {
			got = append(got, p.Name.String()+" "+p.Origin.Namespace)
		}
		slices.Sort(got)
		if diff := cmp.Diff([]string{ident.RootNamespace + "/p malha-system", "shop/p shop"}, got); diff != "" {
			t.Error(diff)
		}
		if len(r.Diagnostics) != 1 || r.Diagnostics[0].Code != kube.CodeNotRoot {
			t.Errorf("diagnostics %v", r.Diagnostics)
		}
	})
}

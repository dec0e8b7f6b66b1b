package kube_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	discoveryfake "k8s.io/client-go/discovery/fake"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/malha-mesh/malha/internal/app/kube"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/watch"
)

type staticMapper struct{ *meta.DefaultRESTMapper }

func (staticMapper) Reset() {}

var virtualServices = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "virtualservices"}

// newClients are of a fake API server with a Service, a pod with a sidecar, and a VirtualService that leads nowhere.
func newClients(t *testing.T) (kube.Clients, *fake.Clientset, *dynamicfake.FakeDynamicClient) {
	t.Helper()
	always := corev1.ContainerRestartPolicyAlways
	client := fake.NewClientset(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.ServiceSpec{
			ClusterIP: "198.19.0.7", ClusterIPs: []string{"198.19.0.7"}, Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(80)}},
		}},
		&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-1", Labels: map[string]string{"app": "web"}},
			Spec: corev1.PodSpec{
				ServiceAccountName: "web", NodeName: "a",
				InitContainers: []corev1.Container{{Name: "malha-proxy", RestartPolicy: &always}},
				Containers:     []corev1.Container{{Name: "web", Ports: []corev1.ContainerPort{{ContainerPort: 80}}}},
			},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "198.18.0.9", Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
		},
	)
	client.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		in := a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
		out := &authenticationv1.TokenReview{}
		if pod, ok := strings.CutPrefix(in.Spec.Token, "token of "); ok {
			out.Status = authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: in.Spec.Audiences, User: authenticationv1.UserInfo{
				Username: "system:serviceaccount:shop:web",
				Extra: map[string]authenticationv1.ExtraValue{
					"authentication.kubernetes.io/pod-name": {pod}, "authentication.kubernetes.io/pod-uid": {"1"},
				},
			}}
		}
		return true, out, nil
	})
	verbs := metav1.Verbs{"get", "list", "watch"}
	client.Discovery().(*discoveryfake.FakeDiscovery).Resources = []*metav1.APIResourceList{{
		GroupVersion: "networking.istio.io/v1", APIResources: []metav1.APIResource{{Name: "virtualservices", Kind: "VirtualService", Namespaced: true, Verbs: verbs}},
	}}
	dyn := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{virtualServices: "VirtualServiceList"},
		&unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": map[string]any{"namespace": "shop", "name": "web", "generation": int64(1)},
			"spec": map[string]any{"hosts": []any{"web"}, "http": []any{map[string]any{"route": []any{map[string]any{"destination": map[string]any{"host": "wep"}}}}}},
		}})
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	m := meta.NewDefaultRESTMapper(nil)
	m.AddSpecific(virtualServices.GroupVersion().WithKind("VirtualService"), virtualServices, virtualServices, meta.RESTScopeNamespace)
	return kube.Clients{Kubernetes: client, Dynamic: dyn, Metadata: metadatafake.NewSimpleMetadataClient(scheme), Mapper: staticMapper{m}}, client, dyn
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never came: %s", what)
		}
	}
}

func get(t *testing.T, client *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// The whole control plane on a fake API server: a proxy proves by its pod's token who it is, gets its plan, and what is wrong
// stands where people look.
func TestServer(t *testing.T) {
	clients, client, dyn := newClients(t)
	s, err := kube.Open(clients, kube.Options{
		Control: "127.0.0.1:0", Webhook: "127.0.0.1:0", Monitor: "127.0.0.1:0", Debug: "127.0.0.1:0", Replica: "malhad-1", Version: "v1.2.3", NoGateways: true,
		Webhooks: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hook") }),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Ready(); err == nil {
		t.Error("ready before anything is known")
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
		if code, _ := get(t, http.DefaultClient, "http://"+s.Addr("monitor")+"/healthz/live"); code != 0 {
			t.Error("it is still served after Run")
		}
	}()
	plain := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	eventually(t, "readiness", func() bool {
		code, _ := get(t, plain, "http://"+s.Addr("monitor")+"/healthz/ready")
		return code == http.StatusOK
	})
	bundle := ""
	eventually(t, "the trust bundle", func() bool {
		m, err := client.CoreV1().ConfigMaps("shop").Get(ctx, kube.BundleName, metav1.GetOptions{})
		if err == nil {
			bundle = m.Data[kube.BundleKey]
		}
		return err == nil
	})

	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	rootsFile := write("roots.pem", bundle)
	proxy := func(pod, token string) chan *plan.Plan {
		plans := make(chan *plan.Plan, 64)
		w := watch.New(watch.Options{
			Addr: s.Addr("control"), Node: ident.Name{Namespace: "shop", Name: pod}, Role: plan.Sidecar, RootsFile: rootsFile, TokenFile: write("token-"+pod, token),
			Apply: func(p *plan.Plan) error { plans <- p; return nil },
		})
		wctx, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() { defer close(ended); _ = w.Run(wctx) }()
		t.Cleanup(func() { stop(); <-ended })
		return plans
	}
	select {
	case p := <-proxy("web-1", "token of web-1"):
		if p.Node.Identity.URI() != "spiffe://cluster.local/ns/shop/sa/web" || p.Node.Workload.App != "web" || p.Capture == nil {
			t.Errorf("node %+v, capture %+v", p.Node, p.Capture)
		}
	case <-time.After(time.Minute):
		t.Fatal("no plan came")
	}
	strangers := []chan *plan.Plan{
		proxy("web-2", "token of web-1"), // another pod's name
		proxy("web-3", "token of web-3"), // a pod that has no sidecar
		proxy("web-4", "nonsense"),
	}

	eventually(t, "the status", func() bool {
		o, err := dyn.Resource(virtualServices).Namespace("shop").Get(ctx, "web", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		return len(conditions) == 1 && conditions[0].(map[string]any)["status"] == "False" && strings.Contains(conditions[0].(map[string]any)["message"].(string), "MALHA0801")
	})
	for _, line := range []string{`pilot_xds{version="v1.2.3"} 1`, `pilot_services 1`, `pilot_virt_services 1`, `malha_leader 1`, `malha_diagnostics{severity="error"} 1`, `malha_control_proxies{sync="synced"} 1`, `pilot_proxy_convergence_time_bucket{le="30"} 1`, `malha_control_compile_seconds_count{what="whole"} 1`} {
		eventually(t, line, func() bool {
			_, metrics := get(t, plain, "http://"+s.Addr("monitor")+"/metrics")
			return slices.Contains(strings.Split(metrics, "\n"), line)
		})
	}
	for path, want := range map[string]string{
		"version": `"v1.2.3"`, "proxies": `"synced"`, "plan?proxy=shop/web-1": `"198.19.0.7"`, "diagnostics": "MALHA0801", "analysis": "MALHA0801", "plan?proxy=shop/nobody": "sidecar",
	} {
		eventually(t, path, func() bool {
			_, body := get(t, plain, "http://"+s.Addr("debug")+"/debug/"+path)
			return strings.Contains(body, want)
		})
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(bundle))
	secure := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "malhad.malha-system.svc"}}}
	if code, body := get(t, secure, "https://"+s.Addr("webhooks")+"/inject"); code != http.StatusOK || body != "hook" {
		t.Errorf("webhook: %d %s", code, body)
	}
	for i, plans := range strangers {
		select {
		case p := <-plans:
			t.Errorf("stranger %d got the plan of %s", i, p.Node.Name)
		default:
		}
	}
}

// One part that fails ends all of them, also the one that leads: a replica that goes on without a part looks alive and is not.
func TestAPartFails(t *testing.T) {
	clients, _, _ := newClients(t)
	s, err := kube.Open(clients, kube.Options{Control: "127.0.0.1:0", Monitor: "127.0.0.1:0", Replica: "malhad-1", NoGateways: true})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context()) }()
	plain := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	eventually(t, "a leader", func() bool {
		_, metrics := get(t, plain, "http://"+s.Addr("monitor")+"/metrics")
		return strings.Contains(metrics, "\nmalha_leader 1\n")
	})
	_ = s.Close() // the ports are gone under those who serve them
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "metrics and health: ") {
			t.Errorf("Run = %v, want what failed", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Run goes on without a part")
	}
}

func TestOpenNeedsItsPorts(t *testing.T) {
	clients, _, _ := newClients(t)
	s, err := kube.Open(clients, kube.Options{Monitor: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Addr("webhooks") != "" || s.Addr("control") != "" {
		t.Error("addresses of what is not served")
	}
	if _, err := kube.Open(clients, kube.Options{Monitor: "127.0.0.1:0", Debug: s.Addr("monitor")}); err == nil || !strings.Contains(err.Error(), "debug") {
		t.Errorf("a port that is in use: %v", err)
	}
}

// Without an API server it lives and is not ready, and ends when asked to.
func TestWithoutAPIServer(t *testing.T) {
	clients, client, _ := newClients(t)
	client.PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("connection refused")
	})
	s, err := kube.Open(clients, kube.Options{Control: "127.0.0.1:0", Monitor: "127.0.0.1:0", Linger: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	plain := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if code, _ := get(t, plain, "http://"+s.Addr("monitor")+"/healthz/live"); code != http.StatusOK {
		t.Errorf("live: %d", code)
	}
	if code, body := get(t, plain, "http://"+s.Addr("monitor")+"/healthz/ready"); code != http.StatusServiceUnavailable || !strings.Contains(body, kube.SecretName) {
		t.Errorf("ready: %d %s", code, body)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v", err)
	}
}

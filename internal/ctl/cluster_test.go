package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/malha-mesh/malha/internal/app/control"
	"github.com/malha-mesh/malha/internal/cluster"
	"github.com/malha-mesh/malha/internal/cluster/clustertest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
)

// onCluster runs a command line against a cluster.
func onCluster(t *testing.T, s *clustertest.Server, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	ses := &session{version: "v1.2.3", args: args, ui: newUI(&out, &errs), connect: func(o cluster.Options) (*cluster.Cluster, error) {
		c := *s.Cluster
		if o.Namespace != "" {
			c.Namespace = o.Namespace
		}
		return &c, nil
	}}
	root := ses.root()
	root.SetArgs(args)
	if err := root.ExecuteContext(t.Context()); err != nil {
		var exit exitCode
		if errors.As(err, &exit) {
			return int(exit), out.String(), errs.String()
		}
		return 1, out.String(), errs.String() + "error: " + err.Error()
	}
	return 0, out.String(), errs.String()
}

func must(t *testing.T, s *clustertest.Server, args ...string) (stdout, stderr string) {
	t.Helper()
	code, stdout, stderr := onCluster(t, s, args...)
	if code != 0 {
		t.Fatalf("malha %s: exit %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout, stderr
}

func has(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("it does not say %q:\n%s", p, text)
		}
	}
}

// TestInstallUninstall is the whole life of an installation: nothing is left behind, and what was there before is.
func TestInstallUninstall(t *testing.T) {
	s := clustertest.New(t, `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop}
`)
	before := s.All(t)
	_, said := must(t, s, "install", "--profile", "demo")
	has(t, said, "you may do all of it", "webhooks: 2 created", "malhad is ready", "malha-ingressgateway is ready", "malha.dev/inject=enabled")

	_, said = must(t, s, "install", "--profile", "demo")
	has(t, said, "webhooks: 2 unchanged")
	if strings.Contains(said, "created") {
		t.Errorf("installing twice makes something anew:\n%s", said)
	}

	// Another profile: what is no longer part of it goes.
	_, said = must(t, s, "install", "--profile", "minimal")
	has(t, said, "removed what is no longer part of it: 4 objects")
	for _, o := range s.All(t) {
		if strings.Contains(o, "ingressgateway") {
			t.Errorf("%s is left of the demo profile", o)
		}
	}

	// What the control plane makes.
	for _, o := range clustertest.Objects(t, `
apiVersion: v1
kind: ConfigMap
metadata: {name: malha-ca-root, namespace: shop, labels: {app.kubernetes.io/part-of: malha}}
---
apiVersion: v1
kind: Secret
metadata: {name: malha-ca, namespace: malha-system}
---
apiVersion: v1
kind: Secret
metadata: {name: malha-ca-previous, namespace: malha-system}
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: malha-leader, namespace: malha-system}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: malha}
spec: {controllerName: malha.dev/gateway-controller}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web-malha, namespace: shop, labels: {app.kubernetes.io/part-of: malha, gateway.networking.k8s.io/gateway-name: web}}
`) {
		if err := s.Dynamic.Tracker().Add(o); err != nil {
			t.Fatal(err)
		}
	}
	out, _ := must(t, s, "uninstall", "--dry-run")
	has(t, out, "deployment/web-malha in shop deleted (dry run)", "mutatingwebhookconfiguration/malha deleted (dry run)")
	if first, _, _ := strings.Cut(out, "\n"); !strings.HasPrefix(first, "mutatingwebhook") {
		t.Errorf("webhooks must go first, or pods can't be made meanwhile: %s", first)
	}
	must(t, s, "uninstall")
	if d := cmp.Diff(before, s.All(t)); d != "" {
		t.Errorf("left behind, or taken along (-before +after):\n%s", d)
	}
	_, said = must(t, s, "uninstall")
	has(t, said, "nothing of Malha")
}

// TestUninstallWaitsForTheControlPlane: what it makes goes after it, or it would be there again.
func TestUninstallWaitsForTheControlPlane(t *testing.T) {
	s := clustertest.New(t)
	must(t, s, "install", "--profile", "minimal")
	for _, o := range clustertest.Objects(t, `
apiVersion: v1
kind: ConfigMap
metadata: {name: malha-ca-root, namespace: malha-system, labels: {app.kubernetes.io/part-of: malha}}
`) {
		if err := s.Dynamic.Tracker().Add(o); err != nil {
			t.Fatal(err)
		}
	}
	asked := 0 // how often the Deployment was asked for after it was deleted; it takes until the second time
	ending := false
	s.Dynamic.PrependReactor("delete", "deployments", func(clienttesting.Action) (bool, runtime.Object, error) {
		ending = true
		return false, nil, nil
	})
	s.Dynamic.PrependReactor("get", "deployments", func(clienttesting.Action) (bool, runtime.Object, error) {
		if !ending {
			return false, nil, nil
		}
		if asked++; asked < 2 {
			return true, &unstructured.Unstructured{Object: map[string]any{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": "malhad"}}}, nil
		}
		return false, nil, nil
	})
	roots := 0
	s.Dynamic.PrependReactor("delete", "configmaps", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if roots++; asked < 2 {
			t.Errorf("%v is deleted while the control plane is there, which makes it again", a)
		}
		return false, nil, nil
	})
	must(t, s, "uninstall")
	if roots == 0 {
		t.Error("no ConfigMap was deleted")
	}
}

func TestUninstallStopsWhileUsed(t *testing.T) {
	s := clustertest.New(t, `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {initContainers: [{name: malha-proxy, restartPolicy: Always}], containers: [{name: web}]}
---
apiVersion: malha.dev/v1alpha1
kind: RateLimit
metadata: {name: slow, namespace: shop}
`)
	must(t, s, "install", "--profile", "minimal")
	installed := s.All(t)
	code, _, said := onCluster(t, s, "uninstall")
	if code == 0 {
		t.Error("it goes on")
	}
	has(t, said, "namespace shop: 1 pods have a proxy", "RateLimit shop/slow goes with its kind", "--force")
	if d := cmp.Diff(installed, s.All(t)); d != "" {
		t.Errorf("it changed something:\n%s", d)
	}
	must(t, s, "uninstall", "--force", "--keep-crds")
	has(t, strings.Join(s.All(t), "\n"), "CustomResourceDefinition /ratelimits.malha.dev")
}

func TestInstallDryRun(t *testing.T) {
	s := clustertest.New(t)
	before := s.All(t)
	out, _ := must(t, s, "install", "--dry-run", "--adopt", "istio", "--set", "controlPlane.replicas=3")
	kinds := map[string]int{}
	for doc := range strings.SplitSeq(out, "---\n") {
		var o struct{ APIVersion, Kind string }
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatalf("not YAML: %v\n%s", err, doc)
		}
		kinds[o.Kind]++
	}
	if kinds["Deployment"] != 2 || kinds["MutatingWebhookConfiguration"] != 1 {
		t.Errorf("kinds: %v", kinds)
	}
	has(t, out, "replicas: 3", "--adopt=istio", "image: malha.dev/malhad:v1.2.3")
	out, _ = must(t, s, "install", "--dry-run", "-o", "json")
	var list struct {
		Kind  string
		Items []map[string]any
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil || list.Kind != "List" || len(list.Items) < 15 {
		t.Errorf("JSON: %v, %s, %d objects", err, list.Kind, len(list.Items))
	}
	if d := cmp.Diff(before, s.All(t)); d != "" {
		t.Errorf("a dry run changed something:\n%s", d)
	}
}

func TestInstallRefusals(t *testing.T) {
	t.Run("rights", func(t *testing.T) {
		s := clustertest.New(t)
		s.Deny("create", "clusterroles")
		code, _, said := onCluster(t, s, "install")
		has(t, said, "create clusterroles.rbac.authorization.k8s.io", "cluster administrator")
		if code != 1 || len(s.All(t)) != 0 {
			t.Errorf("exit %d; made before asking: %v", code, s.All(t))
		}
	})
	t.Run("another mesh", func(t *testing.T) {
		s := clustertest.New(t)
		must(t, s, "install", "--profile", "minimal")
		before := s.All(t)
		code, _, said := onCluster(t, s, "install", "--mesh-namespace", "second")
		has(t, said, "installed in namespace malha-system already", "--mesh-namespace malha-system")
		if d := cmp.Diff(before, s.All(t)); code != 1 || d != "" {
			t.Errorf("exit %d; something was changed: %s", code, d)
		}
	})
	t.Run("never healthy", func(t *testing.T) {
		s := clustertest.New(t)
		s.NeverReady()
		code, _, said := onCluster(t, s, "install", "--timeout", "50ms")
		has(t, said, "pods are available", "not done after 50ms: Deployment malhad", "`malha check`")
		if code != 1 {
			t.Errorf("exit %d", code)
		}
	})
	t.Run("no wait", func(t *testing.T) {
		s := clustertest.New(t)
		s.NeverReady()
		must(t, s, "install", "--wait=false")
	})
	t.Run("profile", func(t *testing.T) {
		code, _, said := onCluster(t, clustertest.New(t), "install", "--profile", "huge")
		if has(t, said, "default, demo, minimal"); code != 1 {
			t.Errorf("exit %d", code)
		}
	})
}

func TestInstallOutput(t *testing.T) {
	out, _ := must(t, clustertest.New(t), "install", "-o", "json")
	var got []objectResult
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got) < 15 || got[0] != (objectResult{"Namespace", "", "malha-system", "created"}) {
		t.Errorf("%v: %v", err, got)
	}
}

const controlPlanePods = `
apiVersion: v1
kind: Pod
metadata: {name: malhad-a, namespace: malha-system, labels: {app: malhad}}
status: {phase: Running, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: malhad-b, namespace: malha-system, labels: {app: malhad}}
status: {phase: Running, conditions: [{type: Ready, status: "True"}]}
`

// answering returns a cluster whose two control planes each have one of two proxies.
func answering(t *testing.T, documents ...string) *clustertest.Server {
	t.Helper()
	s := clustertest.New(t, append(documents, controlPlanePods)...)
	web, api := ident.Name{Namespace: "shop", Name: "web"}, ident.Name{Namespace: "shop", Name: "api"}
	later := time.Now().Add(time.Hour)
	for pod, proxies := range map[string][]control.ProxyStatus{
		"malhad-a": {
			{Name: web, Role: plan.Sidecar, Version: "v1.2.3", Connected: true, Sync: control.Synced, CertExpires: later, Changed: time.Now()},
			{Name: api, Role: plan.Sidecar, Sync: control.Stale, Reason: "not connected"},
		},
		"malhad-b": {
			{Name: web, Role: plan.Sidecar, Sync: control.Stale, Reason: "not connected"},
			{Name: api, Role: plan.Sidecar, Version: "v1.2.2", Connected: true, Sync: control.Failed, Reason: "listener x: unknown field 99", CertExpires: later},
		},
	} {
		s.Answer("malha-system", pod, 15000, map[string]any{
			"/debug/version": map[string]string{"version": "v1.2.3"}, "/debug/proxies": proxies, "/debug/diagnostics": []any{},
		})
	}
	return s
}

func TestProxyStatus(t *testing.T) {
	s := answering(t)
	code, out, _ := onCluster(t, s, "proxy-status")
	has(t, out, "shop/web", "synced", "shop/api", "error (listener x: unknown field 99)", "v1.2.2")
	if code != 1 || strings.Count(out, "shop/") != 2 {
		t.Errorf("exit %d; a proxy is of the replica that it is connected to, and stands once:\n%s", code, out)
	}
	out, _ = must(t, s, "proxy-status", "web.shop", "-o", "json")
	var got []control.ProxyStatus
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got) != 1 || got[0].Name.Name != "web" || !got[0].Connected {
		t.Errorf("%v: %+v", err, got)
	}
	code, _, said := onCluster(t, clustertest.New(t), "proxy-status")
	if has(t, said, "no control plane runs in namespace malha-system", "malha install"); code != 1 {
		t.Errorf("exit %d", code)
	}
}

func TestAnalyzeCluster(t *testing.T) {
	s := answering(t)
	wrong := map[string]any{"code": "MALHA0801", "severity": "error", "origin": map[string]any{"file": "kubernetes", "kind": "VirtualService", "namespace": "shop", "name": "web"}, "message": "no such host wep", "hint": "did you mean web?"}
	lacks := map[string]any{"code": "MALHA1105", "severity": "error", "origin": map[string]any{"file": "kubernetes"}, "message": "the control plane may not write x"}
	quiet := map[string]any{"code": "MALHA0831", "severity": "warning", "origin": map[string]any{"file": "kubernetes", "kind": "Service", "namespace": "shop", "name": "web"}, "message": "unnamed port"}
	all := []any{wrong, quiet}
	suppressed := []any{map[string]any{"kind": "Service", "name": ident.Name{Namespace: "shop", Name: "web"}, "codes": []string{"*"}}}
	s.Answer("malha-system", "malhad-a", 15000, map[string]any{"/debug/analysis": map[string]any{"diagnostics": all, "suppressed": suppressed}})
	s.Answer("malha-system", "malhad-b", 15000, map[string]any{"/debug/analysis": map[string]any{"diagnostics": append(all, lacks), "suppressed": suppressed}})
	code, out, said := onCluster(t, s, "analyze", "--cluster")
	has(t, out+said, "MALHA0801", "VirtualService shop/web", "did you mean web?", "MALHA1105")
	if code != 1 || strings.Count(out, "MALHA0801") != 1 || strings.Contains(out, "unnamed port") {
		t.Errorf("exit %d:\n%s%s", code, out, said)
	}
	s.Break("malha-system", "malhad-b", 15000, io.EOF)
	code, out, said = onCluster(t, s, "analyze", "--cluster", "-o", "json")
	if has(t, out+said, "MALHA0801", "malhad-b broke off the connection"); code != 1 {
		t.Errorf("exit %d", code)
	}
	s.Break("malha-system", "malhad-a", 15000, errors.New("port 15000 of the pod: connection refused"))
	code, _, said = onCluster(t, s, "analyze", "--cluster")
	if has(t, said, "broke off"); code != 3 {
		t.Errorf("exit %d", code)
	}
	if code, _, said = onCluster(t, s, "analyze", "--cluster", "-f", "."); code == 0 {
		t.Errorf("a folder and a cluster: %s", said)
	}
}

func TestClusterVersion(t *testing.T) {
	out, _ := must(t, answering(t), "version")
	has(t, out, "malha v1.2.3", "control plane v1.2.3 (malhad-a)", "proxies v1.2.2 (1), v1.2.3 (1)")
	out, said := must(t, clustertest.New(t), "version")
	has(t, out, "malha v1.2.3")
	has(t, said, "no control plane")
	out, _ = must(t, answering(t), "version", "-o", "json")
	var v versions
	if err := json.Unmarshal([]byte(out), &v); err != nil || v.ControlPlane["malhad-b"] != "v1.2.3" || v.Proxies["v1.2.2"] != 1 {
		t.Errorf("%v: %+v", err, v)
	}
}

const shop = `
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 9080, targetPort: web}, {name: dns, port: 53, protocol: UDP}]
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-1, namespace: shop, labels: {app: reviews}}
spec:
  initContainers: [{name: malha-proxy, restartPolicy: Always, image: "malha.dev/malha-proxy:v1.2.3"}]
  containers: [{name: reviews, ports: [{name: http, containerPort: 9080}]}]
status:
  phase: Running
  initContainerStatuses: [{name: malha-proxy, ready: true, image: "malha.dev/malha-proxy:v1.2.3"}]
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-2, namespace: shop, labels: {app: reviews}}
spec: {containers: [{name: reviews}]}
status: {phase: Running}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-x, namespace: shop, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv4
endpoints:
  - {addresses: [198.18.0.1], targetRef: {kind: Pod, name: reviews-1, namespace: shop}}
  - {addresses: [198.18.0.2], targetRef: {kind: Pod, name: reviews-2, namespace: shop}}
`

func reviewsPlan() *plan.Plan {
	host := "reviews.shop.svc.cluster.local"
	return &plan.Plan{
		Node:    plan.Node{Name: ident.Name{Namespace: "shop", Name: "reviews-1"}, Role: plan.Sidecar, Identity: ident.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "reviews"}},
		Capture: &plan.Capture{Inbound: "0.0.0.0:15006"},
		Listeners: []plan.Listener{
			{Name: "inbound|any", Direction: plan.Inbound, Protocol: ident.TCP, TLS: plan.TLSPermissive},
			{Name: "inbound|9080", Direction: plan.Inbound, Protocol: ident.HTTP, Port: 9080, TLS: plan.TLSStrict, Policies: []string{"shop/only-web"}, Origin: ident.Origin{Kind: "PeerAuthentication", Namespace: "shop", Name: "strict"}},
		},
		Routes: []plan.RouteTable{{Name: "9080", Hosts: []plan.VirtualHost{
			{Name: host + ":9080", Domains: []string{host}, Routes: []plan.Route{
				{Name: "canary", Match: plan.Match{Headers: []plan.FieldMatch{{Name: "x-user", Value: match.String{Kind: match.Exact, Value: "ann"}}}}, Forward: []plan.Destination{{Cluster: "v2"}}, Origin: ident.Origin{Kind: "VirtualService", Namespace: "shop", Name: "reviews", Rule: "http[0]"}},
				{Name: "default", Forward: []plan.Destination{{Cluster: "v1", Weight: 90}, {Cluster: "v2", Weight: 10}}},
			}},
			{Name: "ratings.shop.svc.cluster.local:9080", Domains: []string{"ratings.shop.svc.cluster.local"}, Routes: []plan.Route{{Forward: []plan.Destination{{Cluster: "ratings"}}}}},
		}}},
		Clusters:  []plan.Cluster{{Name: "v1", Host: host, Port: 9080, Protocol: ident.HTTP}, {Name: "ratings", Host: "ratings.shop.svc.cluster.local", Port: 9080}},
		Endpoints: []plan.Endpoints{{Cluster: "v1", Endpoints: []plan.Endpoint{{Address: "198.18.0.1:9080"}}}},
		Policies:  []plan.Policy{{Name: "shop/only-web", Action: plan.Allow, Rules: []plan.PolicyRule{{}}, Origin: ident.Origin{Kind: "AuthorizationPolicy", Namespace: "shop", Name: "only-web"}}},
	}
}

func TestProxyConfig(t *testing.T) {
	s := clustertest.New(t, shop)
	s.Answer("shop", "reviews-1", 15000, map[string]any{"/config_dump": reviewsPlan(), "/certs": map[string]any{"identity": "spiffe://cluster.local/ns/shop/sa/reviews", "chain": []any{map[string]any{"serial": "7", "uris": []string{"spiffe://cluster.local/ns/shop/sa/reviews"}, "notAfter": time.Now().Add(time.Hour)}}}})
	out, _ := must(t, s, "proxy-config", "reviews-1", "-n", "shop")
	has(t, out, "spiffe://cluster.local/ns/shop/sa/reviews", "inbound at 0.0.0.0:15006", "3 rules in 1 tables")
	out, _ = must(t, s, "pc", "reviews-1.shop", "routes", "--host", "reviews")
	has(t, out, "VirtualService/shop/reviews http[0]", "header x-user", "90 % v1, 10 % v2")
	if strings.Contains(out, "ratings") {
		t.Errorf("--host leaves other hosts in:\n%s", out)
	}
	out, _ = must(t, s, "pc", "shop/reviews-1", "all")
	has(t, out, "PeerAuthentication/shop/strict", "AuthorizationPolicy/shop/only-web", "198.18.0.1:9080")
	out, _ = must(t, s, "pc", "svc/reviews.shop", "listeners") // of its two pods the one that has a proxy
	if has(t, out, "http"); strings.ContainsFunc(out, func(r rune) bool { return r < ' ' && r != '\n' }) {
		t.Errorf("%q", out)
	}
	if code, _, said := onCluster(t, s, "pc", "deploy/nobody.shop"); code != 1 || !strings.Contains(said, "there is no deploy nobody in namespace shop") {
		t.Errorf("exit %d: %s", code, said)
	}
	out, _ = must(t, s, "pc", "shop/reviews-1", "certs")
	has(t, out, "spiffe://cluster.local/ns/shop/sa/reviews")
	out, _ = must(t, s, "pc", "shop/reviews-1", "all", "-o", "json")
	got := &plan.Plan{}
	if err := json.Unmarshal([]byte(out), got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(reviewsPlan(), got); d != "" {
		t.Errorf("the plan changed on its way (-want +got):\n%s", d)
	}
	code, _, said := onCluster(t, s, "pc", "shop/reviews-2")
	if has(t, said, "nobody listens at port 15000 of pod shop/reviews-2", "malha describe pod"); code != 1 {
		t.Errorf("exit %d", code)
	}
	if code, _, said = onCluster(t, s, "pc", "shop/reviews-1", "filters"); code != 1 || !strings.Contains(said, "listeners, routes") {
		t.Errorf("exit %d: %s", code, said)
	}
}

func TestDescribe(t *testing.T) {
	s := clustertest.New(t, shop)
	s.Answer("shop", "reviews-1", 15000, map[string]any{"/config_dump": reviewsPlan()})
	out, _ := must(t, s, "describe", "pod", "reviews-1", "-n", "shop")
	has(t, out, "ready, malha.dev/malha-proxy:v1.2.3", "reviews (9080 http, 53 dns)", "http", "mutual TLS: strict", "PeerAuthentication/shop/strict",
		"AuthorizationPolicy/shop/only-web", "UDP, which does not go through the mesh", `the port named "web", which no container of the pod has`)
	out, _ = must(t, s, "describe", "pod", "reviews-2.shop")
	has(t, out, "none; `malha check-inject reviews-2 -n shop`")
	out, _ = must(t, s, "describe", "service", "reviews", "-n", "shop")
	has(t, out, "1 of 2 pods have one", "header x-user", "→ v2", "VirtualService/shop/reviews http[0]", "some of its pods have no proxy", "as shop/reviews-1 has it", "leastRequest, mutual TLS with pods that have a proxy")
	if strings.Contains(out, "ratings") {
		t.Errorf("rules of other services:\n%s", out)
	}
	out, _ = must(t, s, "describe", "service", "reviews.shop", "-o", "yaml")
	d := &description{}
	if err := yaml.Unmarshal([]byte(out), d); err != nil || len(d.Routing) != 2 || d.Seen != "shop/reviews-1" {
		t.Errorf("%v: %+v", err, d)
	}
	for _, args := range [][]string{{"describe", "pod", "nobody"}, {"describe", "service", "nobody"}, {"describe", "node", "x"}} {
		if code, _, said := onCluster(t, s, args...); code != 1 || !strings.Contains(said, "there is") {
			t.Errorf("%v: exit %d: %s", args, code, said)
		}
	}
}

func TestSplitPod(t *testing.T) {
	for arg, want := range map[string]string{"a": "default/a", "a.b": "b/a", "b/a": "b/a", "pod/a": "default/a", "pod/a.b": "b/a", "v1.2-x.b": "b/v1.2-x"} {
		ns, pod := splitPod(arg, "default")
		if got := ns + "/" + pod; got != want {
			t.Errorf("splitPod(%q) = %s, want %s", arg, got, want)
		}
	}
}

// TestClusterErrors: what goes wrong on the way to the cluster comes with a next step.
func TestClusterErrors(t *testing.T) {
	s := clustertest.New(t, shop)
	s.Forbid("get", "pods")
	code, _, said := onCluster(t, s, "describe", "pod", "reviews-1", "-n", "shop")
	if has(t, said, "you lack a right", "eve", "malha check --pre"); code != 1 {
		t.Errorf("exit %d", code)
	}
	t.Setenv("KUBECONFIG", "/nowhere/config")
	t.Setenv("HOME", t.TempDir())
	var out, errs bytes.Buffer
	if code := Main(context.Background(), "v1", []string{"proxy-status"}, nil, &out, &errs); code != 1 || !strings.Contains(errs.String(), "KUBECONFIG") {
		t.Errorf("exit %d: %s", code, errs.String())
	}
	if code := Main(context.Background(), "v1", []string{"version"}, nil, &out, &errs); code != 0 {
		t.Errorf("version without a cluster: exit %d: %s", code, errs.String())
	}
}

// TestAsPlugin: called by kubectl, all that a person could type names kubectl, and data stays as it is.
func TestAsPlugin(t *testing.T) {
	run := func(args ...string) (string, string) {
		var out, errs bytes.Buffer
		s := clustertest.New(t)
		ses := &session{version: "v1", args: args, ui: newUI(&out, &errs), connect: func(cluster.Options) (*cluster.Cluster, error) { return s.Cluster, nil }}
		ses.plugin()
		root := ses.root()
		root.SetArgs(args)
		if err := root.ExecuteContext(t.Context()); err != nil {
			ses.ui.fail(err)
		}
		return out.String(), errs.String()
	}
	out, _ := run("proxy-status", "--help")
	if has(t, out, "kubectl malha proxy-status [POD] [flags]", "  kubectl malha proxy-status -n shop"); strings.Contains(out, "\n  malha ") {
		t.Errorf("its examples can't be typed:\n%s", out)
	}
	_, said := run("proxy-status")
	has(t, said, "`kubectl malha install`", "`kubectl malha check`")
	out, _ = run("check")
	has(t, out, "install the mesh with `kubectl malha install`")
	if out, _ = run("install", "--dry-run"); strings.Contains(out, "kubectl malha") {
		t.Error("manifests are changed")
	}
}

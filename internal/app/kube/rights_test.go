package kube

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	discoveryfake "k8s.io/client-go/discovery/fake"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/malha-mesh/malha/internal/config"
	source "github.com/malha-mesh/malha/internal/config/kube"
	"github.com/malha-mesh/malha/internal/release"
)

// question is what the API server's authorizer is asked. name is set only where the request names the object.
type question struct{ verb, group, resource, namespace, name string }

func (q question) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s.%s in %q named %q", q.verb, q.resource, q.group, q.namespace, q.name))
}

// questions of an action of a fake client.
func questions(a clienttesting.Action) []question {
	r := a.GetResource()
	q := question{a.GetVerb(), r.Group, r.Resource, a.GetNamespace(), ""}
	if sub := a.GetSubresource(); sub != "" {
		q.resource += "/" + sub
	}
	if q.resource == "group" || q.resource == "resource" {
		return nil // which kinds there are: everybody may ask (system:discovery)
	}
	switch a := a.(type) {
	case clienttesting.PatchAction: // before GetAction, which it is, too
		q.name = a.GetName()
		if a.GetPatchType() == types.ApplyPatchType {
			create := q
			create.verb, create.name = "create", ""
			return []question{q, create}
		}
	case clienttesting.ListAction: // RBAC knows a list or watch by metadata.name as one of a name
		q.name, _ = a.GetListRestrictions().Fields.RequiresExactMatch("metadata.name")
	case clienttesting.WatchAction:
		q.name, _ = a.GetWatchRestrictions().Fields.RequiresExactMatch("metadata.name")
	case clienttesting.GetAction:
		q.name = a.GetName()
	case clienttesting.UpdateAction:
		if m, err := meta.Accessor(a.GetObject()); err == nil {
			q.name = m.GetName()
		}
	}
	return []question{q}
}

// grant is a rule where it holds: in a namespace, "" in all.
type grant struct {
	role, namespace string
	rbacv1.PolicyRule
}

// allows is what k8s.io/kubernetes/pkg/registry/rbac/validation RuleAllows says.
func (g *grant) allows(q question) bool {
	return (g.namespace == "" || g.namespace == q.namespace) && slices.Contains(g.Verbs, q.verb) && slices.Contains(g.APIGroups, q.group) &&
		slices.Contains(g.Resources, q.resource) && (len(g.ResourceNames) == 0 || slices.Contains(g.ResourceNames, q.name))
}

// granted is what the chart gives the control plane.
func granted(t *testing.T, set ...string) []grant {
	t.Helper()
	r, err := release.Render(release.Options{Version: "v1", Set: set})
	if err != nil {
		t.Fatal(err)
	}
	rules := map[string][]rbacv1.PolicyRule{}
	var out []grant
	for i := range r.Objects { // roles come before their bindings
		o := &r.Objects[i]
		into := func(v any) {
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, v); err != nil {
				t.Fatal(err)
			}
		}
		bind := func(namespace string, ref rbacv1.RoleRef) {
			for _, rule := range rules[ref.Kind+ref.Name] {
				out = append(out, grant{ref.Kind + " " + ref.Name, namespace, rule})
			}
		}
		switch o.GetKind() {
		case "ClusterRole", "Role":
			var role rbacv1.Role
			into(&role)
			rules[o.GetKind()+o.GetName()] = role.Rules
		case "ClusterRoleBinding":
			var b rbacv1.ClusterRoleBinding
			into(&b)
			bind("", b.RoleRef)
		case "RoleBinding":
			var b rbacv1.RoleBinding
			into(&b)
			bind(b.Namespace, b.RoleRef)
		}
	}
	return out
}

// stated are the kinds outside of Istio's groups and our own whose statuses are written.
var stated = map[string][]string{
	gatewayGroup:        {"GatewayClass", "Gateway", "ListenerSet", "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "BackendTLSPolicy"},
	"policy.linkerd.io": {"HTTPRoute", "HTTPLocalRateLimitPolicy", "EgressNetwork"},
}

// ofKinds are the questions about kinds of configuration: each is watched, and where it has a status, that is written.
func ofKinds() map[question]bool {
	kinds := map[schema.GroupKind]bool{}
	for _, k := range config.Kinds() {
		kinds[schema.GroupKind{Group: k.Group, Kind: k.Kind}] = true
	}
	for group, names := range config.NotYet() {
		for _, kind := range names {
			kinds[schema.GroupKind{Group: group, Kind: kind}] = true
		}
	}
	out := map[question]bool{}
	for k := range kinds {
		if !strings.Contains(k.Group, ".") || strings.HasSuffix(k.Group, ".k8s.io") && k.Group != gatewayGroup {
			continue // Kubernetes' own: recorded
		}
		guess, _ := meta.UnsafeGuessKindToResource(k.WithVersion("v1"))
		plural := strings.Replace(guess.Resource, "gatewaies", "gateways", 1) // which Kubernetes' own rule gets wrong
		out[question{"list", k.Group, plural, "", ""}] = true
		out[question{"watch", k.Group, plural, "", ""}] = true
		if checked(k.Group) || slices.Contains(stated[k.Group], k.Kind) {
			out[question{"get", k.Group, plural, "shop", "x"}] = true
			out[question{"update", k.Group, plural + "/status", "shop", "x"}] = true
		}
	}
	out[question{"get", ingressGroup, "ingresses", "shop", "x"}] = true // whose status says where it is reached
	out[question{"update", ingressGroup, "ingresses/status", "shop", "x"}] = true
	return out
}

// TestRights runs the control plane through all that it does, and compares what it asks of the API server with what the chart's
// roles let it: nothing may be refused, and nothing may be granted that is never asked.
func TestRights(t *testing.T) {
	asked := ofKinds()
	asked[question{"get", "", "namespaces", "", "shop"}] = true // cmd/malhad asks for the injector
	synctest.Test(t, func(t *testing.T) {
		for _, a := range everything(t) {
			for _, q := range questions(a) {
				asked[q] = true
			}
		}
	})
	grants := granted(t, "secretNamespaces={shop}")
	if len(asked) < 80 || len(grants) < 20 {
		t.Fatalf("only %d questions, %d rules", len(asked), len(grants))
	}
	for _, q := range slices.SortedFunc(maps.Keys(asked), func(a, b question) int { return strings.Compare(a.String(), b.String()) }) {
		if !slices.ContainsFunc(grants, func(g grant) bool { return g.allows(q) }) {
			t.Errorf("the control plane may not: %s; write a rule with its reason in chart/malha/templates/rbac.yaml", q)
		}
	}
	for i := range grants {
		g := &grants[i]
		// Wherever it is bound: a role that is bound in several namespaces is for those where something is named.
		used := func(verb, group, resource string) bool {
			one := grant{g.role, "", rbacv1.PolicyRule{
				Verbs: []string{verb}, APIGroups: []string{group}, Resources: []string{resource}, ResourceNames: g.ResourceNames,
			}}
			for q := range asked {
				if one.allows(q) {
					return true
				}
			}
			return false
		}
		for _, verb := range g.Verbs {
			for _, resource := range g.Resources {
				if !slices.ContainsFunc(g.APIGroups, func(group string) bool { return used(verb, group, resource) }) {
					t.Errorf("%s may %s %s %v, and never does: take it out of chart/malha/templates/rbac.yaml", g.role, verb, resource, g.ResourceNames)
				}
			}
			for _, group := range g.APIGroups {
				if !slices.ContainsFunc(g.Resources, func(resource string) bool { return used(verb, group, resource) }) {
					t.Errorf("%s may %s in group %s, and never does: take it out of chart/malha/templates/rbac.yaml", g.role, verb, group)
				}
			}
		}
	}
}

// TestRightsWithoutGateways: gatewayAPI.deployments: false leaves nothing that makes objects for users.
func TestRightsWithoutGateways(t *testing.T) {
	for _, g := range granted(t, "gatewayAPI.deployments=false") {
		for _, q := range []question{
			{"create", "apps", "deployments", "shop", "web"}, {"patch", "", "services", "shop", "web"}, {"delete", "", "serviceaccounts", "shop", "web"},
			{"create", gatewayGroup, "gatewayclasses", "", ""},
		} {
			if g.allows(q) {
				t.Errorf("%s allows %s", g.role, q)
			}
		}
	}
}

// everything makes the control plane do all it can, and returns what it asked.
func everything(t *testing.T) []clienttesting.Action {
	service := &admissionv1.ServiceReference{Name: "malhad"}
	gone := metav1.ObjectMeta{Name: "old-malha", Namespace: "shop", Labels: map[string]string{labelGatewayName: "old", labelManaged: fieldManager}}
	client := fake.NewClientset(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: BundleName}},
		&admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: WebhookName}, Webhooks: []admissionv1.MutatingWebhook{{Name: "a", ClientConfig: admissionv1.WebhookClientConfig{Service: service}}}},
		&admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: WebhookName}, Webhooks: []admissionv1.ValidatingWebhook{{Name: "a", ClientConfig: admissionv1.WebhookClientConfig{Service: service}}}},
		&appsv1.Deployment{ObjectMeta: gone}, &corev1.Service{ObjectMeta: gone}, &corev1.ServiceAccount{ObjectMeta: gone},
	)
	verbs := metav1.Verbs{"get", "list", "watch"}
	client.Discovery().(*discoveryfake.FakeDiscovery).Resources = []*metav1.APIResourceList{
		{GroupVersion: "gateway.networking.k8s.io/v1", APIResources: []metav1.APIResource{{Name: "gateways", Kind: "Gateway", Namespaced: true, Verbs: verbs}, {Name: "httproutes", Kind: "HTTPRoute", Namespaced: true, Verbs: verbs}, {Name: "gatewayclasses", Kind: "GatewayClass", Verbs: verbs}, {Name: "backendtlspolicies", Kind: "BackendTLSPolicy", Namespaced: true, Verbs: verbs}}},
		{GroupVersion: "networking.istio.io/v1", APIResources: []metav1.APIResource{{Name: "virtualservices", Kind: "VirtualService", Namespaced: true, Verbs: verbs}}},
	}
	backendPolicies := schema.GroupVersionResource{Group: gatewayGroup, Version: "v1", Resource: "backendtlspolicies"}
	dyn := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		virtualServices: "VirtualServiceList", httpRoutes: "HTTPRouteList", gatewayObjects: "GatewayList", gatewayClasses: "GatewayClassList", backendPolicies: "BackendTLSPolicyList",
	})
	for resource, text := range map[schema.GroupVersionResource]string{
		virtualServices: virtualService, httpRoutes: route,
		gatewayObjects: strings.Replace(doorText, "  - {name: alt", "  - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}\n  - {name: alt", 1),
		backendPolicies: `
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: tls, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: web}]
  validation: {hostname: web.example, caCertificateRefs: [{group: "", kind: ConfigMap, name: authorities}]}
`,
	} {
		u, _ := parse(t, text)
		if err := dyn.Tracker().Create(resource, u, "shop"); err != nil {
			t.Fatal(err)
		}
	}
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	crds := metadatafake.NewSimpleMetadataClient(scheme)
	s, err := Open(Clients{Kubernetes: client, Dynamic: dyn, Metadata: crds, Mapper: newMapper()}, Options{
		Control: "", ProxyImage: "proxy", Webhooks: http.NotFoundHandler(),
	})
	if err != nil {
		t.Fatal(err)
	}
	// Each part of Run that speaks to the API server; the others speak to proxies.
	if _, err := readMaterial(t.Context(), client, source.RootNamespace, ""); err != nil {
		t.Fatal(err)
	}
	replaceTwice(t, client)
	_, _ = (&reviewer{client: client}).Authenticate(t.Context(), "token")
	parts := []func(context.Context){
		(&bundles{client: client, roots: []byte("roots"), log: quiet}).run,
		(&webhooks{client: client, roots: []byte("roots"), log: quiet}).run,
		s.statuses.run, s.gateways.run,
		func(ctx context.Context) {
			_ = elect(ctx, client, source.RootNamespace, "one", quiet, nil, func(ctx context.Context) { <-ctx.Done() })
		},
		func(ctx context.Context) {
			_ = s.source.Run(ctx, func(r *source.Result) {
				if r.Config != nil {
					s.statuses.set(verdicts{objects: r.Objects, statuses: r.Config.Statuses, diagnostics: r.Diagnostics})
					s.gateways.set(r.Config, r.Objects)
				}
			})
		},
	}
	during(t, func(ctx context.Context) {
		done := make(chan struct{})
		for _, p := range parts {
			go func() { p(ctx); done <- struct{}{} }()
		}
		for range parts {
			<-done
		}
	}, func() { pause(time.Minute) })
	return slices.Concat(client.Actions(), dyn.Actions(), crds.Actions())
}

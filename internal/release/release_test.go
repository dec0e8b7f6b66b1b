package release

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	admissionregistration "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	core "k8s.io/api/core/v1"
	policy "k8s.io/api/policy/v1"
	rbac "k8s.io/api/rbac/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	sigyaml "sigs.k8s.io/yaml"

	"github.com/malha-mesh/malha/internal/inject"
)

var update = flag.Bool("update", false, "write the goldens anew")

// cases are every profile, and what changes the shape of the objects.
var cases = []struct {
	name    string
	options Options
}{
	{"default", Options{}},
	{"demo", Options{Profile: "demo"}},
	{"minimal", Options{Profile: "minimal"}},
	{"adopt", Options{Profile: "minimal", Adopt: []string{"istio", "linkerd"}}},
	{"scale", Options{Values: [][]byte{[]byte(`
controlPlane:
  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: disk, operator: Exists}]}]}}}
  topologySpreadConstraints: [{maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule}]
  podLabels: {team: mesh}
  podAnnotations: {note: hello}
  podDisruptionBudget: {minAvailable: 50%}
  autoscaling: {enabled: true, minReplicas: 3}
ingressGateway:
  priorityClassName: high
  podDisruptionBudget: {enabled: false}
  autoscaling: {enabled: true}
  service: {externalTrafficPolicy: Local, loadBalancerClass: example.com/lb, loadBalancerSourceRanges: [198.18.0.0/16]}
`)}}},
	{"set", Options{Namespace: "mesh", Set: []string{
		"image.registry=registry.example:5000/malha", "image.pullSecrets={one,two}", "secretNamespaces={shop}", "gatewayAPI.deployments=false",
		"validation.enabled=false", "crds.install=false", "controlPlane.priorityClassName=system-cluster-critical", "createNamespace=false",
		"ingressGateway.service.type=NodePort", "ingressGateway.service.ports[0].name=http,ingressGateway.service.ports[0].port=80,ingressGateway.service.ports[0].targetPort=8080,ingressGateway.service.ports[0].nodePort=30080", "controlPlane.nodeSelector.disk=fast",
		"controlPlane.tolerations[0].operator=Exists", "ingressGateway.service.annotations.a/b=c",
	}}},
}

func render(t *testing.T, o Options) *Release {
	t.Helper()
	o.Version = "v1.2.3+dirty"
	r, err := Render(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestGolden(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := render(t, c.options).YAML()
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", c.name+".yaml")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Errorf("run go test ./internal/release -update and look at what changed (-want +got):\n%s", d)
			}
		})
	}
}

// typed are the kinds that the chart may hold. A field that its type does not have is a mistake the API server would drop silently.
var typed = map[string]func() any{
	"v1/Namespace":                                                   func() any { return &core.Namespace{} },
	"v1/ServiceAccount":                                              func() any { return &core.ServiceAccount{} },
	"v1/ConfigMap":                                                   func() any { return &core.ConfigMap{} },
	"v1/Service":                                                     func() any { return &core.Service{} },
	"apps/v1/Deployment":                                             func() any { return &apps.Deployment{} },
	"autoscaling/v2/HorizontalPodAutoscaler":                         func() any { return &autoscaling.HorizontalPodAutoscaler{} },
	"policy/v1/PodDisruptionBudget":                                  func() any { return &policy.PodDisruptionBudget{} },
	"rbac.authorization.k8s.io/v1/ClusterRole":                       func() any { return &rbac.ClusterRole{} },
	"rbac.authorization.k8s.io/v1/ClusterRoleBinding":                func() any { return &rbac.ClusterRoleBinding{} },
	"rbac.authorization.k8s.io/v1/Role":                              func() any { return &rbac.Role{} },
	"rbac.authorization.k8s.io/v1/RoleBinding":                       func() any { return &rbac.RoleBinding{} },
	"apiextensions.k8s.io/v1/CustomResourceDefinition":               func() any { return &apiextensions.CustomResourceDefinition{} },
	"admissionregistration.k8s.io/v1/MutatingWebhookConfiguration":   func() any { return &admissionregistration.MutatingWebhookConfiguration{} },
	"admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration": func() any { return &admissionregistration.ValidatingWebhookConfiguration{} },
}

func TestStrictTypes(t *testing.T) {
	for _, c := range cases {
		r := render(t, c.options)
		seen := map[string]bool{}
		for i := range r.Objects {
			o := &r.Objects[i]
			id := o.GetAPIVersion() + "/" + o.GetKind()
			into := typed[id]
			if into == nil {
				t.Errorf("%s: %s is a kind that this test does not know", c.name, id)
				continue
			}
			if key := id + "/" + o.GetNamespace() + "/" + o.GetName(); seen[key] {
				t.Errorf("%s: %s stands twice", c.name, key)
			} else {
				seen[key] = true
			}
			data, err := sigyaml.Marshal(o.Object)
			if err != nil {
				t.Fatal(err)
			}
			if err := sigyaml.UnmarshalStrict(data, into()); err != nil {
				t.Errorf("%s: %s %s: %v", c.name, id, o.GetName(), err)
			}
			if o.GetLabels()[LabelPartOf] != Name || o.GetLabels()[LabelRelease] != Name {
				t.Errorf("%s: %s %s has not the labels that uninstall finds it by", c.name, id, o.GetName())
			}
			for k, v := range o.GetLabels() {
				if len(v) > 63 || strings.ContainsAny(v, "+ /") {
					t.Errorf("%s: %s %s: label %s=%q is none", c.name, id, o.GetName(), k, v)
				}
			}
		}
	}
}

func convert[T any](t *testing.T, o *unstructured.Unstructured) *T {
	t.Helper()
	v := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestLeastPrivilege is the promise of docs/install.md: no cluster-wide reading of Secrets, no rule for everything.
func TestLeastPrivilege(t *testing.T) {
	for _, c := range cases {
		r := render(t, c.options)
		rules := map[string][]rbac.PolicyRule{}
		for i := range r.Objects {
			if o := &r.Objects[i]; o.GetKind() == "ClusterRole" {
				rules[o.GetName()] = convert[rbac.ClusterRole](t, o).Rules
			}
		}
		cluster := 0
		for i := range r.Objects {
			if r.Objects[i].GetKind() != "ClusterRoleBinding" {
				continue
			}
			b := convert[rbac.ClusterRoleBinding](t, &r.Objects[i])
			found, ok := rules[b.RoleRef.Name]
			if !ok {
				t.Errorf("%s: %s binds the role %s, which is not in the chart", c.name, b.Name, b.RoleRef.Name)
			}
			for _, s := range b.Subjects {
				if s.Kind != "ServiceAccount" || s.Name != "malhad" || s.Namespace != r.Namespace {
					t.Errorf("%s: %s gives rights to %v", c.name, b.Name, s)
				}
			}
			for _, rule := range found {
				cluster++
				if err := tooMuch(rule); err != "" {
					t.Errorf("%s: role %s: %s: %v", c.name, b.RoleRef.Name, err, rule)
				}
			}
		}
		if cluster < 10 {
			t.Errorf("%s: only %d rules were looked at", c.name, cluster)
		}
	}
}

// tooMuch says what a rule that holds in the whole cluster may not.
func tooMuch(r rbac.PolicyRule) string {
	sensitive := slices.Contains(r.APIGroups, "") || slices.Contains(r.APIGroups, "*")
	for _, res := range r.Resources {
		switch {
		case sensitive && (res == "*" || res == "secrets" || strings.HasPrefix(res, "secrets/")):
			return "it reaches Secrets of all namespaces"
		case sensitive && (res == "pods/exec" || res == "pods/attach" || res == "serviceaccounts/token" || strings.Contains(res, "*")):
			return "it reaches into pods or takes their identity"
		}
	}
	switch {
	case slices.Contains(r.APIGroups, "*"):
		return "it is for every API group"
	case slices.Contains(r.Verbs, "*"):
		return "it is for every verb"
	case slices.ContainsFunc(r.Verbs, func(v string) bool { return v == "bind" || v == "escalate" || v == "impersonate" }):
		return "it gives rights away"
	}
	return ""
}

func TestTooMuch(t *testing.T) {
	for _, r := range []rbac.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods", "secrets"}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"*"}, Verbs: []string{"get"}},
		{APIGroups: []string{"*"}, Resources: []string{"pods"}, Verbs: []string{"get"}},
		{APIGroups: []string{"apps"}, Resources: []string{"deployments"}, Verbs: []string{"*"}},
		{APIGroups: []string{"rbac.authorization.k8s.io"}, Resources: []string{"clusterroles"}, Verbs: []string{"bind"}},
		{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, Verbs: []string{"create"}},
	} {
		if tooMuch(r) == "" {
			t.Errorf("%v passes", r)
		}
	}
}

// TestPods holds every container of the chart to what the images promise: no root, nothing written, nothing gained.
func TestPods(t *testing.T) {
	for _, c := range cases {
		r := render(t, c.options)
		for i := range r.Objects {
			if r.Objects[i].GetKind() != "Deployment" {
				continue
			}
			d := convert[apps.Deployment](t, &r.Objects[i])
			pod := &d.Spec.Template.Spec
			if s := pod.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || *s.RunAsUser == 0 || s.SeccompProfile == nil {
				t.Errorf("%s: %s may run as root", c.name, d.Name)
			}
			if d.Spec.Template.Labels["app"] != d.Spec.Selector.MatchLabels["app"] {
				t.Errorf("%s: %s does not select its own pods", c.name, d.Name)
			}
			for _, k := range pod.Containers {
				s := k.SecurityContext
				if s == nil || !*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation || s.Capabilities.Drop[0] != "ALL" || len(s.Capabilities.Add) > 0 {
					t.Errorf("%s: container %s of %s may do too much", c.name, k.Name, d.Name)
				}
				if k.ReadinessProbe == nil || k.StartupProbe == nil || k.Resources.Requests == nil {
					t.Errorf("%s: container %s of %s has no probes or requests", c.name, k.Name, d.Name)
				}
				if strings.Contains(k.Image, "+") || !strings.HasSuffix(k.Image, ":v1.2.3-dirty") {
					t.Errorf("%s: image %q", c.name, k.Image)
				}
			}
		}
	}
}

// TestWebhooksSpareOthers is the promise that a control plane that is away blocks no namespace outside the mesh: an entry that
// fails closed must select on a word of the mesh.
func TestWebhooksSpareOthers(t *testing.T) {
	words := []string{"malha.dev/inject", "istio-injection", "istio.io/rev", "sidecar.istio.io/inject"}
	for _, c := range cases {
		r := render(t, c.options)
		for i := range r.Objects {
			if r.Objects[i].GetKind() != "MutatingWebhookConfiguration" {
				continue
			}
			hooks := convert[admissionregistration.MutatingWebhookConfiguration](t, &r.Objects[i]).Webhooks
			if len(hooks) < 2 {
				t.Errorf("%s: %d webhooks", c.name, len(hooks))
			}
			for _, h := range hooks {
				var outside []string
				chosen := false
				for _, e := range h.NamespaceSelector.MatchExpressions {
					if e.Key == "kubernetes.io/metadata.name" && e.Operator == "NotIn" {
						outside = e.Values
					}
					chosen = chosen || slices.Contains(words, e.Key) && (e.Operator == "In" || e.Operator == "Exists")
				}
				for _, e := range h.ObjectSelector.MatchExpressions {
					chosen = chosen || slices.Contains(words, e.Key) && e.Operator == "In"
				}
				for _, m := range h.MatchConditions {
					chosen = chosen || m.Name == "annotated"
				}
				if *h.FailurePolicy == admissionregistration.Fail && !chosen {
					t.Errorf("%s: %s fails closed for pods that nobody put into the mesh", c.name, h.Name)
				}
				if !slices.Contains(outside, "kube-system") || !slices.Contains(outside, r.Namespace) {
					t.Errorf("%s: %s is asked for pods of kube-system or of the mesh itself", c.name, h.Name)
				}
			}
		}
	}
}

// TestInjectionSettings: what the chart writes is what the control plane reads.
func TestInjectionSettings(t *testing.T) {
	for _, c := range cases {
		r := render(t, c.options)
		for i := range r.Objects {
			if o := &r.Objects[i]; o.GetKind() == "ConfigMap" {
				got, err := inject.ReadConfig([]byte(convert[core.ConfigMap](t, o).Data["injection.yaml"]))
				if err != nil {
					t.Fatalf("%s: %v", c.name, err)
				}
				if !strings.HasSuffix(got.Image, "/malha-proxy:v1.2.3-dirty") || len(got.Adopt) != len(c.options.Adopt) || got.Namespace != r.Namespace || got.Resources.Requests == nil {
					t.Errorf("%s: %+v", c.name, got)
				}
			}
		}
	}
}

func TestWrongValues(t *testing.T) {
	for _, c := range []struct {
		options Options
		want    string
	}{
		{Options{Profile: "big"}, "there are default, demo, minimal"},
		{Options{Set: []string{"controlPlane.replica=2"}}, "replica"},
		{Options{Set: []string{"controlPlane.replicas=none"}}, "controlPlane.replicas"},
		{Options{Set: []string{"controlPlane.autoscaling.minReplicas=0"}}, "controlPlane.autoscaling.minReplicas"},
		{Options{Set: []string{"controlPlane.podDisruptionBudget.maxUnavailable=half"}}, "controlPlane.podDisruptionBudget.maxUnavailable"},
		{Options{Set: []string{"ingressGateway.topologySpreadConstraints=zone"}}, "ingressGateway.topologySpreadConstraints"},
		{Options{Set: []string{"ingressGateway.service.type=Ingress"}}, "ingressGateway.service.type"},
		{Options{Set: []string{"ingressGateway.service.ports[0].port=http"}}, "ingressGateway.service.ports.0.port"},
		{Options{Set: []string{"image.pullPolicy=Sometimes"}}, "image.pullPolicy"},
		{Options{Set: []string{"proxy.logLevel=loud"}}, "proxy.logLevel"},
		{Options{Set: []string{"proxy.resources.memory=64Mi"}}, "memory"},
		{Options{Set: []string{"trustDomain=Corp_X"}}, "trustDomain"},
		{Options{Set: []string{"secretNamespaces={A_b}"}}, "secretNamespaces.0"},
		{Options{Set: []string{"gatewayAPI.deployments=no"}}, "gatewayAPI.deployments"},
		{Options{Set: []string{"a"}}, "path.to.value=VALUE"},
		{Options{Adopt: []string{"consul"}}, "there is istio and linkerd"},
		{Options{Values: [][]byte{[]byte("a: [")}}, "values:"},
	} {
		_, err := Render(c.options)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want one with %q", c.options, err, c.want)
		}
	}
}

// An error of the schema says where and what, without the library's frame around it.
func TestWrongValuesAreToldAlone(t *testing.T) {
	for _, c := range []struct {
		set  []string
		want string
	}{
		{[]string{"controlPlane.replicas=none"}, "controlPlane.replicas: got string, want integer"},
		{[]string{"controlPlane.replicas=none", "proxy.logLevel=3"}, "controlPlane.replicas: got string, want integer; proxy.logLevel: value must be one of 'debug', 'info', 'warn', 'error'"},
	} {
		_, err := Render(Options{Set: c.set})
		if want := "values that the chart does not take: " + c.want + "; docs/install.md lists what there is"; err == nil || err.Error() != want {
			t.Errorf("%v:\n%v, want\n%s", c.set, err, want)
		}
	}
}

// With a kind go the objects that people made of it: helm uninstall must not take them.
func TestKindsAreKept(t *testing.T) {
	kinds := 0
	for _, o := range render(t, Options{}).Objects {
		if o.GetKind() != "CustomResourceDefinition" {
			continue
		}
		kinds++
		if got := o.GetAnnotations()["helm.sh/resource-policy"]; got != "keep" {
			t.Errorf("%s: helm.sh/resource-policy is %q", o.GetName(), got)
		}
	}
	if kinds == 0 {
		t.Error("no kinds are installed")
	}
}

func TestValuesLayer(t *testing.T) {
	r := render(t, Options{Profile: "demo", Values: [][]byte{[]byte("controlPlane: {replicas: 5, logLevel: debug}"), []byte("controlPlane: {replicas: 7}")}, Set: []string{"proxy.logLevel=warn"}})
	cp, ok := r.Values["controlPlane"].(map[string]any)
	if !ok {
		t.Fatalf("values: %v", r.Values)
	}
	if got, _ := sigyaml.Marshal([]any{cp["replicas"], cp["logLevel"]}); string(got) != "- 7\n- debug\n" {
		t.Errorf("later values should win: %s", got)
	}
}

// A null takes away what values.yaml has, as it does for `helm -f` and `helm --set`; one in a later file also what an earlier one has.
func TestNullTakesAway(t *testing.T) {
	for name, o := range map[string]Options{
		"a file":       {Values: [][]byte{[]byte("controlPlane: {resources: {limits: null}}")}},
		"later files":  {Profile: "demo", Values: [][]byte{[]byte("controlPlane: {resources: {limits: null}}"), []byte("controlPlane: {replicas: 7}")}},
		"an argument":  {Set: []string{"controlPlane.resources.limits=null"}},
		"of a profile": {Profile: "demo", Values: [][]byte{[]byte("controlPlane: {resources: {limits: null}}")}},
	} {
		cp, _ := render(t, o).Values["controlPlane"].(map[string]any)
		resources, ok := cp["resources"].(map[string]any)
		if limits, there := resources["limits"]; !ok || there || resources["requests"] == nil {
			t.Errorf("%s: limits are %v of %v", name, limits, resources)
		}
	}
}

// TestLint is what `helm lint` looks at, by Helm's own engine: no template reaches for a value that values.yaml does not have, the
// schema and values.yaml name the same values, and each value stands in docs/install.md.
func TestLint(t *testing.T) {
	ch, err := load("v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.Validate(); err != nil {
		t.Error(err)
	}
	for _, c := range cases {
		values, err := c.options.values()
		if err != nil {
			t.Fatal(err)
		}
		top, err := chartutil.ToRenderValues(ch, values, chartutil.ReleaseOptions{Name: Name, Namespace: Namespace}, chartutil.DefaultCapabilities.Copy())
		if err != nil {
			t.Fatal(err)
		}
		files, err := engine.Engine{Strict: true}.Render(ch, top)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		// What Helm prints: the namespace is ours, and adopting is said where it is asked for.
		notes := files["malha/templates/NOTES.txt"]
		if !strings.Contains(notes, "Malha v1 is being installed in namespace "+Namespace+".") || strings.Contains(notes, "Istio and Linkerd too") != (len(c.options.Adopt) == 2) {
			t.Errorf("%s: %s", c.name, notes)
		}
	}
	var schema map[string]any
	if err := json.Unmarshal(ch.Schema, &schema); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "", schema, schema, ch.Values, string(page))
}

// optional are values that have no default.
var optional = []string{"global", "controlPlane.podDisruptionBudget.minAvailable", "ingressGateway.podDisruptionBudget.minAvailable"}

// compare holds a part of the schema, the values and the page to each other.
func compare(t *testing.T, path string, root, schema map[string]any, values map[string]any, page string) {
	t.Helper()
	properties, _ := schema["properties"].(map[string]any)
	for name, value := range values {
		at := strings.TrimPrefix(path+"."+name, ".")
		p, ok := properties[name].(map[string]any)
		if !ok {
			t.Errorf("values.schema.json does not have %s", at)
			continue
		}
		if !strings.Contains(page, name) {
			t.Errorf("docs/install.md does not have %s", at)
		}
		if ref, ok := p["$ref"].(string); ok {
			p, _ = root["definitions"].(map[string]any)[strings.TrimPrefix(ref, "#/definitions/")].(map[string]any)
		}
		if below, ok := value.(map[string]any); ok && p["properties"] != nil && !strings.HasSuffix(at, "resources") {
			compare(t, at, root, p, below, page)
		}
	}
	for name := range properties {
		at := strings.TrimPrefix(path+"."+name, ".")
		if _, ok := values[name]; !ok && !slices.Contains(optional, at) {
			t.Errorf("values.yaml does not have %s", at)
		}
	}
}

package check

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	coordination "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/malha-mesh/malha/internal/cluster"
	"github.com/malha-mesh/malha/internal/release"
)

// minMinor is the oldest Kubernetes 1.x: match conditions of webhooks, and native sidecars, are on by default from there.
const minMinor = 30

func (f *facts) before() []section {
	return []section{
		f.api(),
		{"rights", []check{{name: "you may make everything that the mesh consists of", ask: f.rights}}},
		{"nodes", []check{
			{name: "kubelets are 1.29 or later (native sidecars)", ask: f.kubelets},
			{name: "the clocks of nodes and of this machine agree", ask: f.clocks},
		}},
		{"other meshes", []check{
			{name: "the mesh is in no other namespace already", ask: f.onlyOne},
			{name: "no other mesh claims the same namespaces", ask: f.claims},
		}},
		{"kinds", []check{
			{name: "the kinds of the Gateway API are there", ask: f.gatewayKinds},
			{name: "the kinds of adopted meshes are there", ask: f.adoptedKinds},
		}},
		{"namespaces of the mesh", []check{{name: "Pod Security lets pods be injected", ask: f.podSecurity}}},
	}
}

func (f *facts) api() section {
	return section{"kubernetes-api", []check{
		{name: "the API server answers", fatal: true, ask: func(context.Context) error {
			_, err := f.c.Version()
			return err
		}},
		{name: fmt.Sprintf("it is Kubernetes 1.%d or later", minMinor), ask: func(context.Context) error {
			v, err := f.c.Version()
			if err != nil {
				return err
			}
			if minor(v.Minor) < minMinor && v.Major == "1" {
				return wrong("upgrade the cluster", "docs/install.md#what-you-need", "this is Kubernetes %s.%s", v.Major, v.Minor)
			}
			return nil
		}},
	}}
}

// minor reads "34", and "34+" as some clouds write it.
func minor(s string) int {
	n, err := strconv.Atoi(strings.TrimRight(s, "+"))
	if err != nil {
		return 0
	}
	return n
}

func (f *facts) rights(ctx context.Context) error {
	r, err := release.Render(release.Options{Namespace: f.Namespace, Adopt: f.Adopt})
	if err != nil {
		return err
	}
	missing, err := release.Missing(ctx, f.c, r, "get", "create", "patch")
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return wrong("have a cluster administrator install the mesh, or give you these rights", "docs/install.md#rights", "you may not: %s", some(missing))
	}
	return nil
}

func (f *facts) kubelets(ctx context.Context) error {
	nodes, err := cluster.List[core.Node](ctx, f.c, cluster.Nodes, "", "")
	if err != nil {
		return err
	}
	var old []string
	for i := range nodes {
		v := strings.Split(strings.TrimPrefix(nodes[i].Status.NodeInfo.KubeletVersion, "v"), ".")
		if len(v) > 1 && v[0] == "1" && minor(v[1]) < 29 {
			old = append(old, nodes[i].Name+" ("+nodes[i].Status.NodeInfo.KubeletVersion+")")
		}
	}
	if len(old) > 0 {
		return doubtful("upgrade these nodes, or annotate pods with malha.dev/native-sidecar: \"false\"", "docs/injection.md", "older: %s", some(old))
	}
	return nil
}

// skew is how far clocks may be apart: half of what certificates are backdated by (internal/identity/ca).
const skew = time.Minute

func (f *facts) clocks(ctx context.Context) error {
	leases, err := cluster.List[coordination.Lease](ctx, f.c, cluster.Leases, "kube-node-lease", "")
	if err != nil {
		return err
	}
	var ahead []string
	for i := range leases {
		// A node renews its lease every 10 seconds; one that is away has an old one, which says nothing about its clock.
		if t := leases[i].Spec.RenewTime; t != nil && t.Sub(f.Now()) > skew {
			ahead = append(ahead, fmt.Sprintf("%s (by %s)", leases[i].Name, t.Sub(f.Now()).Round(time.Second)))
		}
	}
	if len(ahead) > 0 {
		return doubtful("synchronize the clocks (NTP): certificates would not be valid yet", "docs/install.md#clocks", "ahead of this machine: %s", some(ahead))
	}
	return nil
}

func (f *facts) onlyOne(ctx context.Context) error {
	ns, err := Elsewhere(ctx, f.c, f.Namespace)
	if err == nil && ns != "" {
		return wrong("uninstall that one, or upgrade it with --mesh-namespace "+ns, "docs/install.md", "there is one in namespace %s", ns)
	}
	return err
}

// Elsewhere returns the namespace of a mesh that is installed in another one than the given; "" none. There can be one in a cluster:
// its kinds, webhooks and rights are the cluster's.
func Elsewhere(ctx context.Context, c *cluster.Cluster, namespace string) (string, error) {
	found, err := c.Objects(ctx, cluster.Deployments, "", release.LabelRelease+"="+release.Name)
	if err != nil {
		return "", err
	}
	for i := range found {
		if ns := found[i].GetNamespace(); ns != namespace {
			return ns, nil
		}
	}
	return "", nil
}

// injectors are the webhooks by which other meshes inject, by a part of the name of their configuration.
var injectors = map[string]string{"istio-sidecar-injector": "istio", "istio-revision-tag": "istio", "linkerd-proxy-injector": "linkerd", "consul-connect-injector": "consul", "kuma-admission": "kuma"}

func (f *facts) claims(ctx context.Context) error {
	hooks, err := f.webhooks(ctx)
	if err != nil {
		return err
	}
	others := map[string]bool{}
	for i := range hooks {
		for part, mesh := range injectors {
			if strings.Contains(hooks[i].Name, part) {
				others[mesh] = true
			}
		}
	}
	for _, a := range f.adopted(ctx) {
		if others[a] {
			return wrong("remove the other mesh's injector first (its proxies go on), or install without --adopt "+a, "docs/injection.md",
				"%s still injects, and Malha would obey the same labels: pods would get two proxies", a)
		}
	}
	all, err := f.allNamespaces(ctx)
	if err != nil {
		return err
	}
	var both []string
	for i := range all {
		n := &all[i]
		if n.Labels[labelInject] != "enabled" {
			continue
		}
		if others["istio"] && inMesh(&core.Namespace{ObjectMeta: metav1.ObjectMeta{Labels: without(n.Labels, labelInject)}}, []string{"istio"}) ||
			others["linkerd"] && n.Annotations["linkerd.io/inject"] == "enabled" {
			both = append(both, n.Name)
		}
	}
	if len(both) > 0 {
		return wrong("take one of the labels away, and restart the pods", "docs/injection.md", "claimed by two meshes: %s", some(both))
	}
	return nil
}

// words finds namespaces that ask for proxies in words that nobody reads: webhooks are chosen by labels, and one with another value
// chooses nothing.
func (f *facts) words(ctx context.Context) error {
	all, err := f.allNamespaces(ctx)
	if err != nil {
		return err
	}
	adopted := f.adopted(ctx)
	var bad []string
	for i := range all {
		n := &all[i]
		say := func(form, key, value string, known ...string) {
			if value != "" && !slices.Contains(known, value) {
				bad = append(bad, fmt.Sprintf("%s (%s %s: %s)", n.Name, form, key, value))
			}
		}
		say("label", labelInject, n.Labels[labelInject], "enabled", "disabled")
		say("annotation, which should be a label,", labelInject, n.Annotations[labelInject])
		if slices.Contains(adopted, "istio") {
			say("label", "istio-injection", n.Labels["istio-injection"], "enabled", "disabled")
		}
		if slices.Contains(adopted, "linkerd") {
			say("annotation", "linkerd.io/inject", n.Annotations["linkerd.io/inject"], "enabled", "disabled", "ingress")
		}
	}
	if len(bad) > 0 {
		return wrong("kubectl label namespace NAME --overwrite "+labelInject+"=enabled (or disabled)", "docs/injection.md", "pods get no proxy there: %s", some(bad))
	}
	return nil
}

func without(m map[string]string, key string) map[string]string {
	out := map[string]string{}
	for k, v := range m {
		if k != key {
			out[k] = v
		}
	}
	return out
}

// gatewayMinor is the oldest Gateway API 1.x whose kinds are read.
const gatewayMinor = 2

func (f *facts) gatewayKinds(ctx context.Context) error {
	crd, err := cluster.Get[metav1.PartialObjectMetadata](ctx, f.c, cluster.CRDs, "", "httproutes.gateway.networking.k8s.io")
	if cluster.IsNotFound(err) {
		return doubtful("install them if you want Gateways and HTTPRoutes: kubectl apply --server-side -f https://github.com/kubernetes-sigs/gateway-api/releases/download/v1.6.3/standard-install.yaml",
			"docs/gateway-api.md", "the cluster does not have the Gateway API")
	}
	if err != nil {
		return err
	}
	version := crd.Annotations["gateway.networking.k8s.io/bundle-version"]
	parts := strings.Split(strings.TrimPrefix(version, "v"), ".")
	if len(parts) > 1 && parts[0] == "1" && minor(parts[1]) >= gatewayMinor {
		return nil
	}
	return doubtful("install v1.6 of it", "docs/gateway-api.md", "the Gateway API of the cluster is %q; Malha reads what is 1.%d or later", version, gatewayMinor)
}

func (f *facts) adoptedKinds(ctx context.Context) error {
	var missing []string
	for mesh, crd := range map[string]string{"istio": "virtualservices.networking.istio.io", "linkerd": "servers.policy.linkerd.io"} {
		if !slices.Contains(f.adopted(ctx), mesh) {
			continue
		}
		_, err := cluster.Get[metav1.PartialObjectMetadata](ctx, f.c, cluster.CRDs, "", crd)
		if cluster.IsNotFound(err) {
			missing = append(missing, mesh)
		} else if err != nil {
			return err
		}
	}
	if len(missing) > 0 {
		return doubtful("install the CRDs of that project if you have such objects; nothing else of it is needed", "docs/install.md#kinds-of-other-projects", "adopted, and without its kinds: %s", some(missing))
	}
	return nil
}

func (f *facts) podSecurity(ctx context.Context) error {
	spaces, err := f.meshNamespaces(ctx)
	if err != nil {
		return err
	}
	var strict []string
	for i := range spaces {
		if l := spaces[i].Labels["pod-security.kubernetes.io/enforce"]; l == "restricted" || l == "baseline" {
			strict = append(strict, fmt.Sprintf("%s (%s)", spaces[i].Name, l))
		}
	}
	if len(strict) > 0 {
		return wrong("label them pod-security.kubernetes.io/enforce=privileged, and keep warn and audit as they are", "docs/install.md#pod-security",
			"the init container that captures traffic needs NET_ADMIN, which these namespaces refuse: %s", some(strict))
	}
	return nil
}

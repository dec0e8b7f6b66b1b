package check

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/malha-mesh/malha/internal/cluster"
	"github.com/malha-mesh/malha/internal/model"
)

const (
	// The root of the mesh's certificates, in every namespace of the mesh.
	rootMap = "malha-ca-root"
	rootKey = "root-cert.pem"

	// soon is when the end of a root is worth a warning: a new one must reach every proxy before.
	soon = 60 * 24 * time.Hour
)

func (f *facts) control() []section {
	return []section{
		f.api(),
		{"control plane", []check{
			{name: "namespace " + f.Namespace + " exists", fatal: true, ask: f.installed},
			{name: "all its replicas are ready", ask: f.replicas},
			{name: "all its replicas answer", ask: f.answering},
			{name: "another replica goes on when one is away", ask: f.redundant},
			{name: "none of them keeps restarting", ask: f.restarts},
			{name: "it is of the version of this program", ask: f.version},
		}},
		{"webhooks", []check{
			{name: "they are registered", ask: f.registered},
			{name: "the API server can reach and trust them", ask: f.trusted},
			{name: "their certificate is in order", ask: f.presented},
		}},
		{"identity", []check{
			{name: "the root of the certificates is valid", ask: f.root},
			{name: "every namespace of the mesh has the same root", ask: f.roots},
		}},
		{"configuration", []check{
			{name: "it has no errors", ask: f.errors},
			{name: "it has no warnings", ask: f.warnings},
			{name: "the mesh's own kinds are there", ask: f.ownKinds},
			{name: "Pod Security lets pods be injected", ask: f.podSecurity},
			{name: "no other mesh claims the same namespaces", ask: f.claims},
			{name: "namespaces ask for proxies in words that are known", ask: f.words},
		}},
	}
}

func (f *facts) installed(ctx context.Context) error {
	_, err := cluster.Get[core.Namespace](ctx, f.c, cluster.Namespaces, "", f.Namespace)
	if cluster.IsNotFound(err) {
		return wrong("install the mesh with `malha install`, or name its namespace with --mesh-namespace", "docs/install.md", "there is no namespace %s", f.Namespace)
	}
	return err
}

func deployment(namespace, name string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetAPIVersion("apps/v1")
	u.SetKind("Deployment")
	u.SetNamespace(namespace)
	u.SetName(name)
	return u
}

func (f *facts) replicas(ctx context.Context) error {
	ok, why, err := f.c.Ready(ctx, deployment(f.Namespace, "malhad"))
	if err != nil || ok {
		return err
	}
	if d, err := cluster.Get[apps.Deployment](ctx, f.c, cluster.Deployments, f.Namespace, "malhad"); err == nil && rollingOut(d) {
		return doubtful("ask again in a minute", "docs/install.md#upgrades", "malhad is being rolled out: %s", why)
	}
	return wrong("kubectl -n "+f.Namespace+" describe pods -l app=malhad; kubectl -n "+f.Namespace+" logs -l app=malhad", "docs/kubernetes.md", "malhad: %s", why)
}

// rollingOut reports whether the pods of a Deployment are being replaced, some serve meanwhile, and it made progress in the last minutes.
func rollingOut(d *apps.Deployment) bool {
	return d.Status.AvailableReplicas > 0 && slices.ContainsFunc(d.Status.Conditions, func(c apps.DeploymentCondition) bool {
		return c.Type == apps.DeploymentProgressing && c.Status == core.ConditionTrue && c.Reason != "NewReplicaSetAvailable"
	})
}

func (f *facts) answering(ctx context.Context) error {
	d, err := f.debugged(ctx)
	if err != nil {
		return err
	}
	for _, away := range d.Away {
		if p := new(problem); !errors.As(away, &p) || p.level == Error {
			return away
		}
	}
	if len(d.Away) > 0 {
		return d.Away[0]
	}
	return nil
}

// redundant finds what a single replica means: while it is replaced, pods that ask for a proxy are refused. On one node there is
// little to gain from a second.
func (f *facts) redundant(ctx context.Context) error {
	d, err := cluster.Get[apps.Deployment](ctx, f.c, cluster.Deployments, f.Namespace, "malhad")
	if cluster.IsNotFound(err) {
		return nil // said above
	}
	if err != nil {
		return err
	}
	if d.Spec.Replicas == nil || *d.Spec.Replicas > 1 {
		return nil
	}
	nodes, err := cluster.List[core.Node](ctx, f.c, cluster.Nodes, "", "")
	if err != nil || len(nodes) < 2 {
		return err
	}
	return doubtful("malha install --set controlPlane.replicas=2", "docs/kubernetes.md", "there is one replica: while it is away, pods that ask for a proxy can't be made; what runs goes on")
}

// often is how many restarts of a container are no accident.
const often = 5

func (f *facts) restarts(ctx context.Context) error {
	pods, err := ControlPlanes(ctx, f.c, f.Namespace)
	if err != nil {
		return err
	}
	for i := range pods {
		for _, s := range pods[i].Status.ContainerStatuses {
			if s.RestartCount >= often {
				last := ""
				if t := s.LastTerminationState.Terminated; t != nil {
					last = fmt.Sprintf("; the last time it ended with %d, %s, at %s", t.ExitCode, t.Reason, t.FinishedAt.Format(time.RFC3339))
				}
				return doubtful("kubectl -n "+f.Namespace+" logs --previous "+pods[i].Name, "docs/kubernetes.md", "pod %s was restarted %d times%s", pods[i].Name, s.RestartCount, last)
			}
		}
	}
	return nil
}

func (f *facts) version(ctx context.Context) error {
	d, err := f.debugged(ctx)
	if err != nil {
		return err
	}
	for _, pod := range slices.Sorted(maps.Keys(d.Versions)) {
		if v := d.Versions[pod]; v != f.Version {
			return doubtful("use the same version of both: `malha install` upgrades the control plane", "docs/install.md#upgrades", "pod %s is %s, this program is %s", pod, v, f.Version)
		}
	}
	return nil
}

// clients are how the webhooks are called, by name.
func (f *facts) clients(ctx context.Context) (map[string]admissionregistration.WebhookClientConfig, error) {
	out := map[string]admissionregistration.WebhookClientConfig{}
	m, err := cluster.Get[admissionregistration.MutatingWebhookConfiguration](ctx, f.c, cluster.Mutating, "", "malha")
	if err != nil {
		return nil, err
	}
	for _, h := range m.Webhooks {
		out[h.Name] = h.ClientConfig
	}
	v, err := cluster.Get[admissionregistration.ValidatingWebhookConfiguration](ctx, f.c, cluster.Validating, "", "malha")
	if cluster.IsNotFound(err) {
		return out, nil // validation.enabled: false
	}
	if err != nil {
		return nil, err
	}
	for _, h := range v.Webhooks {
		out[h.Name] = h.ClientConfig
	}
	return out, nil
}

func (f *facts) registered(ctx context.Context) error {
	all, err := f.clients(ctx)
	if cluster.IsNotFound(err) || err == nil && len(all) == 0 {
		return wrong("run `malha install` again", "docs/injection.md", "there is no MutatingWebhookConfiguration malha: no pod gets a proxy")
	}
	return err
}

func (f *facts) trusted(ctx context.Context) error {
	if err := f.registered(ctx); err != nil {
		return err
	}
	all, err := f.clients(ctx)
	if err != nil {
		return err
	}
	roots, err := f.rootsOf(ctx, f.Namespace)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		bundle := all[name].CABundle
		certs, err := certificates(bundle)
		switch {
		case len(bundle) == 0:
			return wrong("see the log of malhad: its leader fills it in within seconds", "docs/kubernetes.md", "webhook %s has no caBundle: the API server trusts nobody behind it", name)
		case err != nil:
			return wrong("delete the field, the leader of malhad fills it in anew", "docs/kubernetes.md", "webhook %s: its caBundle is not readable: %v", name, err)
		case !slices.ContainsFunc(certs, func(c *x509.Certificate) bool { return f.Now().Before(c.NotAfter) }):
			return wrong("see the log of malhad: its leader fills in the root in force", "docs/kubernetes.md", "webhook %s: its caBundle expired at %s", name, certs[0].NotAfter.Format(time.RFC3339))
		case !slices.ContainsFunc(certs, func(c *x509.Certificate) bool { return slices.ContainsFunc(roots, c.Equal) }):
			return wrong("see the log of malhad: its leader fills in the root in force", "docs/kubernetes.md", "webhook %s trusts another root than the mesh's", name)
		}
	}
	found, err := cluster.List[discovery.EndpointSlice](ctx, f.c, cluster.Slices, f.Namespace, "kubernetes.io/service-name=malhad")
	if err != nil {
		return err
	}
	for _, s := range found {
		for _, e := range s.Endpoints {
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				return nil
			}
		}
	}
	return wrong("malha check says above what its pods lack", "docs/kubernetes.md", "Service malhad has no ready endpoint: pods of the mesh can't be made")
}

// webhookPort is where malhad answers the API server, in its pods.
const webhookPort = 15017

// presented shakes hands with every replica as the API server does: by the name of the Service, and with the roots that stand in the
// webhooks' configuration.
func (f *facts) presented(ctx context.Context) error {
	if err := f.registered(ctx); err != nil {
		return err
	}
	all, err := f.clients(ctx)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	for _, c := range all {
		roots.AppendCertsFromPEM(c.CABundle)
	}
	pods, err := ControlPlanes(ctx, f.c, f.Namespace)
	if err != nil {
		return err
	}
	for i := range pods {
		name := pods[i].Name
		conn, err := f.c.Dial(ctx, f.Namespace, name, webhookPort)
		if err != nil {
			return f.c.Unreached(err, f.Namespace, name, webhookPort)
		}
		secure := tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: "malhad." + f.Namespace + ".svc", Time: f.Now, MinVersion: tls.VersionTLS12})
		err = secure.HandshakeContext(ctx)
		_ = conn.Close() // there is nothing more to say, and TLS' own goodbye would wait for an answer
		var untrusted *tls.CertificateVerificationError
		switch {
		case errors.As(err, &untrusted):
			return wrong("kubectl -n "+f.Namespace+" delete pod "+name+": it signs a new one when it starts. If that does not help, see its log for what it says of the Secret malha-ca",
				"docs/kubernetes.md", "the API server would refuse what pod %s shows: %v", name, untrusted.Err)
		case err != nil:
			return f.c.Unreached(err, f.Namespace, name, webhookPort)
		}
	}
	return nil
}

func certificates(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			break
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("it holds no certificate")
	}
	return out, nil
}

// rootsOf reads the roots that one namespace has.
func (f *facts) rootsOf(ctx context.Context, namespace string) ([]*x509.Certificate, error) {
	m, err := cluster.Get[core.ConfigMap](ctx, f.c, cluster.ConfigMaps, namespace, rootMap)
	if cluster.IsNotFound(err) {
		return nil, wrong("see the log of malhad: its leader makes it", "docs/kubernetes.md", "namespace %s has no ConfigMap %s: pods there can't start", namespace, rootMap)
	}
	if err != nil {
		return nil, err
	}
	certs, err := certificates([]byte(m.Data[rootKey]))
	if err != nil {
		return nil, wrong("delete it, the leader of malhad makes it anew", "docs/kubernetes.md", "ConfigMap %s/%s: %v", namespace, rootMap, err)
	}
	return certs, nil
}

func (f *facts) root(ctx context.Context) error {
	certs, err := f.rootsOf(ctx, f.Namespace)
	if err != nil {
		return err
	}
	last := slices.MaxFunc(certs, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	switch left := last.NotAfter.Sub(f.Now()); {
	case left <= 0:
		return wrong("put a new root into the Secret malha-ca, then restart every pod with a proxy", "docs/kubernetes.md#identity", "it expired at %s: no proxy trusts another", last.NotAfter.Format(time.RFC3339))
	case left < soon:
		return doubtful("put a new root into the Secret malha-ca in time: no connection is refused then, and nothing restarted", "docs/kubernetes.md#identity", "it expires in %d days", int(left.Hours()/24))
	case f.Now().Before(last.NotBefore):
		return wrong("synchronize the clocks", "docs/install.md#clocks", "it is not valid before %s", last.NotBefore.Format(time.RFC3339))
	}
	return nil
}

func (f *facts) roots(ctx context.Context) error {
	spaces, err := f.meshNamespaces(ctx)
	if err != nil {
		return err
	}
	want, err := f.rootsOf(ctx, f.Namespace)
	if err != nil {
		return err
	}
	var bad []string
	for i := range spaces {
		got, err := f.rootsOf(ctx, spaces[i].Name)
		if cluster.IsForbidden(err) {
			return err
		}
		if err != nil || !slices.EqualFunc(got, want, (*x509.Certificate).Equal) {
			bad = append(bad, spaces[i].Name)
		}
	}
	if len(bad) > 0 {
		return wrong("see the log of malhad: its leader writes ConfigMap "+rootMap, "docs/kubernetes.md", "another one, or none: %s", some(bad))
	}
	return nil
}

func (f *facts) errors(ctx context.Context) error {
	return f.diagnosed(ctx, model.Error, wrong, "they are not in force")
}

func (f *facts) warnings(ctx context.Context) error {
	return f.diagnosed(ctx, model.Warning, doubtful, "they are in force, and perhaps not as meant")
}

func (f *facts) diagnosed(ctx context.Context, s model.Severity, say func(fix, page, format string, args ...any) error, meaning string) error {
	d, err := f.debugged(ctx)
	if err != nil {
		return err
	}
	var found []string
	first := ""
	for _, g := range d.Diagnostics {
		if g.Severity == s && (f.Only == "" || g.Origin.Namespace == f.Only) {
			what := cmp.Or(g.Object(), g.Code) // the latter of the control plane itself
			if found = append(found, what); first == "" {
				if first = g.Code + " " + g.Message; g.Hint != "" {
					first += "; " + g.Hint
				}
			}
		}
	}
	if len(found) == 0 {
		return nil
	}
	return say("`malha analyze --cluster` lists each with what to do; so do the status of the object and the log of malhad", "docs/diagnostics.md", "%d, %s: %s; the first: %s", len(found), meaning, some(found), first)
}

func (f *facts) ownKinds(ctx context.Context) error {
	for _, name := range []string{"ratelimits.malha.dev", "workloads.malha.dev"} {
		_, err := cluster.Get[metav1.PartialObjectMetadata](ctx, f.c, cluster.CRDs, "", name)
		if cluster.IsNotFound(err) {
			return doubtful("run `malha install` again, with crds.install=true", "docs/install.md", "there is no CustomResourceDefinition %s", name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

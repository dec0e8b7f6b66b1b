package check

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"

	"github.com/malha-mesh/malha/internal/app/control"
	"github.com/malha-mesh/malha/internal/cluster/clustertest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

var now = time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)

// keys are those of the roots that rootPEM made.
var keys sync.Map

// shown is the certificate of the webhooks by a root.
func shown(t *testing.T, rootPEM, name string, valid time.Duration) tls.Certificate {
	t.Helper()
	b, _ := pem.Decode([]byte(rootPEM))
	root, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := keys.Load(rootPEM)
	x := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(valid), DNSNames: []string{name}}
	der, err := x509.CreateCertificate(rand.Reader, x, root, public, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

// rootPEM makes a root that ends after a time.
func rootPEM(t *testing.T, valid time.Duration) string {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour * 24 * 365), NotAfter: now.Add(valid), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, x, x, public, private)
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	keys.Store(text, private)
	return text
}

func root(namespace, pem string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: malha-ca-root, namespace: %s}\ndata:\n  root-cert.pem: %q\n", namespace, pem)
}

func hooks(pem string) string {
	bundle := base64.StdEncoding.EncodeToString([]byte(pem))
	return fmt.Sprintf(`
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: malha}
webhooks: [{name: namespace.inject.malha.dev, clientConfig: {caBundle: %q}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: malha}
webhooks: [{name: validate.malha.dev, clientConfig: {caBundle: %q}}]
`, bundle, bundle)
}

const wellObjects = `
apiVersion: v1
kind: Namespace
metadata: {name: malha-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {malha.dev/inject: enabled}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: malhad, namespace: malha-system}
spec: {replicas: 1, selector: {matchLabels: {app: malhad}}}
status: {replicas: 1, updatedReplicas: 1, availableReplicas: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: malhad-a, namespace: malha-system, labels: {app: malhad}}
status: {phase: Running}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: malhad-x, namespace: malha-system, labels: {kubernetes.io/service-name: malhad}}
addressType: IPv4
endpoints: [{addresses: [198.18.0.9], conditions: {ready: true}}]
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ratelimits.malha.dev}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: workloads.malha.dev}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: httproutes.gateway.networking.k8s.io, annotations: {gateway.networking.k8s.io/bundle-version: v1.6.3}}
---
apiVersion: v1
kind: Node
metadata: {name: one}
status: {nodeInfo: {kubeletVersion: v1.34.4}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {initContainers: [{name: malha-proxy, restartPolicy: Always}], containers: [{name: web}]}
status: {phase: Running, initContainerStatuses: [{name: malha-proxy, ready: true}]}
`

// well returns a cluster whose mesh is well, but for what change does to it.
func well(t *testing.T, pem string, proxies []control.ProxyStatus, ds []model.Diagnostic, more ...string) *clustertest.Server {
	t.Helper()
	s := clustertest.New(t, append(more, wellObjects)...)
	s.Secure("malha-system", "malhad-a", webhookPort, shown(t, pem, "malhad.malha-system.svc", time.Hour))
	s.Answer("malha-system", "malhad-a", debugPort, map[string]any{"/debug/version": map[string]string{"version": "v1"}, "/debug/proxies": proxies, "/debug/diagnostics": ds})
	return s
}

func synced() []control.ProxyStatus {
	return []control.ProxyStatus{{Name: ident.Name{Namespace: "shop", Name: "web"}, Version: "v1", Connected: true, Sync: control.Synced, CertExpires: now.Add(time.Hour)}}
}

func ask(t *testing.T, s *clustertest.Server, o Options) map[string]Result {
	t.Helper()
	o.Cluster, o.Namespace, o.Version, o.Now = s.Cluster, "malha-system", "v1", func() time.Time { return now }
	sections := Before(t.Context(), o)
	if o.Adopt == nil {
		sections = Proxies(t.Context(), o)
	}
	out := map[string]Result{}
	for _, sec := range sections {
		for _, r := range sec.Results {
			out[r.Name] = r
			if r.Level != OK && r.Cause == "" || r.Level == Error && r.Fix == "" {
				t.Errorf("%q has no cause or no fix: %+v", r.Name, r)
			}
		}
	}
	return out
}

func TestWell(t *testing.T) {
	pem := rootPEM(t, 5*365*24*time.Hour)
	s := well(t, pem, synced(), nil, root("malha-system", pem), root("shop", pem), hooks(pem))
	for _, o := range []Options{{}, {Adopt: []string{}}} {
		got := ask(t, s, o)
		for _, r := range got {
			if r.Level != OK {
				t.Errorf("%s: %+v", r.Name, r)
			}
		}
		if len(got) < 10 {
			t.Errorf("only %d checks", len(got))
		}
	}
}

// TestFindings makes one thing wrong at a time: the check that is for it says so, with the words that lead to the cause, and no check
// says "broken" that is not about it.
func TestFindings(t *testing.T) {
	pem, other, old, late := rootPEM(t, 5*365*24*time.Hour), rootPEM(t, 5*365*24*time.Hour), rootPEM(t, -time.Hour), rootPEM(t, 30*24*time.Hour)
	sound := []string{root("malha-system", pem), root("shop", pem), hooks(pem)}
	with := func(docs ...string) []string { return append(docs, sound...) }
	proxy := func(change func(*control.ProxyStatus)) []control.ProxyStatus {
		p := synced()
		change(&p[0])
		return p
	}
	for _, c := range []struct {
		name    string
		docs    []string
		proxies []control.ProxyStatus
		ds      []model.Diagnostic
		after   func(*clustertest.Server)
		options Options
		check   string
		level   Level
		says    string
	}{
		{name: "root expired", docs: []string{root("malha-system", old), root("shop", old), hooks(old)}, check: "the root of the certificates is valid", level: Error, says: "no proxy trusts another"},
		{name: "root expires", docs: []string{root("malha-system", late), root("shop", late), hooks(late)}, check: "the root of the certificates is valid", level: Warning, says: "30 days"},
		{name: "root missing", docs: []string{root("malha-system", pem), hooks(pem)}, check: "every namespace of the mesh has the same root", level: Error, says: "shop"},
		{name: "root differs", docs: []string{root("malha-system", pem), root("shop", other), hooks(pem)}, check: "every namespace of the mesh has the same root", level: Error, says: "shop"},
		{name: "no bundle", docs: []string{root("malha-system", pem), root("shop", pem), hooks("")}, check: "the API server can reach and trust them", level: Error, says: "no caBundle"},
		{name: "expired bundle", docs: []string{root("malha-system", pem), root("shop", pem), hooks(old)}, check: "the API server can reach and trust them", level: Error, says: "expired"},
		{name: "other bundle", docs: []string{root("malha-system", pem), root("shop", pem), hooks(other)}, check: "the API server can reach and trust them", level: Error, says: "another root"},
		{name: "no webhooks", docs: []string{root("malha-system", pem), root("shop", pem)}, check: "they are registered", level: Error, says: "no pod gets a proxy"},
		{name: "another name is shown", docs: sound, after: func(s *clustertest.Server) {
			s.Secure("malha-system", "malhad-a", webhookPort, shown(t, pem, "malhad.elsewhere.svc", time.Hour))
		}, check: "their certificate is in order", level: Error, says: "malhad.elsewhere.svc"},
		{name: "an expired certificate is shown", docs: sound, after: func(s *clustertest.Server) {
			s.Secure("malha-system", "malhad-a", webhookPort, shown(t, pem, "malhad.malha-system.svc", -time.Hour))
		}, check: "their certificate is in order", level: Error, says: "expired"},
		{name: "a certificate of another root is shown", docs: sound, after: func(s *clustertest.Server) {
			s.Secure("malha-system", "malhad-a", webhookPort, shown(t, other, "malhad.malha-system.svc", time.Hour))
		}, check: "their certificate is in order", level: Error, says: "unknown authority"},
		{name: "no right to forward", docs: sound, after: func(s *clustertest.Server) {
			s.Break("malha-system", "malhad-a", webhookPort, apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "malhad-a", errors.New("no")))
		}, check: "their certificate is in order", level: Warning, says: "could not be found out"},
		{name: "a replica that does not answer", docs: with("apiVersion: v1\nkind: Pod\nmetadata: {name: malhad-b, namespace: malha-system, labels: {app: malhad}}\nstatus: {phase: Running}"), check: "all its replicas answer", level: Error, says: "malha-system/malhad-b"},
		{name: "what the leader may not do", docs: sound, ds: []model.Diagnostic{{Severity: model.Error, Code: "MALHA1105", Message: "the control plane may not write x", Hint: "give it y"}}, check: "it has no errors", level: Error, says: "MALHA1105; the first: MALHA1105 the control plane may not write x; give it y"},
		{name: "one replica", docs: with("apiVersion: v1\nkind: Node\nmetadata: {name: two}\nstatus: {nodeInfo: {kubeletVersion: v1.34.4}}"), check: "another replica goes on when one is away", level: Warning, says: "one replica"},
		{name: "an unknown word", docs: with("apiVersion: v1\nkind: Namespace\nmetadata: {name: odd, labels: {malha.dev/inject: 'true'}}"), check: "namespaces ask for proxies in words that are known", level: Error, says: "odd (label malha.dev/inject: true)"},
		{name: "an annotation that is a label", docs: with("apiVersion: v1\nkind: Namespace\nmetadata: {name: odd, annotations: {malha.dev/inject: enabled}}"), check: "namespaces ask for proxies in words that are known", level: Error, says: "annotation, which should be a label"},
		{name: "refused configuration", docs: sound, proxies: proxy(func(p *control.ProxyStatus) { p.Sync, p.Reason = control.Failed, "unknown field" }), check: "they run the configuration in force", level: Error, says: "unknown field"},
		{name: "stale", docs: sound, proxies: proxy(func(p *control.ProxyStatus) { p.Sync, p.Reason = control.Stale, "not connected" }), check: "they run the configuration in force", level: Warning, says: "not connected"},
		{name: "certificate", docs: sound, proxies: proxy(func(p *control.ProxyStatus) { p.CertExpires = now.Add(-time.Minute) }), check: "their certificates are valid", level: Error, says: "shop/web"},
		{name: "version", docs: sound, proxies: proxy(func(p *control.ProxyStatus) { p.Version = "v0" }), check: "they are of the version of the control plane", level: Warning, says: "v0"},
		{name: "diagnostics", docs: sound, ds: []model.Diagnostic{{Severity: model.Error, Code: "MLH0001", Message: "no such host", Origin: ident.Origin{Kind: "VirtualService", Namespace: "shop", Name: "web"}}}, check: "it has no errors", level: Error, says: "VirtualService shop/web"},
		{name: "a kind that is not read", docs: sound, ds: []model.Diagnostic{{Severity: model.Error, Code: "MALHA1103", Message: "versions", Origin: ident.Origin{Kind: "Sidecar"}}}, check: "it has no errors", level: Error, says: "force: Sidecar; the first"},
		{name: "bare pod", docs: with("apiVersion: v1\nkind: Pod\nmetadata: {name: bare, namespace: shop}\nstatus: {phase: Running}"), check: "pods in namespaces of the mesh have a proxy", level: Warning, says: "shop/bare"},
		{name: "host network", docs: with("apiVersion: v1\nkind: Pod\nmetadata: {name: host, namespace: shop}\nspec: {hostNetwork: true}\nstatus: {phase: Running}"), check: "no pod of the mesh uses the network of its node", level: Warning, says: "shop/host"},
		{name: "crashing proxy", docs: with("apiVersion: v1\nkind: Pod\nmetadata: {name: sad, namespace: shop}\nspec: {initContainers: [{name: malha-proxy}]}\nstatus: {phase: Pending, initContainerStatuses: [{name: malha-proxy, state: {waiting: {reason: CrashLoopBackOff}}}]}"), check: "they are ready", level: Error, says: "CrashLoopBackOff"},
		{name: "a proxy that starts", docs: with("apiVersion: v1\nkind: Pod\nmetadata: {name: new, namespace: shop, creationTimestamp: '2026-11-21T07:59:30Z'}\nspec: {initContainers: [{name: malha-proxy}]}\nstatus: {phase: Pending, initContainerStatuses: [{name: malha-proxy, state: {waiting: {reason: PodInitializing}}}]}"), check: "they are ready", level: Warning, says: "starting, since less than a minute: shop/new"},
		{name: "a proxy that starts for long", docs: with("apiVersion: v1\nkind: Pod\nmetadata: {name: new, namespace: shop, creationTimestamp: '2026-11-21T07:58:30Z'}\nspec: {initContainers: [{name: malha-proxy}]}\nstatus: {phase: Pending, initContainerStatuses: [{name: malha-proxy, state: {waiting: {reason: PodInitializing}}}]}"), check: "they are ready", level: Error, says: "not ready: shop/new; the first: new: starting"},
		{name: "a young proxy that crashes", docs: with("apiVersion: v1\nkind: Pod\nmetadata: {name: new, namespace: shop, creationTimestamp: '2026-11-21T07:59:30Z'}\nspec: {initContainers: [{name: malha-proxy}]}\nstatus: {phase: Pending, initContainerStatuses: [{name: malha-proxy, state: {waiting: {reason: CrashLoopBackOff}}}]}"), check: "they are ready", level: Error, says: "CrashLoopBackOff"},
		{name: "a young proxy that is not connected yet", docs: with("apiVersion: v1\nkind: Pod\nmetadata: {name: new, namespace: shop, creationTimestamp: '2026-11-21T07:59:30Z'}\nspec: {initContainers: [{name: malha-proxy}]}"), proxies: proxy(func(p *control.ProxyStatus) {
			p.Name.Name, p.Sync, p.Reason = "new", control.Stale, "not connected"
		}), check: "they run the configuration in force", level: OK},
		{name: "a replica that starts", docs: with("apiVersion: v1\nkind: Pod\nmetadata: {name: malhad-b, namespace: malha-system, labels: {app: malhad}}\nstatus: {phase: Running, conditions: [{type: Ready, status: 'False'}]}"), check: "all its replicas answer", level: Warning, says: "malhad-b is starting"},
		{name: "a replica that starts and one that is away", docs: with("apiVersion: v1\nkind: Pod\nmetadata: {name: malhad-b, namespace: malha-system, labels: {app: malhad}}\nstatus: {phase: Running, conditions: [{type: Ready, status: 'False'}]}", "apiVersion: v1\nkind: Pod\nmetadata: {name: malhad-c, namespace: malha-system, labels: {app: malhad}}\nstatus: {phase: Running}"), check: "all its replicas answer", level: Error, says: "malhad-c"},
		{name: "an upgrade", docs: sound, after: rollout("Progressing", "ReplicaSetUpdated", 1), check: "all its replicas are ready", level: Warning, says: "rolled out"},
		{name: "an upgrade that does not go on", docs: sound, after: rollout("Progressing", "ProgressDeadlineExceeded", 1), check: "all its replicas are ready", level: Error, says: "1 of 2"},
		{name: "an installation that does not serve yet", docs: sound, after: rollout("Progressing", "ReplicaSetUpdated", 0), check: "all its replicas are ready", level: Error, says: "0 of 2"},
		{name: "refused pod", docs: with("apiVersion: v1\nkind: Event\nmetadata: {name: e, namespace: shop}\nreason: FailedCreate\nmessage: 'admission webhook \"namespace.inject.malha.dev\" denied the request: annotation x'\nlastTimestamp: 2026-11-21T07:59:00Z\ninvolvedObject: {kind: ReplicaSet, namespace: shop, name: web-1}"), check: "no pod is refused by the injector", level: Error, says: "annotation x"},
		{name: "pod security", docs: with("apiVersion: v1\nkind: Namespace\nmetadata: {name: strict, labels: {malha.dev/inject: enabled, pod-security.kubernetes.io/enforce: restricted}}", root("strict", pem)), check: "Pod Security lets pods be injected", level: Error, says: "strict (restricted)"},
		{name: "two meshes", docs: with("apiVersion: v1\nkind: Namespace\nmetadata: {name: both, labels: {malha.dev/inject: enabled, istio-injection: enabled}}", root("both", pem), "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\nmetadata: {name: istio-sidecar-injector}"), check: "no other mesh claims the same namespaces", level: Error, says: "both"},
		{name: "no right", docs: sound, after: func(s *clustertest.Server) { s.Forbid("list", "events") }, check: "no pod is refused by the injector", level: Warning, says: "could not be found out"},
		{name: "old cluster", after: func(s *clustertest.Server) { s.Minor("27") }, options: Options{Adopt: []string{}}, docs: sound, check: "it is Kubernetes 1.30 or later", level: Error, says: "1.27"},
		{name: "missing right", after: func(s *clustertest.Server) { s.Deny("create", "clusterroles") }, options: Options{Adopt: []string{}}, docs: sound, check: "you may make everything that the mesh consists of", level: Error, says: "create clusterroles.rbac.authorization.k8s.io"},
		{name: "installed elsewhere", options: Options{Adopt: []string{}}, docs: with("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: malhad, namespace: elsewhere, labels: {malha.dev/release: malha}}"), check: "the mesh is in no other namespace already", level: Error, says: "elsewhere"},
		{name: "adopts a mesh that is there", options: Options{Adopt: []string{"istio"}}, docs: with("apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\nmetadata: {name: istio-sidecar-injector}"), check: "no other mesh claims the same namespaces", level: Error, says: "two proxies"},
		{name: "adopts without kinds", options: Options{Adopt: []string{"istio"}}, docs: sound, check: "the kinds of adopted meshes are there", level: Warning, says: "istio"},
		{name: "old kubelet", options: Options{Adopt: []string{}}, docs: with("apiVersion: v1\nkind: Node\nmetadata: {name: old}\nstatus: {nodeInfo: {kubeletVersion: v1.28.0}}"), check: "kubelets are 1.29 or later (native sidecars)", level: Warning, says: "old (v1.28.0)"},
		{name: "clock", options: Options{Adopt: []string{}}, docs: with("apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {name: fast, namespace: kube-node-lease}\nspec: {renewTime: '2026-11-21T08:10:00.000000Z'}"), check: "the clocks of nodes and of this machine agree", level: Warning, says: "fast"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.proxies == nil {
				c.proxies = synced()
			}
			s := well(t, pem, c.proxies, c.ds, c.docs...)
			if c.after != nil {
				c.after(s)
			}
			got := ask(t, s, c.options)
			r, ok := got[c.check]
			if !ok {
				t.Fatalf("there is no check %q", c.check)
			}
			if r.Level != c.level || !strings.Contains(r.Cause, c.says) {
				t.Errorf("%+v, want %s with %q", r, c.level, c.says)
			}
		})
	}
}

// rollout is a Deployment of malhad whose pods are being replaced.
func rollout(condition, reason string, available int) func(*clustertest.Server) {
	return func(s *clustertest.Server) {
		status := "True"
		if reason == "ProgressDeadlineExceeded" {
			status = "False"
		}
		s.Dynamic.PrependReactor("get", "deployments", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, &unstructured.Unstructured{Object: map[string]any{
				"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": "malhad", "namespace": "malha-system"},
				"spec": map[string]any{"replicas": int64(2), "selector": map[string]any{"matchLabels": map[string]any{"app": "malhad"}}},
				"status": map[string]any{"replicas": int64(3), "updatedReplicas": int64(1), "availableReplicas": int64(available), "conditions": []any{
					map[string]any{"type": condition, "status": status, "reason": reason},
				}},
			}}, nil
		})
	}
}

func TestNotInstalled(t *testing.T) {
	s := clustertest.New(t)
	got := ask(t, s, Options{})
	if r := got["namespace malha-system exists"]; r.Level != Error || !strings.Contains(r.Fix, "malha install") {
		t.Errorf("%+v", r)
	}
	if _, ok := got["they are ready"]; ok {
		t.Error("what follows from it is asked all the same")
	}
}

// TestPages: every page that a finding names is there, with the heading that it names.
func TestPages(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	found := 0
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`"(docs/[a-z-]+\.md)(?:#([a-z-]+))?"`).FindAllStringSubmatch(string(text), -1) {
			found++
			page, err := os.ReadFile("../../" + m[1])
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			heading := strings.ReplaceAll(m[2], "-", " ")
			if heading != "" && !strings.Contains(strings.ToLower(string(page)), "\n## "+heading+"\n") {
				t.Errorf("%s: %s has no heading %q", name, m[1], heading)
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d pages are named", found)
	}
}

func TestWorst(t *testing.T) {
	warn, bad := Section{Results: []Result{{Level: OK}, {Level: Warning}}}, Section{Results: []Result{{Level: Error}, {Level: Warning}}}
	if Worst(nil) != OK || Worst([]Section{warn}) != Warning || Worst([]Section{bad, warn}) != Error {
		t.Error("not the worst")
	}
}

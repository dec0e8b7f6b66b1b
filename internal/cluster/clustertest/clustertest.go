// Package clustertest is a cluster for tests: an API server in memory, which takes what is applied, makes Deployments ready at once,
// and answers of pods that are functions.
package clustertest

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apimachinery/pkg/version"
	discoveryfake "k8s.io/client-go/discovery/fake"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/malha-mesh/malha/internal/cluster"
)

// kinds are all that the commands touch; true means namespaced.
var kinds = map[schema.GroupVersionKind]bool{
	{Version: "v1", Kind: "Namespace"}: false, {Version: "v1", Kind: "Node"}: false, {Version: "v1", Kind: "Pod"}: true, {Version: "v1", Kind: "Service"}: true,
	{Version: "v1", Kind: "ConfigMap"}: true, {Version: "v1", Kind: "Secret"}: true, {Version: "v1", Kind: "ServiceAccount"}: true, {Version: "v1", Kind: "Event"}: true,
	{Group: "apps", Version: "v1", Kind: "Deployment"}: true, {Group: "policy", Version: "v1", Kind: "PodDisruptionBudget"}: true,
	{Group: "autoscaling", Version: "v2", Kind: "HorizontalPodAutoscaler"}:   true,
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole"}: false, {Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding"}: false,
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role"}: true, {Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "RoleBinding"}: true,
	{Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice"}: true, {Group: "coordination.k8s.io", Version: "v1", Kind: "Lease"}: true,
	{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"}:               false,
	{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingWebhookConfiguration"}:   false,
	{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingWebhookConfiguration"}: false,
	{Group: "authorization.k8s.io", Version: "v1", Kind: "SelfSubjectAccessReview"}:                false,
	{Group: "gateway.networking.k8s.io", Version: "v1", Kind: "GatewayClass"}:                      false,
	{Group: "malha.dev", Version: "v1alpha1", Kind: "RateLimit"}:                                   true, {Group: "malha.dev", Version: "v1alpha1", Kind: "Workload"}: true,
}

// Server is the API server.
type Server struct {
	Cluster *cluster.Cluster
	Dynamic *dynamicfake.FakeDynamicClient

	mu      sync.Mutex
	denied  map[string]bool
	pods    map[string]http.Handler // "namespace/pod:port"
	secure  map[string]*tls.Config  // of those that speak TLS
	broken  map[string]error        // what connecting to those fails with
	version int
	ready   bool
}

type mapper struct{ *meta.DefaultRESTMapper }

// Reset has nothing to forget.
func (mapper) Reset() {}

// New starts one with objects: YAML documents.
func New(t testing.TB, documents ...string) *Server {
	t.Helper()
	s := &Server{denied: map[string]bool{}, pods: map[string]http.Handler{}, secure: map[string]*tls.Config{}, broken: map[string]error{}, ready: true}
	lists := map[schema.GroupVersionResource]string{}
	m := mapper{meta.NewDefaultRESTMapper(nil)}
	for k, namespaced := range kinds {
		resource, _ := meta.UnsafeGuessKindToResource(k)
		lists[resource] = k.Kind + "List"
		scope := meta.RESTScopeRoot
		if namespaced {
			scope = meta.RESTScopeNamespace
		}
		m.Add(k, scope)
	}
	s.Dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists, Objects(t, strings.Join(documents, "\n---\n"))...)
	s.Dynamic.PrependReactor("patch", "*", s.apply)
	s.Dynamic.PrependReactor("create", "selfsubjectaccessreviews", s.review)
	disco := &discoveryfake.FakeDiscovery{Fake: &clienttesting.Fake{}, FakedServerVersion: &version.Info{Major: "1", Minor: "34", GitVersion: "v1.34.4"}}
	s.Cluster = &cluster.Cluster{Namespace: "default", Server: "https://cluster.test", Dynamic: s.Dynamic, Discovery: disco, Mapper: m, Dial: s.dial}
	return s
}

// Objects reads YAML documents.
func Objects(t testing.TB, text string) []runtime.Object {
	t.Helper()
	var out []runtime.Object
	d := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		u := &unstructured.Unstructured{}
		if err := d.Decode(&u.Object); err != nil {
			if err.Error() == "EOF" {
				return out
			}
			t.Fatalf("the test's own object: %v", err)
		}
		if len(u.Object) > 0 {
			out = append(out, u)
		}
	}
}

// Minor sets the version of Kubernetes: 1.minor.
func (s *Server) Minor(minor string) {
	s.Cluster.Discovery = &discoveryfake.FakeDiscovery{Fake: &clienttesting.Fake{}, FakedServerVersion: &version.Info{Major: "1", Minor: minor}}
}

// Deny takes a right away: "create clusterroles".
func (s *Server) Deny(verb, resource string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied[verb+" "+resource] = true
}

// Forbid makes the API server refuse what Deny takes away when it is tried without asking.
func (s *Server) Forbid(verb, resource string) {
	s.Dynamic.PrependReactor(verb, resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(a.GetResource().GroupResource(), "", fmt.Errorf("user \"eve\" cannot %s resource %q", verb, resource))
	})
}

// NeverReady makes Deployments that are applied stay without pods.
func (s *Server) NeverReady() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = false
}

// Answer lets a port of a pod answer.
func (s *Server) Answer(namespace, pod string, port int, paths map[string]any) {
	mux := http.NewServeMux()
	for path, v := range paths {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("content-type", "application/json")
			_ = json.NewEncoder(w).Encode(v)
		})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods[namespace+"/"+pod+":"+strconv.Itoa(port)] = mux
}

// Secure lets a port of a pod end TLS with a certificate, and answer nothing.
func (s *Server) Secure(namespace, pod string, port int, cert tls.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := namespace + "/" + pod + ":" + strconv.Itoa(port)
	s.pods[at], s.secure[at] = http.NotFoundHandler(), &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
}

// Break makes connecting to a port of a pod fail; nil mends it.
func (s *Server) Break(namespace, pod string, port int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken[namespace+"/"+pod+":"+strconv.Itoa(port)] = err
}

// All returns "Kind namespace/name" of everything there is, sorted.
func (s *Server) All(t testing.TB) []string {
	t.Helper()
	var out []string
	for k := range kinds {
		resource, _ := meta.UnsafeGuessKindToResource(k)
		if k.Kind == "SelfSubjectAccessReview" {
			continue
		}
		l, err := s.Dynamic.Resource(resource).List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range l.Items {
			out = append(out, fmt.Sprintf("%s %s/%s", k.Kind, l.Items[i].GetNamespace(), l.Items[i].GetName()))
		}
	}
	slices.Sort(out)
	return out
}

// apply is server-side apply, as far as one field manager has to do with it: the object that is applied is what there is.
func (s *Server) apply(a clienttesting.Action) (bool, runtime.Object, error) {
	patch, ok := a.(clienttesting.PatchActionImpl)
	if !ok || patch.PatchType != types.ApplyPatchType {
		return false, nil, nil
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(patch.Patch); err != nil {
		return true, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	tracker, resource := s.Dynamic.Tracker(), a.GetResource()
	if u.GetNamespace() != "" {
		if _, err := tracker.Get(cluster.Namespaces, "", u.GetNamespace()); err != nil {
			return true, nil, apierrors.NewNotFound(cluster.Namespaces.GroupResource(), u.GetNamespace())
		}
	}
	before, err := tracker.Get(resource, a.GetNamespace(), patch.Name)
	if err != nil && !apierrors.IsNotFound(err) {
		return true, nil, err
	}
	same := false
	if old, ok := before.(*unstructured.Unstructured); ok && err == nil {
		same = equal(old, u)
		u.SetResourceVersion(old.GetResourceVersion())
	}
	if !same {
		s.version++
		u.SetResourceVersion(strconv.Itoa(s.version))
	}
	s.status(u)
	if err != nil {
		return true, u, tracker.Create(resource, u, a.GetNamespace())
	}
	return true, u, tracker.Update(resource, u, a.GetNamespace())
}

func equal(old, applied *unstructured.Unstructured) bool {
	old = old.DeepCopy()
	old.SetResourceVersion("")
	delete(old.Object, "status")
	a, errA := json.Marshal(old.Object)
	b, errB := json.Marshal(applied.Object)
	return errors.Join(errA, errB) == nil && string(a) == string(b)
}

// status is what controllers would write.
func (s *Server) status(u *unstructured.Unstructured) {
	switch u.GetKind() {
	case "CustomResourceDefinition":
		u.Object["status"] = map[string]any{"conditions": []any{map[string]any{"type": "Established", "status": "True"}}}
	case "Deployment":
		n, _, _ := unstructured.NestedInt64(u.Object, "spec", "replicas")
		if s.ready {
			u.Object["status"] = map[string]any{"replicas": n, "updatedReplicas": n, "availableReplicas": n, "readyReplicas": n}
		}
	}
}

func (s *Server) review(a clienttesting.Action) (bool, runtime.Object, error) {
	create, ok := a.(clienttesting.CreateAction)
	if !ok {
		return false, nil, nil
	}
	u, ok := create.GetObject().(*unstructured.Unstructured)
	if !ok {
		return false, nil, nil
	}
	verb, _, _ := unstructured.NestedString(u.Object, "spec", "resourceAttributes", "verb")
	resource, _, _ := unstructured.NestedString(u.Object, "spec", "resourceAttributes", "resource")
	s.mu.Lock()
	defer s.mu.Unlock()
	out := u.DeepCopy()
	return true, out, unstructured.SetNestedField(out.Object, !s.denied[verb+" "+resource], "status", "allowed")
}

// dial answers on a pipe.
func (s *Server) dial(_ context.Context, namespace, pod string, port int) (net.Conn, error) {
	s.mu.Lock()
	at := namespace + "/" + pod + ":" + strconv.Itoa(port)
	h, secure, broken := s.pods[at], s.secure[at], s.broken[at]
	s.mu.Unlock()
	if broken != nil {
		return nil, broken
	}
	if h == nil {
		return nil, fmt.Errorf("port %d of the pod: connection refused", port)
	}
	here, there := net.Pipe()
	if secure != nil {
		there = tls.Server(there, secure)
	}
	l := &once{conn: there, closed: make(chan struct{})}
	srv := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0), ConnState: func(_ net.Conn, st http.ConnState) {
		if st == http.StateClosed {
			l.stop()
		}
	}}
	go func() { _ = srv.Serve(l) }()
	return here, nil
}

// once is a listener with one connection.
type once struct {
	conn   net.Conn
	given  bool
	closed chan struct{}
	end    sync.Once
}

// Accept gives the connection, and then waits until it is closed.
func (l *once) Accept() (net.Conn, error) {
	if !l.given {
		l.given = true
		return l.conn, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *once) stop() { l.end.Do(func() { close(l.closed) }) }

// Close ends Accept.
func (l *once) Close() error {
	l.stop()
	return nil
}

// Addr is none.
func (l *once) Addr() net.Addr { return l.conn.LocalAddr() }

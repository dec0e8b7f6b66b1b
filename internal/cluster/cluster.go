// Package cluster is the command line's way to a Kubernetes API server: read, apply, delete, wait, ask a pod.
//
// Open reads the kubeconfig and does no network I/O; every call that does takes a context, and nothing here starts a goroutine that
// outlives its call. Errors of the API server are said as what a person can do about them (explain.go).
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
)

// Manager is the field manager of what the command line applies.
const Manager = "malha"

// Options say which cluster. Empty ones are as kubectl has them.
type Options struct {
	Kubeconfig string
	Context    string
	Namespace  string
}

// Cluster is a connection. It holds no socket of its own.
type Cluster struct {
	Namespace string // of the kubeconfig's context, or as Options say
	Server    string // address, for messages

	Dynamic   dynamic.Interface
	Discovery discovery.DiscoveryInterface
	Mapper    meta.ResettableRESTMapper
	// Dial connects to a TCP port of a pod, on its loopback interface too.
	Dial func(ctx context.Context, namespace, pod string, port int) (net.Conn, error)
}

// Open reads the kubeconfig.
func Open(o Options) (*Cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.Kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: o.Context})
	config, err := loader.ClientConfig()
	if err != nil {
		if clientcmd.IsEmptyConfig(err) {
			if name := os.Getenv(clientcmd.RecommendedConfigPathEnvVar); name != "" && o.Kubeconfig == "" {
				return nil, fmt.Errorf("no cluster is configured: KUBECONFIG is %s, which is not there or names none; correct it, or name a file with --kubeconfig", name)
			}
			return nil, errors.New("no cluster is configured; set KUBECONFIG, or name a file with --kubeconfig")
		}
		return nil, fmt.Errorf("the kubeconfig is not usable: %w", err)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, fmt.Errorf("the kubeconfig is not usable: %w", err)
	}
	if o.Namespace != "" {
		namespace = o.Namespace
	}
	// A command asks for much at once and ends: the client's own limit of 5 a second would be all of its run time.
	config.QPS, config.Burst = 100, 200
	config.WarningHandler = rest.NoWarnings{}
	config.UserAgent = "malha"
	disco, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("the kubeconfig is not usable: %w", err)
	}
	cached := memory.NewMemCacheClient(disco)
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("the kubeconfig is not usable: %w", err)
	}
	return &Cluster{
		Namespace: namespace, Server: config.Host, Dynamic: dyn, Discovery: cached, Mapper: restmapper.NewDeferredDiscoveryRESTMapper(cached),
		Dial: dialer(config),
	}, nil
}

// Version asks the API server for its version.
func (c *Cluster) Version() (*version.Info, error) {
	v, err := c.Discovery.ServerVersion()
	if err != nil {
		return nil, c.Explain(err)
	}
	return v, nil
}

// resource returns the client for the kind of an object, in its namespace.
func (c *Cluster) resource(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	gvk := o.GroupVersionKind()
	m, err := c.Mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if meta.IsNoMatchError(err) {
		c.Mapper.Reset() // the CRD may have been made just now
		m, err = c.Mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	}
	if err != nil {
		return nil, err
	}
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		return c.Dynamic.Resource(m.Resource).Namespace(o.GetNamespace()), nil
	}
	return c.Dynamic.Resource(m.Resource), nil
}

// Applied says what applying an object did.
type Applied string

// What applying does.
const (
	Created    Applied = "created"
	Configured Applied = "configured"
	Unchanged  Applied = "unchanged"
)

// Apply applies an object on the server's side, as the field manager of the command line. force takes fields from other managers.
func (c *Cluster) Apply(ctx context.Context, o *unstructured.Unstructured, dryRun, force bool) (Applied, error) {
	r, err := c.resource(o)
	if err != nil {
		return "", c.Explain(err)
	}
	before, err := r.Get(ctx, o.GetName(), metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return "", c.Explain(err)
	}
	data, err := o.MarshalJSON()
	if err != nil {
		return "", err
	}
	opts := metav1.PatchOptions{FieldManager: Manager, FieldValidation: metav1.FieldValidationStrict}
	if force {
		opts.Force = &force
	}
	if dryRun {
		opts.DryRun = []string{metav1.DryRunAll}
	}
	after, err := r.Patch(ctx, o.GetName(), types.ApplyPatchType, data, opts)
	switch {
	case err != nil:
		return "", c.Explain(err)
	case before == nil || before.GetUID() == "" && before.GetResourceVersion() == "" && before.GetName() == "":
		return Created, nil
	case before.GetResourceVersion() == after.GetResourceVersion():
		return Unchanged, nil
	}
	return Configured, nil
}

// Delete deletes an object, and reports whether it was there.
func (c *Cluster) Delete(ctx context.Context, o *unstructured.Unstructured, dryRun bool) (bool, error) {
	r, err := c.resource(o)
	if meta.IsNoMatchError(err) {
		return false, nil
	}
	if err != nil {
		return false, c.Explain(err)
	}
	// Foreground: what belongs to it (pods of a Deployment) is gone when it is.
	policy := metav1.DeletePropagationForeground
	opts := metav1.DeleteOptions{PropagationPolicy: &policy}
	if dryRun {
		opts.DryRun = []string{metav1.DryRunAll}
	}
	if uid := o.GetUID(); uid != "" {
		opts.Preconditions = &metav1.Preconditions{UID: &uid}
	}
	err = r.Delete(ctx, o.GetName(), opts)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, c.Explain(err)
}

// Gone reports whether an object is no longer there.
func (c *Cluster) Gone(ctx context.Context, o *unstructured.Unstructured) (bool, error) {
	r, err := c.resource(o)
	if meta.IsNoMatchError(err) {
		return true, nil
	}
	if err != nil {
		return false, c.Explain(err)
	}
	_, err = r.Get(ctx, o.GetName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	return false, c.Explain(err)
}

// Kind names a resource of the API.
type Kind = schema.GroupVersionResource

// The kinds that commands read.
var (
	Namespaces   = Kind{Version: "v1", Resource: "namespaces"}
	Nodes        = Kind{Version: "v1", Resource: "nodes"}
	Pods         = Kind{Version: "v1", Resource: "pods"}
	Services     = Kind{Version: "v1", Resource: "services"}
	ConfigMaps   = Kind{Version: "v1", Resource: "configmaps"}
	Secrets      = Kind{Version: "v1", Resource: "secrets"}
	Slices       = Kind{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}
	Deployments  = Kind{Group: "apps", Version: "v1", Resource: "deployments"}
	StatefulSets = Kind{Group: "apps", Version: "v1", Resource: "statefulsets"}
	DaemonSets   = Kind{Group: "apps", Version: "v1", Resource: "daemonsets"}
	Jobs         = Kind{Group: "batch", Version: "v1", Resource: "jobs"}
	Leases       = Kind{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}
	CRDs         = Kind{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	Mutating     = Kind{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"}
	Validating   = Kind{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"}
	Reviews      = Kind{Group: "authorization.k8s.io", Version: "v1", Resource: "selfsubjectaccessreviews"}
)

// Get reads one object. The error is one of the API server, said by Explain; IsNotFound knows it.
func Get[T any](ctx context.Context, c *Cluster, k Kind, namespace, name string) (*T, error) {
	u, err := c.Dynamic.Resource(k).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, c.Explain(err)
	}
	out := new(T)
	return out, runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out)
}

// List reads objects: of all namespaces with "", by labels with a selector.
func List[T any](ctx context.Context, c *Cluster, k Kind, namespace, selector string) ([]T, error) {
	us, err := c.Objects(ctx, k, namespace, selector)
	if err != nil {
		return nil, err
	}
	out := make([]T, len(us))
	for i := range us {
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(us[i].Object, &out[i]); err != nil {
			return nil, fmt.Errorf("%s %s/%s: %w", k.Resource, us[i].GetNamespace(), us[i].GetName(), err)
		}
	}
	return out, nil
}

// Objects is List without types.
func (c *Cluster) Objects(ctx context.Context, k Kind, namespace, selector string) ([]unstructured.Unstructured, error) {
	return c.list(ctx, k, namespace, metav1.ListOptions{LabelSelector: selector})
}

// Named reads the objects of one name in all namespaces.
func (c *Cluster) Named(ctx context.Context, k Kind, name string) ([]unstructured.Unstructured, error) {
	return c.list(ctx, k, "", metav1.ListOptions{FieldSelector: "metadata.name=" + name})
}

func (c *Cluster) list(ctx context.Context, k Kind, namespace string, opts metav1.ListOptions) ([]unstructured.Unstructured, error) {
	var out []unstructured.Unstructured
	opts.Limit = 500
	for {
		l, err := c.Dynamic.Resource(k).Namespace(namespace).List(ctx, opts)
		if err != nil {
			return nil, c.Explain(err)
		}
		out = append(out, l.Items...)
		if opts.Continue = l.GetContinue(); opts.Continue == "" {
			return out, nil
		}
	}
}

// May asks whether the user may do something; namespace "" means in all of them.
func (c *Cluster) May(ctx context.Context, verb, group, resource, namespace string) (bool, error) {
	review := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
		"spec": map[string]any{"resourceAttributes": map[string]any{"verb": verb, "group": group, "resource": resource, "namespace": namespace}},
	}}
	answer, err := c.Dynamic.Resource(Reviews).Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, c.Explain(err)
	}
	allowed, _, err := unstructured.NestedBool(answer.Object, "status", "allowed")
	return allowed, err
}

// WaitFor asks every half second until done says so. An error that may pass by itself is waited out: an API server that restarts, or
// elects, is asked again. When the time is over the error is the last one, or what was missing then.
func WaitFor(ctx context.Context, done func(context.Context) (ok bool, reason string, err error)) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		ok, why, err := done(ctx)
		switch {
		case ok:
			return nil
		case err == nil && why != "":
			last = errors.New(why)
		case err == nil:
			last = nil
		case ctx.Err() != nil: // it is the end of the time that the error tells
		case !passes(err):
			return err
		default:
			last = err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) && last != nil {
				return last
			}
			return ctx.Err()
		case <-tick.C:
		}
	}
}

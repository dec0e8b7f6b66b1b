package kube

import (
	"context"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/malha-mesh/malha/internal/ident"
)

// mention is a Secret or ConfigMap that an object names.
type mention struct {
	kind string
	name ident.Name // without a namespace: in that of the proxies that use it (Istio credentialName)
	own  bool       // these are in the object's namespace too, not gateways alone (DestinationRule with workloadSelector)
}

// naming are the kinds that name Secrets or ConfigMaps.
var naming = map[string]bool{
	"Gateway": true, "ListenerSet": true, "DestinationRule": true, "Ingress": true, "BackendTLSPolicy": true,
}

// mentions returns what an object names. Only names that may be read are ever followed: a reference to another namespace that
// no grant permits is read, and used by nobody.
func mentions(kind string, content map[string]any) []mention {
	if !naming[kind] {
		return nil
	}
	namespace, own := "", false
	if spec, ok := content["spec"].(map[string]any); ok {
		own = spec["workloadSelector"] != nil
	}
	if m, ok := content["metadata"].(map[string]any); ok {
		namespace, _ = m["namespace"].(string)
	}
	var out []mention
	add := func(kind, namespace, name string) {
		m := mention{kind, ident.Name{Namespace: namespace, Name: name}, own && namespace == ""}
		if name != "" && !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	var walk func(v any)
	credential := func(v any, mutual bool) {
		text, _ := v.(string)
		text = strings.TrimPrefix(text, "kubernetes://")
		ns, name, complete := strings.Cut(text, "/")
		if !complete {
			ns, name = "", text
		}
		if strings.Contains(name, "/") || strings.Contains(name, ":") {
			return
		}
		add("Secret", ns, name)
		if mutual && name != "" && !strings.HasSuffix(name, "-cacert") {
			add("Secret", ns, name+"-cacert")
		}
	}
	reference := func(v any) {
		r, ok := v.(map[string]any)
		if !ok {
			return
		}
		kind, _ := r["kind"].(string)
		ns, _ := r["namespace"].(string)
		name, _ := r["name"].(string)
		group, _ := r["group"].(string)
		if kind == "" {
			kind = "Secret"
		}
		if ns == "" {
			ns = namespace
		}
		if group == "" && (kind == "Secret" || kind == "ConfigMap") {
			add(kind, ns, name)
		}
	}
	each := func(v any, f func(any)) {
		list, _ := v.([]any)
		for _, e := range list {
			f(e)
		}
	}
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			each(v, walk)
		case map[string]any:
			mode, _ := v["mode"].(string)
			mutual := strings.Contains(mode, "MUTUAL")
			for key, value := range v {
				switch key {
				case "credentialName":
					credential(value, mutual)
				case "credentialNames":
					each(value, func(e any) { credential(e, mutual) })
				case "caCertCredentialName":
					credential(value, false)
				case "secretName":
					name, _ := value.(string)
					add("Secret", namespace, name)
				case "certificateRefs", "caCertificateRefs":
					each(value, reference)
				case "clientCertificateRef":
					reference(value)
				default:
					walk(value)
				}
			}
		}
	}
	walk(content["spec"])
	return out
}

// references returns what all objects name, completed. mu is held.
func (st *state) references() map[mention]bool {
	proxies := map[string]bool{}
	for _, p := range st.pods {
		if p.role == gateway {
			proxies[p.name.Namespace] = true
		}
	}
	out := map[mention]bool{}
	for key, k := range st.objects {
		if st.foreign[key] {
			continue // another controller's Secrets are not for us to read
		}
		for _, m := range k.names {
			if m.name.Namespace != "" {
				out[m] = true
				continue
			}
			if m.own {
				out[mention{kind: m.kind, name: ident.Name{Namespace: key.Name.Namespace, Name: m.name.Name}}] = true
			}
			for ns := range proxies {
				out[mention{kind: m.kind, name: ident.Name{Namespace: ns, Name: m.name.Name}}] = true
			}
		}
	}
	return out
}

// name follows the Secrets and ConfigMaps that objects name, each for itself: nobody may read all of them. state.mu is held.
func (w *watchers) name(st *state) {
	wanted := st.references()
	keys := map[string]bool{}
	for m := range wanted {
		r := w.source.one(m)
		keys[r.key] = true
		w.start(r)
	}
	for key, x := range w.running {
		if x.name != "" && !keys[key] {
			w.drop(key, st)
		}
	}
}

func (s *Source) one(m mention) resource {
	core := s.o.Client.CoreV1()
	r := resource{
		key:  m.kind + "/" + m.name.String(),
		what: m.kind + " " + m.name.String(), name: m.name.Name, client: s.o.Client, feed: objectFeed("v1", m.kind),
	}
	if m.kind == "Secret" {
		r.plural, r.like = "secrets", &corev1.Secret{}
		r.list = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return core.Secrets(m.name.Namespace).List(ctx, o)
		}
		r.watch = func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return core.Secrets(m.name.Namespace).Watch(ctx, o)
		}
		return r
	}
	r.plural, r.like = "configmaps", &corev1.ConfigMap{}
	r.list = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		return core.ConfigMaps(m.name.Namespace).List(ctx, o)
	}
	r.watch = func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		return core.ConfigMaps(m.name.Namespace).Watch(ctx, o)
	}
	return r
}

package inject

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Result is what becomes of a pod.
type Result struct {
	Inject bool
	// Code names the reason in one word, for metrics and tests.
	Code Code
	// Reason is a sentence for people: why it is injected, or why not.
	Reason string
	// Notes are what works otherwise than the user may think.
	Notes []string
	Patch Patch // of the object that was given; nil unless Inject
}

func (r *Result) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// Code is the reason of a decision.
type Code string

// The reasons.
const (
	Asked          Code = "asked"        // a label or annotation asks for it
	Declined       Code = "declined"     // a label or annotation declines it
	NotAsked       Code = "not-asked"    // nobody says anything
	Already        Code = "already"      // it is injected
	OtherMesh      Code = "other-mesh"   // it has the sidecar of another mesh
	HostNetwork    Code = "host-network" // its traffic is its node's
	SystemLocation Code = "system"       // its namespace is never injected
	Windows        Code = "windows"      // it is not for Linux
	Invalid        Code = "invalid"      // a Refusal says why
)

// Refusal is an error: what is wrong with a pod that asks to be injected.
type Refusal struct{ Problems []Problem }

// Problem is one thing that is wrong.
type Problem struct {
	Path    string `json:"path"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func (f *Refusal) add(path, hint, format string, args ...any) {
	f.Problems = append(f.Problems, Problem{path, fmt.Sprintf(format, args...), hint})
}

func (f *Refusal) Error() string {
	parts := make([]string, len(f.Problems))
	for i, p := range f.Problems {
		parts[i] = p.Path + ": " + p.Message
		if p.Hint != "" {
			parts[i] += " (" + p.Hint + ")"
		}
	}
	return strings.Join(parts, "; ")
}

// neverIn are Kubernetes' own namespaces.
var neverIn = []string{"kube-system", "kube-public", "kube-node-lease"}

// Pod decides about a pod or a template, and makes the patch. meta and spec are not changed. The error is a *Refusal: the pod
// asks to be injected in a way that can't be meant.
func (c *Config) Pod(meta *metav1.ObjectMeta, spec *corev1.PodSpec, ns Namespace) (*Result, error) {
	return c.pod(meta, spec, ns, false)
}

// Workload is Pod for the pod of a workload. The patch is of the whole object.
func (c *Config) Workload(w *Workload, ns Namespace) (*Result, error) {
	r, err := c.pod(&w.Meta, &w.Spec, ns, w.bare)
	r.Patch = r.Patch.Below(w.Path)
	return r, err
}

// pod is Pod; bare objects have no metadata at all.
func (c *Config) pod(meta *metav1.ObjectMeta, spec *corev1.PodSpec, ns Namespace, bare bool) (*Result, error) {
	r := &Result{}
	refusal := &Refusal{}
	on, code, reason := c.asked(meta, ns, refusal)
	if len(refusal.Problems) > 0 {
		r.Code, r.Reason = Invalid, "the labels or annotations can't be meant so"
		return r, refusal
	}
	if c.Always && code == NotAsked {
		on, code, reason = true, Asked, "it is asked for, and nothing in it declines"
	}
	r.Code, r.Reason = code, reason
	if !on {
		return r, nil
	}
	if code, why := c.cannot(meta, spec, ns); code != "" {
		r.Code, r.Reason = code, why
		return r, nil
	}
	s := c.settings()
	c.read(s, ns, meta.Annotations, r, refusal)
	s.fit(refusal)
	if _, says := meta.Annotations[StatusAnnotation]; says {
		refusal.add("metadata.annotations["+StatusAnnotation+"]", "remove it: it was copied from another pod", "it says that the pod is injected, and there is no container "+ProxyContainer)
	}
	r.Notes = append(r.Notes, s.notes...)
	s.check(spec, r, refusal)
	if len(refusal.Problems) > 0 {
		r.Code, r.Reason = Invalid, "it can't be injected as it is"
		return r, refusal
	}
	p, err := c.patch(meta, spec, s, r, bare)
	if err != nil {
		refusal.add("spec", "", "%v", err)
		return r, refusal
	}
	r.Inject, r.Patch = true, p
	return r, nil
}

// asked reports whether injection is asked for, and by whom. A pod's word wins over its namespace's, ours over others'.
func (c *Config) asked(meta *metav1.ObjectMeta, ns Namespace, out *Refusal) (bool, Code, string) {
	for _, place := range []struct {
		what                string
		pod                 bool
		labels, annotations map[string]string
	}{{"the pod", true, meta.Labels, meta.Annotations}, {"namespace " + ns.Name, false, ns.Labels, ns.Annotations}} {
		say := func(on bool, form, key, value string) (bool, Code, string) {
			code := Declined
			if on {
				code = Asked
			}
			return on, code, fmt.Sprintf("%s has the %s %s: %s", place.what, form, key, value)
		}
		path := "metadata"
		if !place.pod {
			path = place.what + " metadata"
		}
		if v, ok := place.annotations[LabelInject]; ok {
			out.add(path+".annotations["+LabelInject+"]", "make it a label: webhooks are chosen by labels", "%q is an annotation here, where nobody reads it", v)
		}
		if v, ok := place.labels[LabelInject]; ok {
			switch v {
			case "enabled", "disabled":
				return say(v == "enabled", "label", LabelInject, v)
			}
			out.add(path+".labels["+LabelInject+"]", "write enabled or disabled", "unknown value %q", v)
			return false, Invalid, ""
		}
		if c.adopts(Istio) {
			if on, code, why, ok := istioAsked(place.pod, place.labels, place.annotations, path, say, out); ok {
				return on, code, why
			}
		}
		if c.adopts(Linkerd) {
			const key = "linkerd.io/inject"
			form, v := "annotation", place.annotations[key]
			if v == "" && place.pod {
				form, v = "label", place.labels[key]
			}
			switch v {
			case "":
			case "enabled", "ingress", "disabled":
				return say(v != "disabled", form, key, v)
			default:
				out.add(path+"."+form+"s["+key+"]", "write enabled, disabled or ingress", "unknown value %q", v)
				return false, Invalid, ""
			}
		}
	}
	hint := "label the namespace or the pod malha.dev/inject: enabled"
	if !c.adopts(Istio) && ns.Labels["istio-injection"] == "enabled" {
		hint += "; istio-injection is obeyed by a mesh that is installed with --adopt istio"
	}
	if !c.adopts(Linkerd) && ns.Annotations["linkerd.io/inject"] == "enabled" {
		hint += "; linkerd.io/inject is obeyed by a mesh that is installed with --adopt linkerd"
	}
	return false, NotAsked, "nothing asks for it: " + hint
}

// istioAsked reads Istio's words: sidecar.istio.io/inject and istio.io/rev on pods, istio-injection and istio.io/rev on
// namespaces, of which istio-injection wins.
func istioAsked(pod bool, labels, annotations map[string]string, path string, say func(bool, string, string, string) (bool, Code, string), out *Refusal) (on bool, code Code, why string, ok bool) {
	bad := func(form, key, value, hint string) {
		out.add(path+"."+form+"s["+key+"]", hint, "unknown value %q", value)
		code, ok = Invalid, true
	}
	if pod {
		const key = "sidecar.istio.io/inject"
		form, v := "label", labels[key]
		if v == "" {
			form, v = "annotation", annotations[key]
		}
		switch strings.ToLower(v) {
		case "":
		case "true", "y", "yes", "on", "enabled":
			on, code, why = say(true, form, key, v)
			return on, code, why, true
		case "false", "n", "no", "off", "disabled":
			on, code, why = say(false, form, key, v)
			return on, code, why, true
		default:
			bad(form, key, v, `write "true" or "false"`)
			return
		}
	} else if v, has := labels["istio-injection"]; has {
		switch v {
		case "enabled", "disabled":
			on, code, why = say(v == "enabled", "label", "istio-injection", v)
			return on, code, why, true
		}
		bad("label", "istio-injection", v, "write enabled or disabled")
		return
	}
	if v := labels["istio.io/rev"]; v != "" {
		on, code, why = say(true, "label", "istio.io/rev", v)
		return on, code, why, true
	}
	return false, "", "", false
}

// cannot returns why a pod that is asked for is left alone; "" when nothing speaks against it.
func (c *Config) cannot(meta *metav1.ObjectMeta, spec *corev1.PodSpec, ns Namespace) (Code, string) {
	switch {
	case ns.Name == c.Namespace || slices.Contains(neverIn, ns.Name) || slices.Contains(c.Exclude, ns.Name):
		return SystemLocation, "nothing is injected in namespace " + ns.Name
	case injected(meta, spec):
		return Already, "it is injected already"
	case spec.HostNetwork:
		return HostNetwork, "it has hostNetwork: its traffic is its node's, and capturing it would capture the node's"
	case spec.OS != nil && spec.OS.Name == corev1.Windows || spec.NodeSelector["kubernetes.io/os"] == "windows":
		return Windows, "it is for Windows, and traffic is captured on Linux"
	}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			switch list[i].Name {
			case "istio-proxy", "linkerd-proxy":
				return OtherMesh, "it has the container " + list[i].Name + ": the sidecar of another mesh, whose injector comes first; take its labels away"
			}
		}
	}
	return "", ""
}

// injected reports whether a pod is injected: it says so, and has the proxy.
func injected(meta *metav1.ObjectMeta, spec *corev1.PodSpec) bool {
	_, says := meta.Annotations[StatusAnnotation]
	named := func(k corev1.Container) bool { return k.Name == ProxyContainer }
	return says && (slices.ContainsFunc(spec.InitContainers, named) || slices.ContainsFunc(spec.Containers, named))
}

// proxyPorts are taken in the pod's network.
var proxyPorts = []int32{AdminPort, 15001, 15006, MetricsPort, HealthPort, DNSPort}

// check finds what in a pod does not go with a proxy.
func (s *settings) check(spec *corev1.PodSpec, r *Result, out *Refusal) {
	if len(spec.Containers) == 0 {
		out.add("spec.containers", "", "there are none")
	}
	if sc := spec.SecurityContext; sc != nil && (is(sc.RunAsUser, User) || is(sc.RunAsGroup, User)) {
		out.add("spec.securityContext", "choose another number", "user and group %d are the proxy's: the application's connections would not be captured", User)
	}
	for kind, list := range map[string][]corev1.Container{"initContainers": spec.InitContainers, "containers": spec.Containers} {
		for i := range list {
			k := &list[i]
			at := fmt.Sprintf("spec.%s[%s]", kind, k.Name)
			if k.Name == ProxyContainer || k.Name == InitContainer {
				out.add(at, "rename it, or take the label away that asks for injection", "the name is the injected container's")
			}
			if sc := k.SecurityContext; sc != nil && (is(sc.RunAsUser, User) || is(sc.RunAsGroup, User)) {
				out.add(at+".securityContext", "choose another number", "user and group %d are the proxy's: the container's connections would not be captured", User)
			}
			for _, p := range k.Ports {
				if slices.Contains(proxyPorts, p.ContainerPort) && p.Protocol != corev1.ProtocolUDP {
					out.add(fmt.Sprintf("%s.ports[%d]", at, p.ContainerPort), "choose another port", "the port is the proxy's")
				}
				if p.Protocol == corev1.ProtocolUDP || p.Protocol == corev1.ProtocolSCTP {
					r.note("port %d of container %s is %s: it passes by the mesh, unprotected", p.ContainerPort, k.Name, p.Protocol)
				}
			}
		}
	}
	for _, v := range spec.Volumes {
		if v.Name == identityVolume || v.Name == stateVolume {
			out.add("spec.volumes["+v.Name+"]", "rename it", "the name is the injected volume's")
		}
	}
	slices.SortFunc(out.Problems, func(a, b Problem) int { return strings.Compare(a.Path, b.Path) })
	slices.Sort(r.Notes)
	if !s.native && spec.RestartPolicy != "" && spec.RestartPolicy != corev1.RestartPolicyAlways {
		r.note("without native sidecars the proxy stays when the application has ended: the Job does not finish by itself")
	}
}

func is(v *int64, n int64) bool { return v != nil && *v == n }

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

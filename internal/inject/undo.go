package inject

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Undo returns the patch that takes out of a pod what Pod put into it; nil when it is not injected.
func Undo(meta *metav1.ObjectMeta, spec *corev1.PodSpec) (Patch, error) {
	text, ok := meta.Annotations[StatusAnnotation]
	if !ok {
		return nil, nil
	}
	var st status
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&st); err != nil {
		return nil, fmt.Errorf("metadata.annotations[%s] can't be read: %w; a newer malha wrote it, or it was changed by hand", StatusAnnotation, err)
	}
	var p Patch
	if err := st.restore(spec, &p); err != nil {
		return nil, err
	}
	left := map[string]int{}
	for _, list := range []struct {
		field string
		names []string // of those that are there
		gone  []string
	}{
		{"containers", containerNames(spec.Containers), st.Containers}, {"initContainers", containerNames(spec.InitContainers), st.Init},
		{"volumes", volumeNames(spec.Volumes), st.Volumes},
	} {
		left[list.field] = len(list.names)
		for i := len(list.names) - 1; i >= 0; i-- { // from the end: the places before stay as they are
			if slices.Contains(list.gone, list.names[i]) {
				p.remove("spec", list.field, i)
				left[list.field]--
			}
		}
		if left[list.field] == 0 && slices.Contains(st.Made, list.field) {
			p.remove("spec", list.field)
		}
	}
	rest := len(meta.Annotations)
	for _, key := range append(slices.Clone(st.Annotations), StatusAnnotation) {
		if _, ok := meta.Annotations[key]; ok {
			p.remove("metadata", "annotations", key)
			rest--
		}
	}
	if rest == 0 && slices.Contains(st.Made, "annotations") {
		p.remove("metadata", "annotations")
		if slices.Contains(st.Made, "metadata") && len(meta.Labels) == 0 && meta.Name == "" {
			p.remove("metadata")
		}
	}
	return p, nil
}

// restore puts probes back.
func (st *status) restore(spec *corev1.PodSpec, p *Patch) error {
	for _, b := range st.Probes {
		at, k := find(spec, b.Container)
		if k == nil {
			continue // taken away since
		}
		for f := range strings.SplitSeq(b.Field, "/") {
			at = append(at, f)
		}
		if !hasHTTP(k, b.Field) {
			continue // changed since
		}
		var value any
		if err := json.Unmarshal(b.Value, &value); err != nil {
			return fmt.Errorf("metadata.annotations[%s]: %w", StatusAnnotation, err)
		}
		p.remove(append(slices.Clone(at), "httpGet")...)
		p.add(value, append(slices.Clone(at), b.Kind)...)
	}
	return nil
}

// hasHTTP reports whether the probe or hook is still one that asks the proxy.
func hasHTTP(k *corev1.Container, field string) bool {
	probes := map[string]*corev1.Probe{"livenessProbe": k.LivenessProbe, "readinessProbe": k.ReadinessProbe, "startupProbe": k.StartupProbe}
	var get *corev1.HTTPGetAction
	if q := probes[field]; q != nil {
		get = q.HTTPGet
	}
	if l := k.Lifecycle; l != nil {
		if field == "lifecycle/postStart" && l.PostStart != nil {
			get = l.PostStart.HTTPGet
		}
		if field == "lifecycle/preStop" && l.PreStop != nil {
			get = l.PreStop.HTTPGet
		}
	}
	return get != nil && get.Port.IntValue() == HealthPort
}

func find(spec *corev1.PodSpec, name string) ([]any, *corev1.Container) {
	for i := range spec.Containers {
		if spec.Containers[i].Name == name {
			return []any{"spec", "containers", i}, &spec.Containers[i]
		}
	}
	for i := range spec.InitContainers {
		if spec.InitContainers[i].Name == name {
			return []any{"spec", "initContainers", i}, &spec.InitContainers[i]
		}
	}
	return nil, nil
}

func containerNames(list []corev1.Container) []string {
	out := make([]string, len(list))
	for i := range list {
		out[i] = list[i].Name
	}
	return out
}

func volumeNames(list []corev1.Volume) []string {
	out := make([]string, len(list))
	for i := range list {
		out[i] = list[i].Name
	}
	return out
}

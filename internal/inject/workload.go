package inject

import (
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Workload is an object that makes pods, or is one.
type Workload struct {
	Kind, Namespace, Name string
	Path                  string // of the pod in the object, as a JSON pointer: "", "/spec/template", …
	Meta                  metav1.ObjectMeta
	Spec                  corev1.PodSpec
	bare                  bool // the pod has no metadata
}

// templates are where kinds keep their pods, by group and kind.
var templates = map[string]string{
	"/Pod": "", "/PodTemplate": "/template", "/ReplicationController": "/spec/template",
	"apps/Deployment": "/spec/template", "apps/StatefulSet": "/spec/template", "apps/DaemonSet": "/spec/template", "apps/ReplicaSet": "/spec/template",
	"batch/Job": "/spec/template", "batch/CronJob": "/spec/jobTemplate/spec/template",
}

// ReadWorkload reads an object in JSON. It returns nil for kinds that make no pods.
func ReadWorkload(data []byte) (*Workload, error) {
	var o struct {
		APIVersion string            `json:"apiVersion"`
		Kind       string            `json:"kind"`
		Metadata   metav1.ObjectMeta `json:"metadata"`
	}
	if err := json.Unmarshal(data, &o); err != nil {
		return nil, fmt.Errorf("the object can't be read: %w", err)
	}
	group, _, grouped := strings.Cut(o.APIVersion, "/")
	if !grouped {
		group = ""
	}
	path, ok := templates[group+"/"+o.Kind]
	if !ok {
		return nil, nil
	}
	w := &Workload{Kind: o.Kind, Namespace: o.Metadata.Namespace, Name: o.Metadata.Name, Path: path}
	if w.Name == "" {
		w.Name = o.Metadata.GenerateName
	}
	raw := json.RawMessage(data)
	for step := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		if step == "" {
			continue
		}
		var m map[string]json.RawMessage
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, fmt.Errorf("%s %s: %s: %w", o.Kind, w.Name, path, err)
		}
		if raw = m[step]; len(raw) == 0 {
			return nil, fmt.Errorf("%s %s has no pod at %s", o.Kind, w.Name, path)
		}
	}
	var pod struct {
		Metadata *metav1.ObjectMeta `json:"metadata"`
		Spec     corev1.PodSpec     `json:"spec"`
	}
	if err := json.Unmarshal(raw, &pod); err != nil {
		return nil, fmt.Errorf("%s %s: its pod can't be read: %w", o.Kind, w.Name, err)
	}
	if w.bare = pod.Metadata == nil; !w.bare {
		w.Meta = *pod.Metadata
	}
	w.Spec = pod.Spec
	return w, nil
}

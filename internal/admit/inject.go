package admit

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/malha-mesh/malha/internal/inject"
)

// inject answers about a pod.
func (h *handler) inject(ctx context.Context, r *admissionv1.AdmissionRequest) (*answer, error) {
	if r.Kind.Group != "" || r.Kind.Kind != "Pod" || r.SubResource != "" || r.Operation != admissionv1.Create {
		return &answer{outcome: "not-a-new-pod"}, nil // a configuration that asks too much blocks nothing
	}
	var pod corev1.Pod
	if err := json.Unmarshal(r.Object.Raw, &pod); err != nil {
		return nil, fail(http.StatusBadRequest, "the pod can't be read: %w", err)
	}
	ns, err := h.o.Namespace(ctx, r.Namespace)
	if err != nil {
		return nil, fail(http.StatusServiceUnavailable, "namespace %s is not known: %w", r.Namespace, err)
	}
	name := cmp.Or(pod.Name, r.Name, pod.GenerateName+"*")
	result, err := h.o.Inject().Pod(&pod.ObjectMeta, &pod.Spec, ns)
	a := &answer{outcome: string(result.Code), audit: map[string]string{"injection": string(result.Code) + ": " + result.Reason}}
	var refusal *inject.Refusal
	switch {
	case errors.As(err, &refusal):
		a.refused = "Pod " + r.Namespace + "/" + name + " can't be injected by Malha: " + refusal.Error()
		h.o.Log.Warn("a pod was refused", "pod", r.Namespace+"/"+name, "why", refusal.Error())
		return a, nil
	case err != nil:
		return nil, err
	}
	a.warnings = result.Notes
	if !result.Inject {
		switch result.Code {
		case inject.HostNetwork, inject.OtherMesh, inject.Windows:
			a.warnings = append(a.warnings, "Pod "+name+" is not injected: "+result.Reason)
			h.o.Log.Info("a pod was not injected", "pod", r.Namespace+"/"+name, "why", result.Reason)
		}
		return a, nil
	}
	a.patch, err = result.Patch.JSON()
	h.o.Log.Debug("a pod was injected", "pod", r.Namespace+"/"+name, "why", result.Reason)
	return a, err
}

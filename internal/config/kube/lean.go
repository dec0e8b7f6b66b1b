package kube

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// Transformer takes from objects what nobody needs as they come: the library gathers all of a kind before it hands them over
// (cache.TransformingStore).
func (x *watcher) Transformer() cache.TransformFunc { return lean }

// lean takes from an object, most of all from a Pod, what no feed reads.
func lean(obj any) (any, error) {
	if o, ok := obj.(metav1.Object); ok {
		o.SetManagedFields(nil)
	}
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	p.Annotations = nil
	p.Spec = corev1.PodSpec{
		InitContainers: leanContainers(p.Spec.InitContainers), Containers: leanContainers(p.Spec.Containers), NodeName: p.Spec.NodeName,
		ServiceAccountName: p.Spec.ServiceAccountName, HostNetwork: p.Spec.HostNetwork, Hostname: p.Spec.Hostname, Subdomain: p.Spec.Subdomain,
	}
	p.Status = corev1.PodStatus{Phase: p.Status.Phase, Conditions: p.Status.Conditions, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs}
	return p, nil
}

func leanContainers(all []corev1.Container) []corev1.Container {
	out := make([]corev1.Container, len(all))
	for i := range all {
		out[i] = corev1.Container{Name: all[i].Name, Ports: all[i].Ports, RestartPolicy: all[i].RestartPolicy}
	}
	return out
}

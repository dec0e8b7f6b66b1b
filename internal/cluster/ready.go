package cluster

import (
	"context"
	"fmt"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// Ready reports whether an object does what it is for, and if not, what it lacks. Kinds that have nothing to wait for always are.
func (c *Cluster) Ready(ctx context.Context, o *unstructured.Unstructured) (bool, string, error) {
	if k := o.GetKind(); k != "Deployment" && k != "CustomResourceDefinition" {
		return true, "", nil
	}
	r, err := c.resource(o)
	if err != nil {
		return false, "", c.Explain(err)
	}
	u, err := r.Get(ctx, o.GetName(), metav1.GetOptions{})
	if IsNotFound(err) {
		return false, "it is not there", nil
	}
	if err != nil {
		return false, "", c.Explain(err)
	}
	if o.GetKind() == "CustomResourceDefinition" {
		conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		for _, v := range conditions {
			if m, ok := v.(map[string]any); ok && m["type"] == "Established" {
				return m["status"] == "True", fmt.Sprintf("not established: %v", m["message"]), nil
			}
		}
		return false, "not established yet", nil
	}
	d := &apps.Deployment{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, d); err != nil {
		return false, "", err
	}
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	s := d.Status
	if s.ObservedGeneration >= d.Generation && s.UpdatedReplicas == want && s.AvailableReplicas == want && s.Replicas == want {
		return true, "", nil
	}
	reason := fmt.Sprintf("%d of %d pods are available", s.AvailableReplicas, want)
	if d.Spec.Selector != nil {
		pods, err := List[core.Pod](ctx, c, Pods, d.Namespace, metav1.FormatLabelSelector(d.Spec.Selector))
		for i := range pods {
			if why := Trouble(&pods[i]); err == nil && why != "" {
				return false, reason + ": pod " + pods[i].Name + ": " + why, nil
			}
		}
	}
	return false, reason, nil
}

// Trouble says why a pod is not ready; "" when it is, or has done its work.
func Trouble(p *core.Pod) string {
	if p.Status.Phase == core.PodSucceeded {
		return ""
	}
	if p.DeletionTimestamp != nil {
		return "terminating"
	}
	for _, c := range p.Status.Conditions {
		if c.Type == core.PodReady && c.Status == core.ConditionTrue {
			return ""
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == core.PodScheduled && c.Status == core.ConditionFalse {
			return "not scheduled: " + c.Message
		}
	}
	if why := failure(p); why != "" {
		return why
	}
	for i := range p.Status.ContainerStatuses {
		if s := &p.Status.ContainerStatuses[i]; !s.Ready && s.State.Running != nil {
			return "container " + s.Name + " is not ready"
		}
	}
	return "starting"
}

// Failing reports whether something of a pod went wrong that time alone does not mend.
func Failing(p *core.Pod) bool {
	return p.Status.Phase == core.PodFailed || failure(p) != ""
}

// failure returns what one of a pod's containers met, "" when none met anything.
func failure(p *core.Pod) string {
	for _, list := range [][]core.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for i := range list {
			s := &list[i]
			switch {
			case s.State.Waiting != nil && s.State.Waiting.Reason != "" && s.State.Waiting.Reason != "PodInitializing" && s.State.Waiting.Reason != "ContainerCreating":
				why := s.State.Waiting.Reason
				if m := s.State.Waiting.Message; m != "" {
					why += ": " + m
				}
				if t := s.LastTerminationState.Terminated; t != nil {
					why += fmt.Sprintf(" (it last ended with %d, %s)", t.ExitCode, t.Reason)
				}
				return "container " + s.Name + ": " + why
			case s.State.Terminated != nil && s.State.Terminated.ExitCode != 0:
				return fmt.Sprintf("container %s ended with %d, %s", s.Name, s.State.Terminated.ExitCode, s.State.Terminated.Reason)
			}
		}
	}
	return ""
}

package kube

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	v1 "sigs.k8s.io/gateway-api/apis/v1"
)

const (
	ingressGroup = "networking.k8s.io"
	// sharedGateways selects the Services of the gateways that serve Ingresses: by the label that the chart gives its own, which is
	// also the one that what an Ingress becomes selects (config/core).
	sharedGateways = "istio=ingressgateway"
)

// ingresses follows where Ingresses are reached, which is where the gateways are that serve them.
type ingresses struct {
	client kubernetes.Interface
	log    *slog.Logger
	told   *troubles
	report func([]reach)
}

// run reports until ctx ends, first when all is known.
func (g *ingresses) run(ctx context.Context) {
	wake := make(chan struct{}, 1)
	f := informers.NewSharedInformerFactory(g.client, 0)
	services, err := informer(g.told, taskIngresses, wake, f, &corev1.Service{}, g.client.CoreV1().Services(""), labelled(sharedGateways))
	if err != nil {
		g.log.Error("the gateways of Ingresses cannot be watched", "error", err)
		return
	}
	f.Start(ctx.Done())
	defer f.Shutdown()
	for name, synced := range f.WaitForCacheSync(ctx.Done()) {
		if !synced {
			g.log.Debug("ended before all was known", "kind", name.String())
			return
		}
	}
	settle(ctx, wake, 50*time.Millisecond, func() bool {
		all, err := corelisters.NewServiceLister(services.GetIndexer()).List(labels.Everything())
		if err == nil {
			g.report(doorsOf(all))
		}
		return err == nil
	})
}

// doorsOf returns the addresses of the Services of type LoadBalancer, each once, sorted: those that lead in from outside.
func doorsOf(services []*corev1.Service) []reach {
	out := []reach{}
	for _, s := range services {
		if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
			out = append(out, balancers(s)...)
		}
	}
	slices.SortFunc(out, func(a, b reach) int { return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.value, b.value)) })
	return slices.Compact(out)
}

// balancers returns the addresses that a load balancer gave a Service.
func balancers(s *corev1.Service) []reach {
	var out []reach
	for _, in := range s.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			out = append(out, reach{string(v1.IPAddressType), in.IP})
		} else if in.Hostname != "" {
			out = append(out, reach{string(v1.HostnameAddressType), in.Hostname})
		}
	}
	return out
}

// ingressStatus is IngressStatus.loadBalancer (networking.k8s.io/v1).
func ingressStatus(doors []reach) tree {
	list := []any{}
	for _, d := range doors {
		if d.kind == string(v1.HostnameAddressType) {
			list = append(list, tree{"hostname": d.value})
		} else {
			list = append(list, tree{"ip": d.value})
		}
	}
	if len(list) == 0 {
		return tree{}
	}
	return tree{"ingress": list}
}

package kube

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/malha-mesh/malha/internal/config"
)

const shopIngress = `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: shop, generation: 2}
spec:
  ingressClassName: malha
  rules: [{host: shop.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]
`

func balanced(name, ip, hostname string, kind corev1.ServiceType) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "edge", Name: name, Labels: map[string]string{"istio": "ingressgateway"}}}
	s.Spec.Type = kind
	if ip != "" || hostname != "" {
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: ip, Hostname: hostname}}
	}
	return s
}

// TestIngressStatus: an Ingress of ours says the addresses of the gateways that serve it, and one of others nothing.
func TestIngressStatus(t *testing.T) {
	u, object := parse(t, shopIngress)
	theirs, foreign := parse(t, `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: other, namespace: shop}
spec: {ingressClassName: nginx, defaultBackend: {service: {name: web, port: {number: 80}}}}
`)
	cfg, _ := config.Translate([]config.Object{object, foreign})
	s := newStatuses(newDynamic(u, theirs), newMapper(), quiet)
	s.written = map[target]string{}
	balancer := func(name string) any {
		got, err := s.dynamic.Resource(ingressObjects).Namespace("shop").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		status, _ := got.Object["status"].(tree)
		return status["loadBalancer"]
	}
	s.set(verdicts{objects: []config.Object{object, foreign}, statuses: cfg.Statuses})
	if !s.pass(t.Context()) || balancer("web") != nil {
		t.Errorf("before the gateways are known: %v", balancer("web"))
	}
	for _, step := range []struct {
		services []*corev1.Service
		want     any
	}{
		{
			[]*corev1.Service{
				balanced("b", "198.18.254.2", "", corev1.ServiceTypeLoadBalancer), balanced("a", "", "edge.example.com", corev1.ServiceTypeLoadBalancer),
				balanced("c", "198.18.254.1", "", corev1.ServiceTypeLoadBalancer), balanced("inner", "198.18.254.9", "", corev1.ServiceTypeClusterIP),
			},
			tree{"ingress": []any{tree{"hostname": "edge.example.com"}, tree{"ip": "198.18.254.1"}, tree{"ip": "198.18.254.2"}}},
		},
		{[]*corev1.Service{balanced("c", "198.18.254.1", "", corev1.ServiceTypeLoadBalancer)}, tree{"ingress": []any{tree{"ip": "198.18.254.1"}}}},
		{nil, tree{}},
	} {
		s.setDoors(doorsOf(step.services))
		if !s.pass(t.Context()) {
			t.Error("not everything was written")
		}
		if diff := cmp.Diff(step.want, balancer("web")); diff != "" {
			t.Errorf("with %d Services: %s", len(step.services), diff)
		}
		if got := balancer("other"); got != nil {
			t.Errorf("the Ingress of another controller got %v", got)
		}
	}
}

// TestIngressDoors: the Services of the shared gateways are followed, and no others.
func TestIngressDoors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := balanced("other", "198.18.254.7", "", corev1.ServiceTypeLoadBalancer)
		other.Labels = nil
		client := fake.NewClientset(balanced("edge", "", "", corev1.ServiceTypeLoadBalancer), other)
		var got []reach
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			(&ingresses{client: client, log: quiet, told: newTroubles(quiet), report: func(r []reach) { got = r }}).run(ctx)
		}()
		time.Sleep(time.Second)
		synctest.Wait()
		if got == nil || len(got) != 0 {
			t.Errorf("a gateway without an address is reached at %v", got)
		}
		if _, err := client.CoreV1().Services("edge").UpdateStatus(ctx, balanced("edge", "198.18.254.1", "", corev1.ServiceTypeLoadBalancer), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if want := []reach{{"IPAddress", "198.18.254.1"}}; !slices.Equal(got, want) {
			t.Errorf("the gateway is reached at %v, want %v", got, want)
		}
		stop()
		<-done
	})
}

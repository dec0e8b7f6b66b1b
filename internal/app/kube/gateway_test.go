package kube

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/gateway"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

const doorText = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: shop, generation: 1, uid: u-1}
spec:
  gatewayClassName: malha
  infrastructure: {labels: {team: shop}, annotations: {note: hello}}
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - {name: alt, port: 8080, protocol: HTTP}
`

func TestGatewayRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, o := parse(t, doorText)
		cfg, ds := config.Translate([]config.Object{o})
		if model.HasErrors(ds) || len(cfg.Gateways) != 1 {
			t.Fatal(ds)
		}
		client, dyn := fake.NewClientset(), newDynamic()
		if err := dyn.Tracker().Create(gatewayObjects, u, "shop"); err != nil { // by its resource, which the fake would guess wrongly
			t.Fatal(err)
		}
		states := map[ident.Name]gatewayState{}
		g := &gateways{
			o:      &Options{ProxyImage: "malha.dev/malha-proxy:v1", Namespace: "malha-system"},
			client: client, dynamic: dyn, mapper: newMapper(), log: quiet, wake: make(chan struct{}, 1),
			report: func(s map[ident.Name]gatewayState) { states = s },
		}
		name := ident.Name{Namespace: "shop", Name: "front"}
		g.set(cfg, []config.Object{o})
		during(t, g.run, func() {
			if c, err := dyn.Resource(gatewayClasses).Get(t.Context(), "malha", metav1.GetOptions{}); err != nil || c.Object["spec"].(tree)["controllerName"] != gateway.ControllerName {
				t.Errorf("the class: %v %v", c, err)
			}
			d, err := client.AppsV1().Deployments("shop").Get(t.Context(), "front-malha", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			s, err := client.CoreV1().Services("shop").Get(t.Context(), "front-malha", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.CoreV1().ServiceAccounts("shop").Get(t.Context(), "front-malha", metav1.GetOptions{}); err != nil {
				t.Error(err)
			}
			for _, m := range []metav1.ObjectMeta{d.ObjectMeta, s.ObjectMeta} {
				if len(m.OwnerReferences) != 1 || m.OwnerReferences[0].UID != "u-1" || m.Labels["team"] != "shop" || m.Annotations["note"] != "hello" || m.Labels[labelPartOf] != "malha" {
					t.Errorf("%+v", m)
				}
			}
			pod := d.Spec.Template
			if pod.Labels["malha.dev/role"] != "gateway" || pod.Labels[labelGatewayName] != "front" || pod.Labels["team"] != "shop" || d.Spec.Replicas != nil {
				t.Errorf("%+v", pod.Labels)
			}
			if c := pod.Spec.Containers[0]; c.Image != "malha.dev/malha-proxy:v1" || !strings.Contains(strings.Join(c.Args, " "), "--role=gateway --control=malhad.malha-system.svc:15012") {
				t.Errorf("%v", c.Args)
			}
			if s.Spec.Type != corev1.ServiceTypeLoadBalancer || len(s.Spec.Ports) != 2 || s.Spec.Ports[0].Port != 80 || s.Spec.Ports[0].TargetPort.IntValue() < 1024 || s.Spec.Ports[1].TargetPort.IntValue() != 8080 {
				t.Errorf("%+v", s.Spec)
			}
			if got := states[name]; got.reason != "AddressNotAssigned" {
				t.Errorf("without an address: %+v", got)
			}
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.18.254.1"}}
			if _, err := client.CoreV1().Services("shop").UpdateStatus(t.Context(), s, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			pause(time.Second)
			if got := states[name]; got.reason != "Pending" {
				t.Errorf("without a replica: %+v", got)
			}
			d.Status.AvailableReplicas = 1
			if _, err := client.AppsV1().Deployments("shop").UpdateStatus(t.Context(), d, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			pause(time.Second)
			if got := states[name]; got.problem != "" || len(got.reachable) != 1 || got.reachable[0].value != "198.18.254.1" {
				t.Errorf("%+v", got)
			}
			// Somebody deletes what we made.
			if err := client.CoreV1().Services("shop").Delete(t.Context(), "front-malha", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			pause(time.Second)
			if _, err := client.CoreV1().Services("shop").Get(t.Context(), "front-malha", metav1.GetOptions{}); err != nil {
				t.Error(err)
			}
			// A Gateway that can't be served for now keeps its proxies; one of another class does not.
			g.set(&model.Config{Statuses: cfg.Statuses}, []config.Object{o})
			pause(time.Second)
			if _, err := client.AppsV1().Deployments("shop").Get(t.Context(), "front-malha", metav1.GetOptions{}); err != nil {
				t.Error(err)
			}
			// So does one that could not be read: whoever knows none must not take away those of all.
			g.set(&model.Config{}, nil)
			pause(time.Second)
			if _, err := client.AppsV1().Deployments("shop").Get(t.Context(), "front-malha", metav1.GetOptions{}); err != nil {
				t.Errorf("not known of for a moment: %v", err)
			}
			// Of another class of ours it is made anew, and what was is kept until that serves.
			other, o := parse(t, strings.Replace(doorText, "Name: malha", "Name: inner", 1))
			if err := dyn.Tracker().Update(gatewayObjects, other, "shop"); err != nil {
				t.Fatal(err)
			}
			g.set(cfg, []config.Object{o})
			pause(time.Second)
			if _, err := client.AppsV1().Deployments("shop").Get(t.Context(), "front-malha", metav1.GetOptions{}); err != nil {
				t.Errorf("before its successor serves: %v", err)
			}
			s, err = client.CoreV1().Services("shop").Get(t.Context(), "front-inner", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.18.254.1"}}
			if _, err := client.CoreV1().Services("shop").UpdateStatus(t.Context(), s, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			if d, err = client.AppsV1().Deployments("shop").Get(t.Context(), "front-inner", metav1.GetOptions{}); err != nil {
				t.Fatal(err)
			}
			d.Status.AvailableReplicas = 1
			if _, err := client.AppsV1().Deployments("shop").UpdateStatus(t.Context(), d, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			pause(time.Second)
			if _, err := client.AppsV1().Deployments("shop").Get(t.Context(), "front-malha", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("after it became of another class: %v", err)
			}
			if err := dyn.Tracker().Delete(gatewayObjects, "shop", "front"); err != nil {
				t.Fatal(err)
			}
			g.set(&model.Config{}, nil)
			pause(time.Second)
			if _, err := client.AppsV1().Deployments("shop").Get(t.Context(), "front-inner", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("after it went: %v", err)
			}
		})
	})
}

func TestGatewayPortsAreBindable(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		var w model.Gateway
		numbers := map[int]bool{}
		for range 1 + rng.IntN(40) {
			n := 1 + rng.IntN(65535)
			if rng.IntN(2) == 0 {
				n = []int{80, 443, 8080, 8443, 8523, 15006, 15021, 15000, 7, 23080}[rng.IntN(10)]
			}
			numbers[n] = true
			w.Servers = append(w.Servers, model.Server{Port: n, Protocol: ident.HTTP})
		}
		ports := portsOf(&w)
		if len(ports) != len(numbers) {
			t.Fatalf("%d ports for %d listeners' ports", len(ports), len(numbers))
		}
		seen := map[int]bool{}
		for _, p := range ports {
			if p.target < 1024 || p.target > 65535 || p.target >= 15000 && p.target <= 15100 || seen[p.target] || len(p.name) > 15 {
				t.Fatalf("port %+v of %+v", p, ports)
			}
			seen[p.target] = true
		}
	}
}

func TestGatewayNamesAndTypes(t *testing.T) {
	if got := gatewayObject("front", "malha"); got != "front-malha" {
		t.Error(got)
	}
	a, b := gatewayObject(strings.Repeat("a", 63), "malha"), gatewayObject(strings.Repeat("a", 62)+"b", "malha")
	if len(a) > 63 || len(b) > 63 || a == b {
		t.Errorf("%s %s", a, b)
	}
	for value, want := range map[string]corev1.ServiceType{
		"": corev1.ServiceTypeLoadBalancer, "ClusterIP": corev1.ServiceTypeClusterIP, "NodePort": corev1.ServiceTypeNodePort, "nonsense": corev1.ServiceTypeLoadBalancer,
	} {
		if got := serviceType(map[string]string{serviceTypeAnnotationIstio: value}); got != want {
			t.Errorf("%q: %s", value, got)
		}
	}
	s := &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIPs: []string{"198.19.0.9"}}}
	d := &appsv1.Deployment{Status: appsv1.DeploymentStatus{AvailableReplicas: 1}}
	if got := stateOf(&model.Gateway{}, d, s); got.problem != "" || got.reachable[0].value != "198.19.0.9" {
		t.Errorf("%+v", got)
	}
	if got := stateOf(&model.Gateway{Addresses: []string{"198.18.254.7"}}, d, s); got.reason != "AddressNotUsable" {
		t.Errorf("another address than was asked for: %+v", got)
	}
	balanced := &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
	if got := stateOf(&model.Gateway{}, d, balanced); got.reason != "AddressNotAssigned" {
		t.Errorf("no address: %+v", got)
	}
	if got := stateOf(&model.Gateway{Addresses: []string{"198.18.254.7"}}, d, balanced); got.reason != "AddressNotUsable" {
		t.Errorf("not the address that was asked for, nor another: %+v", got)
	}
	data, err := applied(s)
	var spelled tree
	if err != nil || json.Unmarshal(data, &spelled) != nil || spelled["status"] != nil {
		t.Errorf("a status is claimed: %s %v", data, err)
	}
}

// The proxy verifies the control plane by its trust domain, so it must be told another one than the default.
func TestGatewayTrustDomain(t *testing.T) {
	for domain, want := range map[string]bool{"": false, ident.DefaultTrustDomain: false, "corp.example": true} {
		args := strings.Join(gatewayPod(&Options{Namespace: "m", TrustDomain: domain}, "a", nil).Containers[0].Args, " ")
		if got := strings.Contains(args, "--trust-domain="+domain); got != want && domain != "" || domain == "" && strings.Contains(args, "--trust-domain") {
			t.Errorf("%q: %s", domain, args)
		}
	}
}

// On a cluster any address may be asked for: its Service asks, and the status says what it got.
func TestGatewayAddress(t *testing.T) {
	_, o := parse(t, strings.Replace(doorText, "  listeners:", "  addresses: [{value: 198.18.254.7}]\n  listeners:", 1))
	o.Origin.File = "kubernetes"
	cfg, ds := config.Translate([]config.Object{o})
	if model.HasErrors(ds) || len(cfg.Gateways) != 1 || len(cfg.Gateways[0].Addresses) != 1 {
		t.Fatal(cfg.Gateways, ds)
	}
	_, _, s := renderGateway(&Options{}, &cfg.Gateways[0], "front-malha", "malha", nil, &metav1.OwnerReference{})
	if s.Spec.LoadBalancerIP != "198.18.254.7" {
		t.Errorf("%+v", s.Spec)
	}
}

// TestGatewaysThatWeDoNotMake: where the right was taken away, a Gateway is programmed when somebody else's pod serves it.
func TestGatewaysThatWeDoNotMake(t *testing.T) {
	name := ident.Name{Namespace: "shop", Name: "front"}
	cfg := &model.Config{Gateways: []model.Gateway{{Meta: model.Meta{Name: name}, Own: true}, {Meta: model.Meta{Name: ident.Name{Namespace: "shop", Name: "istios"}}}}}
	got := unmade(cfg, nil)
	conditions := []model.Condition{{Type: "Accepted", Status: true}, {Type: "Programmed", Status: true}}
	state := got[name]
	if c := state.conditions(conditions); len(got) != 1 || !c[0].Status || c[1].Status || !strings.Contains(c[1].Message, "gatewayAPI.deployments: false") {
		t.Errorf("%+v", got)
	}
	if got := unmade(cfg, []model.GatewayInstance{{For: name}}); len(got) != 0 {
		t.Errorf("with a pod for it: %+v", got)
	}
}

package kube

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

func TestOwners(t *testing.T) {
	for _, c := range []struct{ kind, owner, want string }{
		{"", "", "pod-x"},
		{"ReplicaSet", "web-5d8f", "web"},
		{"StatefulSet", "db", "db"},
		{"DaemonSet", "agent", "agent"},
		{"Job", "once", "once"},
		{"Job", "nightly-29382120", "nightly"},
		{"Job", "part-2", "part-2"},
	} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pod-x", Labels: map[string]string{"pod-template-hash": "5d8f"}}}
		if c.kind != "" {
			yes := true
			p.OwnerReferences = []metav1.OwnerReference{{Kind: c.kind, Name: c.owner, Controller: &yes}}
		}
		if got := ownerOf(p); got != c.want {
			t.Errorf("%s %s: %q, want %q", c.kind, c.owner, got, c.want)
		}
	}
}

func TestRoles(t *testing.T) {
	proxy := []corev1.Container{{Name: ContainerName}}
	for _, c := range []struct {
		name string
		spec corev1.PodSpec
		role string
		want role
	}{
		{"no proxy", corev1.PodSpec{Containers: []corev1.Container{{Name: "web"}}}, "", other},
		{"a label alone", corev1.PodSpec{Containers: []corev1.Container{{Name: "web"}}}, GatewayValue, other},
		{"another mesh's", corev1.PodSpec{InitContainers: []corev1.Container{{Name: "istio-proxy"}}}, "", other},
		{"native", corev1.PodSpec{InitContainers: proxy}, "", sidecar},
		{"not native", corev1.PodSpec{Containers: proxy}, "", sidecar},
		{"on the node's network", corev1.PodSpec{Containers: proxy, HostNetwork: true}, "", other},
		{"gateway", corev1.PodSpec{Containers: proxy}, GatewayValue, gateway},
		{"gateway on the node's network", corev1.PodSpec{Containers: proxy, HostNetwork: true}, GatewayValue, gateway},
	} {
		p := &corev1.Pod{Spec: c.spec, ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{LabelRole: c.role}}}
		if got := roleOf(p); got != c.want {
			t.Errorf("%s: role %d, want %d", c.name, got, c.want)
		}
	}
}

func TestPodsThatAreNone(t *testing.T) {
	for _, phase := range []corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed} {
		if got, err := readPod(&corev1.Pod{Status: corev1.PodStatus{Phase: phase}}); got != nil || err != nil {
			t.Errorf("%s: %v, %v", phase, got, err)
		}
	}
}

func TestPorts(t *testing.T) {
	v, err := readPod(&corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: ContainerName, Ports: []corev1.ContainerPort{{ContainerPort: 15021}}}},
		Containers: []corev1.Container{
			{Name: "a", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}, {Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP}}},
			{Name: "b", Ports: []corev1.ContainerPort{{Name: "again", ContainerPort: 80}, {ContainerPort: 81}}},
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for _, p := range v.(*pod).ports {
		got = append(got, p.Port)
	}
	if !slices.Equal(got, []int{80, 81}) {
		t.Errorf("ports %v, want 80 and 81: those of TCP, of programs, once", got)
	}
}

func TestWhere(t *testing.T) {
	st := newState("example.org")
	st.nodes["n"] = node{locality: "eu/a/rack", region: "eu", zone: "a", subzone: "rack", hostname: "n.local"}
	for _, c := range []struct{ node, label, locality, hostname string }{
		{"n", "", "eu/a/rack", "n.local"},
		{"n", "us.b", "us/b", "n.local"},
		{"unknown", "", "", "unknown"},
		{"", "", "", ""},
	} {
		p := &pod{role: sidecar, node: c.node, ip: "fd00::1", v6: true, account: "web", labels: map[string]string{}}
		if c.label != "" {
			p.labels[labelLocality] = c.label
		}
		r := st.run(p)
		if r.workload.Locality != c.locality || r.workload.Labels[corev1.LabelHostname] != c.hostname || r.instance.Captured.Node != c.hostname {
			t.Errorf("%+v: locality %q, labels %v, node %q", c, r.workload.Locality, r.workload.Labels, r.instance.Captured.Node)
		}
		if got := r.instance.Captured.Inbound; got != "[::]:15006" {
			t.Errorf("inbound %s", got)
		}
		if got := r.workload.Identity.URI(); got != "spiffe://example.org/ns//sa/web" {
			t.Errorf("identity %s", got)
		}
	}
}

// TestOneFamily: a Service of two families has its endpoints twice, in slices of each.
func TestOneFamily(t *testing.T) {
	st := newState("cluster.local")
	name := ident.Name{Namespace: "shop", Name: "web"}
	st.services[name] = &service{selector: map[string]string{"a": "b"}, family: corev1.IPv6Protocol}
	for family, want := range map[discoveryv1.AddressType]bool{discoveryv1.AddressTypeIPv4: false, discoveryv1.AddressTypeIPv6: true} {
		address := map[discoveryv1.AddressType]string{discoveryv1.AddressTypeIPv4: "10.0.0.1", discoveryv1.AddressTypeIPv6: "fd00::1"}[family]
		v, err := readSlice(&discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: "x", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			AddressType: family, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{address, "ignored"}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if g, ok := st.group(v.(*slice)); ok != want || ok && g.Endpoints[0].Address != address {
			t.Errorf("%s: %v %+v, want %v", family, ok, g, want)
		}
	}
}

func TestMentions(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"Istio Gateway", `{kind: Gateway, metadata: {namespace: a}, spec: {servers: [
			{tls: {mode: SIMPLE, credentialName: one}}, {tls: {mode: MUTUAL, credentialName: two}},
			{tls: {mode: MUTUAL, credentialName: both-cacert}}, {tls: {credentialNames: [three, b/four]}}, {tls: {credentialName: "kubernetes://b/five"}}]}}`,
			"Secret /both-cacert, Secret /one, Secret /three, Secret /two, Secret /two-cacert, Secret b/five, Secret b/four"},
		{"DestinationRule", `{kind: DestinationRule, metadata: {namespace: a}, spec: {trafficPolicy: {tls: {mode: SIMPLE, credentialName: one}}, subsets: [{trafficPolicy: {portLevelSettings: [{tls: {credentialName: two}}]}}]}}`,
			"Secret /one, Secret /two"},
		{"DestinationRule for some", `{kind: DestinationRule, metadata: {namespace: a}, spec: {workloadSelector: {matchLabels: {}}, trafficPolicy: {tls: {credentialName: one}}}}`, "Secret /one own"},
		{"Gateway API", `{kind: Gateway, metadata: {namespace: a}, spec: {listeners: [{tls: {certificateRefs: [{name: one}, {name: two, namespace: b}, {kind: Other, group: g, name: three}],
			frontendValidation: {caCertificateRefs: [{kind: ConfigMap, name: roots}]}}}], backendTLS: {clientCertificateRef: {name: client}}}}`,
			"ConfigMap a/roots, Secret a/client, Secret a/one, Secret b/two"},
		{"Ingress", `{kind: Ingress, metadata: {namespace: a}, spec: {tls: [{hosts: [x], secretName: one}]}}`, "Secret a/one"},
		{"nonsense", `{kind: Gateway, metadata: {namespace: a}, spec: {servers: {tls: {credentialName: {a: b}, certificateRefs: 5}}}}`, ""},
		{"names nothing", `{kind: VirtualService, metadata: {namespace: a}, spec: {credentialName: x}}`, ""},
	} {
		var content map[string]any
		if err := yaml.Unmarshal([]byte(c.text), &content); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range mentions(content["kind"].(string), content) {
			own := ""
			if m.own {
				own = " own"
			}
			got = append(got, m.kind+" "+m.name.String()+own)
		}
		slices.Sort(got)
		if diff := cmp.Diff(c.want, strings.Join(got, ", ")); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

// TestLean reads the same of a Pod with and without what nobody needs.
func TestLean(t *testing.T) {
	yes, always, now := true, corev1.ContainerRestartPolicyAlways, metav1.Now()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web-x", Labels: map[string]string{"app": "web", LabelRole: GatewayValue}, Annotations: map[string]string{"long": "text"},
			CreationTimestamp: now, OwnerReferences: []metav1.OwnerReference{{Kind: "StatefulSet", Name: "web", Controller: &yes}},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
		},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: "setup", RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "setup", ContainerPort: 81}}}}, NodeName: "n", ServiceAccountName: "sa", Hostname: "web-x", Subdomain: "web",
			Containers: []corev1.Container{{Name: ContainerName, Image: "i", Env: []corev1.EnvVar{{Name: "A"}}, Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}}}},
			Volumes:    []corev1.Volume{{Name: "v"}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}, ContainerStatuses: []corev1.ContainerStatus{{Name: "web"}},
		},
	}
	want, err := readPod(p.DeepCopy())
	if err != nil {
		t.Fatal(err)
	}
	obj, err := lean(p.DeepCopy())
	if err != nil {
		t.Fatal(err)
	}
	got, err := readPod(obj.(*corev1.Pod))
	if err != nil || !reflect.DeepEqual(want, got) {
		t.Errorf("%+v, want %+v, %v", got, want, err)
	}
	if obj.(*corev1.Pod).Spec.Volumes != nil || obj.(*corev1.Pod).ManagedFields != nil {
		t.Error("nothing was taken")
	}
}

// TestNodeOfGateway: where a gateway is gets known also when its Node is heard of after it.
func TestNodeOfGateway(t *testing.T) {
	st := newState("cluster.local")
	name := ident.Name{Namespace: "edge", Name: "gw-1"}
	putPod(&st, name, &pod{name: name, role: gateway, node: "n", labels: map[string]string{}})
	st.config = false // a Result was made
	putNode(&st, ident.Name{Name: "n"}, node{locality: "eu/a", region: "eu", zone: "a", hostname: "n"})
	if got := st.gateways(&model.Config{}); !st.config || len(got) != 1 || got[0].Locality != "eu/a" {
		t.Errorf("a Result is due: %t; %+v", st.config, got)
	}
}

// TestPortsOfSidecars: a Service may lead to a port of a sidecar of the application's own, which is an init container that stays.
func TestPortsOfSidecars(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	port := func(name string, number int32) []corev1.ContainerPort {
		return []corev1.ContainerPort{{Name: name, ContainerPort: number}}
	}
	v, err := readPod(&corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{
			{Name: "setup", Ports: port("gone", 1)},
			{Name: ContainerName, RestartPolicy: &always, Ports: port("malha-metrics", 15020)},
			{Name: "auth", RestartPolicy: &always, Ports: port("auth", 4180)},
		},
		Containers: []corev1.Container{{Name: "web", Ports: port("http", 8080)}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, p := range v.(*pod).ports {
		got += fmt.Sprintf(" %s:%d", p.Name, p.Port)
	}
	if want := " http:8080 auth:4180"; got != want {
		t.Errorf("ports%s, want%s", got, want)
	}
}

func TestDoors(t *testing.T) {
	for _, c := range []struct {
		ips  []string
		want string
	}{
		{[]string{"10.0.0.1"}, "0.0.0.0:15006"},
		{[]string{"10.0.0.1", "fd00::1"}, "[::]:15006"},
		{[]string{"fd00::1"}, "[::]:15006"},
	} {
		in := &corev1.Pod{Spec: corev1.PodSpec{InitContainers: []corev1.Container{{Name: ContainerName}}}, Status: corev1.PodStatus{PodIP: c.ips[0]}}
		for _, ip := range c.ips {
			in.Status.PodIPs = append(in.Status.PodIPs, corev1.PodIP{IP: ip})
		}
		v, err := readPod(in)
		if err != nil {
			t.Fatal(err)
		}
		st := newState("cluster.local")
		got := st.run(v.(*pod)).instance.Captured
		if got.Inbound != c.want || got.Outbound != "127.0.0.1:15001" || got.DNS != "127.0.0.1:15053" || got.Address != c.ips[0] {
			t.Errorf("%v: %+v", c.ips, got)
		}
	}
}

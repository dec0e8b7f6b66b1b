package kube

import (
	"iter"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// How a pod of the mesh is told, and where its proxy takes captured connections.
const (
	// ContainerName is the container of the proxy: among the initContainers of a sidecar (or its containers, where the cluster
	// knows no native sidecars), among the containers of a gateway.
	ContainerName = "malha-proxy"
	// LabelRole with the value "gateway" is on the pods of gateways.
	LabelRole    = "malha.dev/role"
	GatewayValue = "gateway"

	InboundPort  = 15006
	OutboundPort = 15001
	DNSPort      = 15053

	labelLocality     = "istio-locality" // "region.zone.subzone", instead of the node's
	labelGatewayName  = "gateway.networking.k8s.io/gateway-name"
	labelWorkloadName = "service.istio.io/workload-name"
	labelPodTemplate  = "pod-template-hash"
)

type role int

const (
	other   role = iota // not in the mesh
	sidecar             // it has a proxy beside it
	gateway             // it is a proxy
)

// pod is what is needed of a Pod.
type pod struct {
	name     ident.Name
	role     role
	labels   map[string]string
	account  string
	ip       string
	ip2      string // of the other family; "" none
	v6       bool   // it has an IPv6 address
	node     string
	ready    bool
	created  time.Time
	ports    []model.WorkloadPort // that its containers declare, also sidecars of its own; the mesh's pods only
	owner    string               // the workload that made it
	hostname string
	below    string // subdomain
}

// readPod returns a *pod; nil for one that has run to its end, or whose traffic is its node's.
func readPod(o metav1.Object) (any, error) {
	in, ok := o.(*corev1.Pod)
	if !ok {
		return nil, errNoObject
	}
	if in.Status.Phase == corev1.PodSucceeded || in.Status.Phase == corev1.PodFailed {
		return nil, nil
	}
	p := &pod{
		name: nameOf(in), role: roleOf(in), labels: maps.Clone(in.Labels), account: in.Spec.ServiceAccountName, ip: in.Status.PodIP, node: in.Spec.NodeName,
	}
	if p.role == other {
		return p, nil
	}
	for _, ip := range in.Status.PodIPs { // two at most (PodStatus, "podIPs")
		if ip.IP != p.ip {
			p.ip2 = ip.IP
		}
	}
	p.v6 = isIPv6(p.ip) || isIPv6(p.ip2)
	p.created, p.owner, p.hostname, p.below = in.CreationTimestamp.Time, ownerOf(in), in.Spec.Hostname, in.Spec.Subdomain
	if p.account == "" {
		p.account = "default"
	}
	if in.DeletionTimestamp == nil { // one that is to go gets nothing new from now on
		p.ready = slices.ContainsFunc(in.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
	}
	origin := ident.Origin{File: manifest.Kubernetes, Kind: "Pod", Namespace: in.Namespace, Name: in.Name}
	for c := range containers(in) {
		if p.role == sidecar && c.Name == ContainerName {
			continue
		}
		for _, port := range c.Ports {
			number := int(port.ContainerPort)
			if port.Protocol != "" && port.Protocol != corev1.ProtocolTCP || slices.ContainsFunc(p.ports, func(q model.WorkloadPort) bool { return q.Port == number }) {
				continue
			}
			p.ports = append(p.ports, model.WorkloadPort{Name: port.Name, Port: number, Origin: origin})
		}
	}
	return p, nil
}

// containers goes through those that run as long as the pod does, in the order in which Kubernetes looks for the port that a targetPort
// names: init containers that stay (sidecars) come last (k8s.io/kubernetes pkg/api/v1/pod FindPort).
func containers(in *corev1.Pod) iter.Seq[*corev1.Container] {
	return func(yield func(*corev1.Container) bool) {
		for i := range in.Spec.Containers {
			if !yield(&in.Spec.Containers[i]) {
				return
			}
		}
		for i := range in.Spec.InitContainers {
			c := &in.Spec.InitContainers[i]
			if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways && !yield(c) {
				return
			}
		}
	}
}

func roleOf(in *corev1.Pod) role {
	has := func(all []corev1.Container) bool {
		return slices.ContainsFunc(all, func(c corev1.Container) bool { return c.Name == ContainerName })
	}
	switch {
	case in.Labels[LabelRole] == GatewayValue && has(in.Spec.Containers):
		return gateway
	case !in.Spec.HostNetwork && (has(in.Spec.InitContainers) || has(in.Spec.Containers)):
		return sidecar
	}
	return other
}

// ownerOf returns the name of the workload that a pod is of: its Deployment rather than its ReplicaSet.
func ownerOf(in *corev1.Pod) string {
	ref := metav1.GetControllerOf(in)
	switch {
	case ref == nil:
		return in.Name
	case ref.Kind == "ReplicaSet":
		if hash := in.Labels[labelPodTemplate]; hash != "" {
			return strings.TrimSuffix(ref.Name, "-"+hash)
		}
	case ref.Kind == "Job": // of a CronJob: NAME-MINUTES
		if i := strings.LastIndexByte(ref.Name, '-'); i > 0 && len(ref.Name)-i-1 >= 8 {
			if _, err := strconv.ParseUint(ref.Name[i+1:], 10, 64); err == nil {
				return ref.Name[:i]
			}
		}
	}
	return ref.Name
}

func putPod(st *state, name ident.Name, v any) {
	p, _ := v.(*pod)
	before := st.pods[name]
	if p == nil && before == nil || p != nil && before != nil && reflect.DeepEqual(p, before) {
		return
	}
	changed := p == nil || before == nil || p.role != before.role || p.account != before.account || p.node != before.node || p.ip != before.ip || p.ip2 != before.ip2 || !maps.Equal(p.labels, before.labels)
	if changed {
		st.dirtySlicesOf(name)
	}
	if before != nil {
		leave(st.on, before.node, name)
		for _, ip := range before.addresses() {
			leave(st.ips, ip, name)
		}
	}
	if p == nil {
		delete(st.pods, name)
	} else {
		st.pods[name] = p
		enter(st.on, p.node, name)
		for _, ip := range p.addresses() {
			enter(st.ips, ip, name)
		}
	}
	st.dirtyPods[name] = true
	if before != nil && before.role == gateway || p != nil && p.role == gateway {
		st.config = true // gateways are few
	}
	if changed {
		st.dirtySlicesOf(name)
	}
}

// addresses are those at which the proxy of a sidecar is met; none for other pods.
func (p *pod) addresses() []string {
	var out []string
	if p.role != sidecar {
		return nil
	}
	for _, ip := range []string{p.ip, p.ip2} {
		if ip != "" {
			out = append(out, ip)
		}
	}
	return out
}

// identity is who a pod is.
func (st *state) identity(p *pod) ident.Identity {
	return ident.Identity{TrustDomain: st.trustDomain, Namespace: p.name.Namespace, ServiceAccount: p.account}
}

// describe returns a pod's labels with those of where it is, which endpoints are preferred by, and its workload's name.
func (st *state) describe(p *pod) map[string]string {
	n := st.where(p.node)
	out := make(map[string]string, len(p.labels)+4)
	set := func(key, value string) {
		if value != "" {
			out[key] = value
		}
	}
	set(labelWorkloadName, p.owner)
	maps.Copy(out, p.labels)
	set(corev1.LabelHostname, n.hostname)
	set(corev1.LabelTopologyRegion, n.region)
	set(corev1.LabelTopologyZone, n.zone)
	set(plan.LabelSubzone, n.subzone)
	return out
}

func (st *state) locality(p *pod) string {
	if own := p.labels[labelLocality]; own != "" { // a label may not hold a slash
		return strings.ReplaceAll(own, ".", "/")
	}
	return st.where(p.node).locality
}

// run returns a pod with a sidecar as the workload that it is, and where; nil for any other.
func (st *state) run(p *pod) *running {
	if p == nil || p.role != sidecar {
		return nil
	}
	out := &running{workload: model.Workload{
		Meta: model.Meta{
			Name: p.name, Labels: st.describe(p), Created: p.created,
			Origin: ident.Origin{File: manifest.Kubernetes, Kind: "Pod", Namespace: p.name.Namespace, Name: p.name.Name},
		},
		Identity: st.identity(p), Ports: p.ports, Locality: st.locality(p), AnyPort: true,
	}}
	if p.ip == "" {
		return out
	}
	out.instance = &model.Instance{Workload: p.name, Ready: p.ready, Captured: &model.Captured{
		Address: p.ip, Inbound: everywhere(p.v6, InboundPort), Outbound: loopback(OutboundPort), DNS: loopback(DNSPort),
		Node: st.where(p.node).hostname, Hostname: p.hostname, Subdomain: p.below,
	}}
	return out
}

// everywhere is a port on every address of a pod, of both families where it has IPv6.
func everywhere(v6 bool, port int) string {
	any := netip.IPv4Unspecified()
	if v6 {
		any = netip.IPv6Unspecified()
	}
	return netip.AddrPortFrom(any, uint16(port)).String()
}

// loopback is a port that only the pod itself reaches. What the kernel redirects on its way out comes there; the proxy takes it at
// ::1 too.
func loopback(port int) string {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port)).String()
}

func isIPv6(ip string) bool {
	a, err := netip.ParseAddr(ip)
	return err == nil && a.Is6()
}

// gateways returns the proxies that are gateways, sorted by name.
func (st *state) gateways(cfg *model.Config) []model.GatewayInstance {
	var out []model.GatewayInstance
	for _, name := range sortedNames(st.pods) {
		p := st.pods[name]
		if p.role != gateway {
			continue
		}
		g := model.GatewayInstance{
			Name: name, Labels: st.describe(p), Identity: st.identity(p), Locality: st.locality(p), Binds: map[int]string{},
		}
		if own := p.labels[labelGatewayName]; own != "" {
			g.For = ident.Name{Namespace: name.Namespace, Name: own}
		}
		// A server's port is the Service's; the proxy listens where the Service leads to.
		for _, service := range sortedNames(st.services) {
			s := st.services[service]
			if service.Namespace != name.Namespace || len(s.selector) == 0 || !model.HasLabels(p.labels, s.selector) {
				continue
			}
			for i := range s.ports {
				port := &s.ports[i]
				target := targetOf(port, p)
				if port.Protocol != "" && port.Protocol != corev1.ProtocolTCP || target == 0 || g.Binds[int(port.Port)] != "" {
					continue
				}
				g.Binds[int(port.Port)] = everywhere(p.v6, target)
			}
		}
		for i := range cfg.Gateways { // no Service leads to it: the port itself
			door := &cfg.Gateways[i]
			if door.Own && door.Name != g.For || !door.Own && (!g.For.IsZero() || !model.HasLabels(g.Labels, door.Selector)) {
				continue
			}
			for j := range door.Servers {
				if port := door.Servers[j].Port; g.Binds[port] == "" && door.Servers[j].Protocol != ident.UDP {
					g.Binds[port] = everywhere(p.v6, port)
				}
			}
		}
		out = append(out, g)
	}
	return out
}

// targetOf returns the number of the port that a Service's port leads to; 0: the pod has none of that name.
func targetOf(port *corev1.ServicePort, p *pod) int {
	if name := port.TargetPort.StrVal; name != "" {
		for _, q := range p.ports {
			if q.Name == name {
				return q.Port
			}
		}
		return 0
	}
	if n := port.TargetPort.IntValue(); n != 0 {
		return n
	}
	return int(port.Port)
}

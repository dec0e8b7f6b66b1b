package core

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

var serviceType = sync.OnceValue(func() *manifest.Type {
	return manifest.FromGo(reflect.TypeFor[corev1.ServiceSpec](), map[reflect.Type]*manifest.Type{
		reflect.TypeFor[intstr.IntOrString](): manifest.TypeIntOrString,
	})
})

var serviceFields = manifest.Join(
	manifest.Work("", "ports[].name", "ports[].port", "ports[].targetPort", "ports[].protocol", "ports[].appProtocol", "selector", "type",
		"sessionAffinity", "externalName", "trafficDistribution", "internalTrafficPolicy", "publishNotReadyAddresses"),
	manifest.Fields{
		{Path: "type", Value: "NodePort", Support: manifest.Ignored, Note: "on one machine a Service has the ports of its workloads only"},
		{Path: "type", Value: "LoadBalancer", Support: manifest.Ignored, Note: "on one machine the gateway is the way in from outside"},
		{Path: "clusterIP", Value: "None", Support: manifest.Works},
		{Path: "sessionAffinityConfig", Support: manifest.Ignored, Note: "a client's address leads to the same endpoint for as long as there is that endpoint"},
	},
	manifest.Differ("the Service when a program asks its proxy for the address; nothing listens there", "clusterIP", "clusterIPs"),
	manifest.Ignore("it is about a cluster's nodes and addresses",
		"ports[].nodePort", "ipFamilies", "ipFamilyPolicy", "externalTrafficPolicy", "allocateLoadBalancerNodePorts",
		"loadBalancerIP", "loadBalancerSourceRanges", "loadBalancerClass", "healthCheckNodePort", "externalIPs"),
)

func (d *dialect) service(o *manifest.Object, spec []byte, out *model.Config, r *manifest.Report) {
	at := o.Spec()
	var in corev1.ServiceSpec
	if !decode(o, spec, &in, r) {
		return
	}
	if !manifest.IsDNSLabel(o.Name.Name) {
		r.Error(manifest.CodeMetadata, o.Root().Field("metadata").Field("name"), "lower-case letters, digits and '-', at most 63 of them", "%q cannot be the name of a Service: it is one label of a host", o.Name.Name)
	}
	s := model.Service{
		Meta: o.Meta(), Host: ident.ServiceHost(o.Name), Selector: in.Selector,
		Headless: in.ClusterIP == corev1.ClusterIPNone,
		Ports:    servicePorts(in.Ports, at.Field("ports"), r),
	}
	for _, ip := range append([]string{in.ClusterIP}, in.ClusterIPs...) {
		switch _, err := netip.ParseAddr(ip); {
		case ip == "" || ip == corev1.ClusterIPNone:
		case err != nil:
			r.Error(manifest.CodeBadValue, at.Field("clusterIP"), "leave it out", "%q is not an IP address", ip)
		case !slices.Contains(s.Addresses, ip):
			s.Addresses = append(s.Addresses, ip)
		}
	}
	switch in.Type {
	case "", corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
		if in.ExternalName != "" {
			r.Info(manifest.CodeIgnoredField, at.Field("externalName"), "", "`externalName` has no effect: it belongs to type ExternalName")
		}
		if len(in.Ports) == 0 && !s.Headless {
			r.Error(manifest.CodePorts, at, "add ports: [{name: http, port: …}]", "the Service has no ports")
		}
		for key, value := range in.Selector {
			if !manifest.IsLabel(key, value) {
				r.Error(manifest.CodeBadValue, at.Field("selector").Key(key), "compare it with the labels of the workloads", "%q=%q is not a label: no workload can have it", key, value)
			}
		}
		if len(in.Selector) == 0 && !r.Broken(o) {
			d.bare = append(d.bare, o)
		}
	case corev1.ServiceTypeExternalName:
		s.Alias = alias(&in, s.Host, at, r)
		s.Selector = nil
	default:
		r.Error(manifest.CodeBadEnum, at.Field("type"), manifest.DidYouMean(string(in.Type), []string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"}), "unknown type %q", in.Type)
	}
	s.NotReady = in.PublishNotReadyAddresses
	if in.InternalTrafficPolicy != nil {
		switch *in.InternalTrafficPolicy {
		case corev1.ServiceInternalTrafficPolicyLocal:
			s.NodeLocal = true
		case corev1.ServiceInternalTrafficPolicyCluster, "":
		default:
			r.Error(manifest.CodeBadEnum, at.Field("internalTrafficPolicy"), manifest.DidYouMean(string(*in.InternalTrafficPolicy), []string{"Cluster", "Local"}), "unknown internalTrafficPolicy %q", *in.InternalTrafficPolicy)
		}
	}
	switch in.SessionAffinity {
	case "", corev1.ServiceAffinityNone:
	case corev1.ServiceAffinityClientIP:
		s.Hash = &plan.Hash{SourceIP: true}
	default:
		r.Error(manifest.CodeBadEnum, at.Field("sessionAffinity"), manifest.DidYouMean(string(in.SessionAffinity), []string{"None", "ClientIP"}), "unknown sessionAffinity %q", in.SessionAffinity)
	}
	if in.TrafficDistribution != nil {
		s.Near = near(*in.TrafficDistribution, at.Field("trafficDistribution"), r)
	}
	serviceAnnotations(o, &s, r)
	out.Services = append(out.Services, s)
}

// alias returns the host that an ExternalName Service stands for.
func alias(in *corev1.ServiceSpec, own string, at manifest.Cursor, r *manifest.Report) string {
	name := at.Field("externalName")
	host, err := ident.CanonicalHost(in.ExternalName, false)
	switch {
	case in.ExternalName == "":
		r.Error(manifest.CodeRequired, at, "add externalName: db.example.com", "a Service of type ExternalName needs the name")
	case err != nil:
		r.Error(manifest.CodeBadHost, name, "write the name of a host, such as db.example.com", "%q is not a host", in.ExternalName)
	case host == own:
		r.Error(manifest.CodeServiceType, name, "name another host", "the Service stands for itself")
	}
	if len(in.Selector) > 0 {
		r.Info(manifest.CodeIgnoredField, at.Field("selector"), "", "`selector` has no effect: the Service stands for another host")
	}
	return host
}

// near says which endpoints a distribution prefers (Kubernetes "Traffic distribution"; Istio has the same words).
func near(s string, at manifest.Cursor, r *manifest.Report) *plan.Locality {
	region, zone := corev1.LabelTopologyRegion, corev1.LabelTopologyZone
	switch s {
	case "PreferClose", "PreferSameZone":
		return &plan.Locality{Priority: []string{region, zone}, Strict: true}
	case "PreferSameNode":
		return &plan.Locality{Priority: []string{region, zone, plan.LabelSubzone, corev1.LabelHostname}, Strict: true}
	case "PreferSameRegion":
		return &plan.Locality{Priority: []string{region}, Strict: true}
	case "", "Any":
		return nil
	}
	r.Error(manifest.CodeBadEnum, at, manifest.DidYouMean(s, []string{"PreferSameZone", "PreferSameNode", "PreferClose"}), "unknown traffic distribution %q", s)
	return nil
}

// The annotations and labels of a Service that mean something to a mesh. Those of Linkerd are the linkerd dialect's.
const (
	annotationExportTo     = "networking.istio.io/exportTo"
	annotationDistribution = "networking.istio.io/traffic-distribution"
	annotationTopology     = "service.kubernetes.io/topology-mode"
	annotationHints        = "service.kubernetes.io/topology-aware-hints" // its older name
	annotationBalancer     = "malha.dev/balancer"
	annotationCheck        = "malha.dev/health-check"
	labelSession           = "istio.io/persistent-session"
	labelSessionHeader     = "istio.io/persistent-session-header"
)

func serviceAnnotations(o *manifest.Object, s *model.Service, r *manifest.Report) {
	at := o.Root().Field("metadata").Field("annotations")
	for _, key := range slices.Sorted(maps.Keys(o.Annotations)) {
		value, here := o.Annotations[key], at.Key(key)
		switch key {
		case annotationExportTo:
			s.ExportTo = exportTo(value, o.Name.Namespace, here, r)
		case annotationDistribution:
			if s.Near == nil {
				s.Near = near(value, here, r)
			}
		case annotationTopology, annotationHints:
			switch strings.ToLower(value) {
			case "auto":
				if s.Near == nil {
					s.Near = &plan.Locality{Priority: []string{corev1.LabelTopologyRegion, corev1.LabelTopologyZone}}
				}
			case "disabled", "":
			default:
				r.Error(manifest.CodeAnnotation, here, "write Auto or Disabled", "unknown topology mode %q", value)
			}
		case annotationBalancer:
			b, ok := balancers[value]
			if !ok {
				r.Error(manifest.CodeAnnotation, here, manifest.DidYouMean(value, balancerNames), "unknown balancer %q", value)
			}
			if ok && s.Hash != nil {
				r.Warning(manifest.CodeAnnotation, here, "remove one of the two", "%s has no effect: sessionAffinity: ClientIP decides which endpoint a client gets", key)
			}
			s.Balancer = b
		case annotationCheck:
			s.Check = healthCheck(value, here, r)
		}
	}
	if name := o.Labels[labelSession]; name != "" {
		cookie, path, _ := strings.Cut(name, ":")
		s.Session = &plan.Session{Cookie: &plan.Cookie{Name: cookie, Path: path}}
	} else if name := o.Labels[labelSessionHeader]; name != "" {
		s.Session = &plan.Session{Header: strings.ToLower(name)}
	}
}

// exportTo reads a list of namespaces (Istio "networking.istio.io/exportTo"): "*" all, "." its own, "~" none.
func exportTo(value, own string, at manifest.Cursor, r *manifest.Report) []string {
	var out []string
	for part := range strings.SplitSeq(value, ",") {
		switch part = strings.TrimSpace(part); {
		case part == "":
		case part == ".":
			out = append(out, own)
		case part == "*", part == "~", manifest.IsDNSLabel(part):
			out = append(out, part)
		default:
			r.Error(manifest.CodeAnnotation, at, `write namespaces with "," between, "*", "." or "~"`, "%q is not a namespace", part)
		}
	}
	if len(out) > 1 && slices.Contains(out, "~") {
		r.Error(manifest.CodeAnnotation, at, "keep one of them", `"~" (nobody) excludes every other namespace`)
	}
	return out
}

var balancers = map[string]plan.Balancer{
	"least-request": plan.LeastRequest, "round-robin": plan.RoundRobin, "random": plan.Random, "peak-ewma": plan.PeakEWMA,
}

var balancerNames = []string{"least-request", "peak-ewma", "random", "round-robin"}

// healthCheck reads how endpoints are asked: "http:/healthz", "grpc", "grpc:SERVICE" or "tcp", then words such as interval=5s.
func healthCheck(value string, at manifest.Cursor, r *manifest.Report) *plan.HealthCheck {
	words := strings.Fields(value)
	if len(words) == 0 {
		r.Error(manifest.CodeAnnotation, at, "write http:/healthz, grpc or tcp", "the health check is empty")
		return nil
	}
	out := &plan.HealthCheck{}
	what, rest, _ := strings.Cut(words[0], ":")
	switch {
	case what == "http" && strings.HasPrefix(rest, "/"):
		out.Path = rest
	case what == "grpc":
		out.GRPC, out.Host = true, rest
	case words[0] == "tcp":
	default:
		r.Error(manifest.CodeAnnotation, at, "write http:/healthz, grpc, grpc:SERVICE or tcp", "%q is no way to check health", words[0])
	}
	for _, w := range words[1:] {
		key, v, _ := strings.Cut(w, "=")
		ok := false
		switch key {
		case "interval", "timeout":
			d, err := time.ParseDuration(v)
			ok = err == nil && d >= 10*time.Millisecond && d <= time.Hour
			if key == "interval" {
				out.Interval = plan.Duration(d)
			} else {
				out.Timeout = plan.Duration(d)
			}
		case "unhealthy":
			out.Unhealthy, ok = number(v, 1000)
		case "healthy":
			out.Healthy, ok = number(v, 1000)
		case "host":
			out.Host, ok = v, v != "" && !out.GRPC
		}
		if !ok {
			r.Error(manifest.CodeAnnotation, at, "interval=5s timeout=1s unhealthy=3 healthy=2 host=NAME", "cannot use %q", w)
		}
	}
	return out
}

// Package core translates Kubernetes' own kinds into the model: Service.
//
// It is pure: one checked object in, model values out, mistakes into the manifest.Report.
package core

import (
	"encoding/json"
	"reflect"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Kinds returns the kinds that this dialect translates.
func Kinds() []manifest.Kind {
	return []manifest.Kind{{Kind: "Service", Versions: []string{"v1"}, Type: serviceType, Fields: serviceFields, Translate: service}}
}

var serviceType = sync.OnceValue(func() *manifest.Type {
	return manifest.FromGo(reflect.TypeFor[corev1.ServiceSpec](), map[reflect.Type]*manifest.Type{
		reflect.TypeFor[intstr.IntOrString](): manifest.TypeIntOrString,
	})
})

var serviceFields = manifest.Join(
	manifest.Work("", "ports[].name", "ports[].port", "ports[].targetPort", "ports[].protocol", "ports[].appProtocol", "selector", "type"),
	manifest.Fields{
		{Path: "type", Value: "NodePort", Support: manifest.Ignored, Note: "on one machine a Service has the ports of its workloads only"},
		{Path: "type", Value: "LoadBalancer", Support: manifest.Ignored, Note: "on one machine the gateway is the way in from outside"},
		{Path: "clusterIP", Support: manifest.Ignored, Note: "services are reached by name"},
		{Path: "clusterIP", Value: "None", Support: manifest.Works},
		{Path: "clusterIPs", Support: manifest.Ignored, Note: "services are reached by name"},
		{Path: "sessionAffinity", Value: "None", Support: manifest.Works},
		{Path: "sessionAffinity", Support: manifest.Refused, Note: "remove it: every request is balanced"},
		{Path: "sessionAffinityConfig", Support: manifest.Refused, Note: "remove it: every request is balanced"},
		{Path: "externalName", Support: manifest.Ignored, Note: "it belongs to type ExternalName"},
	},
	manifest.Ignore("it is about a cluster's nodes and addresses",
		"ports[].nodePort", "ipFamilies", "ipFamilyPolicy", "externalTrafficPolicy", "internalTrafficPolicy", "allocateLoadBalancerNodePorts",
		"loadBalancerIP", "loadBalancerSourceRanges", "loadBalancerClass", "healthCheckNodePort", "externalIPs"),
	manifest.Ignore("only workloads that are ready get requests", "publishNotReadyAddresses"),
	manifest.Ignore("all workloads are equally near on one machine", "trafficDistribution"),
)

func service(o *manifest.Object, spec []byte, out *model.Config, r *manifest.Report) {
	at := o.Spec()
	var in corev1.ServiceSpec
	if err := json.Unmarshal(spec, &in); err != nil {
		r.Error(manifest.CodeInternal, at, "please report this", "cannot decode the spec: %v", err)
		return
	}
	if !manifest.IsDNSLabel(o.Name.Name) {
		r.Error(manifest.CodeMetadata, o.Root().Field("metadata").Field("name"), "lower-case letters, digits and '-', at most 63 of them", "%q cannot be the name of a Service: it is one label of a host", o.Name.Name)
	}
	switch in.Type {
	case "", corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
	case corev1.ServiceTypeExternalName:
		r.Error(manifest.CodeServiceType, at.Field("type"), "programs reach hosts outside the mesh by their own name; use that name",
			"a Service of type ExternalName is not supported by Malha yet")
		return
	default:
		r.Error(manifest.CodeBadEnum, at.Field("type"), manifest.DidYouMean(string(in.Type), []string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"}), "unknown type %q", in.Type)
	}
	s := model.Service{
		Meta: o.Meta(), Host: ident.ServiceHost(o.Name), Selector: in.Selector,
		Headless: in.ClusterIP == corev1.ClusterIPNone,
		Ports:    servicePorts(in.Ports, at.Field("ports"), r),
	}
	if len(in.Ports) == 0 && !s.Headless {
		r.Error(manifest.CodePorts, at, "add ports: [{name: http, port: …}]", "the Service has no ports")
	}
	if len(in.Selector) == 0 {
		r.Warning(manifest.CodeIgnoredField, at, "add a selector with the labels of your workloads", "the Service has no selector: it stands for no workload")
	}
	out.Services = append(out.Services, s)
}

// servicePorts translates ports; a name, and a number with its transport, may stand only once.
func servicePorts(in []corev1.ServicePort, at manifest.Cursor, r *manifest.Report) []model.ServicePort {
	type numbered struct {
		port      int32
		transport corev1.Protocol
	}
	names, numbers := map[string]bool{}, map[numbered]bool{}
	out := make([]model.ServicePort, 0, len(in))
	for i, p := range in {
		here := at.Index(i)
		if p.Protocol == "" {
			p.Protocol = corev1.ProtocolTCP
		}
		switch {
		case !here.Field("port").Set():
			r.Error(manifest.CodeRequired, here, "add port: …", "a port needs its number")
			continue
		case p.Port < 1 || p.Port > 65535:
			r.Error(manifest.CodeOutOfRange, here.Field("port"), "", "port %d is out of range: from 1 to 65535", p.Port)
			continue
		case numbers[numbered{p.Port, p.Protocol}]:
			r.Error(manifest.CodePorts, here.Field("port"), "keep one of them", "port %d stands twice", p.Port)
		case p.Name == "" && len(in) > 1:
			r.Error(manifest.CodePorts, here, "add name: …", "with several ports each needs a name")
		case p.Name != "" && !manifest.IsDNSLabel(p.Name):
			r.Error(manifest.CodePorts, here.Field("name"), "lower-case letters, digits and '-'", "%q is not a valid port name", p.Name)
		case p.Name != "" && names[p.Name]:
			r.Error(manifest.CodePorts, here.Field("name"), "keep one of them", "port name %q stands twice", p.Name)
		}
		switch p.Protocol {
		case corev1.ProtocolTCP:
		case corev1.ProtocolUDP, corev1.ProtocolSCTP:
			r.Warning(manifest.CodeIgnoredField, here.Field("protocol"), "", "port %d carries %s, which the mesh does not: it is left alone", p.Port, p.Protocol)
		default:
			r.Error(manifest.CodeBadEnum, here.Field("protocol"), manifest.DidYouMean(string(p.Protocol), []string{"TCP", "UDP", "SCTP"}), "unknown protocol %q", p.Protocol)
		}
		names[p.Name], numbers[numbered{p.Port, p.Protocol}] = true, true
		port := model.ServicePort{Name: p.Name, Port: int(p.Port), Target: int(p.Port), Origin: here.Origin()}
		port.Protocol = portProtocol(p)
		switch target := p.TargetPort; {
		case target.Type == intstr.String && target.StrVal != "":
			if n, err := strconv.Atoi(target.StrVal); err == nil {
				r.Error(manifest.CodeWrongType, here.Field("targetPort"), "remove the quotes: "+target.StrVal, "targetPort %q is a number in quotes", target.StrVal)
				port.Target = n
				break
			}
			port.Target, port.TargetName = 0, target.StrVal
		case target.Type == intstr.Int && here.Field("targetPort").Set():
			if target.IntVal < 1 || target.IntVal > 65535 {
				r.Error(manifest.CodeOutOfRange, here.Field("targetPort"), "", "targetPort %d is out of range: from 1 to 65535", target.IntVal)
				break
			}
			port.Target = int(target.IntVal)
		}
		out = append(out, port)
	}
	return out
}

func portProtocol(p corev1.ServicePort) ident.Protocol {
	if p.Protocol != corev1.ProtocolTCP {
		return ident.UDP // not TCP: the mesh does not carry it
	}
	app := ""
	if p.AppProtocol != nil {
		app = *p.AppProtocol
	}
	return ident.PortProtocol(app, p.Name, string(p.Protocol), int(p.Port))
}

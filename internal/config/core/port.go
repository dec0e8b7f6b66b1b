package core

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

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
		if p.AppProtocol != nil {
			manifest.AppProtocol(here.Field("appProtocol"), *p.AppProtocol, r)
		}
		switch target := p.TargetPort; {
		case target.Type == intstr.String && target.StrVal != "":
			if n, err := strconv.Atoi(target.StrVal); err == nil {
				r.Error(manifest.CodeWrongType, here.Field("targetPort"), "remove the quotes: "+target.StrVal, "targetPort %q is a number in quotes", target.StrVal)
				port.Target = n
				break
			}
			port.Target, port.TargetName = 0, target.StrVal
		case target.Type == intstr.String && here.Field("targetPort").Set(): // the API server takes it for one that is not written
			r.Warning(manifest.CodeBadValue, here.Field("targetPort"), "write the name or the number of a port of the workloads, or remove it",
				"targetPort is empty: the number of the port is meant, %d", p.Port)
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

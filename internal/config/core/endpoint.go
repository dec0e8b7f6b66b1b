package core

import (
	"net/netip"
	"reflect"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// sliceObject is an EndpointSlice without its metadata.
type sliceObject struct {
	AddressType string                   `json:"addressType"`
	Endpoints   []sliceEndpoint          `json:"endpoints"`
	Ports       []discovery.EndpointPort `json:"ports"`
}

type sliceEndpoint struct {
	Addresses  []string                     `json:"addresses"`
	Conditions discovery.EndpointConditions `json:"conditions"`
	Hostname   string                       `json:"hostname"`
	TargetRef  *objectReference             `json:"targetRef"`
	Deprecated map[string]string            `json:"deprecatedTopology"`
	NodeName   string                       `json:"nodeName"`
	Zone       string                       `json:"zone"`
	Hints      any                          `json:"hints"`
	Topology   map[string]string            `json:"topology"` // v1beta1
}

// objectReference is corev1.ObjectReference.
type objectReference struct {
	Kind            string `json:"kind"`
	Namespace       string `json:"namespace"`
	Name            string `json:"name"`
	UID             string `json:"uid"`
	APIVersion      string `json:"apiVersion"`
	ResourceVersion string `json:"resourceVersion"`
	FieldPath       string `json:"fieldPath"`
}

var sliceType = sync.OnceValue(func() *manifest.Type { return manifest.FromGo(reflect.TypeFor[sliceObject](), nil) })

var sliceFields = manifest.Join(
	manifest.Work("", "addressType", "ports[].name", "ports[].port", "ports[].protocol", "endpoints[].addresses", "endpoints[].conditions.ready",
		"endpoints[].nodeName", "endpoints[].zone", "endpoints[].topology", "endpoints[].hostname"),
	manifest.Ignore("the port's protocol is that of the Service", "ports[].appProtocol"),
	manifest.Ignore("whether an endpoint is used is decided by `ready`", "endpoints[].conditions.serving", "endpoints[].conditions.terminating"),
	manifest.Ignore("it says where the endpoint came from; its address counts", "endpoints[].targetRef", "endpoints[].deprecatedTopology"),
	manifest.Ignore("how near endpoints are preferred is said by the Service (trafficDistribution)", "endpoints[].hints"),
)

const serviceNameLabel = "kubernetes.io/service-name"

func slice(o *manifest.Object, spec []byte, out *model.Config, r *manifest.Report) {
	var in sliceObject
	if !decode(o, spec, &in, r) {
		return
	}
	at := o.Root()
	switch in.AddressType {
	case "IPv4", "IPv6", "IP":
	case "FQDN":
		r.Error(manifest.CodeEndpoints, at.Field("addressType"), "use a Service of type ExternalName, or a ServiceEntry with resolution: DNS", "an EndpointSlice of names has no meaning (Kubernetes ignores it too)")
		return
	case "":
		r.Error(manifest.CodeRequired, at, "add addressType: IPv4", "the EndpointSlice has no addressType")
	default:
		r.Error(manifest.CodeBadEnum, at.Field("addressType"), manifest.DidYouMean(in.AddressType, []string{"IPv4", "IPv6"}), "unknown addressType %q", in.AddressType)
	}
	ports := slicePorts(in.Ports, at.Field("ports"), r)
	group := model.EndpointGroup{Meta: o.Meta()}
	if group.Host = serviceOf(o, o.Labels[serviceNameLabel], r); group.Host == "" {
		return
	}
	for i, e := range in.Endpoints {
		here := at.Field("endpoints").Index(i)
		if len(e.Addresses) == 0 {
			r.Error(manifest.CodeRequired, here, "add addresses: [IP]", "the endpoint has no address")
			continue
		}
		zone, node := e.Zone, e.NodeName
		if zone == "" {
			zone = e.Topology[corev1.LabelTopologyZone]
		}
		if node == "" {
			node = e.Topology[corev1.LabelHostname]
		}
		// More than one address of an endpoint has no meaning (EndpointSlice, "addresses").
		group.Endpoints = append(group.Endpoints, model.ServiceEndpoint{
			Address: address(e.Addresses[0], in.AddressType, here.Field("addresses").Index(0), r), Ports: ports,
			Locality: locality(e.Topology[corev1.LabelTopologyRegion], zone),
			NotReady: e.Conditions.Ready != nil && !*e.Conditions.Ready, Node: node, Hostname: e.Hostname, Origin: here.Origin(),
		})
		if len(e.Addresses) > 1 {
			r.Warning(manifest.CodeEndpoints, here.Field("addresses").Index(1), "make an endpoint of each", "only the first address of an endpoint is used")
		}
	}
	out.Endpoints = append(out.Endpoints, group)
}

// serviceOf returns the host of the Service that endpoints belong to; "" when none is named, which is said.
func serviceOf(o *manifest.Object, service string, r *manifest.Report) string {
	switch {
	case service == "":
		r.Warning(manifest.CodeEndpoints, o.Root().Field("metadata").Field("labels"), "add the label "+serviceNameLabel+": NAME-OF-THE-SERVICE", "the %s belongs to no Service: nothing uses it", o.Kind)
		return ""
	case !manifest.IsDNSLabel(service):
		r.Error(manifest.CodeEndpoints, o.Root().Field("metadata").Field("labels"), "name a Service of the namespace", "%q cannot be the name of a Service", service)
		return ""
	}
	return ident.ServiceHost(ident.Name{Namespace: o.Name.Namespace, Name: service})
}

func slicePorts(in []discovery.EndpointPort, at manifest.Cursor, r *manifest.Report) map[string]int {
	out := make(map[string]int, len(in))
	for i, p := range in {
		here := at.Index(i)
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		switch {
		case p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP:
			r.Info(manifest.CodeIgnoredField, here.Field("protocol"), "", "the mesh does not carry %s: port %q is left alone", *p.Protocol, name)
			continue
		case p.Port == nil: // "all ports"
			continue
		case *p.Port < 1 || *p.Port > 65535:
			r.Error(manifest.CodeOutOfRange, here.Field("port"), "", "port %d is out of range: from 1 to 65535", *p.Port)
			continue
		}
		if _, twice := out[name]; twice {
			r.Error(manifest.CodePorts, here, "keep one of them", "port name %q stands twice", name)
		}
		out[name] = int(*p.Port)
	}
	return out
}

// address checks the address of an endpoint. family is IPv4, IPv6, or another for any.
func address(s, family string, at manifest.Cursor, r *manifest.Report) string {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "":
		r.Error(manifest.CodeEndpoints, at, "write the IP address of one program", "%q is not an address that something can be reached at", s)
	case family == "IPv4" && !a.Is4(), family == "IPv6" && !a.Is6():
		r.Error(manifest.CodeEndpoints, at, "use an EndpointSlice of its own for each addressType", "%s is not an address of type %s", s, family)
	default:
		return a.String()
	}
	return s
}

// locality is "region/zone"; an unknown region with a known zone stays empty.
func locality(region, zone string) string {
	if zone == "" {
		return region
	}
	return region + "/" + zone
}

// endpointsObject is a v1 Endpoints without its metadata. Kubernetes mirrors it into EndpointSlices.
type endpointsObject struct {
	Subsets []endpointSubset `json:"subsets"`
}

type endpointSubset struct {
	Addresses []endpointAddress        `json:"addresses"`
	NotReady  []endpointAddress        `json:"notReadyAddresses"`
	Ports     []discovery.EndpointPort `json:"ports"`
}

type endpointAddress struct {
	IP        string           `json:"ip"`
	Hostname  string           `json:"hostname"`
	NodeName  string           `json:"nodeName"`
	TargetRef *objectReference `json:"targetRef"`
}

var endpointsType = sync.OnceValue(func() *manifest.Type { return manifest.FromGo(reflect.TypeFor[endpointsObject](), nil) })

var endpointsFields = manifest.Join(
	manifest.Work("", "subsets[].addresses[].ip", "subsets[].addresses[].nodeName", "subsets[].addresses[].hostname",
		"subsets[].notReadyAddresses[].ip", "subsets[].notReadyAddresses[].nodeName", "subsets[].notReadyAddresses[].hostname",
		"subsets[].ports[].name", "subsets[].ports[].port", "subsets[].ports[].protocol"),
	manifest.Ignore("the port's protocol is that of the Service", "subsets[].ports[].appProtocol"),
	manifest.Ignore("it says where the endpoint came from; its address counts", "subsets[].addresses[].targetRef", "subsets[].notReadyAddresses[].targetRef"),
)

func endpoints(o *manifest.Object, spec []byte, out *model.Config, r *manifest.Report) {
	var in endpointsObject
	if !decode(o, spec, &in, r) {
		return
	}
	r.Info(manifest.CodeDeprecated, o.Root().Field("kind"), "write an EndpointSlice (discovery.k8s.io/v1)", "Endpoints is deprecated since Kubernetes 1.33")
	group := model.EndpointGroup{Meta: o.Meta(), Host: serviceOf(o, o.Name.Name, r)}
	for i, s := range in.Subsets {
		here := o.Root().Field("subsets").Index(i)
		ports := slicePorts(s.Ports, here.Field("ports"), r)
		add := func(list []endpointAddress, at manifest.Cursor, notReady bool) {
			for j, a := range list {
				e := at.Index(j)
				group.Endpoints = append(group.Endpoints, model.ServiceEndpoint{
					Address: address(a.IP, "", e.Field("ip"), r), Ports: ports, NotReady: notReady, Node: a.NodeName, Hostname: a.Hostname, Origin: e.Origin(),
				})
			}
		}
		add(s.Addresses, here.Field("addresses"), false)
		add(s.NotReady, here.Field("notReadyAddresses"), true)
	}
	if group.Host != "" {
		out.Endpoints = append(out.Endpoints, group)
	}
}

// number reads a decimal of an annotation.
func number(s string, limit uint64) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n >= 1 && n <= limit
}

package gateway

import (
	"slices"
	"strconv"

	v1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// attachToEgress attaches a route to an EgressNetwork of Linkerd: a route for hosts outside the mesh. Malha tells such traffic
// by the name that is asked for, so the route must have hostnames, and, as Linkerd wants it, a port.
func (x *index) attachToEgress(a *attachment, at manifest.Cursor, name ident.Name) {
	if a.refused {
		a.refuse()
		return
	}
	i := slices.IndexFunc(x.out.Egress, func(e model.Egress) bool { return e.Name == name })
	switch {
	case i < 0:
		x.reject(a, at, v1.RouteReasonNoMatchingParent, "create it, or correct the name", "there is no EgressNetwork %s", name)
	case a.Name.Namespace != name.Namespace && !x.out.Egress[i].Global:
		x.reject(a, at, v1.RouteReasonNotAllowedByListeners, "put the route into its namespace", "EgressNetwork %s is for the clients of its own namespace", name)
	case a.ref.Port == nil:
		x.reject(a, at, v1.RouteReasonUnsupportedValue, "add port: 443, or the one that programs ask for", "a route of an EgressNetwork needs a port")
	case len(a.hostnames) == 0:
		x.reject(a, at, v1.RouteReasonUnsupportedValue, "add the hostnames that programs ask for", "a route of an EgressNetwork for all hosts is not supported")
	default:
		a.egress, a.port = &x.out.Egress[i], int(*a.ref.Port)
		a.accept()
	}
}

// egressScope returns the namespaces whose clients a route of an EgressNetwork is for.
func (a *attachment) egressScope() (namespaces []string, consumer bool) {
	switch own := a.Name.Namespace == a.egress.Name.Namespace; {
	case own && a.egress.Global:
		return []string{"*"}, false
	case own:
		return []string{a.Name.Namespace}, false
	}
	return []string{a.Name.Namespace}, true
}

// outside makes what a route of an EgressNetwork says of one of its hosts: the host as a service, with the addresses that
// clients ask for, and the rules.
func (x *index) outside(t *translation, host string) model.Routing {
	a := t.attachment
	namespaces, consumer := a.egressScope()
	x.outsideService(a, host, namespaces)
	r := model.Routing{
		Meta: a.Meta(), Hosts: []string{host}, Gateways: []string{model.Mesh}, Port: a.port, Precedence: true, Consumer: consumer, ExportTo: namespaces,
		HTTP: t.http, TCP: t.tcpRules, TLS: t.tlsRules,
	}
	if a.route.kind.group == linkerdGroup {
		r.Name.Name += "#linkerd"
	}
	r.Name.Name += "#" + strconv.Itoa(a.index) + "." + host
	return r
}

func (x *index) outsideService(a *attachment, host string, namespaces []string) {
	i := slices.IndexFunc(x.out.Services, func(s model.Service) bool { return s.Host == host })
	if i < 0 {
		x.out.Services = append(x.out.Services, model.Service{
			Meta: model.Meta{Name: ident.Name{Namespace: a.egress.Name.Namespace, Name: a.egress.Name.Name + ":" + host}, Origin: a.Origin, Created: a.Created},
			Host: host, External: true, Resolution: model.ByRequest, ExportTo: namespaces,
		})
		i = len(x.out.Services) - 1
	}
	s := &x.out.Services[i]
	if s.Origin.Kind == "ServiceEntry" || s.Origin.Kind == "Service" { // written down with what is known of it
		return
	}
	for _, ns := range namespaces {
		if !slices.Contains(s.ExportTo, ns) {
			s.ExportTo = append(slices.Clone(s.ExportTo), ns)
		}
	}
	if !slices.ContainsFunc(s.Ports, func(p model.ServicePort) bool { return p.Port == a.port }) {
		protocol := ident.HTTP
		switch a.route.kind.kind {
		case "GRPCRoute":
			protocol = ident.GRPC
		case "TLSRoute":
			protocol = ident.TLS
		}
		s.Ports = append(slices.Clone(s.Ports), model.ServicePort{Name: protocol.String() + "-" + strconv.Itoa(a.port), Port: a.port, Protocol: protocol, Target: a.port, Origin: a.Origin})
	}
}

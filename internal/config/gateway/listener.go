package gateway

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	v1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// door is a Gateway of ours and everything that stands in it.
type door struct {
	object[v1.GatewaySpec]
	listeners  []*listener // of the Gateway, then those of ListenerSets that are attached
	sets       int         // ListenerSets that are attached, with a listener that is served
	badAddress string      // why the requested addresses can't be used; "" they can
	parameters string      // why its parameters can't be used; "" they can, or there are none
	unusable   string      // why one of them can't be used here; "" they can
	insecure   bool        // clients without a valid certificate are let in (InsecureFrontendValidationMode)
	client     string      // Secret in the plan; "" none
	clientWhy  model.Condition
}

// shelf is a ListenerSet whose parent is a Gateway of ours.
type shelf struct {
	object[v1.ListenerSetSpec]
	door       *door
	listeners  []*listener
	notAllowed string // why the Gateway does not take it; "" it does
}

// listener is one listener of a Gateway or ListenerSet, and what was found out about it.
type listener struct {
	*v1.Listener
	at    manifest.Cursor
	owner *manifest.Object // the Gateway or ListenerSet
	door  *door
	host  string // canonical; "*" for none
	kinds []kind // of routes that may attach

	conflict      string // reason; "" none
	conflictWhy   string
	unaccepted    string // reason of Accepted: False besides a conflict; "" none
	unacceptedWhy string
	unresolved    string // reason of ResolvedRefs: False; "" none
	unresolvedWhy string
	overlapping   string // names of others whose server names overlap; "" none
	tls           *plan.ServerTLS
	routes        int                      // that are attached
	attached      map[string][]*attachment // by kind of route
}

// kind is a group and kind of routes.
type kind struct{ group, kind string }

func (k kind) String() string { return k.group + "/" + k.kind }

// serverName is the name of the listener's server in the model.
func (l *listener) serverName() string {
	if l.owner.Kind == "ListenerSet" {
		return l.owner.Name.String() + "/" + string(l.Name)
	}
	return string(l.Name)
}

// gatewayName is what a Routing names to attach to the listener.
func (l *listener) gatewayName() string { return l.door.Name.String() + "/" + l.serverName() }

func (l *listener) broken() string {
	switch {
	case l.conflict != "":
		return l.conflictWhy
	case l.unaccepted != "":
		return l.unacceptedWhy
	case l.Protocol == v1.HTTPSProtocolType && l.tls == nil, l.Protocol == v1.TLSProtocolType && l.tls == nil && !l.passthrough():
		return cmp.Or(l.unresolvedWhy, "the listener has no certificate")
	}
	return ""
}

func (l *listener) passthrough() bool {
	return l.TLS != nil && l.TLS.Mode != nil && *l.TLS.Mode == v1.TLSModePassthrough
}

// doors finds the Gateways of our classes, with their listeners.
func (x *index) doors(d *dialect, classes map[string]standing) []*door {
	var out []*door
	for _, g := range d.gateways {
		name := string(g.spec.GatewayClassName)
		at := g.Spec().Field("gatewayClassName")
		switch classes[name] {
		case unknownClass:
			names := make([]string, 0, len(classes))
			for n := range classes {
				names = append(names, n)
			}
			x.Warning(manifest.CodeGatewayClass, at, manifest.DidYouMean(name, names), "there is no GatewayClass %q: nobody acts on the Gateway", name)
			continue
		case refusedClass:
			x.Warning(manifest.CodeGatewayClass, at, "correct the GatewayClass", "GatewayClass %q is not accepted, which its status says: nobody acts on the Gateway", name)
			continue
		case theirClass:
			x.Info(manifest.CodeGatewayClass, at, "use gatewayClassName: "+ClassName+" for a gateway of Malha", "the Gateway is of class %q, whose controller is another: it is left alone", name)
			continue
		}
		out = append(out, x.door(g))
	}
	slices.SortStableFunc(out, func(a, b *door) int { return older(a.Created, a.Name, b.Created, b.Name) })
	return out
}

func (x *index) door(g object[v1.GatewaySpec]) *door {
	out := &door{object: g}
	if in := g.spec.Infrastructure; in != nil && in.ParametersRef != nil {
		out.parameters = fmt.Sprintf("gateways of Malha have no parameters, and %s %s are none", in.ParametersRef.Kind, in.ParametersRef.Name)
		x.Warning(manifest.CodeListener, g.Spec().Field("infrastructure").Field("parametersRef"), "remove it", "%s: the Gateway is not accepted", out.parameters)
	}
	for i := range g.spec.Listeners {
		out.listeners = append(out.listeners, x.listener(out, g.Object, &g.spec.Listeners[i], g.Spec().Field("listeners").Index(i)))
	}
	for i, a := range g.spec.Addresses {
		here := g.Spec().Field("addresses").Index(i)
		if t := value(a.Type, string(v1.IPAddressType)); t != string(v1.IPAddressType) {
			out.badAddress = "addresses of type " + t + " are not supported"
			x.Warning(manifest.CodeListener, here, "use an IPAddress, or none", "%s: the Gateway is not accepted", out.badAddress)
		} else if ip, err := netip.ParseAddr(a.Value); err != nil && a.Value != "" {
			out.badAddress = fmt.Sprintf("%q is not an IP address", a.Value)
			x.Warning(manifest.CodeListener, here, "use an IPAddress, or none", "%s: the Gateway is not accepted", out.badAddress)
		} else if err == nil && !ip.IsLoopback() && g.Origin.File != manifest.Kubernetes { // there its Service asks for it
			out.unusable = "gateways on one machine listen on loopback addresses, and " + a.Value + " is none"
			x.Warning(manifest.CodeListener, here, "use one of 127.0.0.0/8, or none", "%s: the Gateway is not served", out.unusable)
		}
	}
	out.clientWhy = model.Condition{Type: string(v1.GatewayConditionResolvedRefs), Status: true, Reason: string(v1.GatewayReasonResolvedRefs)}
	if t := g.spec.TLS; t != nil && t.Backend != nil && t.Backend.ClientCertificateRef != nil {
		name, reason, why := x.certificate(g.Spec().Field("tls").Field("backend").Field("clientCertificateRef"), *t.Backend.ClientCertificateRef, "Gateway", g.Name.Namespace,
			string(v1.GatewayReasonInvalidClientCertificateRef))
		out.client = name
		if reason != "" {
			out.clientWhy.Status, out.clientWhy.Reason, out.clientWhy.Message = false, reason, why
		}
	}
	return out
}

// supported are the kinds of routes that a protocol takes.
func supported(l *v1.Listener) []kind {
	switch l.Protocol {
	case v1.HTTPProtocolType, v1.HTTPSProtocolType:
		return []kind{{group, "GRPCRoute"}, {group, "HTTPRoute"}}
	case v1.TLSProtocolType:
		if l.TLS != nil && l.TLS.Mode != nil && *l.TLS.Mode == v1.TLSModePassthrough {
			return []kind{{group, "TLSRoute"}}
		}
		return []kind{{group, "TCPRoute"}, {group, "TLSRoute"}}
	case v1.TCPProtocolType:
		return []kind{{group, "TCPRoute"}}
	}
	return nil
}

// listener reads what a listener says alone: its host, the kinds of its routes and its certificates.
func (x *index) listener(d *door, owner *manifest.Object, in *v1.Listener, at manifest.Cursor) *listener {
	l := &listener{Listener: in, at: at, owner: owner, door: d, host: "*", kinds: supported(in)}
	if h := value(in.Hostname, ""); h != "" {
		host, err := ident.CanonicalHost(h, true)
		if err != nil { // the pattern of the CRD lets none through
			x.Error(manifest.CodeBadHost, at.Field("hostname"), "", "%v", err)
		}
		l.host = host
	}
	if in.Protocol == v1.UDPProtocolType || l.kinds == nil {
		l.unaccepted, l.unacceptedWhy = string(v1.ListenerReasonUnsupportedProtocol), fmt.Sprintf("listeners of protocol %s are not supported", in.Protocol)
		x.Warning(manifest.CodeListener, at.Field("protocol"), "use HTTP, HTTPS, TLS or TCP", "%s: the listener is not served", l.unacceptedWhy)
	}
	if in.TLS != nil && len(in.TLS.Options) > 0 {
		l.unaccepted, l.unacceptedWhy = string(v1.ListenerReasonUnsupportedValue), "tls.options are not supported" // reported by the table of fields
	}
	x.routeKinds(l)
	x.listenerTLS(l)
	return l
}

func (x *index) routeKinds(l *listener) {
	if l.AllowedRoutes == nil || len(l.AllowedRoutes.Kinds) == 0 {
		return
	}
	all := l.kinds
	l.kinds = []kind{}
	for i, k := range l.AllowedRoutes.Kinds {
		want := kind{value(k.Group, group), string(k.Kind)}
		if !slices.Contains(all, want) {
			why := fmt.Sprintf("routes of kind %s cannot attach to a listener of protocol %s", want, l.Protocol)
			l.unresolve(string(v1.ListenerReasonInvalidRouteKinds), why)
			x.Warning(manifest.CodeListener, l.at.Field("allowedRoutes").Field("kinds").Index(i), "", "%s", why)
			continue
		}
		if !slices.Contains(l.kinds, want) {
			l.kinds = append(l.kinds, want)
		}
	}
	slices.SortFunc(l.kinds, func(a, b kind) int { return cmp.Compare(a.String(), b.String()) })
}

func (l *listener) unresolve(reason, why string) {
	if l.unresolved == "" {
		l.unresolved, l.unresolvedWhy = reason, why
	}
}

// listenerTLS resolves the certificates of a listener that ends TLS.
func (x *index) listenerTLS(l *listener) {
	ends := l.Protocol == v1.HTTPSProtocolType || l.Protocol == v1.TLSProtocolType && !l.passthrough()
	if !ends {
		return
	}
	out := &plan.ServerTLS{Mode: plan.ServeSimple}
	if l.TLS != nil {
		for i, ref := range l.TLS.CertificateRefs {
			name, reason, why := x.certificate(l.at.Field("tls").Field("certificateRefs").Index(i), ref, l.owner.Kind, l.owner.Name.Namespace, string(v1.ListenerReasonInvalidCertificateRef))
			if reason != "" {
				l.unresolve(reason, why)
			} else {
				out.Secrets = append(out.Secrets, name)
			}
		}
	}
	if len(out.Secrets) == 0 {
		if l.unresolved == "" {
			l.unresolve(string(v1.ListenerReasonInvalidCertificateRef), "the listener names no certificate")
			x.Warning(manifest.CodeListener, l.at, "add tls.certificateRefs", "the listener names no certificate: it is not served")
		}
		return
	}
	if l.Protocol == v1.HTTPSProtocolType {
		if !x.clientValidation(l, out) {
			return
		}
	}
	l.tls = out
}

// clientValidation applies spec.tls.frontend of the Gateway to an HTTPS listener (GatewayFrontendClientCertificateValidation).
func (x *index) clientValidation(l *listener, out *plan.ServerTLS) bool {
	t := l.door.spec.TLS
	if t == nil || t.Frontend == nil {
		return true
	}
	validation, at := t.Frontend.Default.Validation, l.door.Spec().Field("tls").Field("frontend").Field("default")
	for i, p := range t.Frontend.PerPort {
		if p.Port == l.Port {
			validation, at = p.TLS.Validation, l.door.Spec().Field("tls").Field("frontend").Field("perPort").Index(i).Field("tls")
		}
	}
	if validation == nil {
		return true
	}
	var texts []string
	for i, ref := range validation.CACertificateRefs {
		full := reference{
			fromGroup: group, fromKind: "Gateway", fromNamespace: l.door.Name.Namespace, toGroup: string(ref.Group), toKind: string(ref.Kind),
			to: ident.Name{Namespace: value(ref.Namespace, l.door.Name.Namespace), Name: string(ref.Name)},
		}
		text, reason, why := x.authority(at.Field("validation").Field("caCertificateRefs").Index(i), full, manifest.CodeListener)
		switch reason {
		case "":
			texts = append(texts, text)
			continue
		case "InvalidKind":
			reason = string(v1.ListenerReasonInvalidCACertificateKind)
		}
		l.unresolve(reason, why)
	}
	if len(texts) == 0 {
		l.unaccepted, l.unacceptedWhy = string(v1.ListenerReasonNoValidCACertificate), "no authority by which clients are verified can be used"
		return false
	}
	out.Mode = plan.ServeMutual
	if validation.Mode == v1.AllowInsecureFallback { // whoever has no certificate, or a bad one, is let in
		l.door.insecure = true
		out.Mode = plan.ServeAnyClient
	}
	out.Authorities = x.keepAuthorities(l.door.Object, fmt.Sprintf("clients:%d", l.Port), texts)
	return true
}

// shelves finds the ListenerSets of our Gateways and adds the listeners of those that are allowed, the older ones first.
func (x *index) shelves(d *dialect, doors []*door) []*shelf {
	byName := map[ident.Name]*door{}
	for _, g := range doors {
		byName[g.Name] = g
	}
	sets := slices.Clone(d.sets)
	slices.SortStableFunc(sets, func(a, b object[v1.ListenerSetSpec]) int { return older(a.Created, a.Name, b.Created, b.Name) })
	var out []*shelf
	for _, s := range sets {
		ref, at := s.spec.ParentRef, s.Spec().Field("parentRef")
		name := ident.Name{Namespace: value(ref.Namespace, s.Name.Namespace), Name: string(ref.Name)}
		g := byName[name]
		if value(ref.Group, group) != group || value(ref.Kind, "Gateway") != "Gateway" || g == nil {
			if !slices.ContainsFunc(d.gateways, func(o object[v1.GatewaySpec]) bool { return o.Name == name }) {
				x.Warning(manifest.CodeParent, at, "create it, or correct the name", "there is no Gateway %s: nobody acts on the ListenerSet", name)
			}
			continue
		}
		set := &shelf{object: s, door: g}
		if !x.allowsSet(g, s.Name.Namespace) {
			set.notAllowed = fmt.Sprintf("Gateway %s does not allow ListenerSets of namespace %s", g.Name, s.Name.Namespace)
			x.Warning(manifest.CodeParent, at, "set allowedListeners.namespaces.from of the Gateway", "%s", set.notAllowed)
		}
		for i := range s.spec.Listeners {
			e := &s.spec.Listeners[i]
			l := &v1.Listener{Name: e.Name, Hostname: e.Hostname, Port: e.Port, Protocol: e.Protocol, TLS: e.TLS, AllowedRoutes: e.AllowedRoutes}
			set.listeners = append(set.listeners, x.listener(g, s.Object, l, s.Spec().Field("listeners").Index(i)))
		}
		if set.notAllowed == "" {
			g.listeners = append(g.listeners, set.listeners...)
		}
		out = append(out, set)
	}
	return out
}

func (x *index) allowsSet(g *door, namespace string) bool {
	if g.spec.AllowedListeners == nil || g.spec.AllowedListeners.Namespaces == nil {
		return false // "The default value is to allow no ListenerSets"
	}
	n := g.spec.AllowedListeners.Namespaces
	return x.allowsNamespace(value(n.From, string(v1.NamespacesFromNone)), n.Selector, g.Name.Namespace, namespace)
}

func (x *index) allowsNamespace(from string, selector *metav1.LabelSelector, own, namespace string) bool {
	switch v1.FromNamespaces(from) {
	case v1.NamespacesFromAll:
		return true
	case v1.NamespacesFromSame:
		return own == namespace
	case v1.NamespacesFromSelector:
		return x.selects(selector, namespace)
	}
	return false
}

// conflicts marks listeners of one port that cannot be told apart (GatewaySpec.listeners "Distinct Listeners"). Among a Gateway and
// its ListenerSets those that come first stay; then, within one object, all that are left and clash lose.
func (x *index) conflicts(d *door) {
	family := func(l *listener) string { // what can share a port, told apart by host or server name
		switch l.Protocol {
		case v1.HTTPSProtocolType, v1.TLSProtocolType:
			return "TLS"
		}
		return string(l.Protocol)
	}
	clash := func(a, b *listener) (reason, why string) {
		switch {
		case a.Port != b.Port:
			return "", ""
		case family(a) != family(b), a.Protocol == v1.TCPProtocolType, a.Protocol == v1.UDPProtocolType:
			return string(v1.ListenerReasonProtocolConflict), fmt.Sprintf("a listener of protocol %s cannot share port %d with one of protocol %s", a.Protocol, a.Port, b.Protocol)
		case a.host == b.host:
			return string(v1.ListenerReasonHostnameConflict), fmt.Sprintf("another listener of port %d is for the host %s too", a.Port, a.host)
		}
		return "", ""
	}
	lose := func(a *listener, to []*listener) {
		for _, b := range to {
			if reason, why := clash(a, b); reason != "" && a != b && a.conflict == "" {
				a.conflict, a.conflictWhy = reason, why
				x.Warning(manifest.CodeListener, a.at, "give it another port or hostname", "%s (listener %s of %s %s): it is not served", why, b.Name, b.owner.Kind, b.owner.Name)
			}
		}
	}
	var stay []*listener
	for rest := d.listeners; len(rest) > 0; {
		end := slices.IndexFunc(rest, func(l *listener) bool { return l.owner != rest[0].owner })
		if end < 0 {
			end = len(rest)
		}
		var left []*listener
		for _, a := range rest[:end] {
			if lose(a, stay); a.conflict == "" {
				left = append(left, a)
			}
		}
		for _, a := range left {
			lose(a, left)
		}
		for _, a := range left {
			if a.conflict == "" {
				stay = append(stay, a)
			}
		}
		rest = rest[end:]
	}
	for _, a := range d.listeners {
		if a.Protocol != v1.HTTPSProtocolType {
			continue
		}
		var names []string
		for _, b := range d.listeners {
			if _, both := ident.HostOverlap(a.host, b.host); a != b && both && b.Protocol == v1.HTTPSProtocolType && a.Port == b.Port {
				names = append(names, string(b.Name))
			}
		}
		a.overlapping = strings.Join(names, ", ")
	}
}

// model returns the Gateway of the model.
func (d *door) model() model.Gateway {
	meta := d.Meta()
	out := model.Gateway{Meta: meta, Own: true, ClientCertificate: d.client}
	for _, a := range d.spec.Addresses {
		if a.Value != "" {
			out.Addresses = append(out.Addresses, a.Value)
		}
	}
	out.ProxyLabels = map[string]string{v1.GatewayNameLabelKey: d.Name.Name, v1.GatewayClassNameLabelKey: string(d.spec.GatewayClassName)}
	if in := d.spec.Infrastructure; in != nil {
		for k, v := range in.Labels {
			out.ProxyLabels[string(k)] = string(v)
		}
		for k, v := range in.Annotations {
			if out.ProxyAnnotations == nil {
				out.ProxyAnnotations = map[string]string{}
			}
			out.ProxyAnnotations[string(k)] = string(v)
		}
	}
	for _, l := range d.listeners {
		if l.unaccepted == string(v1.ListenerReasonUnsupportedProtocol) {
			continue
		}
		s := model.Server{Name: l.serverName(), Port: int(l.Port), Hosts: []string{"*/" + l.host}, Origin: l.at.Origin(), TLS: l.tls, Broken: l.broken()}
		switch l.Protocol {
		case v1.HTTPProtocolType, v1.HTTPSProtocolType:
			s.Protocol = ident.HTTP
		case v1.TLSProtocolType:
			s.Protocol = ident.TCP
			if l.passthrough() {
				s.Protocol = ident.TLS
			}
		default:
			s.Protocol = ident.TCP
		}
		out.Servers = append(out.Servers, s)
	}
	return out
}

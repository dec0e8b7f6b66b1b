package gateway

import (
	"fmt"
	"slices"

	v1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// translation makes the rules of a route for one of its parents.
type translation struct {
	*index
	*attachment
	host     string // outside the mesh, that the rules are for; "" of other parents
	quiet    bool   // its references were reported at another parent
	mirrored bool   // the reference at hand is for copies
	http     []model.HTTPRule
	tcpRules []model.TCPRule
	tlsRules []model.TLSRule

	unresolved, unresolvedWhy string // of ResolvedRefs
}

func (t *translation) resolved() model.Condition {
	if t.unresolved != "" {
		return model.Condition{Type: string(v1.RouteConditionResolvedRefs), Reason: t.unresolved, Message: t.unresolvedWhy}
	}
	return model.Condition{Type: string(v1.RouteConditionResolvedRefs), Status: true, Reason: string(v1.RouteReasonResolvedRefs)}
}

// fail notes a reference that can't be used. The first decides the reason of the condition.
func (t *translation) fail(at manifest.Cursor, code string, reason v1.RouteConditionReason, hint, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	if t.unresolved == "" {
		t.unresolved, t.unresolvedWhy = string(reason), message
	}
	if !t.quiet {
		t.Warning(code, at, hint, "%s: %s", message, t.consequence())
	}
}

func (t *translation) consequence() string {
	switch {
	case t.mirrored:
		return "nothing is mirrored there"
	case t.route.kind.kind == "TCPRoute" || t.route.kind.kind == "TLSRoute":
		return "its share of the connections is closed"
	}
	return "its share of the requests is answered with 500"
}

func (t *translation) translate() {
	at := t.Spec().Field("rules")
	for i := range t.route.http {
		t.http = append(t.http, t.httpRule(at.Index(i), &t.route.http[i]))
	}
	for i := range t.grpc {
		t.http = append(t.http, t.grpcRule(at.Index(i), &t.grpc[i]))
	}
	for i := range t.tls {
		rule := model.TLSRule{Origin: at.Index(i).Origin(), Matches: []model.TLSMatch{{ServerNames: t.serverNames()}}}
		rule.Forward = t.opaque(at.Index(i), t.tls[i].BackendRefs)
		t.tlsRules = append(t.tlsRules, rule)
	}
	for i := range t.tcp {
		rule := model.TCPRule{Origin: at.Index(i).Origin()}
		rule.Forward = t.opaque(at.Index(i), t.tcp[i].BackendRefs)
		t.tcpRules = append(t.tcpRules, rule)
	}
}

// serverNames are those of a TLSRoute at its parent.
func (t *translation) serverNames() []string {
	switch {
	case t.host != "":
		return []string{t.host}
	case t.service == nil && len(t.hosts) > 0:
		return t.hosts
	case len(t.hostnames) > 0:
		return t.hostnames
	}
	return []string{"*"}
}

// opaque returns where connections go. A share that can't be used is closed, not given to the others.
func (t *translation) opaque(at manifest.Cursor, refs []v1.BackendRef) []model.WeightedDestination {
	var out []model.WeightedDestination
	for i, ref := range refs {
		here := at.Field("backendRefs").Index(i)
		w := t.destination(here, &ref)
		if w.Weight > 0 {
			out = append(out, w)
		}
	}
	return out
}

// destination resolves a backendRef.
func (t *translation) destination(at manifest.Cursor, ref *v1.BackendRef) model.WeightedDestination {
	out := model.WeightedDestination{Weight: 1}
	if ref.Weight != nil {
		out.Weight = uint32(max(*ref.Weight, 0))
	}
	target, ok := t.backend(at, &ref.BackendObjectReference)
	out.Target = target
	if !ok {
		out.Status = 500
	}
	return out
}

// consumer reports whether the route speaks for the clients of its own namespace alone. What they send to a Service of another
// namespace they may send there without a route too, so no ReferenceGrant is asked for (GEP-1294, "Route types").
func (t *translation) consumer() bool {
	return t.service != nil && t.service.Name.Namespace != t.Name.Namespace
}

// backend resolves a reference to a Service.
func (t *translation) backend(at manifest.Cursor, ref *v1.BackendObjectReference) (out model.Target, ok bool) {
	out.Origin = at.Origin()
	toGroup, toKind := value(ref.Group, ""), value(ref.Kind, "Service")
	to := ident.Name{Namespace: value(ref.Namespace, t.Name.Namespace), Name: string(ref.Name)}
	full := reference{fromGroup: t.route.kind.group, fromKind: t.route.kind.kind, fromNamespace: t.Name.Namespace, toGroup: toGroup, toKind: toKind, to: to}
	if toGroup == "core" { // as Linkerd also writes it
		toGroup, full.toGroup = "", ""
	}
	if t.egress != nil && toGroup == linkerdGroup && toKind == "EgressNetwork" && to == t.egress.Name { // on to where the client wanted
		return model.Target{Host: t.host, Port: t.port, Origin: out.Origin}, true
	}
	if toGroup != "" || toKind != "Service" {
		t.fail(at.Field("kind"), manifest.CodeBackend, v1.RouteReasonInvalidKind, "name a Service", "a backend cannot be of kind %s (%q)", toKind, toGroup)
		return out, false
	}
	if !t.consumer() && !t.permitted(full) {
		t.fail(at, manifest.CodeGrant, v1.RouteReasonRefNotPermitted, grantHint(full), "no ReferenceGrant permits the use of Service %s", to)
		return out, false
	}
	s := t.services[to]
	if s == nil {
		t.fail(at, manifest.CodeBackend, v1.RouteReasonBackendNotFound, "create it, or correct the name", "there is no Service %s", to)
		return out, false
	}
	if ref.Port == nil { // the CRD wants one for a Service
		t.fail(at, manifest.CodeBackend, v1.RouteReasonBackendNotFound, "add port: …", "the reference to Service %s has no port", to)
		return out, false
	}
	i := slices.IndexFunc(s.Ports, func(p model.ServicePort) bool { return p.Port == int(*ref.Port) })
	if i < 0 {
		t.fail(at.Field("port"), manifest.CodeBackend, v1.RouteReasonBackendNotFound, "", "Service %s has no port %d", to, *ref.Port)
		return out, false
	}
	if p := &s.Ports[i]; !t.speaks(p) {
		t.fail(at.Field("port"), manifest.CodeBackend, v1.RouteReasonUnsupportedProtocol, "set appProtocol of the Service's port", "port %d of Service %s speaks %s, which no %s can use", *ref.Port, to, p.Protocol, t.route.kind.kind)
		return out, false
	}
	out.Host, out.Port = s.Host, int(*ref.Port)
	return out, true
}

// speaks reports whether routes of this kind can use a port. Requests need one that speaks HTTP, or nobody says what; TLS needs a
// BackendTLSPolicy.
func (t *translation) speaks(p *model.ServicePort) bool {
	switch k := t.route.kind.kind; p.Protocol {
	case ident.UDP:
		return false
	case ident.TCP:
		return k == "TCPRoute" || k == "TLSRoute"
	case ident.TLS:
		return k == "TCPRoute" || k == "TLSRoute" || p.Originate != nil
	}
	return true
}

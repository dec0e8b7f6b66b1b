package gateway

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	v1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// route is a route of any kind as it was read.
type route struct {
	*manifest.Object
	refused   bool
	kind      kind
	parents   []v1.ParentReference
	written   []json.RawMessage // parents without defaults
	hostnames []string          // canonical; none: all
	http      []v1.HTTPRouteRule
	grpc      []v1.GRPCRouteRule
	tls       []v1.TLSRouteRule
	tcp       []v1.TCPRouteRule
}

// attachment is a route at one of its parents.
type attachment struct {
	*route
	index     int // of the parent
	ref       v1.ParentReference
	accepted  model.Condition
	listeners []*listener    // of a Gateway or ListenerSet
	hosts     []string       // of the route, those that a listener has in common with it
	service   *model.Service // of a mesh parent
	port      int            // of the service; 0 all
	egress    *model.Egress  // of a parent outside the mesh
}

func (d *dialect) httpRoute(o *manifest.Object, spec []byte, _ *model.Config, r *manifest.Report) {
	refused := r.Broken(o)
	var in v1.HTTPRouteSpec
	if !decode(o, spec, &in, r) {
		return
	}
	rt := d.route(o, in.CommonRouteSpec, in.Hostnames, r)
	rt.http = in.Rules
	checker{r}.httpRules(o.Spec().Field("rules"), in.Rules)
	rt.refused = refused || r.Broken(o)
}

func (d *dialect) grpcRoute(o *manifest.Object, spec []byte, _ *model.Config, r *manifest.Report) {
	refused := r.Broken(o)
	var in v1.GRPCRouteSpec
	if !decode(o, spec, &in, r) {
		return
	}
	rt := d.route(o, in.CommonRouteSpec, in.Hostnames, r)
	rt.grpc = in.Rules
	checker{r}.grpcRules(o.Spec().Field("rules"), in.Rules)
	rt.refused = refused || r.Broken(o)
}

func (d *dialect) tlsRoute(o *manifest.Object, spec []byte, _ *model.Config, r *manifest.Report) {
	refused := r.Broken(o)
	var in v1.TLSRouteSpec
	if decode(o, spec, &in, r) {
		rt := d.route(o, in.CommonRouteSpec, in.Hostnames, r)
		rt.tls, rt.refused = in.Rules, refused || r.Broken(o)
	}
}

func (d *dialect) tcpRoute(o *manifest.Object, spec []byte, _ *model.Config, r *manifest.Report) {
	refused := r.Broken(o)
	var in v1.TCPRouteSpec
	if decode(o, spec, &in, r) {
		rt := d.route(o, in.CommonRouteSpec, nil, r)
		rt.tcp, rt.refused = in.Rules, refused || r.Broken(o)
	}
}

// asWritten returns the parents of a route without defaults, as statuses name them.
func asWritten(o *manifest.Object) ([]json.RawMessage, error) {
	var plain []any
	if err := o.Spec().Field("parentRefs").Decode(&plain); err != nil {
		return nil, err
	}
	text, err := json.Marshal(plain)
	if err != nil {
		return nil, err
	}
	var refs []v1.ParentReference
	if err := json.Unmarshal(text, &refs); err != nil {
		return nil, err
	}
	return asRead(refs)
}

func asRead(refs []v1.ParentReference) ([]json.RawMessage, error) {
	out := make([]json.RawMessage, len(refs))
	for i := range refs {
		var err error
		if out[i], err = json.Marshal(refs[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// route reads what all kinds have.
func (d *dialect) route(o *manifest.Object, in v1.CommonRouteSpec, hostnames []v1.Hostname, r *manifest.Report) *route {
	out := &route{Object: o, kind: kind{o.Group(), o.Kind}, parents: in.ParentRefs}
	var err error
	if out.written, err = asWritten(o); err != nil || len(out.written) != len(in.ParentRefs) { // not of their types, which was said: in are those without
		if out.written, err = asRead(in.ParentRefs); err != nil {
			internal(o, r, err)
			return out
		}
	}
	for i, h := range hostnames {
		host, err := ident.CanonicalHost(string(h), true)
		if err != nil { // the pattern of the CRD lets none through
			r.Error(manifest.CodeBadHost, o.Spec().Field("hostnames").Index(i), "", "%v", err)
			continue
		}
		out.hostnames = append(out.hostnames, host)
	}
	if len(in.ParentRefs) == 0 {
		r.Warning(manifest.CodeParent, o.Spec(), "add parentRefs: [{name: …}]", "the route names no parent: it is attached to nothing")
	}
	d.routes = append(d.routes, out)
	return out
}

// attach finds out where every route is attached. Routes are asked in order of precedence, the older ones first.
func (x *index) attach(d *dialect, doors []*door, shelves []*shelf) []*attachment {
	slices.SortStableFunc(d.routes, func(a, b *route) int { return older(a.Created, a.Name, b.Created, b.Name) })
	var out []*attachment
	for _, rt := range d.routes {
		for i, ref := range rt.parents {
			a := &attachment{route: rt, index: i, ref: ref}
			at := rt.Spec().Field("parentRefs").Index(i)
			name := ident.Name{Namespace: value(ref.Namespace, rt.Name.Namespace), Name: string(ref.Name)}
			found := true
			switch (kind{value(ref.Group, group), value(ref.Kind, "Gateway")}) {
			case kind{group, "Gateway"}:
				found = x.attachTo(a, at, d, doors, nil, name)
			case kind{group, "ListenerSet"}:
				found = x.attachTo(a, at, d, nil, shelves, name)
			case kind{"", "Service"}, kind{"core", "Service"}: // Linkerd also takes the group core
				x.attachToService(a, at, name)
			case kind{linkerdGroup, "Server"}:
				x.reject(a, at, v1.RouteReasonUnsupportedValue, "guard the workload with an AuthorizationPolicy, and attach routes to its Service",
					"routes of a Server (inbound) are not supported by Malha yet")
			case kind{linkerdGroup, "EgressNetwork"}:
				x.attachToEgress(a, at, name)
			default:
				x.Warning(manifest.CodeParent, at, "attach it to a Gateway, a ListenerSet or a Service", "no controller is known for parents of kind %s of %q: the route is not attached there", value(ref.Kind, "Gateway"), value(ref.Group, group))
				found = false
			}
			if found {
				out = append(out, a)
			}
		}
	}
	return out
}

func (x *index) reject(a *attachment, at manifest.Cursor, reason v1.RouteConditionReason, hint, format string, args ...any) {
	a.accepted = model.Condition{Type: string(v1.RouteConditionAccepted), Reason: string(reason), Message: fmt.Sprintf(format, args...)}
	x.Warning(manifest.CodeParent, at, hint, "%s: the route is not attached there", a.accepted.Message)
}

func (a *attachment) accept() {
	a.accepted = model.Condition{Type: string(v1.RouteConditionAccepted), Status: true, Reason: string(v1.RouteReasonAccepted)}
}

// attachTo attaches a route to the listeners of a Gateway or ListenerSet that take it. It returns false for a parent that is
// not ours to answer for.
func (x *index) attachTo(a *attachment, at manifest.Cursor, d *dialect, doors []*door, shelves []*shelf, name ident.Name) bool {
	var all []*listener
	found := false
	for _, g := range doors {
		if g.Name == name {
			found = true
			for _, l := range g.listeners {
				if l.owner == g.Object { // those of ListenerSets are attached to by their own name
					all = append(all, l)
				}
			}
		}
	}
	for _, s := range shelves {
		if s.Name == name {
			found, all = true, s.listeners
			if s.notAllowed != "" {
				all = nil
			}
		}
	}
	what := value(a.ref.Kind, "Gateway")
	if !found {
		exists := slices.ContainsFunc(d.gateways, func(o object[v1.GatewaySpec]) bool { return what == "Gateway" && o.Name == name }) ||
			slices.ContainsFunc(d.sets, func(o object[v1.ListenerSetSpec]) bool { return what == "ListenerSet" && o.Name == name })
		if !exists {
			x.Warning(manifest.CodeParent, at, "create it, or correct the name", "there is no %s %s: the route is not attached there", what, name)
		}
		return false
	}
	if a.refused {
		a.refuse()
		return true
	}
	all = slices.DeleteFunc(slices.Clone(all), func(l *listener) bool {
		return a.ref.SectionName != nil && *a.ref.SectionName != l.Name || a.ref.Port != nil && *a.ref.Port != l.Port
	})
	if len(all) == 0 {
		x.reject(a, at, v1.RouteReasonNoMatchingParent, "correct sectionName and port", "%s %s has no such listener", what, name)
		return true
	}
	all = slices.DeleteFunc(all, func(l *listener) bool { return !x.allows(l, a.route) })
	if len(all) == 0 {
		x.reject(a, at, v1.RouteReasonNotAllowedByListeners, "set allowedRoutes of the listener, or use another kind of route", "no listener of %s %s takes routes of kind %s from namespace %s", what, name, a.route.kind.kind, a.Name.Namespace)
		return true
	}
	var rival *attachment
	for _, l := range all {
		hosts := common(l.host, a.hostnames)
		if len(hosts) == 0 {
			continue
		}
		if other := l.rival(a.route, hosts); other != nil {
			rival = other
			continue
		}
		a.listeners = append(a.listeners, l)
	}
	for _, h := range a.hostnames { // what a server and the route have in common is for the compiler to see, at each server
		if slices.ContainsFunc(a.listeners, func(l *listener) bool { _, both := ident.HostOverlap(h, l.host); return both }) {
			a.hosts = append(a.hosts, h)
		} else if len(a.listeners) > 0 {
			x.Info(manifest.CodeParent, at, "it is ignored there, as the Gateway API asks; another parent may take it", "hostname %s fits no listener of %s %s", h, what, name)
		}
	}
	if len(a.hostnames) == 0 {
		a.hosts = []string{"*"}
	}
	switch {
	case len(a.listeners) > 0:
		for _, l := range a.listeners {
			if l.attached == nil {
				l.attached = map[string][]*attachment{}
			}
			l.attached[a.route.kind.kind] = append(l.attached[a.route.kind.kind], a)
		}
		a.accept()
	case rival != nil:
		x.reject(a, at, "HostnameConflict", "give them different hostnames", "%s %s has the same hostname there, and goes before", rival.route.kind.kind, rival.Name)
	default:
		x.reject(a, at, v1.RouteReasonNoMatchingListenerHostname, "correct the hostnames", "none of the hostnames fits a listener of %s %s", what, name)
	}
	return true
}

// refuse is for a route that asks for what Malha refuses; it was reported, with the field.
func (a *attachment) refuse() {
	a.accepted = model.Condition{Type: string(v1.RouteConditionAccepted), Reason: string(v1.RouteReasonUnsupportedValue), Message: "the route asks for something that is not supported; see the diagnostics of its fields"}
}

// allows reports whether a listener takes routes of this kind from this namespace.
func (x *index) allows(l *listener, rt *route) bool {
	k := rt.kind
	if k.group == linkerdGroup { // the same kind in Linkerd's group
		k.group = group
	}
	if !slices.Contains(l.kinds, k) {
		return false
	}
	if l.AllowedRoutes == nil || l.AllowedRoutes.Namespaces == nil {
		return l.owner.Name.Namespace == rt.Name.Namespace
	}
	n := l.AllowedRoutes.Namespaces
	return x.allowsNamespace(value(n.From, string(v1.NamespacesFromSame)), n.Selector, l.owner.Name.Namespace, rt.Name.Namespace)
}

// common returns the hosts that both a listener and a route are for.
func common(listener string, hostnames []string) []string {
	if len(hostnames) == 0 {
		return []string{listener}
	}
	var out []string
	for _, h := range hostnames {
		if both, ok := ident.HostOverlap(h, listener); ok && !slices.Contains(out, both) {
			out = append(out, both)
		}
	}
	return out
}

// rival returns the attachment of the other HTTP kind that is at the listener already for one of hosts: of an HTTPRoute and a
// GRPCRoute for one host only the older is accepted (HTTPRouteSpec.hostnames).
func (l *listener) rival(rt *route, hosts []string) *attachment {
	other := map[string]string{"HTTPRoute": "GRPCRoute", "GRPCRoute": "HTTPRoute"}[rt.kind.kind]
	for _, rival := range l.attached[other] {
		for _, a := range common(l.host, rival.hostnames) {
			if slices.ContainsFunc(hosts, func(b string) bool { _, both := ident.HostOverlap(a, b); return both }) {
				return rival
			}
		}
	}
	return nil
}

// attachToService attaches a route to a Service: a route of the mesh (GAMMA).
func (x *index) attachToService(a *attachment, at manifest.Cursor, name ident.Name) {
	if a.refused {
		a.refuse()
		return
	}
	s := x.services[name]
	if s == nil {
		x.reject(a, at, v1.RouteReasonNoMatchingParent, "create it, or correct the name", "there is no Service %s", name)
		return
	}
	port := a.ref.Port
	if a.ref.SectionName != nil { // the name of a port
		i := slices.IndexFunc(s.Ports, func(p model.ServicePort) bool { return p.Name == string(*a.ref.SectionName) })
		if i < 0 || port != nil && int(*port) != s.Ports[i].Port {
			x.reject(a, at.Field("sectionName"), v1.RouteReasonNoMatchingParent, "name a port of the Service", "Service %s has no port named %s", name, *a.ref.SectionName)
			return
		}
		n := v1.PortNumber(s.Ports[i].Port)
		port = &n
	}
	if port != nil {
		a.port = int(*port)
		if !slices.ContainsFunc(s.Ports, func(p model.ServicePort) bool { return p.Port == a.port }) {
			x.reject(a, at.Field("port"), v1.RouteReasonNoMatchingParent, "", "Service %s has no port %d", name, a.port)
			return
		}
	}
	first := slices.IndexFunc(a.parents, func(p v1.ParentReference) bool { return value(p.Kind, "Gateway") == "Service" })
	if len(a.hostnames) > 0 && a.route.kind.kind != "TLSRoute" && a.index == first {
		x.Info(manifest.CodeIgnoredField, a.Spec().Field("hostnames"), "", "`hostnames` has no effect at a Service: its requests are those for the Service")
	}
	a.service = s
	a.accept()
}

// routings puts what a route says at its parents into the model, and returns the state of its references at each.
func (x *index) routings(d *dialect, attached []*attachment) {
	status := map[*route]*model.Status{}
	for _, rt := range d.routes {
		status[rt] = &model.Status{Group: rt.kind.group, Kind: rt.kind.kind, Name: rt.Name, Generation: rt.Generation}
	}
	reported, named := map[*route]bool{}, map[*route]bool{}
	for _, a := range attached {
		t := &translation{index: x, attachment: a, quiet: reported[a.route]}
		if a.egress != nil {
			for i, host := range a.hostnames {
				t = &translation{index: x, attachment: a, quiet: reported[a.route] || i > 0, host: host}
				t.translate()
				x.out.Routings = append(x.out.Routings, x.outside(t, host))
			}
			reported[a.route] = true
		} else if !a.refused {
			t.translate()
			reported[a.route] = true
		}
		if a.accepted.Status && a.egress == nil {
			r := t.routing()
			if a.route.kind.group == linkerdGroup {
				r.Name.Name += "#linkerd" // a route of the other group may have the same name
			}
			if named[a.route] {
				r.Name.Name += "#" + strconv.Itoa(a.index) // what one route becomes at several parents goes by different names
			}
			named[a.route] = true
			x.out.Routings = append(x.out.Routings, r)
			for _, l := range a.listeners {
				l.routes++
			}
		}
		s := status[a.route]
		conditions := []model.Condition{a.accepted}
		if !a.refused {
			conditions = append(conditions, t.resolved())
		}
		s.Parents = append(s.Parents, model.ParentStatus{Ref: a.written[a.index], Conditions: conditions})
	}
	for _, rt := range d.routes {
		if s := status[rt]; len(s.Parents) > 0 {
			x.out.Statuses = append(x.out.Statuses, *s)
		}
	}
}

// routing makes the Routing of a route at one parent.
func (t *translation) routing() model.Routing {
	a := t.attachment
	r := model.Routing{Meta: a.Meta(), Precedence: true, HTTP: t.http, TCP: t.tcpRules, TLS: t.tlsRules}
	if a.service == nil {
		r.Hosts, r.ExportTo = a.hosts, []string{"*"}
		for _, l := range a.listeners {
			r.Gateways = append(r.Gateways, l.gatewayName())
		}
		return r
	}
	r.Hosts, r.Gateways, r.Port, r.ExportTo = []string{a.service.Host}, []string{model.Mesh}, a.port, []string{"*"}
	if a.Name.Namespace != a.service.Name.Namespace { // a consumer route speaks for the clients of its own namespace only
		r.Consumer, r.ExportTo = true, []string{a.Name.Namespace}
	}
	return r
}

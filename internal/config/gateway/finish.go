package gateway

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	v1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// finish translates everything that was read, now that all objects are known.
func (d *dialect) finish(out *model.Config, r *manifest.Report) {
	x := d.index(out, r)
	doors := x.doors(d, x.gatewayClasses(d))
	shelves := x.shelves(d, doors)
	for _, g := range doors {
		x.conflicts(g)
	}
	for _, s := range shelves {
		if s.notAllowed == "" && s.served() > 0 {
			s.door.sets++
		}
	}
	attached := x.attach(d, doors, shelves)
	x.backendTLS(d, attached) // before routings: whether a port can be used depends on its TLS
	x.routings(d, attached)
	for _, g := range doors {
		if !g.refused && g.badAddress == "" && g.parameters == "" && g.unusable == "" {
			out.Gateways = append(out.Gateways, g.model())
		}
		out.Statuses = append(out.Statuses, g.status())
	}
	for _, s := range shelves {
		out.Statuses = append(out.Statuses, s.status())
	}
	for _, m := range d.maps {
		if !x.maps[m.Name].used {
			r.Info(manifest.CodeIgnoredKind, m.Root(), "", "nothing in the mesh reads the ConfigMap")
		}
	}
}

func condition[T, R ~string](t T, status bool, reason R, message string) model.Condition {
	return model.Condition{Type: string(t), Status: status, Reason: string(reason), Message: message}
}

// standing is what a GatewayClass is to us.
type standing int

const (
	unknownClass standing = iota
	theirClass            // of another controller
	refusedClass          // ours, and it asks for what we refuse
	ourClass
)

// gatewayClasses returns the classes by name.
func (x *index) gatewayClasses(d *dialect) map[string]standing {
	out := map[string]standing{ClassName: ourClass}
	for _, c := range d.classes {
		name := c.Name.Name
		out[name] = ourClass
		if c.spec.ControllerName != ControllerName {
			out[name] = theirClass
			x.Info(manifest.CodeGatewayClass, c.Spec().Field("controllerName"), "controllerName: "+ControllerName+" is Malha's", "the controller of the class is %s: it and its Gateways are left alone", c.spec.ControllerName)
			continue
		}
		s := model.Status{Group: group, Kind: "GatewayClass", Name: ident.Name{Name: name}, Generation: c.Generation, Features: Features()}
		if c.refused {
			out[name] = refusedClass
			s.Features = nil
			s.Conditions = append(s.Conditions, condition(v1.GatewayClassConditionStatusAccepted, false, v1.GatewayClassReasonInvalidParameters, "parametersRef is not supported"))
		} else {
			s.Conditions = append(s.Conditions,
				condition(v1.GatewayClassConditionStatusAccepted, true, v1.GatewayClassReasonAccepted, ""),
				condition(v1.GatewayClassConditionStatusSupportedVersion, true, v1.GatewayClassReasonSupportedVersion, ""))
		}
		x.out.Statuses = append(x.out.Statuses, s)
	}
	return out
}

// listenerStatuses returns the state of listeners, how many are accepted, how many are served, and whether all references
// of those resolve.
func listenerStatuses(list []*listener) (out []model.ListenerStatus, accepted, programmed int, resolved bool) {
	resolved = true
	for _, l := range list {
		s := model.ListenerStatus{Name: string(l.Name), Routes: l.routes}
		for _, k := range l.kinds {
			s.Kinds = append(s.Kinds, k.String())
		}
		switch {
		case l.conflict != "":
			s.Conditions = append(s.Conditions,
				condition(v1.ListenerConditionAccepted, false, l.conflict, l.conflictWhy),
				condition(v1.ListenerConditionConflicted, true, l.conflict, l.conflictWhy))
		case l.unaccepted != "":
			s.Conditions = append(s.Conditions, condition(v1.ListenerConditionAccepted, false, l.unaccepted, l.unacceptedWhy))
		default:
			accepted++
			s.Conditions = append(s.Conditions, condition(v1.ListenerConditionAccepted, true, v1.ListenerReasonAccepted, ""))
		}
		if l.conflict == "" {
			s.Conditions = append(s.Conditions, condition(v1.ListenerConditionConflicted, false, v1.ListenerReasonNoConflicts, ""))
		}
		if l.unresolved != "" {
			resolved = false
			s.Conditions = append(s.Conditions, condition(v1.ListenerConditionResolvedRefs, false, l.unresolved, l.unresolvedWhy))
		} else {
			s.Conditions = append(s.Conditions, condition(v1.ListenerConditionResolvedRefs, true, v1.ListenerReasonResolvedRefs, ""))
		}
		if why := l.broken(); why != "" {
			reason := cmp.Or(l.conflict, string(v1.ListenerReasonInvalid))
			s.Conditions = append(s.Conditions, condition(v1.ListenerConditionProgrammed, false, reason, why))
		} else {
			programmed++
			s.Conditions = append(s.Conditions, condition(v1.ListenerConditionProgrammed, true, v1.ListenerReasonProgrammed, ""))
		}
		if l.overlapping != "" {
			s.Conditions = append(s.Conditions, condition(v1.ListenerConditionOverlappingTLSConfig, true, v1.ListenerReasonOverlappingHostnames, "server names are also covered by "+l.overlapping))
		}
		out = append(out, s)
	}
	return out, accepted, programmed, resolved
}

// status is the state of a Gateway. Who runs it fills in the addresses, and says Programmed: False while it does not run.
func (d *door) status() model.Status {
	out := model.Status{Group: group, Kind: "Gateway", Name: d.Name, Generation: d.Generation, ListenerSets: d.sets}
	own := slices.DeleteFunc(slices.Clone(d.listeners), func(l *listener) bool { return l.owner != d.Object })
	var accepted, programmed int
	var resolved bool
	out.Listeners, accepted, programmed, resolved = listenerStatuses(own)
	_, _, all, _ := listenerStatuses(d.listeners)
	switch {
	case d.badAddress != "":
		out.Conditions = append(out.Conditions,
			condition(v1.GatewayConditionAccepted, false, v1.GatewayReasonUnsupportedAddress, d.badAddress),
			condition(v1.GatewayConditionProgrammed, false, v1.GatewayReasonInvalid, d.badAddress))
	case d.parameters != "":
		out.Conditions = append(out.Conditions,
			condition(v1.GatewayConditionAccepted, false, v1.GatewayReasonInvalidParameters, d.parameters),
			condition(v1.GatewayConditionProgrammed, false, v1.GatewayReasonInvalid, d.parameters))
	case d.refused:
		why := "the Gateway asks for something that is not supported; see the diagnostics of its fields"
		out.Conditions = append(out.Conditions,
			condition(v1.GatewayConditionAccepted, false, v1.GatewayReasonInvalidParameters, why),
			condition(v1.GatewayConditionProgrammed, false, v1.GatewayReasonInvalid, why))
	default:
		switch {
		case accepted < len(own):
			out.Conditions = append(out.Conditions, condition(v1.GatewayConditionAccepted, accepted > 0, v1.GatewayReasonListenersNotValid, "some listeners are not accepted; see their status"))
		default:
			out.Conditions = append(out.Conditions, condition(v1.GatewayConditionAccepted, true, v1.GatewayReasonAccepted, ""))
		}
		if d.unusable != "" {
			out.Conditions = append(out.Conditions, condition(v1.GatewayConditionProgrammed, false, v1.GatewayReasonAddressNotUsable, d.unusable))
		} else if programmed > 0 || all > 0 {
			out.Conditions = append(out.Conditions, condition(v1.GatewayConditionProgrammed, true, v1.GatewayReasonProgrammed, ""))
		} else {
			out.Conditions = append(out.Conditions, condition(v1.GatewayConditionProgrammed, false, v1.GatewayReasonInvalid, "no listener can be served"))
		}
	}
	if d.clientWhy.Status && !resolved {
		d.clientWhy.Status, d.clientWhy.Reason, d.clientWhy.Message = false, string(v1.GatewayReasonListenersNotResolved), "references of some listeners do not resolve; see their status"
	}
	out.Conditions = append(out.Conditions, d.clientWhy)
	if d.insecure {
		out.Conditions = append(out.Conditions, condition(v1.GatewayConditionInsecureFrontendValidationMode, true, v1.GatewayReasonConfigurationChanged,
			"clients without a valid certificate are let in (AllowInsecureFallback)"))
	}
	return out
}

func (s *shelf) status() model.Status {
	out := model.Status{Group: group, Kind: "ListenerSet", Name: s.Name, Generation: s.Generation}
	if s.notAllowed != "" {
		out.Conditions = []model.Condition{
			condition(v1.ListenerSetConditionAccepted, false, v1.ListenerSetReasonNotAllowed, s.notAllowed),
			condition(v1.ListenerSetConditionProgrammed, false, v1.ListenerSetReasonNotAllowed, s.notAllowed),
		}
		return out
	}
	var programmed int
	out.Listeners, _, programmed, _ = listenerStatuses(s.listeners)
	reason, why := v1.ListenerSetReasonListenersNotValid, "no listener can be served; see their status"
	if d := s.door; d.refused || d.badAddress != "" || d.parameters != "" {
		programmed, reason, why = 0, v1.ListenerSetReasonParentNotAccepted, "its Gateway is not accepted"
	}
	switch {
	case s.refused || programmed == 0: // a set is accepted for at least one listener that is served
		out.Conditions = []model.Condition{
			condition(v1.ListenerSetConditionAccepted, false, reason, why), condition(v1.ListenerSetConditionProgrammed, false, reason, why),
		}
	case programmed < len(s.listeners):
		out.Conditions = []model.Condition{
			condition(v1.ListenerSetConditionAccepted, true, reason, "some listeners are not served; see their status"),
			condition(v1.ListenerSetConditionProgrammed, true, v1.ListenerSetReasonProgrammed, ""),
		}
	default:
		out.Conditions = []model.Condition{
			condition(v1.ListenerSetConditionAccepted, true, v1.ListenerSetReasonAccepted, ""), condition(v1.ListenerSetConditionProgrammed, true, v1.ListenerSetReasonProgrammed, ""),
		}
	}
	return out
}

// served is how many of its listeners are served.
func (s *shelf) served() int {
	n := 0
	for _, l := range s.listeners {
		if l.broken() == "" {
			n++
		}
	}
	return n
}

// claim is a BackendTLSPolicy for one port of a Service.
type claim struct {
	policy object[v1.BackendTLSPolicySpec]
	exact  bool // by sectionName, which goes before a policy for the whole Service
}

// backendTLS puts BackendTLSPolicies on the ports of their Services. Of several for one port the older is in force.
func (x *index) backendTLS(d *dialect, attached []*attachment) {
	policies := slices.Clone(d.policies)
	slices.SortStableFunc(policies, func(a, b object[v1.BackendTLSPolicySpec]) int { return older(a.Created, a.Name, b.Created, b.Name) })
	taken := map[*model.ServicePort]claim{}
	for _, p := range policies {
		if p.refused { // it was reported
			continue
		}
		tls, resolved := x.originate(p)
		status := model.Status{Group: group, Kind: "BackendTLSPolicy", Name: p.Name, Generation: p.Generation}
		for i, t := range p.spec.TargetRefs {
			at := p.Spec().Field("targetRefs").Index(i)
			accepted := x.target(p, at, t, tls, taken)
			if accepted.Status && !resolved.Status {
				accepted = condition(v1.PolicyConditionAccepted, false, v1.BackendTLSPolicyReasonNoValidCACertificate, resolved.Message)
			}
			for _, ref := range x.ancestors(p, t, attached) {
				if !slices.ContainsFunc(status.Parents, func(s model.ParentStatus) bool { return string(s.Ref) == string(ref) }) {
					status.Parents = append(status.Parents, model.ParentStatus{Ref: ref, Conditions: []model.Condition{accepted, resolved}})
				}
			}
		}
		x.out.Statuses = append(x.out.Statuses, status)
	}
}

// originate returns the TLS of a policy. When no authority can be used it names a Secret that does not exist: connections
// then fail, as they must.
func (x *index) originate(p object[v1.BackendTLSPolicySpec]) (*plan.ClientTLS, model.Condition) {
	resolved := condition(v1.BackendTLSPolicyConditionResolvedRefs, true, v1.BackendTLSPolicyReasonResolvedRefs, "")
	in, at := p.spec.Validation, p.Spec().Field("validation")
	out := &plan.ClientTLS{SNI: string(in.Hostname)}
	for _, n := range in.SubjectAltNames {
		if n.Type == v1.URISubjectAltNameType {
			out.SubjectAltNames = append(out.SubjectAltNames, string(n.URI))
		} else {
			out.SubjectAltNames = append(out.SubjectAltNames, string(n.Hostname))
		}
	}
	if len(in.CACertificateRefs) == 0 { // wellKnownCACertificates: System
		return out, resolved
	}
	var texts []string
	for i, ref := range in.CACertificateRefs {
		full := reference{
			fromGroup: group, fromKind: "BackendTLSPolicy", fromNamespace: p.Name.Namespace, toGroup: string(ref.Group), toKind: string(ref.Kind),
			to: ident.Name{Namespace: p.Name.Namespace, Name: string(ref.Name)},
		}
		text, reason, why := x.authority(at.Field("caCertificateRefs").Index(i), full, manifest.CodeBackendTLS)
		if reason == "" {
			texts = append(texts, text)
		} else if resolved.Status {
			resolved.Status, resolved.Reason, resolved.Message = false, reason, why
		}
	}
	if len(texts) > 0 {
		out.Authorities = x.keepAuthorities(p.Object, "authorities", texts)
	} else {
		out.Authorities = p.Name.Namespace + "/backendtlspolicy:" + p.Name.Name + ":none"
	}
	return out, resolved
}

// target puts a policy on the ports that it is for.
func (x *index) target(p object[v1.BackendTLSPolicySpec], at manifest.Cursor, ref v1.LocalPolicyTargetReferenceWithSectionName, tls *plan.ClientTLS, taken map[*model.ServicePort]claim) model.Condition {
	fail := func(reason v1.PolicyConditionReason, hint, format string, args ...any) model.Condition {
		message := fmt.Sprintf(format, args...)
		x.Warning(manifest.CodeBackendTLS, at, hint, "%s: the policy is not in force there", message)
		return condition(v1.PolicyConditionAccepted, false, reason, message)
	}
	if ref.Group != "" || ref.Kind != "Service" {
		return fail(v1.PolicyReasonInvalid, "name a Service", "a target cannot be a %s of %q", ref.Kind, ref.Group)
	}
	s := x.services[ident.Name{Namespace: p.Name.Namespace, Name: string(ref.Name)}]
	if s == nil {
		return fail(v1.PolicyReasonTargetNotFound, "create it, or correct the name", "there is no Service %s in namespace %s", ref.Name, p.Name.Namespace)
	}
	section, found, got := value(ref.SectionName, ""), false, false
	var rival *claim
	for i := range s.Ports {
		port := &s.Ports[i]
		if section != "" && port.Name != section {
			continue
		}
		found = true
		if have, ok := taken[port]; ok && (have.exact || section == "") {
			rival = &have
			continue
		}
		got = true
		taken[port] = claim{policy: p, exact: section != ""}
		port.Originate = tls
	}
	switch {
	case !found:
		return fail(v1.PolicyReasonTargetNotFound, "", "Service %s has no port named %q", ref.Name, section)
	case !got:
		return fail(v1.PolicyReasonConflicted, "keep one of them", "BackendTLSPolicy %s is for the same ports, and goes before", rival.policy.Name)
	}
	return condition(v1.PolicyConditionAccepted, true, v1.PolicyReasonAccepted, "")
}

// ancestors returns the parents whose requests a policy concerns, as JSON: the Gateways whose routes lead to its target, or,
// when none does, the target itself.
func (x *index) ancestors(p object[v1.BackendTLSPolicySpec], t v1.LocalPolicyTargetReferenceWithSectionName, attached []*attachment) [][]byte {
	var doors []*door
	for _, a := range attached {
		if !a.accepted.Status || !a.route.leadsTo(ident.Name{Namespace: p.Name.Namespace, Name: string(t.Name)}) {
			continue
		}
		for _, l := range a.listeners {
			if !slices.Contains(doors, l.door) {
				doors = append(doors, l.door)
			}
		}
	}
	slices.SortFunc(doors, func(a, b *door) int { return a.Name.Compare(b.Name) })
	var out [][]byte
	add := func(group, kind string, name ident.Name) {
		g, k, ns := v1.Group(group), v1.Kind(kind), v1.Namespace(name.Namespace)
		if text, err := json.Marshal(v1.ParentReference{Group: &g, Kind: &k, Namespace: &ns, Name: v1.ObjectName(name.Name)}); err == nil {
			out = append(out, text)
		}
	}
	for _, g := range doors {
		add(group, "Gateway", g.Name)
	}
	if len(out) == 0 {
		add(string(t.Group), string(t.Kind), ident.Name{Namespace: p.Name.Namespace, Name: string(t.Name)})
	}
	return out
}

// leadsTo reports whether a backend of the route is the Service.
func (rt *route) leadsTo(service ident.Name) bool {
	is := func(b *v1.BackendObjectReference) bool {
		return value(b.Group, "") == "" && value(b.Kind, "Service") == "Service" && value(b.Namespace, rt.Name.Namespace) == service.Namespace && string(b.Name) == service.Name
	}
	for i := range rt.http {
		if slices.ContainsFunc(rt.http[i].BackendRefs, func(b v1.HTTPBackendRef) bool { return is(&b.BackendObjectReference) }) {
			return true
		}
	}
	for i := range rt.grpc {
		if slices.ContainsFunc(rt.grpc[i].BackendRefs, func(b v1.GRPCBackendRef) bool { return is(&b.BackendObjectReference) }) {
			return true
		}
	}
	for i := range rt.tls {
		if slices.ContainsFunc(rt.tls[i].BackendRefs, func(b v1.BackendRef) bool { return is(&b.BackendObjectReference) }) {
			return true
		}
	}
	for i := range rt.tcp {
		if slices.ContainsFunc(rt.tcp[i].BackendRefs, func(b v1.BackendRef) bool { return is(&b.BackendObjectReference) }) {
			return true
		}
	}
	return false
}

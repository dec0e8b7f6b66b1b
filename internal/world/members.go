package world

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// lead is what the services in front of a workload port say about it.
type lead struct {
	service  *model.Service
	protocol ident.Protocol
}

// leads returns which ports of wl the services lead to. The first service (by host) names the port in metrics; the first
// that declares a protocol decides it.
func (w *World) leads(services []*model.Service, wl *model.Workload) map[int]lead {
	out := map[int]lead{}
	for _, s := range services {
		for i := range s.Ports {
			port, ok := w.leadsTo(&s.Ports[i], wl)
			if !ok || s.Ports[i].Protocol == ident.UDP { // which is another port of the same number
				continue
			}
			l := out[port]
			if l.service == nil {
				l.service = s
			}
			if l.protocol == ident.Detect {
				l.protocol = s.Ports[i].Protocol
			}
			out[port] = l
		}
	}
	return out
}

// TargetPort returns the port of a workload that a service port leads to, by number or by name.
func TargetPort(p *model.ServicePort, wl *model.Workload) (int, bool) {
	for i := range wl.Ports {
		if p.TargetName != "" && wl.Ports[i].Name == p.TargetName || p.TargetName == "" && wl.Ports[i].Port == p.Target {
			return wl.Ports[i].Port, true
		}
	}
	if wl.AnyPort && p.TargetName == "" && p.Protocol != ident.UDP {
		return p.Target, p.Target != 0
	}
	return 0, false
}

// leadsTo is TargetPort, and knows the ports that a Sidecar puts in the place of the workload's too: a Service leads to the
// port that the sidecar offers (Istio, Sidecar.ingress).
func (w *asked) leadsTo(p *model.ServicePort, wl *model.Workload) (int, bool) {
	if port, ok := TargetPort(p, wl); ok {
		return port, true
	}
	if policy := w.SidecarFor(wl.Name.Namespace, wl.Labels); policy != nil {
		for i := range policy.Ingress {
			in := &policy.Ingress[i]
			if p.TargetName != "" && in.Name == p.TargetName || p.TargetName == "" && in.Port == p.Target {
				return in.Port, true
			}
		}
	}
	return 0, false
}

// inboundPorts returns what the sidecar of wl serves: its ports, or those that a Sidecar policy puts in their place.
func (w *World) inboundPorts(wl *model.Workload, in *model.Instance) []model.InboundPort {
	ns := w.namespace(wl.Name.Namespace)
	leads := w.leads(ns.selecting(wl.Labels), wl)
	policy := w.SidecarFor(wl.Name.Namespace, wl.Labels)
	var out []model.InboundPort
	serve := func(p model.InboundPort) {
		if p.Bind == "" && in.Captured == nil || p.App == "" && p.Port != 0 || p.Protocol == ident.UDP {
			return
		}
		l := leads[p.Port]
		if l.protocol != ident.Detect {
			p.Protocol = l.protocol // what clients were told is what they will speak
		}
		p.Service = l.service
		p.TLS, p.TLSOrigin = w.tlsMode(wl.Name.Namespace, wl.Labels, p.Port)
		if p.Pool == nil {
			p.Pool = w.pool(policy, wl, p.Service, p.Port)
		}
		p.Limits = w.limitsOf(wl, p.Port)
		out = append(out, p)
	}
	if policy != nil && policy.Ingress != nil {
		for i := range policy.Ingress {
			p := &policy.Ingress[i]
			serve(model.InboundPort{
				Port: p.Port, Protocol: p.Protocol, Bind: in.Inbound[p.Port], App: appOf(p, wl, in),
				Ends: p.TLS, Pool: p.Pool, Check: checkOf(wl, in), Origin: place(p.Origin, policy.Origin),
			})
		}
	} else {
		for i := range wl.Ports {
			p := &wl.Ports[i]
			serve(model.InboundPort{
				Port: p.Port, Protocol: p.Protocol, Bind: in.Inbound[p.Port], App: appAt(in, p.Port), Check: checkOf(wl, in), Origin: p.Origin,
			})
		}
	}
	if in.Captured != nil {
		for _, port := range w.undeclared(wl, leads, policy) {
			serve(model.InboundPort{Port: port, App: appAt(in, port), Origin: wl.Origin})
		}
	}
	slices.SortStableFunc(out, func(a, b model.InboundPort) int { return cmp.Compare(a.Port, b.Port) })
	return slices.CompactFunc(out, func(a, b model.InboundPort) bool { return a.Port == b.Port })
}

// checkOf returns how the sidecar asks its program: on the port that the workload names, wherever that was placed.
func checkOf(wl *model.Workload, in *model.Instance) *plan.HealthCheck {
	if wl.Check == nil || wl.CheckPort == 0 {
		return wl.Check
	}
	out := *wl.Check
	out.Port = wl.CheckPort
	if _, port, err := splitPort(in.App[wl.CheckPort]); err == nil {
		out.Port = port
	}
	return &out
}

// appOf returns where the program of an ingress port listens. A port that the workload has stands for where it is placed.
// Source: Istio, IstioIngressListener.defaultEndpoint.
func appOf(p *model.IngressPort, wl *model.Workload, in *model.Instance) string {
	if p.App == "" {
		return appAt(in, p.Port)
	}
	if strings.HasPrefix(p.App, plan.UnixPrefix) {
		return p.App
	}
	host, number, err := splitPort(p.App)
	if err != nil {
		return ""
	}
	if app := in.App[number]; app != "" {
		return app
	}
	if in.Captured != nil && (host == "0.0.0.0" || host == "::") {
		return appAt(in, number)
	}
	if host == "0.0.0.0" || host == "::" {
		if wl.Address == "" {
			return ""
		}
		host = wl.Address
	}
	return joinPort(host, number)
}

func splitPort(s string) (host string, port int, err error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return "", 0, err
	}
	return a.Addr().String(), int(a.Port()), nil
}

func joinPort(host string, port int) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(port)
}

// pool returns the connection pool towards the program: the Sidecar's, else that of the DestinationRule for the service
// as its own namespace sees it. Source: Istio, Sidecar.inboundConnectionPool.
func (w *World) pool(policy *model.SidecarPolicy, wl *model.Workload, s *model.Service, port int) *model.TrafficPolicy {
	if policy != nil && policy.Inbound != nil {
		return policy.Inbound
	}
	if s == nil {
		return nil
	}
	d := w.PolicyFor(wl.Name.Namespace, nil, s)
	if d == nil || d.Traffic == nil {
		return nil
	}
	for i := range s.Ports {
		if target, ok := w.leadsTo(&s.Ports[i], wl); ok && target == port {
			for j := range d.Traffic.Ports {
				if d.Traffic.Ports[j].Port == s.Ports[i].Port {
					return &d.Traffic.Ports[j].Traffic
				}
			}
			break
		}
	}
	return d.Traffic
}

// limitsOf returns the RateLimits of all requests to a port of wl. Of those that stand alone the oldest counts.
func (w *World) limitsOf(wl *model.Workload, port int) []string {
	var out []string
	alone := false
	for _, l := range w.namespace(wl.Name.Namespace).limits {
		if !model.HasLabels(wl.Labels, l.Selector) || !limitsPort(l, wl, port) || l.Alone && alone {
			continue
		}
		alone = alone || l.Alone
		out = append(out, l.Limit.Name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func limitsPort(l *model.RateLimit, wl *model.Workload, port int) bool {
	if l.PortName == "" {
		return l.Port == 0 || l.Port == port
	}
	return slices.ContainsFunc(wl.Ports, func(p model.WorkloadPort) bool { return p.Name == l.PortName && p.Port == port })
}

// membersOf decides who serves s.
func (w *World) membersOf(s *model.Service) []*model.Member {
	if s.Alias != "" || s.Resolution == model.ByRequest {
		return nil // it is where its name leads
	}
	var out []*model.Member
	for _, wl := range w.selected(s.Name.Namespace, s.Selector) {
		in := w.instances.get(wl.Name)
		if in == nil || !in.Ready && !s.NotReady {
			continue
		}
		if m := w.member(s, wl); m != nil {
			out = append(out, m)
		}
	}
	own := w.writtenFor(s)
	if len(own) == 0 && s.Selector == nil && (s.Resolution == model.ByDNS || s.Resolution == model.ByDNSFirst) && !strings.HasPrefix(s.Host, "*") {
		own = []written{{ServiceEndpoint: &model.ServiceEndpoint{Address: s.Host, Origin: s.Origin}}}
	}
	if len(own) == 0 {
		return out
	}
	taken := map[string]bool{} // a workload may be written down once more (EndpointSlice of a Service with a selector)
	for _, m := range out {
		for _, p := range m.Ports {
			taken[p.Address] = true
		}
		if in := w.instances.get(m.Workload); in != nil {
			for _, addr := range in.App {
				taken[addr] = true
			}
		}
	}
	for _, e := range own {
		if m := writtenMember(s, &e, taken); m != nil {
			out = append(out, m)
		}
	}
	return out
}

// writtenMember returns an endpoint that was written down as a member of s, or nil when it serves none of its ports.
func writtenMember(s *model.Service, e *written, taken map[string]bool) *model.Member {
	if e.NotReady {
		return nil
	}
	if !reachable(s, e.Address) {
		return nil // Check says so
	}
	unix := strings.HasPrefix(e.Address, plan.UnixPrefix)
	m := &model.Member{
		Labels: e.labels, Identity: e.Identity, Locality: e.Locality, Weight: e.Weight,
		Describe: describe(ident.Name{Namespace: s.Name.Namespace, Name: s.Name.Name}, e.labels),
	}
	switch {
	case s.External:
		m.Identity = ident.Identity{} // MESH_EXTERNAL: never mesh TLS
	case !m.Identity.IsZero():
		m.Identity = expected(s.SubjectAltNames, m.Identity)
	}
	if s.Headless && e.Hostname != "" {
		m.Host = e.Hostname + "." + s.Host
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		port, ok := e.Ports[p.Name]
		if !ok {
			if p.TargetName != "" || e.named {
				continue
			}
			port = cmp.Or(p.Target, p.Port)
		}
		addr := e.Address
		if !unix {
			addr = joinPort(addr, port)
		}
		if p.Protocol == ident.UDP || taken[addr] && m.Ports == nil {
			continue
		}
		m.Ports = append(m.Ports, model.MemberPort{Port: p.Port, Address: addr, Protocol: p.Protocol})
	}
	if m.Ports == nil {
		return nil
	}
	for _, p := range m.Ports {
		taken[p.Address] = true
	}
	slices.SortFunc(m.Ports, func(a, b model.MemberPort) int { return cmp.Compare(a.Port, b.Port) })
	return m
}

// reachable reports whether an endpoint of s can be at an address: a name where names are resolved, a unix socket where they are not,
// an IP anywhere.
func reachable(s *model.Service, address string) bool {
	resolves := s.Resolution == model.ByDNS || s.Resolution == model.ByDNSFirst
	if strings.HasPrefix(address, plan.UnixPrefix) {
		return !resolves
	}
	_, err := netip.ParseAddr(address)
	return err == nil || resolves
}

// expected returns who an endpoint must prove to be in mesh TLS: one of the SPIFFE ids that names, the subjectAltNames of its
// ServiceEntry, hold, if there are any, else the identity of its own. That has no trust domain which somebody wrote: a name of the same
// account says which it is of. Source: Istio, ServiceEntry.subjectAltNames.
func expected(names []string, own ident.Identity) ident.Identity {
	var first, same ident.Identity
	for _, name := range names {
		id, err := ident.ParseIdentity(name)
		switch {
		case err != nil: // a name of a certificate that is not the mesh's
			continue
		case id == own:
			return own
		case same.IsZero() && id.Namespace == own.Namespace && id.ServiceAccount == own.ServiceAccount:
			same = id
		case first.IsZero():
			first = id
		}
	}
	return cmp.Or(same, first, own)
}

// member returns wl as a member of s, or nil when it serves none of the service's ports.
func (w *World) member(s *model.Service, wl *model.Workload) *model.Member {
	var ports []model.MemberPort
	for i := range s.Ports {
		target, ok := w.leadsTo(&s.Ports[i], wl)
		if !ok || s.Ports[i].Protocol == ident.UDP {
			continue
		}
		for _, in := range w.inbound.get(wl.Name) {
			if in.Port == target {
				ports = append(ports, model.MemberPort{
					Port: s.Ports[i].Port, Address: dialed(w.instances.get(wl.Name), &in), Plaintext: in.TLS == plan.TLSDisable, Protocol: in.Protocol,
				})
			}
		}
	}
	if ports == nil {
		return nil
	}
	slices.SortFunc(ports, func(a, b model.MemberPort) int { return cmp.Compare(a.Port, b.Port) })
	m := &model.Member{
		Workload: wl.Name, Labels: wl.Labels, Identity: wl.Identity, Describe: describe(wl.Name, wl.Labels), Ports: ports,
		Locality: wl.Locality, Weight: wl.Weight,
	}
	if s.Headless {
		m.Host = ownHost(s, wl, w.instances.get(wl.Name))
	}
	return m
}

// sameMember reports whether clients see no difference between two members.
func sameMember(a, b *model.Member) bool {
	return a == b || a.Workload == b.Workload && a.Identity == b.Identity && a.Describe == b.Describe && a.Locality == b.Locality &&
		a.Weight == b.Weight && a.Host == b.Host && maps.Equal(a.Labels, b.Labels) && slices.Equal(a.Ports, b.Ports)
}

// sameButReady reports whether the sidecar of a workload has the same to do in both.
func sameButReady(a, b *model.Instance) bool {
	return a.Forward == b.Forward && maps.Equal(a.Inbound, b.Inbound) && maps.Equal(a.App, b.App) && maps.Equal(a.Local, b.Local) &&
		(a.Captured == b.Captured || a.Captured != nil && b.Captured != nil && *a.Captured == *b.Captured)
}

package world

import (
	"cmp"
	"slices"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// indexMembers decides what each sidecar serves and who the members of each service are.
func (w *World) indexMembers() {
	w.inbound = make(map[ident.Name][]model.InboundPort, len(w.instances))
	w.members = make(map[string][]*model.Member, len(w.services))
	byNamespace := map[string][]*model.Workload{}
	for _, wl := range w.workloads {
		byNamespace[wl.Name.Namespace] = append(byNamespace[wl.Name.Namespace], wl)
	}
	leads := map[ident.Name]map[int]lead{}
	for _, s := range w.services {
		for _, wl := range byNamespace[s.Name.Namespace] {
			if selects(s.Selector, wl.Labels) {
				noteLeads(leads, s, wl)
			}
		}
	}
	for name, in := range w.instances {
		if wl := w.byName[name]; wl != nil {
			w.inbound[name] = w.inboundPorts(wl, in, leads[name])
		}
	}
	for _, s := range w.services {
		for _, wl := range byNamespace[s.Name.Namespace] {
			in := w.instances[wl.Name]
			if in == nil || !in.Ready || !selects(s.Selector, wl.Labels) {
				continue
			}
			if m := w.member(s, wl); m != nil {
				w.members[s.Host] = append(w.members[s.Host], m)
			}
		}
	}
}

// lead is what the services in front of a workload port say about it.
type lead struct {
	service  *model.Service
	protocol ident.Protocol
}

// noteLeads records which ports of wl the service s leads to. The first service (by host) names the port in metrics; the
// first that declares a protocol decides it.
func noteLeads(leads map[ident.Name]map[int]lead, s *model.Service, wl *model.Workload) {
	for i := range s.Ports {
		port, ok := TargetPort(&s.Ports[i], wl)
		if !ok {
			continue
		}
		if leads[wl.Name] == nil {
			leads[wl.Name] = map[int]lead{}
		}
		l := leads[wl.Name][port]
		if l.service == nil {
			l.service = s
		}
		if l.protocol == ident.Detect {
			l.protocol = s.Ports[i].Protocol
		}
		leads[wl.Name][port] = l
	}
}

// TargetPort returns the port of a workload that a service port leads to, by number or by name.
func TargetPort(p *model.ServicePort, wl *model.Workload) (int, bool) {
	for i := range wl.Ports {
		if p.TargetName != "" && wl.Ports[i].Name == p.TargetName || p.TargetName == "" && wl.Ports[i].Port == p.Target {
			return wl.Ports[i].Port, true
		}
	}
	return 0, false
}

func (w *World) inboundPorts(wl *model.Workload, in *model.Instance, leads map[int]lead) []model.InboundPort {
	var out []model.InboundPort
	for i := range wl.Ports {
		p := &wl.Ports[i]
		bind, app := in.Inbound[p.Port], in.App[p.Port]
		if bind == "" || app == "" || p.Protocol == ident.UDP {
			continue
		}
		protocol := p.Protocol
		if l := leads[p.Port]; l.protocol != ident.Detect && l.protocol != ident.UDP {
			protocol = l.protocol // what clients were told is what they will speak
		}
		mode, origin := w.tlsMode(wl.Name.Namespace, wl.Labels, p.Port)
		out = append(out, model.InboundPort{
			Port: p.Port, Protocol: protocol, Bind: bind, App: app,
			TLS: mode, TLSOrigin: origin, Service: leads[p.Port].service, Origin: p.Origin,
		})
	}
	slices.SortFunc(out, func(a, b model.InboundPort) int { return cmp.Compare(a.Port, b.Port) })
	return out
}

// member returns wl as a member of s, or nil when it serves none of the service's ports.
func (w *World) member(s *model.Service, wl *model.Workload) *model.Member {
	var ports []model.MemberPort
	for i := range s.Ports {
		target, ok := TargetPort(&s.Ports[i], wl)
		if !ok {
			continue
		}
		for _, in := range w.inbound[wl.Name] {
			if in.Port == target {
				ports = append(ports, model.MemberPort{
					Port: s.Ports[i].Port, Address: in.Bind, Plaintext: in.TLS == plan.TLSDisable, Protocol: in.Protocol,
				})
			}
		}
	}
	if ports == nil {
		return nil
	}
	slices.SortFunc(ports, func(a, b model.MemberPort) int { return cmp.Compare(a.Port, b.Port) })
	return &model.Member{
		Workload: wl.Name, Labels: wl.Labels, Identity: wl.Identity, Describe: describe(wl.Name, wl.Labels), Ports: ports,
	}
}

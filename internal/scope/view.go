package scope

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/world"
)

// views are the egress listeners of a Sidecar. A port belongs to the first that names it, the rest to those without port.
type views struct {
	policy *model.SidecarPolicy
	all    []view
}

type view struct {
	*model.EgressView
	rules []viewRule
}

// viewRule is "namespace/host".
type viewRule struct {
	namespace string // "*" any, "~" none
	host      string
	not       bool // "~namespace/host": takes out
}

func viewsOf(p *model.SidecarPolicy) *views {
	v := &views{policy: p}
	for i := range p.Egress {
		e := view{EgressView: &p.Egress[i]}
		for _, text := range e.Hosts {
			namespace, host, ok := strings.Cut(text, "/")
			if !ok {
				namespace, host = "*", text
			}
			rule := viewRule{namespace: namespace, host: host}
			if rest, not := strings.CutPrefix(namespace, "~"); not && rest != "" {
				rule.namespace, rule.not = rest, true
			}
			e.rules = append(e.rules, rule)
		}
		v.all = append(v.all, e)
	}
	return v
}

// shows reports whether the listener shows something of a namespace with a host. overlap asks whether it shows part of a
// wildcard host too.
func (v *view) shows(namespace, host string, overlap bool) bool {
	shown := false
	for _, r := range v.rules {
		if r.namespace != "*" && r.namespace != namespace {
			continue
		}
		switch {
		case r.not:
			if ident.HostCovers(r.host, host) || r.host == host {
				return false
			}
		case ident.HostCovers(r.host, host) || r.host == host:
			shown = true
		case overlap:
			if _, both := ident.HostOverlap(r.host, host); both {
				shown = true
			}
		}
	}
	return shown
}

// service returns the ports of s that are in view; none when it is not.
func (v *views) service(s *model.Service) []model.ServicePort {
	var out []model.ServicePort
	for _, p := range s.Ports {
		if v.port(s, p.Port) {
			out = append(out, p)
		}
	}
	return out
}

func (v *views) port(s *model.Service, port int) bool {
	if i := slices.IndexFunc(v.all, func(e view) bool { return e.Port == port }); i >= 0 {
		return v.all[i].shows(s.Name.Namespace, s.Host, false)
	}
	return slices.ContainsFunc(v.all, func(e view) bool { return e.Port == 0 && e.shows(s.Name.Namespace, s.Host, false) })
}

// routing reports whether a routing is in view: the Sidecar imports those of a namespace for hosts that it lists.
func (v *views) routing(r *model.Routing) bool {
	return slices.ContainsFunc(v.all, func(e view) bool {
		return slices.ContainsFunc(r.Hosts, func(h string) bool { return e.shows(r.Name.Namespace, h, true) })
	})
}

// exact returns the hosts that the views list when they list no namespace as a whole, and so nothing else can be in view.
func (v *views) exact() ([]string, bool) {
	var out []string
	for _, e := range v.all {
		for _, r := range e.rules {
			switch {
			case r.not || r.namespace == "~":
			case strings.HasPrefix(r.host, "*"):
				return nil, false
			default:
				out = append(out, r.host)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), true
}

// namespaces returns the namespaces that the views are about; false when it is all of them.
func (v *views) namespaces() ([]string, bool) {
	var out []string
	for _, e := range v.all {
		for _, r := range e.rules {
			switch {
			case r.not || r.namespace == "~":
			case r.namespace == "*":
				return nil, false
			default:
				out = append(out, r.namespace)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), true
}

// candidates returns the services that may be in view, sorted by host: as few as can be told without looking at each.
func (v *views) candidates(w *world.World) []*model.Service {
	var out []*model.Service
	if hosts, ok := v.exact(); ok {
		for _, h := range hosts {
			out = append(out, w.ServicesOf(h)...)
		}
		return out
	}
	names, ok := v.namespaces()
	if !ok {
		return w.Services()
	}
	for _, n := range names {
		out = append(out, w.ServicesIn(n)...)
	}
	slices.SortStableFunc(out, func(a, b *model.Service) int { return cmp.Compare(a.Host, b.Host) })
	return out
}

// routings returns the routings that may be in view, oldest first.
func (v *views) routings(w *world.World) []*model.Routing {
	var out []*model.Routing
	if hosts, ok := v.exact(); ok {
		for _, h := range hosts {
			out = append(out, w.RoutingsOf(h)...)
		}
		out = append(out, w.WideRoutings()...)
	} else if names, ok := v.namespaces(); ok {
		for _, n := range names {
			out = append(out, w.RoutingsIn(n)...)
		}
	} else {
		return w.Routings()
	}
	slices.SortStableFunc(out, world.Older)
	return slices.Compact(out)
}

// viewed returns the services in view, and those that only rules lead to, sorted by host.
func (c *client) viewed(w *world.World, s *model.Scope) []model.ScopedService {
	var out []model.ScopedService
	seen := map[string]bool{}
	for _, svc := range c.views.candidates(w) {
		if seen[svc.Host] || !world.VisibleIn(svc.ExportTo, c.namespace) {
			continue
		}
		ports := c.views.service(svc)
		if ports == nil && (len(svc.Ports) > 0 || !c.views.port(svc, 0)) {
			continue
		}
		if best, _ := w.ServiceFor(c.namespace, svc.Host); best != svc && best != nil && c.views.service(best) != nil {
			continue // the one that means more to the client is in view too
		}
		seen[svc.Host] = true
		scoped := c.scoped(w, svc)
		if len(ports) != len(svc.Ports) {
			part := *svc
			part.Ports = ports
			scoped.Service = &part
		}
		out = append(out, scoped)
	}
	// What rules, splits and profiles lead to is there for them alone. Source: Istio, Sidecar ("imported by dependency").
	need := func(host string) {
		if seen[host] {
			return
		}
		if svc, ok := w.ServiceFor(c.namespace, host); ok {
			seen[host] = true
			scoped := c.scoped(w, svc)
			scoped.Indirect = true
			out = append(out, scoped)
		}
	}
	for i := range s.Routings {
		targets(&s.Routings[i], need)
	}
	for i := 0; i < len(out); i++ {
		if out[i].Indirect {
			continue // a split does not lead to another
		}
		if p := out[i].Profile; p != nil {
			for _, b := range p.Overrides {
				need(b.Host)
			}
		}
		if p := out[i].Split; p != nil {
			for _, b := range p.Backends {
				need(b.Host)
			}
		}
		if out[i].Alias != "" {
			need(out[i].Alias)
		}
	}
	slices.SortFunc(out, func(a, b model.ScopedService) int { return cmp.Compare(a.Host, b.Host) })
	return out
}

// targets calls f with each host that rules lead to.
func targets(r *model.Routing, f func(string)) {
	forward := func(all []model.WeightedDestination) {
		for i := range all {
			f(all[i].Host)
			for j := range all[i].Mirrors {
				f(all[i].Mirrors[j].Host)
			}
		}
	}
	for i := range r.HTTP {
		forward(r.HTTP[i].Forward)
		for j := range r.HTTP[i].Mirrors {
			f(r.HTTP[i].Mirrors[j].Host)
		}
	}
	for i := range r.TCP {
		forward(r.TCP[i].Forward)
	}
	for i := range r.TLS {
		forward(r.TLS[i].Forward)
	}
}

// own returns the listeners that have an address of their own, with the services that they lead to.
func (v *views) own(services []model.ScopedService) []model.PortView {
	var out []model.PortView
	for i := range v.all {
		e := &v.all[i]
		if e.Bind == "" || e.Port == 0 {
			continue
		}
		p := model.PortView{Bind: bindOf(e.Bind, e.Port), Port: e.Port, Protocol: e.Protocol, Origin: e.Origin}
		for j := range services {
			s := &services[j]
			if !s.Indirect && e.shows(s.Name.Namespace, s.Host, false) && slices.ContainsFunc(s.Ports, func(q model.ServicePort) bool { return q.Port == e.Port }) {
				p.Hosts = append(p.Hosts, s.Host)
			}
		}
		out = append(out, p)
	}
	return out
}

func bindOf(ip string, port int) string {
	if strings.Contains(ip, ":") {
		ip = "[" + ip + "]"
	}
	return ip + ":" + strconv.Itoa(port)
}

package world

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// indexServices unites the services of one namespace and host that are let out to the same namespaces, else what is
// private would leak, and orders the others.
func (w *asked) indexServices() {
	type key struct{ namespace, host, exportTo string }
	first := map[key]int{}
	for _, s := range oldestFirst(w.config.Services, func(s *model.Service) *model.Meta { return &s.Meta }) {
		k := key{s.Name.Namespace, s.Host, "*"}
		if !slices.Contains(s.ExportTo, "*") && len(s.ExportTo) > 0 {
			k.exportTo = strings.Join(slices.Sorted(slices.Values(s.ExportTo)), ",")
		}
		if s.Alias != "" && len(s.Ports) == 0 {
			s = portless(s)
		}
		if i, ok := first[k]; ok {
			if have := w.services[i]; have.Name != s.Name || have.Origin.Kind != s.Origin.Kind {
				w.services[i] = unite(have, s)
			}
			continue
		}
		first[k] = len(w.services)
		w.services = append(w.services, s)
	}
	slices.SortFunc(w.services, func(a, b *model.Service) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Name.Namespace, b.Name.Namespace))
	})
	for _, s := range w.services {
		w.hosts[s.Host] = append(w.hosts[s.Host], s)
		ns := w.in(s.Name.Namespace)
		ns.services = append(ns.services, s)
		if l, ok := firstLabel(s.Selector); ok {
			ns.bySelector[l] = append(ns.bySelector[l], s)
		}
	}
	for _, same := range w.hosts {
		slices.SortStableFunc(same, func(a, b *model.Service) int {
			switch x, y := inCluster(a), inCluster(b); {
			case x && !y:
				return -1
			case y && !x:
				return 1
			}
			return a.Created.Compare(b.Created)
		})
	}
}

// portless returns an ExternalName without ports with those that people mean: DNS knows none, but a proxy is asked for one.
func portless(s *model.Service) *model.Service {
	out := *s
	out.Ports = []model.ServicePort{
		{Name: "http", Port: 80, Target: 80, Protocol: ident.HTTP, Origin: s.Origin}, {Name: "https", Port: 443, Target: 443, Protocol: ident.TLS, Origin: s.Origin},
	}
	return &out
}

// inCluster reports whether s has the name that the cluster itself gives to a Service.
func inCluster(s *model.Service) bool {
	return s.Resolution == model.BySelector && s.Host == ident.ServiceHost(s.Name)
}

// unite adds what second says about the same host in the same namespace to first. A Service of the cluster takes nothing
// but names of certificates; ServiceEntries are united port by port and endpoint by endpoint.
// Source: Istio, ServiceEntry ("multiple ServiceEntries for one host").
func unite(first, second *model.Service) *model.Service {
	if inCluster(second) && !inCluster(first) {
		first, second = second, first
	}
	out := *first
	for _, name := range second.SubjectAltNames {
		if !slices.Contains(out.SubjectAltNames, name) {
			out.SubjectAltNames = append(slices.Clip(out.SubjectAltNames), name)
		}
	}
	if inCluster(first) {
		return &out
	}
	for _, p := range second.Ports {
		if !slices.ContainsFunc(out.Ports, func(q model.ServicePort) bool { return q.Port == p.Port }) {
			out.Ports = append(slices.Clip(out.Ports), p)
		}
	}
	for _, a := range second.Addresses {
		if !slices.Contains(out.Addresses, a) {
			out.Addresses = append(slices.Clip(out.Addresses), a)
		}
	}
	if first.Resolution == second.Resolution {
		out.Endpoints = append(slices.Clip(out.Endpoints), second.Endpoints...)
	}
	return &out
}

// firstLabel returns the label of a selector by which it is found: what has all of its labels has this one.
func firstLabel(selector map[string]string) (label, bool) {
	if len(selector) == 0 {
		return label{}, false
	}
	k := slices.Min(slices.Collect(maps.Keys(selector)))
	return label{k, selector[k]}, true
}

// selecting returns the services of a namespace whose selector takes labels, sorted by host.
func (n *namespace) selecting(labels map[string]string) []*model.Service {
	var out []*model.Service
	for k, v := range labels {
		for _, s := range n.bySelector[label{k, v}] {
			if model.HasLabels(labels, s.Selector) {
				out = append(out, s)
			}
		}
	}
	slices.SortFunc(out, func(a, b *model.Service) int { return cmp.Compare(a.Host, b.Host) })
	return out
}

// Services returns every service, sorted by host, then namespace.
func (w *World) Services() []*model.Service { return w.services }

// ServicesOf returns the services with a host, one for each namespace that has one: the cluster's own first, then the
// oldest.
func (w *World) ServicesOf(host string) []*model.Service { return w.hosts[host] }

// ServicesIn returns the services of a namespace, sorted by host.
func (w *World) ServicesIn(namespace string) []*model.Service { return w.namespace(namespace).services }

// Service returns the service with a canonical host: that of the cluster, else the oldest.
func (w *asked) Service(host string) (*model.Service, bool) {
	if all := w.hosts[host]; len(all) > 0 {
		return all[0], true
	}
	return nil, false
}

// ServiceFor returns the service that a host means for clients of a namespace, among those that they may see: their own,
// else that of the cluster, else the oldest.
func (w *asked) ServiceFor(namespace, host string) (*model.Service, bool) {
	var found *model.Service
	for _, s := range w.hosts[host] {
		switch {
		case !VisibleIn(s.ExportTo, namespace):
		case s.Name.Namespace == namespace:
			return s, true
		case found == nil:
			found = s
		}
	}
	return found, found != nil
}

// serviceOf returns the service with a host that stands in a namespace; nil none does.
func (w *asked) serviceOf(host, namespace string) *model.Service {
	for _, s := range w.hosts[host] {
		if s.Name.Namespace == namespace {
			return s
		}
	}
	return nil
}

// Members returns the members of the service with a host that Service returns.
func (w *World) Members(host string) []*model.Member {
	s, ok := w.Service(host)
	if !ok {
		return nil
	}
	return w.MembersOf(s)
}

// MembersOf returns who serves a service: ready workloads that it selects, sorted by name, then endpoints that were
// written down.
func (w *World) MembersOf(s *model.Service) []*model.Member { return w.members.get(s) }

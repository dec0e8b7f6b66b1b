package control

import (
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/scope"
)

// subscribers is who must hear of a change, by what it is about. Proxies without a Sidecar see all of the mesh and stand in one
// set; the others stand where their Sidecar and its rules lead.
type subscribers struct {
	all         set
	byHost      map[string]set // services in scope, and hosts that the Sidecar lists
	byNamespace map[string]set
	keys        map[ident.Name]*interest
}

type set map[ident.Name]bool

// interest is where a proxy stands in the index.
type interest struct {
	all               bool
	hosts, namespaces []string
}

func newSubscribers() subscribers {
	return subscribers{all: set{}, byHost: map[string]set{}, byNamespace: map[string]set{}, keys: map[ident.Name]*interest{}}
}

// put makes a proxy stand where its interest and its scope say.
func (x *subscribers) put(node ident.Name, in scope.Interest, s *model.Scope) {
	now := &interest{all: in.All}
	if !in.All {
		now.namespaces = in.Namespaces
		now.hosts = append(now.hosts, in.Hosts...)
		for i := range s.Services {
			now.hosts = append(now.hosts, s.Services[i].Host)
		}
	}
	x.remove(node)
	x.keys[node] = now
	if now.all {
		x.all[node] = true
	}
	for _, h := range now.hosts {
		enter(x.byHost, h, node)
	}
	for _, n := range now.namespaces {
		enter(x.byNamespace, n, node)
	}
}

func (x *subscribers) remove(node ident.Name) {
	old := x.keys[node]
	if old == nil {
		return
	}
	delete(x.keys, node)
	delete(x.all, node)
	for _, h := range old.hosts {
		leave(x.byHost, h, node)
	}
	for _, n := range old.namespaces {
		leave(x.byNamespace, n, node)
	}
}

func enter(m map[string]set, key string, node ident.Name) {
	if m[key] == nil {
		m[key] = set{}
	}
	m[key][node] = true
}

func leave(m map[string]set, key string, node ident.Name) {
	delete(m[key], node)
	if len(m[key]) == 0 {
		delete(m, key)
	}
}

// ofService calls f with each proxy that may see the service with a host, once.
func (x *subscribers) ofService(host string, f func(ident.Name)) {
	for node := range x.all {
		f(node)
	}
	for node := range x.byHost[host] {
		f(node)
	}
}

// ofRouting calls f with each proxy to which a routing may say something, perhaps more than once. Who is meant by a delegate is
// known to the routings that refer to it; and a host with a wildcard may be any.
func (x *subscribers) ofRouting(r *model.Routing, f func(ident.Name)) {
	wide := r.Delegate
	for _, h := range r.Hosts {
		wide = wide || h[0] == '*'
	}
	visit := func(s set) {
		for node := range s {
			f(node)
		}
	}
	if wide {
		for node := range x.keys {
			f(node)
		}
		return
	}
	visit(x.all)
	visit(x.byNamespace[r.Name.Namespace])
	for _, h := range r.Hosts {
		visit(x.byHost[h])
	}
}

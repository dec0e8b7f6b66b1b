package explain

import (
	"fmt"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// unseen says why the sender does not know a host that the mesh has; "" when the mesh has none.
func (x *walker) unseen() string {
	from := &x.node.plan.Node
	if from.Role != plan.Sidecar {
		return "" // a gateway has the hosts that its own objects name
	}
	for _, host := range meant(string(x.req.Host), from.Name.Namespace) {
		if !x.mesh.hosts[host] {
			continue
		}
		if x.node.sees(host) {
			why := fmt.Sprintf("%s has no port %d", host, portOf(x.req))
			if !x.req.opaque {
				why += " that takes requests"
			}
			if !from.View.IsZero() {
				why += ", or none that " + from.View.String() + " shows"
			}
			return why
		}
		sidecar := "the egress of " + from.View.String() + " does not show"
		exported := fmt.Sprintf("is not exported to namespace %s (exportTo)", from.Name.Namespace)
		shown, open := x.mesh.shown(host, from.Name.Namespace)
		switch {
		case from.View.IsZero() || open && !shown:
			return "the mesh has " + host + ", which " + exported
		case shown:
			return "the mesh has " + host + ", which " + sidecar
		}
		return "the mesh has " + host + ", which " + sidecar + ", or which " + exported
	}
	return ""
}

// shown reports whether a proxy in a namespace sees a host, of those there that no Sidecar object restricts; some: there is one.
func (m *Mesh) shown(host, namespace string) (shown, some bool) {
	for _, n := range m.nodes {
		if of := &n.plan.Node; of.Role == plan.Sidecar && of.Name.Namespace == namespace && of.View.IsZero() {
			return n.sees(host), true
		}
	}
	return false, false
}

// blockedText says why a host is blocked.
func (x *walker) blockedText() string {
	if why := x.unseen(); why != "" {
		return why + ", and its policy blocks what the workload does not see"
	}
	return "the mesh does not know this host, and its policy blocks others"
}

// meant returns the hosts that a client of a namespace may mean: what it says, and the Service with that short name.
func meant(host, namespace string) []string {
	name, rest, long := strings.Cut(host, ".")
	if long {
		namespace = strings.TrimSuffix(rest, ".svc")
	}
	return []string{host, ident.ServiceHost(ident.Name{Namespace: namespace, Name: name})}
}

// sees reports whether a service with the host is in the plan, for requests to it.
func (n *node) sees(host string) bool {
	for _, c := range n.clusters {
		if c.Host == host && c.Service.Host == host {
			return true
		}
	}
	return false
}

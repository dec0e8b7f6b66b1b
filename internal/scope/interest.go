package scope

import (
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/world"
)

// Interest is an upper bound of what a proxy may see, for an index of who must hear of a change: All of the mesh, or the
// Hosts that its Sidecar lists, or everything in Namespaces. What rules lead to besides is in its Scope.
type Interest struct {
	All               bool
	Hosts, Namespaces []string
}

// InterestOf returns the interest of a proxy.
func InterestOf(w *world.World, node ident.Name) Interest {
	c, ok := clientOf(w, node)
	if !ok || c.views == nil {
		return Interest{All: true}
	}
	if hosts, ok := c.views.exact(); ok {
		return Interest{Hosts: hosts}
	}
	if names, ok := c.views.namespaces(); ok {
		return Interest{Namespaces: names}
	}
	return Interest{All: true}
}

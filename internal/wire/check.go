package wire

import (
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// Check returns the pieces of p that refer to pieces which are not there. A proxy must not run such a plan: a listener
// without a policy that it names would be open. A secret that is missing is no reason: plan.Secret says what then is closed.
// Nor is the limit of a route, which closes that route. old was checked before, or is empty: of what it has, too, only what may have
// changed is opened.
func Check(p, old *packed.Plan) []Rejection {
	c := checker{p: p}
	for i := range p.Listeners {
		l := &p.Listeners[i]
		ref := Ref{KindListener, l.Name}
		if l.Routes != "" {
			c.routes(ref, l.Routes)
		}
		c.destinations(ref, l.TCP)
		for _, name := range l.Policies {
			if _, ok := find(p.Policies, name, func(v *plan.Policy) string { return v.Name }); !ok {
				c.missing(ref, Ref{KindPolicy, name})
			}
		}
		c.limits(ref, l.Limits)
		c.tcpRoutes(ref, l.TCPRoutes)
		c.serverNames(ref, l.ServerNames)
		for j := range l.Ports {
			if l.Ports[j].Routes != "" {
				c.routes(ref, l.Ports[j].Routes)
			}
			for k := range l.Ports[j].Hosts {
				h := &l.Ports[j].Hosts[k]
				c.destinations(ref, h.TCP)
				c.tcpRoutes(ref, h.TCPRoutes)
				c.serverNames(ref, h.ServerNames)
			}
		}
	}
	lost := fewer(p.Clusters, old.Clusters)
	for _, piece := range p.Routes {
		ref := Ref{KindRoutes, piece.Name()}
		if !lost && packed.Get(old.Routes, ref.Name) == piece {
			continue
		}
		for host := range packed.Hosts(piece) {
			h := host.Open()
			for k := range h.Routes {
				c.destinations(ref, h.Routes[k].Forward)
				for _, m := range h.Routes[k].Mirrors {
					c.cluster(ref, m.Cluster)
				}
			}
		}
	}
	for _, piece := range p.Endpoints {
		name := piece.Name()
		c.cluster(Ref{KindEndpoints, name}, name)
	}
	return c.bad
}

// fewer reports whether a name of old is not in pieces.
func fewer[T any](pieces, old []packed.Piece[T]) bool {
	if len(pieces) < len(old) {
		return true
	}
	for _, p := range old {
		name := p.Name()
		for len(pieces) > 0 && pieces[0].Name() < name {
			pieces = pieces[1:]
		}
		if len(pieces) == 0 || pieces[0].Name() != name {
			return true
		}
	}
	return false
}

type checker struct {
	p   *packed.Plan
	bad []Rejection
}

// missing blames each piece once, for the first reference that leads nowhere.
func (c *checker) missing(from, to Ref) {
	if n := len(c.bad); n > 0 && c.bad[n-1].Ref == from {
		return
	}
	c.bad = append(c.bad, Rejection{from, "it refers to " + to.String() + ", which is not in the plan"})
}

func (c *checker) routes(from Ref, name string) {
	if _, ok := packed.Find(c.p.Routes, name); !ok {
		c.missing(from, Ref{KindRoutes, name})
	}
}

func (c *checker) cluster(from Ref, name string) {
	if _, ok := packed.Find(c.p.Clusters, name); !ok {
		c.missing(from, Ref{KindCluster, name})
	}
}

func (c *checker) limits(from Ref, names []string) {
	for _, name := range names {
		if _, ok := find(c.p.Limits, name, func(v *plan.RateLimit) string { return v.Name }); !ok {
			c.missing(from, Ref{KindLimit, name})
		}
	}
}

func (c *checker) tcpRoutes(from Ref, rs []plan.TCPRoute) {
	for i := range rs {
		c.destinations(from, rs[i].Forward)
	}
}

func (c *checker) serverNames(from Ref, names []plan.ServerName) {
	for i := range names {
		n := &names[i]
		if n.Routes != "" {
			c.routes(from, n.Routes)
		}
		c.limits(from, n.Limits)
		c.destinations(from, n.TCP)
		c.tcpRoutes(from, n.TCPRoutes)
	}
}

func (c *checker) destinations(from Ref, ds []plan.Destination) {
	for i := range ds {
		if ds[i].Status == 0 || ds[i].Cluster != "" { // a share that is answered goes to none
			c.cluster(from, ds[i].Cluster)
		}
		for _, m := range ds[i].Mirrors {
			c.cluster(from, m.Cluster)
		}
	}
}

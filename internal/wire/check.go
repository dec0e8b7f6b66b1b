package wire

import (
	"github.com/malha-mesh/malha/internal/plan"
)

// Check returns the pieces of p that refer to pieces which are not there. A proxy must not run such a plan: a listener
// without a policy that it names would be open. A secret that is missing is no reason: plan.Secret says what then is closed.
// Nor is the limit of a route, which closes that route.
func Check(p *plan.Plan) []Rejection {
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
	for i := range p.Routes {
		ref := Ref{KindRoutes, p.Routes[i].Name}
		for j := range p.Routes[i].Hosts {
			h := &p.Routes[i].Hosts[j]
			for k := range h.Routes {
				c.destinations(ref, h.Routes[k].Forward)
				for _, m := range h.Routes[k].Mirrors {
					c.cluster(ref, m.Cluster)
				}
			}
		}
	}
	for i := range p.Endpoints {
		c.cluster(Ref{KindEndpoints, p.Endpoints[i].Cluster}, p.Endpoints[i].Cluster)
	}
	return c.bad
}

type checker struct {
	p   *plan.Plan
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
	if _, ok := find(c.p.Routes, name, func(v *plan.RouteTable) string { return v.Name }); !ok {
		c.missing(from, Ref{KindRoutes, name})
	}
}

func (c *checker) cluster(from Ref, name string) {
	if _, ok := find(c.p.Clusters, name, func(v *plan.Cluster) string { return v.Name }); !ok {
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
	}
}

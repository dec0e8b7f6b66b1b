package live

import (
	"fmt"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
)

// Fault is a part of the plan in force that is closed, or works less than it was asked to, because of what it refers to.
type Fault struct {
	Kind   string       `json:"kind"`  // of the piece: "listener" or "cluster"
	Piece  string       `json:"piece"` // its name
	Names  []string     `json:"names,omitempty"`
	Closed bool         `json:"closed,omitempty"` // false: it works, but for what Reason says
	Reason string       `json:"reason"`
	Origin ident.Origin `json:"origin,omitzero"`
}

// secure reads the secrets of the plan and makes the server's side of TLS for every server name, keeping from before what did
// not change. Whatever can't be used is closed.
func (b *built) secure(before *built, self trust.Source) {
	kept := make(map[string][]*trust.Edge)
	for sn, e := range before.edges {
		key := strings.Join(sn.Names, " ")
		kept[key] = append(kept[key], e)
	}
	b.secrets = trust.NewMaterials(b.plan.Secrets, before.secrets)
	b.edges, b.closed, b.auto = make(map[*plan.ServerName]*trust.Edge), make(map[*plan.ServerName]error), make(map[string]string)
	autos := false
	each := func(l *plan.Listener, names []plan.ServerName) {
		for i := range names {
			sn := &names[i]
			autos = autos || sn.Auto
			if sn.TLS != nil {
				b.secureName(l, sn, kept[strings.Join(sn.Names, " ")], self)
			}
		}
	}
	for i := range b.plan.Listeners {
		l := &b.plan.Listeners[i]
		each(l, l.ServerNames)
		for j := range l.Ports {
			for k := range l.Ports[j].Hosts {
				each(l, l.Ports[j].Hosts[k].ServerNames)
			}
		}
	}
	if autos {
		b.spell()
	}
	for _, c := range b.origins {
		if _, err := trust.OriginConfig(c.Originate, b.secrets.Get, "host.invalid", nil); err != nil {
			b.faults = append(b.faults, Fault{Kind: "cluster", Piece: c.Name, Closed: true, Reason: err.Error(), Origin: c.Origin})
		}
	}
}

func (b *built) secureName(l *plan.Listener, sn *plan.ServerName, kept []*trust.Edge, self trust.Source) {
	http := sn.Routes != ""
	for _, e := range kept {
		if e.Same(sn.TLS, http, b.secrets) {
			b.edges[sn] = e
			return
		}
	}
	fault := Fault{Kind: "listener", Piece: l.Name, Names: sn.Names, Origin: sn.Origin}
	e, err := trust.NewEdge(sn.TLS, http, b.secrets, self)
	if err != nil {
		fault.Closed, fault.Reason = true, err.Error()
		b.closed[sn], b.faults = err, append(b.faults, fault)
		return
	}
	b.edges[sn] = e
	for _, w := range e.Warnings {
		fault.Reason = w.Error()
		b.faults = append(b.faults, fault)
	}
}

// spell finds the clusters that server names can spell (Istio AUTO_PASSTHROUGH): "outbound_.9080_.v1_.reviews.default.svc.cluster.local"
// is "outbound|9080|v1|reviews.default.svc.cluster.local". Without a subset it is "outbound_.9080_._.reviews".
func (b *built) spell() {
	for _, piece := range b.plan.Clusters {
		name := piece.Name()
		if part := strings.SplitN(name, "|", 4); len(part) == 4 {
			b.auto[strings.ToLower(fmt.Sprintf("%s_.%s_.%s_.%s", part[0], part[1], part[2], part[3]))] = name
		}
	}
}

// tellFaults logs what is closed and was not before.
func (p *Proxy) tellFaults(b, before *built) {
	known := make(map[string]bool)
	if before != nil {
		for i := range before.faults {
			known[before.faults[i].key()] = true
		}
	}
	for i := range b.faults {
		f := &b.faults[i]
		if known[f.key()] {
			continue
		}
		p.o.Log.Warn("a part of the plan can't be used as it was asked", "kind", f.Kind, "piece", f.Piece, "names", f.Names, "closed", f.Closed,
			"reason", f.Reason, "origin", f.Origin.String())
	}
}

func (f *Fault) key() string {
	return f.Kind + " " + f.Piece + " " + strings.Join(f.Names, " ") + " " + f.Reason
}

package explain

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/authz"
	"github.com/malha-mesh/malha/internal/proxy/balance"
	"github.com/malha-mesh/malha/internal/proxy/limit"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// reach fills in where the members of a destination are and what they say. req is nil for opaque bytes.
func (x *walker) reach(b *Branch, req *sent, origin ident.Origin) {
	grpc := req != nil && req.grpc()
	failed := func(status int, flags, detail, text string, origin ident.Origin) {
		b.Answer = answer(x.node.plan.Node.Name, grpc, status, flags, detail, text, origin)
		if req == nil {
			b.Answer.Status = 0
		}
	}
	c := x.node.clusters[b.Cluster]
	if c == nil {
		failed(503, "NC", "cluster_not_found", "the route's destination does not exist", origin)
		return
	}
	b.Service, b.Subset, b.Port, b.Balancer, b.Limits, b.Outlier, b.Origin = c.Host, c.Subset, c.Port, c.Balancer, c.Limits, c.Outlier, c.Origin
	b.Session, b.Budget, b.Originate = c.Session.Redacted(), c.Budget, c.Originate
	if req != nil {
		b.Key = keyOf(c.Hash, req, x.client)
	}
	if b.Balancer == "" {
		b.Balancer = plan.LeastRequest
	}
	if c.Discovery == plan.AsRequested {
		to := x.req
		if req != nil {
			to = req // as it is after a rewrite
		}
		port := to.Port
		if port == 0 {
			port = c.Port
		}
		if port == 0 {
			port = portOf(to)
		}
		b.Endpoints = asRequested(string(to.Host), port)
		return
	}
	near := balance.NewMap(c.Locality, balance.Place{Locality: x.node.plan.Node.Locality, Labels: x.node.plan.Node.Labels, Peers: x.node.plan.Node.Peers})
	var groups []int
	for i, all := 0, x.node.endpoints[b.Cluster]; i < len(all); i++ {
		e := &all[i]
		if c.TLS == plan.TLSMutual && e.Identity.IsZero() {
			continue // nobody could prove to be it: it is not used
		}
		out := Endpoint{Address: e.Address, Version: e.Workload.Version, Weight: max(e.Weight, 1), Locality: e.Locality}
		if e.Workload.Workload != "" {
			out.Workload = ident.Name{Namespace: e.Workload.Namespace, Name: e.Workload.Workload}
		}
		out.MTLS = c.TLS == plan.TLSMutual || c.TLS != plan.TLSOff && !e.Identity.IsZero() && !e.Plaintext
		if out.MTLS {
			out.Identity = e.Identity.URI()
		}
		group := near.Group(e)
		if c.Locality != nil {
			out.Near = near.Says(group)
		}
		x.arrive(&out, req, grpc, c.Originate != nil)
		b.Endpoints, groups = append(b.Endpoints, out), append(groups, group)
	}
	weights := make([]float64, len(b.Endpoints))
	members := make([]balance.Member[int], len(b.Endpoints))
	for i := range members {
		members[i] = balance.Member[int]{Value: i, Weight: b.Endpoints[i].Weight, Group: groups[i]}
	}
	if c.Balancer != plan.RingHash && c.Balancer != plan.Maglev {
		balance.Divide(&near, members, func(i int) string { return b.Endpoints[i].Locality })
	}
	for i := range members {
		if weights[i] = float64(members[i].Weight); members[i].Spare {
			weights[i] = 0
		}
	}
	divide(b.Endpoints, weights, groups, near.Shares())
	if !slices.ContainsFunc(b.Endpoints, func(e Endpoint) bool { return e.Share > 0 }) {
		failed(503, "UH", "no_healthy_upstream", "the destination has no endpoint that can be used", c.Origin)
	}
}

// divide gives each endpoint its share: of what its group gets, by weight. All are taken to be healthy, so without shares the
// nearest group gets everything; what is in no group (below 0) gets nothing.
func divide(all []Endpoint, weights []float64, groups []int, shares []uint32) {
	sums := map[int]float64{}
	for i := range all {
		if groups[i] >= 0 {
			sums[groups[i]] += weights[i]
		}
	}
	total := 0.0
	for g := range sums {
		if shares != nil {
			total += float64(shares[g])
		}
	}
	for i := range all {
		g := groups[i]
		switch {
		case g < 0:
		case shares == nil:
			if g == slices.Min(slices.Collect(maps.Keys(sums))) {
				all[i].Share = weights[i] / sums[g]
			}
		case total > 0:
			all[i].Share = float64(shares[g]) / total * weights[i] / sums[g]
		}
	}
}

// arrive enters the proxy beside an endpoint. originated says that TLS which is not the mesh's is begun towards those that are not
// spoken to in the mesh's.
func (x *walker) arrive(e *Endpoint, req *sent, grpc, originated bool) {
	door, ok := x.mesh.binds[e.Address]
	if !ok {
		return
	}
	l, node := door.listener, door.node
	a := &Arrival{Node: node.plan.Node.Name, Listener: Listener{Name: l.Name, Bind: l.Bind, TLS: l.TLS, Origin: l.Origin}}
	e.Arrival = a
	if e.Workload.IsZero() || e.Workload != a.Node {
		e.Workload = a.Node // metrics may call it by another name
	}
	refused := ""
	switch {
	case e.MTLS:
	case l.TLS == plan.TLSStrict:
		refused = "the listener takes mesh TLS only, and plaintext is sent"
	case l.ServerNames != nil && !originated:
		refused = "the listener takes TLS only, and plaintext is sent"
	}
	if refused != "" {
		a.Answer = answer(x.node.plan.Node.Name, grpc, 503, "UC", "upstream_reset_before_response_started{connection_termination}", refused, l.Origin)
		if req == nil {
			a.Answer.Status = 0
		}
		return
	}
	var peer ident.Identity
	if e.MTLS {
		peer = x.node.plan.Node.Identity
		a.Peer = peer.URI()
	}
	j := judgement{engine: node.engines[l.Name], node: a.Node, peer: peer, port: l.Port, local: addrOf(l.Bind), remote: x.source(), grpc: grpc}
	if req != nil && l.Routes != "" {
		seen := req.copy() // what the listener's own proxy writes
		seen.Fields.Del("x-forwarded-client-cert")
		if !peer.IsZero() {
			seen.Fields.Add("x-forwarded-client-cert", []byte("By="+node.plan.Node.Identity.URI()+";URI="+peer.URI()))
		}
		j.req = &seen.Request
	}
	if a.Policies, a.Allowed, a.Answer = j.ask(); a.Answer != nil {
		return
	}
	if j.req != nil {
		sub := &limit.Subject{Request: j.req, Peer: peer, Client: j.remote}
		if a.Limits, a.Answer = node.limitsOf(l.Limits, sub, grpc, l.Origin); a.Answer != nil {
			return
		}
		if found := node.tables[l.Routes].Find(j.req.Host, j.req); found.Route != nil {
			p := found.Route.Plan()
			limits, over := node.limitsOf(p.Limits, sub, grpc, p.Origin)
			if a.Limits = append(a.Limits, limits...); over != nil {
				a.Answer = over
				return
			}
		}
	}
	a.App, a.Answer = x.application(door, req, grpc)
}

// source is the address that others see this proxy's connections come from.
func (x *walker) source() netip.Addr {
	for i := range x.node.plan.Listeners {
		if a := addrOf(x.node.plan.Listeners[i].Bind); a.IsValid() && !a.IsUnspecified() {
			return a
		}
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// application returns where the program of an inbound listener is.
func (x *walker) application(d door, req *sent, grpc bool) (string, *Answer) {
	cluster := ""
	switch l := d.listener; {
	case req != nil && l.Routes != "":
		found := d.node.tables[l.Routes].Find(req.Host, &req.Request)
		if found.Route != nil && len(found.Route.Plan().Forward) > 0 {
			cluster = found.Route.Plan().Forward[0].Cluster
		}
	case len(l.TCP) > 0:
		cluster = l.TCP[0].Cluster
	}
	if es := d.node.endpoints[cluster]; len(es) > 0 {
		return es[0].Address, nil
	}
	return "", answer(d.node.plan.Node.Name, grpc, 503, "UH", "no_healthy_upstream", "the listener has no program", d.listener.Origin)
}

// judgement asks the policies of one listener.
type judgement struct {
	engine        *authz.Engine
	node          ident.Name
	peer          ident.Identity
	remote, local netip.Addr
	port          int
	req           *message.Request // nil for opaque bytes
	grpc          bool
}

// ask returns the policies that were asked, and either why the request may pass or the denial.
func (j *judgement) ask() (_ []Policy, allowed string, denied *Answer) {
	if j.engine == nil {
		return nil, "no policy guards the listener", nil
	}
	in := &authz.Input{Peer: j.peer, Remote: j.remote, Local: j.local, Port: j.port, Request: j.req}
	var policies []Policy
	for _, s := range j.engine.Explain(in) {
		policies = append(policies, Policy{Name: s.Policy, Action: s.Action, DryRun: s.DryRun, Matched: s.Matched, Rule: s.Rule, Reasons: s.Reasons, Origin: s.Origin})
	}
	d := j.engine.Check(in)
	if d.Allow {
		if d.Policy == "" {
			return policies, "no DENY policy matches, and there is no ALLOW policy", nil
		}
		return policies, fmt.Sprintf("rule %d of policy %s allows it", d.Rule, d.Policy), nil
	}
	a := answer(j.node, j.grpc, 403, "UAEX", d.Detail, "RBAC: access denied: no ALLOW policy matches", ident.Origin{})
	if a.Detail == "" {
		a.Detail = authz.DetailNone
	}
	if d.Policy != "" {
		a.Text, a.Policy = fmt.Sprintf("RBAC: access denied: rule %d of policy %s matches", d.Rule, d.Policy), d.Policy
	}
	if d.Origin != nil {
		a.Origin = *d.Origin
	}
	if j.req == nil {
		a.Status, a.GRPC = 0, nil
	}
	return policies, "", a
}

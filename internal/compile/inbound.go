package compile

import (
	"strconv"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// inbound makes one listener for each served port: the only way in for others. There are no retries on this side; the
// client's proxy, which can choose another endpoint, has them.
func (c *compiler) inbound() {
	for i := range c.scope.Sidecar.Inbound {
		c.inboundPort(&c.scope.Sidecar.Inbound[i])
	}
}

func (c *compiler) inboundPort(p *model.InboundPort) {
	name := "inbound|" + strconv.Itoa(p.Port)
	cluster := plan.Cluster{
		Name: name + "||", Port: p.Port, Protocol: upstreamProtocol(p.Protocol), TLS: plan.TLSOff, Origin: p.Origin,
	}
	if p.Service != nil {
		cluster.Service = serviceLabels(p.Service)
	}
	if p.Pool != nil {
		pool(&cluster, p.Pool)
		cluster.ClientProtocol = false // the client's sidecar decided it
	}
	cluster.Check = p.Check
	if p.Port == 0 { // every port that has no listener: on to where the connection was going
		cluster.Discovery = plan.AsRequested
	} else {
		c.endpoints[cluster.Name] = plan.Endpoints{
			Cluster:   cluster.Name,
			Endpoints: []plan.Endpoint{{Address: p.App, Workload: c.scope.Node.Workload}},
		}
	}
	c.clusters[cluster.Name] = cluster
	l := plan.Listener{
		Name:      name,
		Bind:      p.Bind,
		Direction: plan.Inbound,
		Protocol:  upstreamProtocol(p.Protocol),
		Port:      p.Port,
		TLS:       p.TLS,
		Policies:  c.policyNames(),
		Limits:    p.Limits,
		Origin:    p.Origin,
		// Also for HTTP: TLS that is not the mesh's passes a permissive listener as opaque bytes.
		TCP:       []plan.Destination{{Cluster: cluster.Name}},
		TCPOrigin: p.Origin,
	}
	if !p.TLSOrigin.IsZero() {
		l.Origin = p.TLSOrigin // what a refused connection is told
	}
	if p.Protocol.IsHTTP() || p.Protocol == ident.Detect {
		l.Routes = name
		c.table(name, plan.NotFound).add(plan.VirtualHost{
			Name: name, Domains: []string{"*"}, Origin: p.Origin, Service: cluster.Service,
			Routes: []plan.Route{{Name: defaultRoute, Origin: p.Origin, Forward: []plan.Destination{{Cluster: cluster.Name}}}},
		})
	}
	if p.Ends != nil && p.TLS != plan.TLSStrict {
		// Of whatever name they ask for: the port stands for one program.
		n := plan.ServerName{Names: []string{"*"}, TLS: c.serverTLS(p.Ends), Protocol: l.Protocol, Routes: l.Routes, Origin: p.Origin}
		if n.Routes == "" {
			n.TCP = l.TCP
		}
		l.ServerNames, l.Origin = []plan.ServerName{n}, p.Origin
	}
	c.listeners = append(c.listeners, l)
}

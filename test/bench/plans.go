package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
)

const (
	host      = "backend.default.svc.cluster.local"
	namespace = "default"
)

var (
	clientIdentity = ident.Identity{TrustDomain: ident.DefaultTrustDomain, Namespace: namespace, ServiceAccount: "client"}
	serverIdentity = ident.Identity{TrustDomain: ident.DefaultTrustDomain, Namespace: namespace, ServiceAccount: "backend"}
)

func node(id ident.Identity) plan.Node {
	name := id.ServiceAccount
	return plan.Node{
		Name: ident.Name{Namespace: namespace, Name: name}, Role: plan.Sidecar, Identity: id,
		Workload: plan.WorkloadLabels{Workload: name, Namespace: namespace, App: name, Version: "v1", CanonicalService: name, CanonicalRevision: "v1"},
	}
}

// outboundPlan is a client's sidecar: one port, routes by header and prefix, a timeout, retries, one endpoint.
func outboundPlan(port, backend int, protocol ident.Protocol) *plan.Plan {
	service := plan.ServiceLabels{Host: host, Name: "backend", Namespace: namespace}
	cluster := fmt.Sprintf("outbound|%d||%s", backend, host)
	return &plan.Plan{
		Node: node(clientIdentity),
		Listeners: []plan.Listener{{
			Name: "outbound|80", Bind: address(port), Direction: plan.Outbound, Protocol: protocol, Routes: "80",
		}},
		Routes: []plan.RouteTable{{Name: "80", Otherwise: plan.NotFound, Hosts: []plan.VirtualHost{{
			Name: host, Domains: []string{host}, Service: service,
			Routes: []plan.Route{
				{Name: "canary", Match: plan.Match{Headers: []plan.FieldMatch{{Name: "x-canary", Value: match.String{Kind: match.Exact, Value: "true"}}}}, Direct: &plan.DirectResponse{Status: 500}},
				{Name: "api", Match: plan.Match{Path: &match.String{Kind: match.Prefix, Value: "/api/"}}, Forward: []plan.Destination{{Cluster: cluster}}, Timeout: plan.Duration(10 * time.Second),
					Retry: &plan.Retry{Attempts: 2, On: plan.RetryConnectFailure | plan.RetryRefusedStream}},
			},
		}}}},
		Clusters:  []plan.Cluster{{Name: cluster, Host: host, Port: backend, Protocol: protocol, Service: service}},
		Endpoints: []plan.Endpoints{{Cluster: cluster, Endpoints: []plan.Endpoint{{Address: address(backend), Workload: node(serverIdentity).Workload}}}},
	}
}

// meshed makes the endpoint of an outbound plan a workload of the mesh, which is spoken to by mutual TLS.
func meshed(p *plan.Plan) *plan.Plan {
	p.Endpoints[0].Endpoints[0].Identity = serverIdentity
	p.Endpoints[0].Endpoints[0].HTTP2 = true // as compile makes it for a port that is declared HTTP
	return p
}

// inboundPlan is a server's sidecar: mutual TLS only, and an authorization policy that allows the client.
func inboundPlan(port, backend int, protocol ident.Protocol) *plan.Plan {
	name := fmt.Sprintf("inbound|%d", backend)
	service := plan.ServiceLabels{Host: host, Name: "backend", Namespace: namespace}
	p := &plan.Plan{
		Node: node(serverIdentity),
		Listeners: []plan.Listener{{
			Name: name, Bind: address(port), Direction: plan.Inbound, Protocol: protocol, Port: backend, TLS: plan.TLSStrict,
			Policies: []string{"default/callers"}, TCP: []plan.Destination{{Cluster: name + "||"}},
		}},
		Clusters:  []plan.Cluster{{Name: name + "||", Port: backend, Protocol: protocol, TLS: plan.TLSOff, Service: service}},
		Endpoints: []plan.Endpoints{{Cluster: name + "||", Endpoints: []plan.Endpoint{{Address: address(backend)}}}},
		Policies: []plan.Policy{{Name: "default/callers", Action: plan.Allow, Rules: []plan.PolicyRule{{
			From: []plan.Source{{Principals: []match.String{{Kind: match.Exact, Value: clientIdentity.Principal()}}}},
		}}}},
	}
	if protocol.IsHTTP() {
		p.Listeners[0].Routes = name
		p.Routes = []plan.RouteTable{{Name: name, Otherwise: plan.NotFound, Hosts: []plan.VirtualHost{{
			Name: name, Domains: []string{"*"}, Service: service, Routes: []plan.Route{{Name: "default", Forward: []plan.Destination{{Cluster: name + "||"}}}},
		}}}}
	}
	return p
}

// tcpPlan is a client's sidecar for one opaque port.
func tcpPlan(port, backend int) *plan.Plan {
	p := outboundPlan(port, backend, ident.TCP)
	p.Routes, p.Listeners[0].Routes = nil, ""
	p.Listeners[0].TCP = []plan.Destination{{Cluster: p.Clusters[0].Name}}
	return p
}

// worldPlan is an outbound plan that knows services more, as a mesh of that size has them: each with its names, a route, a
// cluster with an SNI, and endpoints with identity and labels. The service that answers is the first of them.
func worldPlan(port, backend, services, endpoints int) *plan.Plan {
	p := outboundPlan(port, backend, ident.HTTP)
	for i := 1; i < services; i++ {
		name := fmt.Sprintf("svc-%04d", i)
		fqdn := name + ".default.svc.cluster.local"
		cluster := "outbound|80||" + fqdn
		service := plan.ServiceLabels{Host: fqdn, Name: name, Namespace: namespace}
		origin := ident.Origin{Kind: "Service", Namespace: namespace, Name: name, File: "services.yaml", Line: 20 * i}
		p.Routes[0].Hosts = append(p.Routes[0].Hosts, plan.VirtualHost{
			Name: fqdn + ":80", Domains: []string{name, name + ".default", name + ".default.svc", fqdn}, Service: service, Origin: origin,
			Routes: []plan.Route{{Name: "default", Origin: origin, Forward: []plan.Destination{{Cluster: cluster}},
				Retry: &plan.Retry{Attempts: 2, On: plan.RetryConnectFailure | plan.RetryRefusedStream}}},
		})
		p.Clusters = append(p.Clusters, plan.Cluster{Name: cluster, Host: fqdn, Port: 80, Protocol: ident.HTTP, Service: service, SNI: "outbound_.80_._." + fqdn, Origin: origin})
		e := plan.Endpoints{Cluster: cluster}
		for j := range endpoints {
			e.Endpoints = append(e.Endpoints, plan.Endpoint{
				Address:  fmt.Sprintf("10.%d.%d.%d:15008", i/200, i%200, j+1),
				Identity: ident.Identity{TrustDomain: ident.DefaultTrustDomain, Namespace: namespace, ServiceAccount: name},
				Workload: plan.WorkloadLabels{Workload: fmt.Sprintf("%s-%d", name, j), Namespace: namespace, App: name, Version: "v1", CanonicalService: name, CanonicalRevision: "v1"},
			})
		}
		p.Endpoints = append(p.Endpoints, e)
	}
	return p
}

func encode(p *plan.Plan) []byte {
	b, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		panic(err) // a plan is plain values
	}
	return b
}

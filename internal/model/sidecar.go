package model

import (
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// SidecarPolicy narrows what the proxies of some workloads see, and how they are reached (Istio Sidecar).
type SidecarPolicy struct {
	Meta
	Selector map[string]string // empty: the namespace, or the mesh in ident.RootNamespace
	// Egress is what they may see; nil: everything. In order: the first listener for a port wins.
	Egress []EgressView
	// Ingress replaces the ports of the workload; nil: as they are.
	Ingress []IngressPort
	// Outbound is the fate of hosts that are not in view; "" the mesh's.
	Outbound plan.Otherwise
	Inbound  *TrafficPolicy // connection pool of the way in; nil none
}

// EgressView is the services that are visible through one listener.
type EgressView struct {
	Port     int // 0: every port
	Protocol ident.Protocol
	Bind     string
	Hosts    []string // "namespace/host": namespace "*" any, "~" none; host may be "*" or "*.suffix"; "~namespace/host" takes out
	Origin   ident.Origin
}

// IngressPort is a port of the workload as its sidecar offers it.
type IngressPort struct {
	Port     int
	Protocol ident.Protocol
	Name     string
	Bind     string
	App      string // "127.0.0.1:port" or "unix:///path"; "" the port itself
	TLS      *plan.ServerTLS
	Pool     *TrafficPolicy
	Origin   ident.Origin
}

// ProxyConfig is settings of proxies (Istio ProxyConfig).
type ProxyConfig struct {
	Meta
	Selector    map[string]string // empty: the namespace, or the mesh in ident.RootNamespace
	Concurrency *int              // threads; 0 all cores
	Env         []EnvVar
}

// Egress is what a namespace may reach outside the mesh (Linkerd EgressNetwork). Of several the one with the longest network that
// has an address decides, then the oldest.
type Egress struct {
	Meta
	Networks  []string // CIDRs; none: everything outside the mesh
	Otherwise plan.Otherwise
	Global    bool // for every namespace that has none of its own
}

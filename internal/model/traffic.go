package model

import (
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// DestinationPolicy says how to talk to a host (DestinationRule).
type DestinationPolicy struct {
	Meta
	Host     string
	Traffic  *TrafficPolicy
	Subsets  []Subset
	ExportTo []string
	// Workloads are the clients in the policy's own namespace that it is for; empty: all (workloadSelector).
	Workloads map[string]string
}

// Subset is the endpoints of a service that have some labels.
type Subset struct {
	Name    string
	Labels  map[string]string
	Traffic *TrafficPolicy // a block that is set here replaces the destination's
	Origin  ident.Origin
}

// TrafficPolicy is blocks that are each set or not.
type TrafficPolicy struct {
	Balancer       *plan.Balancer
	Limits         *plan.Limits
	ConnectTimeout time.Duration // part of the connection pool block; 0 default
	HTTP2          *bool         // part of the connection pool block: HTTP/2 between sidecars for an HTTP port; nil: where no limit counts HTTP/1.1 connections
	Outlier        *plan.Outlier
	TLS            *plan.UpstreamTLS // of endpoints in the mesh
	Ports          []PortPolicy      // a port's policy replaces this one as a whole, but for Tunnel, ProxyProtocol and Budget

	Hash           *plan.Hash      // part of the balancer block
	Locality       *plan.Locality  // part of the balancer block; nil: the Service's
	LocalityOff    bool            // localityLbSetting.enabled: false
	Warmup         *plan.Warmup    // part of the balancer block
	PassThrough    bool            // part of the balancer block: PASSTHROUGH
	Originate      *plan.ClientTLS // part of the TLS block: SIMPLE and MUTUAL
	Keepalive      *plan.Keepalive // these four are part of the connection pool block
	Ping           *plan.Ping
	MaxStreams     uint32
	ClientProtocol bool
	ProxyProtocol  uint32
	Tunnel         *plan.Tunnel
	Budget         *plan.ActiveRetries
	TCPIdle        time.Duration // part of the connection pool block: of opaque connections on which nobody speaks; 0 default
	SNI            string        // part of the TLS block: the server name of mesh TLS (ISTIO_MUTUAL); "" the cluster's own
}

// PortPolicy is the policy of one service port.
type PortPolicy struct {
	Port    int
	Origin  ident.Origin
	Traffic TrafficPolicy
}

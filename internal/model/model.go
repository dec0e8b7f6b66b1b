// Package model is what users asked for, in our own words: every dialect (Istio, Linkerd, SMI, Gateway API, plain
// Kubernetes) is translated into it, and nothing after it knows which dialect that was.
//
// It is pure: values only. Hosts are canonical (ident.RuleHost), names are complete, references are still names:
// whether they resolve is for scope and compile to see. Each value carries the Origin of the lines it came from.
package model

import (
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// Config is every object that users wrote, translated. It is immutable once built.
type Config struct {
	Services  []Service
	Workloads []Workload
	Routings  []Routing
	Traffic   []DestinationPolicy
	Gateways  []Gateway
	PeerAuth  []PeerAuth
	Policies  []AuthzPolicy
	Splits    []Split
	Profiles  []Profile
}

// Meta is what every object has.
type Meta struct {
	Name    ident.Name
	Origin  ident.Origin
	Labels  map[string]string
	Created time.Time // creationTimestamp; the zero time sorts as oldest, ties by name
}

// Service is a Kubernetes-shaped Service.
type Service struct {
	Meta
	Host     string // ident.ServiceHost
	Ports    []ServicePort
	Selector map[string]string // empty selects nothing
	Headless bool
	ExportTo []string // "*", or namespaces; nil: every namespace
}

// ServicePort is one port of a Service.
type ServicePort struct {
	Name     string
	Port     int
	Protocol ident.Protocol
	// Target is the workload port: a number, or a name when TargetName is set.
	Target     int
	TargetName string
	Origin     ident.Origin
}

// Workload is a program of the mesh: one replica, with a proxy beside it.
type Workload struct {
	Meta
	Identity ident.Identity
	Ports    []WorkloadPort
	Run      *Run   // started by us; nil with Address
	Address  string // IP where it already listens; "" with Run
}

// WorkloadPort is a port that a workload serves.
type WorkloadPort struct {
	Name     string
	Port     int
	Protocol ident.Protocol
	Origin   ident.Origin
}

// Run says how to start a local workload.
type Run struct {
	Command []string
	Env     []EnvVar
	Dir     string // absolute
	Origin  ident.Origin
}

// EnvVar is one environment variable.
type EnvVar struct{ Name, Value string }

// Mesh is the reserved gateway name that stands for all sidecars.
const Mesh = "mesh"

// Routing is a set of rules for hosts (VirtualService).
type Routing struct {
	Meta
	Hosts    []string
	Gateways []string // Mesh or "namespace/name"; never empty
	HTTP     []HTTPRule
	TCP      []TCPRule
	ExportTo []string // "*", or namespaces; "." was resolved; never empty
}

// HTTPRule is one rule for requests: the first that matches wins.
type HTTPRule struct {
	Name     string
	Origin   ident.Origin
	Matches  []HTTPMatch // any; none: every request
	Forward  []WeightedDestination
	Redirect *plan.Redirect
	Direct   *plan.DirectResponse
	Rewrite  *plan.Rewrite
	Headers  plan.HeaderOps
	Timeout  time.Duration // 0 none
	Retry    *plan.Retry   // nil: the mesh's default; Attempts 0: none
	Fault    *plan.Fault
	Mirrors  []MirrorDestination
}

// HTTPMatch is one alternative of a rule.
type HTTPMatch struct {
	plan.Match
	Name            string
	Origin          ident.Origin
	Port            int               // 0 any
	SourceLabels    map[string]string // decided when a client's plan is made
	SourceNamespace string
	Gateways        []string // nil: the Routing's
}

// Target names a service, a subset of it and a port.
type Target struct {
	Host   string // canonical
	Subset string
	Port   int // 0: the service's only port, else the port asked for
	Origin ident.Origin
}

// WeightedDestination is a target and its relative weight.
type WeightedDestination struct {
	Target
	Weight  uint32
	Headers plan.HeaderOps
}

// MirrorDestination is a target for copies.
type MirrorDestination struct {
	Target
	Percent float64
}

// TCPRule is one rule for opaque connections.
type TCPRule struct {
	Origin  ident.Origin
	Matches []TCPMatch
	Forward []WeightedDestination
}

// TCPMatch is one alternative of a TCPRule.
type TCPMatch struct {
	Port            int
	SourceLabels    map[string]string
	SourceNamespace string
	Gateways        []string
}

// DestinationPolicy says how to talk to a host (DestinationRule).
type DestinationPolicy struct {
	Meta
	Host     string
	Traffic  *TrafficPolicy
	Subsets  []Subset
	ExportTo []string
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
	TLS            *plan.UpstreamTLS
	Ports          []PortPolicy // a port's policy replaces this one as a whole
}

// PortPolicy is the policy of one service port.
type PortPolicy struct {
	Port    int
	Traffic TrafficPolicy
}

// Gateway is a set of doors (Istio Gateway).
type Gateway struct {
	Meta
	Selector map[string]string // of gateway workloads, in all namespaces; empty: every gateway
	Servers  []Server
}

// Server is one door of a Gateway.
type Server struct {
	Name     string
	Port     int
	Protocol ident.Protocol
	// Hosts are "namespace/host": namespace "*" for any; "." was resolved.
	Hosts  []string
	Origin ident.Origin
}

// PeerAuth is the TLS mode that workloads ask of their peers (PeerAuthentication).
type PeerAuth struct {
	Meta
	Selector map[string]string // empty: the namespace, or the mesh in ident.RootNamespace
	Mode     *plan.TLSMode     // nil inherits
	Ports    map[int]*plan.TLSMode
}

// AuthzPolicy guards workloads (AuthorizationPolicy).
type AuthzPolicy struct {
	Meta
	Selector map[string]string // empty: the namespace, or the mesh in ident.RootNamespace
	Policy   plan.Policy
}

// Split divides the traffic of a service among others of its namespace (SMI TrafficSplit).
type Split struct {
	Meta
	Host     string
	Backends []SplitBackend
}

// SplitBackend is one share.
type SplitBackend struct {
	Host   string
	Weight uint32 // relative; v1alpha1 quantities in thousandths
	Origin ident.Origin
}

// Profile is what is known about the requests of a service (Linkerd ServiceProfile).
type Profile struct {
	Meta
	Host        string
	Routes      []ProfileRoute
	RetryBudget plan.RetryBudget
	Overrides   []SplitBackend // dstOverrides
}

// ProfileRoute is one kind of request.
type ProfileRoute struct {
	Name      string
	Cond      plan.Cond
	Classes   []plan.ResponseClass
	Retryable bool
	Timeout   time.Duration
	Origin    ident.Origin
}

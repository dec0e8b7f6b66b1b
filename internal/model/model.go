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

	Secrets    []Secret
	Namespaces []Namespace
	Endpoints  []EndpointGroup
	Sidecars   []SidecarPolicy
	Proxies    []ProxyConfig
	RateLimits []RateLimit
	Egress     []Egress
	Statuses   []Status
}

// Append adds everything that o holds.
func (c *Config) Append(o *Config) {
	c.Services = append(c.Services, o.Services...)
	c.Workloads = append(c.Workloads, o.Workloads...)
	c.Routings = append(c.Routings, o.Routings...)
	c.Traffic = append(c.Traffic, o.Traffic...)
	c.Gateways = append(c.Gateways, o.Gateways...)
	c.PeerAuth = append(c.PeerAuth, o.PeerAuth...)
	c.Policies = append(c.Policies, o.Policies...)
	c.Splits = append(c.Splits, o.Splits...)
	c.Profiles = append(c.Profiles, o.Profiles...)
	c.Secrets = append(c.Secrets, o.Secrets...)
	c.Namespaces = append(c.Namespaces, o.Namespaces...)
	c.Endpoints = append(c.Endpoints, o.Endpoints...)
	c.Sidecars = append(c.Sidecars, o.Sidecars...)
	c.Proxies = append(c.Proxies, o.Proxies...)
	c.RateLimits = append(c.RateLimits, o.RateLimits...)
	c.Egress = append(c.Egress, o.Egress...)
	c.Statuses = append(c.Statuses, o.Statuses...)
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

	// Alias is the host that an ExternalName Service stands for; "" none.
	Alias string
	// External is set for what is not in the mesh: it gets no mesh TLS (ServiceEntry MESH_EXTERNAL).
	External bool
	// Resolution says where the endpoints come from.
	Resolution Resolution
	// Addresses are IPs and CIDRs that clients may call it by.
	Addresses []string
	Endpoints []ServiceEndpoint // static ones, or names to resolve
	// SubjectAltNames replace what is expected of the endpoints' certificates; nil: their identities.
	SubjectAltNames []string
	// NodeLocal leads a client to endpoints on its own node only (internalTrafficPolicy: Local).
	NodeLocal bool
	// NotReady takes workloads that are not ready too (publishNotReadyAddresses).
	NotReady bool
	// Near is how the Service prefers endpoints (trafficDistribution and its annotations); nil: the mesh's default.
	Near *plan.Locality
	// Session keeps a client on one endpoint.
	Session *plan.Session
	// Hash is sessionAffinity: ClientIP; nil none.
	Hash *plan.Hash
	// Outlier, Balancer and Check are what annotations of the Service ask for; a DestinationPolicy with the same block wins.
	Outlier  *plan.Outlier
	Balancer plan.Balancer
	Check    *plan.HealthCheck
	// Defaults are for requests that no routing and no profile decides.
	Defaults *RequestPolicy
}

// Resolution says where the endpoints of a Service come from.
type Resolution string

// The resolutions. All but the first are those of a ServiceEntry.
const (
	BySelector Resolution = ""         // workloads and endpoint groups that the Selector, or the name, takes
	ByAddress  Resolution = "static"   // Endpoints (and WorkloadEntries by Selector) are addresses
	ByDNS      Resolution = "dns"      // Endpoints, or the host itself, are names
	ByDNSFirst Resolution = "dnsFirst" // one address at a time
	ByRequest  Resolution = "request"  // wherever the client wanted to go (NONE, and DYNAMIC_DNS for names)
)

// ServiceEndpoint is one endpoint that was written down: of a ServiceEntry, an EndpointSlice, or a WorkloadEntry.
type ServiceEndpoint struct {
	Address  string         // IP or name, or plan.UnixPrefix and a socket beside each client
	Ports    map[string]int // by port name; a port that is not in it is the service port's target
	Labels   map[string]string
	Locality string
	Weight   uint32         // 0 means 1
	Identity ident.Identity // zero: not in the mesh
	NotReady bool
	Node     string // of a cluster; "" unknown
	Hostname string // its own name below that of a headless service; "" none
	Origin   ident.Origin
}

// RequestPolicy is timeouts and retries (Linkerd annotations of a Service or route).
type RequestPolicy struct {
	Timeout  time.Duration // of the whole request
	Response time.Duration // until the response head
	Idle     time.Duration
	Retry    *plan.Retry
	Origin   ident.Origin
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
	// Originate is the TLS that endpoints outside the mesh want on the port (BackendTLSPolicy); a DestinationPolicy whose TLS
	// block is set wins. nil: plaintext.
	Originate *plan.ClientTLS
}

// Workload is a program of the mesh: one replica, with a proxy beside it.
type Workload struct {
	Meta
	Identity ident.Identity
	Ports    []WorkloadPort
	Run      *Run              // started by us; nil with Address
	Address  string            // IP where it already listens; "" with Run
	Locality string            // "region/zone/subzone"; from topology labels
	AnyPort  bool              // services may lead to ports that it does not declare (a Pod)
	Weight   uint32            // of its endpoints; 0 means 1
	Check    *plan.HealthCheck // the sidecar asks the program; it gets requests only while healthy; nil: its port is open
	// CheckPort is the port of the workload that Check asks; 0: each port for itself.
	CheckPort int
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

// Namespace is a namespace with labels. Name.Name is its name; Name.Namespace means nothing.
type Namespace struct {
	Meta
}

// EndpointGroup is endpoints of a service that were written down for themselves: an EndpointSlice, or a WorkloadEntry, which
// services select by labels.
type EndpointGroup struct {
	Meta
	Host      string // ident.ServiceHost of its Service; "" for one that is selected by Labels
	Endpoints []ServiceEndpoint
}

// Package model is what users asked for, in our own words: every dialect (Istio, Linkerd, SMI, Gateway API, plain
// Kubernetes) is translated into it, and nothing after it knows which dialect that was.
//
// It is pure: values only. Hosts are canonical (ident.RuleHost), names are complete, references are still names:
// whether they resolve is for scope and compile to see. Each value carries the Origin of the lines it came from.
package model

import (
	"strings"
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

// Mesh is the reserved gateway name that stands for all sidecars.
const Mesh = "mesh"

// Routing is a set of rules for hosts (VirtualService).
type Routing struct {
	Meta
	Hosts    []string
	Gateways []string // Mesh, "namespace/name", or for an Own gateway one server: "namespace/name/" + Server.Name; never empty
	HTTP     []HTTPRule
	TCP      []TCPRule
	TLS      []TLSRule
	ExportTo []string // "*", or namespaces; "." was resolved; never empty

	// Delegate is set for a routing without hosts, which others refer to.
	Delegate bool
	// Precedence orders the rules of all routings for one host, whose Precedence is set, among each other: the more specific
	// match first (Gateway API HTTPRouteRule), then the older routing, then by name, then in the order of the rules. They come
	// before routings without it. Consumer puts a routing of the client's own namespace before the others (GAMMA).
	Precedence bool
	Consumer   bool
	// Port restricts the routing to one port of its hosts; 0: all (parentRefs[].port).
	Port int
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
	CORS     *plan.CORS
	Response time.Duration // until the response head; 0 none
	Idle     time.Duration // 0 the proxy's default
	Limits   []string      // RateLimits that guard it, by plan.RateLimit.Name
	Session  *plan.Session // nil: those of the destinations
	// Delegate is the routing whose rules stand here; nil: this rule acts itself.
	Delegate *ident.Name
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
	Rewrite *plan.Rewrite       // nil: the rule's
	Mirrors []MirrorDestination // besides the rule's: of the requests of this share
	// Status answers this share instead: a reference that may not be used. 0: forward.
	Status uint32
	// Redirect answers this share, when the target is there; CORS is in the place of the rule's (plan.Destination).
	Redirect *plan.Redirect
	CORS     *plan.CORS
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
	Subnets         []string // CIDRs of the destination; none: any
	SourceSubnet    string   // "" any
	SourceLabels    map[string]string
	SourceNamespace string
	Gateways        []string
}

// TLSRule is one rule for TLS connections that are not ended here.
type TLSRule struct {
	Origin  ident.Origin
	Matches []TLSMatch // any; never empty
	Forward []WeightedDestination
}

// TLSMatch is one alternative of a TLSRule.
type TLSMatch struct {
	TCPMatch
	ServerNames []string // canonical, wildcards allowed; never empty
}

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
	Ports          []PortPolicy      // a port's policy replaces this one as a whole

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
	Traffic TrafficPolicy
}

// Gateway is a set of doors (Istio Gateway).
type Gateway struct {
	Meta
	Selector map[string]string // of gateway workloads, in all namespaces; empty: every gateway
	Servers  []Server
	// Own is set for a Gateway API Gateway: proxies are started for it alone, and no selector finds them. Its Name is the
	// object's. Routings name the exact servers that they attach to, and the servers of one port are isolated: a request is
	// for the server with the most specific host that covers its own (ident.CompareSpecific), also when no routing is attached
	// there (then 404), and never for another one whose host covers it too. A request on a TLS connection whose server name
	// leads to another server of the port than its host does is misdirected: 421 (RFC 9110 section 15.5.20).
	Own         bool
	TrustedHops uint32
	// ProxyProtocol expects a PROXY protocol header on every connection.
	ProxyProtocol bool
	// Addresses are IPs that an Own gateway is to be reached at; none: whoever runs it chooses.
	Addresses []string
	// ProxyLabels and ProxyAnnotations are for what is started for an Own gateway (Gateway API infrastructure).
	ProxyLabels, ProxyAnnotations map[string]string
	// ClientCertificate is the Secret by which an Own gateway shows itself where it begins TLS (plan.ClientTLS.Secret, unless
	// that is set); "" none.
	ClientCertificate string
}

// Server is one door of a Gateway. Protocol and TLS together say what it is: HTTP without and with TLS (HTTPS), TCP without
// and with TLS (TLS that is ended, then routed by server name: TLSRules, else TCPRules), and TLS without TLS (passed through).
type Server struct {
	Name     string // unique in an Own gateway: "listener", or "namespace/listenerset/listener"
	Port     int
	Protocol ident.Protocol
	// Hosts are "namespace/host": namespace "*" for any; "." was resolved.
	Hosts  []string
	Origin ident.Origin
	Bind   string // IP to listen on; "" the gateway's
	// TLS ends TLS; nil passes it through (Protocol TLS), or there is none.
	TLS *plan.ServerTLS
	// Auto is AUTO_PASSTHROUGH.
	Auto bool
	// Redirect answers every request with a redirect to https.
	Redirect bool
	// Broken says why the server can't be used as it is: it is not served, and others on its port are. "" it can.
	Broken string
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
	// Matches are the requests that are divided: any; none: every request, and opaque connections too. Others go to the
	// service itself (SMI TrafficSplit v1alpha3, spec.matches).
	Matches []HTTPMatch
}

// SplitBackend is one share.
type SplitBackend struct {
	Host   string
	Port   int    // of the backend; 0: the one that corresponds to the port asked for
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

// SecretName completes the name of a Secret as Istio's objects write it: one without a namespace is of the namespace of the
// proxy that uses it, which a dialect does not know. Names in ServerTLS and ClientTLS are therefore looked up by
// SecretName(name, proxy namespace). "" stays "".
func SecretName(name, namespace string) string {
	if name == "" || strings.ContainsAny(name, "/:") {
		return name
	}
	return namespace + "/" + name
}

// Secret is a certificate, authorities, or both, that a Gateway or a client policy refers to by plan.Secret.Name: "namespace/name"
// of a Secret object, or what manifest.FileSecret makes of paths. A Secret "x-cacert" also fills the Authorities of "x".
type Secret struct {
	Meta
	plan.Secret
}

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

// RateLimit bounds requests that come in at workloads (Linkerd HTTPLocalRateLimitPolicy, malha.dev RateLimit), or, named by a
// route, those of the route.
type RateLimit struct {
	Meta
	Selector map[string]string // of workloads in its namespace; empty: all of them. Not used for one that routes name.
	Port     int               // of the workload; 0: every port
	PortName string            // instead of Port
	ByRoute  bool              // only where a route names it
	Alone    bool              // of several such for one port only the oldest is in force (Linkerd)
	Limit    plan.RateLimit
}

// Egress is what a namespace may reach outside the mesh (Linkerd EgressNetwork). Of several the one with the longest network that
// has an address decides, then the oldest.
type Egress struct {
	Meta
	Networks  []string // CIDRs; none: everything outside the mesh
	Otherwise plan.Otherwise
	Global    bool // for every namespace that has none of its own
}

// Package plan is the narrow waist of Malha: what one proxy must do, as plain values.
//
// The control plane compiles to a Plan and the proxy runs from one; whatever is on the wire or in a file is only
// its spelling, so decode(encode(p)) == p is a property test (internal/wire) and JSON round-trips too.
// It is pure, and knows nothing of Kubernetes, Istio or Linkerd.
//
// A Plan is made of named pieces (Listener, RouteTable, Cluster, Endpoints, Policy). Pieces refer to each other by
// name, are encoded one by one, and are shared between proxies that need the same bytes; therefore nothing in a
// piece may depend on who asks, unless its name does too.
//
// Field numbers in the `plan` tags are the wire format: never reuse one. A proxy that meets a number it does not
// know refuses the piece (a condition that is dropped silently is how a policy opens up; CVE-2022-21679).
package plan

import (
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
)

// Plan is everything that one proxy must do. Slices of pieces are sorted by name, names are unique.
type Plan struct {
	Node      Node         `json:"node" plan:"1"`
	Listeners []Listener   `json:"listeners,omitempty" plan:"2"`
	Routes    []RouteTable `json:"routes,omitempty" plan:"3"`
	Clusters  []Cluster    `json:"clusters,omitempty" plan:"4"`
	Endpoints []Endpoints  `json:"endpoints,omitempty" plan:"5"` // at most one for each cluster, under the cluster's name
	Policies  []Policy     `json:"policies,omitempty" plan:"6"`
}

// Role is what a proxy is for.
type Role string

// The roles.
const (
	Sidecar Role = "sidecar"
	Gateway Role = "gateway"
)

// Node is the proxy that a plan is for, and the workload beside it.
type Node struct {
	Name     ident.Name     `json:"name" plan:"1"` // of the workload (or gateway)
	Role     Role           `json:"role" plan:"2"`
	Identity ident.Identity `json:"identity" plan:"3"`
	Workload WorkloadLabels `json:"workload" plan:"4"`
}

// WorkloadLabels are the words that metrics use for one end of a request. Empty values are shown as "unknown".
type WorkloadLabels struct {
	Workload          string `json:"workload,omitempty" plan:"1"` // istio: source_workload / destination_workload
	Namespace         string `json:"namespace,omitempty" plan:"2"`
	App               string `json:"app,omitempty" plan:"3"`
	Version           string `json:"version,omitempty" plan:"4"`
	CanonicalService  string `json:"canonicalService,omitempty" plan:"5"`
	CanonicalRevision string `json:"canonicalRevision,omitempty" plan:"6"`
	Cluster           string `json:"cluster,omitempty" plan:"7"`
}

// Direction says which side of the workload a listener serves.
type Direction string

// The directions.
const (
	Inbound  Direction = "inbound"  // towards the workload: mTLS, policies, reporter="destination"
	Outbound Direction = "outbound" // from the workload: routing, balancing, reporter="source"
	Edge     Direction = "edge"     // a gateway's door: routing and balancing for strangers, reporter="source"
)

// TLSMode says what an inbound listener does about mesh TLS.
type TLSMode string

// The modes of PeerAuthentication.
const (
	TLSDisable    TLSMode = "disable"    // plaintext only
	TLSPermissive TLSMode = "permissive" // mesh TLS is terminated, anything else passes as it is
	TLSStrict     TLSMode = "strict"     // mesh TLS with a verified peer, or the connection is closed
)

// Listener is one door of the proxy.
type Listener struct {
	Name      string         `json:"name" plan:"1"`
	Bind      string         `json:"bind" plan:"2"` // IP:port
	Direction Direction      `json:"direction" plan:"3"`
	Protocol  ident.Protocol `json:"protocol" plan:"4"`
	// Forward makes the listener an explicit forward proxy (RFC 9110 section 3.7 "proxy"): requests in absolute-form and
	// CONNECT. The port of the target selects the route table from Ports.
	Forward bool          `json:"forward,omitempty" plan:"5"`
	Ports   []ForwardPort `json:"ports,omitempty" plan:"6"` // sorted by port; Forward only
	// Routes names the RouteTable for HTTP traffic.
	Routes string `json:"routes,omitempty" plan:"7"`
	// Host, when set, is the host that every request of this listener is for, whatever its Host header says: an
	// explicit local port stands for one service. The authority is rewritten to Host:Port.
	Host string `json:"host,omitempty" plan:"8"`
	Port int    `json:"port,omitempty" plan:"9"` // service port (outbound), workload port (inbound), server port (edge)
	// TCP is where opaque connections go.
	TCP []Destination `json:"tcp,omitempty" plan:"10"`
	TLS TLSMode       `json:"tls,omitempty" plan:"11"` // inbound only
	// Policies names the authorization policies that guard the listener, in any order. Inbound and edge only.
	Policies []string     `json:"policies,omitempty" plan:"12"`
	Origin   ident.Origin `json:"origin,omitzero" plan:"13"`
	// TCPOrigin is the rule that TCP came from.
	TCPOrigin ident.Origin `json:"tcpOrigin,omitzero" plan:"14"`
	TCPIdle   Duration     `json:"tcpIdle,omitempty" plan:"15"` // 0: the proxy's default
}

// ForwardPort is what a forward proxy does for targets with one port.
type ForwardPort struct {
	Port     int            `json:"port" plan:"1"`
	Protocol ident.Protocol `json:"protocol" plan:"2"`         // what is spoken inside a CONNECT tunnel
	Routes   string         `json:"routes,omitempty" plan:"3"` // RouteTable for HTTP
	Hosts    []ForwardHost  `json:"hosts,omitempty" plan:"4"`  // opaque services on this port, sorted by host
}

// ForwardHost is an opaque service behind a forward proxy.
type ForwardHost struct {
	Host   string        `json:"host" plan:"1"` // canonical, every name form has its own entry
	TCP    []Destination `json:"tcp" plan:"2"`
	Origin ident.Origin  `json:"origin,omitzero" plan:"3"`
	// Detect is set for a service that nobody declared to be opaque: a tunnel whose first bytes are HTTP takes the
	// port's Routes, any other takes TCP.
	Detect bool `json:"detect,omitempty" plan:"4"`
}

// RouteTable decides for the HTTP requests of a listener.
type RouteTable struct {
	Name  string        `json:"name" plan:"1"`
	Hosts []VirtualHost `json:"hosts,omitempty" plan:"2"`
	// Otherwise says what happens to a request whose host no VirtualHost names.
	Otherwise Otherwise `json:"otherwise,omitempty" plan:"3"`
}

// Otherwise is the fate of a request for a host that the mesh does not know.
type Otherwise string

// The fates.
const (
	NotFound    Otherwise = "notFound"    // 404, flag NR
	Passthrough Otherwise = "passthrough" // dial the host as written (outbound traffic policy ALLOW_ANY)
	Block       Otherwise = "block"       // 502 (outbound traffic policy REGISTRY_ONLY)
)

// VirtualHost is the rules for a set of hosts.
type VirtualHost struct {
	Name string `json:"name" plan:"1"` // "reviews.default.svc.cluster.local:9080"
	// Domains are canonical hosts without port: exact, "*.suffix", or "*". The most specific one wins: exact, then the
	// longest suffix, then "*". A domain stands once in a table.
	Domains []string `json:"domains" plan:"2"`
	Routes  []Route  `json:"routes,omitempty" plan:"3"` // the first that matches wins
	// RetryBudget bounds the retries of all routes together.
	RetryBudget RetryBudget  `json:"retryBudget,omitzero" plan:"4"`
	Origin      ident.Origin `json:"origin,omitzero" plan:"5"`
	// Service describes the destination for metrics; empty at a gateway.
	Service ServiceLabels `json:"service,omitzero" plan:"6"`
}

// ServiceLabels are the words that metrics use for a destination service.
type ServiceLabels struct {
	Host      string `json:"host,omitempty" plan:"1"` // destination_service
	Name      string `json:"name,omitempty" plan:"2"` // destination_service_name
	Namespace string `json:"namespace,omitempty" plan:"3"`
}

// RetryBudget bounds retries to a share of requests (Linkerd ServiceProfile retryBudget): over the last TTL, retries
// may be at most Ratio × requests plus MinPerSecond × TTL. The zero budget means the proxy's default (0.2, 10, 10 s).
type RetryBudget struct {
	Ratio        float64  `json:"ratio,omitempty" plan:"1"`
	MinPerSecond uint32   `json:"minPerSecond,omitempty" plan:"2"`
	TTL          Duration `json:"ttl,omitempty" plan:"3"`
}

// Route is one rule: when Match holds, exactly one of Forward, Redirect and Direct happens.
// With none of them the route answers 503 with flag NC: a reference that could not be resolved fails closed.
type Route struct {
	Name     string          `json:"name,omitempty" plan:"1"` // for logs and metrics; "default" when the user gave none
	Origin   ident.Origin    `json:"origin,omitzero" plan:"2"`
	Match    Match           `json:"match,omitzero" plan:"3"`
	Forward  []Destination   `json:"forward,omitempty" plan:"4"` // weights are relative; weight 0 gets nothing; a lone one gets all
	Redirect *Redirect       `json:"redirect,omitempty" plan:"5"`
	Direct   *DirectResponse `json:"direct,omitempty" plan:"6"`
	Rewrite  *Rewrite        `json:"rewrite,omitempty" plan:"7"`
	Headers  HeaderOps       `json:"headers,omitzero" plan:"8"`
	Timeout  Duration        `json:"timeout,omitempty" plan:"9"` // of the whole exchange, retries included; 0 none
	Retry    *Retry          `json:"retry,omitempty" plan:"10"`  // nil: no retries
	Fault    *Fault          `json:"fault,omitempty" plan:"11"`
	Classes  []ResponseClass `json:"classes,omitempty" plan:"12"` // Linkerd responseClasses, first match wins
	// Profile is the name of the Linkerd ServiceProfile route, for the rt_route label; "" without a profile.
	Profile string   `json:"profile,omitempty" plan:"13"`
	Mirrors []Mirror `json:"mirrors,omitempty" plan:"14"`
}

// Match is a conjunction: every field that is set must hold. The zero Match holds for every request.
type Match struct {
	Path      *match.String `json:"path,omitempty" plan:"1"` // canonical path without query
	Method    *match.String `json:"method,omitempty" plan:"2"`
	Scheme    *match.String `json:"scheme,omitempty" plan:"3"`
	Authority *match.String `json:"authority,omitempty" plan:"4"` // as sent, with its port
	Headers   []FieldMatch  `json:"headers,omitempty" plan:"5"`
	Query     []FieldMatch  `json:"query,omitempty" plan:"6"` // by parameter, first value
	Cond      *Cond         `json:"cond,omitempty" plan:"7"`
}

// FieldMatch is a condition on one header (lower-case name) or query parameter. A field that is absent fails it,
// unless Invert: then absent satisfies it (Istio withoutHeaders).
type FieldMatch struct {
	Name   string       `json:"name" plan:"1"`
	Value  match.String `json:"value" plan:"2"`
	Invert bool         `json:"invert,omitempty" plan:"3"`
}

// Cond is a condition tree (Linkerd RequestMatch): every field that is set must hold.
type Cond struct {
	Path   *match.String `json:"path,omitempty" plan:"1"`
	Method *match.String `json:"method,omitempty" plan:"2"`
	All    []Cond        `json:"all,omitempty" plan:"3"`
	Any    []Cond        `json:"any,omitempty" plan:"4"`
	Not    *Cond         `json:"not,omitempty" plan:"5"`
}

// Destination is a cluster and its share of the traffic.
type Destination struct {
	Cluster string    `json:"cluster" plan:"1"`
	Weight  uint32    `json:"weight,omitempty" plan:"2"`
	Headers HeaderOps `json:"headers,omitzero" plan:"3"`
}

// Mirror sends a copy of requests to a cluster and forgets the answer.
type Mirror struct {
	Cluster string  `json:"cluster" plan:"1"`
	Percent float64 `json:"percent" plan:"2"` // 0 to 100
}

// HeaderOps changes headers on the way. Order: remove, set, add. Names are lower-case.
type HeaderOps struct {
	Request  FieldOps `json:"request,omitzero" plan:"1"`
	Response FieldOps `json:"response,omitzero" plan:"2"`
}

// FieldOps is one direction of HeaderOps.
type FieldOps struct {
	Set    []Field  `json:"set,omitempty" plan:"1"`
	Add    []Field  `json:"add,omitempty" plan:"2"`
	Remove []string `json:"remove,omitempty" plan:"3"`
}

// Field is a header name (lower-case) and value.
type Field struct {
	Name  string `json:"name" plan:"1"`
	Value string `json:"value" plan:"2"`
}

// Rewrite changes the request line before it goes upstream. An empty field changes nothing.
type Rewrite struct {
	// Path replaces the matched prefix when the route matched by Prefix or Segment, else the whole path.
	Path      string `json:"path,omitempty" plan:"1"`
	Authority string `json:"authority,omitempty" plan:"2"`
}

// Redirect answers with a Location. An empty field keeps the request's.
type Redirect struct {
	Status    int    `json:"status" plan:"1"` // 301, 302, 303, 307 or 308
	Scheme    string `json:"scheme,omitempty" plan:"2"`
	Authority string `json:"authority,omitempty" plan:"3"`
	Port      int    `json:"port,omitempty" plan:"4"`
	Path      string `json:"path,omitempty" plan:"5"` // replaces as in Rewrite
	// WholePath makes Path replace the whole path even when the route matched by Prefix or Segment (Istio redirect.uri).
	WholePath bool `json:"wholePath,omitempty" plan:"6"`
}

// DirectResponse answers without going upstream.
type DirectResponse struct {
	Status int    `json:"status" plan:"1"`
	Body   []byte `json:"body,omitempty" plan:"2"`
}

// RetryOn is a set of retry conditions.
type RetryOn uint32

// The conditions, with Envoy's names (x-envoy-retry-on) unless noted.
const (
	RetryConnectFailure RetryOn = 1 << iota // no connection could be made: nothing was sent
	RetryRefusedStream                      // HTTP/2 REFUSED_STREAM, or a pooled connection that died unused: nothing was processed
	RetryReset                              // the upstream reset or closed before a response head
	Retry5xx                                // any 5xx, and everything in RetryReset, RetryConnectFailure, RetryRefusedStream
	RetryGatewayError                       // 502, 503, 504
	RetryRetriable4xx                       // 409
	RetryStatusCodes                        // one of Retry.StatusCodes
	RetryGRPCCancelled
	RetryGRPCDeadline
	RetryGRPCInternal
	RetryGRPCExhausted
	RetryGRPCUnavailable
	RetryFailureClass // the response class says failure (Linkerd isRetryable)
)

// Retry says when and how often a failed request is sent again. It is never sent again once a response head went
// downstream, nor when its body was not kept (at most 64 KiB are).
type Retry struct {
	Attempts    int      `json:"attempts" plan:"1"` // beyond the first
	On          RetryOn  `json:"on" plan:"2"`
	StatusCodes []int    `json:"statusCodes,omitempty" plan:"3"`
	PerTry      Duration `json:"perTry,omitempty" plan:"4"` // 0: the route's timeout
	BackoffBase Duration `json:"backoffBase,omitempty" plan:"5"`
	BackoffMax  Duration `json:"backoffMax,omitempty" plan:"6"`
}

// Fault injects trouble before routing, on the client's side.
type Fault struct {
	Delay        Duration `json:"delay,omitempty" plan:"1"`
	DelayPercent float64  `json:"delayPercent,omitempty" plan:"2"` // 0 to 100
	AbortStatus  int      `json:"abortStatus,omitempty" plan:"3"`
	AbortGRPC    *int     `json:"abortGRPC,omitempty" plan:"4"` // gRPC status code; exclusive with AbortStatus
	AbortPercent float64  `json:"abortPercent,omitempty" plan:"5"`
}

// ResponseClass calls responses a failure or a success by status.
type ResponseClass struct {
	Cond    StatusCond `json:"cond" plan:"1"`
	Failure bool       `json:"failure,omitempty" plan:"2"`
}

// StatusCond is a condition tree over a status code (Linkerd ResponseMatch): every field that is set must hold.
type StatusCond struct {
	Min int          `json:"min,omitempty" plan:"1"` // inclusive; 0 no bound
	Max int          `json:"max,omitempty" plan:"2"` // inclusive; 0 no bound
	All []StatusCond `json:"all,omitempty" plan:"3"`
	Any []StatusCond `json:"any,omitempty" plan:"4"`
	Not *StatusCond  `json:"not,omitempty" plan:"5"`
}

// Balancer is a load-balancing policy.
type Balancer string

// The policies. The zero Balancer is LeastRequest.
const (
	LeastRequest Balancer = "leastRequest" // of two random choices
	RoundRobin   Balancer = "roundRobin"
	Random       Balancer = "random"
)

// Cluster is a group of endpoints that are alike, and how to use them.
type Cluster struct {
	Name     string         `json:"name" plan:"1"` // "outbound|9080|v2|reviews.default.svc.cluster.local", "inbound|9080||"
	Host     string         `json:"host,omitempty" plan:"2"`
	Port     int            `json:"port,omitempty" plan:"3"`
	Subset   string         `json:"subset,omitempty" plan:"4"`
	Protocol ident.Protocol `json:"protocol" plan:"5"` // spoken to the endpoints: HTTP, HTTP2, GRPC or TCP; Detect: as the client does
	Service  ServiceLabels  `json:"service,omitzero" plan:"6"`
	Balancer Balancer       `json:"balancer,omitempty" plan:"7"`
	// TLS says what is spoken to endpoints that are in the mesh (Endpoint.Identity set).
	TLS            UpstreamTLS  `json:"tls,omitempty" plan:"8"`
	SNI            string       `json:"sni,omitempty" plan:"9"` // "outbound_.9080_.v2_.reviews.default.svc.cluster.local"
	ConnectTimeout Duration     `json:"connectTimeout,omitempty" plan:"10"`
	Limits         Limits       `json:"limits,omitzero" plan:"11"`
	Outlier        *Outlier     `json:"outlier,omitempty" plan:"12"`
	Origin         ident.Origin `json:"origin,omitzero" plan:"13"` // the DestinationRule in force, or the Service
}

// UpstreamTLS is the client side of mesh TLS.
type UpstreamTLS string

// The modes. The zero mode is TLSAuto.
const (
	TLSAuto   UpstreamTLS = ""       // mutual TLS to endpoints with an identity, plaintext to others
	TLSOff    UpstreamTLS = "off"    // plaintext to all
	TLSMutual UpstreamTLS = "mutual" // mutual TLS to all: endpoints without an identity are not used
)

// Limits are the circuit limits of a cluster. 0 means no limit, or the proxy's default for times.
// An overflow answers 503 with flag UO.
type Limits struct {
	MaxConnections           uint32   `json:"maxConnections,omitempty" plan:"1"`
	MaxPendingRequests       uint32   `json:"maxPendingRequests,omitempty" plan:"2"` // waiting for a connection (http1MaxPendingRequests)
	MaxRequests              uint32   `json:"maxRequests,omitempty" plan:"3"`        // in flight (http2MaxRequests)
	MaxRetries               uint32   `json:"maxRetries,omitempty" plan:"4"`         // in flight
	MaxRequestsPerConnection uint32   `json:"maxRequestsPerConnection,omitempty" plan:"5"`
	IdleTimeout              Duration `json:"idleTimeout,omitempty" plan:"6"`
	MaxConnectionDuration    Duration `json:"maxConnectionDuration,omitempty" plan:"7"`
}

// Outlier is passive health: endpoints that fail are put aside for a while.
type Outlier struct {
	Consecutive5xx          uint32   `json:"consecutive5xx,omitempty" plan:"1"`          // 0 off
	ConsecutiveGatewayError uint32   `json:"consecutiveGatewayError,omitempty" plan:"2"` // 502, 503, 504 and connection errors; 0 off
	Interval                Duration `json:"interval,omitempty" plan:"3"`                // between sweeps that let endpoints back; 0: 10 s
	BaseEjection            Duration `json:"baseEjection,omitempty" plan:"4"`            // × number of ejections; 0: 30 s
	MaxEjectionPercent      uint32   `json:"maxEjectionPercent,omitempty" plan:"5"`      // 0: 10; at least one endpoint may always be ejected
	MinHealthPercent        uint32   `json:"minHealthPercent,omitempty" plan:"6"`        // below it, ejection is ignored; 0 off
}

// Endpoints is where the members of a cluster are.
type Endpoints struct {
	Cluster   string     `json:"cluster" plan:"1"`
	Endpoints []Endpoint `json:"endpoints,omitempty" plan:"2"` // sorted by address
}

// Endpoint is one member of a cluster.
type Endpoint struct {
	Address  string         `json:"address" plan:"1"` // IP:port to dial: the sidecar's inbound port for mesh workloads
	Identity ident.Identity `json:"identity,omitzero" plan:"2"`
	Weight   uint32         `json:"weight,omitempty" plan:"3"` // 0 means 1
	Workload WorkloadLabels `json:"workload,omitzero" plan:"4"`
	// Plaintext is set for a mesh endpoint whose PeerAuthentication mode is DISABLE: automatic mutual TLS must not be tried.
	Plaintext bool `json:"plaintext,omitempty" plan:"5"`
	// HTTP2 is set when the endpoint's sidecar takes HTTP/2 for an application that speaks HTTP/1.1. Over mesh TLS, requests
	// of an HTTP cluster then share connections; upgrades and plaintext stay on HTTP/1.1.
	HTTP2 bool `json:"http2,omitempty" plan:"6"`
}

// Action is what a policy does to requests that match it.
type Action string

// The actions, in the order they are asked: DENY, then ALLOW. AUDIT decides nothing.
const (
	Allow Action = "allow"
	Deny  Action = "deny"
	Audit Action = "audit"
)

// Policy is one authorization policy (Istio AuthorizationPolicy semantics): a DENY policy that matches denies; if any
// ALLOW policy guards a listener, one of them must match. An ALLOW policy without rules therefore denies all.
type Policy struct {
	Name   string       `json:"name" plan:"1"` // "production/backend-policy"
	Action Action       `json:"action" plan:"2"`
	Rules  []PolicyRule `json:"rules,omitempty" plan:"3"` // any may match
	Origin ident.Origin `json:"origin,omitzero" plan:"4"`
	DryRun bool         `json:"dryRun,omitempty" plan:"5"`
}

// PolicyRule matches when one of From (if any), one of To (if any) and all of When match.
type PolicyRule struct {
	From   []Source     `json:"from,omitempty" plan:"1"`
	To     []Operation  `json:"to,omitempty" plan:"2"`
	When   []Condition  `json:"when,omitempty" plan:"3"`
	Origin ident.Origin `json:"origin,omitzero" plan:"4"`
}

// Source is a conjunction over the peer; the strings of one field are alternatives.
type Source struct {
	Principals    []match.String `json:"principals,omitempty" plan:"1"` // ident.Identity.Principal
	NotPrincipals []match.String `json:"notPrincipals,omitempty" plan:"2"`
	Namespaces    []match.String `json:"namespaces,omitempty" plan:"3"`
	NotNamespaces []match.String `json:"notNamespaces,omitempty" plan:"4"`
	IPBlocks      []string       `json:"ipBlocks,omitempty" plan:"5"` // CIDR or address of the TCP peer
	NotIPBlocks   []string       `json:"notIPBlocks,omitempty" plan:"6"`
}

// Operation is a conjunction over the request; the strings of one field are alternatives.
type Operation struct {
	Hosts      []match.String `json:"hosts,omitempty" plan:"1"` // case-insensitive
	NotHosts   []match.String `json:"notHosts,omitempty" plan:"2"`
	Ports      []int          `json:"ports,omitempty" plan:"3"` // workload port
	NotPorts   []int          `json:"notPorts,omitempty" plan:"4"`
	Methods    []match.String `json:"methods,omitempty" plan:"5"`
	NotMethods []match.String `json:"notMethods,omitempty" plan:"6"`
	Paths      []match.String `json:"paths,omitempty" plan:"7"` // canonical path, no query
	NotPaths   []match.String `json:"notPaths,omitempty" plan:"8"`
}

// Condition is one `when` entry.
type Condition struct {
	Key       string         `json:"key" plan:"1"` // request.headers[x], source.ip, source.namespace, source.principal, destination.ip, destination.port
	Values    []match.String `json:"values,omitempty" plan:"2"`
	NotValues []match.String `json:"notValues,omitempty" plan:"3"`
}

// Duration is a time.Duration that JSON shows as people write it ("1.5s").
type Duration time.Duration

// D returns d as a time.Duration.
func (d Duration) D() time.Duration { return time.Duration(d) }

// MarshalText writes d as time.Duration.String does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return err
	}
	*d = Duration(v)
	return nil
}

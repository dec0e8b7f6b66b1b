package model

import (
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

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

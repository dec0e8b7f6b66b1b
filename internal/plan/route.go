package plan

import (
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
)

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
	// ByAddress makes the host one for captured requests that were going to one of the addresses among its Domains, whatever
	// host they name, and for no others that were going to an address of another host of the table. (Routes of the Gateway API
	// are for the requests that are sent to a Service: GEP-1294; those of Istio, for hosts.)
	ByAddress bool `json:"byAddress,omitempty" plan:"7"`
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
	CORS    *CORS    `json:"cors,omitempty" plan:"15"`
	// Response is how long the destination may take until its response head, retries included; 0 no limit.
	Response Duration `json:"response,omitempty" plan:"16"`
	// Idle is how long neither side may say anything on the stream; 0: the proxy's default.
	Idle   Duration `json:"idle,omitempty" plan:"17"`
	Limits []string `json:"limits,omitempty" plan:"18"` // names of RateLimits; one that is not in the plan fails the route
	// Session keeps a client on one endpoint of one of the destinations, instead of those that their clusters have. It has neither
	// Idle nor a Key: that is Cluster.RuleSession's.
	Session *Session `json:"session,omitempty" plan:"19"`
}

// CORS is the cross-origin policy of a route (Fetch standard, section 3.2; Istio CorsPolicy; Gateway API HTTPCORSFilter).
// Preflights from an origin that is allowed are answered by the proxy.
type CORS struct {
	Origins     []match.String `json:"origins,omitempty" plan:"1"` // of the Origin header
	Methods     []string       `json:"methods,omitempty" plan:"2"`
	Headers     []string       `json:"headers,omitempty" plan:"3"`
	Expose      []string       `json:"expose,omitempty" plan:"4"`
	MaxAge      Duration       `json:"maxAge,omitempty" plan:"5"` // 0: the field is not sent
	Credentials bool           `json:"credentials,omitempty" plan:"6"`
	// AnswerUnmatched answers preflights of other origins too, without allowing anything; else they go to the destination.
	AnswerUnmatched bool `json:"answerUnmatched,omitempty" plan:"7"`
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
	// Status, when set, answers this share of the requests instead: a reference that can't be used (Gateway API: 500).
	Status  uint32   `json:"status,omitempty" plan:"4"`
	Rewrite *Rewrite `json:"rewrite,omitempty" plan:"5"` // nil: the route's
	Mirrors []Mirror `json:"mirrors,omitempty" plan:"6"` // besides the route's: of the requests that this destination gets
	// Redirect answers this share of the requests. The Cluster is then not asked, though it must be there.
	Redirect *Redirect `json:"redirect,omitempty" plan:"7"`
	// CORS stands in the place of the route's for the requests of this share: among them preflights that the route's leaves open.
	CORS *CORS `json:"cors,omitempty" plan:"8"`
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
	// Format is the value where it has variables: Value is then how it was written. nil: Value itself.
	Format *Format `json:"format,omitempty" plan:"3"`
}

// Rewrite changes the request line before it goes upstream. An empty field changes nothing.
type Rewrite struct {
	// Path replaces the matched prefix when the route matched by Prefix or Segment, else the whole path. A route without a condition
	// on the path matched by the Prefix "/".
	Path      string `json:"path,omitempty" plan:"1"`
	Authority string `json:"authority,omitempty" plan:"2"`
	// Regex (RE2, found anywhere in the path) is replaced by Substitution, in which \1 to \9 are its groups; instead of Path.
	Regex        string `json:"regex,omitempty" plan:"3"`
	Substitution string `json:"substitution,omitempty" plan:"4"`
	// EndpointHost makes the authority the host name of the endpoint that is chosen.
	EndpointHost bool `json:"endpointHost,omitempty" plan:"5"`
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
	// KeepPort keeps the port that the request came with, if Port is 0: else it is that of the scheme, which is not written.
	KeepPort bool `json:"keepPort,omitempty" plan:"7"`
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
	AnyHost     bool     `json:"anyHost,omitempty" plan:"7"` // endpoints that were tried are as good as others
	Farther     bool     `json:"farther,omitempty" plan:"8"` // retries may leave the locality of the first try (retryRemoteLocalities)
}

// SetBackoff sets the pauses to a base, and to at most ten times that, but not over an hour; a base over that grows no more.
func (r *Retry) SetBackoff(base time.Duration) {
	most := base
	if base < time.Hour {
		most = min(10*base, time.Hour)
	}
	r.BackoffBase, r.BackoffMax = Duration(base), Duration(most)
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

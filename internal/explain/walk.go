package explain

import (
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// Walk is the way of one request. What comes after an Answer is absent.
type Walk struct {
	From     ident.Name `json:"from"`
	Role     plan.Role  `json:"role"`
	Identity string     `json:"identity,omitempty"` // SPIFFE id
	Request  Request    `json:"request"`
	Listener Listener   `json:"listener"`
	Policies []Policy   `json:"policies,omitempty"` // of a gateway
	Limits   []Limit    `json:"limits,omitempty"`   // rules of rate limits, of the listener and of the rule; what was used up is not foreseen
	Host     *Host      `json:"host,omitempty"`
	Rules    []Rule     `json:"rules,omitempty"` // tried, in order; the last may be the one that matched
	Action   *Action    `json:"action,omitempty"`
	Branches []Branch   `json:"branches,omitempty"`
	Answer   *Answer    `json:"answer,omitempty"` // this proxy answers itself
	Outcomes []Outcome  `json:"outcomes"`
}

// Listener is where a request enters a proxy.
type Listener struct {
	Name string       `json:"name"`
	Bind string       `json:"bind"`
	Why  string       `json:"why,omitempty"`
	TLS  plan.TLSMode `json:"tls,omitempty"` // inbound
	// ServerName is the entry that a TLS connection chose; Ends is set when its TLS ends here.
	ServerName string       `json:"serverName,omitempty"`
	Ends       bool         `json:"ends,omitempty"`
	Origin     ident.Origin `json:"origin,omitzero"`
}

// Policy is one authorization policy that was asked.
type Policy struct {
	Name    string       `json:"name"`
	Action  plan.Action  `json:"action"`
	DryRun  bool         `json:"dryRun,omitempty"`
	Matched bool         `json:"matched"`
	Rule    int          `json:"rule"` // that matched; -1
	Reasons []string     `json:"reasons,omitempty"`
	Origin  ident.Origin `json:"origin,omitzero"`
}

// Host is the virtual host that serves a request.
type Host struct {
	Name   string       `json:"name"`
	Why    string       `json:"why"`
	Origin ident.Origin `json:"origin,omitzero"`
}

// Rule is one rule that was tried.
type Rule struct {
	Name    string       `json:"name"`
	Index   int          `json:"index"`
	Matched bool         `json:"matched"`
	Why     string       `json:"why"`
	Origin  ident.Origin `json:"origin,omitzero"`
}

// Action is what the rule that matched does to a request.
type Action struct {
	Name     string          `json:"name"`
	Origin   ident.Origin    `json:"origin,omitzero"`
	Timeout  plan.Duration   `json:"timeout,omitempty"`  // 0: none
	Response plan.Duration   `json:"response,omitempty"` // until the response head; 0: none
	Idle     plan.Duration   `json:"idle,omitempty"`     // 0: the proxy's default
	CORS     *CORS           `json:"cors,omitempty"`
	Retry    *Retry          `json:"retry,omitempty"` // nil: no retries
	Fault    *plan.Fault     `json:"fault,omitempty"`
	Rewrite  *plan.Rewrite   `json:"rewrite,omitempty"`
	Headers  *plan.HeaderOps `json:"headers,omitempty"`
	Mirrors  []plan.Mirror   `json:"mirrors,omitempty"`
}

// Retry is a retry policy.
type Retry struct {
	Attempts    int           `json:"attempts"` // beyond the first
	On          []string      `json:"on"`
	PerTry      plan.Duration `json:"perTry,omitempty"`
	BackoffBase plan.Duration `json:"backoffBase,omitempty"`
	BackoffMax  plan.Duration `json:"backoffMax,omitempty"`
	AnyHost     bool          `json:"anyHost,omitempty"`
	Farther     bool          `json:"farther,omitempty"`
}

// Branch is one destination that a request may be sent to.
type Branch struct {
	Share     float64             `json:"share"` // of the requests that are sent, 0 to 1
	Cluster   string              `json:"cluster"`
	Service   string              `json:"service,omitempty"` // host
	Subset    string              `json:"subset,omitempty"`
	Port      int                 `json:"port,omitempty"`
	Balancer  plan.Balancer       `json:"balancer,omitempty"`
	Limits    plan.Limits         `json:"limits,omitzero"`
	Outlier   *plan.Outlier       `json:"outlier,omitempty"`
	Headers   *plan.HeaderOps     `json:"headers,omitempty"` // changed for this destination only
	Method    string              `json:"method,omitempty"`
	Authority string              `json:"authority,omitempty"` // as the destination sees them
	Path      string              `json:"path,omitempty"`
	Rewrite   *plan.Rewrite       `json:"rewrite,omitempty"` // in force: the destination's, else the rule's
	Key       *Key                `json:"key,omitempty"`     // nil: the balancer chooses by itself
	Session   *plan.Session       `json:"session,omitempty"`
	Mirrors   []plan.Mirror       `json:"mirrors,omitempty"`   // besides the rule's
	CORS      *CORS               `json:"cors,omitempty"`      // instead of the rule's
	Originate *plan.ClientTLS     `json:"originate,omitempty"` // TLS to endpoints that are not reached by mesh TLS
	Budget    *plan.ActiveRetries `json:"budget,omitempty"`
	Origin    ident.Origin        `json:"origin,omitzero"`
	Endpoints []Endpoint          `json:"endpoints,omitempty"`
	Answer    *Answer             `json:"answer,omitempty"`
}

// Endpoint is one member of a destination.
type Endpoint struct {
	Address  string     `json:"address"`
	Workload ident.Name `json:"workload,omitzero"`
	Version  string     `json:"version,omitempty"`
	Weight   uint32     `json:"weight"`
	Share    float64    `json:"share"` // of the branch
	MTLS     bool       `json:"mtls"`
	Identity string     `json:"identity,omitempty"` // that it must prove
	Locality string     `json:"locality,omitempty"`
	Near     string     `json:"near,omitempty"`    // how near it is, where that counts
	Arrival  *Arrival   `json:"arrival,omitempty"` // nil: it has no proxy that we know
	Answer   *Answer    `json:"answer,omitempty"`
}

// Arrival is what the proxy of the destination does.
type Arrival struct {
	Node     ident.Name `json:"node"`
	Listener Listener   `json:"listener"`
	Peer     string     `json:"peer,omitempty"` // SPIFFE id that it sees; "" nobody
	Policies []Policy   `json:"policies,omitempty"`
	Limits   []Limit    `json:"limits,omitempty"`
	Allowed  string     `json:"allowed,omitempty"` // why it is let in
	App      string     `json:"app,omitempty"`     // IP:port of the program
	Answer   *Answer    `json:"answer,omitempty"`
}

// Answer is a response that a proxy makes itself.
type Answer struct {
	By       ident.Name   `json:"by"`
	Status   int          `json:"status"` // 0: an opaque connection is closed
	GRPC     *int         `json:"grpc,omitempty"`
	Flags    string       `json:"flags,omitempty"`
	Detail   string       `json:"detail,omitempty"`
	Text     string       `json:"text"`
	Policy   string       `json:"policy,omitempty"`
	Location string       `json:"location,omitempty"`
	Body     string       `json:"body,omitempty"`
	Origin   ident.Origin `json:"origin,omitzero"`
}

// Outcome is one way in which a request may end, and how often. Retries and the health of endpoints are not foreseen.
type Outcome struct {
	Share    float64    `json:"share"`              // 0 to 1
	Workload ident.Name `json:"workload,omitzero"`  // whose program answers
	Version  string     `json:"version,omitempty"`  //
	Subset   string     `json:"subset,omitempty"`   //
	Cluster  string     `json:"cluster,omitempty"`  //
	Locality string     `json:"locality,omitempty"` // of the endpoint
	External string     `json:"external,omitempty"` // address outside the mesh that answers
	Answer   *Answer    `json:"answer,omitempty"`   // or the proxy that does
}

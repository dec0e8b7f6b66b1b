package plan

import (
	"github.com/malha-mesh/malha/internal/ident"
)

// Balancer is a load-balancing policy.
type Balancer string

// The policies. The zero Balancer is LeastRequest.
const (
	LeastRequest Balancer = "leastRequest" // of two random choices
	RoundRobin   Balancer = "roundRobin"
	Random       Balancer = "random"
	PeakEWMA     Balancer = "peakEWMA" // of two random choices the lower product of peak-sensitive latency and requests in flight
	RingHash     Balancer = "ringHash" // by Cluster.Hash
	Maglev       Balancer = "maglev"   // by Cluster.Hash
)

// Cluster is a group of endpoints that are alike, and how to use them.
type Cluster struct {
	Name     string         `json:"name" plan:"1"` // "outbound|9080|v2|reviews.default.svc.cluster.local", "inbound|9080||"
	Host     string         `json:"host,omitempty" plan:"2"`
	Port     int            `json:"port,omitempty" plan:"3"`
	Subset   string         `json:"subset,omitempty" plan:"4"`
	Protocol ident.Protocol `json:"protocol" plan:"5"` // spoken to the endpoints: HTTP, HTTP2, GRPC or TCP; Detect: as the client does, at an edge HTTP/1.1 but for gRPC
	Service  ServiceLabels  `json:"service,omitzero" plan:"6"`
	Balancer Balancer       `json:"balancer,omitempty" plan:"7"`
	// TLS says what is spoken to endpoints that are in the mesh (Endpoint.Identity set).
	TLS            UpstreamTLS    `json:"tls,omitempty" plan:"8"`
	SNI            string         `json:"sni,omitempty" plan:"9"` // "outbound_.9080_.v2_.reviews.default.svc.cluster.local"
	ConnectTimeout Duration       `json:"connectTimeout,omitempty" plan:"10"`
	Limits         Limits         `json:"limits,omitzero" plan:"11"`
	Outlier        *Outlier       `json:"outlier,omitempty" plan:"12"`
	Origin         ident.Origin   `json:"origin,omitzero" plan:"13"` // the DestinationRule in force, or the Service
	Discovery      Discovery      `json:"discovery,omitempty" plan:"14"`
	Originate      *ClientTLS     `json:"originate,omitempty" plan:"15"` // TLS to endpoints that are not in the mesh
	Hash           *Hash          `json:"hash,omitempty" plan:"16"`      // for RingHash and Maglev
	Locality       *Locality      `json:"locality,omitempty" plan:"17"`  // nil: endpoints everywhere are alike
	Warmup         *Warmup        `json:"warmup,omitempty" plan:"18"`    // RoundRobin and LeastRequest only
	Check          *HealthCheck   `json:"check,omitempty" plan:"19"`
	ProxyProtocol  uint32         `json:"proxyProtocol,omitempty" plan:"20"` // version 1 or 2 before everything else on a connection; 0 none
	Tunnel         *Tunnel        `json:"tunnel,omitempty" plan:"21"`        // opaque connections only
	Budget         *ActiveRetries `json:"budget,omitempty" plan:"22"`
	Session        *Session       `json:"session,omitempty" plan:"23"`
	Keepalive      *Keepalive     `json:"keepalive,omitempty" plan:"24"`
	Ping           *Ping          `json:"ping,omitempty" plan:"25"`
	MaxStreams     uint32         `json:"maxStreams,omitempty" plan:"26"`     // at a time on one HTTP/2 connection; 0: what the peer allows
	ClientProtocol bool           `json:"clientProtocol,omitempty" plan:"27"` // HTTP/2 for HTTP/2 requests, else HTTP/1.1 (useClientProtocol)
	// PanicPercent: when fewer endpoints than this share are healthy, health is ignored; 0: Outlier.MinHealthPercent says.
	PanicPercent uint32 `json:"panicPercent,omitempty" plan:"28"`
	// TCPIdle closes opaque connections on which nobody speaks; 0: the listener's.
	TCPIdle Duration `json:"tcpIdle,omitempty" plan:"29"`
	// RuleSession is set when a route that leads here has a Session: the Key of those.
	RuleSession *Session `json:"ruleSession,omitempty" plan:"30"`
}

// Discovery says where a cluster's endpoints come from.
type Discovery string

// The ways.
const (
	Given       Discovery = ""            // Endpoints are addresses
	DNS         Discovery = "dns"         // Endpoints are name:port, each address that a name has is one endpoint
	DNSFirst    Discovery = "dnsFirst"    // one address at a time is used (Istio DNS_ROUND_ROBIN)
	AsRequested Discovery = "asRequested" // the host of the request (HTTP) or of the tunnel is dialled; no Endpoints
)

// Hash says what requests that must meet again have in common. The first that a request has counts: Header, Cookie,
// Query, then SourceIP. A request with none goes to any endpoint.
type Hash struct {
	Header     string  `json:"header,omitempty" plan:"1"` // lower-case
	Cookie     *Cookie `json:"cookie,omitempty" plan:"2"`
	Query      string  `json:"query,omitempty" plan:"3"` // parameter
	SourceIP   bool    `json:"sourceIP,omitempty" plan:"4"`
	RingSize   uint32  `json:"ringSize,omitempty" plan:"5"`   // at least; 0: 1024. At most 8 Mi entries.
	MaglevSize uint32  `json:"maglevSize,omitempty" plan:"6"` // a prime up to 5000011; 0: 65537
}

// Cookie is a cookie by which requests meet again. With HasTTL it is given to clients that have none; a TTL of 0 makes it end
// with the client's session.
type Cookie struct {
	Name   string   `json:"name" plan:"1"`
	Path   string   `json:"path,omitempty" plan:"2"`
	HasTTL bool     `json:"hasTTL,omitempty" plan:"3"`
	TTL    Duration `json:"ttl,omitempty" plan:"4"`
	// Attributes are written behind: "SameSite=Strict", "Secure".
	Attributes []string `json:"attributes,omitempty" plan:"5"`
}

// Session keeps a client on one endpoint: the proxy writes the endpoint into a cookie or header of the answer, and follows
// it while that endpoint is healthy (Istio persistent-session, Gateway API SessionPersistence). What is written names the
// endpoint by a keyed hash of its address: clients learn no addresses and can choose none.
type Session struct {
	Cookie *Cookie  `json:"cookie,omitempty" plan:"1"`
	Header string   `json:"header,omitempty" plan:"2"` // instead of Cookie
	Idle   Duration `json:"idle,omitempty" plan:"3"`
	// Key is the key of the hash: all proxies that have it send a client to the same endpoint. Empty: each proxy makes one when it
	// starts, and sessions end with it.
	Key []byte `json:"key,omitempty" plan:"4"`
	// Lifetime is when a session is over, however often it is used; 0: never. What the client keeps then tells when it began.
	Lifetime Duration `json:"lifetime,omitempty" plan:"5"`
}

// Redacted returns s without its key: what may be shown.
func (s *Session) Redacted() *Session {
	if s == nil || len(s.Key) == 0 {
		return s
	}
	shown := *s
	shown.Key = nil
	return &shown
}

// String redacts.
func (s *Session) String() string { return "session" }

// GoString redacts, too.
func (s *Session) GoString() string { return s.String() }

// Locality is how near endpoints are preferred (Istio localityLbSetting). At most one of Distribute and Priority is set.
type Locality struct {
	// Distribute divides the traffic of clients in From among localities; the first entry that covers the client counts.
	Distribute []Distribution `json:"distribute,omitempty" plan:"1"`
	// Failover names, for a region, the one to go to next. With Priority, that counts first, and then region, zone, subzone.
	Failover []Failover `json:"failover,omitempty" plan:"2"`
	// Priority is label keys, or key=value: the more of them from the first on an endpoint shares with the client, the nearer
	// it is. None: region, zone, subzone.
	Priority []string `json:"priority,omitempty" plan:"3"`
	// Strict keeps farther endpoints only for when no nearer one is healthy or panicking; a farther one never takes a share before.
	// Without it a nearer group below 1/1.4 healthy passes the rest on (Envoy overprovisioning factor).
	Strict bool `json:"strict,omitempty" plan:"4"`
	// ZoneAware prefers the client's region, and divides among its zones by where endpoints and clients are; without Distribute.
	// With Priority, that counts before the region.
	ZoneAware *ZoneAware `json:"zoneAware,omitempty" plan:"5"`
}

// ZoneAware keeps requests in the client's zone as far as its endpoints are not to be overloaded by that (Istio
// ZoneAwareLoadBalancerSetting, Envoy zone aware routing): a zone that has as large a share of the endpoints as it has of the
// clients (Node.Peers) keeps everything, any other one passes the rest on to zones that have more. Where it is not known where clients
// are, or the balancer hashes, all zones of the region are alike.
type ZoneAware struct {
	MinEndpoints uint32 `json:"minEndpoints,omitempty" plan:"1"` // that are healthy, in the region: with fewer its zones are alike; 0: 6
}

// Distribution is the shares of localities, in percent, for clients of one. Localities may end in "*".
type Distribution struct {
	From string          `json:"from" plan:"1"`
	To   []LocalityShare `json:"to" plan:"2"`
}

// LocalityShare is one share.
type LocalityShare struct {
	Locality string `json:"locality" plan:"1"`
	Percent  uint32 `json:"percent" plan:"2"`
}

// Failover is where the traffic of a region goes when it has no healthy endpoint.
type Failover struct {
	From string `json:"from" plan:"1"`
	To   string `json:"to" plan:"2"`
}

// Warmup raises the share of a new endpoint from MinimumPercent to all over Duration: weight × max(MinimumPercent,
// (age/Duration)^(1/Aggression)).
type Warmup struct {
	Duration       Duration `json:"duration" plan:"1"`
	MinimumPercent float64  `json:"minimumPercent,omitempty" plan:"2"` // 0: 10
	Aggression     float64  `json:"aggression,omitempty" plan:"3"`     // 0: 1
}

// HealthCheck asks endpoints how they are. An endpoint is used until it failed.
type HealthCheck struct {
	Path      string   `json:"path,omitempty" plan:"1"`      // HTTP GET wants 200 to 399 (Kubernetes httpGet probes); "" with GRPC unset: a TCP connection is enough
	GRPC      bool     `json:"grpc,omitempty" plan:"2"`      // grpc.health.v1
	Host      string   `json:"host,omitempty" plan:"3"`      // authority of HTTP checks, service of gRPC ones
	Interval  Duration `json:"interval,omitempty" plan:"4"`  // 0: 10 s
	Timeout   Duration `json:"timeout,omitempty" plan:"5"`   // 0: 1 s
	Unhealthy uint32   `json:"unhealthy,omitempty" plan:"6"` // failures in a row; 0: 3
	Healthy   uint32   `json:"healthy,omitempty" plan:"7"`   // successes in a row; 0: 2
	Port      int      `json:"port,omitempty" plan:"8"`      // to ask at the endpoint's address, or 127.0.0.1 for a unix socket; 0: the endpoint's own
	Headers   []Field  `json:"headers,omitempty" plan:"9"`   // of HTTP checks; a user-agent here replaces the proxy's
	// TLS asks on Port over TLS, and believes any certificate (Kubernetes HTTPGetAction.scheme: HTTPS).
	TLS bool `json:"tls,omitempty" plan:"10"`
}

// Tunnel asks the endpoint to open a way on to another host (Istio TrafficPolicy.TunnelSettings).
type Tunnel struct {
	Post bool   `json:"post,omitempty" plan:"1"` // POST instead of CONNECT
	Host string `json:"host" plan:"2"`
	Port int    `json:"port" plan:"3"`
}

// ActiveRetries bounds retries to a share of the requests in flight (Istio retryBudget): at most
// max(MinConcurrent, Percent of them). It stands beside the virtual host's RetryBudget.
type ActiveRetries struct {
	Percent       float64  `json:"percent,omitempty" plan:"1"`
	MinConcurrent uint32   `json:"minConcurrent,omitempty" plan:"2"`
	Interval      Duration `json:"interval,omitempty" plan:"3"` // over which requests count; 0: those in flight now
}

// Keepalive is TCP keep-alive; 0 leaves the system's value.
type Keepalive struct {
	Probes   uint32   `json:"probes,omitempty" plan:"1"`
	Time     Duration `json:"time,omitempty" plan:"2"`
	Interval Duration `json:"interval,omitempty" plan:"3"`
}

// Ping keeps HTTP/2 connections alive.
type Ping struct {
	Interval Duration `json:"interval" plan:"1"`
	Timeout  Duration `json:"timeout" plan:"2"`
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
	// SplitLocal counts errors that the endpoint did not answer itself (connect failures, resets, timeouts) apart.
	SplitLocal       bool   `json:"splitLocal,omitempty" plan:"7"`
	ConsecutiveLocal uint32 `json:"consecutiveLocal,omitempty" plan:"8"` // with SplitLocal; 0 off
	// Statuses replace 5xx as what counts against Consecutive5xx; none: 500 to 599.
	Statuses []StatusRange `json:"statuses,omitempty" plan:"9"`
	// SuccessRate ejects an endpoint whose share of successes over Window, of at least MinRequests, is below it (0 to 1; 0 off).
	SuccessRate float64  `json:"successRate,omitempty" plan:"10"`
	Window      Duration `json:"window,omitempty" plan:"11"`      // 0: 10 s
	MinRequests uint32   `json:"minRequests,omitempty" plan:"12"` // 0: 5
	// Probe lets an ejected endpoint back by one request at a time (Linkerd failure accrual): after BaseEjection, doubled by each
	// probe that fails up to MaxEjection, with Jitter (a ratio). Else time alone lets it back.
	Probe       bool     `json:"probe,omitempty" plan:"13"`
	MaxEjection Duration `json:"maxEjection,omitempty" plan:"14"` // 0: 300 s
	Jitter      float64  `json:"jitter,omitempty" plan:"15"`
}

// StatusRange is a range of status codes, both ends in it.
type StatusRange struct {
	Min int `json:"min" plan:"1"`
	Max int `json:"max" plan:"2"`
}

// Endpoints is where the members of a cluster are.
type Endpoints struct {
	Cluster   string     `json:"cluster" plan:"1"`
	Endpoints []Endpoint `json:"endpoints,omitempty" plan:"2"` // sorted by address
}

// UnixPrefix begins the Address of an endpoint that is a unix socket of the machine, or pod, that the proxy runs in: a path, or "@" and
// a name in the abstract namespace (unix(7)) follow.
const UnixPrefix = "unix://"

// Endpoint is one member of a cluster.
type Endpoint struct {
	// Address is the IP:port to dial: the sidecar's inbound port for mesh workloads; name:port where Cluster.Discovery says so; or
	// UnixPrefix and a socket, where it is Given.
	Address  string         `json:"address" plan:"1"`
	Identity ident.Identity `json:"identity,omitzero" plan:"2"`
	Weight   uint32         `json:"weight,omitempty" plan:"3"` // 0 means 1
	Workload WorkloadLabels `json:"workload,omitzero" plan:"4"`
	// Plaintext is set for a mesh endpoint whose PeerAuthentication mode is DISABLE: automatic mutual TLS must not be tried.
	Plaintext bool `json:"plaintext,omitempty" plan:"5"`
	// HTTP2 is set when the endpoint's sidecar takes HTTP/2 for an application that speaks HTTP/1.1. Over mesh TLS, requests
	// of an HTTP cluster then share connections; upgrades and plaintext stay on HTTP/1.1.
	HTTP2 bool `json:"http2,omitempty" plan:"6"`
	// Locality is where it is, "region/zone/subzone"; "" unknown.
	Locality string   `json:"locality,omitempty" plan:"7"`
	Labels   LabelSet `json:"labels,omitempty" plan:"8"` // those that Cluster.Locality.Priority reads
}

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
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
)

// Plan is everything that one proxy must do. Slices of pieces are sorted by name, names are unique.
type Plan struct {
	Node      Node         `json:"node" plan:"1"`
	Listeners []Listener   `json:"listeners,omitempty" plan:"2"`
	Routes    []RouteTable `json:"routes,omitempty" plan:"3"`
	Clusters  []Cluster    `json:"clusters,omitempty" plan:"4"`
	Endpoints []Endpoints  `json:"endpoints,omitempty" plan:"5"` // at most one for each cluster, under the cluster's name
	Policies  []Policy     `json:"policies,omitempty" plan:"6"`
	Secrets   []Secret     `json:"secrets,omitempty" plan:"7"`
	Limits    []RateLimit  `json:"limits,omitempty" plan:"8"`
	Capture   *Capture     `json:"capture,omitempty" plan:"9"` // nil: no traffic is captured, peers and the program come to the listeners by address
}

// Capture is the doors for connections that the kernel redirects to the proxy, which find out from the socket what they were
// for (SO_ORIGINAL_DST).
type Capture struct {
	// Inbound is the IP:port of connections to the workload. The inbound Listener whose Port they were for takes them, else the
	// one with Port 0, else they are closed. Such listeners have no Bind.
	Inbound string `json:"inbound,omitempty" plan:"1"`
	// Outbound is the IP:port of connections of the workload. The Forward listener takes them, as if the client had said CONNECT
	// to the address that they were for: by ForwardHost.Addresses for opaque ones, by the request's host for HTTP. What is for
	// no host of the plan is passed to where it was going, or not, as ForwardPort.Otherwise says.
	Outbound string `json:"outbound,omitempty" plan:"2"`
	// DNS is the IP:port, UDP and TCP, of captured queries: Names are answered, others are asked of the resolvers of the system.
	DNS   string       `json:"dns,omitempty" plan:"3"`
	Names []NameRecord `json:"names,omitempty" plan:"4"` // sorted by name
	// Otherwise is the fate of outbound connections for ports that the Forward listener does not have; "" as Passthrough.
	Otherwise Otherwise `json:"otherwise,omitempty" plan:"5"`
}

// NameRecord is a name and its addresses.
type NameRecord struct {
	Name      string   `json:"name" plan:"1"`                // canonical host, or "*.suffix"
	Addresses []string `json:"addresses,omitempty" plan:"2"` // IPs; none of a family: NOERROR without an answer
}

// Redacted returns p without private keys and the keys of sessions: it is for people and tools, not for a proxy. p stays as it is.
func (p *Plan) Redacted() *Plan {
	shown := *p
	shown.Secrets = slices.Clone(p.Secrets)
	for i := range shown.Secrets {
		shown.Secrets[i] = shown.Secrets[i].Redacted()
	}
	if slices.ContainsFunc(p.Clusters, func(c Cluster) bool { return c.Session != nil || c.RuleSession != nil }) {
		shown.Clusters = slices.Clone(p.Clusters)
		for i := range shown.Clusters {
			c := &shown.Clusters[i]
			c.Session, c.RuleSession = c.Session.Redacted(), c.RuleSession.Redacted()
		}
	}
	return &shown
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
	Locality string         `json:"locality,omitempty" plan:"5"` // "region/zone/subzone", of which the end may be missing
	Labels   LabelSet       `json:"labels,omitempty" plan:"6"`   // of the workload: those that a Locality.Priority of the plan reads
	View     ident.Origin   `json:"view,omitzero" plan:"7"`      // of the Sidecar that says which hosts the workload sees; zero: all that are exported to it
	// Peers is how many replicas of the workload are ready in each zone of its region, itself among them: "region/zone=number". Empty
	// where no Locality.ZoneAware of the plan reads it.
	Peers LabelSet `json:"peers,omitempty" plan:"8"`
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
	// ServerNames is what happens to TLS connections by the server name that they ask for. At an edge or inbound listener that
	// has any, a connection that none covers is closed; mesh TLS at an inbound one is as TLS says.
	ServerNames []ServerName `json:"serverNames,omitempty" plan:"16"`
	// TCPRoutes are asked before TCP, in order, by the address that a connection is for.
	TCPRoutes []TCPRoute `json:"tcpRoutes,omitempty" plan:"17"`
	// Limits names the RateLimits of all requests of the listener. A name that is not in the plan fails the listener.
	Limits []string `json:"limits,omitempty" plan:"18"`
	// TrustedHops is how many proxies in front of an edge are believed about x-forwarded-for; 0 believes nobody.
	TrustedHops uint32 `json:"trustedHops,omitempty" plan:"19"`
	// ProxyProtocol makes an edge expect a PROXY protocol header (version 1 or 2) on every connection.
	ProxyProtocol bool `json:"proxyProtocol,omitempty" plan:"20"`
	// Outside, outbound only, is the fate of hosts that the mesh does not know, where their addresses decide it: it stands in the
	// place of every Otherwise of the listener, but for NotFound. nil: those decide.
	Outside *Outside `json:"outside,omitempty" plan:"21"`
}

// Outside is which addresses outside the mesh may be reached (Linkerd EgressNetwork). What is asked for by name is for the
// address that the name turns out to have.
type Outside struct {
	Networks  []OutsideNetwork `json:"networks,omitempty" plan:"1"` // the longest that has an address decides
	Otherwise Otherwise        `json:"otherwise" plan:"2"`          // of addresses in none: Passthrough or Block
	Origin    ident.Origin     `json:"origin,omitzero" plan:"3"`    // of Otherwise
}

// OutsideNetwork is the fate of the addresses of one network: Passthrough or Block.
type OutsideNetwork struct {
	Network   string       `json:"network" plan:"1"` // CIDR
	Otherwise Otherwise    `json:"otherwise" plan:"2"`
	Origin    ident.Origin `json:"origin,omitzero" plan:"3"`
}

// ForwardPort is what a forward proxy does for targets with one port. Port 0 is for every port that has no entry.
type ForwardPort struct {
	Port     int            `json:"port" plan:"1"`
	Protocol ident.Protocol `json:"protocol" plan:"2"`         // what is spoken inside a CONNECT tunnel
	Routes   string         `json:"routes,omitempty" plan:"3"` // RouteTable for HTTP
	Hosts    []ForwardHost  `json:"hosts,omitempty" plan:"4"`  // opaque services on this port, sorted by host
	// Otherwise is the fate of a tunnel for a host that Hosts does not name; "" as Passthrough.
	Otherwise Otherwise `json:"otherwise,omitempty" plan:"5"`
}

// ForwardHost is an opaque service behind a forward proxy.
type ForwardHost struct {
	// Host is canonical, and every name form has its own entry; or "*.suffix": an exact one wins, then the longest suffix.
	Host   string        `json:"host" plan:"1"`
	TCP    []Destination `json:"tcp" plan:"2"`
	Origin ident.Origin  `json:"origin,omitzero" plan:"3"`
	// Detect is set for a service that nobody declared to be opaque: a tunnel whose first bytes are HTTP takes the
	// port's Routes, any other takes TCP.
	Detect bool `json:"detect,omitempty" plan:"4"`
	// ServerNames is what happens to TLS connections by the server name that they ask for; others take TCP.
	ServerNames []ServerName `json:"serverNames,omitempty" plan:"5"`
	TCPRoutes   []TCPRoute   `json:"tcpRoutes,omitempty" plan:"6"` // asked before TCP
	// Addresses are the IPs and CIDRs by which captured connections are told to be for it. A longer prefix wins.
	Addresses []string `json:"addresses,omitempty" plan:"7"`
}

// LabelSet is labels as "key=value,key=value", sorted by key: a value that compares.
type LabelSet string

// All returns the labels.
func (l LabelSet) All() iter.Seq2[string, string] {
	return func(yield func(key, value string) bool) {
		for part := range strings.SplitSeq(string(l), ",") {
			if k, v, ok := strings.Cut(part, "="); ok && !yield(k, v) {
				return
			}
		}
	}
}

// Get returns the value of a label, and whether it is there.
func (l LabelSet) Get(key string) (string, bool) {
	for k, v := range l.All() {
		if k == key {
			return v, true
		}
	}
	return "", false
}

// SplitLocality returns the parts of a locality, "region/zone/subzone"; what it does not name is empty.
func SplitLocality(locality string) (region, zone, subzone string) {
	region, rest, _ := strings.Cut(locality, "/")
	zone, subzone, _ = strings.Cut(rest, "/")
	return region, zone, subzone
}

// The labels that say where something is, from far to near. What has no such label is where its locality says.
// Source: Kubernetes, well-known labels; Istio, LocalityLoadBalancerSetting.failoverPriority.
const (
	LabelRegion  = "topology.kubernetes.io/region"
	LabelZone    = "topology.kubernetes.io/zone"
	LabelSubzone = "topology.istio.io/subzone"
)

// PlaceLabel returns what a label that says where something is has to say of a locality, and whether key is such a label.
func PlaceLabel(key, locality string) (value string, is bool) {
	region, zone, subzone := SplitLocality(locality)
	switch key {
	case LabelRegion:
		return region, true
	case LabelZone:
		return zone, true
	case LabelSubzone:
		return subzone, true
	}
	return "", false
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

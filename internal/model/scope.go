package model

import (
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// Instance is where a workload can be reached: facts of the running mesh, which no user writes. On one machine the
// local supervisor makes them, on Kubernetes they come from Pods.
type Instance struct {
	Workload ident.Name
	Ready    bool
	// Inbound maps a workload port to the IP:port of its sidecar's listener: what other proxies dial.
	Inbound map[int]string
	// App maps a workload port to the IP:port where the program itself listens: what its sidecar dials.
	App map[int]string
	// Forward is the IP:port of the sidecar's forward proxy (HTTP_PROXY of the program).
	Forward string
	// Local maps a service port to the IP:port of the explicit local listener for it.
	Local map[ServiceRef]string
	// Captured is set where the kernel redirects the workload's traffic to the sidecar (a Pod): then other proxies dial
	// Captured.Address with the workload's own port, and Inbound, App, Forward and Local stay empty.
	Captured *Captured
}

// Captured is how the traffic of a workload comes to its sidecar.
type Captured struct {
	Address  string // IP of the workload, which the sidecar shares
	Inbound  string // IP:port that inbound connections are redirected to
	Outbound string // IP:port that outbound connections are redirected to
	DNS      string // IP:port that queries are redirected to; "" they are not
	Node     string // of the cluster, for internalTrafficPolicy and PreferSameNode
	// Hostname is its own name below that of the headless Service called Subdomain; "" none.
	Hostname, Subdomain string
}

// ServiceRef names one port of a service by its canonical host.
type ServiceRef struct {
	Host string
	Port int
}

// GatewayInstance is a running gateway proxy.
type GatewayInstance struct {
	Name     ident.Name
	Labels   map[string]string
	Identity ident.Identity
	// Binds maps a server port (Gateway spec.servers[].port.number) to the IP:port that is bound for it.
	Binds map[int]string
	// For is the Own Gateway that the proxy was started for; zero: it serves the Gateways that select its Labels.
	For      ident.Name
	Locality string // "region/zone/subzone"
}

// Delta is what changes between one moment of a mesh and the next, when most stays as it is. What comes, or is another, does not
// go in the same Delta.
type Delta struct {
	Instances []Instance      // new, or instead of that of the same workload
	Unplaced  []ident.Name    // workloads that run nowhere any more
	Groups    []EndpointGroup // new, or instead of that of the same name
	Ungrouped []ident.Name    // groups that are gone
	Routings  []Routing       // new, or instead of that of the same kind and name
	Unrouted  []RoutingName   // routings that are gone
	Workloads []Workload      // new, or instead of that of the same name
	Ended     []ident.Name    // workloads that are gone, and so are their instances
}

// RoutingName names a Routing: several kinds of objects become one.
type RoutingName struct {
	Kind string // Origin.Kind
	ident.Name
}

// Change is what a Delta touched.
type Change struct {
	Services []string     // hosts of services whose members are others now, sorted
	Nodes    []ident.Name // proxies whose own part may be another now, or that are new or gone, sorted
	Routings []*Routing   // that were in force before, or are now, and are not both
}

// Scope is everything that one proxy may see, with each choice that depends on who asks already made. It is the whole
// input of compile: two equal Scopes make equal plans. It is immutable and shares its values with the Config.
type Scope struct {
	Node     plan.Node
	Services []ScopedService // sorted by host
	// Routings are those that speak to this proxy, oldest first, with the rules of delegates where they are referred to
	// (WithDelegates). Conditions on the source are decided: rules and
	// alternatives that can't hold for this proxy are gone, and the fields are empty in the others. So are conditions on
	// gateways for a sidecar; a gateway's servers still differ in them.
	Routings []Routing
	Policies []*AuthzPolicy // that guard this proxy, sorted by name
	Sidecar  *SidecarScope  // set for a sidecar
	Gateway  *GatewayScope  // set for a gateway
	// Labels are the workload's: Locality.Priority compares them with those of endpoints.
	Labels map[string]string
	// Peers is plan.Node.Peers, where any policy of the mesh asks for it.
	Peers plan.LabelSet
	// Secrets are those that it may hold, sorted by plan name: of its own namespace and of files, and for an Own gateway those
	// that its servers name, which the translation allowed. Authorities that a policy names come from anywhere, without keys.
	Secrets []*Secret
	// Limits are those that routes and inbound ports name, sorted by plan name.
	Limits []*RateLimit
	// SessionKey is plan.Session.Key of all sessions, the same for every proxy of the mesh; empty: each proxy makes its own.
	SessionKey []byte
}

// ScopedService is a service as one client sees it.
type ScopedService struct {
	*Service
	Policy  *DestinationPolicy // that wins for this client; nil: none
	Split   *Split             // nil: none
	Profile *Profile           // nil: none
	Members []*Member          // sorted by workload, those without one last
	// Indirect is set for one that only rules lead to: the client can't call it itself (Istio Sidecar egress).
	Indirect bool
}

// Member is a ready workload that a Service selects, or an endpoint that was written down.
type Member struct {
	Workload ident.Name        // zero: an endpoint that was written down
	Labels   map[string]string // a Subset selects on them
	Identity ident.Identity
	Describe plan.WorkloadLabels
	Ports    []MemberPort // sorted by Port
	Locality string       // "region/zone/subzone"
	Weight   uint32       // 0 means 1
	// Host is the member's own name, of which it is the only member ("web-0.web.default.svc.cluster.local"); headless services
	// only, else "".
	Host string
}

// MemberPort is how to reach a member for one port of the service.
type MemberPort struct {
	Port      int            // of the service
	Address   string         // IP:port of the member's sidecar, or of itself when it has none; name:port where the service resolves names
	Plaintext bool           // the member's PeerAuthentication is DISABLE there
	Protocol  ident.Protocol // that the member's sidecar serves there
}

// SidecarScope is what only a sidecar has.
type SidecarScope struct {
	Inbound []InboundPort // sorted by port
	Forward string        // IP:port of the forward proxy; "" none
	// Captured is how traffic comes to it; nil: by address. With it inbound listeners have no Bind, and what goes out is taken as
	// a forward proxy does.
	Captured *Captured
	Local    []LocalPort // sorted by host and port
	// Otherwise is the fate of hosts that are not in view; "" lets them pass.
	Otherwise Otherwise
	// Views are the egress listeners of a Sidecar that have an address of their own, in its order.
	Views []PortView
}

// Otherwise is the fate of destinations that the mesh does not know, and who says so.
type Otherwise struct {
	Fate   plan.Otherwise // "" lets them pass
	Origin ident.Origin
	// Networks are those whose addresses have another fate, longest first, each once.
	Networks []plan.OutsideNetwork
}

// PortView is an egress listener with an address of its own.
type PortView struct {
	Bind     string // IP:port
	Port     int
	Protocol ident.Protocol
	Hosts    []string // of the services that it leads to, sorted
	Origin   ident.Origin
}

// InboundPort is a port of the workload, served by its sidecar.
type InboundPort struct {
	Port     int // of the workload
	Protocol ident.Protocol
	Bind     string // IP:port of the sidecar's listener; "" where traffic is captured
	App      string // IP:port, or plan.UnixPrefix and a socket, where the program listens; "" with Port 0, which is every port that has no entry: where a connection was going
	TLS      plan.TLSMode
	// Ends is the TLS of strangers that the sidecar ends (Sidecar ingress.tls); nil: it passes as opaque bytes, or not, as TLS says.
	// With TLS disabled there is nothing else on the port, with permissive there is mesh TLS besides, and never plaintext; with
	// strict it is not in force.
	Ends *plan.ServerTLS
	// TLSOrigin is the PeerAuthentication that TLS came from; zero for the default.
	TLSOrigin ident.Origin
	Service   *Service     // the first that leads here, for metrics; nil: none does
	Origin    ident.Origin // of the workload's port
	// Pool is the connections to the program: of the Sidecar, else of the DestinationRule of Service; nil: no limits.
	Pool   *TrafficPolicy
	Check  *plan.HealthCheck // of the program; nil none
	Limits []string          // RateLimits of all its requests, by plan.RateLimit.Name
}

// LocalPort is an explicit listener for one port of a service.
type LocalPort struct {
	ServiceRef
	Bind string
}

// GatewayScope is what only a gateway has.
type GatewayScope struct {
	Servers []GatewayServer // sorted by port, then oldest Gateway first, then in the Gateway's order
	Binds   map[int]string  // server port to IP:port
	// ClientCertificate is that of its Own gateway, by plan.Secret.Name; "" none.
	ClientCertificate string
}

// GatewayServer is a Server of a Gateway that selects the proxy.
type GatewayServer struct {
	*Server
	Gateway ident.Name
	// Ref is how routings name it: "namespace/name" of its Gateway, for an Own gateway "namespace/name/server".
	Ref string
	// Own, TrustedHops and ProxyProtocol are the Gateway's.
	Own           bool
	TrustedHops   uint32
	ProxyProtocol bool
}

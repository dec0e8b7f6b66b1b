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
}

// Scope is everything that one proxy may see, with each choice that depends on who asks already made. It is the whole
// input of compile: two equal Scopes make equal plans. It is immutable and shares its values with the Config.
type Scope struct {
	Node     plan.Node
	Services []ScopedService // sorted by host
	// Routings are those that speak to this proxy, oldest first. Conditions on the source are decided: rules and
	// alternatives that can't hold for this proxy are gone, and the fields are empty in the others. So are conditions on
	// gateways for a sidecar; a gateway's servers still differ in them.
	Routings []Routing
	Policies []*AuthzPolicy // that guard this proxy, sorted by name
	Sidecar  *SidecarScope  // set for a sidecar
	Gateway  *GatewayScope  // set for a gateway
}

// ScopedService is a service as one client sees it.
type ScopedService struct {
	*Service
	Policy  *DestinationPolicy // that wins for this client; nil: none
	Split   *Split             // nil: none
	Profile *Profile           // nil: none
	Members []*Member          // sorted by workload
}

// Member is a ready workload that a Service selects.
type Member struct {
	Workload ident.Name
	Labels   map[string]string // a Subset selects on them
	Identity ident.Identity
	Describe plan.WorkloadLabels
	Ports    []MemberPort // sorted by Port
}

// MemberPort is how to reach a member for one port of the service.
type MemberPort struct {
	Port      int            // of the service
	Address   string         // IP:port of the member's sidecar
	Plaintext bool           // the member's PeerAuthentication is DISABLE there
	Protocol  ident.Protocol // that the member's sidecar serves there
}

// SidecarScope is what only a sidecar has.
type SidecarScope struct {
	Inbound []InboundPort // sorted by port
	Forward string        // IP:port of the forward proxy; "" none
	Local   []LocalPort   // sorted by host and port
}

// InboundPort is a port of the workload, served by its sidecar.
type InboundPort struct {
	Port     int // of the workload
	Protocol ident.Protocol
	Bind     string // IP:port of the sidecar's listener
	App      string // IP:port where the program listens
	TLS      plan.TLSMode
	// TLSOrigin is the PeerAuthentication that TLS came from; zero for the default.
	TLSOrigin ident.Origin
	Service   *Service     // the first that leads here, for metrics; nil: none does
	Origin    ident.Origin // of the workload's port
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
}

// GatewayServer is a Server of a Gateway that selects the proxy.
type GatewayServer struct {
	*Server
	Gateway ident.Name
}

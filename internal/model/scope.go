package model

import (
	"github.com/malha-mesh/malha/internal/ident"
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

package model

import (
	"strings"

	"github.com/malha-mesh/malha/internal/plan"
)

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

// Secret is a certificate, authorities, or both, that a Gateway or a client policy refers to by plan.Secret.Name: "namespace/name"
// of a Secret object, or what manifest.FileSecret makes of paths. A Secret "x-cacert" also fills the Authorities of "x".
type Secret struct {
	Meta
	plan.Secret
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

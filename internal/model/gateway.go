package model

import (
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// Gateway is a set of doors (Istio Gateway).
type Gateway struct {
	Meta
	Selector map[string]string // of gateway workloads, in all namespaces; empty: every gateway
	Servers  []Server
	// Own is set for a Gateway API Gateway: proxies are started for it alone, and no selector finds them. Its Name is the
	// object's. Routings name the exact servers that they attach to, and the servers of one port are isolated: a request is
	// for the server with the most specific host that covers its own (ident.CompareSpecific), also when no routing is attached
	// there (then 404), and never for another one whose host covers it too. A request on a TLS connection whose server name
	// leads to another server of the port than its host does is misdirected: 421 (RFC 9110 section 15.5.20).
	Own         bool
	TrustedHops uint32
	// ProxyProtocol expects a PROXY protocol header on every connection.
	ProxyProtocol bool
	// Addresses are IPs that an Own gateway is to be reached at; none: whoever runs it chooses.
	Addresses []string
	// ProxyLabels and ProxyAnnotations are for what is started for an Own gateway (Gateway API infrastructure).
	ProxyLabels, ProxyAnnotations map[string]string
	// ClientCertificate is the Secret by which an Own gateway shows itself where it begins TLS (plan.ClientTLS.Secret, unless
	// that is set); "" none.
	ClientCertificate string
}

// Server is one door of a Gateway. Protocol and TLS together say what it is: HTTP without and with TLS (HTTPS), TCP without
// and with TLS (TLS that is ended, then routed by server name: TLSRules, else TCPRules), and TLS without TLS (passed through).
type Server struct {
	Name     string // unique in an Own gateway: "listener", or "namespace/listenerset/listener"
	Port     int
	Protocol ident.Protocol
	// Hosts are "namespace/host": namespace "*" for any; "." was resolved.
	Hosts  []string
	Origin ident.Origin
	Bind   string // IP to listen on; "" the gateway's
	// TLS ends TLS; nil passes it through (Protocol TLS), or there is none.
	TLS *plan.ServerTLS
	// Auto is AUTO_PASSTHROUGH.
	Auto bool
	// Redirect answers every request with a redirect to https.
	Redirect bool
	// Broken says why the server can't be used as it is: it is not served, and others on its port are. "" it can.
	Broken string
}

package plan

import (
	"github.com/malha-mesh/malha/internal/ident"
)

// ServerName is what a listener does with TLS connections for some server names: it ends their TLS, or passes them on
// as they are.
type ServerName struct {
	// Names are canonical hosts: exact, "*.suffix", or "*" which also takes connections that name none. The most specific
	// one wins, as for VirtualHost.Domains. A name stands once in a listener.
	Names []string `json:"names" plan:"1"`
	// TLS ends it; nil passes the bytes through to TCP.
	TLS      *ServerTLS     `json:"tls,omitempty" plan:"2"`
	Protocol ident.Protocol `json:"protocol,omitempty" plan:"3"` // inside TLS that is ended: HTTP or TCP
	Routes   string         `json:"routes,omitempty" plan:"4"`   // RouteTable, for HTTP
	TCP      []Destination  `json:"tcp,omitempty" plan:"5"`
	// Auto passes a connection to the cluster that its server name spells, "outbound_.9080_.v1_.reviews.default.svc.cluster.local",
	// when that is one of the plan (Istio AUTO_PASSTHROUGH).
	Auto   bool         `json:"auto,omitempty" plan:"6"`
	Origin ident.Origin `json:"origin,omitzero" plan:"7"`
	// TCPRoutes are asked before TCP, as those of the listener.
	TCPRoutes []TCPRoute `json:"tcpRoutes,omitempty" plan:"8"`
	// Limits, as those of the listener: of the requests inside TLS.
	Limits []string `json:"limits,omitempty" plan:"9"`
}

// TCPRoute is where opaque connections for some addresses go.
type TCPRoute struct {
	Subnets []string      `json:"subnets,omitempty" plan:"1"` // CIDRs of the address asked for; none: all
	Forward []Destination `json:"forward,omitempty" plan:"2"` // none: the connection is closed
	Origin  ident.Origin  `json:"origin,omitzero" plan:"3"`
}

// ServerTLSMode says what a server asks of its clients.
type ServerTLSMode string

// The modes (Istio ServerTLSSettings.TLSmode).
const (
	ServeSimple         ServerTLSMode = "simple"         // no client certificate
	ServeMutual         ServerTLSMode = "mutual"         // a client certificate that Authorities vouch for
	ServeOptionalMutual ServerTLSMode = "optionalMutual" // one that is sent must be valid
	ServeAnyClient      ServerTLSMode = "anyClient"      // one is asked for; whoever has none, or any other, is let in
	ServeMesh           ServerTLSMode = "mesh"           // mesh TLS with the proxy's own identity (ISTIO_MUTUAL)
)

// ServerTLS ends TLS at a listener.
type ServerTLS struct {
	Mode        ServerTLSMode `json:"mode" plan:"1"`
	Secrets     []string      `json:"secrets,omitempty" plan:"2"`     // names; the first whose certificate the client can use
	Authorities string        `json:"authorities,omitempty" plan:"3"` // Secret that holds the authorities of clients; and its revocations
	MinVersion  uint16        `json:"minVersion,omitempty" plan:"4"`  // 0x0301 to 0x0304; 0: TLS 1.2
	MaxVersion  uint16        `json:"maxVersion,omitempty" plan:"5"`  // 0: TLS 1.3
	Ciphers     []uint16      `json:"ciphers,omitempty" plan:"6"`     // of TLS 1.2 (IANA numbers); none: Go's choice
	// SubjectAltNames are the names of which the client's certificate must hold one; none: any.
	SubjectAltNames []string `json:"subjectAltNames,omitempty" plan:"7"`
	// CertificateHashes and KeyHashes are SHA-256 of the client's certificate or public key (SPKI), one of which must fit.
	CertificateHashes [][]byte `json:"certificateHashes,omitempty" plan:"8"`
	KeyHashes         [][]byte `json:"keyHashes,omitempty" plan:"9"`
	HTTP1Only         bool     `json:"http1Only,omitempty" plan:"10"` // h2 is not offered
}

// ClientTLS is TLS that the proxy begins for a plaintext request (Istio ClientTLSSettings SIMPLE and MUTUAL, Gateway API
// BackendTLSPolicy). The server is always verified, unless Insecure.
type ClientTLS struct {
	Secret      string `json:"secret,omitempty" plan:"1"`      // our certificate and key; "" none
	Authorities string `json:"authorities,omitempty" plan:"2"` // Secret; "" the system's
	SNI         string `json:"sni,omitempty" plan:"3"`         // "" the cluster's host; where that is a wildcard, the host of the request
	// SubjectAltNames are the names of which the server's certificate must hold one; none: SNI.
	SubjectAltNames []string `json:"subjectAltNames,omitempty" plan:"4"`
	Insecure        bool     `json:"insecure,omitempty" plan:"5"` // insecureSkipVerify
}

// Secret is a certificate with its private key, or authorities, or both, in PEM. A name that a listener or cluster
// refers to and that is not in the plan, or can't be used, takes only what refers to it out of service.
type Secret struct {
	Name        string       `json:"name" plan:"1"`                  // "namespace/name"
	Certificate []byte       `json:"certificate,omitempty" plan:"2"` // leaf first
	Key         []byte       `json:"key,omitempty" plan:"3"`
	Authorities []byte       `json:"authorities,omitempty" plan:"4"`
	Revoked     []byte       `json:"revoked,omitempty" plan:"5"` // CRLs
	Origin      ident.Origin `json:"origin,omitzero" plan:"6"`
}

// Redacted returns s without its private key: what may be shown.
func (s Secret) Redacted() Secret {
	if len(s.Key) > 0 {
		s.Key = []byte("(private key)")
	}
	return s
}

// String redacts.
func (s Secret) String() string { return "secret " + s.Name }

// GoString redacts, too.
func (s Secret) GoString() string { return s.String() }

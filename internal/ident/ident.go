// Package ident holds the names that both sides of the plan may speak: objects, workload identities,
// hosts, protocols and the origin of a rule.
//
// It is pure. Every name has one canonical form, made here once and compared by equality everywhere
// else; no other package lower-cases a host or takes a SPIFFE id apart.
package ident

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// DefaultTrustDomain and ClusterDomain are the names that Kubernetes and Istio use when nobody says otherwise.
const (
	DefaultTrustDomain = "cluster.local"
	ClusterDomain      = "cluster.local"
	// RootNamespace holds the policies that apply to the whole mesh (Istio's default root namespace).
	RootNamespace = "istio-system"
	// DefaultNamespace is the namespace of an object that names none.
	DefaultNamespace = "default"
)

// Name is the namespace and name of an object of any kind.
type Name struct {
	Namespace string `json:"namespace,omitempty" plan:"1"`
	Name      string `json:"name,omitempty" plan:"2"`
}

// String returns "namespace/name".
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// IsZero reports whether n names nothing.
func (n Name) IsZero() bool { return n == Name{} }

// Compare orders names by namespace, then name.
func (n Name) Compare(o Name) int {
	if c := strings.Compare(n.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(n.Name, o.Name)
}

// ParseName reads "NAME" or "NAMESPACE/NAME"; without a namespace it takes def.
func ParseName(s, def string) (Name, error) {
	ns, name, ok := strings.Cut(s, "/")
	if !ok {
		ns, name = def, s
	}
	if ns == "" || name == "" || strings.Contains(name, "/") {
		return Name{}, fmt.Errorf("%q is not a name: write NAME or NAMESPACE/NAME", s)
	}
	return Name{Namespace: ns, Name: name}, nil
}

// ServiceHost returns the fully qualified host of a Kubernetes-shaped Service: name.namespace.svc.cluster.local.
func ServiceHost(n Name) string {
	return n.Name + "." + n.Namespace + ".svc." + ClusterDomain
}

// Identity is who a workload is: the trust domain, namespace and service account of its SPIFFE id.
// The zero Identity is "nobody": an unauthenticated peer.
type Identity struct {
	TrustDomain    string `json:"trustDomain,omitempty" plan:"1"`
	Namespace      string `json:"namespace,omitempty" plan:"2"`
	ServiceAccount string `json:"serviceAccount,omitempty" plan:"3"`
}

// IsZero reports whether i is nobody.
func (i Identity) IsZero() bool { return i == Identity{} }

// URI returns the SPIFFE id, spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT, or "" for nobody.
func (i Identity) URI() string {
	if i.IsZero() {
		return ""
	}
	return "spiffe://" + i.Principal()
}

// Principal returns the SPIFFE id without its scheme, the form AuthorizationPolicy principals are written in, or "" for nobody.
func (i Identity) Principal() string {
	if i.IsZero() {
		return ""
	}
	return i.TrustDomain + "/ns/" + i.Namespace + "/sa/" + i.ServiceAccount
}

// ParseIdentity reads a SPIFFE id of the form that Identity.URI writes. Anything else is an error:
// no query, no fragment, no user, no port, no escapes, no extra path segment.
// (SPIFFE-ID section 2: the characters of a path segment are letters, digits, '.', '-' and '_'.)
func ParseIdentity(uri string) (Identity, error) {
	rest, ok := strings.CutPrefix(uri, "spiffe://")
	if !ok {
		return Identity{}, fmt.Errorf("%q is not a SPIFFE id: it must start with spiffe://", uri)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return Identity{}, fmt.Errorf("%q is not a workload identity: want spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT", uri)
	}
	for _, p := range []string{parts[0], parts[2], parts[4]} {
		if !isSPIFFESegment(p) {
			return Identity{}, fmt.Errorf("%q is not a workload identity: %q is not a valid segment", uri, p)
		}
	}
	if strings.ToLower(parts[0]) != parts[0] {
		return Identity{}, fmt.Errorf("%q is not a workload identity: the trust domain must be lower-case", uri)
	}
	return Identity{TrustDomain: parts[0], Namespace: parts[2], ServiceAccount: parts[4]}, nil
}

func isSPIFFESegment(s string) bool {
	if s == "" || s == "." || s == ".." || len(s) > 253 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

// ErrHost is the cause of every error of CanonicalHost.
var ErrHost = errors.New("not a valid host")

// CanonicalHost returns the one form of a host that the mesh compares: lower-case, no trailing dot, no port,
// an IPv6 literal without brackets or zone and in its shortest form. wildcard allows a leading "*." or a lone "*".
func CanonicalHost(s string, wildcard bool) (string, error) {
	if strings.Contains(s, ":") {
		h := s
		if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
			h = s[1 : len(s)-1]
		}
		a, err := netip.ParseAddr(h)
		if err != nil || a.Zone() != "" { // a zone means something on one machine only (RFC 4007 section 6)
			return "", fmt.Errorf("%w: %q", ErrHost, s)
		}
		return a.String(), nil
	}
	if s == "*" && wildcard {
		return s, nil
	}
	host := strings.TrimSuffix(s, ".")
	if host == "" {
		return "", fmt.Errorf("%w: it is empty", ErrHost)
	}
	body := host
	if wildcard {
		body = strings.TrimPrefix(host, "*.")
	}
	if len(host) > 253 {
		return "", fmt.Errorf("%w: longer than 253 bytes", ErrHost)
	}
	for label := range strings.SplitSeq(body, ".") {
		if label == "" || len(label) > 63 {
			return "", fmt.Errorf("%w: %q", ErrHost, s)
		}
		for i := range len(label) {
			c := label[i]
			switch {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			default:
				return "", fmt.Errorf("%w: %q", ErrHost, s)
			}
		}
	}
	return strings.ToLower(host), nil
}

// RuleHost resolves a host as it stands in a rule of namespace ns: a name without a dot is a Service of ns,
// anything else is already fully qualified (Istio's rule: the rule's namespace counts, never the client's).
func RuleHost(host, ns string) (string, error) {
	h, err := CanonicalHost(host, true)
	if err != nil {
		return "", err
	}
	if h == "*" || strings.Contains(h, ".") || strings.Contains(h, ":") {
		return h, nil
	}
	return ServiceHost(Name{Namespace: ns, Name: h}), nil
}

// Protocol is what is spoken on a port.
type Protocol uint8

// The protocols. Detect means that nobody declared one: the proxy looks at the first bytes, for a short while.
const (
	Detect Protocol = iota
	TCP             // opaque bytes
	HTTP            // HTTP/1.x, and HTTP/2 when the client starts with its preface
	HTTP2           // HTTP/2 with prior knowledge
	GRPC            // HTTP/2 that carries gRPC
	TLS             // TLS that the mesh does not terminate: opaque, routed by server name
	UDP             // not carried by the mesh
)

var protocolNames = [...]string{Detect: "detect", TCP: "tcp", HTTP: "http", HTTP2: "http2", GRPC: "grpc", TLS: "tls", UDP: "udp"}

// String returns the name that Kubernetes users write for p.
func (p Protocol) String() string {
	if int(p) < len(protocolNames) {
		return protocolNames[p]
	}
	return "protocol(" + strconv.Itoa(int(p)) + ")"
}

// MarshalText writes the name.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads a name that MarshalText wrote.
func (p *Protocol) UnmarshalText(b []byte) error {
	for i, n := range protocolNames {
		if n == string(b) {
			*p = Protocol(i)
			return nil
		}
	}
	return fmt.Errorf("unknown protocol %q", b)
}

// IsHTTP reports whether requests on the port can be told apart and routed one by one.
func (p Protocol) IsHTTP() bool { return p == HTTP || p == HTTP2 || p == GRPC }

// PortProtocol decides what is spoken on a Service or Workload port: appProtocol first, then the prefix of the
// port's name before "-", then server-first ports, then Detect. transport is Kubernetes' protocol field ("" means TCP).
// Source: Istio "Protocol Selection"; Kubernetes "Application protocol".
func PortProtocol(appProtocol, portName, transport string, port int) Protocol {
	if strings.EqualFold(transport, "UDP") {
		return UDP
	}
	if appProtocol != "" {
		if p, ok := protocolByName(strings.ToLower(appProtocol)); ok {
			return p
		}
		return TCP // an application protocol we do not know is opaque, as Linkerd has it: never guessed at
	}
	prefix, _, _ := strings.Cut(strings.ToLower(portName), "-")
	if strings.HasPrefix(strings.ToLower(portName), "grpc-web") {
		return HTTP
	}
	if p, ok := protocolByName(prefix); ok {
		return p
	}
	switch port {
	case 25, 53, 587, 3306, 4444, 5432, 6379, 9300, 11211, 27017: // the server speaks first, or not HTTP (Istio, Linkerd opaque ports)
		return TCP
	}
	return Detect
}

// NearProtocol returns the name that an appProtocol was most likely meant by; "" for one that is known, or like none. Any name may
// stand there, but a slip of the pen makes a port of requests one of bytes.
func NearProtocol(appProtocol string) string {
	if _, ok := protocolByName(strings.ToLower(appProtocol)); ok {
		return ""
	}
	return Nearest(appProtocol, []string{
		"http", "kubernetes.io/ws", "grpc-web", "http2", "kubernetes.io/h2c", "grpc", "https", "kubernetes.io/wss", // not those of bytes
	})
}

func protocolByName(s string) (Protocol, bool) {
	switch s {
	case "http", "kubernetes.io/ws", "grpc-web":
		return HTTP, true
	case "http2", "kubernetes.io/h2c", "h2c":
		return HTTP2, true
	case "grpc":
		return GRPC, true
	case "https", "tls", "kubernetes.io/wss":
		return TLS, true
	case "tcp", "mongo", "mysql", "redis", "linkerd.io/tcp", "linkerd.io/opaque":
		return TCP, true
	case "udp":
		return UDP, true
	}
	return Detect, false
}

// Origin is where a rule came from: the object that a person wrote, the rule inside it, and its place in a file.
// It travels with every entry of a plan, so that each answer the mesh makes can name its cause.
type Origin struct {
	Kind      string `json:"kind,omitempty" plan:"1"`      // "VirtualService"; "" with a Rule for a built-in default
	Namespace string `json:"namespace,omitempty" plan:"2"` // namespace of the object
	Name      string `json:"name,omitempty" plan:"3"`      // name of the object
	Rule      string `json:"rule,omitempty" plan:"4"`      // path inside the object, "http[0]"; or the name of a default
	File      string `json:"file,omitempty" plan:"5"`      // path as the user gave it; "" when applied or from an API server
	Line      int    `json:"line,omitempty" plan:"6"`      // 1-based; 0 unknown
}

// IsZero reports whether o says nothing.
func (o Origin) IsZero() bool { return o == Origin{} }

// At returns o for a rule inside the same object, at another line (0 keeps the line).
func (o Origin) At(rule string, line int) Origin {
	o.Rule = rule
	if line > 0 {
		o.Line = line
	}
	return o
}

// String returns "Kind/namespace/name rule (file:line)", leaving out what is not known.
func (o Origin) String() string { return string(o.Append(nil)) }

// Append appends what String returns.
func (o Origin) Append(b []byte) []byte {
	start := len(b)
	if o.Kind != "" {
		b = append(b, o.Kind...)
		b = append(b, '/')
		if o.Namespace != "" {
			b = append(b, o.Namespace...)
			b = append(b, '/')
		}
		b = append(b, o.Name...)
	}
	if o.Rule != "" {
		if len(b) > start {
			b = append(b, ' ')
		}
		b = append(b, o.Rule...)
	}
	if o.File != "" {
		if len(b) > start {
			b = append(b, ' ')
		}
		b = append(b, '(')
		b = append(b, o.File...)
		if o.Line != 0 {
			b = append(b, ':')
			b = strconv.AppendInt(b, int64(o.Line), 10)
		}
		b = append(b, ')')
	}
	return b
}

// Place returns "file:line", "file" or "".
func (o Origin) Place() string {
	if o.File == "" || o.Line == 0 {
		return o.File
	}
	return o.File + ":" + strconv.Itoa(o.Line)
}

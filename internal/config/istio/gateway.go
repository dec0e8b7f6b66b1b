package istio

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

var gatewayFields = manifest.Join(
	manifest.Work("", "selector", "servers[].name", "servers[].hosts", "servers[].bind", "servers[].port.number", "servers[].port.name",
		"servers[].port.protocol"),
	manifest.Work("servers[].tls.", "httpsRedirect", "mode", "credentialName", "credentialNames", "caCertCredentialName", "subjectAltNames", "verifyCertificateSpki", "verifyCertificateHash", "minProtocolVersion",
		"maxProtocolVersion", "cipherSuites"),
	manifest.Differ(filesDiffer, "servers[].tls.serverCertificate", "servers[].tls.privateKey", "servers[].tls.caCertificates", "servers[].tls.tlsCertificates"),
	manifest.Refuse("clients without a valid certificate are not let in: use OPTIONAL_MUTUAL, or SIMPLE", "servers[].tls.insecureSkipVerify"),
	manifest.Fields{{Path: "servers[].tls.insecureSkipVerify", Value: "false", Support: manifest.Works}},
	manifest.Refuse("put the revocations into the Secret that credentialName names, as ca.crl", "servers[].tls.caCrl"),
	manifest.Refuse("route with a VirtualService: Istio does not have this field either", "servers[].defaultEndpoint"),
	manifest.Ignore("a gateway's server has one port", "servers[].port.targetPort"),
)

func gateway(o *manifest.Object, spec []byte, out *model.Config, report *manifest.Report) {
	r, at := newReader(o, report), o.Spec()
	in := &networking.Gateway{}
	if !r.decode(spec, in) {
		return
	}
	g := model.Gateway{Meta: o.Meta(), Selector: r.selector(at.Field("selector"), in.GetSelector())}
	r.topology(&g)
	if len(in.GetServers()) == 0 {
		r.Error(manifest.CodeRequired, at, `add servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]`, "the Gateway has no servers")
	}
	names := map[string]int{}
	for i, s := range in.GetServers() {
		here := at.Field("servers").Index(i)
		name := s.GetPort().GetName()
		if line, twice := names[name]; twice && name != "" {
			r.Error(manifest.CodePorts, here.Field("port").Field("name"), "give each server's port its own name", "port name %q stands twice, first on line %d", name, line)
		}
		names[name] = here.Line()
		g.Servers = append(g.Servers, r.server(here, s))
	}
	out.Gateways = append(out.Gateways, g)
}

// configAnnotation is the proxy's configuration, which Istio reads from Pods. Where gateways have none it stands on the Gateway.
const configAnnotation = "proxy.istio.io/config"

// topology reads what is in front of the gateway (Istio GatewayTopology).
func (r *reader) topology(g *model.Gateway) {
	text, ok := r.object.Annotations[configAnnotation]
	if !ok {
		return
	}
	var config struct {
		GatewayTopology struct {
			NumTrustedProxies uint32    `yaml:"numTrustedProxies"`
			ProxyProtocol     *struct{} `yaml:"proxyProtocol"`
		} `yaml:"gatewayTopology"`
	}
	if err := manifest.Text(text, &config); err != nil {
		r.Error(manifest.CodeBadValue, r.object.Root().Field("metadata").Field("annotations").Key(configAnnotation),
			"write gatewayTopology: {numTrustedProxies: 1, proxyProtocol: {}}; nothing else has a meaning at a Gateway", "annotation %s: %v", configAnnotation, err)
	}
	g.TrustedHops, g.ProxyProtocol = config.GatewayTopology.NumTrustedProxies, config.GatewayTopology.ProxyProtocol != nil
}

// gatewayProtocols are the protocols of a server, and whether TLS belongs to them.
var gatewayProtocols = map[string]struct {
	protocol ident.Protocol
	tls      bool
}{
	"HTTP": {ident.HTTP, false}, "HTTP2": {ident.HTTP2, false}, "GRPC": {ident.GRPC, false}, "GRPC-WEB": {ident.HTTP, false},
	"TCP": {ident.TCP, false}, "MONGO": {ident.TCP, false},
	"HTTPS": {ident.HTTP, true}, "TLS": {ident.TCP, true},
}

func (r *reader) server(at manifest.Cursor, in *networking.Server) model.Server {
	out := model.Server{Name: in.GetName(), Origin: at.Origin(), Bind: r.bind(at.Field("bind"), in.GetBind())}
	if out.Name == "" {
		out.Name = in.GetPort().GetName()
	}
	port := at.Field("port")
	if in.GetPort().GetNumber() == 0 {
		r.Error(manifest.CodeRequired, port, "add port: {number: 80, name: http, protocol: HTTP}", "the server has no port number")
	}
	if in.GetPort().GetName() == "" {
		r.Error(manifest.CodeRequired, port, "add name: http", "the server's port has no name")
	}
	out.Port = r.port(port.Field("number"), in.GetPort().GetNumber())
	name := strings.ToUpper(in.GetPort().GetProtocol())
	p, known := gatewayProtocols[name]
	switch {
	case name == "":
		r.Error(manifest.CodeRequired, port, "add protocol: HTTP", "the server has no protocol")
	case !known:
		r.Error(manifest.CodeBadEnum, port.Field("protocol"), manifest.DidYouMean(name, slices.Sorted(maps.Keys(gatewayProtocols))), "unknown protocol %q", in.GetPort().GetProtocol())
	default:
		out.Protocol = p.protocol
		r.door(at, name, p.tls, in.GetTls(), &out)
	}
	if len(in.GetHosts()) == 0 {
		r.Error(manifest.CodeRequired, at, `add hosts: ["*"]`, "the server has no hosts")
	}
	for i, h := range in.GetHosts() {
		if host := r.serverHost(at.Field("hosts").Index(i), h); host != "" {
			out.Hosts = append(out.Hosts, host)
		}
	}
	return out
}

// door reads what the TLS block makes of a server: one that ends TLS, one that passes it on, or one without.
func (r *reader) door(at manifest.Cursor, protocol string, secure bool, in *networking.ServerTLSSettings, out *model.Server) {
	here := at.Field("tls")
	plainHTTP := !secure && out.Protocol.IsHTTP()
	switch {
	case in == nil && secure:
		r.Error(manifest.CodeServer, at, "add tls: {mode: SIMPLE, credentialName: NAME-OF-A-SECRET}", "a server of protocol %s needs tls", protocol)
	case in == nil:
	case plainHTTP:
		out.Redirect = in.GetHttpsRedirect()
		if in.GetMode() != networking.ServerTLSSettings_PASSTHROUGH || r.ownCertificates(in) {
			r.Error(manifest.CodeServer, here, "write protocol: HTTPS, or keep httpsRedirect alone", "a server of protocol %s has no TLS", protocol)
		}
	case !secure:
		r.Error(manifest.CodeServer, here, "write protocol: TLS", "a server of protocol %s has no TLS", protocol)
	default:
		if in.GetHttpsRedirect() {
			r.Error(manifest.CodeServer, here.Field("httpsRedirect"), "put it on the server with protocol HTTP", "requests of a server with TLS need no redirect to https")
		}
		out.TLS = r.serverTLS(here, in)
		out.Auto = in.GetMode() == networking.ServerTLSSettings_AUTO_PASSTHROUGH
		if in.GetMode() == networking.ServerTLSSettings_PASSTHROUGH || out.Auto {
			out.Protocol = ident.TLS
		}
	}
}

// bind reads the address that a server listens on.
func (r *reader) bind(at manifest.Cursor, s string) string {
	if s == "" {
		return ""
	}
	a, err := netip.ParseAddr(s)
	switch {
	case strings.HasPrefix(s, "unix:"):
		r.Error(manifest.CodeUnsupported, at, "write an IP address", "listening on a unix socket is not supported by Malha")
	case err != nil:
		r.Error(manifest.CodeBadValue, at, "write an IP address", "%q is not an IP address", s)
	}
	return a.String()
}

// serverHost reads "host" or "namespace/host", where the namespace is the one of the VirtualServices that may bind.
func (r *reader) serverHost(at manifest.Cursor, s string) string {
	ns, host, ok := strings.Cut(s, "/")
	if !ok {
		ns, host = "*", s
	}
	switch {
	case ns == ".":
		ns = r.object.Name.Namespace
	case ns != "*" && !manifest.IsDNSLabel(ns):
		r.Error(manifest.CodeBadHost, at, `write NAMESPACE/HOST, "./HOST" or HOST`, "%q is not a namespace", ns)
		return ""
	}
	canonical, err := ident.CanonicalHost(host, true)
	if err != nil {
		r.Error(manifest.CodeBadHost, at, "a host has letters, digits, '-' and '.', and no port; *.example.com and * are wildcards", "%q is not a host", host)
		return ""
	}
	return ns + "/" + canonical
}

package istio

import (
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

const noCertificates = "open an HTTP server; HTTPS needs certificates for gateways, which Malha does not read yet"

var gatewayFields = manifest.Join(
	manifest.Work("", "selector", "servers[].name", "servers[].hosts", "servers[].port.number", "servers[].port.name", "servers[].port.protocol"),
	manifest.Refuse(noCertificates, "servers[].tls"),
	manifest.Refuse("remove it: the gateway decides where it listens", "servers[].bind"),
	manifest.Ignore("a gateway's server has one port", "servers[].port.targetPort"),
)

func gateway(o *manifest.Object, spec []byte, out *model.Config, report *manifest.Report) {
	r, at := newReader(o, report), o.Spec()
	in := &networking.Gateway{}
	if !r.decode(spec, in) {
		return
	}
	g := model.Gateway{Meta: o.Meta(), Selector: r.selector(at.Field("selector"), in.GetSelector())}
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

// gatewayProtocols are the protocols of a server; those with UDP, which no server has, cannot be opened yet.
var gatewayProtocols = map[string]ident.Protocol{
	"HTTP": ident.HTTP, "HTTP2": ident.HTTP2, "GRPC": ident.GRPC, "GRPC-WEB": ident.HTTP,
	"HTTPS": ident.UDP, "TLS": ident.UDP, "TCP": ident.UDP, "MONGO": ident.UDP,
}

func (r *reader) server(at manifest.Cursor, in *networking.Server) model.Server {
	out := model.Server{Name: in.GetName(), Origin: at.Origin()}
	if out.Name == "" {
		out.Name = in.GetPort().GetName()
	}
	port := at.Field("port")
	if in.GetPort().GetNumber() == 0 {
		r.Error(manifest.CodeRequired, port, "add port: {number: 80, name: http, protocol: HTTP}", "the server has no port number")
	}
	out.Port = r.port(port.Field("number"), in.GetPort().GetNumber())
	switch p, known := gatewayProtocols[strings.ToUpper(in.GetPort().GetProtocol())]; {
	case in.GetPort().GetProtocol() == "":
		r.Error(manifest.CodeRequired, port, "add protocol: HTTP", "the server has no protocol")
	case !known:
		names := []string{"HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTPS", "TLS", "TCP", "MONGO"}
		r.Error(manifest.CodeBadEnum, port.Field("protocol"), manifest.DidYouMean(in.GetPort().GetProtocol(), names), "unknown protocol %q", in.GetPort().GetProtocol())
	case p == ident.UDP:
		hint := "open an HTTP server"
		if name := strings.ToUpper(in.GetPort().GetProtocol()); name == "HTTPS" || name == "TLS" {
			hint = noCertificates
		}
		r.Error(manifest.CodeServer, port.Field("protocol"), hint, "servers of protocol %s are not supported by Malha yet", in.GetPort().GetProtocol())
	default:
		out.Protocol = p
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

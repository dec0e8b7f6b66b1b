package istio

import (
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

var sidecarFields = manifest.Join(
	manifest.Work("", "workloadSelector", "inboundConnectionPool", "outboundTrafficPolicy.mode"),
	manifest.Work("egress[].", "port.number", "port.protocol", "port.name", "bind", "hosts"),
	manifest.Work("ingress[].", "port.number", "port.protocol", "port.name", "bind", "defaultEndpoint", "connectionPool"),
	manifest.Work("ingress[].tls.", "mode", "serverCertificate", "privateKey", "caCertificates", "tlsCertificates", "subjectAltNames", "verifyCertificateSpki",
		"verifyCertificateHash", "minProtocolVersion", "maxProtocolVersion", "cipherSuites", "credentialName", "credentialNames", "caCertCredentialName"),
	manifest.Refuse("it is about HTTP servers of a Gateway", "ingress[].tls.httpsRedirect"),
	manifest.Refuse("clients without a valid certificate are not let in: use OPTIONAL_MUTUAL, or SIMPLE", "ingress[].tls.insecureSkipVerify"),
	manifest.Refuse("put the revocations into the Secret that credentialName names, as ca.crl", "ingress[].tls.caCrl"),
	manifest.Refuse("route the hosts to the egress gateway with a VirtualService", "outboundTrafficPolicy.egressProxy"),
	manifest.Ignore("the proxy decides how connections reach it", "egress[].captureMode", "ingress[].captureMode"),
	manifest.Ignore("the port itself is what listens", "egress[].port.targetPort", "ingress[].port.targetPort"),
)

func sidecar(o *manifest.Object, spec []byte, out *model.Config, report *manifest.Report) {
	r, at := newReader(o, report), o.Spec()
	in := &networking.Sidecar{}
	if !r.decode(spec, in) {
		return
	}
	s := model.SidecarPolicy{Meta: o.Meta(), Selector: r.selector(at.Field("workloadSelector").Field("labels"), in.GetWorkloadSelector().GetLabels())}
	r.few(at.Field("workloadSelector").Field("labels"), len(s.Selector), maxSelector)
	s.Egress = r.egress(at.Field("egress"), in.GetEgress())
	if s.Egress == nil {
		r.Info(manifest.CodeIgnoredField, at, "write egress: [{hosts: [\"*/*\"]}] to say so", "without egress every service is visible, as Istio does it; its documentation speaks of the namespace's default")
	}
	ports := map[int]int{}
	for i, l := range in.GetIngress() {
		here := at.Field("ingress").Index(i)
		p := r.ingress(here, l)
		if line, twice := ports[p.Port]; twice && p.Port > 0 {
			r.Error(manifest.CodePorts, here.Field("port"), "keep one of them", "port %d stands twice, first on line %d", p.Port, line)
		}
		ports[p.Port] = here.Line()
		s.Ingress = append(s.Ingress, p)
	}
	if pool := in.GetInboundConnectionPool(); pool != nil {
		s.Inbound = &model.TrafficPolicy{}
		r.pool(at.Field("inboundConnectionPool"), pool, s.Inbound)
	}
	if p := in.GetOutboundTrafficPolicy(); p != nil {
		s.Outbound = plan.Block // REGISTRY_ONLY, also what a block without a mode means
		if p.GetMode() == networking.OutboundTrafficPolicy_ALLOW_ANY {
			s.Outbound = plan.Passthrough
		}
	}
	out.Sidecars = append(out.Sidecars, s)
}

// egress reads what the sidecar may see, by port.
func (r *reader) egress(at manifest.Cursor, in []*networking.IstioEgressListener) []model.EgressView {
	var out []model.EgressView
	ports := map[int]int{}
	for i, l := range in {
		here := at.Index(i)
		v := model.EgressView{Origin: here.Origin(), Bind: r.bind(here.Field("bind"), l.GetBind())}
		if p := l.GetPort(); p != nil {
			v.Port, v.Protocol = r.sidecarPort(here.Field("port"), p)
			if line, twice := ports[v.Port]; twice && v.Port > 0 {
				r.Error(manifest.CodePorts, here.Field("port"), "keep one of them", "port %d stands twice, first on line %d", v.Port, line)
			}
			ports[v.Port] = here.Line()
		} else {
			if i < len(in)-1 {
				r.Error(manifest.CodeSidecar, here, "move it to the end", "an egress listener without port takes every port: it must be the last")
			}
			if v.Bind != "" {
				r.Error(manifest.CodeSidecar, here.Field("bind"), "add port, or remove bind", "an egress listener that binds an address needs a port")
			}
		}
		if len(l.GetHosts()) == 0 {
			r.Error(manifest.CodeRequired, here, `add hosts: ["./*"]`, "the egress listener has no hosts")
		}
		for n, h := range l.GetHosts() {
			if host := r.egressHost(here.Field("hosts").Index(n), h); host != "" {
				v.Hosts = append(v.Hosts, host)
			}
		}
		out = append(out, v)
	}
	return out
}

// sidecarPort reads a port of a listener.
func (r *reader) sidecarPort(at manifest.Cursor, in *networking.SidecarPort) (int, ident.Protocol) {
	if in.GetNumber() == 0 && !at.Field("number").Set() {
		r.Error(manifest.CodeRequired, at, "add number: 9080", "the port has no number")
	}
	p := r.protocol(at.Field("protocol"), in.GetProtocol())
	if p == ident.Detect {
		p = ident.PortProtocol("", in.GetName(), "", int(in.GetNumber()))
	}
	return r.port(at.Field("number"), in.GetNumber()), p
}

// egressHost reads "namespace/host", or "~namespace/host" for one that is taken out.
func (r *reader) egressHost(at manifest.Cursor, s string) string {
	ns, host, ok := strings.Cut(s, "/")
	not := "" // "~" takes the host out
	switch {
	case !ok:
		r.Error(manifest.CodeBadHost, at, `write NAMESPACE/HOST; "./*" is all of this namespace`, "%q names no namespace", s)
		return ""
	case ns == ".":
		ns = r.object.Name.Namespace
	case ns == "~" && host != "*": // "a bare ~ namespace is treated as the wildcard namespace"
		not, ns = "~", "*"
	case strings.HasPrefix(ns, "~") && ns != "~":
		if not, ns = "~", ns[1:]; ns == "." {
			ns = r.object.Name.Namespace
		}
	}
	if ns != "*" && ns != "~" && !manifest.IsDNSLabel(ns) {
		r.Error(manifest.CodeBadHost, at, `write NAMESPACE/HOST, "./HOST" or "*/HOST"`, "%q is not a namespace", ns)
		return ""
	}
	if host == "*" {
		return not + ns + "/*"
	}
	h, err := ident.CanonicalHost(host, true)
	if err != nil {
		r.Error(manifest.CodeBadHost, at, "a host has letters, digits, '-' and '.', and no port; *.example.com and * are wildcards", "%q is not a host", host)
		return ""
	}
	if !strings.Contains(h, ".") && !strings.HasPrefix(h, "*") {
		r.Warning(manifest.CodeBadHost, at, "write "+h+"."+"NAMESPACE.svc."+ident.ClusterDomain, "%q is a short name: hosts of egress are complete ones", host)
	}
	return not + ns + "/" + h
}

// ingress reads a port of the workload as its sidecar offers it.
func (r *reader) ingress(at manifest.Cursor, in *networking.IstioIngressListener) model.IngressPort {
	out := model.IngressPort{Origin: at.Origin(), Bind: r.bind(at.Field("bind"), in.GetBind()), Name: in.GetPort().GetName()}
	if in.GetPort() == nil {
		r.Error(manifest.CodeRequired, at, "add port: {number: 9080, protocol: HTTP, name: http}", "the ingress listener has no port")
		return out
	}
	out.Port, out.Protocol = r.sidecarPort(at.Field("port"), in.GetPort())
	out.App = r.appAddress(at.Field("defaultEndpoint"), in.GetDefaultEndpoint())
	if t := in.GetTls(); t != nil {
		here := at.Field("tls")
		if t.GetMode() == networking.ServerTLSSettings_ISTIO_MUTUAL || t.GetMode() == networking.ServerTLSSettings_AUTO_PASSTHROUGH || t.GetMode() == networking.ServerTLSSettings_PASSTHROUGH {
			r.Error(manifest.CodeTLS, here.Field("mode"), "use SIMPLE or MUTUAL; PeerAuthentication is about mesh TLS", "mode %s is for servers of a Gateway", t.GetMode())
		} else {
			out.TLS = r.serverTLS(here, t)
		}
		switch strings.ToUpper(in.GetPort().GetProtocol()) { // as for servers of a Gateway: what is inside TLS
		case "HTTPS":
			out.Protocol = ident.HTTP
		case "TLS":
			out.Protocol = ident.TCP
		default:
			r.Error(manifest.CodeTLS, here, "write protocol: HTTPS or TLS", "a port of protocol %q has no TLS", in.GetPort().GetProtocol())
		}
	}
	if pool := in.GetConnectionPool(); pool != nil {
		out.Pool = &model.TrafficPolicy{}
		r.pool(at.Field("connectionPool"), pool, out.Pool)
	}
	return out
}

// appAddress reads where the program listens: a loopback address, 0.0.0.0 or [::] for the workload's own, or a unix socket.
func (r *reader) appAddress(at manifest.Cursor, s string) string {
	if s == "" {
		return ""
	}
	if strings.HasPrefix(s, plan.UnixPrefix) {
		return r.socket(at, s)
	}
	a, err := netip.ParseAddrPort(s)
	own := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1"), netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	if err != nil || a.Port() == 0 || !slices.Contains(own, a.Addr()) {
		r.Error(manifest.CodeSidecar, at, "write 127.0.0.1:PORT, [::1]:PORT, 0.0.0.0:PORT or [::]:PORT", "%q is not an address of the workload itself", s)
	}
	return s
}

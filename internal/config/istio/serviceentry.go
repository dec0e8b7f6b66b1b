package istio

import (
	"maps"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

var serviceEntryFields = manifest.Join(
	manifest.Work("", "hosts", "addresses", "ports", "location", "resolution", "workloadSelector", "exportTo", "subjectAltNames"),
	manifest.Work("endpoints[].", "address", "ports", "labels", "locality", "weight", "serviceAccount"),
	manifest.Ignore("endpoints are reached by their address, whatever their network is", "endpoints[].network"),
)

// The limits of the API server (ServiceEntry and WorkloadEntry CRDs).
const (
	maxHosts     = 256
	maxEndpoints = 4096
	maxSelector  = 256
)

func serviceEntry(o *manifest.Object, spec []byte, out *model.Config, report *manifest.Report) {
	r, at := newReader(o, report), o.Spec()
	in := &networking.ServiceEntry{}
	if !r.decode(spec, in) {
		return
	}
	s := model.Service{
		Meta: o.Meta(), External: in.GetLocation() == networking.ServiceEntry_MESH_EXTERNAL,
		Ports: r.servicePorts(at.Field("ports"), in), Addresses: r.addresses(at.Field("addresses"), in),
		Selector:        r.selector(at.Field("workloadSelector").Field("labels"), in.GetWorkloadSelector().GetLabels()),
		SubjectAltNames: r.altNames(at.Field("subjectAltNames"), in.GetSubjectAltNames()),
	}
	s.ExportTo = r.visible(at.Field("exportTo"), in.GetExportTo(), true)
	r.few(at.Field("workloadSelector").Field("labels"), len(s.Selector), maxSelector)
	hosts := r.entryHosts(at.Field("hosts"), in)
	s.Resolution = resolutions[in.GetResolution()]
	r.resolution(at, in, hosts)
	r.few(at.Field("endpoints"), len(in.GetEndpoints()), maxEndpoints)
	sockets := false
	for i, e := range in.GetEndpoints() {
		here := at.Field("endpoints").Index(i)
		end := r.entry(here, e, o.Name.Namespace)
		for name := range end.Ports {
			if !slices.ContainsFunc(s.Ports, func(p model.ServicePort) bool { return p.Name == name }) {
				r.Error(manifest.CodePorts, here.Field("ports").Key(name), "name a port of the ServiceEntry", "the ServiceEntry has no port %q", name)
			}
		}
		if s.External {
			end.Identity = ident.Identity{} // outside of the mesh nobody speaks mesh TLS
		}
		switch unix := strings.HasPrefix(e.GetAddress(), plan.UnixPrefix); {
		case s.Resolution == model.ByAddress:
			r.staticAddress(here, end.Address)
			sockets = sockets || unix
		case unix && s.Resolution != model.ByRequest: // of which there are no endpoints
			r.Error(manifest.CodeEntry, here.Field("address"), "use resolution: STATIC", "a unix socket is not resolved by DNS")
		}
		s.Endpoints = append(s.Endpoints, end)
	}
	if sockets && len(in.GetPorts()) > 1 {
		r.Error(manifest.CodeEntry, at.Field("ports"), "write one ServiceEntry for each port", "%d ports: with endpoints on unix sockets there is one", len(in.GetPorts()))
	}
	if in.GetResolution() == networking.ServiceEntry_DYNAMIC_DNS && len(s.Endpoints) > 0 {
		r.Warning(manifest.CodeIgnoredField, at.Field("endpoints"), "remove them", "endpoints have no effect with resolution DYNAMIC_DNS: each request's own host is asked for")
		s.Endpoints = nil
	}
	for _, host := range hosts {
		s.Host = host
		out.Services = append(out.Services, s)
	}
}

var resolutions = map[networking.ServiceEntry_Resolution]model.Resolution{
	networking.ServiceEntry_NONE: model.ByRequest, networking.ServiceEntry_STATIC: model.ByAddress, networking.ServiceEntry_DNS: model.ByDNS,
	networking.ServiceEntry_DNS_ROUND_ROBIN: model.ByDNSFirst, networking.ServiceEntry_DYNAMIC_DNS: model.ByRequest,
}

// entryHosts reads the hosts of a ServiceEntry: they are complete names, never those of Services.
func (r *reader) entryHosts(at manifest.Cursor, in *networking.ServiceEntry) []string {
	if len(in.GetHosts()) == 0 {
		r.Error(manifest.CodeRequired, r.object.Spec(), "add hosts: [example.com]", "the ServiceEntry has no hosts")
	}
	r.few(at, len(in.GetHosts()), maxHosts)
	var out []string
	for i, host := range in.GetHosts() {
		here := at.Index(i)
		h, err := ident.CanonicalHost(host, true)
		switch {
		case err != nil:
			r.Error(manifest.CodeBadHost, here, "a host has letters, digits, '-' and '.', and no port", "%q is not a host", host)
			continue
		case h == "*":
			r.Error(manifest.CodeHostPlace, here, "name the hosts, or a suffix: *.example.com", `host "*" would be every host there is`)
			continue
		case slices.Contains(out, h):
			r.Error(manifest.CodeHostPlace, here, "keep one of them", "host %q stands twice", host)
			continue
		}
		out = append(out, h)
	}
	return out
}

// resolution checks what a way to resolve asks of the rest (Istio ServiceEntry.Resolution; rules of its CRD and webhook).
func (r *reader) resolution(at manifest.Cursor, in *networking.ServiceEntry, hosts []string) {
	const unresolved = "use resolution: NONE or DYNAMIC_DNS, or name the hosts"
	wild := slices.IndexFunc(hosts, func(h string) bool { return strings.HasPrefix(h, "*.") })
	plain := slices.ContainsFunc(hosts, func(h string) bool { return !strings.HasPrefix(h, "*.") })
	ends, selects := len(in.GetEndpoints()), in.GetWorkloadSelector() != nil
	if ends > 0 && selects {
		r.Error(manifest.CodeExclusive, at.Field("workloadSelector"), "keep one of them", "`endpoints` and `workloadSelector` exclude each other")
	}
	if selects && len(in.GetWorkloadSelector().GetLabels()) == 0 {
		r.Warning(manifest.CodeRequired, at.Field("workloadSelector"), "add labels: {app: …}", "the selector has no labels: it selects nothing")
	}
	switch in.GetResolution() {
	case networking.ServiceEntry_NONE:
		if ends > 0 {
			r.Error(manifest.CodeEntry, at.Field("endpoints"), "use resolution: STATIC or DNS", "with resolution NONE requests go where the client wants them: endpoints cannot be named")
		}
		if selects {
			r.Warning(manifest.CodeIgnoredField, at.Field("workloadSelector"), "use resolution: STATIC", "with resolution NONE requests go where the client wants them: the selector has no effect")
		}
		for i, p := range in.GetPorts() {
			if p.GetTargetPort() > 0 {
				r.Error(manifest.CodeEntry, at.Field("ports").Index(i).Field("targetPort"), "use resolution: STATIC or DNS", "with resolution NONE requests go to the port that the client wants")
			}
		}
	case networking.ServiceEntry_STATIC:
		if ends == 0 && !selects {
			r.Warning(manifest.CodeEntry, at, "add endpoints: [{address: …}], or workloadSelector", "nothing is behind the ServiceEntry: it has no endpoints")
		}
		if wild >= 0 && !selects && ends == 0 {
			r.Error(manifest.CodeEntry, at.Field("hosts").Index(wild), unresolved, "host %q cannot be resolved", hosts[wild])
		}
	case networking.ServiceEntry_DNS, networking.ServiceEntry_DNS_ROUND_ROBIN:
		if wild >= 0 && ends == 0 {
			r.Error(manifest.CodeEntry, at.Field("hosts").Index(wild), unresolved, "host %q cannot be resolved by DNS: it is many", hosts[wild])
		}
		if ends > 1 && in.GetResolution() == networking.ServiceEntry_DNS_ROUND_ROBIN {
			r.Error(manifest.CodeEntry, at.Field("endpoints"), "use resolution: DNS, or keep one", "%d endpoints: with resolution DNS_ROUND_ROBIN there may be one", ends)
		}
		if ends == 0 && len(in.GetHosts()) > 1 && in.GetResolution() == networking.ServiceEntry_DNS_ROUND_ROBIN {
			r.Error(manifest.CodeEntry, at.Field("hosts"), "write one ServiceEntry for each host", "%d hosts: without endpoints there may be one with resolution DNS_ROUND_ROBIN", len(in.GetHosts()))
		}
	case networking.ServiceEntry_DYNAMIC_DNS:
		if plain {
			r.Error(manifest.CodeEntry, at.Field("resolution"), "use resolution: DNS", "resolution DYNAMIC_DNS is for wildcard hosts only")
		}
		for i, p := range in.GetPorts() {
			if proto, _ := entryProtocol(p.GetProtocol()); proto == ident.TCP {
				r.Error(manifest.CodeEntry, at.Field("ports").Index(i).Field("protocol"), "use HTTP or TLS", "opaque bytes name no host, which resolution DYNAMIC_DNS needs")
			}
		}
	}
}

// entryProtocol reads the protocol of a port; false for a word that is none.
func entryProtocol(s string) (ident.Protocol, bool) {
	switch strings.ToUpper(s) {
	case "":
		return ident.Detect, true
	case "HTTP", "GRPC-WEB", "HTTP_PROXY":
		return ident.HTTP, true
	case "HTTP2":
		return ident.HTTP2, true
	case "GRPC":
		return ident.GRPC, true
	case "HTTPS", "TLS":
		return ident.TLS, true
	case "TCP", "MONGO", "MYSQL", "REDIS":
		return ident.TCP, true
	case "UDP":
		return ident.UDP, true
	}
	return ident.Detect, false
}

// entryProtocols are the words that are suggested.
var entryProtocols = []string{"HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "TCP", "TLS", "MONGO"}

func (r *reader) protocol(at manifest.Cursor, s string) ident.Protocol {
	p, ok := entryProtocol(s)
	switch {
	case !ok:
		r.Error(manifest.CodeBadEnum, at, manifest.DidYouMean(strings.ToUpper(s), entryProtocols), "unknown protocol %q", s)
	case p == ident.UDP:
		r.Error(manifest.CodeUnsupported, at, "leave the port out", "UDP is not carried by the mesh")
	}
	return p
}

func (r *reader) servicePorts(at manifest.Cursor, in *networking.ServiceEntry) []model.ServicePort {
	var out []model.ServicePort
	r.few(at, len(in.GetPorts()), maxHosts)
	names, numbers := map[string]int{}, map[uint32]int{}
	for i, p := range in.GetPorts() {
		here := at.Index(i)
		if p.GetNumber() == 0 && !here.Field("number").Set() {
			r.Error(manifest.CodeRequired, here, "add number: 443", "the port has no number")
		}
		if line, twice := numbers[p.GetNumber()]; twice && p.GetNumber() > 0 {
			r.Error(manifest.CodePorts, here.Field("number"), "keep one of them", "port %d stands twice, first on line %d", p.GetNumber(), line)
		}
		line, twice := names[p.GetName()]
		switch {
		case p.GetName() == "":
			r.Error(manifest.CodeRequired, here, "add name: https", "the port has no name")
		case twice:
			r.Error(manifest.CodePorts, here.Field("name"), "give each port its own name", "port name %q stands twice, first on line %d", p.GetName(), line)
		case !portName.MatchString(p.GetName()):
			r.Error(manifest.CodeBadValue, here.Field("name"), "letters, digits and '-', at most 62 of them", "%q is not the name of a port", p.GetName())
		}
		names[p.GetName()], numbers[p.GetNumber()] = here.Line(), here.Line()
		sp := model.ServicePort{
			Name: p.GetName(), Port: r.port(here.Field("number"), p.GetNumber()), Protocol: r.protocol(here.Field("protocol"), p.GetProtocol()),
			Target: r.port(here.Field("targetPort"), p.GetTargetPort()), Origin: here.Origin(),
		}
		if sp.Protocol == ident.Detect {
			sp.Protocol = ident.PortProtocol("", p.GetName(), "", sp.Port)
		}
		if sp.Target == 0 {
			sp.Target = sp.Port
		}
		out = append(out, sp)
	}
	return out
}

// portName is the name of a port (WorkloadEntry CRD).
var portName = regexp.MustCompile(`^[a-zA-Z0-9]([-a-zA-Z0-9]{0,60}[a-zA-Z0-9])?$`)

// addresses reads the virtual addresses of a ServiceEntry. A block of them can be resolved to nothing but itself.
func (r *reader) addresses(at manifest.Cursor, in *networking.ServiceEntry) []string {
	out := r.subnets(at, in.GetAddresses())
	r.few(at, len(out), maxHosts)
	direct := in.GetResolution() == networking.ServiceEntry_NONE || in.GetResolution() == networking.ServiceEntry_STATIC
	for i, s := range in.GetAddresses() {
		if strings.Contains(s, "/") && !direct {
			r.Error(manifest.CodeEntry, at.Index(i), "use resolution: NONE or STATIC", "a block of addresses cannot be the address of what DNS resolves")
		}
	}
	for i, s := range out { // one address is written as one
		if p, err := netip.ParsePrefix(s); err == nil && p.IsSingleIP() {
			out[i] = p.Addr().String()
		}
	}
	return out
}

// few reports a list that the API server would not take.
func (r *reader) few(at manifest.Cursor, n, limit int) {
	if n > limit {
		r.Error(manifest.CodeOutOfRange, at, "", "%d of them: at most %d may be", n, limit)
	}
}

// staticAddress checks an endpoint that is not resolved.
func (r *reader) staticAddress(at manifest.Cursor, address string) {
	if _, err := netip.ParseAddr(address); address != "" && err != nil && !strings.HasPrefix(address, plan.UnixPrefix) {
		r.Error(manifest.CodeEntry, at.Field("address"), "write an IP address, or use resolution: DNS", "%q is no IP address, and with resolution STATIC nothing is resolved", address)
	}
}

// maxSocket is the longest name of a unix socket (unix(7): sun_path, with its end).
const maxSocket = 107

// socket reads the address of a unix socket: a path, or "@" and a name in the abstract namespace.
func (r *reader) socket(at manifest.Cursor, address string) string {
	socket := strings.TrimPrefix(address, plan.UnixPrefix)
	switch {
	case len(socket) < 2 || socket[0] != '/' && socket[0] != '@':
		r.Error(manifest.CodeBadValue, at, "write unix:///path/to/socket or unix://@name", "%q names no unix socket: its path does not start at the root", address)
	case socket[0] == '/' && path.Clean(socket) != socket || strings.HasSuffix(socket, "/"):
		r.Error(manifest.CodeBadValue, at, "write unix:///path/to/socket", "%q is not the path of a socket", address)
	case match.HasCTL([]byte(socket)):
		r.Error(manifest.CodeBadValue, at, "", "the path has a control character")
	case len(socket) > maxSocket:
		r.Error(manifest.CodeBadValue, at, "put the socket into a shorter path", "a path of %d bytes is too long for a unix socket: at most %d", len(socket), maxSocket)
	default:
		return address
	}
	return ""
}

// tlsModeLabel says whether a workload has a sidecar.
const tlsModeLabel = "security.istio.io/tlsMode"

// localityLabel says where a workload is: "region.zone.subzone" (Istio, convertEndpoint).
const localityLabel = "istio-locality"

// entry reads one endpoint: of a ServiceEntry, or a WorkloadEntry by itself.
func (r *reader) entry(at manifest.Cursor, in *networking.WorkloadEntry, namespace string) model.ServiceEndpoint {
	out := model.ServiceEndpoint{
		Labels: r.selector(at.Field("labels"), in.GetLabels()), Locality: in.GetLocality(), Weight: in.GetWeight(), Origin: at.Origin(),
	}
	address := in.GetAddress()
	canonical, err := ident.CanonicalHost(address, false)
	switch {
	case address == "" && in.GetNetwork() != "":
		r.Error(manifest.CodeUnsupported, at, "add address: …", "an endpoint that is behind the gateway of another network is not supported by Malha")
	case address == "":
		r.Error(manifest.CodeRequired, at, "add address: …", "the endpoint has no address")
	case strings.HasPrefix(address, plan.UnixPrefix):
		out.Address = r.socket(at.Field("address"), address)
		if at.Field("ports").Set() {
			r.Error(manifest.CodePorts, at.Field("ports"), "remove them", "a unix socket has no ports")
		}
	case err != nil || len(address) > 256:
		r.Error(manifest.CodeBadHost, at.Field("address"), "write an IP address or a name, without port", "%q is not an address", address)
	default:
		out.Address = canonical
	}
	for _, name := range slices.Sorted(maps.Keys(in.GetPorts())) {
		here := at.Field("ports").Key(name)
		if !portName.MatchString(name) {
			r.Error(manifest.CodeBadValue, here, "letters, digits and '-', at most 62 of them", "%q is not the name of a port", name)
		}
		if out.Ports == nil {
			out.Ports = map[string]int{}
		}
		out.Ports[name] = r.port(here, in.GetPorts()[name])
	}
	r.few(at.Field("ports"), len(in.GetPorts()), 128)
	r.few(at.Field("labels"), len(in.GetLabels()), 256)
	here := at.Field("locality")
	if out.Locality == "" { // of a label, which may not hold a slash
		here = at.Field("labels").Key(localityLabel)
		out.Locality = strings.ReplaceAll(in.GetLabels()[localityLabel], ".", "/")
	}
	if out.Locality != "" {
		r.place(here, out.Locality)
		if strings.Contains(out.Locality, "*") {
			r.Error(manifest.CodeLocality, here, "write where it is", "an endpoint is at one place, not at %q", out.Locality)
		}
	}
	account := in.GetServiceAccount()
	if account != "" && !manifest.IsSubdomain(account) {
		r.Error(manifest.CodeBadValue, at.Field("serviceAccount"), "write the name of a ServiceAccount", "%q is not the name of a ServiceAccount", account)
	}
	// Istio: an endpoint has a sidecar when its label says so, else when it has a service account.
	if mode, set := in.GetLabels()[tlsModeLabel]; set && mode == "istio" || !set && account != "" {
		if account == "" {
			account = "default"
		}
		out.Identity = ident.Identity{TrustDomain: ident.DefaultTrustDomain, Namespace: namespace, ServiceAccount: account}
	}
	return out
}

package istio

import (
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
)

var virtualServiceFields = manifest.Join(
	manifest.Work("", "hosts", "gateways", "exportTo"),
	manifest.Work("http[].", "name", "match", "route", "redirect", "directResponse", "delegate", "rewrite", "retries", "fault", "mirror",
		"mirrors", "mirrorPercent", "mirrorPercentage", "corsPolicy", "headers"),
	manifest.Differ("0s is taken too, and means none", "http[].timeout", "http[].retries.perTryTimeout"),
	manifest.Differ("reset-before-request is the same as refused-stream: nothing was processed", "http[].retries.retryOn"),
	manifest.Work("tcp[].", "route", "match"),
	manifest.Work("tls[].", "route", "match"),
	manifest.Fields{
		{Path: "http[].match[].statPrefix", Support: manifest.Ignored, Note: "the metrics of every route have the same names"},
		{Path: "http[].fault.delay.exponentialDelay", Support: manifest.Refused, Note: "use fixedDelay: Istio's documentation does not have this field"},
		{Path: "http[].fault.abort.http2Error", Support: manifest.Refused, Note: "use httpStatus or grpcStatus: Istio's documentation does not have this field"},
		{Path: "tcp[].match[].sourceSubnet", Support: manifest.Refused, Note: "match by sourceLabels or sourceNamespace: Istio itself does nothing with this field"},
	},
)

func virtualService(o *manifest.Object, spec []byte, out *model.Config, report *manifest.Report) {
	r, at := newReader(o, report), o.Spec()
	in := &networking.VirtualService{}
	if !r.decode(spec, in) {
		return
	}
	v := model.Routing{
		Meta:     o.Meta(),
		Gateways: r.gateways(at.Field("gateways"), in.GetGateways()),
		ExportTo: r.exportTo(at.Field("exportTo"), in.GetExportTo()),
		Delegate: len(in.GetHosts()) == 0,
	}
	if v.Delegate {
		r.isDelegate(at, in)
	}
	if len(v.Gateways) == 0 {
		v.Gateways = []string{model.Mesh}
	}
	v.Hosts = r.virtualHosts(at, in.GetHosts(), v.Gateways)
	bound := v.Gateways
	if v.Delegate {
		bound = nil // to those of whoever refers to it
	}
	for i, rule := range in.GetHttp() {
		v.HTTP = append(v.HTTP, r.httpRule(at.Field("http").Index(i), rule, bound))
	}
	for i, rule := range in.GetTcp() {
		v.TCP = append(v.TCP, r.tcpRule(at.Field("tcp").Index(i), rule, bound))
	}
	for i, rule := range in.GetTls() {
		v.TLS = append(v.TLS, r.tlsRule(at.Field("tls").Index(i), rule, &v))
	}
	if len(v.HTTP)+len(v.TCP)+len(v.TLS) == 0 {
		r.Error(manifest.CodeRequired, at, "add http: [{route: [{destination: {host: …}}]}]", "the VirtualService has no rules")
	}
	r.unreachable(at.Field("http"), v.HTTP)
	out.Routings = append(out.Routings, v)
}

// isDelegate checks a VirtualService without hosts: others refer to its HTTP rules (Istio "Delegate").
func (r *reader) isDelegate(at manifest.Cursor, in *networking.VirtualService) {
	const why = "a VirtualService without hosts is a delegate: others refer to its http rules"
	if len(in.GetGateways()) > 0 {
		r.Error(manifest.CodeDelegate, at.Field("gateways"), "remove gateways, or add hosts", "%s, and those say for which gateways", why)
	}
	if len(in.GetTcp()) > 0 {
		r.Error(manifest.CodeDelegate, at.Field("tcp"), "add hosts: [name-of-a-service]", "%s; it cannot have tcp rules", why)
	}
	if len(in.GetTls()) > 0 {
		r.Error(manifest.CodeDelegate, at.Field("tls"), "add hosts: [name-of-a-service]", "%s; it cannot have tls rules", why)
	}
	for i, rule := range in.GetHttp() {
		if rule.GetDelegate() != nil {
			r.Error(manifest.CodeDelegate, at.Field("http").Index(i).Field("delegate"), "write those rules here, or add hosts", "%s; it cannot refer to another one itself", why)
		}
	}
}

// virtualHosts reads the hosts that the rules are for.
func (r *reader) virtualHosts(at manifest.Cursor, in, gateways []string) []string {
	var out []string
	for i, host := range in {
		here := at.Field("hosts").Index(i)
		h := r.host(here, host, true)
		switch {
		case h == "":
			continue
		case h == "*" && slices.Contains(gateways, model.Mesh):
			r.Error(manifest.CodeHostPlace, here, "name the hosts, or bind the VirtualService to a gateway", `host "*" would take all traffic of every sidecar`)
		case strings.Contains(h, ":") && slices.Contains(gateways, model.Mesh):
			r.Error(manifest.CodeHostPlace, here, "name a host", "an address can be the host of a gateway's rules only")
		case slices.Contains(out, h):
			r.Error(manifest.CodeHostPlace, here, "keep one of them", "host %q stands twice", host)
		}
		out = append(out, h)
	}
	return out
}

// gateways reads names of gateways: "mesh", "name" and "./name" in the rule's namespace, "namespace/name".
func (r *reader) gateways(at manifest.Cursor, in []string) []string {
	var out []string
	for i, g := range in {
		if name := r.gateway(at.Index(i), g); name != "" {
			out = append(out, name)
		}
	}
	return out
}

// gateway reads the name of one gateway; "" when it is none.
func (r *reader) gateway(at manifest.Cursor, g string) string {
	if g == model.Mesh {
		return g
	}
	name, err := ident.ParseName(strings.TrimPrefix(g, "./"), r.object.Name.Namespace)
	if err != nil || !manifest.IsDNSLabel(name.Namespace) || !manifest.IsSubdomain(name.Name) {
		r.Error(manifest.CodeBadValue, at, "write NAME, NAMESPACE/NAME, or mesh for all sidecars", "%q is not the name of a Gateway", g)
		return ""
	}
	return name.String()
}

// matchGateways reads the gateways that a match is for: a part of those that the VirtualService is bound to. bound is nil where
// these are another's.
func (r *reader) matchGateways(at manifest.Cursor, in, bound []string) []string {
	var out []string
	for i, g := range in {
		name := r.gateway(at.Index(i), g)
		if name == "" {
			continue
		}
		if bound != nil && !slices.Contains(bound, name) {
			r.Warning(manifest.CodeUnreachable, at.Index(i), "add it to spec.gateways, or remove it here",
				"no request comes to this match by %s: the VirtualService is bound to %s only", name, strings.Join(bound, ", "))
		}
		out = append(out, name)
	}
	return out
}

// unreachable warns of rules behind one that takes every request.
func (r *reader) unreachable(at manifest.Cursor, rules []model.HTTPRule) {
	for i := range rules {
		if takesAll(rules[i].Matches) && i+1 < len(rules) {
			r.Warning(manifest.CodeUnreachable, at.Index(i+1), "move the rule that takes everything to the end",
				"no request reaches this rule: http[%d] on line %d takes every request", i, at.Index(i).Line())
			return
		}
	}
}

// takesAll reports whether one of the alternatives holds for every request from everywhere.
func takesAll(ms []model.HTTPMatch) bool {
	if len(ms) == 0 {
		return true
	}
	for _, m := range ms {
		everyPath := m.Path == nil || m.Path.Kind == match.Prefix && m.Path.Value == "/"
		if everyPath && m.Method == nil && m.Scheme == nil && m.Authority == nil && len(m.Headers)+len(m.Query) == 0 &&
			m.Port == 0 && len(m.SourceLabels) == 0 && m.SourceNamespace == "" && m.Gateways == nil {
			return true
		}
	}
	return false
}

func (r *reader) tcpRule(at manifest.Cursor, in *networking.TCPRoute, gateways []string) model.TCPRule {
	out := model.TCPRule{Origin: at.Origin()}
	for i, m := range in.GetMatch() {
		out.Matches = append(out.Matches, r.connection(at.Field("match").Index(i), m, gateways))
	}
	out.Forward = r.forward(at, in.GetRoute())
	return out
}

// tlsRule reads a rule for TLS that nobody ends on the way. The names it asks for are among the hosts of v.
func (r *reader) tlsRule(at manifest.Cursor, in *networking.TLSRoute, v *model.Routing) model.TLSRule {
	out := model.TLSRule{Origin: at.Origin()}
	if len(in.GetMatch()) == 0 {
		r.Error(manifest.CodeRequired, at, "add match: [{sniHosts: [...]}]", "a tls rule must say for which server names it is")
	}
	for i, m := range in.GetMatch() {
		here := at.Field("match").Index(i)
		t := model.TLSMatch{TCPMatch: r.connection(here, m, v.Gateways)}
		if len(m.GetSniHosts()) == 0 {
			r.Error(manifest.CodeRequired, here, "add sniHosts: [name]", "the match has no server names")
		}
		for n, name := range m.GetSniHosts() {
			at := here.Field("sniHosts").Index(n)
			h, err := ident.CanonicalHost(name, true)
			switch {
			case err != nil || strings.Contains(h, ":"):
				r.Error(manifest.CodeBadHost, at, "a server name has letters, digits, '-' and '.', and no port", "%q is not a server name", name)
				continue
			case !slices.ContainsFunc(v.Hosts, func(host string) bool {
				return host == "*" || covers(host, h) || host == serviceHost(name, r.object.Name.Namespace)
			}):
				r.Error(manifest.CodeHostPlace, at, "add it to hosts", "server name %q is not covered by the hosts of the VirtualService", name)
			}
			t.ServerNames = append(t.ServerNames, h)
		}
		out.Matches = append(out.Matches, t)
	}
	out.Forward = r.forward(at, in.GetRoute())
	return out
}

// covers reports whether a host, maybe with a wildcard, covers another one, maybe with a wildcard itself.
func covers(host, name string) bool {
	suffix, wild := strings.CutPrefix(host, "*")
	return host == name || wild && strings.HasSuffix(strings.TrimPrefix(name, "*"), suffix)
}

// serviceHost is what a short name stands for in a rule; "" when it is none.
func serviceHost(name, namespace string) string {
	h, err := ident.RuleHost(name, namespace)
	if err != nil {
		return ""
	}
	return h
}

// connectionMatch is what matches of tcp and tls rules have in common.
type connectionMatch interface {
	GetDestinationSubnets() []string
	GetPort() uint32
	GetSourceLabels() map[string]string
	GetGateways() []string
	GetSourceNamespace() string
}

func (r *reader) connection(at manifest.Cursor, m connectionMatch, gateways []string) model.TCPMatch {
	t := model.TCPMatch{
		Port: r.port(at.Field("port"), m.GetPort()), SourceNamespace: m.GetSourceNamespace(),
		SourceLabels: r.selector(at.Field("sourceLabels"), m.GetSourceLabels()), Gateways: r.matchGateways(at.Field("gateways"), m.GetGateways(), gateways),
		Subnets: r.subnets(at.Field("destinationSubnets"), m.GetDestinationSubnets()),
	}
	r.sources(at, false, len(t.SourceLabels) > 0 || t.SourceNamespace != "", t.Gateways, gateways)
	return t
}

// subnets reads CIDR blocks; an address is a block of one.
func (r *reader) subnets(at manifest.Cursor, in []string) []string {
	var out []string
	for i, s := range in {
		p, err := prefix(s)
		if err != nil {
			r.Error(manifest.CodeBadValue, at.Index(i), "write 10.0.0.0/8 or 10.1.2.3", "%q is not an address or a CIDR block", s)
			continue
		}
		if masked := p.Masked(); masked != p {
			r.Warning(manifest.CodeBadValue, at.Index(i), "write "+masked.String(), "%q has bits behind its length: %s is meant", s, masked)
			p = masked
		}
		out = append(out, p.String())
	}
	return out
}

// prefix reads a CIDR block or an address.
func prefix(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		return netip.ParsePrefix(s)
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	return a.Prefix(a.BitLen())
}

// forward reads the destinations of a tcp or tls rule.
func (r *reader) forward(at manifest.Cursor, in []*networking.RouteDestination) []model.WeightedDestination {
	var out []model.WeightedDestination
	if len(in) == 0 {
		r.Error(manifest.CodeRuleAction, at, "add route: [{destination: {host: …}}]", "the rule has no route")
	}
	for i, d := range in {
		here := at.Field("route").Index(i)
		out = append(out, model.WeightedDestination{
			Target: r.target(here.Field("destination"), d.GetDestination()), Weight: r.weight(here.Field("weight"), d.GetWeight()),
		})
	}
	r.weights(at.Field("route"), out)
	return out
}

// sources warns of conditions on the client where only strangers come: a gateway knows no client's labels. all is nil where it is
// another's to say. Of connections a gateway does not ask them; of requests it is asked for its own, and beside gateways of a match
// nobody asks them (Istio, HTTPMatchRequest.gateways).
func (r *reader) sources(at manifest.Cursor, requests, asks bool, own, all []string) {
	gateways := own
	if own == nil {
		gateways = all
	}
	strangers := gateways != nil && !slices.Contains(gateways, model.Mesh)
	const add = "add mesh to gateways, or remove the condition"
	switch {
	case !asks:
	case requests && own != nil:
		r.Warning(manifest.CodeIgnoredField, at, "remove gateways, or the condition", "sourceLabels and sourceNamespace have no effect beside gateways")
	case requests && strangers:
		r.Warning(manifest.CodeIgnoredField, at, add, "sourceLabels and sourceNamespace are compared with those of the gateway itself: a gateway knows no client's")
	case strangers:
		r.Warning(manifest.CodeIgnoredField, at, add, "sourceLabels and sourceNamespace have no effect at a gateway")
	}
}

// target reads a destination.
func (r *reader) target(at manifest.Cursor, in *networking.Destination) model.Target {
	if in == nil {
		r.Error(manifest.CodeRequired, at, "add destination: {host: …}", "the destination is missing")
		return model.Target{}
	}
	if s := in.GetSubset(); s != "" && !manifest.IsDNSLabel(s) {
		r.Error(manifest.CodeBadValue, at.Field("subset"), "lower-case letters, digits and '-'", "%q cannot be the name of a subset", s)
	}
	host := r.host(at.Field("host"), in.GetHost(), true) // a wildcard names the ServiceEntry that has it
	if host == "*" {
		r.Error(manifest.CodeBadHost, at.Field("host"), "name one host", `"*" is no destination`)
	}
	return model.Target{
		Host: host, Subset: in.GetSubset(),
		Port: r.port(at.Field("port").Field("number"), in.GetPort().GetNumber()), Origin: at.Origin(),
	}
}

func (r *reader) weight(at manifest.Cursor, w int32) uint32 {
	if w < 0 {
		r.Error(manifest.CodeWeights, at, "a weight is 0 or more", "weight %d is negative", w)
		return 0
	}
	return uint32(w)
}

// weights checks the shares of a rule. They are relative: 9 and 1 mean the same as 90 and 10.
func (r *reader) weights(at manifest.Cursor, ds []model.WeightedDestination) {
	if len(ds) == 1 {
		ds[0].Weight = max(1, ds[0].Weight) // all traffic goes to a lone destination, whatever its weight says
		return
	}
	var sum uint64
	for _, d := range ds {
		sum += uint64(d.Weight)
	}
	switch {
	case len(ds) == 0:
	case sum == 0:
		r.Error(manifest.CodeWeights, at, "give each destination its share", "all %d destinations have weight 0: no request could go anywhere", len(ds))
	case sum > 1<<32-1:
		r.Error(manifest.CodeWeights, at, "use smaller weights", "the weights add up to %d", sum)
	case sum != 100:
		r.Warning(manifest.CodeWeights, at, "make them add up to 100", "the weights add up to %d, not 100: each destination gets its share of %d", sum, sum)
	}
}

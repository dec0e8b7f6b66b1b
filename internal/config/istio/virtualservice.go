package istio

import (
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
	manifest.Work("http[].", "name", "match", "route", "redirect", "directResponse", "rewrite", "timeout", "retries", "fault", "mirror",
		"mirrors", "mirrorPercent", "mirrorPercentage", "headers"),
	manifest.Work("tcp[].", "route", "match[].port", "match[].sourceLabels", "match[].gateways", "match[].sourceNamespace"),
	manifest.Fields{
		{Path: "http[].match[].statPrefix", Support: manifest.Ignored, Note: "the metrics of every route have the same names"},
		{Path: "http[].redirect.derivePort", Support: manifest.Refused, Note: "write the port: port: …"},
		{Path: "http[].redirect.derivePort", Value: "FROM_PROTOCOL_DEFAULT", Support: manifest.Works},
		{Path: "http[].rewrite.uriRegexRewrite", Support: manifest.Refused, Note: "match by prefix and use rewrite.uri"},
		{Path: "http[].retries.retryRemoteLocalities", Support: manifest.Refused, Note: "remove it: endpoints of every locality are used"},
		{Path: "http[].retries.retryRemoteLocalities", Value: "false", Support: manifest.Works},
		{Path: "http[].retries.retryIgnorePreviousHosts", Support: manifest.Refused, Note: "remove it: a retry always prefers an endpoint that was not tried"},
		{Path: "http[].retries.retryIgnorePreviousHosts", Value: "true", Support: manifest.Works},
		{Path: "http[].fault.delay.exponentialDelay", Support: manifest.Refused, Note: "use fixedDelay"},
		{Path: "http[].fault.abort.http2Error", Support: manifest.Refused, Note: "use httpStatus or grpcStatus"},
		{Path: "http[].delegate", Support: manifest.Refused, Note: "write the delegate's rules here"},
		{Path: "http[].corsPolicy", Support: manifest.Refused, Note: "answer CORS requests in the application"},
		{Path: "tls", Support: manifest.Refused, Note: "TLS that the mesh does not terminate cannot be routed yet"},
		{Path: "tcp[].match[].destinationSubnets", Support: manifest.Refused, Note: "match by port"},
		{Path: "tcp[].match[].sourceSubnet", Support: manifest.Refused, Note: "match by sourceLabels"},
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
	}
	if len(v.Gateways) == 0 {
		v.Gateways = []string{model.Mesh}
	}
	v.Hosts = r.virtualHosts(at, in.GetHosts(), v.Gateways)
	for i, rule := range in.GetHttp() {
		v.HTTP = append(v.HTTP, r.httpRule(at.Field("http").Index(i), rule, v.Gateways))
	}
	for i, rule := range in.GetTcp() {
		v.TCP = append(v.TCP, r.tcpRule(at.Field("tcp").Index(i), rule, v.Gateways))
	}
	if len(v.HTTP)+len(v.TCP) == 0 {
		r.Error(manifest.CodeRequired, at, "add http: [{route: [{destination: {host: …}}]}]", "the VirtualService has no rules")
	}
	r.unreachable(at.Field("http"), v.HTTP)
	out.Routings = append(out.Routings, v)
}

// virtualHosts reads the hosts that the rules are for.
func (r *reader) virtualHosts(at manifest.Cursor, in, gateways []string) []string {
	if len(in) == 0 {
		r.Error(manifest.CodeRequired, at, "add hosts: [name-of-a-service]", "the VirtualService has no hosts")
	}
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
		if g == model.Mesh {
			out = append(out, g)
			continue
		}
		g = strings.TrimPrefix(g, "./")
		name, err := ident.ParseName(g, r.object.Name.Namespace)
		if err != nil || !manifest.IsDNSLabel(name.Namespace) || !manifest.IsSubdomain(name.Name) {
			r.Error(manifest.CodeBadValue, at.Index(i), "write NAME, NAMESPACE/NAME, or mesh for all sidecars", "%q is not the name of a Gateway", in[i])
			continue
		}
		out = append(out, name.String())
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
		here := at.Field("match").Index(i)
		t := model.TCPMatch{
			Port: r.port(here.Field("port"), m.GetPort()), SourceNamespace: m.GetSourceNamespace(),
			SourceLabels: r.selector(here.Field("sourceLabels"), m.GetSourceLabels()), Gateways: r.gateways(here.Field("gateways"), m.GetGateways()),
		}
		r.sources(here, len(t.SourceLabels) > 0 || t.SourceNamespace != "", t.Gateways, gateways)
		out.Matches = append(out.Matches, t)
	}
	if len(in.GetRoute()) == 0 {
		r.Error(manifest.CodeRuleAction, at, "add route: [{destination: {host: …}}]", "the rule has no route")
	}
	for i, d := range in.GetRoute() {
		here := at.Field("route").Index(i)
		out.Forward = append(out.Forward, model.WeightedDestination{
			Target: r.target(here.Field("destination"), d.GetDestination()), Weight: r.weight(here.Field("weight"), d.GetWeight()),
		})
	}
	r.weights(at.Field("route"), out.Forward)
	return out
}

// sources warns of conditions on the client where only strangers come: a gateway knows no client's labels.
func (r *reader) sources(at manifest.Cursor, asks bool, own, all []string) {
	if own == nil {
		own = all
	}
	if asks && !slices.Contains(own, model.Mesh) {
		r.Warning(manifest.CodeIgnoredField, at, "add mesh to gateways, or remove the condition", "sourceLabels and sourceNamespace have no effect at a gateway")
	}
}

// target reads a destination.
func (r *reader) target(at manifest.Cursor, in *networking.Destination) model.Target {
	if in == nil {
		r.Error(manifest.CodeRequired, at, "add destination: {host: …}", "the destination is missing")
		return model.Target{}
	}
	return model.Target{
		Host: r.host(at.Field("host"), in.GetHost(), false), Subset: in.GetSubset(),
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

package istio

import (
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

func (r *reader) httpRule(at manifest.Cursor, in *networking.HTTPRoute, gateways []string) model.HTTPRule {
	out := model.HTTPRule{Name: in.GetName(), Origin: at.Origin()}
	for i, m := range in.GetMatch() {
		out.Matches = append(out.Matches, r.httpMatch(at.Field("match").Index(i), m, gateways))
	}
	r.oneAction(at, in)
	out.Delegate = r.delegate(at, in)
	authorities := map[int]string{}
	for i, d := range in.GetRoute() {
		here := at.Field("route").Index(i)
		w := model.WeightedDestination{
			Target: r.target(here.Field("destination"), d.GetDestination()), Weight: r.weight(here.Field("weight"), d.GetWeight()),
		}
		var authority string
		w.Headers, authority = r.headers(here.Field("headers"), d.GetHeaders())
		if authority != "" { // Istio: the host of this share of the requests
			authorities[i] = r.authority(here.Field("headers").Field("request").Field("set"), authority)
		}
		out.Forward = append(out.Forward, w)
	}
	r.weights(at.Field("route"), out.Forward)

	out.Redirect = r.redirect(at.Field("redirect"), in.GetRedirect(), in.GetMatch())
	out.Direct = r.direct(at.Field("directResponse"), in.GetDirectResponse())
	out.Rewrite = r.rewrite(at.Field("rewrite"), in.GetRewrite())
	var authority string
	out.Headers, authority = r.headers(at.Field("headers"), in.GetHeaders())
	if authority != "" { // Istio: setting Host or :authority is a rewrite of the authority
		if out.Rewrite == nil {
			out.Rewrite = &plan.Rewrite{}
		}
		if out.Rewrite.Authority != "" {
			r.Error(manifest.CodeExclusive, at.Field("headers"), "keep one of them", "headers and rewrite.authority both set the host")
		}
		out.Rewrite.Authority = r.authority(at.Field("headers").Field("request").Field("set"), authority)
	}
	for _, i := range slices.Sorted(maps.Keys(authorities)) {
		if out.Rewrite != nil && out.Rewrite.Authority != "" { // of both the rule's counts (Istio: processDestination)
			r.Warning(manifest.CodeIgnoredField, at.Field("route").Index(i).Field("headers").Field("request").Field("set"), "keep one of them",
				"the host of this destination has no effect: the rule sets %s for all of them", out.Rewrite.Authority)
			continue
		}
		own := plan.Rewrite{}
		if out.Rewrite != nil {
			own = *out.Rewrite // it stands in the rule's place
		}
		own.Authority = authorities[i]
		out.Forward[i].Rewrite = &own
	}
	out.CORS = r.cors(at.Field("corsPolicy"), in.GetCorsPolicy())
	out.Timeout = r.duration(at.Field("timeout"), in.GetTimeout(), true)
	out.Retry = r.retry(at.Field("retries"), in.GetRetries())
	out.Fault = r.fault(at.Field("fault"), in.GetFault())
	out.Mirrors = r.mirrors(at, in)
	return out
}

// oneAction checks that a rule says what happens, once.
func (r *reader) oneAction(at manifest.Cursor, in *networking.HTTPRoute) {
	var actions []string
	if len(in.GetRoute()) > 0 {
		actions = append(actions, "route")
	}
	if in.GetRedirect() != nil {
		actions = append(actions, "redirect")
	}
	if in.GetDirectResponse() != nil {
		actions = append(actions, "directResponse")
	}
	switch {
	case in.GetDelegate() != nil:
		if len(actions) > 0 {
			r.Error(manifest.CodeRuleAction, at, "keep one of them", "the rule has delegate and %s, which exclude each other", strings.Join(actions, " and "))
		}
	case len(actions) == 0:
		r.Error(manifest.CodeRuleAction, at, "add route: [{destination: {host: …}}]", "the rule does nothing: it has no route, redirect, directResponse or delegate")
	case len(actions) > 1:
		r.Error(manifest.CodeRuleAction, at, "keep one of them", "the rule has %s, which exclude each other", strings.Join(actions, " and "))
	case actions[0] != "route":
		fields := map[string]bool{
			"rewrite": in.GetRewrite() != nil, "fault": in.GetFault() != nil, "retries": in.GetRetries() != nil, "timeout": in.GetTimeout() != nil,
			"mirror": in.GetMirror() != nil, "mirrors": len(in.GetMirrors()) > 0,
		}
		for _, field := range slices.Sorted(maps.Keys(fields)) {
			if fields[field] {
				r.Error(manifest.CodeExclusive, at.Field(field), "remove one of them", "`%s` and `%s` exclude each other: nothing is sent upstream", actions[0], field)
			}
		}
	}
}

// delegate reads the reference to the routing whose rules stand here. Which of them match is decided by both, so that a
// regular expression, of which nobody can say what it covers, may not stand beside it (as in Istio).
func (r *reader) delegate(at manifest.Cursor, in *networking.HTTPRoute) *ident.Name {
	d := in.GetDelegate()
	if d == nil {
		return nil
	}
	here := at.Field("delegate")
	name := ident.Name{Namespace: d.GetNamespace(), Name: d.GetName()}
	if name.Namespace == "" {
		name.Namespace = r.object.Name.Namespace
	}
	switch {
	case name.Name == "":
		r.Error(manifest.CodeRequired, here, "add name: …", "the delegate has no name")
	case !manifest.IsSubdomain(name.Name) || !manifest.IsDNSLabel(name.Namespace):
		r.Error(manifest.CodeBadValue, here, "write the name and the namespace of a VirtualService", "%q cannot be the name of a VirtualService", name)
	case name == r.object.Name:
		r.Error(manifest.CodeDelegate, here, "name a VirtualService without hosts", "the VirtualService delegates to itself")
	}
	for i, m := range in.GetMatch() {
		at := at.Field("match").Index(i)
		regex := func(at manifest.Cursor, c *networking.StringMatch) {
			if e := c.GetRegex(); e != "" && e != "*" {
				r.Error(manifest.CodeDelegate, at, "use exact or prefix", "a rule that delegates cannot match by a regular expression")
			}
		}
		regex(at.Field("uri"), m.GetUri())
		regex(at.Field("scheme"), m.GetScheme())
		regex(at.Field("method"), m.GetMethod())
		regex(at.Field("authority"), m.GetAuthority())
		for field, conditions := range map[string]map[string]*networking.StringMatch{
			"headers": m.GetHeaders(), "withoutHeaders": m.GetWithoutHeaders(), "queryParams": m.GetQueryParams(),
		} {
			for name, c := range conditions {
				regex(at.Field(field).Key(name), c)
			}
		}
	}
	return &name
}

func (r *reader) httpMatch(at manifest.Cursor, in *networking.HTTPMatchRequest, gateways []string) model.HTTPMatch {
	out := model.HTTPMatch{
		Name: in.GetName(), Origin: at.Origin(), Port: r.port(at.Field("port"), in.GetPort()),
		SourceLabels: r.selector(at.Field("sourceLabels"), in.GetSourceLabels()), SourceNamespace: in.GetSourceNamespace(),
		Gateways: r.matchGateways(at.Field("gateways"), in.GetGateways(), gateways),
	}
	r.sources(at, true, len(out.SourceLabels) > 0 || out.SourceNamespace != "", out.Gateways, gateways)

	out.Path = r.asked(at.Field("uri"), in.GetUri())
	if p := out.Path; p != nil {
		if p.Kind == match.Exact && !strings.HasPrefix(p.Value, "/") && p.Value != "*" || p.Kind == match.Prefix && p.Value == "" {
			r.Error(manifest.CodeBadValue, at.Field("uri"), "a path starts with /", "no request has the path %q", p.Value)
		}
		if in.GetIgnoreUriCase() && p.Kind == match.Regex {
			r.Warning(manifest.CodeIgnoredField, at.Field("ignoreUriCase"), "start the expression with (?i)", "`ignoreUriCase` has no effect on a regular expression")
		} else {
			p.IgnoreCase = in.GetIgnoreUriCase()
		}
	}
	out.Method = r.word(at.Field("method"), in.GetMethod())
	r.upperCase(at.Field("method"), out.Method)
	out.Scheme = r.word(at.Field("scheme"), in.GetScheme())
	out.Authority = r.word(at.Field("authority"), in.GetAuthority())
	for _, name := range slices.Sorted(maps.Keys(in.GetHeaders())) { // Envoy's names of the same things
		here := at.Field("headers").Key(name)
		switch strings.ToLower(name) {
		case ":method":
			if r.instead(here, &out.Method, in.GetHeaders()[name], "method") {
				r.upperCase(here, out.Method)
			}
		case ":scheme":
			r.instead(here, &out.Scheme, in.GetHeaders()[name], "scheme")
		case ":authority", "host":
			r.instead(here, &out.Authority, in.GetHeaders()[name], "authority")
		}
	}
	out.Headers = append(r.fields(at.Field("headers"), in.GetHeaders(), false), r.fields(at.Field("withoutHeaders"), in.GetWithoutHeaders(), true)...)
	for _, name := range slices.Sorted(maps.Keys(in.GetQueryParams())) {
		out.Query = append(out.Query, plan.FieldMatch{Name: name, Value: r.presence(at.Field("queryParams").Key(name), in.GetQueryParams()[name])})
	}
	return out
}

// word reads a condition on a part of the request that is never empty. Istio refuses a prefix there that says nothing
// (validateStringMatch); on a path it does not.
func (r *reader) word(at manifest.Cursor, m *networking.StringMatch) *match.String {
	c := r.asked(at, m)
	if c != nil && c.Kind == match.Prefix && c.Value == "" {
		r.Error(manifest.CodeRequired, at.Field("prefix"), sayWhat, "the prefix is empty")
	}
	return c
}

// asked reads a condition that ought to ask for something: one that does not holds for every request.
func (r *reader) asked(at manifest.Cursor, m *networking.StringMatch) *match.String {
	c := r.condition(at, m)
	if c == nil && at.Set() {
		r.Warning(manifest.CodeIgnoredField, at, sayWhat, "the condition is empty: it holds for every request")
	}
	return c
}

// upperCase warns of a method that no client sends: methods are compared with their case (RFC 9110 section 9.1).
func (r *reader) upperCase(at manifest.Cursor, m *match.String) {
	if m == nil || m.Kind != match.Exact && m.Kind != match.Prefix {
		return
	}
	if upper := strings.ToUpper(m.Value); upper != m.Value {
		r.Warning(manifest.CodeBadValue, at, "write "+upper, "methods are compared with their case: %q is not %s", m.Value, upper)
	}
}

// instead reads a condition on a pseudo-header, as the condition of the match that it stands for, unless that is there.
func (r *reader) instead(at manifest.Cursor, into **match.String, m *networking.StringMatch, field string) bool {
	if *into != nil {
		r.Error(manifest.CodeExclusive, at, "keep one of them", "`%s` and a condition on its header exclude each other", field)
		return false
	}
	c := r.presence(at, m)
	*into = &c
	return true
}

// presence reads a condition on a header or parameter. An empty one asks only that it is there; so do an empty prefix and the
// regular expression "*", which is none. exact: "" is the parameter of ?key (HTTPMatchRequest.queryParams).
func (r *reader) presence(at manifest.Cursor, m *networking.StringMatch) match.String {
	if p, ok := m.GetMatchType().(*networking.StringMatch_Prefix); m.GetRegex() == "*" || ok && p.Prefix == "" {
		return match.String{Kind: match.Present}
	}
	if c := r.condition(at, m); c != nil {
		return *c
	}
	return match.String{Kind: match.Present}
}

// fields reads conditions on headers.
func (r *reader) fields(at manifest.Cursor, in map[string]*networking.StringMatch, invert bool) []plan.FieldMatch {
	var out []plan.FieldMatch
	for _, name := range slices.Sorted(maps.Keys(in)) {
		here := at.Key(name)
		switch lower := strings.ToLower(name); {
		case strings.HasPrefix(name, "@request.auth."):
			r.Error(manifest.CodeUnsupported, here, "", "routing by the claims of a token is not supported by Malha yet")
		case lower == "uri" || lower == "scheme" || lower == "method" || lower == "authority":
			r.Warning(manifest.CodeIgnoredField, here, "write "+lower+": beside headers", "a condition on the header %q has no effect", name)
		case !invert && (lower == ":method" || lower == ":scheme" || lower == ":authority" || lower == "host"):
		case strings.HasPrefix(name, ":") || lower == "host":
			r.Error(manifest.CodeUnsupported, here, "use uri, method, scheme or authority", "%q is not a header that rules can ask for", name)
		case !isToken(name):
			r.Error(manifest.CodeBadValue, here, "", "%q is not the name of a header", name)
		default:
			out = append(out, plan.FieldMatch{Name: lower, Value: r.presence(here, in[name]), Invert: invert})
		}
	}
	return out
}

// headers reads header operations. Setting the host is none: the authority to set is returned apart.
func (r *reader) headers(at manifest.Cursor, in *networking.Headers) (out plan.HeaderOps, authority string) {
	out.Request, authority = r.fieldOps(at.Field("request"), in.GetRequest(), true)
	out.Response, _ = r.fieldOps(at.Field("response"), in.GetResponse(), false)
	return out, authority
}

func (r *reader) fieldOps(at manifest.Cursor, in *networking.Headers_HeaderOperations, request bool) (out plan.FieldOps, authority string) {
	for _, name := range slices.Sorted(maps.Keys(in.GetSet())) {
		here := at.Field("set").Key(name)
		value, format := r.headerValue(here, in.GetSet()[name], request)
		if lower := strings.ToLower(name); request && (lower == "host" || lower == ":authority") {
			if format != nil {
				r.Error(manifest.CodeUnsupported, here, "write the host itself", "variables in the host of a request are not supported by Malha")
				continue
			}
			authority = value
			continue
		}
		if r.mayChange(here, name) {
			out.Set = append(out.Set, plan.Field{Name: strings.ToLower(name), Value: value, Format: format})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(in.GetAdd())) {
		here := at.Field("add").Key(name)
		value, format := r.headerValue(here, in.GetAdd()[name], request)
		if r.mayChange(here, name) {
			out.Add = append(out.Add, plan.Field{Name: strings.ToLower(name), Value: value, Format: format})
		}
	}
	for i, name := range in.GetRemove() {
		if r.mayChange(at.Field("remove").Index(i), name) {
			out.Remove = append(out.Remove, strings.ToLower(name))
		}
	}
	return out, authority
}

// framing is the headers that say where a message ends or belong to one connection (RFC 9110 section 7.6.1, RFC 9112
// section 6): rules that changed them could smuggle requests.
var framing = []string{"connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "host"}

func (r *reader) mayChange(at manifest.Cursor, name string) bool {
	switch {
	case strings.HasPrefix(name, ":"):
		r.Error(manifest.CodeHeaderOp, at, "use rewrite", "pseudo-header %q may not be changed", name)
	case !isToken(name):
		r.Error(manifest.CodeHeaderOp, at, "letters, digits and '-'", "%q is not the name of a header", name)
	case slices.Contains(framing, strings.ToLower(name)):
		r.Error(manifest.CodeHeaderOp, at, "", "header %q belongs to the connection and may not be changed", name)
	default:
		return true
	}
	return false
}

// headerValue reads a value.
func (r *reader) headerValue(at manifest.Cursor, v string, request bool) (string, *plan.Format) {
	if match.HasCTL([]byte(v)) {
		r.Error(manifest.CodeHeaderOp, at, "", "the value has a control character")
	}
	return r.format(at, v, request)
}

// isToken reports whether s is a token (RFC 9110 section 5.6.2), the form of a header's name.
func isToken(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return true
}

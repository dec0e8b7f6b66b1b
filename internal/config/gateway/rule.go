package gateway

import (
	"regexp"
	"slices"
	"strings"
	"time"

	v1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// noDestination answers where the Gateway API asks for a 500: no backend, or none that may get requests.
const noDestination = 500

func (t *translation) httpRule(at manifest.Cursor, in *v1.HTTPRouteRule) model.HTTPRule {
	out := model.HTTPRule{Name: value(in.Name, ""), Origin: at.Origin()}
	for i := range in.Matches {
		out.Matches = append(out.Matches, httpMatch(at.Field("matches").Index(i), &in.Matches[i]))
	}
	failed := t.filters(at.Field("filters"), in.Filters, &out)
	t.timeouts(in, &out)
	out.Session = t.session(at, in.SessionPersistence)
	if failed { // a filter that can't be found must not be skipped
		t.answer(&out)
		return out
	}
	if out.Redirect != nil {
		return out
	}
	total := 0
	for i := range in.BackendRefs {
		b := &in.BackendRefs[i]
		here := at.Field("backendRefs").Index(i)
		w := t.destination(here, &b.BackendRef)
		t.backendFilters(here.Field("filters"), b.Filters, &w)
		if w.Weight > 0 {
			out.Forward = append(out.Forward, w)
		}
		total++
	}
	t.forward(&out, total)
	return out
}

// forward completes a rule that sends requests on. A rule of the mesh without backends leaves them with the Service.
func (t *translation) forward(out *model.HTTPRule, backends int) {
	switch {
	case len(out.Forward) > 0:
		if slices.ContainsFunc(out.Forward, func(w model.WeightedDestination) bool { return w.Status == 0 }) {
			return
		}
		t.answer(out)
	case backends == 0 && t.egress != nil:
		out.Forward = []model.WeightedDestination{{Target: model.Target{Host: t.host, Port: t.port, Origin: out.Origin}, Weight: 1}}
	case backends == 0 && t.service != nil:
		out.Forward = []model.WeightedDestination{{Target: model.Target{Host: t.service.Host, Port: t.port, Origin: out.Origin}, Weight: 1}}
	default:
		t.answer(out)
	}
}

// answer makes a rule answer by itself.
func (t *translation) answer(out *model.HTTPRule) {
	out.Forward, out.Redirect, out.Rewrite, out.Mirrors, out.Retry, out.Session = nil, nil, nil, nil, nil, nil
	out.Direct = &plan.DirectResponse{Status: noDestination}
}

func httpMatch(at manifest.Cursor, in *v1.HTTPRouteMatch) model.HTTPMatch {
	out := model.HTTPMatch{Origin: at.Origin()}
	if in.Path != nil {
		out.Path = pathMatch(in.Path)
	}
	if in.Method != nil {
		out.Method = &match.String{Kind: match.Exact, Value: string(*in.Method)}
	}
	for _, h := range in.Headers {
		name := strings.ToLower(string(h.Name))
		if slices.ContainsFunc(out.Headers, func(f plan.FieldMatch) bool { return f.Name == name }) {
			continue // "If multiple entries specify equivalent header names, only the first entry … MUST be considered"; check reports it
		}
		out.Headers = append(out.Headers, plan.FieldMatch{Name: name, Value: stringMatch(value(h.Type, "Exact"), h.Value)})
	}
	for _, q := range in.QueryParams {
		out.Query = append(out.Query, plan.FieldMatch{Name: string(q.Name), Value: stringMatch(value(q.Type, "Exact"), q.Value)})
	}
	return out
}

func pathMatch(in *v1.HTTPPathMatch) *match.String {
	path := value(in.Value, "/")
	switch value(in.Type, string(v1.PathMatchPathPrefix)) {
	case string(v1.PathMatchExact):
		return &match.String{Kind: match.Exact, Value: path}
	case string(v1.PathMatchRegularExpression):
		return &match.String{Kind: match.Regex, Value: path}
	}
	return &match.String{Kind: match.Segment, Value: path}
}

func stringMatch(kind, v string) match.String {
	if kind == "RegularExpression" {
		return match.String{Kind: match.Regex, Value: v}
	}
	return match.String{Kind: match.Exact, Value: v}
}

// timeouts applies `timeouts` and `retry`. Annotations of Linkerd fill in what they leave open (config/linkerd).
func (t *translation) timeouts(in *v1.HTTPRouteRule, out *model.HTTPRule) {
	if t.route.kind.group == linkerdGroup {
		out.Retry = &plan.Retry{} // Linkerd retries only what is annotated
	}
	if in.Retry != nil {
		out.Retry = retry(in.Retry)
	}
	if in.Timeouts == nil {
		return
	}
	out.Timeout = length(in.Timeouts.Request)
	perTry := length(in.Timeouts.BackendRequest)
	switch {
	case perTry == 0:
	case out.Retry == nil:
		out.Retry = &plan.Retry{Attempts: defaultAttempts, PerTry: plan.Duration(perTry)}
	case out.Retry.Attempts > 0 || t.route.retryAnnotated():
		out.Retry.PerTry = plan.Duration(perTry)
	case out.Timeout == 0 || perTry < out.Timeout: // one try is all there is
		out.Timeout = perTry
	}
}

// retryAnnotated reports whether annotations of Linkerd will make the route's rules retry (config/linkerd).
func (rt *route) retryAnnotated() bool {
	for key := range rt.Annotations {
		if rt.kind.group == linkerdGroup && strings.HasPrefix(key, "retry.linkerd.io/") {
			return true
		}
	}
	return false
}

// defaultAttempts are those of the mesh, which routes that say nothing of retries have.
const defaultAttempts = 2

// retry reads `retry`: connection errors are retried wherever it stands ("Implementations SHOULD retry on connection errors").
func retry(in *v1.HTTPRouteRetry) *plan.Retry {
	out := &plan.Retry{Attempts: 1, On: plan.RetryConnectFailure | plan.RetryRefusedStream | plan.RetryReset}
	if in.Attempts != nil {
		out.Attempts = *in.Attempts
	}
	for _, c := range in.Codes {
		out.On |= plan.RetryStatusCodes
		out.StatusCodes = append(out.StatusCodes, int(c))
	}
	if b := length(in.Backoff); b > 0 {
		out.SetBackoff(b)
	}
	return out
}

// length reads a duration, whose form the CRD has checked (GEP-2257).
func length(d *v1.Duration) time.Duration {
	if d == nil {
		return 0
	}
	v, err := time.ParseDuration(string(*d))
	if err != nil {
		return 0
	}
	return v
}

func (t *translation) grpcRule(at manifest.Cursor, in *v1.GRPCRouteRule) model.HTTPRule {
	out := model.HTTPRule{Name: value(in.Name, ""), Origin: at.Origin()}
	for i := range in.Matches {
		out.Matches = append(out.Matches, grpcMatch(at.Field("matches").Index(i), &in.Matches[i]))
	}
	failed := t.filters(at.Field("filters"), httpFilters(in.Filters), &out)
	out.Session = t.session(at, in.SessionPersistence)
	if failed {
		t.answer(&out)
		return out
	}
	total := 0
	for i := range in.BackendRefs {
		b := &in.BackendRefs[i]
		here := at.Field("backendRefs").Index(i)
		w := t.destination(here, &b.BackendRef)
		t.backendFilters(here.Field("filters"), httpFilters(b.Filters), &w)
		if w.Weight > 0 {
			out.Forward = append(out.Forward, w)
		}
		total++
	}
	t.forward(&out, total)
	return out
}

// httpFilters turns the filters of a GRPCRoute into those of an HTTPRoute, which has all of them.
func httpFilters(in []v1.GRPCRouteFilter) []v1.HTTPRouteFilter {
	out := make([]v1.HTTPRouteFilter, len(in))
	for i, f := range in {
		out[i] = v1.HTTPRouteFilter{
			Type: v1.HTTPRouteFilterType(f.Type), RequestHeaderModifier: f.RequestHeaderModifier, ResponseHeaderModifier: f.ResponseHeaderModifier,
			RequestMirror: f.RequestMirror, ExtensionRef: f.ExtensionRef,
		}
	}
	return out
}

// grpcMatch makes a condition on the path of a method: /package.Service/Method (gRPC over HTTP/2, "Path").
func grpcMatch(at manifest.Cursor, in *v1.GRPCRouteMatch) model.HTTPMatch {
	out := model.HTTPMatch{Origin: at.Origin()}
	if m := in.Method; m != nil {
		service, method := value(m.Service, ""), value(m.Method, "")
		exact := value(m.Type, "Exact") == "Exact"
		switch {
		case exact && service != "" && method != "":
			out.Path = &match.String{Kind: match.Exact, Value: "/" + service + "/" + method}
		case exact && service != "":
			out.Path = &match.String{Kind: match.Segment, Value: "/" + service}
		case exact && method != "":
			out.Path = &match.String{Kind: match.Regex, Value: "/[^/]+/" + regexp.QuoteMeta(method)}
		case service != "" || method != "":
			any := func(s string) string {
				if s == "" {
					return "[^/]+"
				}
				return "(?:" + s + ")"
			}
			out.Path = &match.String{Kind: match.Regex, Value: "/" + any(service) + "/" + any(method)}
		}
	}
	for _, h := range in.Headers {
		name := strings.ToLower(string(h.Name))
		if slices.ContainsFunc(out.Headers, func(f plan.FieldMatch) bool { return f.Name == name }) {
			continue
		}
		out.Headers = append(out.Headers, plan.FieldMatch{Name: name, Value: stringMatch(value(h.Type, "Exact"), h.Value)})
	}
	return out
}

// filters applies the filters of a rule. failed is set when one can't be found.
func (t *translation) filters(at manifest.Cursor, in []v1.HTTPRouteFilter, out *model.HTTPRule) (failed bool) {
	for i := range in {
		f, here := &in[i], at.Index(i)
		switch f.Type {
		case v1.HTTPRouteFilterRequestHeaderModifier:
			out.Headers.Request = fieldOps(f.RequestHeaderModifier)
		case v1.HTTPRouteFilterResponseHeaderModifier:
			out.Headers.Response = fieldOps(f.ResponseHeaderModifier)
		case v1.HTTPRouteFilterRequestRedirect:
			out.Redirect = redirect(f.RequestRedirect)
		case v1.HTTPRouteFilterURLRewrite:
			out.Rewrite = rewrite(f.URLRewrite)
		case v1.HTTPRouteFilterCORS:
			out.CORS = cors(f.CORS)
		case v1.HTTPRouteFilterRequestMirror:
			out.Mirrors = t.mirror(here.Field("requestMirror"), f.RequestMirror, out.Mirrors)
		case v1.HTTPRouteFilterExtensionRef:
			ref := f.ExtensionRef
			name := t.limits[ident.Name{Namespace: t.Name.Namespace, Name: string(ref.Name)}]
			if ref.Group != "malha.dev" || ref.Kind != "RateLimit" || name == "" {
				t.fail(here.Field("extensionRef"), manifest.CodeBackend, v1.RouteReasonInvalidKind, "name a RateLimit of malha.dev that is for routes", "there is no filter %s %s of %q", ref.Kind, ref.Name, ref.Group)
				failed = true
				continue
			}
			out.Limits = append(out.Limits, name)
		}
	}
	return failed
}

// backendFilters applies those of one backend. The table of fields refuses the others.
func (t *translation) backendFilters(at manifest.Cursor, in []v1.HTTPRouteFilter, out *model.WeightedDestination) {
	for i := range in {
		switch f := &in[i]; f.Type {
		case v1.HTTPRouteFilterRequestHeaderModifier:
			out.Headers.Request = fieldOps(f.RequestHeaderModifier)
		case v1.HTTPRouteFilterResponseHeaderModifier:
			out.Headers.Response = fieldOps(f.ResponseHeaderModifier)
		case v1.HTTPRouteFilterURLRewrite:
			out.Rewrite = rewrite(f.URLRewrite)
		case v1.HTTPRouteFilterRequestMirror:
			out.Mirrors = t.mirror(at.Index(i).Field("requestMirror"), f.RequestMirror, out.Mirrors)
		case v1.HTTPRouteFilterRequestRedirect:
			out.Redirect = redirect(f.RequestRedirect)
		case v1.HTTPRouteFilterCORS:
			out.CORS = cors(f.CORS)
		}
	}
}

func fieldOps(in *v1.HTTPHeaderFilter) plan.FieldOps {
	fields := func(list []v1.HTTPHeader) []plan.Field {
		var out []plan.Field
		for _, h := range list {
			name := strings.ToLower(string(h.Name))
			if !slices.ContainsFunc(out, func(f plan.Field) bool { return f.Name == name }) { // of equivalent names only the first counts
				out = append(out, plan.Field{Name: name, Value: h.Value})
			}
		}
		return out
	}
	out := plan.FieldOps{Set: fields(in.Set), Add: fields(in.Add)}
	for _, n := range in.Remove {
		if lower := strings.ToLower(n); !slices.Contains(out.Remove, lower) {
			out.Remove = append(out.Remove, lower)
		}
	}
	return out
}

func redirect(in *v1.HTTPRequestRedirectFilter) *plan.Redirect {
	out := &plan.Redirect{Status: 302, Scheme: value(in.Scheme, ""), Authority: value(in.Hostname, "")}
	if in.StatusCode != nil {
		out.Status = *in.StatusCode
	}
	switch {
	case in.Port != nil:
		out.Port = int(*in.Port)
	case out.Scheme == "": // else it is the scheme's
		out.KeepPort = true
	}
	if p := in.Path; p != nil {
		if p.Type == v1.FullPathHTTPPathModifier {
			out.Path, out.WholePath = slash(value(p.ReplaceFullPath, "")), true
		} else {
			out.Path = slash(value(p.ReplacePrefixMatch, ""))
		}
	}
	return out
}

func rewrite(in *v1.HTTPURLRewriteFilter) *plan.Rewrite {
	out := &plan.Rewrite{Authority: value(in.Hostname, "")}
	switch p := in.Path; {
	case p == nil:
	case p.Type == v1.FullPathHTTPPathModifier: // plan.Rewrite.Path keeps what follows a prefix that matched
		out.Regex, out.Substitution = "^.*$", strings.ReplaceAll(slash(value(p.ReplaceFullPath, "")), `\`, "%5C")
	default:
		out.Path = slash(value(p.ReplacePrefixMatch, ""))
	}
	return out
}

// slash returns a path that replaces another: the empty one is the root.
func slash(p string) string {
	if p == "" {
		return "/"
	}
	return p
}

// mirror adds what a filter says to the mirrors of a rule or of one backend.
func (t *translation) mirror(at manifest.Cursor, in *v1.HTTPRequestMirrorFilter, to []model.MirrorDestination) []model.MirrorDestination {
	percent := 100.0
	switch {
	case in.Percent != nil:
		percent = float64(*in.Percent)
	case in.Fraction != nil:
		of := int32(100)
		if in.Fraction.Denominator != nil {
			of = *in.Fraction.Denominator
		}
		percent = 100 * float64(in.Fraction.Numerator) / float64(of)
	}
	t.mirrored = true
	defer func() { t.mirrored = false }()
	target, ok := t.backend(at.Field("backendRef"), &in.BackendRef) // one that can't be used gets no copies; the requests themselves go on
	if ok && percent > 0 {
		to = append(to, model.MirrorDestination{Target: target, Percent: percent})
	}
	return to
}

func cors(in *v1.HTTPCORSFilter) *plan.CORS {
	out := &plan.CORS{MaxAge: plan.Duration(time.Duration(in.MaxAge) * time.Second), AnswerUnmatched: true}
	if in.AllowCredentials != nil {
		out.Credentials = *in.AllowCredentials
	}
	for _, o := range in.AllowOrigins {
		out.Origins = append(out.Origins, origin(string(o)))
	}
	for _, m := range in.AllowMethods {
		out.Methods = append(out.Methods, string(m))
	}
	for _, h := range in.AllowHeaders {
		out.Headers = append(out.Headers, string(h))
	}
	for _, h := range in.ExposeHeaders {
		out.Expose = append(out.Expose, string(h))
	}
	return out
}

// origin makes a condition on Origin. "*" in a host is any run of characters that a host may have; a port that is the default of the
// scheme is not written by browsers (RFC 6454 section 6.2).
func origin(o string) match.String {
	if o == "*" {
		return match.String{Kind: match.NonEmpty}
	}
	if host, ok := strings.CutSuffix(o, ":80"); ok && strings.HasPrefix(o, "http://") {
		o = host
	}
	if host, ok := strings.CutSuffix(o, ":443"); ok && strings.HasPrefix(o, "https://") {
		o = host
	}
	if !strings.Contains(o, "*") {
		return match.String{Kind: match.Exact, Value: o, IgnoreCase: true}
	}
	return match.String{Kind: match.Regex, Value: "(?i)" + strings.ReplaceAll(regexp.QuoteMeta(o), `\*`, `[-a-z0-9._]+`)}
}

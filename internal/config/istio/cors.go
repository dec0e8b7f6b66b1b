package istio

import (
	"strings"
	"time"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
)

// methods are those that Istio allows in a CORS policy.
var methods = []string{"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}

func (r *reader) cors(at manifest.Cursor, in *networking.CorsPolicy) *plan.CORS {
	if in == nil {
		return nil
	}
	out := &plan.CORS{
		Headers:         r.headerNames(at.Field("allowHeaders"), in.GetAllowHeaders()),
		Expose:          r.headerNames(at.Field("exposeHeaders"), in.GetExposeHeaders()),
		MaxAge:          plan.Duration(r.duration(at.Field("maxAge"), in.GetMaxAge(), false)),
		Credentials:     in.GetAllowCredentials().GetValue(),
		AnswerUnmatched: in.GetUnmatchedPreflights() == networking.CorsPolicy_IGNORE,
	}
	if d := out.MaxAge.D(); d >= time.Millisecond && d%time.Second != 0 {
		r.Error(manifest.CodeBadDuration, at.Field("maxAge"), "write whole seconds", "browsers are told whole seconds: %v is not", out.MaxAge.D())
	}
	if len(in.GetAllowOrigin()) > 0 && len(in.GetAllowOrigins()) > 0 { //nolint:staticcheck // deprecated, and still written
		r.Error(manifest.CodeExclusive, at, "keep allowOrigins", "`allowOrigin` and `allowOrigins` exclude each other")
	}
	for i, origin := range in.GetAllowOrigin() { //nolint:staticcheck // as above
		out.Origins = append(out.Origins, r.origin(at.Field("allowOrigin").Index(i), match.String{Kind: match.Exact, Value: origin}))
	}
	for i, m := range in.GetAllowOrigins() {
		here := at.Field("allowOrigins").Index(i)
		c := r.condition(here, m)
		if c == nil {
			r.Error(manifest.CodeRequired, here, "add exact, prefix or regex", "the origin is empty: it would allow none")
			continue
		}
		out.Origins = append(out.Origins, r.origin(here, *c))
	}
	if len(in.GetAllowOrigins())+len(in.GetAllowOrigin()) == 0 { //nolint:staticcheck // as above
		r.Warning(manifest.CodeRequired, at, `add allowOrigins: [{exact: "https://example.com"}]`, "the policy allows no origin")
	}
	for i, m := range in.GetAllowMethods() {
		if m != "*" && !isToken(m) || m != strings.ToUpper(m) {
			r.Error(manifest.CodeBadValue, at.Field("allowMethods").Index(i), manifest.DidYouMean(strings.ToUpper(m), methods), "%q is not a method", m)
		}
		out.Methods = append(out.Methods, m)
	}
	return out
}

// origin reads one origin. Istio and Envoy take "*" for all of them.
func (r *reader) origin(at manifest.Cursor, m match.String) match.String {
	if m.Value == "*" {
		return match.String{Kind: match.Present}
	}
	if m.Kind == match.Exact && m.Value != "null" && (!strings.Contains(m.Value, "://") || strings.HasSuffix(m.Value, "/")) {
		r.Warning(manifest.CodeBadValue, at, "write SCHEME://HOST, without a path", "no browser sends the origin %q", m.Value)
	}
	return m
}

// headerNames reads names of headers, or "*".
func (r *reader) headerNames(at manifest.Cursor, in []string) []string {
	var out []string
	for i, name := range in {
		if !isToken(name) {
			r.Error(manifest.CodeBadValue, at.Index(i), "", "%q is not the name of a header", name)
		}
		out = append(out, strings.ToLower(name))
	}
	return out
}

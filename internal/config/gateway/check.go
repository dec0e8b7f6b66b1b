package gateway

import (
	"slices"
	"strings"

	v1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/match"
)

// checker finds what the CRDs let through and no proxy can do: expressions that don't compile, headers that belong to the
// connection.
type checker struct{ *manifest.Report }

func (c checker) httpRules(at manifest.Cursor, rules []v1.HTTPRouteRule) {
	for i := range rules {
		rule, here := &rules[i], at.Index(i)
		for j := range rule.Matches {
			c.httpMatch(here.Field("matches").Index(j), &rule.Matches[j])
		}
		c.filters(here.Field("filters"), rule.Filters)
		c.session(here.Field("sessionPersistence"), rule.SessionPersistence)
		for j := range rule.BackendRefs {
			c.filters(here.Field("backendRefs").Index(j).Field("filters"), rule.BackendRefs[j].Filters)
		}
		for j, code := range ruleCodes(rule) {
			if code < 400 || code > 599 {
				c.Error(manifest.CodeOutOfRange, here.Field("retry").Field("codes").Index(j), "from 400 to 599", "%d is not the status of a failure", code)
			}
		}
	}
}

func ruleCodes(rule *v1.HTTPRouteRule) []v1.HTTPRouteRetryStatusCode {
	if rule.Retry == nil {
		return nil
	}
	return rule.Retry.Codes
}

func (c checker) grpcRules(at manifest.Cursor, rules []v1.GRPCRouteRule) {
	for i := range rules {
		rule, here := &rules[i], at.Index(i)
		for j := range rule.Matches {
			m, place := grpcMatch(here.Field("matches").Index(j), &rule.Matches[j]), here.Field("matches").Index(j)
			if m.Path != nil {
				c.compiles(place.Field("method"), *m.Path)
			}
			for n, h := range rule.Matches[j].Headers {
				c.header(place.Field("headers").Index(n), string(h.Name), stringMatch(value(h.Type, "Exact"), h.Value))
			}
		}
		c.filters(here.Field("filters"), httpFilters(rule.Filters))
		c.session(here.Field("sessionPersistence"), rule.SessionPersistence)
		for j := range rule.BackendRefs {
			c.filters(here.Field("backendRefs").Index(j).Field("filters"), httpFilters(rule.BackendRefs[j].Filters))
		}
	}
}

func (c checker) httpMatch(at manifest.Cursor, in *v1.HTTPRouteMatch) {
	if in.Path != nil {
		c.compiles(at.Field("path"), *pathMatch(in.Path))
	}
	seen := map[string]int{}
	for i, h := range in.Headers {
		here := at.Field("headers").Index(i)
		c.header(here, string(h.Name), stringMatch(value(h.Type, "Exact"), h.Value))
		lower := strings.ToLower(string(h.Name))
		if line, twice := seen[lower]; twice {
			c.Warning(manifest.CodeIgnoredField, here, "remove it", "header %s stands twice, first on line %d: only the first counts", h.Name, line)
		} else {
			seen[lower] = here.Line()
		}
	}
	for i, q := range in.QueryParams {
		c.compiles(at.Field("queryParams").Index(i), stringMatch(value(q.Type, "Exact"), q.Value))
	}
}

func (c checker) header(at manifest.Cursor, name string, m match.String) {
	if strings.EqualFold(name, "host") {
		c.Error(manifest.CodeUnsupported, at.Field("name"), "use hostnames", "a condition on the header Host is not supported")
	}
	c.compiles(at, m)
}

func (c checker) compiles(at manifest.Cursor, m match.String) {
	if _, err := m.Compile(); err != nil {
		c.Error(manifest.CodeBadRegex, at.Field("value"), "regular expressions are RE2 (github.com/google/re2/wiki/Syntax) and must match the whole value", "%v", err)
	}
	if match.HasCTL([]byte(m.Value)) {
		c.Error(manifest.CodeBadValue, at.Field("value"), "", "the value has a control character, which no request has")
	}
}

// framing is the headers that say where a message ends or belong to one connection (RFC 9110 section 7.6.1, RFC 9112
// section 6): rules that changed them could smuggle requests.
var framing = []string{"connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "host"}

func (c checker) filters(at manifest.Cursor, in []v1.HTTPRouteFilter) {
	for i := range in {
		here := at.Index(i)
		for field, m := range map[string]*v1.HTTPHeaderFilter{"requestHeaderModifier": in[i].RequestHeaderModifier, "responseHeaderModifier": in[i].ResponseHeaderModifier} {
			if m == nil {
				continue
			}
			for j, h := range m.Set {
				c.change(here.Field(field).Field("set").Index(j), string(h.Name), h.Value)
			}
			for j, h := range m.Add {
				c.change(here.Field(field).Field("add").Index(j), string(h.Name), h.Value)
			}
			for j, n := range m.Remove {
				c.change(here.Field(field).Field("remove").Index(j), n, "")
			}
		}
		if p := in[i].CORS; p != nil && len(p.AllowOrigins) == 0 {
			c.Warning(manifest.CodeIgnoredField, here.Field("cors"), "add allowOrigins", "no origin is allowed: every cross-origin request fails")
		}
	}
}

func (c checker) change(at manifest.Cursor, name, v string) {
	switch {
	case slices.Contains(framing, strings.ToLower(name)):
		c.Error(manifest.CodeHeaderOp, at, "use urlRewrite.hostname for the host", "header %q belongs to the connection and may not be changed", name)
	case !isToken(name):
		c.Error(manifest.CodeHeaderOp, at, "letters, digits and '-'", "%q is not the name of a header", name)
	case match.HasCTL([]byte(v)):
		c.Error(manifest.CodeHeaderOp, at, "", "the value has a control character")
	}
}

// isToken reports whether s is a token (RFC 9110 section 5.6.2), the form of a header's name.
func isToken(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~") == ""
}

package istio

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// maxBody is the largest directResponse body, in bytes (Istio's own limit).
const maxBody = 1 << 20

func (r *reader) redirect(at manifest.Cursor, in *networking.HTTPRedirect, matches []*networking.HTTPMatchRequest) *plan.Redirect {
	if in == nil {
		return nil
	}
	out := &plan.Redirect{Status: 301, Scheme: in.GetScheme(), Path: in.GetUri(), WholePath: true, Port: r.port(at.Field("port"), in.GetPort())}
	// Without a word about ports Envoy keeps the host of the request as it came, port and all; another authority stands as written.
	out.KeepPort = in.GetDerivePort() == networking.HTTPRedirect_FROM_REQUEST_PORT || in.GetRedirectPort() == nil && in.GetAuthority() == ""
	switch in.GetRedirectCode() {
	case 0:
	case 301, 302, 303, 307, 308:
		out.Status = int(in.GetRedirectCode())
	default:
		r.Error(manifest.CodeBadValue, at.Field("redirectCode"), "use 301, 302, 303, 307 or 308", "%d is not a redirect", in.GetRedirectCode())
	}
	if s := in.GetScheme(); s != "" && s != "http" && s != "https" {
		r.Error(manifest.CodeBadValue, at.Field("scheme"), "use http or https", "unknown scheme %q", s)
	}
	if p := in.GetPrefixRewrite(); p != "" {
		if in.GetUri() != "" {
			r.Error(manifest.CodeExclusive, at, "keep one of them", "`uri` and `prefixRewrite` exclude each other")
		}
		out.Path, out.WholePath = p, false
		isPrefix := func(m *networking.HTTPMatchRequest) bool { return m.GetUri().GetPrefix() != "" }
		if len(matches) == 0 || !slices.ContainsFunc(matches, isPrefix) {
			r.Error(manifest.CodeBadValue, at.Field("prefixRewrite"), "match by uri.prefix", "there is no prefix to replace: the rule does not match by prefix")
		}
	}
	out.Authority = r.authority(at.Field("authority"), in.GetAuthority())
	r.path(at.Field("uri"), in.GetUri())
	if out.Scheme == "" && out.Path == "" && out.Authority == "" && out.Port == 0 {
		r.Error(manifest.CodeRequired, at, "add uri, authority, scheme or port", "the redirect says nowhere to go")
	}
	return out
}

// path checks a path that requests are sent to. The empty path changes nothing.
func (r *reader) path(at manifest.Cursor, p string) {
	if p == "" {
		return
	}
	if p[0] != '/' { // RFC 9112 section 3.2.1; Istio takes it, and Envoy sends it as it stands
		r.Warning(manifest.CodeBadValue, at, "write /"+p, "a path begins with a slash, and %q does not: servers refuse it", p)
	}
	for i := range len(p) {
		if p[i] <= ' ' || p[i] >= 0x7f {
			r.Error(manifest.CodeBadValue, at, "percent-encode it", "%q cannot be the path of a request", p)
			return
		}
	}
	if strings.Contains(p, "%PREFIX()%") {
		r.Error(manifest.CodeUnsupported, at, "use prefixRewrite", "variables in a path are not supported by Malha yet")
	}
}

// authority checks a host, with or without a port, that requests are sent to.
func (r *reader) authority(at manifest.Cursor, a string) string {
	if a == "" {
		return ""
	}
	host := a
	if i := strings.LastIndexByte(a, ':'); i >= 0 && !strings.HasSuffix(a, "]") && strings.Count(a, ":") == 1 {
		host = a[:i]
		if n, err := strconv.ParseUint(a[i+1:], 10, 16); err != nil || n == 0 {
			r.Error(manifest.CodeBadHost, at, "write HOST or HOST:PORT", "%q has no valid port", a)
		}
	}
	if _, err := ident.CanonicalHost(host, false); err != nil {
		r.Error(manifest.CodeBadHost, at, "write HOST or HOST:PORT", "%q is not a host", a)
	}
	return a
}

func (r *reader) direct(at manifest.Cursor, in *networking.HTTPDirectResponse) *plan.DirectResponse {
	if in == nil {
		return nil
	}
	out := &plan.DirectResponse{Status: int(in.GetStatus())}
	if out.Status < 200 || out.Status > 599 {
		r.Error(manifest.CodeOutOfRange, at.Field("status"), "", "%d is not the status of an answer: from 200 to 599", out.Status)
	}
	switch body := in.GetBody().GetSpecifier().(type) {
	case *networking.HTTPBody_String_:
		out.Body = []byte(body.String_)
	case *networking.HTTPBody_Bytes:
		out.Body = body.Bytes
	}
	if len(out.Body) > maxBody {
		r.Error(manifest.CodeOutOfRange, at.Field("body"), "serve it from a program", "the body has %d bytes; at most %d are kept", len(out.Body), maxBody)
	}
	return out
}

func (r *reader) rewrite(at manifest.Cursor, in *networking.HTTPRewrite) *plan.Rewrite {
	if in == nil {
		return nil
	}
	regex := in.GetUriRegexRewrite()
	switch {
	case in.GetUri() == "" && in.GetAuthority() == "" && regex == nil:
		r.Error(manifest.CodeRequired, at, "add uri, uriRegexRewrite or authority", "the rewrite changes nothing")
	case in.GetUri() != "" && regex != nil:
		r.Error(manifest.CodeExclusive, at, "keep one of them", "`uri` and `uriRegexRewrite` exclude each other")
	}
	r.path(at.Field("uri"), in.GetUri())
	out := &plan.Rewrite{Path: in.GetUri(), Authority: r.authority(at.Field("authority"), in.GetAuthority())}
	if regex != nil {
		out.Regex, out.Substitution = r.substitution(at.Field("uriRegexRewrite"), regex)
	}
	return out
}

// reference is a group in a substitution, or a backslash that stands for itself.
var reference = regexp.MustCompile(`\\(.?)`)

// substitution reads a pattern and what stands in its place: \1 to \9 are its groups, \0 is all of it (RE2's Replace).
func (r *reader) substitution(at manifest.Cursor, in *networking.RegexRewrite) (pattern, text string) {
	if in.GetMatch() == "" {
		r.Error(manifest.CodeRequired, at, "add match: …", "the rewrite has no pattern")
		return "", ""
	}
	if _, err := (match.String{Kind: match.Regex, Value: in.GetMatch()}).Compile(); err != nil {
		r.Error(manifest.CodeBadRegex, at.Field("match"), "regular expressions are RE2 (github.com/google/re2/wiki/Syntax)", "%v", err)
		return "", ""
	}
	groups := regexp.MustCompile(in.GetMatch()).NumSubexp()
	here := at.Field("rewrite")
	for _, m := range reference.FindAllStringSubmatch(in.GetRewrite(), -1) {
		n, err := strconv.Atoi(m[1])
		switch {
		case m[1] == `\`:
		case err != nil:
			r.Error(manifest.CodeBadValue, here, `write \\ for a backslash`, "a backslash stands before the number of a group, from 1 to 9")
		case n > groups:
			r.Error(manifest.CodeBadValue, here, "add a group to match, or use a smaller number", `\%d is no group: the pattern has %d`, n, groups)
		}
	}
	for i := range len(in.GetRewrite()) {
		if c := in.GetRewrite()[i]; c <= ' ' || c >= 0x7f {
			r.Error(manifest.CodeBadValue, here, "percent-encode it", "%q cannot be in the path of a request", in.GetRewrite())
			break
		}
	}
	return in.GetMatch(), in.GetRewrite()
}

// defaultRetryOn is what Istio retries on when a rule does not say ("HTTPRetry.retryOn", and the mesh's default policy).
const defaultRetryOn = plan.RetryConnectFailure | plan.RetryRefusedStream | plan.RetryGRPCUnavailable | plan.RetryGRPCCancelled

// retryConditions are Envoy's names (x-envoy-retry-on, x-envoy-retry-grpc-on). Those with 0 exist and are not supported.
var retryConditions = map[string]plan.RetryOn{
	"connect-failure": plan.RetryConnectFailure, "refused-stream": plan.RetryRefusedStream, "reset": plan.RetryReset, "5xx": plan.Retry5xx,
	"gateway-error": plan.RetryGatewayError, "retriable-4xx": plan.RetryRetriable4xx, "retriable-status-codes": plan.RetryStatusCodes,
	"cancelled": plan.RetryGRPCCancelled, "deadline-exceeded": plan.RetryGRPCDeadline, "internal": plan.RetryGRPCInternal,
	"resource-exhausted": plan.RetryGRPCExhausted, "unavailable": plan.RetryGRPCUnavailable,
	"reset-before-request": plan.RetryRefusedStream, // that nothing of the request was sent is what refused-stream says too
	"retriable-headers":    0, "envoy-ratelimited": 0, "http3-post-connect-failure": 0,
}

// maxAttempts bounds a mistake: every attempt multiplies the load of a service in trouble.
const maxAttempts = 100

func (r *reader) retry(at manifest.Cursor, in *networking.HTTPRetry) *plan.Retry {
	if in == nil {
		return nil
	}
	out := &plan.Retry{Attempts: int(in.GetAttempts()), Farther: in.GetRetryRemoteLocalities().GetValue()}
	if b := in.GetRetryIgnorePreviousHosts(); b != nil {
		out.AnyHost = !b.GetValue()
	}
	if out.Attempts < 0 || out.Attempts > maxAttempts {
		r.Error(manifest.CodeOutOfRange, at.Field("attempts"), "0 switches retries off", "%d attempts are out of range: from 0 to %d", out.Attempts, maxAttempts)
	}
	if out.Attempts == 0 {
		if in.GetRetryOn() != "" || in.GetPerTryTimeout() != nil || in.GetBackoff() != nil {
			r.Error(manifest.CodeRequired, at, "add attempts: 2, or remove the rest", "retries are off: `attempts` is 0, so nothing else of `retries` can have an effect")
		}
		return out
	}
	out.PerTry = plan.Duration(r.duration(at.Field("perTryTimeout"), in.GetPerTryTimeout(), true))
	if base := r.duration(at.Field("backoff"), in.GetBackoff(), false); base > 0 {
		out.SetBackoff(base)
	}
	out.On, out.StatusCodes = r.retryOn(at.Field("retryOn"), in.GetRetryOn())
	return out
}

func (r *reader) retryOn(at manifest.Cursor, s string) (on plan.RetryOn, codes []int) {
	if strings.TrimSpace(s) == "" {
		return defaultRetryOn, nil
	}
	for word := range strings.SplitSeq(s, ",") {
		word = strings.TrimSpace(word)
		if word == "" {
			continue
		}
		if n, err := strconv.Atoi(word); err == nil {
			if n < 100 || n > 599 {
				r.Error(manifest.CodeRetryOn, at, "", "%d is not a status code: from 100 to 599", n)
				continue
			}
			on, codes = on|plan.RetryStatusCodes, append(codes, n)
			continue
		}
		c, known := retryConditions[word]
		switch {
		case !known:
			var names []string
			for name := range retryConditions {
				names = append(names, name)
			}
			r.Error(manifest.CodeRetryOn, at, manifest.DidYouMean(word, names), "unknown retry condition %q", word)
		case c == 0:
			r.Error(manifest.CodeUnsupported, at, "use connect-failure,refused-stream,reset", "retry condition %q is not supported by Malha yet", word)
		}
		on |= c
	}
	return on, codes
}

func (r *reader) fault(at manifest.Cursor, in *networking.HTTPFaultInjection) *plan.Fault {
	if in == nil {
		return nil
	}
	out := &plan.Fault{}
	if in.GetDelay() == nil && in.GetAbort() == nil {
		r.Error(manifest.CodeFault, at, "add delay or abort", "the fault does nothing")
	}
	if d := in.GetDelay(); d != nil {
		here := at.Field("delay")
		out.Delay = plan.Duration(r.duration(here.Field("fixedDelay"), d.GetFixedDelay(), false))
		if d.GetFixedDelay() == nil && d.GetExponentialDelay() == nil {
			r.Error(manifest.CodeFault, here, "add fixedDelay: 5s", "the delay has no length")
		}
		if here.Field("percent").Set() {
			out.DelayPercent = r.percent(here.Field("percent"), float64(d.GetPercent())) //nolint:staticcheck // deprecated, and still written
		}
		out.DelayPercent = r.percentage(here, d.GetPercentage(), out.DelayPercent, "delayed")
	}
	if a := in.GetAbort(); a != nil {
		here := at.Field("abort")
		switch kind := a.GetErrorType().(type) {
		case *networking.HTTPFaultInjection_Abort_HttpStatus:
			out.AbortStatus = int(kind.HttpStatus)
			if out.AbortStatus < 200 || out.AbortStatus > 599 {
				r.Error(manifest.CodeOutOfRange, here.Field("httpStatus"), "", "%d is not the status of an answer: from 200 to 599", out.AbortStatus)
			}
		case *networking.HTTPFaultInjection_Abort_GrpcStatus:
			out.AbortGRPC = r.grpcStatus(here.Field("grpcStatus"), kind.GrpcStatus)
		case nil:
			r.Error(manifest.CodeFault, here, "add httpStatus: 503, or grpcStatus: UNAVAILABLE", "the abort has no status")
		}
		out.AbortPercent = r.percentage(here, a.GetPercentage(), 0, "aborted")
	}
	return out
}

// percentage reads the share of requests that a fault is for. Without one there is no fault, which hardly anybody means.
func (r *reader) percentage(at manifest.Cursor, p *networking.Percent, otherwise float64, done string) float64 {
	if p != nil {
		here := at.Field("percentage")
		if !here.Field("value").Set() { // what is not written is 0 in Istio's API
			r.Warning(manifest.CodeFault, here, "write percentage: {value: 100}", "no request is %s: a percentage without a value is 0", done)
		}
		return r.percent(here.Field("value"), p.GetValue())
	}
	if otherwise == 0 && !at.Field("percent").Set() {
		r.Warning(manifest.CodeFault, at, "add percentage: {value: 100}", "no request is %s: the fault has no percentage", done)
	}
	return otherwise
}

// grpcCodes are the names of gRPC's status codes (github.com/grpc/grpc, doc/statuscodes.md), by number.
var grpcCodes = []string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
	"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
	"UNAUTHENTICATED",
}

func (r *reader) grpcStatus(at manifest.Cursor, s string) *int {
	if n, err := strconv.Atoi(s); err == nil && n >= 0 && n < len(grpcCodes) {
		return &n
	}
	for n, name := range grpcCodes {
		if name == s {
			return &n
		}
	}
	r.Error(manifest.CodeFault, at, manifest.DidYouMean(s, grpcCodes), "unknown gRPC status %q", s)
	return nil
}

func (r *reader) mirrors(at manifest.Cursor, in *networking.HTTPRoute) []model.MirrorDestination {
	if in.GetMirror() != nil && len(in.GetMirrors()) > 0 {
		r.Error(manifest.CodeExclusive, at.Field("mirror"), "put it into mirrors", "`mirror` and `mirrors` exclude each other")
	}
	var out []model.MirrorDestination
	add := func(here manifest.Cursor, d *networking.Destination, percent float64) {
		t := r.target(here, d)
		if percent > 0 {
			out = append(out, model.MirrorDestination{Target: t, Percent: percent})
		}
	}
	if m := in.GetMirror(); m != nil {
		percent := 100.0
		switch {
		case in.GetMirrorPercentage() != nil:
			percent = r.percent(at.Field("mirrorPercentage").Field("value"), in.GetMirrorPercentage().GetValue())
		case in.GetMirrorPercent() != nil: //nolint:staticcheck // deprecated, and still written
			percent = r.percent(at.Field("mirrorPercent"), float64(in.GetMirrorPercent().GetValue())) //nolint:staticcheck // as above
		}
		add(at.Field("mirror"), m, percent)
	} else if in.GetMirrorPercentage() != nil || in.GetMirrorPercent() != nil { //nolint:staticcheck // as above
		r.Error(manifest.CodeRequired, at, "add mirror: {host: …}", "a mirror percentage without a mirror")
	}
	for i, m := range in.GetMirrors() {
		here, percent := at.Field("mirrors").Index(i), 100.0
		if m.GetPercentage() != nil {
			percent = r.percent(here.Field("percentage").Field("value"), m.GetPercentage().GetValue())
		}
		add(here.Field("destination"), m.GetDestination(), percent)
	}
	return out
}

package linkerd

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// The groups of annotations that decide about traffic (Linkerd "Retries", "Timeouts", "Circuit breaking", "Protocol detection").
const (
	retryGroup    = "retry.linkerd.io/"
	timeoutGroup  = "timeout.linkerd.io/"
	balancerGroup = "balancer.linkerd.io/"
	alphaGroup    = "balancer.alpha.linkerd.io/"
	configGroup   = "config.linkerd.io/"

	retryHTTP, retryGRPC, retryLimit, retryTimeout    = retryGroup + "http", retryGroup + "grpc", retryGroup + "limit", retryGroup + "timeout"
	timeoutRequest, timeoutResponse, timeoutIdle      = timeoutGroup + "request", timeoutGroup + "response", timeoutGroup + "idle"
	accrual                                           = balancerGroup + "failure-accrual"
	accrualFailures, accrualMin                       = accrual + "-consecutive-max-failures", accrual + "-consecutive-min-penalty"
	accrualMax, accrualJitter                         = accrual + "-consecutive-max-penalty", accrual + "-consecutive-jitter-ratio"
	alphaAccrual                                      = alphaGroup + "failure-accrual"
	accrualRate, accrualWindow, accrualRequests       = alphaAccrual + "-success-rate-threshold", alphaAccrual + "-window", alphaAccrual + "-min-requests"
	opaquePorts, defaultInbound, inject, injectPrefix = configGroup + "opaque-ports", configGroup + "default-inbound-policy", "linkerd.io/inject", "linkerd.io/"
)

// known is what may stand on a kind: routes of both groups count as one.
var known = map[string][]string{
	"Service": {
		retryHTTP, retryGRPC, retryLimit, retryTimeout, timeoutRequest, timeoutResponse, timeoutIdle,
		accrual, accrualFailures, accrualMin, accrualMax, accrualJitter, accrualRate, accrualWindow, accrualRequests, opaquePorts,
	},
	"HTTPRoute": {retryHTTP, retryLimit, retryTimeout, timeoutRequest, timeoutResponse, timeoutIdle},
	"GRPCRoute": {retryGRPC, retryLimit, retryTimeout, timeoutRequest, timeoutResponse, timeoutIdle},
	"Namespace": {opaquePorts, inject, defaultInbound},
	"Workload":  {opaquePorts, inject, defaultInbound},
}

// alphas are annotations that exist and that Malha does not act on.
var alphas = map[string]string{
	alphaAccrual + "-honor-retry-after":        "the time that an endpoint asks for is not waited for",
	alphaGroup + "penalize-failures":           "failing endpoints are ejected (" + accrual + "), not penalized",
	alphaGroup + "load-biaser-penalty":         "failing endpoints are ejected (" + accrual + "), not penalized",
	alphaGroup + "load-biaser-max-retry-after": "failing endpoints are ejected (" + accrual + "), not penalized",
}

// reading reads the annotations of one object.
type reading struct {
	*manifest.Report
	object *manifest.Object
}

func (r reading) at(key string) manifest.Cursor {
	return r.object.Root().Field("metadata").Field("annotations").Key(key)
}

func (r reading) bad(key, hint, format string, args ...any) {
	r.Error(manifest.CodeAnnotation, r.at(key), hint, format, args...)
}

// annotate reads the annotations of an object of any dialect.
func (d *dialect) annotate(o *manifest.Object, own *model.Config, report *manifest.Report) {
	r := reading{report, o}
	for _, key := range slices.Sorted(maps.Keys(o.Annotations)) {
		r.placed(key)
	}
	switch o.Kind {
	case "Service":
		if o.Group() != "" {
			return
		}
		d.annotated = append(d.annotated, o)
		r.ports(opaquePorts)
		for i := range own.Services {
			s := &own.Services[i]
			s.Outlier = r.outlier()
			s.Defaults = r.policy(o.Origin, true, true)
		}
	case "Workload":
		d.annotated = append(d.annotated, o)
		r.ports(opaquePorts)
	case "Namespace":
		if set, ok := r.ports(opaquePorts); ok {
			d.namespaces[o.Name.Name] = set
		}
	case "HTTPRoute", "GRPCRoute":
		if p := r.policy(o.Origin, o.Kind == "HTTPRoute", o.Kind == "GRPCRoute"); p != nil {
			d.routes = append(d.routes, routePolicy{o.Origin, p})
		}
	}
}

// placed reports an annotation of Linkerd that nobody knows, or that means nothing where it stands.
func (r reading) placed(key string) {
	group, _, _ := strings.Cut(key, "/")
	value := r.object.Annotations[key]
	switch group += "/"; group {
	case retryGroup, timeoutGroup, balancerGroup, alphaGroup:
	case injectPrefix:
		if key == inject && value != "enabled" {
			r.Warning(manifest.CodeAnnotation, r.at(key), "remove it", "`%s: %s` has no effect: beside each Workload runs a proxy", key, value)
		}
		return
	case configGroup:
		switch {
		case key == defaultInbound && value != "all-unauthenticated":
			r.bad(key, "use a PeerAuthentication and AuthorizationPolicies", "the default inbound policy %q is not enforced by Malha yet", value)
			return
		case key == defaultInbound:
			return
		case key != opaquePorts:
			r.Info(manifest.CodeIgnoredField, r.at(key), "", "%s has no effect: it is about Linkerd's own proxy", key)
			return
		}
	default:
		return
	}
	if slices.Contains(known[r.object.Kind], key) {
		return
	}
	if why, ok := alphas[key]; ok {
		r.Warning(manifest.CodeAnnotation, r.at(key), "remove it", "%s has no effect: %s", key, why)
		return
	}
	var all []string
	for _, keys := range known {
		all = append(all, keys...)
	}
	if slices.Contains(all, key) {
		r.Warning(manifest.CodeAnnotation, r.at(key), "put it on "+strings.Join(bearers(key), " or "), "%s means nothing on a %s", key, r.object.Kind)
		return
	}
	r.Warning(manifest.CodeAnnotation, r.at(key), manifest.DidYouMean(key, all), "unknown annotation %s: it has no effect", key)
}

// bearers returns the kinds on which an annotation means something.
func bearers(key string) []string {
	var out []string
	for kind, keys := range known {
		if slices.Contains(keys, key) {
			out = append(out, kind)
		}
	}
	slices.Sort(out)
	return out
}

var durationForm = regexp.MustCompile(`^([0-9]{1,9})(ms|s|m|h|d)$`)

// duration reads Linkerd's own form: one whole number and one unit.
func (r reading) duration(key string) time.Duration {
	value, ok := r.object.Annotations[key]
	if !ok {
		return 0
	}
	m := durationForm.FindStringSubmatch(strings.TrimSpace(value))
	if m == nil {
		r.bad(key, "write a whole number and ms, s, m, h or d: 300ms", "%q is not a duration", value)
		return 0
	}
	n, err := strconv.Atoi(m[1])
	unit := map[string]time.Duration{"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}[m[2]]
	if d := time.Duration(n) * unit; err == nil && d <= 100*365*24*time.Hour && d >= 0 {
		return d
	}
	r.bad(key, "", "%q is too long", value)
	return 0
}

// policy reads timeouts and retries; nil when there are none.
func (r reading) policy(origin ident.Origin, http, grpc bool) *model.RequestPolicy {
	out := model.RequestPolicy{
		Timeout: r.duration(timeoutRequest), Response: r.duration(timeoutResponse), Idle: r.duration(timeoutIdle),
		Retry: r.retry(http, grpc),
	}
	if out == (model.RequestPolicy{}) {
		return nil
	}
	out.Origin = origin
	return &out
}

// Backoff between retries (linkerd2-proxy, retry backoff of client policies).
const (
	backoffMin = 25 * time.Millisecond
	backoffMax = 250 * time.Millisecond
)

func (r reading) retry(http, grpc bool) *plan.Retry {
	a := r.object.Annotations
	has := func(key string) bool { _, ok := a[key]; return ok }
	if !has(retryLimit) && !has(retryTimeout) && !(http && has(retryHTTP)) && !(grpc && has(retryGRPC)) {
		return nil
	}
	out := &plan.Retry{
		Attempts: 1, PerTry: plan.Duration(r.duration(retryTimeout)),
		BackoffBase: plan.Duration(backoffMin), BackoffMax: plan.Duration(backoffMax),
	}
	if v, ok := a[retryLimit]; ok {
		n, err := strconv.ParseUint(strings.TrimSpace(v), 10, 16)
		if err != nil {
			r.bad(retryLimit, "write a whole number: 2", "%q is not a number of retries", v)
		}
		out.Attempts = int(n)
	}
	if http {
		r.httpConditions(out)
	}
	if grpc {
		r.grpcConditions(out)
	}
	if out.On == 0 && http { // the default of the policy controller
		out.On = plan.Retry5xx
	}
	if out.On == 0 {
		r.Warning(manifest.CodeAnnotation, r.at(retryLimit), "add "+retryGRPC+": unavailable", "nothing is retried without a condition")
		return nil
	}
	return out
}

func (r reading) httpConditions(out *plan.Retry) {
	for word := range words(r.object.Annotations[retryHTTP]) {
		switch word {
		case "5xx":
			out.On |= plan.Retry5xx
			continue
		case "gateway-error":
			out.On |= plan.RetryGatewayError
			continue
		}
		first, last, isRange := strings.Cut(word, "-")
		lo, err1 := strconv.Atoi(first)
		hi, err2 := lo, error(nil)
		if isRange {
			hi, err2 = strconv.Atoi(last)
		}
		if err1 != nil || err2 != nil || lo < 100 || hi > 599 || lo > hi {
			r.bad(retryHTTP, "write 5xx, gateway-error, a status such as 503, or a range 500-504", "%q is not a condition for retries", word)
			continue
		}
		out.On |= plan.RetryStatusCodes
		for code := lo; code <= hi; code++ {
			if !slices.Contains(out.StatusCodes, code) {
				out.StatusCodes = append(out.StatusCodes, code)
			}
		}
	}
}

var grpcConditions = map[string]plan.RetryOn{
	"cancelled": plan.RetryGRPCCancelled, "deadline-exceeded": plan.RetryGRPCDeadline, "internal": plan.RetryGRPCInternal,
	"resource-exhausted": plan.RetryGRPCExhausted, "unavailable": plan.RetryGRPCUnavailable,
}

func (r reading) grpcConditions(out *plan.Retry) {
	for word := range words(r.object.Annotations[retryGRPC]) {
		on, ok := grpcConditions[word]
		if !ok {
			r.bad(retryGRPC, manifest.DidYouMean(word, slices.Sorted(maps.Keys(grpcConditions))), "%q is not a condition for retries", word)
		}
		out.On |= on
	}
}

// words yields what stands between commas.
func words(s string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for w := range strings.SplitSeq(s, ",") {
			if w = strings.TrimSpace(w); w != "" && !yield(w) {
				return
			}
		}
	}
}

// outlier reads failure accrual; nil without it. The defaults are Linkerd's ("Circuit breaking").
func (r reading) outlier() *plan.Outlier {
	mode, on := r.object.Annotations[accrual]
	if !on {
		for key := range r.object.Annotations {
			if strings.HasPrefix(key, accrual) || strings.HasPrefix(key, alphaAccrual) && slices.Contains(known["Service"], key) {
				r.Warning(manifest.CodeAnnotation, r.at(key), "add "+accrual+": consecutive", "%s has no effect: failure accrual is off", key)
			}
		}
		return nil
	}
	out := &plan.Outlier{
		Consecutive5xx: 7, BaseEjection: plan.Duration(time.Second), MaxEjection: plan.Duration(time.Minute), Jitter: 0.5,
		MaxEjectionPercent: 100, Probe: true,
	}
	switch mode {
	case "consecutive":
		for _, key := range []string{accrualRate, accrualWindow, accrualRequests} {
			if r.at(key).Set() {
				r.Warning(manifest.CodeAnnotation, r.at(key), "write "+accrual+": unified", "%s has no effect: it belongs to unified failure accrual", key)
			}
		}
	case "unified":
		out.SuccessRate, out.Window, out.MinRequests = 0.8, plan.Duration(10*time.Second), 5
		out.SuccessRate = r.ratio(accrualRate, out.SuccessRate, 1)
		if d := r.duration(accrualWindow); d > 0 {
			out.Window = plan.Duration(d)
		}
		out.MinRequests = r.count(accrualRequests, out.MinRequests)
	default:
		r.bad(accrual, manifest.DidYouMean(mode, []string{"consecutive", "unified"}), "unknown failure accrual %q", mode)
	}
	out.Consecutive5xx = r.count(accrualFailures, out.Consecutive5xx)
	if d := r.duration(accrualMin); d > 0 {
		out.BaseEjection = plan.Duration(d)
	}
	if d := r.duration(accrualMax); d > 0 {
		out.MaxEjection = plan.Duration(d)
	}
	if out.BaseEjection > out.MaxEjection {
		r.bad(accrualMin, "swap them", "the least penalty %v is above the greatest, %v", out.BaseEjection.D(), out.MaxEjection.D())
	}
	out.Jitter = r.ratio(accrualJitter, out.Jitter, 100)
	return out
}

func (r reading) count(key string, def uint32) uint32 {
	v, ok := r.object.Annotations[key]
	if !ok {
		return def
	}
	n, err := strconv.ParseUint(strings.TrimSpace(v), 10, 32)
	if err != nil || n == 0 {
		r.bad(key, "write a whole number from 1", "%q is not a number", v)
	}
	return uint32(n)
}

func (r reading) ratio(key string, def, limit float64) float64 {
	v, ok := r.object.Annotations[key]
	if !ok {
		return def
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
	if err != nil || !(f >= 0 && f <= limit) {
		r.bad(key, "", "%q is not a number from 0 to %v", v, limit)
	}
	return f
}

// routePolicy is what the annotations of a route say, until the dialect of the route has made its rules.
type routePolicy struct {
	origin ident.Origin
	policy *model.RequestPolicy
}

// finishRoutes puts annotations of routes into their rules; what the route's own fields say wins.
func (d *dialect) finishRoutes(out *model.Config) {
	if len(d.routes) == 0 {
		return
	}
	byOrigin := make(map[ident.Origin]*model.RequestPolicy, len(d.routes))
	for _, p := range d.routes {
		byOrigin[p.origin] = p.policy
	}
	for i := range out.Routings {
		p := byOrigin[out.Routings[i].Origin]
		if p == nil {
			continue
		}
		rules := slices.Clone(out.Routings[i].HTTP)
		for j := range rules {
			rule := &rules[j]
			if rule.Timeout == 0 {
				rule.Timeout = p.Timeout
			}
			if rule.Response == 0 {
				rule.Response = p.Response
			}
			if rule.Idle == 0 {
				rule.Idle = p.Idle
			}
			switch {
			case rule.Retry == nil:
				rule.Retry = p.Retry
			case p.Retry != nil && rule.Retry.On == 0: // the rule has at most a time for each try: it says nothing of retries
				merged := *p.Retry
				merged.PerTry = cmp.Or(rule.Retry.PerTry, merged.PerTry)
				rule.Retry = &merged
			}
		}
		out.Routings[i].HTTP = rules
	}
}

// profiled takes annotations out of force where a ServiceProfile with routes or overrides rules: Linkerd never mixes the two.
func profiled(out *model.Config, r *manifest.Report) {
	byHost := map[string]*model.Profile{}
	for i := range out.Profiles {
		if p := &out.Profiles[i]; len(p.Routes)+len(p.Overrides) > 0 {
			byHost[p.Host] = p
		}
	}
	for i := range out.Services {
		s := &out.Services[i]
		p := byHost[s.Host]
		if p == nil || p.Name.Namespace != s.Name.Namespace || s.Defaults == nil && (s.Outlier == nil || !s.Outlier.Probe) {
			continue
		}
		r.Add(model.Diagnostic{
			Code: manifest.CodeAnnotation, Severity: model.Warning, Origin: s.Origin, Path: "metadata.annotations",
			Message: "retries, timeouts and failure accrual by annotation have no effect: the ServiceProfile " + p.Name.String() + " rules this Service",
			Hint:    "remove the profile's routes and dstOverrides, or the annotations",
		})
		s.Defaults, s.Outlier = nil, nil
	}
}

package local

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// AnnotationRateLimits names RateLimits of its namespace that guard every rule of a VirtualService, HTTPRoute or GRPCRoute, with
// commas between.
const AnnotationRateLimits = Group + "/rate-limits"

// RateLimitName is how plans call a RateLimit.
func RateLimitName(n ident.Name) string { return "RateLimit/" + n.String() }

// limitSpec is the spec of a RateLimit.
type limitSpec struct {
	// Selector finds the workloads of the namespace whose incoming requests are limited, {} all; without it the RateLimit is
	// only for routes that name it.
	// It is a map of labels, or has them below matchLabels as other kinds do.
	Selector *map[string]any `json:"selector"`
	Port     *portRef        `json:"port"`
	Rules    []limitRule     `json:"rules"`
}

type limitRule struct {
	Match     []limitMatch      `json:"match"`  // any; none: every request
	By        string            `json:"by"`     // identity, address or header; "" one bucket for all
	Header    string            `json:"header"` // with by: header
	Requests  uint32            `json:"requests"`
	Per       manifest.Duration `json:"per"`   // default 1s
	Burst     uint32            `json:"burst"` // default: requests
	Overrides []limitOverride   `json:"overrides"`
}

type limitMatch struct {
	Path    *stringMatch           `json:"path"`
	Method  string                 `json:"method"`
	Headers map[string]stringMatch `json:"headers"`
}

// stringMatch is exactly one of its fields.
type stringMatch struct {
	Exact  *string `json:"exact"`
	Prefix *string `json:"prefix"`
	Regex  *string `json:"regex"`
}

type limitOverride struct {
	ServiceAccounts []string `json:"serviceAccounts"` // "namespace/name", or a name of this namespace
	Requests        uint32   `json:"requests"`
}

var limitType = sync.OnceValue(func() *manifest.Type {
	return manifest.FromGo(reflect.TypeFor[limitSpec](), map[reflect.Type]*manifest.Type{reflect.TypeFor[portRef](): manifest.TypeIntOrString})
})

func rateLimit(o *manifest.Object, spec []byte, out *model.Config, r *manifest.Report) {
	at := o.Spec()
	var in limitSpec
	if err := json.Unmarshal(spec, &in); err != nil {
		r.Error(manifest.CodeInternal, at, "please report this", "cannot decode the spec: %v", err)
		return
	}
	l := model.RateLimit{Meta: o.Meta(), ByRoute: in.Selector == nil, Limit: plan.RateLimit{Name: RateLimitName(o.Name), Origin: o.Origin}}
	if in.Selector != nil {
		l.Selector = selectorOf(*in.Selector, at.Field("selector"), r)
	}
	switch p := in.Port; {
	case p == nil:
	case l.ByRoute:
		r.Error(manifest.CodeRateLimit, at.Field("port"), "add selector: {} for all workloads of the namespace, or remove it", "`port` belongs to a selector: routes limit their own requests")
	case p.Name != "":
		l.PortName = p.Name
	case p.Number < 1 || p.Number > 65535:
		r.Error(manifest.CodeOutOfRange, at.Field("port"), "", "port %d is out of range: from 1 to 65535", p.Number)
	default:
		l.Port = p.Number
	}
	if len(in.Rules) == 0 {
		r.Error(manifest.CodeRequired, at, "add rules: [{requests: 100, per: 1s}]", "the RateLimit has no rules")
	}
	for i := range in.Rules {
		l.Limit.Rules = append(l.Limit.Rules, limitRuleOf(&in.Rules[i], o.Name.Namespace, at.Field("rules").Index(i), r))
	}
	out.RateLimits = append(out.RateLimits, l)
}

// selectorOf reads labels, as a plain map or below matchLabels.
func selectorOf(in map[string]any, at manifest.Cursor, r *manifest.Report) map[string]string {
	if inner, ok := in["matchLabels"]; ok {
		if _, label := inner.(string); !label { // else a label of that name
			if len(in) > 1 {
				r.Error(manifest.CodeRateLimit, at, "write either selector: {matchLabels: {app: web}} or selector: {app: web}", "labels stand beside matchLabels")
			}
			labels, ok := inner.(map[string]any)
			if !ok && inner != nil {
				r.Error(manifest.CodeWrongType, at.Field("matchLabels"), "write matchLabels: {app: web}", "want labels")
			}
			in, at = labels, at.Field("matchLabels")
		}
	}
	out := make(map[string]string, len(in))
	for _, key := range slices.Sorted(maps.Keys(in)) {
		switch v := in[key].(type) {
		case string:
			out[key] = v
		default:
			hint := "put it into quotes"
			if key == "matchExpressions" {
				hint = "write the labels themselves: matchLabels: {app: web}"
			}
			r.Error(manifest.CodeWrongType, at.Field(key), hint, "the value of a label is text")
		}
	}
	return out
}

func limitRuleOf(in *limitRule, namespace string, at manifest.Cursor, r *manifest.Report) plan.RateLimitRule {
	out := plan.RateLimitRule{By: plan.LimitBy(in.By), Requests: in.Requests, Per: plan.Duration(in.Per), Burst: in.Burst, Origin: at.Origin()}
	if !at.Field("per").Set() {
		out.Per = plan.Duration(time.Second)
	}
	if out.Requests == 0 {
		r.Error(manifest.CodeRateLimit, at, "write requests: 100", "a rate is at least one request; to deny all use an AuthorizationPolicy")
	}
	if d := out.Per.D(); d < 10*time.Millisecond || d > 24*time.Hour {
		r.Error(manifest.CodeOutOfRange, at.Field("per"), "from 10ms to 24h", "%v is out of range", d)
	}
	switch out.By {
	case plan.ByAll, plan.ByIdentity, plan.ByAddress:
		if in.Header != "" {
			r.Error(manifest.CodeRateLimit, at.Field("header"), "write by: header", "`header` belongs to by: header")
		}
	case plan.ByHeader:
		out.Header = strings.ToLower(in.Header)
		if out.Header == "" || strings.ContainsAny(out.Header, ": \t") {
			r.Error(manifest.CodeRateLimit, at.Field("header"), "write header: x-user", "%q is not the name of a header", in.Header)
		}
	default:
		r.Error(manifest.CodeBadEnum, at.Field("by"), manifest.DidYouMean(in.By, []string{"identity", "address", "header"}), "unknown value %q", in.By)
	}
	for i := range in.Match {
		out.Matches = append(out.Matches, limitMatchOf(&in.Match[i], at.Field("match").Index(i), r))
	}
	if len(in.Overrides) > 0 && out.By != plan.ByIdentity {
		r.Error(manifest.CodeRateLimit, at.Field("overrides"), "write by: identity", "overrides are for identities")
	}
	for i, v := range in.Overrides {
		here := at.Field("overrides").Index(i)
		over := plan.RateOverride{Requests: v.Requests}
		if v.Requests == 0 {
			r.Error(manifest.CodeRateLimit, here, "write requests: 100", "a rate is at least one request")
		}
		if len(v.ServiceAccounts) == 0 {
			r.Error(manifest.CodeRequired, here, "add serviceAccounts: [namespace/name]", "the override is for nobody")
		}
		for j, account := range v.ServiceAccounts {
			n, err := ident.ParseName(account, namespace)
			if err != nil {
				r.Error(manifest.CodeBadValue, here.Field("serviceAccounts").Index(j), "write namespace/name", "%q is not a service account", account)
			}
			over.Identities = append(over.Identities, ident.Identity{TrustDomain: ident.DefaultTrustDomain, Namespace: n.Namespace, ServiceAccount: n.Name})
		}
		out.Overrides = append(out.Overrides, over)
	}
	return out
}

func limitMatchOf(in *limitMatch, at manifest.Cursor, r *manifest.Report) plan.Match {
	var out plan.Match
	if in.Path != nil {
		v := in.Path.condition(at.Field("path"), r)
		out.Path = &v
	}
	if in.Method != "" {
		out.Method = &match.String{Kind: match.Exact, Value: in.Method}
	}
	for _, name := range slices.Sorted(maps.Keys(in.Headers)) {
		v := in.Headers[name]
		out.Headers = append(out.Headers, plan.FieldMatch{Name: strings.ToLower(name), Value: v.condition(at.Field("headers").Key(name), r)})
	}
	if in.Path == nil && in.Method == "" && len(in.Headers) == 0 {
		r.Error(manifest.CodeRateLimit, at, "leave match out for every request", "the condition asks for nothing")
	}
	return out
}

func (s *stringMatch) condition(at manifest.Cursor, r *manifest.Report) match.String {
	var out []match.String
	if s.Exact != nil {
		out = append(out, match.String{Kind: match.Exact, Value: *s.Exact})
	}
	if s.Prefix != nil {
		out = append(out, match.String{Kind: match.Prefix, Value: *s.Prefix})
	}
	if s.Regex != nil {
		out = append(out, match.String{Kind: match.Regex, Value: *s.Regex})
		if _, err := out[len(out)-1].Compile(); err != nil {
			r.Error(manifest.CodeBadRegex, at.Field("regex"), "regular expressions are RE2 and must match the whole value", "%v", err)
		}
	}
	if len(out) != 1 {
		r.Error(manifest.CodeExclusive, at, "write {exact: …}, {prefix: …} or {regex: …}", "want exactly one of `exact`, `prefix` and `regex`")
		return match.String{}
	}
	return out[0]
}

// limited is an object whose routes RateLimits guard.
type limited struct {
	object *manifest.Object
	names  []string
}

// annotations are all of ours, on any kind; the core dialect reads those of Services.
var annotations = []string{AnnotationRateLimits, AnnotationServiceType, Group + "/balancer", Group + "/health-check", Group + "/analyze-suppress"}

// annotate reads which RateLimits a route has.
func (d *dialect) annotate(o *manifest.Object, _ *model.Config, r *manifest.Report) {
	for _, key := range slices.Sorted(maps.Keys(o.Annotations)) {
		if strings.HasPrefix(key, Group+"/") && !slices.Contains(annotations, key) {
			r.Error(manifest.CodeAnnotation, o.Root().Field("metadata").Field("annotations").Key(key), manifest.DidYouMean(key, annotations), "unknown annotation %s", key)
		}
	}
	serviceType(o, r)
	value, ok := o.Annotations[AnnotationRateLimits]
	if !ok {
		return
	}
	at := o.Root().Field("metadata").Field("annotations").Key(AnnotationRateLimits)
	switch o.Kind {
	case "VirtualService", "HTTPRoute", "GRPCRoute":
	default:
		r.Error(manifest.CodeAnnotation, at, "put it on a VirtualService, HTTPRoute or GRPCRoute; a RateLimit with a selector guards workloads", "%s means nothing on a %s", AnnotationRateLimits, o.Kind)
		return
	}
	l := limited{object: o}
	for n := range strings.SplitSeq(value, ",") {
		l.names = append(l.names, strings.TrimSpace(n))
	}
	d.limited = append(d.limited, l)
}

// finish puts RateLimits on the routes that name them, once every dialect has made its routes. One that does not exist is an
// error, and fails the route.
func (d *dialect) finish(out *model.Config, r *manifest.Report) {
	exists := map[string]*model.RateLimit{}
	for i := range out.RateLimits {
		exists[out.RateLimits[i].Limit.Name] = &out.RateLimits[i]
	}
	for _, l := range d.limited {
		at := l.object.Root().Field("metadata").Field("annotations").Key(AnnotationRateLimits)
		var names []string
		for _, n := range l.names {
			name := RateLimitName(ident.Name{Namespace: l.object.Name.Namespace, Name: n})
			if exists[name] == nil {
				r.Error(manifest.CodeRateLimit, at, "add it, or correct the name", "there is no RateLimit %s in namespace %s", n, l.object.Name.Namespace)
			}
			names = append(names, name)
		}
		for i := range out.Routings {
			rt := &out.Routings[i]
			if rt.Origin != l.object.Origin {
				continue
			}
			rt.HTTP = slices.Clone(rt.HTTP)
			for j := range rt.HTTP {
				rt.HTTP[j].Limits = append(slices.Clone(rt.HTTP[j].Limits), names...)
			}
		}
	}
}

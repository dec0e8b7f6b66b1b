// Package istio translates Istio's kinds into the model: networking (VirtualService, DestinationRule, Gateway, ServiceEntry,
// WorkloadEntry, WorkloadGroup, Sidecar, ProxyConfig; EnvoyFilter is only reported) and security (PeerAuthentication,
// AuthorizationPolicy), in every version that is served (all versions of a kind share one schema and one meaning).
//
// It is pure: one checked object in, model values out, mistakes into the manifest.Report. The meaning is that of Istio
// 1.31 as its API documents have it; where Istio only says that a field is odd, so does a Warning here. Whether the hosts,
// subsets and gateways that an object names exist is not known here: the world checks it.
package istio

import (
	"fmt"
	"slices"
	"sync"
	"time"

	networking "istio.io/api/networking/v1alpha3"
	proxy "istio.io/api/networking/v1beta1"
	security "istio.io/api/security/v1beta1"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
)

// The API groups.
const (
	networkingGroup = "networking.istio.io"
	securityGroup   = "security.istio.io"
)

// dialect is what is learned from one object for another.
type dialect struct {
	groups  map[ident.Name]*group
	members map[member]membership
}

// Dialect returns the kinds that are translated here, for one configuration.
func Dialect() manifest.Dialect {
	d := &dialect{groups: map[ident.Name]*group{}, members: map[member]membership{}}
	all, stable := []string{"v1", "v1beta1", "v1alpha3"}, []string{"v1", "v1beta1"}
	kinds := []manifest.Kind{
		{Kind: "VirtualService", Versions: all, Type: virtualServiceType, Fields: virtualServiceFields, Translate: virtualService},
		{Kind: "DestinationRule", Versions: all, Type: destinationRuleType, Fields: destinationRuleFields, Translate: destinationRule},
		{Kind: "Gateway", Versions: all, Type: gatewayType, Fields: gatewayFields, Translate: gateway},
		{Kind: "ServiceEntry", Versions: all, Type: serviceEntryType, Fields: serviceEntryFields, Translate: serviceEntry},
		{Kind: "WorkloadEntry", Versions: all, Type: workloadEntryType, Fields: workloadEntryFields, Translate: d.workloadEntry},
		{Kind: "WorkloadGroup", Versions: all, Type: workloadGroupType, Fields: workloadGroupFields, KeepsBroken: true, Translate: d.workloadGroup},
		{Kind: "Sidecar", Versions: all, Type: sidecarType, Fields: sidecarFields, Translate: sidecar},
		{Kind: "ProxyConfig", Versions: []string{"v1beta1"}, Type: proxyConfigType, Fields: proxyConfigFields, Translate: proxyConfig},
		{Kind: "EnvoyFilter", Versions: []string{"v1alpha3"}, Type: envoyFilterType, Fields: envoyFilterFields, Translate: envoyFilter},
		{Kind: "PeerAuthentication", Versions: stable, Type: peerAuthenticationType, Fields: peerAuthenticationFields, Translate: peerAuthentication},
		{Kind: "AuthorizationPolicy", Versions: stable, Type: authorizationPolicyType, Fields: authorizationPolicyFields, Translate: authorizationPolicy},
	}
	for i := range kinds {
		k := &kinds[i]
		k.Group, k.Proof = networkingGroup, "internal/config/istio TestGolden"
		if k.Kind == "PeerAuthentication" || k.Kind == "AuthorizationPolicy" {
			k.Group = securityGroup
		}
	}
	return manifest.Dialect{Kinds: kinds, Annotate: d.annotate, Finish: d.finish}
}

// Kinds returns the kinds that are translated here.
func Kinds() []manifest.Kind { return Dialect().Kinds }

// The schemas of the kinds.
var (
	virtualServiceType      = typeOf(&networking.VirtualService{})
	destinationRuleType     = typeOf(&networking.DestinationRule{})
	gatewayType             = typeOf(&networking.Gateway{})
	serviceEntryType        = typeOf(&networking.ServiceEntry{})
	workloadEntryType       = typeOf(&networking.WorkloadEntry{})
	workloadGroupType       = typeOf(&networking.WorkloadGroup{})
	sidecarType             = typeOf(&networking.Sidecar{})
	proxyConfigType         = typeOf(&proxy.ProxyConfig{})
	envoyFilterType         = typeOf(&networking.EnvoyFilter{})
	peerAuthenticationType  = typeOf(&security.PeerAuthentication{})
	authorizationPolicyType = typeOf(&security.AuthorizationPolicy{})
)

func typeOf(m proto.Message) func() *manifest.Type {
	return sync.OnceValue(func() *manifest.Type { return manifest.FromProto(m.ProtoReflect().Descriptor()) })
}

// reader reads one object.
type reader struct {
	*manifest.Report
	object *manifest.Object
}

func newReader(o *manifest.Object, r *manifest.Report) *reader { return &reader{Report: r, object: o} }

// decode reads the checked spec into its message.
func (r *reader) decode(spec []byte, m proto.Message) bool {
	if err := protojson.Unmarshal(spec, m); err != nil {
		r.Error(manifest.CodeInternal, r.object.Spec(), "please report this", "cannot decode the spec: %v", err)
		return false
	}
	return true
}

// host reads a host of a rule: a short name is a Service of the rule's own namespace.
func (r *reader) host(at manifest.Cursor, host string, wildcard bool) string {
	if host == "" {
		r.Error(manifest.CodeRequired, at, "name a Service, or a host", "the host is missing")
		return ""
	}
	h, err := ident.RuleHost(host, r.object.Name.Namespace)
	switch {
	case err != nil:
		r.Error(manifest.CodeBadHost, at, "a host has letters, digits, '-' and '.', and no port", "%q is not a host", host)
	case !wildcard && h[0] == '*':
		r.Error(manifest.CodeBadHost, at, "name one host", "a wildcard cannot stand here: %q", host)
	}
	return h
}

// hint about a pattern is the same wherever one stands.
const regexHint = "regular expressions are RE2 (github.com/google/re2/wiki/Syntax) and must match the whole value"

// sayWhat is what to do with a condition that asks for nothing.
const sayWhat = "remove the condition, or say what it asks for: exact, prefix or regex"

// condition reads a StringMatch. It returns nil when nothing is asked for.
func (r *reader) condition(at manifest.Cursor, m *networking.StringMatch) *match.String {
	var out match.String
	switch m := m.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		out = match.String{Kind: match.Exact, Value: m.Exact}
	case *networking.StringMatch_Prefix:
		out = match.String{Kind: match.Prefix, Value: m.Prefix}
	case *networking.StringMatch_Regex:
		out = match.String{Kind: match.Regex, Value: m.Regex}
		if m.Regex == "" { // Istio refuses it too (validateStringMatchRegexp)
			r.Error(manifest.CodeBadRegex, at.Field("regex"), sayWhat, "the regular expression is empty")
		}
		if _, err := out.Compile(); err != nil {
			r.Error(manifest.CodeBadRegex, at.Field("regex"), regexHint, "%v", err)
		}
	default:
		return nil
	}
	if match.HasCTL([]byte(out.Value)) {
		r.Error(manifest.CodeBadValue, at, "", "the value has a control character, which no request has")
	}
	return &out
}

// duration reads a duration of at least a millisecond; 0 when it is not set, or set to 0 where that is allowed.
func (r *reader) duration(at manifest.Cursor, d *durationpb.Duration, zero bool) time.Duration {
	if d == nil {
		return 0
	}
	v := d.AsDuration()
	if v == 0 && zero {
		return 0
	}
	if v < time.Millisecond {
		r.Error(manifest.CodeBadDuration, at, "", "%v is too short: at least 1ms", v)
	}
	return v
}

// count reads a number that may not be negative; 0 means no limit.
func (r *reader) count(at manifest.Cursor, n int32) uint32 {
	if n < 0 {
		r.Error(manifest.CodeOutOfRange, at, "leave it out for no limit", "%d is out of range: at least 0", n)
		return 0
	}
	return uint32(n)
}

// port reads a port number; 0 when none was written.
func (r *reader) port(at manifest.Cursor, n uint32) int {
	if at.Set() && (n < 1 || n > 65535) {
		r.Error(manifest.CodeOutOfRange, at, "", "port %d is out of range: from 1 to 65535", n)
	}
	return int(n)
}

// percent reads a percentage.
func (r *reader) percent(at manifest.Cursor, v float64) float64 {
	if v < 0 || v > 100 {
		r.Error(manifest.CodeOutOfRange, at, "", "%v is not a percentage: from 0 to 100", v)
	}
	return v
}

// exportTo reads the namespaces that a rule is visible in. None means all.
func (r *reader) exportTo(at manifest.Cursor, in []string) []string { return r.visible(at, in, false) }

// visible reads the namespaces that an object is visible in. nobody allows "~": a ServiceEntry that no client sees.
func (r *reader) visible(at manifest.Cursor, in []string, nobody bool) []string {
	if len(in) == 0 {
		return []string{"*"}
	}
	var out []string
	for i, ns := range in {
		here := at.Index(i)
		switch {
		case ns == "*" || ns == "~" && nobody:
			if len(in) > 1 {
				r.Warning(manifest.CodeIgnoredField, at, fmt.Sprintf("keep %q alone, or name the namespaces", ns), "%q is every namespace or none: the others add nothing", ns)
			}
			return []string{ns}
		case ns == ".":
			ns = r.object.Name.Namespace
		case ns == "~":
			r.Error(manifest.CodeBadValue, here, "remove the object, or name the namespaces that may see it", `exportTo "~" (no namespace) is for a ServiceEntry only`)
		case !manifest.IsDNSLabel(ns):
			r.Error(manifest.CodeBadValue, here, `write a namespace, "." or "*"`, "%q is not a namespace", ns)
		}
		if !slices.Contains(out, ns) {
			out = append(out, ns)
		}
	}
	return out
}

// selector checks the labels that select workloads.
func (r *reader) selector(at manifest.Cursor, labels map[string]string) map[string]string {
	for k, v := range labels {
		if !manifest.IsLabel(k, v) {
			r.Error(manifest.CodeBadValue, at.Key(k), "letters, digits, '-', '_' and '.', at most 63 of them; no wildcards", "%s=%q selects nothing: no workload can have such a label", k, v)
		}
	}
	return labels
}

package istio

import (
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/model"
)

// envoyFilterFields: the object is accepted, and says what it asks for in Envoy's words, which no Malha proxy knows.
var envoyFilterFields = manifest.Ignore("it is about patches of Envoy's configuration, and Malha's proxies are not Envoy: see the warnings",
	"workloadSelector", "targetRefs", "priority", "configPatches")

// envoyFilter reports each patch, with what to use in its place. Nothing of it can be in force.
func envoyFilter(o *manifest.Object, spec []byte, _ *model.Config, report *manifest.Report) {
	r, at := newReader(o, report), o.Spec()
	in := &networking.EnvoyFilter{}
	if !r.decode(spec, in) {
		return
	}
	if in.GetWorkloadSelector() != nil && len(in.GetTargetRefs()) > 0 {
		r.Error(manifest.CodeExclusive, at.Field("targetRefs"), "keep one of them", "`workloadSelector` and `targetRefs` exclude each other")
	}
	r.selector(at.Field("workloadSelector").Field("labels"), in.GetWorkloadSelector().GetLabels())
	if len(in.GetConfigPatches()) == 0 {
		r.Warning(manifest.CodeEnvoyFilter, at, "remove the object", "the EnvoyFilter has no patches")
	}
	for i, p := range in.GetConfigPatches() {
		here := at.Field("configPatches").Index(i)
		if w := p.GetMatch().GetWaypoint(); (w != nil) != (p.GetMatch().GetContext() == networking.EnvoyFilter_WAYPOINT) {
			r.Error(manifest.CodeExclusive, here.Field("match"), "write both, or none", "`waypoint` and `context: WAYPOINT` belong together")
		}
		what, hint := patchHint(p)
		r.Warning(manifest.CodeEnvoyFilter, here, hint, "a patch of %s is not applicable to Malha's proxies: they are not Envoy, and nothing of it is in force", what)
	}
}

// filterHints say what replaces the filters that people add most, by a part of the filter's name or type.
var filterHints = []struct{ name, hint string }{
	{"ratelimit", "use a RateLimit (malha.dev), or Linkerd's HTTPLocalRateLimitPolicy"},
	{"lua", "use headers, rewrite or directResponse of a VirtualService"},
	{"wasm", "use headers, rewrite or directResponse of a VirtualService"},
	{"header_to_metadata", "match by headers in a VirtualService"},
	{"cors", "use corsPolicy of a VirtualService"},
	{"fault", "use fault of a VirtualService"},
	{"ext_authz", "use an AuthorizationPolicy with ALLOW or DENY"},
	{"rbac", "use an AuthorizationPolicy"},
	{"jwt_authn", "let the program check tokens: proxies do not read them yet"},
	{"proxy_protocol", "use proxyProtocol of a DestinationRule, or a gateway's own PROXY protocol"},
	{"stateful_session", "use consistentHash by httpCookie in a DestinationRule"},
	{"tls_inspector", "nothing is needed: TLS is always recognized"},
	{"http_inspector", "nothing is needed: HTTP is always recognized; appProtocol of the Service says which ports are what"},
	{"original_src", "use PROXY protocol, or x-forwarded-for"},
	{"grpc_web", "name the port grpc-web"},
	{"local_reply", "the responses that a proxy makes itself say why, and cannot be changed"},
	{"compressor", "let the program compress"},
	{"gzip", "let the program compress"},
	{"buffer", "let the program limit bodies"},
	{"access_log", "the access log has one format; malha's flags switch it on and off"},
	{"ext_proc", "let the program do it"},
	{"tcp_proxy", "use connectionPool.tcp.idleTimeout and maxConnectionDuration of a DestinationRule"},
	{"http_connection_manager", "timeouts: timeout of a VirtualService, connectionPool of a DestinationRule; headers: headers of a VirtualService"},
	{"router", "use retries, timeout and headers of a VirtualService"},
}

// placeHints say what replaces a patch of a place.
var placeHints = map[networking.EnvoyFilter_ApplyTo]string{
	networking.EnvoyFilter_CLUSTER:             "use a DestinationRule: trafficPolicy has connection pools, outlier detection, load balancing and TLS",
	networking.EnvoyFilter_ROUTE_CONFIGURATION: "use a VirtualService",
	networking.EnvoyFilter_VIRTUAL_HOST:        "use a VirtualService",
	networking.EnvoyFilter_HTTP_ROUTE:          "use a VirtualService: timeout, retries, headers, corsPolicy, rewrite",
	networking.EnvoyFilter_LISTENER:            "use a Gateway, or ingress of a Sidecar",
	networking.EnvoyFilter_FILTER_CHAIN:        "use tls of a Gateway, or a PeerAuthentication",
	networking.EnvoyFilter_LISTENER_FILTER:     "use a Gateway, or ingress of a Sidecar",
	networking.EnvoyFilter_BOOTSTRAP:           "use a ProxyConfig, or flags of malha-proxy",
}

// patchHint names what a patch is about, and what to use in its place.
func patchHint(p *networking.EnvoyFilter_EnvoyConfigObjectPatch) (what, hint string) {
	what = p.GetApplyTo().String()
	m := p.GetMatch()
	chain := m.GetListener().GetFilterChain().GetFilter()
	patch := p.GetPatch().GetValue().AsMap()
	own := stringAt(patch, "name")
	names := []string{own, stringAt(patch, "typed_config", "@type")}
	if !adds(p) || own == "" { // a patch that adds is about what it adds; another filter only says where
		names = []string{own, chain.GetSubFilter().GetName(), chain.GetName(), m.GetListener().GetListenerFilter(), stringAt(patch, "typed_config", "@type")}
	}
	for _, name := range names {
		for _, h := range filterHints {
			if strings.Contains(strings.ReplaceAll(strings.ToLower(name), "-", "_"), h.name) || strings.Contains(strings.ReplaceAll(strings.ToLower(name), "_", ""), strings.ReplaceAll(h.name, "_", "")) {
				return what + " (" + name + ")", h.hint
			}
		}
	}
	if own != "" {
		what += " (" + own + ")"
	}
	if hint, ok := placeHints[p.GetApplyTo()]; ok {
		return what, hint
	}
	return what, "see docs/istio.md for what Malha has in its place"
}

// adds reports whether a patch puts something new beside what it matches.
func adds(p *networking.EnvoyFilter_EnvoyConfigObjectPatch) bool {
	switch p.GetPatch().GetOperation() {
	case networking.EnvoyFilter_Patch_ADD, networking.EnvoyFilter_Patch_INSERT_BEFORE, networking.EnvoyFilter_Patch_INSERT_AFTER, networking.EnvoyFilter_Patch_INSERT_FIRST:
		return true
	}
	return false
}

// stringAt returns a string of a nested value; "" when there is none.
func stringAt(v map[string]any, path ...string) string {
	for i, key := range path {
		if i == len(path)-1 {
			s, _ := v[key].(string)
			return s
		}
		v, _ = v[key].(map[string]any)
	}
	return ""
}

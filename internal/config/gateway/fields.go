package gateway

import "github.com/malha-mesh/malha/internal/config/manifest"

const (
	noParameters = "remove it: Malha's gateways have no parameters"
	noDefault    = "name the Gateway in parentRefs"
	noAuth       = "guard the destination with an AuthorizationPolicy"
	noOptions    = "remove it: no option is known"
)

var classFields = manifest.Join(
	manifest.Work("", "controllerName", "description"),
	manifest.Refuse(noParameters, "parametersRef"),
)

var gatewayFields = manifest.Join(
	manifest.Work("", "gatewayClassName", "listeners", "infrastructure.labels", "allowedListeners",
		"tls.backend.clientCertificateRef", "tls.frontend.default.validation", "tls.frontend.perPort"),
	manifest.Differ("an IPAddress of the loopback (127.0.0.0/8, ::1) is listened on, the first of several; with any other the Gateway is not served, which its status says", "addresses"),
	manifest.Differ("the Gateway is not accepted (InvalidParameters): there are no parameters", "infrastructure.parametersRef"),
	manifest.Ignore("nothing that is started on one machine carries annotations", "infrastructure.annotations"),
	manifest.Refuse(noOptions, "listeners[].tls.options"),
	manifest.Fields{
		{Path: "addresses[].type", Value: "Hostname", Support: manifest.Works, Note: "the Gateway is not accepted: UnsupportedAddress"},
		{Path: "defaultScope", Support: manifest.Refused, Note: noDefault},
		{Path: "defaultScope", Value: "None", Support: manifest.Works},
		{Path: "listeners[].protocol", Value: "UDP", Support: manifest.Works, Note: "the listener is not accepted: UnsupportedProtocol"},
	},
)

var listenerSetFields = manifest.Join(
	manifest.Work("", "parentRef", "listeners"),
	manifest.Refuse(noOptions, "listeners[].tls.options"),
)

var parentFields = manifest.Join(
	manifest.Work("", "parentRefs"),
	manifest.Fields{
		{Path: "useDefaultGateways", Support: manifest.Refused, Note: noDefault},
		{Path: "useDefaultGateways", Value: "None", Support: manifest.Works},
	},
)

var httpRouteFields = manifest.Join(parentFields,
	manifest.Work("", "hostnames", "rules[].name", "rules[].matches", "rules[].backendRefs", "rules[].timeouts.request", "rules[].retry"),
	manifest.Differ("until the response head; `request` bounds the rest too", "rules[].timeouts.backendRequest"),
	manifest.Work("rules[].filters[].", "type", "requestHeaderModifier", "responseHeaderModifier", "requestMirror", "requestRedirect", "urlRewrite", "cors"),
	manifest.Work("rules[].backendRefs[].filters[].", "type", "requestHeaderModifier", "responseHeaderModifier", "urlRewrite", "requestMirror", "requestRedirect"),
	manifest.Differ("a preflight is answered for the backend that it is drawn for, and counts against the rule's limits", "rules[].backendRefs[].filters[].cors"),
	manifest.Differ("malha.dev RateLimit; any other answers 500, as the Gateway API asks", "rules[].filters[].extensionRef"),
	manifest.Refuse(noAuth, "rules[].filters[].externalAuth", "rules[].backendRefs[].filters[].externalAuth"),
	manifest.Refuse("put the filter on the rule; for one of several backends write a rule of its own", "rules[].backendRefs[].filters[].extensionRef"),
	manifest.Differ("a client whose endpoint is gone, or put aside, is sent to another one; a backend of weight 0 keeps no sessions", "rules[].sessionPersistence"),
)

// linkerdRouteFields are those of policy.linkerd.io, which has fewer.
var linkerdRouteFields = manifest.Join(parentFields,
	manifest.Work("", "hostnames", "rules[].matches", "rules[].backendRefs", "rules[].timeouts.request"),
	manifest.Differ("with retries until the response head of one try; else it bounds the whole request", "rules[].timeouts.backendRequest"),
	manifest.Work("rules[].filters[].", "type", "requestHeaderModifier", "responseHeaderModifier", "requestRedirect"),
	manifest.Work("rules[].backendRefs[].filters[].", "type", "requestHeaderModifier", "responseHeaderModifier"),
	manifest.Refuse("policy.linkerd.io has no such field: write a HTTPRoute of gateway.networking.k8s.io", "rules[].name", "rules[].retry", "rules[].sessionPersistence",
		"rules[].filters[].requestMirror", "rules[].filters[].urlRewrite", "rules[].filters[].cors", "rules[].filters[].externalAuth", "rules[].filters[].extensionRef",
		"rules[].backendRefs[].filters[].requestMirror", "rules[].backendRefs[].filters[].requestRedirect", "rules[].backendRefs[].filters[].urlRewrite",
		"rules[].backendRefs[].filters[].cors", "rules[].backendRefs[].filters[].externalAuth", "rules[].backendRefs[].filters[].extensionRef"),
)

var grpcRouteFields = manifest.Join(parentFields,
	manifest.Work("", "hostnames", "rules[].name", "rules[].matches", "rules[].backendRefs"),
	manifest.Work("rules[].filters[].", "type", "requestHeaderModifier", "responseHeaderModifier", "requestMirror"),
	manifest.Work("rules[].backendRefs[].filters[].", "type", "requestHeaderModifier", "responseHeaderModifier", "requestMirror"),
	manifest.Differ("malha.dev RateLimit; any other answers 500, as the Gateway API asks", "rules[].filters[].extensionRef"),
	manifest.Refuse("put the filter on the rule", "rules[].backendRefs[].filters[].extensionRef"),
	manifest.Differ("a client whose endpoint is gone, or put aside, is sent to another one; a backend of weight 0 keeps no sessions", "rules[].sessionPersistence"),
)

var tlsRouteFields = manifest.Join(parentFields, manifest.Work("", "hostnames", "rules"))

var tcpRouteFields = manifest.Join(parentFields, manifest.Work("", "rules"))

var grantFields = manifest.Work("", "from", "to")

var backendTLSFields = manifest.Join(
	manifest.Work("", "targetRefs", "validation"),
	manifest.Refuse(noOptions, "options"),
)

var configMapFields = manifest.Join(
	manifest.Differ("only ca.crt, where a Gateway or a BackendTLSPolicy refers to it", "data", "binaryData"),
	manifest.Ignore("a changed ConfigMap is put in force", "immutable"),
)

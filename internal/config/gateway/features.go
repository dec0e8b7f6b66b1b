package gateway

import (
	"slices"
	"strings"
)

// Features are the names of everything in the Gateway API that works (GatewayClass status.supportedFeatures), sorted.
func Features() []string {
	out := strings.Fields(claimed)
	slices.Sort(out)
	return out
}

// claimed are names of sigs.k8s.io/gateway-api/pkg/features. A test holds that together with unsupported they are all of them.
const claimed = `
Gateway GatewayPort8080 GatewayStaticAddresses GatewayAddressEmpty GatewayHTTPListenerIsolation GatewayHTTPSListenerDetectMisdirectedRequests
GatewayFrontendClientCertificateValidation GatewayFrontendClientCertificateValidationInsecureFallback
GatewayBackendClientCertificate ListenerSet ReferenceGrant BackendTLSPolicy BackendTLSPolicySANValidation
HTTPRoute HTTPRouteDestinationPortMatching HTTPRouteBackendRequestHeaderModification HTTPRouteQueryParamMatching HTTPRouteMethodMatching
HTTPRouteResponseHeaderModification HTTPRoutePortRedirect HTTPRouteSchemeRedirect HTTPRoutePathRedirect HTTPRouteHostRewrite HTTPRoutePathRewrite
HTTPRouteRequestMirror HTTPRouteRequestMultipleMirrors HTTPRouteRequestPercentageMirror HTTPRouteRequestTimeout HTTPRouteBackendTimeout
HTTPRouteParentRefPort HTTPRouteBackendProtocolH2C HTTPRouteBackendProtocolWebSocket HTTPRouteNamedRouteRule HTTPRouteCORS
HTTPRoute303RedirectStatusCode HTTPRoute307RedirectStatusCode HTTPRoute308RedirectStatusCode
HTTPRouteRetry HTTPRouteRetryBackendTimeout HTTPRouteRetryConnectionError
GRPCRoute GRPCRouteNamedRouteRule TLSRoute TLSRouteModeTerminate TLSRouteModeMixed TCPRoute
Mesh MeshClusterIPMatching MeshConsumerRoute MeshHTTPRouteRewritePath MeshHTTPRouteSchemeRedirect MeshHTTPRouteRedirectPort MeshHTTPRouteRedirectPath
MeshHTTPRouteBackendRequestHeaderModification MeshHTTPRouteQueryParamMatching MeshHTTPRouteNamedRouteRule
`

// unsupported are the features that are left, and why.
var unsupported = map[string]string{
	"UDPRoute":              "the mesh does not carry UDP",
	"GatewayInfrastructure": "on one machine, where labels reach the gateway's proxy and there are no other resources; yes on a cluster",
}

// Package gatewayapi runs the conformance suite of the Gateway API against the mesh on a real Kubernetes, and writes the report:
// see docs/gateway-api.md. The test is behind MALHA_GATEWAYAPI=1 (make gateway-conformance).
package gatewayapi

package manifest

// The codes of the diagnostics that configuration can cause. They are stable: a code is never reused, and
// docs/diagnostics.md explains each. 01xx reading, 02xx fields, 03xx core and local kinds, 04xx routing,
// 05xx destinations and gateways, 06xx security, 07xx Linkerd and SMI, 10xx Gateway API, 11xx the API server (config/kube).
const (
	CodeSyntax       = "MALHA0101" // not YAML or JSON
	CodeTooLarge     = "MALHA0102" // over a limit on size, depth, nodes or documents
	CodeNotObject    = "MALHA0103" // a document that is not an object with apiVersion and kind
	CodeDuplicateKey = "MALHA0104" // a key stands twice in a mapping
	CodeMetadata     = "MALHA0105" // name, namespace, labels or annotations are missing or malformed
	CodeUnknownKind  = "MALHA0106" // a kind or version nobody knows
	CodeIgnoredKind  = "MALHA0107" // a Kubernetes kind that one machine cannot act on
	CodeDuplicate    = "MALHA0108" // an object stands twice
	CodeUnreadable   = "MALHA0109" // a file that cannot be read
	CodeNothing      = "MALHA0110" // a folder with no manifest in it
	CodeNotYetKind   = "MALHA0111" // a kind that Malha knows and does not act on yet
	CodeGaveWay      = "MALHA0112" // an object that is not in force as it is written
	CodeUnguarded    = "MALHA0113" // one that is not in force, and should refuse somebody something
	CodeForeign      = "MALHA0114" // a file of a folder that is no manifest
	CodeInternal     = "MALHA0199" // a defect of Malha
	CodeUnknownField = "MALHA0201"
	CodeWrongType    = "MALHA0202"
	CodeBadEnum      = "MALHA0203"
	CodeOutOfRange   = "MALHA0204"
	CodeBadDuration  = "MALHA0205"
	CodeExclusive    = "MALHA0206" // fields that exclude each other
	CodeUnsupported  = "MALHA0207" // a field that Malha does not act on
	CodeRequired     = "MALHA0208" // a field that must be set
	CodeIgnoredField = "MALHA0209" // a field that has no effect here
	CodeBadHost      = "MALHA0210"
	CodeBadRegex     = "MALHA0211"
	CodeBadValue     = "MALHA0212"
	CodeDeprecated   = "MALHA0213" // a field that its project has replaced
	CodeServiceType  = "MALHA0301" // ExternalName
	CodePorts        = "MALHA0302" // ports that are missing or stand twice
	CodeWorkloadRun  = "MALHA0303" // not exactly one of run and address
	CodePortVariable = "MALHA0304" // $(PORT_X) without a port x
	CodeSecret       = "MALHA0305" // a Secret whose certificate cannot be used
	CodeEndpoints    = "MALHA0306" // endpoints that belong to no Service, or cannot be reached
	CodeIngress      = "MALHA0307" // an Ingress that cannot be served as it is
	CodeAnnotation   = "MALHA0308" // an annotation that says nothing we know, or stands where it has no effect
	CodeRateLimit    = "MALHA0309" // a rate limit that cannot be in force
	CodeWeights      = "MALHA0401" // weights that do not add up
	CodeRuleAction   = "MALHA0402" // no action, or several, in a rule
	CodeRetryOn      = "MALHA0403" // an unknown retry condition
	CodeFault        = "MALHA0404" // a fault that says nothing or cannot be
	CodeUnreachable  = "MALHA0405" // a rule that no request reaches
	CodeHeaderOp     = "MALHA0406" // a header that may not be changed
	CodeHostPlace    = "MALHA0407" // a host that its gateways cannot serve
	CodeDelegate     = "MALHA0408" // a delegate, or a reference to one, that cannot be
	CodeSubset       = "MALHA0501" // a subset without name, or with a name that stands twice
	CodeLocality     = "MALHA0502" // a locality that is none, or overlaps another
	CodeServer       = "MALHA0503" // a gateway server that Malha cannot open
	CodeTLS          = "MALHA0504" // TLS settings that contradict each other
	CodeEntry        = "MALHA0505" // a ServiceEntry, or an endpoint, that cannot be as it is
	CodeSidecar      = "MALHA0506" // a Sidecar listener that cannot be as it is
	CodeEnvoyFilter  = "MALHA0507" // a patch for Envoy, which Malha's proxies are not
	CodePeerAuth     = "MALHA0601" // PeerAuthentication in a place where it has no effect
	CodePolicy       = "MALHA0602" // an authorization rule that cannot do what it says
	CodeProfile      = "MALHA0701" // a ServiceProfile that cannot be in force
	CodeSplit        = "MALHA0702" // a TrafficSplit that cannot be in force
	CodeLinkerd      = "MALHA0703" // a policy of Linkerd that cannot be in force
	CodeGatewayClass = "MALHA1001" // a Gateway or class of another controller, or of none
	CodeListener     = "MALHA1002" // a listener, or its Gateway, that cannot be served
	CodeParent       = "MALHA1003" // a route that is not attached to a parent
	CodeBackend      = "MALHA1004" // a reference of a route that does not resolve
	CodeGrant        = "MALHA1005" // a reference to another namespace that no ReferenceGrant permits
	CodeBackendTLS   = "MALHA1006" // a BackendTLSPolicy that is not in force
)

package plan

// Format is a header value with variables in it, made anew for each message (Envoy's command operators, as Istio's rules have
// them). One that comes out empty changes nothing.
type Format struct {
	Parts []Part `json:"parts" plan:"1"`
}

// Part is a piece of a value: Text, or what Var stands for.
type Part struct {
	Text string   `json:"text,omitempty" plan:"1"`
	Var  Variable `json:"var,omitempty" plan:"2"`
	// Name is a header (lower-case; of requests also ":method", ":path" as it came with its query, ":authority" and ":scheme"),
	// or the layout of VarStartTime, as package time spells it.
	Name string `json:"name,omitempty" plan:"3"`
	Else string `json:"else,omitempty" plan:"4"` // the header that stands in for Name where that is missing
	Max  uint32 `json:"max,omitempty" plan:"5"`  // bytes of it that are taken; 0 all
}

// Variable is what a Part stands for.
type Variable string

// The variables, with the names of Envoy. What is not known is empty.
const (
	VarRequest        Variable = "REQ"
	VarResponse       Variable = "RESP" // this one and those with an R below: in the headers of responses only
	VarProtocol       Variable = "PROTOCOL"
	VarStartTime      Variable = "START_TIME"         // UTC
	VarStartSeconds   Variable = "START_TIME_SECONDS" // since 1970
	VarHostname       Variable = "HOSTNAME"           // of the proxy: the name of its workload
	VarRouteName      Variable = "ROUTE_NAME"
	VarCluster        Variable = "UPSTREAM_CLUSTER"
	VarServerName     Variable = "REQUESTED_SERVER_NAME"
	VarPeer           Variable = "DOWNSTREAM_PEER_URI_SAN" // the identity of who sent it, proved by mesh TLS
	VarRemote         Variable = "DOWNSTREAM_REMOTE_ADDRESS"
	VarRemoteIP       Variable = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" // the client that trusted proxies speak of, where there are any
	VarRemotePort     Variable = "DOWNSTREAM_REMOTE_PORT"
	VarDirect         Variable = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" // the other end of the connection
	VarDirectIP       Variable = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT"
	VarLocal          Variable = "DOWNSTREAM_LOCAL_ADDRESS"
	VarLocalIP        Variable = "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT"
	VarLocalPort      Variable = "DOWNSTREAM_LOCAL_PORT"
	VarUpstream       Variable = "UPSTREAM_HOST"         // R
	VarResponseCode   Variable = "RESPONSE_CODE"         // R
	VarResponseFlags  Variable = "RESPONSE_FLAGS"        // R; "-" for none
	VarResponseDetail Variable = "RESPONSE_CODE_DETAILS" // R
)

// OfResponses reports whether v is known only once there is a response.
func (v Variable) OfResponses() bool {
	switch v {
	case VarResponse, VarUpstream, VarResponseCode, VarResponseFlags, VarResponseDetail:
		return true
	}
	return false
}

// Known reports whether v is one of the variables.
func (v Variable) Known() bool {
	switch v {
	case VarRequest, VarProtocol, VarStartTime, VarStartSeconds, VarHostname, VarRouteName, VarCluster, VarServerName, VarPeer, VarRemote, VarRemoteIP,
		VarRemotePort, VarDirect, VarDirectIP, VarLocal, VarLocalIP, VarLocalPort:
		return true
	}
	return v.OfResponses()
}

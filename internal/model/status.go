package model

import "github.com/malha-mesh/malha/internal/ident"

// Status is what an object's status should say. Writers bring it to where the object lives; the local mesh shows it.
type Status struct {
	Group, Kind string
	Name        ident.Name
	Generation  int64
	Conditions  []Condition
	// Target is the targetRef of the status as JSON, for kinds whose status has one (Linkerd's HTTPLocalRateLimitPolicy).
	Target []byte
	// Parents are the conditions of a route for each of its parents, in the order of parentRefs (Gateway API RouteParentStatus).
	Parents []ParentStatus
	// Listeners are those of a Gateway or ListenerSet.
	Listeners []ListenerStatus
	// ListenerSets is how many are attached to a Gateway (attachedListenerSets).
	ListenerSets int
	// Features are the supportedFeatures of a GatewayClass, sorted.
	Features []string
}

// Condition is one metav1.Condition, without its time of transition.
type Condition struct {
	Type    string `json:"type"`
	Status  bool   `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
}

// ParentStatus is the conditions of a route for one parentRef. Ref is the reference exactly as it was written, as JSON:
// controllers compare it whole.
type ParentStatus struct {
	Ref        []byte
	Conditions []Condition
}

// ListenerStatus is the state of one listener of a Gateway.
type ListenerStatus struct {
	Name       string
	Kinds      []string // "group/kind" of routes that may attach, sorted
	Routes     int      // that are attached
	Conditions []Condition
}

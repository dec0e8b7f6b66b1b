package local

import (
	"encoding/json"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// ObjectStatus is the status of one object: what a controller writes into it on Kubernetes.
type ObjectStatus struct {
	Group      string            `json:"group"`
	Kind       string            `json:"kind"`
	Name       ident.Name        `json:"name"`
	Conditions []model.Condition `json:"conditions,omitempty"`
	Parents    []ParentStatus    `json:"parents,omitempty"`   // of a route
	Listeners  []ListenerStatus  `json:"listeners,omitempty"` // of a Gateway or ListenerSet
	Features   []string          `json:"supportedFeatures,omitempty"`
}

// ParentStatus is what one parent makes of a route.
type ParentStatus struct {
	Ref        json.RawMessage   `json:"parentRef"` // as it was written
	Conditions []model.Condition `json:"conditions"`
}

// ListenerStatus is one listener.
type ListenerStatus struct {
	Name       string            `json:"name"`
	Kinds      []string          `json:"supportedKinds,omitempty"`
	Routes     int               `json:"attachedRoutes"`
	Conditions []model.Condition `json:"conditions"`
}

func objectStatuses(all []model.Status) []ObjectStatus {
	out := make([]ObjectStatus, 0, len(all))
	for i := range all {
		s := &all[i]
		o := ObjectStatus{Group: s.Group, Kind: s.Kind, Name: s.Name, Conditions: s.Conditions, Features: s.Features}
		for _, p := range s.Parents {
			o.Parents = append(o.Parents, ParentStatus{Ref: p.Ref, Conditions: p.Conditions})
		}
		for _, l := range s.Listeners {
			o.Listeners = append(o.Listeners, ListenerStatus{Name: l.Name, Kinds: l.Kinds, Routes: l.Routes, Conditions: l.Conditions})
		}
		out = append(out, o)
	}
	return out
}

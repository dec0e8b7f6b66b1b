package local

import (
	"encoding/json"
	"net"
	"slices"

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
	Addresses  []string          `json:"addresses,omitempty"` // IPs of a Gateway with a proxy of its own
	Sets       int               `json:"attachedListenerSets,omitempty"`
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

// objectStatuses returns the statuses that the configuration came with, and in those of Gateways where they are reached and
// whether their proxies serve.
func objectStatuses(all []model.Status, gateways []model.GatewayInstance, proxies []ProxyStatus) []ObjectStatus {
	out := make([]ObjectStatus, 0, len(all))
	for i := range all {
		s := &all[i]
		o := ObjectStatus{Group: s.Group, Kind: s.Kind, Name: s.Name, Conditions: s.Conditions, Features: s.Features, Sets: s.ListenerSets}
		for j := range gateways {
			if g := &gateways[j]; s.Kind == "Gateway" && !g.For.IsZero() && g.For == s.Name {
				o.Addresses = hostsOf(g.Binds)
				o.Conditions = programmed(s.Conditions, g.Name, proxies)
			}
		}
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

// programmed returns the conditions of a Gateway, of which Programmed holds only while its proxy serves.
func programmed(conditions []model.Condition, proxy ident.Name, proxies []ProxyStatus) []model.Condition {
	state := HealthStarting // there is none yet
	for i := range proxies {
		if proxies[i].Name == proxy {
			state = proxies[i].Health
		}
	}
	at := slices.IndexFunc(conditions, func(c model.Condition) bool { return c.Type == "Programmed" && c.Status })
	if state == HealthReady || at < 0 {
		return conditions
	}
	conditions = slices.Clone(conditions)
	conditions[at].Status, conditions[at].Reason = false, "Pending" // Gateway API GatewayReasonPending
	conditions[at].Message = "its proxy is " + string(state) + "; see `malha logs --proxy " + proxy.String() + "`"
	return conditions
}

// hostsOf returns the IPs of addresses, each once.
func hostsOf(binds map[int]string) []string {
	var out []string
	for _, port := range sortedPorts(binds) {
		if host, _, err := net.SplitHostPort(binds[port]); err == nil && !slices.Contains(out, host) {
			out = append(out, host)
		}
	}
	return out
}

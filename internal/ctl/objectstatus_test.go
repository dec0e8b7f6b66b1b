package ctl

import (
	"testing"

	"github.com/malha-mesh/malha/internal/app/local"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

func TestStatusOf(t *testing.T) {
	name := ident.Name{Namespace: "default", Name: "web"}
	yes := func(kind string) model.Condition { return model.Condition{Type: kind, Status: true, Reason: kind} }
	no := func(kind, reason string) model.Condition { return model.Condition{Type: kind, Reason: reason} }
	st := &local.Status{Objects: []local.ObjectStatus{
		{
			Group: "gateway.networking.k8s.io", Kind: "Gateway", Name: name, Conditions: []model.Condition{yes("Accepted")},
			Listeners: []local.ListenerStatus{{Name: "a", Conditions: []model.Condition{yes("Accepted"), no("Conflicted", "NoConflicts"), no("ResolvedRefs", "InvalidCertificateRef")}}},
		},
		{
			Group: "policy.linkerd.io", Kind: "HTTPRoute", Name: name,
			Parents: []local.ParentStatus{{Conditions: []model.Condition{no("Accepted", "NoMatchingParent")}}},
		},
	}}
	for _, c := range []struct{ apiVersion, kind, want string }{
		{"gateway.networking.k8s.io/v1", "Gateway", "Accepted, not ResolvedRefs (InvalidCertificateRef)"},
		{"networking.istio.io/v1", "Gateway", ""},
		{"policy.linkerd.io/v1beta3", "HTTPRoute", "not Accepted (NoMatchingParent)"},
		{"v1", "Secret", ""},
	} {
		if got := statusOf(st, local.Object{APIVersion: c.apiVersion, Kind: c.kind, Name: name}); got != c.want {
			t.Errorf("%s %s: %q, want %q", c.apiVersion, c.kind, got, c.want)
		}
	}
}

package model

import (
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
)

func TestObjectOfADiagnostic(t *testing.T) {
	for want, o := range map[string]ident.Origin{
		"":               {File: "a.yaml", Line: 1},
		"VirtualService": {Kind: "VirtualService"},
		"Service shop/a": {Kind: "Service", Namespace: "shop", Name: "a"},
		"Namespace shop": {Kind: "Namespace", Namespace: "default", Name: "shop"}, // as a file's objects have it
		"GatewayClass a": {Kind: "GatewayClass", Name: "a"},                       // as a cluster's have it
	} {
		if got := (Diagnostic{Origin: o}).Object(); got != want {
			t.Errorf("%+v is %q, want %q", o, got, want)
		}
	}
}

package scope_test

import (
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/scope"
	"github.com/malha-mesh/malha/internal/world"
)

// TestSecretsThatAGatewayMayName gives a shared gateway the secrets of the Gateway's (here an Ingress's) namespace that it
// names, and no others: naming somebody else's secret shows nothing.
func TestSecretsThatAGatewayMayName(t *testing.T) {
	secret := func(ns, name string) model.Secret {
		n := ident.Name{Namespace: ns, Name: name}
		return model.Secret{Meta: model.Meta{Name: n}, Secret: plan.Secret{Name: n.String(), Key: []byte("k")}}
	}
	cfg := &model.Config{
		Secrets: []model.Secret{secret("shop", "named"), secret("shop", "other"), secret("victim", "named"), secret("istio-system", "own")},
		Gateways: []model.Gateway{{
			Meta: model.Meta{Name: ident.Name{Namespace: "shop", Name: "ingress:a"}},
			Servers: []model.Server{{
				Port: 443, Protocol: ident.HTTP,
				TLS: &plan.ServerTLS{Mode: plan.ServeSimple, Secrets: []string{"shop/named", "victim/named"}},
			}},
		}},
	}
	gateway := model.GatewayInstance{Name: ident.Name{Namespace: "istio-system", Name: "g"}, Binds: map[int]string{443: "127.0.0.1:8443"}}
	s, ok := scope.For(world.Build(cfg, nil, []model.GatewayInstance{gateway}), gateway.Name)
	if !ok {
		t.Fatal("no scope")
	}
	var got string
	for _, x := range s.Secrets {
		got += x.Secret.Name + " "
	}
	if want := "istio-system/own shop/named "; got != want {
		t.Errorf("the gateway holds %q, want %q", got, want)
	}
}

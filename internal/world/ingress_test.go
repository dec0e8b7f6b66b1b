package world_test

import (
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/world"
)

// TestSecretOfTheGatewaysNamespace accepts what a Gateway names in its own namespace, as an Ingress does, and nothing else of
// others.
func TestSecretOfTheGatewaysNamespace(t *testing.T) {
	for name, want := range map[string]int{"shop/cert": 0, "victim/cert": 1} {
		gateway := model.GatewayInstance{Name: ident.Name{Namespace: "istio-system", Name: "g"}, Binds: map[int]string{443: "127.0.0.1:8443"}}
		secret := func(ns string) model.Secret {
			n := ident.Name{Namespace: ns, Name: "cert"}
			return model.Secret{Meta: model.Meta{Name: n}, Secret: plan.Secret{Name: n.String(), Certificate: []byte("c"), Key: []byte("k")}}
		}
		cfg := &model.Config{
			Secrets: []model.Secret{secret("shop"), secret("victim")},
			Gateways: []model.Gateway{{
				Meta: model.Meta{Name: ident.Name{Namespace: "shop", Name: "ingress:a"}},
				Servers: []model.Server{{
					Name: "https", Port: 443, Protocol: ident.HTTP, Hosts: []string{"shop/*"},
					TLS: &plan.ServerTLS{Mode: plan.ServeSimple, Secrets: []string{name}},
				}},
			}},
		}
		n := 0
		for _, d := range world.Check(world.Build(cfg, nil, []model.GatewayInstance{gateway})) {
			if d.Code == model.CodeNoSecret {
				n++
			}
		}
		if n != want {
			t.Errorf("%s: %d warnings, want %d", name, n, want)
		}
	}
}

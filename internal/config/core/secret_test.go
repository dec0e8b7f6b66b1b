package core

import (
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// TestAuthoritiesOfAnotherSecret completes pairs by NAME-cacert, and leaves alone what has authorities or is no pair.
func TestAuthoritiesOfAnotherSecret(t *testing.T) {
	secret := func(name, key, authorities string) model.Secret {
		return model.Secret{
			Meta:   model.Meta{Name: ident.Name{Namespace: "a", Name: name}},
			Secret: plan.Secret{Name: "a/" + name, Key: []byte(key), Authorities: []byte(authorities)},
		}
	}
	cfg := &model.Config{Secrets: []model.Secret{
		secret("shop", "k", ""), secret("shop-cacert", "", "roots"),
		secret("own", "k", "own roots"), secret("own-cacert", "", "roots"),
		secret("bare", "", ""), secret("bare-cacert", "", "roots"),
		secret("alone", "k", ""),
	}}
	authorities(cfg)
	for i, want := range []string{"roots", "roots", "own roots", "roots", "", "roots", ""} {
		if got := string(cfg.Secrets[i].Authorities); got != want {
			t.Errorf("%s has authorities %q, want %q", cfg.Secrets[i].Meta.Name, got, want)
		}
	}
}

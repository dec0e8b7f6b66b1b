package world_test

import (
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/world"
)

// TestPeers: of a workload's replicas those are counted that are ready, in its region, of one name and identity.
func TestPeers(t *testing.T) {
	cfg := &model.Config{Traffic: []model.DestinationPolicy{{Meta: meta("app", "zones"), Traffic: &model.TrafficPolicy{Locality: &plan.Locality{ZoneAware: &plan.ZoneAware{}}}}}}
	var instances []model.Instance
	add := func(name, place, account string, ready bool, labels map[string]string) {
		wl := model.Workload{Meta: meta("app", name), Locality: place, Identity: identity(account)}
		wl.Labels = labels
		cfg.Workloads = append(cfg.Workloads, wl)
		instances = append(instances, model.Instance{Workload: wl.Name, Ready: ready})
	}
	shop := map[string]string{"app": "shop"}
	add("a1", "eu/a/1", "shop", true, shop)
	add("a2", "eu/a/2", "shop", true, shop)
	add("b1", "eu/b", "shop", true, shop)
	add("ill", "eu/b", "shop", false, shop)
	add("far", "us/a", "shop", true, shop)
	add("nowhere", "eu", "shop", true, shop)
	add("guest", "eu/a", "guest", true, shop)
	add("named", "eu/a", "shop", true, map[string]string{"app": "shop", "service.istio.io/canonical-name": "other"})
	add("bare", "eu/a", "shop", true, nil)
	gateways := []model.GatewayInstance{
		{Name: ident.Name{Namespace: "gw", Name: "one"}, Locality: "eu/a", Labels: shop},
		{Name: ident.Name{Namespace: "gw", Name: "two"}, Locality: "eu/b", Labels: shop},
		{Name: ident.Name{Namespace: "gw", Name: "other"}, Locality: "eu/b"},
	}
	w := world.Build(cfg, instances, gateways)
	for name, want := range map[string]plan.LabelSet{
		"a1": "eu/a=2,eu/b=1", "b1": "eu/a=2,eu/b=1", "ill": "eu/a=2,eu/b=1", "far": "us/a=1", "nowhere": "", "guest": "eu/a=1", "named": "eu/a=1", "bare": "eu/a=1",
	} {
		wl, _ := w.Workload(ident.Name{Namespace: "app", Name: name})
		if got := w.Peers(wl); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := w.GatewayPeers(&gateways[0]); got != "eu/a=1,eu/b=1" {
		t.Errorf("a gateway: %q", got)
	}
	cfg.Traffic = nil // nobody asks: nothing depends on it
	w = world.Build(cfg, instances, gateways)
	wl, _ := w.Workload(ident.Name{Namespace: "app", Name: "a1"})
	if a, b := w.Peers(wl), w.GatewayPeers(&gateways[0]); a != "" || b != "" {
		t.Errorf("%q and %q", a, b)
	}
}

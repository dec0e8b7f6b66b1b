package world_test

import (
	"slices"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/world"
)

// TestCheckOfWhatNoDialectWrites is about references that every dialect of today refuses itself.
func TestCheckOfWhatNoDialectWrites(t *testing.T) {
	svc := func(name string) model.Service {
		return model.Service{
			Meta: meta("app", name), Host: ident.ServiceHost(ident.Name{Namespace: "app", Name: name}), Selector: map[string]string{"app": "w"},
			Ports: []model.ServicePort{{Port: 80, TargetName: "http", Protocol: ident.HTTP}},
		}
	}
	web, canary := svc("web"), svc("canary")
	routing := model.Routing{
		Meta: meta("app", "r"), Hosts: []string{"stranger.example"}, Gateways: []string{model.Mesh}, ExportTo: []string{"*"},
		HTTP: []model.HTTPRule{{
			Limits: []string{"RateLimit/app/gone"},
			Forward: []model.WeightedDestination{
				{Target: model.Target{Host: web.Host}}, {Status: 500}, // the second was found wrong before
			},
		}},
		TLS: []model.TLSRule{{Forward: []model.WeightedDestination{{Target: model.Target{Host: "nowhere.example"}}}}},
	}
	split := func(name, host, backend string) model.Split {
		return model.Split{Meta: meta("app", name), Host: host, Backends: []model.SplitBackend{{Host: backend, Weight: 1}}}
	}
	w := place(&model.Config{
		Services: []model.Service{web, canary}, Routings: []model.Routing{routing},
		Splits: []model.Split{split("a", web.Host, canary.Host), split("b", canary.Host, canary.Host)},
	})
	var got []string
	for _, d := range world.Check(w) {
		got = append(got, d.Code)
	}
	slices.Sort(got)
	if want := []string{model.CodeNoHost, world.CodeUnknownHost, world.CodeSplitTwice, world.CodeNoLimit}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// What several Gateways say about one port that only one of them can decide.
func TestCheckOfSharedPorts(t *testing.T) {
	door := func(name string, hops uint32, proxy bool) model.Gateway {
		return model.Gateway{Meta: meta("app", name), Selector: map[string]string{"istio": "ingressgateway"}, TrustedHops: hops, ProxyProtocol: proxy,
			Servers: []model.Server{{Name: name, Port: 80, Protocol: ident.HTTP, Hosts: []string{"*"}}}}
	}
	found := func(gs ...model.Gateway) (n int) {
		w := world.Build(&model.Config{Gateways: gs}, nil, []model.GatewayInstance{{Name: ident.Name{Namespace: "app", Name: "gw"}, Labels: map[string]string{"istio": "ingressgateway"}}})
		for _, d := range world.Check(w) {
			if d.Code == world.CodePortConflict {
				n++
			}
		}
		return n
	}
	if n := found(door("a", 1, false), door("b", 1, false)); n != 0 {
		t.Errorf("%d warnings about two that agree", n)
	}
	if found(door("a", 1, false), door("b", 2, false)) != 1 || found(door("a", 0, false), door("b", 0, true)) != 1 {
		t.Error("no warning about two that differ")
	}
}

// TestNothingIsSaidOfPorts that are there, though nobody declares them as a Pod need not, and of those of UDP, where no request enters.
func TestNothingIsSaidOfPorts(t *testing.T) {
	web := model.Service{
		Meta: meta("app", "web"), Host: "web.app.svc.cluster.local", Selector: map[string]string{"app": "w"},
		Ports: []model.ServicePort{{Port: 80, Target: 80, Protocol: ident.HTTP}, {Port: 443, Target: 443, Protocol: ident.TLS}, {Port: 53, Target: 53, Protocol: ident.UDP}},
	}
	own, strict := map[string]string{"app": "w"}, plan.TLSStrict
	cfg := &model.Config{
		Services: []model.Service{web},
		Routings: []model.Routing{{
			Meta: meta("app", "r"), Hosts: []string{web.Host}, Gateways: []string{model.Mesh}, ExportTo: []string{"*"},
			HTTP: []model.HTTPRule{{Forward: []model.WeightedDestination{{Target: model.Target{Host: web.Host}}}}},
		}},
		RateLimits: []model.RateLimit{{Meta: meta("app", "l"), Selector: own, Port: 9999, Limit: plan.RateLimit{Name: "l"}}},
		PeerAuth:   []model.PeerAuth{{Meta: meta("app", "p"), Selector: own, Ports: map[int]*plan.TLSMode{9999: &strict}}},
		Sidecars:   []model.SidecarPolicy{{Meta: meta("app", "s"), Selector: own, Ingress: []model.IngressPort{{Port: 9999}}}},
	}
	for _, pod := range []bool{false, true} {
		wl := model.Workload{Meta: meta("app", "w"), AnyPort: pod}
		wl.Labels = own
		cfg.Workloads = []model.Workload{wl}
		w := world.Build(cfg, nil, nil)
		var got []string
		for _, d := range slices.Concat(world.Check(w), world.Advise(w)) {
			got = append(got, d.Code)
		}
		slices.Sort(got)
		var want []string
		if !pod {
			want = []string{world.CodeNoTargetPort, world.CodeNoTargetPort, world.CodeSelectsNone, world.CodeIngress, world.CodePeerAuthPort}
		}
		if !slices.Equal(got, want) {
			t.Errorf("of a workload that may have any port (%t): %v, want %v", pod, got, want)
		}
	}
}

// TestHintOfAnIdleGateway names a gateway that runs, wherever that is.
func TestHintOfAnIdleGateway(t *testing.T) {
	door := model.Gateway{Meta: meta("app", "g"), Selector: map[string]string{"istio": "eastwest"}, Servers: []model.Server{{Port: 80, Protocol: ident.HTTP, Hosts: []string{"*"}}}}
	own := model.GatewayInstance{Name: ident.Name{Namespace: "app", Name: "a"}, For: ident.Name{Namespace: "app", Name: "other"}, Labels: map[string]string{"x": "y"}}
	edge := model.GatewayInstance{Name: ident.Name{Namespace: "edge", Name: "b"}, Labels: map[string]string{"istio": "edge"}}
	for want, running := range map[string][]model.GatewayInstance{
		"run a gateway with these labels":              {own},
		"the gateway edge/b has the labels istio=edge": {own, edge},
	} {
		var got []string
		for _, d := range world.Check(world.Build(&model.Config{Gateways: []model.Gateway{door}}, nil, running)) {
			got = append(got, d.Hint)
		}
		if !slices.Equal(got, []string{want}) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

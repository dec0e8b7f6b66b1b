package placement_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
)

func config() *model.Config {
	name := func(n string) model.Meta { return model.Meta{Name: ident.Name{Namespace: "default", Name: n}} }
	return &model.Config{
		Services: []model.Service{
			{Meta: name("web"), Host: "web.default.svc.cluster.local", Ports: []model.ServicePort{{Port: 80}, {Port: 53, Protocol: ident.UDP}}},
		},
		Workloads: []model.Workload{
			{Meta: name("web"), Run: &model.Run{}, Ports: []model.WorkloadPort{{Name: "http", Port: 80}, {Name: "admin", Port: 81}}},
			{Meta: name("old"), Address: "::1", Ports: []model.WorkloadPort{{Name: "http", Port: 8080}}},
		},
		Gateways: []model.Gateway{{
			Meta: name("door"), Selector: map[string]string{"istio": "ingressgateway"},
			Servers: []model.Server{{Port: 80}, {Port: 443}, {Port: 8080}, {Port: 8080}, {Port: 9000}},
		}},
	}
}

func TestOffline(t *testing.T) {
	got, err := placement.Offline(config())
	if err != nil {
		t.Fatal(err)
	}
	ref := model.ServiceRef{Host: "web.default.svc.cluster.local", Port: 80}
	gateway := placement.IngressGateway()
	// 8080 is taken by the program that listens there already, so the doors that would have it get another.
	gateway.Binds = map[int]string{80: "127.0.0.1:20009", 443: "127.0.0.1:8443", 8080: "127.0.0.1:20010", 9000: "127.0.0.1:9000"}
	want := placement.Placement{
		Instances: []model.Instance{
			{
				Workload: ident.Name{Namespace: "default", Name: "old"}, Ready: true,
				Inbound: map[int]string{8080: "127.0.0.1:20000"}, App: map[int]string{8080: "[::1]:8080"},
				Forward: "127.0.0.1:20001", Local: map[model.ServiceRef]string{ref: "127.0.0.1:20002"},
			},
			{
				Workload: ident.Name{Namespace: "default", Name: "web"}, Ready: true,
				Inbound: map[int]string{80: "127.0.0.1:20003", 81: "127.0.0.1:20005"}, App: map[int]string{80: "127.0.0.1:20004", 81: "127.0.0.1:20006"},
				Forward: "127.0.0.1:20007", Local: map[model.ServiceRef]string{ref: "127.0.0.1:20008"},
			},
		},
		Gateways: []model.GatewayInstance{gateway},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestWhatIsPlacedStays(t *testing.T) {
	cfg := config()
	before, err := placement.Offline(cfg)
	if err != nil {
		t.Fatal(err)
	}
	name := ident.Name{Namespace: "default", Name: "a-first"} // would move everybody, were they placed anew
	cfg.Workloads = append(cfg.Workloads, model.Workload{Meta: model.Meta{Name: name}, Run: &model.Run{}, Ports: []model.WorkloadPort{{Port: 1}}})
	slices.Reverse(cfg.Workloads)
	after, err := placement.OfflineAfter(cfg, before)
	if err != nil {
		t.Fatal(err)
	}
	if after.Instances[0].Workload != name {
		t.Fatalf("the first instance is %s", after.Instances[0].Workload)
	}
	if d := cmp.Diff(before.Instances, after.Instances[1:]); d != "" {
		t.Errorf("what was placed moved:\n%s", d)
	}
	if d := cmp.Diff(before.Gateways, after.Gateways); d != "" {
		t.Errorf("the gateway moved:\n%s", d)
	}
	unique(t, after)
}

// unique checks that no address was given out twice.
func unique(t *testing.T, p placement.Placement) {
	t.Helper()
	seen := map[string]bool{}
	note := func(addr string) {
		if seen[addr] {
			t.Errorf("%s was given out twice", addr)
		}
		seen[addr] = true
	}
	for _, in := range p.Instances {
		note(in.Forward)
		for _, m := range []map[int]string{in.Inbound, in.App} {
			for _, addr := range m {
				note(addr)
			}
		}
		for _, addr := range in.Local {
			note(addr)
		}
	}
	for _, g := range p.Gateways {
		for _, addr := range g.Binds {
			note(addr)
		}
	}
}

func TestNoGatewayWithoutOneThatSelectsIt(t *testing.T) {
	cfg := config()
	cfg.Gateways[0].Selector = map[string]string{"istio": "eastwestgateway"}
	p, err := placement.Offline(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Gateways) != 0 {
		t.Errorf("a gateway was placed: %+v", p.Gateways)
	}
}

func TestPlaceAsksForEachAddressOnce(t *testing.T) {
	var hints []string
	p, err := placement.Place(config(), placement.Placement{}, func(hint string) (string, error) {
		hints = append(hints, hint)
		return fmt.Sprintf("127.0.0.1:%d", 1000+len(hints)), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"inbound/default/old/8080", "forward/default/old", "local/default/old/web.default.svc.cluster.local:80",
		"inbound/default/web/80", "app/default/web/80", "inbound/default/web/81", "app/default/web/81",
		"forward/default/web", "local/default/web/web.default.svc.cluster.local:80",
		"gateway/istio-system/istio-ingressgateway/80", "gateway/istio-system/istio-ingressgateway/443",
		"gateway/istio-system/istio-ingressgateway/8080", "gateway/istio-system/istio-ingressgateway/9000",
	}
	if d := cmp.Diff(want, hints); d != "" {
		t.Error(d)
	}
	if p.Instances[0].Ready || p.Instances[1].Ready {
		t.Error("a new instance is ready before anybody said so")
	}
	p.Instances[0].Ready = true
	again, err := placement.Place(config(), p, func(hint string) (string, error) { return "", errors.New("asked again for " + hint) })
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(p, again); d != "" {
		t.Errorf("the same configuration moved things:\n%s", d)
	}
}

func TestPlaceFailsWhole(t *testing.T) {
	none := errors.New("none left")
	p, err := placement.Place(config(), placement.Placement{}, func(hint string) (string, error) {
		if strings.HasPrefix(hint, "gateway/") {
			return "", none
		}
		return "127.0.0.1:1", nil
	})
	if !errors.Is(err, none) || !strings.Contains(err.Error(), "gateway/istio-system/istio-ingressgateway/80") || p.Instances != nil {
		t.Errorf("%v, %v: want nothing placed, and an error that says for what there was no address", p, err)
	}
}

// Listeners for service ports are a product of workloads and services: only those that a program is told of are opened.
func TestLocalPortsAreThoseOfTheNamespace(t *testing.T) {
	in := func(ns, n string) model.Meta { return model.Meta{Name: ident.Name{Namespace: ns, Name: n}} }
	cfg := &model.Config{Workloads: []model.Workload{{Meta: in("a", "w"), Address: "127.0.0.1"}, {Meta: in("b", "w"), Address: "127.0.0.1"}}}
	for _, ns := range []string{"a", "b", "c"} {
		cfg.Services = append(cfg.Services, model.Service{Meta: in(ns, "s"), Host: "s." + ns, Ports: []model.ServicePort{{Port: 80}}})
	}
	p, err := placement.Offline(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range p.Instances {
		want := model.ServiceRef{Host: "s." + got.Workload.Namespace, Port: 80}
		if len(got.Local) != 1 || got.Local[want] == "" {
			t.Errorf("%s has local ports for %v, want %v alone", got.Workload, got.Local, want)
		}
	}
}

// TestOwnGateways gives each Gateway API Gateway a proxy of its own, beside the shared one.
func TestOwnGateways(t *testing.T) {
	cfg := config()
	own := func(ns, name string, ports ...int) model.Gateway {
		g := model.Gateway{Meta: model.Meta{Name: ident.Name{Namespace: ns, Name: name}}, Own: true}
		for _, p := range ports {
			g.Servers = append(g.Servers, model.Server{Port: p, Protocol: ident.HTTP})
		}
		return g
	}
	web := own("default", "web", 80, 443, 9443)
	web.ProxyLabels = map[string]string{"team": "blue"}
	web.Servers[2].Broken = "no certificate"
	cfg.Gateways = append(cfg.Gateways, web, own("shop", "web", 443))
	cfg.Workloads = append(cfg.Workloads, model.Workload{Meta: model.Meta{Name: ident.Name{Namespace: "shop", Name: "web-gateway"}}, Run: &model.Run{}})
	p, err := placement.Offline(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, g := range p.Gateways {
		got = append(got, fmt.Sprintf("%s for %s as %s %v", g.Name, g.For, g.Identity.ServiceAccount, g.Labels))
	}
	want := []string{
		"default/web-gateway for default/web as web-gateway map[gateway.networking.k8s.io/gateway-name:web team:blue]",
		"istio-system/istio-ingressgateway for / as istio-ingressgateway-service-account map[app:istio-ingressgateway istio:ingressgateway]",
		"shop/web-gateway-gateway for shop/web as web-gateway-gateway map[gateway.networking.k8s.io/gateway-name:web]",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if b := p.Gateways[0].Binds; len(b) != 2 || b[80] == "" || b[443] == "" {
		t.Errorf("default/web binds %v, want 80 and 443: nothing of 9443 can be served", b)
	}
	unique(t, p)
	again, err := placement.OfflineAfter(cfg, p)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(p, again); d != "" {
		t.Errorf("the same configuration moved things:\n%s", d)
	}
}

// TestOwnGatewayAddress moves the listeners of a Gateway to the address that it asks for.
func TestOwnGatewayAddress(t *testing.T) {
	cfg := config()
	cfg.Gateways = append(cfg.Gateways, model.Gateway{
		Meta: model.Meta{Name: ident.Name{Namespace: "default", Name: "web"}}, Own: true, Addresses: []string{"127.0.0.9"},
		Servers: []model.Server{{Port: 80, Protocol: ident.HTTP}},
	})
	p, err := placement.Offline(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range p.Gateways {
		if g.For.Name == "web" && !strings.HasPrefix(g.Binds[80], "127.0.0.9:") {
			t.Errorf("it listens on %s, want 127.0.0.9", g.Binds[80])
		}
	}
}

// TestSidecarIngress gives ports that a Sidecar offers an address, and no program to them.
func TestSidecarIngress(t *testing.T) {
	cfg := config()
	name := func(ns string) model.Meta { return model.Meta{Name: ident.Name{Namespace: ns, Name: "s"}} }
	cfg.Workloads[0].Labels = map[string]string{"app": "web"}
	cfg.Sidecars = []model.SidecarPolicy{
		{Meta: name("default"), Selector: map[string]string{"app": "web"}, Ingress: []model.IngressPort{{Port: 9080}, {Port: 80}, {Port: 53, Protocol: ident.UDP}}},
		{Meta: name("other"), Ingress: []model.IngressPort{{Port: 9081}}},
	}
	p, err := placement.Offline(cfg)
	if err != nil {
		t.Fatal(err)
	}
	old, web := p.Instances[0], p.Instances[1]
	if len(web.Inbound) != 3 || web.Inbound[9080] == "" || len(web.App) != 2 || web.App[9080] != "" || len(old.Inbound) != 1 {
		t.Errorf("web serves %v for %v, old serves %v", web.Inbound, web.App, old.Inbound)
	}
	unique(t, p)
}

// TestNoLocalPortForManyHosts opens none for what stands for no one place.
func TestNoLocalPortForManyHosts(t *testing.T) {
	cfg := config()
	cfg.Services = append(cfg.Services,
		model.Service{Meta: cfg.Services[0].Meta, Host: "*.example.com", Ports: []model.ServicePort{{Port: 80}}},
		model.Service{Meta: cfg.Services[0].Meta, Host: "a.example.com", Resolution: model.ByRequest, Ports: []model.ServicePort{{Port: 80}}},
		model.Service{Meta: cfg.Services[0].Meta, Host: "b.example.com", Resolution: model.ByDNS, Ports: []model.ServicePort{{Port: 80}}},
	)
	p, err := placement.Offline(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if local := p.Instances[0].Local; len(local) != 2 || local[model.ServiceRef{Host: "b.example.com", Port: 80}] == "" {
		t.Errorf("local ports for %v", local)
	}
}

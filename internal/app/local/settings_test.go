package local

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

func TestSettings(t *testing.T) {
	config := func(ns, name string, selector map[string]string, threads int, env ...model.EnvVar) model.ProxyConfig {
		p := model.ProxyConfig{Meta: model.Meta{Name: ident.Name{Namespace: ns, Name: name}}, Selector: selector, Env: env}
		if threads >= 0 {
			p.Concurrency = &threads
		}
		return p
	}
	web := map[string]string{"app": "web"}
	younger := config("default", "0-first", nil, 7)
	younger.Created = time.Unix(1, 0)
	all := []model.ProxyConfig{
		younger,
		config("default", "all", nil, -1, model.EnvVar{Name: "B", Value: "ns"}, model.EnvVar{Name: "C", Value: "ns"}),
		config("default", "web", web, 2, model.EnvVar{Name: "C", Value: "web"}),
		config("istio-system", "mesh", nil, 4, model.EnvVar{Name: "A", Value: "mesh"}, model.EnvVar{Name: "B", Value: "mesh"}),
		config("istio-system", "selects", web, 9),
		config("other", "web", web, 8),
	}
	for _, c := range []struct {
		namespace string
		labels    map[string]string
		want      proxySettings
	}{
		{"default", web, proxySettings{2, map[string]string{"A": "mesh", "B": "ns", "C": "web"}}},
		{"default", nil, proxySettings{4, map[string]string{"A": "mesh", "B": "ns", "C": "ns"}}},
		{"shop", web, proxySettings{4, map[string]string{"A": "mesh", "B": "mesh"}}},
	} {
		got := settingsOf(all, c.namespace, c.labels)
		if d := cmp.Diff(c.want, got, cmp.AllowUnexported(proxySettings{})); d != "" {
			t.Errorf("%s %v: %s", c.namespace, c.labels, d)
		}
	}
}

func TestProxyEnvironment(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://elsewhere")
	t.Setenv("GOMAXPROCS", "99")
	t.Setenv("A", "old")
	env := proxyEnvironment(proxySettings{threads: 2, env: map[string]string{"A": "new"}})
	if slices.Contains(env, "HTTP_PROXY=http://elsewhere") || slices.Contains(env, "A=old") || slices.Contains(env, "GOMAXPROCS=99") ||
		!slices.Contains(env, "A=new") || !slices.Contains(env, "GOMAXPROCS=2") {
		t.Errorf("the environment is %v", env)
	}
	if plain := proxyEnvironment(proxySettings{}); !slices.Contains(plain, "GOMAXPROCS=99") || !slices.Contains(plain, "A=old") {
		t.Errorf("without settings it is %v", plain)
	}
}

// TestAsker asks a program as its readinessProbe says.
func TestAsker(t *testing.T) {
	status := make(chan int, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" || r.Host != "web" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.WriteHeader(<-status)
	}))
	defer s.Close()
	addr := strings.TrimPrefix(s.URL, "http://")
	port, err := strconv.Atoi(addr[strings.LastIndexByte(addr, ':')+1:])
	if err != nil {
		t.Fatal(err)
	}
	w := &model.Workload{Check: &plan.HealthCheck{Path: "/healthz", Host: "web", Timeout: plan.Duration(10 * time.Second)}, CheckPort: port}
	ask := asker(w, map[int]string{port: addr})
	for code, want := range map[int]string{200: "", 302: "", 503: "answers its readinessProbe " + s.URL + "/healthz with 503"} {
		status <- code
		if bad, err := ask(context.Background()); bad != want || (err == nil) != (want == "") {
			t.Errorf("%d: %q, %v", code, bad, err)
		}
	}
	s.Close()
	if bad, err := ask(context.Background()); bad != addr || err == nil {
		t.Errorf("a program that is gone: %q, %v", bad, err)
	}
}

func TestObjectStatuses(t *testing.T) {
	name := ident.Name{Namespace: "default", Name: "web"}
	all := []model.Status{
		{Group: "gateway.networking.k8s.io", Kind: "Gateway", Name: name, ListenerSets: 2, Listeners: []model.ListenerStatus{{Name: "a", Routes: 1, Kinds: []string{"g/k"}}}},
		{Group: "gateway.networking.k8s.io", Kind: "HTTPRoute", Name: name, Parents: []model.ParentStatus{{Ref: []byte(`{"name":"web"}`)}}},
	}
	gateways := []model.GatewayInstance{
		{Binds: map[int]string{80: "127.0.0.9:8080"}},
		{For: name, Binds: map[int]string{80: "127.0.0.1:8080", 443: "127.0.0.1:8443", 444: "[::1]:1"}},
	}
	got, err := json.Marshal(objectStatuses(all, gateways, nil))
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"group":"gateway.networking.k8s.io","kind":"Gateway","name":{"namespace":"default","name":"web"},` +
		`"listeners":[{"name":"a","supportedKinds":["g/k"],"attachedRoutes":1,"conditions":null}],"addresses":["127.0.0.1","::1"],"attachedListenerSets":2},` +
		`{"group":"gateway.networking.k8s.io","kind":"HTTPRoute","name":{"namespace":"default","name":"web"},"parents":[{"parentRef":{"name":"web"},"conditions":null}]}]`
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Error(d)
	}
}

// A Gateway is programmed while its proxy serves.
func TestProgrammedWhileServed(t *testing.T) {
	name, proxy := ident.Name{Namespace: "default", Name: "web"}, ident.Name{Namespace: "default", Name: "web-gateway"}
	all := []model.Status{{Group: "gateway.networking.k8s.io", Kind: "Gateway", Name: name,
		Conditions: []model.Condition{{Type: "Accepted", Status: true}, {Type: "Programmed", Status: true, Reason: "Programmed"}}}}
	gateways := []model.GatewayInstance{{Name: proxy, For: name}}
	for health, want := range map[Health]model.Condition{
		HealthReady: all[0].Conditions[1],
		HealthDown:  {Type: "Programmed", Reason: "Pending", Message: "its proxy is down; see `malha logs --proxy default/web-gateway`"},
	} {
		got := objectStatuses(all, gateways, []ProxyStatus{{Name: proxy, Health: health}})[0].Conditions
		if d := cmp.Diff([]model.Condition{all[0].Conditions[0], want}, got); d != "" {
			t.Errorf("%s: %s", health, d)
		}
	}
	if !all[0].Conditions[1].Status {
		t.Error("the configuration's own status has changed")
	}
}

// A Gateway may ask for another loopback address than the first.
func TestDoorsAreWhereTheGatewayListens(t *testing.T) {
	m := &Mesh{config: &model.Config{}}
	g := &model.GatewayInstance{Binds: map[int]string{80: "127.0.0.9:8080", 81: "[::1]:8081"}}
	for port, want := range map[int]string{80: "tcp://127.0.0.9:8080", 81: "tcp://[::1]:8081"} {
		if got := m.doorURL(g, port); got != want {
			t.Errorf("port %d is said to be at %s, want %s", port, got, want)
		}
	}
}

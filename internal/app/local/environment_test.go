package local

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

func TestExpand(t *testing.T) {
	v := map[string]string{"PORT": "20001", "EMPTY": ""}
	for in, want := range map[string]string{
		"127.0.0.1:$(PORT)": "127.0.0.1:20001",
		"$(PORT)$(PORT)":    "2000120001",
		"$(EMPTY)x":         "x",
		"$(NOPE)":           "$(NOPE)",
		"$$(PORT)":          "$(PORT)",
		"$$$(PORT)":         "$20001",
		"$(PORT":            "$(PORT",
		"$PORT $":           "$PORT $",
		"":                  "",
	} {
		if got := expand(in, v); got != want {
			t.Errorf("expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestVariables(t *testing.T) {
	reviews := ident.Name{Namespace: "default", Name: "reviews-v1"}
	w := &model.Workload{
		Meta:     model.Meta{Name: reviews},
		Identity: ident.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "reviews"},
		Ports:    []model.WorkloadPort{{Name: "http-api", Port: 9080}, {Port: 9090}},
	}
	svc := func(ns, name string, port int) model.Service {
		n := ident.Name{Namespace: ns, Name: name}
		return model.Service{Meta: model.Meta{Name: n}, Host: ident.ServiceHost(n), Ports: []model.ServicePort{{Name: "http", Port: port}}}
	}
	services := []model.Service{svc("default", "my-ratings", 9080), svc("other", "hidden", 80)}
	in := &model.Instance{
		App:     map[int]string{9080: "127.0.0.1:20001", 9090: "127.0.0.1:20002"},
		Forward: "127.0.0.1:20003",
		Local: map[model.ServiceRef]string{
			{Host: services[0].Host, Port: 9080}: "127.0.0.1:20004",
			{Host: services[1].Host, Port: 80}:   "127.0.0.1:20005",
		},
	}
	want := map[string]string{
		"PORT": "20001", "PORT_HTTP_API": "20001", "PORT_9080": "20001", "PORT_9090": "20002",
		"HTTP_PROXY": "http://127.0.0.1:20003", "http_proxy": "http://127.0.0.1:20003",
		"NO_PROXY": "localhost,127.0.0.1,::1", "no_proxy": "localhost,127.0.0.1,::1",
		"MY_RATINGS_SERVICE_HOST": "127.0.0.1", "MY_RATINGS_SERVICE_PORT": "20004", "MY_RATINGS_SERVICE_PORT_HTTP": "20004",
		"MALHA_WORKLOAD": "reviews-v1", "MALHA_NAMESPACE": "default", "MALHA_IDENTITY": "spiffe://cluster.local/ns/default/sa/reviews",
	}
	if diff := cmp.Diff(want, variables(w, in, services)); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}
}

func TestCommand(t *testing.T) {
	t.Setenv("ALL_PROXY", "socks5://elsewhere:1")
	t.Setenv("HTTP_PROXY", "http://elsewhere:2")
	r := &model.Run{
		Dir:     "/srv/app",
		Command: []string{"./app", "--listen", ":$(PORT)", "$(GREETING)", "$(NOPE)", "$(date) $((i+1)) $(PORT"},
		Env:     []model.EnvVar{{Name: "WHO", Value: "mesh"}, {Name: "GREETING", Value: "hello $(WHO) on $(PORT)"}},
	}
	v := map[string]string{"PORT": "20001", "HTTP_PROXY": "http://127.0.0.1:20003"}
	args, env := command(r, v)
	if diff := cmp.Diff([]string{"--listen", ":20001", "hello mesh on 20001", "$(NOPE)", "$(date) $((i+1)) $(PORT"}, args); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
	for _, want := range []string{"PORT=20001", "WHO=mesh", "GREETING=hello mesh on 20001", "HTTP_PROXY=http://127.0.0.1:20003", "PWD=/srv/app"} {
		if !slices.Contains(env, want) {
			t.Errorf("environment has no %s", want)
		}
	}
	if slices.Contains(env, "ALL_PROXY=socks5://elsewhere:1") {
		t.Error("the user's ALL_PROXY reached the program: it would lead around the sidecar")
	}
	if diff := cmp.Diff([]string{"NOPE"}, unknownVariables(r, v)); diff != "" {
		t.Errorf("unknown variables (-want +got):\n%s", diff)
	}
}

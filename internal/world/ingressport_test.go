package world_test

import (
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/world"
)

// TestServiceLeadsToAnIngressPort has a Service whose targetPort only the Sidecar offers, by number and by name.
func TestServiceLeadsToAnIngressPort(t *testing.T) {
	name := func(n string) model.Meta {
		return model.Meta{Name: ident.Name{Namespace: "default", Name: n}, Labels: map[string]string{"app": n}}
	}
	service := func(n string, p model.ServicePort) model.Service {
		m := name(n)
		return model.Service{Meta: m, Host: ident.ServiceHost(m.Name), Selector: map[string]string{"app": "web"}, Ports: []model.ServicePort{p}}
	}
	cfg := &model.Config{
		Services: []model.Service{
			service("by-number", model.ServicePort{Port: 80, Protocol: ident.HTTP, Target: 9999}),
			service("by-name", model.ServicePort{Port: 80, Protocol: ident.HTTP, TargetName: "front"}),
			service("nowhere", model.ServicePort{Port: 80, Protocol: ident.HTTP, Target: 1}),
		},
		Workloads: []model.Workload{{Meta: name("web"), Ports: []model.WorkloadPort{{Name: "http", Port: 8080, Protocol: ident.HTTP}}}},
		Sidecars: []model.SidecarPolicy{{
			Meta: name("s"), Ingress: []model.IngressPort{{Port: 9999, Name: "front", Protocol: ident.HTTP, App: "127.0.0.1:8080"}},
		}},
	}
	in := model.Instance{
		Workload: cfg.Workloads[0].Name, Ready: true,
		Inbound: map[int]string{8080: "127.0.0.1:1", 9999: "127.0.0.1:2"}, App: map[int]string{8080: "127.0.0.1:3"},
	}
	w := world.Build(cfg, []model.Instance{in}, nil)
	for i := range cfg.Services {
		s := &cfg.Services[i]
		members := w.MembersOf(s)
		if s.Name.Name == "nowhere" {
			if len(members) > 0 {
				t.Errorf("%s has members: %v", s.Name, members)
			}
			continue
		}
		if len(members) != 1 || len(members[0].Ports) != 1 || members[0].Ports[0].Address != "127.0.0.1:2" {
			t.Errorf("%s leads to %v, want the sidecar's port for 9999", s.Name, members)
		}
	}
	n := 0
	for _, d := range world.Check(w) {
		if d.Code == world.CodeNoTargetPort {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d services are said to lead nowhere, want the one that does", n)
	}
	if got := w.Inbound(cfg.Workloads[0].Name); len(got) != 1 || got[0].App != "127.0.0.1:3" || got[0].Service == nil {
		t.Errorf("the sidecar serves %+v", got)
	}
}

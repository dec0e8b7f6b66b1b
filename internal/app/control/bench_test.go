package control

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/world"
)

// teams is a mesh of services in namespaces of ten, with one workload and a routing of five rules each. A Sidecar in the root
// namespace narrows every proxy to its own namespace, as large meshes do: so a change has the same audience at every size.
func teams(services int) (*model.Config, []model.Instance) {
	cfg := &model.Config{}
	var instances []model.Instance
	for i := range services {
		ns := fmt.Sprintf("team%d", i/10)
		if i%10 == 0 {
			cfg.Sidecars = append(cfg.Sidecars, model.SidecarPolicy{
				Meta: model.Meta{Name: ident.Name{Namespace: ns, Name: "default"}}, Egress: []model.EgressView{{Hosts: []string{ns + "/*"}}},
			})
		}
		name := ident.Name{Namespace: ns, Name: fmt.Sprintf("s%d", i)}
		meta := model.Meta{Name: name, Labels: map[string]string{"app": name.Name}, Origin: ident.Origin{Kind: "Service", Namespace: ns, Name: name.Name}}
		cfg.Services = append(cfg.Services, model.Service{
			Meta: meta, Host: ident.ServiceHost(name), Selector: meta.Labels,
			Ports: []model.ServicePort{{Name: "http", Port: 80, Protocol: ident.HTTP, Target: 80}},
		})
		cfg.Workloads = append(cfg.Workloads, model.Workload{
			Meta: meta, Identity: ident.Identity{TrustDomain: "cluster.local", Namespace: ns, ServiceAccount: name.Name},
			Ports: []model.WorkloadPort{{Name: "http", Port: 80, Protocol: ident.HTTP}}, Address: "127.0.0.1",
		})
		cfg.Routings = append(cfg.Routings, rules(name, time.Second))
		instances = append(instances, model.Instance{
			Workload: name, Ready: true, Forward: "127.0.0.1:1",
			Inbound: map[int]string{80: fmt.Sprintf("10.%d.%d.1:80", i>>8, i&255)}, App: map[int]string{80: "127.0.0.1:80"},
		})
	}
	return cfg, instances
}

func rules(name ident.Name, timeout time.Duration) model.Routing {
	r := model.Routing{
		Meta:  model.Meta{Name: name, Origin: ident.Origin{Kind: "VirtualService", Namespace: name.Namespace, Name: name.Name}},
		Hosts: []string{ident.ServiceHost(name)}, Gateways: []string{model.Mesh}, ExportTo: []string{"*"},
	}
	for j := range 5 {
		r.HTTP = append(r.HTTP, model.HTTPRule{
			Matches: []model.HTTPMatch{{Match: plan.Match{Path: &match.String{Kind: match.Prefix, Value: fmt.Sprintf("/%d", j)}}}},
			Forward: []model.WeightedDestination{{Target: model.Target{Host: ident.ServiceHost(name), Port: 80}}},
			Timeout: timeout,
		})
	}
	return r
}

// BenchmarkChange is the cost of one change in meshes of 100 to 10,000 services, from the world to the pieces that wait to be
// sent. It is to stay within 20 %: docs/design/0016-incremental.md.
//
// Run it long (-benchtime 30000x, or 3000x for rules): in a short run one cycle of the collector more or less, which in a large
// mesh has much to look at, is most of the difference.
func BenchmarkChange(b *testing.B) {
	for _, services := range []int{100, 1000, 10_000} {
		cfg, instances := teams(services)
		c, err := Open(Options{})
		if err != nil {
			b.Fatal(err)
		}
		w := world.Build(cfg, instances, nil)
		c.compileAll(w)
		b.Run(fmt.Sprintf("endpoint/services=%d", services), func(b *testing.B) {
			defer processor(b)()
			for n := 0; b.Loop(); n++ {
				in := instances[n%10]
				in.Ready = n/10%2 == 1
				w = c.apply(w, &model.Delta{Instances: []model.Instance{in}})
			}
		})
		b.Run(fmt.Sprintf("rule/services=%d", services), func(b *testing.B) {
			defer processor(b)()
			for n := 0; b.Loop(); n++ {
				w = c.apply(w, &model.Delta{Routings: []model.Routing{rules(cfg.Services[n%10].Name, time.Duration(2+n)*time.Second)}})
			}
		})
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// processor reports the processor time of each operation, which others on the machine do not lengthen as they do the time.
func processor(b *testing.B) func() {
	used := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}

package world_test

import (
	"bytes"
	"cmp"
	"fmt"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/golden"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/world"
)

// TestCheck writes what Check says about the manifests of each archive.
func TestCheck(t *testing.T) {
	golden.Run(t, "testdata", func(t *testing.T, in *golden.Archive) map[string][]byte {
		var objs []config.Object
		var ds []model.Diagnostic
		for _, f := range in.Files {
			if strings.HasSuffix(f.Name, ".yaml") {
				o, d := config.Parse(f.Name, f.Data)
				objs, ds = append(objs, o...), append(ds, d...)
			}
		}
		cfg, more := config.Translate(objs)
		if ds = append(ds, more...); model.HasErrors(ds) {
			t.Fatalf("the manifests are wrong: %v", ds)
		}
		p, err := placement.Offline(cfg)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		for _, d := range world.Check(world.Build(cfg, p.Instances, p.Gateways)) {
			fmt.Fprintln(&b, d)
		}
		return map[string][]byte{"diagnostics": b.Bytes()}
	})
}

func meta(ns, name string) model.Meta { return model.Meta{Name: ident.Name{Namespace: ns, Name: name}} }

// place returns cfg with one workload in namespace app, and its only port placed.
func place(cfg *model.Config) *world.World {
	wl := model.Workload{Meta: meta("app", "w"), Ports: []model.WorkloadPort{{Name: "http", Port: 80}}, Address: "127.0.0.1"}
	wl.Labels = map[string]string{"app": "w"}
	cfg.Workloads = []model.Workload{wl}
	return world.Build(cfg, []model.Instance{{
		Workload: wl.Name, Ready: true, Inbound: map[int]string{80: "127.0.0.1:1"}, App: map[int]string{80: "127.0.0.1:80"},
	}}, nil)
}

func TestPeerAuthPrecedence(t *testing.T) {
	strict, permissive, disable := plan.TLSStrict, plan.TLSPermissive, plan.TLSDisable
	own := map[string]string{"app": "w"}
	mesh := model.PeerAuth{Meta: meta(ident.RootNamespace, "default"), Mode: &strict}
	namespace := model.PeerAuth{Meta: meta("app", "default"), Mode: &disable}
	workload := model.PeerAuth{Meta: meta("app", "w"), Selector: own, Mode: &permissive}
	port := model.PeerAuth{Meta: meta("app", "w"), Selector: own, Ports: map[int]*plan.TLSMode{80: &strict}}
	inherits := model.PeerAuth{Meta: meta("app", "default")}
	for _, c := range []struct {
		name string
		auth []model.PeerAuth
		want plan.TLSMode
	}{
		{"nothing is permissive", nil, plan.TLSPermissive},
		{"mesh", []model.PeerAuth{mesh}, plan.TLSStrict},
		{"namespace before mesh", []model.PeerAuth{mesh, namespace}, plan.TLSDisable},
		{"workload before namespace", []model.PeerAuth{mesh, namespace, workload}, plan.TLSPermissive},
		{"port before namespace", []model.PeerAuth{namespace, port}, plan.TLSStrict},
		{"a namespace without mode inherits", []model.PeerAuth{mesh, inherits}, plan.TLSStrict},
		{"another namespace's does not count", []model.PeerAuth{{Meta: meta("other", "default"), Mode: &strict}}, plan.TLSPermissive},
		{"another workload's does not count", []model.PeerAuth{{Meta: meta("app", "x"), Selector: map[string]string{"app": "x"}, Mode: &strict}}, plan.TLSPermissive},
		{"a selector in the root namespace does not count", []model.PeerAuth{{Meta: meta(ident.RootNamespace, "x"), Selector: own, Mode: &strict}}, plan.TLSPermissive},
		{"of two in one namespace the first by name", []model.PeerAuth{
			{Meta: meta("app", "b"), Mode: &strict}, {Meta: meta("app", "a"), Mode: &disable},
		}, plan.TLSDisable},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := place(&model.Config{PeerAuth: c.auth, Services: []model.Service{{
				Meta: meta("app", "w"), Host: "w.app.svc.cluster.local", Selector: own, Ports: []model.ServicePort{{Port: 8080, Target: 80}},
			}}})
			in := w.Inbound(ident.Name{Namespace: "app", Name: "w"})
			if len(in) != 1 || in[0].TLS != c.want {
				t.Fatalf("inbound = %+v, want mode %s", in, c.want)
			}
			m := w.Members("w.app.svc.cluster.local")
			if len(m) != 1 || m[0].Ports[0].Plaintext != (c.want == plan.TLSDisable) {
				t.Errorf("members = %+v: clients must speak plaintext exactly when the server's mode is disable", m)
			}
		})
	}
}

func TestPolicyLookup(t *testing.T) {
	const host = "w.app.svc.cluster.local"
	rule := func(ns, name, host string, exportTo ...string) model.DestinationPolicy {
		return model.DestinationPolicy{Meta: meta(ns, name), Host: host, ExportTo: exportTo}
	}
	const root = ident.RootNamespace
	for _, c := range []struct {
		name  string
		rules []model.DestinationPolicy
		want  string // of a client in namespace client
		gates string // of one in the root namespace; "" the same
	}{
		{name: "none"},
		{"the service's own", []model.DestinationPolicy{rule("app", "a", host, "*")}, "app/a", ""},
		{"not exported", []model.DestinationPolicy{rule("app", "a", host, "app")}, "", ""},
		{"the client's first", []model.DestinationPolicy{rule("app", "a", host, "*"), rule("client", "c", host, "client")}, "client/c", "app/a"},
		{"the client's wildcard before the service's exact", []model.DestinationPolicy{rule("app", "a", host, "*"), rule("client", "c", "*.local", "*")}, "client/c", "app/a"},
		{"the most specific in a namespace", []model.DestinationPolicy{rule("app", "a", "*", "*"), rule("app", "b", "*.app.svc.cluster.local", "*"), rule("app", "c", "*.local", "*")}, "app/b", ""},
		{"root at last", []model.DestinationPolicy{rule(root, "r", "*", "*")}, root + "/r", ""},
		{"root behind the service's own", []model.DestinationPolicy{rule(root, "r", host, "*"), rule("app", "a", "*.local", "*")}, "app/a", ""},
		{"what root has for itself is for its own clients", []model.DestinationPolicy{rule(root, "r", "*.local", root), rule("app", "a", host, "*")}, "app/a", root + "/r"},
		{"a third namespace's is not asked", []model.DestinationPolicy{rule("third", "t", host, "*")}, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := model.Service{Meta: meta("app", "w"), Host: host}
			w := world.Build(&model.Config{Services: []model.Service{s}, Traffic: c.rules}, nil, nil)
			for client, want := range map[string]string{"client": c.want, root: cmp.Or(c.gates, c.want)} {
				got := ""
				if p := w.PolicyFor(client, nil, &s); p != nil {
					got = p.Name.String()
				}
				if got != want {
					t.Errorf("PolicyFor = %q for a client in %s, want %q", got, client, want)
				}
			}
		})
	}
}

func TestPoliciesOfOneHostMerge(t *testing.T) {
	const host = "w.app.svc.cluster.local"
	first := &model.TrafficPolicy{Outlier: &plan.Outlier{Consecutive5xx: 1}}
	w := world.Build(&model.Config{Traffic: []model.DestinationPolicy{
		{Meta: meta("app", "b"), Host: host, Subsets: []model.Subset{{Name: "v1", Labels: map[string]string{"v": "b"}}, {Name: "v2"}}, Traffic: &model.TrafficPolicy{}},
		{Meta: meta("app", "a"), Host: host, Subsets: []model.Subset{{Name: "v1", Labels: map[string]string{"v": "a"}}}, Traffic: first},
	}}, nil, nil)
	p := w.PolicyFor("app", nil, &model.Service{Meta: meta("app", "w"), Host: host})
	if p == nil || len(p.Subsets) != 2 || p.Subsets[0].Labels["v"] != "a" || p.Subsets[1].Name != "v2" || p.Traffic != first {
		t.Errorf("merged = %+v, want v1 and the traffic policy of the first by name, and v2", p)
	}
}

// TestPoliciesOfSomeWorkloadsMerge is of policies for the same workloads, beside one for all.
func TestPoliciesOfSomeWorkloadsMerge(t *testing.T) {
	const host = "w.app.svc.cluster.local"
	policy := func(name, subset string, workloads map[string]string) model.DestinationPolicy {
		return model.DestinationPolicy{Meta: meta("app", name), Host: host, Workloads: workloads, Subsets: []model.Subset{{Name: subset}}, Traffic: &model.TrafficPolicy{}}
	}
	x, y := map[string]string{"app": "x", "tier": "1"}, map[string]string{"app": "y"}
	w := world.Build(&model.Config{Traffic: []model.DestinationPolicy{
		policy("all", "v1", nil), policy("x1", "v2", x), policy("x2", "v3", map[string]string{"tier": "1", "app": "x"}), policy("y", "v4", y),
	}}, nil, nil)
	for _, tc := range []struct {
		labels map[string]string
		want   string
	}{{nil, "v1"}, {x, "v2 v3"}, {y, "v4"}} {
		var got []string
		for _, s := range w.PolicyFor("app", tc.labels, &model.Service{Meta: meta("app", "w"), Host: host}).Subsets {
			got = append(got, s.Name)
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("a client with %v has subsets %v, want %s", tc.labels, got, tc.want)
		}
	}
	var said []string
	for _, d := range world.Advise(w) {
		if d.Code == world.CodeTrafficTwice {
			said = append(said, d.Message)
		}
	}
	if len(said) != 1 || !strings.Contains(said[0], "app/x1") {
		t.Errorf("said %q, want only that the trafficPolicy of x2 is behind that of x1", said)
	}
}

func TestNotReadyIsNoMember(t *testing.T) {
	cfg := &model.Config{Services: []model.Service{{
		Meta: meta("app", "w"), Host: "h", Selector: map[string]string{"app": "w"}, Ports: []model.ServicePort{{Port: 80, TargetName: "http"}},
	}}}
	if n := len(place(cfg).Members("h")); n != 1 {
		t.Fatalf("%d members of a ready workload, want 1", n)
	}
	w := world.Build(cfg, []model.Instance{{
		Workload: ident.Name{Namespace: "app", Name: "w"}, Inbound: map[int]string{80: "127.0.0.1:1"}, App: map[int]string{80: "127.0.0.1:80"},
	}}, nil)
	if n := len(w.Members("h")); n != 0 {
		t.Errorf("%d members, though none is ready", n)
	}
	if n := len(w.Inbound(ident.Name{Namespace: "app", Name: "w"})); n != 1 {
		t.Errorf("a workload that is not ready serves %d ports, want 1: its sidecar keeps its listener", n)
	}
}

package live_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/live"
)

// captured is a plan whose traffic is captured, with doors on ports that the kernel chooses.
func captured(change ...func(*plan.Plan)) *plan.Plan {
	p := &plan.Plan{
		Capture: &plan.Capture{Inbound: "127.0.0.1:0", Outbound: "127.0.0.1:0", Names: []plan.NameRecord{{Name: "a.example", Addresses: []string{"240.240.0.1"}}}},
		Listeners: []plan.Listener{
			{Name: "forward", Direction: plan.Outbound, Protocol: ident.HTTP, Forward: true, Ports: []plan.ForwardPort{
				{Port: 5432, Protocol: ident.TCP, Hosts: []plan.ForwardHost{{Host: "db", TCP: to("a"), Addresses: []string{"10.0.0.1", "10.1.0.0/16"}}}}}},
			{Name: "in", Direction: plan.Inbound, Port: 8080, TCP: to("a")},
		},
		Clusters: []plan.Cluster{cluster("a")},
	}
	for _, f := range change {
		f(p)
	}
	return p
}

func TestCaptureThatCannotBe(t *testing.T) {
	for want, change := range map[string]func(*plan.Plan){
		`capture : inbound: "here" is not an IP with a port`: func(p *plan.Plan) { p.Capture.Inbound = "here" },
		"there are 0":                      func(p *plan.Plan) { p.Listeners = p.Listeners[1:] },
		`name a.example: "x" is not an IP`: func(p *plan.Plan) { p.Capture.Names[0].Addresses[0] = "x" },
		`"maybe" can't be done`:            func(p *plan.Plan) { p.Capture.Otherwise = "maybe" },
		`"10.0.0.0/99" is neither an IP nor a CIDR`: func(p *plan.Plan) {
			p.Listeners[0].Ports[0].Hosts[0].Addresses = []string{"10.0.0.0/99"}
		},
		"the same address captured inbound 8080": func(p *plan.Plan) {
			p.Listeners = append(p.Listeners, plan.Listener{Name: "again", Direction: plan.Inbound, Port: 8080})
		},
		"listener in": func(p *plan.Plan) { p.Capture, p.Listeners = nil, p.Listeners[1:] }, // no Bind, and nothing comes otherwise
	} {
		px := live.New(live.Options{})
		err := px.Apply(captured(change))
		var piece *live.PieceError
		if !errors.As(err, &piece) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestCaptureComesAndGoes: doors are opened and retired with plans, and a plan that is refused opens none.
func TestCaptureComesAndGoes(t *testing.T) {
	px, _ := start(t, live.Options{}, captured())
	doors := func() string {
		var names []string
		for _, l := range px.Status().Listeners {
			names = append(names, l.Name)
			if !l.Address.IsValid() || l.Address.Port() == 0 {
				t.Errorf("listener %s has no door: %s", l.Name, l.Address)
			}
		}
		return strings.Join(names, " ")
	}
	if got := doors(); got != "forward in" {
		t.Error(got)
	}
	more := captured(func(p *plan.Plan) {
		p.Listeners = append(p.Listeners, plan.Listener{Name: "rest", Direction: plan.Inbound, TCP: to("a")})
	})
	if err := px.Apply(more); err != nil {
		t.Fatal(err)
	}
	if got := doors(); got != "forward in rest" {
		t.Error(got)
	}
	if err := px.Apply(captured(func(p *plan.Plan) { p.Capture.DNS = "192.0.2.1:53" })); err == nil {
		t.Error("a door at an address of others was opened")
	}
	if err := px.Apply(captured(func(p *plan.Plan) { p.Capture.DNS = "127.0.0.1:0" })); err != nil {
		t.Fatal(err)
	}
	if err := px.Apply(simple("127.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	if got := doors(); got != "out" {
		t.Error(got)
	}
	if err := px.Apply(captured()); err != nil {
		t.Fatal(err)
	}
}

// TestDoorsAreNotListeners: who connects to a door was not redirected there, and is not served.
func TestDoorsAreNotListeners(t *testing.T) {
	served := named(t, "a")
	p := captured()
	p.Endpoints = []plan.Endpoints{endpoints("a", served)}
	_, addrs := start(t, live.Options{}, p)
	for name, addr := range addrs {
		if r, err := client(t).Get("http://" + addr); err == nil {
			_ = r.Body.Close()
			t.Errorf("%s answers with %s", name, r.Status)
		}
	}
}

package server

import (
	"net/netip"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/route"
)

// A tunnel to an address is for the host of the longest network that holds it.
func TestHostOfAddress(t *testing.T) {
	wide, narrow, one, name := &Host{}, &Host{Detect: true}, &Host{}, &Host{}
	p := &Port{Hosts: map[string]*Host{"a.example": name, "192.0.2.9": one, "*.2.9": name}}
	for h, networks := range map[*Host][]string{wide: {"192.0.2.0/24", "2001:db8::/32"}, narrow: {"192.0.2.128/25"}} {
		if err := p.SetAddresses(h, networks); err != nil {
			t.Fatal(err)
		}
	}
	for host, want := range map[string]*Host{
		"a.example": name, "192.0.2.9": one, "192.0.2.1": wide, "192.0.2.200": narrow, "::ffff:192.0.2.200": narrow, "2001:db8::1": wide, "198.51.100.1": nil,
	} {
		if got := p.host(host); got != want {
			t.Errorf("%s: %p, want %p", host, got, want)
		}
	}
}

func TestWhatMayPassOutside(t *testing.T) {
	out, err := route.NewOutside(&plan.Outside{Otherwise: plan.Block, Networks: []plan.OutsideNetwork{
		{Network: "192.0.2.0/24", Otherwise: plan.Passthrough}, {Network: "192.0.2.7/32", Otherwise: plan.Block, Origin: ident.Origin{Name: "seven"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	some, seven := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.7")
	r := &Rules{Listener: &plan.Listener{}}
	for _, pass := range []bool{true, false} {
		if got, within, _ := r.passes(pass, seven); got != pass || within != nil {
			t.Errorf("where addresses don't matter: %t within %v, want %t", got, within, pass)
		}
	}
	r.Outside = out
	for addr, want := range map[netip.Addr]bool{some: true, seven: false, {}: true, netip.MustParseAddr("198.18.0.1"): false} {
		got, within, by := r.passes(!want, addr)
		if got != want || within == nil || by == nil || addr == seven && by.Name != "seven" {
			t.Errorf("%s: %t within %v by %v, want %t", addr, got, within, by, want)
		}
	}
}

package route_test

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/route"
)

func TestOutside(t *testing.T) {
	closed := ident.Origin{Kind: "EgressNetwork", Namespace: "a", Name: "closed"}
	p := &plan.Outside{Otherwise: plan.Passthrough, Networks: []plan.OutsideNetwork{
		{Network: "10.0.0.0/8", Otherwise: plan.Block, Origin: closed},
		{Network: "10.1.0.0/16", Otherwise: plan.Passthrough},
		{Network: "10.1.2.0/24", Otherwise: plan.Block},
		{Network: "fd00::/8", Otherwise: plan.Block},
	}}
	o, err := route.NewOutside(p)
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]plan.Otherwise{
		"10.0.0.1": plan.Block, "10.1.0.1": plan.Passthrough, "10.1.2.3": plan.Block, "::ffff:10.0.0.1": plan.Block,
		"fd00::1": plan.Block, "192.0.2.1": plan.Passthrough, "2001:db8::1": plan.Passthrough,
	} {
		a := netip.MustParseAddr(addr)
		if got, _ := o.Fate(a); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
		if err := o.Reaches(a); (err == nil) != (want == plan.Passthrough) || err != nil && !errors.Is(err, route.ErrOutside) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if _, by := o.Fate(netip.MustParseAddr("10.0.0.1")); *by != closed {
		t.Errorf("closed by %s", by)
	}
	if got, _ := o.Fate(netip.Addr{}); got != plan.Passthrough {
		t.Error("a name whose address nobody knows yet must get as far as being resolved")
	}
	all, err := route.NewOutside(&plan.Outside{Otherwise: plan.Block, Networks: []plan.OutsideNetwork{{Network: "10.0.0.0/8", Otherwise: plan.Block}}})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := all.Fate(netip.Addr{}); got != plan.Block {
		t.Error("no address may be reached, so no name need be resolved")
	}
	for _, bad := range []plan.OutsideNetwork{{Network: "10.0.0.1", Otherwise: plan.Block}, {Network: "10.0.0.0/8", Otherwise: plan.NotFound}} {
		if _, err := route.NewOutside(&plan.Outside{Otherwise: plan.Block, Networks: []plan.OutsideNetwork{bad}}); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	if o, err := route.NewOutside(nil); o != nil || err != nil {
		t.Error("nothing must be nothing")
	}
}

// TestOutsideIsTheLongestNetwork compares with looking at every network, whatever their order.
func TestOutsideIsTheLongestNetwork(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	addr := func() netip.Addr {
		return netip.AddrFrom4([4]byte{10, byte(r.IntN(2)), byte(r.IntN(3)), byte(r.IntN(4))})
	}
	fate := func() plan.Otherwise { return []plan.Otherwise{plan.Passthrough, plan.Block}[r.IntN(2)] }
	for range 2000 {
		p := &plan.Outside{Otherwise: fate()}
		for range r.IntN(6) {
			n := netip.PrefixFrom(addr(), r.IntN(33)).Masked().String()
			if !slices.ContainsFunc(p.Networks, func(o plan.OutsideNetwork) bool { return o.Network == n }) {
				p.Networks = append(p.Networks, plan.OutsideNetwork{Network: n, Otherwise: fate()})
			}
		}
		o, err := route.NewOutside(p)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			a, want, longest := addr(), p.Otherwise, -1
			for _, n := range p.Networks {
				if x := netip.MustParsePrefix(n.Network); x.Contains(a) && x.Bits() > longest {
					want, longest = n.Otherwise, x.Bits()
				}
			}
			if got, _ := o.Fate(a); got != want {
				t.Fatalf("%s in %+v: %s, want %s", a, p, got, want)
			}
		}
	}
}

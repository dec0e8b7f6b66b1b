package route

import (
	"net/netip"
	"testing"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// Routes of the Gateway API are for what is sent to a Service, those of Istio for hosts.
func TestFindCaptured(t *testing.T) {
	host := func(name, addr string, byAddress bool) plan.VirtualHost {
		return plan.VirtualHost{Name: name, Domains: []string{name, addr}, ByAddress: byAddress, Routes: []plan.Route{{Name: name}}}
	}
	table, err := Build(&plan.RouteTable{Name: "80", Hosts: []plan.VirtualHost{
		host("a", "198.19.0.1", false), host("b", "198.19.0.2", false), host("routed", "198.19.0.3", true), host("six", "2001:db8::1", true),
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ target, host, want string }{
		{"198.19.0.1", "a", "a"},
		{"198.19.0.1", "b", "b"},      // hosts decide among hosts
		{"198.19.0.3", "a", "routed"}, // it was going to the Service with routes
		{"198.19.0.3", "nobody", "routed"},
		{"198.19.0.1", "routed", "a"},      // and this was not
		{"198.18.0.9", "routed", "routed"}, // an address of no Service: of a pod, or a load balancer
		{"::ffff:198.19.0.3", "a", "routed"},
		{"2001:db8::1", "a", "six"},
		{"198.19.0.1", "nobody", ""},
	} {
		r := &message.Request{}
		got := ""
		if found := table.FindCaptured(netip.MustParseAddr(tc.target), []byte(tc.host), r); found.Host != nil {
			got = found.Host.Name()
		}
		if got != tc.want {
			t.Errorf("%s at %s: %q, want %q", tc.host, tc.target, got, tc.want)
		}
	}
	target, r := netip.MustParseAddr("198.19.0.3"), &message.Request{}
	if n := testing.AllocsPerRun(100, func() { table.FindCaptured(target, []byte("a"), r) }); n > 0 {
		t.Errorf("%v allocations for each request", n)
	}
}

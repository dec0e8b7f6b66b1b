package compile

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// capture makes the doors for redirected connections, where the workload's traffic is captured.
func (c *compiler) capture(fate plan.Otherwise) {
	in := c.scope.Sidecar.Captured
	if in == nil {
		return
	}
	out := &plan.Capture{Inbound: in.Inbound, Outbound: in.Outbound, DNS: in.DNS}
	if fate != plan.Passthrough {
		out.Otherwise = fate
	}
	for i := range c.scope.Services {
		s := &c.scope.Services[i]
		if s.Indirect || inCluster(s.Service) || s.Alias != "" {
			continue // the cluster's own DNS knows it
		}
		var ips []string
		for _, a := range c.addresses(s.Service) {
			if _, err := netip.ParseAddr(a); err == nil {
				ips = append(ips, a)
			}
		}
		if ips != nil {
			out.Names = append(out.Names, plan.NameRecord{Name: s.Host, Addresses: ips})
		}
	}
	slices.SortFunc(out.Names, func(a, b plan.NameRecord) int { return cmp.Compare(a.Name, b.Name) })
	c.captured = out
}

// inCluster reports whether the cluster itself gives a service its name.
func inCluster(s *model.Service) bool {
	return s.Resolution == model.BySelector && s.Host == ident.ServiceHost(s.Name)
}

// addresses returns the IPs and CIDRs by which captured connections are told to be for a service. Where nothing is captured they
// are the CIDRs, for tunnels to an address: single ones are names (compiler.names).
func (c *compiler) addresses(s *model.Service) []string {
	if c.scope.Sidecar == nil || c.scope.Sidecar.Captured == nil {
		return slices.DeleteFunc(slices.Clone(s.Addresses), func(a string) bool { return !strings.Contains(a, "/") })
	}
	if len(s.Addresses) > 0 {
		return s.Addresses
	}
	if a, ok := c.allocated()[s.Host]; ok {
		return []string{a}
	}
	return nil
}

// Addresses for names that have none of their own, so that opaque connections to them can be told apart: those that Istio gives
// out, of which the Internet has none (240.240.0.0/16 of class E, 2001:2::/48 for benchmarks).
var (
	auto4 = netip.MustParseAddr("240.240.0.0").As4()
	auto6 = netip.MustParseAddr("2001:2::f0f0:0").As16()
)

// allocated returns an address for each host outside the cluster that has none and that clients may look up. It follows from
// the host; of two hosts that would have the same one, the second by name has the next.
func (c *compiler) allocated() map[string]string {
	if c.auto != nil {
		return c.auto
	}
	c.auto = map[string]string{}
	v6 := false
	if a, err := netip.ParseAddr(c.scope.Sidecar.Captured.Address); err == nil {
		v6 = a.Is6()
	}
	taken := map[uint16]bool{0: true, 1<<16 - 1: true}
	for i := range c.scope.Services { // sorted by host
		s := &c.scope.Services[i]
		if s.Indirect || inCluster(s.Service) || s.Alias != "" || len(s.Addresses) > 0 || s.Resolution == model.ByRequest ||
			s.Resolution == model.BySelector || strings.HasPrefix(s.Host, "*") || c.auto[s.Host] != "" {
			continue
		}
		if _, err := netip.ParseAddr(s.Host); err == nil {
			continue
		}
		if len(taken) == 1<<16 {
			break
		}
		h := fnv.New32a()
		_, _ = h.Write([]byte(s.Host)) // a hash takes everything
		n := uint16(h.Sum32() ^ h.Sum32()>>16)
		for taken[n] {
			n++
		}
		taken[n] = true
		if v6 {
			b := auto6
			b[14], b[15] = byte(n>>8), byte(n)
			c.auto[s.Host] = netip.AddrFrom16(b).String()
			continue
		}
		b := auto4
		b[2], b[3] = byte(n>>8), byte(n)
		c.auto[s.Host] = netip.AddrFrom4(b).String()
	}
	return c.auto
}

// distinct takes addresses from hosts that another one before them has too. hosts are sorted.
func distinct(hosts []plan.ForwardHost) {
	taken := map[string]bool{}
	for i := range hosts {
		h := &hosts[i]
		if len(h.Addresses) == 0 {
			continue
		}
		var own []string
		for _, a := range h.Addresses {
			if !taken[a] {
				taken[a] = true
				own = append(own, a)
			}
		}
		h.Addresses = own
	}
}

// addressOf returns the IP of an IP:port; "" for a name.
func addressOf(s string) string {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return ""
	}
	return a.Addr().String()
}

package server

import (
	"net"
	"net/netip"
	"testing"
)

func TestAddressesOfServices(t *testing.T) {
	var p Port
	one, wide, narrow, six := &Host{}, &Host{Detect: true}, &Host{}, &Host{}
	for h, addresses := range map[*Host][]string{one: {"10.1.2.3", "::ffff:10.1.2.4"}, wide: {"10.0.0.0/8"}, narrow: {"10.1.0.0/16"}, six: {"fd00::/64"}} {
		if err := p.SetAddresses(h, addresses); err != nil {
			t.Fatal(err)
		}
	}
	for addr, want := range map[string]*Host{"10.1.2.3": one, "10.1.2.4": one, "10.1.2.5": narrow, "10.2.0.1": wide, "11.0.0.1": nil, "fd00::1": six, "fd01::1": nil} {
		if got := p.at(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %p, want %p", addr, got, want)
		}
	}
	for _, bad := range []string{"", "example.com", "10.0.0.0/33", "fe80::1%eth0"} {
		if p.SetAddresses(one, []string{bad}) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// A connection that nobody redirected has no other target, of either version of IP.
func TestTargetOfAPlainConnection(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Skip(err) // no IPv6 here
		}
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		nc, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if target, err := originalTarget(nc.(*net.TCPConn)); err == nil {
			t.Errorf("%s: it was for %s", addr, target)
		}
		_ = nc.Close()
		_ = c.Close()
		_ = ln.Close()
	}
}

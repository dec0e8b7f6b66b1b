package server

import "testing"

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

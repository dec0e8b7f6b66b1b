package explain

import (
	"testing"

	"github.com/malha-mesh/malha/internal/plan"
)

func TestOpaqueServiceOfAnAddress(t *testing.T) {
	hosts := []plan.ForwardHost{{Host: "wide.example", Addresses: []string{"192.0.2.0/24"}}, {Host: "192.0.2.9"},
		{Host: "narrow.example", Addresses: []string{"192.0.2.128/25", "198.51.100.1"}}}
	for host, want := range map[string]string{"192.0.2.1": "wide.example", "192.0.2.200": "narrow.example", "192.0.2.9": "192.0.2.9", "198.51.100.1": "narrow.example", "203.0.113.1": ""} {
		got := ""
		if h := opaqueService(hosts, host); h != nil {
			got = h.Host
		}
		if got != want {
			t.Errorf("%s is for %q, want %q", host, got, want)
		}
	}
}

func TestOpaqueServiceOfAHost(t *testing.T) {
	hosts := []plan.ForwardHost{{Host: "*.b.example"}, {Host: "*.example"}, {Host: "a.b.example"}}
	for host, want := range map[string]string{
		"a.b.example": "a.b.example", "c.b.example": "*.b.example", "b.example": "*.example", "example": "", "other": "",
	} {
		got := ""
		if h := opaqueService(hosts, host); h != nil {
			got = h.Host
		}
		if got != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
	}
}

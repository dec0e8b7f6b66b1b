package explain

import (
	"testing"

	"github.com/malha-mesh/malha/internal/plan"
)

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

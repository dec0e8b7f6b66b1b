package config_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/config"
)

func TestSuppressed(t *testing.T) {
	for _, c := range []struct{ ours, istio, want string }{
		{"", "", ""},
		{"MALHA0810, malha0831", "", "MALHA0810 MALHA0831"},
		{"*", "", "*"},
		{"", "IST0118,IST0132", "MALHA0808 MALHA0831"},
		{"MALHA0831", "IST0118", "MALHA0831"},
		{"", "IST9999", ""},
	} {
		o := config.Object{Annotations: map[string]string{config.SuppressAnnotation: c.ours, config.IstioSuppressAnnotation: c.istio}}
		if got := strings.Join(config.Suppressed(&o), " "); got != c.want {
			t.Errorf("%q and %q: %q, want %q", c.ours, c.istio, got, c.want)
		}
	}
}

// TestIstioCodesLeadToOurs finds codes in the table that we do not have.
func TestIstioCodesLeadToOurs(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "diagnostics.md"))
	if err != nil {
		t.Fatal(err)
	}
	known := strings.Fields(string(page))
	n := 0
	for i := range 300 {
		code := "IST0" + string([]byte{byte('0' + i/100), byte('0' + i/10%10), byte('0' + i%10)})
		for _, ours := range config.OurCodes(code) {
			n++
			if !slices.Contains(known, ours) {
				t.Errorf("%s leads to %s, which docs/diagnostics.md does not have", code, ours)
			}
		}
	}
	if n == 0 {
		t.Error("no code of Istio's leads to one of ours")
	}
}

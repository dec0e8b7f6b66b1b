package ident_test

import (
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
)

func TestNearest(t *testing.T) {
	words := []string{"weight", "headers", "destination", "exact", "TCP"}
	for word, want := range map[string]string{
		"wieght": "weight", "Weight": "weight", "header": "headers", "dest1nation": "destination", "exat": "exact", "tcp": "TCP",
		"route": "", "": "", "x": "", "connection": "", strings.Repeat("w", 200): "",
	} {
		if got := ident.Nearest(word, words); got != want {
			t.Errorf("%q is nearest to %q, want %q", word, got, want)
		}
	}
}

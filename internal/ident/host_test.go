package ident

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHostOverlap(t *testing.T) {
	for _, c := range []struct{ a, b, want string }{
		{"a.example", "a.example", "a.example"},
		{"*.example", "a.example", "a.example"},
		{"a.example", "*", "a.example"},
		{"*.b.example", "*.example", "*.b.example"},
		{"*", "*", "*"},
		{"*.example", "example", ""}, // the suffix alone is not covered
		{"a.example", "b.example", ""},
		{"*.example", "*.other", ""},
		{"*.example", "xexample", ""},
	} {
		for _, pair := range [][2]string{{c.a, c.b}, {c.b, c.a}} {
			got, ok := HostOverlap(pair[0], pair[1])
			if got != c.want || ok != (c.want != "") {
				t.Errorf("HostOverlap(%q, %q) = %q, %v, want %q", pair[0], pair[1], got, ok, c.want)
			}
		}
	}
}

func TestCompareSpecific(t *testing.T) {
	hosts := []string{"*", "*.example", "b.example", "*.b.example", "a.example"}
	slices.SortFunc(hosts, CompareSpecific)
	if d := cmp.Diff([]string{"a.example", "b.example", "*.b.example", "*.example", "*"}, hosts); d != "" {
		t.Error(d)
	}
}

func TestHostIsAddress(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "127.0.0.1": true, "192.168.1.7": true, "::1": true, "[::1]": true,
		"": false, "malha.example": false, "localhost.example": false, "127.0.0.1.example": false, "1": false, "0x7f000001": false, "[localhost]": false,
	} {
		if HostIsAddress(host) != want {
			t.Errorf("HostIsAddress(%q) = %v", host, !want)
		}
	}
}

package main

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/capture"
)

func TestCaptureArguments(t *testing.T) {
	files := func(name string) ([]byte, error) {
		if name == "/etc/resolv.conf" {
			return []byte("nameserver 10.96.0.10\n"), nil
		}
		return nil, os.ErrNotExist
	}
	r, err := parseCapture([]string{"--dns-port=15053", "--exclude-inbound-ports", "22", "--include-outbound-ip-ranges="}, files, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := capture.Defaults()
	want.DNS, want.Resolvers = 15053, []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	want.ExcludeInbound = capture.Ports{Ranges: []capture.PortRange{{First: 22, Last: 22}}}
	want.IncludeNetworks = capture.Networks{}
	if d := cmp.Diff(want, r.options, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Error(d)
	}
	// What Options say, and what the command reads, are the same.
	again, err := parseCapture(r.options.Args()[1:], files, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(capture.Rules(r.options).String(), capture.Rules(again.options).String()); d != "" {
		t.Error(d)
	}
	for _, c := range []struct {
		args, err string
	}{
		{"--exclude-inbound-ports=http", "not a port"},
		{"--inbound-port=70000", "want a port"},
		{"--inbound-port=15001", "can't both go"},
		{"--uid=0", "can't run as user"},
		{"--uid=4294967296", "want less"},
		{"--dns-port=15053 --resolv-conf=/none", "--resolv-conf="},
		{"now", "unexpected argument"},
	} {
		if _, err := parseCapture(strings.Fields(c.args), files, io.Discard); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", c.args, err, c.err)
		}
	}
	var help strings.Builder
	if _, err := parseCapture([]string{"--help"}, files, &help); err == nil || !strings.Contains(help.String(), "-exclude-outbound-ip-ranges CIDRS") {
		t.Errorf("%v\n%s", err, help.String())
	}
	if r, err := parseCapture([]string{"--dns"}, files, io.Discard); err != nil || r.options.DNS != capture.DefaultDNS {
		t.Errorf("--dns: %v %v", r, err)
	}
	empty := func(string) ([]byte, error) { return nil, nil }
	if _, err := parseCapture([]string{"--dns-port=15053"}, empty, io.Discard); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("a resolv.conf without servers: %v", err)
	}
}

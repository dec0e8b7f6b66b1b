package capture

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the goldens")

func TestRules(t *testing.T) {
	for _, c := range []struct {
		name  string
		set   map[string]string
		other func(*Options)
	}{
		{name: "default"},
		{name: "queries", other: func(o *Options) {
			o.DNS, o.Resolvers = DefaultDNS, Resolvers("search a b\nnameserver 10.96.0.10\nnameserver fd00::a\n# nameserver 1.1.1.1\n")
		}},
		{name: "every-query", other: func(o *Options) { o.DNS = DefaultDNS }},
		{name: "choices", set: map[string]string{
			"includeInboundPorts": "8080, 9000-9010", "excludeInboundPorts": "9005",
			"includeOutboundIPRanges": "10.96.0.0/12,fd00::/108", "excludeOutboundIPRanges": "10.96.0.1,10.97.0.0/16",
			"includeOutboundPorts": "5432", "excludeOutboundPorts": "22", "excludeInterfaces": "eth1,docker0"}},
		{name: "nothing", set: map[string]string{"includeInboundPorts": "", "includeOutboundIPRanges": ""}},
		{name: "other-proxy", other: func(o *Options) { o.Inbound, o.Outbound, o.User, o.Group = 4143, 4140, 2102, 2103 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := Defaults()
			for name, value := range c.set {
				if err := o.Set(name, value); err != nil {
					t.Fatal(err)
				}
			}
			if c.other != nil {
				c.other(o)
			}
			if err := o.Check(); err != nil {
				t.Fatal(err)
			}
			got := Rules(o).String()
			golden := filepath.Join("testdata", c.name+".nft")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("-want +got; if that is meant, run with -update:\n%s", d)
			}
		})
	}
}

func TestSet(t *testing.T) {
	for _, c := range []struct{ name, value, want, err string }{
		{name: "includeInboundPorts", value: "*", want: "*"},
		{name: "includeInboundPorts", value: " 80 , 443,80", want: "80,443"},
		{name: "includeInboundPorts", value: "", want: ""},
		{name: "includeInboundPorts", value: "*,80", err: "'*' stands alone"},
		{name: "includeInboundPorts", value: "http", err: `"http" is not a port (1 to 65535) and not '*'`},
		{name: "excludeInboundPorts", value: "65536", err: `"65536" is not a port (1 to 65535)`},
		{name: "excludeInboundPorts", value: "0", err: "not a port"},
		{name: "excludeInboundPorts", value: "*", err: "not a port"},
		{name: "excludeOutboundPorts", value: "8100-8000", err: "not a range"},
		{name: "excludeOutboundPorts", value: "8000-8100,22", want: "22,8000-8100"},
		{name: "includeOutboundPorts", value: "*", want: "*"},
		{name: "includeOutboundIPRanges", value: "10.1.2.3/8, fd00::1", want: "10.0.0.0/8,fd00::1/128"},
		{name: "includeOutboundIPRanges", value: "10.0.0.0", want: "10.0.0.0/32"},
		{name: "excludeOutboundIPRanges", value: "example.com", err: `"example.com" is not a network`},
		{name: "excludeOutboundIPRanges", value: "::ffff:10.0.0.0/104", err: "is not a network"},
		{name: "excludeOutboundIPRanges", value: "*", err: "is not a network"},
		{name: "excludeInterfaces", value: "eth1, eth0,eth1", want: "eth0,eth1"},
		{name: "excludeInterfaces", value: "an-interface-too-long", err: "not the name of a network interface"},
		{name: "excludeInterfaces", value: `a"b`, err: "not the name"},
		{name: "kubevirtInterfaces", value: "x", err: "none of the choices"},
	} {
		o := Defaults()
		err := o.Set(c.name, c.value)
		switch {
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s=%q: error %v, want %q", c.name, c.value, err, c.err)
		case c.err != "":
			if d := cmp.Diff(Defaults(), o, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
				t.Errorf("%s=%q: a wrong value changed something: %s", c.name, c.value, d)
			}
		case err != nil:
			t.Errorf("%s=%q: %v", c.name, c.value, err)
		case o.Get(c.name) != c.want:
			t.Errorf("%s=%q: %q, want %q", c.name, c.value, o.Get(c.name), c.want)
		}
	}
}

func TestArgs(t *testing.T) {
	o := Defaults()
	if d := cmp.Diff([]string{"capture"}, o.Args()); d != "" {
		t.Error(d)
	}
	o.DNS = DefaultDNS
	for name, value := range map[string]string{"includeInboundPorts": "", "excludeOutboundPorts": "22,80-90", "excludeOutboundIPRanges": "10.0.0.0/8"} {
		if err := o.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"capture", "--dns-port=15053", "--include-inbound-ports=", "--exclude-outbound-ip-ranges=10.0.0.0/8", "--exclude-outbound-ports=22,80-90"}
	if d := cmp.Diff(want, o.Args()); d != "" {
		t.Error(d)
	}
	for i, name := range Names() {
		if Flags()[i].Option != name || Flags()[i].Name == "" {
			t.Errorf("%s has no flag", name)
		}
	}
}

func TestCheck(t *testing.T) {
	for want, change := range map[string]func(*Options){
		"can't be 0":                 func(o *Options) { o.Inbound = 0 },
		"can't both go":              func(o *Options) { o.Inbound = o.Outbound },
		"for queries":                func(o *Options) { o.DNS = o.Inbound },
		"can't run as user or group": func(o *Options) { o.Group = 0 },
	} {
		o := Defaults()
		change(o)
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func FuzzSet(f *testing.F) {
	f.Add("includeInboundPorts", "80,90-100")
	f.Add("includeOutboundIPRanges", "10.0.0.0/8,*")
	f.Add("excludeInterfaces", "lo,eth0")
	f.Fuzz(func(t *testing.T, name, value string) {
		o := Defaults()
		if o.Set(name, value) != nil {
			return
		}
		spelled := o.Get(name)
		if err := o.Set(name, spelled); err != nil || o.Get(name) != spelled {
			t.Errorf("%s=%q is spelled %q, which is read as %q (%v)", name, value, spelled, o.Get(name), err)
		}
		if text := Rules(o).String(); strings.Count(text, "{") != strings.Count(text, "}") {
			t.Errorf("%s=%q makes rules that nobody can read:\n%s", name, value, text)
		}
	})
}

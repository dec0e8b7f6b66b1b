package server

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/plan"
)

func TestNamesFind(t *testing.T) {
	var all []*Name
	for _, names := range [][]string{{"a.example", "b.example"}, {"*.example"}, {"*.deep.example"}, {"*"}} {
		all = append(all, &Name{Plan: &plan.ServerName{Names: names}})
	}
	s, narrow := NewNames(all), NewNames(all[:3])
	for host, want := range map[string]int{
		"a.example": 0, "b.example": 0, "c.example": 1, "x.a.example": 1, "x.deep.example": 2, "y.x.deep.example": 2, "deep.example": 1,
		"example": 3, ".example": 3, "": 3, "a.examples": 3, "xa.example": 1, "a.example.": 3, ".": 3, "*": 3,
	} {
		if got := s.Find([]byte(host)); got != all[want] {
			t.Errorf("%q: %v, want %v", host, got.Plan.Names, all[want].Plan.Names)
		}
		if got := narrow.Find([]byte(host)); want == 3 && got != nil {
			t.Errorf("%q is covered by %v", host, got.Plan.Names)
		}
	}
	host := []byte("y.x.deep.example")
	if n := testing.AllocsPerRun(100, func() { s.Find(host) }); n > 0 {
		t.Errorf("%v allocations for each look-up", n)
	}
	if NewNames(nil) != nil {
		t.Error("no names are something")
	}
}

func TestOpaqueToward(t *testing.T) {
	route := func(nets ...string) plan.TCPRoute { return plan.TCPRoute{Subnets: nets} }
	with, err := NewOpaque(nil, []plan.TCPRoute{route("10.0.0.0/8", "fd00::/8"), route("10.1.2.3/24"), route("192.0.2.1/32")}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	rest, err := NewOpaque(nil, []plan.TCPRoute{route("10.0.0.0/8"), route()}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]*Opaque{
		"10.1.2.3": with.routes[0].to, "fd00::1": with.routes[0].to, "192.0.2.1": with.routes[2].to, "192.0.2.2": nil, "::1": nil,
	} {
		if got := with.toward(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %p, want %p", addr, got, want)
		}
	}
	if got := with.toward(netip.Addr{}); got != nil {
		t.Error("a name that nobody resolved is in a subnet")
	}
	if got := rest.toward(netip.Addr{}); got != rest.routes[1].to || got.pick() != nil {
		t.Error("a route without subnets is for all; without destinations it leads nowhere")
	}
	if _, err := NewOpaque(nil, []plan.TCPRoute{route("10.0.0.0")}, nil, nil); err == nil {
		t.Error("an address is a subnet")
	}
	if got := (*Opaque)(nil).toward(netip.Addr{}); got != nil {
		t.Error("nothing leads somewhere")
	}
}

func v2(command, family byte, body string) string {
	return preambleV2 + string([]byte{command, family, byte(len(body) >> 8), byte(len(body))}) + body
}

var preambles = map[string]string{ // what it is → source and destination; "-" for none, "" for malformed
	"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n": "192.0.2.1:56324 198.51.100.1:443",
	"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n":  "[2001:db8::1]:1 [2001:db8::2]:65535",
	"PROXY UNKNOWN\r\n":           "-",
	"PROXY UNKNOWN what ever\r\n": "-",
	v2(0x21, 0x11, "\xc0\x00\x02\x01\xc6\x33\x64\x01\xdc\x04\x01\xbb"):                       "192.0.2.1:56324 198.51.100.1:443",
	v2(0x21, 0x11, "\xc0\x00\x02\x01\xc6\x33\x64\x01\xdc\x04\x01\xbb\x03\x00\x04abcd"):       "192.0.2.1:56324 198.51.100.1:443",
	v2(0x21, 0x21, strings.Repeat("\x20", 16)+strings.Repeat("\x21", 16)+"\x00\x01\x00\x02"): "[2020:2020:2020:2020:2020:2020:2020:2020]:1 [2121:2121:2121:2121:2121:2121:2121:2121]:2",
	v2(0x20, 0x00, ""):                                  "-",
	v2(0x20, 0x11, "\xc0\x00\x02\x01"):                  "-",
	v2(0x21, 0x00, "xyz"):                               "-",
	"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\n\r\n": "",
	"PROXY TCP4 192.0.2.1 198.51.100.1 056324 443\r\n":  "",
	"PROXY TCP4 192.0.2.1 198.51.100.1 65536 443\r\n":   "",
	"PROXY TCP4 192.0.2.1 198.51.100.1 +1 443\r\n":      "",
	"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n":        "",
	"PROXY TCP6 fe80::1%eth0 2001:db8::2 1 2\r\n":       "",
	"PROXY TCP4 192.0.2.1  198.51.100.1 1 2\r\n":        "",
	"PROXY UDP4 192.0.2.1 198.51.100.1 1 2\r\n":         "",
	"PROXY \r\n":                        "",
	"PROXY " + strings.Repeat("x", 120): "",
	"GET / HTTP/1.1\r\n":                "",
	"\x16\x03\x01":                      "",
	v2(0x31, 0x11, "\xc0\x00\x02\x01\xc6\x33\x64\x01\xdc\x04\x01\xbb"): "",
	v2(0x22, 0x11, "\xc0\x00\x02\x01\xc6\x33\x64\x01\xdc\x04\x01\xbb"): "",
	v2(0x21, 0x12, "\xc0\x00\x02\x01\xc6\x33\x64\x01\xdc\x04\x01\xbb"): "",
	v2(0x21, 0x11, "\xc0\x00\x02\x01"):                                 "",
	v2(0x21, 0x11, strings.Repeat("x", maxPreambleV2)):                 "",
}

func TestPreamble(t *testing.T) {
	for in, want := range preambles {
		p, n, err := parsePreamble([]byte(in + "GET /"))
		switch {
		case want == "":
			if !errors.Is(err, errPreamble) {
				t.Errorf("%q: %v, %v, want an error", in, p, err)
			}
			continue
		case err != nil || n != len(in):
			t.Errorf("%q: %d bytes of %d, %v", in, n, len(in), err)
			continue
		case want == "-":
			if p.source.IsValid() || p.destination.IsValid() {
				t.Errorf("%q: %v", in, p)
			}
		case p.source.String()+" "+p.destination.String() != want:
			t.Errorf("%q: %v, want %s", in, p, want)
		}
		for cut := 1; cut < len(in); cut++ {
			if _, _, err := parsePreamble([]byte(in[:cut])); !errors.Is(err, errPreambleShort) {
				t.Errorf("%q after %d bytes: %v", in, cut, err)
			}
		}
	}
}

func FuzzPreamble(f *testing.F) {
	for in := range preambles {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		p, n, err := parsePreamble(b)
		switch {
		case err == nil && (n <= 0 || n > len(b) || p.source.IsValid() != p.destination.IsValid()):
			t.Errorf("%q: %v, %d bytes", b, p, n)
		case errors.Is(err, errPreambleShort) && len(b) >= maxPreambleV2:
			t.Errorf("more is wanted after %d bytes", len(b))
		}
		// What was decided stays decided, whatever follows.
		if !errors.Is(err, errPreambleShort) {
			q, m, again := parsePreamble(append(b[:len(b):len(b)], "more\r\n"...))
			if q != p || m != n || !errors.Is(again, err) {
				t.Errorf("%q: %v, and then %v", b, err, again)
			}
		}
	})
}

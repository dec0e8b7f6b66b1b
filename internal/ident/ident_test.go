package ident

import (
	"errors"
	"strings"
	"testing"
)

func TestIdentityRoundTrip(t *testing.T) {
	for _, uri := range []string{
		"spiffe://cluster.local/ns/default/sa/reviews",
		"spiffe://a.b-c_1/ns/N.s/sa/S-a_.0", // upper case is the path's own (SPIFFE-ID section 2.2)
	} {
		id, err := ParseIdentity(uri)
		if err != nil || id.URI() != uri || "spiffe://"+id.Principal() != uri || id.IsZero() {
			t.Errorf("ParseIdentity(%q) = %+v, %v; written %q", uri, id, err, id.URI())
		}
	}
	if id := (Identity{}); id.URI() != "" || id.Principal() != "" || !id.IsZero() {
		t.Errorf("nobody is written %q, %q", id.URI(), id.Principal())
	}
}

// TestNoIdentity is every byte that is none of a segment, in each of the three, and forms that other readers of URIs take.
func TestNoIdentity(t *testing.T) {
	bad := []string{
		"", "spiffe://", "spiffe://cluster.local", "SPIFFE://cluster.local/ns/a/sa/b", "https://cluster.local/ns/a/sa/b",
		"spiffe://Cluster.local/ns/a/sa/b", "spiffe://cluster.local/ns/a/sa/b/", "spiffe://cluster.local/ns/a/sa/b/c", "spiffe://cluster.local/ns/a/sa",
		"spiffe://cluster.local/NS/a/sa/b", "spiffe://cluster.local/sa/a/ns/b", "spiffe://cluster.local//ns/a/sa/b",
		"spiffe:///ns/a/sa/b", "spiffe://cluster.local/ns//sa/b", "spiffe://cluster.local/ns/a/sa/",
		"spiffe://cluster.local/ns/./sa/b", "spiffe://cluster.local/ns/a/sa/..", "spiffe://cluster.local/ns/" + strings.Repeat("a", 254) + "/sa/b",
	}
	for c := range 256 {
		b := byte(c)
		if b >= 'a' && b <= 'z' || b >= '0' && b <= '9' || b == '-' || b == '_' || b == '.' {
			continue
		}
		x := "x" + string([]byte{b}) + "y"
		bad = append(bad, "spiffe://"+x+"/ns/a/sa/b")
		if b < 'A' || b > 'Z' {
			bad = append(bad, "spiffe://cluster.local/ns/"+x+"/sa/b", "spiffe://cluster.local/ns/a/sa/"+x)
		}
	}
	for _, uri := range bad {
		if id, err := ParseIdentity(uri); err == nil || !id.IsZero() {
			t.Errorf("ParseIdentity(%q) = %+v, %v; want an error", uri, id, err)
		}
	}
}

func TestParseName(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"a", "def/a"}, {"b/a", "b/a"}, {"", ""}, {"/a", ""}, {"b/", ""}, {"b/a/c", ""},
	} {
		n, err := ParseName(c.in, "def")
		if got := n.String(); (err != nil) != (c.want == "") || err == nil && got != c.want {
			t.Errorf("ParseName(%q) = %q, %v; want %q", c.in, got, err, c.want)
		}
	}
	if n, err := ParseName("a", ""); err == nil {
		t.Errorf("a name without a namespace is %q", n)
	}
}

func TestNamesAreOrdered(t *testing.T) {
	ordered := []Name{{}, {"", "b"}, {"a", "c"}, {"b", "a"}, {"b", "b"}}
	for i, x := range ordered {
		for j, y := range ordered {
			got := x.Compare(y)
			if (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%s to %s: %d", x, y, got)
			}
		}
	}
}

func TestCanonicalHost(t *testing.T) {
	label := strings.Repeat("a", 63)
	for _, c := range []struct {
		in       string
		wildcard bool
		want     string // "": an error
	}{
		{"Reviews.Default", false, "reviews.default"},
		{"reviews.", false, "reviews"},
		{"a_b-1.c", false, "a_b-1.c"},
		{"10.0.0.1", false, "10.0.0.1"},
		{"[2001:DB8:0::1]", false, "2001:db8::1"},
		{"::1", false, "::1"},
		{"[::1", false, ""}, {"::1]", false, ""}, {"::1.", false, ""}, {"fe80::1%eth0", false, ""}, {"[fe80::1%25eth0]", false, ""},
		{"*", true, "*"}, {"*.Example.com", true, "*.example.com"},
		{"*", false, ""}, {"*.example.com", false, ""}, {"*example.com", true, ""}, {"a.*.com", true, ""}, {"**", true, ""}, {"*.", true, ""}, {"*..a", true, ""},
		{"", false, ""}, {".", false, ""}, {"a..b", false, ""}, {".a", false, ""}, {"a..", false, ""},
		{"a:80", false, ""}, {"[::1]:80", false, ""}, {"a/b", false, ""}, {"a b", false, ""}, {"a%2eb", false, ""}, {"a@b", false, ""}, {"b\u00fccher", false, ""}, {"a\x00", false, ""},
		{label + ".b", false, label + ".b"}, {label + "a.b", false, ""},
		{strings.Repeat("a.", 126) + "a", false, strings.Repeat("a.", 126) + "a"}, // 253 bytes, RFC 1035 section 2.3.4
		{strings.Repeat("a.", 126) + "aa", false, ""},
	} {
		got, err := CanonicalHost(c.in, c.wildcard)
		if got != c.want || (err != nil) != (c.want == "") || err != nil && !errors.Is(err, ErrHost) {
			t.Errorf("CanonicalHost(%q, %v) = %q, %v; want %q", c.in, c.wildcard, got, err, c.want)
		}
		if err != nil {
			continue
		}
		if again, err := CanonicalHost(got, c.wildcard); again != got || err != nil {
			t.Errorf("CanonicalHost(%q) = %q, %v: the canonical form of %q is not canonical", got, again, err, c.in)
		}
	}
}

func TestRuleHost(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"Reviews", "reviews.shop.svc.cluster.local"}, {"reviews.other", "reviews.other"}, {"*", "*"}, {"*.com", "*.com"}, {"::1", "::1"}, {"a b", ""},
	} {
		if got, err := RuleHost(c.in, "shop"); got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("RuleHost(%q) = %q, %v; want %q", c.in, got, err, c.want)
		}
	}
}

func TestHostCovers(t *testing.T) {
	for _, c := range []struct {
		rule, host string
		want       bool
	}{
		{"a.b", "a.b", true}, {"a.b", "c.b", false}, {"*", "a", true}, {"*", "", false}, {"*.b", "a.b", true}, {"*.b", "c.a.b", true},
		{"*.b", "b", false}, {"*.b", ".b", false}, {"*.b", "ab", false},
	} {
		if got := HostCovers(c.rule, c.host); got != c.want {
			t.Errorf("HostCovers(%q, %q) = %v", c.rule, c.host, got)
		}
	}
}

func TestPortProtocol(t *testing.T) {
	for _, c := range []struct {
		app, name, transport string
		port                 int
		want                 Protocol
	}{
		{"", "", "", 80, Detect},
		{"", "http", "", 80, HTTP}, {"", "HTTP-web", "TCP", 80, HTTP}, {"", "httpx", "", 80, Detect}, {"", "web-http", "", 80, Detect},
		{"", "http2-a", "", 80, HTTP2}, {"", "grpc", "", 80, GRPC}, {"", "grpc-web", "", 80, HTTP}, {"", "grpc-web-a", "", 80, HTTP}, {"", "grpc-a", "", 80, GRPC},
		{"", "https", "", 443, TLS}, {"", "tls-a", "", 443, TLS}, {"", "redis", "", 1, TCP}, {"", "mysql-a", "", 1, TCP}, {"", "udp-a", "", 1, UDP},
		{"", "http", "UDP", 80, UDP}, {"http", "tcp", "udp", 80, UDP},
		{"HTTP", "tcp", "", 80, HTTP}, {"kubernetes.io/h2c", "http", "", 80, HTTP2}, {"kubernetes.io/ws", "", "", 80, HTTP}, {"kubernetes.io/wss", "", "", 80, TLS},
		{"linkerd.io/opaque", "http", "", 80, TCP},
		{"example.com/mine", "http", "", 80, TCP}, // what nobody knows is not looked into
		{"", "", "", 3306, TCP}, {"", "db", "", 5432, TCP}, {"", "http", "", 3306, HTTP}, {"", "", "", 3307, Detect},
	} {
		if got := PortProtocol(c.app, c.name, c.transport, c.port); got != c.want {
			t.Errorf("PortProtocol(%q, %q, %q, %d) = %s, want %s", c.app, c.name, c.transport, c.port, got, c.want)
		}
	}
}

func TestProtocolNames(t *testing.T) {
	for p := Detect; p <= UDP; p++ {
		text, _ := p.MarshalText()
		var back Protocol
		if err := back.UnmarshalText(text); err != nil || back != p {
			t.Errorf("%d is written %q and read %d, %v", p, text, back, err)
		}
		if want := p == HTTP || p == HTTP2 || p == GRPC; p.IsHTTP() != want {
			t.Errorf("%s: IsHTTP is %v", p, p.IsHTTP())
		}
	}
	if err := new(Protocol).UnmarshalText([]byte("quic")); err == nil {
		t.Error("quic is no protocol of ours")
	}
	if got := Protocol(99).String(); got != "protocol(99)" {
		t.Errorf("a number without a name is %q", got)
	}
}

func TestOrigin(t *testing.T) {
	full := Origin{Kind: "VirtualService", Namespace: "shop", Name: "web", Rule: "http[0]", File: "dir/vs.yaml", Line: 12}
	for _, c := range []struct {
		o    Origin
		want string
	}{
		{full, "VirtualService/shop/web http[0] (dir/vs.yaml:12)"},
		{full.At("http[1]", 0), "VirtualService/shop/web http[1] (dir/vs.yaml:12)"},
		{full.At("", 3), "VirtualService/shop/web (dir/vs.yaml:3)"},
		{Origin{Kind: "GatewayClass", Name: "malha"}, "GatewayClass/malha"},
		{Origin{Rule: "mesh default"}, "mesh default"},
		{Origin{File: "a.yaml"}, "(a.yaml)"},
		{Origin{Line: 3}, ""},
		{Origin{}, ""},
	} {
		if got := c.o.String(); got != c.want || string(c.o.Append([]byte("x "))) != "x "+got {
			t.Errorf("%#v is written %q, want %q", c.o, got, c.want)
		}
	}
	if full.IsZero() || !(Origin{}).IsZero() {
		t.Error("only the empty origin says nothing")
	}
}

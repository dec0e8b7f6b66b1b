package message

import (
	"strings"
	"testing"
)

func TestCanonicalPath(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"/", "/"}, {"/a", "/a"}, {"/a/", "/a/"}, {"/a//b", "/a//b"}, {"//", "//"},
		{"/a.b/.c/..d", "/a.b/.c/..d"},
		{"/.", "/"}, {"/..", "/"}, {"/./", "/"}, {"/../", "/"}, {"/../a", "/a"}, {"/a/.", "/a/"}, {"/a/..", "/"},
		{"/a/../b", "/b"}, {"/a/b/../../c", "/c"}, {"/a//../b", "/a/b"}, {"/a//..", "/a/"},
		{"/%61dmin", "/admin"}, {"/%2e%2E/a", "/a"}, {"/a/%2e%2e/b", "/b"}, {"/.%2e/a", "/a"}, {"/%7euser", "/~user"},
		{"/a%2fb", "/a%2Fb"}, {"/a%5cb", "/a%5Cb"}, {"/%252e", "/%252e"}, {"/%25", "/%25"},
		{`/a\b`, "/a/b"}, {`\a`, "/a"}, {`/a\..\b`, "/b"}, {"/a;x/..;/b", "/a;x/..;/b"}, {"/%c3%a9", "/%C3%A9"},
		{"", ""}, {"a", ""}, {"*", ""}, {"/%", ""}, {"/%4", ""}, {"/%zz", ""}, {"/%00", ""}, {"/a b", ""}, {"/a#b", ""}, {"/a?b", ""},
		{"/a\x00", ""}, {"/a\r", ""}, {"/a\n", ""}, {"/a\t", ""}, {"/\x7f", ""}, {"/\xc3\xa9", ""},
	} {
		got, err := CanonicalPath([]byte(tt.in))
		if string(got) != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("CanonicalPath(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
}

func TestSplitTarget(t *testing.T) {
	for _, tt := range []struct {
		in, path, query string
		has, ok         bool
	}{
		{"/a", "/a", "", false, true},
		{"/a?", "/a", "", true, true},
		{"/a?b=c?d", "/a", "b=c?d", true, true},
		{"/a/..?/../x", "/", "/../x", true, true},
		{"/a?b#c", "", "", false, false},
		{"/a?b c", "", "", false, false},
		{"?a", "", "", false, false},
	} {
		path, query, has, err := SplitTarget([]byte(tt.in))
		if string(path) != tt.path || string(query) != tt.query || has != tt.has || (err == nil) != tt.ok {
			t.Errorf("SplitTarget(%q) = %q, %q, %v, %v", tt.in, path, query, has, err)
		}
	}
}

func TestParseAuthority(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, tt := range []struct {
		in, authority, host string
		port                int
	}{
		{"a", "a", "a", 0}, {"A.b:80", "a.b:80", "a.b", 80}, {"a.:80", "a:80", "a", 80}, {"a.", "a", "a", 0}, {"a:", "a", "a", 0},
		{"a_b-c.svc:65535", "a_b-c.svc:65535", "a_b-c.svc", 65535}, {"1.2.3.4:1", "1.2.3.4:1", "1.2.3.4", 1},
		{"[::1]", "[::1]", "::1", 0}, {"[0:0::1]:8", "[::1]:8", "::1", 8}, {"[::FFFF:0a0a:0a0a]:8", "[::ffff:10.10.10.10]:8", "::ffff:10.10.10.10", 8},
		{"[::1]:", "[::1]", "::1", 0}, {long + ".x", long + ".x", long + ".x", 0},
		{"", "", "", 0}, {".", "", "", 0}, {":80", "", "", 0}, {".a", "", "", 0}, {"a..b", "", "", 0}, {"a..", "", "", 0}, {"u@a", "", "", 0}, {"a,b", "", "", 0},
		{"a b", "", "", 0}, {"a/b", "", "", 0}, {"a%41", "", "", 0}, {"a:0", "", "", 0}, {"a:080", "", "", 0}, {"a:65536", "", "", 0}, {"a:x", "", "", 0}, {"a:1:2", "", "", 0},
		{"[::1", "", "", 0}, {"[::1]x", "", "", 0}, {"[1.2.3.4]", "", "", 0}, {"[fe80::1%eth0]", "", "", 0}, {"[]", "", "", 0}, {"::1", "", "", 0},
		{long + "a.x", "", "", 0}, {"a\x00", "", "", 0}, {"\xe9", "", "", 0}, {"*", "", "", 0},
	} {
		authority, host, port, err := ParseAuthority([]byte(tt.in))
		if string(authority) != tt.authority || string(host) != tt.host || port != tt.port || (err == nil) != (tt.authority != "") {
			t.Errorf("ParseAuthority(%q) = %q, %q, %d, %v; want %q, %q, %d", tt.in, authority, host, port, err, tt.authority, tt.host, tt.port)
		}
	}
}

func TestSyntax(t *testing.T) {
	for c := range 256 {
		b := []byte{'a', byte(c), 'a'}
		alnum := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		token := alnum || c < 128 && strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c))
		if IsToken(b) != token {
			t.Errorf("IsToken(%q) = %v", b, !token)
		}
		if lower := token && (c < 'A' || c > 'Z'); IsLowerToken(b) != lower {
			t.Errorf("IsLowerToken(%q) = %v", b, !lower)
		}
		if value := c == '\t' || c >= ' ' && c != 0x7f; IsValue(b) != value {
			t.Errorf("IsValue(%q) = %v", b, !value)
		}
	}
	for _, s := range []string{" a", "a ", "\ta", "a\t", " "} {
		if IsValue([]byte(s)) {
			t.Errorf("IsValue(%q)", s)
		}
	}
	if !IsValue(nil) || IsToken(nil) || IsLowerToken(nil) {
		t.Error("the empty string is a value and no token")
	}
}

func TestParseLength(t *testing.T) {
	for _, tt := range []struct {
		in string
		n  int64
		ok bool
	}{
		{"0", 0, true}, {"10", 10, true}, {"9223372036854775807", 1<<63 - 1, true}, {"007", 7, true},
		{"", 0, false}, {"+3", 0, false}, {"-1", 0, false}, {"0x3", 0, false}, {"3 3", 0, false}, {"3,3", 0, false},
		{"9223372036854775808", 0, false}, {"18446744073709551619", 0, false},
	} {
		if n, ok := ParseLength([]byte(tt.in)); ok != tt.ok || ok && n != tt.n {
			t.Errorf("ParseLength(%q) = %d, %v", tt.in, n, ok)
		}
	}
}

func TestMeans(t *testing.T) {
	for name, want := range map[string]bool{
		"x_forwarded_for": true, "x-forwarded_for": true, "x_forwarded-for": true, "x_forwarded_forx": true,
		"x-forwarded-for": false, // it is ours, and looked at as that
		"x_forwarded":     false, "xforwardedfor": false, "y_forwarded_for": false, "x.forwarded_for": false, "": false,
	} {
		if got := Means([]byte(name), "x-forwarded-for"); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if Means([]byte("x_y"), "x-y-z") || Means([]byte("a-b"), "a_b") {
		t.Error("a name that is shorter, or our own with an underscore, counts as the same")
	}
	if !ForbiddenTrailer([]byte("x_forwarded_client_cert")) {
		t.Error("a trailer may say who somebody is")
	}
}

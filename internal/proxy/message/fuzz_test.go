package message

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
)

// A canonical path is its own canonical form, and none of what rules must never see is in it.
func FuzzCanonicalPath(f *testing.F) {
	for _, s := range []string{"/a/../b", "/%2e%2e/%61", `/\..\..`, "/a//..//./x", "/%25%32%65", "/a.b/..c/.d", "/%00", "/%2F..%2f", "/a;b=c/./..", "*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got, err := CanonicalPath([]byte(in))
		if want, ok := plainPath(in); ok != (err == nil) || ok && want != string(got) {
			t.Fatalf("%q became %q (%v), and read the slow way %q (%v)", in, got, err, want, ok)
		}
		if err != nil {
			return
		}
		s := string(got)
		again, err := CanonicalPath([]byte(s))
		if err != nil || string(again) != s {
			t.Fatalf("%q became %q, which becomes %q, %v", in, s, again, err)
		}
		if s[0] != '/' || strings.ContainsAny(s, "\\#? \x00\r\n") || strings.Contains(s+"/", "/../") || strings.Contains(s+"/", "/./") {
			t.Fatalf("%q became %q", in, s)
		}
	})
}

// plainPath is CanonicalPath written the slow and obvious way.
func plainPath(in string) (string, bool) {
	if in == "" || in[0] != '/' && in[0] != '\\' {
		return "", false
	}
	var b strings.Builder
	for i := 0; i < len(in); i++ {
		switch c := in[i]; {
		case c <= ' ' || c >= 0x7f || c == '#' || c == '?':
			return "", false
		case c == '\\':
			b.WriteByte('/')
		case c == '%':
			if i+2 >= len(in) || !strings.Contains("0123456789abcdefABCDEF", in[i+1:i+2]) || !strings.Contains("0123456789abcdefABCDEF", in[i+2:i+3]) {
				return "", false
			}
			digits := strings.ToUpper(in[i+1 : i+3])
			if digits == "00" {
				return "", false
			}
			decoded := strings.IndexByte("0123456789ABCDEF", digits[0])<<4 | strings.IndexByte("0123456789ABCDEF", digits[1])
			if decoded < 0x80 && strings.ContainsRune("-._~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", rune(decoded)) {
				b.WriteByte(byte(decoded))
			} else {
				b.WriteString("%" + digits)
			}
			i += 2
		default:
			b.WriteByte(c)
		}
	}
	segments := strings.Split(b.String(), "/")[1:]
	var out []string
	for i, s := range segments {
		last := i == len(segments)-1
		switch {
		case s == "." && last:
			out = append(out, "")
		case s == ".":
		case s == "..":
			if len(out) > 0 {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		out = []string{""}
	}
	return "/" + strings.Join(out, "/"), true
}

// A canonical authority is its own canonical form, and its parts are what it says.
func FuzzAuthority(f *testing.F) {
	for _, s := range []string{"a", "A.b:80", "a.:80", "[::1]:443", "[::ffff:1.2.3.4]", "a..b", "u@a", "a,b", "1.2.3.4:65535", "a:080", "a:", ".", strings.Repeat("a", 64),
		strings.Repeat("a.", 127) + "a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		authority, host, port, err := ParseAuthority([]byte(in))
		if err != nil {
			return
		}
		again, host2, port2, err := ParseAuthority(bytes.Clone(authority))
		if err != nil || !bytes.Equal(authority, again) || !bytes.Equal(host, host2) || port != port2 {
			t.Fatalf("%q became %q, which becomes %q: %v", in, authority, again, err)
		}
		s := string(authority)
		if s != strings.ToLower(s) || strings.ContainsAny(s, "@/\\?#, %\x00\r\n\t") || port < 0 || port > 65535 || len(host) == 0 || len(host) > 253 {
			t.Fatalf("%q became %q, %q, %d", in, s, host, port)
		}
		if s[0] == '[' {
			if ip, err := netip.ParseAddr(string(host)); err != nil || ip.String() != string(host) {
				t.Fatalf("%q has host %q", in, host)
			}
			return
		}
		for label := range strings.SplitSeq(string(host), ".") {
			if label == "" || len(label) > 63 {
				t.Fatalf("%q has host %q", in, host)
			}
		}
	})
}

// A target comes apart into what joins to the same target.
func FuzzSplitTarget(f *testing.F) {
	for _, s := range []string{"/a", "/a?", "/a?b=c?d", "/a/..?/../x", "/a?b#c", "?a", "/%3f?x", "*", "http://a/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		path, query, has, err := SplitTarget([]byte(in))
		if err != nil {
			return
		}
		if !has && len(query) > 0 || bytes.ContainsAny(path, "?#") || bytes.ContainsAny(query, "# ") {
			t.Fatalf("%q is %q and %q", in, path, query)
		}
		joined := string(path)
		if has {
			joined += "?" + string(query)
		}
		path2, query2, has2, err := SplitTarget([]byte(joined))
		if err != nil || !bytes.Equal(path, path2) || !bytes.Equal(query, query2) || has != has2 {
			t.Fatalf("%q is %q, which is %q and %q: %v", in, joined, path2, query2, err)
		}
		if _, want, ok := strings.Cut(in, "?"); ok != has || want != string(query) {
			t.Fatalf("%q has query %q", in, query)
		}
	})
}

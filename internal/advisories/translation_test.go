package advisories

import (
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// What HTTP/2 can say and HTTP/1 cannot never reaches an HTTP/1 endpoint: the stream is refused, or one request comes
// out in the one form that the origin takes. The generators put every byte everywhere.
func TestTranslation(t *testing.T) {
	request := func(method, scheme, path, authority string, more ...string) []string {
		return with([]string{":method", method, ":scheme", scheme, ":path", path, ":authority", authority}, more...)
	}
	bytesOf := func(f func(b string) []string) (all [][]string) {
		for c := range 256 {
			all = append(all, f(string([]byte{byte(c)})))
		}
		return all
	}
	of := func(values []string, f func(v string) []string) (all [][]string) {
		for _, v := range values {
			all = append(all, f(v))
		}
		return all
	}
	crlf := "\r\nx: y\r\n\r\n" + hidden
	rows := []struct {
		name  string
		cases [][]string
		wrong bool // none of them may be forwarded
	}{
		{"60 bytes in names", bytesOf(func(b string) []string { return with(get, "x"+b+"y", "v") }), false},
		{"60 bytes in values", bytesOf(func(b string) []string { return with(get, "x", "v"+b+"w") }), false},
		{"60 line ends", of([]string{"\r\n", "\n", "\r", "\x00", crlf}, func(v string) []string { return with(get, "x", "v"+v) }), true},
		{"60 line ends in cookies", of([]string{"\r\n", "\n", "\r", "\x00", crlf}, func(v string) []string { return with(get, "cookie", "a", "cookie", "v"+v) }), true},
		{"61 bytes in paths", bytesOf(func(b string) []string { return request("GET", "http", "/"+b+"x", "a") }), false},
		{"61 paths", of([]string{"", "x", "*", "http://b/", "?x", "/ HTTP/1.1" + crlf, "/a b", "pkg.Svc/Method", " /", "\t/"}, func(v string) []string { return request("GET", "http", v, "a") }), true},
		{"62 methods", of([]string{"", "GET ", " GET", "GET / HTTP/1.1" + crlf, "G\tET", "G\x00T", "GET/", "\xc3\x89"}, func(v string) []string { return request(v, "http", "/", "a") }), true},
		{"62 bytes in methods", bytesOf(func(b string) []string { return request("G"+b+"T", "http", "/", "a") }), false},
		{"63 schemes", of([]string{"", "ftp", "file", "http ", "http\r\n", "https://b", "javascript", "\x00"}, func(v string) []string { return request("GET", v, "/", "a") }), true},
		{"63 schemes in any case", of([]string{"HTTP", "Https"}, func(v string) []string { return request("GET", v, "/", "a") }), false},
		{"64 authorities", of([]string{"", "a,b", "u@a", "a/b", "a b", "a\r\nx: y", "a:b", "a:", "a:99999", "a:080", "a#b", "a?b", "[::1", "[::1]x", "..", "a\\b", "*"}, func(v string) []string {
			if v == "a:" {
				v = "a:0"
			}
			return request("GET", "http", "/", v)
		}), true},
		{"64 host differs", of([]string{"b", "a.b", "a:80", "", "a,b", "a\r\n"}, func(v string) []string { return with(get, "host", v) }), true},
		{"65 connection fields", of([]string{"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}, func(v string) []string { return with(get, v, "chunked") }), true},
		{"65 te", of([]string{"chunked", "trailers, chunked", "gzip", ""}, func(v string) []string { return with(get, "te", v) }), true},
		{"65 content-length", of([]string{"5", "+0", "-1", "0x0", "0,0", "18446744073709551616", "", " "}, func(v string) []string { return with(get, "content-length", v) }), true},
		{"65 content-length twice", of([]string{"5", "1", "x"}, func(v string) []string { return with(get, "content-length", "0", "content-length", v) }), true},
		{"66 pseudo fields twice", of([]string{":method", ":scheme", ":path", ":authority"}, func(v string) []string { return with([]string{v, "/"}, get...) }), true},
		{"66 pseudo fields late", of([]string{":method", ":scheme", ":path", ":authority"}, func(v string) []string { return with(append([]string{"x", "y"}, get...), v, "a") }), true},
		{"66 unknown pseudo fields", of([]string{":status", ":x", ":", ":Path", ":protocol", ": path"}, func(v string) []string { return with([]string{v, "200"}, get...) }), true},
		{"66 upper case", of([]string{"X", "Host", "contenT-length", "aB"}, func(v string) []string { return with(get, v, "0") }), true},
		{"68 pseudo fields are missing", [][]string{{}, {":method", "GET"}, get[:4], get[2:], get[4:], {":method", "GET", ":scheme", "http", ":path", "/"}, {":method", "CONNECT"}, {":method", "CONNECT", ":path", "/", ":authority", "a:1"},
			{":method", "CONNECT", ":protocol", "websocket", ":authority", "a"}, {"x", "y"}}, true},
		{"69 fragments", of([]string{"/#", "/x#y", "/#/../x", "/?x#y", "#"}, func(v string) []string { return request("GET", "http", v, "a") }), true},
	}
	o := newOrigin(t, nil)
	l := newLab(t, o.addr)
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			c := l.dialH2()
			n := uint32(1)
			for _, fields := range row.cases {
				_ = c.send(open(n, true, raw(fields...)))
				a := c.until(n)
				seen := o.take()
				if a == nil {
					t.Fatalf("%q: the connection ended with %v", fields, c.away)
				}
				switch {
				case len(seen) > 1:
					t.Errorf("%q became %d requests", fields, len(seen))
				case row.wrong && len(seen) > 0:
					t.Errorf("%q became %q %q", fields, seen[0].line, seen[0].fields)
				case row.wrong && a.status/100 != 4 && a.reset == nil:
					t.Errorf("%q got %v", fields, a)
				case len(seen) == 0 && a.status == 200:
					t.Errorf("%q got 200 from nobody", fields)
				}
				n += 2
			}
		})
	}
	t.Run("67 sizes", func(t *testing.T) {
		c := l.dialH2()
		for i, size := range []int{1 << 10, 16 << 10, 59 << 10, 60<<10 - 300, 60 << 10, 61 << 10} {
			n := id(uint32(i))
			_ = c.send(open(n, true, raw(with(get, "x", strings.Repeat("v", size))...)))
			a, seen := c.until(n), o.take()
			if size < 59<<10 && (a.status != 200 || len(seen) != 1 || len(seen[0].get("x")) != size) || size >= 60<<10 && (a.status != 431 || len(seen) != 0) {
				t.Errorf("a field of %d bytes got %v, and %d requests", size, a, len(seen))
			}
		}
	})
	t.Run("55 lengths that lie", func(t *testing.T) {
		c := l.dialH2()
		for i, body := range []string{"", "abc", "abcdefgh", hidden} {
			n := id(uint32(i))
			_ = c.send(open(n, body == "", raw(with(post, "content-length", "5")...)))
			if body != "" {
				_ = c.send(data(n, true, body))
			}
			if a := c.until(n); a.reset == nil && a.status/100 != 4 {
				t.Errorf("%d bytes for 5 got %v", len(body), a)
			}
			l.next()
			for _, m := range o.take() {
				if m.target != "/next" {
					t.Errorf("%d bytes for 5 became %q", len(body), m.line)
				}
			}
		}
	})
}

// A request body of any size goes out in frames, and comes back in frames, that another implementation takes.
func TestFrameLengths(t *testing.T) {
	o := newOrigin(t, nil)
	l := newLab(t, o.addr)
	for _, size := range []int{0, 1, 1<<14 - 1, 1 << 14, 1<<14 + 1, 1<<15 - 9, 65535, 65536, 200_000} {
		c := l.dialH2(setting(http2.SettingInitialWindowSize, 1<<20)...)
		_ = c.send(open(1, false, raw(post...)))
		for rest := size; rest > 0; rest -= 1 << 14 {
			_ = c.send(data(1, false, strings.Repeat("x", min(rest, 1<<14))))
		}
		_ = c.send(data(1, true, ""))
		if a := c.until(1); a.String() != "200" {
			t.Errorf("%d bytes: %v", size, a)
		}
		if seen := o.take(); len(seen) != 1 || len(seen[0].body) != size {
			t.Errorf("%d bytes came as %d requests", size, len(seen))
		}
		_ = c.nc.Close()
	}
}

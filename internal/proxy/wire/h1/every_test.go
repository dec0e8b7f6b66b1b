package h1

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/wire/h1/h1test"
)

// Rules about bytes and sizes are proved for all bytes and for the sizes around each limit, not for a few that somebody
// thought of.

func letters(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func tchar(c byte) bool { return letters(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0 }

func inValue(c byte) bool { return c == '\t' || c >= ' ' && c != 0x7f }

// accepted runs a message at once and byte by byte, has the second parser judge it, and reports whether it was forwarded.
func accepted(t *testing.T, response bool, in string) bool {
	t.Helper()
	c := &h1test.Case{Where: fmt.Sprintf("%.80q", in), Response: response, Minor: 1, In: []byte(in)}
	if response {
		c.Asked = "GET"
	}
	whole := run(c, c.In)
	judge(t, c, whole)
	cuts := make([]int, 0, len(in))
	for i := 1; i < len(in); i++ {
		cuts = append(cuts, i)
	}
	if parts := run(c, c.In, cuts...); !same(whole, parts) {
		t.Errorf("%.80q: at once %s, byte by byte %s", in, whole.outcome(), parts.outcome())
	}
	return len(whole.done) == 1 && whole.err == nil
}

// Each byte in each place of a message is accepted exactly where the grammar has it.
func TestEveryByte(t *testing.T) {
	t.Parallel()
	const end = " HTTP/1.1\r\nHost: a\r\n\r\n"
	const body = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	places := []struct {
		name     string
		response bool
		in       string // with the byte where the ? is marked by \xfe\xfe
		ok       func(c byte) bool
	}{
		{name: "method", in: "G\xfe\xfeT /" + end, ok: tchar},
		{name: "method, first byte", in: "\xfe\xfeGET /" + end, ok: tchar},
		{name: "path", in: "GET /a\xfe\xfeb" + end, ok: func(c byte) bool { return c > ' ' && c < 0x7f && c != '#' && c != '%' }},
		{name: "query", in: "GET /?a\xfe\xfeb" + end, ok: func(c byte) bool { return c > ' ' && c < 0x7f && c != '#' }},
		{name: "first byte of target", in: "GET \xfe\xfe/" + end, ok: func(c byte) bool { return c == '/' }},
		{name: "absolute-form host", in: "GET http://b\xfe\xfeb/" + end, ok: func(c byte) bool { return letters(c) || strings.IndexByte("-._~/?\\", c) >= 0 && c != '\\' }},
		{name: "after the target", in: "GET /\xfe\xfeHTTP/1.1\r\nHost: a\r\n\r\n", ok: func(c byte) bool { return c == ' ' }},
		{name: "version", in: "GET / HTTP/1\xfe\xfe1\r\nHost: a\r\n\r\n", ok: func(c byte) bool { return c == '.' }},
		{name: "minor version", in: "GET / HTTP/1.\xfe\xfe\r\nHost: a\r\n\r\n", ok: func(c byte) bool { return c == '0' || c == '1' }},
		{name: "after the version", in: "GET / HTTP/1.1\xfe\xfe\r\nHost: a\r\n\r\n", ok: func(byte) bool { return false }},
		{name: "between CR and LF", in: "GET / HTTP/1.1\r\xfe\xfe\nHost: a\r\n\r\n", ok: func(byte) bool { return false }},
		{name: "before the head", in: "\xfe\xfe\r\nGET /" + end, ok: func(byte) bool { return false }},
		{name: "name", in: "GET / HTTP/1.1\r\nHost: a\r\nX\xfe\xfeY: v\r\n\r\n", ok: func(c byte) bool { return tchar(c) || c == ':' }},
		{name: "first byte of a name", in: "GET / HTTP/1.1\r\nHost: a\r\n\xfe\xfeY: v\r\n\r\n", ok: tchar},
		{name: "before the colon", in: "GET / HTTP/1.1\r\nHost: a\r\nY\xfe\xfe: v\r\n\r\n", ok: func(c byte) bool { return tchar(c) || c == ':' }},
		{name: "value", in: "GET / HTTP/1.1\r\nHost: a\r\nX: a\xfe\xfeb\r\n\r\n", ok: inValue},
		{name: "value of length 16", in: "GET / HTTP/1.1\r\nHost: a\r\nX: 0123456789abcde\xfe\xfe\r\n\r\n", ok: inValue},
		{name: "after a value", in: "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\xfe\xfe\r\n\r\n", ok: func(c byte) bool { return c == '\n' }},
		{name: "Host", in: "GET / HTTP/1.1\r\nHost: a\xfe\xfea\r\n\r\n", ok: func(c byte) bool { return letters(c) || strings.IndexByte("-._~", c) >= 0 }},
		{name: "port", in: "GET / HTTP/1.1\r\nHost: a:1\xfe\xfe\r\n\r\n", ok: func(c byte) bool { return c >= '0' && c <= '9' || c == ' ' || c == '\t' }},
		{name: "Content-Length", in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\xfe\xfe\r\n\r\n", ok: func(c byte) bool { return c == '0' || c == ' ' || c == '\t' }},
		{name: "Content-Length, first byte", in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\xfe\xfe0\r\n\r\n", ok: func(c byte) bool { return c == '0' || c == ' ' || c == '\t' }},
		{name: "before chunked", in: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\xfe\xfechunked\r\n\r\n0\r\n\r\n", ok: func(c byte) bool { return c == ' ' || c == '\t' }},
		{name: "inside chunked", in: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chun\xfe\xfeked\r\n\r\n0\r\n\r\n", ok: func(byte) bool { return false }},
		{name: "after chunked", in: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\xfe\xfe\r\n\r\n0\r\n\r\n", ok: func(c byte) bool { return c == ' ' || c == '\t' }},
		{name: "after Transfer-Encoding", in: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\xfe\xfe: chunked\r\n\r\n0\r\n\r\n", ok: func(byte) bool { return false }},
		{name: "Connection", in: "GET / HTTP/1.1\r\nHost: a\r\nConnection: x\xfe\xfey\r\n\r\n", ok: func(c byte) bool { return tchar(c) || c == ',' }},
		{name: "Expect", in: "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100\xfe\xfecontinue\r\n\r\n", ok: func(c byte) bool { return c == '-' }},
		{name: "chunk size", in: body + "0\xfe\xfe1\r\nx\r\n0\r\n\r\n", ok: func(c byte) bool { return c == '0' }},
		{name: "before a chunk size", in: body + "\xfe\xfe1\r\nx\r\n0\r\n\r\n", ok: func(c byte) bool { return c == '0' }},
		{name: "after a chunk size", in: body + "1\xfe\xfe\r\nx\r\n0\r\n\r\n", ok: func(c byte) bool { return c == ';' }},
		{name: "chunk extension", in: body + "1;a\xfe\xfeb\r\nx\r\n0\r\n\r\n", ok: inValue},
		{name: "chunk data", in: body + "1\r\n\xfe\xfe\r\n0\r\n\r\n", ok: func(byte) bool { return true }},
		{name: "after chunk data", in: body + "1\r\nx\xfe\xfe\n0\r\n\r\n", ok: func(c byte) bool { return c == '\r' }},
		{name: "after the CR of chunk data", in: body + "1\r\nx\r\xfe\xfe0\r\n\r\n", ok: func(c byte) bool { return c == '\n' }},
		{name: "trailer name", in: body + "0\r\nX\xfe\xfeY: v\r\n\r\n", ok: func(c byte) bool { return tchar(c) || c == ':' }},
		{name: "trailer value", in: body + "0\r\nX: a\xfe\xfeb\r\n\r\n", ok: inValue},
		{name: "the end of a body", in: body + "0\r\n\r\xfe\xfe", ok: func(c byte) bool { return c == '\n' }},
		{name: "body", in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n\xfe\xfe", ok: func(byte) bool { return true }},
		{name: "status", response: true, in: "HTTP/1.1 2\xfe\xfe0 OK\r\nContent-Length: 0\r\n\r\n", ok: func(c byte) bool { return c >= '0' && c <= '9' }},
		{name: "first digit of a status", response: true, in: "HTTP/1.1 \xfe\xfe00 OK\r\nContent-Length: 0\r\n\r\n", ok: func(c byte) bool { return c >= '2' && c <= '5' }},
		{name: "after a status", response: true, in: "HTTP/1.1 200\xfe\xfeOK\r\nContent-Length: 0\r\n\r\n", ok: func(c byte) bool { return c == ' ' }},
		{name: "reason", response: true, in: "HTTP/1.1 200 O\xfe\xfeK\r\nContent-Length: 0\r\n\r\n", ok: inValue},
		{name: "name in a response", response: true, in: "HTTP/1.1 200 OK\r\nX\xfe\xfeY: v\r\nContent-Length: 0\r\n\r\n", ok: func(c byte) bool { return tchar(c) || c == ':' }},
		{name: "value in a response", response: true, in: "HTTP/1.1 200 OK\r\nX: a\xfe\xfeb\r\nContent-Length: 0\r\n\r\n", ok: inValue},
		{name: "Transfer-Encoding in a response", response: true, in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: \xfe\xfechunked\r\n\r\n0\r\n\r\n", ok: func(c byte) bool { return c == ' ' || c == '\t' }},
		{name: "Content-Length in a response", response: true, in: "HTTP/1.1 200 OK\r\nContent-Length: 0\xfe\xfe\r\n\r\n", ok: func(c byte) bool { return c == '0' || c == ' ' || c == '\t' }},
	}
	for _, p := range places {
		before, after, ok := strings.Cut(p.in, "\xfe\xfe")
		if !ok {
			t.Fatalf("%s has no place", p.name)
		}
		for b := range 256 {
			c := byte(b)
			if got, want := accepted(t, p.response, before+string([]byte{c})+after), p.ok(c); got != want {
				t.Errorf("%s with %#02x: forwarded %v, want %v", p.name, c, got, want)
			}
		}
	}
}

// No byte, put anywhere into the name or the value of a field that frames, makes a message that somebody frames otherwise:
// it is refused, or the field is another one, or the same (white space, case).
func TestFramingObfuscated(t *testing.T) {
	t.Parallel()
	lines := []string{"Transfer-Encoding: chunked", "Content-Length: 10"}
	for _, line := range lines {
		for at := 0; at <= len(line); at++ {
			for b := range 256 {
				broken := line[:at] + string([]byte{byte(b)}) + line[at:]
				in := "POST / HTTP/1.1\r\nHost: a\r\n" + broken + "\r\n\r\n0\r\n\r\n01234"
				c := &h1test.Case{Where: fmt.Sprintf("%q", in), In: []byte(in)}
				r := run(c, c.In)
				judge(t, c, r)
				if len(r.done) == 0 {
					continue
				}
				name, value, _ := strings.Cut(broken, ":")
				for _, ours := range []string{"transfer-encoding", "content-length"} {
					if !strings.EqualFold(name, ours) {
						continue
					}
					v := strings.ToLower(strings.Trim(value, " \t"))
					if ours == "transfer-encoding" && v != "chunked" || ours == "content-length" && strings.Trim(v, "0123456789") != "" {
						t.Errorf("%q was forwarded as %q", in, r.done)
					}
				}
			}
		}
	}
}

// Content-Length is read as a number of any size, and one that does not fit is refused, never cut.
func TestContentLengthNumbers(t *testing.T) {
	limit := new(big.Int).Lsh(big.NewInt(1), 63)
	for bit := range 130 {
		for _, d := range []int64{-1, 0, 1, 3} {
			n := new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), uint(bit)), big.NewInt(d))
			var r message.Request
			var s Scan
			k, err := ParseRequest([]byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: "+n.String()+"\r\n\r\n"), &s, &r, limits)
			if n.Cmp(limit) < 0 {
				if err != nil || k == 0 || r.Length != n.Int64() {
					t.Errorf("%s: %d, %v", n, r.Length, err)
				}
			} else if err != error(ErrLength) {
				t.Errorf("%s: %d, %v", n, r.Length, err)
			}
		}
	}
}

// Sizes of chunks are read and written as numbers of any size below 2^63; leading zeros up to 16 digits are fine.
func TestChunkSizes(t *testing.T) {
	for bit := range 70 {
		for _, d := range []int64{-1, 0, 1} {
			n := new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), uint(bit)), big.NewInt(d))
			for zeros := range 18 {
				digits := strings.Repeat("0", zeros) + n.Text(16)
				var body Body
				body.Reset(message.Unknown, false, limits)
				_, _, err := body.Next([]byte(digits + "\r\n"))
				if fits := n.IsInt64() && len(digits) <= 16; fits != (err == nil) || fits && n.Sign() > 0 && body.left != n.Uint64() {
					t.Errorf("size %s: %d, %v", digits, body.left, err)
				}
			}
			if n.Sign() > 0 && n.IsInt64() && strconv.IntSize == 64 {
				if got := string(AppendChunkHead(nil, int(n.Int64()))); got != n.Text(16)+"\r\n" {
					t.Errorf("the head of a chunk of %s bytes is %q", n, got)
				}
			}
		}
	}
}

// Names of any length are kept whole, or the message is refused, and a length that stands around them is seen
// (CVE-2021-40346).
func TestNamesAroundLength(t *testing.T) {
	for _, n := range []int{1, 2, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 126, 127, 128, 129, 254, 255, 256, 257, 258, 511, 512, 1024, 4096, 8000, 8192, 65536, 65537} {
		name := strings.Repeat("n", n)
		for _, in := range []string{
			"POST / HTTP/1.1\r\nHost: a\r\n" + name + ": v\r\nContent-Length: 3\r\n\r\nabc",
			"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n" + name + ": v\r\n\r\nabc",
			"POST / HTTP/1.1\r\nHost: a\r\n" + name + ":\r\nContent-Length: 3\r\n\r\nabc",
		} {
			c := &h1test.Case{Where: fmt.Sprintf("name of %d bytes", n), In: []byte(in)}
			r := run(c, c.In)
			judge(t, c, r)
			head := strings.Index(in, "\r\n\r\n") + 4
			if head > limits.Head {
				if r.err != error(ErrHeadTooLarge) || len(r.done) > 0 {
					t.Errorf("name of %d bytes: %s", n, r.outcome())
				}
				continue
			}
			if len(r.done) != 1 || !strings.Contains(r.done[0], "\r\n"+name+": ") || !strings.HasSuffix(r.done[0], "content-length: 3\r\n\r\nabc") {
				t.Errorf("name of %d bytes: %.200s", n, r.outcome())
			}
		}
	}
}

// A message at a limit is accepted and one byte or line more is refused, however the bytes come.
func TestLimits(t *testing.T) {
	t.Parallel()
	const chunkedHead = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	fill := func(before, after string, total int) string {
		return before + strings.Repeat("x", total-len(before)-len(after)) + after
	}
	tests := []struct {
		name     string
		response bool
		limit    int
		make     func(n int) string
		err      *Error
	}{
		{name: "request line", limit: limits.RequestLine, err: ErrLineTooLong,
			make: func(n int) string { return fill("GET /", " HTTP/1.1", n) + "\r\nHost: a\r\n\r\n" }},
		{name: "method", limit: limits.RequestLine, err: ErrLineTooLong,
			make: func(n int) string { return fill("", " / HTTP/1.1", n) + "\r\nHost: a\r\n\r\n" }},
		{name: "status line", response: true, limit: limits.RequestLine, err: ErrStatusLine,
			make: func(n int) string { return fill("HTTP/1.1 200 ", "", n) + "\r\nContent-Length: 0\r\n\r\n" }},
		{name: "head", limit: limits.Head, err: ErrHeadTooLarge,
			make: func(n int) string { return fill("GET / HTTP/1.1\r\nHost: a\r\nX: ", "\r\n\r\n", n) }},
		{name: "head after an empty line", limit: limits.Head, err: ErrHeadTooLarge,
			make: func(n int) string { return "\r\n" + fill("GET / HTTP/1.1\r\nHost: a\r\nX: ", "\r\n\r\n", n) }},
		{name: "head of a response", response: true, limit: limits.Head, err: ErrHeadTooLarge,
			make: func(n int) string { return fill("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: ", "\r\n\r\n", n) }},
		{name: "fields", limit: limits.Fields, err: ErrManyFields,
			make: func(n int) string { return "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("a: b\r\n", n-1) + "\r\n" }},
		{name: "fields of one hop", limit: limits.Fields, err: ErrManyFields,
			make: func(n int) string {
				return "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("keep-alive: b\r\n", n-1) + "\r\n"
			}},
		{name: "fields of a response", response: true, limit: limits.Fields, err: ErrManyFields,
			make: func(n int) string {
				return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + strings.Repeat("a: b\r\n", n-1) + "\r\n"
			}},
		{name: "trailer section", limit: limits.Trailers, err: ErrTrailers,
			make: func(n int) string { return chunkedHead + "0\r\n" + fill("x: ", "\r\n", n) + "\r\n" }},
		{name: "trailer fields", limit: limits.Fields, err: ErrManyFields,
			make: func(n int) string { return chunkedHead + "0\r\n" + strings.Repeat("a: b\r\n", n) + "\r\n" }},
		{name: "chunk extensions", limit: maxExtensions, err: ErrExtensions,
			make: func(n int) string { return chunkedHead + "1" + fill(";", "", n) + "\r\nx\r\n0\r\n\r\n" }},
		{name: "chunk extensions together", limit: maxExtensions, err: ErrExtensions,
			make: func(n int) string {
				return chunkedHead + strings.Repeat("1;\r\nx\r\n", n/2) + "1" + fill(";", "", n-n/2) + "\r\nx\r\n0\r\n\r\n"
			}},
	}
	for _, tt := range tests {
		for n := tt.limit - 3; n <= tt.limit+3; n++ {
			in := tt.make(n)
			c := &h1test.Case{Where: tt.name, Response: tt.response, Minor: 1, In: []byte(in)}
			if tt.response {
				c.Asked = "GET"
			}
			whole := run(c, c.In)
			judge(t, c, whole)
			if ok := n <= tt.limit; ok != (whole.err == nil && len(whole.done) == 1) || !ok && whole.err != error(tt.err) {
				t.Errorf("%s of %d, limit %d: %.100s", tt.name, n, tt.limit, whole.outcome())
			}
			cuts := make([]int, 0, len(in))
			for i := 1; i < len(in); i++ {
				cuts = append(cuts, i)
			}
			if parts := run(c, c.In, cuts...); parts.outcome() != whole.outcome() {
				t.Errorf("%s of %d byte by byte: %.100s, at once %.100s", tt.name, n, parts.outcome(), whole.outcome())
			}
			for cut := max(tt.limit-4, 1); cut < min(tt.limit+5, len(in)); cut++ {
				if parts := run(c, c.In, cut); parts.outcome() != whole.outcome() {
					t.Errorf("%s of %d cut at %d: %.100s, at once %.100s", tt.name, n, cut, parts.outcome(), whole.outcome())
				}
			}
		}
	}
}

// A head that never ends is refused at the limit and not before: what waits in a buffer is bounded.
func TestEndless(t *testing.T) {
	for name, in := range map[string]string{
		"method":        strings.Repeat("G", 1<<16),
		"target":        "GET /" + strings.Repeat("x", 1<<16),
		"name":          "GET / HTTP/1.1\r\n" + strings.Repeat("n", 1<<16),
		"value":         "GET / HTTP/1.1\r\nX: " + strings.Repeat("v", 1<<16),
		"fields":        "GET / HTTP/1.1\r\n" + strings.Repeat("a: b\r\n", 1<<13),
		"chunk size":    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("0", 1<<16),
		"extension":     "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;" + strings.Repeat("e", 1<<16),
		"trailer name":  "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("n", 1<<16),
		"trailer value": "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx: " + strings.Repeat("v", 1<<16),
	} {
		c := &h1test.Case{Where: name, In: []byte(in)}
		r := relayCase(c)
		for at := 0; at < len(in) && r.err == nil; at += 16 {
			r.feed(c.In[at:min(at+16, len(in))])
			if len(r.buf) > limits.Head {
				t.Errorf("%s: %d bytes wait", name, len(r.buf))
				break
			}
		}
		if r.err == nil || len(r.done) > 0 {
			t.Errorf("%s: %s", name, r.outcome())
		}
	}
}

package h1

import (
	"bytes"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/wire/h1/h1test"
)

// seeds adds the rows of the table, which are the committed seeds of the fuzz targets here.
func seeds(f *testing.F, responses bool, add func(c *h1test.Case)) {
	cases := load(f)
	for i := range cases {
		if c := &cases[i]; c.Response == responses {
			add(c)
		}
	}
}

// same reports whether two ways of cutting the same bytes came to the same. A fault in a head that is not whole may show in
// one and wait in the other.
func same(a, b *relay) bool {
	if a.outcome() == b.outcome() {
		return true
	}
	if a.err != nil {
		a, b = b, a
	}
	return a.err == nil && b.err != nil && !a.inBody && !b.inBody && strings.HasPrefix(b.outcome(), a.outcome())
}

// What a connection makes of bytes does not depend on how they come, and a second parser reads what is forwarded as the
// same messages.
func FuzzRequests(f *testing.F) {
	seeds(f, false, func(c *h1test.Case) { f.Add(c.In, uint16(len(c.In)/2)) })
	f.Fuzz(func(t *testing.T, in []byte, cut uint16) {
		c := &h1test.Case{Where: "fuzz", In: in}
		whole, parts := run(c, in), run(c, in, int(cut)%(len(in)+1))
		if !same(whole, parts) {
			t.Fatalf("%q\nwhole %s\ncut at %d %s", in, whole.outcome(), int(cut)%(len(in)+1), parts.outcome())
		}
		judge(t, c, whole)
		judge(t, c, parts)
	})
}

// As FuzzRequests, for what a server sends.
func FuzzResponses(f *testing.F) {
	seeds(f, true, func(c *h1test.Case) { f.Add(c.In, uint16(len(c.In)/2), c.Asked, c.Minor) })
	f.Fuzz(func(t *testing.T, in []byte, cut uint16, asked string, minor uint8) {
		c := &h1test.Case{Where: "fuzz", Response: true, Asked: "GET", Minor: minor & 1, In: in}
		if asked == "HEAD" || asked == "CONNECT" {
			c.Asked = asked
		}
		whole, parts := run(c, in), run(c, in, int(cut)%(len(in)+1))
		if !same(whole, parts) {
			t.Fatalf("%q\nwhole %s\ncut at %d %s", in, whole.outcome(), int(cut)%(len(in)+1), parts.outcome())
		}
		judge(t, c, whole)
		judge(t, c, parts)
	})
}

// A request that was accepted and written again is the same request: what routing saw is what the upstream sees.
func FuzzRequestHead(f *testing.F) {
	seeds(f, false, func(c *h1test.Case) { f.Add(c.In) })
	wide := &Limits{RequestLine: 1 << 20, Head: 1 << 20, Fields: 1000, Trailers: 1 << 20}
	f.Fuzz(func(t *testing.T, in []byte) {
		var r, again message.Request
		var s Scan
		n, err := ParseRequest(bytes.Clone(in), &s, &r, limits)
		if err != nil || n == 0 {
			return
		}
		out := AppendRequest(nil, &r)
		s = Scan{}
		m, err := ParseRequest(bytes.Clone(out), &s, &again, wide)
		if err != nil || m != len(out) {
			t.Fatalf("%q was written as %q, of which %d were read: %v", in, out, m, err)
		}
		if twice := AppendRequest(nil, &again); !bytes.Equal(out, twice) {
			t.Fatalf("%q was written as %q, then as %q", in, out, twice)
		}
		if !bytes.Equal(r.Method, again.Method) || !bytes.Equal(r.Authority, again.Authority) || !bytes.Equal(r.Host, again.Host) || r.Port != again.Port ||
			!bytes.Equal(r.Path, again.Path) || !bytes.Equal(r.Query, again.Query) || r.HasQuery != again.HasQuery || r.Length != again.Length ||
			!bytes.Equal(r.Upgrade, again.Upgrade) || len(r.Fields) != len(again.Fields) {
			t.Fatalf("%q is read as %+v, then %+v", in, r, again)
		}
		for i := range r.Fields {
			name, value := r.Fields[i].Name, r.Fields[i].Value
			if !message.IsLowerToken(name) || !message.IsValue(value) {
				t.Fatalf("%q has field %q: %q", in, name, value)
			}
		}
	})
}

func FuzzResponseHead(f *testing.F) {
	seeds(f, true, func(c *h1test.Case) { f.Add(c.In, uint8(AskedBy([]byte(c.Asked)))) })
	wide := &Limits{RequestLine: 1 << 20, Head: 1 << 20, Fields: 1000, Trailers: 1 << 20}
	f.Fuzz(func(t *testing.T, in []byte, how uint8) {
		asked := Asked(how % 3)
		var r, again message.Response
		var s Scan
		n, err := ParseResponse(bytes.Clone(in), &s, &r, asked, limits)
		if err != nil || n == 0 {
			return
		}
		out := AppendResponse(nil, &r, asked, ResponseFraming(&r, 1), Stay)
		s = Scan{}
		m, err := ParseResponse(bytes.Clone(out), &s, &again, asked, wide)
		if err != nil || m != len(out) || again.Status != r.Status || again.HasBody != r.HasBody || again.Length != r.Length || len(again.Fields) != len(r.Fields) {
			t.Fatalf("%q was written as %q: %v", in, out, err)
		}
	})
}

func FuzzChunked(f *testing.F) {
	for _, tt := range chunked {
		f.Add([]byte(tt.in), 3)
	}
	f.Fuzz(func(t *testing.T, in []byte, step int) {
		if step < 1 || step > 1<<20 {
			step = 1
		}
		data, trailers, rest, err := decode(string(in), message.Unknown, len(in)+1)
		data2, trailers2, rest2, err2 := decode(string(in), message.Unknown, step)
		if (err == nil) != (err2 == nil) || err == nil && (data != data2 || trailers != trailers2 || rest != rest2) {
			t.Fatalf("by %d: %q %q %q %v, at once: %q %q %q %v", step, data2, trailers2, rest2, err2, data, trailers, rest, err)
		}
	})
}

// A trailer section is read as a header section would be, without what may not be in it; and never grows.
func FuzzTrailers(f *testing.F) {
	seeds(f, false, func(c *h1test.Case) {
		if _, section, ok := strings.Cut(string(c.In), "\r\n0\r\n"); ok {
			f.Add(section)
		}
	})
	f.Fuzz(func(t *testing.T, section string) {
		var d Body
		d.Reset(message.Unknown, false, limits)
		if _, _, err := d.Next([]byte("0\r\n" + section)); err != nil || !d.Done() {
			return
		}
		total := 0
		for _, f := range d.Trailers() {
			if !message.IsLowerToken(f.Name) || !message.IsValue(f.Value) || message.ForbiddenTrailer(f.Name) {
				t.Fatalf("%q has trailer %q: %q", section, f.Name, f.Value)
			}
			total += len(f.Name) + len(f.Value)
		}
		if total > limits.Trailers || len(d.Trailers()) > limits.Fields {
			t.Fatalf("%q is %d bytes in %d trailers", section, total, len(d.Trailers()))
		}
		m, err := h1test.ReadAll("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"+string(AppendLastChunk(nil, d.Trailers())), "GET", false)
		if err != nil || len(m) != 1 || len(m[0].Tail) != len(d.Trailers()) {
			t.Fatalf("%q was written as something else: %v", section, err)
		}
	})
}

package main

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2stream is one request of an HTTP/2 client that writes whatever it is told to.
type h2stream struct {
	fields   [][2]string
	data     []string
	trailers [][2]string
}

// http2 makes HTTP/2 requests: good ones, and such that would be two requests, or another one, when written as HTTP/1.
func (g *generator) http2(b *blob) {
	b.kind = "HTTP/2"
	for k := range 1 + g.IntN(3) {
		t := g.target(k)
		method := pick(g, "GET", "POST", "POST", "PUT", "HEAD")
		s := h2stream{fields: [][2]string{{":method", method}, {":scheme", "http"}, {":path", t + pick(g, "", "", "?a=b", "/%20")}, {":authority", "garden"}, {"x-a", "1"}, {"cookie", "a=1"}, {"cookie", "b=2"}}}
		if method == "POST" || method == "PUT" {
			body := g.body()
			for len(body) > 0 {
				n := min(len(body), 1+g.IntN(8000))
				s.data = append(s.data, body[:n])
				body = body[n:]
			}
			if g.chance(30) {
				s.fields = append(s.fields, [2]string{"content-length", fmt.Sprint(len(strings.Join(s.data, "")))})
			}
			if g.chance(20) {
				s.trailers = [][2]string{{"x-trailer", "t"}}
			}
		}
		if g.chance(60) {
			b.kind = "odd HTTP/2"
			g.odd(&s, t)
		}
		b.h2 = append(b.h2, s)
	}
}

func (g *generator) odd(s *h2stream, t string) {
	inner := " HTTP/1.1\r\nHost: garden\r\n\r\nGET /" + g.id + "/smuggled HTTP/1.1\r\nHost: garden\r\n\r\n"
	set := func(name, value string) {
		for i := range s.fields {
			if s.fields[i][0] == name {
				s.fields[i][1] = value
			}
		}
	}
	switch g.IntN(5) {
	case 0:
		set(":path", pick(g, "", "*", t+" HTTP/1.1", t+inner, t+"\r\n", t+"\x00", t+"#f", t+" ", " "+t, "x"+t, "http://garden"+t, t+"/../x", t+"\t", t+"\x80", "//garden"+t, t+"?a b"))
	case 1:
		set(":method", pick(g, "GET "+t+inner, "", "get", "G T", "GET\r\n", "CONNECT", "TRACE", "G\x00T", "PRI", "M-SEARCH"))
	case 2:
		set(":authority", pick(g, "", "garden\r\nX: y", "a b", "garden@evil", "garden/x", "evil", "garden:99999", "gar\x00den"))
	case 3:
		s.fields = append(s.fields, pick(g, [2]string{"transfer-encoding", "chunked"}, [2]string{"connection", "close"}, [2]string{"content-length", "5"}, [2]string{"content-length", "0"},
			[2]string{"content-length", "+1"}, [2]string{"content-length", "1, 1"}, [2]string{"host", "evil"}, [2]string{"host", "garden"}, [2]string{"te", "gzip"}, [2]string{"te", "trailers"}, [2]string{"upgrade", "h2c"},
			[2]string{"keep-alive", "1"}, [2]string{"proxy-connection", "x"}, [2]string{"X-Upper", "1"}, [2]string{"x-crlf", "a\r\nb: c"}, [2]string{"x-lf", "a\nb: c"}, [2]string{"x-nul", "a\x00b"},
			[2]string{"x-a\r\nb", "c"}, [2]string{"x a", "c"}, [2]string{"", "v"}, [2]string{":path", "/x"}, [2]string{":unknown", "1"}, [2]string{"x-space", " a "}, [2]string{"x:y", "z"}, [2]string{"x-long", strings.Repeat("v", 20000)}, [2]string{"expect", "100-continue"}, [2]string{"cookie", "a\x00"}))
	default:
		s.trailers = [][2]string{pick(g, [2]string{"content-length", "9"}, [2]string{"transfer-encoding", "chunked"}, [2]string{":path", "/x"}, [2]string{"X-Upper", "1"}, [2]string{"x-crlf", "a\r\n\r\nGET / HTTP/1.1"}, [2]string{"host", "evil"}, [2]string{"x", "\x00"})}
	}
}

func (b *blob) sendHTTP2(addr string) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.got = []byte(err.Error())
		return
	}
	defer func() { _ = c.Close() }()
	var out bytes.Buffer
	out.WriteString(http2.ClientPreface)
	fr := http2.NewFramer(&out, c)
	fr.AllowIllegalWrites = true
	_ = fr.WriteSettings()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	header := func(id uint32, fields [][2]string, end bool) {
		block.Reset()
		for _, f := range fields {
			_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		p := block.Bytes()
		n := min(len(p), 16<<10)
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p[:n], EndStream: end, EndHeaders: n == len(p)})
		for p = p[n:]; len(p) > 0; p = p[n:] {
			n = min(len(p), 16<<10)
			_ = fr.WriteContinuation(id, n == len(p), p[:n])
		}
	}
	open := map[uint32]bool{}
	for i, s := range b.h2 {
		id := uint32(2*i + 1)
		open[id] = true
		header(id, s.fields, len(s.data) == 0 && s.trailers == nil)
		for j, d := range s.data {
			_ = fr.WriteData(id, j == len(s.data)-1 && s.trailers == nil, []byte(d))
		}
		if s.trailers != nil {
			header(id, s.trailers, true)
		}
	}
	go func() { _, _ = c.Write(out.Bytes()) }()
	var note strings.Builder
	for len(open) > 0 {
		_ = c.SetReadDeadline(time.Now().Add(2 * quiet))
		f, err := fr.ReadFrame()
		if err != nil {
			fmt.Fprintf(&note, "%v; ", err)
			break
		}
		switch f := f.(type) {
		case *http2.HeadersFrame:
			if f.StreamEnded() {
				delete(open, f.StreamID)
			}
			fmt.Fprintf(&note, "HEADERS %d; ", f.StreamID)
		case *http2.DataFrame:
			if f.StreamEnded() {
				delete(open, f.StreamID)
			}
		case *http2.RSTStreamFrame:
			delete(open, f.StreamID)
			fmt.Fprintf(&note, "RST_STREAM %d %v; ", f.StreamID, f.ErrCode)
		case *http2.GoAwayFrame:
			fmt.Fprintf(&note, "GOAWAY %v %q; ", f.ErrCode, f.DebugData())
		}
	}
	b.got = []byte(note.String())
}

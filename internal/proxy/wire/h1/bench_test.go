package h1

import (
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

// What the benchmarks read: a request of curl, one of a browser, and the answers of a small service and of a web server.
const (
	curlRequest = "GET /productpage?u=normal HTTP/1.1\r\nHost: productpage.default.svc.cluster.local:9080\r\nUser-Agent: curl/8.5.0\r\n" +
		"Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nX-Request-Id: 6a3a4c3e-3f0a-4a37-8a4d-0f5f4f2c1b9a\r\n\r\n"
	browserRequest = "GET /static/app/main.4f2a91c3.js?v=20260511 HTTP/1.1\r\nHost: shop.example.com\r\nConnection: keep-alive\r\n" +
		"sec-ch-ua: \"Chromium\";v=\"124\", \"Not-A.Brand\";v=\"99\"\r\nsec-ch-ua-mobile: ?0\r\n" +
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36\r\n" +
		"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\nSec-Fetch-Site: same-origin\r\n" +
		"Sec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: script\r\nReferer: https://shop.example.com/cart\r\n" +
		"Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en-US,en;q=0.9\r\nCookie: session=5f1c7e0a9b; theme=dark; consent=1\r\n\r\n"
	smallResponse = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 27\r\nDate: Mon, 11 May 2026 10:00:00 GMT\r\n\r\n"
	nginxResponse = "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 11 May 2026 10:00:00 GMT\r\nContent-Type: text/html\r\nContent-Length: 1024\r\n" +
		"Last-Modified: Sun, 10 May 2026 09:00:00 GMT\r\nConnection: keep-alive\r\nETag: \"6820b1a0-400\"\r\nAccept-Ranges: bytes\r\n\r\n"
)

// Nothing of an ordinary message is allocated, neither reading nor writing it.
func TestNoAllocations(t *testing.T) {
	var r message.Request
	var resp message.Response
	var body Body
	chunk := AppendLastChunk(AppendChunk(nil, []byte("data")), nil)
	in, out := make([]byte, 4096), make([]byte, 0, 4096)
	exchange := func() {
		var s Scan
		n, err := ParseRequest(in[:copy(in, browserRequest)], &s, &r, limits)
		if n != len(browserRequest) || err != nil {
			t.Fatal(n, err)
		}
		out = AppendRequest(out[:0], &r)
		s = Scan{}
		if n, err = ParseResponse(in[:copy(in, nginxResponse)], &s, &resp, AskedOther, limits); n != len(nginxResponse) || err != nil {
			t.Fatal(n, err)
		}
		out = AppendResponse(out[:0], &resp, AskedOther, ResponseFraming(&resp, 1), Stay)
		body.Reset(message.Unknown, false, limits)
		for at := 0; !body.Done(); at += n {
			if _, n, err = body.Next(chunk[at:]); err != nil {
				t.Fatal(err)
			}
		}
	}
	exchange() // makes room for the fields
	if n := testing.AllocsPerRun(100, exchange); n != 0 {
		t.Errorf("%v allocations for an exchange", n)
	}
}

func BenchmarkParseRequest(b *testing.B) {
	for name, head := range map[string]string{"curl": curlRequest, "browser": browserRequest} {
		b.Run(name, func(b *testing.B) {
			in, buf := []byte(head), make([]byte, len(head))
			var r message.Request
			b.ReportAllocs()
			b.SetBytes(int64(len(in)))
			for b.Loop() {
				copy(buf, in)
				var s Scan
				if n, err := ParseRequest(buf, &s, &r, limits); n == 0 || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}

func BenchmarkParseResponse(b *testing.B) {
	for name, head := range map[string]string{"small": smallResponse, "nginx": nginxResponse} {
		b.Run(name, func(b *testing.B) {
			in, buf := []byte(head), make([]byte, len(head))
			var r message.Response
			b.ReportAllocs()
			b.SetBytes(int64(len(in)))
			for b.Loop() {
				copy(buf, in)
				var s Scan
				if n, err := ParseResponse(buf, &s, &r, AskedOther, limits); n == 0 || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}

func BenchmarkAppendRequest(b *testing.B) {
	for name, head := range map[string]string{"curl": curlRequest, "browser": browserRequest} {
		b.Run(name, func(b *testing.B) {
			var r message.Request
			var s Scan
			if n, err := ParseRequest([]byte(head), &s, &r, limits); n == 0 || err != nil {
				b.Fatal(n, err)
			}
			out := make([]byte, 0, 4096)
			b.ReportAllocs()
			for b.Loop() {
				out = AppendRequest(out[:0], &r)
			}
		})
	}
}

func BenchmarkAppendResponse(b *testing.B) {
	for name, head := range map[string]string{"small": smallResponse, "nginx": nginxResponse} {
		b.Run(name, func(b *testing.B) {
			var r message.Response
			var s Scan
			if n, err := ParseResponse([]byte(head), &s, &r, AskedOther, limits); n == 0 || err != nil {
				b.Fatal(n, err)
			}
			out := make([]byte, 0, 4096)
			b.ReportAllocs()
			for b.Loop() {
				out = AppendResponse(out[:0], &r, AskedOther, Delimited, Stay)
			}
		})
	}
}

func BenchmarkChunked(b *testing.B) {
	var in []byte
	for _, n := range []int{1, 20, 300, 4096} {
		in = AppendChunk(in, []byte(strings.Repeat("x", n)))
	}
	in = AppendLastChunk(in, nil)
	var d Body
	b.ReportAllocs()
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		d.Reset(message.Unknown, false, limits)
		for at := 0; !d.Done(); {
			_, n, err := d.Next(in[at:])
			if err != nil {
				b.Fatal(err)
			}
			at += n
		}
	}
}

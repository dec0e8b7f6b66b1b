package h1

import (
	"fmt"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

var limits = &Limits{RequestLine: 2048, Head: 8192, Fields: 20, Trailers: 1024}

// describe spells what a request became, in one line.
func describe(r *message.Request) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s://%s|%s:%d %s", r.Method, r.Scheme, r.Authority, r.Host, r.Port, r.Path)
	if r.HasQuery {
		fmt.Fprintf(&b, "?%s", r.Query)
	}
	fmt.Fprintf(&b, " %d.%d len=%d", r.Major, r.Minor, r.Length)
	for _, f := range []struct {
		on   bool
		name string
	}{{r.Absolute, "absolute"}, {r.ExpectContinue, "expect"}, {r.Close, "close"}, {len(r.Upgrade) > 0, "upgrade=" + string(r.Upgrade)}} {
		if f.on {
			b.WriteString(" " + f.name)
		}
	}
	for _, f := range r.Fields {
		fmt.Fprintf(&b, " [%s=%s]", f.Name, f.Value)
	}
	return b.String()
}

const host = "Host: a\r\n"

// requests are heads and what becomes of them: a description, or an error. The numbers are rows of advisories' classes:
// framing, obfuscation, syntax, target forms, fields of one hop.
var requests = []struct {
	in   string
	want string
	err  *Error
}{
	{in: "GET / HTTP/1.1\r\n" + host + "\r\n", want: "GET http://a|a:0 / 1.1 len=0"},
	{in: "\r\nGET / HTTP/1.1\r\n" + host + "\r\n", want: "GET http://a|a:0 / 1.1 len=0"},
	{in: "\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n", err: ErrMethod},
	{in: "GET /x?y=1 HTTP/1.1\r\nHOST: A.b:80\r\nX-Y:  v \t\r\n\r\n", want: "GET http://a.b:80|a.b:80 /x?y=1 1.1 len=0 [x-y=v]"},
	{in: "GET / HTTP/1.0\r\n" + host + "\r\n", want: "GET http://a|a:0 / 1.0 len=0 close"},
	{in: "GET / HTTP/1.0\r\n" + host + "Connection: keep-alive\r\n\r\n", want: "GET http://a|a:0 / 1.0 len=0"},
	{in: "GET / HTTP/1.1\r\n" + host + "Connection: Close\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=0 close"},
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\n", want: "POST http://a|a:0 / 1.1 len=5"},
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length: 007\r\n\r\n", want: "POST http://a|a:0 / 1.1 len=7"},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: Chunked\r\n\r\n", want: "POST http://a|a:0 / 1.1 len=-1"},
	{in: "GET / HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=3"},
	{in: "m-1_x / HTTP/1.1\r\n" + host + "\r\n", want: "m-1_x http://a|a:0 / 1.1 len=0"},

	// Both lengths, and Transfer-Encoding that somebody may read otherwise.
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", err: ErrBothLengths},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", err: ErrBothLengths},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n", err: ErrBothLengths},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n", err: ErrCodingName},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: identity\r\n\r\n", err: ErrCodingName},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip\r\n\r\n", err: ErrCodingName},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n", err: ErrCoding},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked, identity\r\n\r\n", err: ErrCoding},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: identity, chunked\r\n\r\n", err: ErrCoding},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked, chunked\r\n\r\n", err: ErrCoding},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked,\r\n\r\n", err: ErrCoding},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \"chunked\"\r\n\r\n", err: ErrCoding},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked;a=b\r\n\r\n", err: ErrCoding},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\r\n\r\n", err: ErrCoding},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", err: ErrCoding},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n", err: ErrCoding},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \x0bchunked\r\n\r\n", err: ErrFieldValue},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \x0cchunked\r\n\r\n", err: ErrFieldValue},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\tchunked\r\n\r\n", want: "POST http://a|a:0 / 1.1 len=-1"},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding : chunked\r\n\r\n", err: ErrFieldName},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding\t: chunked\r\n\r\n", err: ErrFieldName},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding\x00: chunked\r\n\r\n", err: ErrFieldName},
	{in: "POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n", err: ErrCoding},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\r\n chunked\r\n\r\n", err: ErrCoding},
	{in: "POST / HTTP/1.1\r\n" + host + "Transfer_Encoding: chunked\r\nContent_Length: 5\r\n\r\n", want: "POST http://a|a:0 / 1.1 len=0 [transfer_encoding=chunked] [content_length=5]"},

	// Content-Length.
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length:\r\n\r\n", err: ErrLength},
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length: +3\r\n\r\n", err: ErrLength},
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length: -1\r\n\r\n", err: ErrLength},
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length: 0x3\r\n\r\n", err: ErrLength},
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length: 3 3\r\n\r\n", err: ErrLength},
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length: 3, 3\r\n\r\n", err: ErrLength},
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length: 3,4\r\n\r\n", err: ErrLength},
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 3\r\n\r\n", err: ErrLength},
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 4\r\n\r\n", err: ErrLength},
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length: 9223372036854775807\r\n\r\n", want: "POST http://a|a:0 / 1.1 len=9223372036854775807"},
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length: 9223372036854775808\r\n\r\n", err: ErrLength},
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length: 18446744073709551616\r\n\r\n", err: ErrLength},
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length: 18446744073709551619\r\n\r\n", err: ErrLength},
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length: 99999999999999999999999\r\n\r\n", err: ErrLength},
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length: 3_0\r\n\r\n", err: ErrLength},
	{in: "POST / HTTP/1.1\r\n" + host + "Content-Length : 3\r\n\r\n", err: ErrFieldName},

	// Line ends, folding, control bytes, names.
	{in: "GET / HTTP/1.1\n" + host + "\r\n", err: ErrLineEnd},
	{in: "GET / HTTP/1.1\r\nHost: a\n\r\n\r\n", err: ErrFieldValue},
	{in: "GET / HTTP/1.1\r\nHost: a\r\nX: b\nY: c\r\n\r\n", err: ErrFieldValue},
	{in: "GET / HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n", err: ErrFieldValue},
	{in: "GET / HTTP/1.1\rHost: a\r\n\r\n", err: ErrLineEnd},
	{in: "GET / HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n", err: ErrFieldValue},
	{in: "GET / HTTP/1.1\r\n" + host + "X: a\x01b\r\n\r\n", err: ErrFieldValue},
	{in: "GET / HTTP/1.1\r\n" + host + "X: a\x1bb\r\n\r\n", err: ErrFieldValue},
	{in: "GET / HTTP/1.1\r\n" + host + "X: a\x7fb\r\n\r\n", err: ErrFieldValue},
	{in: "GET / HTTP/1.1\r\n" + host + "X: 0123456789abcdef\x7f\r\n\r\n", err: ErrFieldValue},
	{in: "GET / HTTP/1.1\r\n" + host + "X: a\tb\xc3\xa9\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=0 [x=a\tb\xc3\xa9]"},
	{in: "GET / HTTP/1.1\r\n" + host + "X: a\r\n b\r\n\r\n", err: ErrFold},
	{in: "GET / HTTP/1.1\r\n" + host + "X: a\r\n\tb\r\n\r\n", err: ErrFold},
	{in: "GET / HTTP/1.1\r\n Host: a\r\n\r\n", err: ErrFold},
	{in: "GET / HTTP/1.1\r\n" + host + ": v\r\n\r\n", err: ErrFieldName},
	{in: "GET / HTTP/1.1\r\n" + host + "no colon\r\n\r\n", err: ErrFieldName},
	{in: "GET / HTTP/1.1\r\n" + host + "X Y: v\r\n\r\n", err: ErrFieldName},
	{in: "GET / HTTP/1.1\r\n" + host + "X(: v\r\n\r\n", err: ErrFieldName},
	{in: "GET / HTTP/1.1\r\n" + host + "\xc3\xa9: v\r\n\r\n", err: ErrFieldName},
	{in: "GET / HTTP/1.1\r\n" + host + "X\r: v\r\n\r\n", err: ErrFieldName},
	{in: "GET / HTTP/1.1\r\n" + host + strings.Repeat("n", 256) + ": v\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=0 [" + strings.Repeat("n", 256) + "=v]"},
	{in: "GET / HTTP/1.1\r\n" + host + "X:\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=0 [x=]"},
	{in: "GET / HTTP/1.1\r\n" + host + strings.Repeat("a: b\r\n", 20) + "\r\n", err: ErrManyFields},

	// Request line.
	{in: "GET  / HTTP/1.1\r\n" + host + "\r\n", err: ErrRequestLine},
	{in: "GET /  HTTP/1.1\r\n" + host + "\r\n", err: ErrRequestLine},
	{in: "GET / HTTP/1.1 \r\n" + host + "\r\n", err: ErrRequestLine},
	{in: " GET / HTTP/1.1\r\n" + host + "\r\n", err: ErrMethod},
	{in: "GET\t/ HTTP/1.1\r\n" + host + "\r\n", err: ErrMethod},
	{in: "GET\x0b/ HTTP/1.1\r\n" + host + "\r\n", err: ErrMethod},
	{in: "GET /\tHTTP/1.1\r\n" + host + "\r\n", err: ErrRequestLine},
	{in: "GET / x HTTP/1.1\r\n" + host + "\r\n", err: ErrRequestLine},
	{in: "G(T / HTTP/1.1\r\n" + host + "\r\n", err: ErrMethod},
	{in: "GET / HTTP/1.2\r\n" + host + "\r\n", err: ErrVersion},
	{in: "GET / HTTP/9.9\r\n" + host + "\r\n", err: ErrVersion},
	{in: "GET / HTTP/2.0\r\n" + host + "\r\n", err: ErrVersion},
	{in: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", err: ErrVersion},
	{in: "GET / http/1.1\r\n" + host + "\r\n", err: ErrRequestLine},
	{in: "GET / HTTP/1.10\r\n" + host + "\r\n", err: ErrRequestLine},
	{in: "GET / HTTP/11\r\n" + host + "\r\n", err: ErrRequestLine},
	{in: "GET / HTTPS/1.1\r\n" + host + "\r\n", err: ErrRequestLine},
	{in: "GET /\r\n" + host + "\r\n", err: ErrRequestLine},
	{in: "GET\r\n" + host + "\r\n", err: ErrMethod},
	{in: "/ HTTP/1.1\r\n" + host + "\r\n", err: ErrMethod},
	{in: "GET /" + strings.Repeat("x", 2100) + " HTTP/1.1\r\n" + host + "\r\n", err: ErrLineTooLong},
	{in: "GET / HTTP/1.1\r\n" + host + "X: " + strings.Repeat("x", 9000) + "\r\n\r\n", err: ErrHeadTooLarge},

	// Host.
	{in: "GET / HTTP/1.1\r\n\r\n", err: ErrNoHost},
	{in: "GET / HTTP/1.0\r\n\r\n", err: ErrNoHost},
	{in: "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", err: ErrHosts},
	{in: "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", err: ErrHosts},
	{in: "GET / HTTP/1.1\r\nHost:\r\n\r\n", err: ErrHost},
	{in: "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", err: ErrHost},
	{in: "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", err: ErrHost},
	{in: "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", err: ErrHost},
	{in: "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", err: ErrHost},
	{in: "GET / HTTP/1.1\r\nHost: a:0443\r\n\r\n", err: ErrHost},
	{in: "GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n", err: ErrHost},
	{in: "GET / HTTP/1.1\r\nHost: a:x\r\n\r\n", err: ErrHost},
	{in: "GET / HTTP/1.1\r\nHost: a..b\r\n\r\n", err: ErrHost},
	{in: "GET / HTTP/1.1\r\nHost: SeCrEt.com.\r\n\r\n", want: "GET http://secret.com|secret.com:0 / 1.1 len=0"},
	{in: "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", want: "GET http://[::1]:80|::1:80 / 1.1 len=0"},
	{in: "GET / HTTP/1.1\r\nHost : a\r\n\r\n", err: ErrFieldName},

	// Targets.
	{in: "GET /a/../b HTTP/1.1\r\n" + host + "\r\n", want: "GET http://a|a:0 /b 1.1 len=0"},
	{in: "GET /%2e%2e/%61 HTTP/1.1\r\n" + host + "\r\n", want: "GET http://a|a:0 /a 1.1 len=0"},
	{in: "GET /a\\b HTTP/1.1\r\n" + host + "\r\n", want: "GET http://a|a:0 /a/b 1.1 len=0"},
	{in: "GET \\a HTTP/1.1\r\n" + host + "\r\n", err: ErrTarget},
	{in: "GET a HTTP/1.1\r\n" + host + "\r\n", err: ErrTarget},
	{in: "GET pkg.Svc/Method HTTP/1.1\r\n" + host + "\r\n", err: ErrTarget},
	{in: "GET /a#b HTTP/1.1\r\n" + host + "\r\n", err: ErrTarget},
	{in: "GET /a%00 HTTP/1.1\r\n" + host + "\r\n", err: ErrTarget},
	{in: "GET /a%zz HTTP/1.1\r\n" + host + "\r\n", err: ErrTarget},
	{in: "GET /a\x01 HTTP/1.1\r\n" + host + "\r\n", err: ErrTarget},
	{in: "GET /a\x00 HTTP/1.1\r\n" + host + "\r\n", err: ErrTarget},
	{in: "GET /a?b#c HTTP/1.1\r\n" + host + "\r\n", err: ErrTarget},
	{in: "GET ?a HTTP/1.1\r\n" + host + "\r\n", err: ErrTarget},
	{in: "GET * HTTP/1.1\r\n" + host + "\r\n", err: ErrTarget},
	{in: "OPTIONS * HTTP/1.1\r\n" + host + "\r\n", want: "OPTIONS http://a|a:0 * 1.1 len=0"},
	{in: "GET http://B.c:81/x?y HTTP/1.1\r\n" + host + "\r\n", want: "GET http://b.c:81|b.c:81 /x?y 1.1 len=0 absolute"},
	{in: "GET http://b HTTP/1.1\r\n" + host + "\r\n", want: "GET http://b|b:0 / 1.1 len=0 absolute"},
	{in: "GET http://b?q HTTP/1.1\r\n" + host + "\r\n", want: "GET http://b|b:0 /?q 1.1 len=0 absolute"},
	{in: "GET HTTPS://b/ HTTP/1.1\r\n" + host + "\r\n", want: "GET https://b|b:0 / 1.1 len=0 absolute"},
	{in: "OPTIONS http://b HTTP/1.1\r\n" + host + "\r\n", want: "OPTIONS http://b|b:0 * 1.1 len=0 absolute"},
	{in: "GET http://u@b/ HTTP/1.1\r\n" + host + "\r\n", err: ErrTarget},
	{in: "GET http:/// HTTP/1.1\r\n" + host + "\r\n", err: ErrTarget},
	{in: "GET ftp://b/ HTTP/1.1\r\n" + host + "\r\n", err: ErrTarget},
	{in: "GET http://b/ HTTP/1.1\r\n\r\n", err: ErrNoHost},
	{in: "GET http://b/ HTTP/1.1\r\nHost: b/c\r\n\r\n", err: ErrHost},
	{in: "CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n", want: "CONNECT http://b:443|b:443  1.1 len=0"},
	{in: "CONNECT b HTTP/1.1\r\nHost: b\r\n\r\n", err: ErrTarget},
	{in: "CONNECT /b HTTP/1.1\r\nHost: b\r\n\r\n", err: ErrTarget},
	{in: "CONNECT b:443 HTTP/1.1\r\nHost: b\r\nContent-Length: 5\r\n\r\n", err: ErrConnectBody},
	{in: "CONNECT b:443 HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n", err: ErrConnectBody},

	// Fields of one hop.
	{in: "GET / HTTP/1.1\r\n" + host + "Connection: X-Secret\r\nX-Secret: 1\r\nX-Other: 2\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=0 [x-other=2]"},
	{in: "GET / HTTP/1.1\r\n" + host + "X-Secret: 1\r\nConnection: close, x-secret\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=0 close"},
	{in: "GET / HTTP/1.1\r\n" + host + "Connection: Host, Authorization, Cookie\r\nAuthorization: x\r\nCookie: y\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=0 [authorization=x] [cookie=y]"},
	{in: "POST / HTTP/1.1\r\n" + host + "Connection: Content-Length\r\nContent-Length: 4\r\n\r\n", want: "POST http://a|a:0 / 1.1 len=4"},
	{in: "GET / HTTP/1.1\r\n" + host + "connection: x-forwarded-for, X-Real-Ip\r\nX-Forwarded-For: 1\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=0 [x-forwarded-for=1]"},
	{in: "GET / HTTP/1.1\r\n" + host + "Connection: :path\r\n\r\n", err: ErrConnection},
	{in: "GET / HTTP/1.1\r\n" + host + "Connection: " + strings.Repeat("x,", 20) + "\r\n\r\n", err: ErrConnection},
	{in: "GET / HTTP/1.1\r\n" + host + strings.Repeat("Connection: close\r\n", 5) + "\r\n", err: ErrConnection},
	{in: "GET / HTTP/1.1\r\n" + host + "Keep-Alive: 5\r\nProxy-Connection: x\r\nHTTP2-Settings: y\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=0"},
	{in: "GET / HTTP/1.1\r\n" + host + "TE: trailers, gzip\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=0 [te=trailers]"},
	{in: "GET / HTTP/1.1\r\n" + host + "TE: gzip\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=0"},
	{in: "GET / HTTP/1.1\r\n" + host + "Connection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=0 upgrade=websocket"},
	{in: "GET / HTTP/1.1\r\n" + host + "Upgrade: websocket\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=0"},
	{in: "GET / HTTP/1.1\r\n" + host + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=0"},
	{in: "GET / HTTP/1.1\r\n" + host + "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=0"},
	{in: "GET / HTTP/1.1\r\n" + host + "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: x\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=0"},
	{in: "POST / HTTP/1.1\r\n" + host + "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\n", want: "POST http://a|a:0 / 1.1 len=3"},
	{in: "GET / HTTP/1.0\r\n" + host + "Connection: upgrade\r\nUpgrade: websocket\r\n\r\n", want: "GET http://a|a:0 / 1.0 len=0 close"},
	{in: "POST / HTTP/1.1\r\n" + host + "Expect: 100-Continue\r\nContent-Length: 3\r\n\r\n", want: "POST http://a|a:0 / 1.1 len=3 expect"},
	{in: "POST / HTTP/1.0\r\n" + host + "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n", want: "POST http://a|a:0 / 1.0 len=3 close"},
	{in: "GET / HTTP/1.1\r\n" + host + "Expect: 100-continue\r\n\r\n", want: "GET http://a|a:0 / 1.1 len=0"},
	{in: "POST / HTTP/1.1\r\n" + host + "Expect: x\r\nContent-Length: 3\r\n\r\n", err: ErrExpect},
}

func TestParseRequest(t *testing.T) {
	for _, tt := range requests {
		var r message.Request
		b := []byte(tt.in + "next")
		var s Scan
		n, err := ParseRequest(b, &s, &r, limits)
		checkRequest(t, tt.in, n, err, &r, tt.want, tt.err)
	}
}

// However the bytes come, the outcome is the same.
func TestParseRequestSplit(t *testing.T) {
	for _, tt := range requests {
		for _, step := range []int{1, 7} {
			var r message.Request
			var s Scan
			var n int
			var err error
			for end := 0; n == 0 && err == nil && end < len(tt.in); {
				end = min(end+step, len(tt.in))
				n, err = ParseRequest([]byte(tt.in[:end]), &s, &r, limits)
			}
			if tt.err != nil && err != nil {
				continue // a part of a bad head may show another fault first
			}
			checkRequest(t, tt.in, n, err, &r, tt.want, tt.err)
		}
	}
}

func checkRequest(t *testing.T, in string, n int, err error, r *message.Request, want string, wantErr *Error) {
	t.Helper()
	if len(in) > 200 {
		in = in[:200]
	}
	if wantErr != nil {
		if err != wantErr {
			// A head that is too large, or ends its lines badly, may be refused for more than one reason.
			if e, ok := err.(*Error); !ok || e.Status/100 != 4 && e.Status != 505 || wantErr != ErrLineEnd && wantErr != ErrFieldValue && wantErr != ErrMethod {
				t.Errorf("%q: error %v, want %v", in, err, wantErr)
			}
		}
		return
	}
	if err != nil || n == 0 {
		t.Errorf("%q: n %d, error %v", in, n, err)
		return
	}
	if got := describe(r); got != want {
		t.Errorf("%q:\n got %s\nwant %s", in, got, want)
	}
}

func TestParseResponse(t *testing.T) {
	tests := []struct {
		in    string
		asked Asked
		want  string // status, length, flags
		err   *Error
	}{
		{in: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", want: "200 len=5 body"},
		{in: "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", want: "200 len=0"},
		{in: "HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n", want: "200 len=-1 body"},
		{in: "HTTP/1.1 200 OK\r\n\r\n", want: "200 len=-1 body untilclose close"},
		{in: "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", want: "200 len=1 body close"},
		{in: "HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n", want: "200 len=1 body"},
		{in: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", asked: AskedHead, want: "200 len=5"},
		{in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", asked: AskedHead, want: "200 len=-1"},
		{in: "HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\n", want: "304 len=5"},
		{in: "HTTP/1.1 204 x\r\nContent-Length: 5\r\n\r\n", want: "204 len=0"},
		{in: "HTTP/1.1 100 Continue\r\n\r\n", want: "100 len=0"},
		{in: "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", want: "103 len=0"},
		{in: "HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n\r\n", want: "101 len=0 upgrade=websocket"},
		{in: "HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n", err: ErrUpgrade},
		{in: "HTTP/1.1 101 x\r\n\r\n", err: ErrUpgrade},
		{in: "HTTP/1.1 200 OK\r\n\r\n", asked: AskedConnect, want: "200 len=0"},
		{in: "HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\n", asked: AskedConnect, want: "403 len=2 body"},
		{in: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", err: ErrBothLengths},
		{in: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", err: ErrLength},
		{in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", err: ErrCoding},
		{in: "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", err: ErrBothLengths},
		{in: "HTTP/1.1 200 OK\r\nX : y\r\n\r\n", err: ErrFieldName},
		{in: "HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n", err: ErrFold},
		{in: "HTTP/1.1 099 x\r\n\r\n", err: ErrStatusLine},
		{in: "HTTP/1.1 600 x\r\n\r\n", err: ErrStatusLine},
		{in: "HTTP/1.1 2000 x\r\n\r\n", err: ErrStatusLine},
		{in: "HTTP/1.1 20 x\r\n\r\n", err: ErrStatusLine},
		{in: "HTTP/1.1  200 x\r\n\r\n", err: ErrStatusLine},
		{in: "HTTP/2.0 200 x\r\n\r\n", err: ErrStatusLine},
		{in: "HTTP/1.1 200 a\x00b\r\n\r\n", err: ErrStatusLine},
		{in: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n", want: "200 len=2 body close"},
	}
	for _, tt := range tests {
		var r message.Response
		var s Scan
		n, err := ParseResponse([]byte(tt.in+"x"), &s, &r, tt.asked, limits)
		if tt.err != nil {
			if err != tt.err {
				t.Errorf("%q: error %v, want %v", tt.in, err, tt.err)
			}
			continue
		}
		got := fmt.Sprintf("%d len=%d", r.Status, r.Length)
		for _, f := range []struct {
			on   bool
			name string
		}{{r.HasBody, "body"}, {r.UntilClose, "untilclose"}, {r.Close, "close"}, {len(r.Upgrade) > 0, "upgrade=" + string(r.Upgrade)}} {
			if f.on {
				got += " " + f.name
			}
		}
		if err != nil || n != len(tt.in) || got != tt.want {
			t.Errorf("%q: n %d %s error %v, want %s", tt.in, n, got, err, tt.want)
		}
	}
}

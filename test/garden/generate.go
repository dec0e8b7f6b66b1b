package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"
)

// blob is what one client connection says: usually several requests, one behind the other, the last of which ends the
// connection.
type blob struct {
	id   string // in every target, to know them again
	kind string
	h2   []h2stream
	raw  []byte
	cuts []int // the bytes are written in pieces that end here
	want []want

	got []byte // what came back
}

// want is a request that has only one meaning.
type want struct {
	method, target string // target "" is not looked at
	body           string
}

// quiet is how long a client waits for a proxy that waits for it: for a body that does not come, for example.
const quiet = 250 * time.Millisecond

type generator struct {
	*rand.Rand
	id string
}

func pick[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

// generate makes the messages for one origin; the same seed makes the same ones.
func generate(seed uint64, n int, origin string) []*blob {
	blobs := make([]*blob, n)
	for i := range blobs {
		g := &generator{Rand: rand.New(rand.NewPCG(seed, uint64(i))), id: fmt.Sprintf("%s-q%06dq%08x", origin, i, seal(seed, i))}
		b := &blob{id: g.id}
		switch p := g.IntN(100); {
		case p < 30:
			g.valid(b)
		case p < 55:
			g.malformed(b)
		case p < 85:
			g.mutated(b)
		default:
			g.http2(b)
		}
		if g.chance(25) && len(b.raw) > 2 {
			for range 1 + g.IntN(4) {
				b.cuts = append(b.cuts, 1+g.IntN(len(b.raw)-1))
			}
		}
		blobs[i] = b
	}
	return blobs
}

// seal makes it unlikely that a mutation turns the name of one message into that of another.
func seal(seed uint64, i int) uint32 {
	return uint32((seed + uint64(i) + 1) * 0x9e3779b97f4a7c15 >> 32)
}

func (g *generator) target(k int) string {
	return fmt.Sprintf("/%s/%d", g.id, k)
}

// end is the request that ends a connection. That it is answered shows that both sides agree where it begins.
func (g *generator) end() string {
	return "GET /" + g.id + "/end HTTP/1.1\r\nHost: garden\r\nConnection: close\r\n\r\n"
}

// valid makes requests that are odd, but leave no doubt.
func (g *generator) valid(b *blob) {
	b.kind = "valid"
	var s strings.Builder
	for k := range 1 + g.IntN(4) {
		raw, w := g.request(k)
		s.WriteString(raw)
		b.want = append(b.want, w)
	}
	s.WriteString(g.end())
	b.want = append(b.want, want{method: "GET"})
	b.raw = []byte(s.String())
}

func (g *generator) request(k int) (string, want) {
	method := pick(g, "GET", "GET", "GET", "POST", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")
	target := g.target(k) + pick(g, "", "", "", "?a=b", "?a=b?c=d", "?", ";p=1", "/%7Eu", "/a%2Fb", "/a/b/", "?q=%00", "?x=%0d%0aX:1", "/~!$&'()*+,;=:@-._", "?"+strings.Repeat("k=v&", 300))
	form := target
	if g.chance(5) {
		form = "http://garden" + target
	}
	var h strings.Builder
	if g.chance(5) {
		h.WriteString("\r\n") // RFC 9112 section 2.2: at least one is ignored
	}
	fmt.Fprintf(&h, "%s %s HTTP/1.1\r\n", method, form)
	fields := []string{pick(g, "Host: garden", "host: garden", "HOST:garden", "Host: \t garden \t")}
	odd := []string{"X-Empty:", "X-Spaces:  \t a \t b \t ", "X-Obs: \xe9\xff", "X-Dup: 1\r\nX-Dup: 2", "Cookie: a=1\r\nCookie: b=2", "x-!#$%&'*+-.^_`|~: t",
		"X-Long: " + strings.Repeat("v", 3000), "X-Colon: a:b::c", "Connection: x-hop\r\nX-Hop: dropped", "TE: trailers\r\nConnection: TE", "Accept-Encoding: gzip, deflate",
		"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", "Via: 1.0 x", "Forwarded: for=_x", "Proxy-Connection: keep-alive", "Keep-Alive: timeout=5", "Max-Forwards: 3", "Range: bytes=0-0", "Content-Type: text/plain"}
	for range g.IntN(5) {
		fields = append(fields, odd[g.IntN(len(odd))])
	}
	body, payload := "", ""
	if method == "POST" || method == "PUT" || method == "PATCH" || g.chance(5) && method != "HEAD" {
		payload = g.body()
		if g.chance(50) {
			fields = append(fields, pick(g, "Content-Length: ", "content-length:", "CONTENT-LENGTH: \t")+fmt.Sprint(len(payload))+pick(g, "", "", " "))
			body = payload
		} else {
			fields = append(fields, pick(g, "Transfer-Encoding: chunked", "transfer-encoding:chunked", "Transfer-Encoding: Chunked", "Transfer-Encoding: chunked \t"))
			body = g.chunked(payload)
		}
		if g.chance(10) {
			fields = append(fields, "Expect: 100-continue")
		}
	}
	g.Shuffle(len(fields), func(i, j int) { fields[i], fields[j] = fields[j], fields[i] })
	h.WriteString(strings.Join(fields, "\r\n") + "\r\n\r\n" + body)
	if strings.Contains(target, "%7E") {
		target = "" // the same as ~ (RFC 3986 section 6.2.2.2), and written so
	}
	return h.String(), want{method: method, target: target, body: payload}
}

func (g *generator) body() string {
	switch g.IntN(6) {
	case 0:
		return ""
	case 1:
		return "GET /" + g.id + "/inner HTTP/1.1\r\nHost: garden\r\n\r\n" // looks like a request and is none
	case 2:
		return "0\r\n\r\n"
	case 3:
		return strings.Repeat("z", g.IntN(20000))
	}
	b := make([]byte, g.IntN(200))
	for i := range b {
		b[i] = byte(g.IntN(256))
	}
	return string(b)
}

// chunked frames a body in chunks, as oddly as RFC 9112 section 7.1 allows.
func (g *generator) chunked(p string) string {
	var s strings.Builder
	for len(p) > 0 {
		n := 1 + g.IntN(len(p))
		size := fmt.Sprintf(pick(g, "%x", "%X", "0%x", "000%x"), n)
		s.WriteString(size + pick(g, "", "", "", ";e", ";e=v", ";e=\"v\"", " ;e = v") + "\r\n" + p[:n] + "\r\n")
		p = p[n:]
	}
	s.WriteString(pick(g, "0", "0", "00", "0;last") + "\r\n" + pick(g, "", "", "", "X-Trailer: t\r\n", "X-A: 1\r\nX-B: 2\r\n") + "\r\n")
	return s.String()
}

// lengths and codings are the values that a body's framing hangs on. %d is the right length.
var lengths = []string{"+%d", "-%d", "0%d", "0x%x", "%d ", "%d,%d", "%d, %d", "%d,", ",%d", "%d;", "%d.0", "1e1", "%d\x00", "%d\x0b", "\"%d\"", "18446744073709551616", "9223372036854775808", "4294967296", "", "%d_0", " ", "%d 0", "%d\t\t", "\xb2"}

var codings = []string{"chunked, identity", "identity", "identity, chunked", "chunked, chunked", "xchunked", "chunkedx", "\x0bchunked", "chunked\x0b", "chunked\x00", "\"chunked\"", "chunked;q=1", "chunked;", "gzip, chunked", "chunked, gzip", "", ",", "chunked,", ",chunked", "cow", "\x00chunked", "CHUNKED", "chun ked", "chunked\r\n ", "chunked\r\n\tfoo", "c\xe2\x84\xaahunked", "chunKed"}

// malformed makes one message that breaks a rule, most of them with a second request inside of what some reader may take
// for a body, and others for the next request.
func (g *generator) malformed(b *blob) {
	t := g.target(0)
	inner := "GET /" + g.id + "/smuggled HTTP/1.1\r\nHost: garden\r\n\r\n"
	post := "POST " + t + " HTTP/1.1\r\nHost: garden\r\n"
	chunks := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(inner), inner)
	length := func(f string) string {
		n := strings.Count(f, "%")
		args := make([]any, n)
		for i := range args {
			args[i] = len(inner)
		}
		return fmt.Sprintf(f, args...)
	}
	eol := pick(g, "\n", "\r", "\r\r\n", "\n\r\n", "\x00\r\n", "\x0b\r\n", " \r\n", "\t\r\n")
	type form struct{ kind, text string }
	forms := []form{
		{"content-length", post + "Content-Length: " + length(lengths[g.IntN(len(lengths))]) + "\r\n\r\n" + inner},
		{"two content-lengths", post + length(pick(g, "Content-Length: %d\r\nContent-Length: 0", "Content-Length: 0\r\nContent-Length: %d", "Content-Length: %d\r\ncontent-length: %d", "Content-Length: %d\r\nContent-Length: 0%d", "Content-Length: %d\r\nContent_Length: 0")) + "\r\n\r\n" + inner},
		{"transfer-encoding", post + "Transfer-Encoding: " + codings[g.IntN(len(codings))] + "\r\n\r\n" + chunks},
		{"both", post + pick(g, fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: %s", len(chunks), pick(g, codings...)), fmt.Sprintf("Transfer-Encoding: %s\r\nContent-Length: 5", pick(g, codings...)), "Content-Length: 5\r\nTransfer-Encoding: chunked") + "\r\n\r\n" + chunks},
		{"two codings", post + "Transfer-Encoding: " + pick(g, codings...) + "\r\nTransfer-Encoding: " + pick(g, "chunked", "identity", "x") + "\r\n\r\n" + chunks},
		{"field name", post + pick(g, "Transfer-Encoding : chunked", "Transfer-Encoding\t: chunked", " Transfer-Encoding: chunked", "\tTransfer-Encoding: chunked", "Transfer_Encoding: chunked", "Transfer-Encoding\x00: chunked", "\x00Transfer-Encoding: chunked", "X: y\r\n Transfer-Encoding: chunked", "X: y\nTransfer-Encoding: chunked", "X: y\rTransfer-Encoding: chunked", "Transfer-Encoding\r\n: chunked", "Transfer-Encod\xefng: chunked", ": chunked", "Transfer-Encoding", "(Transfer-Encoding): chunked", "Transfer-Encoding:\x0cchunked", "Content-Length\x0b: 5", "Content-Length : 5") + "\r\nContent-Length: " + fmt.Sprint(len(chunks)) + "\r\n\r\n" + chunks},
		{"chunk", post + "Transfer-Encoding: chunked\r\n\r\n" + pick(g, "0x5", "+5", "-5", " 5", "5 ", "5\t", "5_", "5;\n", "5;a\nb", "5;\r", "5\r;", "5;a=\"\r\n", "g", "", "10000000000000005", "ffffffffffffffff", "00000000000000000000005", "5,", "5\x00", "5.", "\xef\xbc\x95") + pick(g, "\r\n", "\r\n", eol) + "hello" + pick(g, "\r\n", "\r\n", eol, "", "x\r\n") + "0\r\n\r\n"},
		{"last chunk", post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n" + pick(g, "0\n\n", "0\r\n\n", "0\n\r\n", "0\r\r", "0 \r\n\r\n", "0;x\n\r\n\r\n", "-0\r\n\r\n", "0\r\nContent-Length: 9\r\n\r\n", "0\r\nTransfer-Encoding: chunked\r\n\r\n", "0\r\nHost: evil\r\n\r\n", "0\r\nX : y\r\n\r\n", "0\r\nX: y\n\r\n", "0\r\n X: y\r\n\r\n", "0\r\nno colon\r\n\r\n", "0\r\nGET /"+g.id+"/smuggled HTTP/1.1\r\nHost: garden\r\n\r\n")},
		{"line end", "GET " + t + " HTTP/1.1" + eol + "Host: garden" + pick(g, eol, "\r\n") + pick(g, eol, "\r\n")},
		{"request line", pick(g, "GET  "+t+" HTTP/1.1", "GET "+t+"  HTTP/1.1", "GET\t"+t+"\tHTTP/1.1", " GET "+t+" HTTP/1.1", "GET "+t+" HTTP/1.1 ", "GET "+t, "GET "+t+" HTTP/1.2", "GET "+t+" HTTP/2.0", "GET "+t+" HTTP/0.9", "GET "+t+" HTTP/1.10", "GET "+t+" http/1.1", "GET "+t+" HTTP/ 1.1", "GET "+t+" HTTP/1,1", "GET "+t+" x HTTP/1.1", "GET "+t+"\x00 HTTP/1.1", "GET "+t+"\x80 HTTP/1.1", "GET "+t+"#f HTTP/1.1", "GET "+t+"\\x HTTP/1.1", "G\x00T "+t+" HTTP/1.1", "G(T "+t+" HTTP/1.1", "get "+t+" HTTP/1.1", "GETX "+t+" HTTP/1.1", "GET "+t+"/../x HTTP/1.1", "GET "+t+"/%2e%2e/x HTTP/1.1", "GET "+t+"//a HTTP/1.1", "GET "+t+"/%zz HTTP/1.1", "GET "+t+"/% HTTP/1.1", "GET "+t+"/a|b{c}^` HTTP/1.1", "GET "+t+"/\"<> HTTP/1.1", "GET * HTTP/1.1", "OPTIONS * HTTP/1.1", "GET garden"+t+" HTTP/1.1", "GET //garden"+t+" HTTP/1.1", "GET http://other"+t+" HTTP/1.1", "GET ftp://garden"+t+" HTTP/1.1", "GET http://garden@x"+t+" HTTP/1.1", "GET http:/"+t+" HTTP/1.1", "CONNECT garden:80 HTTP/1.1", "CONNECT "+t+" HTTP/1.1", "TRACE "+t+" HTTP/1.1", "PRI "+t+" HTTP/2.0", "M-SEARCH "+t+" HTTP/1.1", strings.Repeat("X", 300)+" "+t+" HTTP/1.1", "GET "+t+"?"+strings.Repeat("q", 20000)+" HTTP/1.1") + "\r\nHost: garden\r\n\r\n"},
		{"host", "GET " + t + " HTTP/1.1\r\n" + pick(g, "", "Host:\r\n", "Host: garden\r\nHost: garden\r\n", "Host: garden\r\nHost: evil\r\n", "Host: garden/x\r\n", "Host: garden@evil\r\n", "Host: a b\r\n", "Host: garden:99999\r\n", "Host: garden:x\r\n", "Host: garden, evil\r\n", "Host: [::1\r\n", "Host: [::1]:80\r\n", "Host: garden\x00\r\n", "Host: gar\tden\r\n", "Host : garden\r\n", "Host: GARDEN.\r\n", "Host: gar%64en\r\n", "Host: \xe9\r\n") + "\r\n"},
		{"head", "GET " + t + " HTTP/1.1\r\nHost: garden\r\n" + pick(g, "no colon\r\n", ": no name\r\n", "X: a\x00b\r\n", "X: a\rb\r\n", "X: a\nY: b\r\n", "X: a\r\n folded\r\n", "X: a\r\n\tfolded\r\n", "X:\r\n \r\n", "X\x7f: a\r\n", "X@: a\r\n", "X: \x01\r\n", "X: \x7f\r\n", strings.Repeat("X: y\r\n", 95), strings.Repeat("X: y\r\n", 150), "X: "+strings.Repeat("y", 70000)+"\r\n", strings.Repeat("x", 5000)+": y\r\n", "Connection: host\r\n", "Connection: content-length\r\nContent-Length: 3\r\n", "Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n", "Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: x\r\n", "Expect: 200-ok\r\n", "Expect: 100-continue\r\n") + "\r\n"},
		{"old", pick(g, "GET "+t+" HTTP/1.0\r\n\r\n", "GET "+t+" HTTP/1.0\r\nHost: garden\r\nConnection: keep-alive\r\n\r\n", "POST "+t+" HTTP/1.0\r\nHost: garden\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"+chunks, "POST "+t+" HTTP/1.0\r\nHost: garden\r\n\r\n"+inner, "POST "+t+" HTTP/1.0\r\nHost: garden\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello", "GET "+t+"\r\n\r\n")},
		{"body with GET", "GET " + t + " HTTP/1.1\r\nHost: garden\r\n" + pick(g, length("Content-Length: %d\r\n\r\n")+inner, "Transfer-Encoding: chunked\r\n\r\n"+chunks, "Content-Length: 0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")},
		{"body with HEAD", "HEAD " + t + " HTTP/1.1\r\nHost: garden\r\n" + pick(g, length("Content-Length: %d\r\n\r\n")+inner, "Transfer-Encoding: chunked\r\n\r\n"+chunks)},
		{"short", post + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(inner)+100000) + inner},
	}
	f := forms[g.IntN(len(forms))]
	b.kind = "malformed " + f.kind
	first := ""
	if g.chance(30) { // on a connection that is in use already
		first, _ = g.request(9)
	}
	b.raw = []byte(first + f.text + g.end())
}

// nasty is what mutations put in.
var nasty = []string{"\r", "\n", "\r\n", "\x00", " ", "\t", ":", ";", ",", "\x0b", "\x0c", "\x7f", "\x80", "\xff", "0", "1", "f", "-", "+", "_", "\r\n\r\n", "\n\n", "Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n", "HTTP/1.1", "chunked", "GET ", "\r\n ", "%", "/", "\\", "#", "?", "\""}

// mutated breaks good or bad messages at random.
func (g *generator) mutated(b *blob) {
	if g.chance(60) {
		g.valid(b)
	} else {
		g.malformed(b)
	}
	b.kind, b.want = "mutated "+b.kind, nil
	end := len(b.raw) - len(g.end())
	p := append([]byte(nil), b.raw[:end]...)
	for range 1 + g.IntN(3) {
		if len(p) < 2 {
			break
		}
		at := g.IntN(len(p))
		if g.chance(70) && at > 400 { // heads are more interesting than bodies
			at = g.IntN(400)
		}
		switch g.IntN(4) {
		case 0:
			p[at] = pick(g, nasty...)[0]
		case 1:
			p = append(p[:at], append([]byte(pick(g, nasty...)), p[at:]...)...)
		case 2:
			p = append(p[:at], p[at+1:]...)
		default: // a line twice
			lines := strings.SplitAfter(string(p), "\n")
			i := g.IntN(len(lines))
			p = []byte(strings.Join(lines[:i+1], "") + lines[i] + strings.Join(lines[i+1:], ""))
		}
	}
	b.raw = append(p, g.end()...)
}

// send says the message to the proxy and keeps what comes back, until the proxy ends the connection or says nothing more.
func (b *blob) send(addr string) {
	if b.h2 != nil {
		b.sendHTTP2(addr)
		return
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.got = []byte(err.Error())
		return
	}
	defer func() { _ = c.Close() }()
	done := make(chan struct{})
	go func() {
		defer close(done)
		at := 0
		for at < len(b.raw) {
			next := len(b.raw)
			for _, cut := range b.cuts {
				if cut > at && cut < next {
					next = cut
				}
			}
			if _, err := c.Write(b.raw[at:next]); err != nil {
				return
			}
			if at = next; at < len(b.raw) {
				time.Sleep(time.Millisecond)
			}
		}
	}()
	buf := make([]byte, 16<<10)
	wait := quiet
	if b.want != nil {
		wait = 20 * time.Second // every request has an answer, and the connection an end
	}
	for {
		_ = c.SetReadDeadline(time.Now().Add(wait))
		n, err := c.Read(buf)
		b.got = append(b.got, buf[:n]...)
		if err != nil {
			break
		}
	}
	_ = c.Close()
	<-done
}

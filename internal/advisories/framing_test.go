package advisories

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/wire/h1"
)

// hidden is a request inside of what is a body, a head or nothing at all to a careful reader. It must reach nobody.
const hidden = "GET /hidden HTTP/1.1\r\nhost: a\r\nx-id: hidden\r\n\r\n"

// smuggles are generators of request bytes that two readers could read in two ways, by row.
func smuggles() map[string][]string {
	m := map[string][]string{}
	add := func(row, format string, a ...any) { m[row] = append(m[row], fmt.Sprintf(format, a...)) }
	head := func(row, lines, body string) { add(row, "POST /one HTTP/1.1\r\nhost: a\r\n%s\r\n%s", lines, body) }
	controls := func(f func(c byte)) {
		for c := range 256 {
			if c < ' ' || c >= 0x7f {
				f(byte(c))
			}
		}
	}

	const row32 = "32 both lengths"
	for _, n := range []int{0, 1, 5, len(hidden), math.MaxInt32} {
		for _, te := range []string{"chunked", "Chunked", "identity", "x"} {
			head(row32, fmt.Sprintf("content-length: %d\r\ntransfer-encoding: %s\r\n", n, te), "0\r\n\r\n"+hidden)
			head(row32, fmt.Sprintf("transfer-encoding: %s\r\ncontent-length: %d\r\n", te, n), "0\r\n\r\n"+hidden)
		}
	}

	const row33 = "33 transfer codings"
	codings := []string{"xchunked", "chunkedx", "chunked, identity", "identity, chunked", "identity", `"chunked"`, "'chunked'", "chunked;", "chunked;a=b", "chunked,", ",chunked",
		"chunked chunked", "chun ked", "", "gzip, chunked", "chunked, gzip", "cow", "chunked\x00", "\u0131chunked", "chunk\u212Aed"}
	controls(func(c byte) {
		codings = append(codings, string(c)+"chunked", "chunked"+string(c), "chu"+string(c)+"nked")
	})
	for _, te := range codings {
		if strings.Trim(te, " \t") == "chunked" {
			continue
		}
		head(row33, "transfer-encoding: "+te+"\r\n", "0\r\n\r\n"+hidden)
		head(row33, "content-length: 5\r\ntransfer-encoding: "+te+"\r\n", "0\r\n\r\n"+hidden)
	}
	for _, name := range []string{"transfer-encoding ", "transfer-encoding\t", " transfer-encoding", "transfer\r\n-encoding", "transfer-encoding\x00", "x: y\r transfer-encoding", "x: y\ntransfer-encoding", "x: y\rtransfer-encoding"} {
		head(row33, "content-length: 5\r\n"+name+": chunked\r\n", "0\r\n\r\n"+hidden)
	}
	head(row33, "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"+hidden)
	head(row33, "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", "0\r\n\r\n"+hidden)
	add(row33, "POST /one HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n%s", hidden)

	const row34 = "34 lengths"
	for _, n := range []string{"", "+5", "-5", "0x5", "5 5", "5, 5", "5,6", "5;", "5.0", "5e0", "\u0665", "9223372036854775808", "18446744073709551615", "18446744073709551616",
		"18446744073709551621", "340282366920938463463374607431768211461", "5\x00", "5\x0b", "\x0c5", "5_0", "NaN"} {
		head(row34, "content-length: "+n+"\r\n", "hello"+hidden)
		head(row34, "content-length: 5\r\ncontent-length: "+n+"\r\n", "hello"+hidden)
		head(row34, "content-length: "+n+"\r\ncontent-length: 5\r\n", "hello"+hidden)
	}
	head(row34, "content-length: 5\r\ncontent-length: 6\r\n", "hello"+hidden)
	head(row34, "content-length : 5\r\n", "hello"+hidden)

	const row35 = "35 long names"
	for _, n := range []int{126, 127, 128, 129, 254, 255, 256, 257, 258, 512, 1023, 4096, 8191, 16384, 65535, 65536} {
		name := strings.Repeat("n", n)
		head(row35, name+": v\r\ncontent-length: 5\r\n", "hello")
		head(row35, "content-length: 5\r\n"+name+"content-length: 0\r\n", "hello")
		head(row35, name+": v\r\n"+name+"transfer-encoding: chunked\r\ncontent-length: 5\r\n", "hello")
	}

	const row36 = "36 empty names"
	for _, line := range []string{": v", ":v", " : v", "\t: v", ":", "\x00: v", "no colon", ":a: b"} {
		head(row36, line+"\r\ncontent-length: 5\r\n", "hello"+hidden)
		head(row36, "content-length: 5\r\n"+line+"\r\n", "hello"+hidden)
	}

	const chunks = "37 chunk sizes"
	chunked := func(row, body string) { head(row, "transfer-encoding: chunked\r\n", body) }
	for _, n := range []string{"0x5", "+5", "-5", "-0", "5_0", "5 ", " 5", "\t5", "5\t", "5\x00", "00000000000000005", strings.Repeat("0", 1000) + "5", "fffffffffffffffff", "10000000000000005",
		"8000000000000005", "5g", "g", "", "5\x0b", "\u0665", "5.", "5h"} {
		chunked(chunks, n+"\r\nhello\r\n0\r\n\r\n"+hidden)
		chunked(chunks, "5\r\nhello\r\n"+n+"\r\nhello\r\n0\r\n\r\n"+hidden)
	}

	const ends = "38 line ends in chunks"
	for _, end := range []string{"\n", "\r", "\r\r\n", "\n\r", "\x00\r\n", "\r\x00\n", "\u2028", "\x85"} {
		chunked(ends, "5"+end+"hello\r\n0\r\n\r\n"+hidden)
		if end[0] < 0x80 { // others may stand in an extension
			chunked(ends, "5;x"+end+"hello\r\n0\r\n\r\n"+hidden)
			chunked(ends, "5;x=\"a"+end+"b\"\r\nhello\r\n0\r\n\r\n"+hidden)
		}
		chunked(ends, "5\r\nhello"+end+"0\r\n\r\n"+hidden)
		chunked(ends, "5\r\nhello\r\n0"+end+end+hidden)
		chunked(ends, "5\r\nhello\r\n0\r\n"+end+hidden)
		chunked(ends, "5\r\nhello\r\n0\r\nx: y"+end+"\r\n"+hidden)
	}

	const extensions = "39 chunk extensions"
	for _, n := range []int{1, 100, 4000} {
		chunked(extensions, strings.Repeat("1;"+strings.Repeat("e", n)+"\r\nx\r\n", 64<<10/(n+8))+"0\r\n\r\n")
	}
	chunked(extensions, "5;a=\"\\\"0\r\n\r\n"+hidden+"\"\r\nhello\r\n0\r\n\r\n")

	const spill = "40 bytes after a chunk"
	for _, rest := range []string{"XX", "X\r\n", "\rX", " \r\n", "\r\n\r\n", "0\r\n"} {
		chunked(spill, "5\r\nhello"+rest+"0\r\n\r\n"+hidden)
	}

	const folds = "41 folded lines"
	for _, sp := range []string{" ", "\t", "  ", " \t"} {
		head(folds, "transfer-encoding:\r\n"+sp+"chunked\r\n", "0\r\n\r\n"+hidden)
		head(folds, "x: y\r\n"+sp+"transfer-encoding: chunked\r\ncontent-length: 5\r\n", "hello"+hidden)
		head(folds, "content-length: 5\r\n"+sp+"0\r\n", "hello"+hidden)
		add(folds, "POST /one HTTP/1.1\r\n%shost: a\r\ncontent-length: 5\r\n\r\nhello%s", sp, hidden)
		add(folds, "POST /one HTTP/1.1\r\nhost:\r\n%sa\r\ncontent-length: 5\r\n\r\nhello%s", sp, hidden)
	}

	const bytes42 = "42 control bytes"
	for c := range 256 {
		b := string([]byte{byte(c)})
		head(bytes42, "x: a"+b+"b\r\ncontent-length: 5\r\n", "hello")
		head(bytes42, "x: a"+b+"content-length: 0\r\ncontent-length: 5\r\n", "hello")
		head(bytes42, "x"+b+"y: a\r\ncontent-length: 5\r\n", "hello")
		add(bytes42, "PO%sST /one HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello", b)
		add(bytes42, "POST /o%sne HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello", b)
		add(bytes42, "POST /one HTTP/1.1\r\nhost: a%sb\r\ncontent-length: 5\r\n\r\nhello", b)
	}

	const lines = "43 request lines"
	for _, sp := range []string{"  ", "\t", "\v", "\f", " \t", "\x00", "\xa0", "\u2003", "\r", "\n", ""} {
		add(lines, "POST%s/one HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello", sp)
		add(lines, "POST /one%sHTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello", sp)
		add(lines, "%sPOST /one HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello", sp)
		add(lines, "POST /one HTTP/1.1%s\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello", sp)
		add(lines, "POST /one%sx HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello", sp)
		add(lines, "POST /x HTTP/1.1%s/one HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello", sp)
	}

	const versions = "44 versions"
	for _, v := range []string{"", "HTTP/0.9", "HTTP/1.2", "HTTP/1.9", "HTTP/9.9", "HTTP/2.0", "HTTP/2", "HTTP/3", "http/1.1", "HTTP/1.10", "HTTP/01.1", "HTTP/1,1", "HTTP/11", "HTTP/1.", "HTTP/.1", "HTTP 1.1", "HTTPS/1.1", "XTTP/1.1", "HTTP/1.1x", "HTTP/-1.1", "HTTP/1.1\x00"} {
		add(versions, "POST /one %s\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello", v)
	}
	add(versions, "GET /one\r\n")
	add(versions, "GET /one\r\nhost: a\r\n\r\n")

	const values = "45 white space around values"
	for _, sp := range []string{" ", "\t", " \t ", "      "} {
		head(values, "x-role:"+sp+"admin"+sp+"\r\ncontent-length:"+sp+"5"+sp+"\r\n", "hello")
	}

	const trailers = "46 trailers"
	for _, line := range []string{"content-length: 9", "transfer-encoding: chunked", "host: b", "authorization: x", "cookie: x", "connection: close", "te: x", "trailer: x", "upgrade: x", "expect: 100-continue", "content-type: x",
		"x-forwarded-for: 1", ": x", " folded: x", "bad name: x", "x : y", "x: a\x00b", "\x00: y"} {
		chunked(trailers, "5\r\nhello\r\n0\r\n"+line+"\r\n\r\n")
		chunked(trailers, "5\r\nhello\r\n0\r\nok: fine\r\n"+line+"\r\n\r\n")
		chunked(trailers, "5\r\nhello\r\n0\r\n"+strings.ToUpper(line)+"\r\n\r\n")
	}
	chunked(trailers, "5\r\nhello\r\n0\r\n"+strings.Repeat("x: y\r\n", 5000)+"\r\n")

	const nominated = "59 Connection nominates"
	for _, v := range []string{"x-secret", "X-SECRET, close", "host", "content-length", "transfer-encoding", ":path", "authorization", "x-secret,,,", strings.Repeat("x,", 40), "\x00", "close x"} {
		head(nominated, "connection: "+v+"\r\nx-secret: 1\r\nauthorization: kept\r\ncontent-length: 5\r\n", "hello")
	}
	return m
}

// Whatever is sent, the origin gets the one request that the client meant, or none; never what was hidden in it; in one
// form, which its strict parser takes; and the client that uses the same connection to the origin next gets its own
// answer.
func TestSmuggling(t *testing.T) {
	apart(t)
	for row, all := range smuggles() {
		t.Run(row, func(t *testing.T) {
			o := newOrigin(t, nil)
			l := newLab(t, o.addr)
			rng := rand.New(rand.NewPCG(1, 2))
			other := l.dial()
			for i, s := range all {
				s += "GET /two HTTP/1.1\r\nhost: a\r\nx-id: two\r\nconnection: close\r\n\r\n"
				c := l.dial()
				_ = c.nc.SetDeadline(time.Now().Add(5 * time.Second))
				if cut := rng.IntN(len(s)); i%4 == 0 { // in two writes, so that the codec sees it in two pieces
					c.send(s[:cut])
					time.Sleep(100 * time.Microsecond)
					c.send(s[cut:])
				} else {
					c.send(s)
				}
				answers := c.all()
				_ = c.nc.Close()
				judge(t, s, answers, o.take())

				id := strconv.Itoa(i)
				other.send("GET /three HTTP/1.1\r\nhost: a\r\nx-id: " + id + "\r\n\r\n")
				if m := other.must("GET"); m.status != 200 || m.get("x-id") != id {
					t.Fatalf("after %.300q the next client got %v", s, m)
				}
				o.take()
			}
		})
	}
}

// judge looks at what became of one client's bytes.
func judge(t *testing.T, sent string, answers []*message, seen []message) {
	t.Helper()
	refused := false
	for _, a := range answers {
		if a.status >= 400 {
			refused = true
			if a != answers[len(answers)-1] {
				t.Errorf("after a refusal comes more: %s: %.300q", statuses(answers), sent)
			}
		}
	}
	one := 0
	for i, m := range seen {
		switch {
		case strings.HasPrefix(m.target, "/hidden") || m.get("x-id") == "hidden":
			t.Errorf("the hidden request came out: %.300q", sent)
		case m.target == "/two":
			if i != len(seen)-1 {
				t.Errorf("the second request came before others: %.300q", sent)
			}
		default:
			one++
			if m.body != "" && m.body != "hello" && strings.Trim(m.body, "x") != "" {
				t.Errorf("the body that came is %.100q: %.300q", m.body, sent)
			}
		}
		for _, f := range append(m.fields, m.trailers...) {
			if strings.Trim(f[1], " \t") != f[1] || f[0] == "x-secret" && strings.Contains(strings.ToLower(sent), "connection: x-secret") {
				t.Errorf("field %q came through: %.300q", f, sent)
			}
		}
		for _, f := range m.trailers {
			switch f[0] {
			case "content-length", "transfer-encoding", "host", "authorization", "cookie", "connection", "te", "trailer", "upgrade", "expect", "content-type", "x-forwarded-for":
				t.Errorf("trailer %q came through: %.300q", f, sent)
			}
		}
	}
	if one > 1 || one == 0 && !refused && len(answers) > 0 {
		t.Errorf("%d requests came, answers %s: %.300q", one, statuses(answers), sent)
	}
	if len(answers) == 0 {
		t.Errorf("no answer at all: %.300q", sent)
	}
}

// Messages mean the same however they are cut and however many come at once.
func TestPipelining(t *testing.T) {
	o := newOrigin(t, nil)
	l := newLab(t, o.addr)
	var all strings.Builder
	var want []string
	for i := range 12 {
		id := strconv.Itoa(i)
		switch i % 4 {
		case 0:
			all.WriteString("GET /p HTTP/1.1\r\nhost: a\r\nx-id: " + id + "\r\n\r\n")
		case 1:
			all.WriteString("POST /p HTTP/1.1\r\nhost: a\r\nx-id: " + id + "\r\ncontent-length: 5\r\n\r\nhello")
		case 2:
			all.WriteString("PUT /p HTTP/1.1\r\nhost: a\r\nx-id: " + id + "\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x\r\nlo\r\n0\r\nt: v\r\n\r\n")
		case 3:
			all.WriteString("\r\nHEAD /p HTTP/1.1\r\nhost: a\r\nx-id: " + id + "\r\n\r\n")
		}
		want = append(want, id)
	}
	s := all.String()
	for round := range 40 {
		rng := rand.New(rand.NewPCG(3, uint64(round)))
		c := l.dial()
		go func() {
			rest := s
			for round > 0 && rest != "" { // the first round is one write
				n := min(1+rng.IntN(1+2*round), len(rest))
				c.send(rest[:n])
				if rest = rest[n:]; rng.IntN(20) == 0 {
					time.Sleep(time.Duration(rng.IntN(2)) * time.Millisecond)
				}
			}
			c.send(rest)
		}()
		for i, id := range want {
			m := c.must([]string{"GET", "POST", "PUT", "HEAD"}[i%4])
			if m.status != 200 || m.get("x-id") != id {
				t.Fatalf("round %d: answer %d is %d for %s", round, i, m.status, m.get("x-id"))
			}
		}
		_ = c.nc.Close()
		seen := o.take()
		if len(seen) != len(want) {
			t.Fatalf("round %d: the origin saw %d requests", round, len(seen))
		}
		for _, m := range seen {
			if m.body != "" && m.body != "hello" {
				t.Errorf("round %d: a body is %q", round, m.body)
			}
		}
	}
}

// What endpoints answer is read as strictly as what clients ask: it becomes one response for one client, or 502; what
// follows it reaches nobody.
func TestResponseSplitting(t *testing.T) {
	apart(t)
	ghost := "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-id: ghost\r\n\r\nghost"
	rows := map[string][]string{
		"33 codings of responses":     {"transfer-encoding: xchunked\r\n", "transfer-encoding: chunked, identity\r\n", "transfer-encoding: identity\r\n", "transfer-encoding: \x0bchunked\r\n", "transfer-encoding : chunked\r\n", "transfer-encoding: chunked\r\ncontent-length: 3\r\n", "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n"},
		"34 lengths of responses":     {"content-length: +5\r\n", "content-length: 5, 5\r\n", "content-length: 5\r\ncontent-length: 6\r\n", "content-length: 18446744073709551621\r\n", "content-length:\r\n", "content-length: -1\r\n"},
		"41 folds of responses":       {"x: y\r\n z\r\ncontent-length: 0\r\n", "x:\r\n\tz\r\ncontent-length: 0\r\n"},
		"42 bytes of responses":       {"x: a\x00b\r\ncontent-length: 0\r\n", "x: a\rb\r\ncontent-length: 0\r\n", "x: a\nset-cookie: b\r\ncontent-length: 0\r\n", ": x\r\ncontent-length: 0\r\n", "a b: c\r\ncontent-length: 0\r\n"},
		"153 endless continuation":    {"x: y\r\n" + strings.Repeat(" z\r\n", 100_000)},
		"153 endless fields":          {strings.Repeat("x: y\r\n", 100_000)},
		"153 an endless field":        {"x: " + strings.Repeat("y", 500_000) + "\r\n"},
		"40 chunks of responses":      {"transfer-encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n", "transfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n", "transfer-encoding: chunked\r\n\r\n5\nhello\r\n0\r\n"},
		"53 more than was announced":  {"content-length: 0\r\n", "content-length: 3\r\n\r\nabc"},
		"57 less than was announced":  {"content-length: 5000\r\n\r\nabc"},
		"48 a switch nobody asked":    {"\x00"},
		"44 versions of responses":    {"\x01"},
		"49 200 to an Upgrade":        {"content-length: 0\r\n"},
		"56 chunked to HTTP/1.0":      {"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"},
		"59 Connection of a response": {"connection: x-secret\r\nx-secret: 1\r\ncontent-length: 0\r\n"},
	}
	for row, variants := range rows {
		t.Run(row, func(t *testing.T) {
			for _, v := range variants {
				start := "HTTP/1.1 200 OK\r\n" + v + "\r\n"
				switch v {
				case "\x00":
					start = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"
				case "\x01":
					start = "HTTP/2.0 200 OK\r\n\r\n"
				}
				o := newOrigin(t, func(m *message, nc net.Conn, _ *bufio.Reader) verdict {
					if m.target != "/bad" {
						return proceed
					}
					_, _ = io.WriteString(nc, start+ghost)
					return answered
				})
				l := newLab(t, o.addr, config(func(c *conn.Config) { c.WriteTimeout = time.Second }), route(timeoutOf(500*time.Millisecond)))
				for range 3 {
					request := "GET /bad HTTP/1.1\r\nhost: a\r\nx-id: bad\r\n"
					if row == "49 200 to an Upgrade" {
						request += "connection: upgrade\r\nupgrade: websocket\r\n"
					}
					c := l.dial()
					c.send(strings.Replace(request, "1.1", map[bool]string{true: "1.0", false: "1.1"}[row == "56 chunked to HTTP/1.0"], 1) + "\r\n")
					m, _, _ := c.read("GET")
					if m != nil && (m.get("x-id") == "ghost" || m.get("x-secret") != "" || m.status == 101) {
						t.Errorf("%.100q: the client got %v", v, m)
					}
					_ = c.nc.Close()
					for i := range 3 {
						other := l.dial()
						id := strconv.Itoa(i)
						other.send("GET /next HTTP/1.1\r\nhost: a\r\nx-id: " + id + "\r\nconnection: close\r\n\r\n")
						if m := other.must("GET"); m.status != 200 || m.get("x-id") != id {
							t.Errorf("%.100q: the next client got %v", v, m)
						}
						_ = other.nc.Close()
					}
				}
			}
		})
	}
}

// Sizes that do not fit into 31 or 32 bits are emitted and read as they are.
func TestLargeSizes(t *testing.T) {
	for _, n := range []int64{1, 1<<14 - 1, 1 << 14, 1 << 24, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 + 1, 1 << 40} {
		if n <= math.MaxInt {
			line := string(h1.AppendChunkHead(nil, int(n)))
			if got, err := strconv.ParseInt(strings.TrimSuffix(line, "\r\n"), 16, 64); err != nil || got != n {
				t.Errorf("a chunk of %d bytes is announced by %q", n, line)
			}
		}
		if n > 1<<32+1 {
			continue
		}
		piece := make([]byte, 1<<24)
		var body h1.Body
		body.Reset(n, false, &h1.Limits{Trailers: 100, Fields: 10})
		var total int64
		for !body.Done() {
			data, used, err := body.Next(piece)
			if err != nil || used == 0 && total < n {
				t.Fatalf("a body of %d bytes: %v after %d", n, err, total)
			}
			total += int64(len(data))
		}
		if total != n {
			t.Errorf("a body of %d bytes was read as %d", n, total)
		}
	}
}

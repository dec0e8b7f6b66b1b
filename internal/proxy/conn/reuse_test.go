package conn

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/wire/h1/h1test"
)

// What was asked next on a connection is seen as it was sent, whatever became of what was asked before: answered before its body came, or
// with a part of it read, given up, without a body of its own, interim.

// moody answers each request as its random numbers say.
type moody struct {
	*rand.Rand
	seen []string // what came, by id: "id body", with "+" for a body that was read to its end
	said map[string]string
	cuts bool // an answer was not finished
}

func (m *moody) Serve(d stream.Downstream, _ *Peer) {
	req := d.Request()
	id, _ := req.Fields.Get("x-id")
	name := string(req.Method) + " " + string(req.Path) + " " + string(id)
	var body []byte
	read := func(pieces int) (err error) {
		for ; pieces > 0 && err == nil && req.Length != 0; pieces-- {
			var p []byte
			p, err = d.ReadBody()
			body = append(body, p...)
		}
		return err
	}
	all := 0
	if err := read(m.IntN(3) * m.IntN(1000)); errors.Is(err, io.EOF) || req.Length == 0 {
		all = 1
	}
	m.seen = append(m.seen, name+" "+string(body)+strings.Repeat("+", all))
	if m.IntN(4) == 0 {
		_ = d.WriteInformational(&message.Response{Status: 100 + m.IntN(2)*3, Fields: message.Fields{field("link", "x")}})
	}
	resp := &message.Response{Status: []int{200, 204, 304, 404, 503}[m.IntN(5)], Fields: message.Fields{field("x-id", string(id))}}
	text := strings.Repeat("HTTP/1.1 200 OK\r\n\r\n", m.IntN(4)*m.IntN(500))
	if resp.HasBody = resp.Status != 204 && resp.Status != 304 && string(req.Method) != "HEAD"; !resp.HasBody {
		text = ""
	}
	if resp.Length = int64(len(text)); m.IntN(2) == 0 {
		resp.Length = message.Unknown
	}
	if m.IntN(20) == 0 { // nothing, or a part of it
		m.cuts = true
		if m.IntN(2) == 0 && text != "" {
			_ = d.WriteHead(resp, false)
			_ = d.WriteBody([]byte(text[:len(text)/2]), false)
		}
		d.Reset(stream.Cancelled)
		return
	}
	m.said[string(id)] = text
	if text == "" {
		_ = d.WriteHead(resp, true)
	} else {
		_ = d.WriteHead(resp, false)
		for rest := text; ; {
			n := min(len(rest), 1+m.IntN(20_000))
			last := n == len(rest) && m.IntN(2) == 0
			_ = d.WriteBody([]byte(rest[:n]), last)
			if rest = rest[n:]; rest == "" {
				if !last {
					_ = d.WriteTrailers(message.Fields{field("x-end", "1")})
				}
				break
			}
			if m.IntN(3) == 0 {
				_ = d.Flush()
			}
		}
	}
	_ = read(m.IntN(2) * 2)
	if w, ok := d.(stream.Watched); ok && m.IntN(3) == 0 {
		w.StopReading()
	}
	_ = d.Flush()
}

// ask makes a request that only one reader can take for another's part: its body looks like requests.
func ask(r *rand.Rand, id int) (text, method, seen string) {
	method = []string{"GET", "POST", "PUT", "HEAD"}[r.IntN(4)]
	body := ""
	if r.IntN(2) == 0 {
		body = strings.Repeat(fmt.Sprintf("GET /inner HTTP/1.1\r\nhost: a\r\nx-id: inner%d\r\n\r\n", id), r.IntN(3)*r.IntN(400))
	}
	head := fmt.Sprintf("%s /%d HTTP/1.1\r\nhost: a\r\nx-id: %d\r\n", method, id, id)
	if r.IntN(6) == 0 && body != "" {
		head += "expect: 100-continue\r\n"
	}
	if r.IntN(20) == 0 {
		head += "connection: close\r\n"
	}
	seen = fmt.Sprintf("%s /%d %d ", method, id, id) + body
	if r.IntN(2) == 0 || body == "" && r.IntN(2) == 0 {
		return head + fmt.Sprintf("content-length: %d\r\n\r\n", len(body)) + body, method, seen
	}
	var b strings.Builder
	b.WriteString(head + "transfer-encoding: chunked\r\n\r\n")
	for rest := body; rest != ""; {
		n := min(len(rest), 1+r.IntN(9000))
		fmt.Fprintf(&b, "%x;e=0\r\n%s\r\n", n, rest[:n])
		rest = rest[n:]
	}
	b.WriteString("0\r\n" + strings.Repeat("x-trailer: 1\r\n", r.IntN(2)) + "\r\n")
	return b.String(), method, seen
}

// One connection with some requests, one behind the other: those that are seen are the first ones, each with the beginning of its body,
// and each is answered with what its handler said, in turn, until the connection ends.
func TestServerSeesWhatWasAsked(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		var in strings.Builder
		var methods, seen []string
		for id := range 1 + r.IntN(6) {
			text, method, see := ask(r, id)
			in.WriteString(text)
			methods, seen = append(methods, method), append(seen, see)
		}
		m := &moody{Rand: rand.New(rand.NewPCG(seed, 2)), said: map[string]string{}}
		whole := []byte(in.String())
		if r.IntN(4) == 0 { // the client leaves in the middle
			whole = whole[:r.IntN(len(whole))]
		}
		answer := string(serveBytes(m, bytes.Clone(whole), 1+r.IntN(1+r.IntN(20_000))))
		if len(m.seen) > len(seen) {
			t.Fatalf("seed %d: %d requests are seen as %d", seed, len(seen), len(m.seen))
		}
		for i, got := range m.seen {
			part, all := strings.CutSuffix(got, "+")
			if !strings.HasPrefix(seen[i], part) || all && seen[i] != part {
				t.Fatalf("seed %d: request %d is seen as %q, not %q", seed, i, got, seen[i])
			}
		}
		ended := false
		for i := range m.seen {
			a, rest, err := h1test.Read(answer, methods[i], true)
			for err == nil && strings.HasPrefix(a.Start, "HTTP/1.1 1") {
				a, rest, err = h1test.Read(rest, methods[i], true)
			}
			if ended && answer != "" {
				t.Fatalf("seed %d: after the end comes %q", seed, answer)
			}
			if err != nil || m.said[a.Get("x-id")] != a.Body || a.Get("x-id") != fmt.Sprint(i) {
				if !m.cuts || i != len(m.seen)-1 {
					t.Fatalf("seed %d: answer %d: %v in %.300q", seed, i, err, answer)
				}
				answer = ""
				break
			}
			answer, ended = rest, a.Get("connection") == "close"
		}
		if answer != "" {
			t.Fatalf("seed %d: at the end comes %.300q", seed, answer)
		}
	}
}

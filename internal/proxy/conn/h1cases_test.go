package conn

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/wire/h1"
	"github.com/malha-mesh/malha/internal/proxy/wire/h1/h1test"
)

// recorder is a handler that writes down what would be forwarded, and answers 200.
type recorder struct {
	got    []string
	detail string // of what was refused
	status int
}

func (r *recorder) Refused(_ *Peer, status int, detail string) { r.status, r.detail = status, detail }

func (r *recorder) Serve(d stream.Downstream, _ *Peer) {
	req := d.Request()
	out := h1.AppendRequest(nil, req)
	var body []byte
	for req.Length != 0 {
		p, err := d.ReadBody()
		body = append(body, p...)
		if err == io.EOF {
			break
		}
		if err != nil {
			var bad *h1.Error
			if errors.As(err, &bad) {
				r.status, r.detail = bad.Status, bad.Detail
			}
			d.Reset(stream.Protocol)
			return
		}
	}
	if req.Length == message.Unknown {
		if len(body) > 0 {
			out = h1.AppendChunk(out, body)
		}
		out = h1.AppendLastChunk(out, d.Trailers())
	} else {
		out = append(out, body...)
	}
	r.got = append(r.got, string(out))
	_ = d.WriteHead(&message.Response{Status: 200, Major: 1, Minor: 1}, true)
	_ = d.Flush()
}

// canned is a connection from which all comes in pieces of step bytes, and then its end.
type canned struct {
	net.Conn // nothing of it is used
	in       []byte
	step     int
	out      bytes.Buffer
}

func (c *canned) Read(b []byte) (int, error) {
	n := copy(b, c.in[:min(c.step, len(c.in))])
	if c.in = c.in[n:]; n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (c *canned) Write(b []byte) (int, error)      { return c.out.Write(b) }
func (c *canned) Close() error                     { return nil }
func (c *canned) SetDeadline(time.Time) error      { return nil }
func (c *canned) SetReadDeadline(time.Time) error  { return nil }
func (c *canned) SetWriteDeadline(time.Time) error { return nil }

// serveBytes lets a server have all of in, and returns what it answered.
func serveBytes(h Handler, in []byte, step int) []byte {
	cfg := Defaults()
	cfg.MaxRequestLine, cfg.MaxHead, cfg.MaxFields, cfg.MaxTrailers = h1test.StartLine, h1test.Head, h1test.Fields, h1test.Trailers
	c := &canned{in: in, step: step}
	ServeH1(c, nil, &Peer{}, h, cfg, nil)
	return c.out.Bytes()
}

// The table of HTTP/1 cases through a real server: what its handler would forward is what the table says, and the
// client gets one answer for each request.
func TestH1Cases(t *testing.T) {
	t.Parallel()
	cases, err := h1test.Load()
	if err != nil {
		t.Fatal(err)
	}
	for i := range cases {
		c := &cases[i]
		if c.Response {
			continue
		}
		steps := []int{len(c.In), 1}
		if len(c.In) > 300 {
			steps[1] = 97
		}
		for _, step := range steps {
			var r recorder
			answer := serveBytes(&r, c.In, step)
			switch {
			case c.Status != 0:
				if len(r.got) != 0 || r.status != c.Status || r.detail != c.Detail {
					t.Errorf("%s by %d: refused %d %s, forwarded %q", c.Where, step, r.status, r.detail, r.got)
				}
			case c.Waits:
				if len(r.got) != 0 || r.status != 0 {
					t.Errorf("%s by %d: refused %d %s, forwarded %q", c.Where, step, r.status, r.detail, r.got)
				}
			default:
				if len(r.got) != 1 || r.got[0] != string(c.Forwarded) {
					t.Errorf("%s by %d: forwarded %q, want %q (%s)", c.Where, step, r.got, c.Forwarded, r.detail)
				}
			}
			method, _, _ := strings.Cut(strings.TrimLeft(string(c.In), "\r\n"), " ")
			if method == "" {
				method = "GET"
			}
			if _, err := h1test.ReadAll(string(answer), method, true); err != nil {
				t.Errorf("%s by %d: the answer is %q: %v", c.Where, step, answer, err)
			}
		}
		if c.Forwarded != nil && c.Then == "" {
			var r recorder
			serveBytes(&r, bytes.Repeat(c.In, 10), 1<<20)
			if len(r.got) != 10 || r.got[9] != string(c.Forwarded) {
				t.Errorf("%s ten times: %d forwarded, the last %q", c.Where, len(r.got), r.got[max(len(r.got)-1, 0):])
			}
		}
	}
}

// fetch reads one response as the stack does, and returns it as it would be forwarded to a client of HTTP/1.minor, whether the
// connection may be used again, and what was wrong.
func fetch(c *h1test.Case, step int) (out []byte, reusable bool, err error) {
	cfg := Defaults()
	cfg.MaxRequestLine, cfg.MaxHead, cfg.MaxFields, cfg.MaxTrailers = h1test.StartLine, h1test.Head, h1test.Fields/2, h1test.Trailers
	client := NewH1Client(&canned{in: bytes.Clone(c.In), step: step}, cfg, func(_ *H1Client, ok bool) { reusable = ok })
	client.Begin()
	req := &message.Request{Method: []byte(c.Asked), Path: []byte("/"), Authority: []byte("a"), Major: 1, Minor: 1}
	switch {
	case c.Asked == "CONNECT":
		req.Path = nil
	case strings.HasPrefix(c.Then, "tunnel ") || c.Detail == "http1.bad_upgrade":
		req.Upgrade = []byte(strings.TrimPrefix(c.Then, "tunnel "))
	}
	defer client.Close()
	if err := client.WriteHead(req, true); err != nil {
		return nil, false, err
	}
	if err := client.Flush(); err != nil {
		return nil, false, err
	}
	var resp message.Response
	for {
		if err := client.ReadHead(&resp); err != nil {
			return out, false, err
		}
		f, persist := h1.ResponseFraming(&resp, c.Minor), h1.Stay
		if c.Minor == 0 {
			persist = h1.Keep
			if f == h1.UntilClose {
				persist = h1.Close
			}
		}
		out = h1.AppendResponse(out, &resp, h1.AskedBy(req.Method), f, persist)
		if resp.Status < 200 && resp.Status != 101 {
			continue
		}
		if !resp.HasBody {
			return out, false, nil
		}
		var body []byte
		for err == nil {
			var p []byte
			p, err = client.ReadBody()
			body = append(body, p...)
		}
		if err != io.EOF {
			return out, false, err
		}
		if f == h1.Chunked {
			if len(body) > 0 {
				out = h1.AppendChunk(out, body)
			}
			return h1.AppendLastChunk(out, client.Trailers()), false, nil
		}
		return append(out, body...), false, nil
	}
}

// The responses of the table through a real client: what it hands on is what the table says, and its connection goes back to
// the pool only if nothing is in doubt.
func TestH1ResponseCases(t *testing.T) {
	t.Parallel()
	cases, err := h1test.Load()
	if err != nil {
		t.Fatal(err)
	}
	for i := range cases {
		c := &cases[i]
		if !c.Response {
			continue
		}
		for _, step := range []int{len(c.In), 7, 1} {
			out, reusable, err := fetch(c, step)
			switch {
			case c.Forwarded == nil:
				if err == nil || reusable {
					t.Errorf("%s by %d: %q was handed on (%v), connection used again: %v", c.Where, step, out, err, reusable)
				}
				if c.Status != 0 && !errors.Is(err, stream.ErrProtocol) {
					t.Errorf("%s by %d: %v is no protocol error", c.Where, step, err)
				}
			case err != nil || string(out) != string(c.Forwarded):
				t.Errorf("%s by %d: %q (%v), want %q", c.Where, step, out, err, c.Forwarded)
			case reusable != (c.Then == "" && c.Asked != "CONNECT") && !(c.Asked == "CONNECT" && strings.HasPrefix(string(out), "HTTP/1.1 403")):
				t.Errorf("%s by %d: connection used again: %v", c.Where, step, reusable)
			}
		}
	}
}

// FuzzH1Server feeds bytes to a server: it ends, whatever they are, what it would forward is read by a second parser as
// the same number of messages, and so is what it answers.
func FuzzH1Server(f *testing.F) {
	cases, err := h1test.Load()
	if err != nil {
		f.Fatal(err)
	}
	for i := range cases {
		if !cases[i].Response {
			f.Add(cases[i].In, uint8(i))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		var r recorder
		serveBytes(&r, in, int(step)+1)
		for _, m := range r.got {
			if all, err := h1test.ReadAll(m, "", true); err != nil || len(all) != 1 {
				t.Fatalf("%q: %q was forwarded, which is %d messages: %v", in, m, len(all), err)
			}
		}
	})
}

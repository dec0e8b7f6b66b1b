package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// tee stands between the proxy and an origin, changes nothing, and keeps what passes.
type tee struct {
	ln     net.Listener
	origin string

	mu    sync.Mutex
	conns []*tapped
	wg    sync.WaitGroup
}

// tapped is one connection from the proxy to the origin.
type tapped struct {
	mu             sync.Mutex
	asked, answers bytes.Buffer
	marks          []mark // of asked
}

// mark says that what begins at an offset came as the order-th piece of all.
type mark struct{ offset, order int }

var order atomic.Int64

type tap struct {
	t *tapped
	b *bytes.Buffer
}

func (t tap) Write(p []byte) (int, error) {
	t.t.mu.Lock()
	defer t.t.mu.Unlock()
	if t.b == &t.t.asked {
		t.t.marks = append(t.t.marks, mark{t.b.Len(), int(order.Add(1))})
	}
	return t.b.Write(p)
}

func newTee(origin string) (*tee, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &tee{ln: ln, origin: origin}
	t.wg.Go(t.accept)
	return t, nil
}

func (t *tee) port() int { return t.ln.Addr().(*net.TCPAddr).Port }

func (t *tee) accept() {
	for {
		down, err := t.ln.Accept()
		if err != nil {
			return
		}
		up, err := net.Dial("tcp", t.origin)
		if err != nil {
			_ = down.Close()
			continue
		}
		c := &tapped{}
		t.mu.Lock()
		t.conns = append(t.conns, c)
		t.mu.Unlock()
		t.wg.Go(func() {
			var other sync.WaitGroup
			other.Go(func() {
				// Kept before it is passed on: no answer can come earlier than its question.
				_, _ = io.Copy(io.MultiWriter(tap{c, &c.answers}, down), up)
				_ = down.(*net.TCPConn).CloseWrite()
			})
			_, _ = io.Copy(io.MultiWriter(tap{c, &c.asked}, up), down)
			_ = up.(*net.TCPConn).CloseWrite()
			other.Wait()
			_ = down.Close()
			_ = up.Close()
		})
	}
}

// close ends the tee after the proxy has ended its connections.
func (t *tee) close() {
	_ = t.ln.Close()
	t.wg.Wait()
}

// forwarded is one request that the proxy sent, and what came back.
type forwarded struct {
	line      string // as origins record it
	method    string
	target    string
	requestID string
	raw       []byte
	whole     bool // the proxy sent all of it
	answered  bool
	seen      bool // the origin's application answered, not the origin itself
	status    int
	last      bool   // on its connection
	order     int    // among all that went over the wire
	problem   string // what a strict reader (net/http) has against it
}

func (c *tapped) orderOf(offset int) int {
	order := 0
	for _, m := range c.marks {
		if m.offset > offset {
			break
		}
		order = m.order
	}
	return order
}

// forwarded reads what was sent on a connection with net/http, a reader that is not ours.
func (c *tapped) forwarded() []*forwarded {
	var out []*forwarded
	all := c.asked.Bytes()
	if len(all) == 0 {
		return nil // the client left while we connected; some origins complain about that
	}
	src := bytes.NewReader(all)
	r := bufio.NewReader(src)
	answers := bufio.NewReader(bytes.NewReader(c.answers.Bytes()))
	for {
		at := len(all) - src.Len() - r.Buffered()
		if _, err := r.Peek(1); err != nil {
			break
		}
		f := &forwarded{order: c.orderOf(at)}
		req, err := http.ReadRequest(r)
		if err != nil {
			f.raw = all[at:]
			if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
				f.problem = fmt.Sprintf("net/http can't read what was forwarded: %v", err)
			}
			return append(out, f)
		}
		body, err := io.ReadAll(req.Body)
		f.whole = err == nil
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			f.problem = fmt.Sprintf("net/http can't read the body that was forwarded: %v", err)
		}
		f.method, f.target = req.Method, req.RequestURI
		f.requestID = req.Header.Get("x-request-id")
		f.line = line(req.Method, req.RequestURI, body)
		f.raw = all[at : len(all)-src.Len()-r.Buffered()]
		out = append(out, f)
		for {
			resp, err := http.ReadResponse(answers, req)
			if err != nil {
				break
			}
			_, err = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode/100 == 1 && resp.StatusCode != 101 {
				continue
			}
			f.answered = err == nil
			f.status, f.seen = resp.StatusCode, resp.Header.Get("x-garden") == "seen"
			break
		}
		if !f.whole {
			break
		}
	}
	if len(out) > 0 {
		out[len(out)-1].last = true
	}
	// Some origins give errors a body in answers to HEAD, which is theirs to explain; the proxy must only not use such a
	// connection again, or what follows it would not fit.
	head := len(out) > 0 && out[len(out)-1].method == "HEAD"
	if rest, _ := io.ReadAll(answers); len(rest) > 0 && !head {
		f := &forwarded{problem: fmt.Sprintf("the origin sent more answers than it got requests: %.200q", rest), raw: all}
		out = append(out, f)
	}
	return out
}

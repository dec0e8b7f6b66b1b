package advisories

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// message is a head with its body, as the strict parser read it.
type message struct {
	conn     int // of the origin's connections, from 0
	line     string
	method   string
	target   string
	status   int
	fields   [][2]string
	body     string
	trailers [][2]string
}

func (m *message) get(name string) string {
	for _, f := range m.fields {
		if f[0] == name {
			return f[1]
		}
	}
	return ""
}

func (m *message) count(name string) (n int) {
	for _, f := range m.fields {
		if f[0] == name {
			n++
		}
	}
	return n
}

// verdict is what an origin's hook wants to be done with a request after its head.
type verdict int

const (
	proceed  verdict = iota // read the body and answer as usual
	answered                // read the body; the answer was written
	done                    // end the connection
)

// origin is an HTTP/1.1 server that takes the one form in which a request can be read in one way, and keeps what it was
// sent. Anything else is a fault, and fails the test.
type origin struct {
	t    testing.TB
	addr string
	hook func(m *message, nc net.Conn, br *bufio.Reader) verdict // nil: always proceed

	mu    sync.Mutex
	seen  []message
	conns int
}

func newOrigin(t testing.TB, hook func(m *message, nc net.Conn, br *bufio.Reader) verdict) *origin {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &origin{t: t, addr: ln.Addr().String(), hook: hook}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[nc] = true
			mu.Unlock()
			wg.Go(func() {
				o.serve(nc)
				_ = nc.Close()
				mu.Lock()
				delete(open, nc)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for nc := range open {
			_ = nc.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return o
}

func (o *origin) serve(nc net.Conn) {
	o.mu.Lock()
	id := o.conns
	o.conns++
	o.mu.Unlock()
	br := bufio.NewReader(nc)
	for {
		m, err := readHead(br, true)
		if err != nil {
			o.fault(err)
			return
		}
		m.conn = id
		v := proceed
		if o.hook != nil {
			v = o.hook(m, nc, br)
		}
		if v == done {
			o.keep(m)
			return
		}
		if err := readBody(br, m, false); err != nil {
			o.fault(err)
			return
		}
		o.keep(m)
		if v == answered {
			continue
		}
		text := m.method + " " + m.target
		body := text
		if m.method == "HEAD" {
			body = ""
		}
		if _, err := fmt.Fprintf(nc, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\nx-id: %s\r\n\r\n%s", len(text), m.get("x-id"), body); err != nil {
			return
		}
	}
}

func (o *origin) keep(m *message) {
	if m.target == "/good" {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen = append(o.seen, *m)
}

// fault reports what no proxy may send. The end of a connection between or inside of messages is none.
func (o *origin) fault(err error) {
	var bad badMessage
	if errors.As(err, &bad) {
		o.t.Errorf("the origin was sent what it can't read in one way: %v", err)
	}
}

// take returns what came since the last take.
func (o *origin) take() []message {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.seen
	o.seen = nil
	return s
}

type badMessage string

func (b badMessage) Error() string { return string(b) }

func bad(format string, a ...any) error { return badMessage(fmt.Sprintf(format, a...)) }

// readLine reads up to CRLF, and takes no other end and no control byte.
func readLine(br *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		c, err := br.ReadByte()
		if err != nil {
			return "", err
		}
		if c == '\r' {
			if c, err = br.ReadByte(); err != nil {
				return "", err
			}
			if c != '\n' {
				return "", bad("CR without LF after %q", b.String())
			}
			return b.String(), nil
		}
		if c < ' ' && c != '\t' || c == 0x7f {
			return "", bad("byte %#x after %q", c, b.String())
		}
		b.WriteByte(c)
		if b.Len() > 200<<10 {
			return "", bad("a line of more than 200 KB")
		}
	}
}

func isToken(s string, upper bool) bool {
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', upper && c >= 'A' && c <= 'Z', strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

// readHead reads a head in the form that the proxy writes: a request to an origin, or a response to a client.
func readHead(br *bufio.Reader, request bool) (*message, error) {
	line, err := readLine(br)
	if err != nil {
		return nil, err
	}
	m := &message{line: line}
	if request {
		p := strings.Split(line, " ")
		if len(p) != 3 || !isToken(p[0], true) || p[1] == "" || p[2] != "HTTP/1.1" || strings.ContainsAny(p[1], "#\\\t") {
			return nil, bad("request line %q", line)
		}
		m.method, m.target = p[0], p[1]
	} else {
		if len(line) < 13 || line[:9] != "HTTP/1.1 " || line[12] != ' ' {
			return nil, bad("status line %q", line)
		}
		if m.status, err = strconv.Atoi(line[9:12]); err != nil {
			return nil, bad("status line %q", line)
		}
	}
	if m.fields, err = readFields(br); err != nil {
		return nil, err
	}
	if request && (m.count("host") != 1 || m.get("host") == "") {
		return nil, bad("%d host fields in %q %q", m.count("host"), line, m.fields)
	}
	if m.count("content-length")+m.count("transfer-encoding") > 1 {
		return nil, bad("more than one framing: %q %q", line, m.fields)
	}
	return m, nil
}

func readFields(br *bufio.Reader) ([][2]string, error) {
	var fields [][2]string
	for {
		line, err := readLine(br)
		if err != nil {
			return nil, err
		}
		if line == "" {
			return fields, nil
		}
		name, value, ok := strings.Cut(line, ": ")
		if !ok || !isToken(name, false) || value != strings.Trim(value, " \t") {
			return nil, bad("field line %q", line)
		}
		fields = append(fields, [2]string{name, value})
	}
}

// readBody reads the body that m's head announces. untilClose: a response without framing ends with the connection.
func readBody(br *bufio.Reader, m *message, untilClose bool) error {
	switch {
	case m.get("transfer-encoding") != "":
		if v := m.get("transfer-encoding"); v != "chunked" {
			return bad("transfer-encoding %q", v)
		}
		return readChunked(br, m)
	case m.count("content-length") == 1:
		v := m.get("content-length")
		n, err := strconv.ParseUint(v, 10, 62)
		if err != nil || strconv.FormatUint(n, 10) != v {
			return bad("content-length %q", v)
		}
		var b strings.Builder
		_, err = io.CopyN(&b, br, int64(n))
		m.body = b.String()
		return err
	case untilClose:
		b, err := io.ReadAll(br)
		m.body = string(b)
		return err
	}
	return nil
}

func readChunked(br *bufio.Reader, m *message) error {
	var b strings.Builder
	for {
		line, err := readLine(br)
		if err != nil {
			return err
		}
		n, err := strconv.ParseUint(line, 16, 62)
		if err != nil || strconv.FormatUint(n, 16) != line {
			return bad("chunk size %q", line)
		}
		if n == 0 {
			m.body = b.String()
			m.trailers, err = readFields(br)
			return err
		}
		if _, err = io.CopyN(&b, br, int64(n)); err != nil {
			return err
		}
		if line, err = readLine(br); err != nil {
			return err
		}
		if line != "" {
			return bad("%q after chunk data", line)
		}
	}
}

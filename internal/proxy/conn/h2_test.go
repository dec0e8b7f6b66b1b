package conn

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/wire/h2"
)

// handlerFunc is a Handler.
type handlerFunc func(d stream.Downstream, p *Peer)

func (f handlerFunc) Serve(d stream.Downstream, p *Peer) { f(d, p) }

// checkGoroutines fails the test when goroutines of this package are left after it.
func checkGoroutines(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		var stacks string
		for range 3000 {
			buf := make([]byte, 1<<20)
			stacks = string(buf[:runtime.Stack(buf, true)])
			if !strings.Contains(stacks, "conn.(*h2conn)") && !strings.Contains(stacks, "conn.ServeH2(") {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("goroutines are left:\n%s", stacks)
	})
}

// listenH2 serves every connection to the address it returns.
func listenH2(t *testing.T, h Handler, cfg *Config, drain *Drain) string {
	t.Helper()
	checkGoroutines(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, nc)
			mu.Unlock()
			wg.Go(func() { ServeH2(nc, nil, &Peer{}, h, cfg, drain) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, nc := range open {
			_ = nc.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// dialH2 returns a running client.
func dialH2(t *testing.T, addr string, cfg *Config) *H2Client {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c := NewH2Client(nc, cfg)
	go func() { _ = c.Run() }()
	t.Cleanup(func() {
		c.CloseConn()
		<-c.Done()
	})
	return c
}

// h2cClient is net/http as a client of cleartext HTTP/2.
func h2cClient(t *testing.T) *http.Client {
	t.Helper()
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

// h2cServer is net/http as a server of cleartext HTTP/2.
func h2cServer(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	checkGoroutines(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	s.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return l.Addr().String()
}

func field(name, value string) message.Field {
	return message.Field{Name: []byte(name), Value: []byte(value)}
}

func request(method, path string, fields ...message.Field) *message.Request {
	return &message.Request{Method: []byte(method), Scheme: []byte("http"), Authority: []byte("test"), Host: []byte("test"), Path: []byte(path), Fields: fields}
}

// echo answers with the request's body and, as fields, what it saw of the head. Its trailers come back as x-was-*.
func echo(d stream.Downstream, _ *Peer) {
	r := d.Request()
	res := &message.Response{Status: 200, Length: message.Unknown, HasBody: true, Fields: message.Fields{
		field("x-method", string(r.Method)), field("x-path", string(r.Path)), field("x-query", string(r.Query)),
		field("x-authority", string(r.Authority)), field("x-length", strconv.FormatInt(r.Length, 10)),
	}}
	for _, f := range r.Fields {
		if bytes.HasPrefix(f.Name, []byte("x-test")) {
			res.Fields = append(res.Fields, f)
		}
	}
	if string(r.Method) == "HEAD" {
		res.HasBody, res.Length = false, 1234
		_ = d.WriteHead(res, true)
		return
	}
	if err := d.WriteHead(res, false); err != nil {
		return
	}
	if r.Length != 0 {
		for {
			p, err := d.ReadBody()
			if werr := d.WriteBody(p, false); werr != nil {
				return
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return
			}
			if ready, ok := d.(stream.Ready); ok && !ready.BodyReady() {
				_ = d.Flush()
			}
		}
	}
	var trailers message.Fields
	for _, f := range d.Trailers() {
		trailers = append(trailers, field("x-was-"+string(f.Name), string(f.Value)))
	}
	_ = d.WriteTrailers(trailers)
}

func TestH2ServerWithNetHTTP(t *testing.T) {
	addr := listenH2(t, handlerFunc(echo), Defaults(), nil)
	client := h2cClient(t)

	t.Run("get", func(t *testing.T) {
		res, err := client.Get("http://" + addr + "/a/../b?c=d")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		for name, want := range map[string]string{"x-method": "GET", "x-path": "/b", "x-query": "c=d", "x-authority": addr, "x-length": "0"} {
			if got := res.Header.Get(name); got != want {
				t.Errorf("%s = %q, want %q", name, got, want)
			}
		}
	})
	t.Run("head", func(t *testing.T) {
		res, err := client.Head("http://" + addr + "/")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.ContentLength != 1234 {
			t.Errorf("length %d", res.ContentLength)
		}
	})
	t.Run("trailers", func(t *testing.T) {
		req, _ := http.NewRequest("POST", "http://"+addr+"/", io.NopCloser(strings.NewReader("body")))
		req.Trailer = http.Header{"X-Sum": {"42"}}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if string(body) != "body" || err != nil || res.Trailer.Get("X-Was-X-Sum") != "42" {
			t.Errorf("%q, %v, %v", body, err, res.Trailer)
		}
	})
	t.Run("large bodies at once", func(t *testing.T) {
		body := make([]byte, 3<<20)
		for i := range body {
			body[i] = byte(i * 7 >> 3)
		}
		want := sha256.Sum256(body)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				res, err := client.Post("http://"+addr+"/", "", bytes.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				defer res.Body.Close()
				h := sha256.New()
				n, err := io.Copy(h, res.Body)
				if err != nil || [32]byte(h.Sum(nil)) != want {
					t.Errorf("%d bytes came back, %v", n, err)
				}
			})
		}
		wg.Wait()
	})
	t.Run("many small", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				for j := range 100 {
					id := fmt.Sprint(i, "-", j)
					req, _ := http.NewRequest("GET", "http://"+addr+"/"+id, nil)
					req.Header.Set("x-test", id)
					res, err := client.Do(req)
					if err != nil {
						t.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, res.Body)
					res.Body.Close()
					if res.Header.Get("x-test") != id || res.Header.Get("x-path") != "/"+id {
						t.Errorf("%s: %v", id, res.Header)
					}
				}
			})
		}
		wg.Wait()
	})
	t.Run("resets half-way", func(t *testing.T) {
		for range 50 {
			ctx, cancel := context.WithCancel(t.Context())
			pr, pw := io.Pipe()
			req, _ := http.NewRequestWithContext(ctx, "POST", "http://"+addr+"/", pr)
			go func() { _, _ = pw.Write(make([]byte, 100_000)) }()
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.ReadFull(res.Body, make([]byte, 1000))
			cancel()
			res.Body.Close()
			pr.Close()
		}
		res, err := client.Get("http://" + addr + "/")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	})
}

// exchange sends a request and reads the whole response.
func exchange(c *H2Client, r *message.Request, body []byte, trailers message.Fields) (_ *message.Response, _ []byte, _ message.Fields, err error) {
	u, err := c.Open()
	if err != nil {
		return nil, nil, nil, err
	}
	defer u.Close()
	u.SetReadDeadline(time.Now().Add(time.Minute))
	end := body == nil && trailers == nil
	if !end {
		r.Length = message.Unknown
	}
	if err := u.WriteHead(r, end); err != nil {
		return nil, nil, nil, err
	}
	var wg sync.WaitGroup
	defer func() {
		if err != nil {
			u.Cancel(stream.Cancelled) // the writer may wait for a window that nobody opens any more
		}
		wg.Wait()
	}()
	if !end {
		wg.Go(func() {
			if err := u.WriteBody(body, trailers == nil); err == nil && trailers != nil {
				_ = u.WriteTrailers(trailers)
			}
		})
	}
	var res message.Response
	for res.Status < 200 && res.Status != 101 {
		if err := u.ReadHead(&res); err != nil {
			return nil, nil, nil, err
		}
	}
	// What the response points into is over with the stream: keep copies.
	for i, f := range res.Fields {
		res.Fields[i] = field(string(f.Name), string(f.Value))
	}
	var got []byte
	for {
		p, err := u.ReadBody()
		got = append(got, p...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return &res, got, nil, err
		}
	}
	var tr message.Fields
	for _, f := range u.Trailers() {
		tr = append(tr, field(string(f.Name), string(f.Value)))
	}
	return &res, got, tr, nil
}

func TestH2ClientWithNetHTTP(t *testing.T) {
	addr := h2cServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/early" {
			w.WriteHeader(http.StatusEarlyHints)
		}
		w.Header().Set("X-Length", fmt.Sprint(r.ContentLength))
		w.Header().Set("X-Cookie", r.Header.Get("Cookie"))
		w.Header().Set("Trailer", "X-Sum")
		_ = http.NewResponseController(w).EnableFullDuplex()
		n, _ := io.Copy(w, r.Body)
		w.Header().Set("X-Sum", fmt.Sprint(n, "/", r.Trailer.Get("X-Mine")))
	})
	c := dialH2(t, addr, Defaults())
	res, body, trailers, err := exchange(c, request("POST", "/early", field("cookie", "a=b; c=d"), field("trailer", "x-mine")), []byte("hello"), message.Fields{field("x-mine", "1")})
	if err != nil {
		t.Fatal(err)
	}
	sum, _ := trailers.Get("x-sum")
	cookie, _ := res.Fields.Get("x-cookie")
	if res.Status != 200 || string(body) != "hello" || string(sum) != "5/1" || string(cookie) != "a=b; c=d" {
		t.Errorf("%d %q %q %q", res.Status, body, sum, cookie)
	}
	big := bytes.Repeat([]byte("0123456789"), 300_000)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, body, _, err := exchange(c, request("PUT", "/"), big, nil)
			if err != nil || !bytes.Equal(body, big) {
				t.Errorf("%d bytes came back, %v", len(body), err)
			}
		})
	}
	for range 40 {
		wg.Go(func() {
			for range 50 {
				if res, _, _, err := exchange(c, request("GET", "/"), nil, nil); err != nil || res.Status != 200 {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	c.Shutdown()
	select {
	case <-c.Done():
	case <-time.After(time.Minute):
		t.Error("Shutdown did not end an idle client")
	}
	if _, err := c.Open(); !errors.Is(err, stream.ErrRefused) {
		t.Errorf("Open after Shutdown: %v", err)
	}
}

// An extended CONNECT is a GET to a protocol without a version. What is none is refused, and never sent as another request.
func TestH2UpgradesWithoutAForm(t *testing.T) {
	addr := listenH2(t, handlerFunc(func(d stream.Downstream, _ *Peer) {
		if r := d.Request(); len(r.Upgrade) > 0 {
			t.Errorf("the server got %s %s of %s", r.Method, r.Path, r.Upgrade)
		}
		_ = d.WriteHead(&message.Response{Status: 204}, true)
	}), Defaults(), nil)
	c := dialH2(t, addr, Defaults())
	for _, of := range [][2]string{{"POST", "websocket"}, {"GET", "foo/2"}, {"GET", ""}} {
		u, err := c.Open()
		if err != nil {
			t.Fatal(err)
		}
		r := request(of[0], "/")
		r.Upgrade = []byte(of[1])
		u.SetReadDeadline(time.Now().Add(time.Minute))
		if err := u.WriteHead(r, true); errors.Is(err, stream.ErrNoForm) != (of[1] != "") {
			t.Errorf("%q: %v", of, err)
		} else if err == nil {
			var res message.Response
			if err := u.ReadHead(&res); err != nil || res.Status != 204 {
				t.Errorf("what is asked then: %d, %v", res.Status, err)
			}
		}
		u.Close()
	}
}

func TestH2ExtendedConnect(t *testing.T) {
	addr := listenH2(t, handlerFunc(func(d stream.Downstream, _ *Peer) {
		r := d.Request()
		if string(r.Upgrade) != "websocket" || string(r.Method) != "GET" || string(r.Path) != "/chat" {
			t.Errorf("request %q %q %q", r.Method, r.Path, r.Upgrade)
		}
		if err := d.WriteHead(&message.Response{Status: 101}, false); err != nil {
			t.Error(err)
		}
		if err := errors.Join(d.Flush(), d.Hijack()); err != nil {
			t.Error(err)
		}
		for {
			p, err := d.ReadBody()
			if err != nil && len(p) == 0 {
				_ = d.WriteBody(nil, true)
				return
			}
			_ = d.WriteBody(bytes.ToUpper(p), false)
			_ = d.Flush()
		}
	}), Defaults(), nil)
	c := dialH2(t, addr, Defaults())
	u, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	r := request("GET", "/chat")
	r.Upgrade = []byte("websocket")
	u.SetWriteDeadline(time.Now().Add(time.Minute))
	if err := u.WriteHead(r, false); err != nil {
		t.Fatal(err)
	}
	var res message.Response
	if err := u.ReadHead(&res); err != nil || res.Status != 101 || string(res.Upgrade) != "websocket" {
		t.Fatalf("%+v, %v", res, err)
	}
	if err := u.Hijack(); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"one", "two", strings.Repeat("much", 50_000)} {
		if err := errors.Join(u.WriteBody([]byte(s), false), u.Flush()); err != nil {
			t.Fatal(err)
		}
		var got []byte
		for len(got) < len(s) {
			p, err := u.ReadBody()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, p...)
		}
		if string(got) != strings.ToUpper(s) {
			t.Fatalf("%.10q of %d bytes", got, len(got))
		}
	}
	_ = u.WriteBody(nil, true)
	if p, err := u.ReadBody(); len(p) > 0 || !errors.Is(err, io.EOF) {
		t.Errorf("%q, %v", p, err)
	}
}

func TestH2Deadline(t *testing.T) {
	release := make(chan struct{})
	addr := listenH2(t, handlerFunc(func(d stream.Downstream, p *Peer) {
		<-release
		echo(d, p)
	}), Defaults(), nil)
	c := dialH2(t, addr, Defaults())
	defer close(release)
	for range 3 { // the same pooled stream and timer
		u, err := c.Open()
		if err != nil {
			t.Fatal(err)
		}
		u.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_ = u.WriteHead(request("GET", "/"), true)
		var res message.Response
		if err := u.ReadHead(&res); !errors.Is(err, stream.ErrDeadline) {
			t.Errorf("ReadHead = %v", err)
		}
		u.Close()
	}
}

func TestH2CancelAndOnGone(t *testing.T) {
	gone := make(chan stream.Cause, 1)
	began, back := make(chan struct{}), make(chan struct{})
	addr := listenH2(t, handlerFunc(func(d stream.Downstream, _ *Peer) {
		d.(stream.Notifier).OnGone(func(c stream.Cause) { gone <- c })
		close(began)
		<-back
		d.(stream.Notifier).OnGone(nil)
		if !d.(stream.Watched).Gone() {
			t.Error("the client is not gone")
		}
		if err := d.WriteHead(&message.Response{Status: 200}, true); !errors.Is(err, stream.ErrReset) {
			t.Errorf("WriteHead to a client that is gone: %v", err)
		}
	}), Defaults(), nil)
	c := dialH2(t, addr, Defaults())
	u, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	_ = u.WriteHead(request("GET", "/"), true)
	go func() {
		<-began
		u.Cancel(stream.Cancelled)
	}()
	var res message.Response
	if err := u.ReadHead(&res); !errors.Is(err, stream.ErrCancelled) {
		t.Errorf("ReadHead = %v", err)
	}
	if cause := <-gone; cause != stream.Cancelled {
		t.Errorf("cause %v", cause)
	}
	close(back)
	u.Close()
	if n := c.Free(); n != 100 {
		t.Errorf("%d streams are free", n)
	}
}

// A client that does not read makes nobody hold more than the windows.
func TestH2SlowReader(t *testing.T) {
	var sent atomic.Int64
	over := make(chan error, 1)
	cfg := Defaults()
	addr := listenH2(t, handlerFunc(func(d stream.Downstream, _ *Peer) {
		_ = d.WriteHead(&message.Response{Status: 200, Length: message.Unknown, HasBody: true}, false)
		p := make([]byte, 10_000)
		for {
			if err := d.WriteBody(p, false); err != nil {
				over <- err
				return
			}
			sent.Add(int64(len(p)))
		}
	}), cfg, nil)
	c := dialH2(t, addr, cfg)
	u, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	_ = u.WriteHead(request("GET", "/"), true)
	var res message.Response
	if err := u.ReadHead(&res); err != nil {
		t.Fatal(err)
	}
	before := int64(-1)
	for n := sent.Load(); n != before; n = sent.Load() {
		before = n
		time.Sleep(50 * time.Millisecond)
	}
	if before > int64(cfg.StreamWindow) {
		t.Errorf("%d bytes were sent to a client that reads nothing", before)
	}
	// Another stream of the connection is not held up.
	if n := c.Free(); n != 99 {
		t.Errorf("%d streams are free", n)
	}
	for read := 0; read < 1<<20; {
		p, err := u.ReadBody()
		if err != nil {
			t.Fatal(err)
		}
		read += len(p)
	}
	u.Close()
	if err := <-over; !errors.Is(err, stream.ErrReset) {
		t.Errorf("the writer saw %v", err)
	}
}

func TestH2Drain(t *testing.T) {
	drain := &Drain{}
	entered, release := make(chan struct{}), make(chan struct{})
	addr := listenH2(t, handlerFunc(func(d stream.Downstream, p *Peer) {
		if string(d.Request().Path) == "/slow" {
			close(entered)
			<-release
		}
		echo(d, p)
	}), Defaults(), drain)
	c := dialH2(t, addr, Defaults())
	result := make(chan error, 1)
	go func() {
		_, _, _, err := exchange(c, request("GET", "/slow"), nil, nil)
		result <- err
	}()
	<-entered
	drain.Begin()
	for c.Free() > 0 {
		time.Sleep(time.Millisecond)
	}
	select {
	case <-c.Done():
		t.Fatal("the connection ended under an open stream")
	default:
	}
	close(release)
	if err := <-result; err != nil {
		t.Errorf("the open stream: %v", err)
	}
	select {
	case <-c.Done():
	case <-time.After(time.Minute):
		t.Error("a drained connection stays")
	}
}

func TestH2IdleTimeout(t *testing.T) {
	cfg := Defaults()
	cfg.Idle = 50 * time.Millisecond
	c := dialH2(t, listenH2(t, handlerFunc(echo), cfg, nil), Defaults())
	if _, _, _, err := exchange(c, request("GET", "/"), nil, nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.Done():
	case <-time.After(time.Minute):
		t.Error("an idle connection stays")
	}
}

// pingCounter counts the frames that a server is sent after the first ones.
type pingCounter struct {
	net.Conn
	n atomic.Int64
}

func (p *pingCounter) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if n >= 9 && h2.FrameType(b[3]) == h2.Ping && b[4] == 0 {
		p.n.Add(1)
	}
	return n, err
}

func TestH2Keepalive(t *testing.T) {
	cfg := Defaults()
	cfg.H2Keepalive, cfg.H2KeepaliveTimeout = 40*time.Millisecond, 40*time.Millisecond
	t.Run("answered", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			pings := &pingCounter{Conn: far}
			go ServeH2(pings, nil, &Peer{}, handlerFunc(echo), Defaults(), nil)
			c := NewH2Client(near, cfg)
			go func() { _ = c.Run() }()
			defer func() {
				c.CloseConn()
				<-c.Done()
			}()
			select {
			case <-c.Done():
				t.Error("a healthy connection ended")
			case <-time.After(time.Second):
			}
			if pings.n.Load() == 0 {
				t.Error("nothing was asked of the connection")
			}
		})
	})
	t.Run("silent", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			s := h2.DefaultSettings()
			_, _ = nc.Write(s.Append(nil, true))
			_, _ = io.Copy(io.Discard, nc)
		}()
		c := dialH2(t, l.Addr().String(), cfg)
		select {
		case <-c.Done():
		case <-time.After(time.Minute):
			t.Error("a dead connection stays")
		}
	})
}

// A connection that dies under load leaves nobody waiting.
func TestH2ConnectionDiesUnderLoad(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		t.Run(side, func(t *testing.T) {
			served := make(chan net.Conn, 1)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			checkGoroutines(t)
			go func() {
				nc, err := l.Accept()
				if err != nil {
					return
				}
				served <- nc
				ServeH2(nc, nil, &Peer{}, handlerFunc(echo), Defaults(), nil)
			}()
			c := dialH2(t, l.Addr().String(), Defaults())
			var wg sync.WaitGroup
			var good atomic.Int64
			for range 30 {
				wg.Go(func() {
					for {
						if _, _, _, err := exchange(c, request("POST", "/", field("x-test", "y")), make([]byte, 5000), message.Fields{field("a", "b")}); err != nil {
							return
						}
						good.Add(1)
					}
				})
			}
			nc := <-served
			for good.Load() < 300 {
				time.Sleep(time.Millisecond)
			}
			if side == "client" {
				c.CloseConn()
			} else {
				_ = nc.Close()
			}
			wg.Wait()
			<-c.Done()
		})
	}
}

// The connection's clock is a read deadline: one that passes in the middle of nothing, or of a TLS record, does no harm.
func TestH2TicksOverTLS(t *testing.T) {
	checkGoroutines(t)
	borrowed := httptest.NewTLSServer(nil)
	defer borrowed.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: borrowed.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := Defaults()
	cfg.H2Keepalive, cfg.H2KeepaliveTimeout = 40*time.Millisecond, time.Minute // the client looks at the clock each 10 ms
	go func() {
		nc, err := l.Accept()
		if err == nil && nc.(*tls.Conn).Handshake() == nil {
			ServeH2(nc, nil, &Peer{}, handlerFunc(echo), cfg, nil)
		}
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	secure := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
	if err := secure.Handshake(); err != nil { // as everybody who has to know the protocol first; a deadline would end it
		t.Fatal(err)
	}
	c := NewH2Client(secure, cfg)
	go func() { _ = c.Run() }()
	defer func() {
		c.CloseConn()
		<-c.Done()
	}()
	body := bytes.Repeat([]byte("x"), 1<<20)
	for range 5 {
		_, got, _, err := exchange(c, request("POST", "/"), body, nil)
		if err != nil || !bytes.Equal(got, body) {
			t.Fatalf("%d bytes came back, %v", len(got), err)
		}
		time.Sleep(30 * time.Millisecond)
	}
}

package conn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// sockets returns both ends of a TCP connection.
func sockets(t *testing.T) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	client, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
	return client, server
}

func getRequest() *message.Request {
	return &message.Request{Method: []byte("GET"), Path: []byte("/"), Authority: []byte("a"), Major: 1, Minor: 1}
}

// exchangeOnce sends a GET and reads the answer, which the server end gives as it is told.
func exchangeOnce(c *H1Client) (message.Response, string, error) {
	var resp message.Response
	if err := c.WriteHead(getRequest(), true); err != nil {
		return resp, "", err
	}
	_ = c.Flush() // the answer may be there although writing failed
	for resp.Status < 200 && resp.Status != 101 {
		if err := c.ReadHead(&resp); err != nil {
			return resp, "", err
		}
	}
	var body []byte
	for resp.HasBody {
		p, err := c.ReadBody()
		body = append(body, p...)
		if err == io.EOF {
			break
		}
		if err != nil {
			return resp, string(body), err
		}
	}
	return resp, string(body), nil
}

func TestClientReuse(t *testing.T) {
	tests := []struct {
		name, answer string
		reusable     bool
		err          error
	}{
		{"length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true, nil},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", true, nil},
		{"nothing", "HTTP/1.1 204 No\r\n\r\n", true, nil},
		{"close", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", false, nil},
		{"interim", "HTTP/1.1 103 x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true, nil},
		{"interim of a length", "HTTP/1.1 103 x\r\nContent-Length: 40\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false, nil},
		{"interim that is chunked", "HTTP/1.1 103 x\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false, nil},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", false, nil},
		{"too much", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n", false, nil},
		{"malformed", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", false, stream.ErrProtocol},
		{"unasked switch", "HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", false, stream.ErrProtocol},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			nc, server := sockets(t)
			var reusable bool
			c := NewH1Client(nc, Defaults(), func(_ *H1Client, r bool) { reusable = r })
			if !c.Alive() {
				t.Error("a new connection is not alive")
			}
			c.Begin()
			if _, err := io.WriteString(server, tt.answer); err != nil {
				t.Fatal(err)
			}
			_, _, err := exchangeOnce(c)
			if !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			c.Close()
			if reusable != tt.reusable {
				t.Errorf("reusable is %v, want %v", reusable, tt.reusable)
			}
		})
	}
}

// A connection that the server closes while it is idle is told from one that fails with a request on it.
func TestClientStale(t *testing.T) {
	nc, server := sockets(t)
	c := NewH1Client(nc, Defaults(), func(*H1Client, bool) {})
	c.Begin()
	_, _ = io.WriteString(server, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	if _, body, err := exchangeOnce(c); err != nil || body != "ok" {
		t.Fatal(body, err)
	}
	c.Close()
	_ = server.Close()
	for c.Alive() { // until the kernel has seen the end
		time.Sleep(time.Millisecond)
	}
	c.Begin()
	if _, _, err := exchangeOnce(c); !errors.Is(err, stream.ErrStale) {
		t.Errorf("on a used connection: error %v, want stale", err)
	}
	c.Close()

	// The pool had looked, and then the server closed it.
	nc, server = sockets(t)
	sock, err := NewSocket(nc.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	c = NewH1Client(sock, Defaults(), func(*H1Client, bool) {})
	c.Begin()
	_ = server.Close()
	if _, _, err := exchangeOnce(c); !errors.Is(err, stream.ErrUnread) {
		t.Errorf("what came after the close: error %v, want unread", err)
	}
	c.Close()

	nc, server = sockets(t)
	c = NewH1Client(nc, Defaults(), func(*H1Client, bool) {})
	c.Begin()
	_ = server.(*net.TCPConn).CloseWrite()
	if _, _, err := exchangeOnce(c); !errors.Is(err, stream.ErrReset) {
		t.Errorf("on a fresh connection: error %v, want a reset", err)
	}
	c.Close()
}

// A program that leaves a request in its buffer when it closes is told from one that has read it and resets the connection when its time is
// over.
func TestClientReset(t *testing.T) {
	for _, reads := range []bool{false, true} {
		nc, server := sockets(t)
		sock, err := NewSocket(nc.(*net.TCPConn))
		if err != nil {
			t.Fatal(err)
		}
		c := NewH1Client(sock, Defaults(), func(*H1Client, bool) {})
		served := make(chan error, 1)
		go func() {
			// The first octet says that the request has come; the rest stays.
			b := make([]byte, 1)
			if reads {
				b = make([]byte, 512)
			}
			_, err := server.Read(b)
			if reads {
				time.Sleep(2 * atOnce)
				err = errors.Join(err, server.(*net.TCPConn).SetLinger(0))
			}
			served <- errors.Join(err, server.Close())
		}()
		c.Begin()
		began := time.Now()
		_, _, err = exchangeOnce(c)
		slow := !reads && time.Since(began) > atOnce // this machine had no time for the server
		if !errors.Is(err, stream.ErrReset) || errors.Is(err, stream.ErrUnread) == reads && !slow {
			t.Errorf("reads %v: error %v", reads, err)
		}
		c.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

// Inside of TLS, too, a request that came after its peer had closed is known not to have been read, and one that was read is not.
func TestClientStaleTLS(t *testing.T) {
	sample := httptest.NewTLSServer(nil) // for its certificate
	defer sample.Close()
	for _, reads := range []bool{false, true} {
		nc, far := sockets(t)
		sock, err := NewSocket(nc.(*net.TCPConn))
		if err != nil {
			t.Fatal(err)
		}
		server := tls.Server(far, &tls.Config{Certificates: sample.TLS.Certificates})
		c := NewH1Client(tls.Client(sock, &tls.Config{InsecureSkipVerify: true}), Defaults(), func(*H1Client, bool) {}) //nolint:gosec // the certificate is not what is tested
		served := make(chan error, 1)
		go func() { served <- errors.Join(server.Handshake(), answerOne(server)) }()
		c.Begin()
		if _, body, err := exchangeOnce(c); err != nil || body != "ok" {
			t.Fatal(body, err, <-served)
		}
		if err := <-served; err != nil {
			t.Fatal(err)
		}
		c.Close()
		if reads {
			go func() {
				_, err := server.Read(make([]byte, 512))
				_ = server.Close()
				served <- err
			}()
		} else {
			_ = server.Close()
			served <- nil
		}
		c.Begin()
		if _, _, err := exchangeOnce(c); !errors.Is(err, stream.ErrStale) || errors.Is(err, stream.ErrUnread) == reads {
			t.Errorf("reads %v: error %v", reads, err)
		}
		c.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

// answerOne reads what is a request, and answers it.
func answerOne(nc net.Conn) error {
	_, err := nc.Read(make([]byte, 512))
	_, werr := io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	return errors.Join(err, werr)
}

// A peer that does not read is given up when the time for writing is over, also where reading is what a request went out with.
func TestClientWhoDoesNotRead(t *testing.T) {
	for _, by := range []time.Duration{0, 20 * time.Millisecond} {
		nc, server := sockets(t)
		_ = nc.(*net.TCPConn).SetWriteBuffer(4 << 10)
		_ = server.(*net.TCPConn).SetReadBuffer(4 << 10)
		sock, err := NewSocket(nc.(*net.TCPConn))
		if err != nil {
			t.Fatal(err)
		}
		cfg := Defaults()
		if by == 0 {
			cfg.WriteTimeout = 20 * time.Millisecond
		}
		c := NewH1Client(sock, cfg, func(*H1Client, bool) {})
		c.Begin()
		if by > 0 {
			c.SetWriteDeadline(time.Now().Add(by))
		}
		r := getRequest()
		r.Fields.Add("x", bytes.Repeat([]byte("x"), 4<<20))
		if err := errors.Join(c.WriteHead(r, true), c.Flush()); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		var resp message.Response
		if err := c.ReadHead(&resp); !errors.Is(err, stream.ErrReset) {
			t.Errorf("error %v, want a reset", err)
		}
		c.Close()
	}
}

// Deadlines are exact, though the socket's is moved lazily, and an exchange goes on after one.
func TestClientDeadline(t *testing.T) {
	nc, server := sockets(t)
	c := NewH1Client(nc, Defaults(), func(*H1Client, bool) {})
	c.Begin()
	if err := c.WriteHead(getRequest(), true); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	var resp message.Response
	for _, d := range []time.Duration{30 * time.Millisecond, 10 * time.Millisecond, 40 * time.Millisecond} {
		begin := time.Now()
		c.SetReadDeadline(begin.Add(d))
		if err := c.ReadHead(&resp); !errors.Is(err, stream.ErrDeadline) {
			t.Fatalf("error %v", err)
		}
		if took := time.Since(begin); took < d {
			t.Errorf("a deadline of %v passed after %v", d, took)
		}
	}
	c.SetReadDeadline(time.Now().Add(time.Minute))
	_, _ = io.WriteString(server, "HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	for _, want := range []int{103, 200} {
		if err := c.ReadHead(&resp); err != nil || resp.Status != want {
			t.Errorf("status %d error %v, want %d", resp.Status, err, want)
		}
	}
	c.Close()
}

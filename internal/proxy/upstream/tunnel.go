package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// tunnel opens a connection and asks the endpoint to carry it on to another host, with HTTP/1.1: CONNECT (RFC 9110 section
// 9.3.6), or POST whose body is the one direction and the body of its answer the other.
func (e *Endpoint) tunnel(st *state, a *Attempt) (net.Conn, error) {
	t := st.plan.Tunnel
	nc, err := e.connect(st, a, trust.ALPNHTTP1)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(e.cluster.set.live, func() { _ = nc.Close() })()
	up := conn.NewH1Client(nc, st.conn, func(c *conn.H1Client, _ bool) { c.CloseConn() })
	up.Begin()
	host := net.JoinHostPort(t.Host, strconv.Itoa(t.Port))
	r := &message.Request{Method: []byte("CONNECT"), Authority: []byte(host), Host: []byte(t.Host), Port: t.Port, Major: 1, Minor: 1}
	if t.Post {
		r.Method, r.Scheme, r.Path, r.Length = []byte("POST"), []byte("http"), []byte("/"), message.Unknown
	}
	deadline := e.cluster.set.now().Add(st.connectTimeout())
	if !a.Deadline.IsZero() && a.Deadline.Before(deadline) {
		deadline = a.Deadline
	}
	up.SetReadDeadline(deadline)
	var resp message.Response
	err = up.WriteHead(r, false)
	if err == nil {
		err = up.Flush()
	}
	for err == nil && resp.Status < 200 {
		err = up.ReadHead(&resp)
	}
	if err == nil && resp.Status/100 != 2 {
		err = fmt.Errorf("it answered %d", resp.Status)
	}
	if err == nil && !t.Post {
		err = up.Hijack()
	}
	if err != nil {
		up.Close()
		return nil, e.failed(st, fmt.Errorf("%s %s: %w", r.Method, host, err))
	}
	up.SetReadDeadline(time.Time{})
	return &tunnelled{Conn: nc, up: up}, nil
}

// tunnelled is the bytes inside a tunnel. It embeds the connection for its addresses.
type tunnelled struct {
	net.Conn
	up *conn.H1Client

	rmu  sync.Mutex
	left []byte // read, and not taken yet

	wmu    sync.Mutex
	closed sync.Once
}

// Read implements net.Conn.
func (t *tunnelled) Read(p []byte) (int, error) {
	t.rmu.Lock()
	defer t.rmu.Unlock()
	for len(t.left) == 0 {
		b, err := t.up.ReadBody()
		t.left = b
		if len(b) == 0 && err != nil {
			return 0, plain(err)
		}
	}
	n := copy(p, t.left)
	t.left = t.left[n:]
	return n, nil
}

// Write implements net.Conn.
func (t *tunnelled) Write(p []byte) (int, error) {
	t.wmu.Lock()
	defer t.wmu.Unlock()
	err := t.up.WriteBody(p, false)
	if err == nil {
		err = t.up.Flush()
	}
	if err != nil {
		return 0, plain(err)
	}
	return len(p), nil
}

// plain turns errors of streams into those of connections.
func plain(err error) error {
	if errors.Is(err, stream.ErrDeadline) {
		return os.ErrDeadlineExceeded
	}
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	return err
}

// CloseWrite ends our direction.
func (t *tunnelled) CloseWrite() error {
	t.wmu.Lock()
	defer t.wmu.Unlock()
	err := t.up.WriteBody(nil, true)
	if err == nil {
		err = t.up.Flush()
	}
	return err
}

// SetReadDeadline implements net.Conn, for the next Read.
func (t *tunnelled) SetReadDeadline(d time.Time) error {
	t.up.SetReadDeadline(d)
	return nil
}

// SetDeadline implements net.Conn.
func (t *tunnelled) SetDeadline(d time.Time) error {
	t.up.SetReadDeadline(d)
	return t.SetWriteDeadline(d)
}

// Close implements net.Conn. The client's buffers are left to the collector: somebody may be reading into them.
func (t *tunnelled) Close() error {
	var err error
	t.closed.Do(func() { err = t.Conn.Close() })
	return err
}

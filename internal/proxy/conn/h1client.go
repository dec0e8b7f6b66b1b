package conn

import (
	"net"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// H1Client is the client side of an HTTP/1 connection: a stream.Upstream that is used for one exchange after the other.
type H1Client struct {
	nc      net.Conn
	cfg     *Config
	release func(c *H1Client, reusable bool)
}

// NewH1Client returns a client on a connection, TLS already done. Close calls release with whether the connection may
// carry another exchange; when it may not, it is closed already.
func NewH1Client(nc net.Conn, cfg *Config, release func(c *H1Client, reusable bool)) *H1Client {
	return &H1Client{nc: nc, cfg: cfg, release: release}
}

var _ stream.Upstream = (*H1Client)(nil)

// Begin readies the client for the next exchange. Call it before each one.
func (c *H1Client) Begin() {}

// Alive reports whether an idle connection can be expected to work: the peer has neither closed it nor sent anything.
// It does not block and costs one system call.
func (c *H1Client) Alive() bool { return false }

// CloseConn closes the connection of an idle client.
func (c *H1Client) CloseConn() {}

// WriteHead implements stream.Upstream.
func (c *H1Client) WriteHead(*message.Request, bool) error { return stream.ErrReset }

// WriteBody implements stream.Upstream.
func (c *H1Client) WriteBody([]byte, bool) error { return stream.ErrReset }

// WriteTrailers implements stream.Upstream.
func (c *H1Client) WriteTrailers(message.Fields) error { return stream.ErrReset }

// Flush implements stream.Upstream.
func (c *H1Client) Flush() error { return stream.ErrReset }

// ReadHead implements stream.Upstream.
func (c *H1Client) ReadHead(*message.Response) error { return stream.ErrReset }

// ReadBody implements stream.Upstream.
func (c *H1Client) ReadBody() ([]byte, error) { return nil, stream.ErrReset }

// Trailers implements stream.Upstream.
func (c *H1Client) Trailers() message.Fields { return nil }

// SetReadDeadline implements stream.Upstream.
func (c *H1Client) SetReadDeadline(time.Time) {}

// Cancel implements stream.Upstream.
func (c *H1Client) Cancel(stream.Cause) {}

// Close implements stream.Upstream.
func (c *H1Client) Close() {}

// Hijack implements stream.Upstream.
func (c *H1Client) Hijack() error { return stream.ErrReset }

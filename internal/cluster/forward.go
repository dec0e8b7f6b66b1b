package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/httpstream" //nolint:staticcheck // the one that client-go 0.37 speaks
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// dialer returns Cluster.Dial: a stream of the port-forward protocol, over WebSocket or, with API servers before 1.31, SPDY.
func dialer(config *rest.Config) func(ctx context.Context, namespace, pod string, port int) (net.Conn, error) {
	return func(ctx context.Context, namespace, pod string, port int) (net.Conn, error) {
		base, _, err := rest.DefaultServerUrlFor(config)
		if err != nil {
			return nil, err
		}
		u := base.JoinPath("api/v1/namespaces", namespace, "pods", pod, "portforward")
		d, err := streams(config, u)
		if err != nil {
			return nil, err
		}
		c, err := connect(ctx, d)
		if err != nil {
			return nil, err
		}
		conn, err := open(c, port)
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return conn, nil
	}
}

func streams(config *rest.Config, u *url.URL) (httpstream.Dialer, error) {
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	old := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	fresh, err := portforward.NewSPDYOverWebsocketDialer(u, config)
	if err != nil {
		return nil, err
	}
	return portforward.NewFallbackDialer(fresh, old, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	}), nil
}

// connect dials until ctx is over. The dialer knows no context: a connection that comes too late is closed by who waits for it.
func connect(ctx context.Context, d httpstream.Dialer) (httpstream.Connection, error) {
	type result struct {
		conn httpstream.Connection
		err  error
	}
	done := make(chan result, 1)
	go func() {
		c, _, err := d.Dial(portforward.PortForwardProtocolV1Name)
		done <- result{c, err}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				_ = r.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

func open(c httpstream.Connection, port int) (net.Conn, error) {
	h := http.Header{}
	h.Set("streamType", "error")
	h.Set("port", strconv.Itoa(port))
	h.Set("requestID", "0")
	failures, err := c.CreateStream(h)
	if err != nil {
		return nil, err
	}
	_ = failures.Close() // nothing is said on it, only heard
	h.Set("streamType", "data")
	data, err := c.CreateStream(h)
	if err != nil {
		return nil, err
	}
	return &forwarded{Stream: data, conn: c, failures: failures, port: port}, nil
}

// forwarded is a TCP connection to a pod, through the API server.
type forwarded struct {
	httpstream.Stream
	conn     httpstream.Connection
	failures httpstream.Stream
	port     int
	once     sync.Once
}

// Read says why there is nothing, if the kubelet says so.
func (f *forwarded) Read(b []byte) (int, error) {
	n, err := f.Stream.Read(b)
	if n == 0 && err != nil {
		if why, rerr := io.ReadAll(io.LimitReader(f.failures, 1<<10)); rerr == nil && len(why) > 0 {
			return 0, fmt.Errorf("port %d of the pod: %s", f.port, strings.TrimSpace(string(why)))
		}
	}
	return n, err
}

func (f *forwarded) Close() (err error) {
	f.once.Do(func() { err = errors.Join(f.Reset(), f.conn.Close()) })
	return err
}

type podAddr string

func (podAddr) Network() string  { return "tcp" }
func (a podAddr) String() string { return string(a) }

func (f *forwarded) LocalAddr() net.Addr              { return podAddr("local") }
func (f *forwarded) RemoteAddr() net.Addr             { return podAddr("127.0.0.1:" + strconv.Itoa(f.port)) }
func (f *forwarded) SetDeadline(time.Time) error      { return nil } // the context of the call ends it
func (f *forwarded) SetReadDeadline(time.Time) error  { return nil }
func (f *forwarded) SetWriteDeadline(time.Time) error { return nil }

// maxAnswer bounds what a pod may answer: a plan of a big mesh has some tens of megabytes.
const maxAnswer = 256 << 20

// NoAnswer says that a pod answered otherwise than with 200.
type NoAnswer struct {
	Status int
	Text   string
}

func (e *NoAnswer) Error() string { return fmt.Sprintf("answered %d: %s", e.Status, e.Text) }

// Ask sends a GET to a port of a pod, on its loopback interface, and returns the body of the answer.
func (c *Cluster) Ask(ctx context.Context, namespace, pod string, port int, path string) ([]byte, error) {
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return c.Dial(ctx, namespace, pod, port)
	}}
	defer t.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
	if err != nil {
		return nil, err
	}
	res, err := t.RoundTrip(req)
	if err != nil {
		return nil, c.Unreached(err, namespace, pod, port)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, c.Unreached(err, namespace, pod, port)
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("pod %s/%s: %s: %w", namespace, pod, path, &NoAnswer{res.StatusCode, strings.TrimSpace(string(body[:min(len(body), 500)]))})
	}
	return body, nil
}

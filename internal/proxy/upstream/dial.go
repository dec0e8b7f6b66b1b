package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// dialSocket is the default Options.Dial.
func (s *Set) dialSocket(ctx context.Context, addr string) (net.Conn, error) {
	if socket, ok := strings.CutPrefix(addr, plan.UnixPrefix); ok {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket) // Go reads "@" as the abstract namespace
	}
	return s.dialTCP(ctx, addr)
}

// dialTCP connects to an IP address or name. Go sets TCP_NODELAY itself. Multipath TCP is switched off, which Go tries by
// default on listeners and may on dials: it is slower on one path and lacks socket options.
//
// An address that a client chose is never one of this proxy's own listeners (own), nor one that the cluster may not reach
// (within): it is looked at once the name is resolved, before the first packet.
func (s *Set) dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true}}
	d.SetMultipathTCP(false)
	stranger, _ := ctx.Value(strange{}).(*Cluster)
	priority := 0
	if p, ok := ctx.Value(delivered{}).(int); ok {
		priority = p
	}
	if stranger != nil || priority != 0 {
		d.Control = func(_, address string, c syscall.RawConn) error {
			if stranger != nil {
				if err := s.admits(stranger, address); err != nil {
					return err
				}
			}
			return prioritize(c, priority)
		}
	}
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return conn.NewSocket(nc.(*net.TCPConn))
}

// admits refuses an address that a client may not be led to.
func (s *Set) admits(c *Cluster, address string) error {
	ap, err := netip.ParseAddrPort(address)
	switch {
	case err != nil:
		return err
	case s.own != nil && s.own(netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())):
		return errOwn
	case c.within != nil:
		return c.within.Reaches(ap.Addr())
	}
	return nil
}

// Delivery is which clusters are the workload itself, where the kernel captures its traffic: connections to them are not to be
// captured again, and have a priority by which the kernel tells them from calls to a peer that happens to be this workload.
type Delivery struct {
	Clusters map[string]bool
	Priority int // SO_PRIORITY, socket(7)
}

// Deliver puts d in force for connections from now on; nil: there are none.
func (s *Set) Deliver(d *Delivery) { s.deliver.Store(d) }

// delivered marks the context of a dial to the workload itself; its value is the priority.
type delivered struct{}

// connect opens a transport connection and, where the endpoint wants it, mesh TLS on it. The caller holds a place for it.
func (e *Endpoint) connect(st *state, a *Attempt, alpn string) (net.Conn, error) {
	c := e.cluster
	s := c.set
	select {
	case <-s.ended:
		return nil, ErrClosed
	default:
	}
	deadline := a.Deadline
	limit := s.now().Add(st.connectTimeout())
	short := !deadline.IsZero() && deadline.Before(limit)
	if short {
		limit = deadline
	}
	ctx, cancel := context.WithDeadline(s.live, limit)
	defer cancel()
	nc, err := e.open(ctx, st, a, alpn)
	if err == nil {
		c.counted.connectionsTotal.Add(1)
		return nc, nil
	}
	timedOut := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
	if !timedOut {
		// The dialer reports its own timeout type when the socket was faster than the context.
		var ne net.Error
		timedOut = errors.As(err, &ne) && ne.Timeout() && ctx.Err() != nil
	}
	switch {
	case s.live.Err() != nil:
		return nil, ErrClosed
	case timedOut && short:
		c.counted.connectFailed.Add(1)
		e.blame(st)
		return nil, fmt.Errorf("%w while connecting to %s", stream.ErrDeadline, e.Address())
	case timedOut:
		err = fmt.Errorf("no answer within %v (connectTimeout)", st.connectTimeout())
	}
	return nil, e.failed(st, err)
}

// failed counts a failed connect and makes its error.
func (e *Endpoint) failed(st *state, err error) error {
	e.cluster.counted.connectFailed.Add(1)
	if ours(err) {
		return &ConnectError{Endpoint: e, Err: fmt.Errorf("this proxy has no more file descriptors or ports: %w", err)}
	}
	e.blame(st)
	return &ConnectError{Endpoint: e, Err: err}
}

// ours tells a lack of descriptors, ports or memory on this side: no endpoint is put aside for it.
func ours(err error) bool {
	for _, e := range [...]syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// blame reports a failed connect to outlier detection, as a gateway error.
func (e *Endpoint) blame(st *state) {
	if st.plan.Outlier != nil {
		e.report(st, Outcome{Err: stream.ErrReset})
	}
}

// clientConfig returns the TLS configuration for a protocol. It is kept until the credentials rotate, so that one
// handshake never mixes two generations: a connection that is being made while they rotate still completes.
func (e *Endpoint) clientConfig(alpn string) (*tls.Config, error) {
	credentials := e.cluster.set.credentials.Current()
	if credentials == nil {
		return nil, trust.ErrNoCredentials
	}
	kept := &e.configs[0]
	switch alpn {
	case trust.ALPNHTTP2:
		kept = &e.configs[1]
	case trust.ALPNOpaque:
		kept = &e.configs[2]
	}
	if k := kept.Load(); k != nil && k.credentials == credentials {
		return k.config, nil
	}
	k := &clientConfig{
		credentials: credentials,
		config: trust.ClientConfig(trust.Static{Credentials: credentials},
			[]ident.Identity{e.key.identity}, e.key.sni, []string{alpn}),
	}
	kept.Store(k)
	return k.config, nil
}

// Dial picks an endpoint and opens a connection for opaque bytes, TLS included. Closing it ends its use. The errors are
// those of Acquire.
func (c *Cluster) Dial(deadline time.Time) (net.Conn, *Endpoint, error) {
	return c.DialFor(&Attempt{Deadline: deadline})
}

// DialFor is Dial for an attempt: where opaque connections shall meet (Hash), whose they are (Source, Target), and where to
// (Host, Port).
func (c *Cluster) DialFor(a *Attempt) (net.Conn, *Endpoint, error) { return c.core().dialFor(a) }

func (c *core) dialFor(a *Attempt) (net.Conn, *Endpoint, error) {
	st := c.state.Load()
	e, chosen, err := c.pick(st, a)
	if err != nil {
		return nil, nil, err
	}
	st = c.state.Load()
	nc, err := e.dialOpaque(st, a)
	switch {
	case chosen == byTrial && err != nil:
		e.tried(failureOf(err))
	case chosen == byTrial:
		e.tried(success) // a connect is all the success that can be seen
	case err == nil && st.plan.Outlier != nil:
		e.report(st, Outcome{Status: 200})
	}
	return nc, e, err
}

func (e *Endpoint) dialOpaque(st *state, a *Attempt) (net.Conn, error) {
	c := e.cluster
	// Opaque connections don't wait in line: nobody knows when one ends (Envoy's TCP proxy does the same).
	if !e.reserve(st.plan.Limits.MaxConnections, false) {
		c.counted.overflow.Add(1)
		return nil, errMaxConnections
	}
	e.inFlight.Add(1)
	t := &tcpConn{endpoint: e}
	var nc net.Conn
	var err error
	if st.plan.Tunnel != nil {
		nc, err = e.tunnel(st, a)
	} else {
		nc, err = e.connect(st, a, trust.ALPNOpaque)
	}
	if err != nil {
		t.over()
		return nil, err
	}
	t.Conn = nc
	if !c.set.register(t, nil) {
		_ = nc.Close()
		t.over()
		return nil, ErrClosed
	}
	if d := st.plan.Limits.MaxConnectionDuration.D(); d > 0 {
		t.limit.Store(time.AfterFunc(d, t.kill))
	}
	return t, nil
}

// tcpConn is an opaque connection that gives its place back when it is closed.
type tcpConn struct {
	net.Conn
	endpoint *Endpoint
	limit    atomic.Pointer[time.Timer] // MaxConnectionDuration
	closed   atomic.Bool
}

// NetConn returns the connection beneath, so that bytes can be moved without a copy; it must not be closed.
func (t *tcpConn) NetConn() net.Conn { return t.Conn }

// CloseWrite ends our direction, where the connection can say so.
func (t *tcpConn) CloseWrite() error {
	if c, ok := t.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// ReadFrom lets the kernel move bytes from one socket to another (io.Copy, splice).
func (t *tcpConn) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := t.Conn.(io.ReaderFrom); ok {
		return rf.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{t.Conn}, r)
}

// WriteTo is ReadFrom for the other direction.
func (t *tcpConn) WriteTo(w io.Writer) (int64, error) {
	if wt, ok := t.Conn.(io.WriterTo); ok {
		return wt.WriteTo(w)
	}
	return io.Copy(w, struct{ io.Reader }{t.Conn})
}

// Close closes the connection and gives its place back. It may be called more than once.
func (t *tcpConn) Close() error {
	if t.closed.Swap(true) {
		return nil
	}
	if l := t.limit.Load(); l != nil {
		l.Stop()
	}
	err := t.Conn.Close()
	t.over()
	// Last: Set.Close waits for it, and promises that nothing is counted then.
	t.endpoint.cluster.set.unregister(t)
	return err
}

// kill closes the connection under its user, who then closes it too.
func (t *tcpConn) kill() { _ = t.Close() }

// over gives the place back.
func (t *tcpConn) over() {
	t.endpoint.inFlight.Add(-1)
	t.endpoint.unreserve()
	t.endpoint.cluster.slotFreed(t.endpoint)
}

package upstream

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
)

// connConfig returns how HTTP is spoken on the connections of a cluster.
func connConfig(of *conn.Config, p *plan.Cluster) *conn.Config {
	if p.Ping == nil && p.MaxStreams == 0 {
		return of
	}
	c := *of
	if p.Ping != nil {
		c.H2Keepalive = p.Ping.Interval.D()
		if p.Ping.Timeout > 0 {
			c.H2KeepaliveTimeout = p.Ping.Timeout.D()
		}
	}
	if p.MaxStreams > 0 {
		c.H2MaxUpstreamStreams = min(p.MaxStreams, c.H2MaxUpstreamStreams)
	}
	return &c
}

// begins spells everything that decides how a connection begins, besides what has a field of its own in key.
func begins(p *plan.Cluster, mesh bool) string {
	if (mesh || p.Originate == nil) && p.ProxyProtocol == 0 && p.Tunnel == nil && p.Keepalive == nil && p.Discovery != plan.AsRequested {
		return ""
	}
	var how struct {
		Originate *plan.ClientTLS
		Proxy     uint32
		Tunnel    *plan.Tunnel
		Keepalive *plan.Keepalive
	}
	if !mesh {
		how.Originate = p.Originate
	}
	how.Proxy, how.Tunnel, how.Keepalive = p.ProxyProtocol, p.Tunnel, p.Keepalive
	b, err := json.Marshal(how)
	if err != nil {
		return err.Error() // it has no values that can't be spelled
	}
	return string(b)
}

// sniOfRequest reports whether the name that a server outside of the mesh must prove is known only with the request.
func sniOfRequest(p *plan.Cluster) bool {
	return p.Originate != nil && p.Originate.SNI == "" && p.Discovery != plan.AsRequested && (p.Host == "" || strings.HasPrefix(p.Host, "*"))
}

// serverName returns the name that a server outside of the mesh must prove.
func (e *Endpoint) serverName(p *plan.Cluster, a *Attempt) string {
	switch {
	case p.Originate.SNI != "":
		return p.Originate.SNI
	case p.Discovery == plan.AsRequested:
		return e.Host()
	case sniOfRequest(p):
		return string(a.Host)
	}
	return p.Host
}

// open makes a transport connection and says on it what has to be said before requests: the PROXY protocol header, then mesh
// TLS or TLS to a stranger. There are no deadlines but ctx's, and nothing is counted.
func (e *Endpoint) open(ctx context.Context, st *state, a *Attempt, alpn string) (net.Conn, error) {
	var cfg *tls.Config
	var err error
	if !a.Raw {
		cfg, err = e.tlsConfig(st, a, alpn)
	}
	if err != nil {
		return nil, err // before any packet: without credentials there is nothing to say
	}
	nc, err := e.dial(ctx, st)
	if err != nil {
		return nil, err
	}
	if st.plan.ProxyProtocol != 0 {
		if err := sendProxyHeader(ctx, nc, st.plan.ProxyProtocol, a); err != nil {
			_ = nc.Close()
			return nil, fmt.Errorf("PROXY protocol header: %w", err)
		}
	}
	if cfg == nil {
		return nc, nil
	}
	tc := tls.Client(nc, cfg)
	what := "mesh TLS"
	if !e.key.tls {
		what = "TLS to " + cfg.ServerName
	}
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if got := tc.ConnectionState().NegotiatedProtocol; !e.key.tls && alpn == trust.ALPNHTTP2 && got != "h2" {
		_ = nc.Close()
		return nil, fmt.Errorf("%s: the server does not speak HTTP/2 (ALPN %q), as the cluster's protocol says", what, got)
	}
	return tc, nil
}

// tlsConfig returns nil for plaintext.
func (e *Endpoint) tlsConfig(st *state, a *Attempt, alpn string) (*tls.Config, error) {
	if e.key.tls {
		return e.clientConfig(alpn)
	}
	t := st.plan.Originate
	if t == nil {
		return nil, nil
	}
	var protocols []string
	switch alpn {
	case trust.ALPNHTTP1:
		protocols = []string{"http/1.1"}
	case trust.ALPNHTTP2:
		protocols = []string{"h2"}
	}
	cfg, err := trust.OriginConfig(t, e.cluster.set.secrets, e.serverName(st.plan, a), protocols)
	if err != nil {
		return nil, fmt.Errorf("TLS to a server outside of the mesh: %w", err)
	}
	return cfg, nil
}

// dial makes the transport connection. A name with several addresses is tried one after the other.
func (e *Endpoint) dial(ctx context.Context, st *state) (net.Conn, error) {
	s := e.cluster.set
	if st.plan.Discovery == plan.AsRequested || st.plan.Name == PassthroughName {
		ctx = context.WithValue(ctx, strange{}, e.cluster.of)
	}
	if d := s.deliver.Load(); d != nil && d.Clusters[st.plan.Name] {
		ctx = context.WithValue(ctx, delivered{}, d.Priority)
	}
	var errs error
	for _, addr := range st.names.inTurn(st.plan, e.key.address) {
		nc, err := s.dial(ctx, addr)
		if err == nil {
			keepAlive(nc, st.plan.Keepalive)
			return nc, nil
		}
		if errs = errors.Join(errs, err); ctx.Err() != nil {
			break
		}
	}
	return nil, errs
}

// strange marks the context of a dial whose address a client chose; its value is the *Cluster.
type strange struct{}

// errOwn means that a client asked this proxy to go to itself.
var errOwn = errors.New("that is a listener of this proxy: the request would go round in a circle")

func keepAlive(nc net.Conn, k *plan.Keepalive) {
	if k == nil {
		return
	}
	if s, ok := nc.(interface {
		SetKeepAliveConfig(c net.KeepAliveConfig) error
	}); ok {
		c := net.KeepAliveConfig{Enable: true, Idle: -1, Interval: -1, Count: -1}
		if k.Time > 0 {
			c.Idle = k.Time.D()
		}
		if k.Interval > 0 {
			c.Interval = k.Interval.D()
		}
		if k.Probes > 0 {
			c.Count = int(min(k.Probes, 127)) // TCP_KEEPCNT
		}
		_ = s.SetKeepAliveConfig(c)
	}
}

// sendProxyHeader writes the header of the PROXY protocol (HAProxy proxy-protocol.txt 2.2 and 2.3).
func sendProxyHeader(ctx context.Context, nc net.Conn, version uint32, a *Attempt) error {
	if d, ok := ctx.Deadline(); ok {
		_ = nc.SetWriteDeadline(d)
		defer func() { _ = nc.SetWriteDeadline(time.Time{}) }()
	}
	_, err := nc.Write(appendProxyHeader(nil, version, a.Source, a.Target))
	return err
}

func appendProxyHeader(b []byte, version uint32, src, dst netip.AddrPort) []byte {
	src, dst = netip.AddrPortFrom(src.Addr().Unmap().WithZone(""), src.Port()), netip.AddrPortFrom(dst.Addr().Unmap().WithZone(""), dst.Port())
	known := src.IsValid() && dst.IsValid()
	v4 := known && src.Addr().Is4() && dst.Addr().Is4()
	if version == 1 {
		if !known {
			return append(b, "PROXY UNKNOWN\r\n"...)
		}
		family, of := "TCP4 ", func(a netip.Addr) netip.Addr { return a }
		if !v4 { // one family for both: IPv4 is written as IPv6
			family, of = "TCP6 ", func(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }
		}
		b = append(b, "PROXY "+family...)
		b = append(of(src.Addr()).AppendTo(b), ' ')
		b = append(of(dst.Addr()).AppendTo(b), ' ')
		b = append(strconv.AppendUint(b, uint64(src.Port()), 10), ' ')
		b = strconv.AppendUint(b, uint64(dst.Port()), 10)
		return append(b, "\r\n"...)
	}
	b = append(b, "\r\n\r\n\x00\r\nQUIT\n"...)
	switch {
	case !known:
		return append(b, 0x20, 0, 0, 0) // LOCAL
	case v4:
		b = append(b, 0x21, 0x11, 0, 12)
		s, d := src.Addr().As4(), dst.Addr().As4()
		b = append(append(b, s[:]...), d[:]...)
	default:
		b = append(b, 0x21, 0x21, 0, 36)
		s, d := src.Addr().As16(), dst.Addr().As16()
		b = append(append(b, s[:]...), d[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, src.Port())
	return binary.BigEndian.AppendUint16(b, dst.Port())
}

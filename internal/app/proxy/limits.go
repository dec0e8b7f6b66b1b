package proxy

import (
	"flag"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/live"
)

// Limits are what clients, and endpoints, may ask of the proxy. docs/proxy.md says what each is against.
type Limits struct {
	Conn conn.Config

	MaxListenerConnections int
	HandshakeTimeout       time.Duration
	DetectTimeout          time.Duration
	TCPIdle                time.Duration
}

// byRole is the value of --min-body-rate that leaves it to the role.
const byRole = -1

// gatewayBodyRate is the slowest body that a gateway takes, in bytes a second, unless told otherwise. Behind a sidecar's
// client is a program of the mesh; at a gateway it is anybody (Kestrel's value).
const gatewayBodyRate = 240

// uint32Value is a flag of that type.
type uint32Value uint32

func (v *uint32Value) String() string { return strconv.FormatUint(uint64(*v), 10) }

func (v *uint32Value) Set(s string) error {
	n, err := strconv.ParseUint(s, 0, 32)
	*v = uint32Value(n)
	return err
}

// flags adds the flags of the limits, whose defaults are those of the rooms that hold them.
func (l *Limits) flags(fs *flag.FlagSet) {
	l.Conn = *conn.Defaults()
	l.Conn.MinBodyRate = byRole
	c := &l.Conn
	number := func(p *int, name, usage string) { fs.IntVar(p, name, *p, usage) }
	number32 := func(p *uint32, name, usage string) { fs.Var((*uint32Value)(p), name, usage) }
	span := func(p *time.Duration, name, usage string) { fs.DurationVar(p, name, *p, usage) }

	fs.IntVar(&l.MaxListenerConnections, "max-listener-connections", 10000, "open connections of clients, of each listener")
	span(&c.HeadTimeout, "head-timeout", "from the first byte of a request head to its last; and for the first frames of HTTP/2")
	span(&c.Idle, "idle-timeout", "a client's connection without a request")
	span(&c.BodyIdle, "body-timeout", "a request body, or a tunnel, of which nothing comes; 0: as --idle-timeout")
	number(&c.MinBodyRate, "min-body-rate", "bytes a second that a request body of known length must bring, on average over the time that the proxy\nwaits for it; 0: any rate; -1: 240 at a gateway, any for a sidecar")
	span(&c.BodyGrace, "body-grace", "waiting for a body that --min-body-rate does not count")
	span(&c.WriteTimeout, "write-timeout", "a write that makes no progress because the peer does not read")
	span(&c.UpstreamIdle, "upstream-idle-timeout", "a pooled connection to an endpoint without a request; clusters may say otherwise")
	fs.DurationVar(&l.HandshakeTimeout, "handshake-timeout", 10*time.Second, "a TLS handshake with a client, or its PROXY protocol header")
	fs.DurationVar(&l.DetectTimeout, "detect-timeout", time.Second, "for the first bytes of a connection whose protocol nobody declared; silence is opaque")
	fs.DurationVar(&l.TCPIdle, "tcp-idle-timeout", time.Hour, "an opaque connection in which nothing moves; listeners and clusters may say otherwise")
	span(&c.DrainIdle, "drain-idle", "how long an idle connection may still bring a request once draining began")
	number(&c.LingerBytes, "linger-bytes", "bytes of an unread request body that are read and dropped to save the connection")
	number(&c.MaxRequestLine, "max-request-line", "bytes of method, target and version; more is answered with 414")
	number(&c.MaxHead, "max-head-bytes", "bytes of request line and header section; more is answered with 431")
	number(&c.MaxFields, "max-head-fields", "header lines, and trailer lines; more is answered with 431")
	number(&c.MaxTrailers, "max-trailer-bytes", "bytes of a trailer section")
	number32(&c.MaxStreams, "max-streams", "requests at a time on one HTTP/2 connection of a client")
	number32(&c.StreamWindow, "stream-window", "bytes that an HTTP/2 peer may send ahead on a stream")
	number32(&c.ConnectionWindow, "connection-window", "bytes that an HTTP/2 peer may send ahead on a connection")
	number(&c.H2Resets, "max-resets", "streams of an HTTP/2 connection that may end early in a burst")
	number(&c.H2ResetRate, "reset-rate", "how many of them are forgiven each second")
	number(&c.H2Oddities, "max-control-frames", "HTTP/2 frames that move nothing (PING, SETTINGS, empty DATA and their like), in a burst")
	number(&c.H2OddityRate, "control-frame-rate", "how many of them are forgiven each second")
	number(&c.H2Queued, "max-queued-answers", "answers to such frames that wait because the peer does not read")
	number32(&c.H2MaxUpstreamStreams, "max-upstream-streams", "requests at a time on one HTTP/2 connection to an endpoint, if it allows as many")
	span(&c.H2Keepalive, "keepalive", "PING on an HTTP/2 connection to an endpoint from which nothing came for so long; 0: never")
	span(&c.H2KeepaliveTimeout, "keepalive-timeout", "for the answer to it")
}

// check finds limits that nothing could live within.
func (l *Limits) check() error {
	c := &l.Conn
	for _, n := range []struct {
		flag       string
		value, min int64
		max        int64
	}{
		{"--max-listener-connections", int64(l.MaxListenerConnections), 1, math.MaxInt32},
		{"--min-body-rate", int64(c.MinBodyRate), byRole, math.MaxInt32},
		{"--max-request-line", int64(c.MaxRequestLine), 64, 1 << 20},
		{"--max-head-bytes", int64(c.MaxHead), 256, 16 << 20},
		{"--max-head-fields", int64(c.MaxFields), 1, 1 << 17},
		{"--max-trailer-bytes", int64(c.MaxTrailers), 0, 16 << 20},
		{"--linger-bytes", int64(c.LingerBytes), 0, math.MaxInt32},
		{"--max-streams", int64(c.MaxStreams), 1, math.MaxInt32},
		{"--stream-window", int64(c.StreamWindow), 65535, math.MaxInt32}, // RFC 9113 section 6.9.2
		{"--connection-window", int64(c.ConnectionWindow), 65535, math.MaxInt32},
		{"--max-resets", int64(c.H2Resets), 1, math.MaxInt32},
		{"--reset-rate", int64(c.H2ResetRate), 1, math.MaxInt32},
		{"--max-control-frames", int64(c.H2Oddities), 10, math.MaxInt32}, // a polite client sends some at the start
		{"--control-frame-rate", int64(c.H2OddityRate), 1, math.MaxInt32},
		{"--max-queued-answers", int64(c.H2Queued), 1, math.MaxInt32},
		{"--max-upstream-streams", int64(c.H2MaxUpstreamStreams), 1, math.MaxInt32},
	} {
		if n.value < n.min || n.value > n.max {
			return fmt.Errorf("%s %d: want %d to %d", n.flag, n.value, n.min, n.max)
		}
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
		zero  bool // may be 0
	}{
		{"--head-timeout", c.HeadTimeout, false}, {"--idle-timeout", c.Idle, false}, {"--body-timeout", c.BodyIdle, true},
		{"--body-grace", c.BodyGrace, true}, {"--write-timeout", c.WriteTimeout, false}, {"--upstream-idle-timeout", c.UpstreamIdle, false},
		{"--handshake-timeout", l.HandshakeTimeout, false}, {"--detect-timeout", l.DetectTimeout, false}, {"--tcp-idle-timeout", l.TCPIdle, false},
		{"--drain-idle", c.DrainIdle, false}, {"--keepalive", c.H2Keepalive, true}, {"--keepalive-timeout", c.H2KeepaliveTimeout, false},
	} {
		if d.value < 0 || d.value == 0 && !d.zero {
			return fmt.Errorf("%s %s: want more than 0", d.flag, d.value)
		}
	}
	return nil
}

// apply sets the limits of a proxy of a role.
func (l *Limits) apply(o *live.Options, role plan.Role) {
	c := l.Conn
	if c.MinBodyRate == byRole {
		c.MinBodyRate = 0
		if role == plan.Gateway {
			c.MinBodyRate = gatewayBodyRate
		}
	}
	o.Conn = &c
	o.Server.MaxConnections, o.Server.HandshakeTimeout = l.MaxListenerConnections, l.HandshakeTimeout
	o.Server.DetectTimeout, o.Server.TCPIdle = l.DetectTimeout, l.TCPIdle
}

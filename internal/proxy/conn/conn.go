// Package conn is the only place where HTTP meets sockets: it carries the sans-I/O codecs (internal/proxy/wire/h1 and
// h2) over net.Conn, as a server (ServeH1, ServeH2) and as a client (H1Client, H2Client), and shows every exchange to
// the stack through the interfaces of internal/proxy/stream.
//
// In come accepted or dialled connections, TLS already done; out go exchanges, one call of Handler.Serve each.
// An HTTP/1 connection is served by the goroutine that calls ServeH1 and starts none of its own. An HTTP/1 client
// connection has no goroutine at all: the exchange that uses it reads and writes. HTTP/2 says what it does in h2.go.
//
// It knows nothing of routes, clusters or policies (internal/proxy/stack, internal/proxy/upstream), and never dials or
// listens itself (internal/proxy/upstream, internal/proxy/server).
package conn

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// Handler decides about one exchange, from its head to its end. Serve returns when the exchange is over; what it left
// unread of the request, or unwritten of the response, the connection sorts out.
type Handler interface {
	Serve(d stream.Downstream, p *Peer)
}

// Stamped may be implemented by a stream.Downstream: it is told the time at the end of its exchange, which spares it
// asking again, and tells how many bytes the heads of request and response took on the wire.
type Stamped interface {
	Stamp(now time.Time) (in, out int)
}

// Peer is what is known about the other end of a downstream connection. It does not change while the connection lives.
type Peer struct {
	Remote, Local netip.AddrPort
	Target        netip.AddrPort      // what a tunnel is for, without an address when that is a name; zero: Local
	TargetName    string              // of a tunnel: the host as it was asked for
	Captured      bool                // the kernel redirected it: Target (outbound) or Local (inbound) is where it was going
	TLS           bool                // TLS was terminated here
	Identity      ident.Identity      // of the verified certificate; zero without mesh TLS
	Workload      plan.WorkloadLabels // of the verified certificate
	SNI           string              // server name that the client asked for
	Tag           any                 // of the Handler: what it wants to have at hand for each connection
}

// AddrPort returns an end of a TCP connection, IPv4 as IPv4; of another one a zero AddrPort.
func AddrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// Config has the limits and timeouts of connections, for both protocols and both sides. Every field has a default,
// see Defaults; sizes are in bytes.
type Config struct {
	MaxRequestLine int // method, target and version
	MaxHead        int // request line and header section, as received (HTTP/2: decoded, RFC 9113 section 6.5.2 counting)
	MaxFields      int // header lines, and trailer lines
	MaxTrailers    int // trailer section

	HeadTimeout  time.Duration // from the first byte of a request head to its last
	Idle         time.Duration // a downstream connection without an exchange
	ParkAfter    time.Duration // that a downstream HTTP/1 connection without an exchange gives up its goroutine (Lot); 0: never
	BodyIdle     time.Duration // a request body, or a tunnel, of which nothing comes; 0: Idle
	UpstreamIdle time.Duration // a pooled upstream connection without an exchange
	WriteTimeout time.Duration // a write that makes no progress because the peer does not read
	DrainIdle    time.Duration // how long an idle connection may still bring a request once draining began
	MinBodyRate  int           // bytes a second that a request body of known length must bring on average; 0: any rate will do
	BodyGrace    time.Duration // for which MinBodyRate is not asked for, in sum over a body
	LingerBytes  int           // of an unread request body that are read and dropped to save the connection

	MaxStreams       uint32 // concurrent streams that an HTTP/2 client may open (SETTINGS_MAX_CONCURRENT_STREAMS)
	StreamWindow     uint32 // HTTP/2 receive window of a stream
	ConnectionWindow uint32 // HTTP/2 receive window of a connection

	H2MaxUpstreamStreams uint32        // concurrent streams on one upstream connection, if the endpoint allows as many
	H2Resets             int           // streams of a connection that may end early, in a burst (CVE-2023-44487, CVE-2025-8671)
	H2ResetRate          int           // how many of them are forgiven each second; every complete stream forgives one, too
	H2Oddities           int           // frames that move nothing, in a burst: PING, SETTINGS, PRIORITY, empty DATA, small WINDOW_UPDATE
	H2OddityRate         int           // how many of them are forgiven each second; useful frames forgive more
	H2Queued             int           // answers to control frames that wait because the peer does not read (CVE-2019-9512)
	H2Keepalive          time.Duration // upstream: PING after so long without a byte; 0 is never
	H2KeepaliveTimeout   time.Duration // and how long to wait for the answer

	Memory *Memory // of the process; nil: there is no end to it
	Poll   *Poll   // of the process; nil: bursts of work are not divided
}

// Defaults returns the values that the proxy runs with when nobody says otherwise.
func Defaults() *Config {
	return &Config{
		MaxRequestLine: 16 << 10,
		MaxHead:        60 << 10, // Envoy max_request_headers_kb
		MaxFields:      100,      // Envoy max_headers_count
		MaxTrailers:    8 << 10,
		HeadTimeout:    10 * time.Second,
		Idle:           time.Hour, // Envoy and Istio idle_timeout
		ParkAfter:      time.Second,
		UpstreamIdle:   time.Hour,
		WriteTimeout:   5 * time.Minute, // Envoy stream_idle_timeout
		DrainIdle:      500 * time.Millisecond,
		BodyGrace:      20 * time.Second,
		LingerBytes:    256 << 10,

		MaxStreams:       100,
		StreamWindow:     256 << 10,
		ConnectionWindow: 1 << 20,

		H2MaxUpstreamStreams: 1000,
		H2Resets:             1000, // nghttp2's burst
		H2ResetRate:          33,   // nghttp2's rate
		H2Oddities:           1000,
		H2OddityRate:         100,
		H2Queued:             1000,              // Envoy max_outbound_control_frames
		H2Keepalive:          310 * time.Second, // gRPC servers end a connection whose PINGs come more often than every 5 minutes
		H2KeepaliveTimeout:   20 * time.Second,
	}
}

// bodyIdle returns how long a request body may not move.
func (c *Config) bodyIdle() time.Duration {
	if c.BodyIdle > 0 {
		return c.BodyIdle
	}
	return c.Idle
}

// Drain is how a listener asks its connections to end: once it is begun, HTTP/1 answers "Connection: close" and lets
// go of idle connections, HTTP/2 sends GOAWAY, and streams that are open run to their end. The zero Drain is ready.
type Drain struct {
	begun atomic.Bool
	idle  atomic.Int64 // nanoseconds; 0: Config.DrainIdle

	mu      sync.Mutex
	members map[*Member]struct{}
}

// Member is a connection's place in a Drain.
type Member struct {
	drain *Drain
	began func()
}

// Begun reports whether draining began. A nil Drain never begins.
func (d *Drain) Begun() bool { return d != nil && d.begun.Load() }

// SetIdle changes how long an idle HTTP/1 connection may still bring a request, from Config.DrainIdle, before Begin. A client
// that does not know about the drain can only be told in an answer, so each that asks in time loses nothing.
func (d *Drain) SetIdle(t time.Duration) { d.idle.Store(int64(t)) }

// Idle returns how long an idle connection may still bring a request.
func (d *Drain) Idle(cfg *Config) time.Duration {
	if t := d.idle.Load(); t > 0 {
		return time.Duration(t)
	}
	return cfg.DrainIdle
}

// Begin starts draining: Begun is true from now on and every member is told, once, on the caller's goroutine.
func (d *Drain) Begin() {
	d.mu.Lock()
	if d.begun.Swap(true) {
		d.mu.Unlock()
		return
	}
	told := make([]*Member, 0, len(d.members))
	for m := range d.members {
		told = append(told, m)
	}
	d.mu.Unlock()
	for _, m := range told {
		m.began()
	}
}

// Join asks for began to be called when draining begins; it must not block. When draining has begun already it is
// called before Join returns. A connection leaves (Member.Leave) when it is over; began may still be running then.
// A nil Drain returns a nil Member.
func (d *Drain) Join(began func()) *Member {
	if d == nil {
		return nil
	}
	m := &Member{drain: d, began: began}
	d.mu.Lock()
	if d.members == nil {
		d.members = make(map[*Member]struct{})
	}
	d.members[m] = struct{}{}
	late := d.begun.Load()
	d.mu.Unlock()
	if late {
		began()
	}
	return m
}

// Leave ends a membership. A nil Member may leave.
func (m *Member) Leave() {
	if m == nil {
		return
	}
	m.drain.mu.Lock()
	delete(m.drain.members, m)
	m.drain.mu.Unlock()
}

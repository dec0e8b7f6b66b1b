package server

import (
	"errors"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/authz"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

// countEvery is how often the bytes of a long connection are counted, and idleness is looked at.
const countEvery = 10 * time.Second

// serveTCP carries an opaque connection to one of its destinations.
func (l *Listener) serveTCP(c *prefixConn, p *conn.Peer, r *Rules, to *Opaque) {
	rec := l.tcpRecord(p, r)
	// Where it would go is known before the policies speak: a connection that they deny counts as one to that service.
	to = to.toward(target(p))
	var cluster *upstream.Cluster
	if to != nil {
		if cluster = to.pick(); cluster != nil {
			rec.Cluster = cluster.Plan()
		}
	}
	if r.Authz != nil {
		d := r.Authz.Check(&authz.Input{Peer: p.Identity, Remote: p.Remote.Addr(), Local: p.Local.Addr(), Port: portFor(p, r.Listener)})
		if !d.Allow {
			rec.Flags, rec.Detail, rec.Origin = telemetry.Unauthorized, d.Detail, d.Origin
			l.refuseTCP(rec)
			return
		}
	}
	if to == nil {
		rec.Flags, rec.Detail = telemetry.NoRoute, "no_tcp_route"
		l.refuseTCP(rec)
		return
	}
	rec.Origin = to.Origin
	if cluster == nil {
		rec.Flags, rec.Detail = telemetry.NoCluster, "no_destination"
		l.refuseTCP(rec)
		return
	}
	up, err := l.dial(rec, cluster, p, r, to.Raw)
	if err != nil {
		l.refuseTCP(rec)
		return
	}
	l.carry(c, up, rec, r)
}

// portFor returns the port of the workload that a connection is for: a listener for all of them has none of its own.
func portFor(p *conn.Peer, l *plan.Listener) int {
	if l.Port == 0 && l.Direction == plan.Inbound {
		return int(p.Local.Port())
	}
	return l.Port
}

// target returns the address that a connection is for.
func target(p *conn.Peer) netip.Addr {
	if p.Target != (netip.AddrPort{}) {
		return p.Target.Addr()
	}
	return p.Local.Addr()
}

// attempt tells whose an opaque connection is and where it wants to go: to the host of its tunnel, else to that of its server
// name, else to the address that it came to.
func attempt(p *conn.Peer, r *Rules) upstream.Attempt {
	a := upstream.Attempt{Source: p.Remote, Target: p.Local, Port: portFor(p, r.Listener), ToTarget: p.Captured}
	if p.Target != (netip.AddrPort{}) {
		a.Port = int(p.Target.Port())
		if p.Target.Addr().IsValid() {
			a.Target = p.Target
		}
	}
	switch {
	case p.TargetName != "":
		a.Host = []byte(p.TargetName)
	case p.SNI != "":
		a.Host = []byte(p.SNI)
	}
	return a
}

// hashOf is the key by which connections of one client meet again; it is the same in every proxy (FNV-1a).
func hashOf(a netip.Addr) uint64 {
	h := uint64(14695981039346656037)
	for _, b := range a.Unmap().As16() {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return h
}

func (l *Listener) tcpRecord(p *conn.Peer, r *Rules) *telemetry.Record {
	rec := &telemetry.Record{}
	rec.Reset()
	rec.Start = time.Now()
	rec.Listener, rec.Direction = r.Listener, r.Listener.Direction
	rec.Protocol = telemetry.TCP
	rec.Remote, rec.Local, rec.SNI = p.Remote, p.Local, p.SNI
	rec.Peer, _ = p.Tag.(*telemetry.Party)
	rec.MTLS = p.TLS && !p.Identity.IsZero()
	rec.Origin = &r.Listener.TCPOrigin
	return rec
}

// refuseTCP records a connection that was closed without having been carried anywhere.
func (l *Listener) refuseTCP(rec *telemetry.Record) {
	rec.Duration = time.Since(rec.Start)
	l.o.Recorder.Record(rec)
}

// dial connects to a cluster and notes in rec how that went.
func (l *Listener) dial(rec *telemetry.Record, cluster *upstream.Cluster, p *conn.Peer, r *Rules, raw bool) (net.Conn, error) {
	rec.Cluster = cluster.Plan()
	rec.Attempts = 1
	a := attempt(p, r)
	a.Raw = raw
	if h := rec.Cluster.Hash; h != nil && h.SourceIP {
		a.Hash, a.HasHash = hashOf(p.Remote.Addr()), true
	}
	up, e, err := cluster.DialFor(&a)
	if e != nil {
		rec.Endpoint = e.Plan()
	}
	if err != nil {
		rec.Flags = flagsOf(err)
		rec.Detail, rec.Failure = "upstream_connect_failed", err.Error()
		return nil, err
	}
	rec.UpstreamRemote, rec.UpstreamLocal = conn.AddrPort(up.RemoteAddr()), conn.AddrPort(up.LocalAddr())
	return up, nil
}

// carry moves bytes both ways until both directions are over, nothing moves for the idle time of the cluster or the listener,
// or one side breaks.
func (l *Listener) carry(c *prefixConn, up net.Conn, rec *telemetry.Record, r *Rules) {
	idle := l.o.TCPIdle
	if d := r.Listener.TCPIdle.D(); d > 0 {
		idle = d
	}
	if rec.Cluster != nil && rec.Cluster.TCPIdle > 0 {
		idle = rec.Cluster.TCPIdle.D()
	}
	down, first := c.unwrap()
	count := l.o.Recorder.OpenTCP(rec)
	t := &pair{idle: idle, count: count, ends: [2]net.Conn{down, up}}
	t.moved.Store(time.Now().UnixNano())
	t.watch = time.AfterFunc(math.MaxInt64, t.look)
	t.watch.Reset(idle)
	_ = down.SetReadDeadline(time.Time{})
	var other sync.WaitGroup
	other.Go(func() {
		defer l.recovered("opaque connection")
		t.copy(down, up, &t.sent, true)
	})
	if len(first) > 0 {
		if n, err := up.Write(first); err == nil {
			t.add(&t.received, int64(n), false)
		}
	}
	t.copy(up, down, &t.received, false)
	other.Wait()
	t.watch.Stop()
	_ = up.Close()
	_ = down.Close()

	rec.BodyIn, rec.BodyOut = t.received.Load(), t.sent.Load()
	rec.Duration = time.Since(rec.Start)
	if t.timedOut.Load() {
		rec.Flags |= telemetry.StreamIdle
		rec.Detail = "tcp_idle_timeout"
	}
	count.Close(rec)
}

// pair is the two directions of an opaque connection.
type pair struct {
	idle           time.Duration
	count          *telemetry.Connection
	ends           [2]net.Conn
	watch          *time.Timer
	moved          atomic.Int64 // when bytes were last seen to move, Unix nanoseconds
	sent, received atomic.Uint64
	timedOut       atomic.Bool
}

func (t *pair) add(total *atomic.Uint64, n int64, toClient bool) {
	if n <= 0 {
		return
	}
	total.Add(uint64(n))
	t.moved.Store(time.Now().UnixNano())
	if toClient {
		t.count.Add(uint64(n), 0)
	} else {
		t.count.Add(0, uint64(n))
	}
}

// look ends both sides when nothing has moved for the idle time. A direction can't see to that: it may be waiting for its side to
// read, as may the other.
func (t *pair) look() {
	if left := t.idle - time.Duration(time.Now().UnixNano()-t.moved.Load()); left > 0 {
		t.watch.Reset(left)
		return
	}
	t.timedOut.Store(true)
	for _, c := range t.ends {
		_ = c.Close()
	}
}

// copy moves bytes from src to dst until src ends, and passes the end on. Between two sockets the kernel does the work
// (splice), which hides progress; so it is interrupted now and then to count.
func (t *pair) copy(dst, src net.Conn, total *atomic.Uint64, toClient bool) {
	w, r := rawTCP(dst), rawTCP(src)
	every := min(countEvery, max(t.idle/2, time.Millisecond))
	for {
		_ = src.SetReadDeadline(time.Now().Add(every))
		n, err := io.Copy(w, r)
		t.add(total, n, toClient)
		switch {
		case err == nil: // the end of src
			if h, ok := dst.(interface{ CloseWrite() error }); !ok || h.CloseWrite() != nil {
				_ = dst.Close()
			}
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		}
		// Idle or broken: neither direction has a future.
		_ = dst.Close()
		_ = src.Close()
		return
	}
}

// rawTCP returns the socket beneath a connection where that makes no difference but to speed: not beneath TLS.
func rawTCP(c net.Conn) net.Conn {
	for {
		if _, tls := c.(interface{ Handshake() error }); tls {
			return c
		}
		w, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = w.NetConn()
	}
}

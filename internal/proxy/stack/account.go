package stack

import (
	"math/rand/v2"

	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

// charge finds out, for the record alone, which service and destination a request was for that is answered before it came
// there: by a policy, a limit or a fault. Dashboards show what a service refuses beside what it serves.
func (x *exchange) charge() {
	host, r := x.rec.VirtualHost, x.route
	if host == nil {
		if string(x.req.Method) == "CONNECT" {
			return // nothing that a table knows
		}
		found := x.lookup()
		if found.Host == nil {
			return
		}
		x.rec.VirtualHost, r = found.Host.Plan(), found.Route
	}
	if r == nil || x.rec.Cluster != nil {
		return
	}
	if i := r.Pick(rand.Uint64()); i >= 0 {
		if c := x.s.clusters.Cluster(r.Plan().Forward[i].Cluster); c != nil {
			x.rec.Cluster = c.Plan()
		}
	}
}

// note keeps the ends of the connection that an attempt uses, where somebody will read them.
func (x *exchange) note(l *upstream.Lease) {
	if x.s.Recorder.Logs() {
		x.rec.UpstreamRemote, x.rec.UpstreamLocal = conn.AddrPort(l.Remote), conn.AddrPort(l.Local)
	}
}

// messages counts the messages of one direction of a gRPC exchange ("PROTOCOL-HTTP2", Length-Prefixed-Message): each is a
// byte that says whether it is compressed, four of length, and as many as that.
type messages struct {
	head [5]byte
	n    int    // of head
	left uint32 // of the message
	done uint64 // messages that came whole
}

// pass looks at the next piece.
func (m *messages) pass(p []byte) {
	for {
		if m.n == len(m.head) {
			if uint64(len(p)) < uint64(m.left) {
				m.left -= uint32(len(p))
				return
			}
			p = p[m.left:]
			m.n = 0
			m.done++
		}
		if len(p) == 0 {
			return
		}
		k := copy(m.head[m.n:], p)
		p = p[k:]
		if m.n += k; m.n == len(m.head) {
			m.left = uint32(m.head[1])<<24 | uint32(m.head[2])<<16 | uint32(m.head[3])<<8 | uint32(m.head[4])
		}
	}
}

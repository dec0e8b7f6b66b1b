package upstream

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
)

// A session's token is what a client keeps to come back to its endpoint: in hexadecimal, a keyed hash of the endpoint's
// address, and with plan.Session.Idle the time of its last use with a keyed hash of both. Nothing of it tells an address, and
// who does not know the key can make none that leads anywhere.
const (
	sessionID    = 8
	sessionTimed = sessionID + 4 + 8
)

// sessionMAC is a keyed hash of some bytes, by the session's key, or else the process's own.
func (s *Set) sessionMAC(p *plan.Session, domain byte, b []byte) uint64 {
	k := p.Key
	if len(k) == 0 {
		k = s.secret[:]
	}
	h := hmac.New(sha256.New, k)
	h.Write([]byte{domain})
	h.Write(b)
	return binary.BigEndian.Uint64(h.Sum(nil))
}

func (s *Set) sessionID(p *plan.Session, address string) uint64 {
	return s.sessionMAC(p, 'a', []byte(address))
}

// sessionOf returns the session in force: that of the rule, or the cluster's own; nil for none.
func (s *state) sessionOf(byRule bool) *plan.Session {
	if byRule {
		return s.plan.RuleSession
	}
	return s.plan.Session
}

// Holds reports whether a token of a session of a rule leads to an endpoint of the cluster.
func (c *Cluster) Holds(token []byte) bool {
	k := c.core()
	st := k.state.Load()
	return st.plan.RuleSession != nil && k.session(st, st.plan.RuleSession, token) != nil
}

// session returns the endpoint that a token leads to, nil when it leads nowhere or is too old.
func (c *core) session(st *state, p *plan.Session, token []byte) *Endpoint {
	var b [sessionTimed]byte
	want := sessionID
	if p.Idle > 0 {
		want = sessionTimed
	}
	if len(token) != hex.EncodedLen(want) {
		return nil
	}
	if _, err := hex.Decode(b[:], token); err != nil {
		return nil
	}
	if p.Idle > 0 {
		if c.set.sessionMAC(p, 't', b[:sessionID+4]) != binary.BigEndian.Uint64(b[sessionID+4:]) {
			return nil
		}
		used := time.Unix(int64(binary.BigEndian.Uint32(b[sessionID:])), 0)
		if c.set.now().Sub(used) > p.Idle.D() {
			return nil
		}
	}
	return st.bySession[binary.BigEndian.Uint64(b[:])]
}

// AppendSession appends the token by which the client comes back to the lease's endpoint (Attempt.Sticky), and reports whether
// the client is to be told: when its cluster has sessions, and the client's token was not this one or has to be renewed. It is
// called before Done.
func (l *Lease) AppendSession(b []byte) ([]byte, bool) {
	e := l.Endpoint
	st := e.cluster.state.Load()
	p := st.sessionOf(l.byRule)
	if p == nil || l.returned && p.Idle <= 0 {
		return b, false
	}
	s := e.cluster.set
	var t [sessionTimed]byte
	binary.BigEndian.PutUint64(t[:], s.sessionID(p, e.key.address))
	n := sessionID
	if p.Idle > 0 {
		binary.BigEndian.PutUint32(t[sessionID:], uint32(s.now().Unix()))
		binary.BigEndian.PutUint64(t[sessionID+4:], s.sessionMAC(p, 't', t[:sessionID+4]))
		n = sessionTimed
	}
	return hex.AppendEncode(b, t[:n]), true
}

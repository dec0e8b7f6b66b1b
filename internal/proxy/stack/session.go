package stack

import (
	"bytes"
	"strconv"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// A client keeps a token of internal/proxy/upstream, which tells nothing and can't be made up. Where a session ends at an age that
// what the client keeps does not end at by itself, "." and its beginning stand behind: a client that makes itself younger
// gains nothing but its old endpoint.

// lifetime returns the age at which a session is over where the proxy has to see to that: with a lifetime, and where a cookie
// that is renewed at each use would go on for ever. 0: it need not.
func lifetime(s *plan.Session) time.Duration {
	switch {
	case s.Lifetime > 0:
		return s.Lifetime.D()
	case s.Cookie != nil && s.Cookie.TTL > 0 && s.Idle > 0:
		return s.Cookie.TTL.D()
	}
	return 0
}

// session returns the session that the request may belong to: the rule's, else that of its destination; nil none.
func (x *exchange) session() *plan.Session {
	if x.rec.Route != nil && x.rec.Route.Session != nil {
		return x.rec.Route.Session
	}
	return x.rec.Cluster.Session
}

// returning returns the destination of the route where the client's session is, below 0 for none.
func (x *exchange) returning() int {
	r := x.rec.Route
	if r.Session == nil {
		return -1
	}
	x.comeBack(r.Session)
	if len(x.attempt.Sticky) == 0 {
		return -1
	}
	for i := range r.Forward {
		if c := x.s.clusters.Cluster(r.Forward[i].Cluster); c != nil && r.Forward[i].Status == 0 && c.Holds(x.attempt.Sticky) {
			return i
		}
	}
	return -1
}

// comeBack reads the token of a client that has one.
func (x *exchange) comeBack(s *plan.Session) {
	var v []byte
	if s.Cookie != nil {
		v, _ = cookie(x.req.Fields, s.Cookie.Name)
	} else {
		v, _ = x.req.Fields.Get(s.Header)
	}
	if age := lifetime(s); age > 0 {
		token, began, _ := bytes.Cut(v, []byte{'.'})
		since, err := strconv.ParseInt(string(began), 16, 64)
		if now := x.at.Unix(); err != nil || since > now || now-since > int64(age.Seconds()) {
			return // it is over: another endpoint may be chosen
		}
		v, x.since = token, since
	}
	x.attempt.Sticky = v
}

// giveSession tells the client how to come back to the endpoint that answered.
func (x *exchange) giveSession(fs *message.Fields) {
	if x.rec.Cluster == nil || x.lease == nil {
		return
	}
	s, start := x.session(), len(x.buf)
	if s == nil {
		return
	}
	buf, tell := x.lease.AppendSession(x.buf)
	if x.buf = buf; !tell {
		return
	}
	age := int64(-1)
	if s.Cookie != nil && s.Cookie.TTL > 0 {
		age = max(int64(s.Cookie.TTL.D().Seconds()), 1)
	}
	if lifetime(s) > 0 {
		now := x.at.Unix()
		if x.since == 0 {
			x.since = now
		}
		x.buf = strconv.AppendInt(append(x.buf, '.'), x.since, 16)
		if age >= 0 {
			age = x.since + age - now
			if s.Idle > 0 {
				age = min(age, int64(s.Idle.D().Seconds()))
			}
			age = max(age, 1)
		}
	}
	value := x.buf[start:len(x.buf):len(x.buf)]
	if s.Cookie == nil {
		fs.Set(s.Header, value)
		return
	}
	x.setCookie(fs, s.Cookie, value, age)
}

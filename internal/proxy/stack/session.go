package stack

import (
	"bytes"
	"strconv"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// A client keeps a token of internal/proxy/upstream, which tells nothing and can't be made up. Where a session ends both when
// it was not used for a while and at a certain age, "." and its beginning stand behind: a client that makes itself younger
// gains nothing but its old endpoint.

// endsTwice reports whether a session has an age besides its idle time, so that renewing its cookie must not prolong it.
func endsTwice(s *plan.Session) bool { return s.Cookie != nil && s.Cookie.TTL > 0 && s.Idle > 0 }

// comeBack reads the token of a client that has one.
func (x *exchange) comeBack(s *plan.Session) {
	var v []byte
	if s.Cookie != nil {
		v, _ = cookie(x.req.Fields, s.Cookie.Name)
	} else {
		v, _ = x.req.Fields.Get(s.Header)
	}
	if endsTwice(s) {
		token, began, _ := bytes.Cut(v, []byte{'.'})
		since, err := strconv.ParseInt(string(began), 16, 64)
		if now := x.at.Unix(); err != nil || since > now || now-since > int64(s.Cookie.TTL.D().Seconds()) {
			return // it is over: another endpoint may be chosen
		}
		v, x.since = token, since
	}
	x.attempt.Sticky = v
}

// giveSession tells the client how to come back to the endpoint that answered.
func (x *exchange) giveSession(fs *message.Fields) {
	if x.rec.Cluster == nil || x.rec.Cluster.Session == nil || x.lease == nil {
		return
	}
	s, start := x.rec.Cluster.Session, len(x.buf)
	buf, tell := x.lease.AppendSession(x.buf)
	if x.buf = buf; !tell {
		return
	}
	age := int64(-1)
	if s.Cookie != nil && s.Cookie.TTL > 0 {
		age = max(int64(s.Cookie.TTL.D().Seconds()), 1)
	}
	if endsTwice(s) {
		now := x.at.Unix()
		if x.since == 0 {
			x.since = now
		}
		x.buf = strconv.AppendInt(append(x.buf, '.'), x.since, 16)
		age = max(min(x.since+age-now, int64(s.Idle.D().Seconds())), 1)
	}
	value := x.buf[start:len(x.buf):len(x.buf)]
	if s.Cookie == nil {
		fs.Set(s.Header, value)
		return
	}
	x.setCookie(fs, s.Cookie, value, age)
}

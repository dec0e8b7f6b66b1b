package stack

import (
	"bytes"
	"math/rand/v2"
	"strconv"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/route"
)

// meet finds out which requests this one must meet at the same endpoint: those of its session, or by the hash of what they
// have in common.
func (x *exchange) meet() {
	c := x.rec.Cluster
	if s := x.session(); s != nil {
		x.comeBack(s)
		x.attempt.ByRule = s != c.Session
	}
	a := &x.attempt
	a.Source, a.Target, a.ToTarget = x.p.Remote, x.p.Local, x.p.Captured
	if x.p.Captured && x.p.Target.IsValid() {
		a.Target = x.p.Target
	}
	a.Host, a.Port = x.req.Host, x.req.Port
	switch {
	case a.Port != 0:
	case c.Port != 0:
		a.Port = c.Port
	case string(x.req.Scheme) == "https":
		a.Port = 443
	default:
		a.Port = 80
	}
	h := c.Hash
	if h == nil {
		return
	}
	if h.Header != "" {
		if v, ok := x.req.Fields.Get(h.Header); ok {
			x.hashOf(v)
			return
		}
	}
	if h.Cookie != nil {
		v, ok := cookie(x.req.Fields, h.Cookie.Name)
		if !ok && h.Cookie.HasTTL {
			start := len(x.buf)
			x.buf = strconv.AppendUint(x.buf, rand.Uint64(), 16)
			v, ok = x.buf[start:len(x.buf):len(x.buf)], true
			x.newCookie = v
		}
		if ok {
			x.hashOf(v)
			return
		}
	}
	if h.Query != "" {
		start := len(x.buf)
		buf, ok := route.AppendQuery(x.buf, x.req.Query, h.Query)
		if x.buf = buf; ok {
			x.hashOf(buf[start:])
			return
		}
	}
	if h.SourceIP {
		a := x.client.As16()
		x.hashOf(a[:])
	}
}

// hashOf is FNV-1a with the finish of SplitMix64. All proxies must come to the same hash, so it has no seed.
func (x *exchange) hashOf(v []byte) {
	h := uint64(14695981039346656037)
	for _, c := range v {
		h = (h ^ uint64(c)) * 1099511628211
	}
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	x.attempt.Hash, x.attempt.HasHash = h^h>>31, true
}

// giveCookie gives a client the cookie that its next requests meet by.
func (x *exchange) giveCookie(fs *message.Fields) {
	if x.newCookie == nil {
		return
	}
	c := x.rec.Cluster.Hash.Cookie
	age := int64(-1)
	if c.TTL > 0 {
		age = max(int64(c.TTL.D().Seconds()), 1)
	}
	x.setCookie(fs, c, x.newCookie, age)
}

// setCookie appends a Set-Cookie field (RFC 6265 section 4.1) that scripts cannot read. age is in seconds; below zero the
// cookie ends with the client's session.
func (x *exchange) setCookie(fs *message.Fields, c *plan.Cookie, value []byte, age int64) {
	start := len(x.buf)
	x.buf = append(x.buf, c.Name...)
	x.buf = append(x.buf, '=')
	x.buf = append(x.buf, value...)
	if age >= 0 {
		x.buf = append(x.buf, "; Max-Age="...)
		x.buf = strconv.AppendInt(x.buf, age, 10)
	}
	if c.Path != "" {
		x.buf = append(x.buf, "; Path="...)
		x.buf = append(x.buf, c.Path...)
	}
	x.buf = append(x.buf, "; HttpOnly"...)
	for _, a := range c.Attributes {
		x.buf = append(x.buf, "; "...)
		x.buf = append(x.buf, a...)
	}
	fs.Add("set-cookie", headerValue(x.buf[start:len(x.buf):len(x.buf)]))
}

// cookie returns the value of a cookie, without quotes (RFC 6265 section 5.4). HTTP/2 clients may send one field for each.
func cookie(fs message.Fields, name string) ([]byte, bool) {
	for i := range fs {
		if string(fs[i].Name) != "cookie" {
			continue
		}
		for rest := fs[i].Value; len(rest) > 0; {
			var pair []byte
			pair, rest, _ = bytes.Cut(rest, []byte{';'})
			pair = bytes.TrimLeft(pair, " ")
			if len(pair) > len(name) && pair[len(name)] == '=' && string(pair[:len(name)]) == name {
				v := bytes.TrimRight(pair[len(name)+1:], " ")
				if len(v) > 1 && v[0] == '"' && v[len(v)-1] == '"' {
					v = v[1 : len(v)-1]
				}
				return v, true
			}
		}
	}
	return nil, false
}

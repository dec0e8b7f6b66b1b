package route

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// Redirect is a plan.Redirect made ready to run. It is immutable.
type Redirect struct {
	plan  *plan.Redirect
	to    *Rewriter // what it makes of path and authority
	query bool      // the new path brings its own query
}

func newRedirect(p *plan.Redirect, m *plan.Match) (*Redirect, error) {
	if p == nil {
		return nil, nil
	}
	prefix := int32(-1)
	if !p.WholePath {
		prefix = matchedPrefix(m)
	}
	to, err := newRewriter(&plan.Rewrite{Path: p.Path, Authority: p.Authority}, prefix, true)
	return &Redirect{plan: p, to: to, query: strings.Contains(p.Path, "?")}, err
}

// Redirect returns what the rule answers every request with; nil: it does not.
func (r *Route) Redirect() *Redirect { return r.redirect }

// Status returns the status of the answer.
func (r *Redirect) Status() int { return r.plan.Status }

// AppendLocation appends the Location for req (RFC 9110 section 10.2.2), always absolute.
//
// The port is the Redirect's; without one it is that of a new authority, if that names one; then, with KeepPort, the
// request's; else none, which is the default of the scheme. A port that is the scheme's default is left out, and one that
// was the default of the request's scheme does not move into another scheme. ok is as for Rewriter.Apply.
func (r *Redirect) AppendLocation(dst []byte, req *message.Request) (out []byte, ok bool) {
	rd, w, start := r.plan, r.to, len(dst)
	was := string(req.Scheme) == "https"
	secure := was
	if rd.Scheme != "" {
		secure = rd.Scheme == "https"
	}
	host, port := req.Host, 0
	if rd.KeepPort && !(secure != was && req.Port == defaultPort(was)) {
		port = req.Port
	}
	if w.authority != nil {
		host = w.authorityHost
		if w.authorityPort != 0 {
			port = w.authorityPort
		}
	}
	if rd.Port != 0 {
		port = rd.Port
	}
	if secure {
		dst = append(dst, "https://"...)
	} else {
		dst = append(dst, "http://"...)
	}
	if bytes.IndexByte(host, ':') >= 0 { // an IPv6 literal
		dst = append(dst, '[')
		dst = append(dst, host...)
		dst = append(dst, ']')
	} else {
		dst = append(dst, host...)
	}
	if port != 0 && port != defaultPort(secure) {
		dst = append(dst, ':')
		dst = strconv.AppendInt(dst, int64(port), 10)
	}
	if w.path != nil {
		if dst, ok = w.appendPath(dst, req.Path); !ok {
			return dst[:start], false
		}
	} else {
		dst = append(dst, req.Path...)
	}
	if req.HasQuery && !r.query {
		dst = append(dst, '?')
		dst = append(dst, req.Query...)
	}
	return dst, true
}

func defaultPort(secure bool) int {
	if secure {
		return 443
	}
	return 80
}

package route

import (
	"bytes"
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// Route is one rule of a host, made ready to run. It is immutable.
type Route struct {
	plan  *plan.Route
	host  *Host
	match *conditions
	index int32

	prefix int32  // bytes of the path that a path rewrite or redirect replaces; -1 the whole path
	path   []byte // replacement, canonical; nil keeps the path
	query  bool   // the redirect's path brings its own query

	authority, authorityHost []byte // replacement; nil keeps the request's
	authorityPort            int

	total uint64 // of the weights of Forward
}

func (r *Route) build(p *plan.Route, h *Host, index int) error {
	r.plan, r.host, r.index, r.prefix = p, h, int32(index), -1
	var err error
	if r.match, err = compileConditions(&p.Match); err != nil {
		return err
	}
	for i := range p.Forward {
		r.total += uint64(p.Forward[i].Weight)
	}
	if m := p.Match.Path; m != nil && (p.Redirect == nil || !p.Redirect.WholePath) {
		switch m.Kind {
		case match.Prefix:
			r.prefix = int32(len(m.Value))
		case match.Segment:
			r.prefix = int32(len(strings.TrimSuffix(m.Value, "/")))
		}
	}
	path, authority := "", ""
	switch {
	case p.Redirect != nil:
		path, authority = p.Redirect.Path, p.Redirect.Authority
		r.query = strings.Contains(path, "?")
	case p.Rewrite != nil:
		path, authority = p.Rewrite.Path, p.Rewrite.Authority
	}
	if path != "" {
		if r.path, err = replacement(path, p.Redirect != nil); err != nil {
			return err
		}
	}
	if authority != "" {
		if r.authority, r.authorityHost, r.authorityPort, err = message.ParseAuthority([]byte(authority)); err != nil {
			return fmt.Errorf("authority %q: %w", authority, err)
		}
	}
	return nil
}

// Plan returns what the route was built from.
func (r *Route) Plan() *plan.Route { return r.plan }

// Host returns the host that the route belongs to.
func (r *Route) Host() *Host { return r.host }

// Index returns the place of the route in its host.
func (r *Route) Index() int { return int(r.index) }

// Pick returns an index into Forward, each with the probability that its weight has in the sum, given a uniformly
// random number. A lone destination gets all, whatever its weight; -1 means that there is no destination, or that all
// of several have weight 0.
func (r *Route) Pick(rnd uint64) int {
	fs := r.plan.Forward
	switch {
	case len(fs) == 1:
		return 0
	case r.total == 0:
		return -1
	}
	n, _ := bits.Mul64(rnd, r.total) // uniform in [0, total) but for one part in 2^64/total
	for i := range fs {
		w := uint64(fs[i].Weight)
		if n < w {
			return i
		}
		n -= w
	}
	return len(fs) - 1 // not reached: the weights sum to total
}

// ApplyRewrite changes the path and the authority of req as the route's Rewrite says. The new path is put at the end
// of buf, which is returned, possibly grown, and must stay untouched as long as req is used.
//
// A path that matched by a prefix keeps what follows it, with exactly one slash where the parts meet when both bring
// one; any other match replaces the whole path. ok is false when what follows the prefix would make the path mean
// something else (a rewrite of "/x" to "/" and a request for "/x.."): nothing is changed, answer 400.
func (r *Route) ApplyRewrite(req *message.Request, buf []byte) (out []byte, ok bool) {
	if r.plan.Rewrite == nil {
		return buf, true
	}
	if r.path != nil && len(req.Path) > 0 && req.Path[0] == '/' { // not "*" of OPTIONS, not CONNECT
		start := len(buf)
		if buf, ok = r.appendPath(buf, req.Path); !ok {
			return buf[:start], false
		}
		req.Path = buf[start:len(buf):len(buf)]
	}
	if r.authority != nil {
		req.Authority, req.Host, req.Port = r.authority, r.authorityHost, r.authorityPort
	}
	return buf, true
}

// AppendLocation appends the Location of the route's Redirect for req (RFC 9110 section 10.2.2), always absolute.
//
// The port is the Redirect's; without one it is the default of the Redirect's scheme; without that either it is the
// port of the (new) authority. A port that is the scheme's default is left out. ok is as for ApplyRewrite.
func (r *Route) AppendLocation(dst []byte, req *message.Request) (out []byte, ok bool) {
	rd := r.plan.Redirect
	if rd == nil {
		return dst, false
	}
	start := len(dst)
	host, port := req.Host, req.Port
	if r.authority != nil {
		host, port = r.authorityHost, r.authorityPort
	}
	secure := string(req.Scheme) == "https"
	if rd.Scheme != "" {
		secure = rd.Scheme == "https"
		if r.authority == nil || r.authorityPort == 0 {
			port = 0
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
	if port != 0 && (!secure && port != 80 || secure && port != 443) {
		dst = append(dst, ':')
		dst = strconv.AppendInt(dst, int64(port), 10)
	}
	if r.path != nil {
		if dst, ok = r.appendPath(dst, req.Path); !ok {
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

// appendPath appends the path that path becomes.
func (r *Route) appendPath(dst, path []byte) ([]byte, bool) {
	if r.prefix < 0 || int(r.prefix) > len(path) {
		return append(dst, r.path...), true
	}
	start, rest := len(dst), path[r.prefix:]
	dst = append(dst, r.path...)
	if len(rest) > 0 && rest[0] == '/' && r.path[len(r.path)-1] == '/' {
		rest = rest[1:]
	}
	dst = append(dst, rest...)
	// Both parts are canonical, so only where they meet can something new have come to be; then the result is shorter.
	canonical, err := message.CanonicalPath(dst[start:])
	return dst, err == nil && len(canonical) == len(dst)-start
}

// replacement returns the canonical form of a path that a rule puts in. Bytes that can't stand in a path are escaped;
// with withQuery, what follows the first '?' is kept as a query.
func replacement(p string, withQuery bool) ([]byte, error) {
	var query string
	if withQuery {
		if i := strings.IndexByte(p, '?'); i >= 0 {
			p, query = p[:i], p[i:]
		}
	}
	if !strings.HasPrefix(p, "/") {
		p = "/" + p
	}
	path, err := message.CanonicalPath(escape(p))
	if err != nil {
		return nil, fmt.Errorf("path %q: %w", p, err)
	}
	return append(path, strings.ReplaceAll(string(escape(query)), "%3F", "?")...), nil
}

func escape(p string) []byte {
	var b []byte
	for i := range len(p) {
		c := p[i]
		switch {
		case c <= ' ' || c >= 0x7f || strings.IndexByte(`"#<>?^{|}`+"`", c) >= 0, c == '%' && !isEscape(p[i:]):
			b = append(b, '%', "0123456789ABCDEF"[c>>4], "0123456789ABCDEF"[c&15])
		default:
			b = append(b, c)
		}
	}
	return b
}

func isEscape(p string) bool {
	if len(p) < 3 {
		return false
	}
	_, ok1 := unhex(p[1])
	_, ok2 := unhex(p[2])
	return ok1 && ok2
}

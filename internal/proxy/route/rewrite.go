package route

import (
	"fmt"
	"math/bits"
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

	rewrite  *Rewriter // the rule's own; nil: nothing is rewritten
	each     []share   // of the destinations, where one differs; nil: all are as the rule says
	redirect *Redirect
	cors     *CORS

	total uint64 // of the weights of Forward
}

// Rewriter is a plan.Rewrite made ready to run. It is immutable; a nil Rewriter changes nothing.
type Rewriter struct {
	prefix int32         // bytes of the path that path replaces; -1 the whole path
	path   []byte        // replacement, canonical; nil keeps the path
	regex  *substitution // instead of path

	authority, authorityHost []byte // replacement; nil keeps the request's
	authorityPort            int
	endpointHost             bool
}

func (r *Route) build(p *plan.Route, h *Host, index int) error {
	r.plan, r.host, r.index = p, h, int32(index)
	var err error
	if r.match, err = compileConditions(&p.Match); err != nil {
		return err
	}
	if r.cors, err = newCORS(p.CORS); err != nil {
		return err
	}
	for i := range p.Forward {
		r.total += uint64(p.Forward[i].Weight)
	}
	if p.Redirect != nil {
		r.redirect, err = newRedirect(p.Redirect, &p.Match)
		return err
	}
	if r.rewrite, err = newRewriter(p.Rewrite, matchedPrefix(&p.Match), false); err != nil {
		return err
	}
	for i := range p.Forward {
		d := &p.Forward[i]
		if d.Rewrite == nil && d.Redirect == nil && d.CORS == nil {
			continue
		}
		if r.each == nil {
			r.each = make([]share, len(p.Forward))
			for j := range r.each {
				r.each[j].rewrite = r.rewrite
			}
		}
		if err := r.each[i].build(d, &p.Match); err != nil {
			return fmt.Errorf("destination %d: %w", i, err)
		}
	}
	return nil
}

// share is what the requests of one destination have for themselves.
type share struct {
	rewrite  *Rewriter // the destination's own, else the rule's
	redirect *Redirect // nil: they are forwarded
	cors     *CORS     // nil: the rule's
}

func (s *share) build(d *plan.Destination, m *plan.Match) (err error) {
	if d.Rewrite != nil {
		if s.rewrite, err = newRewriter(d.Rewrite, matchedPrefix(m), false); err != nil {
			return err
		}
	}
	if s.redirect, err = newRedirect(d.Redirect, m); err != nil {
		return err
	}
	s.cors, err = newCORS(d.CORS)
	return err
}

// matchedPrefix returns how many bytes of the path the condition of a rule matches by prefix; -1 for other conditions. Without any
// it is the prefix "/", which every path has.
func matchedPrefix(m *plan.Match) int32 {
	if m.Path == nil {
		return int32(len("/"))
	}
	switch m.Path.Kind {
	case match.Prefix:
		return int32(len(m.Path.Value))
	case match.Segment:
		return int32(len(strings.TrimSuffix(m.Path.Value, "/")))
	}
	return -1
}

func newRewriter(p *plan.Rewrite, prefix int32, withQuery bool) (*Rewriter, error) {
	if p == nil {
		return nil, nil
	}
	w := &Rewriter{prefix: prefix, endpointHost: p.EndpointHost}
	var err error
	if p.Path != "" {
		if w.path, err = replacement(p.Path, withQuery); err != nil {
			return nil, err
		}
	}
	if p.Regex != "" {
		if p.Path != "" {
			return nil, fmt.Errorf("path %q and regular expression %q exclude each other", p.Path, p.Regex)
		}
		if w.regex, err = newSubstitution(p.Regex, p.Substitution); err != nil {
			return nil, err
		}
	}
	if p.Authority != "" {
		if w.authority, w.authorityHost, w.authorityPort, err = message.ParseAuthority([]byte(p.Authority)); err != nil {
			return nil, fmt.Errorf("authority %q: %w", p.Authority, err)
		}
	}
	return w, nil
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

// Rewriter returns what rewrites requests to the i-th destination: the destination's own, else the rule's.
func (r *Route) Rewriter(i int) *Rewriter {
	if r.each != nil {
		return r.each[i].rewrite
	}
	return r.rewrite
}

// Share returns what answers requests of the i-th destination, and what it says of pages of other origins in the place of the rule: each
// nil for nothing.
func (r *Route) Share(i int) (*Redirect, *CORS) {
	if r.each == nil {
		return nil, nil
	}
	return r.each[i].redirect, r.each[i].cors
}

// EndpointHost reports whether the authority is to become the host name of the endpoint that is chosen.
func (w *Rewriter) EndpointHost() bool { return w != nil && w.endpointHost }

// ChangesPath reports whether the path may come out changed.
func (w *Rewriter) ChangesPath() bool { return w != nil && (w.path != nil || w.regex != nil) }

// Apply changes the path and the authority of req. The new path is put at the end of buf, which is returned, possibly
// grown, and must stay untouched as long as req is used.
//
// A path that matched by a prefix keeps what follows it, with exactly one slash where the parts meet when both bring
// one; any other match replaces the whole path. A regular expression replaces what it matches, wherever that is.
// ok is false when the path would come to mean something else (a rewrite of "/x" to "/" and a request for "/x.."):
// nothing is changed, answer 400.
func (w *Rewriter) Apply(req *message.Request, buf []byte) (out []byte, ok bool) {
	if w == nil {
		return buf, true
	}
	if w.ChangesPath() && len(req.Path) > 0 && req.Path[0] == '/' { // not "*" of OPTIONS, not CONNECT
		start := len(buf)
		if buf, ok = w.appendPath(buf, req.Path); !ok {
			return buf[:start], false
		}
		req.Path = buf[start:len(buf):len(buf)]
	}
	if w.authority != nil {
		req.Authority, req.Host, req.Port = w.authority, w.authorityHost, w.authorityPort
	}
	return buf, true
}

// appendPath appends the path that path becomes.
func (w *Rewriter) appendPath(dst, path []byte) ([]byte, bool) {
	if w.regex != nil {
		return w.regex.append(dst, path)
	}
	if w.prefix < 0 || int(w.prefix) > len(path) {
		return append(dst, w.path...), true
	}
	start, rest := len(dst), path[w.prefix:]
	dst = append(dst, w.path...)
	if len(rest) > 0 && rest[0] == '/' && w.path[len(w.path)-1] == '/' {
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

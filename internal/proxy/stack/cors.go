package stack

import (
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// cors is a plan.CORS made ready to run.
type cors struct {
	plan    *plan.CORS
	origins []match.Matcher

	methods, headers, expose []byte // as lists; "" is not sent
	maxAge                   []byte
	// With credentials "*" means nothing to a browser (Fetch standard, section 3.2.5), so what was asked for is named.
	anyMethod, anyHeader, anyExpose bool
}

func newCORS(p *plan.CORS) (*cors, error) {
	c := &cors{plan: p, methods: list(p.Methods), headers: list(p.Headers), expose: list(p.Expose)}
	for i := range p.Origins {
		m, err := p.Origins[i].Compile()
		if err != nil {
			return nil, err
		}
		c.origins = append(c.origins, m)
	}
	if p.MaxAge > 0 {
		c.maxAge = strconv.AppendInt(nil, int64(p.MaxAge.D().Seconds()), 10)
	}
	if p.Credentials {
		c.anyMethod, c.anyHeader, c.anyExpose = slices.Contains(p.Methods, "*"), slices.Contains(p.Headers, "*"), slices.Contains(p.Expose, "*")
	}
	return c, nil
}

func list(words []string) []byte { return []byte(strings.Join(words, ", ")) }

func (c *cors) allows(origin []byte) bool {
	for i := range c.origins {
		if c.origins[i].Match(origin) {
			return true
		}
	}
	return false
}

// share looks at where a cross-origin request comes from, and answers preflights (Fetch standard, section 3.2; Envoy's and
// Istio's CORS filter; Gateway API HTTPCORSFilter). Preflights carry no credentials and browsers hide other answers to
// them, so nothing below may be asked before.
func (x *exchange) share() bool {
	if x.route == nil || x.rec.Route.CORS == nil {
		return true
	}
	c := x.s.rules[x.rec.Route].cors
	origin, ok := x.req.Fields.Get("origin")
	if !ok {
		return true
	}
	method, preflight := x.req.Fields.Get("access-control-request-method")
	preflight = preflight && len(method) > 0 && string(x.req.Method) == "OPTIONS"
	if c.allows(origin) {
		x.cors, x.origin = c, origin
	} else if !preflight || !c.plan.AnswerUnmatched {
		return true // the destination may have a policy of its own
	}
	if !preflight {
		return true
	}
	x.resp.Reset()
	x.resp.Status = 200
	if x.cors != nil {
		asked, _ := x.req.Fields.Get("access-control-request-headers")
		x.permit("access-control-allow-methods", c.methods, c.anyMethod, method)
		x.permit("access-control-allow-headers", c.headers, c.anyHeader, asked)
		if len(c.maxAge) > 0 {
			x.resp.Fields.Add("access-control-max-age", c.maxAge)
		}
	}
	return x.local("cors_preflight", nil)
}

// permit names what a preflight may go on with. Values come from the client's own head, so they can stand in one.
func (x *exchange) permit(name string, allowed []byte, asIs bool, asked []byte) {
	if asIs {
		allowed = asked
	}
	if len(allowed) > 0 {
		x.resp.Fields.Add(name, allowed)
	}
}

// shareResponse says that the page which asked may see the response. What the destination said about it is replaced: two
// answers to one question are none.
func (x *exchange) shareResponse(fs *message.Fields) {
	if x.cors == nil {
		return
	}
	c := x.cors
	fs.Set("access-control-allow-origin", x.origin)
	vary(fs)
	if c.plan.Credentials {
		fs.Set("access-control-allow-credentials", []byte("true"))
	} else {
		fs.Del("access-control-allow-credentials")
	}
	preflight := x.rec.Detail == "cors_preflight"
	switch {
	case preflight || len(c.expose) == 0:
	case !c.anyExpose:
		fs.Set("access-control-expose-headers", c.expose)
	default:
		start := len(x.buf)
		for i, f := range *fs {
			if i > 0 {
				x.buf = append(x.buf, ',', ' ')
			}
			x.buf = append(x.buf, f.Name...)
		}
		fs.Set("access-control-expose-headers", x.buf[start:len(x.buf):len(x.buf)])
	}
}

// vary tells caches that the response depends on the origin (Fetch standard, section 3.2.6).
func vary(fs *message.Fields) {
	for i := range *fs {
		if f := &(*fs)[i]; string(f.Name) == "vary" {
			for word := range strings.SplitSeq(string(f.Value), ",") {
				if word = strings.TrimSpace(word); word == "*" || strings.EqualFold(word, "origin") {
					return
				}
			}
		}
	}
	fs.Add("vary", []byte("origin"))
}

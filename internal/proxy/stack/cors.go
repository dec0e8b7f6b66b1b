package stack

import (
	"strings"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/route"
)

// share looks at where a cross-origin request comes from, and answers preflights (Fetch standard, section 3.2; Envoy's and
// Istio's CORS filter; Gateway API HTTPCORSFilter). Preflights carry no credentials and browsers hide other answers to
// them, so nothing below may be asked before.
func (x *exchange) share() bool {
	if x.route == nil || x.rec.Route.CORS == nil {
		return true
	}
	return x.shareBy(x.route.CORS())
}

// shareBy is share by a policy: the route's, or instead of it that of the destination that was drawn.
func (x *exchange) shareBy(c *route.CORS) bool {
	x.cors, x.origin = nil, nil
	origin, answer := c.Ask(x.req)
	if origin != nil {
		x.cors, x.origin = c, origin
	}
	if !answer {
		return true // of an origin that is not allowed the destination may think otherwise
	}
	x.resp.Reset()
	x.resp.Status = 200
	if x.cors != nil {
		method, _ := x.req.Fields.Get("access-control-request-method")
		headers, _ := x.req.Fields.Get("access-control-request-headers")
		x.permit("access-control-allow-methods", c.Methods, c.AskedMethod, method)
		x.permit("access-control-allow-headers", c.Headers, c.AskedHeaders, headers)
		if len(c.MaxAge) > 0 {
			x.resp.Fields.Add("access-control-max-age", c.MaxAge)
		}
	}
	return x.local(preflighted, nil)
}

const preflighted = "cors_preflight"

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
	c := x.cors
	if c == nil {
		return
	}
	fs.Set("access-control-allow-origin", x.origin)
	vary(fs)
	if c.Plan.Credentials {
		fs.Set("access-control-allow-credentials", []byte("true"))
	} else {
		fs.Del("access-control-allow-credentials")
	}
	switch {
	case len(c.Expose) == 0:
	case !c.ExposeAll: // a preflight does not need it; clients that look for it there are told, as Envoy does
		fs.Set("access-control-expose-headers", c.Expose)
	case x.rec.Detail == preflighted: // its headers are none of the response to come
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

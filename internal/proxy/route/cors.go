package route

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// CORS is a plan.CORS made ready to run. It is immutable.
type CORS struct {
	// Plan is what it was built from.
	Plan *plan.CORS
	// Methods, Headers, Expose and MaxAge are field values; an empty one is not sent.
	Methods, Headers, Expose, MaxAge []byte
	// With credentials "*" means nothing to a browser (Fetch standard, section 3.2.5): then the request's own words are sent
	// instead of Methods, Headers and Expose.
	AskedMethod, AskedHeaders, ExposeAll bool

	origins []match.Matcher
}

func newCORS(p *plan.CORS) (*CORS, error) {
	if p == nil {
		return nil, nil
	}
	list := func(words []string) []byte { return []byte(strings.Join(words, ", ")) }
	c := &CORS{Plan: p, Methods: list(p.Methods), Headers: list(p.Headers), Expose: list(p.Expose)}
	for _, v := range [...][]byte{c.Methods, c.Headers, c.Expose} {
		if !message.IsValue(v) {
			return nil, fmt.Errorf("CORS: %q is not a header value", v)
		}
	}
	for i := range p.Origins {
		m, err := p.Origins[i].Compile()
		if err != nil {
			return nil, fmt.Errorf("CORS: origin: %w", err)
		}
		c.origins = append(c.origins, m)
	}
	if p.MaxAge > 0 {
		c.MaxAge = strconv.AppendInt(nil, int64(p.MaxAge.D().Seconds()), 10)
	}
	if p.Credentials {
		c.AskedMethod, c.AskedHeaders, c.ExposeAll = slices.Contains(p.Methods, "*"), slices.Contains(p.Headers, "*"), slices.Contains(p.Expose, "*")
	}
	return c, nil
}

// CORS returns the cross-origin policy of the route; nil when it has none.
func (r *Route) CORS() *CORS { return r.cors }

// Ask looks at where a request comes from: the origin that may see the answer, or nil, and whether it is a preflight
// that the proxy answers itself (Fetch standard, section 3.2.2).
func (c *CORS) Ask(r *message.Request) (origin []byte, answer bool) {
	from, ok := r.Fields.Get("origin")
	if !ok {
		return nil, false
	}
	for i := range c.origins {
		if c.origins[i].Match(from) {
			origin = from
			break
		}
	}
	method, _ := r.Fields.Get("access-control-request-method")
	answer = len(method) > 0 && string(r.Method) == "OPTIONS" && (origin != nil || c.Plan.AnswerUnmatched)
	return origin, answer
}

package stack

import (
	"strconv"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/proxy/limit"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

// guards is the rate limits of a listener or a rule.
type guards struct {
	limits  []*limit.Limit
	missing bool // one of them is not in the plan: nothing passes
}

func (s *Stack) guardsOf(names []string) guards {
	var g guards
	for _, name := range names {
		l := s.Limits.Get(name)
		if l == nil {
			g.missing = true
			continue
		}
		g.limits = append(g.limits, l)
	}
	return g
}

// admit counts a request against the limits of the listener.
func (x *exchange) admit() bool { return x.counted(&x.s.guards) }

// limit counts a request against the limits of its rule.
func (x *exchange) limit() bool {
	if x.route == nil || len(x.rec.Route.Limits) == 0 {
		return true
	}
	g, ok := x.s.rules.Load(x.rec.Route)
	if !ok {
		made := x.s.guardsOf(x.rec.Route.Limits)
		g, _ = x.s.rules.LoadOrStore(x.rec.Route, &made)
	}
	return x.counted(g.(*guards))
}

func (x *exchange) counted(g *guards) bool {
	if g.missing {
		return x.answer(503, telemetry.NoCluster, "rate_limit_not_found", "a rate limit that guards this does not exist")
	}
	if len(g.limits) == 0 {
		return true
	}
	sub := limit.Subject{Request: x.req, Peer: x.p.Identity, Client: x.client}
	excess, ok := limit.Take(g.limits, x.at, &sub)
	if ok {
		return true
	}
	x.excess = excess
	x.charge()
	if x.rec.Origin = &excess.Rule.Origin; excess.Rule.Origin == (ident.Origin{}) {
		x.rec.Origin = &excess.Limit.Origin
	}
	const detail, text = "local_rate_limited", "too many requests: a rate limit was passed"
	if x.grpc {
		return x.answerGRPC(8, telemetry.RateLimited, detail, text) // RESOURCE_EXHAUSTED
	}
	return x.answer(429, telemetry.RateLimited, detail, text)
}

// tellLimit says when to come back (RFC 9110 section 10.2.3), and what the limit is (draft-ietf-httpapi-ratelimit-headers-10).
// Times are rounded up: who comes then passes. The policy is named by what it counts by and not by its object, which is
// nobody's business at an edge.
func (x *exchange) tellLimit(fs *message.Fields) {
	e := &x.excess
	if e.Rule == nil {
		return
	}
	seconds := int64((e.Wait + time.Second - 1) / time.Second)
	start := len(x.buf)
	x.buf = strconv.AppendInt(x.buf, seconds, 10)
	wait := x.buf[start:len(x.buf):len(x.buf)]
	fs.Add("retry-after", wait)

	start = len(x.buf)
	x.buf = append(x.buf, '"')
	x.buf = append(x.buf, e.Policy...)
	x.buf = append(x.buf, `";r=0;t=`...)
	x.buf = append(x.buf, wait...)
	fs.Add("ratelimit", x.buf[start:len(x.buf):len(x.buf)])

	start = len(x.buf)
	x.buf = append(x.buf, '"')
	x.buf = append(x.buf, e.Policy...)
	x.buf = append(x.buf, `";q=`...)
	x.buf = strconv.AppendUint(x.buf, uint64(e.Requests), 10)
	if per := e.Rule.Per.D(); per%time.Second == 0 { // the window has whole seconds, or is not told
		x.buf = append(x.buf, ";w="...)
		x.buf = strconv.AppendInt(x.buf, int64(per/time.Second), 10)
	}
	fs.Add("ratelimit-policy", x.buf[start:len(x.buf):len(x.buf)])
}

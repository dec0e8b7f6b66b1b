package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/limit"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/route"
)

// Limit is one rule of a rate limit that guards the way.
type Limit struct {
	Name     string        `json:"name"`
	Applies  bool          `json:"applies"`
	Why      string        `json:"why,omitempty"` // the condition that failed
	By       plan.LimitBy  `json:"by,omitempty"`
	Header   string        `json:"header,omitempty"`
	Requests uint32        `json:"requests"` // for this caller
	Per      plan.Duration `json:"per"`
	Burst    uint32        `json:"burst,omitempty"`
	Origin   ident.Origin  `json:"origin,omitzero"`
}

// CORS is what the cross-origin policy of a rule makes of a request.
type CORS struct {
	Policy *plan.CORS `json:"policy"`
	Why    string     `json:"why"`
}

// Key is what chooses an endpoint, so that requests which have it in common meet.
type Key struct {
	By    string `json:"by"` // "header x-user", "cookie id", "query parameter q", "source address"; "" nothing: any endpoint will do
	Value string `json:"value,omitempty"`
	New   bool   `json:"new,omitempty"` // the client is given a cookie
}

// limits returns the rules of the named limits, and the answer that comes whatever was used up before: of a limit that
// does not exist, or that lets nothing pass.
func (n *node) limitsOf(names []string, sub *limit.Subject, grpc bool, origin ident.Origin) ([]Limit, *Answer) {
	var out []Limit
	var over *Answer
	for _, name := range names {
		l := n.limits.Get(name)
		if l == nil {
			return out, answer(n.plan.Node.Name, grpc, 503, "NC", "rate_limit_not_found", "a rate limit that guards this does not exist: "+name, origin)
		}
		for _, s := range l.Explain(sub) {
			o := s.Rule.Origin
			if o.IsZero() {
				o = l.Plan().Origin
			}
			burst := s.Rule.Burst
			if burst == s.Requests {
				burst = 0
			}
			out = append(out, Limit{Name: name, Applies: s.Applies, Why: s.Reason, By: s.Rule.By, Header: s.Rule.Header, Requests: s.Requests,
				Per: s.Rule.Per, Burst: burst, Origin: o})
			if s.Applies && s.Requests == 0 && over == nil {
				over = answer(n.plan.Node.Name, grpc, 429, "RL", "local_rate_limited", "the rate limit lets no such request pass", o)
				if grpc {
					code := 8
					over.GRPC = &code
				}
			}
		}
	}
	return out, over
}

// limited asks the limits of the sender's proxy; false when one lets nothing pass.
func (x *walker) limited(names []string, origin ident.Origin) bool {
	found, over := x.node.limitsOf(names, &limit.Subject{Request: &x.req.Request, Client: x.client}, x.req.grpc(), origin)
	x.walk.Limits = append(x.walk.Limits, found...)
	if over != nil {
		x.walk.Answer = over
	}
	return over == nil
}

// share is what the cross-origin policy of a rule says; false when the proxy answers.
func (x *walker) share(r *route.Route) bool {
	if r.CORS() != nil {
		x.walk.Action.CORS, x.walk.Answer = x.shareBy(r.CORS(), r.Plan().Origin)
	}
	return x.walk.Answer == nil
}

// shareBy is what a policy says, and what the proxy answers; nil: nothing.
func (x *walker) shareBy(c *route.CORS, by ident.Origin) (*CORS, *Answer) {
	origin, answered := c.Ask(&x.req.Request)
	asked, present := x.req.Fields.Get("origin")
	out := &CORS{Policy: c.Plan}
	switch {
	case !present:
		out.Why = "the request has no origin"
	case origin != nil:
		out.Why = fmt.Sprintf("origin %q is allowed", asked)
	default:
		out.Why = fmt.Sprintf("origin %q is not allowed", asked)
	}
	if !answered {
		return out, nil
	}
	return out, &Answer{By: x.node.plan.Node.Name, Status: 200, Detail: "cors_preflight", Text: "preflight: " + out.Why, Origin: by}
}

// keyOf is what internal/proxy/stack hashes of a request, in the same order.
func keyOf(h *plan.Hash, req *sent, client netip.Addr) *Key {
	if h == nil {
		return nil
	}
	if h.Header != "" {
		if v, ok := req.Fields.Get(h.Header); ok {
			return &Key{By: "header " + h.Header, Value: string(v)}
		}
	}
	if h.Cookie != nil {
		by := "cookie " + h.Cookie.Name
		if v, ok := cookie(req.Fields, h.Cookie.Name); ok {
			return &Key{By: by, Value: v}
		}
		if h.Cookie.HasTTL {
			return &Key{By: by, New: true}
		}
	}
	if h.Query != "" {
		if v, ok := route.AppendQuery(nil, req.Query, h.Query); ok {
			return &Key{By: "query parameter " + h.Query, Value: string(v)}
		}
	}
	if h.SourceIP {
		return &Key{By: "source address", Value: client.String()}
	}
	return &Key{}
}

// cookie returns the value of a cookie.
func cookie(fs message.Fields, name string) (string, bool) {
	for _, f := range fs {
		if string(f.Name) != "cookie" {
			continue
		}
		for pair := range strings.SplitSeq(string(f.Value), ";") {
			if k, v, ok := strings.Cut(strings.TrimLeft(pair, " "), "="); ok && k == name {
				return strings.Trim(strings.TrimRight(v, " "), `"`), true
			}
		}
	}
	return "", false
}

// serverName returns what a listener does with TLS for a name: the most specific entry, as internal/proxy/server finds it.
func serverName(names []plan.ServerName, host string) *plan.ServerName {
	var best *plan.ServerName
	specific := ""
	for i := range names {
		for _, n := range names[i].Names {
			if (n == "*" || ident.HostCovers(n, host)) && (best == nil || ident.CompareSpecific(n, specific) < 0) {
				best, specific = &names[i], n
			}
		}
	}
	return best
}

// tcpRoute returns where opaque bytes for an address go: the first rule for it, else the default. It notes each rule that it tried.
func (x *walker) tcpRoute(routes []plan.TCPRoute, ds []plan.Destination, origin ident.Origin) ([]plan.Destination, ident.Origin) {
	host := string(x.req.Host)
	addr, err := netip.ParseAddr(host)
	for i := range routes {
		r := &routes[i]
		tried := Rule{Name: "tcp", Index: i, Origin: r.Origin, Matched: len(r.Subnets) == 0, Why: "it has no conditions"}
		for _, s := range r.Subnets {
			if p, perr := netip.ParsePrefix(s); err == nil && perr == nil && p.Contains(addr.Unmap()) {
				tried.Matched, tried.Why = true, fmt.Sprintf("address %s is in %s", host, s)
				break
			}
		}
		if !tried.Matched {
			tried.Why = fmt.Sprintf("%s is no address in %s", host, strings.Join(r.Subnets, ", "))
		}
		x.walk.Rules = append(x.walk.Rules, tried)
		if tried.Matched {
			return r.Forward, r.Origin
		}
	}
	return ds, origin
}

// triedNames notes why a TLS connection whose bytes are passed on chose a server name, or none of them: the chosen one last, since
// not the order decides but which is the most specific.
func (x *walker) triedNames(names []plan.ServerName, chosen *plan.ServerName) {
	var last Rule
	for i := range names {
		n := &names[i]
		tried := Rule{Name: "tls", Index: i, Origin: n.Origin, Matched: n == chosen}
		all := strings.Join(n.Names, ", ")
		switch {
		case tried.Matched:
			tried.Why = fmt.Sprintf("server name %q is covered by %s", x.req.Host, all)
			last = tried
			continue
		case slices.ContainsFunc(n.Names, func(name string) bool { return name == "*" || ident.HostCovers(name, string(x.req.Host)) }):
			tried.Why = all + " is less specific than another rule"
		default:
			tried.Why = fmt.Sprintf("server name is %q, want %s", x.req.Host, all)
		}
		x.walk.Rules = append(x.walk.Rules, tried)
	}
	if last.Matched {
		x.walk.Rules = append(x.walk.Rules, last)
	}
}

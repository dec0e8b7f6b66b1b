package authz

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// rule is a plan.PolicyRule made ready to run: one of from (if any), one of to (if any), all of when.
type rule struct {
	plan   *plan.PolicyRule
	deny   bool // of a DENY or AUDIT policy: what is not known makes it match
	detail string
	from   []conjunction
	to     []conjunction
	when   conjunction
}

// conjunction is a set of conditions that must all hold.
type conjunction []condition

// condition asks one attribute: one of is must match (if any), none of not may.
type condition struct {
	attribute attribute
	header    string // name, for attrHeader
	is, not   values
}

// values are alternatives. Which of the fields is used depends on the attribute.
type values struct {
	strings  []match.Matcher
	prefixes []netip.Prefix
	ports    []int
}

func (v *values) empty() bool {
	return len(v.strings) == 0 && len(v.prefixes) == 0 && len(v.ports) == 0
}

type attribute uint8

const (
	attrPrincipal attribute = iota
	attrNamespace
	attrSourceIP
	attrDestinationIP
	attrPort
	attrHost // the first attribute of HTTP: see attribute.http
	attrMethod
	attrPath
	attrHeader
)

// http reports whether only HTTP requests have the attribute.
func (a attribute) http() bool { return a >= attrHost }

// identity reports whether only authenticated peers have the attribute.
func (a attribute) identity() bool { return a == attrPrincipal || a == attrNamespace }

func compileRule(p *plan.PolicyRule, deny bool) (rule, error) {
	r := rule{plan: p, deny: deny}
	for i := range p.From {
		s := &p.From[i]
		var c compiler
		c.strings(attrPrincipal, s.Principals, s.NotPrincipals)
		c.strings(attrNamespace, s.Namespaces, s.NotNamespaces)
		c.blocks(attrSourceIP, s.IPBlocks, s.NotIPBlocks)
		if c.err != nil {
			return rule{}, fmt.Errorf("from[%d]: %w", i, c.err)
		}
		r.from = append(r.from, c.out)
	}
	for i := range p.To {
		o := &p.To[i]
		var c compiler
		c.strings(attrHost, ignoreCase(o.Hosts), ignoreCase(o.NotHosts))
		if len(o.Ports) > 0 || len(o.NotPorts) > 0 {
			c.out = append(c.out, condition{attribute: attrPort, is: values{ports: o.Ports}, not: values{ports: o.NotPorts}})
		}
		c.strings(attrMethod, o.Methods, o.NotMethods)
		c.strings(attrPath, o.Paths, o.NotPaths)
		if c.err != nil {
			return rule{}, fmt.Errorf("to[%d]: %w", i, c.err)
		}
		r.to = append(r.to, c.out)
	}
	var c compiler
	for i := range p.When {
		if c.when(&p.When[i]); c.err != nil {
			return rule{}, fmt.Errorf("when[%d]: %w", i, c.err)
		}
	}
	r.when = c.out
	return r, nil
}

// compiler collects the conditions of one conjunction and the first error.
type compiler struct {
	out conjunction
	err error
}

func (c *compiler) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

func (c *compiler) strings(a attribute, is, not []match.String) {
	c.header(a, "", is, not)
}

func (c *compiler) header(a attribute, name string, is, not []match.String) {
	if len(is) > 0 || len(not) > 0 {
		c.out = append(c.out, condition{attribute: a, header: name, is: values{strings: c.matchers(is)}, not: values{strings: c.matchers(not)}})
	}
}

func (c *compiler) matchers(list []match.String) []match.Matcher {
	out := make([]match.Matcher, len(list))
	for i := range list {
		m, err := list[i].Compile()
		if err != nil {
			c.fail(err)
		}
		out[i] = m
	}
	return out
}

func (c *compiler) blocks(a attribute, is, not []string) {
	if len(is) > 0 || len(not) > 0 {
		c.out = append(c.out, condition{attribute: a, is: values{prefixes: c.prefixes(is)}, not: values{prefixes: c.prefixes(not)}})
	}
}

func (c *compiler) prefixes(list []string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		p, err := parseBlock(s)
		if err != nil {
			c.fail(fmt.Errorf("%q is not an IP address or CIDR block: %w", s, err))
		}
		out[i] = p
	}
	return out
}

func parseBlock(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, err
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 { // ::ffff:10.0.0.0/104: peers are compared unmapped
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// when compiles one `when` entry. A key that is not known is an error: a condition that is left out opens a policy.
func (c *compiler) when(w *plan.Condition) {
	if len(w.Values) == 0 && len(w.NotValues) == 0 {
		c.fail(fmt.Errorf("%s has neither values nor notValues", w.Key))
		return
	}
	switch w.Key {
	case "source.principal":
		c.strings(attrPrincipal, w.Values, w.NotValues)
	case "source.namespace":
		c.strings(attrNamespace, w.Values, w.NotValues)
	case "source.ip":
		c.blocks(attrSourceIP, c.literals(w.Values), c.literals(w.NotValues))
	case "destination.ip":
		c.blocks(attrDestinationIP, c.literals(w.Values), c.literals(w.NotValues))
	case "destination.port":
		c.out = append(c.out, condition{attribute: attrPort, is: values{ports: c.ports(w.Values)}, not: values{ports: c.ports(w.NotValues)}})
	default:
		name, ok := strings.CutPrefix(w.Key, "request.headers[")
		if ok {
			name, ok = strings.CutSuffix(name, "]")
		}
		if !ok || name == "" {
			c.fail(fmt.Errorf("unknown key %q", w.Key))
			return
		}
		c.header(attrHeader, strings.ToLower(name), w.Values, w.NotValues)
	}
}

func (c *compiler) literals(list []match.String) []string {
	out := make([]string, len(list))
	for i := range list {
		if list[i].Kind != match.Exact {
			c.fail(fmt.Errorf("%s: only addresses and blocks can be compared here", list[i]))
		}
		out[i] = list[i].Value
	}
	return out
}

func (c *compiler) ports(list []match.String) []int {
	var out []int
	for _, s := range c.literals(list) {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			c.fail(fmt.Errorf("%q is not a port", s))
		}
		out = append(out, int(n))
	}
	return out
}

// ignoreCase returns a copy of list that ignores case: hosts have none (RFC 9110 section 4.2.3).
func ignoreCase(list []match.String) []match.String {
	out := make([]match.String, len(list))
	for i, s := range list {
		s.IgnoreCase = true
		out[i] = s
	}
	return out
}

// matches reports whether the rule matches.
func (r *rule) matches(p *peer) bool {
	return r.one(r.from, p) && r.one(r.to, p) && r.all(r.when, p)
}

func (r *rule) one(list []conjunction, p *peer) bool {
	if len(list) == 0 {
		return true
	}
	for _, c := range list {
		if r.all(c, p) {
			return true
		}
	}
	return false
}

func (r *rule) all(c conjunction, p *peer) bool {
	for i := range c {
		if !r.holds(&c[i], p) {
			return false
		}
	}
	return true
}

// holds reports whether one condition holds. Truth table for what is not known (proved by TestUnknown):
//
//	                          ALLOW    DENY, AUDIT
//	HTTP attribute of TCP     false    true (ignored)
//	identity of nobody: is    false    false
//	identity of nobody: not   false    true
func (r *rule) holds(c *condition, p *peer) bool {
	if c.attribute.http() && p.in.Request == nil {
		return r.deny
	}
	if c.attribute.identity() && p.in.Peer.IsZero() {
		return r.deny && c.is.empty()
	}
	if c.attribute == attrHeader {
		return r.holdsHeader(c, p.in.Request)
	}
	return (c.is.empty() || p.has(c, &c.is)) && (c.not.empty() || !p.has(c, &c.not))
}

// peer is an Input made ready to be asked.
type peer struct {
	in            *Input
	remote, local netip.Addr
	spelled       *spelling // nil until a rule asks for the principal or namespace
}

// spelling is the peer's principal as bytes. It is pooled, as a matcher may let go of its argument only at the heap.
type spelling struct {
	b         []byte
	namespace int // where it starts
}

var spellings = sync.Pool{New: func() any { return &spelling{b: make([]byte, 0, 256)} }}

func newPeer(in *Input) peer {
	return peer{in: in, remote: in.Remote.Unmap().WithZone(""), local: in.Local.Unmap().WithZone("")}
}

// release ends the use of p.
func (p *peer) release() {
	if p.spelled != nil {
		spellings.Put(p.spelled)
		p.spelled = nil
	}
}

func (p *peer) spell() *spelling {
	if p.spelled == nil {
		s, id := spellings.Get().(*spelling), &p.in.Peer
		b := append(s.b[:0], id.TrustDomain...)
		b = append(b, "/ns/"...)
		s.namespace = len(b)
		b = append(b, id.Namespace...)
		b = append(b, "/sa/"...)
		s.b = append(b, id.ServiceAccount...)
		p.spelled = s
	}
	return p.spelled
}

// principal returns what ident.Identity.Principal returns.
func (p *peer) principal() []byte { return p.spell().b }

func (p *peer) namespace() []byte {
	s := p.spell()
	return s.b[s.namespace : s.namespace+len(p.in.Peer.Namespace)]
}

// has reports whether the attribute is one of v.
func (p *peer) has(c *condition, v *values) bool {
	switch c.attribute {
	case attrPrincipal:
		return anyOf(v.strings, p.principal())
	case attrNamespace:
		return anyOf(v.strings, p.namespace())
	case attrSourceIP:
		return within(v.prefixes, p.remote)
	case attrDestinationIP:
		return within(v.prefixes, p.local)
	case attrPort:
		for _, port := range v.ports {
			if port == p.in.Port {
				return true
			}
		}
		return false
	case attrHost:
		// A rule may be written with or without the port; the request may come with or without it. Both forms are
		// asked, so that no spelling of the request slips past a DENY (CVE-2021-39155).
		return anyOf(v.strings, p.in.Request.Authority) || anyOf(v.strings, p.in.Request.Host)
	case attrMethod:
		return anyOf(v.strings, p.in.Request.Method)
	case attrPath:
		return anyOf(v.strings, p.in.Request.Path)
	}
	return false
}

// holdsHeader asks each line of a repeated header by itself. What the application makes of several lines is not known,
// so an ALLOW rule wants every line to satisfy the condition, and for a DENY rule one line is enough. Without any line
// only a condition that is purely negative holds.
func (r *rule) holdsHeader(c *condition, req *message.Request) bool {
	lines := false
	for i := range req.Fields {
		if string(req.Fields[i].Name) != c.header {
			continue
		}
		lines = true
		if c.line(req.Fields[i].Value) == r.deny {
			return r.deny
		}
	}
	if !lines {
		if v := unlisted(c.header, req); len(v) > 0 {
			return c.line(v)
		}
		return c.is.empty()
	}
	return !r.deny
}

// unlisted returns a header that the codecs keep outside of message.Request.Fields; empty when it is absent.
func unlisted(name string, req *message.Request) []byte {
	switch name {
	case "host", ":authority":
		return req.Authority
	case ":method":
		return req.Method
	case ":path":
		return req.Path
	case ":scheme":
		return req.Scheme
	case "upgrade":
		return req.Upgrade
	}
	return nil
}

func (c *condition) line(v []byte) bool {
	return (c.is.empty() || anyOf(c.is.strings, v)) && (c.not.empty() || !anyOf(c.not.strings, v))
}

func anyOf(list []match.Matcher, v []byte) bool {
	for i := range list {
		if list[i].Match(v) {
			return true
		}
	}
	return false
}

func within(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Package capture says how the traffic of a workload comes to the proxy beside it: as rules for the packets of one network
// namespace, that of a pod.
//
// In come Options, from the command line of `malha-proxy capture` or from a pod's annotations; out goes a Ruleset, a plain
// value that String spells in the language of nft(8) and internal/capture/kernel puts in force. Connections are redirected
// (NAT), never marked or copied, so that the proxy needs no privilege: it asks the socket what a connection was for
// (SO_ORIGINAL_DST).
//
// What is not TCP passes untouched, but queries of names where that is asked for.
package capture

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// The ports of the proxy, as Istio's, so that network policies and dashboards go on to be right.
const (
	DefaultInbound  = 15006
	DefaultOutbound = 15001
	DefaultDNS      = 15053
	DefaultUser     = 1337 // and group, of the proxy
)

// ownPorts are answered by the proxy itself: metrics and health.
var ownPorts = []uint16{15020, 15021}

// Delivery is the priority (SO_PRIORITY) of the sockets by which the proxy brings inbound connections to the program, by which
// they are told from calls of the program to itself, which are connections of the proxy to the same address. Any process may
// set it up to 6; 5 is one that no type of service stands for.
const Delivery = 5

// PortRange is ports from one to another, both included.
type PortRange struct{ First, Last uint16 }

// Ports is a choice of ports.
type Ports struct {
	All    bool
	Ranges []PortRange
}

// Networks is a choice of addresses.
type Networks struct {
	All      bool
	Prefixes []netip.Prefix
}

// Options are what is captured.
type Options struct {
	Inbound, Outbound uint16 // ports of the proxy
	DNS               uint16 // of the proxy, for queries; 0: they are not captured
	User, Group       uint32 // of the proxy: what it sends itself is not captured

	IncludeInbound  Ports // connections to the workload, by port
	ExcludeInbound  Ports
	IncludePorts    Ports // outbound, wherever they go
	ExcludePorts    Ports
	IncludeNetworks Networks // outbound
	ExcludeNetworks Networks
	// ExcludeInterfaces are network interfaces whose traffic is not captured, either way.
	ExcludeInterfaces []string
	// Resolvers are the servers whose queries are captured; none: those of every server.
	Resolvers []netip.Addr
}

// Defaults returns Options that capture all connections in and out, and no queries.
func Defaults() *Options {
	return &Options{
		Inbound: DefaultInbound, Outbound: DefaultOutbound, User: DefaultUser, Group: DefaultUser,
		IncludeInbound: Ports{All: true}, IncludeNetworks: Networks{All: true},
	}
}

// option is one choice that users have, under the name of its annotation (traffic.sidecar.istio.io/NAME) and of its flag.
type option struct {
	name, flag, usage string
	set               func(*Options, string) error
	get               func(*Options) string
}

var options = []option{
	{"includeInboundPorts", "include-inbound-ports", "ports of the workload whose connections are captured: a list of `PORTS`, or '*'",
		func(o *Options, s string) error { return o.IncludeInbound.parse(s, true) },
		func(o *Options) string { return o.IncludeInbound.String() }},
	{"excludeInboundPorts", "exclude-inbound-ports", "ports of the workload whose connections are left alone: a list of `PORTS`",
		func(o *Options, s string) error { return o.ExcludeInbound.parse(s, false) },
		func(o *Options) string { return o.ExcludeInbound.String() }},
	{"includeOutboundIPRanges", "include-outbound-ip-ranges", "networks to which connections are captured: a list of `CIDRS`, or '*'",
		func(o *Options, s string) error { return o.IncludeNetworks.parse(s, true) },
		func(o *Options) string { return o.IncludeNetworks.String() }},
	{"excludeOutboundIPRanges", "exclude-outbound-ip-ranges", "networks to which connections are left alone: a list of `CIDRS`",
		func(o *Options, s string) error { return o.ExcludeNetworks.parse(s, false) },
		func(o *Options) string { return o.ExcludeNetworks.String() }},
	{"includeOutboundPorts", "include-outbound-ports", "ports to which connections are captured, also in networks that are not included: a list of `PORTS`, or '*'",
		func(o *Options, s string) error { return o.IncludePorts.parse(s, true) },
		func(o *Options) string { return o.IncludePorts.String() }},
	{"excludeOutboundPorts", "exclude-outbound-ports", "ports to which connections are left alone: a list of `PORTS`",
		func(o *Options, s string) error { return o.ExcludePorts.parse(s, false) },
		func(o *Options) string { return o.ExcludePorts.String() }},
	{"excludeInterfaces", "exclude-interfaces", "network interfaces whose traffic is left alone: a list of `NAMES`",
		func(o *Options, s string) error { return o.parseInterfaces(s) },
		func(o *Options) string { return strings.Join(o.ExcludeInterfaces, ",") }},
}

// Names are the choices that Set knows, which are the ends of the names of Istio's annotations.
func Names() []string {
	names := make([]string, len(options))
	for i := range options {
		names[i] = options[i].name
	}
	return names
}

// Flag is a flag of `malha-proxy capture`.
type Flag struct{ Name, Option, Usage string }

// Flags are the flags by which the options of Names are set.
func Flags() []Flag {
	flags := make([]Flag, len(options))
	for i := range options {
		flags[i] = Flag{options[i].flag, options[i].name, options[i].usage}
	}
	return flags
}

// Set sets one of Names to the value of an annotation, as Istio reads it. An empty value chooses nothing.
func (o *Options) Set(name, value string) error {
	for i := range options {
		if options[i].name == name {
			if err := options[i].set(o, value); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		}
	}
	return fmt.Errorf("%s is none of the choices of capture: %s", name, strings.Join(Names(), ", "))
}

// Get returns what an option of Names is set to, as Set reads it.
func (o *Options) Get(name string) string {
	for i := range options {
		if options[i].name == name {
			return options[i].get(o)
		}
	}
	return ""
}

// Args are the arguments of `malha-proxy` that put o in force: "capture" and the flags of what differs from Defaults.
func (o *Options) Args() []string {
	args := []string{"capture"}
	d := Defaults()
	number := func(flag string, v, def uint64) {
		if v != def {
			args = append(args, "--"+flag+"="+strconv.FormatUint(v, 10))
		}
	}
	number("inbound-port", uint64(o.Inbound), uint64(d.Inbound))
	number("outbound-port", uint64(o.Outbound), uint64(d.Outbound))
	number("dns-port", uint64(o.DNS), uint64(d.DNS))
	number("uid", uint64(o.User), uint64(d.User))
	number("gid", uint64(o.Group), uint64(d.Group))
	for i := range options {
		if v := options[i].get(o); v != options[i].get(d) {
			args = append(args, "--"+options[i].flag+"="+v)
		}
	}
	return args
}

// Check finds what does not go together.
func (o *Options) Check() error {
	switch {
	case o.Inbound == 0 || o.Outbound == 0:
		return errors.New("the proxy's ports for inbound and outbound connections can't be 0")
	case o.Inbound == o.Outbound:
		return fmt.Errorf("inbound and outbound connections can't both go to port %d", o.Inbound)
	case o.DNS != 0 && (o.DNS == o.Inbound || o.DNS == o.Outbound):
		return fmt.Errorf("port %d can't be for queries and connections", o.DNS)
	case o.User == 0 || o.Group == 0:
		return errors.New("the proxy can't run as user or group 0: what root sends would not be captured")
	}
	return nil
}

// parse reads "*" (where all can be chosen), or a list of ports and of ranges of them ("80,8000-8100").
func (p *Ports) parse(s string, star bool) error {
	var next Ports
	for field := range fields(s) {
		if field == "*" && star {
			next.All = true
			continue
		}
		first, last, isRange := strings.Cut(field, "-")
		a, err := port(first)
		if err != nil {
			return fmt.Errorf("%q is not a port (1 to 65535)%s", field, orStar(star))
		}
		b := a
		if isRange {
			if b, err = port(last); err != nil || b < a {
				return fmt.Errorf("%q is not a range of ports, like 8000-8100", field)
			}
		}
		next.Ranges = append(next.Ranges, PortRange{a, b})
	}
	if next.All && len(next.Ranges) > 0 {
		return fmt.Errorf("%q: '*' stands alone", s)
	}
	sort.Slice(next.Ranges, func(i, j int) bool {
		a, b := next.Ranges[i], next.Ranges[j]
		return a.First < b.First || a.First == b.First && a.Last < b.Last
	})
	next.Ranges = slices.Compact(next.Ranges)
	*p = next
	return nil
}

func port(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err == nil && n == 0 {
		err = strconv.ErrRange
	}
	return uint16(n), err
}

func orStar(star bool) string {
	if star {
		return " and not '*'"
	}
	return ""
}

// String spells p as parse reads it.
func (p Ports) String() string {
	if p.All {
		return "*"
	}
	parts := make([]string, len(p.Ranges))
	for i, r := range p.Ranges {
		parts[i] = r.String()
	}
	return strings.Join(parts, ",")
}

// String spells r as nft does.
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return strconv.Itoa(int(r.First)) + "-" + strconv.Itoa(int(r.Last))
}

// parse reads "*", or a list of CIDRs and addresses.
func (n *Networks) parse(s string, star bool) error {
	var next Networks
	for field := range fields(s) {
		if field == "*" && star {
			next.All = true
			continue
		}
		p, err := netip.ParsePrefix(field)
		if a, aerr := netip.ParseAddr(field); aerr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil || p.Addr().Is4In6() {
			return fmt.Errorf("%q is not a network like 10.0.0.0/8 or fd00::/8%s", field, orStar(star))
		}
		next.Prefixes = append(next.Prefixes, p.Masked())
	}
	if next.All && len(next.Prefixes) > 0 {
		return fmt.Errorf("%q: '*' stands alone", s)
	}
	sort.Slice(next.Prefixes, func(i, j int) bool {
		a, b := next.Prefixes[i], next.Prefixes[j]
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c < 0
		}
		return a.Bits() < b.Bits()
	})
	next.Prefixes = slices.Compact(next.Prefixes)
	*n = next
	return nil
}

// String spells n as parse reads it.
func (n Networks) String() string {
	if n.All {
		return "*"
	}
	parts := make([]string, len(n.Prefixes))
	for i, p := range n.Prefixes {
		parts[i] = p.String()
	}
	return strings.Join(parts, ",")
}

// parseInterfaces reads a list of names. The kernel's have at most 15 bytes (IFNAMSIZ), nearly any; those that people give have
// letters, digits and a few signs.
func (o *Options) parseInterfaces(s string) error {
	var next []string
	for field := range fields(s) {
		if len(field) > 15 || strings.IndexFunc(field, strange) >= 0 {
			return fmt.Errorf("%q is not the name of a network interface", field)
		}
		next = append(next, field)
	}
	slices.Sort(next)
	o.ExcludeInterfaces = slices.Compact(next)
	return nil
}

func strange(r rune) bool {
	return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && !strings.ContainsRune(".-_:@+", r)
}

// fields are the parts of a list, without the space around them. Empty ones are left out: Istio reads them so.
func fields(s string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for part := range strings.SplitSeq(s, ",") {
			if part = strings.TrimSpace(part); part != "" && !yield(part) {
				return
			}
		}
	}
}

// Resolvers returns the servers that a resolv.conf(5) names.
func Resolvers(conf string) []netip.Addr {
	var servers []netip.Addr
	for line := range strings.Lines(conf) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(words[1]); err == nil {
			servers = append(servers, a.WithZone("").Unmap())
		}
	}
	return servers
}

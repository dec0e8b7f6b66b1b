package capture

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Table is the name of the table of all rules, in the family inet (IPv4 and IPv6).
const Table = "malha"

// Ruleset is the rules of a namespace: one table.
type Ruleset struct {
	Chains []Chain // a chain that is jumped to stands before those that do
}

// Chain is rules in order.
type Chain struct {
	Name  string
	Hook  *Hook // nil: it is jumped to
	Rules []Rule
}

// Hook is where the kernel asks a chain.
type Hook struct {
	Type     string // nat, or filter
	At       string // prerouting, or output
	Priority int
}

// Rule does something with the packets for which all conditions hold. NAT rules see the first packet of a connection only.
type Rule struct {
	Why  string
	When []Condition
	Do   Action
}

// Field is what a condition looks at.
type Field uint8

// The fields.
const (
	InInterface  Field = iota // Name
	OutInterface              // Name
	Protocol                  // Name: tcp, udp
	SourcePort                // Ports, behind a Protocol
	TargetPort
	SourceAddress // Network
	TargetAddress
	User     // Number
	Group    // Number
	Priority // Number
)

// Condition holds, or doesn't, for a packet. What of its values counts is said by Field.
type Condition struct {
	Field   Field
	Not     bool
	Name    string
	Number  uint32
	Ports   PortRange
	Network netip.Prefix
}

// Action is what a rule does: exactly one.
type Action struct {
	Return   bool
	Jump     string
	Redirect uint16 // to this port of the proxy
	Zone     uint16 // of connection tracking
}

// Zones of connection tracking for queries. A program's query and the proxy's own for it go to the same server, maybe from one
// port soon after the other; in one zone the second would be taken for more of the first, and redirected to the proxy itself.
const (
	zoneProxy   = 1
	zoneProgram = 2
)

const (
	prioRaw = -300 // NF_IP_PRI_RAW: before connection tracking
	prioNAT = -100 // NF_IP_PRI_NAT_DST
)

var (
	loopback4 = netip.MustParsePrefix("127.0.0.0/8")
	loopback6 = netip.MustParsePrefix("::1/128")
)

func proto(name string) Condition     { return Condition{Field: Protocol, Name: name} }
func user(id uint32) Condition        { return Condition{Field: User, Number: id} }
func group(id uint32) Condition       { return Condition{Field: Group, Number: id} }
func out(name string) Condition       { return Condition{Field: OutInterface, Name: name} }
func to(p netip.Prefix) Condition     { return Condition{Field: TargetAddress, Network: p} }
func toPort(r PortRange) Condition    { return Condition{Field: TargetPort, Ports: r} }
func one(p uint16) PortRange          { return PortRange{p, p} }
func when(c ...Condition) []Condition { return c }
func not(c Condition) Condition       { c.Not = !c.Not; return c }
func host(a netip.Addr) netip.Prefix  { return netip.PrefixFrom(a, a.BitLen()) }
func redirect(p uint16) Action        { return Action{Redirect: p} }
func (c *Chain) rule(why string, w []Condition, do Action) {
	c.Rules = append(c.Rules, Rule{why, w, do})
}

// Rules returns the rules for o, which must have passed Check.
func Rules(o *Options) *Ruleset {
	r := &Ruleset{Chains: []Chain{o.inbound(), o.outbound(), o.prerouting(), o.output()}}
	if o.DNS != 0 {
		r.Chains = append(r.Chains, o.zones()...)
	}
	return r
}

// inbound decides about TCP connections to the workload.
func (o *Options) inbound() Chain {
	c := Chain{Name: "inbound"}
	own := slices.Concat([]uint16{o.Inbound, o.Outbound}, ownPorts)
	if o.DNS != 0 {
		own = append(own, o.DNS)
	}
	slices.Sort(own)
	for _, p := range slices.Compact(own) {
		c.rule("the proxy's own", when(proto("tcp"), toPort(one(p))), Action{Return: true})
	}
	for _, p := range o.ExcludeInbound.Ranges {
		c.rule("excluded", when(proto("tcp"), toPort(p)), Action{Return: true})
	}
	for _, p := range o.IncludeInbound.Ranges {
		c.rule("included", when(proto("tcp"), toPort(p)), redirect(o.Inbound))
	}
	if o.IncludeInbound.All {
		c.rule("", when(proto("tcp")), redirect(o.Inbound))
	}
	return c
}

// outbound decides about connections of the workload to others.
func (o *Options) outbound() Chain {
	c := Chain{Name: "outbound"}
	for _, name := range o.ExcludeInterfaces {
		c.rule("excluded", when(out(name)), Action{Return: true})
	}
	for _, p := range o.ExcludePorts.Ranges {
		c.rule("excluded", when(proto("tcp"), toPort(p)), Action{Return: true})
	}
	for _, n := range o.ExcludeNetworks.Prefixes {
		c.rule("excluded", when(proto("tcp"), to(n)), Action{Return: true})
	}
	for _, p := range o.IncludePorts.Ranges {
		c.rule("included", when(proto("tcp"), toPort(p)), redirect(o.Outbound))
	}
	for _, n := range o.IncludeNetworks.Prefixes {
		c.rule("included", when(proto("tcp"), to(n)), redirect(o.Outbound))
	}
	if o.IncludeNetworks.All || o.IncludePorts.All {
		c.rule("", when(proto("tcp")), redirect(o.Outbound))
	}
	return c
}

// prerouting is where packets come from outside. What a namespace sends to itself does not come by here.
func (o *Options) prerouting() Chain {
	c := Chain{Name: "prerouting", Hook: &Hook{"nat", "prerouting", prioNAT}}
	for _, name := range o.ExcludeInterfaces {
		c.rule("excluded", when(Condition{Field: InInterface, Name: name}), Action{Return: true})
	}
	c.rule("", when(proto("tcp")), Action{Jump: "inbound"})
	return c
}

// output is where packets come from processes of the namespace.
func (o *Options) output() Chain {
	c := Chain{Name: "output", Hook: &Hook{"nat", "output", prioNAT}}
	c.rule("the proxy brings a connection to the program", when(user(o.User), out("lo"), Condition{Field: Priority, Number: Delivery}), Action{Return: true})
	// The program called itself by the name of its Service: policies and mTLS hold for that, too.
	c.rule("the proxy calls the program as a peer", when(user(o.User), out("lo"), proto("tcp"), not(to(loopback4))), Action{Jump: "inbound"})
	c.rule("the proxy calls the program as a peer", when(user(o.User), out("lo"), proto("tcp"), not(to(loopback6))), Action{Jump: "inbound"})
	c.rule("the proxy's own", when(user(o.User)), Action{Return: true})
	c.rule("the proxy's own", when(group(o.Group)), Action{Return: true})
	if o.DNS != 0 {
		for _, p := range [...]string{"udp", "tcp"} {
			for _, server := range o.servers() {
				c.rule("queries", append(when(proto(p), toPort(one(53))), server...), redirect(o.DNS))
			}
		}
	}
	c.rule("within the workload", when(out("lo")), Action{Return: true})
	c.rule("", when(proto("tcp")), Action{Jump: "outbound"})
	return c
}

// servers are conditions on the target, one for each server whose queries are captured.
func (o *Options) servers() [][]Condition {
	if len(o.Resolvers) == 0 {
		return [][]Condition{nil}
	}
	var all [][]Condition
	for _, a := range o.Resolvers {
		all = append(all, when(to(host(a))))
	}
	return all
}

// zones keep the proxy's queries apart from those of the program.
func (o *Options) zones() []Chain {
	sent := Chain{Name: "queries", Hook: &Hook{"filter", "output", prioRaw}}
	came := Chain{Name: "answers", Hook: &Hook{"filter", "prerouting", prioRaw}}
	sent.rule("an answer to the program", when(user(o.User), proto("udp"), Condition{Field: SourcePort, Ports: one(o.DNS)}), Action{Zone: zoneProgram})
	for _, server := range o.servers() {
		query := append(when(proto("udp"), toPort(one(53))), server...)
		sent.rule("a query of the proxy", append(when(user(o.User)), query...), Action{Zone: zoneProxy})
		sent.rule("a query of the program", append(when(not(user(o.User)), not(group(o.Group))), query...), Action{Zone: zoneProgram})
		answer := when(proto("udp"), Condition{Field: SourcePort, Ports: one(53)})
		for _, s := range server {
			s.Field = SourceAddress
			answer = append(answer, s)
		}
		came.rule("an answer to the proxy", answer, Action{Zone: zoneProxy})
	}
	return []Chain{sent, came}
}

// String spells the ruleset as `nft -f` reads it: it replaces the table as a whole.
func (r *Ruleset) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s\ndelete table inet %s\ntable inet %s {\n", Table, Table, Table)
	for i, c := range r.Chains {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
		if c.Hook != nil {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.Hook.Type, c.Hook.At, c.Hook.Priority)
		}
		for _, rule := range c.Rules {
			b.WriteString("\t\t" + rule.String() + "\n")
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// String spells the rule as nft does.
func (r Rule) String() string {
	var words []string
	var proto string
	for _, c := range r.When {
		if c.Field == Protocol {
			proto = c.Name
		}
		words = append(words, c.spell(proto))
	}
	words = append(words, r.Do.String())
	if r.Why != "" {
		words = append(words, "comment", strconv.Quote(r.Why))
	}
	return strings.Join(words, " ")
}

func (c Condition) spell(proto string) string {
	is := " "
	if c.Not {
		is = " != "
	}
	family := "ip"
	if c.Network.Addr().Is6() {
		family = "ip6"
	}
	switch c.Field {
	case InInterface:
		return "iifname" + is + strconv.Quote(c.Name)
	case OutInterface:
		return "oifname" + is + strconv.Quote(c.Name)
	case Protocol:
		return "meta l4proto" + is + c.Name
	case SourcePort:
		return proto + " sport" + is + c.Ports.String()
	case TargetPort:
		return proto + " dport" + is + c.Ports.String()
	case SourceAddress:
		return family + " saddr" + is + spellNetwork(c.Network)
	case TargetAddress:
		return family + " daddr" + is + spellNetwork(c.Network)
	case User:
		return "meta skuid" + is + strconv.FormatUint(uint64(c.Number), 10)
	case Group:
		return "meta skgid" + is + strconv.FormatUint(uint64(c.Number), 10)
	case Priority:
		return fmt.Sprintf("meta priority%s%x:%x", is, c.Number>>16, c.Number&0xffff)
	}
	return ""
}

func spellNetwork(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// String spells the action as nft does.
func (a Action) String() string {
	switch {
	case a.Jump != "":
		return "jump " + a.Jump
	case a.Redirect != 0:
		return "redirect to :" + strconv.Itoa(int(a.Redirect))
	case a.Zone != 0:
		return "ct zone set " + strconv.Itoa(int(a.Zone))
	}
	return "return"
}

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/malha-mesh/malha/internal/capture"
)

// everything is a ruleset with every hook, field and action, and each of a condition's forms.
func everything() *capture.Ruleset {
	prefix := netip.MustParsePrefix
	conditions := []capture.Condition{
		{Field: capture.InInterface, Name: "eth1"},
		{Field: capture.OutInterface, Name: "lo", Not: true},
		{Field: capture.Protocol, Name: "tcp"},
		{Field: capture.Protocol, Name: "udp"},
		{Field: capture.SourcePort, Ports: capture.PortRange{First: 53, Last: 53}},
		{Field: capture.TargetPort, Ports: capture.PortRange{First: 9000, Last: 9010}},
		{Field: capture.TargetPort, Ports: capture.PortRange{First: 9000, Last: 9010}, Not: true},
		{Field: capture.SourceAddress, Network: prefix("10.96.0.1/32")},
		{Field: capture.TargetAddress, Network: prefix("10.96.0.0/12")},
		{Field: capture.SourceAddress, Network: prefix("fd00::/107"), Not: true},
		{Field: capture.TargetAddress, Network: prefix("fd00::a/128")},
		{Field: capture.User, Number: 1337},
		{Field: capture.Group, Number: 1338},
		{Field: capture.Priority, Number: 7},
	}
	actions := []capture.Action{{Return: true}, {Jump: "first"}, {Redirect: 15001}, {Zone: 2}}
	first := capture.Chain{Name: "first"}
	for i, c := range conditions {
		first.Rules = append(first.Rules, capture.Rule{Why: strings.Repeat("why", i), When: []capture.Condition{c}, Do: actions[i%2*2]})
	}
	second := capture.Chain{Name: "second", Hook: &capture.Hook{Type: "nat", At: "prerouting", Priority: -100}}
	for _, a := range actions {
		second.Rules = append(second.Rules, capture.Rule{When: conditions[2:4], Do: a})
	}
	return &capture.Ruleset{Chains: []capture.Chain{first, second, {Name: "third", Hook: &capture.Hook{Type: "filter", At: "output", Priority: 5}}}}
}

// message is one of a transaction, without what is the transport's.
type message struct {
	Kind       uint16
	Attributes string // nested, a line each
}

// show spells attributes in the order of their types, and those that repeat in theirs: the kernel does not look at the order of others.
func show(t *testing.T, b []byte, indent string) string {
	t.Helper()
	type one struct {
		kind uint16
		text string
	}
	var all []one
	for len(b) > 0 {
		n, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		value := b[4:n]
		s := fmt.Sprintf("%s%d: ", indent, kind&^unix.NLA_F_NESTED)
		if kind&unix.NLA_F_NESTED != 0 {
			s += "\n" + show(t, value, indent+"  ")
		} else {
			s += fmt.Sprintf("%q\n", value)
		}
		all = append(all, one{kind, s})
		b = b[min(len(b), (n+3)&^3):]
	}
	slices.SortStableFunc(all, func(a, b one) int { return int(a.kind&^unix.NLA_F_NESTED) - int(b.kind&^unix.NLA_F_NESTED) })
	var out strings.Builder
	for _, a := range all {
		out.WriteString(a.text)
	}
	return out.String()
}

// ours are the messages of a transaction, without those that frame it.
func ours(t *testing.T, tr *transaction) []message {
	t.Helper()
	var all []message
	for i, b := 0, tr.b; len(b) > 0; i++ {
		n := binary.NativeEndian.Uint32(b)
		if seq := binary.NativeEndian.Uint32(b[8:]); int(seq) != i {
			t.Errorf("message %d has the sequence number %d", i, seq)
		}
		if i > 0 {
			if b[16] != unix.NFPROTO_INET {
				t.Errorf("message %d is for family %d", i, b[16])
			}
			all = append(all, message{binary.NativeEndian.Uint16(b[4:]), show(t, b[20:n], "")})
		}
		b = b[n:]
	}
	return all
}

// The library's messages for the same rules are the same: kernel.go knows the numbers of nf_tables right.
func TestMessagesAreTheLibrarys(t *testing.T) {
	rulesets := map[string]*capture.Ruleset{"everything": everything(), "default": capture.Rules(capture.Defaults())}
	for name, r := range rulesets {
		tr, err := replace(r)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(library(t, r), ours(t, tr)); diff != "" {
			t.Errorf("%s: -the library's +ours:\n%s", name, diff)
		}
	}
}

func TestReplaceRefuses(t *testing.T) {
	for want, r := range map[string]*capture.Ruleset{
		`no hook "input"`: {Chains: []capture.Chain{{Name: "a", Hook: &capture.Hook{Type: "nat", At: "input"}}}},
		"is not known":    {Chains: []capture.Chain{{Name: "a", Rules: []capture.Rule{{When: []capture.Condition{{Field: 200}}}}}}},
	} {
		if _, err := replace(r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// answer is what the kernel says of a message.
func answer(number uint32, code syscall.Errno) []byte {
	b := binary.NativeEndian.AppendUint32(nil, syscall.NLMSG_HDRLEN+4)
	b = binary.NativeEndian.AppendUint16(b, syscall.NLMSG_ERROR)
	b = binary.NativeEndian.AppendUint16(b, 0)
	b = binary.NativeEndian.AppendUint32(b, number)
	b = binary.NativeEndian.AppendUint32(b, 0)
	return binary.NativeEndian.AppendUint32(b, uint32(-int32(code)))
}

func TestAnswers(t *testing.T) {
	tr := remove() // 0: the beginning, 1: the table, 2: taking it away
	for _, tc := range []struct {
		name string
		says [][]byte
		last error
		want string
		is   error
	}{
		{name: "done", says: [][]byte{answer(2, 0)}},
		{name: "done, after an interruption", says: [][]byte{nil, answer(2, 0)}},
		{name: "nothing", want: "did not say"},
		{name: "of another message", says: [][]byte{answer(1, 0)}, want: "did not say"},
		{name: "not allowed", says: [][]byte{answer(0, syscall.EPERM)}, want: "the beginning", is: syscall.EPERM},
		{name: "an error before the last", says: [][]byte{append(answer(1, syscall.EOPNOTSUPP), answer(2, 0)...)}, want: "the table", is: syscall.EOPNOTSUPP},
		{name: "an error after the last", says: [][]byte{answer(2, 0), answer(0, syscall.ENOENT)}, is: syscall.ENOENT},
		{name: "an error of nobody", says: [][]byte{answer(99, syscall.EINVAL)}, want: "something", is: syscall.EINVAL},
		{name: "too much", says: [][]byte{answer(2, 0)}, last: syscall.ENOBUFS, is: syscall.ENOBUFS},
		{name: "broken", says: [][]byte{answer(2, 0)[:17]}, want: "can't be read"},
	} {
		err := tr.answers(2, func(b []byte) (int, error) {
			switch {
			case len(tc.says) > 0:
				n := copy(b, tc.says[0])
				tc.says = tc.says[1:]
				if n == 0 {
					return 0, syscall.EINTR
				}
				return n, nil
			case tc.last != nil:
				return 0, tc.last
			}
			return 0, syscall.EAGAIN
		})
		if (err == nil) != (tc.want == "" && tc.is == nil) || err != nil && (!strings.Contains(err.Error(), tc.want) || tc.is != nil && !errors.Is(err, tc.is)) {
			t.Errorf("%s: %v, want %q, %v", tc.name, err, tc.want, tc.is)
		}
	}
}

// library returns the messages by which github.com/google/nftables replaces the table.
func library(t *testing.T, r *capture.Ruleset) []message {
	t.Helper()
	var all []message
	end := errors.New("that is all of it")
	c, err := nftables.New(nftables.WithTestDial(func(req []netlink.Message) ([]netlink.Message, error) {
		for _, m := range req[1 : len(req)-1] {
			all = append(all, message{uint16(m.Header.Type), show(t, m.Data[4:], "")})
		}
		return nil, end
	}))
	if err != nil {
		t.Fatal(err)
	}
	table := func() *nftables.Table {
		return c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: capture.Table})
	}
	c.DelTable(table())
	tbl := table()
	accept := nftables.ChainPolicyAccept
	for i := range r.Chains {
		chain := &r.Chains[i]
		nc := &nftables.Chain{Name: chain.Name, Table: tbl}
		if h := chain.Hook; h != nil {
			nc.Type, nc.Policy = nftables.ChainType(h.Type), &accept
			nc.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(h.Priority))
			nc.Hooknum = nftables.ChainHookPrerouting
			if h.At == "output" {
				nc.Hooknum = nftables.ChainHookOutput
			}
		}
		c.AddChain(nc)
		for j := range chain.Rules {
			rule := &chain.Rules[j]
			exprs, err := libraryTranslate(rule)
			if err != nil {
				t.Fatal(err)
			}
			nr := &nftables.Rule{Table: tbl, Chain: nc, Exprs: exprs}
			if rule.Why != "" {
				nr.UserData = userdata.AppendString(nil, userdata.TypeComment, rule.Why)
			}
			c.AddRule(nr)
		}
	}
	if err := c.Flush(); !errors.Is(err, end) {
		t.Fatal(err)
	}
	return all
}

func libraryTranslate(r *capture.Rule) ([]expr.Any, error) {
	var all []expr.Any
	for i := range r.When {
		c := &r.When[i]
		load, err := libraryLoads(c)
		if err != nil {
			return nil, err
		}
		all = append(append(all, load...), libraryCompares(c)...)
	}
	switch do := r.Do; {
	case do.Jump != "":
		all = append(all, &expr.Verdict{Kind: expr.VerdictJump, Chain: do.Jump})
	case do.Redirect != 0:
		all = append(all, &expr.Immediate{Register: register, Data: port(do.Redirect)}, &expr.Redir{RegisterProtoMin: register})
	case do.Zone != 0:
		all = append(all, &expr.Immediate{Register: register, Data: binary.NativeEndian.AppendUint16(nil, do.Zone)},
			&expr.Ct{Key: expr.CtKeyZONE, Register: register, SourceRegister: true})
	default:
		all = append(all, &expr.Verdict{Kind: expr.VerdictReturn})
	}
	return all, nil
}

func libraryLoads(c *capture.Condition) ([]expr.Any, error) {
	meta := func(k expr.MetaKey) []expr.Any { return []expr.Any{&expr.Meta{Key: k, Register: register}} }
	switch c.Field {
	case capture.InInterface:
		return meta(expr.MetaKeyIIFNAME), nil
	case capture.OutInterface:
		return meta(expr.MetaKeyOIFNAME), nil
	case capture.Protocol:
		return meta(expr.MetaKeyL4PROTO), nil
	case capture.User:
		return meta(expr.MetaKeySKUID), nil
	case capture.Group:
		return meta(expr.MetaKeySKGID), nil
	case capture.Priority:
		return meta(expr.MetaKeyPRIORITY), nil
	case capture.SourcePort, capture.TargetPort:
		// Both protocols begin with the source's port and the target's (RFC 768, RFC 9293).
		offset := uint32(0)
		if c.Field == capture.TargetPort {
			offset = 2
		}
		return []expr.Any{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}}, nil
	case capture.SourceAddress, capture.TargetAddress:
		return libraryLoadAddress(c), nil
	}
	return nil, fmt.Errorf("a condition on field %d is not known", c.Field)
}

func libraryLoadAddress(c *capture.Condition) []expr.Any {
	version, source, length := byte(protoIPv4), uint32(12), uint32(4)
	if c.Network.Addr().Is6() {
		version, source, length = protoIPv6, 8, 16
	}
	if c.Field == capture.TargetAddress {
		source += length
	}
	all := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{version}},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: source, Len: length},
	}
	if c.Network.IsSingleIP() {
		return all
	}
	return append(all, &expr.Bitwise{SourceRegister: register, DestRegister: register, Len: length,
		Mask: mask(c.Network), Xor: make([]byte, length)})
}

func libraryCompares(c *capture.Condition) []expr.Any {
	op, within := expr.CmpOpEq, expr.CmpOpEq
	if c.Not {
		op, within = expr.CmpOpNeq, expr.CmpOpNeq
	}
	is := func(b []byte) []expr.Any { return []expr.Any{&expr.Cmp{Op: op, Register: register, Data: b}} }
	switch c.Field {
	case capture.InInterface, capture.OutInterface:
		name := make([]byte, syscall.IFNAMSIZ)
		copy(name, c.Name)
		return is(name)
	case capture.Protocol:
		if c.Name == "udp" {
			return is([]byte{syscall.IPPROTO_UDP})
		}
		return is([]byte{syscall.IPPROTO_TCP})
	case capture.SourcePort, capture.TargetPort:
		if c.Ports.First == c.Ports.Last {
			return is(port(c.Ports.First))
		}
		return []expr.Any{&expr.Range{Op: within, Register: register, FromData: port(c.Ports.First), ToData: port(c.Ports.Last)}}
	case capture.SourceAddress, capture.TargetAddress:
		return is(c.Network.Masked().Addr().AsSlice())
	}
	return is(binaryutil.NativeEndian.PutUint32(c.Number))
}

// Package kernel puts the rules of internal/capture in force, by netlink, in the network namespace of the process. It needs no
// other program, so the image of the proxy holds none; it needs CAP_NET_ADMIN.
package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"

	"github.com/malha-mesh/malha/internal/capture"
)

// room is for a transaction, which is one message, and for its answers, one for each rule, which come all at once: thousands of rules.
const room = 8 << 20

// Apply replaces the table of capture.Table by the ruleset, in one transaction: there is no moment with a part of it. Connections
// that stand are not touched.
func Apply(r *capture.Ruleset) error {
	c, err := dial()
	if err != nil {
		return err
	}
	t := c.AddTable(table()) // so that there is one to delete
	c.DelTable(t)
	t = c.AddTable(table())
	accept := nftables.ChainPolicyAccept
	for i := range r.Chains {
		chain := &r.Chains[i]
		nc := &nftables.Chain{Name: chain.Name, Table: t}
		if h := chain.Hook; h != nil {
			nc.Type, nc.Policy = nftables.ChainType(h.Type), &accept
			nc.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(h.Priority))
			if nc.Hooknum, err = hook(h.At); err != nil {
				return err
			}
		}
		c.AddChain(nc)
		for j := range chain.Rules {
			rule := &chain.Rules[j]
			exprs, err := translate(rule)
			if err != nil {
				return fmt.Errorf("rule %q: %w", rule, err)
			}
			nr := &nftables.Rule{Table: t, Chain: nc, Exprs: exprs}
			if rule.Why != "" {
				nr.UserData = userdata.AppendString(nil, userdata.TypeComment, rule.Why)
			}
			c.AddRule(nr)
		}
	}
	return explain(c.Flush())
}

// Clean takes the table away. That there is none is no error.
func Clean() error {
	c, err := dial()
	if err != nil {
		return err
	}
	c.DelTable(c.AddTable(table()))
	return explain(c.Flush())
}

func table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: capture.Table}
}

func dial() (*nftables.Conn, error) {
	c, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetReadBuffer(room), c.SetWriteBuffer(room))
	}))
	return c, explain(err)
}

// explain says what to do about errors of the kernel.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("the rules can't be set: %w (it takes root with the capability NET_ADMIN: is that dropped from the container?)", err)
	case errors.Is(err, syscall.EPROTONOSUPPORT), errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("the rules can't be set: %w (the node's kernel needs nf_tables with NAT for the family inet, Linux 5.2 or later: modules nf_tables, nft_nat, nft_redir, nft_ct)", err)
	}
	return fmt.Errorf("the rules can't be set: %w", err)
}

func hook(at string) (*nftables.ChainHook, error) {
	switch at {
	case "prerouting":
		return nftables.ChainHookPrerouting, nil
	case "output":
		return nftables.ChainHookOutput, nil
	}
	return nil, fmt.Errorf("there is no hook %q", at)
}

const register = 1 // the expressions of a condition follow each other, so one is enough

// Values of headers, from linux/netfilter.h and linux/in.h.
const (
	protoIPv4 = 2
	protoIPv6 = 10
)

func translate(r *capture.Rule) ([]expr.Any, error) {
	var all []expr.Any
	for i := range r.When {
		c := &r.When[i]
		load, err := loads(c)
		if err != nil {
			return nil, err
		}
		all = append(append(all, load...), compares(c)...)
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

// loads puts what a condition looks at into the register.
func loads(c *capture.Condition) ([]expr.Any, error) {
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
		return loadAddress(c), nil
	}
	return nil, fmt.Errorf("a condition on field %d is not known", c.Field)
}

// loadAddress holds for one version of IP only, whose header is then read (RFC 791, RFC 8200).
func loadAddress(c *capture.Condition) []expr.Any {
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

func mask(p netip.Prefix) []byte {
	m := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

// compares compares the register with what the condition wants.
func compares(c *capture.Condition) []expr.Any {
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

func port(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }

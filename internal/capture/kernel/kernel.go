// Package kernel puts the rules of internal/capture in force, by netlink, in the network namespace of the process. It needs no
// other program, so the image of the proxy holds none; it needs CAP_NET_ADMIN.
//
// It writes the messages itself (linux/netfilter/nf_tables.h). They are few, and a library that knows all of them was 0.25 to 0.5 MB of
// every idle proxy (docs/design/0010-data-path.md); the tests hold them against that library's.
package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/malha-mesh/malha/internal/capture"
)

// room is for a transaction, which is one message, and for its answers, which come all at once: thousands of rules.
const room = 8 << 20

// Apply replaces the table of capture.Table by the ruleset, in one transaction: there is no moment with a part of it. Connections
// that stand are not touched.
func Apply(r *capture.Ruleset) error {
	t, err := replace(r)
	if err != nil {
		return err
	}
	return explain(t.commit())
}

// Clean takes the table away. That there is none is no error.
func Clean() error { return explain(remove().commit()) }

// remove is a transaction that takes the table away.
func remove() *transaction {
	t := begin()
	t.table(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE) // so that there is one to delete
	t.table(unix.NFT_MSG_DELTABLE, 0)
	return t
}

// replace is a transaction that replaces the table.
func replace(r *capture.Ruleset) (*transaction, error) {
	t := remove()
	t.table(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
	for i := range r.Chains {
		if err := t.chain(&r.Chains[i]); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (t *transaction) table(kind, flags uint16) {
	t.add(kind, flags, "the table", text(unix.NFTA_TABLE_NAME, capture.Table), number(unix.NFTA_TABLE_FLAGS, 0))
}

func (t *transaction) chain(c *capture.Chain) error {
	attributes := [][]byte{text(unix.NFTA_CHAIN_TABLE, capture.Table), text(unix.NFTA_CHAIN_NAME, c.Name)}
	if h := c.Hook; h != nil {
		at, err := hook(h.At)
		if err != nil {
			return err
		}
		attributes = append(attributes,
			nested(unix.NFTA_CHAIN_HOOK, number(unix.NFTA_HOOK_HOOKNUM, at), number(unix.NFTA_HOOK_PRIORITY, uint32(int32(h.Priority)))),
			number(unix.NFTA_CHAIN_POLICY, accept),
			text(unix.NFTA_CHAIN_TYPE, h.Type))
	}
	t.add(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, "chain "+c.Name, attributes...)
	for i := range c.Rules {
		rule := &c.Rules[i]
		all, err := translate(rule)
		if err != nil {
			return fmt.Errorf("rule %q: %w", rule, err)
		}
		attributes := [][]byte{text(unix.NFTA_RULE_TABLE, capture.Table), text(unix.NFTA_RULE_CHAIN, c.Name), nested(unix.NFTA_RULE_EXPRESSIONS, all...)}
		if rule.Why != "" {
			attributes = append(attributes, attribute(unix.NFTA_RULE_USERDATA, comment(rule.Why)))
		}
		t.add(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, "rule "+strconv.Quote(rule.String()), attributes...)
	}
	return nil
}

// comment is what nft(8) shows as the comment of a rule: a type, a length, and a text that ends with a zero (libnftnl/udata.h).
func comment(why string) []byte {
	const kind, most = 0, 254
	why = why[:min(len(why), most)]
	return append(append([]byte{kind, byte(len(why) + 1)}, why...), 0)
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

// Numbers of linux/netfilter.h and linux/in.h.
const (
	hookPrerouting = 0
	hookOutput     = 3
	accept         = 1 // NF_ACCEPT
	protoIPv4      = 2
	protoIPv6      = 10
)

func hook(at string) (uint32, error) {
	switch at {
	case "prerouting":
		return hookPrerouting, nil
	case "output":
		return hookOutput, nil
	}
	return 0, fmt.Errorf("there is no hook %q", at)
}

const register = unix.NFT_REG_1 // the expressions of a condition follow each other, so one is enough

// expression is an element of a rule's list.
func expression(name string, attributes ...[]byte) []byte {
	return nested(unix.NFTA_LIST_ELEM, text(unix.NFTA_EXPR_NAME, name), nested(unix.NFTA_EXPR_DATA, attributes...))
}

// value is data as expressions hold it.
func value(kind uint16, b []byte) []byte { return nested(kind, attribute(unix.NFTA_DATA_VALUE, b)) }

// translate returns the expressions of a rule.
func translate(r *capture.Rule) ([][]byte, error) {
	var all [][]byte
	for i := range r.When {
		c := &r.When[i]
		load, err := loads(c)
		if err != nil {
			return nil, err
		}
		all = append(append(all, load...), compares(c))
	}
	switch do := r.Do; {
	case do.Jump != "":
		all = append(all, verdict(unix.NFT_JUMP, text(unix.NFTA_VERDICT_CHAIN, do.Jump)))
	case do.Redirect != 0:
		all = append(all, immediate(port(do.Redirect)), expression("redir", number(unix.NFTA_REDIR_REG_PROTO_MIN, register)))
	case do.Zone != 0:
		all = append(all, immediate(binary.NativeEndian.AppendUint16(nil, do.Zone)),
			expression("ct", number(unix.NFTA_CT_KEY, unix.NFT_CT_ZONE), number(unix.NFTA_CT_SREG, register)))
	default:
		all = append(all, verdict(unix.NFT_RETURN))
	}
	return all, nil
}

// immediate puts a value into the register.
func immediate(b []byte) []byte {
	return expression("immediate", number(unix.NFTA_IMMEDIATE_DREG, register), value(unix.NFTA_IMMEDIATE_DATA, b))
}

func verdict(code int32, chain ...[]byte) []byte {
	v := append([][]byte{number(unix.NFTA_VERDICT_CODE, uint32(code))}, chain...)
	return expression("immediate", number(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT), nested(unix.NFTA_IMMEDIATE_DATA, nested(unix.NFTA_DATA_VERDICT, v...)))
}

// loads puts what a condition looks at into the register.
func loads(c *capture.Condition) ([][]byte, error) {
	switch c.Field {
	case capture.InInterface:
		return [][]byte{meta(unix.NFT_META_IIFNAME)}, nil
	case capture.OutInterface:
		return [][]byte{meta(unix.NFT_META_OIFNAME)}, nil
	case capture.Protocol:
		return [][]byte{meta(unix.NFT_META_L4PROTO)}, nil
	case capture.User:
		return [][]byte{meta(unix.NFT_META_SKUID)}, nil
	case capture.Group:
		return [][]byte{meta(unix.NFT_META_SKGID)}, nil
	case capture.Priority:
		return [][]byte{meta(unix.NFT_META_PRIORITY)}, nil
	case capture.SourcePort, capture.TargetPort:
		// Both protocols begin with the source's port and the target's (RFC 768, RFC 9293).
		offset := uint32(0)
		if c.Field == capture.TargetPort {
			offset = 2
		}
		return [][]byte{payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, offset, 2)}, nil
	case capture.SourceAddress, capture.TargetAddress:
		return loadAddress(c), nil
	}
	return nil, fmt.Errorf("a condition on field %d is not known", c.Field)
}

func meta(key uint32) []byte {
	return expression("meta", number(unix.NFTA_META_KEY, key), number(unix.NFTA_META_DREG, register))
}

func payload(base, offset, length uint32) []byte {
	return expression("payload", number(unix.NFTA_PAYLOAD_DREG, register), number(unix.NFTA_PAYLOAD_BASE, base),
		number(unix.NFTA_PAYLOAD_OFFSET, offset), number(unix.NFTA_PAYLOAD_LEN, length))
}

func compare(op uint32, b []byte) []byte {
	return expression("cmp", number(unix.NFTA_CMP_SREG, register), number(unix.NFTA_CMP_OP, op), value(unix.NFTA_CMP_DATA, b))
}

// loadAddress holds for one version of IP only, whose header is then read (RFC 791, RFC 8200).
func loadAddress(c *capture.Condition) [][]byte {
	version, source, length := byte(protoIPv4), uint32(12), uint32(4)
	if c.Network.Addr().Is6() {
		version, source, length = protoIPv6, 8, 16
	}
	if c.Field == capture.TargetAddress {
		source += length
	}
	all := [][]byte{meta(unix.NFT_META_NFPROTO), compare(unix.NFT_CMP_EQ, []byte{version}), payload(unix.NFT_PAYLOAD_NETWORK_HEADER, source, length)}
	if c.Network.IsSingleIP() {
		return all
	}
	return append(all, expression("bitwise", number(unix.NFTA_BITWISE_SREG, register), number(unix.NFTA_BITWISE_DREG, register), number(unix.NFTA_BITWISE_LEN, length),
		value(unix.NFTA_BITWISE_MASK, mask(c.Network)), value(unix.NFTA_BITWISE_XOR, make([]byte, length))))
}

func mask(p netip.Prefix) []byte {
	m := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

// compares compares the register with what the condition wants.
func compares(c *capture.Condition) []byte {
	op, within := uint32(unix.NFT_CMP_EQ), uint32(unix.NFT_RANGE_EQ)
	if c.Not {
		op, within = unix.NFT_CMP_NEQ, unix.NFT_RANGE_NEQ
	}
	switch c.Field {
	case capture.InInterface, capture.OutInterface:
		name := make([]byte, syscall.IFNAMSIZ)
		copy(name, c.Name)
		return compare(op, name)
	case capture.Protocol:
		if c.Name == "udp" {
			return compare(op, []byte{syscall.IPPROTO_UDP})
		}
		return compare(op, []byte{syscall.IPPROTO_TCP})
	case capture.SourcePort, capture.TargetPort:
		if c.Ports.First == c.Ports.Last {
			return compare(op, port(c.Ports.First))
		}
		return expression("range", number(unix.NFTA_RANGE_SREG, register), number(unix.NFTA_RANGE_OP, within),
			value(unix.NFTA_RANGE_FROM_DATA, port(c.Ports.First)), value(unix.NFTA_RANGE_TO_DATA, port(c.Ports.Last)))
	case capture.SourceAddress, capture.TargetAddress:
		return compare(op, c.Network.Masked().Addr().AsSlice())
	}
	return compare(op, binary.NativeEndian.AppendUint32(nil, c.Number))
}

func port(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }

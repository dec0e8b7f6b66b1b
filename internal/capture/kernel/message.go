package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// transaction is the messages of one batch of nf_tables (linux/netfilter/nfnetlink.h): all of it is in force in the end, or nothing.
type transaction struct {
	b    []byte
	what []string // of each message, by its sequence number
	last int      // where in b the last message begins
}

func begin() *transaction {
	t := &transaction{}
	t.message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, "the beginning", nil)
	return t
}

// add adds a message of nf_tables for the family inet.
func (t *transaction) add(kind, flags uint16, what string, attributes ...[]byte) {
	t.last = len(t.b)
	t.message(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, unix.NFPROTO_INET, what, attributes)
}

// message adds a header of netlink and one of nfnetlink, and attributes.
func (t *transaction) message(kind, flags uint16, family byte, what string, attributes [][]byte) {
	n := syscall.NLMSG_HDRLEN + 4
	for _, a := range attributes {
		n += len(a)
	}
	t.b = binary.NativeEndian.AppendUint32(t.b, uint32(n))
	t.b = binary.NativeEndian.AppendUint16(t.b, kind)
	t.b = binary.NativeEndian.AppendUint16(t.b, unix.NLM_F_REQUEST|flags)
	t.b = binary.NativeEndian.AppendUint32(t.b, uint32(len(t.what)))
	t.b = binary.NativeEndian.AppendUint32(t.b, 0) // the port of the socket
	t.b = append(t.b, family, unix.NFNETLINK_V0)
	t.b = binary.BigEndian.AppendUint16(t.b, unix.NFNL_SUBSYS_NFTABLES)
	for _, a := range attributes {
		t.b = append(t.b, a...)
	}
	t.what = append(t.what, what)
}

// An attribute is its length, its type and a value that ends at a multiple of 4 (linux/netlink.h); numbers of nf_tables are big-endian.
func attribute(kind uint16, parts ...[]byte) []byte {
	b := make([]byte, 4)
	for _, p := range parts {
		b = append(b, p...)
	}
	binary.NativeEndian.PutUint16(b, uint16(len(b)))
	binary.NativeEndian.PutUint16(b[2:], kind)
	return append(b, make([]byte, -len(b)&3)...)
}

func nested(kind uint16, attributes ...[]byte) []byte {
	return attribute(kind|unix.NLA_F_NESTED, attributes...)
}

func text(kind uint16, s string) []byte { return attribute(kind, []byte(s), []byte{0}) }

func number(kind uint16, n uint32) []byte {
	return attribute(kind, binary.BigEndian.AppendUint32(nil, n))
}

// commit ends the transaction and sends it.
func (t *transaction) commit() error {
	// The kernel says of each message what is wrong with it. That nothing is has to be said of the last one only.
	flags := t.b[t.last+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	wanted := len(t.what) - 1
	t.message(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, "the end", nil)

	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("there is no socket for them: %w", err)
	}
	defer func() { _ = syscall.Close(fd) }()
	// A batch is one datagram. Its answers come before sending it returns.
	for force, plain := range map[int]int{syscall.SO_SNDBUFFORCE: syscall.SO_SNDBUF, syscall.SO_RCVBUFFORCE: syscall.SO_RCVBUF} {
		if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, force, room); err != nil {
			if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, plain, room); err != nil {
				return fmt.Errorf("the socket has no room for them: %w", err)
			}
		}
	}
	if err := syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return fmt.Errorf("the socket for them can't be used: %w", err)
	}
	if err := syscall.Sendto(fd, t.b, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return fmt.Errorf("they can't be sent: %w", err)
	}
	return t.answers(wanted, func(b []byte) (int, error) {
		n, _, err := syscall.Recvfrom(fd, b, syscall.MSG_DONTWAIT)
		return n, err
	})
}

// answers reads what the kernel said: an error is that of the first message that had one.
func (t *transaction) answers(wanted int, receive func([]byte) (int, error)) error {
	b := make([]byte, 64<<10) // an answer has the message that it is about in it
	acknowledged := false
	for {
		n, err := receive(b)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN) && acknowledged:
			return nil
		case errors.Is(err, syscall.EAGAIN):
			return errors.New("the kernel did not say whether they are set")
		case err != nil:
			return fmt.Errorf("the answer can't be read: %w", err)
		}
		messages, err := syscall.ParseNetlinkMessage(b[:n])
		if err != nil {
			return fmt.Errorf("the answer can't be read: %w", err)
		}
		for _, m := range messages {
			if m.Header.Type != syscall.NLMSG_ERROR || len(m.Data) < 4 {
				continue
			}
			number := int(m.Header.Seq)
			if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
				what := "something"
				if number < len(t.what) {
					what = t.what[number]
				}
				return fmt.Errorf("%s: %w", what, syscall.Errno(-code))
			}
			acknowledged = acknowledged || number == wanted
		}
	}
}

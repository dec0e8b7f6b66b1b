package server

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/malha-mesh/malha/internal/proxy/conn"
)

// Socket options of linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h.
const (
	soOriginalDst  = 80
	so6OriginalDst = 80
)

// originalTarget asks the kernel where a connection was going before it was redirected.
func originalTarget(nc *net.TCPConn) (netip.AddrPort, error) {
	local := conn.AddrPort(nc.LocalAddr())
	raw, err := nc.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var target netip.AddrPort
	var serr error
	err = raw.Control(func(fd uintptr) {
		if local.Addr().Is4() {
			target, serr = originalTarget4(int(fd))
		} else {
			target, serr = originalTarget6(int(fd))
		}
	})
	switch {
	case err != nil:
		return netip.AddrPort{}, err
	case errors.Is(serr, syscall.ENOENT), errors.Is(serr, syscall.ENOPROTOOPT):
		return netip.AddrPort{}, ErrNotCaptured // no redirected connection is known to the kernel
	case serr != nil:
		return netip.AddrPort{}, os.NewSyscallError("getsockopt", serr)
	case target == local:
		return netip.AddrPort{}, ErrNotCaptured
	}
	return target, nil
}

// originalTarget4 reads a sockaddr_in, by an option whose structure is at least as long.
func originalTarget4(fd int) (netip.AddrPort, error) {
	m, err := syscall.GetsockoptIPv6Mreq(fd, syscall.SOL_IP, soOriginalDst)
	if err != nil {
		return netip.AddrPort{}, err
	}
	b := m.Multiaddr // family, port, address
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3])), nil
}

func originalTarget6(fd int) (netip.AddrPort, error) {
	m, err := syscall.GetsockoptIPv6MTUInfo(fd, syscall.SOL_IPV6, so6OriginalDst)
	if err != nil {
		return netip.AddrPort{}, err
	}
	var port [2]byte // in the order of the network
	binary.NativeEndian.PutUint16(port[:], m.Addr.Port)
	return netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr).Unmap(), binary.BigEndian.Uint16(port[:])), nil
}

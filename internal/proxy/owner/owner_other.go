//go:build !linux

package owner

import (
	"errors"
	"net"
	"net/netip"
)

// Guard asks the kernel, which on Linux answers.
type Guard struct{}

// Open refuses: whose a connection is cannot be asked here.
func Open() (*Guard, error) {
	return nil, errors.New("the kernel does not tell whose connections are: only Linux does")
}

// Close does nothing.
func (*Guard) Close() error { return nil }

// Check refuses.
func (*Guard) Check(netip.AddrPort, netip.AddrPort) error { return errors.ErrUnsupported }

// OfSocket cannot be answered here in a portable way: the mode of the socket, which the kernel checks, has to do.
func OfSocket(*net.UnixConn) (pid int, err error) { return 0, nil }

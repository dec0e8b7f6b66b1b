// Package testport keeps TCP ports of the loopback interface for programs under test, which are told their port before they listen on it. A
// port that was free a moment ago is not free a moment later on a busy machine: the kernel gives it to the next listener on port 0, or to an
// outgoing connection. In comes a test, out goes a port that is its own until it ends.
package testport

import (
	"net"
	"os"
	"strconv"
	"syscall"
	"testing"
)

// Reserve returns a port of 127.0.0.1 that the kernel gives to nobody else before the end of the test.
//
// It is held by a socket that is bound and does not listen. Whoever asks for this very port with SO_REUSEADDR, as every listener of Go does, gets
// it nevertheless (socket(7)); choosing a port by itself, for a listener or a connection, the kernel passes over those that are bound. Until
// somebody listens, connections to it are refused.
func Reserve(t testing.TB) int {
	t.Helper()
	port, release, err := reserve()
	if err != nil {
		t.Fatalf("reserving a port of 127.0.0.1: %v", err)
	}
	t.Cleanup(release)
	return port
}

// Address is Reserve for those who want the port as an address.
func Address(t testing.TB) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(Reserve(t)))
}

func reserve() (port int, release func(), err error) {
	syscall.ForkLock.RLock() // not every system has SOCK_CLOEXEC
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return 0, nil, os.NewSyscallError("socket", err)
	}
	release = func() { _ = syscall.Close(fd) }
	defer func() {
		if err != nil {
			release()
		}
	}()
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return 0, nil, os.NewSyscallError("setsockopt", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, nil, os.NewSyscallError("bind", err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		return 0, nil, os.NewSyscallError("getsockname", err)
	}
	return sa.(*syscall.SockaddrInet4).Port, release, nil
}

//go:build !linux

package conn

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sysPeek is recv(fd, &b, 1, MSG_PEEK|MSG_DONTWAIT).
func sysPeek(fd uintptr) (int, syscall.Errno) {
	var b [1]byte
	n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return outcome(n, err)
}

// sysHungUp reports whether the peer has ended its side, as far as poll(2) tells without POLLRDHUP, which is Linux's.
func sysHungUp(fd uintptr) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	_, err := unix.Poll(poll, 0)
	return err == nil && poll[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

// sysSent returns how long ago data was sent last, and whether that is known; it is not asked.
func sysSent(uintptr) (ago time.Duration, ok bool) { return 0, false }

// sysWaiting returns how many bytes were sent and are not acknowledged; 0: it is not asked.
func sysWaiting(uintptr) int { return 0 }

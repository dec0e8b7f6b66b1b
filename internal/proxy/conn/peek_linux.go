package conn

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sysPeek is recv(fd, &b, 1, MSG_PEEK|MSG_DONTWAIT) by hand: it cannot block, and syscall.Recvfrom allocates an address.
func sysPeek(fd uintptr) (int, syscall.Errno) {
	var b byte
	n, _, e := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b)), 1, syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
	return int(n), e
}

// sysHungUp reports whether the peer has ended its side.
func sysHungUp(fd uintptr) bool {
	poll := struct {
		fd              int32
		events, revents int16
	}{fd: int32(fd), events: pollRDHUP}
	var now syscall.Timespec
	n, _, e := syscall.RawSyscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return e == 0 && n == 1
}

// pollRDHUP is POLLRDHUP of poll(2), which Go's syscall does not have; POLLHUP and POLLERR are told without asking.
const pollRDHUP = 0x2000

// sysSent returns how long ago data was sent last (tcp(7) TCP_INFO), and whether that is known.
func sysSent(fd uintptr) (ago time.Duration, ok bool) {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, false
	}
	return time.Duration(info.Last_data_sent) * time.Millisecond, true
}

// sysWaiting returns how many bytes were sent and are not acknowledged (tcp(7) SIOCOUTQ).
func sysWaiting(fd uintptr) int {
	n, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

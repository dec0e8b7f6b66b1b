//go:build linux && !race && !portable

package conn

import (
	"syscall"
	"unsafe"
)

// The system calls of Socket. None of them can block.

func sysRecv(fd uintptr, b []byte) (int, syscall.Errno) {
	n, _, e := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), syscall.MSG_DONTWAIT, 0, 0)
	return int(n), e
}

func sysSend(fd uintptr, b []byte) (int, syscall.Errno) {
	n, _, e := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
	return int(n), e
}

func sysSendPieces(fd uintptr, pieces []syscall.Iovec) (int, syscall.Errno) {
	msg := syscall.Msghdr{Iov: &pieces[0], Iovlen: uint64(len(pieces))}
	n, _, e := syscall.RawSyscall(syscall.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&msg)), syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL)
	return int(n), e
}

//go:build race || !linux || portable

package conn

import (
	"syscall"
	"unsafe"
)

// The system calls of Socket, as every system has them. The race detector takes what goes through syscall.Read and syscall.Write
// as an order of events, too, which tests rely on whose two ends are in one process.

func sysRecv(fd uintptr, b []byte) (int, syscall.Errno) {
	n, err := syscall.Read(int(fd), b)
	return outcome(n, err)
}

func sysSend(fd uintptr, b []byte) (int, syscall.Errno) {
	n, err := syscall.Write(int(fd), b)
	return outcome(n, err)
}

func sysSendPieces(fd uintptr, pieces []syscall.Iovec) (int, syscall.Errno) {
	p := pieces[0]
	return sysSend(fd, unsafe.Slice(p.Base, int(p.Len)))
}

func outcome(n int, err error) (int, syscall.Errno) {
	if e, ok := err.(syscall.Errno); ok { //nolint:errorlint // system calls return it bare
		return 0, e
	}
	return n, 0
}

package upstream

import (
	"errors"
	"os"
	"syscall"
)

// prioritize sets SO_PRIORITY (socket(7)); 0 leaves it.
func prioritize(c syscall.RawConn, priority int) error {
	if priority == 0 {
		return nil
	}
	var serr error
	err := c.Control(func(fd uintptr) {
		serr = os.NewSyscallError("setsockopt", syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PRIORITY, priority))
	})
	return errors.Join(err, serr)
}

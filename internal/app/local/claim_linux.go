package local

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
)

// claim takes something that belongs to one mesh of this machine, until it is closed or this process ends. It is a unix socket
// with a name in the abstract namespace (unix(7)), which belongs to the network namespace as ports do, and to no user, file
// system or process that could leave it behind. The error is errClaimed; where there are no such sockets nobody claims anything.
func claim(what string, n int) (io.Closer, error) {
	l, err := net.Listen("unix", fmt.Sprintf("@malha/%s/%d", what, n))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, errClaimed
	case err != nil:
		return io.NopCloser(nil), nil
	}
	return l, nil
}

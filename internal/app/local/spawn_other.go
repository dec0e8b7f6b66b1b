//go:build !linux

package local

import (
	"os"
	"syscall"
)

// childAttributes puts a child into a process group of its own. Without PR_SET_PDEATHSIG, children of a supervisor
// that was killed are ended by the next one, from its record of them.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// peerUser cannot be asked here in a portable way: the mode of the socket, which the kernel checks, has to do.
func peerUser(int) (int, error) { return os.Geteuid(), nil }

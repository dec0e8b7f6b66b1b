package handover

import (
	"fmt"
	"net"
	"os"
	"syscall"
)

// Supported says whether processes can hand over on this system.
const Supported = true

// peerMayAsk checks that the process at the other end belongs to our user, or to root. The mode of the socket says the
// same to the kernel; this is for paths whose folder somebody else can write to.
func peerMayAsk(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if cerr != nil {
		return 0, cerr
	}
	if int(cred.Uid) != os.Geteuid() && cred.Uid != 0 {
		return 0, fmt.Errorf("process %d belongs to user %d, not to ours (%d)", cred.Pid, cred.Uid, os.Geteuid())
	}
	return int(cred.Pid), nil
}
